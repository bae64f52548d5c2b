"""The server that the owner of a shared file runs for the other processes: ZEO's, in a thread.

What is different from ZEO's own:

- Others are told of a commit when it is on disk, not before. A client that had heard of a commit
  which a kill then took back would be ahead of the next owner's file.
- They are told in the order of the commits, whichever face these came through. The committing
  thread only notes what changed (`prepare`, inside the finish); the thread of the loop sends it
  (`flush`), at the latest before it answers anything that includes the commit.
- The loop never waits for a commit of this process; a vote waits in line for its turn.
- A client that does not finish what it has voted for is cut off after a while, and so is one
  that does not read what it is sent. Cut off means that its transaction is aborted at once.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ZEO.asyncio.server import Delay, Result, ServerProtocol
from ZEO.StorageServer import LockManager, StorageServer
from ZODB.POSException import ConflictError, StorageTransactionError

from perdure.model.localsocket import stranger
from perdure.storage.commitlock import CommitLock
from perdure.storage.file import ServedFace
from perdure.storage.forking import Inherited, let_go_in_children, of_selector
from perdure.storage.limits import Limits
from perdure.storage.place import Place
from perdure.storage.session import Session

__all__ = ["NAME", "Server"]

logger = logging.getLogger("perdure.events")

#: The name of the one storage that is served.
NAME = "1"

#: How many commits are remembered for clients that come back.
_REMEMBERED = 1000

#: How many commits are noted while there is no client, before they are looked at.
_PENDING = 100

#: Clients that were away for less than so many seconds learn what changed from the file.
_AWAY_SECONDS = 3600

#: How many messages may wait for a client that reads nothing.
_UNREAD = 10_000

#: How long a client may take to read its last answer when the server closes.
_FAREWELL_SECONDS = 1.0


class Server(StorageServer, Inherited):
    """Serves one file at a socket, from `start` to `close`.

    Its methods may be called from any thread, unless they say otherwise.
    """

    def __init__(self, face: ServedFace, place: Place, limits: Limits) -> None:
        super().__init__(
            None,
            {NAME: face},
            invalidation_queue_size=_REMEMBERED,
            invalidation_age=_AWAY_SECONDS,
        )
        self._face = face
        self._place = place
        self.limits = limits
        self._guard = threading.Lock()
        # What was changed by commits that others were not told of: tid, oids, committing session.
        self._pending: deque[tuple[bytes, list[bytes], _Session | None]] = deque()
        self._sessions: list[_Session] = self.zeo_storages_by_storage_id[NAME]
        self.connections: set[_Connection] = set()
        self._selector = selectors.DefaultSelector()
        self.event_loop = asyncio.SelectorEventLoop(self._selector)
        self.lock_managers[NAME] = _Line(self, face.file.commit_lock)
        self._listening: Any = None
        self._closing = asyncio.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"perdure sharing {place.path}", daemon=True
        )

    # From the start to the close.

    def start(self) -> None:
        """Listen; who connects from now on is answered."""
        let_go_in_children(self)
        try:
            self._listening = self._place.listen()
        except BaseException:
            self.event_loop.close()
            raise
        self._thread.start()

    def close(self, join_timeout: float | None = None) -> None:
        """Cut the clients off, abort their transactions, and end the thread.

        A commit that is being finished is, and is answered.
        """
        self.stop_soon()
        if self._thread is not threading.current_thread():
            self._thread.join(join_timeout)

    def stop_soon(self) -> None:
        """Have it close, without waiting."""
        try:
            self.event_loop.call_soon_threadsafe(self._closing.set)
        except RuntimeError:
            pass  # it has ended

    def _run(self) -> None:
        asyncio.set_event_loop(self.event_loop)
        try:
            self.event_loop.run_until_complete(self._serve())
        except Exception:
            logger.critical("the database %s is shared no more", self._place.path, exc_info=True)
        finally:
            self._listening.close()
            asyncio.set_event_loop(None)
            self.event_loop.close()
            self.lock_managers[NAME].end()

    async def _serve(self) -> None:
        listening = await self.event_loop.create_unix_server(
            lambda: _Connection(self), sock=self._listening
        )
        await self._closing.wait()
        # Nobody is let in any more. Who just was is among the connections when the tasks are done;
        # closed before that, `listening` would fail them and leave their sockets open.
        self.event_loop.remove_reader(self._listening)
        letting_in = asyncio.all_tasks() - {asyncio.current_task()}
        if letting_in:
            await asyncio.wait(letting_in)
        listening.close()
        for connection in list(self.connections):
            connection.close()
        lost = [connection.lost for connection in self.connections]
        if lost:
            await asyncio.wait(lost, timeout=_FAREWELL_SECONDS)
        for connection in list(self.connections):
            connection.drop()
        if lost:
            await asyncio.wait(lost)

    def descriptors(self) -> Iterator[int]:
        if self._listening is not None and self._listening.fileno() >= 0:
            yield self._listening.fileno()
        yield from of_selector(self._selector)

    # Telling the clients of commits.

    def prepare(self, tid: bytes, oids: list[bytes], session: _Session | None = None) -> None:
        """Note what a transaction changes that is being finished, under the storage's lock."""
        self._pending.append((tid, oids, session))

    def committed(self, tid: bytes) -> None:
        """Have the clients told of all commits up to this one, which is on disk."""
        if self._sessions:
            try:
                self.event_loop.call_soon_threadsafe(self.flush, tid)
            except RuntimeError:
                pass  # it has ended, and nobody is left to be told
        elif len(self._pending) > _PENDING:
            # A client that comes in this moment is told the last transaction, which is this one.
            self.flush(tid, tell=False)

    def flush(self, tid: bytes, *, tell: bool = True) -> None:
        """Remember the commits up to `tid` and tell the clients of them, which the loop may do."""
        with self._guard:
            while self._pending and self._pending[0][0] <= tid:
                each, oids, origin = self._pending.popleft()
                remembered = self.invq[NAME]
                if len(remembered) >= self.invq_bound:
                    remembered.pop()
                remembered.insert(0, (each, oids))
                for session in self._sessions[:] if tell else ():
                    if session is not origin:
                        session.invalidate(each, oids)

    def catch_up(self) -> None:
        """Tell the clients of all commits that a load would show; in the loop."""
        if self._pending:
            self.flush(self._face.lastTransaction())

    # What the base class calls.

    def invalidate(self, *args: Any) -> None:
        raise NotImplementedError("commits are told by prepare and committed")

    def create_client_handler(self) -> _Session:
        return _Session(self)


class _Connection(ServerProtocol):
    """The connection of one client; belongs to the loop."""

    pause_writing: Any
    resume_writing: Any

    def __init__(self, server: Server) -> None:
        super().__init__(
            server.event_loop, server._place.path, server.create_client_handler(), False
        )
        self._server = server
        self._transport: Any = None
        self._unread = 0
        self._paused = False
        self.lost = self.loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server.connections.add(self)
        super().connection_made(transport)
        other = stranger(transport.get_extra_info("socket"))
        if other is not None:
            logger.warning(
                "process %d of the user with id %d was refused by who shares %s",
                *other,
                self._server._place.path,
            )
            # Nothing is read from it any more.
            transport.abort()
        pause: Callable[[], None] = self.pause_writing
        resume: Callable[[], None] = self.resume_writing

        def paused() -> None:
            self._paused = True
            pause()

        def resumed() -> None:
            self._paused, self._unread = False, 0
            resume()

        self.pause_writing, self.resume_writing = paused, resumed

    def connection_lost(self, error: Exception | None) -> None:
        # A client that was killed is no error.
        super().connection_lost(None)
        self._server.connections.discard(self)
        if not self.lost.done():
            self.lost.set_result(None)

    def close(self) -> None:
        """Close it, and abort the client's transaction, which the base class does not."""
        session = self.zeo_storage
        super().close()
        if session is not None:
            session.notify_disconnected()

    def drop(self) -> None:
        """Close it without waiting for the client to read what was sent."""
        self.close()
        if self._transport is not None:
            self._transport.abort()

    def send_soon(self, method: str, *args: Any) -> bool:
        """Send a message that needs no answer; False if too many wait to be read."""
        if self._paused:
            self._unread += 1
            if self._unread > _UNREAD:
                return False
        self.call_async(method, args)
        return True


class _Session(Session):
    """What one client is served; belongs to the loop."""

    def register(self, storage_id: str, read_only: bool) -> bytes:
        tid: bytes = super().register(storage_id, read_only)
        # It is among those who are told by now, and knows of the commits up to this one.
        self.server.flush(tid)
        return tid

    def get_info(self) -> dict[str, Any]:
        return {**super().get_info(), "blob_dir": self.storage.blob_dir}

    def invalidate(self, tid: bytes, oids: list[bytes]) -> None:
        """Tell the client of a commit."""
        if not self.connection.send_soon("invalidateTransaction", tid, oids):
            logger.warning(
                "a process that shares %s does not read what it is told: it is cut off, and has "
                "to come back",
                self.log_label,
            )
            self.call_soon_threadsafe(self.connection.drop)

    def loadBefore(self, oid: bytes, tid: bytes) -> Any:
        self.server.catch_up()
        return super().loadBefore(oid, tid)

    def _vote(self, delay: Any = None) -> Any:
        # If it ends in a conflict, the client knows of what it conflicts with.
        self.server.catch_up()
        return super()._vote(delay)

    def tpc_finish(self, id: int) -> Result:
        # Unlike the base class: a finish that comes too late has not taken place.
        self._check_tid(id, exc=StorageTransactionError)
        if not self.locked:
            raise StorageTransactionError("finish without a vote")
        self.stats.commits += 1

        def prepare(tid: bytes, oids: list[bytes]) -> None:
            self.server.prepare(tid, oids, self)

        # The id is the one of this commit: the lock is free, and there may be another by now.
        tid = self.storage.finish(self.transaction, prepare)
        self.server.flush(tid)
        self.async_("info", self.get_size_info())
        return Result(tid, self._clear_transaction)

    def notify_disconnected(self) -> None:
        for iterator in self._iterators.values():
            if hasattr(iterator, "close"):
                iterator.close()
        self._iterators.clear()
        self._txn_iterators_last.clear()
        super().notify_disconnected()

    def expire(self) -> None:
        """Cut off a client that keeps the others waiting."""
        seconds = self.server.limits.vote.total_seconds()
        logger.warning(
            "a process that shares %s has not finished its commit within %g seconds: it is cut "
            "off, and the commit aborted",
            self.log_label,
            seconds,
        )
        self.connection.drop()


class _Line(LockManager):
    """Who of the clients may vote next; belongs to the loop."""

    def __init__(self, server: Server, commit_lock: CommitLock) -> None:
        super().__init__(NAME, server.stats[NAME], _Patience(server))
        self._server = server
        self._commit_lock = commit_lock

    def lock(self, session: _Session, vote: Callable[[], Any]) -> Any:
        result = super().lock(session, vote)
        if isinstance(result, Delay) and session in self.waiting:
            self._server.event_loop.call_later(
                self._server.limits.turn.total_seconds(), self._give_up, session, result
            )
        return result

    def _give_up(self, session: _Session, delay: Delay) -> None:
        if self.waiting.get(session, (None, None))[1] is delay:
            del self.waiting[session]
            error = ConflictError("other commits took too long: try again")
            delay.error((type(error), error, None))

    def _can_lock(self, session: _Session) -> bool:
        return super()._can_lock(session) and self._commit_lock.reserve(self._granted)

    def _unlocked(self, session: _Session) -> None:
        super()._unlocked(session)
        # A vote that failed before it came to the storage has not used it.
        self._commit_lock.cancel_reservation()

    def _lock_waiting(self, session: _Session) -> None:
        super()._lock_waiting(session)
        if self.locked is None:
            # It was its turn, and it had left the line.
            self._commit_lock.cancel_reservation()

    def _granted(self) -> None:
        try:
            self._server.event_loop.call_soon_threadsafe(self._go_on)
        except RuntimeError:  # the loop has ended, and with it everybody who waited
            self._commit_lock.cancel_reservation()

    def _go_on(self) -> None:
        for session in list(self.waiting):
            self._lock_waiting(session)
        if self.locked is None:
            self.end()

    def end(self) -> None:
        """Give the turn to others."""
        self._commit_lock.cancel_reservation()


class _Patience:
    """Cuts off a client whose vote is too long ago; what ZEO has a thread for."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._handle: asyncio.TimerHandle | None = None

    def begin(self, session: _Session) -> None:
        self._handle = self._server.event_loop.call_later(
            self._server.limits.vote.total_seconds(), session.expire
        )

    def end(self, session: _Session) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def is_alive(self) -> bool:
        return True
