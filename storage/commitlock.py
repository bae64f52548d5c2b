"""The commit lock of a file that both threads and an event loop want.

Threads wait for it; the loop must not, since it serves everybody. So the loop asks, and is
called when its turn has come. The lock is handed over in the order in which it was asked for:
a thread that commits without a pause would otherwise keep the loop out for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ZEO.Exceptions import ClientDisconnected

__all__ = ["CommitLock"]


class CommitLock:
    """A lock with a line; takes the place of a storage's own commit lock.

    It does not belong to a thread: who has it may let another release it.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._ended = False
        # What is called, without the guard, when the lock has been handed over.
        self._line: deque[Callable[[], None]] = deque()
        self._asked = False
        # The thread that has it reserved and has not used it yet.
        self._reserver: int | None = None

    def acquire(self, timeout_seconds: float = -1) -> bool:
        """Wait for the lock; False if the time has passed first (negative: no limit).

        Who has reserved it takes it at once. Raises `ClientDisconnected` after `end`.
        """
        with self._guard:
            if self._ended:
                raise ClientDisconnected("the storage is closed")
            if self._reserver is not None and self._reserver == threading.get_ident():
                self._reserver = None
                return True
            if not self._held:
                self._held = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._line.append(turn.release)
        in_time = turn.acquire(timeout=timeout_seconds)
        with self._guard:
            if self._ended:
                raise ClientDisconnected("the storage is closed")
            if not in_time and turn.release in self._line:
                self._line.remove(turn.release)
                return False
        return True  # perhaps handed over just now

    def end(self) -> None:
        """Let nobody have it any more, also of those who wait."""
        with self._guard:
            self._ended = True
            waiting, self._line = self._line, deque()
        for each in waiting:
            each()

    def release(self) -> None:
        """Hand the lock to the next in line."""
        with self._guard:
            if not self._line:
                self._held = False
                return
            following = self._line.popleft()
        following()

    # For the loop. Its thread alone calls these.

    def reserve(self, granted: Callable[[], None]) -> bool:
        """Keep the lock for this thread: True if it is kept now, else `granted` is called then.

        `granted` is called in the thread that releases the lock. To ask again while the answer
        is still to come, or while the lock is reserved, changes nothing.
        """
        own = threading.get_ident()
        with self._guard:
            if self._reserver is not None:
                return True
            if self._asked:
                return False
            if not self._held:
                self._held = True
                self._reserver = own
                return True
            if self._ended:
                return False

            def hand_over() -> None:
                with self._guard:
                    self._asked = False
                    self._reserver = own
                granted()

            self._asked = True
            self._line.append(hand_over)
            return False

    def cancel_reservation(self) -> None:
        """Give back what was reserved and not used."""
        with self._guard:
            if self._reserver is None:
                return
            self._reserver = None
        self.release()
