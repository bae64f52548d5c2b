"""Which actors of the application's are told of events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pykka

from perdure.model.happenings import Event, subscribe
from perdure.model.logs import trace

__all__ = ["Subscriptions"]


class Subscriptions:
    """The subscriptions by message to one database; for one thread."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self._ends: dict[str, Callable[[], None]] = {}

    def begin(self, actor: Any, kinds: type[Event] | tuple[type[Event], ...]) -> None:
        """Tell `actor` events of these kinds, and no others any more; see `Subscribe`."""
        _check(actor)
        ended: list[Callable[[], None]] = []

        def tell(event: Event) -> None:
            try:
                actor.tell(event)
            except pykka.ActorDeadError:
                trace.debug("%s has stopped, and is told no more events", actor)
                for end in ended:
                    end()

        end = subscribe(self._database, tell, kinds)
        ended.append(end)
        self.end(actor)
        self._ends[actor.actor_urn] = end

    def end(self, actor: Any) -> None:
        """Tell `actor` no more."""
        _check(actor)
        end = self._ends.pop(actor.actor_urn, None)
        if end is not None:
            end()

    def end_all(self) -> None:
        """Tell nobody any more."""
        for end in self._ends.values():
            end()
        self._ends.clear()


def _check(actor: object) -> None:
    if not isinstance(actor, pykka.ActorRef):
        raise TypeError(f"{actor!r} is no reference to an actor: give its actor_ref")
