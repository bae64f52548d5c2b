"""What the other process does in which jobs, arguments and results have to survive.

It imports nothing but what is pickled, so that it starts quickly, and fails where a worker would
that has not imported what the test has.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import sys
from dataclasses import dataclass
from typing import Any

__all__ = ["PROTOCOL", "main"]

PROTOCOL = 3
"""The one that ZODB stores with."""


@dataclass(frozen=True, slots=True)
class _Reference:
    """Stands for a persistent object: what names it, and its class."""

    name: Any


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, name: Any, /) -> Any:
        return _Reference(name)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any, /) -> Any:
        return obj.name if isinstance(obj, _Reference) else None


def _resolve(name: str) -> None:
    module_name, _, qualname = name.rpartition(":")
    found: Any = importlib.import_module(module_name)
    for part in qualname.split("."):
        found = getattr(found, part)


def _again(kind: str, data: bytes) -> bytes:
    """Read what was pickled, and pickle it again."""
    value = _Unpickler(io.BytesIO(data)).load()
    if kind == "name":
        _resolve(value)
    elif kind == "method":
        getattr(*value)
    buffer = io.BytesIO()
    _Pickler(buffer, PROTOCOL).dump(value)
    return buffer.getvalue()


def main() -> None:
    """Answer one request, read from the standard input, on the standard output."""
    # Whatever is imported may print.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    results: list[tuple[bool, Any]] = []
    for kind, data in pickle.load(sys.stdin.buffer):
        try:
            results.append((True, _again(kind, data)))
        # Reading runs the application's code, which may raise anything.
        except BaseException as error:
            results.append((False, f"{type(error).__name__}: {error}"))
    with answers:
        pickle.dump(results, answers, PROTOCOL)
