"""Side records: what is added to a job after it was put, by others than its owner.

A job's own record is written by its owner alone once it was put, so that adding a
callback or an annotation never makes the job's commit conflict and the job run twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from BTrees.OOBTree import OOBTree
from persistent import Persistent

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["SideRecord", "SideRecords"]


class SideRecord(Persistent):
    """The late callbacks and the outsiders' annotations of one job."""

    def __init__(self) -> None:
        self.callbacks: tuple[Job, ...] = ()
        self.annotations: dict[str, tuple[int, Any]] = {}

    def add_callback(self, job: Job) -> None:
        """Add a callback that the job's worker, or the settlement, will find."""
        self.callbacks = (*self.callbacks, job)

    def annotate(self, name: str, entry: tuple[int, Any]) -> None:
        """Set one annotation, with the stamp of when it was set."""
        self.annotations[name] = entry
        self._p_changed = True


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
