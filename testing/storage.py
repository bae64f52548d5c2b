"""A storage whose every call is a point: others may go on there, and it fails on command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import StorageTransactionError
from ZODB.utils import u64

from perdure.model.clock import Clock
from perdure.model.moments import checked_duration
from perdure.testing.disk import Disk
from perdure.testing.errors import ProcessCrashed, SimulationError
from perdure.testing.scheduler import Scheduler, is_logging

__all__ = ["CALLS", "Call", "Fault", "SteppedStorage"]

T = TypeVar("T")

PATIENCE_SECONDS = 10.0
"""After this a commit that keeps another one waiting is broken off, as Perdure's servers do."""

CALLS = ("begin", "store", "check", "vote", "finish", "abort", "load", "sync", "oid", "pack")
"""The kinds of calls that a storage counts."""


def checked_kinds(what: str, kinds: Collection[str], known: Collection[str] = CALLS) -> None:
    """Raise `SimulationError` where a kind is none: nothing would be tried, and all be well."""
    wrong = [kinds] if isinstance(kinds, str) else [each for each in kinds if each not in known]
    if wrong:
        raise SimulationError(
            f"{what} must be a list or tuple with some of {', '.join(known)}, and not {wrong[0]!r}"
        )


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a storage: the how manyth of its process, of which kind, and about what."""

    number: int
    kind: str
    about: str

    def __str__(self) -> str:
        return f"call {self.number}, {self.kind} {self.about}".rstrip()


@dataclass(frozen=True, slots=True, repr=False)
class Fault:
    """What is to happen at a call; made by `crash`, `fail`, `slow` or `stand_still`.

    With `after` it happens when the call has taken place, as when a server's answer is lost.
    """

    crashes: bool = False
    error: BaseException | None = None
    after: bool = False
    delay: timedelta = timedelta(0)
    whole: bool = False
    """Whether the delay is that of the whole process."""

    def __str__(self) -> str:
        when = "after" if self.after else "before"
        if self.whole:
            return f"standing still for {self.delay} {when}"
        if self.crashes:
            return f"a crash {when}"
        if self.error is not None:
            return f"{self.error!r} {'after' if self.after else 'instead of'}"
        return f"{self.delay} {when}"

    def __repr__(self) -> str:
        """Return the call that makes it, which stands in the line that repeats a failure."""
        after = ", after=True" if self.after else ""
        if self.whole:
            return f"Fault.stand_still({self.delay!r}{after})"
        if self.crashes:
            return f"Fault.crash({after.removeprefix(', ')})"
        if self.error is not None:
            return f"Fault.fail({self.error!r}{after})"
        return f"Fault.slow({self.delay!r})"

    @classmethod
    def crash(cls, *, after: bool = False) -> Fault:
        """Return the fault that the process crashes, before the call or after it."""
        return cls(crashes=True, after=after)

    @classmethod
    def fail(cls, error: BaseException, *, after: bool = False) -> Fault:
        """Return the fault that the call raises `error`, instead of acting or having acted."""
        if not isinstance(error, BaseException):
            raise TypeError(f"error must be an exception to raise, not {error!r}")
        return cls(error=error, after=after)

    @classmethod
    def slow(cls, delay: timedelta) -> Fault:
        """Return the fault that the call takes so long before it acts."""
        return cls(delay=checked_duration("delay", delay))

    @classmethod
    def stand_still(cls, delay: timedelta, *, after: bool = False) -> Fault:
        """Return the fault that the whole process stands still for so long, before or after it.

        As one does whose machine pauses it: its siblings may take it for dead meanwhile.
        """
        return cls(delay=checked_duration("delay", delay), after=after, whole=True)


class SteppedStorage:
    """What one simulated process has for a storage.

    Its calls are counted from 1. What is to happen at which is in `faults`, by number, or is
    decided by `on_call`, which is called before each and may return a `Fault`.
    """

    def __init__(
        self,
        disk: Disk,
        scheduler: Scheduler,
        clock: Clock,
        process_name: str,
        crash: Callable[[], None],
    ) -> None:
        self.process_name = process_name
        self.faults: dict[int, Fault] = {}
        self.on_call: Callable[[Call], Fault | None] = lambda call: None
        self.on_called: Callable[[Call], None] = lambda call: None
        """Called after each that has raised nothing."""
        self.on_foreign_commit: Callable[[Collection[bytes] | None], None] = lambda oids: None
        """Called with the oids of what another process has committed, None: of anything."""
        self.calls: list[Call] = []
        self._disk = disk
        self._scheduler = scheduler
        self._clock = clock
        self._crash = crash
        self._database: Any = None
        self._connected = True
        self._dead = False
        disk.attach(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._disk.base, name)

    def __len__(self) -> int:
        return len(self._disk.base)

    # The process and its connection to the disk.

    def registerDB(self, database: Any) -> None:
        """Note who is to be told of what others commit."""
        self._database = database
        self._disk.base.registerDB(database)

    def is_connected(self) -> bool:
        """Whether the disk can be reached, as a ZEO client tells it."""
        return self._connected

    def cut(self) -> None:
        """Lose the connection: what is under way is aborted, and every call fails."""
        self._connected = False
        self._disk.abort_of(self)

    def restore(self) -> None:
        """Have the connection again; what was committed meanwhile is not known one by one."""
        self._connected = True
        if self._database is not None:
            self._database.invalidateCache()
            self.on_foreign_commit(None)

    def die(self) -> None:
        """Be the storage of a process that has crashed."""
        self._dead = True
        self._disk.detach(self)

    def hear(self, tid: bytes, oids: list[bytes]) -> None:
        """Be told of a commit of another process."""
        if self._connected and self._database is not None:
            self._database.invalidate(tid, oids)
            self.on_foreign_commit(oids)

    def close(self) -> None:
        """Leave the disk, which stays open."""
        self._disk.detach(self)

    # The storage.

    def load(self, oid: bytes, version: str = "") -> tuple[bytes, bytes]:
        found: tuple[bytes, bytes] = self._do(
            "load", _name(oid), lambda: self._disk.base.load(oid, version)
        )
        return found

    def loadBefore(self, oid: bytes, tid: bytes) -> Any:
        return self._do("load", _name(oid), lambda: self._disk.base.loadBefore(oid, tid))

    def loadSerial(self, oid: bytes, serial: bytes) -> bytes:
        data: bytes = self._do("load", _name(oid), lambda: self._disk.base.loadSerial(oid, serial))
        return data

    def sync(self) -> None:
        self._do("sync", "", lambda: None)

    def lastTransaction(self) -> bytes:
        self._check()
        tid: bytes = self._disk.base.lastTransaction()
        return tid

    def new_oid(self) -> bytes:
        self._check()
        return self._disk.new_oid()

    def tpc_begin(self, transaction: Any) -> None:
        self._do("begin", "", lambda: self._begin(transaction))

    def _begin(self, transaction: Any) -> None:
        since = self._clock.monotonic()
        with self._disk.freed:
            while not self._disk.is_free:
                if self._disk.holds(transaction):
                    raise StorageTransactionError("the same transaction is begun twice")
                left = since + PATIENCE_SECONDS - self._clock.monotonic()
                if left <= 0:
                    self._disk.break_off()
                    since = self._clock.monotonic()
                    continue
                self._clock.wait(self._disk.freed, left)
                self._check()
        self._disk.begin(self, transaction, self._clock.now())

    def store(
        self, oid: bytes, serial: bytes, data: bytes, version: str, transaction: Any
    ) -> None:
        self._do(
            "store",
            _name(oid),
            lambda: self._disk.store(oid, serial, data, transaction),
            transaction,
        )

    def checkCurrentSerialInTransaction(self, oid: bytes, serial: bytes, transaction: Any) -> None:
        base = self._disk.base
        self._do(
            "check",
            _name(oid),
            lambda: base.checkCurrentSerialInTransaction(oid, serial, transaction),
            transaction,
        )

    def tpc_vote(self, transaction: Any) -> Any:
        return self._do("vote", "", lambda: self._disk.base.tpc_vote(transaction), transaction)

    def tpc_finish(
        self, transaction: Any, on_finish: Callable[[bytes], None] = lambda tid: None
    ) -> bytes:
        return self._do(
            "finish", "", lambda: self._disk.finish(transaction, on_finish), transaction
        )

    def tpc_abort(self, transaction: Any) -> None:
        # One that the disk has forgotten is aborted already.
        self._do("abort", "", lambda: self._disk.abort(transaction))

    def pack(self, time: float, references: Any) -> None:
        self._do("pack", "", lambda: self._disk.pack(time, references))

    # The points.

    def _check(self, transaction: Any = None) -> None:
        if self._dead:
            raise ProcessCrashed(self.process_name)
        if not self._connected:
            raise ClientDisconnected("the simulated connection is cut")
        if transaction is not None and not self._disk.holds(transaction):
            raise ClientDisconnected("the simulated connection was cut since this commit began")

    def _do(self, kind: str, about: str, act: Callable[[], T], transaction: Any = None) -> T:
        if self._scheduler.me() is None:
            # Not one of the simulation's threads: nothing of it could be repeated.
            self._check(transaction)
            return act()
        if self._dead:
            raise ProcessCrashed(self.process_name)
        call = Call(len(self.calls) + 1, kind, about)
        self.calls.append(call)
        self._scheduler.pause(kind, about)
        fault = self.faults.get(call.number) or self.on_call(call)
        if fault is not None:
            if fault.delay and not fault.whole and not is_logging():
                self._wait(fault.delay)
            if not fault.after:
                self._strike(fault, call)
        self._check(transaction)
        result = act()
        self.on_called(call)
        if fault is not None and fault.after:
            self._strike(fault, call)
        return result

    def _strike(self, fault: Fault, call: Call) -> None:
        if fault.whole:
            self._scheduler.stand_still(fault.delay.total_seconds())
            return
        if fault.error is not None:
            self._scheduler.note(f"fails in {call}: {fault.error!r}")
            # It would keep where it was raised before, in other runs, and all that was there.
            fault.error.__context__ = None
            raise fault.error.with_traceback(None)
        if not fault.crashes:
            return
        self._scheduler.note(f"CRASHES {'after' if fault.after else 'before'} {call}")
        self._crash()
        raise ProcessCrashed(self.process_name)

    def _wait(self, delay: timedelta) -> None:
        condition = threading.Condition()
        end = self._clock.monotonic() + delay.total_seconds()
        with condition:
            while (left := end - self._clock.monotonic()) > 0:
                self._clock.wait(condition, left)


def _name(oid: bytes) -> str:
    return f"{u64(oid):#x}"
