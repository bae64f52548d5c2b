"""Done jobs in the order of time, forgotten a day's worth at once."""

from __future__ import annotations

import datetime
import heapq
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from BTrees.OOBTree import OOBTree
from persistent import Persistent

from perdure.model.moments import microseconds

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["Completed"]

_DAY_MICROSECONDS = 86_400_000_000


class Completed(Persistent):
    """The done jobs of one agent, newest first.

    They lie in one tree for each day on which jobs are to be forgotten, so that
    forgetting drops a tree and looks at no job.
    """

    def __init__(self) -> None:
        self._days: dict[int, OOBTree] = {}

    def add(self, job: Job, keep: timedelta) -> None:
        """Keep `job` for `keep` from its end on, rounded up to a whole day."""
        key = _key(job)
        last = keep // timedelta(microseconds=1) - key[0]
        day = -(-last // _DAY_MICROSECONDS)
        tree = self._days.get(day)
        if tree is None:
            tree = self._days[day] = OOBTree()
            self._p_changed = True
        tree[key] = job

    def forget(self, now: datetime.datetime) -> bool:
        """Drop the jobs whose time is over; tell whether there were any."""
        over = [day for day in self._days if day * _DAY_MICROSECONDS <= microseconds(now)]
        for day in over:
            del self._days[day]
            self._p_changed = True
        return bool(over)

    def due(self, now: datetime.datetime) -> bool:
        """Tell whether `forget` would drop any."""
        return any(day * _DAY_MICROSECONDS <= microseconds(now) for day in self._days)

    def __contains__(self, job: Job) -> bool:
        if job._callbacks_end is None or job._p_oid is None:
            return False
        key = _key(job)
        return any(key in tree for tree in self._days.values())

    def __len__(self) -> int:
        return sum(len(tree) for tree in self._days.values())

    def __bool__(self) -> bool:
        return any(self._days.values())

    def __iter__(self) -> Iterator[Job]:
        return self.between()

    def between(
        self, since: datetime.datetime | None = None, until: datetime.datetime | None = None
    ) -> Iterator[Job]:
        """Return the jobs that were done from `since` to before `until`, newest first.

        Both are aware moments; None means no limit.
        """
        newest = None if until is None else (1 - microseconds(until), b"")
        oldest = None if since is None else (1 - microseconds(since), b"")
        trees = (tree.items(newest, oldest, excludemax=True) for tree in self._days.values())
        if oldest is None:
            trees = (tree.items(newest) for tree in self._days.values())
        for _, job in heapq.merge(*trees, key=_entry_key):
            yield job


def _entry_key(entry: tuple[Any, Any]) -> Any:
    return entry[0]


def _key(job: Job) -> tuple[int, bytes]:
    """Return what sorts done jobs newest first."""
    assert job._callbacks_end is not None
    return -job._callbacks_end, job._p_oid
