"""Running a job by hand, in the caller's thread, with no dispatcher anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transaction
from transaction.interfaces import NoTransaction

from perdure.model import local
from perdure.model.clock import StopSignal
from perdure.model.environment import clock_of
from perdure.model.errors import BadStatusError, JobTimeoutError
from perdure.model.failure import Failure
from perdure.model.job import Job
from perdure.model.running import Runner
from perdure.model.status import Status
from perdure.model.suspension import is_coroutine_job, refuse_inside_a_loop
from perdure.model.telling import failure_told, tell_failure

__all__ = ["fail_by_hand", "resume_by_hand", "run_by_hand"]


def run_by_hand(
    job: Job, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, commit: bool
) -> Any:
    """Run `job` in this thread; see `Job.__call__`."""
    told_by = job.told_by
    if told_by is not None and told_by.status not in (Status.CALLBACKS, Status.COMPLETED):
        raise BadStatusError(
            f"{job!r} is a callback of {told_by!r}, which is {told_by.status.name} and has no "
            "result to call it with yet: it is called when that one has ended"
        )
    if is_coroutine_job(job):
        refuse_inside_a_loop(job)
    return _run(_runner(job, commit), job, args, kwargs)


def resume_by_hand(job: Job, *, commit: bool) -> None:
    """Go on with an ACTIVE or CALLBACKS job; see `Job.handle_interrupt`."""
    _run(_runner(job, commit), job)


def fail_by_hand(job: Job, error: BaseException | None, *, commit: bool) -> None:
    """End a job that has not begun; see `Job.fail`."""
    if job.status is Status.CALLBACKS:
        resume_by_hand(job, commit=commit)
        return
    if error is None:
        error = JobTimeoutError(f"{job!r} was ended before it began")
    failure = Failure(error)
    queue = job._queue
    if queue is None and job._parent is None and job.callbacks:
        runner = _runner(job, commit)
        runner._finish(job, failure, "fail")
        _run(runner, job)
        return
    if queue is not None:
        if job.status is Status.PENDING:
            queue._leave(job)
        else:
            queue._release_quotas(job)
    job._end(failure, "fail")
    if queue is not None:
        job._lose()
        queue._put_internal("resume", job, job._claim)
    else:
        # Where it is a callback that has callbacks, whoever runs its parent runs those.
        job._complete_if_alone()
    if job._p_jar is None:
        tell_failure(job, failure)
        return
    # Not before it is so: the transaction is the caller's.
    tell = failure_told(job, failure)
    manager = job._p_jar.transaction_manager
    manager.get().addAfterCommitHook(lambda committed: committed and tell())


def _runner(job: Job, commit: bool) -> Runner:
    if local.current() is not None:
        raise BadStatusError(
            f"{job!r} cannot be run by hand inside a running job, since that would commit "
            "the running job's transaction: put it into a queue"
        )
    jar = job._p_jar
    manager = transaction.manager if jar is None else jar.transaction_manager
    if _has_changes(manager):
        if not commit:
            raise BadStatusError(
                f"running {job!r} by hand commits this transaction, which has changes: commit "
                "them first, or call it with commit=True"
            )
        manager.commit()
    clock = clock_of(job)
    return Runner(manager, clock, StopSignal(clock))


def _has_changes(manager: Any) -> bool:
    try:
        return bool(manager.get()._resources)
    except NoTransaction:
        return False


def _run(
    runner: Runner, job: Job, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Run a job; where an agent has it, settle it; return what calling it returns."""
    agent, number = job._claimed_by()
    runner.run(job, args, kwargs)
    if agent is not None:
        ref = job.ref
        runner._store(job, "settling", lambda: agent.settle(ref, number))
    runner._manager.begin()
    if job.status is Status.PENDING:
        return job
    return job._waits_for[0] if job._waits_for else job.result
