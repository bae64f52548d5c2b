"""W1, W1B: putting jobs, one in each commit and many at once."""

from __future__ import annotations

import time
from collections.abc import Mapping

import transaction

from benchmarks.jobs import note
from benchmarks.stage import note_jobs, stage_on_file
from benchmarks.workload import SMALL, Bar, Figure, Run, Workload, WrongError
from perdure.model import Job, get_queue

__all__ = ["WORKLOADS"]

ONE = (2_000, 100)
MANY = (10_000, 500)


def put_each(run: Run) -> Mapping[str, float]:
    """Put jobs by one connection, with a commit after each."""
    number = run.size(*ONE)
    with stage_on_file(run.folder) as stage:
        manager = transaction.TransactionManager()
        connection = stage.database.open(transaction_manager=manager)
        begun = time.perf_counter()
        for _ in range(number):
            get_queue(connection).put(Job(note))
            manager.commit()
        passed = time.perf_counter() - begun
        connection.close()
        _check(stage.counts().pending, number)
    return {"put": number / passed}


def put_many(run: Run) -> Mapping[str, float]:
    """Put jobs by one call, and commit."""
    number = run.size(*MANY)
    with stage_on_file(run.folder) as stage:
        jobs = list(note_jobs(number, transactional=True))
        with stage.transaction() as connection:
            queue = get_queue(connection)
            begun = time.perf_counter()
            queue.put_many(jobs)
            connection.transaction_manager.commit()
            passed = time.perf_counter() - begun
        _check(stage.counts().pending, number)
    return {"put": number / passed}


def _check(found: int, number: int) -> None:
    if found != number:
        raise WrongError(f"of {number} jobs that were put {found} are there")


WORKLOADS = (
    Workload(
        "W1",
        "put, one commit each",
        "FileStorage with fsync; {jobs} jobs, put by one thread, each committed alone; nobody "
        "runs them",
        (Figure("put", "/s", (Bar(least=0.6, against=SMALL),)),),
        put_each,
        peer="put",
        sizes={"jobs": ONE},
    ),
    Workload(
        "W1B",
        "put_many",
        "FileStorage with fsync; {jobs} jobs by one `put_many` and one commit; nobody runs them; "
        "of the peers, put one by one",
        (Figure("put", "/s", (Bar(least=30_000), Bar(least=5, against="huey"))),),
        put_many,
        peer="put",
        sizes={"jobs": MANY},
    ),
)
