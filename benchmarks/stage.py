"""A database with jobs in it, as the workloads fill and watch it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import transaction

from benchmarks.jobs import note, noted
from benchmarks.processes import LIMIT_SECONDS, wait_for
from benchmarks.workload import WrongError
from perdure.actors import start
from perdure.model import (
    Agent,
    Job,
    Queue,
    StatusCounts,
    database_status,
    get_queue,
    install,
)
from perdure.storage import open_database

__all__ = ["WORKERS", "Stage", "note_jobs", "stage_on_file"]

WORKERS = 4
BATCH = 1_000
LOOK_SECONDS = 0.01


def note_jobs(number: int, *, transactional: bool) -> Iterator[Job]:
    """So many jobs that do nothing but that it is seen."""
    for _ in range(number):
        job = Job(note)
        job.transactional = transactional
        yield job


def _agents(queue: Queue) -> list[Agent]:
    return [agent for record in queue.dispatchers.records() for agent in record.agents()]


class Stage:
    """A database, and a connection that looks at it."""

    def __init__(self, database: Any) -> None:
        self.database = database
        install(database)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        """A connection; what is done to its objects is committed at the end."""
        manager = transaction.TransactionManager()
        connection = self.database.open(transaction_manager=manager)
        try:
            with manager:
                yield connection
        finally:
            manager.abort()
            connection.close()

    def fill(
        self,
        jobs: Iterable[Job],
        progress: Callable[[int], None] = lambda done: None,
        **settings: Any,
    ) -> int:
        """Put jobs into the default queue, a thousand in each commit; how many there were."""
        remaining = iter(jobs)
        done = 0
        with self._own_connection() as (manager, connection):
            while batch := list(itertools.islice(remaining, BATCH)):
                with manager:
                    queue = get_queue(connection)
                    for job in batch:
                        queue.put(job, **settings)
                done += len(batch)
                connection.cacheMinimize()
                progress(done)
        return done

    @contextlib.contextmanager
    def _own_connection(self) -> Iterator[tuple[Any, Any]]:
        manager = transaction.TransactionManager()
        connection = self.database.open(transaction_manager=manager)
        try:
            yield manager, connection
        finally:
            manager.abort()
            connection.close()

    def agents(self) -> int:
        """How many agents work for the default queue."""
        with self.transaction() as connection:
            return len(_agents(get_queue(connection)))

    def counts(self) -> StatusCounts:
        """How many jobs the default queue has, by status."""
        with self.transaction() as connection:
            (queue,) = database_status(connection).queues
            return queue.counts

    def wait_until_done(self, number: int, *, limit: float = LIMIT_SECONDS) -> int:
        """Wait until so many jobs are settled; returns how many are, which may be more.

        Raises `WrongError` where one has failed. It reads two or three records a hundred times
        a second, which takes little from those who run the jobs.
        """
        with self._own_connection() as (manager, connection):

            def look() -> int:
                manager.begin()
                agents = _agents(get_queue(connection))
                if failed := sum(agent.kept(failed=True) for agent in agents):
                    raise WrongError(f"{failed} jobs have failed")
                done = sum(agent.kept(failed=False) for agent in agents)
                return done if done >= number else 0

            try:
                return wait_for(look, f"{number} jobs are not done", limit, LOOK_SECONDS)
            except WrongError as error:
                raise WrongError(f"{error}; {self.counts()}") from error

    def drain(self, number: int, log: Path | None = None) -> float:
        """Start a system and let it do the `number` jobs there are; how many in a second.

        From before the start until the last one is settled, and not only begun. Where the jobs
        write to a log, the database is left in peace until all have.
        """
        begun = time.perf_counter()
        with start(self.database, {"": WORKERS}):
            if log is not None:
                wait_for(lambda: noted(log) >= number, f"{number} jobs are not run")
            self.wait_until_done(number)
            passed = time.perf_counter() - begun
        if (done := self.counts().completed) != number:
            raise WrongError(f"of {number} jobs {done} are done")
        return number / passed


@contextlib.contextmanager
def stage_on_file(folder: Path, name: str = "app.fs") -> Iterator[Stage]:
    """A new database on a file, opened as `start` opens one."""
    with contextlib.closing(open_database(folder / name)) as database:
        yield Stage(database)
