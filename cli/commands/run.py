"""``perdure run``: a process that runs jobs."""

from __future__ import annotations

from datetime import timedelta

import click

from perdure.cli.options import Source, database_options, duration, queue_size

__all__ = ["COMMANDS"]


@click.command(short_help="Run jobs until SIGTERM or SIGINT.")
@database_options
@click.option(
    "--queue",
    "queues",
    metavar="NAME:SIZE",
    type=queue_size,
    multiple=True,
    help="Work for this queue, with so many jobs at once; may be repeated. The default queue "
    "is :SIZE, or default:SIZE. Without any: all queues, with the sizes that were set before, "
    "else three jobs each.",
)
@click.option(
    "--import",
    "modules",
    metavar="MODULE",
    multiple=True,
    help="Import this module before anything is started; may be repeated.",
)
@click.option(
    "--drain",
    metavar="DURATION",
    type=duration,
    default="10s",
    show_default=True,
    help="How long jobs that run may go on after the first signal.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="One line of text for each event, or one JSON object in a line.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error", "critical"]),
    default="info",
    show_default=True,
    help="The least level that is written; debug tells all that each job goes through.",
)
def run(
    source: Source,
    queues: tuple[tuple[str, int], ...],
    modules: tuple[str, ...],
    drain: timedelta,
    log_format: str,
    log_level: str,
) -> int:
    """Run the jobs of a database until SIGTERM or SIGINT.

    The database and the queues are made where they are missing. What happens is written to
    standard error, a line for each event that matters. At the first signal it claims nothing
    more, and lets what runs end within the drain time; a second signal ends that at once. The
    exit status is 0 then.

    \b
    Example:
      perdure run --queue :4 --queue mail:1 --import app
    """
    from perdure.cli.database import opened
    from perdure.cli.logs import writing_logs
    from perdure.cli.naming import import_module, queue_shown
    from perdure.cli.serving import serve

    names = [name for name, _ in queues]
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.UsageError(f"queue {queue_shown(twice[0])} is given twice: give it one size")
    # Before anything is made: what cannot be imported is no reason for a new database.
    for module in modules:
        import_module(module)
    with writing_logs(log_format, log_level), opened(source, create=True) as database:
        serve(database, dict(queues), drain)
    return 0


COMMANDS = {"run": run}
