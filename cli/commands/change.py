"""``perdure retry`` and ``perdure cancel``: jobs that are to be run again, or not at all."""

from __future__ import annotations

import click

from perdure.cli.options import Source, database_options, json_option

__all__ = ["COMMANDS"]


@click.command(short_help="Run failed jobs again.")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@database_options
@json_option
def retry(source: Source, jobs: tuple[str, ...], as_json: bool) -> int:
    """Let jobs that failed run once more, and jobs that wait be the next.

    All of them or none: where one cannot be, nothing is changed.

    \b
    Example:
      perdure retry 3f 41
    """
    from perdure.cli.changing import change_jobs

    return change_jobs(source, jobs, lambda job: job.retry(), "retried", as_json=as_json)


@click.command(short_help="Cancel jobs that have not begun.")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@database_options
@json_option
def cancel(source: Source, jobs: tuple[str, ...], as_json: bool) -> int:
    """End jobs that have not begun, as failed; their callbacks are called.

    All of them or none: where one cannot be, nothing is changed.

    \b
    Example:
      perdure cancel 3f 41
    """
    from perdure.cli.changing import change_jobs

    return change_jobs(source, jobs, lambda job: job.cancel(), "cancelled", as_json=as_json)


COMMANDS = {"retry": retry, "cancel": cancel}
