"""A clock that stands still until a test moves it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from perdure.model.clock import Clock

__all__ = ["ManualClock"]

_MICROSECOND = timedelta(microseconds=1)


class ManualClock(Clock):
    """A `Clock` whose time passes only by `advance` (and `jump_wall`).

    :param start: the wall time to begin with, an aware datetime; monotonic time begins at 0.
    :raises ValueError: if `start` is naive.

    A test that moves time past somebody's wait first calls `wait_until_waiting`, so that it
    does not depend on how fast the other thread gets there.

    Every method may be called from any thread; none touches the transaction.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError(f"start must be an aware datetime, not {start!r}")
        self._wall = start.astimezone(UTC)
        self._elapsed = timedelta()
        # Guards all of the above and below. Taken while a waiter's condition is held, so
        # no condition may be taken while it is held.
        self._lock = threading.Condition()
        self._waiters: list[_Waiter] = []

    def now(self) -> datetime:
        """Return the wall time, aware and in UTC."""
        with self._lock:
            return self._wall

    def monotonic(self) -> float:
        """Return the seconds by which time was advanced so far."""
        with self._lock:
            return self._elapsed.total_seconds()

    def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
        """Wait until notified, or until `advance` moved time to the end of the wait.

        See `Clock.wait`. A wait of less than a microsecond returns at once and lets one
        pass: otherwise a caller's rounding error would make it loop for ever.
        """
        if timeout_seconds is None:
            condition.wait()
            return
        if timeout_seconds <= 0:
            return
        timeout = timedelta(seconds=min(timeout_seconds, timedelta(days=36_500).total_seconds()))
        with self._lock:
            if timeout < _MICROSECOND:
                self._elapsed += _MICROSECOND
                self._wall += _MICROSECOND
                return
            waiter = _Waiter(condition, self._elapsed + timeout)
            self._waiters.append(waiter)
            self._lock.notify_all()
        try:
            condition.wait()
        finally:
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                    self._lock.notify_all()

    def advance(self, duration: timedelta) -> None:
        """Move both times forward, in one step, and wake whoever waited for it.

        A waiter that is due no longer counts as waiting when this returns, though its
        thread may still be on its way.

        :raises ValueError: if `duration` is negative; for the wall alone use `jump_wall`.
        """
        if duration < timedelta():
            raise ValueError(f"monotonic time cannot go back by {-duration}")
        with self._lock:
            self._elapsed += duration
            self._wall += duration
            due = [waiter for waiter in self._waiters if waiter.deadline <= self._elapsed]
            self._waiters = [waiter for waiter in self._waiters if waiter not in due]
            self._lock.notify_all()
        # A waiter holds its condition from before it is listed until it really waits, so
        # taking the condition here cannot be too early.
        for waiter in due:
            with waiter.condition:
                waiter.condition.notify_all()

    def jump_wall(self, duration: timedelta) -> None:
        """Move wall time alone, as a corrected machine clock does; negative moves it back.

        No waiter is woken: waits are measured in monotonic time.
        """
        with self._lock:
            self._wall += duration

    def waiting(self) -> int:
        """Return how many threads wait on this clock with a timeout."""
        with self._lock:
            return len(self._waiters)

    def wait_until_waiting(self, number: int, limit_seconds: float = 30.0) -> None:
        """Block until at least `number` threads wait on this clock with a timeout.

        :param limit_seconds: real seconds after which the test has failed.
        :raises AssertionError: if they are not waiting by then.
        """
        with self._lock:
            arrived = self._lock.wait_for(lambda: len(self._waiters) >= number, limit_seconds)
            assert arrived, f"{len(self._waiters)} of {number} threads wait on the clock"


class _Waiter:
    """One thread's wait; compared by identity."""

    def __init__(self, condition: threading.Condition, deadline: timedelta) -> None:
        self.condition = condition
        self.deadline = deadline
