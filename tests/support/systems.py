"""Running systems for tests: started on demand, stopped and checked at the end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import pykka
import pytest
import ZODB
from ZODB.MappingStorage import MappingStorage

from perdure.actors import ActorSystem, AgentActor, PollNow, StatusAsked, start
from perdure.model import check, find_job, get_queue
from perdure.model.errors import UnknownMessageError
from support import jobs
from support.manual_clock import ManualClock

__all__ = ["HOUR", "LIMIT", "Systems", "settled", "within"]

T = TypeVar("T")

HOUR = timedelta(hours=1)
LIMIT = timedelta(seconds=jobs.LIMIT_SECONDS)


class Systems:
    """Starts systems with polls that hardly ever come, and stops them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stack = contextlib.ExitStack()
        self._started: list[ActorSystem] = []
        self._databases: list[Any] = []
        # What waits for a job that never ends waits no longer than this.
        monkeypatch.setattr("perdure.actors.system._STUCK_ENDS", timedelta(milliseconds=20))

    def database(self, storage: Any = None) -> Any:
        """A database, checked and closed at the end."""
        database = ZODB.DB(MappingStorage() if storage is None else storage)
        self._stack.callback(database.close)
        self._databases.append(database)
        return database

    def start(self, database: Any = None, queues: Any = None, **settings: Any) -> ActorSystem:
        """Start a system (default: on a new database), one poll an hour."""
        if database is None:
            database = self.database()
        settings.setdefault("poll_interval", HOUR)
        system = start(database, queues, **settings)
        self._started.append(system)
        return system

    def stop_all(self) -> None:
        """Stop what was started so far."""
        for gate in jobs.gates.values():
            gate.open()
        for system in self._started:
            within(lambda system=system: system.stop(timedelta(seconds=5)))
            # Those that were stuck until now.
            for ref in system._context.directory.all_started():
                within(ref.join)

    def close(self) -> None:
        self.stop_all()
        with self._stack:
            for database in self._databases:
                assert check(database) == []
                left = [info for info in database.connectionDebugInfo() if info["opened"]]
                assert not left, f"connections left open: {left}"


@pytest.fixture
def systems(monkeypatch: pytest.MonkeyPatch) -> Iterator[Systems]:
    jobs.gates.clear()
    jobs.calls.clear()
    jobs.systems.clear()
    made = Systems(monkeypatch)
    yield made
    made.close()


@pytest.fixture
def manual_clock() -> ManualClock:
    return ManualClock()


def within(call: Callable[[], T], limit: timedelta = LIMIT) -> T:
    """Call in another thread, and fail if that takes too long in real time."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit.total_seconds())
    assert outcome, f"{call} has not returned after {limit}"
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def settled(system: ActorSystem) -> None:
    """Return when the agents are up and the dispatcher has done what it was told by now."""
    within(lambda: system.ask(PollNow()))
    system.ask(StatusAsked())  # whoever was to be started has been
    for ref in system._context.directory.all_started():
        if ref.actor_class is AgentActor:
            # It has no handler for this, and answers when it has begun.
            with contextlib.suppress(UnknownMessageError, pykka.ActorDeadError):
                within(lambda ref=ref: ref.ask(None))
    # The first of these lets the dispatcher tell itself to work, the second comes behind that.
    for _ in range(2):
        within(lambda: system.ask(PollNow()))


def read(system: ActorSystem, job: Any, attribute: str) -> Any:
    """An attribute of a job, as it is stored now."""
    with system.transaction() as connection:
        return getattr(find_job(connection, job), attribute)


def queue_length(system: ActorSystem, name: str = "") -> int:
    with system.transaction() as connection:
        return len(get_queue(connection, name))
