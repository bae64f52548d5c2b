"""Putting work of all kinds, and keeping the books on it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import transaction
import ZODB
from BTrees.IOBTree import IOBTree
from transaction.interfaces import TransientError
from ZODB.POSException import ConflictError, StorageError

from catastrophes import workload
from catastrophes.books import Books
from catastrophes.workload import Claims, Ledger, forever
from perdure.model import Job, NeverRetry, get_queue, install, parallel, serial

__all__ = ["GROUPS", "HOT", "LEDGERS", "PUT", "QUOTAS", "Putter", "WORK"]

PUT = "put"
LEDGERS = "ledgers"
GROUPS = "groups"
"""Further jobs of a piece of work, which are put together and may be run together."""
CLAIMS = "claims"
HOT = 0
"""The ledger that much of the work writes."""

QUOTAS = {"one": 1, "two": 2}

_LEDGERS = 64
_LONGEST_QUEUE = 120


class Putter:
    """Puts one piece of work after the other, in a thread of its own, until it is stopped."""

    def __init__(
        self,
        database: ZODB.DB,
        books: Books,
        seed: int,
        weights: Mapping[str, int],
        pause_seconds: float,
    ) -> None:
        self._database = database
        self._books = books
        self._random = random.Random(f"work {seed}")
        self._kinds = list(weights)
        self._weights = list(weights.values())
        self._pause_seconds = pause_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="putter", daemon=True)

    def install(self) -> None:
        """Make what the work needs."""
        install(self._database)
        with self._database.transaction() as connection:
            root = connection.root()
            root[PUT] = IOBTree()
            root[CLAIMS] = IOBTree()
            root[GROUPS] = IOBTree()
            root[LEDGERS] = [Ledger() for _ in range(_LEDGERS)]
            for name, size in QUOTAS.items():
                get_queue(connection).quotas.create(name, size)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Put no more; returns when the last piece was put, or is in doubt."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        number = 0
        try:
            while not self._stop.wait(self._pause_seconds):
                (kind,) = self._random.choices(self._kinds, self._weights)
                number += 1
                self._put(number, kind)
        # Whatever it is, nobody else would tell.
        except BaseException as error:
            self._books.found(f"the driver could not put work: {error!r}")
            raise

    def _put(self, number: int, kind: str) -> None:
        seed = self._random.random()
        while not self._stop.is_set():
            try:
                if self._try(number, kind, random.Random(seed)):
                    self._books.acknowledged[number] = kind
                    self._books.write("acknowledged", number=number, kind=kind)
                    return
            except ConflictError:
                continue
            except (TransientError, StorageError, OSError) as error:
                self._books.in_doubt[number] = kind
                self._books.write("in doubt", number=number, kind=kind, error=repr(error))
                self._stop.wait(0.5)
                return
            self._stop.wait(0.2)

    def _try(self, number: int, kind: str, chosen: random.Random) -> bool:
        """Put it, or return False where too much is waiting."""
        manager = transaction.TransactionManager()
        connection = self._database.open(transaction_manager=manager)
        try:
            with manager:
                root = connection.root()
                queue = get_queue(connection)
                if len(queue) > _LONGEST_QUEUE:
                    return False
                job = WORK[kind](_World(root, chosen), number)
                if kind in MAY_BE_GROUPED and chosen.random() < 0.5:
                    job.transactional = True
                if chosen.random() < 0.1:
                    job.begin_after = datetime.now(UTC) + timedelta(seconds=3 * chosen.random())
                root[PUT][number] = queue.put(job)
                for further in root[GROUPS].get(number, ()):
                    queue.put(further)
            return True
        finally:
            manager.abort()
            connection.close()


class _World:
    """What there is to make a piece of work of."""

    def __init__(self, root: Any, chosen: random.Random) -> None:
        self.root = root
        self.random = chosen

    def ledger(self) -> Ledger:
        """Return one that few others write."""
        found: Ledger = self.root[LEDGERS][self.random.randrange(1, _LEDGERS)]
        return found

    def seconds(self) -> float:
        """Return how long something takes: mostly no time, sometimes a few seconds."""
        return self.random.choices([0, 0.05, 0.5, 3], [6, 3, 2, 0.5])[0] * self.random.random()


def _forever(job: Any) -> Any:
    job.retry_policy_factory = forever
    return job


def _note(world: _World, number: int) -> Job:
    job = Job(workload.note, world.ledger(), f"{number}", world.seconds(), world.seconds())
    # The rest has the default policy.
    return _forever(job) if world.random.random() < 0.7 else job


def _hot(world: _World, number: int) -> Job:
    return _forever(Job(world.root[LEDGERS][HOT].note, f"{number}"))


def _deadline(world: _World, number: int) -> Job:
    job = Job(workload.note, world.ledger(), f"{number}", world.seconds())
    job.begin_by = timedelta(seconds=world.random.choice([0.2, 2, 20]))
    return _forever(job)


def _once(world: _World, number: int) -> Job:
    job = Job(workload.write_once, number, world.seconds())
    job.retry_policy_factory = NeverRetry
    return job


def _callbacks(world: _World, number: int) -> Job:
    ledger = world.ledger()
    if world.random.random() < 0.3:
        job = Job(workload.note_and_fail, ledger, f"{number}")
    else:
        job = Job(workload.note, ledger, f"{number}", world.seconds())
    _forever(job)
    other = world.ledger()
    proxy = job.add_callbacks(
        success=Job(workload.note_after, other, f"{number}/success"),
        failure=Job(workload.note_after, other, f"{number}/failure"),
    )
    proxy.add_callback(Job(workload.note_after, world.ledger(), f"{number}/chain"))
    slow = Job(workload.note_after, world.ledger(), f"{number}/always")
    job.add_callback(slow)
    return job


def _composite(world: _World, number: int) -> Job:
    parts = [
        _forever(Job(workload.note, world.ledger(), f"{number}/{part}", world.seconds()))
        for part in range(world.random.randint(1, 3))
    ]
    make: Callable[..., Job] = world.random.choice([serial, parallel])
    last = _forever(Job(workload.note_post, world.ledger(), f"{number}/post"))
    return _forever(make(*parts, postprocess=last))


def _returns(world: _World, number: int) -> Job:
    depth = world.random.randint(1, 3)
    return _forever(
        Job(workload.note_and_return_job, world.ledger(), f"{number}", depth, world.seconds())
    )


def _later(world: _World, number: int) -> Job:
    job = Job(workload.note_at_last, world.ledger(), f"{number}")
    job.retry_policy_factory = workload.Later
    return job


def _quota(world: _World, number: int) -> Job:
    name = world.random.choice(list(QUOTAS))
    job = Job(workload.occupy, name, number, world.seconds())
    job.quota_names = (name,)
    return _forever(job)


def _group(world: _World, number: int) -> Job:
    """Make some that are done in an instant; of a few something goes wrong."""
    jobs = []
    for part in range(world.random.randint(1, 40)):
        key = f"{number}/{part}"
        chance = world.random.random()
        if chance < 0.05:
            job = Job(workload.note_and_fail, world.ledger(), key)
        elif chance < 0.15:
            job = Job(world.root[LEDGERS][HOT].note, key)
        else:
            job = Job(workload.note, world.ledger(), key)
        if chance > 0.9:
            job.add_callback(Job(workload.note_after, world.ledger(), f"{key}/after"))
        job.transactional = True
        jobs.append(_forever(job))
    world.root[GROUPS][number] = tuple(jobs[1:])
    return jobs[0]


def _own_commits(world: _World, number: int) -> Job:
    claims = world.root[CLAIMS][number] = Claims()
    return _forever(Job(workload.commit_by_itself, claims, 0.1 + 2 * world.random.random()))


def _poison(world: _World, number: int) -> Job:
    job = Job(workload.kill_own_process, number)
    job.retry_policy_factory = workload.ThreeTimes
    return job


WORK: Mapping[str, Callable[[_World, int], Job]] = {
    "note": _note,
    "hot": _hot,
    "deadline": _deadline,
    "once": _once,
    "callbacks": _callbacks,
    "composite": _composite,
    "returns": _returns,
    "later": _later,
    "quota": _quota,
    "own-commits": _own_commits,
    "group": _group,
    "poison": _poison,
}
"""How to make each kind of work."""

MAY_BE_GROUPED = {
    "note", "hot", "deadline", "callbacks", "returns", "later", "own-commits",
}  # fmt: skip
"""Of these every other one is called transactional, though not all can be in a group."""
