"""A disk in a file, which forgets what was not flushed when the machine loses its power.

What is written to a file is on the disk for certain when `os.fsync` or `os.fdatasync` has returned
for it. Of what was written since, a loss of power leaves anything: the file may end in the middle
of it, and each of its blocks may be as it was before. While a `FileDisk` is open these two
functions note what its files contain, instead of waiting for the machine's own disk, so that
it is known of every byte whether it may be lost.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ZODB.FileStorage.FileStorage import FileStorage

from perdure.model.lockfile import LockFile
from perdure.storage.file import SharedFile
from perdure.storage.oids import GivenOids
from perdure.testing.disk import Disk
from perdure.testing.errors import SimulationError

__all__ = ["FileDisk", "FileImage", "Loss", "losses_of", "open_file"]

BLOCK_SIZES = (4096,)
"""In bytes: the pages that operating systems write at once."""

MOST_BLOCKS = 4
"""Of so many blocks every selection is lost; of more, each one, each but one, and each end."""

#: Files that mean nothing once the process that had them is gone.
_PASSING = (".lock", ".tmp")


@dataclass(frozen=True, slots=True)
class FileImage:
    """One file at one moment: its name, what is written in it, and what of that was flushed.

    `stale` is what was written behind the flushed part before, and taken back.
    """

    name: str
    written: bytes
    flushed: bytes
    stale: bytes = b""

    @property
    def unflushed_from(self) -> int:
        """The first byte that a loss of power may change."""
        common = os.path.commonprefix([self.written, self.flushed])
        return len(common)

    @property
    def is_flushed(self) -> bool:
        return self.written == self.flushed


@dataclass(frozen=True, slots=True)
class Loss:
    """What a loss of power leaves of the unflushed parts of the files.

    Made by `nothing`, `everything`, `cut` or `blocks`; the last two are about one file, and
    leave the others as they were written.
    """

    kind: str
    name: str = ""
    size: int = 0
    numbers: tuple[int, ...] = ()
    stale: bool = False

    def __str__(self) -> str:
        if self.kind == "cut":
            return f"{self.name} cut to {self.size} bytes"
        if self.kind == "blocks":
            what = "what was taken back before" if self.stale else "what was flushed, or zeros"
            numbers = ", ".join(map(str, self.numbers))
            return f"{self.name} with {what} in the blocks {numbers} of {self.size} bytes"
        return f"{self.kind} lost"

    @classmethod
    def nothing(cls) -> Loss:
        """Leave all that was written."""
        return cls("nothing")

    @classmethod
    def everything(cls) -> Loss:
        """Leave what was flushed alone; a file that never was is empty."""
        return cls("everything")

    @classmethod
    def cut(cls, name: str, size: int) -> Loss:
        """Leave the first `size` bytes of a file, and what of it was flushed."""
        return cls("cut", name, size)

    @classmethod
    def blocks(
        cls, name: str, size: int, numbers: tuple[int, ...], *, stale: bool = False
    ) -> Loss:
        """Leave some blocks, of `size` bytes and counted from 0, as they were before.

        What was not in the file before is zeros there, or, with `stale`, what was taken back.
        """
        return cls("blocks", name, size, numbers, stale)

    def of(self, image: FileImage) -> bytes:
        """Return what is left of a file."""
        if self.kind == "everything":
            return image.flushed
        if self.kind == "nothing" or self.name != image.name:
            return image.written
        if self.kind == "cut":
            return _mix(image.written[: self.size], image.flushed)
        before = _mix(image.stale if self.stale else b"", image.flushed)
        before = before.ljust(len(image.written), b"\0")
        left = bytearray(image.written)
        for number in self.numbers:
            block = slice(number * self.size, min((number + 1) * self.size, len(left)))
            left[block] = before[block]
        return bytes(left)


def _mix(content: bytes, flushed: bytes) -> bytes:
    """Return `content`, but what was flushed where it is shorter than that."""
    return content + flushed[len(content) :]


def losses_of(
    image: FileImage, step: int = 1, block_sizes: Sequence[int] = BLOCK_SIZES
) -> Iterator[Loss]:
    """Yield the ways in which the unflushed part of one file can be lost.

    :param step: the file is cut at each that manyth byte, at the ends and beside the blocks'
        borders.
    :param block_sizes: the sizes of what the disk writes at once, in bytes. With 512, as a few
        old disks promise no more, a small transaction of a shared file may be damaged, too.
    """
    if step < 1:
        raise SimulationError(f"step must be 1 or more, not {step!r}")
    if not all(isinstance(size, int) and size > 0 for size in block_sizes):
        raise SimulationError(f"block_sizes are numbers of bytes, not {block_sizes!r}")
    begin, end = image.unflushed_from, len(image.written)
    borders = {near + by for near in (begin, end) for by in range(-1, 26)}
    borders |= {end - 9, end - 8, end - 7}
    for size in block_sizes:
        borders |= {edge + by for edge in range(0, end, size) for by in (-1, 0, 1)}
    borders |= set(range(begin, end, step))
    for cut in sorted(borders):
        if max(begin, len(image.flushed)) <= cut < end:
            yield Loss.cut(image.name, cut)
    for size in block_sizes:
        numbers = range(begin // size, -(-end // size))
        for selected in _selections([*numbers]):
            yield Loss.blocks(image.name, size, selected)
            if image.stale:
                yield Loss.blocks(image.name, size, selected, stale=True)


def _selections(numbers: list[int]) -> Iterator[tuple[int, ...]]:
    count = len(numbers)
    if count <= MOST_BLOCKS:
        for bits in range(1, 2**count):
            yield tuple(each for place, each in enumerate(numbers) if bits >> place & 1)
        return
    found: set[tuple[int, ...]] = {(number,) for number in numbers}
    found |= {tuple(each for each in numbers if each != number) for number in numbers}
    found |= {tuple(numbers[:place]) for place in range(1, count)}
    found |= {tuple(numbers[place:]) for place in range(count)}
    yield from sorted(found)


class _OwnFile(SharedFile):
    """The storage's own file, with the lock in which it notes object ids."""

    def __init__(self, path: str) -> None:
        self._note = LockFile(f"{path}.given", os.O_RDWR | os.O_CREAT)
        super().__init__(path, f"{path}.blobs", "automatic", GivenOids(self._note))

    def _close_files(self) -> None:
        super()._close_files()
        self._note.close()


def open_file(path: str) -> Any:
    """Open a file as `perdure.storage.open_database` does for the process that owns it.

    Returns a ZODB storage, and raises what it raises.
    """
    return _OwnFile(path)


class FileDisk(Disk):
    """A disk in a file, and the files beside it in its folder, which should have no others.

    Where the machine loses its power (`World.lose_power`) it loses of what was not flushed
    whatever a `Loss` says. The names of files are never lost. There may be one at a time in a
    process, as it takes the place of `os.fsync` and `os.fdatasync` until it is closed.

    :param path: of the file; it is made if it is not there.
    :param open_storage: opens it, and returns a ZODB storage with the attributes of a
        `FileStorage` (default: as `perdure.storage.open_database` does).
    """

    def __init__(
        self, path: str | os.PathLike[str], open_storage: Callable[[str], Any] = open_file
    ) -> None:
        self.path = Path(path).absolute()
        if not self.path.parent.is_dir():
            raise SimulationError(f"there is no folder {self.path.parent}: make it first")
        self.on_flush: Callable[[], None] = lambda: None
        """Called before a file of it is flushed."""
        self._open_storage = open_storage
        self._flushed: dict[int, bytes] = {}
        self._stale: dict[int, bytes] = {}
        for file in self._files():
            self._flushed[file.stat().st_ino] = file.read_bytes()
        self._hooks = contextlib.ExitStack()
        self._hooks.enter_context(flushes_noted_by(self._note_flush))
        try:
            super().__init__(open_storage(str(self.path)))
        except BaseException:
            self._hooks.close()
            raise

    def image(self) -> tuple[FileImage, ...]:
        """Return all files as they are now."""
        found = []
        for inode, file in self._known().items():
            found.append(
                FileImage(
                    str(file.relative_to(self.path.parent)),
                    file.read_bytes(),
                    self._flushed.get(inode, b""),
                    self._stale.get(inode, b""),
                )
            )
        return tuple(found)

    def lose(self, loss: Loss) -> None:
        """Lose what was not flushed, and open the file again; nobody may have it open."""
        if self._sides:
            names = ", ".join(side.process_name for side in self._sides)
            raise SimulationError(f"{names} have the disk open: let the world lose its power")
        image = self.image()
        self._holder = None
        abandon(self.base)
        for each in image:
            path = self.path.parent / each.name
            path.write_bytes(loss.of(each))
        self._note_all()
        self.base = self._open_storage(str(self.path))
        self._tid = max(self._tid, self.base.lastTransaction())

    def restart(self) -> None:
        super().restart()
        self.base.close()
        self.base = self._open_storage(str(self.path))

    def abort(self, transaction: Any) -> None:
        before = self.path.stat().st_size
        if self.holds(transaction) and before > len(self._flushed.get(self._inode, b"")):
            self._stale[self._inode] = self.path.read_bytes()
        super().abort(transaction)

    def close(self) -> None:
        """Close the storage, and let the functions that flush be what they were."""
        try:
            super().close()
        finally:
            self._hooks.close()

    @property
    def _inode(self) -> int:
        return self.path.stat().st_ino

    def _files(self) -> list[Path]:
        found = [each for each in self.path.parent.rglob("*") if each.is_file()]
        return sorted(each for each in found if each.suffix not in _PASSING)

    def _known(self) -> dict[int, Path]:
        """Return the files by their numbers, and forget those whose number may be given again."""
        files = {file.stat().st_ino: file for file in self._files()}
        for inode in self._flushed.keys() - files.keys():
            del self._flushed[inode]
        return files

    def _note_all(self) -> None:
        self._flushed.clear()
        self._stale.clear()
        for file in self._files():
            self._flushed[file.stat().st_ino] = file.read_bytes()

    def _note_flush(self, descriptor: int) -> bool:
        """Note that a file is flushed; False if it is none of these."""
        inode = os.fstat(descriptor).st_ino
        files = self._known()
        if inode not in files:
            return False
        self.on_flush()
        self._flushed[inode] = files[inode].read_bytes()
        return True


def abandon(storage: Any) -> None:
    """Let go of a file's storage as the end of its process does: nothing is finished or saved."""
    storage._open = False
    held = vars(storage)
    for name in ("_file", "_files", "_tfile", "_lock_file", "_note"):
        if held.get(name) is not None:
            held[name].close()


@contextlib.contextmanager
def flushes_noted_by(note: Callable[[int], bool]) -> Iterator[None]:
    """Call `note` with the descriptor of each file that is flushed; False: it is flushed then."""
    if getattr(os.fsync, "is_simulated", False):
        raise SimulationError("there is a FileDisk already: close its world first")
    before = os.fsync, os.fdatasync
    module = sys.modules[FileStorage.__module__]  # it has a name of its own for the function

    def standing_in_for(function: Callable[[Any], None]) -> Any:
        def flush(file: Any) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()
            if not note(descriptor):
                function(descriptor)

        flush.is_simulated = True  # type: ignore[attr-defined]
        return flush

    os.fsync, os.fdatasync = map(standing_in_for, before)
    module.fsync = os.fsync  # type: ignore[attr-defined]
    try:
        yield
    finally:
        os.fsync, os.fdatasync = before
        module.fsync = before[0]  # type: ignore[attr-defined]
