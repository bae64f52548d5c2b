"""The states of small records in fewer bytes: numbers for names, and differences of moments.

A name is stored anew in every record, and a small job would be mostly names. What an application
derives from `Job` keeps its names, and so does what is not listed here; so a state is read
whichever way it was written. These numbers are in databases: none is ever given a new meaning.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, ClassVar

from persistent import Persistent

__all__ = ["Numbered", "numbered", "packed", "packed_agent", "unpacked", "unpacked_agent"]

_NUMBERS = {
    "_callable": 1,
    "_args": 2,
    "_kwargs": 3,
    "_status_name": 4,
    "_queue": 5,
    "_stamp": 6,
    "_begin_after": 7,
    "_previous": 8,
    "_agent": 9,
    "_claim": 10,
    "_active_start": 11,
    "_active_end": 12,
    "_callbacks_end": 13,
    "_result": 14,
    "_transactional": 15,
    "_callbacks": 16,
    "_parent": 17,
    "_quota_names": 18,
    "_policy": 19,
    "_retry_policy_factory": 20,
    "_failure_log_level": 21,
    "_begin_by": 22,
    "_annotations": 23,
    "_root": 24,
    "_first": 25,
    "_due": 26,
    "_own_side": 27,
}
_NAMES = {number: name for name, number in _NUMBERS.items()}

_STATUSES = {"active": 1, "callbacks": 2, "completed": 3}
_STATUS_NAMES = {number: name for name, number in _STATUSES.items()}

_MOMENTS = ("_begin_after", "_active_start", "_active_end", "_callbacks_end")
"""Moments in microseconds, each stored as what has passed since the one before, or the stamp."""


_IN_ORDER = (
    "_callable",
    "_args",
    "_queue",
    "_stamp",
    "_begin_after",
    "_previous",
    "_transactional",
    "_status_name",
    "_agent",
    "_claim",
    "_active_start",
    "_active_end",
    "_callbacks_end",
    "_result",
)
"""What most jobs have, and no more: their values are stored in this order, down to the last.

Of all that is in a record, keys as well, ZODB asks whether it is a persistent object; so keys are
not stored where they need not be. Like the numbers, this order is in databases.
"""
_USUAL = frozenset(_IN_ORDER)
_STAMP = _IN_ORDER.index("_stamp")


def packed(state: Mapping[str, Any]) -> dict[Any, Any] | tuple[Any, ...]:
    """Return a job's state as it is stored; what is None is so by default.

    For the class `Job` itself. What is derived from it may want to add to its state, which has
    to be a mapping for that; see `numbered`.
    """
    get = state.get
    stamp = get("_stamp")
    if stamp is None or not state.keys() <= _USUAL:
        return numbered(state)
    since = stamp
    moments: list[int | None] = []
    for name in _MOMENTS:
        moment = get(name)
        if moment is None:
            moments.append(None)
        else:
            moments.append(moment - since)
            since = moment
    begin_after, start, end, callbacks_end = moments
    status = get("_status_name")
    found = (
        get("_callable"), get("_args"), get("_queue"), stamp, begin_after, get("_previous"),
        get("_transactional"), None if status == "new" else _STATUSES.get(status or "", status),
        get("_agent"), get("_claim"), start, end, callbacks_end, get("_result"),
    )  # fmt: skip
    length = len(found)
    while found[length - 1] is None:
        length -= 1
    return found[:length]


def numbered(state: Mapping[str, Any]) -> dict[Any, Any]:
    """Return the state of a job of whatever class as it is stored, by numbers and names."""
    found: dict[Any, Any] = {}
    number_of = _NUMBERS.get
    for name, value in state.items():
        number = number_of(name)
        if number is None:
            found[name] = value
        elif value is not None:
            found[number] = value
    status = found.get(4)
    if status == "new":
        del found[4]
    elif status is not None:
        found[4] = _STATUSES.get(status, status)
    since = found.get(6)
    if since is not None:
        for number in (7, 11, 12, 13):
            moment = found.get(number)
            if moment is not None:
                found[number] = moment - since
                since = moment
    return found


def unpacked(state: Mapping[Any, Any] | tuple[Any, ...] | None) -> dict[str, Any]:
    """Return a job's state from what is stored.

    Raises `ValueError` or `TypeError` for what no job's state has ever been.
    """
    if not state:
        return {}
    if isinstance(state, tuple):
        return _from_order(state)
    found = {_NAMES.get(key, key): value for key, value in state.items()}
    if 4 in state:
        status = state[4]
        found["_status_name"] = _STATUS_NAMES.get(status, status)
    if 6 in state:
        since = state[6]
        for name, number in zip(_MOMENTS, (7, 11, 12, 13), strict=True):
            if number in state:
                since += state[number]
                found[name] = since
    return found


def _from_order(state: tuple[Any, ...]) -> dict[str, Any]:
    if not _STAMP < len(state) <= len(_IN_ORDER) or type(state[_STAMP]) is not int:
        raise ValueError(f"a job's state of {len(state)} values")
    found = {
        name: value for name, value in zip(_IN_ORDER, state, strict=False) if value is not None
    }
    status = found.get("_status_name")
    if status is not None:
        found["_status_name"] = _STATUS_NAMES.get(status, status)
    since = found["_stamp"]
    for name in _MOMENTS:
        passed = found.get(name)
        if passed is not None:
            found[name] = since = since + passed
    return found


_AGENT_NUMBERS = {
    "name": 1,
    "record": 2,
    "_size": 3,
    "_done": 4,
    "_held": 5,
    "_left": 6,
    "_kept": 7,
    "_day": 8,
}
_AGENT_NAMES = {number: name for name, number in _AGENT_NUMBERS.items()}
_JOBS = ("_held", "_left")


def packed_agent(state: Mapping[str, Any]) -> dict[Any, Any]:
    """Return an agent's state as it is stored; of its jobs, the numbers and then each of them.

    The numbers are in one text of bytes, eight for each: of all that is in a record ZODB asks,
    one by one, whether it is a persistent object, and an agent may hold some hundred jobs.
    """
    found = {_AGENT_NUMBERS.get(name, name): value for name, value in state.items()}
    for name in _JOBS:
        entries = found.pop(_AGENT_NUMBERS[name], {}).values()
        if entries:
            numbers = struct.pack(f">{len(entries)}q", *(number for _, number in entries))
            found[_AGENT_NUMBERS[name]] = [numbers, *(job for job, _ in entries)]
    return found


def unpacked_agent(state: Mapping[Any, Any] | None) -> dict[str, Any]:
    """Return an agent's state from what is stored."""
    found = {_AGENT_NAMES.get(key, key): value for key, value in (state or {}).items()}
    for name in _JOBS:
        entries = found.get(name) or [b""]
        if isinstance(entries[0], bytes):
            jobs = entries[1:]
            numbers = struct.unpack(f">{len(jobs)}q", entries[0])
        else:
            # As it was written at first: each job with its number behind it.
            jobs, numbers = entries[::2], tuple(entries[1::2])
        found[name] = {
            job._p_oid: (job, number) for job, number in zip(jobs, numbers, strict=True)
        }
    return found


class Numbered(Persistent):
    """Stores its attributes by numbers in the place of names, and no mapping that is empty."""

    _numbers: ClassVar[Mapping[str, int]]
    _mappings: ClassVar[tuple[str, ...]] = ()
    """The attributes that are mappings."""

    def __getstate__(self) -> Any:
        """Return what is stored."""
        return self._numbered(super().__getstate__())

    def __setstate__(self, state: Any) -> None:
        """Take what is stored."""
        super().__setstate__(self._named(state))

    @classmethod
    def _numbered(cls, state: Mapping[str, Any]) -> dict[Any, Any]:
        number_of, mappings = cls._numbers.get, cls._mappings
        return {
            number_of(name, name): value
            for name, value in state.items()
            if name not in mappings or value
        }

    @classmethod
    def _named(cls, state: Mapping[Any, Any] | None) -> dict[str, Any]:
        names = {number: name for name, number in cls._numbers.items()}
        found: dict[str, Any] = {name: {} for name in cls._mappings}
        found.update({names.get(key, key): value for key, value in (state or {}).items()})
        return found
