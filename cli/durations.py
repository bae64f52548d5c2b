"""Durations and moments as people type and read them."""

from __future__ import annotations

import datetime
import re
from datetime import timedelta

__all__ = ["parse_duration", "parse_moment", "show_duration", "show_moment"]

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([wdhms])")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")


def parse_duration(text: str) -> timedelta:
    """Read ``90s``, ``10m``, ``2h``, ``7d``, ``2w``, ``1h30m`` or ``0``.

    Raises `ValueError`, whose text says what to write instead.
    """
    word = text.strip().lower()
    if word == "0":
        return timedelta(0)
    if not _DURATION.fullmatch(word):
        raise ValueError(f"{text!r} is no duration: write 90s, 10m, 2h, 7d, or 1h30m")
    parts: dict[str, float] = {}
    for number, letter in _PART.findall(word):
        if _UNITS[letter] in parts:
            raise ValueError(f"{text!r} is no duration: it has the unit {letter} twice")
        parts[_UNITS[letter]] = float(number)
    try:
        return timedelta(**parts)
    except OverflowError:
        raise ValueError(f"{text!r} is longer than any time that can be kept") from None


def parse_moment(text: str, now: datetime.datetime) -> datetime.datetime:
    """Read a moment in ISO format: ``2026-11-25T17:30``, ``2026-11-25``, or ``17:30`` of today.

    Without a zone it is local time. `now` is the present, aware. Returns it in UTC. Raises
    `ValueError`, whose text says what to write instead.
    """
    word = text.strip()
    if len(word) <= len("17:30:00") and ":" in word:
        word = f"{now.astimezone():%Y-%m-%d}T{word}"
    try:
        found = datetime.datetime.fromisoformat(word)
    except ValueError:
        raise ValueError(
            f"{text!r} is no time: write 2026-11-25T17:30, 2026-11-25T17:30+01:00, or 17:30 for "
            "today"
        ) from None
    try:
        # What has no zone is taken as local time.
        return found.astimezone(datetime.UTC)
    # At the ends of the calendar the zone would lead beyond them.
    except (OverflowError, OSError, ValueError):
        raise ValueError(f"{text!r} is no time that can be kept") from None


def show_duration(duration: timedelta | None) -> str:
    """Return a duration in two units at most, as `parse_duration` reads it; None: ''."""
    if duration is None:
        return ""
    seconds = duration.total_seconds()
    if seconds < 0:
        return f"-{show_duration(-duration)}"
    if seconds < 1:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    left = round(seconds)
    parts = []
    for letter, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, left = divmod(left, size)
        parts.append((number, letter))
    while not parts[0][0]:
        del parts[0]
    return "".join(f"{number}{letter}" for number, letter in parts[:2] if number)


def show_moment(when: datetime.datetime | None) -> str:
    """Return a moment in local time, to the second; None: ''."""
    return "" if when is None else f"{when.astimezone():%Y-%m-%d %H:%M:%S}"
