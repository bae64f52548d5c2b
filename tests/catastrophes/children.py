"""Processes that the driver and the tests start, suspend, kill, and wait for.

Each ends by itself when whoever has started it is gone: its standard input ends then.
"""

from __future__ import annotations

import os
import queue
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

#: Far beyond what is needed, on a machine that is busy.
LIMIT_SECONDS = 60.0


class Child:
    """A Python process that runs a module of ours and says lines on its standard output."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        log: Path,
        environ: Mapping[str, str] | None = None,
        on_end: Callable[[Child], None] = lambda child: None,
    ) -> None:
        path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **(environ or {}), "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.suspended = False
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._kept: list[str] = []
        self._on_end = on_end
        self._reader = threading.Thread(target=self._read, name=f"reads {module}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())
        self.process.wait()
        self._lines.put(None)
        self._on_end(self)

    def line(
        self, first_word: str | tuple[str, ...] = "", limit_seconds: float = LIMIT_SECONDS
    ) -> str:
        """Return the next line that begins so; '' where the process has ended without one.

        The lines before it are kept, for those who ask for them.
        """
        for line in self._kept:
            if line.startswith(first_word):
                self._kept.remove(line)
                return line
        while True:
            try:
                found = self._lines.get(timeout=limit_seconds)
            except queue.Empty:
                raise AssertionError(f"no line {first_word!r} from process {self.pid}") from None
            if found is None:
                self._lines.put(None)
                return ""
            if found.startswith(first_word):
                return found
            self._kept.append(found)

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            pass  # it has ended, or was closed

    def signal(self, number: int) -> None:
        """Send a signal, where it has not ended."""
        # Popen knows whether its pid may be another's by now.
        self.process.send_signal(number)

    def suspend(self) -> None:
        """Stop it where it is, and return when it has stopped."""
        self.suspended = True
        self.signal(signal.SIGSTOP)
        self.wait_until_suspended()

    def wait_until_suspended(self) -> None:
        """Return when it has stopped, by whomever, or ended."""
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on."""
        self.suspended = False
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, and return when it has ended."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """Ask it to end."""
        self.signal(signal.SIGTERM)

    def wait(self, limit_seconds: float = LIMIT_SECONDS) -> int:
        """Return its status, when it has ended."""
        return self.process.wait(limit_seconds)

    def limit_file_size(self, limit_bytes: int | None) -> None:
        """Let no file of its grow beyond that; None: let them grow again."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        soft = hard if limit_bytes is None else limit_bytes
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (soft, hard))

    def close(self) -> None:
        """End it, whatever it is doing, and let go of what belongs to it."""
        if not self.ended:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout, self._log):
            try:
                if stream is not None:
                    stream.close()
            except OSError:
                pass  # what was to be written to it is of no use any more


def end_with_starter(commands: Callable[[str], None] = lambda line: None) -> None:
    """In a child: take commands from standard input, and end the process when that ends."""

    def read() -> None:
        for line in sys.stdin:
            commands(line.strip())
        os._exit(3)

    threading.Thread(target=read, name="commands", daemon=True).start()


def say(text: str) -> None:
    """In a child: write a line to standard output, from whatever thread."""
    os.write(1, f"{text}\n".encode())
