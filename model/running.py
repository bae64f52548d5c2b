"""Running a job: attempts, commits, retries, callbacks, all fenced.

A `Runner` works in one thread, with one connection. It keeps the jobs that it is busy
with on a stack, the one that was claimed at the bottom, its callbacks above it, and
does what the status of the topmost one asks for until the stack is empty. Every status
is stored before the next step, so that another runner can go on from any of them.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

from transaction.interfaces import NoTransaction
from ZODB.POSException import ConflictError, ConnectionStateError
from ZODB.utils import z64

from perdure.model import local
from perdure.model.callbacks import CallbackProxy
from perdure.model.clock import Clock, StopSignal
from perdure.model.composition import Composite
from perdure.model.errors import (
    AbortedError,
    JobTimeoutError,
    ReassignedError,
    StopRequested,
)
from perdure.model.failure import Failure
from perdure.model.fence import Fence
from perdure.model.following import Follow, await_jobs, has_ended, inner_ended, whole_of
from perdure.model.internal import InternalJob
from perdure.model.job import Job
from perdure.model.lane import Attempt, Lane
from perdure.model.logs import events, fields, trace
from perdure.model.memory import Memory
from perdure.model.policy import (
    CommitErrored,
    Decision,
    GiveUp,
    Interrupted,
    JobErrored,
    Reschedule,
    Retry,
)
from perdure.model.ref import JobRef
from perdure.model.retrying import is_away, never_fail
from perdure.model.saferepr import safe_repr
from perdure.model.status import Status
from perdure.model.storable import check_value, copied, is_plain

__all__ = ["Runner", "tell_failure"]

_ZERO = timedelta(0)
_STEP_SECONDS = 5
_LONGEST_SECONDS = 60


class _Lost(BaseException):
    """The job was taken from this runner; no `Exception`, so that nothing retries it."""


class _Closed(BaseException):
    """The job's connection was closed; no `Exception`, so that nothing retries it."""


class _PolicyError(Exception):
    """A policy raised what is no `Exception`."""


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
        self._fence: Fence | None = None

    def run(
        self, root: Job, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Run `root` and its callbacks, from whatever status they are in.

        It must be held by this thread: claimed by its agent, or nobody else's. Raises
        `ReassignedError` where it is taken away meanwhile, `StopRequested`, and whatever
        else is no `Exception` and comes out of a job; the transaction is aborted then. What
        cannot be loaded raises what loading it raises, a connection that the job has closed
        `ConnectionStateError`.
        """
        fence = self._fence = Fence(root)
        self._manager.registerSynch(fence)
        try:
            self._run(root, args, dict(kwargs or {}))
        except _Lost as lost:
            self._abort()
            events.error("%s", lost, extra=fields(root))
            raise ReassignedError(str(lost)) from lost.__cause__
        except _Closed as closed:
            raise ConnectionStateError(str(closed)) from closed
        finally:
            self._abort()
            self._manager.unregisterSynch(fence)
            self._fence = None

    def _run(self, root: Job, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._fence is not None
        stack = [root]
        while stack and not self._fence.released:
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
            elif status is Status.NEW and job is not root and self._late(job):
                events.error("callback %r has expired", job, extra=fields(job))
                error = JobTimeoutError(f"{job!r} was to begin by {job.deadline}, and did not")
                self._finish(job, Failure(error), "fail")
            elif isinstance(job, CallbackProxy):
                self._run_proxy(job, stack)
            elif isinstance(job, Follow):
                self._run_follow(job, stack)
            elif status is Status.ACTIVE and job._waits_for:
                self._let_go(stack[0])
            elif status is Status.ACTIVE:
                self._interrupted(job)
            else:
                if job.parent is not None:
                    trace.debug("callback %r is started", job, extra=fields(job))
                told_by = job.told_by
                told = () if told_by is None else (told_by.result,)
                extra = (*args, *told) if job is root else told
                self._execute(job, extra, kwargs if job is root else {})

    # Stored steps.

    def _view(self, job: Job) -> None:
        """Begin a transaction, and see `job` as it is stored now; waits for the database."""
        failures = 0
        while True:
            try:
                self._abort()
                self._manager.begin()
                self._check()
                if job._p_jar is not None and job._p_serial != z64:
                    job._p_invalidate()
                    job._p_activate()
                self._check()
                return
            # The database is waited for; what cannot be loaded cannot be run, either.
            except Exception as error:
                if not is_away(error):
                    raise
                failures += 1
                if failures == 1 or failures % 10 == 0:
                    events.info("%r waits for the database: %s", job, error, extra=fields(job))
                self._pause(failures)

    def _abort(self) -> None:
        try:
            self._manager.abort()
        except NoTransaction:
            # Only explicit managers say so; nothing is open, and that is what is wanted.
            pass
        # The transaction is over even so.
        except Exception:
            events.error("an abort failed", exc_info=True)

    def _pause(self, failures: int) -> None:
        seconds = min(_LONGEST_SECONDS, failures * _STEP_SECONDS)
        self._stop.wait(timedelta(seconds=seconds))

    def _check(self) -> None:
        if self._fence is not None:
            try:
                self._fence.check()
            except ReassignedError as error:
                raise _Lost(str(error)) from error
            except ConnectionStateError as error:
                raise _Closed(str(error)) from error

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
                if job._own_side is not None:
                    # Nobody settles it: one who adds a callback in this instant must not win.
                    job._own_side._p_activate()
                    job._p_jar.readCurrent(job._own_side)

        self._store(job, "completing", complete)

    def _finish(
        self,
        job: Job,
        result: Any,
        arrow: str = "end",
        memory: Memory | None = None,
        place: _Place | None = None,
    ) -> None:
        """Store a result that was not stored with the effects of an attempt.

        Where the job is not any more in the place in which it was seen (None: it is now),
        somebody else has dealt with it.
        """
        place = place or _place(job)
        moved = False

        def end() -> None:
            nonlocal moved
            if job.status in (Status.CALLBACKS, Status.COMPLETED):
                return
            moved = _place(job) != place
            if moved:
                return
            if memory is not None:
                memory.restore(job)
            job._end(result, arrow)
            job._complete_if_alone()

        self._store(job, "storing the result of", end)
        if not moved:
            self._tell_result(job, result)

    def _tell_result(self, job: Job, result: Any) -> None:
        if isinstance(job, CallbackProxy):
            # What it passes on was told of already.
            pass
        elif isinstance(result, Failure):
            tell_failure(job, result)
        else:
            trace.info("%r succeeded with %s", job, safe_repr(result), extra=fields(job))
        if self._on_result is not None and job._p_oid is not None:
            self._on_result(JobRef.of(job))

    # One job.

    def _execute(self, job: Job, extra: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        memory = Memory()

        def begin() -> None:
            if job.status in (Status.NEW, Status.ASSIGNED):
                job._begin()
                if job._policy is not None:
                    with _only_exceptions():
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
            # A conflict may be of our own dispatcher's making only in the first attempt.
            alone = message.failure.check(ConflictError) is not None
            decision = self._decide(job, message, memory)
            if isinstance(decision, Retry):
                if decision.after > _ZERO:
                    self._stop.wait(decision.after)
                    self._view(job)
                if not self._late(job):
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
        assert self._fence is not None
        before = job.__getstate__() if job._p_jar is None else None
        info = None
        returned = False
        try:
            with self._in_call(job):
                info = job.set_up()
                result = None
                if not isinstance(job, Composite):
                    result = job.callable(
                        *_fresh(job._args), *extra, **{**_fresh(job._kwargs or {}), **kwargs}
                    )
            self._check()
            self._take_result(job, result)
            returned = True
            if job._waits_for:
                self._fence_root_waits()
            self._manager.commit()
        except BaseException as error:
            if not returned:
                _leave_out_the_runner(error)
            failure = Failure(error) if isinstance(error, Exception) else None
            self._abort()
            self._fence.letting_go = False
            if before is not None:
                job.__setstate__(before)
            self._tear_down(job, info)
            if failure is None:
                raise
        else:
            self._fence.released = self._fence.letting_go
            self._tear_down(job, info)
            if job.status is not Status.ACTIVE:
                self._tell_result(job, job.result)
            return None
        if not returned:
            return JobErrored(failure, alone=attempt.alone)
        self._view(job)
        if job.status is not Status.ACTIVE:
            # The commit took place, although it raised.
            self._tell_result(job, job.result)
            return None
        self._tell_lost_result(job, result)
        return CommitErrored(failure, alone=attempt.alone)

    def _take_result(self, job: Job, result: Any) -> None:
        """End `job` with what it has returned, or let it wait for the job that this is."""
        if isinstance(job, Composite):
            job.begin_parts()
        elif isinstance(result, Job) and not has_ended(result):
            await_jobs(job, [result])
        else:
            if isinstance(result, Job):
                result = result.result
            if not is_plain(result):
                check_value(result, f"the result of {job!r}")
            job._end(result)
        if job.status is not Status.ACTIVE:
            job._complete_if_alone()

    def _fence_root_waits(self) -> None:
        """Give up the job that was claimed, with the next commit: it waits for others."""
        fence = self._fence
        assert fence is not None
        fence.letting_go = True
        fence.root._agent = None

    def _let_go(self, root: Job) -> None:
        """Leave a job, of which a callback waits for another job."""
        fence = self._fence
        assert fence is not None

        def wait() -> None:
            if isinstance(root, InternalJob):
                _end_internal(root)
            else:
                self._fence_root_waits()

        self._store(root, "leaving", wait)
        fence.released = True

    def _run_follow(self, follow: Follow, stack: list[Job]) -> None:
        inner, outer = follow.parent, follow.outer
        assert inner is not None
        ended = False

        def tell() -> None:
            nonlocal ended
            if follow.status is Status.COMPLETED:
                return
            queue = outer.queue or inner.queue
            if queue is not None:
                queue._put_follower(outer, inner)
            else:
                ended = inner_ended(outer, inner)
            follow._begin()
            follow._end(None)
            follow._complete()

        self._store(follow, "telling", tell)
        if ended:
            # In no queue: nobody but this runner goes on with it.
            stack.insert(0, whole_of(outer))

    def _in_call(self, job: Job) -> AbstractContextManager[None]:
        assert self._fence is not None
        return self._fence.in_call(job)

    def _tear_down(self, job: Job, info: Any) -> None:
        assert self._fence is not None
        try:
            with local.running(job, self._fence.root):
                job.tear_down(info)
        # The job's fate is settled, whatever this raises.
        except Exception:
            events.critical("tear_down of %r failed", job, exc_info=True, extra=fields(job))

    def _tell_lost_result(self, job: Job, result: Any) -> None:
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

    # What the policy says.

    def _late(self, job: Job) -> bool:
        deadline = job.deadline
        return deadline is not None and deadline < self._clock.now()

    def _decide(
        self, job: Job, message: JobErrored | CommitErrored | Interrupted, memory: Memory
    ) -> Decision:
        """Ask the policy until it answers; what it keeps is in `memory` afterwards."""
        failures = 0
        while True:
            self._view(job)
            if self._late(job):
                return GiveUp()
            try:
                with _only_exceptions():
                    memory.restore(job)
                    policy = job.get_retry_policy()
                    data = tuple(sorted(copied(getattr(policy, "data", {})).items()))
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
                self._abort()
                self._pause(failures)
        self._abort()
        if isinstance(decision, (Retry, Reschedule, GiveUp)):
            return decision
        events.error(
            "the retry policy of %r answered %r instead of a decision: it is given up",
            job, decision, extra=fields(job),
        )  # fmt: skip
        return GiveUp()

    def _reschedule(
        self,
        job: Job,
        when: datetime.datetime | timedelta,
        memory: Memory,
        place: _Place | None = None,
    ) -> None:
        place = place or _place(job)

        def enter() -> None:
            queue = job.queue
            if job.status is not Status.ACTIVE or _place(job) != place or queue is None:
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

        fence = self._fence
        assert fence is not None
        fence.letting_go = job is fence.root
        self._store(job, "rescheduling", enter)
        fence.released = fence.letting_go

    def _interrupted(self, job: Job) -> None:
        """Put an ACTIVE job, whose worker is gone, to its policy."""
        memory = Memory()
        # Two may be at it, and the other one may have dealt with it in this instant.
        place = _place(job)
        decision = self._decide(job, Interrupted(), memory)
        if isinstance(decision, Retry) and decision.after > _ZERO and job._queue is None:
            self._stop.wait(decision.after)
            self._view(job)
            if self._late(job):
                decision = GiveUp()
        trace.info("%r was interrupted: %r", job, decision, extra=fields(job))
        if isinstance(decision, GiveUp):
            error = AbortedError(f"{job!r} was interrupted and is not run again")
            trace.debug("%r is aborted", job, extra=fields(job))
            self._finish(job, Failure(error), memory=memory, place=place)
        elif job._queue is None:
            if isinstance(decision, Reschedule):
                events.error(
                    "%r is in no queue, so it is run again at once instead of at %s",
                    job, decision.when, extra=fields(job),
                )  # fmt: skip

            def renew() -> None:
                if _place(job) == place:
                    memory.restore(job)
                    job._renew()

            self._store(job, "renewing", renew)
        else:
            when = decision.when if isinstance(decision, Reschedule) else decision.after
            self._reschedule(job, when, memory, place)

    # Jobs of a special kind.

    def _serve(self, internal: InternalJob, stack: list[Job]) -> None:
        job = internal.serves
        status = job.status

        def end() -> None:
            agent = job._agent
            if internal.kind == "recover" and agent is not None and job._claim == internal.claim:
                agent.interrupt(job)
            _end_internal(internal)

        if internal.kind == "follow" and not internal.heard:
            self._hear(internal)
        elif job._agent is not None or internal.kind == "recover" or _is_stale(internal):
            # Nobody's to deal with here: an agent has it, or had it, since it was dealt with;
            # or another internal job does, made when who had it started again.
            self._store(internal, "ending", end)
        elif internal.kind == "expire" and status is Status.PENDING:
            error = JobTimeoutError(f"{job!r} was to begin by {job.deadline}, and did not")
            self._finish(job, Failure(error), "fail")
        elif internal.kind == "interrupt" and status is Status.ACTIVE:
            self._interrupted(job)
        elif status is Status.CALLBACKS and (internal.kind != "follow" or internal.goes_on):
            stack.append(job)
        else:
            self._store(internal, "ending", end)

    def _hear(self, internal: InternalJob) -> None:
        """Let a job that waits hear of the end of another one."""
        outer, inner = internal.outer, internal.inner
        assert outer is not None and inner is not None

        def hear() -> None:
            if not internal.heard:
                internal.heard = True
                internal.goes_on = inner_ended(outer, inner)

        self._store(internal, "telling", hear)
        if internal.goes_on:
            self._tell_result(outer, outer.result)

    def _run_proxy(self, proxy: CallbackProxy, stack: list[Job]) -> None:
        if proxy.status is not Status.ACTIVE:

            def choose() -> None:
                if proxy.status in (Status.NEW, Status.ASSIGNED):
                    proxy._begin()
                    proxy.choose()

            self._store(proxy, "choosing for", choose)
            return
        chosen = proxy.job
        if chosen is None:
            assert proxy.told_by is not None
            self._finish(proxy, proxy.told_by.result)
        elif chosen.status is not Status.COMPLETED:
            stack.append(chosen)
        else:
            self._finish(proxy, chosen.result)


_Place = tuple[Status, int, int | None]


def _place(job: Job) -> _Place:
    """Return what tells whether somebody else has moved the job since."""
    return job.status, job._claim, job._active_start


@contextmanager
def _only_exceptions() -> Iterator[None]:
    """Let what a policy raises be an `Exception`, unless it comes from outside."""
    try:
        yield
    except (Exception, KeyboardInterrupt, GeneratorExit, StopRequested):
        raise
    except BaseException as error:
        raise _PolicyError(f"it raised {type(error).__name__}") from error


def _next_callback(job: Job) -> Job | None:
    # One that was put into the queue, to be retried by hand, is not run here.
    waiting = [
        callback
        for callback in job.callbacks
        if callback._queue is None and callback.status is not Status.COMPLETED
    ]
    # Those who wait for the job go on when all is done that belongs to it.
    last = [callback for callback in waiting if isinstance(callback, Follow)]
    return next((callback for callback in waiting if callback not in last), None) or next(
        iter(last), None
    )


def _with_data(message: Any, data: tuple[tuple[str, Any], ...]) -> Any:
    if isinstance(message, Interrupted):
        return Interrupted(data)
    return type(message)(message.failure, data, message.alone)


def _leave_out_the_runner(error: BaseException) -> None:
    """Let the traceback begin with the application's own code, where it has any."""
    traceback = error.__traceback__
    if traceback is not None and traceback.tb_next is not None:
        error.__traceback__ = traceback.tb_next


def _fresh(arguments: Any) -> Any:
    """Return a copy for one attempt, so that what it does to them is nobody else's."""
    values = arguments.values() if isinstance(arguments, dict) else arguments
    return arguments if all(map(is_plain, values)) else copied(arguments)


def _is_stale(internal: InternalJob) -> bool:
    """Tell whether the job was dealt with, and claimed since; it may wait for another by now."""
    noted = internal.kind in ("interrupt", "resume") and internal.claim is not None
    return noted and internal.serves._claim != internal.claim


def _end_internal(internal: InternalJob) -> None:
    if internal.status is not Status.COMPLETED:
        internal._begin()
        internal._end(None)
        internal._complete()


def _failure_level(job: Job) -> int:
    level = job.failure_log_level
    if level is None:
        return logging.ERROR if job.parent is None else logging.CRITICAL
    return level


def tell_failure(job: Job, failure: Failure) -> None:
    """Log that `job` has failed, at the level that is set for it."""
    level = _failure_level(job)
    if events.isEnabledFor(level):
        text = failure.traceback("verbose")
        events.log(level, "%r failed:\n%s", job, text, extra=fields(job))
