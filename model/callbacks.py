"""What `Job.add_callbacks` returns: a job that runs one of two others."""

from __future__ import annotations

from typing import Any

from perdure.model.failure import Failure
from perdure.model.job import Job, as_job

__all__ = ["CallbackProxy"]


class CallbackProxy(Job):
    """Runs `success` or `failure` with its parent's result, and takes what it returns.

    Where the outcome has no callback, the parent's result passes on unchanged.
    """

    job: Job | None = None
    """The one of the two that the outcome called for, once it is known."""

    def __init__(
        self,
        success: Any = None,
        failure: Any = None,
        *,
        failure_log_level: int | None = None,
        retry_policy_factory: Any = None,
    ) -> None:
        super().__init__(_pass_on)
        self.success = self._own(success, failure_log_level, retry_policy_factory)
        self.failure = self._own(failure, failure_log_level, retry_policy_factory)

    def _own(self, callback: Any, level: int | None, factory: Any) -> Job | None:
        if callback is None:
            return None
        job = as_job(callback)
        job.check_storable()
        job._parent = self
        if level is not None:
            job.failure_log_level = level
        if factory is not None:
            job.retry_policy_factory = factory
        return job

    def choose(self) -> None:
        """Settle which of the two is run."""
        assert self.parent is not None
        outcome = self.parent.result
        self.job = self.failure if isinstance(outcome, Failure) else self.success


def _pass_on(result: Any) -> Any:
    return result


def call_result(job: Job) -> tuple[Any, ...]:
    """Return what `job` is called with besides its arguments: its parent's result."""
    parent = job.parent
    if isinstance(parent, CallbackProxy) and job in (parent.success, parent.failure):
        parent = parent.parent
    return () if parent is None else (parent.result,)
