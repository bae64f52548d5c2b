"""An application that everyday tests test: functions that jobs call, and what puts them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import transaction
from persistent import Persistent

from perdure.model import Job, get_queue, local

__all__ = ["Basket", "Odd", "Reckless", "Unreadable", "sent"]

sent: list[str] = []
"""The letters that were sent, in this process."""


class Basket(Persistent):
    """Something stored, whose methods are jobs."""

    def __init__(self) -> None:
        self.things: list[str] = []

    def take(self, thing: str) -> int:
        self.things = [*self.things, thing]
        return len(self.things)


class Odd:
    """Plain data of a class of this module."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd) and other.number == self.number


class Unreadable:
    """Can be read here, and nowhere else: the other process has not set what it needs."""

    readable_here = False

    def __reduce__(self) -> Any:
        return _read, ()


def _read() -> Unreadable:
    if not Unreadable.readable_here:
        raise RuntimeError("was not configured")
    return Unreadable()


class Reckless(Job):
    """A job of another class."""


def double(number: int, *, times: int = 1) -> int:
    return number * 2**times


def echo(value: Any) -> Any:
    return value


def send(name: str) -> str:
    sent.append(name)
    return f"dear {name}"


def place_order(name: str) -> str:
    """A job that puts others."""
    queue = local.get_queue()
    assert queue is not None
    queue.put(Job(send, name))
    return name


def remind(connection: Any, name: str, after: timedelta) -> None:
    """Application code that is given a connection, and commits the thread's transaction."""
    queue = get_queue(connection)
    clock_now = connection.root()["now"]
    queue.put(Job(send, name), begin_after=clock_now + after)
    transaction.commit()


def fail(text: str) -> None:
    raise ValueError(text)


def count_basket(basket: Basket) -> int:
    return len(basket.things)


def get_basket() -> Basket:
    """A job whose result is of use in its connection only."""
    job = local.get_job()
    found: Basket = job._p_jar.root()["basket"]
    return found


def exit_at_once() -> None:
    raise SystemExit(3)


async def rest(seconds: float) -> str:
    import asyncio

    await asyncio.sleep(seconds)
    return "rested"
