"""The stored steps of whoever runs a job: each one fenced, and repeated until it is committed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, Protocol

from transaction.interfaces import NoTransaction
from ZODB.POSException import ConnectionStateError
from ZODB.utils import z64

from perdure.model.callbacks import CallbackProxy, open_callbacks
from perdure.model.clock import Clock, StopSignal
from perdure.model.errors import ReassignedError
from perdure.model.failure import Failure
from perdure.model.fence import Fence
from perdure.model.following import Follow
from perdure.model.job import Job
from perdure.model.lane import Lane
from perdure.model.logs import SUCCEEDED, events, fields, placed, trace
from perdure.model.memory import Memory
from perdure.model.ref import JobRef
from perdure.model.retrying import (
    begin_anew,
    has_transaction,
    is_away,
    keep_at_it,
    never_fail,
    tell_of_wait,
)
from perdure.model.saferepr import safe_repr
from perdure.model.status import Status
from perdure.model.suspension import Ended, Suspension
from perdure.model.telling import tell_failure

__all__ = ["Closed", "Following", "Lost", "Place", "Steps", "next_callback", "place_of"]

_STEP_SECONDS = 5
_LONGEST_SECONDS = 60

Place = tuple[Status, int, int | None]
"""What tells whether somebody else has moved a job since."""


class Lost(BaseException):
    """The job was taken from this runner; no `Exception`, so that nothing retries it."""


class Closed(BaseException):
    """The job's connection was closed; no `Exception`, so that nothing retries it."""


class Following(Protocol):
    """What is to be run after a job, and can begin with the commit of its result."""

    def begin(self) -> None:
        """Say so in the record of that one, in this transaction."""

    def undo(self) -> None:
        """Take note that this transaction has failed, or seemed to."""


class Steps:
    """Begins and ends transactions for the jobs of a `Runner`, which see."""

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
        self._completed: Job | None = None
        """The job that was completed with its result: nothing is left to do for it."""
        self._begun: Job | None = None
        """The job that was claimed, where it was stored by somebody else that it has begun."""
        self._following: Following | None = None
        self.call_seconds: float | None = None
        """How long the last call of the job that was claimed took; None: there was none."""

    def _view(self, job: Job, *, anew: bool = True) -> None:
        """Begin a transaction, and see `job` as it is stored now; waits for the database.

        Unless it is to be seen `anew`, it is as it was stored by this runner, if nobody else has
        stored it since.
        """
        failures = 0
        while True:
            try:
                self._begin()
                self._check()
                if anew and job._p_jar is not None and job._p_serial != z64:
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

    def _begin(self) -> None:
        try:
            begin_anew(self._manager)
        # It may have been the abort of what was open.
        except Exception:
            self._abort()
            self._manager.begin()

    def _abort(self) -> None:
        if not has_transaction(self._manager):
            return
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
                raise Lost(str(error)) from error
            except ConnectionStateError as error:
                raise Closed(str(error)) from error

    def _store(
        self, job: Job, what: str, change: Callable[[], None], *, begun: bool = False
    ) -> None:
        """Make a change to `job` and commit it, however long that takes.

        With `begun`, the transaction is open in which the job was just viewed.
        """

        def checked() -> None:
            self._check()
            change()

        root = self._fence is not None and job is self._fence.root
        with nullcontext() if root else placed(**fields(job)):
            keep = keep_at_it if begun else never_fail
            keep(checked, _Doing(what, job), self._manager, self._stop)

    def _complete(self, job: Job) -> None:
        def complete() -> None:
            if job.status is Status.CALLBACKS and next_callback(job) is None:
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
        place: Place | None = None,
    ) -> None:
        """Store a result that was not stored with the effects of an attempt.

        Where the job is not any more in the place in which it was seen (None: it is now),
        somebody else has dealt with it.
        """
        place = place or place_of(job)
        moved = False

        def end() -> None:
            nonlocal moved
            if job.status in (Status.CALLBACKS, Status.COMPLETED):
                return
            moved = place_of(job) != place
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
            if trace.isEnabledFor(logging.INFO):
                trace.info(SUCCEEDED, job, safe_repr(result), extra=fields(job))
        if self._on_result is not None and job._p_oid is not None:
            self._on_result(JobRef.of(job))

    def _fence_root_waits(self) -> None:
        """Give up the job that was claimed, with the next commit: it waits for others."""
        fence = self._fence
        assert fence is not None
        fence.letting_go = True
        fence.root._agent = None

    def _late(self, job: Job) -> bool:
        deadline = job.deadline
        return deadline is not None and deadline < self._clock.now()


class _Doing:
    """What is done to a job, for the log: the text is made only if it is needed."""

    def __init__(self, what: str, job: Job) -> None:
        self._what = what
        self._job = job

    def __str__(self) -> str:
        return f"{self._what} {self._job!r}"


def place_of(job: Job) -> Place:
    """Return where `job` is now."""
    return job.status, job._claim, job._active_start


def next_callback(job: Job) -> Job | None:
    """Return the callback that is to be run now, None where all are done.

    Raises `CallableNotFoundError` where only such are left as cannot be loaded here.
    """
    waiting = open_callbacks(job)
    # Those who wait for the job go on when all is done that belongs to it.
    last = [callback for callback in waiting if isinstance(callback, Follow)]
    return next((callback for callback in waiting if callback not in last), None) or next(
        iter(last), None
    )
