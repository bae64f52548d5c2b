"""The messages between actors.

Each is a frozen, slotted dataclass of immutable parts; none carries a persistent object.
They are grouped by conversation.
"""

from __future__ import annotations

import datetime
import enum
import uuid as uuids
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pykka

from perdure.model.agent import Completion
from perdure.model.happenings import Event
from perdure.model.policy import (
    CommitErrored,
    GiveUp,
    Interrupted,
    JobErrored,
    Reschedule,
    Retry,
)
from perdure.model.ref import JobRef

__all__ = [
    "ActiveJobsAsked",
    "ActorCrashed",
    "ActorGivenUp",
    "AgentJoined",
    "AgentLeft",
    "AgentPoll",
    "AgentReady",
    "BatchRan",
    "Claimed",
    "CancelJob",
    "CommitErrored",
    "DeactivateNow",
    "GiveUp",
    "GroupRan",
    "Interrupted",
    "JobAsked",
    "JobEnded",
    "JobErrored",
    "JobLost",
    "JobRan",
    "JobReport",
    "JobResumable",
    "JobStarted",
    "JobsRan",
    "Outcome",
    "PauseQueue",
    "PollDone",
    "PollNow",
    "PollReport",
    "PollsAsked",
    "QueuePoll",
    "Reschedule",
    "Resize",
    "ResumeQueue",
    "Retry",
    "RetryJob",
    "RunBatch",
    "RunGroup",
    "RunJob",
    "RunJobs",
    "Statistics",
    "StatisticsAsked",
    "StatusAsked",
    "StatusReport",
    "StopClaiming",
    "StopTree",
    "Subscribe",
    "SystemState",
    "UnknownMessageTold",
    "Unsubscribe",
    "Wake",
    "WorkerLost",
]


# Control: an application, or the system's own hooks and timers -> the dispatcher, through
# the supervisor where they come from outside. Each is carried out in the order in which
# it arrives. A Wake or a PollNow that gets lost costs the time to the next poll; a
# Resize that gets lost is seen by its asker, who gets no answer.


@dataclass(frozen=True, slots=True)
class Wake:
    """Something was put into the queue with that oid."""

    queue_oid: bytes


@dataclass(frozen=True, slots=True)
class PollNow:
    """Poll now instead of when it is time.

    Asked, it is answered when the poll is done, and raises `PerdureError` where the database
    does not let it be done.
    """


@dataclass(frozen=True, slots=True)
class Resize:
    """Give an agent of this process another size, 0 or more; stored, and followed at once.

    What runs is not stopped. Asked, it raises `UnknownSettingError` for a queue that the
    system does not work for or a size below 0, and `KeyError` for an agent that it has not.
    """

    queue: str
    agent: str
    size: int


@dataclass(frozen=True, slots=True)
class RetryJob:
    """Let a failed job run once more, or one that waits be the next; see `Job.retry`.

    Asked, it raises what that raises, and `JobNotFoundError`.
    """

    ref: JobRef


@dataclass(frozen=True, slots=True)
class CancelJob:
    """End a job that has not begun; see `Job.cancel`.

    Asked, it raises what that raises, and `JobNotFoundError`.
    """

    ref: JobRef


@dataclass(frozen=True, slots=True)
class PauseQueue:
    """Let no more jobs of a queue begin, in any process; see `Queue.pause`.

    Asked, it raises `QueueNotFoundError`.
    """

    queue: str


@dataclass(frozen=True, slots=True)
class ResumeQueue:
    """Let jobs of a queue begin again; see `Queue.resume`.

    Asked, it raises `QueueNotFoundError`.
    """

    queue: str


@dataclass(frozen=True, slots=True)
class StopClaiming:
    """Claim nothing more; what runs goes on, and is settled."""


@dataclass(frozen=True, slots=True)
class DeactivateNow:
    """Deactivate this process's records: whatever still runs counts as interrupted."""


@dataclass(frozen=True, slots=True)
class StopTree:
    """Stop every actor below the supervisor, without waiting for them."""


# Work: dispatcher -> supervisor (which agents there are), dispatcher -> agent -> worker
# (what to run), worker -> agent -> dispatcher (what was run). The dispatcher keeps what
# it has sent; what the database says an agent has, and it has not sent since the last
# poll, it sends again, and an agent ignores what it has or has dealt with. So a message
# that gets lost costs the time to the next poll.
#
# A job that waits for a coroutine, a future or a retry is with no worker; the system's
# `Suspensions` have it, with what it waits for. Whichever comes first, the JobRan of the
# worker that leaves it or the JobResumable from where that has ended: the agent asks there
# what is to be done with the claim.


@dataclass(frozen=True, slots=True)
class AgentJoined:
    """There is an agent, of this size now."""

    queue: str
    agent: str
    size: int


@dataclass(frozen=True, slots=True)
class AgentLeft:
    """An agent was removed, or its queue was."""

    queue: str
    agent: str


@dataclass(frozen=True, slots=True)
class AgentReady:
    """An agent's actor is up, for the first time or again: send it what it is to run."""

    queue: str
    agent: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job, and the number of the claim that gave it to the agent.

    `asynchronous` says that it takes a worker for an instant only, to begin and to end; `group`
    names what it calls, where it may be run in a group with others, `name` where it is alone;
    `plain` says that it is of the class `Job` itself; `batch`, that a worker may have others to
    run behind it.
    """

    ref: JobRef
    number: int
    asynchronous: bool = field(default=False, compare=False)
    group: str = field(default="", compare=False)
    name: str = field(default="", compare=False)
    plain: bool = field(default=False, compare=False)
    batch: bool = field(default=False, compare=False)

    def __hash__(self) -> int:
        # Asked for so often that what dataclasses make of it costs more than many a job.
        return hash((self.ref.oid, self.number))


@dataclass(frozen=True, slots=True)
class RunJobs:
    """Run these, as soon as there are workers free; the claim is committed.

    `agent_oid` is that of the agent which has them.
    """

    claims: tuple[Claimed, ...]
    agent_oid: bytes = b""


@dataclass(frozen=True, slots=True)
class RunJob:
    """Run this one now."""

    claim: Claimed


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Run these now, in one transaction as far as that goes."""

    claims: tuple[Claimed, ...]
    agent_oid: bytes


@dataclass(frozen=True, slots=True)
class RunBatch:
    """Run these now, one after the other, each as if it were alone.

    Which of them are still to be run is known to the context's `Batches`, under that key.
    """

    agent_oid: bytes
    key: int


class Outcome(enum.Enum):
    """How a worker came back from a job."""

    DONE = "done"
    """The job is completed, or waits again."""
    REASSIGNED = "reassigned"
    """The job was taken away meanwhile."""
    STOPPED = "stopped"
    """The system stops; the job is left as it is."""
    SUSPENDED = "suspended"
    """The job goes on without a worker, and needs one again later."""
    UNBEGUN = "unbegun"
    """The queue was paused before the job had begun, and after it was claimed."""


@dataclass(frozen=True, slots=True)
class JobRan:
    """A worker is free again."""

    worker: str
    claim: Claimed
    outcome: Outcome
    completion: Completion | None = None


@dataclass(frozen=True, slots=True)
class BatchRan:
    """A worker is free again, and this is how it came back from the jobs of its batch.

    With `goes_on` it is not: it is at another one of them, and these wait for something, or were
    run before that.
    """

    worker: str
    ran: tuple[JobRan, ...]
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class GroupRan:
    """A worker is free again, and this is what became of each claim that it was given.

    `alone` are to be run, or gone on with, alone; `rest` were not begun, and may be in another
    group; `stopped` are left as they are, since the system stops.
    """

    worker: str
    completed: tuple[Completion, ...] = ()
    alone: tuple[Claimed, ...] = ()
    rest: tuple[Claimed, ...] = ()
    reassigned: tuple[Claimed, ...] = ()
    stopped: tuple[Claimed, ...] = ()


@dataclass(frozen=True, slots=True)
class JobResumable:
    """What a suspended job waited for has ended: a worker is to go on with it."""

    claim: Claimed


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker's thread is gone, with the job that it ran.

    `fault` is True where not the job's own code ended it, but running it went wrong; `ran` is how
    it came back from those that it had run before, of the same batch.
    """

    worker: str
    claim: Claimed
    reason: str
    fault: bool = False
    ran: tuple[JobRan, ...] = ()


@dataclass(frozen=True, slots=True)
class JobsRan:
    """These were run, and are to be settled; `completed` need not be looked at for that.

    `unbegun` were not, and are to be given back to the queue; `lasting` are at work, and take
    longer than those that share a place.
    """

    queue: str
    agent: str
    claims: tuple[Claimed, ...]
    completed: tuple[Completion, ...] = ()
    unbegun: tuple[Claimed, ...] = ()
    lasting: tuple[Claimed, ...] = ()


@dataclass(frozen=True, slots=True)
class JobLost:
    """The worker of this one is gone: it counts as interrupted."""

    queue: str
    agent: str
    claim: Claimed


# History: workers and the dispatcher -> the supervisor, which keeps the last of them for
# the questions. One that gets lost is missing from the answers, and nothing else. A worker says
# on the `Board` what it is at and what it has run, where the supervisor looks when it is asked:
# a message for each job would cost more than many a job. JobStarted and JobEnded are for those
# that leave their worker in between.


@dataclass(frozen=True, slots=True)
class JobStarted:
    """A worker has begun with a job."""

    ref: JobRef
    call: str
    name: str
    queue: str
    agent: str
    thread: str
    quota_names: tuple[str, ...]
    started: datetime.datetime


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A worker is done with a job; `text` is the result or the traceback, maybe cut."""

    ref: JobRef
    ended: datetime.datetime
    failed: bool
    reassigned: bool
    text: str
    completed: bool


@dataclass(frozen=True, slots=True)
class AgentPoll:
    """What a poll found for one agent.

    `held` is how many jobs it has after the poll, `active_before` how many it had before,
    `claimed` those that were claimed since the poll before (the last 200), `error` what its
    filter or chooser raised, or "".
    """

    agent: str
    size: int
    held: int
    active_before: int
    claimed: tuple[JobRef, ...]
    error: str


@dataclass(frozen=True, slots=True)
class QueuePoll:
    """What a poll found for one queue.

    `active` is False where this process does not work for the queue; `error` says why, or
    is "".
    """

    queue: str
    active: bool
    agents: tuple[AgentPoll, ...]
    error: str


@dataclass(frozen=True, slots=True)
class PollDone:
    """A poll is over. `at` is when, an aware UTC datetime."""

    at: datetime.datetime
    queues: tuple[QueuePoll, ...]


# Questions: an application -> the supervisor, which answers from memory, without the
# database, each with a frozen report.


@dataclass(frozen=True, slots=True)
class StatusAsked:
    """How is the system? Answered with a `StatusReport`."""


@dataclass(frozen=True, slots=True)
class ActiveJobsAsked:
    """What runs now? Answered with a tuple of `JobReport`."""


@dataclass(frozen=True, slots=True)
class JobAsked:
    """What of this job? Answered with a `JobReport`, or None if it is not remembered.

    Raises `JobNotFoundError` for what is no `JobRef`.
    """

    ref: JobRef


@dataclass(frozen=True, slots=True)
class PollsAsked:
    """Which polls were there, newest first? Answered with a tuple of `PollDone`.

    From `since` to before `until`: aware moments, None for no limit.
    """

    since: datetime.datetime | None = None
    until: datetime.datetime | None = None


@dataclass(frozen=True, slots=True)
class StatisticsAsked:
    """How many jobs began in that time? Answered with `Statistics`.

    From `since` to before `until`: aware moments, None for no limit. Of the jobs of this
    process, the last 200 are known, and those that run now.
    """

    since: datetime.datetime | None = None
    until: datetime.datetime | None = None


class SystemState(enum.Enum):
    """The state of a system."""

    STARTING = "starting"
    """There was no poll yet."""
    RUNNING = "running"
    STUCK = "stuck"
    """The last poll is older than it should be."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class StatusReport:
    """How the system is.

    `since_last_poll` is None before the first poll; `active_jobs` counts the jobs that run
    now; `degraded` names the actors that were given up, with the reason; `crashes` counts
    all crashes of actors since the start. `queues` names those that the last poll worked for.
    `host` and `pid` are the process's, `version` is Perdure's there.
    """

    state: SystemState
    uuid: uuids.UUID
    uptime: timedelta
    since_last_poll: timedelta | None
    active_jobs: int
    degraded: tuple[str, ...]
    crashes: int
    queues: tuple[str, ...]
    host: str
    pid: int
    version: str


@dataclass(frozen=True, slots=True)
class JobReport:
    """One job as this process knows it.

    `call` is the job's repr, `name` the name of its callable, `thread` the worker's. `text`
    is the repr of the result or the traceback, cut at 10,000 characters and marked so; ""
    while the job runs. `ended` is None while it runs; moments are aware, in UTC.
    `reassigned` says that the job was taken from this process.
    """

    ref: JobRef
    call: str
    name: str
    queue: str
    agent: str
    thread: str
    quota_names: tuple[str, ...]
    started: datetime.datetime
    ended: datetime.datetime | None
    completed: bool
    failed: bool
    reassigned: bool
    text: str


PollReport = PollDone


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts of jobs.

    `unknown` are those that run, wait again, or were taken away. `shortest_…` and
    `longest_…` name one of each kind (the name of its callable), with its duration, or None.
    """

    started: int
    successful: int
    failed: int
    unknown: int
    shortest_successful: tuple[str, timedelta] | None
    longest_successful: tuple[str, timedelta] | None
    shortest_failed: tuple[str, timedelta] | None
    longest_failed: tuple[str, timedelta] | None


# Events: an actor of the application's -> the supervisor, which subscribes for it to what this
# process commits; from then on that actor is told the events of `perdure.model`, by whatever
# thread has committed them. An event that gets lost is not told again: what became of a job,
# or of a dispatcher, is in the database.


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Tell an actor, after each commit of this process, the events that it brought.

    `actor` is a Pykka reference, such as `self.actor_ref`; the events are told as they are.
    `kinds` says of which classes, as for `perdure.model.subscribe`; a later message for the
    same actor replaces it. It ends with `Unsubscribe`, and when the actor or the system stops.
    Asked, it is answered when it holds, and raises `TypeError` for what is no reference or no
    kind of event.
    """

    actor: pykka.ActorRef[Any]
    kinds: type[Event] | tuple[type[Event], ...] = Event


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Tell an actor no more events; nothing happens where it was told none."""

    actor: pykka.ActorRef[Any]


# Supervision: an actor → whoever its context reports to, the moment it happens. Nothing
# answers and nothing hangs on it: the actor restarts itself, and has logged the same. A
# report that gets lost costs a line in the status.


@dataclass(frozen=True, slots=True)
class ActorCrashed:
    """An actor's `on_start` or `tell` handler raised; the actor restarts in place."""

    actor_name: str
    actor_urn: str
    reason_text: str
    count: int  # of the crashes that are within the actor's crash window, this one included


@dataclass(frozen=True, slots=True)
class ActorGivenUp:
    """An actor crashed too often; from now on it refuses everything but to stop."""

    actor_name: str
    actor_urn: str
    reason_text: str
    count: int


@dataclass(frozen=True, slots=True)
class UnknownMessageTold:
    """An actor was told something that it has no handler for, and dropped it."""

    actor_name: str
    actor_urn: str
    message_type: str
