"""``perdure status``: how a database and its processes are."""

from __future__ import annotations

import click

from perdure.cli.options import Source, database_options, json_option

__all__ = ["COMMANDS"]


@click.command(short_help="Show queues, agents, processes and the database.")
@database_options
@json_option
def status(source: Source, as_json: bool) -> int:
    """Show how many jobs each queue has, who works for it, and how large the database is.

    It takes no longer with a million jobs. What a process on this host knows of itself is
    asked from it.

    \b
    Example:
      perdure status
    """
    from perdure.cli.statuses import show_status

    return show_status(source, as_json=as_json)


COMMANDS = {"status": status}
