"""Quotas: how many jobs of a kind may be worked on at once, over all dispatchers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from persistent import Persistent
from ZODB.POSException import POSKeyError

from perdure.model.errors import BadStatusError, UnknownSettingError
from perdure.model.given import checked_name, checked_stored
from perdure.model.guarded import Guarded
from perdure.model.resolving import status_of, stored
from perdure.model.status import Status

if TYPE_CHECKING:
    from perdure.model.job import Job
    from perdure.model.queue import Queue

__all__ = ["Quota", "Quotas"]


class Quota(Guarded):
    """At most `size` jobs hold a place of it at once.

    The holders stand in this one record, which every claim that takes a place writes and
    which has no conflict resolution: two claims can never both take the last place.
    """

    _excess = 0

    def __init__(self, name: str, size: int = 1) -> None:
        self.name = checked_name("a quota", name)
        self._size = _checked_size(name, size)
        self._holders: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"<Quota {self.name!r}: {len(self._holders)} of {self._size}>"

    @property
    def size(self) -> int:
        """How many places there are. A smaller size stops nothing that holds one."""
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = _checked_size(self.name, size)
        self._excess = len(self._holders)

    def __len__(self) -> int:
        return len(self._holders)

    def __contains__(self, job: Job) -> bool:
        return checked_stored(job)._p_oid in self._holders

    @property
    def limit(self) -> int:
        """What the holders never exceed: the size, or what they were when it shrank."""
        return max(self._size, self._excess)

    def has_room(self) -> bool:
        """Tell whether a place is free, counting those of jobs that are done as free."""
        if len(self._holders) < self._size:
            return True
        return len(self._needed()) < self._size

    def keeps(self, job: Job) -> bool:
        """Tell whether the place that `job` has is still its own, and nobody else's to take."""
        return job in self and job._keeps_places

    def take(self, job: Job) -> None:
        """Give `job` a place; to be called only where it `keeps` one, or `has_room`.

        Unless it keeps one, this record is written, so that two claims which both saw the
        last place free cannot both be committed.
        """
        if self.keeps(job):
            return
        oid = job._p_oid
        if oid is None:
            raise BadStatusError(f"{job!r} was not stored yet: put it first")
        self.release(job)
        needed = self._needed() if len(self._holders) >= self._size else self._holders
        if len(needed) >= self._size:
            raise BadStatusError(f"{self!r} has no room for {job!r}: ask has_room first")
        self._set((*needed, oid))

    def release(self, job: Job) -> None:
        """Free the place of `job`, where it holds one."""
        if job in self:
            self._set(tuple(oid for oid in self._holders if oid != job._p_oid))

    def _adopt(self, holders: Iterable[Job]) -> None:
        """Let those who are under way already hold places, even if they are too many."""
        self._holders = tuple(dict.fromkeys(job._p_oid for job in holders))
        self._excess = len(self._holders)

    def _set(self, holders: tuple[bytes, ...]) -> None:
        self._holders = holders
        if self._excess and len(holders) < self._excess:
            self._excess = len(holders) if len(holders) > self._size else 0

    def _needed(self) -> tuple[bytes, ...]:
        return tuple(oid for oid in self._holders if self._needs_place(oid))

    def _needs_place(self, oid: bytes) -> bool:
        jar = self._p_jar
        if jar is None:
            return True
        try:
            job: Job = jar.get(oid)
            status = status_of(job)
        except POSKeyError:
            return False
        if status is Status.PENDING:
            return bool(stored(job, "_keeps_places", False))
        if status is Status.ACTIVE and stored(job, "_waits_for", ()):
            return False
        return status in (Status.ASSIGNED, Status.ACTIVE)


class Quotas(Persistent):
    """The quotas of one queue, by name."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._quotas: dict[str, Quota] = {}

    def create(self, name: str, size: int = 1) -> Quota:
        """Make a quota; raises `UnknownSettingError` where the name is taken.

        Jobs under way that name it, since there was one of that name before, hold places.
        """
        if checked_name("a quota", name) in self._quotas:
            raise UnknownSettingError(
                f"there is a quota {name!r} of size {self._quotas[name].size} already: set its "
                "size instead"
            )
        quota = self._quotas[name] = Quota(name, size)
        quota._adopt(job for job in self._queue._under_way() if name in job.quota_names)
        self._p_changed = True
        return quota

    def remove(self, name: str) -> None:
        """Remove a quota; jobs that name it are no longer limited by it."""
        self[name]
        del self._quotas[name]
        self._p_changed = True

    def get(self, name: str) -> Quota | None:
        """Return the quota of that name, or None."""
        return self._quotas[name] if name in self else None

    def __getitem__(self, name: str) -> Quota:
        if name not in self:
            raise KeyError(f"there is no quota {name!r}; there are {sorted(self._quotas)}")
        return self._quotas[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._quotas

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._quotas))

    def __len__(self) -> int:
        return len(self._quotas)


def _checked_size(name: str, size: object) -> int:
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"the size of quota {name!r} is a whole number, not {size!r}")
    if size < 0:
        raise UnknownSettingError(f"the size of quota {name!r} must be 0 or more, not {size}")
    return size
