"""The lane: attempts of one dispatcher's jobs, side by side or one alone.

Jobs that write the same objects conflict with each other. An attempt that follows a
conflict is made alone, so that the jobs of one dispatcher cost each other time instead
of attempts.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from perdure.model.clock import Clock

__all__ = ["Attempt", "Lane"]

PATIENCE_SECONDS = 5.0


@dataclass
class Attempt:
    """One attempt that is under way; `alone` while no other was beside it."""

    alone: bool = True


class Lane:
    """Admits attempts; one for each dispatcher. Safe to use from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._inside: list[Attempt] = []
        self._waiting_alone = 0

    @contextlib.contextmanager
    def shared(self) -> Iterator[Attempt]:
        """Make an attempt beside others; one that wants to be alone goes first."""
        with self._condition:
            self._wait(lambda: not self._waiting_alone)
            attempt = self._enter()
        try:
            yield attempt
        finally:
            self._leave(attempt)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[Attempt]:
        """Make an attempt alone, if the others end within a few seconds."""
        with self._condition:
            self._waiting_alone += 1
            try:
                self._wait(lambda: not self._inside)
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

    def _wait(self, ready: object) -> None:
        assert callable(ready)
        deadline = self._clock.monotonic() + PATIENCE_SECONDS
        while not ready():
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return
            self._clock.wait(self._condition, left)
