"""``perdure show`` and ``perdure traceback``: all about one job."""

from __future__ import annotations

import click

from perdure.cli.options import Source, database_options, json_option

__all__ = ["COMMANDS"]


@click.command(short_help="Show all about one job.")
@click.argument("job")
@database_options
@json_option
def show(source: Source, job: str, as_json: bool) -> int:
    """Show all about one job: its call, where it is, and what came of it.

    \b
    Example:
      perdure show 3f
    """
    from perdure.cli.details import show_job

    return show_job(source, job, as_json=as_json)


@click.command(short_help="Show where a job failed.")
@click.argument("job")
@database_options
@json_option
def traceback(source: Source, job: str, as_json: bool) -> int:
    """Show the traceback of a job that failed.

    \b
    Example:
      perdure traceback 3f
    """
    from perdure.cli.details import show_traceback

    return show_traceback(source, job, as_json=as_json)


COMMANDS = {"show": show, "traceback": traceback}
