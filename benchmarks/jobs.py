"""What the jobs of the workloads do: as little as can be seen from outside."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from persistent import Persistent

__all__ = [
    "LOG",
    "Counter",
    "beginnings",
    "idle",
    "is_noted_by",
    "log_to",
    "note",
    "note_moment",
    "noted",
    "pause",
    "stop_logging",
]

LOG = "PERDURE_BENCHMARKS_LOG"
"""The variable that names the file to which the jobs of a process write."""

LINE = b"." * 19 + b"\n"
_PAUSE_SECONDS = 0.005

_log: tuple[str, int] | None = None


def log_to(path: Path) -> None:
    """Let the jobs of this process, and of those that it starts, write to a file."""
    path.touch()
    os.environ[LOG] = str(path)


def stop_logging() -> None:
    """Close the log of this process, and name none any more; harmless when repeated."""
    global _log
    os.environ.pop(LOG, None)
    if _log is not None:
        os.close(_log[1])
        _log = None


def _write(line: bytes) -> None:
    global _log
    path = os.environ[LOG]
    if _log is None or _log[0] != path:
        if _log is not None:
            os.close(_log[1])
        _log = path, os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(_log[1], line)


def note() -> None:
    """Append 20 bytes to the log, without a flush."""
    _write(LINE)


def note_moment(number: int = 0) -> None:
    """Append to the log which process has begun this job, and when."""
    _write(b"%d %d %.9f\n" % (number, os.getpid(), time.monotonic()))


def is_noted_by(job: object) -> bool:
    """A filter of an agent: take nothing but `note`."""
    return getattr(job, "callable_name", "") == f"{__name__}:note"


def pause(seconds: float) -> None:
    """Wait for so long, without the processor; not at all for 0."""
    if seconds:
        threading.Event().wait(seconds)


def idle() -> None:
    """Do nothing at all; a job that waits for something that does not come."""


def noted(path: Path) -> int:
    """How often `note` was called."""
    return os.path.getsize(path) // len(LINE)


def beginnings(path: Path) -> list[tuple[int, int, float]]:
    """The numbers, processes and moments that `note_moment` wrote."""
    lines = [line.split() for line in path.read_text().splitlines(keepends=True) if "\n" in line]
    return [(int(number), int(pid), float(moment)) for number, pid, moment in lines]


class Counter(Persistent):
    """Something of an application's that jobs change."""

    value = 0

    def add(self) -> None:
        """Add one."""
        self.value += 1

    def hold(self, number: int, end: str) -> None:
        """Say that it is begun, wait until there is a file of the name `end`, and add one."""
        note_moment(number)
        while not os.path.exists(end):
            threading.Event().wait(_PAUSE_SECONDS)
        self.value += 1
