"""Attempts: a job's callable is called, and what it returns is committed with its effects.

Where a job waits for a coroutine or a future, there are two halves of that: the call, and what
is stored once it has ended.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, cast

import ZODB.serialize
from ZODB.POSException import ConflictError

from perdure.model import local
from perdure.model.composition import Composite
from perdure.model.deciding import Deciding, only_exceptions
from perdure.model.errors import NotStorableError, ReassignedError
from perdure.model.failure import Failure
from perdure.model.following import await_jobs, has_ended
from perdure.model.forked import ending_forked_children
from perdure.model.job import Job
from perdure.model.lane import Attempt
from perdure.model.logs import events, fields
from perdure.model.memory import Memory
from perdure.model.names import NOT_OF_THE_CODE
from perdure.model.policy import CommitErrored, JobErrored, Reschedule, Retry
from perdure.model.retrying import is_away, tell_of_wait, wait_for_system_recovery
from perdure.model.status import Status
from perdure.model.steps import Lost
from perdure.model.storable import check_value, is_plain
from perdure.model.suspension import (
    AwaitedFuture,
    CoroutineCall,
    Ended,
    Pause,
    fresh,
    is_coroutine_job,
    is_future,
    outcome_of_future,
    run_here,
    without_frames_of,
)
from perdure.model.telling import tell_lost_result, tell_retry

__all__ = ["Attempting"]

_ZERO = timedelta(0)
_QUICK_SECONDS = 0.005


class Attempting(Deciding):
    """Makes the attempts of the jobs of a `Runner`."""

    def _execute(self, job: Job, extra: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make attempts until there is a result, or no worker is needed for a while."""

        def begin() -> None:
            if job.status in (Status.NEW, Status.ASSIGNED):
                job._begin()
                if job._policy is not None:
                    with only_exceptions():
                        job._policy.claimed()

        memory = Memory()
        alone = False
        anew = True
        retries = 0
        begun = job is self._begun
        self._begun = None
        ended = self._ended if job.status is Status.ACTIVE else None
        self._ended = None
        if begun or ended is None:
            if not begun:
                self._store(job, "beginning", begin, begun=True)
            anew = False
        elif isinstance(ended.of, Pause):
            if self._late(job):
                self._finish(job, ended.of.failure)
                return
            ended = None
        while True:
            taken = ended
            if taken is None:
                message = self._try(job, extra, kwargs, memory, alone, anew, begun)
                anew, begun = True, False
            else:
                message = self._take_ended(job, taken, memory)
            ended = self._wait_here()
            if ended is not None:
                continue
            if message is None:
                return
            # A conflict may be of our own dispatcher's making only in the first attempt.
            alone = message.failure.check(ConflictError) is not None
            decision = self._decide(job, message, memory)
            if isinstance(decision, Retry):
                again = _to_be_stored(taken, message)
                if decision.after > _ZERO and taken is not None and self._suspends and not again:
                    self._keep_memory(job, memory)
                    tell_retry(job, message, 1)
                    self._suspension = Pause(decision.after, message.failure, _is_light(job))
                    return
                if decision.after > _ZERO:
                    self._stop.wait(decision.after)
                    self._view(job)
                if not self._late(job):
                    retries += 1
                    tell_retry(job, message, retries)
                    ended = again
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
        anew: bool,
        viewed: bool,
    ) -> JobErrored | CommitErrored | None:
        """Make one attempt, or have it made; return what went wrong, or None.

        With `viewed`, a transaction is open in which the job was seen.
        """
        # A coroutine does not go through the lane, in which it could be for days: it counts
        # as alone.
        if self._suspends and self._is_coroutine_job(job):
            return self._hand_over(job, memory)
        with self._admit(alone) as attempt:
            if viewed:
                self._check()
            else:
                self._view(job, anew=anew)
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
            with ending_forked_children(job), self._in_call(job):
                info = job.set_up()
                if isinstance(job, Composite):
                    return None
                function = job.callable
                begun = self._clock.monotonic()
                result = function(
                    *fresh(job._args), *extra, **{**fresh(job._kwargs or {}), **kwargs}
                )
                if self._fence is not None and job is self._fence.root:
                    self.call_seconds = self._clock.monotonic() - begun
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
        futures = counted = job._futures
        returned = False
        following = None
        result = None
        try:
            result = call()
            self._check()
            self._take_result(job, result)
            returned = True
            counted = job._futures
            if job._waits_for:
                self._fence_root_waits()
            if job is self._fence.root and job.status is Status.COMPLETED and self._was_quick():
                following = self._following
            if following is not None:
                following.begin()
            self._manager.commit()
        except BaseException as error:
            if following is not None:
                following.undo()
            if not returned:
                without_frames_of(error, __name__)
            ordinary = isinstance(error, Exception) or (returned and _is_of_the_writing(error))
            failure = Failure(error) if ordinary else None
            suspension, self._suspension = self._suspension, None
            self._abort()
            letting_go, self._fence.letting_go = self._fence.letting_go, False
            if before is not None:
                job.__setstate__(before)
            tear_down()
            if failure is None:
                raise
        else:
            self._fence.released = self._fence.letting_go
            if job.status is Status.COMPLETED:
                self._completed = job
            tear_down()
            if job.status is not Status.ACTIVE:
                self._tell_result(job, job.result)
            return None
        if not returned:
            return JobErrored(failure, alone=attempt.alone)
        # Whatever it did if the commit took place, although it raised: ended, let go, or waiting.
        self._fence.letting_go = letting_go
        self._view(job)
        if job.status is not Status.ACTIVE:
            self._tell_result(job, job.result)
            return None
        if job._waits_for:
            self._fence.released = letting_go
            return None
        self._fence.letting_go = False
        if counted != futures and job._futures == counted:
            self._suspension = suspension
            return None
        tell_lost_result(job, result)
        return CommitErrored(failure, alone=attempt.alone)

    def _take_ended(
        self, job: Job, ended: Ended, memory: Memory
    ) -> JobErrored | CommitErrored | None:
        """Go on with a job, for which it has ended what it waited for."""
        assert self._fence is not None
        call = ended.of
        if not isinstance(call, CoroutineCall):
            return self._take_future(job, ended, memory)
        try:
            if call.has_changes:
                call.open()
        except ReassignedError as error:
            raise Lost(str(error)) from error
        except Exception as error:
            return JobErrored(Failure(error))
        if not call.is_open:
            return self._conclude(job, ended.get, lambda: None, Attempt())
        # Its effects are in its own connection, and so must its result be.
        beside = type(self)(
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

    def _take_future(
        self, job: Job, ended: Ended, memory: Memory
    ) -> CommitErrored | JobErrored | None:
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
            self._suspension = None
            if before is not None:
                cast("Job", value).__setstate__(before)
            # A try before this one, that raised, may have let go of it.
            self._check()
            if job._waits_for:
                return
            fence.letting_go = False
            if job.status is Status.ACTIVE:
                memory.restore(job)
                self._take_result(job, value)
                if job._waits_for:
                    self._fence_root_waits()

        # Not by making another attempt, as where a commit fails that has effects in it.
        outcome = wait_for_system_recovery(
            take, f"storing the result of {job!r}", self._manager, self._stop
        )
        if isinstance(outcome, Failure):
            self._view(job)
            if job.status is Status.ACTIVE and not job._waits_for:
                fence.letting_go = False
                self._suspension = None
                tell_lost_result(job, value)
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
            if self._manager.get()._resources:
                # The effects are committed with a sign of it in the job's record: others of
                # them than this database's are fenced off by that as well.
                job._futures += 1
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

    def _was_quick(self) -> bool:
        """Tell whether the call has taken so little that another transaction is worth saving.

        While a call goes on, others may write what begins with its end, and it is called again.
        """
        return self.call_seconds is None or self.call_seconds < _QUICK_SECONDS

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


def _is_of_the_writing(error: BaseException) -> bool:
    """Tell whether what an object is written by has raised it: that is the job's own code, too."""
    frames = traceback.walk_tb(error.__traceback__)
    writing = any(
        frame.f_globals.get("__name__") == ZODB.serialize.__name__ for frame, _ in frames
    )
    return writing and not isinstance(error, NOT_OF_THE_CODE)


def _is_light(job: Job) -> bool:
    """Tell whether a worker is needed for an instant only, when it no longer waits."""
    return job.parent is None and not job.callbacks


def _to_be_stored(taken: Ended | None, message: JobErrored | CommitErrored) -> Ended | None:
    """Return what a future has brought, if it is that which could not be stored.

    What the job itself did is committed then, and must not be done again.
    """
    stored_alone = taken is not None and isinstance(taken.of, AwaitedFuture)
    return taken if stored_alone and isinstance(message, CommitErrored) else None
