"""The lane: conflicts among the jobs of one dispatcher cost time, not jobs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import transaction
from transaction.interfaces import TransientError
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError

from perdure.model import (
    Job,
    NeverRetry,
    Status,
    StopRequested,
    SystemClock,
    check,
    get_queue,
    install,
)
from perdure.model.lane import PATIENCE_SECONDS, Lane
from support.desk import Counter, Desk, PassingClock, deed
from support.jobs import Counter as SharedCounter
from support.manual_clock import ManualClock
from support.systems import LIMIT, Systems

THREADS = 4
JOBS = 40
THOUSANDS = 4_000
LIMIT_SECONDS = 60.0


@pytest.fixture
def file_desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(FileStorage(str(tmp_path / "data.fs")), SystemClock())
    yield made
    made.close()


def run_in_threads(desk: Desk, jobs: list[Job], lane: Lane | None) -> None:
    """Run claimed jobs, in several threads, each with its own connection and runner."""
    oids = [job._p_oid for job in jobs]
    errors: list[BaseException] = []

    def work() -> None:
        connection = desk.database.open()
        try:
            while oids:
                desk.runner(lane=lane).run(connection.get(oids.pop(0)))
        except BaseException as error:
            errors.append(error)
        finally:
            transaction.abort()
            connection.close()

    desk.database.setPoolSize(THREADS + 2)
    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_SECONDS)
    assert errors == []
    transaction.begin()
    desk.settle()
    assert check(desk.database) == []


def put_claimed(desk: Desk, *jobs: Job, **settings: Any) -> list[Job]:
    for job in jobs:
        desk.queue.put(job, **settings)
    transaction.commit()
    return [desk.claim() for _ in jobs]


def meet(barrier: threading.Barrier, calls: list[int], counter: Counter, number: int) -> None:
    """Change the counter, with the first of every thread at the same time."""
    calls.append(number)
    counter.add()
    if calls.count(number) == 1 and number < THREADS:
        barrier.wait(LIMIT_SECONDS)


@pytest.mark.spec("R12")
@pytest.mark.slow
def test_a_hot_counter_that_every_job_changes_costs_no_job(file_desk: Desk) -> None:
    desk = file_desk
    counter = desk.root["counter"] = Counter()
    calls: list[int] = []
    barrier = threading.Barrier(THREADS)
    # What each thread loads is its own copy of the counter.
    work = deed(lambda number, counter: meet(barrier, calls, counter, number))
    jobs = put_claimed(desk, *[Job(work, number, counter) for number in range(JOBS)])
    run_in_threads(desk, jobs, Lane(desk.clock))
    assert [job.result for job in jobs if job.failed] == []
    assert counter.value == JOBS
    assert len(calls) > JOBS


@pytest.mark.spec("R12")
@pytest.mark.slow
def test_a_system_gives_up_none_of_thousands_of_jobs_on_one_hot_counter(
    systems: Systems, tmp_path: Path
) -> None:
    database = systems.database(FileStorage(str(tmp_path / "data.fs")))
    install(database)
    with database.transaction() as connection:
        counter = connection.root()["counter"] = SharedCounter()
        connection.add(counter)
        refs = [get_queue(connection).put(counter.add).ref for _ in range(THOUSANDS)]
    system = systems.start(database, {"": THREADS})
    # A job that has failed raises; each sees the counter as the one before has left it.
    results = [system.result(ref, timeout=10 * LIMIT) for ref in refs]
    assert sorted(results) == list(range(1, THOUSANDS + 1))
    system.stop()
    with database.transaction() as connection:
        assert connection.root()["counter"].value == THOUSANDS
    assert check(database) == []


@pytest.mark.spec("R12", "R4")
@pytest.mark.slow
def test_a_job_that_is_never_to_be_retried_is_never_run_again(file_desk: Desk) -> None:
    desk = file_desk
    counter = desk.root["counter"] = Counter()
    calls: list[int] = []
    barrier = threading.Barrier(THREADS)
    work = deed(lambda number, counter: meet(barrier, calls, counter, number))
    jobs = put_claimed(
        desk,
        *[Job(work, number, counter) for number in range(JOBS)],
        retry_policy_factory=NeverRetry,
    )
    run_in_threads(desk, jobs, Lane(desk.clock))
    assert sorted(calls) == list(range(JOBS))
    failed = [job for job in jobs if job.failed]
    assert len(failed) >= THREADS - 1 and counter.value == JOBS - len(failed)
    assert all(job.result.check(ConflictError) for job in failed)


class Conflicting:
    def __init__(self, count: int, error: type[Exception] = ConflictError) -> None:
        self.count = count
        self.attempts = 0
        self.error = error

    def __call__(self) -> str:
        self.attempts += 1
        if self.attempts <= self.count:
            raise self.error()
        return "done"


def run_once(desk: Desk, work: Callable[[], Any], lane: Lane) -> Job:
    [job] = put_claimed(desk, Job(deed(work)))
    desk.runner(lane=lane).run(job)
    transaction.abort()
    assert job.status is Status.COMPLETED
    return job


@pytest.mark.spec("R12")
def test_conflicts_beside_other_jobs_are_not_counted(desk: Desk) -> None:
    lane = Lane(desk.clock)
    work = Conflicting(12)
    with lane.shared():
        job = run_once(desk, work, lane)
    assert (job.result, work.attempts) == ("done", 13)


@pytest.mark.spec("R12", "R2")
def test_conflicts_of_a_job_that_is_alone_are_counted(desk: Desk) -> None:
    lane = Lane(desk.clock)
    work = Conflicting(12)
    job = run_once(desk, work, lane)
    assert (job.failed, work.attempts, desk.clock.waits) == (True, 5, [])


@pytest.mark.spec("R12", "R2")
def test_only_conflicts_are_excused_by_other_jobs_not_every_transaction_error(
    desk: Desk,
) -> None:
    lane = Lane(desk.clock)
    work = Conflicting(12, TransientError)
    with lane.shared():
        job = run_once(desk, work, lane)
    assert (job.failed, work.attempts) == (True, 5)


@pytest.mark.spec("R12")
def test_after_the_first_conflict_the_job_runs_with_no_other_beside_it(desk: Desk) -> None:
    lane = Lane(desk.clock)
    beside: list[int] = []
    neighbour = lane.shared()
    neighbour.__enter__()

    class NeighbourLeaves(PassingClock):
        def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
            self.waits.append(timeout_seconds or 0)
            neighbour.__exit__(None, None, None)

    def work() -> str:
        beside.append(len(lane._inside) - 1)
        if len(beside) == 1:
            raise ConflictError
        return "done"

    desk.clock.__class__ = NeighbourLeaves
    job = run_once(desk, work, lane)
    assert (job.result, beside, desk.clock.waits) == ("done", [1, 0], [PATIENCE_SECONDS])


class Visit:
    """A thread that is inside a lane until it is told to leave."""

    def __init__(self, lane: Lane, kind: str) -> None:
        self.entered = threading.Event()
        self._leave = threading.Event()
        self.alone: bool | None = None

        def visit() -> None:
            with getattr(lane, kind)() as attempt:
                self.entered.set()
                self._leave.wait(LIMIT_SECONDS)
                self.alone = attempt.alone

        self._thread = threading.Thread(target=visit)
        self._thread.start()

    def leave(self) -> bool | None:
        self._leave.set()
        self._thread.join(LIMIT_SECONDS)
        return self.alone


@pytest.mark.spec("R12")
def test_one_that_wants_to_be_alone_waits_for_the_others_and_goes_before_later_ones() -> None:
    clock = ManualClock()
    lane = Lane(clock)
    first = Visit(lane, "shared")
    assert first.entered.wait(LIMIT_SECONDS)
    alone = Visit(lane, "exclusive")
    clock.wait_until_waiting(1)
    later = Visit(lane, "shared")
    clock.wait_until_waiting(2)
    assert not alone.entered.is_set() and not later.entered.is_set()
    assert first.leave() is True
    assert alone.entered.wait(LIMIT_SECONDS)
    clock.wait_until_waiting(1)
    assert not later.entered.is_set()
    assert alone.leave() is True
    assert later.entered.wait(LIMIT_SECONDS)
    assert later.leave() is True


@pytest.mark.spec("R12")
def test_nobody_waits_for_another_job_without_end() -> None:
    clock = ManualClock()
    lane = Lane(clock)
    first = Visit(lane, "shared")
    assert first.entered.wait(LIMIT_SECONDS)
    alone = Visit(lane, "exclusive")
    clock.wait_until_waiting(1)
    later = Visit(lane, "shared")
    clock.wait_until_waiting(2)
    clock.advance(timedelta(seconds=PATIENCE_SECONDS))
    assert alone.entered.wait(LIMIT_SECONDS) and later.entered.wait(LIMIT_SECONDS)
    assert [visit.leave() for visit in (first, alone, later)] == [False] * 3


@pytest.mark.spec("R12")
def test_one_that_was_waited_out_is_waited_for_no_more() -> None:
    clock = PassingClock()
    lane = Lane(clock)
    with lane.shared() as first:
        for _ in range(2):
            with lane.exclusive() as attempt:
                assert not attempt.alone
        assert clock.waits == [PATIENCE_SECONDS] and not first.alone


@pytest.mark.spec("R12", "X3")
@pytest.mark.parametrize("kind", ["exclusive", "shared"])
def test_a_stop_ends_the_waits(kind: str) -> None:
    lane = Lane(SystemClock())
    lane.end()
    if kind == "exclusive":
        with lane.shared():
            with pytest.raises(StopRequested), lane.exclusive():
                pass
            with lane.shared() as attempt:
                assert not attempt.alone
    else:
        with lane.exclusive(), pytest.raises(StopRequested), lane.shared():
            pass
    with lane.exclusive() as attempt:
        assert attempt.alone


@pytest.mark.spec("R12")
def test_many_conflicts_that_are_not_counted_are_followed_by_growing_waits(desk: Desk) -> None:
    lane = Lane(desk.clock)
    work = Conflicting(80)
    with lane.shared():
        job = run_once(desk, work, lane)
    assert (job.result, work.attempts) == ("done", 81)
    assert desk.clock.waits == [PATIENCE_SECONDS, *range(1, 61), *[60] * 10]


@pytest.mark.spec("R12")
def test_two_that_want_to_be_alone_go_one_after_the_other() -> None:
    clock = ManualClock()
    lane = Lane(clock)
    first = Visit(lane, "exclusive")
    assert first.entered.wait(LIMIT_SECONDS)
    second = Visit(lane, "exclusive")
    clock.wait_until_waiting(1)
    assert not second.entered.is_set()
    assert first.leave() is True
    assert second.entered.wait(LIMIT_SECONDS)
    assert second.leave() is True
    with lane.shared() as attempt:
        assert attempt.alone
