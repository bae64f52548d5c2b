"""Moments as they are stored: microseconds since 1970, UTC."""

from __future__ import annotations

import datetime
from datetime import timedelta
from typing import Any

import pytz

from perdure.model.errors import UnknownSettingError

__all__ = [
    "DAY_MICROSECONDS",
    "LONGEST",
    "Duration",
    "after",
    "checked_duration",
    "checked_moment",
    "microseconds",
    "moment",
]

DAY_MICROSECONDS = 86_400_000_000

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=pytz.utc)
_EARLIEST = datetime.datetime.min.replace(tzinfo=pytz.utc)
_LATEST = datetime.datetime.max.replace(tzinfo=pytz.utc)
_MICROSECOND = timedelta(microseconds=1)

LONGEST = timedelta(days=36_500)
"""No wait is longer: clocks cannot count what a timedelta can be."""


def microseconds(when: datetime.datetime) -> int:
    """Return an aware moment as microseconds since 1970."""
    return (when - _EPOCH) // _MICROSECOND


def moment(stored: int) -> datetime.datetime:
    """Return the aware UTC moment that `microseconds` stored.

    What lies outside of the calendar, such as a deadline that is to mean never, is its end.
    """
    try:
        return _EPOCH + timedelta(microseconds=stored)
    except OverflowError:
        return _LATEST if stored > 0 else _EARLIEST


def after(start: datetime.datetime, duration: timedelta) -> datetime.datetime:
    """Return the moment that lies `duration` after `start`, within the calendar as above."""
    return moment(microseconds(start) + duration // _MICROSECOND)


def checked_moment(name: str, value: object) -> datetime.datetime:
    """Return `value` in UTC.

    Raises `ValueError` where it is naive, or outside of the calendar in UTC, else `TypeError`.
    """
    if not isinstance(value, datetime.datetime):
        raise TypeError(f"{name} must be a datetime with a time zone, not {value!r}")
    if value.utcoffset() is None:
        raise UnknownSettingError(
            f"{name} must have a time zone, and {value!r} has none: "
            "use datetime.now(datetime.UTC), say"
        )
    try:
        return value.astimezone(pytz.utc)
    except OverflowError as error:
        raise UnknownSettingError(
            f"{name} is {value!r}, which is no moment in UTC: give one of the years 2 to 9998"
        ) from error


def checked_duration(name: str, value: object) -> timedelta:
    """Return `value`; raises `ValueError` where it is negative, else `TypeError`."""
    if not isinstance(value, timedelta):
        raise TypeError(f"{name} must be a timedelta, not {value!r}")
    if value < timedelta(0):
        raise UnknownSettingError(f"{name} must not be negative, and {value!r} is")
    return value


class Duration:
    """An attribute that is a timedelta of zero or more, or None, which is the default."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> timedelta | None:
        found: timedelta | None = getattr(instance, "_" + self._name, None)
        return found

    def __set__(self, instance: Any, value: timedelta | None) -> None:
        checked = None if value is None else checked_duration(self._name, value)
        setattr(instance, "_" + self._name, checked)
