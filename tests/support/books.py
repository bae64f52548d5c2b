"""Jobs of the simulated scenarios, and the books that have to balance when all is at rest.

Each job with an effect has a name of its own, and adds one to it in the books. So whatever
befell the process: the books have 1 for each job that has succeeded, and nothing else.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import transaction
from BTrees.OOBTree import OOBTree
from ZODB.POSException import ConflictError

from perdure.model import (
    BadStatusError,
    CallbackProxy,
    GiveUp,
    Interrupted,
    Job,
    JobRef,
    Reschedule,
    Retry,
    RetryPolicy,
    Status,
    find_job,
    get_queue,
    local,
)
from perdure.model.environment import clock_of
from perdure.model.queues import find_queues
from perdure.testing import Process, World

__all__ = ["books_balance", "open_books", "put"]

SECOND = timedelta(seconds=1)
SUM = "sum"

tries: Counter[str] = Counter()
"""How often each job was tried: a memory that no crash and no abort takes."""

found: list[str] = []
"""What jobs have found wrong while they ran."""

_worlds: list[World] = []


def open_books(process: Process) -> None:
    """Begin anew; the set-up of every scenario."""
    tries.clear()
    found.clear()
    _worlds[:] = [process.world]
    come_back()
    with process.transaction() as connection:
        connection.root()["books"] = OOBTree()


def put(process: Process, *jobs: Job, **settings: Any) -> list[JobRef]:
    """Put jobs in one transaction; they are acknowledged once that is committed."""
    with process.transaction() as connection:
        queue = get_queue(connection, "")
        refs = [queue.put(job, **settings).ref for job in jobs]
    process.world.acknowledged += refs
    return refs


def looking_after(job: Job, policy: Any) -> Job:
    """Give a job its policy."""
    job.retry_policy_factory = policy
    return job


# What jobs do.


def _books() -> Any:
    return local.get_job()._p_jar.root()["books"]


def effect(name: str, *told: Any) -> str:
    books = _books()
    books[name] = books.get(name, 0) + 1
    return name


async def effect_later(name: str, seconds: float = 1.0, *told: Any) -> str:
    await asyncio.sleep(seconds)
    return effect(name)


def audited_effect(name: str, *told: Any) -> str:
    """Look at the invariants while it runs itself."""
    _audit()
    return effect(name)


async def audited_effect_later(name: str, seconds: float = 1.0, *told: Any) -> str:
    _audit()
    await asyncio.sleep(seconds)
    return effect(name)


def _audit() -> None:
    found.extend(_worlds[0].check())


def effect_and_error(name: str, times: int, *told: Any) -> str:
    """Fail as often as that, each time with an effect that is rolled back."""
    effect(name)
    tries[name] += 1
    if tries[name] <= times:
        raise ValueError(f"try {tries[name]} of {name}")
    return name


def count(name: str) -> int:
    """Have an effect, and write the number that all of them write."""
    books = _books()
    books[SUM] = books.get(SUM, 0) + 1
    effect(name)
    return int(books[SUM])


def effect_and_conflict(name: str, times: int) -> str:
    """Meet with a conflict as often as that."""
    effect(name)
    tries[name] += 1
    if tries[name] <= times:
        raise ConflictError(f"try {tries[name]} of {name}")
    return name


def effect_and_bad_commit(name: str, times: int, *told: Any) -> str:
    """Have a commit that fails as often as that."""
    effect(name)
    tries[name] += 1
    if tries[name] <= times:
        transaction.get().join(_Refusing(ValueError(f"commit {tries[name]} of {name}")))
    return name


class _Refusing:
    """A data manager whose vote fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def sortKey(self) -> str:  # noqa: N802
        return "~refusing"

    def tpc_vote(self, transaction: Any) -> None:
        raise self._error

    def abort(self, transaction: Any) -> None:
        pass

    tpc_begin = commit = tpc_finish = tpc_abort = abort


def effect_and_job(name: str, *inner: str) -> Job:
    """Return a job, which returns the next one, and so on."""
    effect(name)
    first, *rest = inner
    return Job(effect_and_job, first, *rest) if rest else Job(effect_later, first)


def future_of(name: str) -> Any:
    """Return a future; what is done before that is done again after an interruption."""
    future: concurrent.futures.Future[str] = concurrent.futures.Future()
    future.set_result(name)
    return future


def effect_and_further(name: str, further: str) -> str:
    """Put another job in the same transaction."""
    effect(name)
    queue = local.get_queue()
    assert queue is not None
    queue.put(Job(effect, further))
    return name


def effect_and_cancel(name: str, ref: str) -> str:
    """Cancel another job, if it has not begun."""
    with contextlib.suppress(BadStatusError):
        find_job(local.get_job()._p_jar, ref).cancel()
    return effect(name)


def effect_and_callback(name: str, ref: str, callback: str) -> str:
    """Add a callback to another job, whatever that is at."""
    find_job(local.get_job()._p_jar, ref).add_callback(Job(effect, callback))
    return effect(name)


def effect_and_slow_callback(name: str, ref: str, callback: str, seconds: float) -> str:
    """Add a callback to another job, and take a while before that is committed."""
    done = effect_and_callback(name, ref, callback)
    condition = threading.Condition()
    with condition:
        clock_of(local.get_job()).wait(condition, seconds)
    return done


def effect_of_parts(name: str, *parts: Job) -> str:
    open_ones = [part for part in parts if part.status is not Status.COMPLETED]
    assert not open_ones, [(part, part.status) for part in open_ones]
    return effect(name)


def effect_of_parts_later(name: str, *parts: Job) -> Job:
    effect(name)
    return Job(effect_later, f"{name}, later")


def _vanishing(name: str, *told: Any) -> str:
    return effect(name)


def vanish() -> None:
    """Deploy code in which a callable is missing."""
    del globals()["vanishing"]


def come_back() -> None:
    """Deploy code in which it is there again."""
    globals()["vanishing"] = _vanishing


_vanishing.__name__ = _vanishing.__qualname__ = "vanishing"
vanishing = _vanishing

EFFECTS = frozenset(
    f"{__name__}:{each}"
    for each in (
        "effect", "effect_later", "count",
        "audited_effect", "audited_effect_later", "effect_and_error",
        "effect_and_conflict", "effect_and_bad_commit", "effect_and_job",
        "effect_and_callback", "effect_and_cancel", "effect_and_slow_callback",
        "effect_and_further", "effect_of_parts", "effect_of_parts_later", "vanishing",
    )
)  # fmt: skip


# Policies of an application.


class Stubborn(RetryPolicy):
    """Tries two errors again, one at once and one later, and waits after an interruption."""

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, Interrupted):
            return Retry(2 * SECOND)
        count = self.count("error")
        return GiveUp() if count > 2 else Retry((count - 1) * SECOND)


class Patient(RetryPolicy):
    """Has its job put again: first in line, then later; later after an interruption."""

    def on_receive(self, message: Any) -> Any:
        # Not `count`, which begins anew with each claim.
        self.data["sum"] = self.data.get("sum", 0) + 1
        if isinstance(message, Interrupted):
            return Reschedule(3 * SECOND)
        return Reschedule((self.data["sum"] - 1) * SECOND)


class Resigned(RetryPolicy):
    """Tries errors again, and gives up after an interruption."""

    def on_receive(self, message: Any) -> Any:
        return GiveUp() if isinstance(message, Interrupted) else Retry()


# The books.


def books_balance(
    may_fail: Callable[[str], bool] = lambda name: False,
    must_fail: Callable[[str], bool] = lambda name: False,
) -> Callable[[Process], None]:
    """Return a check: one effect of each job that succeeded, no other, and only those failed."""

    def check(process: Process) -> None:
        assert not found, found
        expected: Counter[str] = Counter()
        with process.world.look() as connection:
            books = dict(connection.root()["books"])
            books.pop(SUM, None)
            for job in _jobs(connection):
                name = job.args[0]
                if job.status is Status.NEW and isinstance(job.parent, CallbackProxy):
                    assert job.parent.job is not job, f"{job!r} was to be called"
                elif job.status is not Status.COMPLETED:
                    waits = "vanishing" not in globals() or (job.queue and job.queue.paused)
                    assert waits, f"{job!r} is {job.status.name}"
                elif job.failed:
                    assert may_fail(name) or must_fail(name), f"{job!r} failed: {job.result}"
                else:
                    assert not must_fail(name), f"{job!r} has not failed"
                    expected[name] += 1
        assert books == expected, f"the books have {books} instead of {dict(expected)}"

    return check


def _jobs(connection: Any) -> Iterator[Job]:
    """Return every job with an effect that is in the database, wherever it is."""
    seen: set[bytes] = set()
    for queue in find_queues(connection).values():
        roots = list(queue)
        for record in queue.dispatchers.records():
            for agent in record.agents():
                roots += [*agent, *agent.left, *agent.completed]
        for root in roots:
            for job in (root, *root.descendants()):
                if job._p_oid not in seen and job.callable_name in EFFECTS:
                    seen.add(job._p_oid)
                    yield job
