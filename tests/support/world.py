"""A database with queues under a manual clock, and views of it, for tests of the model."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import transaction
import ZODB
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage

from perdure.model import Agent, Job, Queue, check, environment, get_queue, install
from support.manual_clock import ManualClock

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


class View:
    """One connection with a transaction manager of its own, as one thread has it."""

    def __init__(self, world: World, database: ZODB.DB, queue_name: str = "") -> None:
        self.world = world
        self.queue_name = queue_name
        self.manager = transaction.TransactionManager()
        self.connection = database.open(transaction_manager=self.manager)
        self.manager.begin()

    @property
    def queue(self) -> Queue:
        return get_queue(self.connection, self.queue_name)

    def commit(self) -> None:
        self.manager.commit()
        self.manager.begin()

    def abort(self) -> None:
        self.manager.abort()
        self.manager.begin()

    sync = abort

    def get(self, persistent: Any) -> Any:
        """The same object, as this view has it."""
        return self.connection.get(persistent._p_oid)

    def put(self, callable: Any = int, *args: Any, **settings: Any) -> Job:
        """Put a job with these attributes, and commit it."""
        job = callable if isinstance(callable, Job) else Job(callable, *args)
        begin_after = settings.pop("begin_after", None)
        for name, value in settings.items():
            setattr(job, name, value)
        self.queue.put(job, begin_after=begin_after)
        self.commit()
        return job

    def agent(self, number: int = 1, name: str = "main", **settings: Any) -> Agent:
        """The agent of that name of dispatcher `number`, made and activated if need be."""
        dispatchers = self.queue.dispatchers
        key = uuid.UUID(int=number)
        record = dispatchers.get(key) or dispatchers.register(key)
        agent = record.get(name) or record.add_agent(name, **settings)
        if not record.active:
            record.activate(f"token {number}")
        self.commit()
        return agent

    def claim(self, agent: Agent | None = None) -> Job | None:
        """Let an agent (default: the first dispatcher's) claim, and commit it."""
        job = (agent or self.agent()).claim_job()
        self.commit()
        return job

    def run(self, job: Job) -> Any:
        """Run a job that is assigned, to its end and into `completed`."""
        result = job()
        self.sync()
        return result

    def begin(self, job: Job) -> None:
        """Store that `job` may have begun, as its worker does first."""
        job._begin()
        self.commit()

    def advance(self, duration: timedelta) -> None:
        """Let time pass, in which every active dispatcher gives signs of life."""
        self.world.advance(duration)
        for record in self.queue.dispatchers.records():
            if record.active:
                record.ping()
        self.commit()

    def close(self) -> None:
        self.manager.abort()
        self.connection.close()


class World:
    """A database of one's own."""

    def __init__(self, storage: Any, **settings: Any) -> None:
        self.clock = ManualClock()
        self.database = ZODB.DB(storage, **settings)
        environment(self.database).clock = self.clock
        install(self.database)
        self._views: list[View] = []

    def view(self, queue_name: str = "") -> View:
        view = View(self, self.database, queue_name)
        self._views.append(view)
        return view

    def check(self) -> list[str]:
        return check(self.database)

    def advance(self, duration: timedelta) -> None:
        self.clock.advance(duration)

    def close(self) -> None:
        for view in self._views:
            view.close()
        self._views = []
        self.database.close()


@pytest.fixture
def world() -> Iterator[World]:
    """A database in memory, without conflict resolution; sound at the end of the test."""
    made = World(MappingStorage())
    yield made
    found = made.check()
    made.close()
    assert found == []


@pytest.fixture
def view(world: World) -> View:
    return world.view()


@pytest.fixture
def open_file(tmp_path: Any) -> Iterator[Callable[[], World]]:
    """Opens the database in one file, which may be closed and opened again."""
    made: list[World] = []

    def open() -> World:
        made.append(World(FileStorage(str(tmp_path / "data.fs"))))
        return made[-1]

    yield open
    for each in made:
        each.close()


@pytest.fixture
def file_world(open_file: Callable[[], World]) -> Iterator[World]:
    """A database in a file, with conflict resolution; sound at the end of the test."""
    made = open_file()
    yield made
    assert made.check() == []
