"""Sockets between the processes and their server, whose connections can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any

_PIECE_BYTES = 65536


class Relays:
    """Passes bytes on, in both directions, from any number of sockets to one."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.AbstractServer] = []
        self._open: defaultdict[str, set[asyncio.StreamWriter]] = defaultdict(set)
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="relays", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def add(self, path: str) -> None:
        """Listen at a socket of that path."""

        async def listen() -> None:
            async def connected(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter
            ) -> None:
                task = asyncio.current_task()
                assert task is not None
                self._tasks.add(task)
                try:
                    await self._pass_on(path, reader, writer)
                finally:
                    self._tasks.discard(task)

            self._servers.append(await asyncio.start_unix_server(connected, path))

        self._call(listen())

    async def _pass_on(
        self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writers = {writer}
        try:
            with contextlib.suppress(OSError):
                there, to_server = await asyncio.open_unix_connection(self._target)
                writers.add(to_server)
                self._open[path] |= writers
                pumps = [
                    asyncio.ensure_future(_pump(reader, to_server)),
                    asyncio.ensure_future(_pump(there, writer)),
                ]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._open[path] -= writers
            for each in writers:
                each.transport.abort()

    def cut(self, path: str | None = None) -> int:
        """Cut the connections of one socket, or of all; return how many."""

        async def cut() -> int:
            paths = list(self._open) if path is None else [path]
            found = [writer for each in paths for writer in self._open[each]]
            for writer in found:
                writer.transport.abort()
            return len(found) // 2

        return int(self._call(cut()))

    def close(self) -> None:
        """Cut all, and listen no more."""

        async def close() -> None:
            for server in self._servers:
                server.close()
            for writers in self._open.values():
                for writer in writers:
                    writer.transport.abort()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await asyncio.sleep(0)

        self._call(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
