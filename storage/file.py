"""The FileStorage of a shared file, and its two faces.

The process that owns the file has one `SharedFile`. Its own `ZODB.DB` works with the
`LocalFace`, the embedded server with the `ServedFace`. A commit through either face tells the
other side, in the callback of `tpc_finish`: it runs while the storage's lock is held and before
the storage's last transaction id moves on, so that nobody on the other side can begin a
transaction that includes the commit and does not know which objects it changed.

What a transaction changed is read from the index of what it has written, so that it is complete
whichever way that came about: stored, resolved after a conflict, undone, deleted, restored.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import zope.interface
from persistent.TimeStamp import TimeStamp
from ZEO.Exceptions import ClientDisconnected
from ZODB.blob import LAYOUT_MARKER
from ZODB.FileStorage import FileStorage
from ZODB.FileStorage.FileStorage import FileStorageError, packed_version
from ZODB.interfaces import IBlobStorageRestoreable
from ZODB.utils import u64, z64

from perdure.storage.commitlock import CommitLock
from perdure.storage.flushing import (
    cut_what_was_not_flushed,
    finish_interrupted_pack,
    flush_data,
    flush_name,
    forget_lost_layout,
    is_on_one_page,
    make_file,
)
from perdure.storage.forking import Inherited, let_go_in_children
from perdure.storage.oids import GivenOids

__all__ = ["LocalFace", "ServedFace", "SharedFile", "changes_since"]

#: So many transactions are read at the opening, for clients that come back.
_RECENT = 100


class SharedFile(FileStorage, Inherited):
    """A FileStorage that leaves nothing behind, neither if it cannot be opened nor in a child.

    Raises what `FileStorage` raises, `zc.lockfile.LockError` where another process has it.
    """

    def __init__(
        self, path: str, blob_dir: str | None, blob_layout: str, given: GivenOids
    ) -> None:
        let_go_in_children(self)
        self._open = True
        #: Called when a commit has failed half-way, and the file was closed for that.
        self.failed: Callable[[], None] | None = None
        # Held while a pack puts its copy in the place of the file.
        self._replacing = threading.Lock()
        self._pack_replaces = False
        # The thread that finishes a commit, while it is not known whether that is on disk.
        self._finishing: int | None = None
        try:
            finish_interrupted_pack(path)
            make_file(path)
            super().__init__(path, packer=self._copy_packed)
            if blob_dir is not None:
                # Not by FileStorage, which empties the folder where the file is missing: it may
                # be missing by mistake.
                self.blob_dir = os.path.abspath(blob_dir)
                self._init_blobs(blob_layout)
                zope.interface.alsoProvides(self, IBlobStorageRestoreable)
        except BaseException:
            self._close_files()
            raise
        self._forget_unfinished()
        self._given = given
        self.set_max_oid(given.begin_behind(self._oid, new=self._pos <= len(packed_version)))
        self._commit_lock = self.commit_lock = CommitLock()
        self._commit_lock_acquire = self.commit_lock.acquire
        self._commit_lock_release = self.commit_lock.release

    def _forget_unfinished(self) -> None:
        # FileStorage takes the id of a transaction that it has cut off, as nobody had finished
        # it, for the last one. Who heard of it would be ahead of the next one to open the file.
        self._ltid = z64
        if self._pos > len(packed_version):
            self._file.seek(self._pos - 8)
            length = u64(self._file.read(8))
            self._ltid = self._read_txn_header(self._pos - length - 8).tid

    def _init_blobs(self, layout: str) -> None:
        if forget_lost_layout(self.blob_dir) and layout == "automatic":
            # The ZODB takes a folder that is not quite empty for an old one.
            layout = "bushy"
        marker = os.path.join(self.blob_dir, LAYOUT_MARKER)
        is_new = not os.path.exists(marker)
        self._blob_init(self.blob_dir, layout)
        if is_new:
            self._flush_file(marker)

    @staticmethod
    def _flush_file(path: str) -> None:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        flush_name(path)

    def _restore_index(self) -> Any:
        restored = super()._restore_index()
        start = len(packed_version) if restored is None else restored[1]
        cut_what_was_not_flushed(self._file, self._file_name, start)
        return restored

    def _save_index(self) -> None:
        # As FileStorage does, which puts it in the place of the old one before it is on disk;
        # but a damaged index is not noticed, and finds other objects than those that it should.
        name = f"{self._file_name}.index"
        self._index.save(self._pos, f"{name}_tmp")
        with open(f"{name}_tmp", "rb") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):
            os.replace(f"{name}_tmp", name)
        self._saved += 1

    @property
    def is_open(self) -> bool:
        return self._open

    def new_oid(self) -> bytes:
        oid: bytes = super().new_oid()
        if self._open and oid > self._given.noted:
            self._given.note(oid)
        # Asked last: who finds it open has got its number before `close` looks for the last one.
        if not self._open:
            raise ClientDisconnected("the storage is closed")
        return oid

    def changed(self) -> list[bytes]:
        """The objects that the transaction under way has written so far."""
        return list(self._tindex)

    def safe_tid(self) -> bytes:
        """The last transaction that is on disk for certain."""
        return bytes(self._ltid)

    def go_on_behind(self, tid: bytes) -> None:
        """Give no transaction an id up to this one, which is perhaps not in the file."""
        if TimeStamp(tid) > self._ts:
            self._ts: Any = TimeStamp(tid)

    def tpc_vote(self, transaction: Any) -> Any:
        resolved = super().tpc_vote(transaction)
        # Before the transaction is marked as finished: see `flushing`.
        for oid, tid in self.dirty_oids:
            self._flush_file(self.fshelper.getBlobFilename(oid, tid))
        if not is_on_one_page(self._pos, self._nextpos):
            flush_data(self._file.fileno())
        return resolved

    def _finish(self, *args: Any) -> None:
        self._finishing = threading.get_ident()
        try:
            super()._finish(*args)
            self._finishing = None
        except BaseException:
            # The storage has closed itself, since nobody knows what is on disk now.
            self.close()
            if self.failed is not None:
                self.failed()
            raise

    def pack(self, t: float, referencesf: Any, gc: bool | None = None) -> None:
        try:
            super().pack(t, referencesf, gc)
        finally:
            if self._pack_replaces:
                self._pack_replaces = False
                self._replacing.release()

    def _flush_packed(self) -> None:
        try:
            self._flush_file(f"{self._file_name}.pack")
        except BaseException:
            self.commit_lock.release()
            raise

    def _initIndex(self, *args: Any) -> None:
        super()._initIndex(*args)
        if self._pack_replaces:
            # The file has its name now, and nobody has committed to it yet.
            flush_name(self._file_name)

    def _copy_packed(self, storage: Any, referencesf: Any, stop: bytes, gc: bool) -> Any:
        result = FileStorage.packer(self, referencesf, stop, gc)
        if result is not None:
            self._flush_packed()
            self._replacing.acquire()
            self._pack_replaces = True
            if not self._open:
                # Somebody else may have the file by now.
                self.commit_lock.release()
                raise FileStorageError("the file was closed while it was being packed")
        return result

    def close(self) -> None:
        """Close it; the index is saved while the lock still keeps others out."""
        with self._replacing:
            if not self._open:
                return
            self._open = False
            if self._finishing == threading.get_ident():
                # It has failed, and nobody was told of it: then it has not taken place. If this
                # fails as well, the next one to open the file sees what is there.
                with contextlib.suppress(Exception):
                    self._file.truncate(self._pos)
            with contextlib.suppress(Exception):  # what was noted before is enough
                self._given.end_with(self._oid)
            with contextlib.suppress(Exception):  # it is made anew at the next opening
                self._save_index()
            self._close_files()

    def _close_files(self) -> None:
        for name in ("_files", "_file", "_tfile", "_lock_file"):
            file = self.__dict__.get(name)
            if file is not None:
                file.close()

    def descriptors(self) -> Iterator[int]:
        held = self.__dict__
        pool = held.get("_files")
        files = [held.get("_file"), held.get("_tfile")]
        files += [] if pool is None else [*pool._files, *pool._out]
        lock = held.get("_lock_file")
        files.append(None if lock is None else lock._fp)
        for file in files:
            if file is not None and not file.closed:
                yield file.fileno()


class _Face:
    """All that a FileStorage has, unless the face has its own."""

    def __init__(self, file: SharedFile) -> None:
        self.file = file
        zope.interface.directlyProvides(self, zope.interface.providedBy(file))

    def __getattr__(self, name: str) -> Any:
        if name == "file":
            raise AttributeError(name)
        value = getattr(self.file, name)
        if callable(value):
            # Found at once from now on; what is no method may change.
            setattr(self, name, value)
        return value

    def __len__(self) -> int:
        return len(self.file)


class LocalFace(_Face):
    """The face for this process's own `ZODB.DB`.

    `prepare(tid, oids)` is called inside the finish, `committed(tid)` behind it, when the
    transaction is on disk.
    """

    def __init__(self, file: SharedFile) -> None:
        super().__init__(file)
        self.prepare: Callable[[bytes, list[bytes]], None] | None = None
        self.committed: Callable[[bytes], None] | None = None

    def tpc_finish(self, transaction: Any, f: Callable[[bytes], None] | None = None) -> bytes:
        prepare, committed, file = self.prepare, self.committed, self.file
        if prepare is None or committed is None:
            return file.tpc_finish(transaction, f)  # type: ignore[no-any-return]

        def tell(tid: bytes) -> None:
            prepare(tid, file.changed())
            if f is not None:
                f(tid)

        tid: bytes = file.tpc_finish(transaction, tell)
        committed(tid)
        return tid


class ServedFace(_Face):
    """The face for the embedded server.

    `invalidate(tid, oids)` is called inside the finish, `announce(tid, oids)` behind it.
    """

    def __init__(
        self,
        file: SharedFile,
        invalidate: Callable[[bytes, list[bytes]], None],
        announce: Callable[[bytes, list[bytes]], None],
    ) -> None:
        super().__init__(file)
        self._invalidate = invalidate
        self._announce = announce

    def registerDB(self, db: Any) -> None:
        """Do nothing: the records of the file are those of the local database."""

    def finish(self, transaction: Any, prepare: Callable[[bytes, list[bytes]], None]) -> bytes:
        """Finish a transaction, and return its id; `prepare` as in `LocalFace`."""
        oids: list[bytes] = []

        def tell(tid: bytes) -> None:
            oids.extend(self.file.changed())
            self._invalidate(tid, oids)
            prepare(tid, oids)

        tid: bytes = self.file.tpc_finish(transaction, tell)
        self._announce(tid, oids)
        return tid

    def lastInvalidations(self, count: int) -> list[tuple[bytes, list[bytes]]]:
        found: list[tuple[bytes, list[bytes]]] = self.file.lastInvalidations(min(count, _RECENT))
        return found


def changes_since(storage: Any, tid: bytes, last: bytes | None = None) -> Iterator[bytes]:
    """The objects that were changed after `tid`, some of them perhaps more than once.

    `storage`: anything that has the transactions; `last`: where to stop.
    """
    after = (int.from_bytes(tid, "big") + 1).to_bytes(8, "big")
    transactions = storage.iterator(after, last)
    try:
        for each in transactions:
            for record in each:
                yield record.oid
    finally:
        if hasattr(transactions, "close"):  # a client's has none
            transactions.close()
