"""A forked child lets go of what it inherited from a process that shares a file.

Otherwise a child that outlives its parent would keep the file locked and the others' sockets
open, and one that reads or closes the inherited storage would move the parent's position in the
file, or free its lock. `exec` closes the descriptors by itself.

Each descriptor is replaced by one of the null device and not closed: its number stays taken, so
that an inherited Python object which closes it later closes nothing else, and what was in a
buffer at the moment of the fork is written nowhere.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from selectors import BaseSelector

__all__ = ["Inherited", "let_go_in_children", "of_selector"]


class Inherited(ABC):
    """Something with descriptors that no child may have."""

    @abstractmethod
    def descriptors(self) -> Iterable[int]:
        """The descriptors that are open now; asked in the child, while no thread runs."""

    def forked(self) -> None:  # noqa: B027
        """Called in the child when it has let go of the descriptors; does nothing by default."""


def of_selector(selector: BaseSelector) -> Iterator[int]:
    """The descriptor of a selector, and those that it watches."""
    registered = selector.get_map()
    if registered is not None:  # it is open
        yield from [key.fd for key in registered.values()]
        number = getattr(selector, "fileno", None)
        if number is not None:
            yield number()


_known: weakref.WeakSet[Inherited] = weakref.WeakSet()


def let_go_in_children(inherited: Inherited) -> None:
    """Have children that are forked from now on let go of its descriptors."""
    _known.add(inherited)


def _let_go() -> None:
    if not _known:
        return
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for inherited in list(_known):
        for descriptor in list(inherited.descriptors()):
            with contextlib.suppress(OSError):
                os.dup2(null, descriptor, inheritable=False)
        inherited.forked()
    os.close(null)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
