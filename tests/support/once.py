"""Values that are made when they are first asked for, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["MadeOnce"]

K = TypeVar("K")
V = TypeVar("V")


class MadeOnce(dict[K, V]):
    """A `defaultdict` for several threads, who all get the same value for a key.

    With a `defaultdict`, two that ask for a new key at once may get one each.
    """

    def __init__(self, make: Callable[[], V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> V:
        return self.setdefault(key, self._make())
