"""What a file is after the machine has lost its power, and what is done that it can be read then.

Of what was written and not flushed a loss of power leaves anything, in any order: the end of
a transaction without its beginning, or its status without its data. A FileStorage marks a
transaction as finished before anything of it was flushed, and trusts the mark when it is opened
again. Here the data is flushed first, so that the mark proves that it is there; and a beginning
that was never flushed counts as none. Data on the same page as the mark goes to the disk with it,
so that small transactions need no flush of their own.
"""

from __future__ import annotations

import logging
import os
from typing import BinaryIO

from ZODB.blob import LAYOUT_MARKER, LAYOUTS
from ZODB.FileStorage.FileStorage import _truncate, packed_version
from ZODB.FileStorage.format import TRANS_HDR_LEN

__all__ = [
    "cut_what_was_not_flushed",
    "finish_interrupted_pack",
    "flush_data",
    "flush_name",
    "forget_lost_layout",
    "is_on_one_page",
    "make_file",
    "was_pack_interrupted",
]

_log = logging.getLogger(__name__)

#: Length at both ends of a transaction, and where that is behind its beginning.
_LENGTH = 8

_STATUS_AT = 16
_UNFINISHED = ord("c")
_FINISHED = b" up"

#: What systems write of a file at a time, and at such places.
PAGE_BYTES = 4096

_CHUNK = 1 << 20


def make_file(path: str) -> None:
    """Make a database's file if there is none, so that it never has half a beginning."""
    if os.path.exists(path):
        if os.path.getsize(path) == 0:
            with open(path, "r+b") as file:
                _write(file)
        return
    passing = f"{path}.new"
    with open(passing, "wb") as file:
        _write(file)
    os.rename(passing, path)
    flush_name(path)


def _write(file: BinaryIO) -> None:
    file.write(packed_version)
    file.flush()
    os.fsync(file.fileno())


def flush_data(descriptor: int) -> None:
    """Wait until what was written to a file is on disk."""
    getattr(os, "fdatasync", os.fsync)(descriptor)  # macOS has only the latter


def is_on_one_page(begin: int, end: int) -> bool:
    """Tell whether that part of a file, its end not included, is written to the disk at once."""
    return begin // PAGE_BYTES == (end - 1) // PAGE_BYTES


def flush_name(path: str) -> None:
    """Wait until it is on disk that a file has this name."""
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def was_pack_interrupted(path: str) -> bool:
    """Tell whether a pack has moved the file away, and not put its copy there any more."""
    return not os.path.exists(path) and all(map(os.path.exists, (f"{path}.old", f"{path}.pack")))


def finish_interrupted_pack(path: str) -> None:
    """Let the file be the one that it was before such a pack."""
    if was_pack_interrupted(path):
        _log.warning("%s was being packed when its process ended: taking %s.old", path, path)
        os.rename(f"{path}.old", path)
        flush_name(path)


def forget_lost_layout(blob_dir: str) -> bool:
    """Remove the note of how a folder of blobs is laid out, where it was lost.

    It is flushed before there is any blob, so that a folder without a note has none. Tells
    whether the folder has no blobs, so that there may be any layout.
    """
    marker = os.path.join(blob_dir, LAYOUT_MARKER)
    try:
        if {*os.listdir(blob_dir)} - {LAYOUT_MARKER, "tmp"}:
            return False
        with open(marker, "rb") as file:
            noted = file.read().strip(b"\0 \n").decode("ascii", "replace")
    except FileNotFoundError:
        return True
    if noted in LAYOUTS:
        return False
    os.unlink(marker)
    return True


def cut_what_was_not_flushed(file: BinaryIO, name: str, start: int) -> None:
    """Cut off a transaction at the file's end whose beginning was never flushed.

    What is cut off is saved beside the file, as FileStorage does. Where a whole transaction
    comes behind it, or it was finished, then this is other damage, and nothing is done.

    :param start: where a transaction begins, or the file ends.
    """
    size = file.seek(0, os.SEEK_END)
    position = start
    while size - position >= TRANS_HDR_LEN:
        file.seek(position)
        header = file.read(TRANS_HDR_LEN)
        length = int.from_bytes(header[8:16], "big")
        status = header[_STATUS_AT]
        if status in _FINISHED and _is_whole(file, position, length, size):
            position += length + _LENGTH
            continue
        if status not in _FINISHED and status != _UNFINISHED:
            if not _finished_behind(file, position, size):
                _log.warning("%s: a transaction at %s was not finished", name, position)
                _truncate(file, name, position)
        return


def _is_whole(file: BinaryIO, position: int, length: int, size: int) -> bool:
    if length < TRANS_HDR_LEN or position + length + _LENGTH > size:
        return False
    file.seek(position + length)
    return int.from_bytes(file.read(_LENGTH), "big") == length


def _finished_behind(file: BinaryIO, position: int, size: int) -> bool:
    """Tell whether anything behind looks like a transaction that was finished."""
    file.seek(position)
    rest = b""
    begin = position
    while chunk := file.read(_CHUNK):
        data = rest + chunk
        behind = file.tell()
        # Lengths are short: where the upper half of one is not zero, there is none.
        found = data.find(b"\0\0\0\0")
        while 0 <= found <= len(data) - _LENGTH - 1:
            length = int.from_bytes(data[found : found + _LENGTH], "big")
            header = begin + found - _LENGTH
            if (
                data[found + _LENGTH] in _FINISHED
                and header > position
                and _is_whole(file, header, length, size)
            ):
                return True
            found = data.find(b"\0\0\0", found + 1)
        rest = data[-2 * TRANS_HDR_LEN :]
        begin = behind - len(rest)
        file.seek(behind)
    return False
