"""Actors that work on the database, in transactions of their own."""

from __future__ import annotations

from typing import Any

import transaction
from ZEO.Exceptions import ClientDisconnected

from perdure.actors.base import Actor
from perdure.actors.context import Context
from perdure.actors.outage import open_connection, says_that_it_is_away
from perdure.model.logs import fields
from perdure.model.retrying import OutageLog

__all__ = ["DatabaseActor"]


class DatabaseActor(Actor):
    """Has a connection, opened when it is first needed, and let go of at a crash and a stop.

    Its outages are logged under the actor's name, and not each time anew.
    """

    def __init__(self, context: Context, name: str) -> None:
        super().__init__(context, name=name)
        self.log_fields = fields(dispatcher=str(context.uuid))
        self._context = context
        self._manager = transaction.TransactionManager()
        self._outage_log = OutageLog(name, context.clock)
        self._connection: Any = None

    def _connect(self) -> None:
        """Make sure that there is a connection; raises what opening one raises.

        Raises `ClientDisconnected` at once where the storage knows that it would be in vain:
        to call such a storage may take half a minute, in which this actor hears nothing.
        """
        if says_that_it_is_away(self._context.database.storage):
            raise ClientDisconnected("the storage has no connection to its server")
        if self._connection is None:
            self._connection = open_connection(
                self._context.database, transaction_manager=self._manager
            )

    def on_crash(self, error: BaseException) -> None:
        """Let go of the connection, whatever state it is in."""
        self._close()

    def on_stop(self) -> None:
        """Let go of the connection."""
        self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                self._manager.abort()
            finally:
                connection.close()
