"""Opening the database that a system is started with."""

from __future__ import annotations

import os
import urllib.parse
from typing import Any

import zc.lockfile
import ZODB
import zodburi
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage.FileStorage import packed_version
from ZODB.MappingStorage import MappingStorage

from perdure.model.errors import DatabaseLockedError, UnknownSettingError

__all__ = ["database_file", "is_in_memory", "open_database"]

BLOBS_SUFFIX = ".blobs"


def open_database(uri: str) -> Any:
    """Open the database that a URI names: ``file://``, ``zeo://``, ``memory://`` and so on.

    A file has its blobs in the folder of the same name with ``.blobs`` behind it, unless
    the URI says otherwise. Raises `UnknownSettingError` for what is no such URI or file, and
    `DatabaseLockedError` where another process has the file open.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or not rest and scheme != "memory":
        raise UnknownSettingError(
            f"{uri!r} names no database: give a URI such as file:///path/to/app.fs, "
            "zeo://localhost:8100 or memory://, or an open ZODB.DB"
        )
    if scheme == "file":
        _check_file(_path(uri))
    try:
        factory, options = zodburi.resolve_uri(_with_blobs(uri) if scheme == "file" else uri)
    except (KeyError, ValueError) as error:
        raise UnknownSettingError(f"{uri!r} names no database: {error}") from error
    try:
        return ZODB.DB(factory(), **options)
    except zc.lockfile.LockError as error:
        raise DatabaseLockedError(
            f"the database {uri} is open in another process: stop that one, or start a ZEO "
            "server for the file and use its zeo:// URI"
        ) from error
    except FileNotFoundError as error:
        raise UnknownSettingError(
            f"the database {uri} cannot be opened: there is no folder for {error.filename}; make "
            "it first"
        ) from error


def _with_blobs(uri: str) -> str:
    address, _, query = uri.partition("?")
    if "blobstorage_dir" in urllib.parse.parse_qs(query):
        return uri
    query = (query + "&" if query else "") + urllib.parse.urlencode(
        {"blobstorage_dir": os.path.abspath(_path(uri)) + BLOBS_SUFFIX}
    )
    return f"{address}?{query}"


def _path(uri: str) -> str:
    # The resolver takes the path as it stands behind the scheme, relative ones too.
    return uri.partition("?")[0].removeprefix("file://")


def _check_file(path: str) -> None:
    """Refuse what is no database before it is opened, locked, and given files beside it."""
    try:
        with open(path, "rb") as file:
            first = file.read(len(packed_version))
    except FileNotFoundError:
        return
    except IsADirectoryError as error:
        raise UnknownSettingError(f"{path} is a folder: name the database's file in it") from error
    if first and first != packed_version:
        raise UnknownSettingError(
            f"{path} is a file, and no ZODB database of a version that can be read here"
        )


def database_file(database: Any) -> str | None:
    """Return the path of the database's file, or None where it is not in one."""
    name = str(database.storage.getName())
    return os.path.abspath(name) if os.path.isfile(name) else None


def is_in_memory(database: Any) -> bool:
    """Tell whether the database is gone with this process, so that nobody shares it."""
    return isinstance(database.storage, (MappingStorage, DemoStorage))
