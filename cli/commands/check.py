"""``perdure check``: whether all is as it should be."""

from __future__ import annotations

import click

from perdure.cli.options import Source, database_options, json_option

__all__ = ["COMMANDS"]


@click.command(short_help="Check the database, and that its jobs find their code.")
@database_options
@json_option
def check(source: Source, as_json: bool) -> int:
    """Check that the database is sound, and that the code of all waiting jobs is found here.

    Run it with the new code before a deployment. It looks at every job. The exit status is 1
    if something was found.

    \b
    Example:
      perdure check --app-dir /srv/app
    """
    from perdure.cli.maintenance import check_database

    return check_database(source, as_json=as_json)


COMMANDS = {"check": check}
