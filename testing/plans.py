"""What jobs a `RuntimeMachine` puts: drawn as plans, made into jobs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from perdure.model.composition import parallel, serial
from perdure.model.job import Job
from perdure.model.policy import NeverRetry, RetryCommonForever
from perdure.testing import callables
from perdure.testing.callables import Effect, Ledger, Patient

__all__ = ["CALLBACKS", "COMPOSITES", "KINDS", "POLICIES", "Plan"]

KINDS = ("succeed", "fail", "contend", "doze", "quit", "vanish")
"""The kinds of jobs that are one call."""

COMPOSITES = ("return", "serial", "parallel")
"""The kinds of jobs that have others."""

CALLBACKS = ("always", "later", "success", "failure")
"""When they are called, and ``later``: always, and one that takes a while."""

POLICIES = {
    "": None,
    "never": NeverRetry,
    "forever": RetryCommonForever,
    "patient": Patient,
}

_FUNCTIONS = {
    "succeed": callables.succeed,
    "fail": callables.fail,
    "quit": callables.quit_thread,
}


@dataclass(frozen=True)
class Plan:
    """A job as it was drawn; durations in seconds, from its put, and from `begin_after` on."""

    kind: str = "succeed"
    parts: tuple[str, ...] = ()
    postprocess: bool = False
    quotas: tuple[str, ...] = ()
    begin_after: int | None = None
    begin_by: int | None = None
    policy: str = ""
    callbacks: tuple[str, ...] = ()
    transactional: bool = False
    """Whether it may be run in a group, unless something above forbids that."""

    def make(self, ledger: Ledger, key: str, now: datetime) -> Job:
        """Return the job, with its effects in the ledger under keys that begin with `key`."""
        job = self._make(ledger, key)
        if self.begin_after is not None:
            job.begin_after = now + timedelta(seconds=self.begin_after)
        if self.begin_by is not None:
            job.begin_by = timedelta(seconds=self.begin_by)
        job.quota_names = self.quotas
        if self.transactional:
            job.transactional = True
        # One that always takes its worker along would be run for ever.
        endless = self.kind == "quit" and self.policy == "forever"
        if POLICIES[self.policy] is not None and not endless:
            job.retry_policy_factory = POLICIES[self.policy]
        told = {name: _told(name, ledger.effect(f"{key} {name}")) for name in self.callbacks}
        for name in ("always", "later"):
            if name in told:
                job.add_callback(told.pop(name))
        if told:
            job.add_callbacks(**told)
        return job

    def _make(self, ledger: Ledger, key: str) -> Job:
        if self.kind == "return":
            fails = "fail" in self.parts
            inner = ledger.effect(f"{key} inner")
            return Job(callables.return_job, ledger.effect(key), inner, fails)
        if self.kind in ("serial", "parallel"):
            parts = [
                _call(kind, ledger, f"{key} part {number}")
                for number, kind in enumerate(self.parts)
            ]
            last = None
            if self.postprocess:
                last = Job(callables.gather, ledger.effect(f"{key} postprocess"))
            return (serial if self.kind == "serial" else parallel)(*parts, postprocess=last)
        return _call(self.kind, ledger, key)


def _told(name: str, effect: Effect) -> Job:
    if name == "later":
        return Job(callables.hear_later, effect, 20.0)
    return Job(callables.hear, effect)


def _call(kind: str, ledger: Ledger, key: str) -> Job:
    effect = ledger.effect(key)
    if kind == "contend":
        return Job(callables.contend, effect, ledger.counter)
    if kind == "doze":
        return Job(callables.doze, effect, 20.0)
    if kind == "vanish":
        return Job(callables.vanish, effect)
    return Job(_FUNCTIONS[kind], effect)
