"""The places of an agent: how many jobs it may hold, of which several may share one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from perdure.model.groupable import agent_word, batch_of, group_of

if TYPE_CHECKING:
    from perdure.model.agent import Agent
    from perdure.model.job import Job
    from perdure.model.stripe import LineKey

__all__ = ["BATCHED", "GROUPED_PER_PLACE", "Places", "Taken"]

GROUPED_PER_PLACE = 128
"""So many jobs that are run in groups, and take an instant each, share one place of an agent.

Those that take longer take several parts of it. Of all of them a worker runs one at a time, as of
others. With fewer the commits of the groups show; with many more, a process holds what another one
could run.
"""

BATCHED = 64
"""So many jobs at most are run one after the other by one worker, and settled together.

An agent holds twice as many: those, and what to go on with.
"""


class Taken(NamedTuple):
    """One job that an agent has just claimed; `group` names what it calls, "" for one alone.

    `parts` says how many parts of a place it takes, 0 that it has one for itself; `batch` that it
    is for a batch instead.
    """

    job: Job
    number: int
    group: str
    parts: int
    batch: bool = False


class Places:
    """The places that an agent has left, counted in parts of one."""

    def __init__(
        self,
        agent: Agent,
        parts_of: Callable[[str], int],
        small: Mapping[bytes, int],
        most: Callable[[str], int],
        is_brief: Callable[[str], bool],
    ) -> None:
        self._shared = sum(1 for oid in agent._held if oid in small)
        self._most = most
        used = sum(small.get(oid, GROUPED_PER_PLACE) for oid in agent._held)
        self.left = agent.size * GROUPED_PER_PLACE - used
        self.group = ""
        """The name of what the job calls that was admitted last, where it is one for a group."""
        self.batch = False
        """Whether it is one for a batch instead."""
        self.word = agent_word(agent)
        self._agent = agent
        self._parts_of = parts_of
        self._is_brief = is_brief
        self._parts: dict[str, int] = {}
        self._brief: dict[str, bool] = {}

    def admits(self, job: Job) -> bool:
        self.group = group_of(job, self._agent)
        self.batch = not self.group and self._is_for_batch(job)
        if self.batch:
            self.take_for_batch()
            return True
        if self.weight(self.group) > self.left:
            return False
        if self.is_small(self.group) and not self._room_for_small(self.group):
            return False
        self.take(self.group)
        return True

    def _is_for_batch(self, job: Job) -> bool:
        if self.left < 1 or self._shared >= 2 * BATCHED:
            return False
        name = batch_of(job)
        return bool(name) and self.batches(name)

    def take(self, name: str) -> None:
        """Count one that was claimed."""
        self.left -= self.weight(name)
        self._shared += self.is_small(name)

    def take_for_batch(self) -> None:
        """Count one that was claimed for a batch."""
        self.left -= 1
        self._shared += 1

    def batches(self, name: str) -> bool:
        """Tell whether jobs that call what has that name are to be run in batches now."""
        if name not in self._brief:
            self._brief[name] = self._is_brief(name)
        return self._brief[name]

    def for_line(self, key: LineKey) -> int:
        """Return how many jobs of a line there is room for, whose claims load none."""
        name = key.group
        if key.batch:
            return max(0, min(self.left, 2 * BATCHED - self._shared))
        number = max(0, self.left) // self.weight(name)
        return min(number, self._room_for_small(name)) if self.is_small(name) else number

    def _room_for_small(self, name: str) -> int:
        return max(0, self._most(name) - self._shared)

    def weight(self, name: str) -> int:
        """Return how much of a place a job takes that calls what has that name, or is alone."""
        return self.parts(name) or GROUPED_PER_PLACE

    def is_small(self, name: str) -> bool:
        """Tell whether such a job shares a place with others."""
        return self.parts(name) > 0

    def parts(self, name: str) -> int:
        """Return how many parts of a place such a job takes, 0 if it has one for itself.

        The same each time, once asked: what is known of callables may be another thing in the
        next instant.
        """
        if name not in self._parts:
            self._parts[name] = self._parts_of(name) if name else 0
        return self._parts[name]
