"""What a running job can reach: itself, its queue, its dispatcher, its live annotations."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import transaction

from perdure.model.environment import environment
from perdure.model.errors import BadStatusError, JobNotFoundError, UnknownSettingError
from perdure.model.given import checked_stored

if TYPE_CHECKING:
    from perdure.model.dispatchers import DispatcherRecord
    from perdure.model.job import Job
    from perdure.model.queue import Queue

__all__ = [
    "get_agent_name",
    "get_dispatcher",
    "get_job",
    "get_live_annotation",
    "get_queue",
    "set_live_annotation",
]

_OTHER_PROCESSES_POLL_SECONDS = 0.25


class Current(Protocol):
    """What runs in this thread, or, for an event loop, in this task."""

    @property
    def job(self) -> Job:
        """The job that runs."""

    def works_for(self, job: Job) -> bool:
        """Tell whether `job` is that one, or the one that was claimed, not some copy."""


@dataclass(slots=True)
class Running:
    """The job that runs in this thread, and the one that the thread works for."""

    job: Job
    root: Job

    def works_for(self, job: Job) -> bool:
        return job is self.job or job is self.root


_running: contextvars.ContextVar[Current | None] = contextvars.ContextVar(
    "perdure running job", default=None
)


def enter(current: Current) -> contextvars.Token[Current | None]:
    """Make `current` what runs here, until `leave`."""
    return _running.set(current)


def leave(token: contextvars.Token[Current | None]) -> None:
    """Have what ran here before."""
    _running.reset(token)


class running:  # noqa: N801
    """Make `job` the one that runs here."""

    def __init__(self, job: Job, root: Job) -> None:
        self._running = Running(job, root)

    def __enter__(self) -> None:
        self._token = enter(self._running)

    def __exit__(self, *exc_info: object) -> None:
        leave(self._token)


def current() -> Current | None:
    """Return what runs in this thread, or None."""
    return _running.get()


def is_running(job: Job) -> bool:
    """Tell whether this thread works for `job`, and through the same connection.

    Then its record is this thread's to write.
    """
    found = _running.get()
    return found is not None and found.works_for(job)


def get_job() -> Job:
    """Return the job that runs in this thread; raises `BadStatusError` outside of one."""
    found = _running.get()
    if found is None:
        raise BadStatusError("no job runs in this thread: this works in a job's code only")
    return found.job


def get_queue() -> Queue | None:
    """Return the queue of the running job; None for one called by hand."""
    return get_job().queue


def get_agent_name() -> str | None:
    """Return the name of the agent that has the running job; None if called by hand."""
    agent = get_job().agent
    return None if agent is None else agent.name


def get_dispatcher() -> DispatcherRecord | None:
    """Return the record of the running job's dispatcher; None if called by hand."""
    agent = get_job().agent
    return None if agent is None else agent.record


def set_live_annotation(name: str, value: object, job: Job | None = None) -> None:
    """Set an annotation in a transaction of its own, committed when this returns.

    So it is seen while the job (default: the one that runs here) still runs; the
    caller's transaction is not touched. Raises `NotStorableError` for what cannot be
    stored, `JobNotFoundError` for a job that is not stored yet.
    """
    target = get_job() if job is None else checked_stored(job)
    database = target._p_jar and target._p_jar.db()
    with _own_view(target) as (manager, found):
        for attempt in manager.attempts(5):
            with attempt:
                found._p_activate()
                found.annotations[name] = value
    if database is not None:
        environment(database).announce_change()


def get_live_annotation(
    name: str, default: Any = None, timeout: timedelta = timedelta(0), job: Job | None = None
) -> Any:
    """Return an annotation as it is in the database now, not as this transaction sees it.

    Where the job (default: the one that runs here) has none of that name, wait up to
    `timeout` for one to be set, then return `default`. The caller's transaction is not
    touched. Raises `BadStatusError` without a job outside of one, `JobNotFoundError` for a
    job that is not stored yet.
    """
    if not isinstance(timeout, timedelta):
        raise UnknownSettingError(f"timeout must be a timedelta, not {timeout!r}")
    target = get_job() if job is None else job
    with _own_view(target) as (manager, found):
        known = environment(found._p_jar.db())
        deadline = known.clock.monotonic() + timeout.total_seconds()
        while True:
            seen = known.changes()
            with manager:
                annotations = found.annotations
                if name in annotations:
                    return annotations[name]
            left = deadline - known.clock.monotonic()
            if left <= 0:
                return default
            known.wait_for_change(seen, min(left, _OTHER_PROCESSES_POLL_SECONDS))


@contextlib.contextmanager
def _own_view(job: Job) -> Iterator[tuple[transaction.TransactionManager, Job]]:
    """Open a connection of its own, with `job` in it."""
    if checked_stored(job)._p_jar is None:
        raise JobNotFoundError(f"{job!r} was not stored yet: put it first")
    database = job._p_jar.db()
    manager = transaction.TransactionManager()
    connection = database.open(transaction_manager=manager)
    # In it, the job is not this thread's to write.
    token = _running.set(None)
    try:
        yield manager, connection.get(job._p_oid)
    finally:
        _running.reset(token)
        manager.abort()
        connection.close()
