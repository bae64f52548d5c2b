"""What is logged of a job that is run: its end, its failures, its retries."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from perdure.model.failure import Failure
from perdure.model.job import Job
from perdure.model.logs import events, fields, trace
from perdure.model.policy import CommitErrored, Interrupted, JobErrored
from perdure.model.retrying import is_told
from perdure.model.saferepr import safe_repr

__all__ = ["failure_told", "tell_failure", "tell_lost_result", "tell_retry", "trouble"]


def tell_failure(job: Job, failure: Failure) -> None:
    """Log that `job` has failed, at the level that is set for it."""
    failure_told(job, failure)()


def failure_told(job: Job, failure: Failure) -> Callable[[], None]:
    """Return what logs that `job` has failed; it may be called after the transaction."""
    level, shown, extra = _failure_level(job), repr(job), fields(job)

    def tell() -> None:
        if events.isEnabledFor(level):
            events.log(level, "%s failed:\n%s", shown, failure.traceback("verbose"), extra=extra)

    return tell


def tell_lost_result(job: Job, result: Any) -> None:
    """Log what a job had produced whose commit has failed."""
    extra = fields(job)
    if isinstance(result, Failure):
        events.log(
            _failure_level(job), "%r had failed before its commit failed:\n%s",
            job, result.traceback("verbose"), extra=extra,
        )  # fmt: skip
    else:
        events.info(
            "%r had succeeded with %s before its commit failed",
            job, safe_repr(result), extra=extra,
        )  # fmt: skip


def tell_retry(job: Job, message: JobErrored | CommitErrored, retries: int) -> None:
    """Log that a job is run again, as often as that is told."""
    if job.parent is not None:
        trace.debug("callback %r is retried", job, extra=fields(job))
    if is_told(retries):
        trace.warning(
            "%r is run again by its policy, %d times since it began, after %s",
            job, retries, trouble(message), extra=fields(job),
        )  # fmt: skip


def trouble(message: JobErrored | CommitErrored | Interrupted) -> str:
    """Return what has happened to a job, for the log."""
    if isinstance(message, Interrupted):
        return "an interruption"
    where = "at its commit" if isinstance(message, CommitErrored) else "in its call"
    return f"{message.failure} {where}"


def _failure_level(job: Job) -> int:
    """Return the level at which a failure of `job` is logged."""
    level = job.failure_log_level
    if level is None:
        return logging.ERROR if job.parent is None else logging.CRITICAL
    return level
