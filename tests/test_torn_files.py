"""What a loss of power leaves of a shared file, and of the files beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from ZODB.blob import Blob
from ZODB.FileStorage.FileStorage import packed_version

from perdure.model.errors import DatabaseAccessError
from perdure.storage import open_database
from perdure.testing.files import flushes_noted_by


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with three transactions of more than a block each."""
    path = tmp_path / "app.fs"
    for name in ("a", "b", "c"):
        write(path, name)
    return path


def write(path: Path, name: str) -> int:
    """Store something, and return how long the file was before."""
    before = path.stat().st_size if path.exists() else 0
    with opened(path) as root:
        root[name] = name * 3000
        transaction.commit()
    return before


class opened:
    def __init__(self, path: Path) -> None:
        self.database = open_database(path)

    def __enter__(self) -> Any:
        return self.database.open().root()

    def __exit__(self, *args: object) -> None:
        transaction.abort()
        self.database.close()


def names(path: Path) -> list[str]:
    with opened(path) as root:
        assert all(root[name] == name * 3000 for name in root)
        return sorted(root)


@pytest.mark.parametrize("size", [512, 4096])
@pytest.mark.parametrize("index", ["kept", "lost"])
def test_a_beginning_that_was_not_flushed_is_no_transaction(
    path: Path, size: int, index: str
) -> None:
    begin = write(path, "d")
    data = bytearray(path.read_bytes())
    end = (begin // size + 1) * size
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    # As it was before that transaction, at the best.
    (path.parent / "app.fs.index").unlink()
    if index == "kept":
        whole = path.parent / "whole.fs"
        whole.write_bytes(data[:begin])
        names(whole)
        (path.parent / "whole.fs.index").rename(path.parent / "app.fs.index")
    assert names(path) == ["a", "b", "c"]
    assert write(path, "e") == begin
    assert names(path) == ["a", "b", "c", "e"]
    assert (path.parent / "app.fs.tr0").read_bytes() == data[begin:]


def test_damage_with_finished_transactions_behind_it_is_not_cut_off(path: Path) -> None:
    begin = write(path, "d")
    write(path, "e")
    data = bytearray(path.read_bytes())
    data[begin : begin + 512] = bytes(512)
    path.write_bytes(data)
    (path.parent / "app.fs.index").unlink()
    with pytest.raises(DatabaseAccessError, match="it is damaged"):
        open_database(path)
    assert path.read_bytes() == data


def test_a_transaction_is_flushed_before_it_is_marked_as_finished(path: Path) -> None:
    marks = []

    def note(descriptor: int) -> bool:
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            marks.append(path.read_bytes()[begin + 16 : begin + 17])
        return True

    begin = path.stat().st_size
    with opened(path) as root, flushes_noted_by(note):
        root["d"] = "d" * 3000
        transaction.commit()
    assert marks == [b"c", b" "]


def test_an_index_is_flushed_before_it_takes_the_place_of_the_old_one(path: Path) -> None:
    flushed = []

    def note(descriptor: int) -> bool:
        passing = path.parent / "app.fs.index_tmp"
        if passing.exists() and os.path.samestat(os.fstat(descriptor), passing.stat()):
            flushed.append(passing.read_bytes())
        return True

    with flushes_noted_by(note):
        names(path)
    assert flushed[-1] == (path.parent / "app.fs.index").read_bytes()


def test_a_blob_is_flushed_before_its_transaction_is(path: Path) -> None:
    order = []

    def note(descriptor: int) -> bool:
        order.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        return True

    with opened(path) as root, flushes_noted_by(note):
        root["blob"] = Blob(b"content")
        transaction.commit()
        blob = root["blob"].committed()
    assert order.index(blob) < order.index(str(path))


@pytest.mark.parametrize("left", [b"", b"bus", bytes(5)])
def test_a_layout_that_was_lost_before_there_was_a_blob_is_noted_again(
    path: Path, left: bytes
) -> None:
    marker = path.parent / "app.fs.blobs" / ".layout"
    marker.write_bytes(left)
    assert names(path) == ["a", "b", "c"]
    assert marker.read_bytes() == b"bushy"


def test_a_new_file_has_its_beginning_from_the_first_moment(tmp_path: Path) -> None:
    path = tmp_path / "new.fs"
    seen: list[bytes] = []

    def note(descriptor: int) -> bool:
        if path.exists():
            seen.append(path.read_bytes()[:4])
        return True

    with flushes_noted_by(note):
        open_database(path).close()
    assert {*seen} == {packed_version}


# Packing.


@pytest.fixture
def interrupted(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A database whose file was moved away by a pack, which has ended there."""
    database = open_database(path)
    try:
        with database.transaction() as connection:
            connection.root()["a"] = "a" * 3000
        rename = os.rename

        def end_there(source: str, target: str) -> None:
            if source.endswith(".pack"):
                raise KeyboardInterrupt
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", end_there)
            with pytest.raises(KeyboardInterrupt):
                database.pack()
        assert not path.exists()
        yield path
    finally:
        database.close()


@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_a_pack_has_moved_away_is_found(interrupted: Path, create: bool) -> None:
    copies = {
        each: each.read_bytes() for each in interrupted.parent.glob("app.fs.*") if each.is_file()
    }
    again = interrupted.parent / "again"
    again.mkdir()
    for each, content in copies.items():
        if each.suffix in (".old", ".pack"):
            (again / each.name).write_bytes(content)
    database: ZODB.DB = open_database(again / "app.fs", create=create)
    try:
        with database.transaction() as connection:
            assert sorted(connection.root()) == ["a", "b", "c"]
    finally:
        database.close()


def test_a_packed_file_is_flushed_before_it_takes_the_place_of_the_old_one(path: Path) -> None:
    flushed = []

    def note(descriptor: int) -> bool:
        packed = path.parent / "app.fs.pack"
        if packed.exists() and os.path.samestat(os.fstat(descriptor), packed.stat()):
            flushed.append(packed.read_bytes())
        return True

    database = open_database(path)
    try:
        with database.transaction() as connection:
            connection.root()["a"] = "a" * 3000
        with flushes_noted_by(note):
            database.pack()
        assert flushed == [path.read_bytes()]
    finally:
        database.close()
