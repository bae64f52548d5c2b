"""A database with jobs in it, as the workloads fill and watch it."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import transaction

from benchmarks.jobs import note, noted
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
LOOK_SECONDS = 0.025
STILL_SECONDS = 120.0


def note_jobs(number: int, *, transactional: bool) -> Iterator[Job]:
    """So many jobs that do nothing but that it is seen."""
    for _ in range(number):
        job = Job(note)
        job.transactional = transactional
        yield job


def _agents(queue: Queue) -> list[Agent]:
    return [agent for record in queue.dispatchers.records() for agent in record.agents()]


def _settled(queue: Queue) -> int:
    agents = _agents(queue)
    if failed := sum(agent.kept(failed=True) for agent in agents):
        raise WrongError(f"{failed} jobs have failed")
    return sum(agent.kept(failed=False) for agent in agents)


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
    ) -> int:
        """Put jobs into the default queue, a thousand in each commit; how many there were."""
        remaining = iter(jobs)
        done = 0
        with self._own_connection() as (manager, connection):
            while batch := list(itertools.islice(remaining, BATCH)):
                with manager:
                    get_queue(connection).put_many(batch)
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

    def wait_until_done(
        self, number: int, log: Path | None = None, *, limit: float = STILL_SECONDS
    ) -> int:
        """Wait until so many jobs are settled; returns how many are, which may be more.

        Where the jobs write to a log, the database is left in peace until all have. Raises
        `WrongError` where one has failed, or where nothing more happens for `limit` seconds.
        It reads two or three records forty times a second, which takes little from those who
        run the jobs.
        """
        seen, since = -1, time.monotonic()
        with self._own_connection() as (manager, connection):
            while True:
                done = 0 if log is None else noted(log)
                if log is None or done >= number:
                    manager.begin()
                    settled = _settled(get_queue(connection))
                    if settled >= number:
                        return settled
                    done += settled
                if done != seen:
                    seen, since = done, time.monotonic()
                if time.monotonic() - since > limit:
                    raise WrongError(
                        f"{number} jobs are not done, and nothing has happened for "
                        f"{limit:.0f} s; {self.counts()}"
                    )
                threading.Event().wait(LOOK_SECONDS)

    def drain(self, number: int, log: Path | None = None) -> float:
        """Start a system and let it do the `number` jobs there are; how many in a second.

        From before the start until the last one is settled, and not only begun.
        """
        begun = time.perf_counter()
        with start(self.database, {"": WORKERS}):
            self.wait_until_done(number, log)
            passed = time.perf_counter() - begun
        if (done := self.counts().completed) != number:
            raise WrongError(f"of {number} jobs {done} are done")
        return number / passed


@contextlib.contextmanager
def stage_on_file(folder: Path, name: str = "app.fs") -> Iterator[Stage]:
    """A new database on a file, opened as `start` opens one."""
    with contextlib.closing(open_database(folder / name)) as database:
        yield Stage(database)
