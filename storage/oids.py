"""Object ids are given away once, whoever owns the file.

An object gets its id when it is added to a connection, long before its transaction is committed,
and a transaction that has only added may survive a change of owners. The next owner knows the
ids that are in the file, and nothing of those that were given away and are still to come: it
would give them to other objects, and of two objects with one id in a commit one is lost without
a word. So an owner notes, in the lock file that it holds anyway, up to which id it may give them
away; it gives away no other one before that is noted, and the next owner begins behind it.

Nothing is flushed to the disk for that. A note has to survive its process and not the machine:
with the machine, whoever was still to store something is gone as well.
"""

from __future__ import annotations

import re
import threading

from perdure.model.lockfile import LockFile

__all__ = ["GivenOids"]

#: So many ids are noted at a time; who is killed leaves at most so many unused.
_NOTED = 1_000

#: How far to stay behind what is in the file where there is no note, as it may have been removed.
_SKIPPED = 10_000

_FORM = re.compile(rb"[0-9a-f]{16}\n")


class GivenOids:
    """The note of the ids that were given away, in a lock file while one has it.

    Its methods may be called from any thread, and raise `OSError` where the note cannot be
    written, `ValueError` where the lock file is closed.
    """

    def __init__(self, lock: LockFile) -> None:
        self._lock = lock
        self._guard = threading.Lock()
        #: Up to here they may be given away.
        self.noted = b""

    def begin_behind(self, last: bytes, *, new: bool) -> bytes:
        """Return the id behind which to begin, if `last` is the last one in the file.

        `new`: the file has just been made, and nothing was ever given away.
        """
        note = self._lock.read(17)
        if _FORM.fullmatch(note):
            behind = max(last, bytes.fromhex(note.decode()))
        else:
            behind = last if new else _later(last, _SKIPPED)
        self.noted = behind
        return behind

    def note(self, oid: bytes) -> None:
        """Note that this one is going to be given away, and some more."""
        with self._guard:
            if oid > self.noted:
                following = _later(oid, _NOTED)
                self._write(following)
                self.noted = following

    def end_with(self, oid: bytes) -> None:
        """Note that this was the last one, and no more are given away."""
        self._write(oid)

    def _write(self, oid: bytes) -> None:
        self._lock.write(oid.hex().encode() + b"\n")


def _later(oid: bytes, count: int) -> bytes:
    return (int.from_bytes(oid, "big") + count).to_bytes(8, "big")
