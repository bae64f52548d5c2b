"""Time, handed in: the one module that asks the machine what time it is.

Whoever needs the time or wants to wait is given a `Clock`; tests and the simulator give one
of their own. A `StopSignal` is a wait that a shutdown can end.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta

from perdure.model.errors import StopRequested

__all__ = ["Clock", "StopSignal", "SystemClock"]


class Clock(ABC):
    """Wall time, monotonic time, and waiting.

    Wall time may jump, also backwards: it is for what is stored and shown. How long
    something takes or waits is measured with `monotonic`.

    Every method may be called from any thread; none touches the transaction.
    """

    @abstractmethod
    def now(self) -> datetime:
        """Return the present moment as an aware datetime in UTC."""

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds since some fixed moment; they never go backwards."""

    @abstractmethod
    def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
        """Wait on `condition` until it is notified or the time has passed.

        It may also return early, for no reason: call it in a loop that looks at what it
        waits for and at `monotonic`.

        :param condition: its lock is held by the caller; it is free while waiting and
            held again on return.
        :param timeout_seconds: seconds of this clock; None waits for the notification
            alone, 0 or less returns at once.
        :raises RuntimeError: if the condition's lock is not held.
        """


class SystemClock(Clock):
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
        if timeout_seconds is not None:
            timeout_seconds = min(timeout_seconds, threading.TIMEOUT_MAX)
        condition.wait(timeout_seconds)


class StopSignal:
    """A flag that says 'stop', once and for all, and ends every wait on it.

    :param clock: the clock by which `wait` measures.

    Every method may be called from any thread, `set` also from a signal handler; none
    touches the transaction.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The lock of a Condition is re-entrant by default. It has to be: a signal handler
        # may call `set` in the thread that is just inside `wait`.
        self._condition = threading.Condition()
        self._stopped = False

    def set(self) -> None:
        """Set the flag and end all waits; setting it again does nothing."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def is_set(self) -> bool:
        """Return whether `set` has been called."""
        return self._stopped

    def wait(self, duration: timedelta) -> None:
        """Return when `duration` has passed.

        Waiting holds nothing in the database by itself; end the transaction before.

        :param duration: zero or less returns at once.
        :raises StopRequested: if the flag is set, before or while waiting.
        """
        if not isinstance(duration, timedelta):
            raise TypeError(f"a wait is as long as a timedelta says, not {duration!r}")
        deadline = self._clock.monotonic() + duration.total_seconds()
        with self._condition:
            while True:
                if self._stopped:
                    raise StopRequested("the system stops: a wait was ended")
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return
                self._clock.wait(self._condition, left)
