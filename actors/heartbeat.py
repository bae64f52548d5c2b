"""The heartbeat: gives the sign of life, whatever the dispatcher is busy with.

Users' filters, choosers and imports run in the dispatcher's thread and may take long;
what is alive must not look dead meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from perdure.actors.base import handles
from perdure.actors.context import Context
from perdure.actors.database import DatabaseActor
from perdure.model.queues import find_queues
from perdure.model.retrying import try_five_times

__all__ = ["HeartbeatActor"]


@dataclass(frozen=True, slots=True)
class _Beat:
    """It is time for a sign of life."""


class HeartbeatActor(DatabaseActor):
    """Writes `last_ping` of this process's records when it is time."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, "heartbeat")

    def on_start(self) -> None:
        """Wait for the first beat."""
        self.tell_later(_Beat(), self._interval())

    def _interval(self) -> timedelta:
        """Return how often to look: often enough for no ping to come late.

        That must not depend on how rarely we poll.
        """
        settings = self._context.settings
        spare = settings.ping_death_interval - settings.ping_interval
        return min(settings.poll_interval, settings.ping_interval / 2, spare / 2)

    @handles(_Beat)
    def _beat(self, message: _Beat) -> None:
        try_five_times(self._ping, "giving a sign of life", self._manager, logged=self._outage_log)
        self.tell_later(_Beat(), self._interval())

    def _ping(self) -> None:
        self._connect()
        for queue in find_queues(self._connection).values():
            record = queue.dispatchers.get(self._context.uuid)
            if record is not None and record.active and record.token == self._context.token:
                record.ping()
