"""Lists and statistics of jobs, by status, queue, agent, callable and time.

What they cost is what they walk, and that is limited: they say how many jobs they have
looked at, and whether that was all.
"""

from __future__ import annotations

import datetime
import heapq
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from perdure.model.agent import Agent
from perdure.model.describing import summary
from perdure.model.done import entry_key
from perdure.model.errors import UnknownSettingError
from perdure.model.given import checked_name
from perdure.model.internal import InternalJob
from perdure.model.moments import checked_moment
from perdure.model.names import name_of
from perdure.model.queue import Queue, WaitingJob
from perdure.model.queues import find_queues
from perdure.model.reports import CallableStatistics, JobList, JobStatistics, JobSummary
from perdure.model.resolving import is_loadable
from perdure.model.status import Status
from perdure.model.stripe import Position

__all__ = ["job_statistics", "last_job", "list_jobs", "next_job"]

WALK_LIMIT = 10_000
LARGEST_LIMIT = 1_000_000_000

_WAITING = frozenset({Status.NEW, Status.PENDING})
_UNDER_WAY = frozenset({Status.ASSIGNED, Status.ACTIVE, Status.CALLBACKS})


def list_jobs(
    connection: Any,
    *,
    status: Status | Iterable[Status] | None = None,
    queue: str | None = None,
    agent: str | None = None,
    callable: Any = None,
    since: datetime.datetime | None = None,
    until: datetime.datetime | None = None,
    failed: bool | None = None,
    limit: int = 50,
    walk_limit: int = WALK_LIMIT,
) -> JobList:
    """Return the jobs that are as wanted: under way, then waiting, then done ones.

    :param status: one status, or several; None: any. Jobs that wait are PENDING.
    :param queue: the name of a queue; None: all of them.
    :param agent: the name of an agent; jobs that wait have none. None: any.
    :param callable: what is called, or its stored name ``module:qualname``; None: anything.
    :param since: aware; only what came later, by `JobSummary.at`, or at that moment.
    :param until: aware; only what came before.
    :param failed: True: only jobs whose result is a failure; False: only others.
    :param limit: so many jobs at most; 1 or more.
    :param walk_limit: so many jobs are looked at, at most; 1 or more.

    Internal jobs are told of as the jobs that they deal with. Works in the transaction of
    `connection`, in its thread, and changes nothing. Raises `QueueNotFoundError`,
    `UnknownSettingError` for a limit or moment that is none, `NotInstalledError`.
    """
    wanted = _Wanted.checked(status, agent, callable, since, until, failed)
    _check_limit("limit", limit)
    walk = _Walk(_chosen(connection, queue), wanted, walk_limit)
    jobs = tuple(itertools.islice(walk, limit + 1))
    return JobList(jobs[:limit], walk.walked, walk.complete and len(jobs) <= limit)


def next_job(
    connection: Any, queue: str | None = None, *, walk_limit: int = WALK_LIMIT
) -> JobSummary | None:
    """Return the job that waits and is to be claimed next, parked ones left out, or None.

    Where more than `walk_limit` jobs were put and not yet seen by any dispatcher, it is the
    next of those that were, if there are any, else one of the first. See `list_jobs`.
    """
    _check_limit("walk_limit", walk_limit)
    wanted = _Wanted(_WAITING, parked=False)
    return next(_Walk(_chosen(connection, queue), wanted, walk_limit), None)


def last_job(connection: Any, queue: str | None = None) -> JobSummary | None:
    """Return the job that was completed last, or None. See `list_jobs`."""
    wanted = _Wanted(frozenset({Status.COMPLETED}))
    return next(_Walk(_chosen(connection, queue), wanted, WALK_LIMIT), None)


def job_statistics(
    connection: Any,
    *,
    status: Status | Iterable[Status] | None = None,
    queue: str | None = None,
    agent: str | None = None,
    callable: Any = None,
    since: datetime.datetime | None = None,
    until: datetime.datetime | None = None,
    failed: bool | None = None,
    walk_limit: int = WALK_LIMIT,
) -> JobStatistics:
    """Return numbers of jobs, and how long they took, by what they call.

    The arguments, and what is raised, are as for `list_jobs`.
    """
    wanted = _Wanted.checked(status, agent, callable, since, until, failed)
    walk = _Walk(_chosen(connection, queue), wanted, walk_limit)
    found: dict[str, _Numbers] = {}
    for job in walk:
        found.setdefault(job.name, _Numbers()).add(job)
    return JobStatistics(
        tuple(found[name].report(name) for name in sorted(found)), walk.walked, walk.complete
    )


@dataclass
class _Numbers:
    """The jobs of one callable."""

    waiting: int = 0
    running: int = 0
    successful: int = 0
    failed: int = 0
    durations: list[timedelta] = field(default_factory=list)

    def add(self, job: JobSummary) -> None:
        if job.status in _WAITING:
            self.waiting += 1
        elif job.status in _UNDER_WAY:
            self.running += 1
        else:
            self.failed += job.failed
            self.successful += not job.failed
            if job.duration is not None:
                self.durations.append(job.duration)

    def report(self, name: str) -> CallableStatistics:
        total = sum(self.durations, timedelta(0))
        return CallableStatistics(
            name=name,
            waiting=self.waiting,
            running=self.running,
            successful=self.successful,
            failed=self.failed,
            shortest=min(self.durations, default=None),
            longest=max(self.durations, default=None),
            mean=total / len(self.durations) if self.durations else None,
        )


@dataclass(frozen=True)
class _Wanted:
    """Which jobs are wanted."""

    statuses: frozenset[Status] = frozenset(Status)
    agent: str | None = None
    name: str | None = None
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None
    failed: bool | None = None
    parked: bool = True

    @classmethod
    def checked(
        cls, status: Any, agent: Any, callable: Any, since: Any, until: Any, failed: Any
    ) -> _Wanted:
        statuses = frozenset(Status)
        if isinstance(status, Status):
            statuses = frozenset({status})
        elif status is not None:
            several = isinstance(status, Iterable) and not isinstance(status, str)
            given: list[Any] = list(status) if several else [status]
            if wrong := [each for each in given if not isinstance(each, Status)]:
                raise UnknownSettingError(
                    f"{wrong[0]!r} is no status: give perdure.model.Status.PENDING, say"
                )
            statuses = frozenset(given)
        if agent is not None:
            checked_name("an agent", agent)
        if failed not in (None, True, False):
            raise UnknownSettingError(f"failed is True, False or None for both, not {failed!r}")
        if Status.PENDING in statuses:
            statuses |= _WAITING
        moments = {"since": since, "until": until}
        for name, value in moments.items():
            if value is not None:
                moments[name] = checked_moment(name, value)
        if callable is not None and not isinstance(callable, str):
            callable = name_of(callable)
        return cls(statuses, agent, callable, moments["since"], moments["until"], failed)

    def any_of(self, statuses: Iterable[Status]) -> bool:
        """Tell whether one of these is wanted."""
        return not self.statuses.isdisjoint(statuses)

    def has(self, job: JobSummary) -> bool:
        """Tell whether `job` is wanted."""
        return (
            job.status in self.statuses
            and (self.agent is None or job.agent == self.agent)
            and (self.name is None or job.name == self.name)
            and (self.failed is None or job.failed is self.failed)
            and (self.since is None or (job.at is not None and job.at >= self.since))
            and (self.until is None or (job.at is not None and job.at < self.until))
        )


class _Walk(Iterator[JobSummary]):
    """Looks at jobs until there are no more, or too many; gives those that are wanted."""

    def __init__(self, queues: list[Queue], wanted: _Wanted, limit: int) -> None:
        _check_limit("walk_limit", limit)
        self.walked = 0
        self.complete = True
        self._queues = queues
        self._wanted = wanted
        self._limit = limit
        self._found = self._find()

    def __next__(self) -> JobSummary:
        return next(self._found)

    def _find(self) -> Iterator[JobSummary]:
        for job, told in self._candidates():
            if self.walked == self._limit:
                self.complete = False
                return
            self.walked += 1
            row = summary(job, **told)
            # What was loaded to be looked at need not stay in memory.
            if job._p_changed is False:
                job._p_deactivate()
            if self._wanted.has(row):
                yield row

    def _candidates(self) -> Iterator[tuple[Any, dict[str, str]]]:
        wanted = self._wanted
        # One that a worker is done with may not be settled yet.
        if wanted.any_of({*_UNDER_WAY, Status.COMPLETED}):
            for queue in self._queues:
                for agent in self._agents(queue):
                    for job in agent:
                        yield _served(job), {"queue": queue.name, "agent": agent.name}
        # One that was lost by its worker waits with an internal job, whatever its status.
        if wanted.agent is None and wanted.any_of({*_WAITING, *_UNDER_WAY}):
            yield from self._waiting()
        if wanted.any_of({Status.COMPLETED}):
            yield from self._done()

    def _waiting(self) -> Iterator[tuple[Any, dict[str, str]]]:
        lines = [self._line(queue) for queue in self._queues]
        reasons = {queue.name: queue.parked() for queue in self._queues}
        for _, queue, each in heapq.merge(*lines, key=entry_key):
            parked = ""
            if each.unresolved:
                reason, _ = reasons[queue.name][each.unresolved]
                parked = f"{each.unresolved} does not resolve: {reason}"
            yield _served(each.job), {"queue": queue.name, "parked": parked}

    def _line(self, queue: Queue) -> Iterator[tuple[Position, Queue, WaitingJob]]:
        for each in queue.waiting(self._limit, parked=self._wanted.parked):
            yield each.position, queue, each

    def _done(self) -> Iterator[tuple[Any, dict[str, str]]]:
        agents = [agent for queue in self._queues for agent in self._agents(queue)]
        entries = [self._done_by(agent) for agent in agents]
        for _, job, agent in heapq.merge(*entries, key=entry_key):
            yield job, {"queue": agent.queue.name, "agent": agent.name}

    def _done_by(self, agent: Agent) -> Iterator[tuple[Any, Any, Agent]]:
        wanted = self._wanted
        for key, job in agent.completed.entries(wanted.since, wanted.until, wanted.failed):
            yield key, job, agent

    def _agents(self, queue: Queue) -> list[Agent]:
        return [
            agent
            for record in queue.dispatchers.records()
            for agent in record.agents()
            if self._wanted.agent in (None, agent.name)
        ]


def _served(job: Any) -> Any:
    return job.serves if is_loadable(job) and isinstance(job, InternalJob) else job


def _chosen(connection: Any, queue: str | None) -> list[Queue]:
    queues = find_queues(connection)
    return queues.values() if queue is None else [queues[queue]]


def _check_limit(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_LIMIT:
        raise UnknownSettingError(
            f"{name} must be a whole number of 1 or more, {LARGEST_LIMIT} at most, not {value!r}"
        )
