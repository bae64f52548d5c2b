"""Deliberate faults, switched on in a worker's process alone, that the driver must notice.

Each has a schedule of troubles and work that makes it visible soon: how often, in comparison
to the others, each of them is chosen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from perdure.model import Interrupted, NeverRetry, Retry
from perdure.model.fence import Fence
from perdure.model.quota import Quota
from perdure.model.record import JobRecord
from perdure.model.running import Runner

__all__ = ["FAULTS", "Fault"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: what is wrong, how to make it so, and what brings it to light."""

    text: str
    switch_on: Callable[[], None]
    work: Mapping[str, int]
    troubles: Mapping[str, int]
    pause_seconds: float = 0.7
    """How long it is between two troubles, on average."""


def _replace(owner: Any, name: str, function: Any) -> None:
    setattr(owner, name, function)


def _no_fence() -> None:
    _replace(Fence, "check", lambda self: None)
    _replace(Fence, "_fence_off", lambda self: None)


def _effect_apart() -> None:
    def take(self: Runner, job: Any, result: Any, original: Any = Runner._take_result) -> None:
        self._manager.commit()
        threading.Event().wait(0.2)
        self._view(job)
        original(self, job, result)

    _replace(Runner, "_take_result", take)


def _quota_kept() -> None:
    _replace(Quota, "release", lambda self, job: None)
    _replace(Quota, "_needed", lambda self: self._holders)


def _quota_loose() -> None:
    _replace(Quota, "has_room", lambda self: True)
    _replace(Quota, "_needed", lambda self: ())


def _never_again() -> None:
    def on_receive(self: Any, message: Any, original: Any = NeverRetry.on_receive) -> Any:
        return Retry() if isinstance(message, Interrupted) else original(self, message)

    _replace(NeverRetry, "on_receive", on_receive)


def _no_burial_write() -> None:
    _replace(JobRecord, "_lose", lambda self: None)


_KILLS = {"kill": 1}
_STOPS = {"suspend-long": 1}

FAULTS: Mapping[str, Fault] = {
    "no-fence": Fault(
        "a worker does not look whether its job was taken from it",
        # Those who are to bury a suspended one must not be suspended themselves.
        _no_fence, {"own-commits": 1}, _STOPS, 4.0,
    ),
    "effect-apart": Fault(
        "the effect of a job is committed apart from its result",
        _effect_apart, {"note": 1}, _KILLS,
    ),
    "quota-kept": Fault(
        "a place of a quota is not given back",
        _quota_kept, {"quota": 1}, _KILLS,
    ),
    "quota-loose": Fault(
        "a quota lets in whoever comes",
        _quota_loose, {"quota": 1}, _KILLS,
    ),
    "never-again": Fault(
        "a job that must never be run again is, after an interruption",
        _never_again, {"once": 1}, _KILLS,
    ),
    "no-burial-write": Fault(
        "who buries a dispatcher does not write the jobs that it takes",
        _no_burial_write, {"note": 2, "own-commits": 1}, _KILLS,
    ),
}  # fmt: skip
