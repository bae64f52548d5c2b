"""What the peers' programs have in common."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from benchmarks.delays import between, put_now_and_then

__all__ = ["ADD", "Rows", "append", "main", "starts", "wait_until"]

LINE = b"." * 19 + b"\n"
ADD = "insert into rows values (:number, 1) on conflict (number) do update set value = value + 1"
"""What a job does that has an effect: add one to a row of its own."""

LIMIT_SECONDS = 1_500
PAUSE_SECONDS = 0.05
"""Long, since who looks into a database of SQLite keeps its writers waiting."""
_log = -1


def append(path: str) -> None:
    """What jobs do: append 20 bytes to a log, without a flush."""
    global _log
    if _log < 0:
        _log = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(_log, LINE)


def starts(
    begun: Mapping[int, float], put: Callable[[int], object], number: int
) -> dict[str, float]:
    """Put a job now and then; how soon each is begun, which it notes in `begun`."""
    returned = put_now_and_then(put, number)
    wait_until(lambda: len(begun) > number, f"of {number + 1} jobs {len(begun)} are begun")
    return between(returned, begun)


class Rows:
    """The application's database, in SQLite with fsync: a row for each job.

    A connection for each thread, as SQLite wants it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        connection = self._connection()
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table rows (number integer primary key, value integer)")

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            connection = sqlite3.connect(self._path, timeout=60, isolation_level=None)
            connection.execute("pragma synchronous=full")
            self._local.connection = connection
        found: sqlite3.Connection = self._local.connection
        return found

    def add(self, number: int) -> None:
        """Add one to the row of this number, in a transaction of its own."""
        self._connection().execute(ADD, {"number": number})

    def check(self, number: int) -> None:
        """Raise an error unless each of so many rows has a one."""
        found = self._connection().execute("select count(*) from rows where value = 1").fetchone()
        if found != (number,):
            raise AssertionError(f"of {number} rows {found[0]} have a one")


def wait_until(look: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    until = time.monotonic() + LIMIT_SECONDS
    while not look():
        if time.monotonic() > until:
            raise TimeoutError(what)
        threading.Event().wait(PAUSE_SECONDS)


def main(
    distribution: str,
    conditions: str,
    operations: Mapping[str, Callable[[int, Path], float | Mapping[str, float]]],
) -> None:
    """Run the operation that the command line names; print its rate, or its figures."""
    operation, jobs, folder = sys.argv[1:]
    found = operations[operation](int(jobs), Path(folder))
    values = found if isinstance(found, Mapping) else {"": found}
    told = f"{distribution} {version(distribution)}, {int(jobs):,} jobs, {conditions}"
    print(json.dumps({"values": values, "conditions": told}), flush=True)
    # Without waiting for threads that are in no hurry to end.
    os._exit(0)
