"""Who says which thread goes on: nobody, a seed, a list, or a search."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Calm", "Chooser", "Recorded", "Seeded", "Taken"]


class Chooser(Protocol):
    """Says who goes on, wherever more than one could."""

    def choose(self, names: Sequence[str], goes_on: bool, /) -> int:
        """Return the index of one of at least two, in the order in which they were started.

        With `goes_on` the first is the one that went on until now.
        """


class Calm:
    """Lets each go on for as long as it can, then whoever was started first."""

    def choose(self, names: Sequence[str], goes_on: bool, /) -> int:
        return 0


class Seeded:
    """Decides by lot.

    :param seed: the same seed makes the same choices.
    :param restlessness: how often another one than until now goes on, 0 to 1.
    """

    def __init__(self, seed: int, restlessness: float = 0.25) -> None:
        if not 0 <= restlessness <= 1:
            raise ValueError(f"restlessness must be 0 to 1, not {restlessness!r}")
        self._random = random.Random(seed)
        self._restlessness = restlessness

    def choose(self, names: Sequence[str], goes_on: bool, /) -> int:
        if not goes_on or self._random.random() < self._restlessness:
            return self._random.randrange(len(names))
        return 0


@dataclass(frozen=True, slots=True)
class Taken:
    """One choice: which of how many, and whether the first of them was who went on until now."""

    index: int
    count: int
    goes_on: bool

    @property
    def preempts(self) -> bool:
        """Whether somebody was kept from going on."""
        return self.goes_on and self.index > 0


class Recorded:
    """Chooses as a list says, then as another one does; keeps what was chosen."""

    def __init__(self, choices: Sequence[int] = (), then: Chooser | None = None) -> None:
        self._given = list(choices)
        self._then: Chooser = then or Calm()
        self.taken: list[Taken] = []

    def choose(self, names: Sequence[str], goes_on: bool, /) -> int:
        number = len(self.taken)
        if number < len(self._given):
            index = min(self._given[number], len(names) - 1)
        else:
            index = self._then.choose(names, goes_on)
        self.taken.append(Taken(index, len(names), goes_on))
        return index
