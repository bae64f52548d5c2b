"""Changes to jobs and queues, each in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from perdure.cli.database import change, find_queue, opened
from perdure.cli.naming import queue_shown
from perdure.cli.options import Source
from perdure.cli.output import print_json, print_line
from perdure.model import Job, JobRef, Queue, find_job

__all__ = ["change_jobs", "change_queue"]


def change_jobs(
    source: Source,
    jobs: Sequence[str],
    work: Callable[[Job], object],
    done: str,
    *,
    as_json: bool,
) -> int:
    """Do `work` to all of the jobs or to none, and say that it is `done`."""

    def change_all(connection: Any) -> list[JobRef]:
        # Twice the same is once; the first one that cannot be found or changed ends it.
        found = {job.ref: job for job in [find_job(connection, each) for each in jobs]}
        for job in found.values():
            work(job)
        return list(found)

    with opened(source) as database:
        changed = change(database, change_all)
    if as_json:
        print_json({done: changed})
    else:
        for ref in changed:
            print_line(f"{ref} {done}")
    return 0


def change_queue(
    source: Source,
    queue: str,
    work: Callable[[Queue], object],
    done: str,
    document: Callable[[Queue], dict[str, Any]],
    *,
    as_json: bool,
) -> int:
    """Do `work` to a queue, and say that it is `done`, or print its `document`."""

    def change_it(connection: Any) -> tuple[str, dict[str, Any]]:
        found = find_queue(connection, queue)
        work(found)
        return found.name, {"queue": found.name, **document(found)}

    with opened(source) as database:
        name, changed = change(database, change_it)
    if as_json:
        print_json(changed)
    else:
        print_line(f"queue {queue_shown(name)} {done}")
    return 0
