"""Who this process is, across restarts, and the proof that an earlier one has ended.

A process that runs jobs has a stable UUID, kept in an *identity file*, and each start is a new
*incarnation*: it locks the file for its life and adds a random token. A record in the database
names host, boot, device, inode and token. If on that host, in that boot, that very file holds
that token and its lock is free, then that incarnation has ended; anything else proves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import stat
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from perdure.model.clock import Clock
from perdure.model.errors import IdentityError
from perdure.model.lockfile import SUPPORTED, LockFile
from perdure.model.logs import events, fields

__all__ = [
    "FileProofs",
    "Identity",
    "Incarnation",
    "Proofs",
    "acquire_identity",
    "has_same_boot",
    "may_be_proved",
    "proved_dead",
]

ENVIRONMENT_VARIABLE = "PERDURE_UUID"
FILE_NAME = "uuid.txt"
TOKENS_KEPT = 50
_LONGEST_FILE = 64 * 1024
_MOST_NAMES = 1000
# A sibling's probe holds the lock for an instant only.
_PROBE_WAITS_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

_EXPLANATION = """\
# The identity of a process that runs jobs with Perdure. It was made when the process was first
# started here, and is used again by every later start, so that the process can find and finish
# the work that an earlier start left behind.
#
# The process keeps this file locked while it runs. Each start adds a token below; together they
# are how others can tell that an earlier start has ended. So do not edit or copy this file, and
# do not remove it while the process runs. When none runs, it may be removed: the next start makes
# a new one, and what the old one left is taken over once its last ping is old enough.

"""
_UUID_LINE = re.compile(r"(?:uuid:\s*)?([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})")
_TOKEN_LINE = re.compile(r"token: ([0-9a-f]{32})")
_BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One start of one process: what others need to see whether it has ended."""

    host: str
    boot_id: str
    device: int
    inode: int
    token: str
    path: str


class Identity:
    """The UUID of this process, and its incarnation while the file is locked.

    `incarnation` is None where no file could be written: then there is no proof, and the
    UUID will not come again. Also a context manager that closes it.
    """

    def __init__(
        self,
        identifier: uuid.UUID,
        incarnation: Incarnation | None = None,
        file: LockFile | None = None,
    ) -> None:
        self.uuid = identifier
        self.incarnation = incarnation
        self._file = file

    def close(self) -> None:
        """Free the lock, which tells others that this incarnation has ended; may be repeated."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Identity:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "no file" if self.incarnation is None else self.incarnation.path
        return f"<Identity {self.uuid} ({where})>"


def acquire_identity(
    database_file: str | os.PathLike[str] | None,
    *,
    clock: Clock,
    environ: Mapping[str, str] = os.environ,
    cwd: str | os.PathLike[str] | None = None,
) -> Identity:
    """Return the identity of a process that is about to run jobs; make its file if needed.

    The file is the one that `PERDURE_UUID` names; else one in `<database_file>.perdure/`;
    else `uuid.txt` in `cwd`. If another process has it, the next name is taken (`uuid-2.txt`
    …). Where none can be written, the UUID is a fresh one and a warning is logged.

    It may wait some seconds, for probes of siblings to end. It uses no transaction. Raises
    `IdentityError` if a file is there but cannot be used, or if the one that `PERDURE_UUID`
    names cannot be made.
    """
    named = environ.get(ENVIRONMENT_VARIABLE, "")
    reasons = []
    if SUPPORTED:
        for first in _places(named, database_file, cwd):
            try:
                return _acquire_in(first, clock)
            except _NotWritable as error:
                reasons.append(str(error))
    else:
        reasons.append("this platform has no flock")
    if named:
        raise IdentityError(
            f"the identity file that {ENVIRONMENT_VARIABLE} names cannot be written: "
            f"{reasons[0]}. Make it writable, name another file, or unset the variable."
        )
    identifier = uuid.uuid4()
    events.warning(
        "no identity file can be written (%s): this process is %s, and the next one will be "
        "another, which takes this one's jobs over only when its last ping is old; set %s to a "
        "file that can be written",
        "; ".join(reasons),
        identifier,
        ENVIRONMENT_VARIABLE,
        extra=fields(dispatcher=str(identifier)),
    )
    return Identity(identifier)


def proved_dead(incarnation: Incarnation, own: Incarnation | None = None) -> bool:
    """Return whether it is proved that this incarnation has ended; False proves nothing.

    `own` is the caller's incarnation, whose `Identity` is not closed: if it holds the lock of
    the very file that the other had locked, the other one has ended. Never waits or raises.
    """
    if not may_be_proved(incarnation):
        return False
    if own is not None and _same_file(own, incarnation):
        return own.token != incarnation.token
    try:
        file = LockFile(incarnation.path, os.O_RDONLY)
    except (OSError, ValueError):
        return False
    try:
        status = os.fstat(file.descriptor)
        if (status.st_dev, status.st_ino) != (incarnation.device, incarnation.inode):
            return False
        if incarnation.token not in _Content.read(file.descriptor, incarnation.path).tokens:
            return False
        with file.try_share() as free:
            return free
    except (OSError, IdentityError):
        return False
    finally:
        file.close()


class Proofs(Protocol):
    """How one finds out that a process has ended."""

    def may_be_proved(self, incarnation: Incarnation, /) -> bool:
        """Return whether the end of this incarnation could be proved from here."""

    def proved_dead(self, incarnation: Incarnation, own: Incarnation | None = None, /) -> bool:
        """Return whether it is proved to have ended; never waits or raises."""


class FileProofs:
    """By the locks of identity files."""

    def may_be_proved(self, incarnation: Incarnation, /) -> bool:
        return may_be_proved(incarnation)

    def proved_dead(self, incarnation: Incarnation, own: Incarnation | None = None, /) -> bool:
        return proved_dead(incarnation, own)


def may_be_proved(incarnation: Incarnation) -> bool:
    """Return whether the end of this incarnation could be proved here, once it has ended."""
    return bool(incarnation.boot_id) and SUPPORTED and has_same_boot(incarnation)


def has_same_boot(incarnation: Incarnation) -> bool:
    """Return whether it began on this host, since the host was booted, as far as can be told."""
    return (incarnation.host, incarnation.boot_id) == (socket.gethostname(), _boot_id())


def _same_file(one: Incarnation, other: Incarnation) -> bool:
    # An inode is not used again while the file is open, so `own` holds the same lock.
    return (one.host, one.boot_id, one.device, one.inode) == (
        other.host,
        other.boot_id,
        other.device,
        other.inode,
    )


class _NotWritable(Exception):
    """There is no file, or one that is sound, but it cannot be written."""


@dataclass(slots=True)
class _Content:
    """What is in an identity file."""

    text: str = _EXPLANATION  # all but the tokens, kept as somebody may have written it
    identifier: uuid.UUID | None = None
    tokens: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, descriptor: int, path: str) -> _Content:
        """Read a file; an empty one (made, but never written) is content without UUID."""
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST_FILE:
            raise _unusable(path, "it is not a small, regular file")
        data = os.pread(descriptor, _LONGEST_FILE, 0)
        if not data.strip():
            return cls()
        try:
            lines = data.decode().splitlines()
        except UnicodeDecodeError as error:
            raise _unusable(path, "it is not text") from error
        tokens = [match[1] for line in lines if (match := _TOKEN_LINE.fullmatch(line))]
        rest = [line for line in lines if not _TOKEN_LINE.fullmatch(line)]
        found = {uuid.UUID(match[1]) for line in rest if (match := _UUID_LINE.fullmatch(line))}
        if len(found) != 1:
            raise _unusable(path, f"it has {len(found)} lines with a UUID instead of one")
        return cls("".join(f"{line}\n" for line in rest), found.pop(), tokens)

    def write(self, descriptor: int) -> None:
        """Write it in place, as the inode has to stay.

        The token lines come last and have one length, and all before them is the same each
        time: whatever part of it gets to the disk, the file is whole.
        """
        lines = [f"token: {token}\n" for token in self.tokens[-TOKENS_KEPT:]]
        data = (self.text + "".join(lines)).encode()
        size_before = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], written)
            os.ftruncate(descriptor, len(data))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size_before)  # a new file is empty again, and so usable
            raise


def _places(
    named: str, database_file: str | os.PathLike[str] | None, cwd: str | os.PathLike[str] | None
) -> Iterator[Path]:
    """The first file of each place where the identity may be, the best place first."""
    if named:
        yield Path(os.path.abspath(os.path.expanduser(named)))
        return
    if database_file is not None:
        folder = Path(f"{os.path.abspath(database_file)}.perdure")
        with contextlib.suppress(OSError):  # what is wrong shows when the file is opened
            folder.mkdir(exist_ok=True)
        yield folder / FILE_NAME
    yield Path(os.path.abspath(os.getcwd() if cwd is None else cwd), FILE_NAME)


def _acquire_in(first: Path, clock: Clock) -> Identity:
    """Return the identity of the first file in that place that nobody has."""
    for number in range(1, _MOST_NAMES + 1):
        path = first if number == 1 else first.with_stem(f"{first.stem}-{number}")
        identity = _acquire_file(str(path), clock)
        if identity is not None:
            return identity
    raise IdentityError(f"{first} and {_MOST_NAMES - 1} more identity files are all in use")


def _acquire_file(path: str, clock: Clock) -> Identity | None:
    """Return the identity in that file, None if another process has it."""
    while True:
        file = _open_to_write(path)
        with contextlib.ExitStack() as stack:
            stack.callback(file.close)
            if not _lock(file, path, clock):
                return None
            if not _is_at(file.descriptor, path):  # removed or replaced before we had the lock
                continue
            identity = _begin_incarnation(file, path)
            stack.pop_all()
            return identity


def _open_to_write(path: str) -> LockFile:
    try:
        return LockFile(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if not os.path.lexists(path):
            raise _NotWritable(f"{path}: {error.strerror}") from error
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _unusable(path, f"it cannot be opened ({error.strerror})") from error
        if not os.access(path, os.R_OK):
            raise _unusable(path, "it cannot be read") from error
        raise _NotWritable(f"{path}: {error.strerror}") from error


def _lock(file: LockFile, path: str, clock: Clock) -> bool:
    """Lock the file; wait while only probes hold it, which share the lock."""
    try:
        for wait_seconds in _PROBE_WAITS_SECONDS:
            if file.try_lock():
                return True
            with file.try_share() as shared:
                if not shared:
                    return False
            _pause(clock, wait_seconds)
        return file.try_lock()
    except OSError as error:  # a file system without locks
        raise _NotWritable(f"{path}: {error.strerror} (lock)") from error


def _pause(clock: Clock, seconds: float) -> None:
    end = clock.monotonic() + seconds
    condition = threading.Condition()
    with condition:
        while (left := end - clock.monotonic()) > 0:
            clock.wait(condition, left)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _begin_incarnation(file: LockFile, path: str) -> Identity:
    """Add a token to the file, which this process has locked."""
    content = _Content.read(file.descriptor, path)
    if content.identifier is None:
        content.identifier = uuid.uuid4()
        content.text += f"uuid: {content.identifier}\n"
    token = secrets.token_hex(16)
    content.tokens.append(token)
    try:
        content.write(file.descriptor)
    except OSError as error:
        raise _NotWritable(f"{path}: {error.strerror}") from error
    status = os.fstat(file.descriptor)
    incarnation = Incarnation(
        host=socket.gethostname(),
        boot_id=_boot_id(),
        device=status.st_dev,
        inode=status.st_ino,
        token=token,
        path=path,
    )
    return Identity(content.identifier, incarnation, file)


def _boot_id() -> str:
    """Return what identifies this run of the machine; empty if it cannot be known."""
    try:
        return Path(_BOOT_ID_FILE).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _unusable(path: str, reason: str) -> IdentityError:
    return IdentityError(
        f"the identity file {path} cannot be used: {reason}. If no process that runs jobs uses "
        "it, remove it, and a new one is made; or repair it."
    )
