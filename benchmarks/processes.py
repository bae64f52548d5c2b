"""The processes that some workloads start, each known by its pipes and ended by its id."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.workload import WrongError

__all__ = ["ROOT", "Process", "runner", "server", "wait_for", "worker"]

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 600.0
_PAUSE_SECONDS = 0.002

T = TypeVar("T")


def wait_for(
    look: Callable[[], T], what: str, limit: float = LIMIT_SECONDS, pause: float = _PAUSE_SECONDS
) -> T:
    """Look until something true is seen, and return it."""
    until = time.monotonic() + limit
    while not (found := look()):
        if time.monotonic() > until:
            raise WrongError(f"{what}: not within {limit:.0f} s")
        threading.Event().wait(pause)
    return found


class Process:
    """A module that is run by this interpreter, with what it says on its standard error.

    Its standard input is a pipe, and what it prints is read by `line`.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, name: str) -> None:
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.begun = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path),
                "PERDURE_UUID": str(folder / f"{name}.uuid"),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._said: list[tuple[float, str]] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append((time.monotonic(), line.rstrip()))

    def said(self, text: str) -> float:
        """Wait until it says this on its standard error; when that was."""

        def look() -> float:
            found = next((moment for moment, line in self._said if text in line), 0.0)
            return found or self._lives()

        return wait_for(look, f"process {self.pid} does not say {text!r}")

    def _lives(self) -> float:
        if self._process.poll() is not None:
            self._listener.join()
            last = " / ".join(line for _, line in self._said[-3:])
            raise WrongError(f"process {self.pid} ended ({self._process.returncode}): {last}")
        return 0.0

    def tell(self, line: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def line(self) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(LIMIT_SECONDS)
            self._lives()
        return line.strip()

    def kill(self) -> float:
        """End it by SIGKILL; harmless when repeated. Returns when that was."""
        moment = time.monotonic()
        self._process.kill()
        self._close()
        return moment

    def end(self) -> None:
        """Let it come to its end: by the end of its input, or SIGTERM."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.terminate()
        self._close()

    def finish(self) -> None:
        """Let it come to its end by the end of its input."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._close()

    def _close(self) -> None:
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """A ZEO server on a file in `folder`, at a socket; the URI for its clients."""
    address = folder / "zeo"
    arguments = ["perdure.server", "-a", str(address), "-f", str(folder / "server.fs")]
    process = Process(arguments, folder, "server")
    try:
        wait_for(lambda: address.exists() or process._lives(), "the ZEO server does not start")
        yield f"zeo://{address}?wait_timeout=60"
    finally:
        process.end()


@contextlib.contextmanager
def worker(uri: str, folder: Path, name: str) -> Iterator[Process]:
    """A process that runs jobs when it is told to, see `worker`; it is ready when this returns."""
    process = Process(["benchmarks.worker", uri], folder, name)
    try:
        if process.line() != "ready":
            raise WrongError(f"process {process.pid} is not ready")
        yield process
        process.finish()
    finally:
        process.kill()


@contextlib.contextmanager
def runner(path: Path, name: str, size: int = 4) -> Iterator[Process]:
    """`perdure run`, with so many jobs of the default queue at once."""
    arguments = ["perdure.cli", "run", "--db", str(path), "--queue", f":{size}"]
    process = Process(arguments, path.parent, name)
    try:
        yield process
        process.end()
    finally:
        process.kill()
