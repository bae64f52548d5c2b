"""The connection of a process that does not own the file to the one that does: ZEO's client.

It reconnects by itself, to whoever serves the socket then. What is added: it tells of the
connection that comes and goes, takes the place of the blobs from the server, lets no call hang
when it is closed, and fails with `ClientDisconnected` where ZEO can fail with something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ZEO.asyncio.client import ClientThread
from ZEO.asyncio.futures import run_coroutine_threadsafe
from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ClientDisconnected
from ZODB.blob import FilesystemHelper
from ZODB.POSException import StorageTransactionError

from perdure.model.localsocket import stranger
from perdure.storage.commitlock import CommitLock
from perdure.storage.forking import Inherited, let_go_in_children, of_selector
from perdure.storage.place import Place
from perdure.storage.server import NAME

__all__ = ["Client"]

#: How long one call waits for a connection; who calls tries again for as long as it wants to.
_WAIT_SECONDS = 1.0

#: From one attempt to connect to the next, beside up to a second that ZEO adds by chance.
_POLL_SECONDS = 0.05


class Client(ClientStorage):
    """A ZEO client of the process that owns the file.

    `changed` is called in the thread of the connection when it is made and when it is lost.
    Its methods may be called from any thread.
    """

    def __init__(self, place: Place, changed: Callable[[], None]) -> None:
        self._told = changed
        self._oids: list[bytes] = []
        self.fshelper: Any = None
        #: The folder of the blobs, as the owner has it.
        self.blob_dir: str | None = None
        super().__init__(
            place.address(),
            storage=NAME,
            name=place.path,
            wait=False,
            wait_timeout=_WAIT_SECONDS,
            _client_factory=_Runner,
        )
        # Who waits for it goes on at the close, with whoever has the file then.
        self._commit_lock = CommitLock()

    def close(self) -> None:
        self._commit_lock.end()
        super().close()

    def wait_for_connection(self, timeout_seconds: float) -> bool:
        """Return whether it is connected, within that time."""
        try:
            self._wait(timeout_seconds)
        except ClientDisconnected:
            return False
        return True

    def connect_now(self) -> None:
        """Try at once to connect, since somebody listens."""
        self._server.connect_now()

    def notify_connected(self, connection: Any, info: dict[str, Any]) -> None:
        # Those that the owner before this one gave away: this one does not know of them.
        self._oids = []
        if info.get("blob_dir") and self.fshelper is None:
            self.blob_dir, self.shared_blob_dir = info["blob_dir"], True
            self.fshelper = FilesystemHelper(self.blob_dir)
        super().notify_connected(connection, info)
        # When it is so, which is after this call.
        asyncio.get_running_loop().call_soon(self._told)

    def notify_disconnected(self) -> None:
        self._iterator_gc(True)
        self._connection_generation += 1
        asyncio.get_running_loop().call_soon(self._told)

    @contextlib.contextmanager
    def _until_closed(self) -> Iterator[None]:
        # What uses the cache at the moment of the close finds it without its file.
        try:
            yield
        except (AttributeError, ValueError) as error:
            if not self._server.ended:
                raise
            raise ClientDisconnected("closed") from error

    def tpc_begin(self, transaction: Any, tid: bytes | None = None, status: str = " ") -> None:
        try:
            super().tpc_begin(transaction, tid, status)
        except ClientDisconnected:
            buffer = transaction.data(self)
            if buffer is not None:  # it was closed while this waited for its turn
                buffer.close()
                transaction.set_data(self, None)
            raise

    def loadBefore(self, oid: bytes, tid: bytes) -> Any:
        with self._until_closed():
            return super().loadBefore(oid, tid)

    def tpc_vote(self, transaction: Any) -> Any:
        with self._until_closed():
            return super().tpc_vote(transaction)

    def length_and_size(self) -> tuple[int, int]:
        """Return how many objects there are, and the size in bytes, as it is now."""
        info = self._call("get_info")
        return info["length"], info["size"]

    def tpc_abort(self, transaction: Any, timeout: float | None = None) -> None:
        # A server that is not connected has aborted it, so that there is nothing to wait for.
        super().tpc_abort(transaction, timeout=0)

    def tpc_finish(self, transaction: Any, f: Callable[[bytes], None] = lambda tid: None) -> Any:
        try:
            return super().tpc_finish(transaction, f)
        except StorageTransactionError as error:
            # The connection was lost and made again since the vote.
            raise ClientDisconnected("the connection was lost before the finish") from error


class _Loop(asyncio.SelectorEventLoop):
    """Connects to processes of this user only: what they send is unpickled."""

    async def create_unix_connection(  # type: ignore[override]
        self, factory: Any, path: str, **kwargs: Any
    ) -> Any:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)
            await self.sock_connect(connected, path)
            other = stranger(connected)
            if other is not None:
                what = f"process {other[0]} of the user with id {other[1]} answers"
                raise PermissionError(errno.EACCES, what, path)
        except BaseException:
            connected.close()
            raise
        return await super().create_unix_connection(factory, sock=connected, **kwargs)


class _Runner(ClientThread, Inherited):
    """The thread of a client's connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._guard = threading.Lock()
        self.ended = False
        self._selector = selectors.DefaultSelector()
        self.loop = _Loop(self._selector)
        let_go_in_children(self)
        super().__init__(*args, disconnect_poll=_POLL_SECONDS, **kwargs)

    def set_options(self, *args: Any, **kwargs: Any) -> None:
        # A server that fails a registration is about to end; the next one may be there soon.
        super().set_options(*args, register_failed_poll=_POLL_SECONDS, **kwargs)

    def setup_delegation(self, loop: asyncio.AbstractEventLoop) -> None:
        super().setup_delegation(loop)

        def io_call(coroutine: Any, wait: bool = True) -> Any:
            # Whatever gets into the loop before it is told to end is answered by that end; what
            # came later would never be.
            with self._guard:
                if self.ended:
                    coroutine.close()
                    raise ClientDisconnected("closed")
                future = run_coroutine_threadsafe(coroutine, loop)
            try:
                return future.result() if wait else future
            except AttributeError as error:
                if self.client.protocol is not None and self.client.operational:
                    raise
                raise ClientDisconnected("the connection is lost") from error
            finally:
                del future

        self.io_call = io_call

    @staticmethod
    def _io_call_after_closure(coroutine: Any, wait: bool = True) -> Any:
        coroutine.close()
        raise ClientDisconnected("closed")

    def connect_now(self) -> None:
        with self._guard:
            if not self.ended:
                self.loop.call_soon_threadsafe(self._connect_now)

    def _connect_now(self) -> None:
        # Only if it waits to try again. A connection that is being set up would be forgotten
        # otherwise, and stay open, and two would tell of the same commits.
        client = self.client
        at_it = client.protocol is not None or any(
            hasattr(each, "sm_protocol") and not each.closed for each in client.protocols
        )
        if not client.closed and not at_it:
            client.disconnected(None)

    def async_(self, method: str, *args: Any) -> None:
        with self._guard:
            if self.ended or not self.client.operational:
                raise ClientDisconnected("closed" if self.ended else "the connection is lost")
            self.loop.call_soon_threadsafe(self._send, method, args)

    def _send(self, method: str, args: tuple[Any, ...]) -> None:
        # Where the connection was lost meanwhile, the transaction fails at its next step.
        protocol = self.client.protocol
        if protocol is not None and not protocol.closed:
            protocol.call_async(method, args)

    def async_iter(self, messages: Any) -> None:
        with self._guard:
            if self.ended:
                raise ClientDisconnected("closed")
            super().async_iter(messages)

    def close(self) -> None:
        if not self.ended:
            # The base class calls once more, by way of this.
            self.io_call = self._last_call
        super().close()

    def _last_call(self, coroutine: Any, wait: bool = True) -> Any:
        with self._guard:
            self.ended = True
            future = run_coroutine_threadsafe(coroutine, self.loop)
        return future.result()

    def descriptors(self) -> Iterator[int]:
        yield from of_selector(self._selector)
