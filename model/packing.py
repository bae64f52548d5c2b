"""Packing: what is kept no longer is dropped from the database's file."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import transaction
from persistent.timestamp import TimeStamp
from ZODB.FileStorage.FileStorage import FileStorageError

from perdure.model.environment import environment
from perdure.model.errors import BadStatusError
from perdure.model.moments import checked_duration
from perdure.model.queues import find_queues
from perdure.model.reports import PackReport

__all__ = ["pack"]

ROUNDING_SECONDS = 0.001
_ATTEMPTS = 10


def pack(database: Any, keep: timedelta = timedelta(0)) -> PackReport:
    """Pack a database: drop old revisions, and jobs that are forgotten.

    :param database: an open `ZODB.DB`; jobs may run meanwhile, here and elsewhere.
    :param keep: how far back from the last commit old revisions are kept, for `undo` and for
        transactions that are under way; 0 or more.

    Done jobs whose time is over are forgotten first, in a transaction of its own; that it
    was packed is stored in another. A transaction that has lasted longer than `keep` may meet
    a conflict, after which its job runs again. Raises `BadStatusError` where it is being packed
    already, `UnknownSettingError` for a negative `keep`, `NotInstalledError` where there are no
    queues.
    """
    keep = checked_duration("keep", keep)
    clock = environment(database).clock
    forgotten = _commit(database, lambda queues: _forget(queues, clock.now()))
    before = int(database.getSize())
    now = clock.now()
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

    def note(queues: Any) -> int:
        queues.packed = now
        return 0

    _commit(database, note)
    return PackReport(before, int(database.getSize()), forgotten, now)


def _forget(queues: Any, now: Any) -> int:
    count = 0
    for queue in queues.values():
        for record in queue.dispatchers.records():
            for agent in record.agents():
                before = agent.kept(failed=True) + agent.kept(failed=False)
                agent.forget(now)
                count += before - agent.kept(failed=True) - agent.kept(failed=False)
    return count


def _commit(database: Any, change: Any) -> int:
    """Make a change in a transaction of its own, and try conflicts again."""
    manager = transaction.TransactionManager()
    connection = database.open(transaction_manager=manager)
    try:
        result = 0
        for attempt in manager.attempts(_ATTEMPTS):
            with attempt:
                result = change(find_queues(connection))
        return result
    finally:
        manager.abort()
        connection.close()
