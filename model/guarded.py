"""Persistent objects that a refused setting does not change.

`Persistent` takes an object for changed before the setter of a property is called. Were it
left at that, a value that is refused would still have the object written by the next commit; of
a job that runs, this makes the worker's commit conflict, and the job run twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from persistent import Persistent

from perdure.model.moments import Duration

__all__ = ["Choice", "Guarded"]


class Choice:
    """An attribute that is True, False, or None, which is the default."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> bool | None:
        found: bool | None = getattr(instance, "_" + self._name, None)
        return found

    def __set__(self, instance: Any, value: bool | None) -> None:
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{self._name} must be True, False or None, not {value!r}")
        setattr(instance, "_" + self._name, value)


_GUARDS = (property, Duration, Choice)


class Guarded(Persistent):
    """Counts as changed when a property of Perdure's has accepted a value, and not before.

    Properties of derived classes of an application's are set as ever: they may rely on it.
    """

    _guards: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if cls.__module__.partition(".")[0] == "perdure":
            own = {k: v for k, v in vars(cls).items() if isinstance(v, _GUARDS)}
            cls._guards = MappingProxyType({**cls._guards, **own})

    def __setattr__(self, name: str, value: Any) -> None:
        # ZODB sets half a dozen names with an underscore at each store; no guard has one.
        guard = None if name[:1] == "_" else type(self)._guards.get(name)
        if guard is None:
            super().__setattr__(name, value)
        else:
            guard.__set__(self, value)
