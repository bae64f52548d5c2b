"""Procrastinate, on the PostgreSQL server that PERDURE_BENCHMARKS_POSTGRES names.

    PERDURE_BENCHMARKS_POSTGRES=postgresql:///scratch \\
        python -m benchmarks.peers.procrastinate drain 500 FOLDER

Its tables are made anew in that database, so that it has to be one to throw away.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from procrastinate import App, PsycopgConnector

from benchmarks.peers.common import Rows, append, main
from benchmarks.peers.outside import POSTGRES

WORKERS = 4

_rows: list[Rows] = []
app = App(connector=PsycopgConnector(conninfo=os.environ.get(POSTGRES, "")))
note = app.task(append, name="note")


@app.task(name="add")
def add(index: int) -> None:
    _rows[0].add(index)


@contextlib.contextmanager
def _putting() -> Iterator[None]:
    with psycopg.connect(os.environ[POSTGRES], autocommit=True) as connection:
        connection.execute("drop schema public cascade; create schema public")
    with app.open():
        app.schema_manager.apply_schema()
        yield


def put(number: int, folder: Path) -> float:
    """Put jobs, one after the other."""
    with _putting():
        begun = time.perf_counter()
        for _ in range(number):
            note.defer(path=str(folder / "log"))
        return number / (time.perf_counter() - begun)


def drain(number: int, folder: Path) -> float:
    """Do jobs that append to a log."""
    with _putting():
        for _ in range(number):
            note.defer(path=str(folder / "log"))
    return _drained(number)


def count(number: int, folder: Path) -> float:
    """Do jobs that write a row each; at least once, if the process is killed."""
    _rows.append(Rows(folder / "application.db"))
    with _putting():
        for index in range(number):
            add.defer(index=index)
    rate = _drained(number)
    _rows[0].check(number)
    return rate


def _drained(number: int) -> float:
    begun = time.perf_counter()
    app.run_worker(wait=False, concurrency=WORKERS, install_signal_handlers=False)
    passed = time.perf_counter() - begun
    with psycopg.connect(os.environ[POSTGRES]) as connection:
        found = connection.execute(
            "select count(*) from procrastinate_jobs where status = 'succeeded'"
        ).fetchone()
    if found != (number,):
        raise AssertionError(f"of {number} jobs {found} have succeeded")
    return number / passed


if __name__ == "__main__":
    main(
        "procrastinate",
        f"PostgreSQL, one worker with {WORKERS} at once",
        {"put": put, "drain": drain, "count": count},
    )
