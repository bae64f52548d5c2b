"""Running a job: attempts, commits, retries, callbacks, all fenced.

A `Runner` works in one thread, with one connection. It keeps the jobs that it is busy
with on a stack, the one that was claimed at the bottom, its callbacks above it, and
does what the status of the topmost one asks for until the stack is empty. Every status
is stored before the next step, so that another runner can go on from any of them.

Where a job waits for a coroutine or a future, a runner that `suspends` leaves it and returns
what it waits for; any runner goes on with it once that has ended.
"""

from __future__ import annotations

import datetime
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, cast

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
    NotStorableError,
    ReassignedError,
    StopRequested,
)
from perdure.model.failure import Failure
from perdure.model.fence import Fence
from perdure.model.following import Follow, await_jobs, has_ended, inner_ended, whole_of
from perdure.model.internal import InternalJob
from perdure.model.job import Job
from perdure.model.lane import Attempt, Lane
from perdure.model.logs import SUCCEEDED, events, fields, placed, trace
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
from perdure.model.retrying import (
    is_away,
    is_told,
    never_fail,
    tell_of_wait,
    wait_for_system_recovery,
)
from perdure.model.saferepr import safe_repr
from perdure.model.status import Status
from perdure.model.storable import check_value, copied, is_plain
from perdure.model.suspension import (
    AwaitedFuture,
    CoroutineCall,
    Ended,
    Pause,
    Suspension,
    fresh,
    is_coroutine_job,
    is_future,
    outcome_of_future,
    run_here,
    without_frames_of,
)

__all__ = ["Runner", "failure_told", "tell_failure"]

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
    `JobRef` of each job whose result was committed. With `suspends`, it leaves a job that
    waits for a coroutine, a future, or the time of such a one's retry; without, it waits.
    """

    def __init__(
        self,
        manager: Any,
        clock: Clock,
        stop: StopSignal,
        *,
        lane: Lane | None = None,
        on_result: Callable[[JobRef], None] | None = None,
        suspends: bool = False,
    ) -> None:
        self._manager = manager
        self._clock = clock
        self._stop = stop
        self._lane = lane
        self._on_result = on_result
        self._suspends = suspends
        self._fence: Fence | None = None
        self._suspension: Suspension | None = None
        self._ended: Ended | None = None

    def run(
        self,
        root: Job,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        ended: Ended | None = None,
    ) -> Suspension | None:
        """Run `root` and its callbacks, from whatever status they are in.

        Return what is to be waited for, whereupon it is to be run again with that `Ended`;
        None when all is done. Whoever has an `Ended` closes what it is of, afterwards.

        It must be held by this thread: claimed by its agent, or nobody else's. Raises
        `ReassignedError` where it is taken away meanwhile, `StopRequested`, and whatever
        else is no `Exception` and comes out of a job; the transaction is aborted then. What
        cannot be loaded raises what loading it raises, a connection that the job has closed
        `ConnectionStateError`.
        """
        with placed(**fields(root)):
            return self._run_fenced(root, args, dict(kwargs or {}), ended)

    def _run_fenced(
        self, root: Job, args: tuple[Any, ...], kwargs: dict[str, Any], ended: Ended | None
    ) -> Suspension | None:
        fence = self._fence = Fence(root)
        self._suspension = None
        self._ended = ended
        self._manager.registerSynch(fence)
        try:
            self._run(root, args, kwargs)
            return self._suspension
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
            self._ended = None

    def _run(self, root: Job, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._fence is not None
        stack = [root]
        while stack and not self._fence.released and self._suspension is None:
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
            elif status is Status.ACTIVE and self._ended is None:
                self._interrupted(job)
            else:
                if job.parent is not None and self._ended is None:
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
                tell_of_wait(f"{job!r} waits for the database", error, failures, fields(job))
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

        root = self._fence is not None and job is self._fence.root
        with nullcontext() if root else placed(**fields(job)):
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
            trace.info(SUCCEEDED, job, safe_repr(result), extra=fields(job))
        if self._on_result is not None and job._p_oid is not None:
            self._on_result(JobRef.of(job))

    # One job.

    def _execute(self, job: Job, extra: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make attempts until there is a result, or no worker is needed for a while."""

        def begin() -> None:
            if job.status in (Status.NEW, Status.ASSIGNED):
                job._begin()
                if job._policy is not None:
                    with _only_exceptions():
                        job._policy.claimed()

        memory = Memory()
        alone = False
        retries = 0
        ended = self._ended if job.status is Status.ACTIVE else None
        self._ended = None
        if ended is None:
            self._store(job, "beginning", begin)
        elif isinstance(ended.of, Pause):
            if self._late(job):
                self._finish(job, ended.of.failure)
                return
            ended = None
        while True:
            waited = ended is not None
            if ended is None:
                message = self._try(job, extra, kwargs, memory, alone)
            else:
                message = self._take_ended(job, ended)
            ended = self._wait_here()
            if ended is not None:
                continue
            if message is None:
                return
            # A conflict may be of our own dispatcher's making only in the first attempt.
            alone = message.failure.check(ConflictError) is not None
            decision = self._decide(job, message, memory)
            if isinstance(decision, Retry):
                if decision.after > _ZERO and waited and self._suspends:
                    self._keep_memory(job, memory)
                    _tell_retry(job, message, 1)
                    self._suspension = Pause(decision.after, message.failure, _is_light(job))
                    return
                if decision.after > _ZERO:
                    self._stop.wait(decision.after)
                    self._view(job)
                if not self._late(job):
                    retries += 1
                    _tell_retry(job, message, retries)
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

    def _try(
        self,
        job: Job,
        extra: tuple[Any, ...],
        kwargs: dict[str, Any],
        memory: Memory,
        alone: bool,
    ) -> JobErrored | CommitErrored | None:
        """Make one attempt, or have it made; return what went wrong, or None."""
        # A coroutine does not go through the lane, in which it could be for days: it counts
        # as alone.
        if self._suspends and self._is_coroutine_job(job):
            return self._hand_over(job, memory)
        with self._admit(alone) as attempt:
            self._view(job)
            if job.status is not Status.ACTIVE:
                return None
            memory.restore(job)
            return self._attempt(job, extra, kwargs, attempt)

    def _is_coroutine_job(self, job: Job) -> bool:
        """Tell whether it is one; waits for the database."""
        failures = 0
        while True:
            try:
                return is_coroutine_job(job)
            # A coroutine that is not known as one would run in this thread.
            except Exception as error:
                if not is_away(error):
                    raise
                failures += 1
                tell_of_wait(f"{job!r} waits for the database", error, failures, fields(job))
                self._pause(failures)
                self._view(job)

    def _hand_over(self, job: Job, memory: Memory) -> JobErrored | None:
        """Let somebody else run the coroutine."""
        assert self._fence is not None
        self._keep_memory(job, memory)
        self._view(job)
        if job.status is Status.ACTIVE:
            try:
                self._suspension = CoroutineCall(job, self._fence.root)
            # Copying its arguments runs the application's code.
            except Exception as error:
                return JobErrored(Failure(error))
        return None

    def _keep_memory(self, job: Job, memory: Memory) -> None:
        """Store what the policy keeps: who goes on with the job has not this memory."""

        def keep() -> None:
            if job.status is Status.ACTIVE:
                memory.restore(job)

        if memory.is_kept:
            self._store(job, "retrying", keep)

    def _wait_here(self) -> Ended | None:
        """Wait for a future in this thread, where that is how this runner waits."""
        suspension = self._suspension
        if self._suspends or not isinstance(suspension, AwaitedFuture):
            return None
        self._suspension = None
        self._abort()
        return Ended(suspension, *outcome_of_future(suspension.future))

    def _attempt(
        self, job: Job, extra: tuple[Any, ...], kwargs: dict[str, Any], attempt: Attempt
    ) -> JobErrored | CommitErrored | None:
        """Call the callable and commit its result; return what went wrong, or None."""
        info: Any = None

        def call() -> Any:
            nonlocal info
            with _ending_forked_children(job), self._in_call(job):
                info = job.set_up()
                if isinstance(job, Composite):
                    return None
                result = job.callable(
                    *fresh(job._args), *extra, **{**fresh(job._kwargs or {}), **kwargs}
                )
                # By hand: a runner that suspends has handed it over.
                if inspect.iscoroutine(result) and is_coroutine_job(job):
                    return run_here(result, job)
                return result

        return self._conclude(job, call, lambda: self._tear_down(job, info), attempt)

    def _conclude(
        self,
        job: Job,
        call: Callable[[], Any],
        tear_down: Callable[[], None],
        attempt: Attempt,
    ) -> JobErrored | CommitErrored | None:
        """Commit what a call returns, with its effects; return what went wrong, or None."""
        assert self._fence is not None
        before = job.__getstate__() if job._p_jar is None else None
        returned = False
        result = None
        try:
            result = call()
            self._check()
            self._take_result(job, result)
            returned = True
            if job._waits_for:
                self._fence_root_waits()
            self._manager.commit()
        except BaseException as error:
            if not returned:
                without_frames_of(error, __name__)
            failure = Failure(error) if isinstance(error, Exception) else None
            self._abort()
            self._fence.letting_go = False
            self._suspension = None
            if before is not None:
                job.__setstate__(before)
            tear_down()
            if failure is None:
                raise
        else:
            self._fence.released = self._fence.letting_go
            tear_down()
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

    def _take_ended(self, job: Job, ended: Ended) -> JobErrored | CommitErrored | None:
        """Go on with a job, for which it has ended what it waited for."""
        assert self._fence is not None
        call = ended.of
        if not isinstance(call, CoroutineCall):
            return self._take_future(job, ended)
        try:
            if call.has_changes:
                call.open()
        except ReassignedError as error:
            raise _Lost(str(error)) from error
        except Exception as error:
            return JobErrored(Failure(error))
        if not call.is_open:
            return self._conclude(job, ended.get, lambda: None, Attempt())
        # Its effects are in its own connection, and so must its result be.
        beside = Runner(
            call.manager,
            self._clock,
            self._stop,
            on_result=self._on_result,
            suspends=self._suspends,
        )
        fence = beside._fence = call.fence
        fence.calling = False
        try:
            return beside._conclude(call.job, ended.get, call.tear_down, Attempt())
        finally:
            self._fence.released = fence.released
            self._suspension = beside._suspension
            call.close()

    def _take_future(self, job: Job, ended: Ended) -> CommitErrored | JobErrored | None:
        """Store what a future has brought; what the job itself did is committed already."""
        fence = self._fence
        assert fence is not None
        try:
            value = ended.get()
            if not (isinstance(value, Job) or is_future(value) or is_plain(value)):
                check_value(value, f"the result of {job!r}")
        except Exception as error:
            return JobErrored(Failure(without_frames_of(error, __name__)))
        new = isinstance(value, Job) and value._p_jar is None
        before = value.__getstate__() if isinstance(value, Job) and new else None

        def take() -> None:
            fence.letting_go = False
            self._suspension = None
            if before is not None:
                cast("Job", value).__setstate__(before)
            self._check()
            if job.status is Status.ACTIVE:
                self._take_result(job, value)
                if job._waits_for:
                    self._fence_root_waits()

        # Not by making another attempt, as where a commit fails that has effects in it.
        outcome = wait_for_system_recovery(
            take, f"storing the result of {job!r}", self._manager, self._stop
        )
        if isinstance(outcome, Failure):
            fence.letting_go = False
            self._suspension = None
            self._view(job)
            if job.status is Status.ACTIVE:
                self._tell_lost_result(job, value)
                return CommitErrored(outcome)
        fence.released = fence.letting_go
        if job.status is not Status.ACTIVE:
            self._tell_result(job, job.result)
        return None

    def _take_result(self, job: Job, result: Any) -> None:
        """End `job` with what it has returned, or let it wait for the job that this is."""
        if isinstance(job, Composite):
            job.begin_parts()
        elif isinstance(result, Job) and not has_ended(result):
            await_jobs(job, [result])
        elif is_future(result):
            self._suspension = AwaitedFuture(result, _is_light(job))
            return
        elif inspect.iscoroutine(result):
            result.close()
            raise NotStorableError(
                f"{job!r} returned a coroutine, and its function is no coroutine function: make "
                "it one (async def), so that it is awaited"
            )
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
        if isinstance(decision, GiveUp):
            trace.warning(
                "%r is given up by its policy after %s", job, _trouble(message), extra=fields(job)
            )
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
            if job.parent is not None:
                trace.debug("callback %r is aborted", job, extra=fields(job))
            self._finish(job, Failure(error), memory=memory, place=place)
        elif job._queue is None:
            if isinstance(decision, Reschedule):
                events.error(
                    "%r is in no queue, so it is run again at once instead of at %s",
                    job, decision.when, extra=fields(job),
                )  # fmt: skip

            if job.parent is not None:
                trace.debug("callback %r is retried", job, extra=fields(job))

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
def _ending_forked_children(job: Job) -> Iterator[None]:
    """End a child that the job has forked, and that comes out of the job's code.

    It is a copy of this worker, with a database that is not its own.
    """
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != process:
            text = f"perdure: a child that {job.callable_name} has forked came out of it, and ends"
            with suppress(OSError):
                os.write(2, f"{text}\n".encode(errors="replace"))
            os._exit(1)


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
    waiting = [callback for callback in job.callbacks if callback.status is not Status.COMPLETED]
    # Those who wait for the job go on when all is done that belongs to it.
    last = [callback for callback in waiting if isinstance(callback, Follow)]
    return next((callback for callback in waiting if callback not in last), None) or next(
        iter(last), None
    )


def _with_data(message: Any, data: tuple[tuple[str, Any], ...]) -> Any:
    if isinstance(message, Interrupted):
        return Interrupted(data)
    return type(message)(message.failure, data, message.alone)


def _is_light(job: Job) -> bool:
    """Tell whether a worker is needed for an instant only, when it no longer waits."""
    return job.parent is None and not job.callbacks


def _is_stale(internal: InternalJob) -> bool:
    """Tell whether the job was dealt with, and claimed since; it may wait for another by now."""
    noted = internal.kind in ("interrupt", "resume") and internal.claim is not None
    return noted and internal.serves._claim != internal.claim


def _end_internal(internal: InternalJob) -> None:
    if internal.status is not Status.COMPLETED:
        internal._begin()
        internal._end(None)
        internal._complete()


def _trouble(message: JobErrored | CommitErrored | Interrupted) -> str:
    if isinstance(message, Interrupted):
        return "an interruption"
    where = "at its commit" if isinstance(message, CommitErrored) else "in its call"
    return f"{message.failure} {where}"


def _tell_retry(job: Job, message: JobErrored | CommitErrored, retries: int) -> None:
    if job.parent is not None:
        trace.debug("callback %r is retried", job, extra=fields(job))
    if is_told(retries):
        trace.warning(
            "%r is run again by its policy, %d times since it began, after %s",
            job, retries, _trouble(message), extra=fields(job),
        )  # fmt: skip


def _failure_level(job: Job) -> int:
    level = job.failure_log_level
    if level is None:
        return logging.ERROR if job.parent is None else logging.CRITICAL
    return level


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
