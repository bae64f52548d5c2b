"""Setting and showing how long jobs that are done are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from perdure.cli.changing import check_agents
from perdure.cli.database import change, find_queue, opened, reading
from perdure.cli.durations import show_duration
from perdure.cli.errors import CommandError
from perdure.cli.naming import process_shown, queue_shown
from perdure.cli.options import Source
from perdure.cli.output import print_json, print_table
from perdure.model import Agent, Job, Queue, Status, find_job
from perdure.model.queues import find_queues

__all__ = ["Retention", "set_retention", "show_retention"]


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a queue, the agents of one process, or a job says that jobs are kept.

    None: it says nothing. What a queue does not have is "" (`process` and `agent` of a
    queue, say).
    """

    queue: str
    agent: str
    process: str
    job: str
    keep_completed: timedelta | None
    keep_failed: timedelta | None


def set_retention(
    source: Source,
    queue: str | None,
    agent: str | None,
    job: str | None,
    given: Mapping[str, timedelta | None],
    *,
    as_json: bool,
) -> int:
    """Set `given` for a queue, its agents of a name, or a job, and show what holds then."""

    def set_all(connection: Any) -> list[Retention]:
        found: list[Any]
        if job is not None:
            found = [_settable(find_job(connection, job))]
        else:
            owner = find_queue(connection, queue or "")
            found = [owner] if agent is None else _agents(owner, agent)
        for each in found:
            for name, value in given.items():
                setattr(each, name, value)
        return [_retention(each) for each in found]

    with opened(source) as database:
        changed = change(database, set_all)
    _print(changed, as_json)
    return 0


def _settable(job: Job) -> Job:
    # From its claim on, its worker alone writes a job; a change would have it run twice.
    if job.status in (Status.NEW, Status.PENDING):
        return job
    raise CommandError(
        f"{job!r} is {job.status.name}: how long it is kept can be set while it waits"
    )


def _agents(queue: Queue, name: str) -> list[Agent]:
    check_agents(queue, name)
    found = [record.get(name) for record in queue.dispatchers.records()]
    return [agent for agent in found if agent is not None]


def show_retention(source: Source, queue: str | None, agent: str | None, *, as_json: bool) -> int:
    """Print what queues and agents say, those that say nothing included."""
    with reading(source) as connection:
        owners = (
            find_queues(connection).values() if queue is None else [find_queue(connection, queue)]
        )
        found = [
            _retention(each)
            for owner in owners
            for each in _all_of(owner)
            if agent is None or getattr(each, "name", None) == agent and isinstance(each, Agent)
        ]
    _print(found, as_json)
    return 0


def _all_of(queue: Queue) -> Iterator[Queue | Agent]:
    yield queue
    for record in queue.dispatchers.records():
        yield from record.agents()


def _retention(owner: Any) -> Retention:
    queue, agent, process, job = "", "", "", ""
    if isinstance(owner, Queue):
        queue = owner.name
    elif isinstance(owner, Agent):
        queue, agent, process = owner.queue.name, owner.name, str(owner.record.uuid)
    else:
        job = str(owner.ref)
        queue = "" if owner.queue is None else owner.queue.name
    return Retention(queue, agent, process, job, owner.keep_completed, owner.keep_failed)


def _print(found: list[Retention], as_json: bool) -> None:
    if as_json:
        print_json({"retention": found})
        return
    columns = ("queue", "agent", "process", "job", "completed", "failed")
    print_table(
        columns,
        (
            (
                queue_shown(each.queue),
                each.agent,
                process_shown(each.process),
                each.job,
                show_duration(each.keep_completed) or "default",
                show_duration(each.keep_failed) or "default",
            )
            for each in found
        ),
    )
