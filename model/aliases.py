"""Aliases: under which name code that was moved is found now.

The table lies in the database, since the names that it translates do. A stored name is
never changed: what it stands for is looked up whenever it is resolved.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from persistent import Persistent
from ZODB.utils import z64

if TYPE_CHECKING:
    from perdure.model.queues import Queues

__all__ = ["Aliases", "current_name", "translate"]


class Aliases(Persistent):
    """The table of one database: old names and the new ones."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def add(self, old: str, new: str) -> None:
        """Let `old` stand for `new`."""
        self.names = {**self.names, old: new}

    def remove(self, old: str) -> None:
        """Let `old` stand for itself again."""
        self.names = {key: value for key, value in self.names.items() if key != old}


def current_name(persistent: Any, name: str) -> str:
    """Return what the stored `name` stands for in the database that `persistent` is in."""
    jar = persistent._p_jar
    if jar is None:
        return name
    root = jar._cache.get(z64)
    key, kind = _queues()
    # Not by way of `Connection.root`: this is asked for several times for each job.
    queues = (jar.root() if root is None else root).get(key)
    if not isinstance(queues, kind) or queues.aliases is None:
        return name
    return translate(queues.aliases.names, name)


@functools.cache
def _queues() -> tuple[str, type[Queues]]:
    # That module imports this one.
    from perdure.model.queues import ROOT_KEY, Queues

    return ROOT_KEY, Queues


def translate(table: Mapping[str, str], name: str) -> str:
    """Return what `name` stands for; itself where there is no alias for it.

    What an alias leads to may have an alias in turn. Each is followed once, so that a
    module may move into a package of its own name.
    """
    rest = dict(table)
    while True:
        for old in _matching(name):
            if old in rest:
                name = rest.pop(old) + name.removeprefix(old)
                break
        else:
            return name


def _matching(name: str) -> Iterator[str]:
    """Return what an alias for `name` may be named: the most particular name first."""
    module, separator, qualname = name.partition(":")
    while qualname:
        # What a class has moves with it.
        yield module + separator + qualname
        qualname = qualname.rpartition(".")[0]
    while module:
        yield module
        module = module.rpartition(".")[0]
