"""Processes on one ZEO server hear of each other's commits at once."""

from __future__ import annotations

from typing import Any

import pytest
import ZODB
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ReadConflictError

from perdure.actors import PollsAsked
from perdure.model import Job, environment, find_job, get_queue
from perdure.storage.hearing import hear_of_commits
from support import jobs
from support.losable import Server
from support.systems import LIMIT, Systems, settled

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.mark.spec("X7")
def test_a_job_that_another_client_has_put_starts_without_a_poll(
    server: Server, systems: Systems
) -> None:
    system = systems.start(systems.database(server.storage()), {"": 1})
    settled(system)
    polls = len(system.ask(PollsAsked()))
    other = ZODB.DB(server.storage())

    with other.transaction() as connection:
        ref = get_queue(connection).put(Job(jobs.add, 1, 2)).ref
    other.close()

    assert system.result(ref, timeout=LIMIT) == 3
    assert len(system.ask(PollsAsked())) == polls


@pytest.mark.spec("X7")
def test_who_waits_for_a_result_hears_of_it_from_another_client(
    server: Server, systems: Systems
) -> None:
    worker = systems.start(systems.database(server.storage()), {"": 1})
    waiter = systems.start(systems.database(server.storage()), {"": 0})
    settled(worker)
    settled(waiter)
    polls = len(worker.ask(PollsAsked()))
    assert waiter.result(waiter.put(jobs.add, 1, 2), timeout=LIMIT) == 3
    assert len(worker.ask(PollsAsked())) == polls


def test_a_job_that_is_not_to_be_seen_here_yet_is_waited_for(
    systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start(queues={"": 1})
    ref = system.put(jobs.add, 1, 2)
    unseen = [ReadConflictError("not yet")]

    def find(*args: Any) -> Any:
        if unseen:
            system._context.results.announce(ref)
            raise unseen.pop()
        return find_job(*args)

    monkeypatch.setattr("perdure.actors.system.find_job", find)
    assert system.result(ref, timeout=LIMIT) == 3
    assert not unseen


def test_a_lost_connection_may_have_kept_anything_from_us(
    server: Server, systems: Systems
) -> None:
    database = systems.database(server.storage())
    systems.start(database, {"": 0})
    known = environment(database)
    seen = known.changes()
    server.stop()
    server.start()
    known.wait_for_change(seen, LIMIT.total_seconds())
    assert known.changes() > seen


def test_a_client_is_heard_once_however_often_that_is_asked_for(
    server: Server, systems: Systems
) -> None:
    database = systems.database(server.storage())
    systems.start(database, {"": 0})
    hearer = database.storage._db
    hear_of_commits(database)
    assert database.storage._db is hearer


def test_a_storage_that_is_no_client_is_left_as_it_is() -> None:
    database = ZODB.DB(MappingStorage())
    before = vars(database.storage).copy()
    hear_of_commits(database)
    assert vars(database.storage) == before
    database.close()
