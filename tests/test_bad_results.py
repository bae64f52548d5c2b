"""Results and effects that cannot be stored: the job fails with that, and nothing is committed."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import transaction
from persistent import Persistent

from perdure.actors import StatusAsked
from perdure.model import Job, JobFailedError, NotStorableError, Status, StopRequested, check
from support.desk import Counter, Desk, deed
from support.jobs import Bare
from support.systems import LIMIT, Systems

ODD = (ValueError, RecursionError, MemoryError, StopIteration, SystemExit, GeneratorExit, Bare)
every_kind = pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)


class WritesBadly:
    """Raises when it is written."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        raise self.kind("of the writing")


class ReadsBadly:
    """Can be written, and raises when it is read."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise state["kind"]("of the reading")


class StoresBadly(Persistent):
    """Is no part of what refers to it, and raises when it is stored itself."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __getstate__(self) -> Any:
        raise self.kind("of the storing")


class NamelessError(Exception):
    """Has neither a text nor a pickle."""

    def __reduce__(self) -> Any:
        raise self

    def __repr__(self) -> str:
        raise Bare("no repr")

    __str__ = __repr__


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found


def after_counting(counter: Counter, make: Callable[[], Any]) -> Any:
    counter.add()
    return make()


def run(desk: Desk, make: Callable[[], Any]) -> tuple[Job, Counter]:
    """A job that was run, that has counted and then returned what `make` does; the count."""
    counter = desk.root["counter"] = Counter()
    transaction.commit()
    job = desk.put(Job(deed(after_counting), counter, deed(make)))
    desk.work()
    transaction.begin()
    return job, counter


def failed_alone(desk: Desk, job: Job, counter: Counter) -> Any:
    """The failure of a job of which nothing else is in the database; others can still run."""
    assert job.status is Status.COMPLETED and job.failed
    assert counter.value == 0
    other = desk.put(Job(deed(lambda: "well")))
    desk.work()
    transaction.begin()
    assert other.result == "well" and check(desk.database) == []
    return job.result


RESULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "an open file": (lambda: sys.stderr, "cannot pickle"),
    "a lock": (threading.Lock, "cannot pickle '_thread.lock' object"),
    "a generator": (lambda: (each for each in ()), "cannot pickle 'generator' object"),
    "a lambda": (lambda: lambda: 1, "<lambda>"),
    "a module": (lambda: sys, "cannot pickle 'module' object"),
    "a class inside a function": (lambda: type("Inner", (), {}), "Inner"),
    "too deep": (deep, "recursion"),
    "no text": (NamelessError, "a NamelessError"),
}


@pytest.mark.spec("J6")
@pytest.mark.parametrize("what", RESULTS)
def test_a_result_that_cannot_be_pickled_fails_its_job(desk: Desk, what: str) -> None:
    make, text = RESULTS[what]
    failure = failed_alone(desk, *run(desk, make))
    assert failure.check(NotStorableError)
    assert "the result of <Job" in failure.message and text in failure.message
    assert failure.message.endswith("give plain data, or a persistent object")


@pytest.mark.spec("J6")
@every_kind
@pytest.mark.parametrize(
    ("odd", "text"),
    [(WritesBadly, "of the writing"), (ReadsBadly, "it can be written, but not be read again: ")],
)
def test_a_result_whose_pickle_raises_whatever_it_likes_fails_its_job(
    desk: Desk, kind: type[BaseException], odd: Any, text: str
) -> None:
    failure = failed_alone(desk, *run(desk, lambda: [odd(kind)]))
    assert failure.check(NotStorableError) and text in failure.message
    assert issubclass(kind, Exception) or kind.__name__ in failure.message


@pytest.mark.spec("J6")
@every_kind
def test_an_object_that_raises_when_it_is_stored_fails_its_job(
    desk: Desk, kind: type[BaseException]
) -> None:
    failure = failed_alone(desk, *run(desk, lambda: StoresBadly(kind)))
    assert failure.check(kind) and failure.message == "of the storing"


@pytest.mark.spec("J6")
@every_kind
def test_an_effect_that_raises_when_it_is_stored_fails_its_job(
    desk: Desk, kind: type[BaseException]
) -> None:
    def spoil() -> None:
        desk.root["counter"].spoiled = WritesBadly(kind)

    failure = failed_alone(desk, *run(desk, spoil))
    assert failure.check(kind) and failure.message == "of the writing"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, StopRequested])
def test_what_comes_from_outside_while_a_result_is_stored_is_no_fault_of_the_job(
    desk: Desk, kind: type[BaseException]
) -> None:
    with pytest.raises(kind):
        run(desk, lambda: WritesBadly(kind))
    transaction.abort()
    (job,) = desk.agent
    assert job.status is Status.ACTIVE and desk.root["counter"].value == 0


@every_kind
def test_an_argument_whose_pickle_raises_whatever_it_likes_is_refused(
    kind: type[BaseException],
) -> None:
    with pytest.raises(NotStorableError, match="argument 1 cannot be stored: .*of the writing"):
        Job(print, 1, WritesBadly(kind))


def test_a_result_has_no_limit(desk: Desk) -> None:
    job, counter = run(desk, lambda: "x" * 2_000_000)
    assert len(job.result) == 2_000_000 and counter.value == 1


# In a running system


def from_a_future(make: Callable[[], Any]) -> Any:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_result(make())
    return future


async def from_a_coroutine(make: Callable[[], Any]) -> Any:
    return make()


@pytest.mark.spec("J6")
@pytest.mark.parametrize("way", [None, from_a_future, from_a_coroutine])
@pytest.mark.parametrize("kind", [ValueError, SystemExit], ids=lambda kind: kind.__name__)
def test_no_worker_is_lost_over_a_result_that_cannot_be_stored(
    systems: Systems, way: Any, kind: type[BaseException]
) -> None:
    system = systems.start(queues={"": 1})
    make = deed(lambda: WritesBadly(kind))
    ref = system.put(Job(make) if way is None else Job(way, make))
    with pytest.raises(JobFailedError, match="cannot be stored: .*of the writing"):
        system.result(ref, timeout=LIMIT)
    assert system.result(system.put(deed(lambda: "well")), timeout=LIMIT) == "well"
    status = system.ask(StatusAsked())
    assert status.crashes == 0 and status.degraded == ()
