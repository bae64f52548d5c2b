"""Telling the worker's main thread that a job is done, once that is committed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["announce", "listen"]

_listeners: weakref.WeakKeyDictionary[Any, Callable[[], None]] = weakref.WeakKeyDictionary()


def listen(database: Any, listener: Callable[[], None]) -> None:
    """Have `listener` called for whatever is announced in `database` from now on.

    It is called in the thread that commits; it must return at once and not raise.
    """
    _listeners[database] = listener


def announce(persistent: Any) -> None:
    """Call the listener of the database of `persistent` after this transaction's commit.

    An attempt that is not committed, and so made again, announces nothing.
    """
    jar = persistent._p_jar
    listener = _listeners.get(jar.db())
    if listener is not None:
        jar.transaction_manager.get().addAfterCommitHook(_committed, (listener,))


def _committed(success: bool, listener: Callable[[], None]) -> None:
    if success:
        listener()
