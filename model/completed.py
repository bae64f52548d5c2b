"""Done jobs in the order of time, forgotten a day's worth at once."""

from __future__ import annotations

import datetime
import heapq
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from BTrees.OOBTree import OOBTree
from persistent import Persistent
from ZODB.utils import u64

from perdure.model.moments import DAY_MICROSECONDS, checked_moment, microseconds

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["Completed", "Shelf", "entry_key"]

Shelf = tuple[int, bool]
"""The day (since 1970) on which some done jobs are forgotten, and whether they failed."""


class DoneJobs(OOBTree):
    """The done jobs of one shelf, by minus the moment of their end, and their oids as numbers.

    Its nodes are small: a leaf is written for each job that is done alone.
    """

    max_leaf_size = 12
    max_internal_size = 20


class Completed(Persistent):
    """The done jobs of one agent, newest first.

    They lie in one tree for each day on which jobs are to be forgotten, so that
    forgetting drops a tree and looks at no job. Failed ones lie in trees of their own, so
    that a few of them are found among many others.
    """

    def __init__(self) -> None:
        self._shelves: dict[Shelf, DoneJobs] = {}

    def add(self, job: Job, keep: timedelta) -> Shelf:
        """Keep `job` for `keep` from its end on, rounded up to a whole day; return where."""
        assert job._callbacks_end is not None
        return self.put(job, job._callbacks_end, keep, failed=job.failed)

    def put(self, job: Job, ended: int, keep: timedelta, *, failed: bool) -> Shelf:
        """Do as `add` for a job that ended at `ended`, in microseconds; does not load it."""
        key = -ended, u64(job._p_oid)
        last = keep // timedelta(microseconds=1) + ended
        shelf = -(-last // DAY_MICROSECONDS), failed
        tree = self._shelves.get(shelf)
        if tree is None:
            tree = self._shelves[shelf] = DoneJobs()
            self._p_changed = True
        tree[key] = job
        return shelf

    def remove(self, job: Job) -> Shelf:
        """Take `job` out; return where it was. Raises `KeyError` where it was nowhere."""
        key = _key(job)
        for shelf, tree in self._shelves.items():
            if tree.pop(key, None) is not None:
                if not tree:
                    del self._shelves[shelf]
                    self._p_changed = True
                return shelf
        raise KeyError(job)

    def forget(self, now: datetime.datetime) -> list[Shelf]:
        """Drop the jobs whose time is over; return the shelves that they were on."""
        over = self._over(now)
        for shelf in over:
            del self._shelves[shelf]
            self._p_changed = True
        return over

    def due(self, now: datetime.datetime) -> bool:
        """Tell whether `forget` would drop any."""
        return bool(self._over(now))

    def _over(self, now: datetime.datetime) -> list[Shelf]:
        today = microseconds(checked_moment("now", now)) // DAY_MICROSECONDS
        return [shelf for shelf in self._shelves if shelf[0] <= today]

    def counts(self) -> dict[Shelf, int]:
        """Return how many jobs lie on each shelf; walks over their keys."""
        return {shelf: len(tree) for shelf, tree in self._shelves.items()}

    def __contains__(self, job: Job) -> bool:
        if job._callbacks_end is None or job._p_oid is None:
            return False
        key = _key(job)
        return any(key in tree for tree in self._shelves.values())

    def __len__(self) -> int:
        return sum(len(tree) for tree in self._shelves.values())

    def __bool__(self) -> bool:
        return any(self._shelves.values())

    def __iter__(self) -> Iterator[Job]:
        return self.between()

    def between(
        self,
        since: datetime.datetime | None = None,
        until: datetime.datetime | None = None,
        *,
        failed: bool | None = None,
    ) -> Iterator[Job]:
        """Return the jobs that were done from `since` to before `until`, newest first.

        Both are aware moments; None means no limit; a naive one raises `ValueError`. `failed`
        says whether those that failed are meant, or the others; None: both. Loads no job.
        """
        for _, job in self.entries(since, until, failed):
            yield job

    def entries(
        self,
        since: datetime.datetime | None,
        until: datetime.datetime | None,
        failed: bool | None,
    ) -> Iterator[tuple[tuple[int, int], Job]]:
        """Return the jobs as above, with the keys that several agents' jobs are merged by."""
        newest = None if until is None else _before("until", until)
        oldest = None if since is None else _before("since", since)
        trees = [
            tree
            for (_, of_failed), tree in self._shelves.items()
            if failed is None or of_failed is failed
        ]
        if oldest is None:
            found = [tree.items(newest) for tree in trees]
        else:
            found = [tree.items(newest, oldest, excludemax=True) for tree in trees]
        return heapq.merge(*found, key=entry_key)


def _before(name: str, when: datetime.datetime) -> tuple[int, int]:
    return 1 - microseconds(checked_moment(name, when)), 0


def entry_key(entry: Any) -> Any:
    """Return what entries are sorted by."""
    return entry[0]


def _key(job: Job) -> tuple[int, int]:
    """Return what sorts done jobs newest first."""
    assert job._callbacks_end is not None
    return -job._callbacks_end, u64(job._p_oid)
