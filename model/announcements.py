"""Waiting for something to be said of a key, without asking again and again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterable, Iterator

from perdure.model.clock import Clock

__all__ = ["Announcements", "Listener"]


class Listener:
    """Waits for announcements of one key, from one thread."""

    def __init__(self, clock: Clock, condition: threading.Condition) -> None:
        self._clock = clock
        self._condition = condition
        self._heard = 0
        self._said = 0

    def say(self) -> None:
        """Count one more announcement; the condition is held."""
        self._said += 1

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for an announcement since the last wait; False if none came in time."""
        deadline = self._clock.monotonic() + timeout_seconds
        with self._condition:
            while self._said == self._heard:
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return False
                self._clock.wait(self._condition, left)
            self._heard = self._said
            return True


class Announcements:
    """Who waits for which key; announcing what nobody waits for costs next to nothing.

    Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._listeners: dict[Hashable, list[Listener]] = {}

    def announce(self, key: Hashable) -> None:
        """End the waits for `key`."""
        # Who begins to wait only now looks for what this is about after that.
        if not self._listeners:
            return
        with self._condition:
            listeners = self._listeners.get(key)
            if listeners:
                for listener in listeners:
                    listener.say()
                self._condition.notify_all()

    def announce_any(self, keys: Iterable[Hashable]) -> None:
        """End the waits for each of `keys`; does not look at them where nobody waits."""
        if self._listeners:
            for key in keys:
                self.announce(key)

    def announce_all(self) -> None:
        """End every wait: whoever waits is to look again."""
        with self._condition:
            for listeners in self._listeners.values():
                for listener in listeners:
                    listener.say()
            self._condition.notify_all()

    @contextlib.contextmanager
    def listen(self, key: Hashable, clock: Clock) -> Iterator[Listener]:
        """Hear what is announced of `key` from now on."""
        listener = Listener(clock, self._condition)
        with self._condition:
            self._listeners.setdefault(key, []).append(listener)
        try:
            yield listener
        finally:
            with self._condition:
                self._listeners[key].remove(listener)
                if not self._listeners[key]:
                    del self._listeners[key]
