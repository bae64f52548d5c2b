"""Jobs that the simulator's tests put; what they do outside of the database is in `letters`."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import transaction

from perdure.model import local

__all__ = ["letters"]

letters: list[str] = []


def root() -> Any:
    """The root of the database that the job is in."""
    return local.get_job()._p_jar.root()


def add(name: str, number: int = 1) -> int:
    """Add to a counter of the root."""
    value = root()[name] = root().get(name, 0) + number
    return int(value)


def add_and_commit(key: str, number: int = 1) -> None:
    """Make a mistake: where a process dies after this commit, it happens twice."""
    add(key, number)
    transaction.commit()


def send(name: str) -> None:
    """Send a letter, and record it in a transaction of its own, after the fact."""
    letters.append(name)
    root()[name] = root().get(name, 0) + 1
    transaction.commit()


def note_statuses(*jobs: Any) -> None:
    """Note in the root what a postprocess sees of the jobs that it waited for."""
    root()["statuses"] = [job.status.name for job in jobs]


def fail(text: str) -> None:
    raise ValueError(text)


async def doze(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"


def touch(name: str) -> None:
    """Read a counter, let another go on, and write it."""
    data = root()
    data[name] = data.get(name, 0) + 1


def run_in_thread(name: str) -> str:
    """Let a thread of the job's own do something, and wait for it."""
    done: list[str] = []
    thread = threading.Thread(target=lambda: done.append(f"{name}, in a thread of its own"))
    thread.start()
    thread.join()
    return done[0]


class Block:
    """Waits for what the simulation knows nothing of."""

    gate = threading.Event()


def block() -> None:
    Block.gate.wait()
