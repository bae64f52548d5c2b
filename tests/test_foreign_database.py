"""A database that something else has written: a clear error, and nothing of it is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from persistent.mapping import PersistentMapping
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage

from perdure.actors import start
from perdure.model import (
    NotInstalledError,
    Queues,
    UnknownSettingError,
    check,
    database_status,
    get_queue,
    install,
    list_jobs,
    pack,
)
from perdure.storage import open_database
from support.shop import Shell
from support.systems import Systems


class Settings(Persistent):
    """Something of another application."""

    def __init__(self) -> None:
        self.colour = "red"


def queues_of_another_form() -> Any:
    queues = Queues()
    vars(queues)["_by_name"] = vars(queues).pop("_queues")
    return queues


FOREIGN: dict[str, tuple[Callable[[], Any], str]] = {
    "a text": (lambda: "mine", "has 'mine' under 'perdure', where the queues go: use another"),
    "a number": (lambda: 0, "has 0 under 'perdure'"),
    "a mapping": (lambda: PersistentMapping(mail=1), "under 'perdure', where the queues go"),
    "an object": (Settings, "Settings object at .* under 'perdure', where the queues go"),
    "a tree": (OOBTree, "under 'perdure', where the queues go"),
    "another form": (queues_of_another_form, "in a form that this version of Perdure does not"),
}
every_foreign = pytest.mark.parametrize("what", FOREIGN)

CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "install": lambda database, connection: install(database),
    "get_queue": lambda database, connection: get_queue(connection),
    "check": lambda database, connection: check(database),
    "pack": lambda database, connection: pack(database),
    "database_status": lambda database, connection: database_status(connection),
    "list_jobs": lambda database, connection: list_jobs(connection),
    "start": lambda database, connection: start(database),
}


def with_root(what: Any) -> Any:
    database = ZODB.DB(MappingStorage())
    with database.transaction() as connection:
        connection.root()["perdure"] = what
        connection.root()["theirs"] = Settings()
    return database


def refused(database: Any, call: Callable[[Any, Any], Any], text: str) -> None:
    before = database.lastTransaction()
    connection = database.open()
    try:
        with pytest.raises(NotInstalledError, match=text):
            call(database, connection)
        transaction.commit()
        assert database.lastTransaction() == before
    finally:
        transaction.abort()
        connection.close()
        database.close()


@every_foreign
@pytest.mark.parametrize("call", CALLS)
def test_something_else_where_the_queues_go_is_told_and_left(call: str, what: str) -> None:
    make, text = FOREIGN[what]
    refused(with_root(make()), CALLS[call], text)


@pytest.mark.parametrize("call", CALLS)
def test_a_root_that_is_no_mapping_is_told_and_left(call: str) -> None:
    database = with_root("mine")
    connection = database.open()
    # The first object of a database is its root.
    data, _ = connection._storage.load(b"\0" * 8)
    other, _ = connection._storage.load(connection.root()["theirs"]._p_oid)
    meta = transaction.begin()
    database.storage.tpc_begin(meta)
    _, serial = database.storage.load(b"\0" * 8)
    database.storage.store(b"\0" * 8, serial, other, "", meta)
    database.storage.tpc_vote(meta)
    database.storage.tpc_finish(meta)
    transaction.abort()
    connection.close()
    fresh = ZODB.DB(database.storage)

    refused(fresh, CALLS[call], "Settings object at .*, and no mapping, which could have queues")
    assert data != other


def test_a_system_shares_a_database_with_another_application(
    systems: Systems, tmp_path: Path
) -> None:
    theirs = ZODB.DB(FileStorage(str(tmp_path / "theirs.fs")))
    with theirs.transaction() as connection:
        connection.root()["settings"] = Settings()
    theirs.close()

    system = systems.start(str(tmp_path / "theirs.fs"))

    with system.transaction() as connection:
        assert connection.root()["settings"].colour == "red"
        assert set(connection.root()) == {"settings", "perdure"}


def sqlite(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("create table jobs (name)")
    database.commit()
    database.close()


FILES: dict[str, Callable[[Path], Any]] = {
    "a text": lambda path: path.write_text("Dear reader"),
    "one byte": lambda path: path.write_bytes(b"F"),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "a program": lambda path: path.write_bytes(b"\x7fELF" + bytes(100)),
    "sqlite": sqlite,
    "an older ZODB": lambda path: path.write_bytes(b"FS21" + bytes(100)),
    "a later ZODB": lambda path: path.write_bytes(b"FS40" + bytes(100)),
}


@pytest.mark.parametrize("opened", [open_database, start, lambda path: start(f"file://{path}")])
@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_no_database_is_told_and_left(
    tmp_path: Path, what: str, opened: Callable[[Any], Any]
) -> None:
    path = tmp_path / "app.fs"
    FILES[what](path)
    before = path.read_bytes()

    with pytest.raises(UnknownSettingError, match="is a file, and no ZODB database of a version"):
        opened(path)

    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["app.fs"]


def test_what_only_begins_as_a_database_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "app.fs"
    garbage = b"FS30" + bytes(range(256)) * 20
    path.write_bytes(garbage)
    # What follows is taken for the end of a commit that was cut off, and is put aside.
    open_database(path).close()
    kept = b"".join(each.read_bytes() for each in tmp_path.iterdir() if each.is_file())
    assert garbage[4:] in kept


@every_foreign
def test_the_command_line_tells_it_in_one_line(shell: Shell, what: str) -> None:
    make, _ = FOREIGN[what]
    database = ZODB.DB(FileStorage(str(shell.database)))
    with database.transaction() as connection:
        connection.root()["perdure"] = make()
    database.close()
    before = shell.database.read_bytes()

    for command in ("status", "jobs", "check", "pack", "run"):
        assert "'perdure'" in shell.refused(command)
    assert shell.database.read_bytes() == before
