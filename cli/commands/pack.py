"""``perdure pack``: a smaller file."""

from __future__ import annotations

from datetime import timedelta

import click

from perdure.cli.options import Source, database_options, duration, json_option

__all__ = ["COMMANDS"]


@click.command(short_help="Forget jobs whose time is over, and make the database smaller.")
@click.option(
    "--keep",
    metavar="DURATION",
    type=duration,
    default="10m",
    show_default=True,
    help="Keep what was replaced or removed within this time, so that it can be undone.",
)
@database_options
@json_option
def pack(source: Source, keep: timedelta, as_json: bool) -> int:
    """Forget the done jobs whose time is over, and drop from the database what is of no use.

    Jobs may run meanwhile.

    \b
    Example:
      perdure pack --keep 7d
    """
    from perdure.cli.maintenance import pack_database

    return pack_database(source, keep, as_json=as_json)


COMMANDS = {"pack": pack}
