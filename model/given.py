"""Checks of what applications give: each error names what it was, and what to give instead."""

from __future__ import annotations

import operator
import uuid as uuids
from typing import Any

from persistent import Persistent

from perdure.model.errors import JobNotFoundError

__all__ = [
    "checked_callable",
    "checked_connection",
    "checked_database",
    "checked_index",
    "checked_name",
    "checked_stored",
    "checked_uuid",
]


def checked_name(what: str, value: object) -> str:
    """Return `value`, the name of `what`; raises `TypeError` where it is no text."""
    if not isinstance(value, str):
        raise TypeError(f"the name of {what} is a text, not {value!r}")
    return value


def checked_uuid(value: object) -> uuids.UUID:
    """Return `value`; raises `TypeError` where it is no UUID."""
    if not isinstance(value, uuids.UUID):
        raise TypeError(f"a process is known by its uuid.UUID, not by {value!r}")
    return value


def checked_callable(what: str, value: Any) -> Any:
    """Return `value`; raises `TypeError` where it cannot be called."""
    if not callable(value):
        raise TypeError(f"{what} has to be a function, and {value!r} cannot be called")
    return value


def checked_index(value: Any) -> int:
    """Return `value`; raises `TypeError` where it is no whole number."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"a job is found by its index, a whole number, not {value!r}") from error


def checked_stored(value: Any) -> Any:
    """Return `value`, a job; raises `JobNotFoundError` where it cannot be one that is stored."""
    if not isinstance(value, Persistent):
        raise JobNotFoundError(f"{value!r} is no job: give the Job, as find_job returns it")
    return value


def checked_database(value: Any) -> Any:
    """Return `value`; raises `TypeError` where it is no open database."""
    if not hasattr(value, "databases") or not hasattr(value, "storage"):
        raise TypeError(f"{value!r} is no open database: give the ZODB.DB")
    return value


def checked_connection(value: Any) -> Any:
    """Return `value`; raises `TypeError` where it is no connection to a database."""
    if not hasattr(value, "db") or not hasattr(value, "get_connection"):
        raise TypeError(f"{value!r} is no connection: give what database.open() returns")
    return value
