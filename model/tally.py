"""How many jobs of an agent are done: what it keeps, and what ended on each day.

The numbers are written where a job is settled, into the record that is written there
anyway, so that to ask for them costs no walk and to keep them no further record.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from persistent import Persistent

from perdure.model.done import Shelf
from perdure.model.moments import DAY_MICROSECONDS, checked_moment, microseconds

__all__ = ["DAYS_KEPT", "DayCount", "DayCounts", "Tally", "day_of"]

DAYS_KEPT = 400
"""For so many days, the latest with jobs, the numbers are kept."""


@dataclass(frozen=True, slots=True)
class DayCount:
    """How many jobs ended on one day (UTC), with their callbacks: well, or failed."""

    day: datetime.date
    successful: int
    failed: int


def day_of(stored: int) -> int:
    """Return the day, in days since 1970, of a moment in microseconds since 1970 (UTC)."""
    return stored // DAY_MICROSECONDS


class DayCounts(Persistent):
    """Numbers of jobs that ended, by day; of the last 400 days that have any."""

    def __init__(self) -> None:
        self._days: dict[int, tuple[int, int]] = {}

    def add(self, day: int, successful: int, failed: int) -> None:
        """Count jobs that ended on `day`, in days since 1970."""
        before = self._days.get(day, (0, 0))
        self._days[day] = before[0] + successful, before[1] + failed
        for old in sorted(self._days)[:-DAYS_KEPT]:
            del self._days[old]
        self._p_changed = True

    def items(self) -> list[tuple[int, tuple[int, int]]]:
        """Return the days, in days since 1970, with their numbers: successful, failed."""
        return sorted(self._days.items())


class Tally:
    """Part of an agent: counts what it keeps among its `completed`, and what ended when.

    Only the numbers of the current day stand in the agent's own record; they move to a
    record of their own, the `DayCounts`, with the first job that ends on another day.
    """

    _kept: dict[Shelf, int] | None = None
    _day: tuple[int, int, int] | None = None
    _past: DayCounts | None = None

    def kept(self, *, failed: bool) -> int:
        """Return how many done jobs it keeps: the failed ones, or the others; walks nothing."""
        return sum(count for (_, of), count in (self._kept or {}).items() if of is failed)

    def day_counts(self) -> list[tuple[int, tuple[int, int]]]:
        """Return the days on which jobs ended, in days since 1970, with successful and failed."""
        found = [] if self._past is None else self._past.items()
        if self._day is not None:
            day, *counts = self._day
            found = [*found, (day, (counts[0], counts[1]))]
        return found

    def _count(self, shelf: Shelf, day: int, number: int = 1) -> None:
        """Count jobs that ended on `day`, in days since 1970, and were put on `shelf`."""
        self._add_kept(shelf, number)
        failed = number if shelf[1] else 0
        if self._day is not None and self._day[0] != day:
            if self._past is None:
                self._past = DayCounts()
            self._past.add(*self._day)
            self._day = None
        _, successes, failures = self._day or (day, 0, 0)
        self._day = day, successes + number - failed, failures + failed

    def _add_kept(self, shelf: Shelf, number: int) -> None:
        # A new mapping, since an attribute that is set is an attribute that is stored.
        kept = dict(self._kept or {})
        kept[shelf] = kept.get(shelf, 0) + number
        if not kept[shelf]:
            del kept[shelf]
        self._kept = kept

    def _over(self, now: datetime.datetime) -> list[Shelf]:
        """Return the shelves whose time is over."""
        today = day_of(microseconds(checked_moment("now", now)))
        return [shelf for shelf in self._kept or {} if shelf[0] <= today]

    def _drop_kept(self, shelves: list[Shelf]) -> None:
        self._kept = {s: count for s, count in (self._kept or {}).items() if s not in shelves}
