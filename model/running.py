"""Running a job: attempts, commits, retries, callbacks, all fenced.

A `Runner` works in one thread, with one connection. It keeps the jobs that it is busy
with on a stack, the one that was claimed at the bottom, its callbacks above it, and
does what the status of the topmost one asks for until the stack is empty. Every status
is stored before the next step, so that another runner can go on from any of them.
"""

from __future__ import annotations

import copy
import datetime
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import transaction
from ZODB.POSException import ConflictError
from ZODB.utils import z64

from perdure.model import local
from perdure.model.callbacks import CallbackProxy, call_result
from perdure.model.clock import Clock, StopSignal
from perdure.model.environment import clock_of
from perdure.model.errors import (
    AbortedError,
    BadStatusError,
    JobTimeoutError,
    NotStorableError,
    ReassignedError,
)
from perdure.model.failure import Failure
from perdure.model.internal import InternalJob
from perdure.model.job import Job
from perdure.model.lane import Attempt, Lane
from perdure.model.logs import events, fields, trace
from perdure.model.policy import (
    CommitErrored,
    Decision,
    GiveUp,
    Interrupted,
    JobErrored,
    Reschedule,
    Retry,
    RetryPolicy,
)
from perdure.model.ref import JobRef
from perdure.model.retrying import never_fail
from perdure.model.status import Status

__all__ = ["Runner", "fail_by_hand", "resume_by_hand", "run_by_hand"]

_ZERO = timedelta(0)
_STEP_SECONDS = 5
_LONGEST_SECONDS = 60


class _Lost(BaseException):
    """The job was taken from this runner; no `Exception`, so that nothing retries it."""


class _Memory:
    """What the policy of a job keeps in itself, through the aborts of its attempts."""

    def __init__(self) -> None:
        self._policy: RetryPolicy | None = None
        self._state: dict[str, Any] | None = None

    def keep(self, policy: RetryPolicy) -> None:
        """Remember the policy as it is now."""
        policy._p_activate()
        self._policy = policy
        self._state = _copied(policy.__getstate__())

    def restore(self, job: Job) -> None:
        """Give `job` the policy that was remembered, to be stored with this transaction."""
        if self._state is None:
            return
        if job._policy is None:
            job._policy = self._policy
        self._policy = job._policy
        assert self._policy is not None
        self._policy._p_activate()
        self._policy.__setstate__(_copied(self._state))
        self._policy._p_changed = True


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    containers = (dict, list, set)
    return {
        name: copy.deepcopy(value) if isinstance(value, containers) else value
        for name, value in state.items()
    }


class _Fence:
    """Sees to it that no transaction of this thread commits for a job that was lost.

    Every commit writes the record of the job that was claimed, or makes sure that it is
    current; whoever takes the job from us writes it.
    """

    def __init__(self, runner: Runner, root: Job) -> None:
        self._runner = runner
        self._root = root
        self._claim = root._claim
        self._agent = root._agent
        self._warned = False
        self.in_call = False

    def check(self) -> None:
        """Raise `ReassignedError` where the job was taken from us."""
        root = self._root
        if root._p_jar is None:
            return
        root._p_activate()
        if root._claim != self._claim or root._agent is not self._agent:
            raise ReassignedError(
                f"{root!r} was taken from this worker: what it has not committed is dropped"
            )

    def newTransaction(self, transaction: Any) -> None:  # noqa: N802
        if self.in_call and not self._warned:
            self._warned = True
            events.warning(
                "%r ends its transaction by itself: what it does is no longer in one "
                "transaction with its result", self._root, extra=fields(self._root),
            )  # fmt: skip
        transaction.addBeforeCommitHook(self._before_commit)

    def beforeCompletion(self, transaction: Any) -> None:  # noqa: N802
        pass

    def afterCompletion(self, transaction: Any) -> None:  # noqa: N802
        pass

    def _before_commit(self) -> None:
        root = self._root
        if root._p_jar is None or root._p_serial == z64:
            return
        self.check()
        if self.in_call:
            # The job's own commit may write to other data managers alone, and then a
            # mere readCurrent is not looked at.
            root._p_changed = True
        else:
            root._p_jar.readCurrent(root)


class Runner:
    """Runs jobs, one after the other, in the thread that calls it.

    `manager` is the transaction manager of the jobs' connection. Waits go through
    `stop`, and end with `StopRequested` when that is set. `on_result` is told the
    `JobRef` of each job whose result was committed.
    """

    def __init__(
        self,
        manager: Any,
        clock: Clock,
        stop: StopSignal,
        *,
        lane: Lane | None = None,
        on_result: Callable[[JobRef], None] | None = None,
    ) -> None:
        self._manager = manager
        self._clock = clock
        self._stop = stop
        self._lane = lane
        self._on_result = on_result
        self._fence: _Fence | None = None

    def run(
        self, root: Job, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Run `root` and its callbacks, from whatever status they are in.

        It must be held by this thread: claimed by its agent, or nobody else's. Raises
        `ReassignedError` where it is taken away meanwhile, `StopRequested`, and whatever
        else is no `Exception` and comes out of a job; the transaction is aborted then.
        """
        fence = self._fence = _Fence(self, root)
        self._manager.registerSynch(fence)
        try:
            self._run(root, args, dict(kwargs or {}))
        except _Lost as lost:
            self._manager.abort()
            events.error("%s", lost, extra=fields(root))
            raise ReassignedError(str(lost)) from lost.__cause__
        except BaseException:
            self._manager.abort()
            raise
        finally:
            self._manager.unregisterSynch(fence)
            self._fence = None

    def _run(self, root: Job, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack = [root]
        self._view(root)
        if root.status is Status.ACTIVE and not isinstance(root, CallbackProxy):
            self._interrupted(root)
        while stack:
            job = stack[-1]
            self._view(job)
            status = job.status
            if status is Status.COMPLETED or (status is Status.PENDING and job is stack[0]):
                stack.pop()
            elif isinstance(job, InternalJob):
                self._serve(job, stack)
            elif status is Status.CALLBACKS:
                waiting = _next_callback(job)
                if waiting is None:
                    self._complete(job)
                else:
                    stack.append(waiting)
            elif isinstance(job, CallbackProxy):
                self._run_proxy(job, stack)
            elif status is Status.ACTIVE:
                self._interrupted(job)
            elif job is not root and job.deadline is not None and self._late(job):
                events.error("callback %r has expired", job, extra=fields(job))
                self._finish(job, Failure(JobTimeoutError(f"{job!r} expired")), "fail")
            else:
                if job is not root:
                    trace.debug("callback %r is started", job, extra=fields(job))
                extra = (*args, *call_result(job)) if job is root else call_result(job)
                self._execute(job, extra, kwargs if job is root else {})

    # Stored steps.

    def _view(self, job: Job) -> None:
        """Begin a transaction, and see `job` as it is stored now; waits for the database."""
        failures = 0
        while True:
            try:
                self._manager.abort()
                self._manager.begin()
                if job._p_jar is not None and job._p_serial != z64:
                    job._p_invalidate()
                    job._p_activate()
                self._check()
                return
            # Whatever keeps the database from answering, it is waited for.
            except Exception as error:
                failures += 1
                if failures == 1 or failures % 10 == 0:
                    events.info(
                        "%r waits for the database: %s", job, error, extra=fields(job)
                    )
                self._pause(failures)

    def _pause(self, failures: int) -> None:
        seconds = min(_LONGEST_SECONDS, failures * _STEP_SECONDS)
        self._stop.wait(timedelta(seconds=seconds))

    def _check(self) -> None:
        if self._fence is not None:
            try:
                self._fence.check()
            except ReassignedError as error:
                raise _Lost(str(error)) from error

    def _store(self, job: Job, what: str, change: Callable[[], None]) -> None:
        """Make a change to `job` and commit it, however long that takes."""

        def checked() -> None:
            self._check()
            change()

        never_fail(checked, f"{what} {job!r}", self._manager, self._stop)

    def _complete(self, job: Job) -> None:
        def complete() -> None:
            if job.status is Status.CALLBACKS and _next_callback(job) is None:
                job._complete()

        self._store(job, "completing", complete)

    def _finish(
        self, job: Job, result: Any, arrow: str = "end", memory: _Memory | None = None
    ) -> None:
        """Store a result that was not stored with the effects of an attempt."""

        def end() -> None:
            if job.status in (Status.CALLBACKS, Status.COMPLETED):
                return
            if memory is not None:
                memory.restore(job)
            job._end(result, arrow)
            if not job.callbacks:
                job._complete()

        self._store(job, "storing the result of", end)
        self._tell_result(job, result)

    def _tell_result(self, job: Job, result: Any) -> None:
        extra = fields(job)
        if isinstance(result, Failure):
            level = job.failure_log_level
            if level is None:
                level = logging.ERROR if job.parent is None else logging.CRITICAL
            if events.isEnabledFor(level):
                text = result.traceback("verbose")
                events.log(level, "%r failed:\n%s", job, text, extra=extra)
        else:
            trace.info("%r succeeded with %r", job, result, extra=extra)
        if self._on_result is not None and job._p_oid is not None:
            self._on_result(JobRef.of(job))

    # One job.

    def _execute(self, job: Job, extra: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        memory = _Memory()

        def begin() -> None:
            if job.status is not Status.ACTIVE:
                job._begin()
                if job._policy is not None:
                    job._policy.claimed()

        self._store(job, "beginning", begin)
        alone = False
        while True:
            with self._admit(alone) as attempt:
                self._view(job)
                if job.status is not Status.ACTIVE:
                    return
                memory.restore(job)
                message = self._attempt(job, extra, kwargs, attempt)
            if message is None:
                return
            alone = message.failure.check(ConflictError) is not None and not message.alone
            decision = self._decide(job, message, memory)
            if isinstance(decision, Retry):
                if decision.after > _ZERO:
                    self._stop.wait(decision.after)
                continue
            if isinstance(decision, Reschedule):
                if job.queue is not None and job._agent is not None:
                    self._reschedule(job, decision.when, memory)
                    return
                events.critical(
                    "%r cannot be rescheduled, as its policy wants, since no agent has it",
                    job, extra=fields(job),
                )  # fmt: skip
            self._finish(job, message.failure, memory=memory)
            return

    def _admit(self, alone: bool) -> AbstractContextManager[Attempt]:
        if self._lane is None:
            return nullcontext(Attempt())
        return self._lane.exclusive() if alone else self._lane.shared()

    def _attempt(
        self, job: Job, extra: tuple[Any, ...], kwargs: dict[str, Any], attempt: Attempt
    ) -> JobErrored | CommitErrored | None:
        """Call the callable and commit its result; return what went wrong, or None."""
        before = job.__getstate__() if job._p_jar is None else None
        info = None
        try:
            with self._in_call(job):
                info = job.set_up()
                result = job.callable(*job._args, *extra, **{**(job._kwargs or {}), **kwargs})
        except BaseException as error:
            failure = Failure(error) if isinstance(error, Exception) else None
            self._manager.abort()
            self._tear_down(job, info)
            if failure is None:
                raise
            return JobErrored(failure, alone=attempt.alone)
        try:
            _check_result(job, result)
            job._end(result)
            if not job.callbacks:
                job._complete()
            self._manager.commit()
        except BaseException as error:
            failure = Failure(error) if isinstance(error, Exception) else None
            self._manager.abort()
            if before is not None:
                job.__setstate__(before)
            self._tear_down(job, info)
            if failure is None:
                raise
            self._view(job)
            if job.status is not Status.ACTIVE:
                # The commit took place, although it raised.
                self._tell_result(job, job.result)
                return None
            self._tell_lost_result(job, result)
            return CommitErrored(failure, alone=attempt.alone)
        self._tear_down(job, info)
        self._tell_result(job, result)
        return None

    def _in_call(self, job: Job) -> AbstractContextManager[Any]:
        fence = self._fence
        assert fence is not None
        return _InCall(fence, local.running(job, fence._root))

    def _tear_down(self, job: Job, info: Any) -> None:
        try:
            job.tear_down(info)
        # The job's fate is settled, whatever this raises.
        except Exception:
            events.critical("tear_down of %r failed", job, exc_info=True, extra=fields(job))

    def _tell_lost_result(self, job: Job, result: Any) -> None:
        extra = fields(job)
        if isinstance(result, Failure):
            level = job.failure_log_level
            events.log(
                logging.ERROR if level is None else level,
                "%r had failed before its commit failed:\n%s",
                job, result.traceback("verbose"), extra=extra,
            )  # fmt: skip
        else:
            events.info(
                "%r had succeeded with %r before its commit failed", job, result, extra=extra
            )

    # What the policy says.

    def _late(self, job: Job) -> bool:
        deadline = job.deadline
        return deadline is not None and deadline < self._clock.now()

    def _decide(
        self, job: Job, message: JobErrored | CommitErrored | Interrupted, memory: _Memory
    ) -> Decision:
        """Ask the policy until it answers; what it keeps is in `memory` afterwards."""
        failures = 0
        while True:
            self._view(job)
            if self._late(job):
                return GiveUp()
            try:
                memory.restore(job)
                policy = job.get_retry_policy()
                data = tuple(sorted(getattr(policy, "data", {}).items()))
                decision: object = policy.on_receive(_with_data(message, data))
                memory.keep(policy)
                break
            # A policy is the application's code, which may raise anything.
            except Exception:
                failures += 1
                events.critical(
                    "the retry policy of %r cannot be asked, %d times so far", job, failures,
                    exc_info=True, extra=fields(job),
                )  # fmt: skip
                self._manager.abort()
                self._pause(failures)
        self._manager.abort()
        if isinstance(decision, (Retry, Reschedule, GiveUp)):
            return decision
        events.error(
            "the retry policy of %r answered %r instead of a decision: it is given up",
            job, decision, extra=fields(job),
        )  # fmt: skip
        return GiveUp()

    def _reschedule(
        self, job: Job, when: datetime.datetime | timedelta, memory: _Memory
    ) -> None:
        def enter() -> None:
            queue = job.queue
            if job.status is not Status.ACTIVE or queue is None:
                return
            memory.restore(job)
            now = self._clock.now()
            due = now + when if isinstance(when, timedelta) else when
            if due.utcoffset() is None:
                due = due.replace(tzinfo=datetime.UTC)
            if due <= now:
                queue._enter(job, "reschedule", first=True, keeps_places=True)
            else:
                queue._enter(job, "reschedule", due=due)

        self._store(job, "rescheduling", enter)

    def _interrupted(self, job: Job) -> None:
        """Put an ACTIVE job, whose worker is gone, to its policy."""
        memory = _Memory()
        decision = self._decide(job, Interrupted(), memory)
        trace.info("%r was interrupted: %r", job, decision, extra=fields(job))
        if isinstance(decision, GiveUp):
            error = AbortedError(f"{job!r} was interrupted and is not run again")
            trace.debug("%r is aborted", job, extra=fields(job))
            self._finish(job, Failure(error), memory=memory)
        elif job._queue is None:
            if isinstance(decision, Reschedule):
                events.error(
                    "%r is in no queue, so it is run again at once instead of at %s",
                    job, decision.when, extra=fields(job),
                )  # fmt: skip

            def renew() -> None:
                if job.status is Status.ACTIVE:
                    memory.restore(job)
                    job._renew()

            self._store(job, "renewing", renew)
        else:
            when = decision.when if isinstance(decision, Reschedule) else decision.after
            self._reschedule(job, when, memory)

    # Jobs of a special kind.

    def _serve(self, internal: InternalJob, stack: list[Job]) -> None:
        job = internal.serves
        status = job.status
        if internal.kind == "expire" and status is Status.PENDING:
            error = JobTimeoutError(f"{job!r} was to begin by {job.deadline}, and did not")
            self._finish(job, Failure(error), "fail")
        elif internal.kind == "interrupt" and status is Status.ACTIVE:
            self._interrupted(job)
        elif status is Status.CALLBACKS:
            stack.append(job)
        else:

            def end() -> None:
                if internal.status is not Status.COMPLETED:
                    internal._begin()
                    internal._end(None)
                    internal._complete()

            self._store(internal, "ending", end)

    def _run_proxy(self, proxy: CallbackProxy, stack: list[Job]) -> None:
        if proxy.status is not Status.ACTIVE:

            def choose() -> None:
                if proxy.status is not Status.ACTIVE:
                    proxy._begin()
                    proxy.choose()

            self._store(proxy, "choosing for", choose)
            return
        assert proxy.parent is not None
        chosen = proxy.job
        if chosen is None:
            self._finish(proxy, proxy.parent.result)
        elif chosen.status is not Status.COMPLETED:
            stack.append(chosen)
        else:
            self._finish(proxy, chosen.result)


class _InCall:
    """While the job's own code runs: it is the current job, and commits are its own."""

    def __init__(self, fence: _Fence, current: AbstractContextManager[None]) -> None:
        self._fence = fence
        self._current = current

    def __enter__(self) -> None:
        self._current.__enter__()
        self._fence.in_call = True

    def __exit__(self, *exc_info: Any) -> None:
        self._fence.in_call = False
        self._current.__exit__(*exc_info)


def _next_callback(job: Job) -> Job | None:
    for callback in job.callbacks:
        if callback.status is not Status.COMPLETED:
            return callback
    return None


def _with_data(message: Any, data: tuple[tuple[str, Any], ...]) -> Any:
    if isinstance(message, Interrupted):
        return Interrupted(data)
    return type(message)(message.failure, data, message.alone)


def _check_result(job: Job, result: Any) -> None:
    if isinstance(result, Job):
        raise NotStorableError(
            f"{job!r} returned the job {result!r}, which this version does not wait for: "
            "return its ref, or let a callback do what follows"
        )


# By hand, with no dispatcher anywhere.


def run_by_hand(
    job: Job, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, commit: bool
) -> Any:
    """Run `job` in this thread; see `Job.__call__`."""
    runner = _runner_by_hand(job, commit)
    runner.run(job, args, kwargs)
    return _after(job, runner)


def resume_by_hand(job: Job, *, commit: bool) -> None:
    """Go on with an ACTIVE or CALLBACKS job; see `Job.handle_interrupt`."""
    runner = _runner_by_hand(job, commit)
    runner.run(job)
    _after(job, runner)


def fail_by_hand(job: Job, error: BaseException | None, *, commit: bool) -> None:
    """End a job that has not begun; see `Job.fail`."""
    if job.status is Status.CALLBACKS:
        resume_by_hand(job, commit=commit)
        return
    failure = Failure(JobTimeoutError(f"{job!r} was ended before it began") if error is None else error)
    queue = job._queue
    if queue is None:
        job._end(failure, "fail")
        if not job.callbacks:
            job._complete()
        else:
            resume_by_hand(job, commit=True)
        return
    if job.status is Status.PENDING:
        queue._leave(job)
    else:
        queue._release_quotas(job)
    job._end(failure, "fail")
    job._lose()
    queue._put_internal("resume", job)


def _runner_by_hand(job: Job, commit: bool) -> Runner:
    if local.current() is not None:
        raise BadStatusError(
            f"{job!r} cannot be run by hand inside a running job, since that would commit "
            "the running job's transaction: put it into a queue"
        )
    jar = job._p_jar
    manager = transaction.manager if jar is None else jar.transaction_manager
    if manager.get()._resources:
        if not commit:
            raise BadStatusError(
                f"running {job!r} by hand commits this transaction, which has changes: commit "
                "them first, or call it with commit=True"
            )
        manager.commit()
    clock = clock_of(job)
    return Runner(manager, clock, StopSignal(clock))


def _after(job: Job, runner: Runner) -> Any:
    """Settle a job that an agent has, and return what calling it returns."""
    agent = job._agent
    if agent is not None and job.status is Status.COMPLETED:
        number, ref = job._claim, job.ref
        runner._store(job, "settling", lambda: agent.settle(ref, number))
    runner._manager.begin()
    return job if job.status is Status.PENDING else job.result
