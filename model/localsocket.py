"""Sockets with a place in the file system that are for one user alone.

Nobody can connect to one before it is private: until `listen` is called on it, the system
refuses every connection, and by then its mode is 0600. Both sides also look at who the other
one is, where the system tells it.

No child process keeps one open. `exec` closes it, and a forked child closes it at once: with a
copy of it in a child, those who connect after the end of its maker would wait in vain instead of
being refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
import threading
from collections.abc import Iterator

__all__ = ["LONGEST", "LocalListener", "close", "connect", "own_user", "peer", "stranger"]

LONGEST = 107 if sys.platform == "linux" else 103
"""So many bytes of a path the system takes for a socket's address."""

_MODE = 0o600
_BACKLOG = 128

_open_sockets: set[socket.socket] = set()
# Held while a listener is made and while the process forks, so that no child is born between
# the socket and the note of it. Re-entrant: a fork may come out of a signal handler.
_guard = threading.RLock()


class LocalListener:
    """A socket that listens at `path`, in the place of one that was left there.

    Whoever makes it knows that nobody else listens at that path, by a lock, say. `socket` is
    not blocking. `close` may be called from any thread. Raises `OSError` where there can be
    no such socket, also because something else lies there.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        with contextlib.ExitStack() as stack:
            with _guard:
                self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                _open_sockets.add(self.socket)
            stack.callback(close, self.socket)
            _remove_socket(path)
            with _address(path) as address:
                self.socket.bind(address)
            self._place = _place(path)
            stack.callback(self._remove)
            os.chmod(path, _MODE)
            self.socket.listen(_BACKLOG)
            self.socket.setblocking(False)
            stack.pop_all()

    def close(self) -> None:
        """Remove the socket, if it is still the one at its path, and close it."""
        with contextlib.suppress(OSError):
            self._remove()
        close(self.socket)

    def accept(self) -> socket.socket:
        """Let one client in; the socket, to be closed with `close`, is not blocking.

        Raises `BlockingIOError` where nobody waits, and other kinds of `OSError`.
        """
        with _guard:
            client, _ = self.socket.accept()
            _open_sockets.add(client)
        client.setblocking(False)
        return client

    def _remove(self) -> None:
        # While the socket is open its inode is not used again.
        if _place(self._path) == self._place:
            os.unlink(self._path)


def connect(path: str, timeout_seconds: float) -> socket.socket:
    """Return a socket that is connected to the one at `path`, which is this user's own.

    Raises `FileNotFoundError` where there is none, `ConnectionRefusedError` where nobody
    listens any more, `PermissionError` where it is another user's, `TimeoutError`, and other
    kinds of `OSError`.
    """
    status = os.lstat(path)
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.ENOTSOCK, "it is no socket", path)
    _check_user(status.st_uid, path)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Blocking, with the system's own limit: a socket with a time-out of Python's fails at
        # once where many wait to be let in.
        seconds = max(timeout_seconds, 1e-6)
        client.setsockopt(
            socket.SOL_SOCKET,
            socket.SO_SNDTIMEO,
            struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)),
        )
        with _address(path) as address:
            try:
                client.connect(address)
            except BlockingIOError as error:
                raise TimeoutError from error
        other = stranger(client)
        if other is not None:
            _check_user(other[1], path)
    except BaseException:
        client.close()
        raise
    return client


def peer(connected: socket.socket) -> tuple[int, int] | None:
    """Return the process id and the user id of the other side; None where nobody tells."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    size = struct.calcsize("3i")
    data = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    process, user, _ = struct.unpack("3i", data)
    return process, user


def stranger(connected: socket.socket) -> tuple[int, int] | None:
    """Return the process id and the user id of the other side, if it is another user's."""
    known = peer(connected)
    return known if known is not None and known[1] != own_user() else None


def own_user() -> int:
    """Return the user id that counts for this process."""
    return os.geteuid()


def close(opened: socket.socket) -> None:
    """Close a listener's socket or one of its clients; may be repeated."""
    with _guard:
        _open_sockets.discard(opened)
        opened.close()


def _check_user(user: int, path: str) -> None:
    if user != own_user():
        raise PermissionError(errno.EACCES, f"it belongs to the user with id {user}", path)


def _place(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _remove_socket(path: str) -> None:
    """Remove what a killed process left; raises `FileExistsError` for anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is something that is no socket", path)
    os.unlink(path)


@contextlib.contextmanager
def _address(path: str) -> Iterator[str]:
    """The address for a path; a long one is reached through its folder, while that is open."""
    if len(os.fsencode(path)) <= LONGEST:
        yield path
        return
    folder, name = os.path.split(path)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        shorter = f"/proc/self/fd/{descriptor}"
        address = f"{shorter}/{name}"
        if not os.path.isdir(shorter) or len(os.fsencode(address)) > LONGEST:
            raise OSError(
                errno.ENAMETOOLONG, f"it is over {LONGEST} bytes long, too long here", path
            )
        yield address
    finally:
        os.close(descriptor)


def _close_in_child() -> None:
    for opened in _open_sockets:
        with contextlib.suppress(OSError):
            opened.close()
    _open_sockets.clear()
    _guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_in_child
    )
