"""What ``perdure jobs`` shows."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from perdure.cli.database import find_queue, reading
from perdure.cli.durations import show_duration, show_moment
from perdure.cli.naming import queue_shown
from perdure.cli.options import Source
from perdure.cli.output import number_shown, print_json, print_line, print_table
from perdure.model import (
    JobDetails,
    JobSummary,
    QueueStatus,
    Status,
    database_status,
    job_statistics,
    list_jobs,
)

__all__ = [
    "STATUSES",
    "Filters",
    "count_row",
    "print_jobs",
    "show_counts",
    "show_jobs",
    "show_statistics",
    "status_shown",
]

STATUSES = ("pending", "assigned", "active", "callbacks", "completed", "failed")
"""What jobs are counted by: their statuses, and what has failed of those that are completed."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which jobs somebody wants to see; None, or no status: whatever they are."""

    statuses: tuple[str, ...] = ()
    failed: bool | None = None
    queue: str | None = None
    agent: str | None = None
    callable: str | None = None
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None

    @property
    def needs_walk(self) -> bool:
        """Whether jobs have to be looked at, since no count is kept by these."""
        others = (self.failed, self.agent, self.callable, self.since, self.until)
        return any(value is not None for value in others)

    def queue_in(self, connection: Any) -> str | None:
        """Return the queue's name in the database; raises `QueueNotFoundError`."""
        return None if self.queue is None else find_queue(connection, self.queue).name

    def in_database(self, connection: Any) -> dict[str, Any]:
        """Return them as `perdure.model.list_jobs` takes them."""
        return {
            "status": [Status(each) for each in self.statuses] or None,
            "queue": self.queue_in(connection),
            "agent": self.agent,
            "callable": self.callable,
            "since": self.since,
            "until": self.until,
            "failed": self.failed,
        }


def show_jobs(source: Source, filters: Filters, limit: int, walk: int, *, as_json: bool) -> int:
    """Print a list of jobs; return the exit status."""
    with reading(source) as connection:
        found = list_jobs(
            connection, limit=limit, walk_limit=walk, **filters.in_database(connection)
        )
    if as_json:
        print_json(found)
        return 0
    print_jobs(found.jobs)
    number = number_shown(len(found.jobs), "job")
    print_line(f"{number}, of {_walked(found.walked, found.complete)}")
    return 0


def print_jobs(jobs: Iterable[JobSummary]) -> None:
    """Print the table of jobs."""
    columns = ("job", "status", "queue", "agent", "time", "took", "call")
    print_table(columns, map(_row, jobs))


def _row(job: JobSummary) -> tuple[object, ...]:
    return (
        job.ref,
        status_shown(job),
        queue_shown(job.queue),
        job.agent,
        show_moment(job.at),
        show_duration(job.duration),
        job.call + (f" (parked: {job.parked})" if job.parked else ""),
    )


def status_shown(job: JobSummary | JobDetails) -> str:
    """Return the status of a job as people see it: ``failed`` and ``parked`` are two of them."""
    if job.parked:
        return "parked"
    return "failed" if job.failed and job.status is Status.COMPLETED else job.status.value


def _walked(walked: int, complete: bool) -> str:
    text = f"{walked:,} looked at"
    return text if complete else f"{text}; there are more (--walk, --limit)"


def show_counts(source: Source, filters: Filters, *, as_json: bool) -> int:
    """Print counts of jobs by queue and status; return the exit status."""
    with reading(source) as connection:
        wanted = filters.queue_in(connection)
        queues = database_status(connection).queues
    queues = tuple(each for each in queues if wanted is None or each.name == wanted)
    statuses = filters.statuses or STATUSES
    if "completed" in statuses and "failed" not in statuses:
        # They are among the completed ones, wherever that is a status.
        statuses = (*statuses, "failed")
    if as_json:
        counts = {
            each.name: {status: getattr(each.counts, status) for status in statuses}
            for each in queues
        }
        print_json({"queues": counts})
        return 0
    columns = ("queue", *(f"#{status}" for status in statuses))
    print_table(columns, (count_row(each, statuses) for each in queues))
    return 0


def count_row(queue: QueueStatus, statuses: Iterable[str]) -> tuple[object, ...]:
    """Return the row of a queue in a table of counts."""
    return (queue_shown(queue.name), *(getattr(queue.counts, each) for each in statuses))


def show_statistics(source: Source, filters: Filters, walk: int, *, as_json: bool) -> int:
    """Print sums by what is called; return the exit status."""
    with reading(source) as connection:
        found = job_statistics(connection, walk_limit=walk, **filters.in_database(connection))
    if as_json:
        print_json(found)
        return 0
    columns = ("callable", "#waiting", "#running", "#successful", "#failed")
    print_table(
        (*columns, "#shortest", "#mean", "#longest"),
        (
            (
                each.name,
                each.waiting,
                each.running,
                each.successful,
                each.failed,
                show_duration(each.shortest),
                show_duration(each.mean),
                show_duration(each.longest),
            )
            for each in found.callables
        ),
    )
    print_line(f"jobs: {_walked(found.walked, found.complete)}")
    return 0
