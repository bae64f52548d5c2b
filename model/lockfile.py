"""Files that are locked for as long as somebody lives (`flock`).

The lock belongs to the open file, so a second one in the same process competes like one in
another process, and the operating system frees it when the process ends in any way. Therefore
no child may have the descriptor: `exec` closes it, and a forked child closes it at once
(without unlocking, which would free the parent's lock).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # no such locks on this platform: nothing can be proved
    fcntl = None  # type: ignore[assignment]

__all__ = ["SUPPORTED", "LockFile"]

SUPPORTED = fcntl is not None

_open_files: set[LockFile] = set()
# Held while a file is opened or closed and while the process forks, so that no child is born
# between `open` and the note of it. Re-entrant: a fork may come out of a signal handler.
_guard = threading.RLock()


class LockFile:
    """An open file that can be locked and that no child process inherits.

    It stays open until `close`, whether or not anybody refers to it. Raises `OSError` if it
    cannot be opened.
    """

    def __init__(self, path: str, flags: int) -> None:
        with _guard:
            # Non-blocking: there may be a pipe where a file should be.
            self.descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
            _open_files.add(self)

    def close(self) -> None:
        """Close the file and free its lock; may be repeated, and does nothing in a child."""
        with _guard:
            if self in _open_files:
                _open_files.remove(self)
                os.close(self.descriptor)

    def read(self, size: int) -> bytes:
        """Return its first bytes, at most so many."""
        return os.pread(self.descriptor, size, 0)

    def write(self, data: bytes) -> None:
        """Write at its beginning; raises `ValueError` if it is closed, as it is in a child."""
        with _guard:
            if self not in _open_files:
                raise ValueError("the lock file is closed")
            os.pwrite(self.descriptor, data, 0)

    def try_lock(self) -> bool:
        """Take the lock alone, until `close`; False if anybody has it, alone or shared."""
        return self._try(fcntl.LOCK_EX)

    @contextlib.contextmanager
    def try_share(self) -> Iterator[bool]:
        """Share the lock for the length of the block; False if somebody has it alone."""
        taken = self._try(fcntl.LOCK_SH)
        try:
            yield taken
        finally:
            if taken:
                fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _close_in_child() -> None:
    for file in _open_files:
        with contextlib.suppress(OSError):
            os.close(file.descriptor)
    _open_files.clear()
    _guard.release()


if SUPPORTED:
    os.register_at_fork(
        before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_in_child
    )
