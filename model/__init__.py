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
    PutInDoubtError,
    QueueNotFoundError,
    ReassignedError,
    StopRequested,
    UnknownMessageError,
    UnknownSettingError,
)
from perdure.model.failure import Failure, FailureLimits, Frame
from perdure.model.happenings import DispatcherEvent, Happening, subscribe
from perdure.model.job import Job
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
from perdure.model.retrying import never_fail, try_five_times, wait_for_system_recovery
from perdure.model.status import ARROWS, Arrow, Status, diagram

__all__ = [
    "FailureLimits",
    "Frame",
    "UnknownMessageError",
    "IdentityError",
    "FailureError",
    "AskInterruptedError",
    "ActorGivenUpError",
    "ARROWS",
    "ROOT_KEY",
    "AbortedError",
    "Agent",
    "Annotations",
    "Arrow",
    "BadStatusError",
    "CallableNotFoundError",
    "CallbackProxy",
    "Clock",
    "CommitErrored",
    "DatabaseAccessError",
    "DatabaseLockedError",
    "DatabaseNotFoundError",
    "DispatcherEvent",
    "DispatcherRecord",
    "Dispatchers",
    "Environment",
    "Failure",
    "GiveUp",
    "Happening",
    "Interrupted",
    "Job",
    "JobErrored",
    "JobFailedError",
    "JobNotFoundError",
    "JobRef",
    "JobTimeoutError",
    "NeverRetry",
    "NotInstalledError",
    "NotStorableError",
    "PerdureError",
    "PutInDoubtError",
    "Queue",
    "QueueNotFoundError",
    "Queues",
    "Quota",
    "Quotas",
    "ReassignedError",
    "Reschedule",
    "Retry",
    "RetryCommonForever",
    "RetryCommonFourTimes",
    "RetryPolicy",
    "Status",
    "StopRequested",
    "StopSignal",
    "SystemClock",
    "UnknownSettingError",
    "check",
    "diagram",
    "environment",
    "find_job",
    "get_queue",
    "install",
    "local",
    "never_fail",
    "register_retry_policy",
    "subscribe",
    "try_five_times",
    "wait_for_system_recovery",
]
