"""What the storage itself can do, measured beside each workload."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transaction
import ZODB
from persistent.mapping import PersistentMapping
from ZODB.FileStorage import FileStorage

from benchmarks.processes import server
from benchmarks.workload import GROUPED, SMALL, ZEO
from perdure.storage import open_database

__all__ = ["measured"]

GROUP = 32


def _changes(database: Any, seconds: float, group: int) -> float:
    """How many small objects one thread changes in a second, with so many in each commit."""
    manager = transaction.TransactionManager()
    connection = database.open(transaction_manager=manager)
    root = connection.root()
    root["limits"] = [PersistentMapping(n=0) for _ in range(group)]
    manager.commit()
    objects = root["limits"]
    commits = 0
    begun = time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds:
        for each in objects:
            each["n"] = commits
        manager.commit()
        commits += 1
    connection.close()
    return commits * group / passed


def _on_file(group: int) -> Callable[[Path, float], float]:
    def measure(folder: Path, seconds: float) -> float:
        # What the database of a system is opened with costs a little more: see `sharing`.
        with contextlib.closing(ZODB.DB(FileStorage(str(folder / "limit.fs")))) as database:
            return _changes(database, seconds, group)

    return measure


def _on_server(folder: Path, seconds: float) -> float:
    with server(folder) as uri, contextlib.closing(open_database(uri)) as database:
        return _changes(database, seconds, 1)


_LIMITS = {SMALL: _on_file(1), GROUPED: _on_file(GROUP), ZEO: _on_server}


def measured(names: Sequence[str], folder: Path, *, quick: bool = False) -> dict[str, float]:
    """Measure these limits, on the disk of `folder`, each for a second."""
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            found[name] = _LIMITS[name](Path(own), 0.1 if quick else 1.0)
    return found
