"""What an operator does to a job by hand: running it once more, and cancelling it."""

from __future__ import annotations

from perdure.model.by_hand import fail_by_hand
from perdure.model.callbacks import CallbackProxy
from perdure.model.environment import clock_of
from perdure.model.errors import AbortedError, BadStatusError, JobNotFoundError
from perdure.model.internal import InternalJob
from perdure.model.job import Job
from perdure.model.resolving import check_whole
from perdure.model.status import Status

__all__ = ["cancel", "retry"]


def retry(job: Job) -> None:
    """Let `job` run (again) as soon as there is an agent for it; see `Job.retry`."""
    check_whole(job)
    if isinstance(job, InternalJob):
        raise BadStatusError(f"{job!r} deals with {job.serves!r}: retry that one")
    if isinstance(job, CallbackProxy) and job.job is not None:
        raise BadStatusError(
            f"{job!r} has only passed on the result of {job.job!r}: retry that one"
        )
    if job.status is Status.PENDING:
        _hasten(job)
        return
    _check_failed(job)
    whole = _whole(job)
    agent, queue = whole.agent, job.queue
    if queue is None or agent is None:
        raise BadStatusError(f"{job!r} was in no queue: call it again, or put another job")
    if not agent.keeps(whole):
        raise JobNotFoundError(f"{job!r} was forgotten: the time for which it is kept is over")
    # What a worker has just completed may not be among the done jobs yet, nor have queued the
    # callbacks that were added in that instant.
    agent.settle_done(whole)
    callbacks = job._callbacks or ()
    for callback in callbacks:
        if callback._queue is not None and callback.status is not Status.COMPLETED:
            # It is called with the result that would be gone.
            raise BadStatusError(
                f"{job!r} has the callback {callback!r}, which is still to be called with its "
                "result: wait for that one"
            )
    if job is whole:
        agent._give_up(job)
    job._begin_anew()
    for callback in callbacks:
        _reopen(callback)
    queue._enter(job, "retry", due=clock_of(queue).now())


def _hasten(job: Job) -> None:
    """Let a job that waits be the first in line, due at once."""
    queue = job._queue
    assert queue is not None
    queue._leave(job)
    job._taken_out()
    queue._enter(job, "put", first=True)


def _check_failed(job: Job) -> None:
    status = job.status
    if status is not Status.COMPLETED:
        raise BadStatusError(
            f"{job!r} is {status.name}; to be run again it has to be COMPLETED and failed, or "
            "PENDING"
        )
    if not job.failed:
        raise BadStatusError(
            f"{job!r} has succeeded, and what it did is committed: put another job to do it again"
        )


def _whole(job: Job) -> Job:
    """Return the job that an agent keeps, which `job` is, or is a callback of."""
    whole = job
    while whole._queue is None and whole._parent is not None:
        whole = whole._parent
    if whole.status is not Status.COMPLETED:
        raise BadStatusError(f"{job!r} belongs to {whole!r}, which is {whole.status.name}")
    return whole


def _reopen(callback: Job) -> None:
    """Let the other one of two callbacks be called still, should the outcome be another now."""
    if isinstance(callback, CallbackProxy) and callback._queue is None:
        callback.reopen()


def cancel(job: Job) -> None:
    """End `job` before it begins; see `Job.cancel`."""
    status = job.status
    if isinstance(job, InternalJob):
        raise BadStatusError(f"{job!r} deals with {job.serves!r} and cannot be cancelled")
    if status not in (Status.NEW, Status.PENDING, Status.ASSIGNED):
        raise BadStatusError(
            f"{job!r} is {status.name}, and only a job that has not begun can be cancelled"
        )
    check_whole(job)
    if job.queue is None and job.callbacks:
        raise BadStatusError(
            f"{job!r} is in no queue, whose agents could run its callbacks: put it first, or call "
            "its fail method"
        )
    fail_by_hand(job, AbortedError("it was cancelled before it began"), commit=False)
