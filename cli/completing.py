"""What a shell completes after an option: files, retry policies, the queues of a database."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["DEFAULT_DATABASE", "VARIABLE", "complete_file", "complete_policy", "complete_queue"]

DEFAULT_DATABASE = "perdure.fs"
VARIABLE = "PERDURE_DB"

_POLICIES = ("never", "four-times", "forever")
_DEFAULT_QUEUE = "default"


def complete_file(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Let the shell complete the path of a file."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def complete_policy(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the retry policies that every process has."""
    return [name for name in _POLICIES if name.startswith(incomplete)]


def complete_queue(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the queues of the database, where that is a file that is fast to look into."""
    path = ctx.params.get("db") or os.environ.get(VARIABLE) or DEFAULT_DATABASE
    try:
        names = _queues_in(path)
    # Somebody presses a key: whatever is wrong is told by the command itself.
    except Exception:
        return []
    return [name for name in names if name.startswith(incomplete)]


def _queues_in(path: str) -> list[str]:
    # Without its index the whole file would be read.
    if "://" in path or not os.path.isfile(f"{path}.index"):
        return []
    import logging

    from perdure.cli.errors import keeping_output_clean

    # For reading alone, it is neither locked nor repaired.
    logging.getLogger().addHandler(silent := logging.NullHandler())
    try:
        with keeping_output_clean():
            from ZODB.DB import DB
            from ZODB.FileStorage import FileStorage

            from perdure.model.queues import find_queues

            database = DB(FileStorage(path, read_only=True))
            try:
                with database.transaction() as connection:
                    return [name or _DEFAULT_QUEUE for name in find_queues(connection)]
            finally:
                database.close()
    finally:
        logging.getLogger().removeHandler(silent)
