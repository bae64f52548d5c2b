"""The state of a database at a glance: counts and agents, without a walk over jobs."""

from __future__ import annotations

import datetime
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from perdure.model.agent import Agent
from perdure.model.dispatchers import DispatcherRecord
from perdure.model.failure import Failure
from perdure.model.internal import InternalJob
from perdure.model.job import Job
from perdure.model.moments import DAY_MICROSECONDS, moment
from perdure.model.queue import Queue
from perdure.model.queues import find_queues
from perdure.model.reports import (
    AgentStatus,
    DatabaseStatus,
    DayCount,
    DispatcherStatus,
    QueueStatus,
    QuotaStatus,
    StatusCounts,
)
from perdure.model.resolving import is_loadable, status_of, stored
from perdure.model.status import Status

__all__ = ["DAYS_SHOWN", "database_status"]

DAYS_SHOWN = 7
INTERNAL_SEEN = 1000
UNSORTED_SEEN = 100


def database_status(connection: Any) -> DatabaseStatus:
    """Return how a database is: its queues, processes and agents, and its size.

    Works in the transaction of `connection`, in its thread, and changes nothing. It loads
    the records of queues and agents and the jobs that agents have in hand, and no others,
    however many there are. Raises `NotInstalledError` where there are no queues.
    """
    queues = find_queues(connection)
    records: dict[Any, list[DispatcherRecord]] = {}
    for queue in queues.values():
        for record in queue.dispatchers.records():
            records.setdefault(record.uuid, []).append(record)
    return DatabaseStatus(
        size_bytes=int(connection.db().getSize()),
        packed=queues.packed,
        queues=tuple(map(_queue_status, queues.values())),
        dispatchers=tuple(_dispatcher_status(records[uuid]) for uuid in sorted(records)),
    )


def _queue_status(queue: Queue) -> QueueStatus:
    quotas = [queue.quotas[name] for name in queue.quotas]
    return QueueStatus(
        name=queue.name,
        paused=queue.paused,
        counts=_counts(queue),
        parked=sum(number for _, number in queue.parked().values()),
        quotas=tuple(QuotaStatus(quota.name, quota.size, len(quota)) for quota in quotas),
        agent_size=queue.agent_size,
        keep_completed=queue.keep_completed,
        keep_failed=queue.keep_failed,
        days=_days(queue),
    )


def _agents(queue: Queue) -> list[Agent]:
    return [agent for record in queue.dispatchers.records() for agent in record.agents()]


def _counts(queue: Queue) -> StatusCounts:
    counts: Counter[Status] = Counter({Status.PENDING: len(queue)})
    for job in _interrupted(queue):
        counts[Status.PENDING] -= 1
        counts[status_of(job)] += 1
    agents = _agents(queue)
    successful = sum(agent.kept(failed=False) for agent in agents)
    failed = sum(agent.kept(failed=True) for agent in agents)
    for agent in agents:
        for job in agent:
            subject = job.serves if is_loadable(job) and isinstance(job, InternalJob) else job
            status = status_of(subject)
            if status is not Status.COMPLETED:
                counts[status] += 1
            elif isinstance(stored(subject, "_result", None), Failure):
                failed += 1
            else:
                successful += 1
    return StatusCounts(
        pending=counts[Status.PENDING],
        assigned=counts[Status.ASSIGNED],
        active=counts[Status.ACTIVE],
        callbacks=counts[Status.CALLBACKS],
        completed=successful,
        failed=failed,
    )


def _interrupted(queue: Queue) -> Iterator[Job]:
    """Return the jobs that wait with an internal job, as far as these are near at hand."""
    lines = [line for stripe in queue.stripes for key, line in stripe.lines() if key.internal]
    waiting = [line.values() for line in lines]
    if queue.unsorted_count() <= UNSORTED_SEEN:
        waiting += [inbox.backwards(cursor) for inbox, cursor in queue.unsorted()]
    for job in itertools.islice(itertools.chain(*waiting), INTERNAL_SEEN):
        if is_loadable(job) and isinstance(job, InternalJob):
            yield job.serves


def _days(queue: Queue) -> tuple[DayCount, ...]:
    found: dict[int, tuple[int, int]] = {}
    each = [*(agent.day_counts() for agent in _agents(queue))]
    if queue.past is not None:
        each.append(queue.past.items())
    for day, (successful, failed) in (pair for counts in each for pair in counts):
        before = found.get(day, (0, 0))
        found[day] = before[0] + successful, before[1] + failed
    return tuple(DayCount(_date(day), *found[day]) for day in sorted(found)[-DAYS_SHOWN:])


def _date(day: int) -> datetime.date:
    return moment(day * DAY_MICROSECONDS).date()


def _dispatcher_status(records: list[DispatcherRecord]) -> DispatcherStatus:
    active = [record for record in records if record.active]
    pings = [record.last_ping for record in records if record.last_ping is not None]
    activated = [record.activated for record in active if record.activated is not None]
    hosts = [record.incarnation.host for record in active if record.incarnation is not None]
    return DispatcherStatus(
        uuid=records[0].uuid,
        host=hosts[0] if hosts else "",
        active=bool(active),
        dead=any(record.dead for record in active),
        activated=min(activated, default=None),
        last_ping=max(pings, default=None),
        agents=tuple(_agent_status(agent) for record in records for agent in record.agents()),
    )


def _agent_status(agent: Agent) -> AgentStatus:
    return AgentStatus(
        queue=agent.queue.name,
        name=agent.name,
        dispatcher=agent.record.uuid,
        size=agent.size,
        held=len(agent),
        completed=agent.kept(failed=False),
        failed=agent.kept(failed=True),
        filter=agent.filter_name,
        chooser=agent.chooser_name,
        failure="" if agent.failure is None else str(agent.failure),
        keep_completed=agent.keep_completed,
        keep_failed=agent.keep_failed,
    )
