"""Setting, removing and listing the new names of code that has moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perdure.cli.database import change, opened, reading
from perdure.cli.errors import CommandError
from perdure.cli.naming import find_callable, import_module, nearest
from perdure.cli.options import Source
from perdure.cli.output import print_json, print_line, print_table
from perdure.model import aliases, remove_alias, set_alias

__all__ = ["add_alias", "list_aliases", "take_alias"]


def add_alias(source: Source, old: str, new: str, *, as_json: bool) -> int:
    """Let the stored name `old` stand for `new`, which must be found here."""

    if old == new:
        raise CommandError(
            f"{old!r} stands for itself already, unless `perdure alias` lists it: --remove OLD "
            "takes that back"
        )

    def add(connection: Any) -> None:
        set_alias(connection, old, new)
        if ":" in new:
            find_callable(new)
        else:
            import_module(new)

    return _change(source, add, f"{old} stands for {new} now", as_json=as_json)


def take_alias(source: Source, old: str, *, as_json: bool) -> int:
    """Let the stored name `old` stand for itself again."""

    def take(connection: Any) -> None:
        if old not in (known := aliases(connection)):
            none = "" if known else ", and no other"
            raise CommandError(f"there is no alias {old!r}{nearest(old, known) or none}")
        remove_alias(connection, old)

    return _change(
        source,
        take,
        f"{old} stands for itself again",
        as_json=as_json,
    )


def _change(source: Source, work: Callable[[Any], object], done: str, *, as_json: bool) -> int:
    def change_it(connection: Any) -> dict[str, str]:
        work(connection)
        return aliases(connection)

    with opened(source) as database:
        found = change(database, change_it)
    if as_json:
        print_json({"aliases": found})
    else:
        print_line(done)
    return 0


def list_aliases(source: Source, *, as_json: bool) -> int:
    """Print all that there are."""
    with reading(source) as connection:
        found = aliases(connection)
    if as_json:
        print_json({"aliases": found})
    elif found:
        print_table(("old", "new"), sorted(found.items()))
    else:
        print_line("there are no aliases")
    return 0
