"""What happens to dispatchers: events that an application can subscribe to."""

from __future__ import annotations

import enum
import threading
import uuid as uuids
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perdure.model.logs import events

if TYPE_CHECKING:
    from perdure.model.queue import Queue

__all__ = ["DispatcherEvent", "Happening", "announce", "subscribe"]


class Happening(enum.Enum):
    """What happened to a dispatcher."""

    REGISTERED = "registered"
    UNREGISTERED = "unregistered"
    ACTIVATED = "activated"
    DEACTIVATED = "deactivated"
    """By itself when it stopped, or by a sibling that took it for dead."""
    REACTIVATED = "reactivated"
    """It was taken for dead, and is not. ACTIVATED comes too, before."""


@dataclass(frozen=True, slots=True)
class DispatcherEvent:
    """Something that happened, and was committed, to a dispatcher of a queue."""

    happening: Happening
    queue: str
    uuid: uuids.UUID


Handler = Callable[[DispatcherEvent], object]

_handlers: weakref.WeakKeyDictionary[Any, list[Handler]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def subscribe(database: Any, handler: Handler) -> Callable[[], None]:
    """Call `handler` with each `DispatcherEvent` that this process commits to a database.

    It is called after the commit, in the committing thread (a dispatcher's, mostly): it
    must be quick, and use no connection of that thread's. What it raises is logged, and
    nothing else. Returns a function that ends the subscription. From any thread.
    """
    with _lock:
        _handlers.setdefault(database, []).append(handler)

    def unsubscribe() -> None:
        with _lock:
            handlers = _handlers.get(database, [])
            if handler in handlers:
                handlers.remove(handler)

    return unsubscribe


def announce(queue: Queue, happening: Happening, uuid: uuids.UUID) -> None:
    """Tell the subscribers once the transaction of the queue's connection is committed."""
    jar = queue._p_jar
    if jar is None:
        return
    event = DispatcherEvent(happening, queue.name, uuid)
    jar.transaction_manager.get().addAfterCommitHook(_publish, (jar.db(), event))


def _publish(committed: bool, database: Any, event: DispatcherEvent) -> None:
    if not committed:
        return
    with _lock:
        handlers = list(_handlers.get(database, ()))
    for handler in handlers:
        try:
            handler(event)
        # It is the application's, and its fault must not keep the others from hearing.
        except Exception:
            events.error("a subscriber failed at %s", event, exc_info=True)
