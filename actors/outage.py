"""When to try again what a database that is away did not let us do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from ZEO.Exceptions import ClientDisconnected

from perdure.model.clock import Clock

__all__ = ["Outage", "answers", "open_connection", "says_that_it_is_away"]

PROBE_INTERVAL = timedelta(seconds=1)
"""So often it is looked whether the database is back."""

STEP = timedelta(seconds=5)
LONGEST_PAUSE = timedelta(seconds=60)


def says_that_it_is_away(storage: Any) -> bool:
    """Tell whether the storage knows that it has no connection, and so cannot work.

    Never waits, where any call of such a storage may wait for long. False where the storage
    has no connection to lose, or cannot tell.
    """
    is_connected = getattr(storage, "is_connected", None)
    return is_connected is not None and not is_connected()


def answers(storage: Any) -> bool:
    """Tell whether a storage answers the cheapest of all questions."""
    if says_that_it_is_away(storage):
        return False
    try:
        storage.lastTransaction()
    # Whatever it raises, it is no answer.
    except Exception:
        return False
    return True


def open_connection(database: Any, **settings: Any) -> Any:
    """Open a connection of a `ZODB.DB`; raises `ClientDisconnected` where that is away.

    One that cannot be opened after all is lost to the pool, so that it is asked first.
    """
    if not answers(database.storage):
        raise ClientDisconnected("the storage does not answer")
    return database.open(**settings)


class Outage:
    """Says when to try again, while the database is away: at growing pauses, and on its return.

    To try costs a whole poll, and maybe a long wait, so that this is done after 5, 10, … 60
    seconds; to ask the storage costs nothing, and is done each second. Its answer is taken for
    a return if it did not answer before, or was not asked yet; where it answers and the
    attempt fails all the same, it does not know, and the pause is what counts. For one thread.
    """

    def __init__(self, storage: Any, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._failures = 0
        self._next = 0.0
        self._may_have_returned = False

    @property
    def lasts(self) -> bool:
        """Whether an attempt has failed, and none has succeeded since."""
        return self._failures > 0

    def failed(self) -> None:
        """Take note of an attempt that failed because the database is away."""
        self._failures += 1
        pause = min(LONGEST_PAUSE, self._failures * STEP)
        self._next = self._clock.monotonic() + pause.total_seconds()
        # It may have come back between the first failure and now.
        self._may_have_returned = self._failures == 1 or not answers(self._storage)

    def over(self) -> None:
        """Take note of an attempt that succeeded."""
        self._failures = 0

    def is_to_be_tried(self) -> bool:
        """Ask the storage; tell whether to make an attempt now."""
        if not answers(self._storage):
            self._may_have_returned = True
        elif self._may_have_returned:
            return True
        return self._clock.monotonic() >= self._next
