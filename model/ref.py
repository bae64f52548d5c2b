"""How a job is named outside the database."""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ZODB.POSException import POSKeyError
from ZODB.utils import p64, u64

from perdure.model.errors import JobNotFoundError
from perdure.model.given import checked_connection, checked_stored

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["JobRef", "find_job", "job_class", "locate", "plain_job"]

_UNNAMED = "unnamed"
_TEXT = re.compile(r"(?:(?P<database>.+):)?(?:0x)?(?P<oid>[0-9a-f]{1,16})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class JobRef:
    """The identity of a job that was stored: what messages carry, and people write.

    As text it is ``database:hex-oid``, or the hexadecimal oid alone where the
    database has no name of its own.
    """

    oid: int
    database_name: str = _UNNAMED

    def __hash__(self) -> int:
        # Asked for several times for each job; there is hardly ever a second database.
        return hash(self.oid)

    def __str__(self) -> str:
        if self.database_name == _UNNAMED:
            return f"{self.oid:x}"
        return f"{self.database_name}:{self.oid:x}"

    @classmethod
    def of(cls, persistent: Any) -> JobRef:
        """Return the reference of a job that was put; else raises `JobNotFoundError`."""
        jar = checked_stored(persistent)._p_jar
        if jar is None or persistent._p_oid is None:
            raise JobNotFoundError(f"{persistent!r} was not stored yet: put it first")
        return cls(u64(persistent._p_oid), jar.db().database_name)

    def _is_of(self, job: Job) -> bool:
        """Tell whether it is the reference of `job`, which is stored; makes none to compare."""
        jar = job._p_jar
        if jar is None or u64(job._p_oid) != self.oid:
            return False
        return bool(jar.db().database_name == self.database_name)

    @classmethod
    def parse(cls, text: str) -> JobRef:
        """Read what `str` wrote; raises `JobNotFoundError` for any other text."""
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise JobNotFoundError(
                f"{text!r} names no job: a job is named by the hexadecimal number that "
                "put returned, or by database:number"
            )
        return cls(int(match["oid"], 16), match["database"] or _UNNAMED)


def find_job(connection: Any, job: Job | JobRef | str) -> Job:
    """Return `job` as the connection's transaction sees it.

    `job` may be a `Job`, a `JobRef` or its text. Raises `JobNotFoundError` for what is
    no job, unknown in this database, or was forgotten after its retention, and
    `CallableNotFoundError` for a job that cannot be loaded in this process.
    """
    from perdure.model.job import Job
    from perdure.model.resolving import check_whole, is_loadable

    if isinstance(job, Job) and job._p_jar is connection:
        return job
    found = locate(connection, job)
    try:
        if found is not None and not is_loadable(found):
            check_whole(found)
    # It was packed away, and this connection has known it.
    except POSKeyError:
        found = None
    if not isinstance(found, Job):
        raise JobNotFoundError(f"there is no job {_ref_of(job)} in this database")
    if found.forgotten:
        raise JobNotFoundError(
            f"job {_ref_of(job)} was forgotten: the time for which it is kept is over"
        )
    return found


def locate(connection: Any, job: Job | JobRef | str) -> Any:
    """Return the object that `job` refers to, not loaded, whatever it is; None for nothing.

    Raises `JobNotFoundError` for what is no reference.
    """
    ref = _ref_of(job)
    names = checked_connection(connection).db().databases
    if ref.database_name in names:
        connection = connection.get_connection(ref.database_name)
    elif ref.database_name != _UNNAMED:
        raise JobNotFoundError(
            f"job {ref}: there is no database named {ref.database_name!r} here, only "
            + ", ".join(sorted(names))
        )
    try:
        return connection.get(p64(ref.oid))
    # A number that is none, or too large for one of an object's.
    except (POSKeyError, OverflowError, ValueError, TypeError, struct.error):
        return None


def plain_job(connection: Any, ref: JobRef) -> Job:
    """Return the job of the class `Job` itself that has this reference, not loaded.

    For who knows that it is one: to ask for an object whose class is not known loads its record
    once more.
    """
    if ref.database_name != connection.db().database_name:
        connection = connection.get_connection(ref.database_name)
    oid = p64(ref.oid)
    cache = connection._cache
    found = cache.get(oid)
    if found is None:
        kind = job_class()
        found = kind.__new__(kind)
        cache.new_ghost(oid, found)
    return cast("Job", found)


@functools.cache
def job_class() -> type[Job]:
    """Return the class `Job`; for modules that it imports, where an import would show."""
    from perdure.model.job import Job

    return Job


def _ref_of(job: Job | JobRef | str) -> JobRef:
    from perdure.model.job import Job

    if isinstance(job, Job):
        return JobRef.of(job)
    if isinstance(job, str):
        return JobRef.parse(job)
    if not isinstance(job, JobRef) or not isinstance(job.oid, int):
        raise JobNotFoundError(f"{job!r} names no job: give a Job, a JobRef or its text")
    return job
