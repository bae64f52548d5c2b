"""Counting the words of one file; knows nothing of jobs."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter

from perdure.model import PerdureError

__all__ = ["LIMIT_BYTES", "UncountableError", "count_words", "words_of"]

LIMIT_BYTES = 16_000_000
"""A larger file is not read, since its words are counted in memory."""

_WORD = re.compile(r"[^\W\d_]+")


class UncountableError(PerdureError, ValueError):
    """A file is no text, no regular file, or too large."""


def count_words(path: str) -> dict[str, int]:
    """Return how often each word, in small letters, occurs in the UTF-8 text at `path`.

    Raises `UncountableError`, and `OSError` where the file cannot be read.
    """
    return words_of(_read(path))


def words_of(data: bytes) -> dict[str, int]:
    """Return how often each word occurs in a text; raises `UncountableError` if it is none."""
    zero = data.find(b"\0")
    if zero >= 0:
        raise UncountableError(f"binary: byte {zero} is zero")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        # Without the cause, which would take all the bytes along into what is stored.
        position = error.start
    else:
        return dict(Counter(match[0].lower() for match in _WORD.finditer(text)))
    raise UncountableError(f"not UTF-8: byte {position} is {data[position]:#04x}")


def _read(path: str) -> bytes:
    # Opening a pipe would wait for somebody who writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UncountableError("not a regular file")
        if found.st_size > LIMIT_BYTES:
            raise UncountableError(f"{found.st_size:,} bytes, more than {LIMIT_BYTES:,}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(LIMIT_BYTES)
    finally:
        os.close(descriptor)
