"""One contract for every storage: what the model relies on, in memory, in files, over ZEO."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ZEO
from transaction.interfaces import TransientError
from ZEO.ClientStorage import ClientStorage
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ReadConflictError

from perdure.model import BadStatusError, Job, JobTimeoutError, Status, find_job
from perdure.model.internal import InternalJob
from perdure.storage import SharedStorage
from support.callables import Account, echo, fail, nothing, takes_even
from support.world import DAY, HOUR, MINUTE, View, World

STORAGES = ["mapping", "file", "owner", "client", "zeo"]

SLOW = ("client", "zeo")

#: Far beyond what a local server needs.
LIMIT_SECONDS = 60


def in_memory(folder: Path) -> tuple[Any, Callable[[], None]]:
    return MappingStorage(), lambda: None


def in_a_file(folder: Path) -> tuple[Any, Callable[[], None]]:
    return FileStorage(str(folder / "data.fs")), lambda: None


def over_zeo(folder: Path) -> tuple[Any, Callable[[], None]]:
    before = os.getcwd()
    os.chdir(folder)  # where the server puts its configuration
    try:
        address, stop = ZEO.server(str(folder / "data.fs"))
    finally:
        os.chdir(before)
    return ClientStorage(address, wait_timeout=LIMIT_SECONDS), stop


def shared(folder: Path) -> tuple[Any, Callable[[], None]]:
    storage = SharedStorage(str(folder / "data.fs"))
    storage.share()
    return storage, lambda: None


def as_a_client(folder: Path) -> tuple[Any, Callable[[], None]]:
    owner, _ = shared(folder)
    client = SharedStorage(str(folder / "data.fs"))
    assert not client.is_owner()
    return client, owner.close


MAKERS = {
    "mapping": in_memory,
    "file": in_a_file,
    "owner": shared,
    "client": as_a_client,
    "zeo": over_zeo,
}


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in STORAGES]
)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def world(kind: str, tmp_path: Path) -> Iterator[World]:
    storage, stop = MAKERS[kind](tmp_path)
    made = World(storage)
    try:
        yield made
        found = made.check()
    finally:
        made.close()
        stop()
    assert found == []


@pytest.fixture
def other(world: World, view: View) -> View:
    """A second connection, as another thread has it."""
    return world.view()


def catch_up(view: View, other: View) -> None:
    """Let `other` see what `view` has committed; a ZEO client hears of it a little later."""
    storage = view.connection.db().storage
    if hasattr(storage, "sync"):
        storage.sync()
    other.sync()


# A job's way


@pytest.mark.spec("Q2", "Q4", "J6", "D8")
def test_a_job_is_put_claimed_run_and_kept_as_done(view: View, other: View) -> None:
    account = view.connection.root()["account"] = Account(1)
    agent = view.agent()
    job = view.put(account.deposit, 2)
    assert view.claim(agent) is job
    assert view.run(job) == 3
    assert list(agent.completed) == [job]
    catch_up(view, other)
    seen = find_job(other.connection, str(job.ref))
    assert (seen.status, seen.result) == (Status.COMPLETED, 3)
    assert other.get(account).balance == 3


@pytest.mark.spec("J20", "J21", "J22")
def test_callbacks_run_and_one_that_comes_late_is_put(view: View, other: View) -> None:
    agent = view.agent()
    job = Job(echo, 5)
    callback = job.add_callback(echo)
    chosen = job.add_callbacks(success=echo, failure=nothing)
    view.put(job)
    while_it_waits = other
    catch_up(view, other)
    added = while_it_waits.get(job).add_callback(Job(echo))
    other.commit()
    catch_up(other, view)
    view.claim(agent)
    view.run(job)
    assert job.status is Status.COMPLETED
    assert (callback.result, chosen.result, view.get(added).result) == (5, 5, 5)
    late = job.add_callback(Job(echo))
    view.commit()
    assert view.claim(agent) is late
    assert view.run(late) == 5


@pytest.mark.spec("J7", "J6")
def test_a_failure_is_stored_and_its_effects_are_not(view: View, other: View) -> None:
    job = view.put(fail)
    view.claim()
    view.run(job)
    catch_up(view, other)
    assert other.get(job).result.check(ValueError) is ValueError


@pytest.mark.spec("Q6", "Q8")
def test_quotas_limit_what_is_under_way(view: View, other: View) -> None:
    view.queue.quotas.create("mail", 1)
    jobs = []
    for number in range(3):
        job = Job(echo, number)
        job.quota_names = ("mail",)
        jobs.append(view.put(job))
    agent = view.agent()
    assert view.claim(agent) is jobs[0]
    assert view.claim(agent) is None
    view.run(jobs[0])
    assert view.claim(agent) is jobs[1]


@pytest.mark.spec("Q4", "Q10")
def test_filters_and_deadlines_are_kept_to(world: World, view: View) -> None:
    even = view.agent(1, filter=takes_even)
    odd = view.put(echo, 1, begin_by=MINUTE)
    four = view.put(echo, 4)
    assert [view.claim(even), view.claim(even)] == [four, None]
    world.advance(MINUTE + MINUTE / 60)
    even.record.ping()
    view.commit()
    internal = view.claim(even)
    assert isinstance(internal, InternalJob) and internal.serves is odd
    view.run(internal)
    assert odd.result.check(JobTimeoutError)


@pytest.mark.spec("D4", "R6")
def test_a_sibling_buries_a_dead_dispatcher_and_its_jobs_go_on(
    world: World, view: View, other: View
) -> None:
    dead = view.agent(1)
    assigned, active = view.put(echo, 1), view.put(echo, 2)
    for job in (assigned, active):
        assert view.claim(dead) is job
    view.begin(active)
    world.advance(HOUR)
    catch_up(view, other)
    sibling = other.agent(2)
    found = other.queue.dispatchers.next_active_sibling(sibling.record.uuid)
    assert found is not None and found.dead
    found.deactivate()
    other.commit()
    ran = []
    while (job := other.claim(sibling)) is not None:
        other.run(job)
        ran.append(job)
    assert [type(job) for job in ran] == [InternalJob, Job, Job]
    assert [job.result for job in ran[1:]] == [2, 1]
    world.advance(9 * DAY)
    assert sibling.forget(world.clock.now())
    other.commit()


@pytest.mark.spec("Q7")
def test_inboxes_retire(world: World, view: View) -> None:
    view.put(nothing)
    view.claim()
    world.advance(HOUR)
    for _ in range(2):
        view.queue.sweep_inboxes()
        view.commit()
    assert len(view.queue.inboxes) == 0
    view.put(nothing)
    assert len(view.queue) == 1


@pytest.mark.spec("D8", "J4")
def test_ends_are_refused_twice(view: View) -> None:
    job = view.put(echo, 1)
    view.claim()
    view.run(job)
    with pytest.raises(BadStatusError):
        job()


# What is at the same time


@pytest.mark.spec("Q7")
def test_putting_does_not_conflict_with_claiming(view: View, other: View) -> None:
    view.put(echo, 0)
    agent = view.agent()
    catch_up(view, other)
    other.put(echo, 1)
    catch_up(other, view)
    for number in range(2, 6):
        other.queue.put(Job(echo, number))
        assert view.claim(agent) is not None
        other.commit()
        catch_up(other, view)
        agent.size += 1
        view.commit()
        catch_up(view, other)
    assert len(view.queue) == 2


@pytest.mark.spec("C1", "Q7")
def test_of_two_who_claim_one_job_one_gets_it(view: View, other: View) -> None:
    view.put(echo, 1)
    one, two = view.agent(1), view.agent(2)
    catch_up(view, other)
    assert one.claim_job() is not None
    assert other.get(two).claim_job() is not None
    view.commit()
    with pytest.raises(TransientError):
        other.manager.commit()
    catch_up(view, other)
    assert other.claim(other.get(two)) is None


@pytest.mark.spec("Q6")
def test_of_two_who_claim_the_last_place_one_gets_it(view: View, other: View) -> None:
    quota = view.queue.quotas.create("mail", 1)
    for number in range(130):
        job = Job(echo, number)
        job.quota_names = ("mail",)
        view.queue.put(job)
        if number in (63, 127):
            view.commit()
    view.commit()
    one, two = view.agent(1), view.agent(2)
    catch_up(view, other)
    assert one.claim_job() is not None
    assert other.get(two).claim_job() is not None
    view.commit()
    with pytest.raises(TransientError):
        other.manager.commit()
    catch_up(view, other)
    assert other.claim(other.get(two)) is None
    assert len(other.get(quota)) == 1


@pytest.mark.spec("D6")
@pytest.mark.parametrize("status", [Status.ASSIGNED, Status.ACTIVE, Status.CALLBACKS])
def test_a_worker_that_only_reads_its_jobs_record_commits_nothing_after_burial(
    view: View, other: View, status: Status
) -> None:
    agent = view.agent()
    job = view.put(echo, 1)
    view.claim(agent)
    if status is not Status.ASSIGNED:
        view.begin(job)
    if status is Status.CALLBACKS:
        job._end(1)
        view.commit()
    catch_up(view, other)
    mine = other.get(job)
    mine._p_activate()
    other.connection.readCurrent(mine)
    other.connection.root()["effect"] = True
    agent.record.deactivate()
    view.commit()
    with pytest.raises((ReadConflictError, TransientError)):
        other.manager.commit()
    catch_up(view, other)
    assert "effect" not in other.connection.root()


@pytest.mark.spec("D6")
def test_without_that_reading_it_would_have_been_committed(view: View, other: View) -> None:
    agent = view.agent()
    job = view.put(echo, 1)
    view.claim(agent)
    view.begin(job)
    catch_up(view, other)
    other.get(job)._p_activate()
    other.connection.root()["effect"] = True
    agent.record.deactivate()
    view.commit()
    other.commit()
    assert other.connection.root()["effect"]


@pytest.mark.spec("D6", "D4")
def test_of_a_claim_and_a_burial_one_fails(view: View, other: View) -> None:
    agent = view.agent()
    view.put(echo, 1)
    catch_up(view, other)
    assert agent.claim_job() is not None
    other.get(agent).record.deactivate()
    other.commit()
    with pytest.raises(TransientError):
        view.manager.commit()
    catch_up(other, view)
    assert view.claim(agent) is None
    assert len(view.queue) == 1


@pytest.mark.spec("Q7")
@pytest.mark.slow
def test_threads_that_put_have_no_conflicts(world: World, kind: str) -> None:
    if kind == "mapping":
        pytest.skip("without conflict resolution, making an inbox at once does conflict, once")
    errors: list[BaseException] = []

    def produce(first: int) -> None:
        view = world.view()
        try:
            for number in range(first, first + 10):
                view.queue.put(Job(echo, number))
                view.commit()
        except BaseException as error:
            errors.append(error)
            view.abort()

    threads = [threading.Thread(target=produce, args=(10 * i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_SECONDS)
    assert errors == []
    assert sorted(job.args[0] for job in world.view().queue) == list(range(60))
