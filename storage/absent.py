"""What a process has in the place of a side of the file, while it has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import StorageTransactionError

__all__ = ["Absent", "Forked"]


class Absent:
    """The side of a process that had to leave the one it had, and has not found another yet.

    `seen` is the last transaction that it has told its database of, as far as it is in the file;
    `doubtful` one that it was told of and that is perhaps not. Each call raises
    `ClientDisconnected`.
    """

    def __init__(
        self, path: str, seen: bytes, blob_dir: str | None, doubtful: bytes | None = None
    ) -> None:
        self._path = path
        self._seen = seen
        self.doubtful = doubtful
        self.blob_dir = blob_dir

    def lastTransaction(self) -> bytes:
        return self._seen

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise ClientDisconnected(f"the database {self._path} is being opened again")


class Forked:
    """What a child has that was forked from a process with the file open."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise StorageTransactionError(
            f"the database {self._path} was opened before this process was forked: open it again "
            "here"
        )
