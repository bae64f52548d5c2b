"""The database of a command: opened, read, and changed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
import transaction
from transaction.interfaces import TransientError
from ZEO.Exceptions import ClientDisconnected

from perdure.cli.errors import CommandError, keeping_output_clean, shown
from perdure.cli.naming import DEFAULT_QUEUE, nearest, queue_name, queues_shown
from perdure.cli.options import Source
from perdure.model import (
    ROOT_KEY,
    DatabaseNotFoundError,
    NotInstalledError,
    Queue,
)
from perdure.model.queues import find_queues
from perdure.storage import open_database

__all__ = ["change", "connected", "find_queue", "opened", "reading"]

T = TypeVar("T")

ATTEMPTS = 10


@contextlib.contextmanager
def opened(source: Source, *, create: bool = False) -> Iterator[Any]:
    """Open the database, which is closed at the end.

    Raises `CommandError` where there is none, unless `create`; else what
    `perdure.storage.open_database` raises.
    """
    # `perdure run`, which makes it, writes all warnings itself.
    with contextlib.nullcontext() if create else _telling_damage():
        database = _open(source, create)
    try:
        yield database
    finally:
        database.close()


@contextlib.contextmanager
def _telling_damage() -> Iterator[None]:
    """Let it be known that ZODB cuts off the end of a damaged file, which it only logs."""
    log = logging.getLogger("ZODB.FileStorage")
    handler = _TellDamage(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _TellDamage(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("Writing truncated data") and isinstance(record.args, tuple):
            name, kept = record.args
            text = (
                f"the end of {name} was damaged, or incomplete as after a kill at a commit, and "
                f"is cut off; it is kept in {kept}"
            )
            click.echo(f"perdure: {shown(text)}", err=True)


def _open(source: Source, create: bool) -> Any:
    try:
        return open_database(source.text, create=create)
    except DatabaseNotFoundError as error:
        if create:
            raise
        raise CommandError(
            f"there is no database {source.text}: `perdure run` makes one; --db or $PERDURE_DB "
            "names another"
        ) from error


@contextlib.contextmanager
def connected(database: Any) -> Iterator[Any]:
    """Give a connection to look at; what is changed through it is dropped.

    What code prints meanwhile, since loading imports it, goes to standard error. Raises
    `CommandError` where the database has no queues.
    """
    manager = transaction.TransactionManager()
    connection = database.open(transaction_manager=manager)
    try:
        manager.begin()
        with keeping_output_clean():
            _check_installed(connection)
            yield connection
    finally:
        manager.abort()
        connection.close()


@contextlib.contextmanager
def reading(source: Source) -> Iterator[Any]:
    """Open the database, and give a connection to look at; see `opened` and `connected`."""
    with opened(source) as database, connected(database) as connection:
        yield connection


def change(database: Any, work: Callable[[Any], T]) -> T:
    """Call `work` with a connection, commit, and return what it returned.

    A conflict is tried again, ten times in all. Raises `CommandError` where the database was
    lost at the commit, which may have taken place.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with keeping_output_clean():
                return _change_once(database, work)
        except ClientDisconnected:
            raise
        except TransientError:
            if attempt == ATTEMPTS:
                raise CommandError(
                    f"others changed the same {ATTEMPTS} times in a row, and nothing was changed "
                    "here: try again"
                ) from None
    raise AssertionError("unreachable")


def _change_once(database: Any, work: Callable[[Any], T]) -> T:
    manager = transaction.TransactionManager()
    connection = database.open(transaction_manager=manager)
    try:
        manager.begin()
        _check_installed(connection)
        done = work(connection)
        try:
            manager.commit()
        except ClientDisconnected as error:
            raise CommandError(
                "the database was lost at the commit, which may have taken place: look when it "
                "is back, before you try again"
            ) from error
        return done
    finally:
        manager.abort()
        connection.close()


def _check_installed(connection: Any) -> None:
    try:
        find_queues(connection)
    except NotInstalledError as error:
        if ROOT_KEY in connection.root():
            raise CommandError(f"{error}: it was written by something else") from error
        raise CommandError(
            "this database has no queues yet: `perdure run` makes them, and so does "
            "perdure.model.install"
        ) from error


def find_queue(connection: Any, text: str) -> Queue:
    """Return the queue that somebody calls `text`; raises `CommandError` with the nearest."""
    queues = find_queues(connection)
    found = queues.get(queue_name(text, queues))
    if found is None:
        hint = nearest(text, [name or DEFAULT_QUEUE for name in queues])
        raise CommandError(
            f"there is no queue {text!r}{hint or f'; there are {queues_shown(queues)}'}"
        )
    return found
