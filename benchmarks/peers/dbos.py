"""DBOS, on SQLite as it is by default: a rollback journal, and fsync.

python -m benchmarks.peers.dbos drain 500 FOLDER
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path

from dbos import DBOS, DBOSConfig, SQLAlchemyDatasource
from sqlalchemy import text

from benchmarks.peers.common import ADD, Rows, append, main, starts, wait_until

WORKERS = 4
POLLING_SECONDS = 0.01
QUEUE = "benchmarks"
_began: list[float] = []
_may_begin = threading.Event()
_datasources: list[SQLAlchemyDatasource] = []
_moments: dict[int, float] = {}


@DBOS.workflow()
def note(path: str) -> None:
    append(path)


@DBOS.workflow()
def note_moment(index: int) -> None:
    _moments[index] = time.monotonic()


@DBOS.workflow()
def add(index: int) -> None:
    # Its completion is stored in the same transaction of the application's database.
    _datasources[0].run_tx_step({"name": "add"}, _add, index)


def _add(index: int) -> None:
    _datasources[0].sql_session().execute(text(ADD), {"number": index})


@DBOS.workflow()
def hold() -> None:
    """Keep the queue busy until all is put."""
    _may_begin.wait()
    _began.append(time.perf_counter())


def _launch(folder: Path) -> None:
    config: DBOSConfig = {
        "name": "benchmarks",
        "system_database_url": f"sqlite:///{folder / 'dbos.db'}",
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=WORKERS, polling_interval_sec=POLLING_SECONDS)


def put(number: int, folder: Path) -> float:
    """Put jobs, one after the other, while nobody runs them."""
    _launch(folder)
    _hold()
    begun = time.perf_counter()
    for _ in range(number):
        DBOS.enqueue_workflow(QUEUE, note, str(folder / "log"))
    return number / (time.perf_counter() - begun)


def _hold() -> None:
    for _ in range(WORKERS):
        DBOS.enqueue_workflow(QUEUE, hold)


def drain(number: int, folder: Path) -> float:
    """Do jobs that append to a log."""
    _launch(folder)
    _hold()
    for _ in range(number):
        DBOS.enqueue_workflow(QUEUE, note, str(folder / "log"))
    rate = _drained(number, folder)
    if os.path.getsize(folder / "log") != 20 * number:
        raise AssertionError(f"not all of {number} jobs were run once")
    return rate


def count(number: int, folder: Path) -> float:
    """Do jobs that write a row each, in a transaction of DBOS: exactly once."""
    rows = Rows(folder / "application.db")
    database = f"sqlite:///{folder / 'application.db'}"
    _datasources.append(SQLAlchemyDatasource.create(database))
    _launch(folder)
    _hold()
    for index in range(number):
        DBOS.enqueue_workflow(QUEUE, add, index)
    rate = _drained(number, folder)
    rows.check(number)
    return rate


def start(number: int, folder: Path) -> dict[str, float]:
    """Put a job every 50 ms, while nothing else runs."""
    _launch(folder)
    return starts(_moments, lambda index: DBOS.enqueue_workflow(QUEUE, note_moment, index), number)


def _drained(number: int, folder: Path) -> float:
    """From the moment at which jobs may begin, to the last one stored as successful."""
    looking = sqlite3.connect(f"file:{folder / 'dbos.db'}?mode=ro", uri=True, timeout=60)

    def done() -> bool:
        found = looking.execute("select count(*) from workflow_status where status = 'SUCCESS'")
        return bool(found.fetchone()[0] >= number + WORKERS)

    begun = time.perf_counter()
    _may_begin.set()
    wait_until(done, f"not all of {number} jobs are done")
    return number / (time.perf_counter() - begun)


if __name__ == "__main__":
    main(
        "dbos",
        f"SQLite with its defaults (rollback journal, fsync), a queue with {WORKERS} at once, "
        f"polled every {POLLING_SECONDS * 1000:.0f} ms; completions are counted",
        {"put": put, "drain": drain, "count": count, "start": start},
    )
