"""The demo's database: one file in a folder, which one process has open at a time."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import transaction
import ZODB
from ZODB.FileStorage import FileStorage

from perdure.cli.demo.files import Listing
from perdure.cli.demo.jobs import Index, put_jobs
from perdure.cli.errors import CommandError
from perdure.model import install

__all__ = ["FILE_NAME", "index_of", "make_folder", "open_database", "put_files", "read_index"]

FILE_NAME = "demo.fs"
_ROOT_KEY = "perdure demo"


def make_folder(folder: str | None) -> str:
    """Make the folder for the database, None: a temporary one; return its path.

    Raises `CommandError` where it cannot be made, or has a database already.
    """
    if folder is None:
        return tempfile.mkdtemp(prefix="perdure-demo-")
    path = os.path.abspath(folder)
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise CommandError(f"{path} is a file: name a folder for the database") from None
    except OSError as error:
        raise CommandError(f"the folder {path} cannot be made: {error.strerror}") from error
    if os.path.lexists(os.path.join(path, FILE_NAME)):
        raise CommandError(
            f"{path} has the database of an earlier demo: name another folder, or remove "
            f"{FILE_NAME} there"
        )
    return path


# Not by zodburi: a name of a folder may hold a question mark, which begins options there.
@contextlib.contextmanager
def open_database(file: str, *, read_only: bool = False) -> Iterator[Any]:
    """Open the database at `file`; it is closed at the end.

    With `read_only`, what a kill cut off at the file's end is passed over, and not removed.
    """
    database = ZODB.DB(FileStorage(file, read_only=read_only))
    try:
        yield database
    finally:
        database.close()


def put_files(file: str, listing: Listing) -> None:
    """Make the database, and put the jobs for all files in one transaction."""
    with open_database(file) as database:
        install(database)
        manager = transaction.TransactionManager()
        connection = database.open(transaction_manager=manager)
        try:
            with manager:
                connection.root()[_ROOT_KEY] = put_jobs(connection, listing)
        finally:
            connection.close()


def index_of(connection: Any) -> Index:
    """Return the demo's index, as the connection's transaction sees it."""
    found: Index = connection.root()[_ROOT_KEY]
    return found


@contextlib.contextmanager
def read_index(database: Any) -> Iterator[Index]:
    """Give the demo's index to look at; what is changed in it is dropped."""
    manager = transaction.TransactionManager()
    connection = database.open(transaction_manager=manager)
    try:
        manager.begin()
        yield index_of(connection)
    finally:
        manager.abort()
        connection.close()
