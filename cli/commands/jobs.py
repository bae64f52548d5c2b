"""``perdure jobs``: which jobs there are."""

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


@click.command(short_help="List jobs, count them, or sum them up.")
@database_options
@click.option(
    "--status",
    "statuses",
    type=click.Choice(["pending", "assigned", "active", "callbacks", "completed"]),
    multiple=True,
    help="Only jobs in this status; may be repeated.",
)
@click.option("--failed/--succeeded", "failed", default=None, help="Only done jobs that did so.")
@queue_option
@click.option("--agent", metavar="NAME", help="Only jobs that an agent of this name has or had.")
@click.option("--callable", "name", metavar="MODULE:FUNCTION", help="Only jobs that call this.")
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
    default=50,
    show_default=True,
    help="How many to list at most.",
)
@click.option(
    "--walk",
    metavar="N",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="How many to look at, at most.",
)
@click.option("--counts", is_flag=True, help="Count jobs by queue and status, without a walk.")
@click.option("--statistics", is_flag=True, help="Sum the jobs up by what they call.")
@json_option
def jobs(
    source: Source,
    statuses: tuple[str, ...],
    failed: bool | None,
    queue: str | None,
    agent: str | None,
    name: str | None,
    since: datetime.datetime | None,
    until: datetime.datetime | None,
    limit: int,
    walk: int,
    counts: bool,
    statistics: bool,
    as_json: bool,
) -> int:
    """List jobs: those that run, those that wait, and those that are done, newest first.

    The time of a job is when it ended, began, or may begin. A list says how many jobs it
    looked at, and whether these were all.

    \b
    Example:
      perdure jobs --failed --since 2h
      perdure jobs --statistics --callable app:greet
    """
    from perdure.cli.listing import Filters, show_counts, show_jobs, show_statistics

    filters = Filters(statuses, failed, queue, agent, name, since, until)
    if counts and statistics:
        raise click.UsageError("--counts and --statistics exclude each other: give one of them")
    if counts:
        if filters.needs_walk:
            raise click.UsageError(
                "--counts knows jobs by queue and status alone: use --statistics with the others"
            )
        return show_counts(source, filters, as_json=as_json)
    if statistics:
        return show_statistics(source, filters, walk, as_json=as_json)
    return show_jobs(source, filters, limit, walk, as_json=as_json)


COMMANDS = {"jobs": jobs}
