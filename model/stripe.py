"""Stripes: jobs sorted into claim order, a part of the queue's jobs each.

A stripe takes its jobs from the inboxes that belong to it. Within it, jobs stand in
*lines*, one for each kind of job as far as a claim can tell kinds apart: by the quotas
that they need, the filters that have refused them, and the name that did not resolve.
A claim looks at the first job of each line that may have one for it, so that jobs which
it cannot take cost it nothing, however many they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from BTrees.OOBTree import OOBTree

from perdure.model.compact import Numbered
from perdure.model.resolving import deadline_of, is_whole

if TYPE_CHECKING:
    from perdure.model.inbox import Inbox
    from perdure.model.job import Job

__all__ = ["LineKey", "Place", "Position", "Stripe"]

Position = tuple[int, int]
"""When a job is due and when it was put, in microseconds; due 0 means first in line."""


_LARGEST_SHIFT = 1000
"""How far behind its position a job may stand, since others had the same."""

_BATCH_LINES = 32
"""So many lines of batches a stripe has at most: each claim looks at all of them."""


class LineKey(NamedTuple):
    """What the jobs of a line have in common."""

    quotas: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    internal: bool = False
    unresolved: str = ""
    suspect: bool = False
    """Whether processes keep ending while such a job runs; see `JobRecord.suspect`."""
    group: str = ""
    """What the jobs call, where they may be run in a group or a batch, and were never claimed.

    All that a claim has to know of them is said by that, so that it loads none. They have
    neither quotas nor deadlines.
    """
    by_queue: bool = False
    """Whether that was said by the queue alone, which may have changed its mind."""
    batch: bool = False
    """Whether they may be run in a batch instead."""


class Line(OOBTree):
    """The jobs of a line, by their positions."""

    max_leaf_size = 60
    max_internal_size = 30


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sorted job stands."""

    stripe: Stripe
    line: LineKey
    position: Position


class Stripe(Numbered):
    """One share of a queue's waiting jobs; written by dispatchers alone."""

    _numbers = MappingProxyType({"_cursors": 1, "_lines": 2, "_counts": 3, "_deadlines": 4})
    _mappings = ("_cursors", "_lines", "_counts")

    def __init__(self) -> None:
        self._cursors: dict[str, int] = {}
        self._lines: dict[LineKey, OOBTree] = {}
        self._counts: dict[LineKey, int] = {}
        self._deadlines = OOBTree()

    def __len__(self) -> int:
        return sum(self._counts.values())

    def lines(self) -> Iterator[tuple[LineKey, Any]]:
        """Return the lines, none of them empty, with their keys."""
        return iter(self._lines.items())

    def counts(self) -> Iterator[tuple[LineKey, int]]:
        """Return how many jobs each line has, by its key; walks nothing."""
        return iter(self._counts.items())

    def unsorted(
        self, inboxes: Iterable[tuple[str, Inbox]], index: int
    ) -> Iterator[tuple[str, Inbox, int]]:
        """Return those of these inboxes that are this stripe's and have news, with its cursors."""
        for key, inbox in inboxes:
            if inbox.stripe == index:
                cursor = self._cursors.get(key, 0)
                if inbox.entries != cursor:
                    yield key, inbox, cursor

    def cursor(self, key: str) -> int:
        """Return how many jobs of that inbox were sorted in."""
        return self._cursors.get(key, 0)

    def advance(self, key: str, entries: int) -> None:
        """Note that the first `entries` jobs of the inbox were sorted in."""
        self._cursors[key] = entries
        self._p_changed = True

    def forget(self, key: str) -> None:
        """Drop the cursor of an inbox that is gone."""
        if self._cursors.pop(key, None) is not None:
            self._p_changed = True

    def insert(self, key: LineKey, position: Position, job: Job) -> Place:
        """Sort `job` in; where the position is taken, right behind it."""
        line = self._lines.get(key)
        if line is None and key.batch:
            if sum(other.batch for other in self._lines) >= _BATCH_LINES:
                key = key._replace(group="", batch=False)
                line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line()
        due, stamp = position
        while (due, stamp) in line:
            stamp += 1
        line[due, stamp] = job
        self._p_changed = True
        self._counts[key] = self._counts.get(key, 0) + 1
        place = Place(self, key, (due, stamp))
        # It is not to be loaded for what it does not have.
        deadline = None if key.group else deadline_of(job)
        # One that cannot be written here cannot be failed here either.
        parked = key.unresolved and not is_whole(job)
        if deadline is not None and not key.internal and not parked:
            self._deadlines[deadline, job._p_oid] = (job, key, (due, stamp))
        return place

    def remove(self, place: Place, job: Job) -> None:
        """Take `job` out of the line that it stands in."""
        line = self._lines[place.line]
        del line[place.position]
        self._p_changed = True
        self._counts[place.line] -= 1
        if not line:
            del self._lines[place.line], self._counts[place.line]
        deadline = None if place.line.group else deadline_of(job)
        if deadline is not None:
            self._deadlines.pop((deadline, job._p_oid), None)

    def first_of(self, key: LineKey, until: Position, most: int) -> list[tuple[Position, Job]]:
        """Return the first jobs of a line, `most` of them, up to that position."""
        return list(itertools.islice(self._lines[key].items(None, until), most))

    def take(self, key: LineKey, positions: list[Position]) -> None:
        """Take jobs out of a line whose claims load none."""
        line = self._lines[key]
        for position in positions:
            del line[position]
        self._p_changed = True
        self._counts[key] -= len(positions)
        if not line:
            del self._lines[key], self._counts[key]

    def upcoming(self, now: int) -> Iterator[int]:
        """Return when, after `now`, a job comes due or expires: the first of each line.

        What was due before, and a deadline that passed before, are for the next claim.
        """
        for line in self._lines.values():
            try:
                yield line.minKey((now + 1, 0))[0]
            except ValueError:
                continue
        # A job expires when the moment of its deadline is over.
        try:
            yield self._deadlines.minKey((now, b""))[0] + 1
        except ValueError:
            return

    def expired(self, now: int) -> tuple[Job, Place] | None:
        """Return the job whose deadline passed first, if that of any has."""
        if not self._deadlines:
            return None
        deadline, oid = self._deadlines.minKey()
        if deadline >= now:
            return None
        job, line, position = self._deadlines[deadline, oid]
        return job, Place(self, line, position)

    def deadlines(self) -> Iterator[tuple[int, bytes, LineKey, Position]]:
        """Return each deadline, with the oid of its job and where that stands."""
        for (deadline, oid), (_, line, position) in self._deadlines.items():
            yield deadline, oid, line, position

    def find(self, job: Job, position: Position) -> Place | None:
        """Return where `job` stands, given the position that it was put with."""
        due, stamp = position
        for key, line in self._lines.items():
            for at, found in line.items(position, (due, stamp + _LARGEST_SHIFT)):
                if found is job:
                    return Place(self, key, at)
        return None
