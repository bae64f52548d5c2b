"""Which files the demo takes, and whether one changed meanwhile."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass

from perdure.cli.errors import CommandError

__all__ = ["Listing", "Stamp", "default_folder", "list_files", "stamp"]

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds."""

_NEVER = frozenset({"__pycache__"})
_INSTALLED = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True, slots=True)
class Listing:
    """The files below a folder.

    `names` are relative to `folder`, in the order of a walk; `more` says that the limit
    left some out; `unlisted` are the folders that could not be looked into.
    """

    folder: str
    names: tuple[str, ...]
    more: bool
    unlisted: tuple[str, ...]


def default_folder() -> str:
    """Return the folder of the standard library of this interpreter."""
    return sysconfig.get_path("stdlib")


def list_files(folder: str | None, limit: int) -> Listing:
    """List up to `limit` files below `folder`; None: the standard library.

    Left out are hidden folders, ``__pycache__``, links to folders, and, for the standard
    library, what was installed into it. Raises `CommandError` where `folder` is no folder
    that can be read, or has no files.
    """
    skipped = _NEVER if folder is not None else _NEVER | _INSTALLED
    top = os.path.abspath(default_folder() if folder is None else folder)
    _check(top)
    unlisted: list[str] = []
    names: list[str] = []
    for name in _walk(top, skipped, unlisted):
        if len(names) == limit:
            return Listing(top, tuple(names), True, tuple(unlisted))
        names.append(name)
    if not names:
        raise CommandError(f"there are no files below {top}: name a folder that has some")
    return Listing(top, tuple(names), False, tuple(unlisted))


def _check(folder: str) -> None:
    try:
        with os.scandir(folder):
            pass
    except FileNotFoundError:
        raise CommandError(f"there is no folder {folder}") from None
    except NotADirectoryError:
        raise CommandError(f"{folder} is no folder: name the one that it is in") from None
    except OSError as error:
        raise CommandError(f"{folder} cannot be read: {error.strerror}") from error


def _walk(top: str, skipped: frozenset[str], unlisted: list[str]) -> Iterator[str]:
    def note(error: OSError) -> None:
        unlisted.append(os.path.relpath(error.filename, top))

    # Links to folders are listed among the folders and not followed: no loop can catch us.
    for folder, folders, files in os.walk(top, onerror=note):
        folders[:] = sorted(
            each for each in folders if each not in skipped and not each.startswith(".")
        )
        for name in sorted(files):
            yield os.path.relpath(os.path.join(folder, name), top)


def stamp(path: str) -> Stamp | None:
    """Return what changes when a file does; None where it cannot be looked at."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
