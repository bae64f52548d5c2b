"""What happens to queues, dispatchers and jobs: events that an application can subscribe to.

An event is told, and what is logged with it is logged, by the process that has committed it,
after the commit.
"""

from __future__ import annotations

import enum
import logging
import threading
import uuid as uuids
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perdure.model.given import checked_callable, checked_database
from perdure.model.logs import events, fields
from perdure.model.ref import JobRef
from perdure.model.resolving import is_record_name

if TYPE_CHECKING:
    from perdure.model.failure import Failure
    from perdure.model.queue import Queue

__all__ = [
    "DispatcherEvent",
    "Event",
    "Happening",
    "JobEvent",
    "QueueEvent",
    "announce",
    "announce_failed",
    "announce_parked",
    "announce_queue",
    "log_after_commit",
    "subscribe",
]

LONGEST_REASON = 1_000


class Happening(enum.Enum):
    """What happened, and to what."""

    REGISTERED = "registered"
    UNREGISTERED = "unregistered"
    ACTIVATED = "activated"
    DEACTIVATED = "deactivated"
    """A dispatcher, by itself when it stopped, or by a sibling that took it for dead."""
    REACTIVATED = "reactivated"
    """A dispatcher was taken for dead, and is not. ACTIVATED comes too, before."""
    QUEUE_ADDED = "queue added"
    JOB_FAILED = "job failed"
    """The result of a job is a failure; it may have been cancelled, or too late, too."""
    JOB_PARKED = "job parked"
    """A job waits for what it needs to be importable, and is run then."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, and was committed. The base of all events."""

    happening: Happening


@dataclass(frozen=True, slots=True)
class DispatcherEvent(Event):
    """It happened to a dispatcher of a queue; `uuid` says which."""

    queue: str
    uuid: uuids.UUID


@dataclass(frozen=True, slots=True)
class QueueEvent(Event):
    """It happened to a queue; `queue` is its name."""

    queue: str


@dataclass(frozen=True, slots=True)
class JobEvent(Event):
    """It happened to a job, or to a callback.

    `queue` is the name of its queue, None where it is in none. `name` is the name of what it
    calls; of a parked one, the name that does not resolve. `reason` is the error with its
    message, or why the name does not resolve, cut at 1,000 characters; the whole failure is
    the result of the job.
    """

    queue: str | None
    ref: JobRef
    name: str
    reason: str


Handler = Callable[[Any], object]
_Subscription = tuple[tuple[type[Event], ...], Handler]

_handlers: weakref.WeakKeyDictionary[Any, list[_Subscription]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def subscribe(
    database: Any,
    handler: Handler,
    kinds: type[Event] | tuple[type[Event], ...] = DispatcherEvent,
) -> Callable[[], None]:
    """Call `handler` with the events that this process commits to a database.

    :param database: the open `ZODB.DB`.
    :param handler: is called with each event after the commit, in the committing thread (a
        dispatcher's or a worker's, mostly): it must be quick, and use no connection of that
        thread's. What it raises is logged, and nothing else.
    :param kinds: of which classes: `DispatcherEvent`, `QueueEvent`, `JobEvent`, a tuple of
        them, or `Event` for all.

    Returns a function that ends the subscription. Raises `TypeError` for kinds that are none.
    From any thread; touches no transaction. A commit that raised although it may have taken
    place is not told of.
    """
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    for kind in wanted:
        if not isinstance(kind, type) or not issubclass(kind, Event):
            raise TypeError(f"{kind!r} is no kind of event: give Event or a class derived from it")
    subscription = wanted, checked_callable("handler", handler)
    with _lock:
        _handlers.setdefault(checked_database(database), []).append(subscription)

    def unsubscribe() -> None:
        with _lock:
            known = _handlers.get(database, [])
            if subscription in known:
                known.remove(subscription)

    return unsubscribe


# Announcing: each is to be called in the transaction that does it.


def announce(queue: Queue, happening: Happening, uuid: uuids.UUID, text: str = "") -> None:
    """Tell of a dispatcher, and log `text` at INFO, once the transaction is committed."""
    if text:
        log_after_commit(queue, text, **fields(queue=queue.name, dispatcher=str(uuid)))
    _tell_after_commit(queue, lambda: DispatcherEvent(happening, queue.name, uuid))


def announce_queue(queue: Queue) -> None:
    """Tell, and log, that a queue was added, once that is committed."""
    log_after_commit(queue, f"queue {queue.name!r} was added", **fields(queue=queue.name))
    _tell_after_commit(queue, lambda: QueueEvent(Happening.QUEUE_ADDED, queue.name))


def announce_failed(job: Any, failure: Failure) -> None:
    """Tell that a job has failed, once that is committed; whoever ends it logs it."""

    def event() -> JobEvent:
        queue = job.queue
        name = None if queue is None else queue.name
        text = str(failure)[:LONGEST_REASON]
        return JobEvent(Happening.JOB_FAILED, name, JobRef.of(job), job.callable_name, text)

    if job._p_oid is not None:
        _tell_after_commit(job, event)


def announce_parked(queue: Queue, job: Any, name: str, reason: str) -> None:
    """Tell that `name` keeps a job from being run, once that is committed.

    Of a record that cannot be read it is logged, too: no code that is missing explains it.
    """
    if is_record_name(name):
        log_after_commit(
            queue,
            f"the {name} cannot be read here, and its job is left alone: {reason}",
            logging.ERROR,
            **fields(queue=queue.name) | {"job": str(JobRef.of(job))},
        )
    _tell_after_commit(
        queue,
        lambda: JobEvent(
            Happening.JOB_PARKED, queue.name, JobRef.of(job), name, reason[:LONGEST_REASON]
        ),
    )


def log_after_commit(persistent: Any, text: str, level: int = logging.INFO, **extra: str) -> None:
    """Log once the transaction of the object's connection is committed.

    At once where it has none.
    """
    jar = persistent._p_jar
    if jar is None:
        events.log(level, text, extra=extra)
    else:
        jar.transaction_manager.get().addAfterCommitHook(_log, (text, level, extra))


def _log(committed: bool, text: str, level: int, extra: dict[str, str]) -> None:
    if committed:
        events.log(level, text, extra=extra)


def _tell_after_commit(persistent: Any, event: Callable[[], Event]) -> None:
    """Tell the subscribers of what `event` returns now, if there are any."""
    jar = persistent._p_jar
    if jar is None:
        return
    database = jar.db()
    with _lock:
        # There may be a million jobs, and nobody who wants to hear of them.
        if not _handlers.get(database):
            return
    jar.transaction_manager.get().addAfterCommitHook(_publish, (database, event()))


def _publish(committed: bool, database: Any, event: Event) -> None:
    if not committed:
        return
    with _lock:
        known = list(_handlers.get(database, ()))
    for wanted, handler in known:
        if not isinstance(event, wanted):
            continue
        try:
            handler(event)
        # It is the application's, and its fault must not keep the others from hearing.
        except Exception:
            events.error(
                "a subscriber failed at %s", event, exc_info=True, extra=_fields_of(event)
            )


def _fields_of(event: Event) -> dict[str, str]:
    found = {}
    for name in ("queue", "uuid", "ref"):
        value = getattr(event, name, None)
        if value is not None:
            found[{"uuid": "dispatcher", "ref": "job"}.get(name, name)] = str(value)
    return found
