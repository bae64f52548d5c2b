"""Every public function, class, method and setting that is given something, by its name."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from perdure.model.moments import Duration

__all__ = ["inputs_of"]

SPECIAL = ("__call__", "__contains__", "__delitem__", "__getitem__", "__setitem__")


def inputs_of(room: str) -> set[str]:
    """The names of all that takes an argument, such as ``Queue.put`` or ``Job.begin_by``.

    What a class has from a base that is not public itself counts as its own.
    """
    module = importlib.import_module(f"perdure.{room}")
    found: set[str] = set()
    public = [getattr(module, name) for name in module.__all__]
    for name, thing in zip(module.__all__, public, strict=True):
        if inspect.ismodule(thing):
            found |= {f"{name}.{each}" for each in thing.__all__}
        elif inspect.isclass(thing):
            found |= set(_of_class(name, thing, public))
        elif callable(thing) and _takes(thing):
            found.add(name)
    return found


def _of_class(name: str, kind: type[Any], public: list[Any]) -> Iterator[str]:
    if issubclass(kind, (BaseException, enum.Enum)):
        return
    if _takes(kind):
        yield name
    inherited = {each for base in kind.__mro__[1:] if base in public for each in dir(base)}
    for each in dir(kind):
        if each in inherited or (each.startswith("_") and each not in SPECIAL):
            continue
        owner = next(base for base in kind.__mro__ if each in vars(base))
        value = vars(owner)[each]
        if not owner.__module__.startswith("perdure"):
            continue
        if isinstance(value, property):
            taken = value.fset is not None
        elif isinstance(value, Duration):
            taken = True
        else:
            method = getattr(kind, each)
            first = 0 if isinstance(value, (classmethod, staticmethod)) else 1
            taken = callable(method) and _takes(method, first)
        if taken:
            yield f"{name}.{each}"


def _takes(thing: Any, first: int = 0) -> bool:
    """Whether something is given to it, beside the object itself."""
    if dataclasses.is_dataclass(thing) and isinstance(thing, type):
        return bool(dataclasses.fields(thing))
    try:
        parameters = list(inspect.signature(thing).parameters.values())
    except ValueError:
        return False
    return bool(parameters[first:])
