"""A queue in another database than the application's data."""

from __future__ import annotations

import concurrent.futures
import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage

from perdure.model import (
    Job,
    JobFailedError,
    ReassignedError,
    Status,
    check,
    environment,
    find_job,
    get_queue,
    install,
)
from perdure.model.clock import StopSignal
from perdure.model.running import Runner
from support.jobs import Counter
from support.systems import LIMIT, Systems

STORAGES: dict[str, Callable[[Path], Any]] = {
    "mapping": lambda folder: MappingStorage(),
    "file": lambda folder: FileStorage(str(folder / "data.fs")),
}


@pytest.fixture(params=STORAGES)
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Two databases that know each other: one for the queue, one for the data."""
    found: dict[str, Any] = {}
    for name in ("jobs", "data"):
        folder = tmp_path / name
        folder.mkdir()
        storage = STORAGES[request.param](folder)
        ZODB.DB(storage, databases=found, database_name=name)
    yield found
    assert check(found["jobs"]) == []
    for database in found.values():
        database.close()


def add_and_fail(counter: Counter) -> None:
    counter.add()
    raise ValueError("no")


def add_and_doom(counter: Counter) -> None:
    counter.add()
    transaction.doom()


def put(databases: dict[str, Any], function: Any = None) -> Any:
    """Make a counter in the one database, and put a job for it into the other, in one commit."""
    install(databases["jobs"])
    with databases["jobs"].transaction() as connection:
        counter = connection.get_connection("data").root()["counter"] = Counter()
        connection.get_connection("data").add(counter)
        job = Job(counter.add) if function is None else Job(function, counter)
        get_queue(connection).put(job)
        return job.ref


def value(databases: dict[str, Any]) -> int:
    with databases["data"].transaction() as connection:
        return int(connection.root()["counter"].value)


@pytest.mark.spec("Q1", "J6", "D13")
def test_job_and_data_in_two_databases_are_committed_together(
    systems: Systems, databases: dict[str, Any]
) -> None:
    ref = put(databases)
    assert ref.database_name == "jobs"
    system = systems.start(databases["jobs"])
    assert system.result(ref, timeout=LIMIT) == 1
    assert value(databases) == 1


@pytest.mark.spec("Q1", "J6")
@pytest.mark.parametrize("function", [add_and_fail, add_and_doom])
def test_what_a_failed_job_changed_in_the_other_database_is_not_committed(
    systems: Systems, databases: dict[str, Any], function: Any
) -> None:
    ref = put(databases, function)
    system = systems.start(databases["jobs"])
    with pytest.raises(JobFailedError):
        system.result(ref, timeout=LIMIT)
    assert value(databases) == 0


@pytest.mark.spec("Q1", "J6", "R12")
def test_a_conflict_in_the_other_database_lets_neither_be_committed_and_the_job_run_again(
    systems: Systems, databases: dict[str, Any]
) -> None:
    install(databases["jobs"])
    with databases["jobs"].transaction() as connection:
        counter = connection.get_connection("data").root()["counter"] = Counter()
        connection.get_connection("data").add(counter)
        refs = [get_queue(connection).put(Job(counter.add)).ref for _ in range(40)]
    system = systems.start(databases["jobs"], {"": 4})
    results = sorted(system.result(ref, timeout=LIMIT) for ref in refs)
    assert results == list(range(1, 41))
    assert value(databases) == 40


@pytest.mark.spec("Q1", "J6")
def test_a_put_is_aborted_with_the_data_of_the_other_database(databases: dict[str, Any]) -> None:
    install(databases["jobs"])
    with pytest.raises(ZeroDivisionError):
        with databases["jobs"].transaction() as connection:
            connection.get_connection("data").root()["counter"] = Counter()
            get_queue(connection).put(Job(int))
            raise ZeroDivisionError
    with databases["jobs"].transaction() as connection:
        assert len(get_queue(connection)) == 0
        assert "counter" not in connection.get_connection("data").root()


@pytest.mark.spec("Q1", "D13")
def test_the_job_is_found_by_its_reference_which_names_its_database(
    databases: dict[str, Any],
) -> None:
    ref = put(databases)
    with databases["jobs"].transaction() as connection:
        assert str(ref).startswith("jobs:")
        assert find_job(connection, str(ref)).status is Status.PENDING


@pytest.mark.spec("D6", "J9")
@pytest.mark.parametrize("lost", [True, False])
def test_what_a_job_did_to_the_other_database_before_it_returned_a_future_is_fenced(
    databases: dict[str, Any], lost: bool
) -> None:
    ref = put(databases, add_and_return_future)
    manager = transaction.TransactionManager()
    connection = databases["jobs"].open(transaction_manager=manager)
    record = get_queue(connection).dispatchers.register(uuid.UUID(int=1))
    agent = record.add_agent()
    record.activate("first")
    manager.commit()
    job = agent.claim_job()
    manager.commit()
    buried.clear()
    if lost:
        buried.append(lambda: bury(databases["jobs"], record.uuid))
    clock = environment(databases["jobs"]).clock
    runner = Runner(manager, clock, StopSignal(clock))
    with pytest.raises(ReassignedError) if lost else contextlib.nullcontext():
        runner.run(job)
    assert job.ref == ref and value(databases) == (0 if lost else 1)
    agent.settle_all()
    manager.commit()
    connection.close()


buried: list[Callable[[], None]] = []


def add_and_return_future(counter: Counter) -> Any:
    counter.add()
    for bury_it in buried:
        bury_it()
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    future.set_result(5)
    return future


def bury(database: Any, dispatcher: uuid.UUID) -> None:
    with database.transaction() as connection:
        get_queue(connection).dispatchers[dispatcher].deactivate()
