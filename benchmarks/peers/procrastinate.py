"""Procrastinate, on the PostgreSQL server that PERDURE_BENCHMARKS_POSTGRES names.

    PERDURE_BENCHMARKS_POSTGRES=postgresql:///scratch \\
        python -m benchmarks.peers.procrastinate drain 500 FOLDER

Its tables are made anew in that database, so that it has to be one to throw away.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psycopg
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

from benchmarks.peers.common import Rows, append, main

WORKERS = 4
VARIABLE = "PERDURE_BENCHMARKS_POSTGRES"

_rows: list[Rows] = []
app = App(connector=PsycopgConnector(conninfo=os.environ.get(VARIABLE, "")))
note = app.task(append, name="note")


@app.task(name="add")
def add(index: int) -> None:
    _rows[0].add(index)


def _connected() -> App:
    with psycopg.connect(os.environ[VARIABLE], autocommit=True) as connection:
        connection.execute("drop schema public cascade; create schema public")
    connector = SyncPsycopgConnector(conninfo=os.environ[VARIABLE])
    putting = app.with_connector(connector)
    putting.open()
    putting.schema_manager.apply_schema()
    return putting


def put(number: int, folder: Path) -> float:
    """Put jobs, one after the other."""
    with _connected() as putting:
        task = putting.tasks["note"]
        begun = time.perf_counter()
        for _ in range(number):
            task.defer(path=str(folder / "log"))
        return number / (time.perf_counter() - begun)


def drain(number: int, folder: Path) -> float:
    """Do jobs that append to a log."""
    with _connected() as putting:
        for _ in range(number):
            putting.tasks["note"].defer(path=str(folder / "log"))
    return _drained(number)


def count(number: int, folder: Path) -> float:
    """Do jobs that write a row each; at least once, if the process is killed."""
    _rows.append(Rows(folder / "application.db"))
    with _connected() as putting:
        for index in range(number):
            putting.tasks["add"].defer(index=index)
    rate = _drained(number)
    _rows[0].check(number)
    return rate


def _drained(number: int) -> float:
    begun = time.perf_counter()
    app.run_worker(wait=False, concurrency=WORKERS, install_signal_handlers=False)
    passed = time.perf_counter() - begun
    with psycopg.connect(os.environ[VARIABLE]) as connection:
        found = connection.execute(
            "select count(*) from procrastinate_jobs where status = 'succeeded'"
        ).fetchone()
    if found != (number,):
        raise AssertionError(f"of {number} jobs {found} have succeeded")
    return number / passed


if __name__ == "__main__":
    if not os.environ.get(VARIABLE):
        sys.exit(
            f"set {VARIABLE} to a database of PostgreSQL to throw away, whose schema public is "
            "dropped: postgresql:///scratch"
        )
    main(
        "procrastinate",
        f"PostgreSQL, one worker with {WORKERS} at once",
        {"put": put, "drain": drain, "count": count},
    )
