"""Perdure's durable model: queues, jobs, and the records of those who work on them.

Nothing here starts a thread or knows an actor. Everything persistent belongs to the
thread of its connection.
"""

if __name__ != "perdure.model":
    raise ImportError(
        f"this is perdure.model, imported as {__name__}: install the project and import it as "
        "perdure.model, since two names would make two classes of every persistent class"
    )

from perdure.model import local
from perdure.model.agent import Agent
from perdure.model.annotations import Annotations
from perdure.model.callbacks import CallbackProxy
from perdure.model.check import check
from perdure.model.clock import Clock, StopSignal, SystemClock
from perdure.model.composition import Composite, parallel, serial
from perdure.model.describing import job_details
from perdure.model.dispatchers import DispatcherRecord, Dispatchers
from perdure.model.environment import Environment, environment
from perdure.model.errors import (
    AbortedError,
    ActorGivenUpError,
    AskInterruptedError,
    BadStatusError,
    CallableNotFoundError,
    DatabaseAccessError,
    DatabaseLockedError,
    DatabaseNotFoundError,
    FailureError,
    IdentityError,
    JobFailedError,
    JobNotFoundError,
    JobTimeoutError,
    NotInstalledError,
    NotStorableError,
    PerdureError,
    ProcessNotReachableError,
    PutInDoubtError,
    QueueNotFoundError,
    ReassignedError,
    StopRequested,
    UnknownMessageError,
    UnknownSettingError,
)
from perdure.model.failure import Failure, FailureLimits, Frame
from perdure.model.groupable import transactional
from perdure.model.happenings import (
    DispatcherEvent,
    Event,
    Happening,
    JobEvent,
    QueueEvent,
    subscribe,
)
from perdure.model.job import Job
from perdure.model.listing import job_statistics, last_job, list_jobs, next_job
from perdure.model.moved import aliases, class_factory, remove_alias, set_alias
from perdure.model.overview import database_status
from perdure.model.packing import pack
from perdure.model.policy import (
    CommitErrored,
    GiveUp,
    Interrupted,
    JobErrored,
    NeverRetry,
    Reschedule,
    Retry,
    RetryCommonForever,
    RetryCommonFourTimes,
    RetryPolicy,
    register_retry_policy,
)
from perdure.model.queue import Queue
from perdure.model.queues import ROOT_KEY, Queues, get_queue, install
from perdure.model.quota import Quota, Quotas
from perdure.model.ref import JobRef, find_job
from perdure.model.reports import (
    AgentStatus,
    CallableStatistics,
    DatabaseStatus,
    DayCount,
    DispatcherStatus,
    JobDetails,
    JobList,
    JobStatistics,
    JobSummary,
    PackReport,
    QueueStatus,
    QuotaStatus,
    StatusCounts,
    UnresolvedName,
)
from perdure.model.retrying import never_fail, try_five_times, wait_for_system_recovery
from perdure.model.status import ARROWS, Arrow, Status, diagram
from perdure.model.unresolved import unresolved

__all__ = [
    "ARROWS",
    "AbortedError",
    "ActorGivenUpError",
    "Agent",
    "AgentStatus",
    "Annotations",
    "Arrow",
    "AskInterruptedError",
    "BadStatusError",
    "CallableNotFoundError",
    "CallableStatistics",
    "CallbackProxy",
    "Clock",
    "CommitErrored",
    "Composite",
    "DatabaseAccessError",
    "DatabaseLockedError",
    "DatabaseNotFoundError",
    "DatabaseStatus",
    "DayCount",
    "DispatcherEvent",
    "DispatcherRecord",
    "DispatcherStatus",
    "Dispatchers",
    "Environment",
    "Event",
    "Failure",
    "FailureError",
    "FailureLimits",
    "Frame",
    "GiveUp",
    "Happening",
    "IdentityError",
    "Interrupted",
    "Job",
    "JobDetails",
    "JobErrored",
    "JobEvent",
    "JobFailedError",
    "JobList",
    "JobNotFoundError",
    "JobRef",
    "JobStatistics",
    "JobSummary",
    "JobTimeoutError",
    "NeverRetry",
    "NotInstalledError",
    "NotStorableError",
    "PackReport",
    "PerdureError",
    "ProcessNotReachableError",
    "PutInDoubtError",
    "Queue",
    "QueueEvent",
    "QueueNotFoundError",
    "QueueStatus",
    "Queues",
    "Quota",
    "QuotaStatus",
    "Quotas",
    "ROOT_KEY",
    "ReassignedError",
    "Reschedule",
    "Retry",
    "RetryCommonForever",
    "RetryCommonFourTimes",
    "RetryPolicy",
    "Status",
    "StatusCounts",
    "StopRequested",
    "StopSignal",
    "SystemClock",
    "UnknownMessageError",
    "UnknownSettingError",
    "UnresolvedName",
    "aliases",
    "check",
    "class_factory",
    "database_status",
    "diagram",
    "environment",
    "find_job",
    "get_queue",
    "install",
    "job_details",
    "job_statistics",
    "last_job",
    "list_jobs",
    "local",
    "never_fail",
    "next_job",
    "pack",
    "parallel",
    "register_retry_policy",
    "remove_alias",
    "serial",
    "set_alias",
    "subscribe",
    "transactional",
    "try_five_times",
    "unresolved",
    "wait_for_system_recovery",
]
