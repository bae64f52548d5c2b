"""The control socket: by it, other processes of the same user ask a running system.

It is beside the identity file, whose lock says that the name is this process's. One thread
serves all who come, and waits for none of them: each has so much time to say what it wants,
and to take the answer. They are real clients in real time, so that these limits do not pass on
the system's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pykka

from perdure.actors import wire
from perdure.actors.execution import ExcInfo
from perdure.model import localsocket
from perdure.model.errors import PerdureError, UnknownMessageError
from perdure.model.incarnation import Incarnation
from perdure.model.logs import events, trace

__all__ = ["ControlServer", "socket_path"]

CLIENTS = 64
"""So many are attended to at a time; further ones wait to be let in."""

REQUEST_SECONDS = 5.0
ANSWER_SECONDS = 60.0
REPLY_SECONDS = 30.0
_ACCEPT_PAUSE_SECONDS = 0.5


def socket_path(incarnation: Incarnation) -> str:
    """Return where the control socket of a process is: beside its identity file."""
    # Behind the whole name: me.txt and me.dat are the identities of two processes.
    return f"{incarnation.path}.sock"


class ControlServer:
    """Hands what comes over the control socket to a system, and the answers back.

    :param incarnation: the process's, None where it has no identity file; the lock of that
        file is held from before `start` until after `stop`.
    :param send: called with the future for an answer, and a message, in the server's thread;
        must not block or raise.
    """

    def __init__(
        self,
        incarnation: Incarnation | None,
        send: Callable[[pykka.Future[Any], object], None],
    ) -> None:
        self._incarnation = incarnation
        self._send = send
        self._process = os.getpid()
        self._stopping = asyncio.Event()
        self._running = contextlib.ExitStack()

    def start(self) -> None:
        """Listen from now on. Where that is not possible a warning is logged, and no more."""
        # A simulated process has no file.
        if self._incarnation is None or not self._incarnation.path:
            return
        try:
            with contextlib.ExitStack() as stack:
                listener = localsocket.LocalListener(socket_path(self._incarnation))
                stack.callback(listener.close)
                loop = asyncio.SelectorEventLoop()
                stack.callback(loop.close)
                serve = self._serve(listener, self._incarnation.token)
                stack.callback(serve.close)
                thread = threading.Thread(
                    target=loop.run_until_complete, args=(serve,), name="control", daemon=True
                )
                thread.start()
                stack.callback(thread.join)
                stack.callback(loop.call_soon_threadsafe, self._stopping.set)
                self._running = stack.pop_all()
        # OSError: no such socket here; RuntimeError: no thread.
        except (OSError, RuntimeError) as error:
            events.warning(
                "there is no control socket at %s (%s): other processes, and so the commands "
                "that show what runs here, cannot ask this one; its jobs are run all the same",
                socket_path(self._incarnation), error,
            )  # fmt: skip

    def stop(self) -> None:
        """Leave: no thread, client or socket is left; may be repeated, and before `start`.

        In a forked child it does nothing: the socket is its parent's.
        """
        if os.getpid() == self._process:
            self._running.close()

    # In the server's thread

    async def _serve(self, listener: localsocket.LocalListener, token: str) -> None:
        loop = asyncio.get_running_loop()
        attended: set[asyncio.Task[None]] = set()
        told = False

        def let_in() -> None:
            nonlocal told
            # Not by a task that waits for it: cancelled, that could lose a client.
            try:
                client = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Too many open files, say: who waits is let in when there is room.
                if not told:
                    events.warning("nobody can be let in at the control socket: %s", error)
                told = True
                loop.remove_reader(listener.socket)
                loop.call_later(_ACCEPT_PAUSE_SECONDS, loop.add_reader, listener.socket, let_in)
                return
            told = False
            task = loop.create_task(self._attend(client, token))
            attended.add(task)
            task.add_done_callback(functools.partial(left, client))
            if len(attended) >= CLIENTS:
                loop.remove_reader(listener.socket)

        def left(client: socket.socket, task: asyncio.Task[None]) -> None:
            attended.remove(task)
            localsocket.close(client)
            if not self._stopping.is_set():
                loop.add_reader(listener.socket, let_in)

        loop.add_reader(listener.socket, let_in)
        await self._stopping.wait()
        loop.remove_reader(listener.socket)
        for task in attended:
            task.cancel()
        if attended:
            await asyncio.wait(set(attended))

    async def _attend(self, client: socket.socket, token: str) -> None:
        """Serve one client, whatever it does."""
        try:
            if not _is_ours(client):
                return
            async with asyncio.timeout(REQUEST_SECONDS):
                body = await _receive(client)
            reply = (
                wire.other_version() if body is None else await self._reply(client, token, body)
            )
            async with asyncio.timeout(REPLY_SECONDS):
                await asyncio.get_running_loop().sock_sendall(client, reply)
            # Seen by the client also where a child has a copy of the socket.
            client.shutdown(socket.SHUT_RDWR)
        except (OSError, EOFError, wire.WireError) as error:
            trace.debug("a client of the control socket was left: %r", error)
        # Whatever it is, it is one client's.
        except Exception:
            events.error("a client of the control socket could not be served", exc_info=True)

    async def _reply(self, client: socket.socket, token: str, body: bytes) -> bytes:
        try:
            meant, message = wire.read_question(body)
        except UnknownMessageError as error:
            return wire.failure(error)
        if meant != token:
            return wire.other_start()
        reply = _Reply()
        self._send(reply, message)
        gone = asyncio.create_task(_until_gone(client))
        either: set[asyncio.Future[Any]] = {reply.outcome, gone}
        try:
            await asyncio.wait(either, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Awaited, or it would be there still when the number of its socket is another's.
            gone.cancel()
            await asyncio.wait({gone})
        if reply.outcome.done():
            return _frame(*reply.outcome.result())
        if not gone.cancelled():
            raise EOFError("it has gone, or did not wait for its answer")
        kind = type(message).__qualname__
        return wire.failure(TimeoutError(f"no answer to {kind} within {ANSWER_SECONDS:.0f} s"))


class _Reply(pykka.Future[Any]):
    """A future for an actor's answer, which the server's thread waits for."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[tuple[Any, BaseException | None]] = self._loop.create_future()

    def set(self, value: Any = None) -> None:
        self._hand_over(value, None)

    def set_exception(self, exc_info: ExcInfo | None = None) -> None:
        assert exc_info is not None
        self._hand_over(None, exc_info[1])

    def _hand_over(self, value: Any, error: BaseException | None) -> None:
        # RuntimeError: the server has been stopped, and nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._settle, value, error)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result((value, error))


def _frame(value: Any, error: BaseException | None) -> bytes:
    if error is None:
        return wire.answer(value)
    if isinstance(error, pykka.ActorDeadError):
        error = PerdureError("the system does not answer any more: it stops, or is broken")
    return wire.failure(error)


def _is_ours(client: socket.socket) -> bool:
    other = localsocket.stranger(client)
    if other is None:
        return True
    events.warning("process %d of the user with id %d was refused at the control socket", *other)
    return False


async def _receive(client: socket.socket) -> bytes | None:
    """Return what follows the header; None for the frame of another version."""
    try:
        length = wire.read_header(await _read(client, wire.HEADER_BYTES))
    except wire.OtherVersionError:
        return None
    if length > wire.LONGEST_QUESTION:
        raise wire.MalformedError(f"no question is {length} bytes long")
    return await _read(client, length)


async def _read(client: socket.socket, length: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < length:
        more = await loop.sock_recv(client, length - len(data))
        if not more:
            raise EOFError(f"it left after {len(data)} of {length} bytes")
        data += more
    return bytes(data)


async def _until_gone(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_recv(client, 1)
