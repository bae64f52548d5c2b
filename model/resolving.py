"""Waiting jobs whose code is not to be had in this process: reading them all the same.

A job of a class that does not import is loaded by ZODB as a broken object, and one whose
arguments' module raises when it is imported, or whose arguments themselves raise when they
are loaded, is not loaded at all. All keep their places in line; these functions read what
a queue needs to know of them. What the storage raises comes out of all of them.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ZODB.broken
from persistent import Persistent
from persistent.wref import WeakRef
from ZODB import POSException
from ZODB._compat import PersistentUnpickler
from ZODB.interfaces import IBroken
from ZODB.POSException import POSError
from ZODB.utils import u64

from perdure.model.aliases import current_name
from perdure.model.compact import unpacked
from perdure.model.errors import CallableNotFoundError
from perdure.model.names import NOT_OF_THE_CODE, callable_of, resolve
from perdure.model.ref import job_class
from perdure.model.status import Status

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = [
    "check_resolvable",
    "check_whole",
    "deadline_of",
    "family",
    "is_record_name",
    "is_loadable",
    "is_whole",
    "parent_of",
    "position_of",
    "previous_of",
    "queue_and_agent_of",
    "status_of",
    "stored",
    "unreadable",
]


_STATE_LOAD_ERROR: Any = getattr(POSException, "StateLoadError", ())
"""What later ZODBs raise from any exception of the code that a record is loaded by."""


_RECORD = "record of job "

_MARKS = (
    ("_active_start", Status.ACTIVE),
    ("_active_end", Status.CALLBACKS),
    ("_callbacks_end", Status.COMPLETED),
)
"""What a record has once its job has come so far."""


def stored(job: Any, name: str, default: Any) -> Any:
    """Return an attribute as it is stored, of a job that cannot be loaded, too.

    Of such a job, what is no plain value may be a stand-in.
    """
    if is_loadable(job):
        return getattr(job, name, default)
    if _is_broken(type(job)):
        return _attributes(job.__Broken_state__).get(name, default)
    return _raw_state(job).get(name, default)


def is_loadable(job: Any) -> bool:
    """Tell whether the job's record can be loaded here, as an object of its own class."""
    if _loading_error(job) is not None:
        return False
    kind = type(job)
    return kind is job_class() or not _is_broken(kind)


def unreadable(job: Any) -> CallableNotFoundError | None:
    """Return why the job's record cannot be read, although all the code that it names is here.

    None where it can, or where it may be readable once there is more code.
    """
    error = _loading_error(job)
    if error is None or _first_broken_global(job) is not None:
        return None
    return CallableNotFoundError(_record_name(job), f"{type(error).__name__}: {error}")


def family(job: Job) -> Iterator[Job]:
    """Return a job, its callbacks, theirs, and so on, as far as they can be loaded here."""
    waiting = [job]
    while waiting:
        each = waiting.pop(0)
        if is_loadable(each):
            yield each
            waiting = [*each._children(), *waiting]


def is_whole(job: Any) -> bool:
    """Tell whether the job's record can be loaded here with all that it holds.

    Only then may it be written here.
    """
    if not is_loadable(job):
        return False
    if not ZODB.broken.broken_cache:
        return True
    try:
        return _broken_part(job) is None
    except CallableNotFoundError:
        return False


def _is_plain(job: Any) -> bool:
    """Tell whether what stands in the place of a job can be loaded, and is one."""
    return is_loadable(job) and hasattr(job, "_stamp")


def previous_of(job: Any) -> Job | None:
    """Return the job that was put before, into the same inbox."""
    found: Job | None = job._previous if _is_plain(job) else _object(job, "_previous")
    return found


def parent_of(job: Any) -> Job | None:
    """Return the job that a job is a callback of, None where it is none."""
    found: Job | None = _object(job, "_parent")
    return found


def queue_and_agent_of(job: Any) -> tuple[Any, Any]:
    """Return the queue and the agent of a job, each None where it has none."""
    return _object(job, "_queue"), _object(job, "_agent")


def _object(job: Any, name: str) -> Any:
    value = stored(job, name, None)
    return job._p_jar.get(value.oid) if isinstance(value, _Reference) else value


def status_of(job: Any) -> Status:
    """Return the status of a job, which need not be loadable.

    Of one whose status this version does not know, the one that the rest of its record tells.
    """
    if is_loadable(job):
        status: Status = job.status
        return status
    try:
        status = Status(stored(job, "_status_name", Status.NEW.value))
    except ValueError:
        reached = [status for name, status in _MARKS if stored(job, name, None) is not None]
        status = reached[-1] if reached else Status.NEW
    if status is Status.NEW and stored(job, "_agent", None) is not None:
        return Status.ASSIGNED
    if status is Status.NEW and stored(job, "_queue", None) is not None:
        return Status.PENDING
    return status


def position_of(job: Any) -> tuple[int, int]:
    """Return when a waiting job is due and when it was put, in microseconds."""
    if _is_plain(job):
        if job._first:
            return 0, job._stamp
        return (job._begin_after or 0) if job._due is None else job._due, job._stamp
    if stored(job, "_first", False):
        return 0, stored(job, "_stamp", 0)
    due = stored(job, "_due", None)
    return (stored(job, "_begin_after", 0) if due is None else due), stored(job, "_stamp", 0)


def deadline_of(job: Any) -> int | None:
    """Return by when a waiting job is to begin, in microseconds, or None."""
    if _is_plain(job) and job._begin_by is None:
        return None
    begin_by = stored(job, "_begin_by", None)
    begin_after = stored(job, "_begin_after", None)
    return None if begin_by is None or begin_after is None else begin_after + begin_by


def check_resolvable(job: Job, known: Mapping[str, str] | None = None) -> None:
    """Raise `CallableNotFoundError` where this process cannot run `job`.

    That is so where its class, its callable, the class of the object that has the
    method, or a class in its arguments does not import; and where its record cannot be
    read for another reason, under a name made of the job's own. The names in `known` are
    taken as not to be had, for the reason that is given there.
    """
    known = known or {}
    check_whole(job, known)
    target = job._callable
    if isinstance(target, str):
        target = current_name(job, target)
        _refuse_known(target, known)
    callable_of(target)


def check_whole(job: Job, known: Mapping[str, str] | None = None) -> None:
    """Raise `CallableNotFoundError` where `is_whole` is False; `known` as above."""
    known = known or {}
    error = _loading_error(job)
    if error is not None:
        name = _first_broken_global(job) or _record_name(job)
        raise CallableNotFoundError(name, f"{type(error).__name__}: {error}") from error
    if _is_broken(type(job)):
        _check_class(type(job), known)
    # Empty unless this process has met a class that does not import, which is rare.
    if ZODB.broken.broken_cache:
        part = _broken_part(job)
        if part is not None:
            _check_class(part, known)


def _loading_error(job: Any) -> BaseException | None:
    """Load the job's record; return what kept it from being loaded, None if nothing did."""
    for attempt in range(2):
        try:
            job._p_activate()
        except _STATE_LOAD_ERROR as error:
            return error.__cause__ or error  # type: ignore[no-any-return]
        except (POSError, *NOT_OF_THE_CODE):
            raise
        # Loading runs the application's code, which may raise anything, and call sys.exit.
        except BaseException as error:
            if job._p_jar is None or job._p_oid is None:
                raise
            if attempt:
                return error
            # Unless it was the storage that raised. Then this raises, too, or the disk had an
            # error that has passed, and the job can be loaded now.
            job._p_jar._storage.load(job._p_oid)
        else:
            break
    return None


def _record_name(job: Any) -> str:
    """Return the name under which a job is parked for its own record's sake."""
    return f"{_RECORD}{u64(job._p_oid):x}"


def is_record_name(name: str) -> bool:
    """Tell whether jobs are parked under `name` since a record itself cannot be read here."""
    return name.startswith(_RECORD)


def _is_broken(kind: type) -> bool:
    # Not asked of the object, which that would load.
    return bool(IBroken.implementedBy(kind))


def _refuse_known(name: str, known: Mapping[str, str]) -> None:
    if name in known:
        raise CallableNotFoundError(name, known[name])


def _check_class(kind: type, known: Mapping[str, str]) -> None:
    name = f"{kind.__module__}:{kind.__qualname__}"
    _refuse_known(name, known)
    resolve(name)
    raise CallableNotFoundError(name, "it was not importable when its object was loaded")


class _BrokenFinder(pickle.Pickler):
    """Finds a broken object, or a broken class, among what it pickles."""

    found: type | None = None

    def persistent_id(self, obj: Any) -> str | None:
        if isinstance(obj, (Persistent, WeakRef)):
            self._notes(type(obj))
            return "reference"
        return None

    def reducer_override(self, obj: Any) -> Any:
        # A broken one is not pickled itself: its class has no name that can be found.
        if self._notes(obj if isinstance(obj, type) else type(obj)):
            return object, ()
        return NotImplemented

    def _notes(self, kind: type) -> bool:
        broken = _is_broken(kind)
        if broken and self.found is None:
            self.found = kind
        return broken


def _broken_part(job: Any) -> type | None:
    # Neither the job that was put before this one is a part of it, nor what is not stored.
    state = {
        name: value
        for name, value in vars(job).items()
        if name != "_previous" and not name.startswith("_v_")
    }
    finder = _BrokenFinder(io.BytesIO(), 3)
    try:
        finder.dump(state)
    except (POSError, *NOT_OF_THE_CODE):
        raise
    # Writing runs the application's code, too.
    except BaseException as error:
        reason = f"it cannot be written: {type(error).__name__}: {error}"
        raise CallableNotFoundError(_record_name(job), reason) from error
    return finder.found


def _first_broken_global(job: Any) -> str | None:
    """Return the first class or function in the job's record that does not import."""
    data, _ = job._p_jar._storage.load(job._p_oid)
    for name in _globals(data):
        try:
            resolve(name)
        except CallableNotFoundError:
            return name
    return None


class _Stand:
    """Stands for an object of whatever class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __new__(cls, *args: Any, **kwargs: Any) -> _Stand:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Stand:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _Reference:
    """Stands for a persistent object."""

    def __init__(self, reference: Any) -> None:
        self.oid = reference[0] if isinstance(reference, tuple) else reference


def _raw_state(job: Any) -> dict[str, Any]:
    """Return the state in the job's record, with stand-ins for what is no plain value."""
    data, _ = job._p_jar._storage.load(job._p_oid)
    unpickler = PersistentUnpickler(lambda *name: _Stand, _Reference, io.BytesIO(data))
    unpickler.load()
    state = unpickler.load()
    return _attributes(state)


def _attributes(state: Any) -> dict[str, Any]:
    """Return what can be read of a state; what is derived from `Job` may store any."""
    try:
        return unpacked(state) if isinstance(state, (dict, tuple)) else {}
    except (TypeError, ValueError):
        return {}


def _globals(data: bytes) -> list[str]:
    """Return the names that a record (two pickles, one behind the other) refers to."""
    found: list[str] = []
    rest = data
    while rest:
        end = 0
        for opcode, argument, position in pickletools.genops(rest):
            if opcode.name == "GLOBAL":
                module, _, qualname = str(argument).partition(" ")
                found.append(f"{module}:{qualname}")
            if opcode.name == "STOP":
                end = (position or 0) + 1
        rest = rest[end:] if end else b""
    return found
