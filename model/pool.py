"""How many connections of a database are expected to be open at once."""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["change_pool_size"]

_lock = threading.Lock()


def change_pool_size(database: Any, by: int) -> None:
    """Expect so many connections more, or less, than before; from any thread.

    More than that are opened all the same, and the ZODB logs a warning of each.
    """
    with _lock:
        database.setPoolSize(max(1, database.getPoolSize() + by))
