"""What belongs to one open database in this process, and is not stored in it."""

from __future__ import annotations

import secrets
import threading
import weakref
from collections.abc import Collection
from typing import Any, Protocol

from ZODB.utils import u64

from perdure.model.announcements import Announcements
from perdure.model.clock import Clock, SystemClock
from perdure.model.errors import UnknownSettingError
from perdure.model.given import checked_database
from perdure.model.inbox import Leases
from perdure.model.incarnation import FileProofs, Proofs
from perdure.model.moments import microseconds
from perdure.model.ref import JobRef
from perdure.model.storable import ARGUMENT_LIMIT_BYTES

__all__ = ["Environment", "Secrets", "Waker", "clock_of", "environment", "proofs_of"]


class Waker(Protocol):
    """Told that something was put into a queue, in whatever thread that becomes known."""

    def wake(self, queue_oid: bytes) -> None:
        """Note it and return at once; must not raise nor touch the database."""

    def changed(self, oids: Collection[bytes] | None) -> None:
        """Note that another process has committed changes of these, None: of any; as above."""


class Secrets(Protocol):
    """Where names come from that nobody else may have; the module `secrets` is one."""

    def token_hex(self, nbytes: int, /) -> str:
        """Return twice as many hexadecimal digits."""

    def randbelow(self, exclusive_upper_bound: int, /) -> int:
        """Return a number of 0 or more below that."""


class Environment:
    """The clock, the limits, the inbox leases and the listeners of one database.

    There is one for each `ZODB.DB`, for as long as that lives. Safe to use from any
    thread. `clock`, `argument_limit_bytes` and `proofs` may be set before the database is
    used; for other `secrets`, set `leases` as well.
    """

    def __init__(self, database_name: str = "unnamed") -> None:
        self._database_name = database_name
        self._clock: Clock = SystemClock()
        self._argument_limit_bytes = ARGUMENT_LIMIT_BYTES
        self.secrets: Secrets = secrets
        self.proofs: Proofs = FileProofs()
        self.leases = Leases(self.secrets)
        self.unresolved: dict[str, str] = {}
        self.kinds: dict[str, tuple[bool, bool]] = {}
        """What is known of callables by name; see `perdure.model.groupable`."""
        self.aliases: dict[str, str] = {}
        self.results = Announcements()
        self._wakers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._changes = 0
        self._last_stamp = 0

    @property
    def clock(self) -> Clock:
        """What time it is; raises `UnknownSettingError` where it is set to what is no `Clock`."""
        return self._clock

    @clock.setter
    def clock(self, clock: Clock) -> None:
        if not isinstance(clock, Clock):
            raise UnknownSettingError(f"clock is {clock!r}, and has to be a perdure.model.Clock")
        self._clock = clock

    @property
    def argument_limit_bytes(self) -> int:
        """How large the arguments of one job may be, pickled; 0 or more."""
        return self._argument_limit_bytes

    @argument_limit_bytes.setter
    def argument_limit_bytes(self, limit: int) -> None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise UnknownSettingError(
                f"argument_limit_bytes is a whole number of 0 or more, not {limit!r}"
            )
        self._argument_limit_bytes = limit

    def subscribe(self, waker: Waker) -> None:
        """Tell `waker`, held weakly, of every queue that was put into."""
        with self._lock:
            self._wakers.add(waker)

    def unsubscribe(self, waker: Waker) -> None:
        """Tell `waker` no more."""
        with self._lock:
            self._wakers.discard(waker)

    def wake(self, queue_oid: bytes) -> None:
        """Tell everyone who subscribed; called after a commit."""
        with self._lock:
            wakers = list(self._wakers)
        for waker in wakers:
            waker.wake(queue_oid)

    def tell_of_commit_elsewhere(self, oids: Collection[bytes] | None) -> None:
        """Wake whoever waits for something that another process has committed.

        `oids` are those of the objects that it has written; None where that is not known.

        For storages that hear of such commits: to be called when a transaction that begins
        now sees it, from any thread. It returns at once, and does not touch the database.
        """
        with self._lock:
            wakers = list(self._wakers)
        for waker in wakers:
            waker.changed(oids)
        if oids is None:
            self.results.announce_all()
        else:
            self.results.announce_any(JobRef(u64(oid), self._database_name) for oid in oids)
        self.announce_change()

    def announce_change(self) -> None:
        """End the waits of `wait_for_change`; called after a commit."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def changes(self) -> int:
        """Return a number that grows with each announced change."""
        with self._changed:
            return self._changes

    def wait_for_change(self, seen: int, timeout_seconds: float) -> None:
        """Wait until `changes` is no longer `seen`, or the time has passed."""
        deadline = self.clock.monotonic() + timeout_seconds
        with self._changed:
            while self._changes == seen:
                left = deadline - self.clock.monotonic()
                if left <= 0:
                    return
                self.clock.wait(self._changed, left)

    def stamp(self) -> int:
        """Return the time in microseconds, later than every stamp before."""
        return self.stamps(1)

    def stamps(self, number: int) -> int:
        """Return the first of so many stamps, one after the other, as `stamp` returns one."""
        now = microseconds(self.clock.now())
        with self._lock:
            first = max(now, self._last_stamp + 1)
            self._last_stamp = first + number - 1
            return first


_ATTRIBUTE = "_perdure_environment"
"""Where a database keeps its environment: it is asked for several times for each job."""

_lock = threading.Lock()


def environment(database: Any) -> Environment:
    """Return the environment of an open `ZODB.DB`."""
    found: Environment | None = getattr(database, _ATTRIBUTE, None)
    if found is None:
        with _lock:
            found = getattr(checked_database(database), _ATTRIBUTE, None)
            if found is None:
                found = Environment(database.database_name)
                setattr(database, _ATTRIBUTE, found)
    return found


def clock_of(persistent: Any) -> Clock:
    """Return the clock of the database that `persistent` is in, else the system's."""
    jar = persistent._p_jar
    return SystemClock() if jar is None else environment(jar.db()).clock


def proofs_of(persistent: Any) -> Proofs:
    """Return how the database that `persistent` is in tells who has ended."""
    jar = persistent._p_jar
    return FileProofs() if jar is None else environment(jar.db()).proofs
