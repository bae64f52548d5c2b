"""Waiting jobs whose code is not to be had in this process: reading them all the same.

A job of a class that does not import is loaded by ZODB as a broken object. It keeps its
place in line; these functions read what a queue needs to know of it.
"""

from __future__ import annotations

import pickletools
from typing import TYPE_CHECKING, Any

import ZODB.broken
from ZODB.interfaces import IBroken

from perdure.model.errors import CallableNotFoundError
from perdure.model.names import callable_of, resolve

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["check_resolvable", "deadline_of", "position_of", "stored"]


def stored(job: Any, name: str, default: Any) -> Any:
    """Return an attribute as it is stored, of a broken job, too."""
    if IBroken.providedBy(job):
        job._p_activate()
        return (job.__Broken_state__ or {}).get(name, default)
    return getattr(job, name, default)


def position_of(job: Any) -> tuple[int, int]:
    """Return when a waiting job is due and when it was put, in microseconds."""
    if stored(job, "_first", False):
        return 0, stored(job, "_stamp", 0)
    due = stored(job, "_due", None)
    return (stored(job, "_begin_after", 0) if due is None else due), stored(job, "_stamp", 0)


def deadline_of(job: Any) -> int | None:
    """Return by when a waiting job is to begin, in microseconds, or None."""
    begin_by = stored(job, "_begin_by", None)
    begin_after = stored(job, "_begin_after", None)
    return None if begin_by is None or begin_after is None else begin_after + begin_by


def check_resolvable(job: Job) -> None:
    """Raise `CallableNotFoundError` where this process cannot run `job`.

    That is so where its class, its callable, the class of the object that has the
    method, or a class in its arguments does not import.
    """
    try:
        job._p_activate()
    # Loading it imports the application's modules, which may raise anything.
    except Exception as error:
        name = _first_broken_global(job)
        if name is None:
            raise
        raise CallableNotFoundError(name, f"{type(error).__name__}: {error}") from error
    if IBroken.providedBy(job):
        _check_class(type(job))
    target = job._callable
    if not isinstance(target, str) and IBroken.providedBy(target[0]):
        _check_class(type(target[0]))
    callable_of(target)
    # Empty unless this process has met a class that does not import, which is rare.
    if ZODB.broken.broken_cache:
        name = _first_broken_global(job)
        if name is not None:
            resolve(name)


def _check_class(kind: type) -> None:
    name = f"{kind.__module__}:{kind.__qualname__}"
    resolve(name)
    raise CallableNotFoundError(name, "it was not importable when its object was loaded")


def _first_broken_global(job: Any) -> str | None:
    """Return the first class or function in the job's record that does not import."""
    if job._p_jar is None or job._p_oid is None:
        return None
    data, _ = job._p_jar._storage.load(job._p_oid)
    for name in _globals(data):
        try:
            resolve(name)
        except CallableNotFoundError:
            return name
    return None


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
