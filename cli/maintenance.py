"""What ``perdure pack`` and ``perdure check`` do."""

from __future__ import annotations

import os
from datetime import timedelta

from perdure.cli.database import connected, opened
from perdure.cli.errors import keeping_output_clean
from perdure.cli.options import Source
from perdure.cli.output import number_shown, print_json, print_line, size_shown
from perdure.model import UnresolvedName, check, pack, unresolved

__all__ = ["check_database", "pack_database"]


def pack_database(source: Source, keep: timedelta, *, as_json: bool) -> int:
    """Pack, and say what came of it; return the exit status."""
    with opened(source) as database:
        with connected(database):
            # Only for its complaint where there are no queues.
            pass
        with keeping_output_clean():
            report = pack(database, keep=keep)
    if as_json:
        print_json(report)
        return 0
    print_line(
        f"{size_shown(report.before_bytes)} before, {size_shown(report.after_bytes)} now; "
        f"{number_shown(report.forgotten, 'job')} forgotten"
    )
    return 0


def check_database(source: Source, *, as_json: bool) -> int:
    """Print what is wrong, and which names are not found; return 1 if anything, else 0."""
    with opened(source) as database:
        with connected(database) as connection:
            names = unresolved(connection)
        with keeping_output_clean():
            violations = check(database)
    if as_json:
        print_json({"violations": violations, "unresolved": names})
    else:
        for violation in violations:
            print_line(violation)
        for each in names:
            print_line(
                f"{each.name} is not found ({each.reason}): needed by "
                f"{', '.join(_users(each))}{_remedy(each)}"
            )
        if not violations and not names:
            print_line("all is well")
    return 1 if violations or names else 0


def _remedy(name: UnresolvedName) -> str:
    # What lies in a script has the path of its file for a module, and can have no alias.
    module = name.name.rpartition(":")[0]
    if module.endswith(".py") or os.sep in module:
        return ""
    return "; `perdure alias` gives it a new name"


def _users(name: UnresolvedName) -> list[str]:
    users = list(name.users)
    if name.waiting:
        first = "" if name.first is None else f", {name.first} among them"
        users.insert(0, f"{number_shown(name.waiting, 'job')} ({name.parked:,} parked{first})")
    return users
