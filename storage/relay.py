"""What a client tells of the commits that others make."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable

__all__ = ["Relay"]

#: Told of a commit: its id, and the objects that it changed; None where these are not known.
Told = Callable[[bytes, Collection[bytes] | None], object]


class Relay:
    """Tells on what it hears of a client, which asks it as if it were a `ZODB.DB`.

    `tell(tid, oids)` is called in the thread of the client's connection. What comes before
    `begin` is kept until then, so that a process that comes back first learns what it has
    missed, and then what came after that.
    """

    def __init__(self, tell: Told) -> None:
        self._tell = tell
        self._guard = threading.Lock()
        self._kept: list[tuple[bytes, Collection[bytes] | None]] | None = []
        #: Asked when the client has missed so much that it does not know what.
        self.last: Callable[[], bytes] = bytes

    def begin(self) -> None:
        """Tell what was kept, and from now on at once."""
        with self._guard:
            for tid, oids in self._kept or ():
                self._tell(tid, oids)
            self._kept = None

    def invalidate(self, tid: bytes, oids: Iterable[bytes]) -> None:
        self._on(tid, list(oids))

    def invalidateCache(self) -> None:
        self._on(self.last(), None)

    def _on(self, tid: bytes, oids: Collection[bytes] | None) -> None:
        with self._guard:
            if self._kept is not None:
                self._kept.append((tid, oids))
                return
        self._tell(tid, oids)

    def transform_record_data(self, data: bytes) -> bytes:
        return data

    untransform_record_data = transform_record_data
