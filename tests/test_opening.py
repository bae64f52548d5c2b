"""Opening databases by paths and URIs."""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ZODB
from ZODB.blob import Blob
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage

from perdure.model import (
    DatabaseAccessError,
    DatabaseLockedError,
    DatabaseNotFoundError,
    PerdureError,
    UnknownSettingError,
)
from perdure.storage import SharedStorage, database_file, is_in_memory, open_database


def use(database: Any) -> None:
    """Store something, also in a blob, and read it again."""
    with database.transaction() as connection:
        connection.root()["blob"] = Blob(b"contents")
    with database.transaction() as connection, connection.root()["blob"].open() as file:
        assert file.read() == b"contents"


@pytest.mark.parametrize("name", ["app.fs", "with space.fs", "what?.fs", "100%.fs", "a%20b#c.fs"])
def test_a_path_is_taken_as_it_stands(name: str, tmp_path: Path) -> None:
    database = open_database(tmp_path / name)
    use(database)
    assert database_file(database) == str(tmp_path / name)
    database.close()
    assert (tmp_path / name).is_file() and (tmp_path / f"{name}.blobs").is_dir()


@pytest.mark.parametrize("form", ["{0}", "file://{0}"])
def test_a_relative_path_begins_in_the_working_directory(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = open_database(form.format("app.fs"))
    use(database)
    database.close()
    assert (tmp_path / "app.fs").is_file()


def test_the_options_of_a_uri_are_kept_to(tmp_path: Path) -> None:
    database = open_database(
        f"file://{tmp_path}/app.fs?blobstorage_dir={tmp_path}/elsewhere&blobstorage_layout=lawn"
        "&database_name=mine&connection_pool_size=3&connection_cache_size=11"
    )
    assert isinstance(database.storage, SharedStorage)
    use(database)
    assert database.database_name == "mine"
    assert (database.getPoolSize(), database.getCacheSize()) == (3, 11)
    assert (tmp_path / "elsewhere" / ".layout").read_text() == "lawn"
    database.close()
    assert not (tmp_path / "app.fs.blobs").exists()


def test_a_file_may_be_opened_to_be_read_only_while_it_is_shared(tmp_path: Path) -> None:
    database = open_database(tmp_path / "app.fs")
    use(database)
    reader = open_database(f"file://{tmp_path}/app.fs?read_only=1")
    assert reader.storage.isReadOnly()
    connection = reader.open()
    with connection.root()["blob"].open() as file:
        assert file.read() == b"contents"
    connection.close()
    reader.close()
    database.close()


def test_with_an_option_that_cannot_be_shared_a_file_that_is_open_is_locked(
    tmp_path: Path,
) -> None:
    uri = f"file://{tmp_path}/app.fs?quota=1000000"
    database = open_database(uri)
    assert not isinstance(database.storage, SharedStorage)
    with pytest.raises(DatabaseLockedError, match="leave out the options"):
        open_database(uri)
    database.close()


def test_what_was_stored_without_sharing_is_there_with_it_and_the_other_way_round(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "app.fs")
    for open_it in (
        open_database,
        lambda path: ZODB.DB(FileStorage(path, blob_dir=f"{path}.blobs")),
        lambda path: open_database(f"file://{path}?quota=100000000"),
        open_database,
    ):
        database = open_it(path)
        use(database)
        with database.transaction() as connection:
            root = connection.root()
            root["times"] = root.get("times", 0) + 1
        database.close()
    database = open_database(path)
    with database.transaction() as connection:
        assert connection.root()["times"] == 4
    database.close()


def test_a_database_in_memory_is_not_shared() -> None:
    database = open_database("memory://")
    assert isinstance(database.storage, MappingStorage)
    assert is_in_memory(database) and database_file(database) is None
    database.close()


def test_a_shared_file_is_not_in_memory(tmp_path: Path) -> None:
    one, two = open_database(tmp_path / "app.fs"), open_database(tmp_path / "app.fs")
    assert not is_in_memory(one) and not is_in_memory(two)
    assert database_file(one) == database_file(two) == str(tmp_path / "app.fs")
    two.close()
    one.close()


BAD: list[tuple[str, dict[str, Any], type[PerdureError], str]] = [
    ("", {}, UnknownSettingError, "'' names no database: give a path or a URI"),
    ("file://", {}, UnknownSettingError, "'file://' names no database"),
    ("nonsense://x", {}, UnknownSettingError, "'nonsense://x' names no database"),
    ("file://{}/a.fs?colour=red", {}, UnknownSettingError, "colour"),
    ("file://{}/a.fs?connection_pool_size=many", {}, UnknownSettingError, "many"),
    ("{}/a.fs", {"wait": timedelta(0)}, UnknownSettingError, "wait must be longer than zero"),
    ("{}", {}, UnknownSettingError, "is a folder: name the database's file in it"),
    ("{}/letter.txt", {}, UnknownSettingError, "letter.txt is a file, and no ZODB database"),
    ("{}/none/a.fs", {}, UnknownSettingError, "there is no folder {}/none; make it first"),
    ("{}/none/a.fs", {"create": False}, DatabaseNotFoundError, "there is no folder {}/none"),
    ("{}/a.fs", {"create": False}, DatabaseNotFoundError, "there is no database {}/a.fs"),
    ("file://{}/a.fs", {"create": False}, DatabaseNotFoundError, "there is no database {}/a.fs"),
    ("file://{}/a.fs?quota=9", {"create": False}, DatabaseNotFoundError, "no database {}/a.fs"),
    ("{}/empty.fs", {"create": False}, DatabaseNotFoundError, "empty.fs is an empty file and no"),
    ("/proc/a.fs", {}, DatabaseAccessError, "cannot be made"),
]


@pytest.mark.parametrize(("what", "settings", "kind", "message"), BAD)
def test_what_cannot_be_opened_is_refused_in_one_line_and_left_as_it_is(
    what: str, settings: Any, kind: type[PerdureError], message: str, tmp_path: Path
) -> None:
    (tmp_path / "letter.txt").write_text("Dear reader")
    (tmp_path / "empty.fs").touch()
    with pytest.raises(kind) as caught:
        open_database(what.format(tmp_path), **settings)
    assert type(caught.value) is kind
    assert message.format(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {each.name for each in tmp_path.iterdir()} == {"letter.txt", "empty.fs"}
    assert (tmp_path / "empty.fs").read_bytes() == b""


def test_blobs_survive_a_file_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "app.fs"
    database = open_database(path)
    use(database)
    database.close()
    path.rename(tmp_path / "away.fs")
    (tmp_path / "app.fs.index").unlink()
    open_database(path).close()
    (tmp_path / "away.fs").rename(path)
    (tmp_path / "app.fs.index").unlink()
    database = open_database(path)
    with database.transaction() as connection, connection.root()["blob"].open() as file:
        assert file.read() == b"contents"
    database.close()


def test_a_damaged_file_is_refused_and_not_locked(tmp_path: Path) -> None:
    path = tmp_path / "app.fs"
    open_database(path).close()
    data = path.read_bytes()
    path.write_bytes(data[:-8] + b"\0" * 8)
    (tmp_path / "app.fs.index").unlink()
    for _ in range(2):
        with pytest.raises(PerdureError, match="cannot be opened"):
            open_database(path)
    path.write_bytes(data)
    open_database(path).close()
    assert os.path.exists(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.fs"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null")):
        with pytest.raises(UnknownSettingError, match="is no file"):
            open_database(path, create=False)


def test_a_file_of_another_user_is_refused_before_a_folder_is_made_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "app.fs"
    open_database(path).close()
    shutil.rmtree(f"{path}.perdure")
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(path).st_uid + 1)
    with pytest.raises(DatabaseAccessError, match="belongs to the user with the number"):
        open_database(path)
    assert not os.path.exists(f"{path}.perdure")
