"""Side records: what is added to a job after it was put, by others than its owner.

A job's own record is written by its owner alone once it was put, so that adding a
callback or an annotation never makes the job's commit conflict and the job run twice.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from BTrees.OOBTree import OOBTree
from persistent import Persistent

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["SideRecord", "SideRecords"]

Entry = tuple[int, Any]


class SideRecord(Persistent):
    """The late callbacks and the outsiders' annotations of one job."""

    def __init__(self) -> None:
        self.callbacks: tuple[Job, ...] = ()
        self.annotations: dict[str, Entry] = {}

    def add_callback(self, job: Job) -> None:
        """Add a callback that the job's worker, or the settlement, will find."""
        self.callbacks = (*self.callbacks, job)

    def annotate(self, name: str, entry: Entry) -> None:
        """Set one annotation, with the stamp of when it was set."""
        self.annotations[name] = entry
        self._p_changed = True

    def annotations_with(self, own: Mapping[str, Entry] | None) -> dict[str, Entry]:
        """Return its annotations and the job's own, of the same name the later one."""
        entries = dict(own or {})
        for name, entry in self.annotations.items():
            if name not in entries or entries[name][0] < entry[0]:
                entries[name] = entry
        return entries


class SideRecords(Persistent):
    """The side records of one queue's jobs, by oid."""

    def __init__(self) -> None:
        self._records = OOBTree()

    def get(self, job: Job) -> SideRecord | None:
        """Return the record of `job`, or None."""
        if job._p_oid is None:
            return None
        found: SideRecord | None = self._records.get(job._p_oid)
        return found

    def make(self, job: Job) -> SideRecord:
        """Return the record of `job`, made if need be."""
        record = self.get(job)
        if record is None:
            record = self._records[job._p_oid] = SideRecord()
        return record

    def read_current(self, job: Job) -> None:
        """Let the commit of this transaction fail if somebody adds to `job` meanwhile."""
        place: Any = self.get(job)
        if place is None and job._p_oid is not None:
            place = _place_of(self._records, job._p_oid)
        if place is not None and self._p_jar is not None:
            self._p_jar.readCurrent(place)

    def pop(self, job: Job) -> SideRecord | None:
        """Take the record of `job` out."""
        found: SideRecord | None = self._records.pop(job._p_oid, None)
        return found

    def __bool__(self) -> bool:
        return bool(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def oids(self) -> list[bytes]:
        """Return the oids of the jobs that have a record."""
        return list(self._records.keys())


def _place_of(tree: Any, key: bytes) -> Any:
    """Return the part of a BTree, stored by itself, that is written when `key` is added."""
    while True:
        tree._p_activate()
        state = tree.__getstate__()
        if not isinstance(tree, OOBTree) or state is None or len(state) == 1:
            return tree
        parts, keys = state[0][::2], state[0][1::2]
        tree = parts[bisect.bisect_right(keys, key)]
