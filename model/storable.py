"""Whether arguments can be stored, told when they are given instead of at commit."""

from __future__ import annotations

import datetime
import io
import pickle
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from persistent import Persistent
from persistent.wref import WeakRef

from perdure.model.errors import NotStorableError
from perdure.model.names import NOT_OF_THE_CODE
from perdure.model.saferepr import survive

__all__ = [
    "ARGUMENT_LIMIT_BYTES",
    "check_arguments",
    "check_value",
    "contains_persistent",
    "copied",
    "is_fixed",
    "is_plain",
]

ARGUMENT_LIMIT_BYTES = 1_000_000
"""How large the pickled arguments of one job may be, unless set otherwise."""


_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})

_READABLE = _PLAIN | {
    tuple, list, dict, set, frozenset, bytearray,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
    # These are stored by name, and looked up when they are.
    type, types.FunctionType, types.BuiltinFunctionType,
}  # fmt: skip
"""Types whose pickles can be read wherever they could be written."""


class _Pickler(pickle.Pickler):
    """Pickles as ZODB does: a persistent object counts as a reference."""

    saw_persistent = False
    saw_others = False
    """Whether there was anything that may be written and yet not be read."""

    def persistent_id(self, obj: Any) -> str | None:
        kind = type(obj)
        if kind in _READABLE:
            return None
        if not isinstance(obj, (Persistent, WeakRef)):
            self.saw_others = True
            return None
        if "<" in kind.__qualname__:
            raise pickle.PicklingError(
                f"its class {kind.__module__}:{kind.__qualname__} lies inside a function"
            )
        self.saw_persistent = True
        return "reference"


def check_arguments(
    args: Sequence[Any], kwargs: Mapping[str, Any], limit_bytes: int | None = None
) -> None:
    """Raise `NotStorableError` that names the first argument that cannot be stored.

    That is so, too, where it can be written and not be read again.
    Persistent objects count as references. `limit_bytes` (default
    `ARGUMENT_LIMIT_BYTES`) bounds the size of all arguments together.
    """
    if not args and not kwargs:
        return
    limit = ARGUMENT_LIMIT_BYTES if limit_bytes is None else limit_bytes
    try:
        size = _size((tuple(args), dict(kwargs)), limit)
    except NOT_OF_THE_CODE:
        raise
    # A pickle may raise anything; which argument it was is found below.
    except BaseException as error:
        for index, value in enumerate(args):
            check_value(value, f"argument {index}")
        for name, value in kwargs.items():
            check_value(value, f"argument {name!r}")
        raise NotStorableError(
            f"the arguments cannot be stored together: {_reason(error)}; give plain data, or a "
            "persistent object"
        ) from error
    if size > limit:
        raise NotStorableError(
            f"the arguments take {size:,} bytes, more than the {limit:,} allowed: store the "
            "data in a blob (ZODB.blob.Blob) or in a persistent object, and give that"
        )


def check_value(value: object, what: str) -> None:
    """Raise `NotStorableError`, naming `what`, where `value` cannot be stored and read."""
    try:
        _size(value)
    except NOT_OF_THE_CODE:
        raise
    # A pickle may raise anything, and call sys.exit.
    except BaseException as error:
        raise NotStorableError(
            f"{what} cannot be stored: {_short_repr(value)}: {_reason(error)}; give plain data, "
            "or a persistent object"
        ) from error


def contains_persistent(value: object) -> bool:
    """Tell whether `value` is or holds a persistent object."""
    pickler = _Pickler(io.BytesIO(), 3)
    pickler.dump(value)
    return pickler.saw_persistent


def is_plain(value: object) -> bool:
    """Tell at a glance whether `value` can be stored and cannot be changed."""
    return type(value) in _PLAIN


def is_fixed(value: object) -> bool:
    """Tell at a glance whether what is stored of `value` in its place cannot be changed.

    That of a persistent object is a reference.
    """
    return type(value) in _PLAIN or isinstance(value, Persistent)


T = TypeVar("T")


def copied(value: T) -> T:
    """Return a copy of plain data, with the same persistent objects in it.

    Raises what pickling raises, for what cannot be stored.
    """
    if is_plain(value) or isinstance(value, Persistent):
        return value
    return _by_pickle(value, pickle.HIGHEST_PROTOCOL)


def _by_pickle(value: T, protocol: int) -> T:
    kept: list[Any] = []
    buffer = io.BytesIO()
    _Copier(buffer, kept, protocol).dump(value)
    buffer.seek(0)
    unpickler = pickle.Unpickler(buffer)
    unpickler.persistent_load = kept.__getitem__  # type: ignore[method-assign]
    copy: T = unpickler.load()
    return copy


class _Copier(pickle.Pickler):
    """Pickles persistent objects as numbers of places in a list."""

    def __init__(self, buffer: io.BytesIO, kept: list[Any], protocol: int) -> None:
        super().__init__(buffer, protocol)
        self._kept = kept

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, (Persistent, WeakRef)):
            return None
        self._kept.append(obj)
        return len(self._kept) - 1


def _size(value: object, limit: int | None = None) -> int:
    """Return the size of the pickle of `value`; raises what writing it or reading it does.

    What is larger than `limit` will be refused for that, and is not read.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, 3)
    pickler.dump(value)
    if pickler.saw_others and (limit is None or buffer.tell() <= limit):
        _read_again(value)
    return buffer.tell()


def _read_again(value: object) -> None:
    try:
        _by_pickle(value, 3)
    except NOT_OF_THE_CODE:
        raise
    # Reading runs the application's code, which may raise anything.
    except BaseException as error:
        raise pickle.UnpicklingError(
            f"it can be written, but not be read again: {_named(error)}"
        ) from error


def _short_repr(value: object) -> str:
    # The error to report is the caller's, not that of a repr.
    text = survive(lambda: repr(value), lambda error: f"a {type(value).__qualname__}")
    return text if len(text) <= 100 else text[:97] + "..."


def _reason(error: BaseException) -> str:
    return _message(error) if isinstance(error, Exception) else _named(error)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {_message(error)}"


def _message(error: BaseException) -> str:
    return survive(lambda: str(error), lambda error: "its text cannot be had")
