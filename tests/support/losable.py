"""Databases that are lost on command: a storage in memory, and a real server."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ClientDisconnected
from ZODB.MappingStorage import MappingStorage

from support.jobs import LIMIT_SECONDS

__all__ = ["LosableStorage", "Server"]


class LosableStorage(MappingStorage):
    """A storage in memory; while `away` is set, its calls raise as those of a lost server do.

    :param thread_names: only the calls from threads of these names; none: from all.
    """

    def __init__(self, *thread_names: str) -> None:
        super().__init__()
        self.away = threading.Event()
        self._thread_names = thread_names

    def _check(self) -> None:
        name = threading.current_thread().name
        if self.away.is_set() and (not self._thread_names or name in self._thread_names):
            raise ClientDisconnected("away")

    def lastTransaction(self) -> Any:  # noqa: N802
        self._check()
        return super().lastTransaction()

    def loadBefore(self, oid: bytes, tid: bytes) -> Any:  # noqa: N802
        self._check()
        return super().loadBefore(oid, tid)

    def tpc_begin(self, transaction: Any, tid: Any = None, status: str = " ") -> Any:
        self._check()
        return super().tpc_begin(transaction, tid)


class Server:
    """A ZEO server in a process of its own, on a socket in `folder`; begins stopped."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "zeo")
        self._file = str(folder / "data.fs")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._process is None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ZEO.runzeo", "-a", self.address, "-f", self._file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        """Kill it, if it runs, and wait for its end."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(LIMIT_SECONDS)

    def storage(self) -> Any:
        """Connect to it, once it answers."""
        return ClientStorage(self.address, wait_timeout=LIMIT_SECONDS)


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server, stopped at the end."""
    # The path of a socket has to be short.
    folder = Path(tempfile.mkdtemp(prefix="perdure-"))
    made = Server(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)
