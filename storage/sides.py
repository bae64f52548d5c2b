"""On which side of a shared file a process is, and how it changes sides.

The first process opens the file and serves it to the others; it is the *owner*. The others are
its clients. When the owner stops or dies, one of the clients takes the file over, with its
connections open.

Why nothing wrong is read then. A connection reads a snapshot: it begins at the greater one of
`lastTransaction()` and the last id that `invalidate` gave it, together with all objects that
`invalidate` named since it began before. So what must never happen is that a connection begins
at an id and was not told of an object that changed up to there. A client that takes over has
seen all commits up to some id `seen`. It goes this way:

1. The connection to the old owner is closed. No commit passes any more: who had begun one gets
   `ClientDisconnected`, and who wants to begin one waits.
2. Loads go to the file. Whatever snapshot they ask for, it answers exactly. The cache of the old
   connection is asked no more; it knows nothing behind `seen`.
3. The objects that changed behind `seen` are read from the file, and `invalidate` names them
   with the last id of the file. It sets both at once for each connection.
4. Only now `lastTransaction()` says the id of the file; until now it said `seen`. And only now
   commits pass, whose ids are greater.

A connection that begins between 2 and 3 begins at `seen`, one that begins behind 3 at the id of
the file, and was told. What was acknowledged is in the file, since the owner acknowledges when it
is on disk; and a client has seen nothing that is not in the file, since the owner tells of a
commit when it is on disk.

A transaction belongs to the side on which it began. It ends there, or fails.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

import zc.lockfile
import zope.interface
from ZEO.Exceptions import ClientDisconnected
from ZODB.blob import FilesystemHelper
from ZODB.interfaces import IBlobStorage
from ZODB.POSException import StorageTransactionError

from perdure.model.clock import Clock, SystemClock
from perdure.model.errors import DatabaseLockedError, DatabaseNotFoundError
from perdure.model.lockfile import LockFile
from perdure.storage.client import Client
from perdure.storage.file import LocalFace, ServedFace, SharedFile, changes_since
from perdure.storage.forking import Inherited, let_go_in_children
from perdure.storage.limits import Limits
from perdure.storage.oids import GivenOids
from perdure.storage.place import Place
from perdure.storage.server import Server

__all__ = ["Sides"]

logger = logging.getLogger("perdure.events")

T = TypeVar("T")

#: Told of a commit: its id, and the objects that it changed; None where these are not known.
Told = Callable[[bytes, Collection[bytes] | None], object]

_LOOK_AGAIN_SECONDS = 0.05


class Sides(Inherited):
    """Finds, keeps and leaves a side of the file; the base of `SharedStorage`, which see."""

    def __init__(
        self,
        path: str,
        *,
        blob_dir: str | None = None,
        blob_layout: str = "automatic",
        create: bool = True,
        limits: Limits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._place = Place(path)
        self._wanted_blobs = blob_dir
        self._blob_layout = blob_layout
        self._create = create
        self._limits = limits or Limits()
        self._clock = clock or SystemClock()
        self._db: Any = None
        self._hooks: list[Told] = []
        # Guards what follows, and is notified when it has changed.
        self._changed = threading.Condition()
        self._closed = False
        self._ended = False
        self._why_closed = "the storage is closed"
        self._sharing = False
        # Held while the side changes or ends.
        self._turning = threading.Lock()
        self._lock: LockFile | None = None
        self._file: SharedFile | None = None
        self._server: Server | None = None
        self._watcher: threading.Thread | None = None
        self._side: LocalFace | Client
        self._side = self._reads = self._find_side()
        self.fshelper: Any = None
        if self._side.blob_dir:
            self.fshelper = FilesystemHelper(self._side.blob_dir)
            zope.interface.alsoProvides(self, IBlobStorage)
        let_go_in_children(self)
        if isinstance(self._side, Client):
            self._watcher = threading.Thread(
                target=self._watch, name=f"perdure watching {self._place.path}", daemon=True
            )
            self._watcher.start()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "owner" if self.is_owner() else "client"
        return f"<{type(self).__name__} {self._place.path}, {state}>"

    def is_owner(self) -> bool:
        """Tell whether this process has the file open itself, and others come to it."""
        return isinstance(self._side, LocalFace)

    def on_foreign_commit(self, told: Told) -> Callable[[], None]:
        """Have `told(tid, oids)` called after each commit that another process has made.

        `oids` are the objects that it changed; None where that is not known, as after a long
        break. The open database knows of the commit by then: a transaction that begins in the
        call, or later, sees it. It is called in whichever thread hears of it, which serves
        others as well: it must return at once, and raise nothing. Returns what ends it.
        """
        with self._changed:
            self._hooks = [*self._hooks, told]

        def end() -> None:
            with self._changed:
                self._hooks = [each for each in self._hooks if each is not told]

        return end

    def share(self) -> None:
        """Serve the file to others from now on, if this process owns it, now or later."""
        with self._turning:
            self._sharing = True
            self._serve()

    def close(self) -> None:
        """Close it; complete when it returns, and may be repeated.

        An owner lets a commit that is under way finish (for `limits.close`), ends those of its
        clients, and hands the file over.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._watcher is not None:
            self._watcher.join()
        with self._turning:
            if not self._ended:
                self._end(self._why_closed)

    # Which side this process is on.

    def _find_side(self) -> LocalFace | Client:
        if not self._create and not os.path.isfile(self._place.path):
            raise DatabaseNotFoundError(f"there is no database {self._place.path}")
        self._place.prepare()
        begun = self._clock.monotonic()
        try:
            while True:
                owner = self._try_to_own()
                if owner is not None:
                    return owner
                client = self._try_to_join()
                if client is not None:
                    return client
                shared = self._place.is_shared()
                limit = self._limits.wait if shared else self._limits.unshared
                if self._clock.monotonic() - begun > limit.total_seconds():
                    raise self._locked_error(shared)
                self._pause(_LOOK_AGAIN_SECONDS)
        except BaseException:
            self._place.close()
            raise

    def _locked_error(self, shared: bool) -> DatabaseLockedError:
        holder = self._place.holder()
        process = "another process" if holder is None else f"the process {holder}"
        if shared:
            return DatabaseLockedError(
                f"the database {self._place.path} is shared by {process}, which does not answer: "
                "it may be stopped (kill -CONT makes it go on) or still be opening a large file; "
                "try again, or end it"
            )
        return DatabaseLockedError(
            f"the database {self._place.path} is open in {process}, which does not share it: "
            "stop that one, or open it there with perdure.storage.open_database, too"
        )

    def _try_to_own(self) -> LocalFace | None:
        """Open the file, if nobody else has it."""
        lock = self._place.try_to_share()
        if lock is None:
            return None
        try:
            if not self._create and not os.path.isfile(self._place.path):
                raise DatabaseNotFoundError(f"the database {self._place.path} has gone")
            self._file = SharedFile(
                self._place.path, self._wanted_blobs, self._blob_layout, GivenOids(lock)
            )
        except zc.lockfile.LockError:
            lock.close()
            return None
        except BaseException:
            lock.close()
            raise
        self._lock = lock
        self._file.failed = self._fail
        return LocalFace(self._file)

    def _try_to_join(self) -> Client | None:
        """Connect to the one who owns the file, if it answers."""
        if not self._place.answers():
            return None
        client = Client(self._place, self._notify)
        if client.wait_for_connection(1.0):
            client.registerDB(_Relay(self, client))
            return client
        client.close()
        return None

    def _serve(self) -> None:
        """Serve others; only with `_turning` held."""
        side = self._side
        if not self._sharing or self._server is not None or not isinstance(side, LocalFace):
            return
        # No commit may come between what the server reads of the file and what it is told.
        side.file.commit_lock.acquire()
        try:
            server = Server(
                ServedFace(side.file, self._invalidate, self._tell), self._place, self._limits
            )
            side.prepare, side.committed = server.prepare, server.committed
        finally:
            side.file.commit_lock.release()
        server.start()
        self._server = server

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        with self._changed:
            if not self._closed:
                self._clock.wait(self._changed, seconds)

    def _watch(self) -> None:
        """Take the file over, when it comes free."""
        client = self._side
        assert isinstance(client, Client)
        nudged = b""
        while True:
            with self._changed:
                while client.is_connected() and not self._closed:
                    self._clock.wait(self._changed, None)
                if self._closed:
                    return
            try:
                if self.is_owner() or self._take_over(client):
                    with self._turning:
                        if not self._ended:
                            self._serve()
                    return
                nudged = self._nudge(client, nudged)
            except Exception:
                logger.exception("the database %s cannot be taken over yet", self._place.path)
                self._pause(1.0)
            self._pause(_LOOK_AGAIN_SECONDS)

    def _nudge(self, client: Client, before: bytes) -> bytes:
        """Let the client connect at once to an owner that is there since the last look."""
        try:
            status = os.stat(self._place.socket)
        except OSError:
            return before
        seen = f"{status.st_ino} {status.st_mtime_ns}".encode()
        if seen == before or not self._place.answers():
            return before
        client.connect_now()
        return seen

    def _take_over(self, client: Client) -> bool:
        with self._turning:
            if self._closed:
                return True
            self._wanted_blobs, self._blob_layout = client.blob_dir, "automatic"
            self._create = False
            face = self._try_to_own()
            if face is None:
                return False
            try:
                changed = self._move_to(face, client)
            except BaseException as error:
                self._end(f"the database could not be taken over: {error}")
                raise
            if changed is None:
                return True
        logger.info("this process has taken over the database %s", self._place.path)
        last, oids = changed
        if oids:
            self._tell(last, oids)
        return True

    def _move_to(self, face: LocalFace, client: Client) -> tuple[bytes, list[bytes]] | None:
        """Change sides, as is said above; None if that cannot be.

        Returns the last transaction, and the objects that had changed without being told.
        """
        client.close()
        seen = client.lastTransaction()
        last = face.lastTransaction()
        if last < seen:
            logger.critical(
                "the database %s is older than what this process has read: it was replaced; "
                "restart the process",
                self._place.path,
            )
            self._end("the database was replaced by an older one: restart the process")
            return None
        if self._db is not None:
            face.registerDB(self._db)
        # From here on the order counts, see above.
        self._reads = face
        oids = list(set(changes_since(face.file, seen))) if last > seen else []
        if oids:
            self._invalidate(last, oids)
        with self._changed:
            self._side = face
            self._changed.notify_all()
        return last, oids

    def _fail(self) -> None:
        """End after a commit that failed half-way; the next owner sees what is on disk."""
        with self._changed:
            self._closed = True
            self._why_closed = "a commit could not be written: the storage was closed"
            self._changed.notify_all()
        if self._server is not None:
            self._server.stop_soon()
        if self._lock is not None:
            self._lock.close()

    def _end(self, why: str) -> None:
        self._why_closed = why
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if isinstance(self._side, Client):
            self._side.close()
        if self._file is not None:
            self._let_go(self._file)
        self._ended = True
        self._place.close()

    def _let_go(self, file: SharedFile) -> None:
        if self._server is not None:
            self._server.close()
        if not file.commit_lock.acquire(self._limits.close.total_seconds()):
            logger.warning(
                "the database %s is closed although a commit is under way", self._place.path
            )
        # While nobody else can have put another one there.
        if self._server is not None:
            self._place.unlink()
        file.close()
        if self._lock is not None:
            self._lock.close()
        file.commit_lock.end()

    # What is told on.

    def _invalidate(self, tid: bytes, oids: Iterable[bytes]) -> None:
        if self._db is not None:
            self._db.invalidate(tid, oids)

    def _tell(self, tid: bytes, oids: Iterable[bytes] | None) -> None:
        for told in self._hooks:
            try:
                told(tid, oids)
            except Exception:
                logger.exception("%r, called after a commit, failed", told)

    # Calls, and patience with them.

    def _patiently(self, call: Callable[[Any], T]) -> T:
        """Call with the present side; again, while there is none, if it may be repeated."""
        deadline: float | None = None
        while True:
            side = self._reads
            if self._closed:
                raise ClientDisconnected(self._why_closed)
            try:
                return call(side)
            except ClientDisconnected:
                now = self._clock.monotonic()
                if deadline is None:
                    deadline = now + self._limits.wait.total_seconds()
                if self._closed or now >= deadline:
                    raise
                if self._reads is side:
                    self._pause(_LOOK_AGAIN_SECONDS)

    # In a child that was forked.

    def descriptors(self) -> Iterator[int]:
        if self._place._descriptor is not None:
            yield self._place._descriptor

    def forked(self) -> None:
        self._side = self._reads = _Forked(self._place.path)  # type: ignore[assignment]
        self._changed = threading.Condition()
        self._turning = threading.Lock()
        self._closed, self._file, self._server, self._watcher = False, None, None, None
        self._lock = None


class _Forked:
    """What a child has in the place of the storage."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise StorageTransactionError(
            f"the database {self._path} was opened before this process was forked: open it again "
            "here"
        )


class _Relay:
    """What a client tells of the commits that others made; asked by it as if it were a DB."""

    def __init__(self, storage: Sides, client: Client) -> None:
        self._storage = storage
        self._client = client

    def invalidate(self, tid: bytes, oids: Iterable[bytes]) -> None:
        self._storage._invalidate(tid, oids)
        self._storage._tell(tid, oids)

    def invalidateCache(self) -> None:
        if self._storage._db is not None:
            self._storage._db.invalidateCache()
        self._storage._tell(self._client.lastTransaction(), None)

    def transform_record_data(self, data: bytes) -> bytes:
        return data

    untransform_record_data = transform_record_data
