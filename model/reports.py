"""What a database says of itself: frozen reports, of texts, numbers and moments alone.

They hold no persistent object, so that they may be used anywhere, after the transaction
and in other threads. Moments are aware, in UTC.
"""

from __future__ import annotations

import datetime
import uuid as uuids
from dataclasses import dataclass
from datetime import timedelta

from perdure.model.ref import JobRef
from perdure.model.status import Status
from perdure.model.tally import DayCount

__all__ = [
    "AgentStatus",
    "CallableStatistics",
    "DatabaseStatus",
    "DayCount",
    "DispatcherStatus",
    "JobDetails",
    "JobList",
    "JobStatistics",
    "JobSummary",
    "PackReport",
    "QueueStatus",
    "QuotaStatus",
    "StatusCounts",
    "UnresolvedName",
]


@dataclass(frozen=True, slots=True)
class StatusCounts:
    """How many jobs of a queue have which status.

    `completed` are those that are kept and have not failed, `failed` those that have.
    Callbacks are not counted on their own. A job that was taken from its worker has the status
    that it had, until it has been dealt with; where more than a hundred jobs were put that no
    dispatcher has seen, it may count as `pending`.
    """

    pending: int
    assigned: int
    active: int
    callbacks: int
    completed: int
    failed: int


@dataclass(frozen=True, slots=True)
class QuotaStatus:
    """A quota, its size, and how many jobs hold a place of it."""

    name: str
    size: int
    held: int


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue.

    `parked` is how many of the pending jobs cannot be resolved. `keep_completed` and
    `keep_failed` say how long done jobs are kept (None: 7 days), `agent_size` what `resize`
    has set for agents to come (None: nothing). `days` are the last days on which jobs ended,
    oldest first, seven at most.
    """

    name: str
    paused: bool
    counts: StatusCounts
    parked: int
    quotas: tuple[QuotaStatus, ...]
    agent_size: int | None
    keep_completed: timedelta | None
    keep_failed: timedelta | None
    days: tuple[DayCount, ...]


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """One agent of one process.

    `held` is how many jobs it has now, `completed` and `failed` how many done ones are kept.
    `filter` and `chooser` are names, or None. `failure` is what its last claim raised, or "".
    `keep_completed` and `keep_failed` are None where the queue decides.
    """

    queue: str
    name: str
    dispatcher: uuids.UUID
    size: int
    held: int
    completed: int
    failed: int
    filter: str | None
    chooser: str | None
    failure: str
    keep_completed: timedelta | None
    keep_failed: timedelta | None


@dataclass(frozen=True, slots=True)
class DispatcherStatus:
    """One process, as its records in the queues tell.

    `host` is "" where that is not known. `dead` says that it is active by its record, and
    that its last sign of life, `last_ping`, is too old.
    """

    uuid: uuids.UUID
    host: str
    active: bool
    dead: bool
    activated: datetime.datetime | None
    last_ping: datetime.datetime | None
    agents: tuple[AgentStatus, ...]


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """A whole database; `packed` is when `perdure.model.pack` packed it last, or None."""

    size_bytes: int
    packed: datetime.datetime | None
    queues: tuple[QueueStatus, ...]
    dispatchers: tuple[DispatcherStatus, ...]


@dataclass(frozen=True, slots=True)
class JobSummary:
    """One job in a list.

    `name` is what it calls, `call` the same with the arguments, maybe cut. `at` is from when a
    waiting job may begin, when one under way began, when a done one was completed; None where
    it was claimed and has not begun. `duration` is how long its call took, or takes by now.
    `queue` is None for one that is in none; `agent` is "" for one that no agent has; `parked`
    says why it cannot be resolved, or is "".
    """

    ref: JobRef
    name: str
    call: str
    status: Status
    failed: bool
    queue: str | None
    agent: str
    at: datetime.datetime | None
    duration: timedelta | None
    parked: str


@dataclass(frozen=True, slots=True)
class JobList:
    """Some jobs: those under way, those that wait in claim order, done ones, newest first.

    `walked` is how many jobs were looked at; `complete` is False where there may be more, since
    a limit was met.
    """

    jobs: tuple[JobSummary, ...]
    walked: int
    complete: bool


@dataclass(frozen=True, slots=True)
class CallableStatistics:
    """Numbers of the jobs that call one thing, and how long the calls of the done ones took."""

    name: str
    waiting: int
    running: int
    successful: int
    failed: int
    shortest: timedelta | None
    longest: timedelta | None
    mean: timedelta | None


@dataclass(frozen=True, slots=True)
class JobStatistics:
    """Statistics by what is called, in the order of the names; `walked` as in `JobList`."""

    callables: tuple[CallableStatistics, ...]
    walked: int
    complete: bool


@dataclass(frozen=True, slots=True)
class JobDetails:
    """All about one job.

    `callbacks` are those that it has; `parent` is the job that it is a callback of. `result` is
    the repr of what it returned, `traceback` that of its failure, both cut at 10,000 characters
    and marked so, and "" where there is none. `retry_policy` is "" until the policy is asked
    for the first time. Of a job that cannot be loaded here, `parked` says why, and what cannot
    be known is None or empty.
    """

    ref: JobRef
    name: str
    call: str
    status: Status
    failed: bool
    queue: str | None
    agent: str
    dispatcher: uuids.UUID | None
    begin_after: datetime.datetime | None
    deadline: datetime.datetime | None
    active_start: datetime.datetime | None
    active_end: datetime.datetime | None
    callbacks_end: datetime.datetime | None
    quota_names: tuple[str, ...]
    transactional: bool
    retry_policy: str
    keep_completed: timedelta | None
    keep_failed: timedelta | None
    annotations: tuple[tuple[str, str], ...]
    parent: JobRef | None
    callbacks: tuple[JobSummary, ...]
    parked: str
    result: str
    traceback: str


@dataclass(frozen=True, slots=True)
class UnresolvedName:
    """A stored name that this process cannot resolve, and who needs it.

    `name` is what it stands for now, by the aliases; `waiting` is how many jobs need it, of
    which `parked` have been tried by some process; `first` is one of them. `users` are others who
    need it: agents, for a filter or a chooser, and jobs, for a retry policy.
    """

    name: str
    reason: str
    waiting: int
    parked: int
    first: JobRef | None
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PackReport:
    """What packing did: the size before and after, how many done jobs were forgotten, when."""

    before_bytes: int
    after_bytes: int
    forgotten: int
    at: datetime.datetime
