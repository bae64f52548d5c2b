"""Coroutines as jobs, and where they wait for the test."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from persistent import Persistent

from perdure.model import Job
from support import jobs
from support.jobs import LIMIT_SECONDS
from support.once import MadeOnce

__all__ = ["AsyncGate", "Register", "async_deed", "gates", "plain_deed"]

_deeds: dict[str, Callable[..., Any]] = {}
_numbers = itertools.count()


class AsyncGate:
    """Where coroutines wait for the test, and the test for them; of any event loop."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._opened = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def enter(self) -> None:
        event = asyncio.Event()
        with self._lock:
            if self._opened:
                event.set()
            self._waiting.append((asyncio.get_running_loop(), event))
        self.entered.release()
        await event.wait()

    def wait_until_entered(self, number: int = 1) -> None:
        for _ in range(number):
            assert self.entered.acquire(timeout=LIMIT_SECONDS), "no coroutine came to the gate"

    def open(self) -> None:
        with self._lock:
            self._opened = True
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:
                # That loop is closed: its system was stopped.
                pass


gates: MadeOnce[str, AsyncGate] = MadeOnce(AsyncGate)
futures: MadeOnce[str, concurrent.futures.Future[Any]] = MadeOnce(concurrent.futures.Future)


@pytest.fixture(autouse=True)
def _fresh_gates() -> Iterator[None]:
    yield
    for gate in gates.values():
        gate.open()
    gates.clear()
    futures.clear()
    _deeds.clear()


def async_deed(function: Callable[..., Any]) -> functools.partial[Any]:
    """Make a callable for a job out of any coroutine function; works in this process."""
    return functools.partial(perform_async, _note(function))


def plain_deed(function: Callable[..., Any]) -> functools.partial[Any]:
    """The same for a function that is none."""
    return functools.partial(perform, _note(function))


def _note(function: Callable[..., Any]) -> str:
    key = f"{next(_numbers)}"
    _deeds[key] = function
    return key


async def perform_async(key: str, *args: Any, **kwargs: Any) -> Any:
    return await _deeds[key](*args, **kwargs)


def perform(key: str, *args: Any, **kwargs: Any) -> Any:
    return _deeds[key](*args, **kwargs)


class Register(Persistent):
    """Something of the application's that coroutines change."""

    def __init__(self) -> None:
        self.value = 0

    async def add(self, number: int = 1) -> int:
        await asyncio.sleep(0)
        self.value += number
        return self.value

    async def __call__(self, number: int = 1) -> int:
        return await self.add(number)

    @classmethod
    async def name(cls) -> str:
        await asyncio.sleep(0)
        return cls.__name__

    async def add_behind_gate(self, name: str, number: int = 1) -> int:
        await gates[name].enter()
        return await self.add(number)

    async def add_before_gate(self, name: str, number: int = 1) -> int:
        await self.add(number)
        await gates[name].enter()
        return self.value


async def add(one: int, other: int) -> int:
    await asyncio.sleep(0)
    return one + other


async def pass_gate(name: str, *ignored: Any) -> str:
    await gates[name].enter()
    return name


async def note_and_pass_gate(name: str, number: int) -> int:
    jobs.calls.append(number)
    await gates[name].enter()
    return number


async def describe(job: Job, text: str) -> tuple[str, str]:
    await asyncio.sleep(0)
    return str(job.ref), text


async def fail(text: str = "no") -> None:
    await asyncio.sleep(0)
    raise ValueError(text)


async def count_and_hang(counter: Any, text: str) -> int:
    """Change something; where the process is one that is to be killed, say so and hang."""
    value: int = counter.add()
    jobs.calls.append(text)
    if os.environ.get(jobs.HANG):
        jobs.say(text)
        await asyncio.Event().wait()
    return value


def future(name: str, *ignored: Any) -> concurrent.futures.Future[Any]:
    """Return a future that the test sees to."""
    jobs.calls.append(name)
    jobs.gates[name].entered.release()
    return futures[name]


def add_and_return_future(register: Any, name: str) -> concurrent.futures.Future[Any]:
    register.value += 1
    return future(name)
