"""What ``perdure show``, ``traceback``, ``next`` and ``last`` show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perdure.cli.database import reading
from perdure.cli.durations import show_duration, show_moment
from perdure.cli.errors import CommandError
from perdure.cli.listing import Filters, print_jobs, status_shown
from perdure.cli.naming import queue_shown
from perdure.cli.options import Source
from perdure.cli.output import print_facts, print_json, print_line
from perdure.model import JobDetails, JobSummary, job_details

__all__ = ["show_job", "show_nearest", "show_traceback"]


def show_job(source: Source, job: str, *, as_json: bool) -> int:
    """Print all about a job; return the exit status."""
    with reading(source) as connection:
        found = job_details(connection, job)
    if as_json:
        print_json(found)
        return 0
    print_facts(_facts(found))
    for each in found.callbacks:
        print_facts([("callback", f"{each.ref} {status_shown(each)}: {each.call}")])
    if found.traceback:
        print_line("")
        _print_lines(found.traceback)
    return 0


def _facts(job: JobDetails) -> list[tuple[str, object]]:
    took = None
    if job.active_start is not None and job.active_end is not None:
        took = job.active_end - job.active_start
    return [
        ("job", job.ref),
        ("call", job.call),
        ("status", status_shown(job)),
        ("parked", job.parked),
        ("queue", queue_shown(job.queue)),
        ("agent", job.agent),
        ("process", job.dispatcher),
        ("quotas", ", ".join(job.quota_names)),
        ("transactional", job.transactional or None),
        ("may begin", show_moment(job.begin_after)),
        ("has to begin by", show_moment(job.deadline)),
        ("began", show_moment(job.active_start)),
        ("ended", show_moment(job.active_end)),
        ("took", show_duration(took)),
        ("completed", show_moment(job.callbacks_end)),
        ("retry policy", job.retry_policy),
        ("keep if completed", show_duration(job.keep_completed)),
        ("keep if failed", show_duration(job.keep_failed)),
        ("callback of", job.parent),
        *((f"annotation {name}", text) for name, text in job.annotations),
        ("result", job.result),
    ]


def show_traceback(source: Source, job: str, *, as_json: bool) -> int:
    """Print where a job failed; raises `CommandError` where it has not."""
    with reading(source) as connection:
        found = job_details(connection, job)
    if not found.traceback:
        raise CommandError(f"job {found.ref} has no traceback: it is {status_shown(found)}")
    if as_json:
        print_json({"ref": found.ref, "traceback": found.traceback})
    else:
        _print_lines(found.traceback)
    return 0


def _print_lines(text: str) -> None:
    for line in text.splitlines():
        print_line(line)


def show_nearest(
    source: Source,
    queue: str | None,
    find: Callable[[Any, str | None], JobSummary | None],
    nothing: str,
    *,
    as_json: bool,
) -> int:
    """Print the one job that `find` finds, or `nothing`; return the exit status."""
    with reading(source) as connection:
        found = find(connection, Filters(queue=queue).queue_in(connection))
    if as_json:
        print_json({"job": found})
    elif found is None:
        print_line(nothing)
    else:
        print_jobs([found])
    return 0
