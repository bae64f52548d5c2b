"""The storage of a file that several processes use, whichever of them owns it.

How it changes sides is told in `perdure.storage.sides`. Here is what the ZODB calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import zope.interface
from ZEO.Exceptions import ClientDisconnected
from ZODB.blob import BlobFile
from ZODB.interfaces import (
    IExternalGC,
    IMultiCommitStorage,
    IStorage,
    IStorageCurrentRecordIteration,
    IStorageIteration,
    IStorageRestoreable,
    IStorageUndoable,
)
from ZODB.POSException import POSKeyError, StorageTransactionError, Unsupported
from ZODB.utils import maxtid

from perdure.storage.client import Client
from perdure.storage.file import LocalFace
from perdure.storage.sides import Sides

__all__ = ["SharedStorage"]


@zope.interface.implementer(
    IStorage,
    IStorageUndoable,
    IStorageIteration,
    IStorageRestoreable,
    IStorageCurrentRecordIteration,
    IExternalGC,
    IMultiCommitStorage,
)
class SharedStorage(Sides):
    """A FileStorage that other processes of this user on this host may open at the same time.

    :param path: the file; it is made if it is not there, unless `create` is false.
    :param blob_dir: the folder of its blobs; None for a database without blobs. Where another
        process has opened the file already, its folder is used.
    :param blob_layout: ``bushy`` or ``lawn``, as the ZODB knows them; only for a new folder.
    :param create: whether a missing file is made.
    :param limits: how long things may take.
    :param clock: the clock by which waits are measured.

    It serves others from `share` on. It has the interface of a ZODB storage, and may be used
    from any thread. Calls wait while nobody owns the file, for `limits.wait`; then, and where a
    transaction was under way when the owner was lost, they raise `ClientDisconnected`.

    Raises `DatabaseLockedError` where another process has the file and does not share it,
    `DatabaseNotFoundError`, `DatabaseAccessError`, and what FileStorage raises.
    """

    def loadBefore(self, oid: bytes, tid: bytes) -> Any:
        try:
            return self._reads.loadBefore(oid, tid)
        except (ClientDisconnected, ValueError):
            return self._patiently(lambda side: side.loadBefore(oid, tid))

    def load(self, oid: bytes, version: str = "") -> Any:
        found = self.loadBefore(oid, maxtid)
        if found is None:
            raise POSKeyError(oid)
        return found[:2]

    def loadSerial(self, oid: bytes, serial: bytes) -> Any:
        return self._patiently(lambda side: side.loadSerial(oid, serial))

    def getTid(self, oid: bytes) -> Any:
        return self._patiently(lambda side: side.getTid(oid))

    def prefetch(self, oids: Iterable[bytes], tid: bytes) -> None:
        reads = self._reads
        if isinstance(reads, Client):
            try:
                reads.prefetch(oids, tid)
            except ClientDisconnected:
                pass  # it was an advice

    def lastTransaction(self) -> bytes:
        # Not `_reads`: see the fourth step in `sides`.
        tid: bytes = self._side.lastTransaction()
        return tid

    def new_oid(self) -> bytes:
        oid: bytes = self._patiently(lambda side: side.new_oid())
        return oid

    def history(self, oid: bytes, size: int = 1) -> Any:
        return self._patiently(lambda side: side.history(oid, size))

    def supportsUndo(self) -> bool:
        return True

    def undoLog(self, first: int = 0, last: int = -20, filter: Any = None) -> Any:
        return self._patiently(lambda side: side.undoLog(first, last, filter))

    def undoInfo(self, first: int = 0, last: int = -20, specification: Any = None) -> Any:
        return self._patiently(lambda side: side.undoInfo(first, last, specification))

    def iterator(self, start: bytes | None = None, stop: bytes | None = None) -> Any:
        return self._patiently(lambda side: side.iterator(start, stop))

    def record_iternext(self, next: bytes | None = None) -> Any:
        return self._patiently(lambda side: side.record_iternext(next))

    def pack(self, t: float, referencesf: Any, gc: bool | None = None) -> None:
        side = self._side
        if isinstance(side, Client):
            # The owner packs; how it finds references is the same in every process.
            side.pack(t, referencesf)
        else:
            side.pack(t, referencesf, gc)

    def registerDB(self, db: Any) -> None:
        self._db = db
        if isinstance(self._side, LocalFace):
            self._side.registerDB(db)

    def sync(self, force: bool = True) -> None:
        """Do nothing: what others commit is told without being asked for."""

    def getName(self) -> str:
        return self._place.path

    def sortKey(self) -> str:
        # The same in all processes, so that they lock several files in the same order.
        return self._place.path

    def isReadOnly(self) -> bool:
        return False

    def __len__(self) -> int:
        def length(side: LocalFace | Client) -> int:
            return len(side) if isinstance(side, LocalFace) else side.length_and_size()[0]

        return self._patiently(length)

    def getSize(self) -> int:
        def size(side: LocalFace | Client) -> int:
            return side.getSize() if isinstance(side, LocalFace) else side.length_and_size()[1]

        return self._patiently(size)

    # Blobs: the same folder on both sides.

    @property
    def blob_dir(self) -> str | None:
        found: str | None = self._side.blob_dir
        return found

    def temporaryDirectory(self) -> str:
        if self.fshelper is None:
            raise Unsupported(f"{self._place.path} was opened without blobs")
        folder: str = self.fshelper.temp_dir
        return folder

    def loadBlob(self, oid: bytes, serial: bytes) -> str:
        if self.fshelper is None:
            raise Unsupported(f"{self._place.path} was opened without blobs")
        name: str = self.fshelper.getBlobFilename(oid, serial)
        if not os.path.exists(name):
            raise POSKeyError(f"no blob file at {name}", oid, serial)
        return name

    def openCommittedBlobFile(self, oid: bytes, serial: bytes, blob: Any = None) -> Any:
        name = self.loadBlob(oid, serial)
        return open(name, "rb") if blob is None else BlobFile(name, "r", blob)

    # Transactions. Each remembers the side on which it began.

    def tpc_begin(self, transaction: Any, tid: bytes | None = None, status: str = " ") -> None:
        if self._begun_on(transaction) is not None:
            raise StorageTransactionError("tpc_begin was called twice for one transaction")
        side = self._side
        if isinstance(side, LocalFace) and not self._closed:
            side.tpc_begin(transaction, tid, status)
            transaction.set_data(self, side)
            return

        def begin(reads: LocalFace | Client) -> LocalFace | Client:
            side = self._side
            if side is not reads:
                raise ClientDisconnected("the file is being taken over")
            side.tpc_begin(transaction, tid, status)
            return side

        transaction.set_data(self, self._patiently(begin))

    def _begun_on(self, transaction: Any) -> LocalFace | Client | None:
        try:
            side: LocalFace | Client | None = transaction.data(self)
        except KeyError:
            return None
        return side

    def _own_side(self, transaction: Any) -> LocalFace | Client:
        side = self._begun_on(transaction)
        if side is None:
            raise StorageTransactionError(self, transaction)
        if side is not self._side or self._ended:
            raise ClientDisconnected("the owner of the file was lost during the transaction")
        return side

    def tpc_transaction(self) -> Any:
        return self._file.tpc_transaction() if self._file is not None else None

    def store(self, oid: bytes, serial: bytes, data: bytes, version: str, transaction: Any) -> Any:
        return self._own_side(transaction).store(oid, serial, data, version, transaction)

    def storeBlob(
        self,
        oid: bytes,
        serial: bytes,
        data: bytes,
        blobfilename: str,
        version: str,
        transaction: Any,
    ) -> Any:
        return self._own_side(transaction).storeBlob(
            oid, serial, data, blobfilename, version, transaction
        )

    def deleteObject(self, oid: bytes, serial: bytes, transaction: Any) -> None:
        self._own_side(transaction).deleteObject(oid, serial, transaction)

    def restore(
        self,
        oid: bytes,
        serial: bytes,
        data: bytes,
        version: str,
        prev_txn: bytes | None,
        transaction: Any,
    ) -> None:
        self._own_side(transaction).restore(oid, serial, data, version, prev_txn, transaction)

    def copyTransactionsFrom(self, other: Any) -> None:
        side = self._side
        if isinstance(side, Client):
            side.copyTransactionsFrom(other)
        else:
            side.copyTransactionsFrom(other)

    def checkCurrentSerialInTransaction(self, oid: bytes, serial: bytes, transaction: Any) -> None:
        self._own_side(transaction).checkCurrentSerialInTransaction(oid, serial, transaction)

    def undo(self, transaction_id: bytes, transaction: Any) -> Any:
        return self._own_side(transaction).undo(transaction_id, transaction)

    def tpc_vote(self, transaction: Any) -> Any:
        return self._own_side(transaction).tpc_vote(transaction)

    def tpc_finish(self, transaction: Any, f: Callable[[bytes], None] = lambda tid: None) -> bytes:
        tid: bytes = self._own_side(transaction).tpc_finish(transaction, f)
        # What fails is ended by `tpc_abort`.
        transaction.set_data(self, None)
        return tid

    def tpc_abort(self, transaction: Any) -> None:
        side = self._begun_on(transaction)
        if side is not None:
            transaction.set_data(self, None)
            if not (self._ended and isinstance(side, LocalFace)):
                side.tpc_abort(transaction)
