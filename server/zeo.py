"""ZEO's server, with the end of a client's commit seen to.

ZEO gives the storage to one client at a time, from its vote to its finish. A client that is
suspended in between keeps it. ZEO's `transaction-timeout` closes the connection of such a
client, but the session behind the connection never hears of that: the storage stays locked
until the server is restarted. Here a connection that is closed, by whomever, ends its session,
whose transaction is aborted; and there always is a time limit.

Clients fetch object ids in advance. A server that was killed knows only those that were
committed, and would hand out the others once more, to another client; commits of both would
fail then. Here a server begins far behind the last id that it knows.

ZEO ends by an exception that the handler of a signal raises, wherever the server is just then,
be it half-way through a commit. And it is called only when the server goes on: a signal that
comes in the instant in which the server begins to wait for its clients is not seen before one
of them says something. Here the loop is woken by a signal, and ends between two of its steps.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType
from typing import Any

from ZEO.asyncio.server import Acceptor, ServerProtocol
from ZEO.runzeo import ZEOOptions, ZEOServer
from ZEO.StorageServer import StorageServer, ZEOStorage
from ZODB.POSException import StorageTransactionError
from ZODB.utils import p64, u64

from perdure.storage.session import Session

__all__ = ["COMMIT_LIMIT", "Server", "main"]

COMMIT_LIMIT = timedelta(seconds=10)
"""How long a client may take from its vote to its finish, unless the server is told otherwise."""

_UNREAD_KEPT_SECONDS = 1.0

_IDS_PASSED_OVER = 100_000
"""A client fetches a hundred at a time."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""Those that ZEO's program has handlers for."""


class Server(StorageServer):
    """ZEO's `StorageServer`; takes the same arguments, with a limit for commits by default.

    Its loop is run by `loop`, in the calling thread, or by `start_thread`.
    """

    def __init__(self, addr: Any, storages: Any, **settings: Any) -> None:
        if settings.get("transaction_timeout") is None:
            settings["transaction_timeout"] = COMMIT_LIMIT.total_seconds()
        for storage in storages.values():
            _pass_over_ids(storage)
        super().__init__(addr, storages, Acceptor=_Acceptor, **settings)

    def create_client_handler(self) -> ZEOStorage:
        return _Session(self, self.read_only)

    def end_sessions(self) -> None:
        """Abort what clients are committing, and keep threads from changing the files.

        To be called when the loop has ended, before `close`; nothing can be done after it.
        """
        for sessions in self.zeo_storages_by_storage_id.values():
            for each in list(sessions):
                each.notify_disconnected()
        for storage in self.storages.values():
            # A pack has them while it puts the new file in the place of the old one and saves
            # its index, which must not be left half-way, nor meet the close.
            for name in ("_commit_lock", "_lock"):
                if hasattr(storage, name):
                    getattr(storage, name).acquire()


def _pass_over_ids(storage: Any) -> None:
    # Not every kind of storage counts its ids, and is served for writing.
    if hasattr(storage, "set_max_oid") and not storage.isReadOnly():
        storage.set_max_oid(p64(u64(storage.new_oid()) + _IDS_PASSED_OVER))


class _Session(Session):
    """What one client is served."""

    def tpc_finish(self, id: int) -> Any:
        # The base class answers a finish without a transaction as if it had taken place.
        self._check_tid(id, exc=StorageTransactionError)
        return super().tpc_finish(id)


class _Connection(ServerProtocol):
    """The connection of one client."""

    _transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        super().connection_made(transport)

    def close(self) -> None:
        """Close it, and end the session, which aborts its transaction."""
        session = self.zeo_storage
        super().close()
        if session is not None:
            session.notify_disconnected()
        if self._transport is not None:
            # A client that reads nothing would keep it open.
            self.loop.call_later(_UNREAD_KEPT_SECONDS, self._transport.abort)


class _Acceptor(Acceptor):
    def factory(self) -> ServerProtocol:
        session = self.storage_server.create_client_handler()
        return _Connection(self.event_loop, self.addr, session, self.msgpack)


class _Program(ZEOServer):
    _ends = False

    def open_storages(self) -> None:
        # A large file takes long to open, and who is the first process of a container hears
        # of no signal that it has no handler for.
        self.setup_signals()
        super().open_storages()

    def create_server(self) -> None:
        options = self.options
        self.server = Server(
            options.address,
            self.storages,
            read_only=options.read_only,
            client_conflict_resolution=options.client_conflict_resolution,
            msgpack=bool(options.msgpack),
            invalidation_queue_size=options.invalidation_queue_size,
            invalidation_age=options.invalidation_age,
            transaction_timeout=options.transaction_timeout,
            ssl=options.ssl,
        )

    def loop_forever(self) -> None:
        loop = self.server.acceptor.event_loop
        for number in _SIGNALS:
            loop.add_signal_handler(number, getattr(self, f"handle_{number.name.lower()}"))
            if number != signal.SIGUSR2:
                # The loop is woken all the same.
                signal.signal(number, self._note)
        super().loop_forever()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._ends:
            # The loop, or the close, is at a step that takes too long for who sent it.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._ends = True

    def close_server(self) -> None:
        if self.server is not None:
            self.server.end_sessions()
        super().close_server()


def main(args: Sequence[str] | None = None) -> None:
    """Run the server until a signal ends it; in the main thread.

    `args` are the options of ZEO's ``runzeo``, None for those of this process, such as
    ``["-a", "127.0.0.1:8100", "-f", "app.fs"]``. ``--timeout SECONDS`` sets another limit
    for commits than `COMMIT_LIMIT`. Ends with `SystemExit` after bad options and signals. The
    second signal ends the process at once, as SIGKILL would.
    """
    options = ZEOOptions()
    options.realize(None if args is None else list(args))
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        _Program(options).main()
    finally:
        # Whoever has called this goes on after bad options, say, and hears of signals again.
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
