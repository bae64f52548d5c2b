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

An owner whose commit fails half-way does not know what is on disk. It lets go of the file, and
has no side until it owns it again or is a client of who owns it by then. What it has seen is all
that its file had before that commit. It goes the same four steps; what changed behind `seen`, and
up to the moment when it connected, a client reads through its new connection, and what it hears
of meanwhile it tells after that.

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

from perdure.model.clock import Clock, SystemClock
from perdure.model.errors import (
    DatabaseAccessError,
    DatabaseLockedError,
    DatabaseNotFoundError,
    UnknownSettingError,
)
from perdure.model.given import checked_callable
from perdure.model.lockfile import LockFile
from perdure.storage.absent import Absent, Forked
from perdure.storage.client import Client
from perdure.storage.file import LocalFace, ServedFace, SharedFile, changes_since
from perdure.storage.forking import Inherited, let_go_in_children
from perdure.storage.limits import Limits
from perdure.storage.oids import GivenOids
from perdure.storage.place import Place
from perdure.storage.relay import Relay, Told
from perdure.storage.server import Server

__all__ = ["Sides"]

logger = logging.getLogger("perdure.events")

T = TypeVar("T")

BLOB_LAYOUTS = ("automatic", "bushy", "lawn")

_LOOK_AGAIN_SECONDS = 0.05

_AFTER_AN_ERROR_SECONDS = 1.0


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
        for name, value in (("path", path), ("blob_dir", blob_dir or path)):
            if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
                raise UnknownSettingError(f"{name} has to be the path of a file, not {value!r}")
        if blob_layout not in BLOB_LAYOUTS:
            raise UnknownSettingError(
                f"blob_layout is {blob_layout!r}, and has to be one of {', '.join(BLOB_LAYOUTS)}"
            )
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
        self._replaced = False
        self._sharing = False
        # Held while the side changes or ends.
        self._turning = threading.Lock()
        self._lock: LockFile | None = None
        self._file: SharedFile | None = None
        self._server: Server | None = None
        self._side: LocalFace | Client | Absent
        self._reads: LocalFace | Client | Absent
        self._side = self._reads = self._find_side()
        self.fshelper: Any = None
        if self._side.blob_dir:
            self.fshelper = FilesystemHelper(self._side.blob_dir)
            zope.interface.alsoProvides(self, IBlobStorage)
        let_go_in_children(self)
        self._watcher: threading.Thread | None = threading.Thread(
            target=self._watch, name=f"perdure watching {self._place.path}", daemon=True
        )
        self._watcher.start()

    def __repr__(self) -> str:
        side = {LocalFace: "owner", Client: "client"}.get(type(self._side), "opening it again")
        state = "closed" if self._closed else side
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
        checked_callable("told", told)
        with self._changed:
            self._hooks = [*self._hooks, told]

        def end() -> None:
            with self._changed:
                self._hooks = [each for each in self._hooks if each is not told]

        return end

    def share(self) -> None:
        """Serve the file to others from now on, if this process owns it, now or later."""
        with self._turning:
            self._serve()
            self._sharing = True

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
        if not self._create and not self._place.has_database():
            raise DatabaseNotFoundError(f"there is no database {self._place.path}")
        self._place.prepare()
        begun = self._clock.monotonic()
        try:
            while True:
                owner = self._try_to_own()
                if owner is not None:
                    return owner
                relay = Relay(self._hear)
                client = self._try_to_join(relay)
                if client is not None:
                    relay.begin()
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
            if not self._create and not self._place.has_database():
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

    def _try_to_join(self, relay: Relay) -> Client | None:
        """Connect to the one who owns the file, if it answers."""
        if not self._place.answers():
            return None
        client = Client(self._place, self._notify)
        if client.wait_for_connection(1.0):
            relay.last = client.lastTransaction
            client.registerDB(relay)
            return client
        client.close()
        return None

    def _serve(self) -> None:
        """Serve others, if this process owns the file; only with `_turning` held."""
        side = self._side
        if self._server is not None or not isinstance(side, LocalFace):
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

    def _is_amiss(self) -> bool:
        """Tell whether there is something to do for the watcher."""
        side = self._side
        if isinstance(side, Client):
            return not side.is_connected()
        return isinstance(side, Absent) or (self._sharing and self._server is None)

    def _watch(self) -> None:
        """Take the file over when it comes free, and come back after a failure."""
        nudged, said = b"", ""
        while True:
            with self._changed:
                while not self._closed and not self._is_amiss():
                    self._clock.wait(self._changed, None)
                if self._closed:
                    return
            side = self._side
            try:
                if self._change_sides():
                    with self._turning:
                        if self._sharing and not self._ended:
                            self._serve()
                elif isinstance(side, Client):
                    nudged = self._nudge(side, nudged)
                said = ""
            except Exception as error:
                if repr(error) != said:
                    said = repr(error)
                    logger.exception(
                        "the database %s cannot be opened again yet; trying until it can",
                        self._place.path,
                    )
                self._pause(_AFTER_AN_ERROR_SECONDS)
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

    def _change_sides(self) -> bool:
        """Own the file if it is free, or go to who owns it; False if it is neither yet."""
        with self._turning:
            side = self._side
            if self._closed or isinstance(side, LocalFace):
                return True
            if isinstance(side, Absent):
                self._put_away()
            self._wanted_blobs, self._blob_layout = side.blob_dir, "automatic"
            self._create = False
            face = self._try_to_own()
            if face is not None:
                missed = self._move_to(face, side)
            elif isinstance(side, Absent):
                missed = self._join_again(side)
            else:
                missed = None
        if missed is None:
            return False
        what = "has taken over" if self.is_owner() else "is again a client of who has"
        logger.info("this process %s the database %s", what, self._place.path)
        last, oids = missed
        if oids:
            self._tell(last, oids)
        return True

    def _move_to(
        self, face: LocalFace, before: Client | Absent
    ) -> tuple[bytes, list[bytes]] | None:
        """Own the file from now on, as is said above; None if it is another file.

        Returns the last transaction, and the objects that had changed without being told.
        """
        if isinstance(before, Client):
            before.close()
        seen = before.lastTransaction()
        try:
            last = face.lastTransaction()
            if last < seen:
                self._refuse_older()
                return None
            if self._db is not None:
                face.registerDB(self._db)
            if isinstance(before, Absent) and before.doubtful is not None:
                face.file.go_on_behind(before.doubtful)
            # From here on the order counts, see above.
            self._reads = face
            oids = list(set(changes_since(face.file, seen))) if last > seen else []
            if oids:
                self._invalidate(last, oids)
        except BaseException:
            self._be_absent(Absent(self._place.path, seen, before.blob_dir))
            face.file.close()
            if self._lock is not None:
                self._lock.close()
            raise
        self._be_on(face)
        return last, oids

    def _join_again(self, before: Absent) -> tuple[bytes, list[bytes]] | None:
        """Be a client of who owns the file by now; None if nobody answers, else as `_move_to`."""
        relay = Relay(self._hear)
        client = self._try_to_join(relay)
        if client is None:
            return None
        seen = before.lastTransaction()
        try:
            last = client.lastTransaction()
            if last < seen:
                client.close()
                self._refuse_older()
                return None
            oids = list(set(changes_since(client, seen, last))) if last > seen else []
        except BaseException:
            client.close()
            raise
        self._reads = client
        self._invalidate(last, oids)
        relay.begin()
        self._be_on(client)
        return last, oids

    def _be_on(self, side: LocalFace | Client) -> None:
        with self._changed:
            self._side = side
            self._changed.notify_all()

    def _be_absent(self, absent: Absent) -> None:
        with self._changed:
            self._side = self._reads = absent
            self._changed.notify_all()

    def _refuse_older(self) -> None:
        logger.critical(
            "the database %s is older than what this process has read: it was replaced; "
            "restart the process",
            self._place.path,
        )
        self._replaced = True
        self._end(
            f"the database {self._place.path} was replaced by an older one: restart the process"
        )

    def _fail(self) -> None:
        """Let go of the file after a commit that failed half-way, and come back to it.

        Called in the thread of the commit, before anybody else can begin one.
        """
        # Looked at first: when it is absent, the watcher forgets them.
        file, server, lock = self._file, self._server, self._lock
        assert file is not None and lock is not None
        self._be_absent(Absent(self._place.path, file.safe_tid(), file.blob_dir, file._tid))
        logger.critical(
            "a commit to the database %s could not be written to its end: it is opened again",
            self._place.path,
        )
        file.commit_lock.end()
        if server is not None:
            server.stop_soon()
        lock.close()

    def _put_away(self) -> None:
        """Forget the file that was let go of; only with `_turning` held."""
        if self._server is not None:
            self._server.close()
        self._server = self._file = self._lock = None

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
        try:
            if not file.commit_lock.acquire(self._limits.close.total_seconds()):
                logger.warning(
                    "the database %s is closed although a commit is under way", self._place.path
                )
        except ClientDisconnected:
            return  # it was let go of
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

    def _hear(self, tid: bytes, oids: Collection[bytes] | None) -> None:
        """Tell on what a client has heard."""
        if oids is not None:
            self._invalidate(tid, oids)
        elif self._db is not None:
            self._db.invalidateCache()
        self._tell(tid, oids)

    def _tell(self, tid: bytes, oids: Collection[bytes] | None) -> None:
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
                raise self._closed_error()
            try:
                return call(side)
            except (ClientDisconnected, ValueError) as error:
                if isinstance(error, ValueError) and not _is_let_go(side):
                    raise
                if self._closed:
                    raise self._closed_error() from error
                now = self._clock.monotonic()
                if deadline is None:
                    deadline = now + self._limits.wait.total_seconds()
                if now >= deadline:
                    raise
                if self._reads is side:
                    self._pause(_LOOK_AGAIN_SECONDS)

    def _closed_error(self) -> Exception:
        # Where it is no use to wait, nobody must be told that it is.
        kind: type[Exception] = DatabaseAccessError if self._replaced else ClientDisconnected
        return kind(self._why_closed)

    # In a child that was forked.

    def descriptors(self) -> Iterator[int]:
        if self._place._descriptor is not None:
            yield self._place._descriptor

    def forked(self) -> None:
        self._side = self._reads = Forked(self._place.path)  # type: ignore[assignment]
        self._changed = threading.Condition()
        self._turning = threading.Lock()
        self._closed, self._file, self._server, self._watcher = False, None, None, None
        self._lock = None


def _is_let_go(side: object) -> bool:
    return isinstance(side, LocalFace) and not side.file.is_open
