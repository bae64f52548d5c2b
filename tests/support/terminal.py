"""The first of two terminals of a page: a command that goes on while others are typed."""

from __future__ import annotations

import doctest
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping

__all__ = ["Terminal"]

#: Far beyond what any command of the docs takes to print something, or to end.
LIMIT_SECONDS = 120


class Terminal:
    """Runs one command in the background, and compares what it prints with what it should."""

    def __init__(self, environment: Callable[[], Mapping[str, str]], flags: int) -> None:
        self._environment = environment
        self._flags = flags
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._printed = ""
        self._ended = False
        self._changed = threading.Condition()

    def type(self, block: str) -> str | None:
        """Start the command of a block ``$ command``, or end it by one that begins with ``^C``.

        The lines below are what it prints from then on. Returns what went wrong, or None.
        """
        first, _, expected = block.partition("\n")
        if first == "^C":
            return self._interrupt(expected)
        if not first.startswith("$ "):
            return f"a block of the first terminal begins with `$ ` or `^C`: {block!r}"
        if self._process is not None:
            return f"the first terminal is still busy: {block!r}"
        return self._start(first[2:], expected)

    def _start(self, command: str, expected: str) -> str | None:
        self._printed, self._ended = "", False
        self._process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment(),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self._wait_for(command, expected)

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._printed += line
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait_for(self, command: str, expected: str) -> str | None:
        """Wait until what was printed is what was expected; then it is printed no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._is_like(expected), LIMIT_SECONDS)
            if not self._is_like(expected):
                return f"{command}\nexpected:\n{expected}\nprinted:\n{self._printed}"
            self._printed = ""
        return None

    def _is_like(self, expected: str) -> bool:
        return doctest.OutputChecker().check_output(expected, self._printed, self._flags)

    def _interrupt(self, expected: str) -> str | None:
        process, self._process = self._process, None
        if process is None:
            return "^C: nothing runs in the first terminal"
        os.kill(process.pid, signal.SIGINT)
        status = self._end(process)
        if status != 0:
            return f"^C: status {status}\n{self._printed}"
        return self._wait_for("^C", expected)

    def _end(self, process: subprocess.Popen[str]) -> int:
        assert self._reader is not None and process.stdout is not None
        try:
            return process.wait(LIMIT_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            self._reader.join(LIMIT_SECONDS)
            process.stdout.close()

    def close(self) -> None:
        """End what still runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            self._end(process)
