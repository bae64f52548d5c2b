"""Packing: what is kept no longer is dropped from the database's file."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import transaction
from persistent.timestamp import TimeStamp
from ZODB.FileStorage.FileStorage import FileStorageError

from perdure.model.environment import environment
from perdure.model.errors import BadStatusError, UnknownSettingError
from perdure.model.moments import LONGEST, checked_duration, moment
from perdure.model.queues import find_queues
from perdure.model.reports import PackReport
from perdure.model.resolving import stored

__all__ = ["pack"]

T = TypeVar("T")

KEPT = timedelta(minutes=10)
ROUNDING_SECONDS = 0.001
_ATTEMPTS = 10


def pack(database: Any, keep: timedelta = KEPT) -> PackReport:
    """Pack a database: drop old revisions, and jobs that are forgotten.

    :param database: an open `ZODB.DB`; jobs may run meanwhile, here and elsewhere.
    :param keep: how far back from the last commit old revisions are kept, for `undo` and for
        transactions that are under way; 0 or more. Farther, if need be: to where the oldest
        job began that is under way, so that no job misses what it reads.

    Done jobs whose time is over are forgotten first, in a transaction of its own; that it
    was packed is stored in another. A transaction that is no job's, and has lasted longer than
    `keep`, can miss an object that others have let go of meanwhile (`POSKeyError`).

    Raises `BadStatusError` where it is being packed already, `UnknownSettingError` for a `keep`
    that is negative or longer than a hundred years, `NotInstalledError` where there are no
    queues.
    """
    keep = checked_duration("keep", keep)
    clock = environment(database).clock
    if keep > LONGEST:
        raise UnknownSettingError(f"keep must be {LONGEST.days} days at most, not {keep}")
    forgotten, oldest = _commit(database, lambda queues: _forget(queues, clock.now()))
    before = int(database.getSize())
    now = clock.now()
    if oldest is not None:
        keep = max(keep, now - moment(oldest))
    # By the storage's own time, which is that of its host, if it is a server's; rounded up,
    # since the last commit is what has dropped the forgotten jobs.
    last = TimeStamp(database.lastTransaction()).timeTime() + ROUNDING_SECONDS
    try:
        database.pack(last - keep.total_seconds())
    except FileStorageError as error:
        if "packing" not in str(error):
            raise
        raise BadStatusError(
            f"{database!r} is being packed already: wait until that is done"
        ) from error

    def note(queues: Any) -> None:
        queues.packed = now

    _commit(database, note)
    return PackReport(before, int(database.getSize()), forgotten, now)


def _forget(queues: Any, now: datetime.datetime) -> tuple[int, int | None]:
    """Forget what is over; return how many jobs that were, and since when the oldest one runs."""
    count = 0
    begun: list[int] = []
    for queue in queues.values():
        for record in queue.dispatchers.records():
            for agent in record.agents():
                begun += [stored(job, "_active_start", None) or 0 for job in agent]
                before = agent.kept(failed=True) + agent.kept(failed=False)
                agent.forget(now)
                count += before - agent.kept(failed=True) - agent.kept(failed=False)
    return count, min(filter(None, begun), default=None)


def _commit(database: Any, change: Callable[[Any], T]) -> T:
    """Make a change in a transaction of its own, and try conflicts again."""
    manager = transaction.TransactionManager()
    connection = database.open(transaction_manager=manager)
    try:
        for attempt in manager.attempts(_ATTEMPTS):
            with attempt:
                result = change(find_queues(connection))
        return result
    finally:
        manager.abort()
        connection.close()
