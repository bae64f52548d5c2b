"""Messages that an actor tells itself later."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Any, NewType

from perdure.actors.execution import TOLERANCE_SECONDS

__all__ = ["TimerDue", "TimerToken", "Timers"]

TimerToken = NewType("TimerToken", int)

_FORGOTTEN_AT_MOST = 16
"""So many entries of cancelled timers may be kept whatever the others are."""


@dataclass(frozen=True, slots=True)
class TimerDue:
    """Put into an actor's own inbox when the time has come.

    The message itself stays behind, so that a timer can be cancelled until its turn.
    """

    token: TimerToken


class Timers:
    """The timers of one actor, in monotonic seconds; for its thread alone."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, TimerToken]] = []
        self._messages: dict[TimerToken, Any] = {}
        self._tokens = itertools.count()

    def add(self, moment: float, message: Any) -> TimerToken:
        """Keep the message until the moment."""
        token = TimerToken(next(self._tokens))
        self._messages[token] = message
        heapq.heappush(self._heap, (moment, token))
        return token

    def cancel(self, token: TimerToken) -> None:
        """Forget that timer; nothing happens if there is none any more."""
        self._messages.pop(token, None)
        # Its entry stays for now: most of the heap must be of use, not all of it.
        if len(self._heap) > 2 * len(self._messages) + _FORGOTTEN_AT_MOST:
            self._heap = [entry for entry in self._heap if entry[1] in self._messages]
            heapq.heapify(self._heap)

    def clear(self) -> None:
        """Forget all timers."""
        self._messages.clear()
        self._heap.clear()

    def pop_due(self, now: float) -> list[TimerToken]:
        """Return the timers whose moment has come, in order; their messages stay."""
        due = []
        while (moment := self.next_moment()) is not None and moment <= now + 2 * TOLERANCE_SECONDS:
            due.append(heapq.heappop(self._heap)[1])
        return due

    def next_moment(self) -> float | None:
        """Return the moment of the earliest timer, None if there is none."""
        while self._heap and self._heap[0][1] not in self._messages:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, token: TimerToken) -> tuple[Any, ...]:
        """Return a tuple of the timer's message, empty if it was cancelled; forget it."""
        return (self._messages.pop(token),) if token in self._messages else ()
