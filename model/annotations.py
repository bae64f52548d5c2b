"""Annotations: an application's notes on a job, that nobody's commit conflicts over."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from perdure.model.environment import environment
from perdure.model.errors import NotStorableError
from perdure.model.status import Status
from perdure.model.storable import check_value

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["Annotations"]


class _Deleted:
    """Stands for a value that was deleted, in the half that did not have it."""


class Annotations(MutableMapping[str, Any]):
    """Names and values on a job.

    What the job itself sets while it runs is stored with its own record, what others
    set in its side record, so that neither makes the other's commit conflict. Where
    both set a name, the later one counts.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    def _merged(self) -> dict[str, tuple[int, Any]]:
        side = self._job._side()
        own = self._job._annotations
        entries = dict(own or {}) if side is None else side.annotations_with(own)
        return {name: entry for name, entry in entries.items() if entry[1] is not _Deleted}

    def _write(self, name: str, value: Any) -> None:
        job = self._job
        database = job._p_jar and job._p_jar.db()
        stamp = 0 if database is None else environment(database).stamp()
        # Nobody else writes the record of a job that is done.
        if job._is_ours() or job.status is Status.COMPLETED:
            entries = dict(job._annotations or {})
            entries[name] = (stamp, value)
            job._annotations = entries
            return
        # So that it does not go to a side record that is just being taken away.
        job._p_jar.readCurrent(job)
        job._make_side().annotate(name, (stamp, value))

    def __getitem__(self, name: str) -> Any:
        return self._merged()[name][1]

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str):
            raise NotStorableError(f"the name of an annotation is a text, not {name!r}")
        check_value(value, f"annotation {name!r}")
        self._write(name, value)

    def __delitem__(self, name: str) -> None:
        if name not in self._merged():
            raise KeyError(name)
        self._write(name, _Deleted)

    def __iter__(self) -> Iterator[str]:
        return iter(self._merged())

    def __len__(self) -> int:
        return len(self._merged())

    def __repr__(self) -> str:
        return repr({name: entry[1] for name, entry in self._merged().items()})
