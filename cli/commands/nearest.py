"""``perdure next`` and ``perdure last``: the job to come, and the one that was done."""

from __future__ import annotations

import click

from perdure.cli.options import Source, database_options, json_option, queue_option

__all__ = ["COMMANDS"]


@click.command(name="next", short_help="Show the job that is next in line.")
@database_options
@queue_option
@json_option
def next_(source: Source, queue: str | None, as_json: bool) -> int:
    """Show the job that is next in line.

    \b
    Example:
      perdure next
    """
    from perdure.cli.details import show_nearest
    from perdure.model import next_job

    return show_nearest(source, queue, next_job, "no job waits", as_json=as_json)


@click.command(short_help="Show the job that was done last.")
@database_options
@queue_option
@json_option
def last(source: Source, queue: str | None, as_json: bool) -> int:
    """Show the job that was done last.

    \b
    Example:
      perdure last --queue mail
    """
    from perdure.cli.details import show_nearest
    from perdure.model import last_job

    return show_nearest(source, queue, last_job, "no job is done", as_json=as_json)


COMMANDS = {"next": next_, "last": last}
