"""W2, W2d, W4, W4h: one process does the jobs that wait."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from persistent.list import PersistentList

from benchmarks.jobs import Counter, log_to, noted
from benchmarks.stage import Stage, note_jobs, stage_on_file
from benchmarks.workload import SMALL, Bar, Figure, Run, Workload, WrongError
from perdure.model import Job, get_queue

__all__ = ["WORKLOADS", "check_counters", "counters"]

NOTES = (10_000, 200)
NOTES_ALONE = (3_000, 200)
COUNTS = (5_000, 200)
BATCH = 1_000


def drain_notes(run: Run, *, transactional: bool) -> Mapping[str, float]:
    """Do jobs that do nothing."""
    number = run.size(*(NOTES if transactional else NOTES_ALONE))
    log = run.folder / "log"
    log_to(log)
    with stage_on_file(run.folder) as stage:
        stage.fill(note_jobs(number, transactional=transactional))
        rate = stage.drain(number, log)
    if noted(log) < number:
        raise WrongError(f"of {number} jobs {noted(log)} were run")
    return {"drained": rate, "runs for each job": noted(log) / number}


def drain_counts(run: Run, *, hot: bool) -> Mapping[str, float]:
    """Do jobs that each add one to a persistent object."""
    number = run.size(*COUNTS)
    with stage_on_file(run.folder) as stage:
        put_counts(stage, 1 if hot else number, number)
        rate = stage.drain(number)
        check_counters(stage, number)
    return {"drained": rate}


def put_counts(stage: Stage, objects: int, number: int) -> None:
    """Put so many transactional jobs that add, in turn, to so many objects."""
    with stage.transaction() as connection:
        connection.root()["counters"] = PersistentList(Counter() for _ in range(objects))
    for first in range(0, number, BATCH):
        with stage.transaction() as connection:
            every = counters(connection)
            jobs = [
                Job(every[index % objects].add)
                for index in range(first, min(first + BATCH, number))
            ]
            for job in jobs:
                job.transactional = True
            get_queue(connection).put_many(jobs)


def counters(connection: Any) -> PersistentList:
    """The objects that the jobs change."""
    return connection.root()["counters"]


def check_counters(stage: Stage, number: int) -> None:
    """Raise `WrongError` unless the objects say that each of so many jobs was done once."""
    with stage.transaction() as connection:
        every = counters(connection)
        wrong = list(_unlike(every, number // len(every)))
    if wrong:
        raise WrongError(f"{len(wrong)} objects have another value than that: {wrong[:5]}")


def _unlike(every: PersistentList, expected: int) -> Iterator[int]:
    for counter in every:
        if counter.value != expected:
            yield counter.value
        counter._p_deactivate()


ON_FILE = "FileStorage with fsync; one process, 4 workers; {jobs} "

WORKLOADS = (
    Workload(
        "W2",
        "drain of transactional jobs",
        ON_FILE + "transactional jobs that append 20 bytes to a log without fsync, put before; "
        "from before the start to the last one settled",
        (
            Figure(
                "drained",
                "/s",
                (
                    Bar(least=3, against=SMALL),
                    Bar(least=3, against="huey"),
                    Bar(least=20, against="dbos"),
                ),
            ),
            Figure("runs for each job", ""),
        ),
        functools.partial(drain_notes, transactional=True),
        peer="drain",
        sizes={"jobs": NOTES},
    ),
    Workload(
        "W2d",
        "drain with the default settings",
        ON_FILE + "jobs as in W2, not transactional: each begun and ended in commits of its own",
        (
            Figure(
                "drained", "/s", (Bar(least=0.45, against=SMALL), Bar(least=3, against="dbos"))
            ),
            Figure("runs for each job", ""),
        ),
        functools.partial(drain_notes, transactional=False),
        peer="drain",
        sizes={"jobs": NOTES_ALONE},
    ),
    Workload(
        "W4",
        "drain of jobs with an effect each",
        ON_FILE + "transactional jobs, each adding to a persistent object of its own, exactly "
        "once (checked); of the peers, to a row of its own in a SQLite database with fsync",
        (
            Figure(
                "drained",
                "/s",
                (
                    Bar(least=1.5, against=SMALL),
                    Bar(least=2, against="huey"),
                    Bar(least=30, against="dbos"),
                ),
            ),
        ),
        functools.partial(drain_counts, hot=False),
        peer="count",
        sizes={"jobs": COUNTS},
    ),
    Workload(
        "W4h",
        "drain of jobs with one effect in common",
        ON_FILE + "transactional jobs, all adding to one persistent object, exactly once "
        "(checked), none given up",
        (Figure("drained", "/s", (Bar(least=0.5, against=SMALL),)),),
        functools.partial(drain_counts, hot=True),
        sizes={"jobs": COUNTS},
    ),
)
