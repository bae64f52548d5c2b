"""What commands print: tables for people, one JSON document for machines."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from perdure.cli.errors import shown, writing
from perdure.model import JobRef

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "number_shown",
    "plain",
    "print_facts",
    "print_json",
    "print_line",
    "print_table",
    "size_shown",
]

_WIDE = 1000


def plain(value: Any) -> Any:
    """Return a report as JSON knows it.

    A frozen dataclass becomes an object with its fields; a field that is a timedelta gets
    ``_seconds`` behind its name and is a number. Moments are text in ISO format, in UTC;
    jobs, UUIDs and statuses are text.
    """
    if isinstance(value, JobRef | uuid.UUID):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            _key(field): plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(each) for each in value]
    return value


def _key(field: dataclasses.Field[Any]) -> str:
    # By its type, since a value that is None has none.
    return field.name + ("_seconds" if "timedelta" in str(field.type) else "")


def print_json(document: Any) -> None:
    """Print one JSON document."""
    _write(json.dumps(plain(document), indent=2))


def print_line(text: str) -> None:
    """Print a line, whatever it holds."""
    _write(shown(text))


def _write(text: str) -> None:
    with writing():
        click.echo(text)


def _console() -> Console:
    # Late, since it takes long to import, and who asks for JSON does without it.
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # Nothing is cut for a file or a pipe.
        console = Console(highlight=False, width=_WIDE)
    return console


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; a column whose name begins with ``#`` has numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = column.startswith("#")
        table.add_column(
            column.removeprefix("#"),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    with writing():
        _console().print(table)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values, a line each; those without a value are left out.

    A value is never cut in two, as it would be in a table: a path can be copied.
    """
    told = [(name, _cell(value)) for name, value in facts if value is not None and value != ""]
    width = max((len(name) for name, _ in told), default=0)
    for name, text in told:
        _write(f"{click.style(name, bold=True)}{' ' * (width - len(name))}  {text}")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return shown(str(value))


def number_shown(number: int, what: str) -> str:
    """Return a number of things: ``1 job``, ``2 jobs``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size_shown(size_bytes: int) -> str:
    """Return a size as people read it: ``1.2 MB``."""
    size, units = float(size_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size_bytes} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"
