"""Huey, with its SQLite storage as it is by default: a write-ahead log, and fsync.

python -m benchmarks.peers.huey drain 2000 FOLDER
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from huey import SqliteHuey
from huey.signals import SIGNAL_COMPLETE, SIGNAL_ERROR

from benchmarks.peers.common import Rows, append, main, starts, wait_until

WORKERS = 4


def _huey(folder: Path) -> SqliteHuey:
    return SqliteHuey("benchmarks", filename=str(folder / "huey.db"))


def put(number: int, folder: Path) -> float:
    """Put jobs, one after the other."""
    task = _huey(folder).task()(append)
    begun = time.perf_counter()
    for _ in range(number):
        task(str(folder / "log"))
    return number / (time.perf_counter() - begun)


def drain(number: int, folder: Path) -> float:
    """Do jobs that append to a log."""
    huey = _huey(folder)
    task = huey.task()(append)
    for _ in range(number):
        task(str(folder / "log"))
    return _drained(huey, number)


def count(number: int, folder: Path) -> float:
    """Do jobs that write a row each; at most once, if the process is killed."""
    huey, rows = _huey(folder), Rows(folder / "application.db")

    @huey.task()
    def add(index: int) -> None:
        rows.add(index)

    for index in range(number):
        add(index)
    rate = _drained(huey, number)
    rows.check(number)
    return rate


def start(number: int, folder: Path) -> dict[str, float]:
    """Put a job every 50 ms, while the consumer runs as it does by default."""
    huey = _huey(folder)
    begun: dict[int, float] = {}

    @huey.task()
    def note(index: int) -> None:
        begun[index] = time.monotonic()

    huey.create_consumer(workers=WORKERS, worker_type="thread", periodic=False).start()
    return starts(begun, note, number)


def _drained(huey: SqliteHuey, number: int) -> float:
    ended: list[object] = []
    done = threading.Event()

    @huey.signal(SIGNAL_COMPLETE, SIGNAL_ERROR)
    def end(signal: str, task: object, error: object = None) -> None:
        ended.append(signal)
        if len(ended) >= number:
            done.set()

    consumer = huey.create_consumer(workers=WORKERS, worker_type="thread", periodic=False)
    begun = time.perf_counter()
    consumer.start()
    wait_until(done.is_set, f"of {number} jobs {len(ended)} are done")
    passed = time.perf_counter() - begun
    if {*ended} != {SIGNAL_COMPLETE}:
        raise AssertionError(f"some of {number} jobs have failed")
    return number / passed


if __name__ == "__main__":
    main(
        "huey",
        f"SQLite with its defaults (write-ahead log, fsync), {WORKERS} worker threads",
        {"put": put, "drain": drain, "count": count, "start": start},
    )
