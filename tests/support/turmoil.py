"""Worlds in bad times: three processes, jobs of several kinds, and books that must balance."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any

from perdure.model import Failure, Job, JobNotFoundError, JobRef, Status, get_queue
from perdure.model.ref import find_job
from perdure.testing import Process, Seeded, World, turmoil
from support.simulated import root

__all__ = ["bad_times", "count", "count_later", "hand_over"]

QUOTA = "few"
SUM = "sum"
"""Under this name is what all jobs of groups write."""

MOST_IN_A_GROUP = 6
MINUTES = timedelta(minutes=10)


def count(name: str) -> str:
    """Count that a job was run."""
    data = root()
    data[name] = data.get(name, 0) + 1
    return name


def count_together(name: str) -> int:
    """Count, and write the number that all of a group write, in all processes."""
    data = root()
    count(name)
    data[SUM] = data.get(SUM, 0) + 1
    data[f"{name}, together"] = 1
    return int(data[SUM])


def fail(name: str) -> None:
    """Count, and fail: that is not to be counted."""
    count(name)
    raise ValueError(name)


async def count_later(name: str, seconds: float) -> str:
    count(name)
    await asyncio.sleep(seconds)
    return name


def hand_over(name: str) -> Job:
    """Count, and let another job do the same."""
    count(name)
    return Job(count, f"{name}, second part")


def told(name: str, result: Any) -> str:
    return count(f"{name}, callback")


class Books:
    """What was put, and what has to be counted in the end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.put = 0
        self.tried: list[JobRef] = []
        """What was put in a transaction, whatever became of that."""

    def work(self, process: Process, chance: random.Random) -> None:
        """Put a job or two, in a transaction of the application's or without one."""
        kind = chance.randrange(8)
        if kind > 4:
            self._put_group(process, chance)
            return
        self.put += 1
        name = f"job {self.put}"
        if kind == 0:
            process.put(count, name)
            return
        with process.transaction() as connection:
            job = self._job(kind, name, chance)
            connection.root()[f"{name}, put"] = 1
            ref = get_queue(connection, "").put(job).ref
            self.tried.append(ref)
        self.world.acknowledged.append(ref)

    def _put_group(self, process: Process, chance: random.Random) -> None:
        """Put some that may be run in groups, of which one may fail, hand over, or be told of."""
        jobs = []
        for _ in range(chance.randint(1, MOST_IN_A_GROUP)):
            self.put += 1
            name = f"job {self.put}"
            call = chance.choice([count, count, count_together, count_together, hand_over, fail])
            job = Job(call, name)
            job.transactional = True
            if chance.random() < 0.3:
                job.add_callback(Job(told, name))
            jobs.append(job)
        with process.transaction() as connection:
            for job in jobs:
                connection.root()[f"{job.args[0]}, put"] = 1
            refs = [job.ref for job in get_queue(connection, "").put_many(jobs)]
            self.tried += refs
        self.world.acknowledged += refs

    def _job(self, kind: int, name: str, chance: random.Random) -> Any:
        if kind == 1:
            job = Job(count_later, name, chance.uniform(0, 60))
        elif kind == 2:
            job = Job(hand_over, name)
        else:
            job = Job(count, name)
            job.add_callback(Job(told, name))
        if kind in (1, 3):
            job.quota_names = (QUOTA,)
        return job

    def check(self) -> None:
        """Assert that what was put has ended, and that its effects are there once."""
        unended = self.world.unended()
        assert not unended, f"acknowledged, and not ended: {unended}"
        with self.world.look() as connection:
            counted = dict(connection.root())
            ended = {}
            numbers = []
            # Some are there although their put has raised.
            for ref in dict.fromkeys([*self.world.acknowledged, *self.tried]):
                try:
                    job = find_job(connection, ref)
                except JobNotFoundError:
                    continue
                if job.status is not Status.COMPLETED:
                    continue
                for each in (job, *job.callbacks):
                    name = str(each.args[0]) + ", callback" * (each is not job)
                    ended[name] = each.result
                if job.callable is count_together and not job.failed:
                    numbers.append(job.result)
        # Those that have written the same number have done so one after the other.
        done = sum(1 for name in counted if name.endswith(", together"))
        assert counted.get(SUM, 0) == done, f"{done} have counted to {counted.get(SUM)}"
        assert len(set(numbers)) == len(numbers), f"counted twice: {sorted(numbers)}"
        for name, number in counted.items():
            if name.startswith("job "):
                assert number == 1, f"{name} was counted {number} times"
        for name, result in ended.items():
            failed = isinstance(result, Failure)
            assert (name in counted) is not failed, f"{name}: {counted.get(name)}, {result!r}"
        for name in counted:
            if name.endswith(", put"):
                first = name.removesuffix(", put")
                assert first in counted or isinstance(ended.get(first), Failure), (
                    f"{first} is lost"
                )


def bad_times(seed: int, duration: timedelta = MINUTES, **settings: Any) -> tuple[int, int]:
    """Let a world have them; return how many jobs were put, how many troubles there were."""
    with World(chooser=Seeded(seed, 0.1)) as world:
        for name, host, drift in (("a", "host", 0.0), ("b", "host", 0.001), ("c", "other", -0.01)):
            world.process(name, host=host, drift=drift, **settings)
        with world.processes[0].transaction() as connection:
            get_queue(connection, "").quotas.create(QUOTA, 2)
        books = Books(world)
        number = turmoil(world, seed, duration, books.work)
        world.come_to_rest(timedelta(hours=6))
        books.check()
        assert world.check() == []
        return books.put, number
