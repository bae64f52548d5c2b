"""The driver's own records: what was put, and what was done to the processes."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Books", "Deed"]


@dataclass(frozen=True, slots=True)
class Deed:
    """Something that was done to a process, when, by the clock that all of them share."""

    what: str
    pid: int
    at: float


@dataclass
class Books:
    """Kept in memory, and line by line in a file, for whoever looks into a failure."""

    path: Path
    acknowledged: dict[int, str] = field(default_factory=dict)
    """The numbers whose commit returned, with the kind of their work."""
    in_doubt: dict[int, str] = field(default_factory=dict)
    """Those whose commit raised."""
    deeds: list[Deed] = field(default_factory=list)
    identities: dict[int, str] = field(default_factory=dict)
    """The UUIDs of the workers' systems, by pid."""
    findings: list[str] = field(default_factory=list)
    """What was noticed on the way."""
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, what: str, **values: Any) -> None:
        """Write a line to the file."""
        with self._lock:
            line = {"at": time.monotonic(), "what": what, **values}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def did(self, what: str, pid: int = 0, **values: Any) -> None:
        """Note what is about to be done."""
        self.deeds.append(Deed(what, pid, time.monotonic()))
        self.counts[what] += 1
        self.write(what, pid=pid, **values)

    def found(self, text: str) -> None:
        """Note what must not be."""
        self.findings.append(text)
        self.write("found", text=text)

    def close(self) -> None:
        """Write no more."""
        self._file.close()
