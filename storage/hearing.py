"""Hearing at once what the other clients of a ZEO server commit."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ZEO.ClientStorage import ClientStorage
from ZODB.interfaces import IMVCCStorage

from perdure.model.environment import Environment, environment

__all__ = ["hear_of_commits", "is_to_be_asked"]


def hear_of_commits(database: Any) -> None:
    """Let the environment of `database` be told of what others commit, if it is a ZEO client.

    The server tells its clients what to forget, and that is told on. Calling it again changes
    nothing; for any other storage nothing is done. From any thread; touches no transaction.
    """
    storage = database.storage
    if isinstance(storage, ClientStorage) and not isinstance(storage._db, _Hearer):
        storage.registerDB(_Hearer(storage._db, environment(database)))


def is_to_be_asked(database: Any) -> bool:
    """Tell whether only a transaction that begins finds out what other processes have committed.

    So it is with storages that keep the versions of objects themselves, as RelStorage does.
    """
    return bool(IMVCCStorage.providedBy(database.storage))


class _Hearer:
    """Stands before what a ZEO client tells of invalidations, and tells them on.

    Called in the client's own thread, which must not wait for anything.
    """

    def __init__(self, database: Any, known: Environment) -> None:
        self._database = database
        self._known = known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def invalidate(self, tid: bytes, oids: Collection[bytes]) -> None:
        """Pass it on first: who is woken by it sees the commit then."""
        oids = [*oids]
        self._database.invalidate(tid, oids)
        self._known.tell_of_commit_elsewhere(oids)

    def invalidateCache(self) -> None:
        """Called after a lost connection: anything may have been changed."""
        self._database.invalidateCache()
        self._known.tell_of_commit_elsewhere(None)
