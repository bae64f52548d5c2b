"""``perdure keep``: how long jobs that are done are kept."""

from __future__ import annotations

from datetime import timedelta

import click

from perdure.cli.completing import complete_queue
from perdure.cli.options import Source, database_options, duration, json_option

__all__ = ["COMMANDS"]


def _retention(text: str) -> timedelta | str:
    return text if text == "default" else duration(text)


@click.command(short_help="Say how long jobs that are done are kept.")
@click.argument("queue", required=False, shell_complete=complete_queue)
@click.option("--agent", metavar="NAME", help="For the agents of this name of QUEUE.")
@click.option("--job", metavar="JOB", help="For one job that waits.")
@click.option(
    "--completed",
    metavar="DURATION",
    type=_retention,
    help="How long those that succeeded are kept; 'default': what is said elsewhere holds.",
)
@click.option(
    "--failed", metavar="DURATION", type=_retention, help="The same for those that failed."
)
@database_options
@json_option
def keep(
    source: Source,
    queue: str | None,
    agent: str | None,
    job: str | None,
    completed: timedelta | str | None,
    failed: timedelta | str | None,
    as_json: bool,
) -> int:
    """Say how long jobs that are done are kept, for a queue, its agents, or one job.

    A job's own word goes before its agent's, and that before its queue's; where none of them
    says anything, it is 7 days. It holds for jobs that are done from now on. Without
    --completed and --failed it shows what holds.

    \b
    Example:
      perdure keep default --completed 1d --failed 30d
    """
    from perdure.cli.keeping import set_retention, show_retention

    if job is not None and (queue is not None or agent is not None):
        raise click.UsageError("--job goes without a QUEUE and an --agent")
    given: dict[str, timedelta | None] = {
        f"keep_{name}": value if isinstance(value, timedelta) else None
        for name, value in (("completed", completed), ("failed", failed))
        if value is not None
    }
    if not given:
        if job is not None:
            raise click.UsageError("say --completed or --failed; `perdure show` shows a job's own")
        return show_retention(source, queue, agent, as_json=as_json)
    if queue is None and job is None:
        raise click.UsageError("say for which QUEUE ('default' is the default one) or --job")
    return set_retention(source, queue, agent, job, given, as_json=as_json)


COMMANDS = {"keep": keep}
