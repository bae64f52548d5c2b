"""Changes to jobs and queues, each in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from perdure.cli.database import change, find_queue, opened
from perdure.cli.errors import CommandError, one_line
from perdure.cli.naming import queue_shown
from perdure.cli.options import Source
from perdure.cli.output import print_json, print_line
from perdure.model import Job, JobRef, Queue, UnknownSettingError, find_job

__all__ = ["change_jobs", "change_queue", "check_agents", "resize_agents"]


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


def resize_agents(queue: Queue, size: int, agent: str) -> None:
    """Let the agents of that name have another size; raises `CommandError` where none has it."""
    try:
        queue.resize(size, agent=agent)
    except UnknownSettingError as error:
        if agent != "main":
            check_agents(queue, agent)
        raise CommandError(one_line(error)) from error


def check_agents(queue: Queue, name: str) -> None:
    """Raise `CommandError` where no agent of a queue has that name."""
    names = sorted({each for record in queue.dispatchers.records() for each in record})
    if name not in names:
        raise CommandError(
            f"queue {queue_shown(queue.name)} has no agent {name!r}"
            + (f", only {', '.join(names)}" if names else " yet")
        )
