"""The two loggers, and what every record of theirs carries."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["SUCCEEDED", "events", "fields", "place", "placed", "trace"]

events = logging.getLogger("perdure.events")
"""What an operator wants to see."""

trace = logging.getLogger("perdure.trace")
"""What each job went through."""

# Without it, a program that has not set up logging would show the warnings on stderr.
trace.addHandler(logging.NullHandler())

_FIELDS = ("job", "queue", "agent", "dispatcher")

_place: contextvars.ContextVar[Mapping[str, object]] = contextvars.ContextVar(
    "perdure place of log records", default=MappingProxyType({})
)


class _Completion(logging.Filter):
    """Gives a record the fields that it lacks: those of the place where it was made, or ""."""

    def filter(self, record: logging.LogRecord) -> bool:
        known = _place.get()
        for name in _FIELDS:
            if not hasattr(record, name):
                # A reference becomes a text when somebody reads it.
                setattr(record, name, str(known.get(name, "")))
        return True


for _logger in (events, trace):
    _logger.addFilter(_Completion())


def place(**known: str) -> None:
    """Let records that this thread makes from now on have these fields, unless told otherwise.

    The fields are `job`, `queue`, `agent` and `dispatcher`.
    """
    _place.set({**_place.get(), **known})


def enter(**known: object) -> contextvars.Token[Mapping[str, object]]:
    """Do as `place`, until `leave`."""
    return _place.set({**_place.get(), **known})


def leave(token: contextvars.Token[Mapping[str, object]]) -> None:
    """Let records have the fields that they had before."""
    _place.reset(token)


class placed:  # noqa: N801
    """Do as `place`, for as long as the with statement lasts."""

    def __init__(self, **known: str) -> None:
        self._known = known

    def __enter__(self) -> None:
        self._token = enter(**self._known)

    def __exit__(self, *exc_info: object) -> None:
        leave(self._token)


SUCCEEDED = "%r succeeded with %s"
"""The message of a job that has succeeded, by which others know it."""


def fields(
    job: Job | None = None,
    *,
    queue: str | None = None,
    agent: str | None = None,
    dispatcher: str | None = None,
) -> dict[str, Any]:
    """Return the fields that are known, for a record's `extra` or for `placed`.

    What is missing is completed from the place where the record is made. Never raises: a
    log call must not fail for a job that cannot be read.
    """
    given = {"queue": queue, "agent": agent, "dispatcher": dispatcher}
    found = {name: value for name, value in given.items() if value is not None}
    if job is None:
        return found
    found["job"] = ""
    try:
        found["job"] = str(job.ref) if job._p_oid is not None else ""
        if job.queue is not None:
            found["queue"] = job.queue.name
        if job.agent is not None:
            found["agent"] = job.agent.name
            found["dispatcher"] = str(job.agent.record.uuid)
    # The database may be away just when this is logged.
    except Exception:
        found.setdefault("job", "")
    return found
