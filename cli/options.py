"""What several commands are told: the database, the folder of the code, the form of the output."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click

from perdure.cli.completing import (
    DEFAULT_DATABASE,
    VARIABLE,
    complete_file,
    complete_queue,
)
from perdure.cli.durations import parse_duration, parse_moment

__all__ = [
    "Source",
    "database_options",
    "duration",
    "json_option",
    "moment",
    "past_moment",
    "queue_option",
    "queue_size",
]

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the jobs are: what ``--db`` says, a URI or the path of a file."""

    text: str


def database_options(function: Function) -> Function:
    """Give a command ``--db`` and ``--app-dir``; it is called with a `Source` first.

    While it runs, the folder comes first on the import path, and nothing is logged that is
    not asked for.
    """

    @click.option(
        "--db",
        metavar="DATABASE",
        default=DEFAULT_DATABASE,
        envvar=VARIABLE,
        show_default=True,
        show_envvar=True,
        shell_complete=complete_file,
        help="The database: the path of a file, or a URI such as zeo://localhost:8100.",
    )
    @click.option(
        "--app-dir",
        metavar="FOLDER",
        default=".",
        type=click.Path(exists=True, file_okay=False),
        help="The folder of the application's modules; it comes first on the import path. "
        "[default: the working directory]",
    )
    @functools.wraps(function)
    def call(*args: Any, db: str, app_dir: str, **kwargs: Any) -> Any:
        with _importable(app_dir), _silent_logs():
            return function(Source(db), *args, **kwargs)

    return call


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    path = os.path.abspath(folder)
    sys.path.insert(0, path)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(path)


@contextlib.contextmanager
def _silent_logs() -> Iterator[None]:
    """Keep Python from printing what is logged; whoever wants it has a handler."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def json_option(function: Function) -> Function:
    """Give a command ``--json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document instead."
    )(function)


def queue_option(function: Function) -> Function:
    """Give a command ``--queue``."""
    return click.option(
        "--queue",
        metavar="NAME",
        shell_complete=complete_queue,
        help="Only this queue; the default queue, whose name is empty, is called 'default'.",
    )(function)


# Functions, not classes of click's, whose type parameters differ from version to version.
def duration(text: str) -> timedelta:
    """Read the duration of an option; raises `click.BadParameter`."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def moment(text: str) -> datetime.datetime:
    """Read the moment of an option; raises `click.BadParameter`."""
    try:
        return parse_moment(text, _now())
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def past_moment(text: str) -> datetime.datetime:
    """Read a moment, or a duration, which means so long ago; raises `click.BadParameter`."""
    try:
        return _now() - parse_duration(text)
    except OverflowError:
        raise click.BadParameter(f"{text!r} ago is no time that can be kept") from None
    except ValueError:
        pass
    try:
        return parse_moment(text, _now())
    except ValueError as error:
        raise click.BadParameter(f"{error}, or 2h for two hours ago") from None


def _now() -> datetime.datetime:
    # Late, so that `perdure --help` does not wait for a database and its friends.
    from perdure.model import SystemClock

    return SystemClock().now()


def queue_size(text: str) -> tuple[str, int]:
    """Read ``NAME:SIZE``; raises `click.BadParameter`."""
    queue, colon, size = text.rpartition(":")
    if not colon:
        raise click.BadParameter(
            f"{text!r} has no size: write {text}:4, or :4 for the default queue"
        )
    if not (size.isascii() and size.isdigit()) or len(size) > 9:
        raise click.BadParameter(f"{text!r}: the size is a whole number from 0 on, not {size!r}")
    return queue, int(size)
