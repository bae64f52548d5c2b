"""W3, W3z, W9: how soon a job is begun."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import transaction

from benchmarks.delays import between, put_now_and_then
from benchmarks.jobs import beginnings, log_to, note_moment
from benchmarks.processes import runner, server, wait_for, worker
from benchmarks.stage import WORKERS, Stage, stage_on_file
from benchmarks.workload import Bar, Figure, Run, Workload, WrongError
from perdure.actors import start
from perdure.model import Job, get_queue
from perdure.storage import open_database

__all__ = ["WORKLOADS"]

JOBS = (200, 20)


def start_here(run: Run) -> Mapping[str, float]:
    """Put jobs in the process that runs them."""
    log = run.folder / "log"
    log_to(log)
    with stage_on_file(run.folder) as stage, start(stage.database, {"": WORKERS}):
        return _delays(stage, log, run.size(*JOBS))


def start_elsewhere(run: Run) -> Mapping[str, float]:
    """Put jobs in one process, and run them in another, on a server."""
    log = run.folder / "log"
    log_to(log)
    with server(run.folder) as uri, worker(uri, run.folder, "worker") as process:
        process.tell("go")
        process.line()
        with contextlib.closing(open_database(uri)) as database:
            return _delays(Stage(database), log, run.size(*JOBS))


def _delays(stage: Stage, log: Path, number: int) -> dict[str, float]:
    manager = transaction.TransactionManager()
    connection = stage.database.open(transaction_manager=manager)

    def put(index: int) -> None:
        with manager:
            get_queue(connection).put(Job(note_moment, index))

    returned = put_now_and_then(put, number)
    connection.close()
    wait_for(lambda: len(beginnings(log)) > number, f"of {number + 1} jobs not all are begun")
    return between(returned, {index: moment for index, _, moment in beginnings(log)})


def start_cold(run: Run) -> Mapping[str, float]:
    """Start `perdure run` where a job waits."""
    log = run.folder / "log"
    log_to(log)
    with stage_on_file(run.folder) as stage, stage.transaction() as connection:
        job = Job(note_moment, 1)
        # Called when the result is committed.
        job.add_callbacks(success=after_commit)
        get_queue(connection).put(job)
    with runner(run.folder / "app.fs", "runner") as process:
        begun = wait_for(lambda: beginnings(log)[1:], "no job is done")
        seconds = begun[0][2] - process.begun
    with stage_on_file(run.folder) as stage:
        if stage.counts().completed != 1:
            raise WrongError(f"the job is not done: {stage.counts()}")
    return {"to the first job done": seconds}


def after_commit(result: object) -> None:
    """A callback: note when the job's result was there."""
    note_moment(2)


def _figures(p50: float, p99: float) -> tuple[Figure, ...]:
    return Figure("p50", "ms", (Bar(most=p50),)), Figure("p99", "ms", (Bar(most=p99),))


WORKLOADS = (
    Workload(
        "W3",
        "put returned to job begun, one process",
        "FileStorage with fsync; one process, 4 workers, idle; {jobs} jobs, one every 50 ms, from "
        "the return of the commit that put it to the call of its function",
        _figures(2, 10),
        start_here,
        peer="start",
        sizes={"jobs": JOBS},
    ),
    Workload(
        "W3z",
        "put in one process, begun in another, ZEO",
        "`perdure.server` at a socket, FileStorage with fsync; one process puts, one runs, with 4 "
        "workers, idle; {jobs} jobs, one every 50 ms, measured as W3",
        _figures(8, 30),
        start_elsewhere,
        sizes={"jobs": JOBS},
    ),
    Workload(
        "W9",
        "cold start of `perdure run`",
        "FileStorage with fsync; from the start of the interpreter to the commit of the result of "
        "a job that waits; files in the cache of the system",
        (Figure("to the first job done", "s", (Bar(most=0.6),)),),
        start_cold,
        rounds=5,
    ),
)
