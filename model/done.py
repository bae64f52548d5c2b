"""Done jobs in the order of time, forgotten a day's worth at once."""

from __future__ import annotations

import datetime
import heapq
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from BTrees.OOBTree import OOBTree
from persistent import Persistent
from ZODB.utils import u64, z64

from perdure.model.errors import PerdureError
from perdure.model.moments import DAY_MICROSECONDS, checked_moment, microseconds

if TYPE_CHECKING:
    from perdure.model.agent import Agent
    from perdure.model.job import Job

__all__ = ["Done", "DoneByAgent", "DoneTrees", "Shelf", "entry_key"]

UNSORTED = 128
"""When so many are not sorted in yet, all are."""

_MICROSECOND = timedelta(microseconds=1)

_PAGE = 64
"""So many entries of a tree are read ahead."""

Shelf = tuple[int, bool]
"""The day (since 1970) on which some done jobs are forgotten, and whether they failed."""


class DoneJobs(OOBTree):
    """The done jobs of one shelf, by minus the moment of their end, and their oids as numbers."""

    max_leaf_size = 60
    max_internal_size = 30


class Done(Persistent):
    """Done jobs of one agent that one transaction has settled, and a reference to what was before.

    Written once. A leaf of a tree would be written again for each job that is done alone.
    """

    def __init__(self, before: Done | DoneTrees) -> None:
        self.before = before
        self.count: int = before.count if isinstance(before, Done) else 0
        """How many there are, with those before, and without those in trees."""
        self._flat: list[Any] = []

    def __getstate__(self) -> Any:
        """Return what is stored."""
        return self.before, self.count, self._flat

    def __setstate__(self, state: Any) -> None:
        """Take what is stored."""
        before, count, flat = state
        self.__dict__.update(before=before, count=count, _flat=flat)

    @property
    def is_open(self) -> bool:
        """Whether this transaction has made it, so that it may be added to."""
        return self._p_changed is not None and bool(self._p_serial == z64)

    def add(self, job: Job, ended: int, shelf: Shelf) -> None:
        """Add a job that ended at `ended`, in microseconds; does not load it."""
        day, failed = shelf
        self._flat += job, ended, 2 * day + failed
        self.count += 1
        self._p_changed = True

    def entries(self) -> Iterator[tuple[Job, int, Shelf]]:
        """Return its jobs, when they ended, and where they are to lie; loads none."""
        if len(self._flat) % 3:
            raise PerdureError(
                f"a record of done jobs has {len(self._flat)} values, which is not three for each "
                "job: the database is damaged"
            )
        flat = iter(self._flat)
        for job, ended, code in zip(flat, flat, flat, strict=True):
            yield job, ended, (code // 2, bool(code % 2))


class DoneTrees(Persistent):
    """The done jobs of one agent that were sorted in.

    They lie in one tree for each day on which jobs are to be forgotten, so that
    forgetting drops a tree and looks at no job. Failed ones lie in trees of their own, so
    that a few of them are found among many others.
    """

    def __init__(self) -> None:
        self._shelves: dict[Shelf, DoneJobs] = {}

    def put(self, job: Job, ended: int, shelf: Shelf) -> None:
        """Put a job that ended at `ended` on a shelf; does not load it."""
        tree = self._shelves.get(shelf)
        if tree is None:
            tree = self._shelves[shelf] = DoneJobs()
            self._p_changed = True
        tree[_key_of(job, ended)] = job

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

    def forget(self, shelves: Iterable[Shelf]) -> None:
        """Drop the jobs on these shelves."""
        for shelf in shelves:
            self._shelves.pop(shelf, None)
            self._p_changed = True

    def items(self, failed: bool | None = None) -> list[tuple[Shelf, DoneJobs]]:
        """Return shelves and trees: those of jobs that failed, or of the others; or all."""
        return [each for each in self._shelves.items() if failed is None or each[0][1] is failed]


class DoneByAgent:
    """The done jobs of one agent, newest first.

    The latest ones, less than 128, stand in records of their own, each of what one transaction
    has settled; then all of them are sorted into the trees at once.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def _found(self) -> tuple[list[tuple[Job, int, Shelf]], DoneTrees]:
        """Return what was not sorted in, in no order, and the trees."""
        entries: list[tuple[Job, int, Shelf]] = []
        each = self._agent._done
        while isinstance(each, Done):
            entries += each.entries()
            each = each.before
        return entries, each

    def add(self, job: Job, keep: timedelta) -> Shelf:
        """Keep `job` for `keep` from its end on, rounded up to a whole day; return where."""
        assert job._callbacks_end is not None
        return self.put(job, job._callbacks_end, keep, failed=job.failed)

    def put(self, job: Job, ended: int, keep: timedelta, *, failed: bool) -> Shelf:
        """Do as `add` for a job that ended at `ended`, in microseconds; does not load it."""
        last = keep // _MICROSECOND + ended
        shelf = -(-last // DAY_MICROSECONDS), failed
        done = self._agent._done
        if not isinstance(done, Done) or not done.is_open:
            done = self._agent._done = Done(done)
        done.add(job, ended, shelf)
        if done.count >= UNSORTED:
            self._sort_in()
        return shelf

    def _sort_in(self, without: Collection[Shelf] = ()) -> DoneTrees:
        entries, trees = self._found()
        for job, ended, shelf in entries:
            if shelf not in without:
                trees.put(job, ended, shelf)
        if self._agent._done is not trees:
            self._agent._done = trees
        return trees

    def remove(self, job: Job) -> Shelf:
        """Take `job` out; return where it was. Raises `KeyError` where it was nowhere."""
        return self._sort_in().remove(job)

    def forget(self, shelves: Collection[Shelf]) -> None:
        """Drop the jobs on these shelves."""
        self._sort_in(without=shelves).forget(shelves)

    def counts(self) -> dict[Shelf, int]:
        """Return how many jobs lie on each shelf; walks over their keys."""
        entries, trees = self._found()
        found = Counter({shelf: len(tree) for shelf, tree in trees.items()})
        found.update(shelf for _, _, shelf in entries)
        return dict(found)

    def __contains__(self, job: Job) -> bool:
        if job._callbacks_end is None or job._p_oid is None:
            return False
        key = _key(job)
        entries, trees = self._found()
        if any(key == _key_of(each, ended) for each, ended, _ in entries):
            return True
        return any(key in tree for _, tree in trees.items())

    def __len__(self) -> int:
        return sum(self.counts().values())

    def __bool__(self) -> bool:
        head = self._agent._done
        # Each of them has one; they are not loaded.
        return isinstance(head, Done) or bool(head.items())

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
        """Return the jobs as above, with the keys that several agents' jobs are merged by.

        They may be put, removed, sorted in and forgotten meanwhile: what was there at first is
        returned once, unless it was taken away before its turn had come near.
        """
        newest = None if until is None else _before("until", until)
        oldest = None if since is None else _before("since", since)
        entries, by_shelf = self._found()
        latest = [
            (key, job)
            for job, ended, (_, of_failed) in entries
            if failed is None or of_failed is failed
            for key in [_key_of(job, ended)]
            if (newest is None or key >= newest) and (oldest is None or key < oldest)
        ]
        latest.sort(key=entry_key)
        found = [_walk(tree, newest, oldest) for _, tree in by_shelf.items(failed)]
        last = None
        for entry in heapq.merge(latest, *found, key=entry_key):
            # One of the latest may have been sorted in before its place there was come to.
            if entry[0] != last:
                yield entry
            last = entry[0]


def _walk(
    tree: DoneJobs, newest: tuple[int, int] | None, oldest: tuple[int, int] | None
) -> Iterator[tuple[tuple[int, int], Job]]:
    """Return the entries from `newest` to before `oldest`, of a tree that may change meanwhile."""
    # What iterates over a tree passes over the one behind each that is removed.
    after, told = newest, False
    while page := list(
        itertools.islice(tree.items(after, oldest, told, oldest is not None), _PAGE)
    ):
        yield from page
        after, told = page[-1][0], True


def _before(name: str, when: datetime.datetime) -> tuple[int, int]:
    return 1 - microseconds(checked_moment(name, when)), 0


def entry_key(entry: Any) -> Any:
    """Return what entries are sorted by."""
    return entry[0]


def _key(job: Job) -> tuple[int, int]:
    """Return what sorts done jobs newest first."""
    assert job._callbacks_end is not None
    return _key_of(job, job._callbacks_end)


def _key_of(job: Job, ended: int) -> tuple[int, int]:
    return -ended, u64(job._p_oid)
