"""What a transaction that failed does to new objects, and how they are used again after it.

A connection that gives up a commit disowns the objects that it had stored for the first time,
and takes their state from them first: they could not be told from empty ones any more. So who
wants to try the same objects again keeps their states before.
"""

from __future__ import annotations

from typing import Any

from persistent import Persistent

__all__ = ["Unsaved"]


class Unsaved:
    """The states of an object and all new ones that it holds, to be given back to them.

    What was saved already is no part of it; neither is what only an object that is not
    persistent holds in an attribute.
    """

    def __init__(self, item: Persistent) -> None:
        self._states: dict[int, tuple[Persistent, Any]] = {}
        waiting: list[Any] = [item]
        while waiting:
            each = waiting.pop()
            if isinstance(each, Persistent):
                if each._p_jar is None and id(each) not in self._states:
                    state = each.__getstate__()
                    self._states[id(each)] = each, state
                    waiting.append(state)
            elif isinstance(each, dict):
                waiting += each.values()
            elif isinstance(each, (list, tuple, set, frozenset)):
                waiting += each

    def restore(self) -> None:
        """Let all of them be what they were."""
        for each, state in self._states.values():
            if each._p_jar is not None and not _disown(each):
                each.__setstate__(state)
                continue
            # One that has lost its state would be loaded, were it not for this.
            jar: Any = _Jar(state)
            each._p_jar = jar
            each._p_oid = b"\0" * 8
            each._p_invalidate()
            each._p_activate()
            del each._p_jar
            del each._p_oid


def _disown(item: Persistent) -> bool:
    """Let an object belong to no connection; False if it is saved, perhaps.

    A connection forgets to do it for the one whose own `store` has failed. That would not be
    stored the next time, and what refers to it would refer to nothing.
    """
    try:
        del item._p_jar
        del item._p_oid
    except ValueError:  # the connection's cache has it
        return False
    return True


class _Jar:
    """Gives a state to an object, as a connection does that loads it."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def setstate(self, item: Persistent) -> None:
        item.__setstate__(self._state)

    def register(self, item: Persistent) -> None:
        """Do nothing: it is not to be stored."""
