"""A database with one queue and one agent, worked on from the test's own thread."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import transaction
import ZODB
from persistent import Persistent
from ZODB.MappingStorage import MappingStorage

from perdure.model.agent import Agent
from perdure.model.check import check
from perdure.model.clock import Clock, StopSignal
from perdure.model.environment import environment
from perdure.model.job import Job
from perdure.model.lane import Lane
from perdure.model.queue import Queue
from perdure.model.queues import get_queue, install
from perdure.model.running import Runner
from support.manual_clock import ManualClock

__all__ = ["Counter", "Desk", "FailingManager", "PassingClock", "deed", "fail_commit"]

_deeds: dict[str, Callable[..., Any]] = {}
_numbers = itertools.count()


def deed(function: Callable[..., Any]) -> functools.partial[Any]:
    """Make a callable for a job out of any function, also a lambda; works in this process."""
    key = f"{next(_numbers)}"
    _deeds[key] = function
    return functools.partial(perform, key)


def perform(key: str, *args: Any, **kwargs: Any) -> Any:
    return _deeds[key](*args, **kwargs)


class Counter(Persistent):
    """Something for jobs to change."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, number: int = 1) -> int:
        self.value += number
        return self.value

    def __call__(self, number: int = 1) -> int:
        return self.add(number)


class PassingClock(ManualClock):
    """Time that passes at once when somebody waits; `waits` says how long, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
        if timeout_seconds is None:
            super().wait(condition, None)
        elif timeout_seconds > 0:
            self.waits.append(timeout_seconds)
            if len(self.waits) > 500:
                raise SystemExit("the test would wait for ever")
            self.advance(timedelta(seconds=timeout_seconds))


class FailingManager:
    """A data manager that raises in one step of the commit, after the database's own."""

    def __init__(self, error: BaseException, step: str) -> None:
        self._error = error
        self._step = step

    def sortKey(self) -> str:  # noqa: N802
        return "~after the database"

    def _do(self, step: str) -> None:
        if step == self._step:
            raise self._error

    def tpc_begin(self, transaction: Any) -> None:
        self._do("tpc_begin")

    def commit(self, transaction: Any) -> None:
        self._do("commit")

    def tpc_vote(self, transaction: Any) -> None:
        self._do("tpc_vote")

    def tpc_finish(self, transaction: Any) -> None:
        self._do("tpc_finish")

    def tpc_abort(self, transaction: Any) -> None:
        self._do("tpc_abort")

    def abort(self, transaction: Any) -> None:
        self._do("abort")


def fail_commit(error: BaseException, step: str = "tpc_vote") -> None:
    """Let the commit of the thread's transaction raise `error`.

    In the step ``tpc_finish`` that is after everything was stored.
    """
    transaction.get().join(FailingManager(error, step))


class Desk:
    """What a test works with: a database, a connection, its queue, and an agent.

    The connection uses the thread's own transactions, as a worker's does.
    """

    def __init__(self, storage: Any = None, clock: Clock | None = None) -> None:
        self.clock: Any = PassingClock() if clock is None else clock
        self.database = ZODB.DB(MappingStorage() if storage is None else storage)
        environment(self.database).clock = self.clock
        install(self.database)
        self.stop = StopSignal(self.clock)
        self.connection = self.database.open()
        self.results: list[str] = []
        self._agent: Agent | None = None

    def close(self) -> None:
        transaction.abort()
        self.connection.close()
        self.database.close()

    @property
    def root(self) -> Any:
        return self.connection.root()

    @property
    def queue(self) -> Queue:
        return get_queue(self.connection)

    @property
    def agent(self) -> Agent:
        """The agent of an active dispatcher; made, and committed, when first asked for."""
        if self._agent is None:
            record = self.queue.dispatchers.register(uuid.UUID(int=1))
            self._agent = record.add_agent(size=100)
            record.activate("first")
            transaction.commit()
        return self._agent

    def put(self, item: Any, **settings: Any) -> Job:
        """Put and commit."""
        job = self.queue.put(item, **settings)
        transaction.commit()
        return job

    def store(self, job: Job) -> Job:
        """Store a job in the root of the database, in no queue, and commit."""
        self.root[len(self.root)] = job
        transaction.commit()
        return job

    def claim(self) -> Job:
        """Claim the next job for the agent and commit."""
        agent = self.agent
        transaction.begin()
        agent.record.ping()
        job = agent.claim_job()
        assert job is not None, "no job is due"
        transaction.commit()
        return job

    def runner(self, manager: Any = None, lane: Lane | None = None) -> Runner:
        return Runner(
            transaction.manager if manager is None else manager,
            self.clock,
            self.stop,
            lane=lane,
            on_result=lambda ref: self.results.append(str(ref)),
        )

    def run(self, job: Job) -> None:
        """Run a claimed job to its end, as a worker does, and settle it."""
        try:
            self.runner().run(job)
        finally:
            transaction.abort()
        self.settle()

    def settle(self) -> None:
        self.agent.settle_all()
        transaction.commit()

    def work(self) -> int:
        """Claim and run what is due until nothing is; return how many jobs that were."""
        agent = self.agent
        for count in range(1000):
            transaction.begin()
            agent.record.ping()
            job = agent.claim_job()
            transaction.commit()
            if job is None:
                assert check(self.database) == []
                return count
            self.run(job)
        raise AssertionError("it never ends")

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[Any]:
        """A second connection, as another process has one, committed at the end."""
        manager = transaction.TransactionManager()
        connection = self.database.open(transaction_manager=manager)
        try:
            yield connection
            manager.commit()
        finally:
            manager.abort()
            connection.close()

    def lose(self, job: Job) -> None:
        """Bury the agent's dispatcher as far as `job` goes, through another connection."""
        with self.elsewhere() as connection:
            connection.get(self.agent._p_oid).interrupt(connection.get(job._p_oid))


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.close()
