"""The lane: attempts of one dispatcher's jobs, side by side or one alone.

Jobs that write the same objects conflict with each other. An attempt that follows a
conflict is made alone, so that the jobs of one dispatcher cost each other time instead
of attempts.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from perdure.model.clock import Clock
from perdure.model.errors import StopRequested

__all__ = ["Attempt", "Lane"]

PATIENCE_SECONDS = 5.0


@dataclass
class Attempt:
    """One attempt that is under way; `alone` while no other was beside it.

    `waited_out` are those that go on for longer than others wait for them.
    """

    alone: bool = True
    waited_out: bool = False


class Lane:
    """Admits attempts; one for each dispatcher. Safe to use from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._inside: list[Attempt] = []
        self._waiting_alone = 0
        self._ended = False

    def end(self) -> None:
        """End the waits, now and later, with `StopRequested`: the system stops."""
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def shared(self) -> AbstractContextManager[Attempt]:
        """Make an attempt beside others; one that wants to be alone goes first."""
        return _Shared(self)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[Attempt]:
        """Make an attempt alone, if the others end within a few seconds.

        One that did not is waited for by nobody any more, and counts as beside it.
        """
        with self._condition:
            self._waiting_alone += 1
            try:
                self._wait(lambda: all(other.waited_out for other in self._inside))
                for other in self._inside:
                    other.waited_out = True
                attempt = self._enter()
            except BaseException:
                self._waiting_alone -= 1
                raise
        try:
            yield attempt
        finally:
            with self._condition:
                self._waiting_alone -= 1
            self._leave(attempt)

    def _enter_beside(self) -> Attempt:
        with self._condition:
            if self._waiting_alone:
                self._wait(lambda: not self._waiting_alone)
            return self._enter()

    def _enter(self) -> Attempt:
        attempt = Attempt(alone=not self._inside)
        for other in self._inside:
            other.alone = False
        self._inside.append(attempt)
        return attempt

    def _leave(self, attempt: Attempt) -> None:
        with self._condition:
            # By identity: attempts compare equal.
            self._inside = [other for other in self._inside if other is not attempt]
            self._condition.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> None:
        deadline = self._clock.monotonic() + PATIENCE_SECONDS
        while not ready():
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return
            if self._ended:
                raise StopRequested("the system stops: an attempt is not begun")
            self._clock.wait(self._condition, left)


class _Shared:
    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def __enter__(self) -> Attempt:
        self._attempt = self._lane._enter_beside()
        return self._attempt

    def __exit__(self, *exc_info: object) -> None:
        self._lane._leave(self._attempt)
