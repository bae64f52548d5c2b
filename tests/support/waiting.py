"""Jobs that wait for jobs and coroutines, each piece of which counts how often it was done."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from persistent import Persistent

from perdure.model import Job, RetryCommonForever, parallel, serial

__all__ = ["KINDS", "Count", "work"]

LONGEST_SECONDS = 0.3


class Count(Persistent):
    """How often something was done; once is right."""

    value = 0

    def add(self, *told: object) -> int:
        threading.Event().wait(random.uniform(0, LONGEST_SECONDS / 10))
        self.value += 1
        return self.value


def chain(counts: list[Count], *told: object) -> Any:
    counts[0].add()
    return Job(chain, counts[1:]) if len(counts) > 1 else "the end"


async def pause(first: Count, second: Count, *told: object) -> str:
    first.value += 1
    await asyncio.sleep(random.uniform(0, LONGEST_SECONDS))
    second.value += 1
    return "awake"


async def pause_and_give(first: Count, second: Count) -> Job:
    first.value += 1
    await asyncio.sleep(random.uniform(0, LONGEST_SECONDS))
    return Job(second.add)


def nested(counts: list[Count]) -> Job:
    counts[0].add()
    side_by_side = parallel(counts[2].add, Job(pause, counts[3], counts[4]))
    return serial(counts[1].add, side_by_side, Job(chain, counts[5:]))


def _with_callbacks(counts: list[Count]) -> Job:
    job = Job(counts[0].add)
    for callback in (Job(chain, counts[1:4]), Job(pause, counts[4], counts[5])):
        job.add_callback(callback)
    job.add_callback(Job(chain, counts[6:]))
    return job


KINDS: list[tuple[int, Callable[[list[Count]], Job]]] = [
    (8, lambda counts: serial(*[each.add for each in counts[1:]], postprocess=counts[0].add)),
    (8, lambda counts: parallel(*[each.add for each in counts[1:]], postprocess=counts[0].add)),
    (8, lambda counts: Job(chain, counts)),
    (2, lambda counts: Job(pause, *counts)),
    (2, lambda counts: Job(pause_and_give, *counts)),
    (8, lambda counts: Job(nested, counts)),
    (8, _with_callbacks),
]
"""How many counts each kind of job has, and what makes it."""


def forever(job: Job) -> RetryCommonForever:
    return RetryCommonForever(job)


def work(path: str) -> None:
    """Run jobs until told to stop."""
    from perdure.actors import start

    system = start(
        f"file://{path}",
        {"": 6},
        poll_interval=timedelta(seconds=1),
        ping_interval=timedelta(seconds=1),
        ping_death_interval=timedelta(seconds=4),
    )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    while not stop.wait(0.2):  # not for ever, or the signal may be seen too late
        pass
    system.stop(timedelta(seconds=3))


if __name__ == "__main__":
    work(sys.argv[1])
