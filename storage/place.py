"""What lies beside a shared file: the folder, the socket in it, and the locks.

For ``app.fs``: ``app.fs.lock`` is the FileStorage's own lock, with the process id of who has it;
``app.fs.perdure/share.lock`` is held by the process that shares the file, from before it opens
it, so that others can tell it from one that does not share; ``app.fs.perdure/share.sock`` is
where it listens.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import stat
from pathlib import Path

from perdure.model.errors import DatabaseAccessError
from perdure.model.localsocket import LONGEST, stranger
from perdure.model.lockfile import LockFile
from perdure.storage.flushing import was_pack_interrupted

__all__ = ["Place"]

SOCKET = "share.sock"
LOCK = "share.lock"

_BACKLOG = 128


class Place:
    """Where the processes that share the file at `path` meet.

    Symbolic links are followed first, so that two names of one file are one place.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self.folder = f"{self.path}.perdure"
        self.socket = os.path.join(self.folder, SOCKET)
        self._descriptor: int | None = None

    def close(self) -> None:
        """Let go of the folder, if it was opened for its long name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def prepare(self) -> None:
        """Make the folder if need be, and make sure that only this user may write into it.

        Raises `DatabaseAccessError` where that cannot be.
        """
        try:
            if not os.path.lexists(self.folder):
                self._check_owner_of_file()
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
            status = os.lstat(self.folder)
            if self._is_ours(status) and stat.S_IMODE(status.st_mode) & 0o022:
                os.chmod(self.folder, stat.S_IMODE(status.st_mode) & ~0o022)
        except OSError as error:
            raise DatabaseAccessError(
                f"the folder {self.folder}, where processes that share the database meet, cannot "
                f"be made ({error.strerror}): make {os.path.dirname(self.path)} writable"
            ) from error
        self.check()

    def _check_owner_of_file(self) -> None:
        """Refuse to make the folder for somebody else's file: that one could not use it then."""
        try:
            owner = os.stat(self.path).st_uid
        except FileNotFoundError:
            return
        if owner != os.geteuid():
            raise DatabaseAccessError(
                f"the database {self.path} belongs to the user with the number {owner}, and this "
                f"process runs as {os.geteuid()}: a database file is shared by processes of one "
                "user; run as that user, or use a ZEO server"
            )

    def check(self) -> None:
        """Refuse a folder or a socket that somebody else could have put there.

        Raises `DatabaseAccessError`: what is read from the socket is unpickled.
        """
        for path in (self.folder, self.socket):
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DatabaseAccessError(f"{path} cannot be used: {error.strerror}") from error
            if path == self.folder and not stat.S_ISDIR(status.st_mode):
                raise DatabaseAccessError(
                    f"{path} is no folder; the processes that share the database meet there: "
                    "move it away"
                )
            if not self._is_ours(status):
                raise DatabaseAccessError(
                    f"{path} belongs to the user with the number {status.st_uid}, and this "
                    f"process runs as {os.geteuid()}: a database file is shared by processes of "
                    "one user; run as that user, or use a ZEO server"
                )
            if path == self.folder and stat.S_IMODE(status.st_mode) & 0o022:
                raise DatabaseAccessError(
                    f"others may write into {path}: run chmod go-w on it, or they could answer in "
                    "the place of the process that has the database"
                )

    @staticmethod
    def _is_ours(status: os.stat_result) -> bool:
        return status.st_uid == os.geteuid()

    def address(self, name: str = SOCKET) -> str:
        """Return a name of the socket that fits into its address.

        Raises `DatabaseAccessError` where the path is too long and there is no other way.
        """
        path = os.path.join(self.folder, name)
        if len(os.fsencode(path)) <= LONGEST:
            return path
        if not os.path.isdir("/proc/self/fd"):
            raise DatabaseAccessError(
                f"the path {path} is longer than the {LONGEST} bytes that the address of a "
                "socket may have here: move the database to a folder with a shorter path"
            )
        if self._descriptor is None:
            self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._descriptor}/{name}"

    def listen(self) -> socket.socket:
        """Return a listening socket; it takes the place of one that was left there.

        It gets its mode before it listens, and its name after that: nobody else can connect at
        any moment, and who finds the name is answered.
        """
        passing = f"{SOCKET}.{os.getpid()}.{secrets.token_hex(4)}"
        path = os.path.join(self.folder, passing)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(self.address(passing))
            os.chmod(path, 0o600)
            listening.listen(_BACKLOG)
            os.rename(path, self.socket)
        except BaseException:
            listening.close()
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        listening.setblocking(False)
        return listening

    def unlink(self) -> None:
        """Remove the socket; only for who holds the lock."""
        with contextlib.suppress(OSError):
            os.unlink(self.socket)

    def answers(self) -> bool:
        """Tell whether somebody listens; raises `DatabaseAccessError` like `check`."""
        self.check()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            # A listener that does not accept any more (a stopped process) has a full line.
            probe.setblocking(False)
            try:
                probe.connect(self.address())
            except BlockingIOError:
                return True
            except OSError:
                return False
            other = stranger(probe)
        if other is not None:
            raise DatabaseAccessError(
                f"{self.socket} is answered by the process {other[0]} of the user with the number "
                f"{other[1]}, and this process runs as {os.geteuid()}: a database file is shared "
                "by processes of one user; run as that user, or use a ZEO server"
            )
        return True

    def try_to_share(self) -> LockFile | None:
        """Return the lock of who shares the file, until it is closed; None if somebody has it."""
        try:
            lock = LockFile(os.path.join(self.folder, LOCK), os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise DatabaseAccessError(
                f"{os.path.join(self.folder, LOCK)} cannot be written ({error.strerror}): "
                "processes that share the database need it"
            ) from error
        if lock.try_lock():
            return lock
        lock.close()
        return None

    def has_database(self) -> bool:
        """Tell whether there is a file with something in it."""
        if was_pack_interrupted(self.path):
            return True
        try:
            return stat.S_ISREG(os.stat(self.path).st_mode) and os.path.getsize(self.path) > 0
        except OSError:
            return False

    def is_shared(self) -> bool:
        """Tell whether some process shares the file, or is about to."""
        try:
            lock = LockFile(os.path.join(self.folder, LOCK), os.O_RDONLY)
        except OSError:
            return False
        try:
            with lock.try_share() as free:
                return not free
        finally:
            lock.close()

    def holder(self) -> int | None:
        """Return the id of the process that has the file open, as far as is known."""
        try:
            found = re.match(r"\s*(\d+)", Path(f"{self.path}.lock").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return int(found[1]) if found else None
