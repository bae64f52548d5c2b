"""Retry policies: objects that answer one immutable message with one decision.

The conversation: whoever runs a job sends `JobErrored`, `CommitErrored` or
`Interrupted` to the job's policy, and carries out the `Retry`, `Reschedule` or `GiveUp`
that it answers. Nothing gets lost between them, since both are in one thread; what the
policy keeps in itself is stored with the next commit for the job that succeeds.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from persistent import Persistent
from transaction.interfaces import TransientError
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError

from perdure.model.errors import UnknownSettingError
from perdure.model.failure import Failure
from perdure.model.given import checked_callable
from perdure.model.logs import events, fields

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = [
    "CommitErrored",
    "Decision",
    "GiveUp",
    "Interrupted",
    "JobErrored",
    "NeverRetry",
    "PolicyMessage",
    "Reschedule",
    "Retry",
    "RetryCommonForever",
    "RetryCommonFourTimes",
    "RetryPolicy",
    "register_retry_policy",
    "registered_retry_policy",
]

_ZERO = timedelta(0)


@dataclass(frozen=True, slots=True)
class JobErrored:
    """The callable, or the job's `set_up`, raised.

    `data` is what the policy has kept so far, as pairs. `alone` is False where another
    job of the same dispatcher ran beside this one, so that a conflict may be of our own
    making.
    """

    failure: Failure
    data: tuple[tuple[str, Any], ...] = ()
    alone: bool = True


@dataclass(frozen=True, slots=True)
class CommitErrored:
    """The commit of the result raised; `data` and `alone` as in `JobErrored`."""

    failure: Failure
    data: tuple[tuple[str, Any], ...] = ()
    alone: bool = True


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The process that ran the job ended, or had to leave it; `data` as in `JobErrored`."""

    data: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Retry:
    """Run the job again, `after` that time.

    After an error the same worker runs it, and waits meanwhile, keeping place and quotas (no
    worker waits with a coroutine, nor where a future has brought the error);
    after an interruption the job goes back into its queue. Raises `UnknownSettingError` for
    what is no timedelta of zero or more.
    """

    after: timedelta = _ZERO

    def __post_init__(self) -> None:
        if not isinstance(self.after, timedelta) or self.after < _ZERO:
            raise UnknownSettingError(
                f"Retry(after={self.after!r}): give a timedelta of zero or more"
            )


@dataclass(frozen=True, slots=True)
class Reschedule:
    """Back into the queue: first in line for a moment that is past, else held until then.

    `when` is a moment, or a time from now (zero or less: first in line). A naive moment is
    taken as UTC. Raises `UnknownSettingError` for anything else.
    """

    when: datetime.datetime | timedelta

    def __post_init__(self) -> None:
        if not isinstance(self.when, (datetime.datetime, timedelta)):
            raise UnknownSettingError(f"Reschedule({self.when!r}): give a datetime or a timedelta")


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The failure is the job's result; after an interruption, an `AbortedError` is."""


PolicyMessage = JobErrored | CommitErrored | Interrupted
Decision = Retry | Reschedule | GiveUp
PolicyFactory = Callable[["Job"], "RetryPolicy"]


class RetryPolicy(Persistent):
    """Decides what happens to a job after an error or an interruption.

    Subclass it and write `on_receive`. It runs in the worker's thread, in a transaction
    of its own that is aborted afterwards: what it sets on itself is kept all the same,
    and stored with the job's next commit; nothing else that it changes is.

    `job` is the job that it was made for. `data` is a dictionary for what it counts and
    notes; it is sent with each message, as pairs.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.data: dict[str, Any] = {}

    def on_receive(self, message: PolicyMessage) -> Decision:
        """Answer `message`; raising means that it is asked again after a wait."""
        raise NotImplementedError(f"{type(self).__qualname__} has no on_receive")

    def claimed(self) -> None:
        """Begin a new count of errors: the job was claimed once more."""
        self.data.pop("errors", None)
        self._p_changed = True

    def count(self, kind: str) -> int:
        """Add one to the errors of `kind` since the last claim; return the sum."""
        errors = self.data.setdefault("errors", {})
        errors[kind] = errors.get(kind, 0) + 1
        self._p_changed = True
        return int(errors[kind])

    def note(self, kind: str, value: Any) -> None:
        """Keep `value` as the last of its `kind`, and when the job was first active."""
        self.data.setdefault("first_active", self.job.active_start)
        self.data["last_" + kind] = value
        self._p_changed = True


class RetryCommonFourTimes(RetryPolicy):
    """The default: five attempts against transaction errors, ten against interruptions.

    A lost connection is waited for without end; any other error ends the job.

    A conflict in an attempt that ran beside other jobs of its dispatcher is not counted:
    the next attempt runs alone.
    """

    max_transaction_errors: int | None = 4
    """How many transaction errors since the claim are followed by another attempt."""

    max_interruptions: int | None = 9
    """How many interruptions, over the job's life, are followed by another attempt."""

    log_every = 5

    conflicts_without_wait = 10
    """After how many of the conflicts that are not counted the waits grow, 1, 2 … 60 s."""

    def on_receive(self, message: PolicyMessage) -> Decision:
        if isinstance(message, Interrupted):
            return self._interrupted()
        return self._errored(message)

    def _errored(self, message: JobErrored | CommitErrored) -> Decision:
        failure = message.failure
        if failure.check(ClientDisconnected):
            self.note("disconnect", failure)
            return self._again(self.count("disconnect"), None, step_seconds=5)
        if failure.check(TransientError):
            self.note("transaction_error", failure)
            if not message.alone and failure.check(ConflictError):
                # Nearly always the first attempt that has no other beside it succeeds.
                many = self.count("conflict_beside_others") - self.conflicts_without_wait
                return Retry(timedelta(seconds=min(60, max(0, many))))
            return self._again(self.count("transaction_error"), self.max_transaction_errors)
        return GiveUp()

    def _interrupted(self) -> Decision:
        interruptions = self.data["interruptions"] = self.data.get("interruptions", 0) + 1
        self.note("interruption", self.job.active_start)
        return self._again(interruptions, self.max_interruptions)

    def _again(self, count: int, limit: int | None, *, step_seconds: int = 0) -> Decision:
        if limit is not None and count > limit:
            return GiveUp()
        return Retry(timedelta(seconds=min(60, count * step_seconds)))


class RetryCommonForever(RetryCommonFourTimes):
    """For callbacks: never gives up but for an error of the callable itself.

    Transaction errors, lost connections, interruptions, and any error at commit are
    followed by another attempt without end. Two interruptions are so at once, more after
    waits of 1, 2 … 60 s: they may be of the callable's own making.
    """

    max_transaction_errors = None
    max_interruptions = None

    def _errored(self, message: JobErrored | CommitErrored) -> Decision:
        decision = super()._errored(message)
        if isinstance(decision, Retry) or isinstance(message, JobErrored):
            return decision
        count = self.count("commit_error")
        self.note("commit_error", message.failure)
        if count == 1 or count % self.log_every == 0:
            events.critical(
                "%r cannot be committed, %d times so far: %s", self.job, count, message.failure,
                extra=fields(self.job),
            )  # fmt: skip
        return Retry(timedelta(seconds=min(60, count - 1)))

    def _interrupted(self) -> Decision:
        decision = super()._interrupted()
        if not isinstance(decision, Retry):
            return decision
        return Retry(timedelta(seconds=min(60, max(0, self.data["interruptions"] - 2))))


class NeverRetry(RetryPolicy):
    """Gives up at once: for work whose effects are outside of the database."""

    def on_receive(self, message: PolicyMessage) -> Decision:
        return GiveUp()


_registered: dict[str, PolicyFactory] = {}


def register_retry_policy(name: str, factory: PolicyFactory | None) -> None:
    """Register `factory` under `name` in this process; None removes the name.

    The one under ``""`` is the default for jobs, the one under ``"callback"`` for
    callbacks. It is looked up in the process that runs a job, at its first trouble:
    register while a program starts, before jobs run. From any thread; touches no
    transaction. Raises `UnknownSettingError` for a name that is no text.
    """
    if not isinstance(name, str):
        raise UnknownSettingError(f"{name!r} is no name for a retry policy: give a text")
    if factory is None:
        _registered.pop(name, None)
    else:
        _registered[name] = checked_callable(f"the retry policy {name!r}", factory)


def registered_retry_policy(name: str) -> PolicyFactory | None:
    """Return the factory that is registered under `name`, or None."""
    return _registered.get(name)
