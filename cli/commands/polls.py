"""``perdure polls``: what the processes that run jobs have found."""

from __future__ import annotations

import datetime

import click

from perdure.cli.options import (
    Source,
    database_options,
    json_option,
    past_moment,
    queue_option,
)

__all__ = ["COMMANDS"]


@click.command(short_help="Show the last polls of the processes on this host.")
@database_options
@queue_option
@click.option(
    "--since",
    metavar="TIME",
    type=past_moment,
    help="Only from this time on, in ISO format (without a zone: local time), or so long ago.",
)
@click.option("--until", metavar="TIME", type=past_moment, help="Only before this time.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="How many of each process, at most.",
)
@json_option
def polls(
    source: Source,
    queue: str | None,
    since: datetime.datetime | None,
    until: datetime.datetime | None,
    limit: int,
    as_json: bool,
) -> int:
    """Show the last polls of each process that runs jobs on this host, newest first.

    A poll is a process's look at the queues. They are kept in its memory, 400 of them, and
    asked from it.

    \b
    Example:
      perdure polls --since 10m
    """
    from perdure.cli.polling import show_polls

    return show_polls(source, queue, since, until, limit, as_json=as_json)


COMMANDS = {"polls": polls}
