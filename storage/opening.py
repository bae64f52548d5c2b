"""Opening the database that a URI or a path names."""

from __future__ import annotations

import os
import stat
import urllib.parse
from datetime import timedelta
from typing import Any

import zc.lockfile
import ZODB
import zodburi
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage.FileStorage import FileStorageError, packed_version
from ZODB.MappingStorage import MappingStorage

from perdure.model.environment import environment
from perdure.model.errors import (
    DatabaseAccessError,
    DatabaseLockedError,
    DatabaseNotFoundError,
    UnknownSettingError,
)
from perdure.model.given import checked_database
from perdure.model.moved import class_factory
from perdure.storage.hearing import hear_of_commits
from perdure.storage.limits import Limits
from perdure.storage.shared import SharedStorage

__all__ = ["database_file", "is_in_memory", "open_database"]

BLOBS_SUFFIX = ".blobs"

#: The options of a ``file://`` URI that concern the storage, and with which it can be shared.
_SHARED_OPTIONS = frozenset({"blobstorage_dir", "blobstorage_layout"})

_CANNOT_BE_SHARED = frozenset({"create", "read_only", "demostorage", "quota"})


def open_database(
    database: str | os.PathLike[str],
    *,
    create: bool = True,
    wait: timedelta = timedelta(seconds=30),
) -> Any:
    """Open a database, and return the `ZODB.DB`; its `close` closes all.

    :param database: the path of a file, or a URI as zodburi knows it: ``file:///path/app.fs``,
        ``zeo://localhost:8100``, ``memory://`` and so on. Whatever has no ``://`` is a path.
    :param create: whether a file that is not there is made.
    :param wait: how long calls wait for another process while nobody owns a shared file; above
        zero.

    A file may be open in several processes of one user on one host at the same time: the first
    one serves it to the others, see `SharedStorage`. With the options ``read_only``, ``create``,
    ``quota`` or ``demostorage`` in its URI it is opened as zodburi does, and not shared. A file
    has its blobs in the folder of the same name with ``.blobs`` behind it, unless the option
    ``blobstorage_dir`` names another.

    Raises `UnknownSettingError` for what is no such URI or file, `DatabaseNotFoundError` for a
    file that is not there and not to be made, `DatabaseAccessError` where this user may not use
    it, and `DatabaseLockedError` where another process has the file open and does not share it.
    May be called from any thread; touches no transaction of the caller.
    """
    if not isinstance(database, (str, os.PathLike)):
        raise UnknownSettingError(f"{database!r} names no database: give a path or a URI, a text")
    text = os.fsdecode(database)
    if "\0" in text:
        raise UnknownSettingError(f"{text!r} names no database: no path has a null character")
    if not isinstance(wait, timedelta):
        raise UnknownSettingError(f"wait must be a timedelta, not {wait!r}")
    if wait <= timedelta(0):
        raise UnknownSettingError(f"wait must be longer than zero, not {wait}")
    scheme, separator, rest = text.partition("://")
    if not separator:
        if not text:
            raise UnknownSettingError("'' names no database: give a path or a URI")
        return _open_shared(text, text, {}, {}, create, wait)
    if not rest and scheme != "memory":
        raise UnknownSettingError(
            f"{text!r} names no database: give a path, or a URI such as file:///path/to/app.fs, "
            "zeo://localhost:8100 or memory://"
        )
    if scheme != "file":
        return _open_by_uri(text, text)
    path, _, query = rest.partition("?")
    options = dict(urllib.parse.parse_qsl(query))
    if not _CANNOT_BE_SHARED & options.keys():
        storage_options = {key: options.pop(key) for key in _SHARED_OPTIONS & options.keys()}
        uri = f"file://{path}?{urllib.parse.urlencode(options)}"
        return _open_shared(path, text, storage_options, _resolve(uri)[1], create, wait)
    _check_file(path, create)
    return _open_by_uri(text, _with_blobs(path, query, options))


def _open_shared(
    path: str,
    shown: str,
    options: dict[str, str],
    settings: dict[str, Any],
    create: bool,
    wait: timedelta,
) -> Any:
    path = os.path.realpath(path)
    _check_file(path, create)
    blobs = os.path.abspath(options.get("blobstorage_dir", path + BLOBS_SUFFIX))
    storage = None
    try:
        storage = SharedStorage(
            path,
            blob_dir=blobs,
            blob_layout=options.get("blobstorage_layout", "automatic"),
            create=create,
            limits=Limits(wait=wait),
        )
        opened = ZODB.DB(storage, class_factory=class_factory, **settings)
        known = environment(opened)
        storage.on_foreign_commit(lambda tid, oids: known.tell_of_commit_elsewhere(oids))
        storage.share()
    except BaseException as error:
        if storage is not None:
            storage.close()
        if isinstance(error, FileStorageError):
            raise _damaged(shown, error) from error
        if isinstance(error, OSError):
            raise _not_accessible(shown, error) from error
        if isinstance(error, KeyError | ValueError):
            raise UnknownSettingError(f"{shown!r} cannot be opened: {error}") from error
        raise
    return opened


def _open_by_uri(shown: str, uri: str) -> Any:
    factory, settings = _resolve(uri)
    try:
        opened = ZODB.DB(factory(), class_factory=class_factory, **settings)
        hear_of_commits(opened)
        return opened
    except zc.lockfile.LockError as error:
        raise DatabaseLockedError(
            f"the database {shown} is open in another process: stop that one, or leave out the "
            "options with which it cannot be shared"
        ) from error
    except FileNotFoundError as error:
        raise DatabaseNotFoundError(
            f"the database {shown} cannot be opened: there is no {error.filename}"
        ) from error
    except OSError as error:
        raise _not_accessible(shown, error) from error
    except FileStorageError as error:
        raise _damaged(shown, error) from error


def _resolve(uri: str) -> tuple[Any, dict[str, Any]]:
    try:
        factory, settings = zodburi.resolve_uri(uri)
    except (KeyError, ValueError) as error:
        raise UnknownSettingError(f"{uri!r} names no database: {error}") from error
    return factory, settings


def _damaged(shown: str, error: Exception) -> DatabaseAccessError:
    return DatabaseAccessError(
        f"the database {shown} cannot be opened: it is damaged ({error}); restore a copy, or save "
        "what can be read with python -m ZODB.fsrecover"
    )


def _not_accessible(shown: str, error: OSError) -> DatabaseAccessError:
    what = error.filename or shown
    return DatabaseAccessError(
        f"the database {shown} cannot be opened: {what}: {error.strerror}; this user must be able "
        "to read and write the file, and to write into its folder"
    )


def _with_blobs(path: str, query: str, options: dict[str, str]) -> str:
    if "blobstorage_dir" not in options:
        folder = urllib.parse.urlencode({"blobstorage_dir": os.path.abspath(path) + BLOBS_SUFFIX})
        query = f"{query}&{folder}" if query else folder
    return f"file://{path}?{query}"


def _check_file(path: str, create: bool) -> None:
    """Refuse what cannot be opened before it is locked, and given files beside it."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        kind = UnknownSettingError if create else DatabaseNotFoundError
        raise kind(
            f"the database {path} cannot be opened: there is no folder {folder}; make it first"
        )
    try:
        # Looked at first: a pipe that is opened waits for a writer.
        if not os.path.isdir(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise UnknownSettingError(f"{path} is no file: name the database's file")
        with open(path, "rb") as file:
            first = file.read(len(packed_version))
    except FileNotFoundError as error:
        if create:
            return
        raise DatabaseNotFoundError(
            f"there is no database {path}: name an existing file, or make one by starting a "
            "system on it"
        ) from error
    except IsADirectoryError as error:
        raise UnknownSettingError(f"{path} is a folder: name the database's file in it") from error
    except OSError as error:
        raise _not_accessible(path, error) from error
    if not first and not create:
        raise DatabaseNotFoundError(
            f"{path} is an empty file and no database: name another one, or make a database of "
            "it by starting a system on it"
        )
    if first and first != packed_version:
        raise UnknownSettingError(
            f"{path} is a file, and no ZODB database of a version that can be read here"
        )


def database_file(database: Any) -> str | None:
    """Return the path of the database's file, or None where it is not in one."""
    name = str(checked_database(database).storage.getName())
    return os.path.abspath(name) if os.path.isfile(name) else None


def is_in_memory(database: Any) -> bool:
    """Tell whether the database is gone with this process, so that nobody shares it."""
    return isinstance(checked_database(database).storage, (MappingStorage, DemoStorage))
