"""What `Job.add_callbacks` returns: a job that runs one of two others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdure.model.failure import Failure
from perdure.model.job import Job
from perdure.model.resolving import check_whole, is_loadable
from perdure.model.status import Status

__all__ = ["CallbackProxy", "check_callbacks", "open_callbacks"]


def open_callbacks(job: Job) -> list[Job]:
    """Return the callbacks of a job that are not done and can be loaded here.

    Raises `CallableNotFoundError` where there are others, and none that can.
    """
    callbacks = job.callbacks
    here = [callback for callback in callbacks if is_loadable(callback)]
    found = [callback for callback in here if callback.status is not Status.COMPLETED]
    if not found and len(here) < len(callbacks):
        for callback in callbacks:
            check_whole(callback)
    return found


def check_callbacks(job: Job, known: Mapping[str, str] | None = None) -> None:
    """Raise `CallableNotFoundError` where a job in CALLBACKS cannot go on in this process.

    That is so where all has run but callbacks that cannot be loaded here; `known` is as for
    `perdure.model.resolving.check_whole`.
    """
    waiting = [job]
    while waiting:
        each = waiting[0]
        if isinstance(each, CallbackProxy) and each.status is Status.ACTIVE and each.job:
            check_whole(each.job, known)
            waiting = [each.job]
        elif each.status is Status.CALLBACKS:
            waiting = open_callbacks(each)
        else:
            waiting = []


class CallbackProxy(Job):
    """Runs `success` or `failure` with its parent's result, and takes what it returns.

    Where the outcome has no callback, the parent's result passes on unchanged. It is made
    by `Job.add_callbacks`; `success` and `failure` are the jobs of the two callbacks, or None.
    """

    _owns_result = False

    job: Job | None = None
    """The one of the two that the outcome called for, once it is known."""

    def __init__(
        self,
        success: Job | None = None,
        failure: Job | None = None,
        *,
        failure_log_level: int | None = None,
        retry_policy_factory: Any = None,
    ) -> None:
        super().__init__(_pass_on)
        self.success = success
        self.failure = failure
        for job in self._alternatives():
            # Both are given the same, so that the first one that refuses has changed nothing.
            job._set_all(
                failure_log_level=failure_log_level, retry_policy_factory=retry_policy_factory
            )
        for job in self._alternatives():
            job._parent = self

    def _alternatives(self) -> list[Job]:
        return [job for job in (self.success, self.failure) if job is not None]

    def _children(self) -> list[Job]:
        return [*self._alternatives(), *super()._children()]

    def _speaks_to(self, child: Job) -> Job | None:
        # The two are called with what the proxy is told, its callbacks with what became of it.
        return self.told_by if child in self._alternatives() else self

    def choose(self) -> None:
        """Settle which of the two is run."""
        assert self.told_by is not None
        outcome = self.told_by.result
        self.job = self.failure if isinstance(outcome, Failure) else self.success

    def reopen(self) -> None:
        """Let it choose anew, where one of the two was never called, after a retry by hand.

        The one that was called is not called again.
        """
        if any(job.status is Status.NEW for job in self._alternatives()):
            self._reopen()
            self.job = None


def _pass_on(result: Any) -> Any:
    return result
