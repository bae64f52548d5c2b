"""What ``perdure status`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perdure.actors import StatusAsked, active_processes
from perdure.cli.database import connected, opened
from perdure.cli.durations import show_duration, show_moment
from perdure.cli.listing import STATUSES, count_row
from perdure.cli.naming import process_shown, queue_shown
from perdure.cli.options import Source
from perdure.cli.output import plain, print_facts, print_json, print_line, print_table, size_shown
from perdure.cli.processes import Answer, ask_all
from perdure.model import (
    AgentStatus,
    DatabaseStatus,
    DispatcherStatus,
    QueueStatus,
    database_status,
)

__all__ = ["show_status"]


def show_status(source: Source, *, as_json: bool) -> int:
    """Print the status of a database and its processes; return the exit status."""
    with opened(source) as database, connected(database) as connection:
        status = database_status(connection)
        processes = active_processes(connection)
        name = str(database.storage.getName())
        # While the database is open, which some process may share with this one.
        live = {answer.uuid: answer for answer in ask_all(processes, StatusAsked())}
    if as_json:
        print_json(_document(name, status, live))
    else:
        _print(name, status, live)
    return 0


def _document(name: str, status: DatabaseStatus, live: dict[Any, Answer]) -> dict[str, Any]:
    document = {"database": name, **plain(status)}
    for each, dispatcher in zip(document["dispatchers"], status.dispatchers, strict=True):
        answer = live.get(dispatcher.uuid)
        each["live"] = None if answer is None else plain(answer.report)
        each["live_error"] = "" if answer is None else answer.error
    return document


def _print(name: str, status: DatabaseStatus, live: dict[Any, Answer]) -> None:
    packed = "never packed" if status.packed is None else f"packed {show_moment(status.packed)}"
    print_facts([("database", f"{name}, {size_shown(status.size_bytes)}, {packed}")])
    print_line("")
    columns = ("queue", *(f"#{each}" for each in STATUSES), "#parked", "note")
    print_table(columns, (_queue_row(each) for each in status.queues))
    quotas = [(each, quota) for each in status.queues for quota in each.quotas]
    if quotas:
        print_line("")
        print_table(
            ("quota", "queue", "#held", "#size"),
            (
                (quota.name, queue_shown(queue.name), quota.held, quota.size)
                for queue, quota in quotas
            ),
        )
    print_line("")
    _print_processes(status.dispatchers, live)
    agents = [agent for each in status.dispatchers for agent in each.agents]
    if agents:
        print_line("")
        columns = ("agent", "queue", "process", "#held", "#size", "#completed", "#failed", "note")
        print_table(columns, map(_agent_row, agents))


def _queue_row(queue: QueueStatus) -> tuple[object, ...]:
    notes = ["paused"] if queue.paused else []
    if queue.keep_completed is not None:
        notes.append(f"keeps completed {show_duration(queue.keep_completed)}")
    if queue.keep_failed is not None:
        notes.append(f"keeps failed {show_duration(queue.keep_failed)}")
    return (*count_row(queue, STATUSES), queue.parked, ", ".join(notes))


def _print_processes(processes: Sequence[DispatcherStatus], live: dict[Any, Answer]) -> None:
    if not processes:
        print_line("no process has run jobs yet: start `perdure run`")
        return
    columns = ("process", "host", "state", "#pid", "up", "#runs", "last ping", "note")
    print_table(columns, (_process_row(each, live.get(each.uuid)) for each in processes))


def _process_row(process: DispatcherStatus, answer: Answer | None) -> tuple[object, ...]:
    report = None if answer is None else answer.report
    state = "dead" if process.dead else "active" if process.active else "ended"
    notes = [] if answer is None or not answer.error else [answer.error]
    if report is not None:
        state = report.state.value
        notes += [f"degraded: {each}" for each in report.degraded]
        notes += [f"{report.crashes} crashes"] if report.crashes else []
    return (
        process_shown(process.uuid),
        process.host,
        state,
        "" if report is None else str(report.pid),
        "" if report is None else show_duration(report.uptime),
        "" if report is None else report.active_jobs,
        show_moment(process.last_ping),
        "; ".join(notes),
    )


def _agent_row(agent: AgentStatus) -> tuple[object, ...]:
    notes = [f"filter {agent.filter}"] if agent.filter else []
    notes += [f"chooser {agent.chooser}"] if agent.chooser else []
    notes += [f"its last claim failed: {agent.failure}"] if agent.failure else []
    return (
        agent.name,
        queue_shown(agent.queue),
        process_shown(agent.dispatcher),
        agent.held,
        agent.size,
        agent.completed,
        agent.failed,
        "; ".join(notes),
    )
