"""How the actors of a simulated process receive and wait: by the scheduler."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pykka
from pykka._envelope import Envelope

from perdure.actors.execution import (
    ClockFuture,
    Execution,
    Inbox,
    ThreadedInbox,
    ThreadHandle,
    wait_for,
)
from perdure.model.clock import Clock
from perdure.testing.scheduler import Owner, Scheduler, Task

__all__ = ["START", "SteppedClock", "SteppedExecution"]

START = datetime(2030, 1, 1, tzinfo=UTC)
"""When simulations begin, unless they are told another moment."""

SHORTEST_WAIT_SECONDS = 1e-6
"""No wait that ends by itself is shorter, as on a real clock."""


class SteppedClock(Clock):
    """A clock whose time passes only when the scheduler lets it.

    :param drift: by how many seconds it runs ahead (or, negative, behind) in each second.
    """

    def __init__(self, scheduler: Scheduler, start: datetime = START, drift: float = 0.0) -> None:
        if start.tzinfo is None:
            raise ValueError(f"start must be an aware datetime, not {start!r}")
        if not isinstance(drift, (int, float)) or isinstance(drift, bool):
            raise TypeError(f"drift must be a number of seconds in each second, not {drift!r}")
        if not -1 < drift < float("inf"):
            raise ValueError(f"drift must be above -1, not {drift!r}: time goes on, and not back")
        self._scheduler = scheduler
        self._start = start.astimezone(UTC)
        self._rate = 1 + drift
        self._jumped = timedelta()

    def now(self) -> datetime:
        return self._start + self._jumped + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return self._scheduler.seconds * self._rate

    def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
        seconds = None if timeout_seconds is None else timeout_seconds / self._rate
        if seconds is not None and seconds > 0:
            # With less, what rounding leaves of a wait would be waited for without end.
            seconds = max(seconds, SHORTEST_WAIT_SECONDS)
        self._scheduler.wait(condition, seconds)

    def jump(self, duration: timedelta) -> None:
        """Move wall time alone, as a corrected clock does; negative moves it back."""
        if not isinstance(duration, timedelta):
            raise TypeError(f"duration must be a timedelta, not {duration!r}")
        self._jumped += duration


class SteppedExecution(Execution):
    """Threads that belong to one simulated process, and get their turns from the scheduler."""

    def __init__(self, scheduler: Scheduler, clock: SteppedClock, owner: Owner) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._owner = owner
        self._loops: list[asyncio.AbstractEventLoop] = []

    def let_go(self) -> None:
        """Close the event loops whose threads have ended before their first turn."""
        for loop in self._loops:
            if not loop.is_running() and not loop.is_closed():
                loop.close()
        self._loops.clear()

    @property
    def has_crashed(self) -> bool:
        return self._owner.gone

    def create_inbox(self, actor: pykka.Actor) -> Inbox:
        return _SteppedInbox(self._scheduler, self._clock, str(actor))

    def create_future(self) -> pykka.Future[Any]:
        return ClockFuture(self._clock)

    def create_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = _SteppedEventLoop(self._clock)
        self._loops.append(loop)
        return loop

    def start_thread(self, target: Callable[[], None], name: str) -> ThreadHandle:
        full_name = f"{self._owner.name}/{name}" if self._owner.name else name
        task = self._scheduler.start_thread(target, full_name, self._owner)
        return _Handle(self._scheduler, self._clock, task)


class _SteppedInbox(ThreadedInbox):
    """An inbox whose owner hands the baton on when it receives."""

    def __init__(self, scheduler: Scheduler, clock: Clock, owner: str) -> None:
        super().__init__(clock, owner)
        self._scheduler = scheduler

    def get(self, timeout_seconds: float | None = None) -> Envelope[Any] | None:
        if not self.empty():
            self._scheduler.pause("receive")
        envelope = super().get(timeout_seconds)
        if envelope is not None:
            self._scheduler.note(f"receives {envelope.message!r}")
        return envelope


class _Handle:
    """The handle of a thread of the simulation."""

    def __init__(self, scheduler: Scheduler, clock: Clock, task: Task) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._task = task

    @property
    def name(self) -> str:
        return self._task.name

    def join(self, timeout_seconds: float | None = None) -> bool:
        if self._scheduler.me() is self._task:
            raise RuntimeError(f"thread {self.name} cannot wait for its own end")
        with self._task.joined:
            return wait_for(
                self._clock, self._task.joined, lambda: self._task.ended, timeout_seconds
            )

    def is_alive(self) -> bool:
        return not self._task.ended


class _SteppedSelector(selectors.SelectSelector):
    """Waits on a clock for what is called from other threads; sockets are looked at, too."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._condition = threading.Condition()
        self._called = False

    def call(self) -> None:
        """End the wait, now or the next one."""
        with self._condition:
            self._called = True
            self._condition.notify_all()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            with self._condition:
                wait_for(self._clock, self._condition, lambda: self._called, timeout)
        self._called = False
        return super().select(0)


class _SteppedEventLoop(asyncio.SelectorEventLoop):
    """A loop whose time is that of a clock."""

    def __init__(self, clock: Clock) -> None:
        self._perdure_clock = clock
        self._perdure_selector = _SteppedSelector(clock)
        super().__init__(self._perdure_selector)

    def time(self) -> float:
        return self._perdure_clock.monotonic()

    def _write_to_self(self) -> None:
        self._perdure_selector.call()
