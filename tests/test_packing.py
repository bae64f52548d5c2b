"""Packing: what is kept no longer goes, what is kept stays."""

from __future__ import annotations

import operator
from datetime import timedelta

import pytest
import transaction
import ZODB
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob
from ZODB.FileStorage import FileStorage
from ZODB.FileStorage.FileStorage import FileStorageError
from ZODB.POSException import POSKeyError
from ZODB.utils import p64

from perdure.model import (
    BadStatusError,
    Job,
    JobNotFoundError,
    NotInstalledError,
    UnknownSettingError,
    database_status,
    find_job,
    get_queue,
    install,
    pack,
)
from support import jobs
from support.callables import echo
from support.systems import LIMIT
from support.world import DAY, HOUR


def complete(view, *args):
    job = view.put(*args)
    agent = view.agent()
    agent.record.ping()
    assert view.claim(agent) is job
    view.run(job)
    return job


@pytest.mark.spec("D8")
def test_forgotten_jobs_are_dropped_and_kept_ones_stay(file_world):
    view = file_world.view()
    old = [complete(view, echo, "x" * 1000).ref for _ in range(10)]
    file_world.advance(9 * DAY)
    new = complete(view, echo, 1).ref
    waiting = view.put(echo, 2).ref

    report = pack(file_world.database, timedelta(0))

    assert report.forgotten == 10 and report.after_bytes < report.before_bytes - 10_000
    assert report.at == file_world.clock.now()
    view.sync()
    status = database_status(view.connection)
    assert status.packed == report.at and status.size_bytes >= report.after_bytes
    assert find_job(view.connection, new).result == 1 and find_job(view.connection, waiting)
    fresh = file_world.view()
    for ref in old:
        with pytest.raises(POSKeyError):
            fresh.connection.get(p64(ref.oid))._p_activate()
        with pytest.raises(JobNotFoundError):
            find_job(fresh.connection, ref)
    assert pack(file_world.database).forgotten == 0


def test_revisions_are_kept_as_long_as_wanted(tmp_path):
    database = ZODB.DB(FileStorage(str(tmp_path / "data.fs"), blob_dir=str(tmp_path / "b")))
    with database.transaction() as connection:
        install(connection)
        connection.root()["blob"] = Blob(b"one")
    for number in range(5):
        with database.transaction() as connection:
            connection.root()["number"] = number
    entries = len(database.undoLog(0, 100))
    pack(database, keep=HOUR)
    # And the commit of its own, that says so.
    assert len(database.undoLog(0, 100)) == entries + 1
    pack(database, keep=timedelta(0))
    assert len(database.undoLog(0, 100)) < entries
    with database.transaction() as connection, connection.root()["blob"].open() as file:
        assert (file.read(), connection.root()["number"]) == (b"one", 4)
    database.close()


@pytest.mark.spec("D8")
@pytest.mark.slow
def test_packing_while_jobs_run_loses_nothing(systems, tmp_path):
    database = systems.database(FileStorage(str(tmp_path / "data.fs")))
    system = systems.start(database, {"": 4})
    counter = jobs.Counter()
    with system.transaction() as connection:
        connection.root()["counter"] = counter
    refs = []
    for number in range(120):
        with system.transaction() as connection:
            found = connection.root()["counter"]
            refs.append(get_queue(connection).put(Job(found.add, 1)).ref)
        if number % 20 == 10:
            pack(database, keep=timedelta(0))
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    pack(database, keep=timedelta(0))
    with system.transaction() as connection:
        assert connection.root()["counter"].value == 120
        assert all(not find_job(connection, ref).failed for ref in refs)
    assert system.result(system.put(operator.add, 1, 1), timeout=LIMIT) == 2


def test_a_job_that_runs_still_finds_what_others_let_go_of_meanwhile(systems, tmp_path):
    database = systems.database(FileStorage(str(tmp_path / "data.fs")))
    system = systems.start(database, {"": 1})
    with system.transaction() as connection:
        shelf = connection.root()["shelf"] = PersistentMapping()
        shelf["thing"] = jobs.Counter()
        ref = get_queue(connection).put(Job(read_late, shelf)).ref
    jobs.gates["read"].wait_until_entered()
    with system.transaction() as connection:
        del connection.root()["shelf"]["thing"]

    pack(database, keep=timedelta(0))

    jobs.gates["read"].open()
    assert system.result(ref, timeout=LIMIT) == 0


def read_late(shelf):
    thing = shelf["thing"]
    # The connection may have been the one that made it.
    thing._p_deactivate()
    jobs.gates["read"].enter()
    return thing.value


@pytest.mark.parametrize(
    ("keep", "error", "text"),
    [
        (-HOUR, UnknownSettingError, "keep must not be negative"),
        (3, TypeError, "keep must be a timedelta, not 3"),
        (timedelta(days=60_000), UnknownSettingError, "keep must be 36500 days at most"),
    ],
)
def test_a_bad_time_to_keep_is_refused(world, keep, error, text):
    with pytest.raises(error, match=text):
        pack(world.database, keep=keep)


def test_packing_a_database_that_is_being_packed_says_so(file_world, monkeypatch):
    def busy(*args, **kwargs):
        raise FileStorageError("Already packing")

    monkeypatch.setattr(file_world.database, "pack", busy)
    with pytest.raises(BadStatusError, match="being packed already"):
        pack(file_world.database)


def test_a_database_without_queues_is_not_packed():
    database = ZODB.DB(None)
    with pytest.raises(NotInstalledError):
        pack(database, timedelta(0))
    database.close()
    transaction.abort()
