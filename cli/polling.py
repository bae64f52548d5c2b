"""What ``perdure polls`` shows."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import replace

from perdure.actors import PollDone, PollsAsked, active_processes
from perdure.cli.database import find_queue, reading
from perdure.cli.durations import show_moment
from perdure.cli.naming import queue_shown
from perdure.cli.options import Source
from perdure.cli.output import print_json, print_line, print_table
from perdure.cli.processes import Answer, ask_all

__all__ = ["show_polls"]


def show_polls(
    source: Source,
    queue: str | None,
    since: datetime.datetime | None,
    until: datetime.datetime | None,
    limit: int,
    *,
    as_json: bool,
) -> int:
    """Print the last polls of the processes on this host; return the exit status."""
    with reading(source) as connection:
        wanted = None if queue is None else find_queue(connection, queue).name
        processes = active_processes(connection)
        answers = [
            replace(answer, report=_chosen(answer, wanted, limit))
            for answer in ask_all(processes, PollsAsked(since, until))
        ]
    if as_json:
        found = [{"uuid": a.uuid, "polls": a.report, "error": a.error} for a in answers]
        print_json({"processes": found})
        return 0
    if not answers:
        print_line("no process runs jobs now: start `perdure run`")
    for answer in answers:
        print_line(f"process {answer.uuid}")
        if answer.error:
            print_line(answer.error)
        else:
            columns = ("time", "queue", "agent", "#size", "#active before", "#claimed", "#held")
            print_table((*columns, "error"), _rows(answer.report))
    return 0


def _chosen(answer: Answer, queue: str | None, limit: int) -> tuple[PollDone, ...]:
    polls: tuple[PollDone, ...] = answer.report or ()
    if queue is not None:
        of_queue = (
            replace(poll, queues=tuple(each for each in poll.queues if each.queue == queue))
            for poll in polls
        )
        polls = tuple(poll for poll in of_queue if poll.queues)
    return polls[:limit]


def _rows(polls: tuple[PollDone, ...]) -> Iterator[tuple[object, ...]]:
    for poll in polls:
        for queue in poll.queues:
            if not queue.agents:
                yield (show_moment(poll.at), queue_shown(queue.queue), *[""] * 5, queue.error)
            for agent in queue.agents:
                yield (
                    show_moment(poll.at),
                    queue_shown(queue.queue),
                    agent.agent,
                    agent.size,
                    agent.active_before,
                    len(agent.claimed),
                    agent.held,
                    agent.error or queue.error,
                )
