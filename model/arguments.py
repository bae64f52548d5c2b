"""The arguments of a job, as a list and a mapping that can be changed until it is ACTIVE."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, MutableSequence
from typing import TYPE_CHECKING, Any

from perdure.model.given import checked_name

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["Arguments", "KeywordArguments"]


class Arguments(MutableSequence[Any]):
    """The positional arguments; a change is checked, and raises as making a job does."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def _set(self, args: list[Any]) -> None:
        self._job._set_arguments(args, dict(self._job._kwargs or {}))

    def __len__(self) -> int:
        return len(self._job._args)

    def __getitem__(self, index: Any) -> Any:
        return list(self._job._args)[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        args = list(self._job._args)
        args[index] = value
        self._set(args)

    def __delitem__(self, index: Any) -> None:
        args = list(self._job._args)
        del args[index]
        self._set(args)

    def insert(self, index: int, value: Any) -> None:
        """Insert `value` before `index`."""
        args = list(self._job._args)
        args.insert(index, value)
        self._set(args)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Arguments):
            other = list(other)
        return isinstance(other, (list, tuple)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self._job._args))


class KeywordArguments(MutableMapping[str, Any]):
    """The keyword arguments; a change is checked, and raises as making a job does."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def _set(self, kwargs: dict[str, Any]) -> None:
        self._job._set_arguments(list(self._job._args), kwargs)

    def __len__(self) -> int:
        return len(self._job._kwargs or {})

    def __iter__(self) -> Iterator[str]:
        return iter(self._job._kwargs or {})

    def __getitem__(self, name: str) -> Any:
        return (self._job._kwargs or {})[name]

    def __setitem__(self, name: str, value: Any) -> None:
        checked_name("an argument", name)
        self._set({**(self._job._kwargs or {}), name: value})

    def __delitem__(self, name: str) -> None:
        kwargs = dict(self._job._kwargs or {})
        del kwargs[name]
        self._set(kwargs)

    def __repr__(self) -> str:
        return repr(self._job._kwargs or {})
