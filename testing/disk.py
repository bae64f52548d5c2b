"""What outlives the processes: one storage, and who has it open."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from persistent.TimeStamp import TimeStamp
from ZODB import ConflictResolution
from ZODB.ConflictResolution import ConflictResolvingStorage
from ZODB.MappingStorage import MappingStorage

if TYPE_CHECKING:
    from perdure.testing.storage import SteppedStorage

__all__ = ["Commit", "Disk", "MemoryStorage"]


def forget_what_resolves() -> None:
    """Let ZODB forget which classes resolve no conflicts, which it notes for all databases.

    The frames of a conflict show whether it knew, so that the first run with a seed would store
    another `perdure.model.Failure` than the next one.
    """
    ConflictResolution._unresolvable.clear()


class MemoryStorage(ConflictResolvingStorage, MappingStorage):
    """ZODB's storage in memory, with the conflict resolution that its others have."""

    def __init__(self, name: str = "memory") -> None:
        MappingStorage.__init__(self, name)
        self._resolved: list[bytes] = []

    def tpc_begin(self, transaction: Any, tid: bytes | None = None) -> None:
        super().tpc_begin(transaction, tid)
        self._resolved = []

    def store(
        self, oid: bytes, serial: bytes, data: bytes, version: str, transaction: Any
    ) -> None:
        if self._transaction is transaction and oid in self._data:
            committed = self._data[oid].maxKey()
            if serial != committed:
                data = self.tryToResolveConflict(oid, committed, serial, data)
                serial = committed
                self._resolved.append(oid)
        super().store(oid, serial, data, version, transaction)

    def tpc_vote(self, transaction: Any) -> list[bytes]:
        super().tpc_vote(transaction)
        return self._resolved

    def pack(self, time: float, references: Any, gc: bool = True) -> None:
        try:
            super().pack(time, references, gc)
        except ValueError as error:
            # What was packed to a later moment has nothing more to drop, as in a file.
            if "packed to a later time" not in str(error):
                raise


@dataclass(frozen=True, slots=True)
class Commit:
    """One transaction on the disk: its id, whose it was, and the records."""

    tid: bytes
    process: str
    records: tuple[tuple[bytes, bytes], ...]


class Disk:
    """One storage that several simulated processes have open at once.

    What one commits the others are told of in that very moment. The commit lock is waited for
    in simulated time.

    :param storage: where the data is (default: in memory).
    """

    def __init__(self, storage: Any = None) -> None:
        self.base = MemoryStorage() if storage is None else storage
        self.commits: list[Commit] = []
        self.changes = 0
        """How often anything on it has changed, be it that an id of it was used up."""
        self._sides: list[SteppedStorage] = []
        self._holder: tuple[SteppedStorage, Any] | None = None
        self._records: dict[bytes, bytes] = {}
        self._tid = self.base.lastTransaction()
        self.freed = threading.Condition()

    def attach(self, side: SteppedStorage) -> None:
        """Let a process have it open."""
        self._sides.append(side)

    def detach(self, side: SteppedStorage) -> None:
        """Let go of a process, by its own will or not: what it has not committed is aborted."""
        if side in self._sides:
            self._sides.remove(side)
        self.abort_of(side)

    def abort_of(self, side: SteppedStorage) -> None:
        """Abort what that process has under way, as a server does that has lost a client."""
        if self._holder is not None and self._holder[0] is side:
            self.abort(self._holder[1])

    def break_off(self) -> None:
        """Abort what is under way, whosever it is."""
        if self._holder is not None:
            self.abort(self._holder[1])

    def restart(self) -> None:
        """Restart the server that has the storage: what is under way is aborted."""
        self.break_off()

    def close(self) -> None:
        """Close the storage."""
        if self._holder is not None:
            self.abort(self._holder[1])
        self.base.close()

    # The calls of a commit, made by a side.

    @property
    def is_free(self) -> bool:
        """Whether nobody commits now."""
        return self._holder is None

    def begin(self, side: SteppedStorage, transaction: Any, now: datetime) -> None:
        """Begin a commit; to be called when it is free."""
        self.changes += 1
        # As the storages do with the machine's time: the same clock, the same ids.
        stamp = TimeStamp(
            now.year, now.month, now.day, now.hour, now.minute, now.second + now.microsecond / 1e6
        )
        self._tid = stamp.laterThan(TimeStamp(self._tid)).raw()
        self.base.tpc_begin(transaction, self._tid)
        self._holder = side, transaction
        self._records = {}

    def holds(self, transaction: Any) -> bool:
        """Tell whether that transaction is the one that is being committed."""
        return self._holder is not None and self._holder[1] is transaction

    def store(self, oid: bytes, serial: bytes, data: bytes, transaction: Any) -> None:
        """Store one record."""
        self.base.store(oid, serial, data, "", transaction)
        self._records[oid] = data

    def finish(self, transaction: Any, on_finish: Callable[[bytes], None]) -> bytes:
        """Commit, and tell the others."""
        assert self._holder is not None
        side = self._holder[0]
        self.changes += 1
        tid: bytes = self.base.tpc_finish(transaction, on_finish)
        records = tuple(sorted(self._records.items()))
        self.commits.append(Commit(tid, side.process_name, records))
        for other in self._sides:
            if other is not side:
                other.hear(tid, list(self._records))
        self._free()
        return tid

    def new_oid(self) -> bytes:
        """Return the id of an object to come."""
        self.changes += 1
        oid: bytes = self.base.new_oid()
        return oid

    def pack(self, time: float, references: Any) -> None:
        """Drop what is not needed any more."""
        self.changes += 1
        self.base.pack(time, references)

    def abort(self, transaction: Any) -> None:
        """Take the transaction back."""
        if self.holds(transaction):
            self.base.tpc_abort(transaction)
            self._free()

    def _free(self) -> None:
        self._holder = None
        with self.freed:
            self.freed.notify_all()
