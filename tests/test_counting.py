"""What putting and claiming cost, proved by counting: conflicts, loads, records."""

from __future__ import annotations

import os
import threading

import pytest
from transaction.interfaces import TransientError
from ZODB.FileStorage import FileIterator
from ZODB.MappingStorage import MappingStorage

from perdure.model import Job
from support.callables import asked, counting_filter, echo
from support.world import HOUR, World

THREADS = 8
PUTS = 40

#: Far beyond what is needed; only a test that hangs waits so long.
LIMIT_SECONDS = 120


@pytest.mark.spec("Q7", "X6")
@pytest.mark.slow
def test_threads_that_put_and_a_dispatcher_that_claims_and_settles_have_no_conflicts(file_world):
    conflicts: list[BaseException] = []
    failures: list[BaseException] = []
    put = threading.Semaphore(0)

    def produce(first: int) -> None:
        view = file_world.view()
        for number in range(first, first + PUTS):
            try:
                view.queue.put(Job(echo, number))
                view.commit()
            except TransientError as error:
                conflicts.append(error)
                view.abort()
            except BaseException as error:
                failures.append(error)
                view.abort()
            finally:
                put.release()

    dispatcher = file_world.view()
    agent = dispatcher.agent(size=10)
    threads = [threading.Thread(target=produce, args=(PUTS * i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    claimed = []
    try:
        for _ in range(THREADS * PUTS):
            assert put.acquire(timeout=LIMIT_SECONDS)
            dispatcher.sync()
            while (job := agent.claim_job()) is not None:
                claimed.append(job.args[0])
                # What a worker commits in between.
                job._begin()
                job._end(None)
                job._complete()
                agent.settle_all()
            try:
                dispatcher.commit()
            except TransientError as error:
                conflicts.append(error)
                dispatcher.abort()
    finally:
        for thread in threads:
            thread.join(LIMIT_SECONDS)
    assert (conflicts, failures) == ([], [])
    assert sorted(claimed) == list(range(THREADS * PUTS))
    assert file_world.check() == []


@pytest.mark.spec("Q7", "C1")
@pytest.mark.slow
def test_two_dispatchers_that_claim_while_threads_put_conflict_only_for_each_others_stripes(
    file_world,
):
    """One after the other, in step: what one sees is what the other has not committed yet."""
    producer = file_world.view()
    one, two = file_world.view(), file_world.view()
    agents = [one.agent(1, size=10_000), one.agent(2, size=10_000)]
    two.sync()
    agents[1] = two.get(agents[1])
    conflicts = 0
    for number in range(4 * 64 * 2):
        producer.put(echo, number)
    for _ in range(100):
        one.sync(), two.sync()
        for agent in agents:
            assert agent.claim_job() is not None
        one.commit()
        try:
            two.commit()
        except TransientError:
            conflicts += 1
            two.abort()
    assert conflicts == 0


def put_what_cannot_be_had(world, view, kind, count):
    """Let `count` jobs wait that no agent can have now."""
    for number in range(count):
        job = Job(echo, number)
        if kind == "blocked":
            job.quota_names = ("full",)
        later = world.clock.now() + HOUR if kind == "held" else None
        view.queue.put(job, begin_after=later)
        if number % 10_000 == 9_999:
            view.commit()
    view.commit()


def loads_of_a_claim(view, agent):
    view.connection.getTransferCounts(clear=True)
    assert agent.claim_job() is not None
    view.abort()
    return view.connection.getTransferCounts()[0]


@pytest.fixture
def large_world():
    """A database in memory, too large to be checked at the end of each test."""
    made = World(MappingStorage())
    yield made
    made.close()


MANY = int(os.environ.get("PERDURE_TEST_WAITING_JOBS", "30000"))


@pytest.mark.spec("X6", "Q4", "Q6", "Q10")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["held", "blocked", "refused"])
def test_a_claim_loads_no_more_objects_however_many_jobs_it_cannot_have(large_world, kind):
    world = large_world
    view = world.view()
    view.queue.quotas.create("full", 0)
    agent = view.agent(filter=takes_ready if kind == "refused" else None)
    cold, warm = [], []
    for count in (0, 1_000, MANY):
        put_what_cannot_be_had(world, view, kind, count)
        assert view.claim(agent) is None  # sorts them in, and asks the filter
        ready = view.put(echo, "ready")
        view.queue._sort_in()
        view.commit()
        fresh = world.view()
        mine = fresh.get(agent)
        cold.append(loads_of_a_claim(fresh, mine))
        warm.append(loads_of_a_claim(fresh, mine))
        fresh.abort()
        assert view.claim(agent) is ready
        view.run(ready)
    # With a warm cache, only what the claim before has written; else some nodes of a tree.
    assert warm == [warm[0]] * 3 and warm[0] <= 5
    assert cold[2] - cold[0] <= 4 * len(view.queue.stripes)
    assert cold[2] - cold[1] <= 2 * len(view.queue.stripes)


def takes_ready(job: Job) -> bool:
    return job.args[0] == "ready"


@pytest.mark.spec("Q10", "X6")
def test_a_claim_asks_no_filter_about_jobs_that_it_has_seen(view):
    for number in range(100):
        view.queue.put(Job(echo, number))
    view.commit()
    asked.clear()
    for _ in range(3):
        assert view.queue.claim(counting_filter) is None
        view.commit()
    assert len(asked) == 100
    asked.clear()


@pytest.mark.spec("X8")
def test_one_small_job_is_one_record_and_few_commits(open_file, tmp_path):
    world = open_file()
    view = world.view()
    agent = view.agent()
    view.put(echo, 0)
    view.run(view.claim(agent))
    view.put(echo, 0)
    view.run(view.claim(agent))

    def cost(act):
        before = world.database.storage.getSize(), world.database.lastTransaction()
        found = act()
        size = world.database.storage.getSize() - before[0]
        tids = [
            sum(1 for _ in each)
            for each in FileIterator(str(tmp_path / "data.fs"))
            if each.tid > before[1]
        ]
        return found, len(tids), sum(tids), size

    job, commits, records, size = cost(lambda: view.put(echo, 1))
    assert (commits, records) == (1, 2) and size < 900
    _, commits, records, _ = cost(lambda: view.claim(agent))
    assert commits == 1 and records <= 4
    _, commits, records, _ = cost(lambda: view.run(job))
    assert commits == 3  # begun; done with its effects; settled
    assert job in agent.completed
