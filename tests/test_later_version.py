"""What a later version has stored, and this one does not know: left alone, told of, not lost."""

from __future__ import annotations

import copyreg
import io
import logging
import pickle
import sys
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from ZODB.FileStorage import FileStorage

from perdure.actors import Resize, StatusAsked, wire
from perdure.actors.messages import Claimed
from perdure.model import (
    Agent,
    CallableNotFoundError,
    DispatcherRecord,
    Job,
    JobRef,
    Queue,
    QueueNotFoundError,
    Status,
    UnknownSettingError,
    check,
    database_status,
    environment,
    find_job,
    get_queue,
    install,
    internal,
    job_details,
    list_jobs,
    pack,
    record,
)
from perdure.model.clock import SystemClock
from perdure.model.errors import UnknownMessageError
from perdure.model.internal import InternalJob
from support.desk import Desk
from support.jobs import add
from support.shop import Shell, Shop
from support.systems import LIMIT, Systems, settled

LATER = "snoozed"


class Everything:
    """What a version knows that knows all."""

    def __contains__(self, each: object) -> bool:
        return True


def rewrite(desk: Desk, oid: bytes, **attributes: Any) -> None:
    """Let a record have other attributes, as if a later version had stored them."""
    with pytest.MonkeyPatch.context() as later, desk.elsewhere() as connection:
        later.setattr(record, "_STATUSES", Everything())
        later.setattr(internal, "_KINDS", Everything())
        found = connection.get(oid)
        found._p_activate()
        vars(found).update(attributes)
        found._p_changed = True
        connection.transaction_manager.commit()
        connection.cacheMinimize()
    transaction.abort()
    desk.connection.cacheMinimize()
    transaction.begin()


def stored(desk: Desk, oid: bytes) -> bytes:
    data, _ = desk.database.storage.load(oid)
    return bytes(data)


def work(desk: Desk) -> None:
    """Do what is due, as agent and worker do it, and be no more lost than a worker is."""
    for _ in range(20):
        transaction.begin()
        desk.agent.record.ping()
        job = desk.agent.claim_job()
        transaction.commit()
        if job is None:
            return
        try:
            desk.runner().run(job)
        except CallableNotFoundError:
            transaction.abort()
            desk.lose(job)
        transaction.abort()
        desk.settle()
    raise AssertionError("it never ends")


# Jobs in each place, of a status that is not known


def in_the_inbox(desk: Desk) -> Job:
    return desk.put(Job(add, 5, 6))


def in_line(desk: Desk) -> Job:
    job = desk.put(Job(add, 5, 6))
    desk.queue._sort_in()
    transaction.commit()
    return job


def assigned(desk: Desk) -> Job:
    desk.put(Job(add, 5, 6))
    return desk.claim()


def active(desk: Desk) -> Job:
    job = assigned(desk)
    job._begin()
    transaction.commit()
    return job


def in_callbacks(desk: Desk) -> Job:
    job = active(desk)
    job._end(11)
    transaction.commit()
    return job


def completed(desk: Desk) -> Job:
    job = assigned(desk)
    desk.run(job)
    return job


def interrupted(desk: Desk) -> Job:
    job = active(desk)
    desk.lose(job)
    transaction.begin()
    return job


def a_callback(desk: Desk) -> Job:
    parent = Job(add, 5, 6)
    callback = parent.add_callback(Job(add, 5))
    desk.put(parent)
    return callback


PLACES: dict[str, tuple[Callable[[Desk], Job], Status, str]] = {
    "inbox": (in_the_inbox, Status.PENDING, "inbox"),
    "line": (in_line, Status.PENDING, "line"),
    "assigned": (assigned, Status.ASSIGNED, "<Agent 'main'"),
    "active": (active, Status.ACTIVE, "<Agent 'main'"),
    "callbacks": (in_callbacks, Status.CALLBACKS, "<Agent 'main'"),
    "completed": (completed, Status.COMPLETED, "completed by <Agent 'main'"),
    "interrupted": (interrupted, Status.ACTIVE, "with <InternalJob"),
    "callback": (a_callback, Status.NEW, "with <Job"),
}
every_place = pytest.mark.parametrize("place", PLACES)


@pytest.mark.spec("D16")
@every_place
def test_a_job_of_a_later_version_is_told_of_wherever_it_is(desk: Desk, place: str) -> None:
    make, status, where = PLACES[place]
    job = make(desk)
    ref, oid = job.ref, job._p_oid
    before = job._status_name
    rewrite(desk, oid, _status_name=LATER)

    (found,) = check(desk.database)

    assert f"the record of job {ref}, {where}" in found
    assert f"its status is {LATER!r}, which this version of Perdure does not know: run it" in found
    details = job_details(desk.connection, ref)
    assert details.status is status and LATER in details.parked
    if place != "callback":
        assert [LATER in row.parked for row in list_jobs(desk.connection).jobs] == [True]
    with pytest.raises(CallableNotFoundError, match=f"its status is '{LATER}'"):
        find_job(desk.connection, ref)
    assert database_status(desk.connection).queues[0].name == ""
    rewrite(desk, oid, _status_name=before)


@pytest.mark.spec("D16")
@every_place
def test_a_job_of_a_later_version_is_left_alone_and_the_others_go_on(
    desk: Desk, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = PLACES[place][0](desk)
    ref, oid, before = job.ref, job._p_oid, job._status_name
    rewrite(desk, oid, _status_name=LATER)
    record_of_it = stored(desk, oid)
    other = desk.put(Job(add, 1, 2))

    work(desk)
    with desk.elsewhere() as connection:
        connection.get(desk.agent.record._p_oid).deactivate()
    transaction.begin()
    desk.agent.record.activate("the next start")
    transaction.commit()
    work(desk)
    pack(desk.database)
    transaction.begin()

    assert other.status is Status.COMPLETED and other.result == 3
    assert stored(desk, oid) == record_of_it
    told = [each for each in caplog.records if each.name == "perdure.events"]
    mine = [each for each in told if "is left alone" in each.getMessage()]
    assert [each.levelno for each in mine] == [logging.ERROR] * (place != "completed")
    assert all(f"the record of job {ref} cannot be read" in each.getMessage() for each in mine)

    # The version that knows what it is has made something of it that is known here, too.
    rewrite(desk, oid, _status_name=before)
    environment(desk.database).unresolved.clear()
    work(desk)
    assert check(desk.database) == []
    assert job.status is Status.COMPLETED and not job.failed


@pytest.mark.spec("D16")
def test_callbacks_that_are_known_run_before_one_that_is_not_holds_up_their_job(
    desk: Desk,
) -> None:
    parent = Job(add, 1, 2)
    unknown = parent.add_callback(Job(add, 1))
    known = parent.add_callback(Job(add, 10))
    desk.put(parent)
    oid = unknown._p_oid
    rewrite(desk, oid, _status_name=LATER)

    work(desk)

    assert parent.status is Status.CALLBACKS and parent.result == 3
    assert known.status is Status.COMPLETED and known.result == 13
    # Parked, and so no worker is lost over it any more.
    assert list(desk.queue.parked()) == [f"record of job {JobRef.of(unknown)}"]
    rewrite(desk, oid, _status_name=Status.NEW.value)
    environment(desk.database).unresolved.clear()
    work(desk)
    assert unknown.result == 4 and parent.status is Status.COMPLETED
    assert check(desk.database) == []


def test_one_of_two_callbacks_that_is_not_known_holds_up_its_job_alone(desk: Desk) -> None:
    parent = Job(add, 1, 2)
    proxy = parent.add_callbacks(success=Job(add, 1))
    desk.put(parent)
    unknown = proxy.success
    assert unknown is not None
    rewrite(desk, unknown._p_oid, _status_name=LATER)

    work(desk)

    assert parent.status is Status.CALLBACKS
    assert list(desk.queue.parked()) == [f"record of job {JobRef.of(unknown)}"]
    rewrite(desk, unknown._p_oid, _status_name=Status.NEW.value)
    environment(desk.database).unresolved.clear()
    work(desk)
    assert proxy.result == 4 and parent.status is Status.COMPLETED


@pytest.mark.spec("D16")
def test_an_internal_job_of_a_kind_that_is_not_known_loses_nothing(desk: Desk) -> None:
    job = interrupted(desk)
    (internal,) = [each for each in desk.queue if isinstance(each, InternalJob)]
    oid = internal._p_oid
    rewrite(desk, oid, kind="revive")

    work(desk)

    (found,) = check(desk.database)
    assert "its kind is 'revive', which this version of Perdure does not know" in found
    assert len(desk.queue) == 1 and job.status is Status.ACTIVE
    rewrite(desk, oid, kind="interrupt")
    environment(desk.database).unresolved.clear()
    work(desk)
    assert job.status is Status.COMPLETED and job.result == 11
    assert check(desk.database) == []


# At the command line


def test_the_command_line_shows_a_job_of_a_later_version(shell: Shell, shop: Shop) -> None:
    sys.path.insert(0, str(shell.folder))
    try:
        desk = Desk(FileStorage(str(shell.database)), SystemClock())
        rewrite(desk, int(shop.waiting, 16).to_bytes(8, "big"), _status_name=LATER)
        desk.close()
    finally:
        sys.path.remove(str(shell.folder))
    shell.forget_modules()
    before = shell.database.read_bytes()

    rows = shell.ok("jobs")
    (row,) = [each for each in shell.json("jobs")["jobs"] if each["ref"] == shop.waiting]
    details = shell.json("show", shop.waiting)
    shell.ok("status")
    assert shell.run("check") == 1
    found = shell.out + shell.err
    refusals = [shell.refused(command, shop.waiting) for command in ("retry", "cancel")]

    assert f"{shop.waiting}   parked" in rows and LATER in row["parked"]
    assert LATER in details["parked"]
    assert f"the record of job {shop.waiting}" in found and LATER in found
    assert all(LATER in refusal for refusal in refusals)
    assert shell.database.read_bytes() == before


# In a running system


@pytest.mark.parametrize("place", ["inbox", "callback"])
def test_a_running_system_loses_no_actor_to_a_job_of_a_later_version(
    systems: Systems, place: str
) -> None:
    desk = Desk(clock=SystemClock())
    job = PLACES[place][0](desk)
    ref, oid = job.ref, job._p_oid
    rewrite(desk, oid, _status_name=LATER)
    try:
        system = systems.start(desk.database, {"": 2})
        assert system.result(system.put(add, 1, 2), timeout=LIMIT) == 3
        settled(system)
        status = system.ask(StatusAsked())
        assert status.crashes == 0 and status.degraded == ()
        with system.transaction() as connection:
            assert [*get_queue(connection).parked()] == [f"record of job {ref}"]
        rewrite(desk, oid, _status_name=Status.NEW.value)
        systems.stop_all()
        again = systems.start(desk.database, {"": 2})
        again.wait(ref, timeout=LIMIT)
        assert check(desk.database) == []
        systems.stop_all()
    finally:
        desk.close()


# Classes that are not known


def of_another_class(
    monkeypatch: pytest.MonkeyPatch, path: Path, base: type, store: Callable[[Any, type], None]
) -> Any:
    """A database in which one object is of a class that only a later version has."""
    module = sys.modules[base.__module__]
    later = type("Later", (base,), {"__module__": base.__module__})
    database = ZODB.DB(FileStorage(str(path)))
    install(database, ["", "mail", "news"])
    with monkeypatch.context() as known:
        known.setattr(module, "Later", later, raising=False)
        with database.transaction() as connection:
            store(connection, later)
    database.close()
    return ZODB.DB(FileStorage(str(path)))


def a_queue(connection: Any, later: type) -> None:
    queues = connection.root()["perdure"]
    queue = later("mail")
    connection.add(queue)
    queues._queues["mail"] = queue
    queues._p_changed = True


def a_record(connection: Any, later: type) -> None:
    queue = get_queue(connection, "mail")
    queue.dispatchers._records[OTHER] = later(OTHER, queue)
    queue.dispatchers._p_changed = True


def an_agent(connection: Any, later: type) -> None:
    record = get_queue(connection, "mail").dispatchers.register(OTHER)
    record._agents["extra"] = later("extra", record)
    record.activate("a token")
    record._p_changed = True


OTHER = uuid.UUID(int=9)
CLASSES: dict[str, tuple[type, Callable[[Any, type], None], str, list[str]]] = {
    "queue": (Queue, a_queue, "the queue 'mail'", ["", "news"]),
    "record": (DispatcherRecord, a_record, f"record of process {OTHER}", ["", "mail", "news"]),
    "agent": (Agent, an_agent, "the agent 'extra'", ["", "mail", "news"]),
}


@pytest.mark.spec("D16")
@pytest.mark.parametrize("what", CLASSES)
def test_what_is_of_a_class_of_a_later_version_is_left_alone_and_the_rest_goes_on(
    systems: Systems,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    what: str,
) -> None:
    base, store, text, served = CLASSES[what]
    database = of_another_class(monkeypatch, tmp_path / "app.fs", base, store)
    try:
        (found,) = check(database)
        assert text in found and "is of a class that this version of Perdure does not" in found
        with database.transaction() as connection:
            assert [queue.name for queue in database_status(connection).queues] == served
            assert list_jobs(connection).complete
        pack(database)

        system = systems.start(database)
        for name in served:
            with system.transaction() as connection:
                ref = get_queue(connection, name).put(Job(add, 1, 2)).ref
            assert system.result(ref, timeout=LIMIT) == 3
        settled(system)

        status = system.ask(StatusAsked())
        assert status.crashes == 0 and list(status.queues) == served
        errors = [each for each in caplog.records if each.name == "perdure.events"]
        errors = [each for each in errors if each.levelno >= logging.ERROR]
        assert len(errors) == (what == "queue")
        systems.stop_all()
        assert check(database) == [found]
    finally:
        systems.stop_all()
        database.close()


def test_the_name_of_a_queue_that_is_not_known_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    database = of_another_class(monkeypatch, tmp_path / "app.fs", Queue, a_queue)
    install(database, ["mail", "more"])
    with database.transaction() as connection:
        queues = connection.root()["perdure"]
        assert list(queues) == ["", "more", "news"] and len(queues) == 3
        assert "mail" in queues and queues.get("mail") is None
        with pytest.raises(UnknownSettingError, match="there is a queue 'mail' already"):
            queues.add("mail")
        with pytest.raises(QueueNotFoundError, match="'mail' is a Later, which this version of"):
            get_queue(connection, "mail")
        with pytest.raises(QueueNotFoundError, match="use the version that has stored it"):
            queues.remove("mail")
    database.close()


# Attributes that are not known


@pytest.mark.spec("D16")
@pytest.mark.parametrize("of", ["queue", "record", "agent", "quota", "job"])
def test_attributes_of_a_later_version_are_kept_by_whoever_writes_the_record(
    desk: Desk, of: str
) -> None:
    agent = desk.agent
    quota = desk.queue.quotas.create("desk", 1)
    job = Job(add, 1, 2)
    job.quota_names = ("desk",)
    desk.put(job)
    owner = {
        "queue": desk.queue, "record": agent.record, "agent": agent, "quota": quota, "job": job,
    }[of]  # fmt: skip
    rewrite(desk, owner._p_oid, _later={"a": 1}, later_setting="yes")
    owner._p_activate()
    before = owner._p_serial

    desk.queue.keep_completed = timedelta(days=1)
    transaction.commit()
    desk.work()
    desk.agent.record.deactivate()
    transaction.commit()
    transaction.begin()

    owner._p_activate()
    assert owner._p_serial != before
    desk.connection.cacheMinimize()
    assert owner._later == {"a": 1} and owner.later_setting == "yes"
    assert job.status is Status.COMPLETED and check(desk.database) == []


# Messages


def with_values(message: Any, *values: Any) -> bytes:
    """The pickle of a message as a version writes it in which its class has other fields."""

    class Pickler(pickle.Pickler):
        def reducer_override(self, each: Any) -> Any:
            if each is message:
                return copyreg.__newobj__, (type(each),), values
            return NotImplemented

    written = io.BytesIO()
    Pickler(written, 4).dump(("token", message))
    return written.getvalue()


@pytest.mark.spec("D12")
@pytest.mark.parametrize("values", [(), ("",), ("", "main")])
def test_a_message_without_all_of_its_fields_is_an_error_to_its_asker(values: Any) -> None:
    with pytest.raises(UnknownMessageError, match=r"a Resize without .*size is none .* it has qu"):
        wire.read_question(with_values(Resize("", "main", 1), *values))


def test_fields_of_a_later_version_are_left_out() -> None:
    body = with_values(Resize("", "main", 1), "", "main", 2, "gently")
    assert wire.read_question(body) == ("token", Resize("", "main", 2))


class Snooze:
    """A message that only a later version has."""


@pytest.mark.spec("D12")
@pytest.mark.parametrize(
    "message", [Snooze(), Claimed(JobRef(1), 1), Status.NEW], ids=lambda each: type(each).__name__
)
def test_a_message_of_a_class_that_is_not_known_is_an_error_to_its_asker(message: Any) -> None:
    name = type(message).__qualname__
    with pytest.raises(UnknownMessageError, match=f"not be sent {name}; what it may be sent: Act"):
        wire.read_question(wire._dumped(("token", message)))
