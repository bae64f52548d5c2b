"""W2z: one process, and two, do the jobs of a server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

from benchmarks.jobs import log_to, noted
from benchmarks.processes import server, worker
from benchmarks.stage import Stage, note_jobs
from benchmarks.workload import SMALL, ZEO, Bar, Figure, Run, Workload, WrongError
from perdure.storage import open_database

__all__ = ["WORKLOADS"]

JOBS = (10_000, 100)


def drain_on_server(run: Run) -> Mapping[str, float]:
    """Let one process do jobs, and two do as many."""
    return {
        "one process": _drain(run, 1),
        "two processes": _drain(run, 2),
    }


def _drain(run: Run, processes: int) -> float:
    number = run.size(*JOBS)
    folder = run.folder / str(processes)
    folder.mkdir()
    log_to(folder / "log")
    with contextlib.ExitStack() as stack:
        uri = stack.enter_context(server(folder))
        stage = Stage(stack.enter_context(contextlib.closing(open_database(uri))))
        stage.fill(note_jobs(number, transactional=True))
        workers = [
            stack.enter_context(worker(uri, folder, f"worker-{index}"))
            for index in range(processes)
        ]
        begun = time.perf_counter()
        for each in workers:
            each.tell("go")
        done = stage.wait_until_done(number)
        passed = time.perf_counter() - begun
        if done != number or noted(folder / "log") < number:
            raise WrongError(f"of {number} jobs {done} are done, {stage.counts()}")
    return number / passed


WORKLOADS = (
    Workload(
        "W2z",
        "drain on a ZEO server",
        "`perdure.server` at a socket, FileStorage with fsync; {jobs} transactional jobs as in "
        "W2, put before; 4 workers in each process",
        (
            Figure("one process", "/s", (Bar(least=5, against=ZEO),)),
            Figure("two processes", "/s", (Bar(least=6, against=ZEO),)),
        ),
        drain_on_server,
        limits=(SMALL, ZEO),
        sizes={"jobs": JOBS},
    ),
)
