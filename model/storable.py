"""Whether arguments can be stored, told when they are given instead of at commit."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from persistent import Persistent
from persistent.wref import WeakRef

from perdure.model.errors import NotStorableError

__all__ = [
    "ARGUMENT_LIMIT_BYTES",
    "check_arguments",
    "check_value",
    "contains_persistent",
    "copied",
    "is_plain",
]

ARGUMENT_LIMIT_BYTES = 1_000_000
"""How large the pickled arguments of one job may be, unless set otherwise."""


_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})


class _Pickler(pickle.Pickler):
    """Pickles as ZODB does: a persistent object counts as a reference."""

    saw_persistent = False

    def persistent_id(self, obj: Any) -> str | None:
        if not isinstance(obj, (Persistent, WeakRef)):
            return None
        kind = type(obj)
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

    Persistent objects count as references. `limit_bytes` (default
    `ARGUMENT_LIMIT_BYTES`) bounds the size of all arguments together.
    """
    limit = ARGUMENT_LIMIT_BYTES if limit_bytes is None else limit_bytes
    try:
        size = _size((tuple(args), dict(kwargs)))
    # A pickle may raise anything; which argument it was is found below.
    except Exception:
        for index, value in enumerate(args):
            check_value(value, f"argument {index}")
        for name, value in kwargs.items():
            check_value(value, f"argument {name!r}")
        raise
    if size > limit:
        raise NotStorableError(
            f"the arguments take {size:,} bytes, more than the {limit:,} allowed: store the "
            "data in a blob (ZODB.blob.Blob) or in a persistent object, and give that"
        )


def check_value(value: object, what: str) -> None:
    """Raise `NotStorableError`, naming `what`, where `value` cannot be stored."""
    try:
        _size(value)
    # A pickle may raise anything.
    except Exception as error:
        raise NotStorableError(
            f"{what} cannot be stored: {_short_repr(value)}: {error}; give plain data, or a "
            "persistent object"
        ) from error


def contains_persistent(value: object) -> bool:
    """Tell whether `value` is or holds a persistent object."""
    pickler = _Pickler(io.BytesIO(), 3)
    pickler.dump(value)
    return pickler.saw_persistent


def is_plain(value: object) -> bool:
    """Tell at a glance whether `value` can be stored and cannot be changed."""
    return type(value) in _PLAIN


T = TypeVar("T")


def copied(value: T) -> T:
    """Return a copy of plain data, with the same persistent objects in it.

    Raises what pickling raises, for what cannot be stored.
    """
    if is_plain(value) or isinstance(value, Persistent):
        return value
    kept: list[Any] = []
    buffer = io.BytesIO()
    _Copier(buffer, kept).dump(value)
    buffer.seek(0)
    unpickler = pickle.Unpickler(buffer)
    unpickler.persistent_load = kept.__getitem__  # type: ignore[method-assign]
    copy: T = unpickler.load()
    return copy


class _Copier(pickle.Pickler):
    """Pickles persistent objects as numbers of places in a list."""

    def __init__(self, buffer: io.BytesIO, kept: list[Any]) -> None:
        super().__init__(buffer, pickle.HIGHEST_PROTOCOL)
        self._kept = kept

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, (Persistent, WeakRef)):
            return None
        self._kept.append(obj)
        return len(self._kept) - 1


def _size(value: object) -> int:
    buffer = io.BytesIO()
    _Pickler(buffer, 3).dump(value)
    return buffer.tell()


def _short_repr(value: object) -> str:
    try:
        text = repr(value)
    # The error to report is the caller's, not that of a repr.
    except Exception:
        text = f"a {type(value).__qualname__}"
    return text if len(text) <= 100 else text[:97] + "..."
