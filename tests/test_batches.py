"""Batches: who is in one, what the end of one job does for the next, and what goes wrong in it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import transaction
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError

from perdure.model import (
    Failure,
    Job,
    NeverRetry,
    RetryCommonForever,
    Status,
    StopRequested,
    check,
    environment,
    find_job,
    get_queue,
    local,
    register_retry_policy,
    set_alias,
)
from perdure.model.groupable import batch_of
from perdure.model.places import BATCHED, GROUPED_PER_PLACE, Taken
from perdure.model.ref import JobRef
from support.batches import Batches
from support.callables import takes_all
from support.desk import Counter, Desk, deed, fail_commit
from support.groups import records_since

SECOND = timedelta(seconds=1)


def plain(*args: Any) -> None:
    pass


def other(*args: Any) -> None:
    pass


async def coroutine() -> None:
    pass


class OwnJob(Job):
    """A job of an application's class."""


@pytest.fixture
def counters(desk: Desk) -> list[Counter]:
    """Something for each job to change, and to look at what is left of it."""
    made = desk.root["counters"] = [Counter() for _ in range(5)]
    desk.root._p_changed = True
    transaction.commit()
    return made


def values(desk: Desk) -> list[int]:
    """What is stored in the counters."""
    transaction.begin()
    return [counter.value for counter in desk.root["counters"]]


def statuses(*jobs: Job) -> list[str]:
    transaction.begin()
    return [job.status.name for job in jobs]


def put_adding(batches: Batches, *numbers: int) -> list[Job]:
    """Put jobs that add one to the counters of these numbers."""

    def add(number: int) -> Callable[[], int]:
        return lambda: int(batches.desk.root["counters"][number].add())

    return batches.put(*map(add, numbers))


# Who may be in a batch.


def with_quota(job: Job) -> None:
    job.quota_names = ("one",)


def with_deadline(job: Job) -> None:
    job.begin_by = SECOND


def with_policy(job: Job) -> None:
    job.get_retry_policy()


def with_factory(job: Job) -> None:
    job.retry_policy_factory = RetryCommonForever


def with_deaths(job: Job) -> None:
    job._deaths = 1


def given_back(job: Job) -> None:
    job._alone = True


@pytest.mark.spec("D18")
@pytest.mark.parametrize(
    "change", [with_quota, with_deadline, with_policy, with_factory, with_deaths, given_back]
)
@pytest.mark.parametrize("looks", [False, True])
def test_what_needs_more_than_a_batch_gives_is_run_alone(
    looks: bool, change: Callable[[Job], None], batches: Batches
) -> None:
    desk = batches.desk
    desk.queue.quotas.create("one")
    if looks:
        desk.agent.filter = takes_all
    job = Job(plain)
    change(job)
    # Into a bundle, whose line is known when it is put.
    desk.queue.put(plain)
    first = desk.put(job)
    assert batch_of(first) == ""
    taken = {each.job: (each.batch, each.number) for each in batches.claim()}
    assert taken.pop(first) == (False, 1)
    assert list(taken.values()) == [(True, -1)]


@pytest.mark.spec("D18")
@pytest.mark.parametrize("looks", [False, True])
def test_jobs_of_other_classes_and_coroutines_are_in_no_batch(
    looks: bool, batches: Batches
) -> None:
    desk = batches.desk
    if looks:
        desk.agent.filter = takes_all
    made = desk.queue.put_many([plain, OwnJob(plain), coroutine, plain])
    transaction.commit()
    taken = batches.claim()
    assert [(each.job, each.batch) for each in taken] == list(
        zip(made, [True, False, False, True], strict=True)
    )


@pytest.mark.spec("D18", "R3")
@pytest.mark.parametrize("sorted_in", [False, True])
def test_where_another_policy_is_the_default_nobody_is_in_a_batch(
    sorted_in: bool, batches: Batches
) -> None:
    desk = batches.desk
    desk.queue.put_many([plain] * 3)
    if sorted_in:
        desk.queue._sort_in()
    transaction.commit()
    register_retry_policy("", NeverRetry)
    try:
        taken = batches.claim()
    finally:
        register_retry_policy("", None)
    assert [(each.batch, each.number) for each in taken] == [(False, 1)] * 3


@pytest.mark.spec("D18")
def test_what_is_not_known_to_be_over_at_once_is_run_alone(batches: Batches) -> None:
    batches.instant = False
    batches.put(lambda: None, lambda: None)
    assert [(each.batch, each.number) for each in batches.claim()] == [(False, 1)] * 2


@pytest.mark.spec("D18", "J32")
@pytest.mark.parametrize("word", ["agent", "queue", "job"])
def test_those_that_may_be_in_a_group_are_in_no_batch(word: str, batches: Batches) -> None:
    desk = batches.desk
    desk.queue.put_many([plain, plain])
    desk.queue.put(plain, transactional=True if word == "job" else None)
    desk.queue._sort_in()
    if word != "job":
        getattr(desk, word).transactional = True
    transaction.commit()
    grouped = [False, False, True] if word == "job" else [True] * 3
    assert [bool(each.group) and not each.batch for each in batches.claim()] == grouped


@pytest.mark.spec("D18", "J32")
def test_those_that_were_to_be_in_a_group_are_in_a_batch_when_the_word_is_taken_back(
    batches: Batches,
) -> None:
    desk = batches.desk
    desk.queue.transactional = True
    desk.queue.put_many([plain] * 3)
    desk.queue._sort_in()
    transaction.commit()
    desk.queue.transactional = None
    transaction.commit()
    taken = batches.claim()
    assert [(each.batch, each.number) for each in taken] == [(True, -1)] * 3
    batches.run(taken)
    desk.settle()
    assert len(desk.agent) == 0


@pytest.mark.spec("Q3", "D18")
def test_jobs_of_several_callables_and_others_are_claimed_in_the_order_of_the_queue(
    batches: Batches,
) -> None:
    desk = batches.desk
    desk.queue.quotas.create("two", size=2)
    limited = [Job(plain), Job(other)]
    for job in limited:
        job.quota_names = ("two",)
    now = desk.clock.now()
    early = Job(other)
    early.begin_after = now - SECOND
    late = Job(plain)
    late.begin_after = now + SECOND
    made = desk.queue.put_many(
        [plain, other, limited[0], plain, plain, other, late, limited[1], early, plain]
    )
    transaction.commit()
    taken = batches.claim()
    due = [job for job in made if job is not late]
    # One that was due before it was put counts from then on.
    assert [each.job for each in taken] == due
    assert [each.batch for each in taken] == [job not in limited for job in due]
    desk.clock.advance(2 * SECOND)
    assert [each.job for each in batches.claim()] == [late]


@pytest.mark.spec("Q3", "D18")
def test_of_more_callables_than_there_are_lines_for_each_is_claimed_in_its_turn(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[__name__]
    functions = []
    for number in range(40):

        def function(*args: Any) -> None:
            pass

        function.__qualname__ = function.__name__ = f"function_{number}"
        monkeypatch.setattr(module, function.__name__, function, raising=False)
        functions.append(function)
    made = [batches.desk.queue.put(each) for each in functions * 2]
    transaction.commit()
    batches.desk.queue._sort_in()
    for stripe in batches.desk.queue.stripes:
        assert sum(key.batch for key, _ in stripe.lines()) <= 32
    assert check(batches.desk.database) == []
    batches.desk.agent.size = 1
    taken = batches.claim()
    assert [each.job for each in taken] == made[: 2 * BATCHED]
    assert all(each.batch for each in taken)


@pytest.mark.spec("D7", "D18")
def test_an_agent_holds_a_number_of_them_and_one_place_less_for_others(batches: Batches) -> None:
    desk = batches.desk
    desk.agent.size = 2
    desk.queue.put_many([plain] * (2 * BATCHED + 10))
    transaction.commit()
    assert len(batches.claim()) == 2 * BATCHED
    assert batches.claim() == []
    batches.instant = False
    assert len(batches.claim()) == (2 * GROUPED_PER_PLACE - 2 * BATCHED) // GROUPED_PER_PLACE


# What it costs.


@pytest.mark.spec("D18", "J18", "X8")
def test_the_commit_that_completes_one_begins_the_next(batches: Batches) -> None:
    desk = batches.desk
    made = batches.put(*[lambda: None] * 4)
    oids = [job._p_oid for job in made]
    before = desk.database.lastTransaction()
    taken = batches.claim()
    [claimed] = records_since(desk.database, before)
    assert not set(oids) & set(claimed)
    before = desk.database.lastTransaction()
    batches.run(taken)
    commits = [sorted(commit) for commit in records_since(desk.database, before)]
    assert commits == [[oids[0]], oids[0:2], oids[1:3], oids[2:4], [oids[3]]]
    assert batches.begun == [False, True, True, True]
    assert statuses(*made) == ["COMPLETED"] * 4
    assert [job._previous for job in made] == [None] * 4


@pytest.mark.spec("D18")
def test_a_claim_loads_no_job(batches: Batches) -> None:
    desk = batches.desk
    made = [*batches.put(*[lambda: None] * 3), *desk.queue.put_many([plain] * 3)]
    transaction.commit()
    desk.queue._sort_in()
    transaction.commit()
    desk.connection.cacheMinimize()
    taken = batches.claim()
    assert [each.job for each in taken] == made
    assert [job._p_state for job in made] == [-1] * 6


@pytest.mark.spec("J3", "J4", "D18")
def test_what_is_said_of_each_is_what_is_said_of_one_that_is_run_alone(batches: Batches) -> None:
    desk = batches.desk
    made = batches.put(*[lambda: local.get_job().status.name] * 2)
    alone = batches.put(lambda: local.get_job().status.name)[0]
    alone._alone = True
    transaction.commit()
    taken = batches.claim()
    batches.run(taken)
    for each in taken:
        if not each.batch:
            desk.run(each.job)
    desk.settle()
    transaction.begin()
    states = [{**vars(job)} for job in (*made, alone)]
    for state in states:
        for name in ("_stamp", "_args", "_previous", "_alone", "_begin_after"):
            state.pop(name, None)
    assert states[0] == states[1] == states[2]
    assert made[1].result == "ACTIVE"
    assert [job in desk.agent.completed for job in made] == [True] * 2


# What goes wrong for one of them.


def raise_error() -> None:
    raise ValueError("no")


def doom() -> None:
    transaction.doom()


def commit_by_itself() -> None:
    transaction.commit()


def abort_by_itself() -> None:
    transaction.abort()


def swallow_a_failed_commit() -> None:
    fail_commit(ValueError("no commit"))
    try:
        transaction.commit()
    except ValueError:
        pass


def return_failure() -> Failure:
    return Failure(ValueError("no"))


def return_unstorable() -> Any:
    return lambda: None


def refuse_to_commit() -> None:
    fail_commit(ValueError("no"))


def return_job() -> Job:
    queue = local.get_queue()
    assert queue is not None
    return queue.put(plain)


def add_callback() -> None:
    local.get_job().add_callback(plain)


BAD = [
    # what it does, whether it fails, whether the next one begins with its end
    (raise_error, True, False),
    (doom, True, False),
    (commit_by_itself, False, True),
    (abort_by_itself, False, True),
    (swallow_a_failed_commit, True, False),
    (return_failure, True, True),
    (return_unstorable, True, False),
    (refuse_to_commit, True, False),
    (return_job, False, False),
    (add_callback, False, False),
]


@pytest.mark.spec("J6", "J7", "J8", "J19", "D18")
@pytest.mark.parametrize(("bad", "fails", "begins"), BAD)
def test_whatever_one_does_its_neighbours_are_run_once(
    bad: Callable[[], Any], fails: bool, begins: bool, batches: Batches, counters: list[Counter]
) -> None:
    desk = batches.desk
    first = put_adding(batches, 0)[0]
    middle = batches.put(bad)[0]
    last = put_adding(batches, 1)[0]
    batches.run()
    assert batches.begun == [False, True, begins]
    assert check(desk.database) == []
    desk.settle()
    batches.work()
    assert statuses(first, middle, last) == ["COMPLETED"] * 3
    assert [job.failed for job in (first, middle, last)] == [False, fails, False]
    assert values(desk)[:2] == [1, 1]
    assert all(job._deaths == 0 for job in (first, middle, last))


@pytest.mark.spec("R2", "R12", "D18")
@pytest.mark.parametrize("times", [1, 3])
def test_one_whose_commit_conflicts_is_called_again_and_the_next_one_once(
    times: int, batches: Batches, counters: list[Counter]
) -> None:
    calls: list[str] = []

    def conflict() -> None:
        calls.append("first")
        if len(calls) <= times:
            fail_commit(ConflictError("made up"))

    first = batches.put(conflict)[0]
    second = put_adding(batches, 0)[0]
    batches.run()
    assert len(calls) == times + 1
    assert batches.begun == [False, True]
    assert statuses(first, second) == ["COMPLETED"] * 2
    assert values(batches.desk)[0] == 1


@pytest.mark.spec("R11", "D18")
@pytest.mark.parametrize("kind", [ConflictError, ClientDisconnected, ValueError])
def test_a_commit_that_raised_and_took_place_is_not_made_again_and_the_next_one_has_begun(
    kind: type[Exception], batches: Batches, counters: list[Counter]
) -> None:
    def fail_late() -> None:
        batches.desk.root["counters"][0].add()
        fail_commit(kind("late"), "tpc_finish")

    first = batches.put(fail_late)[0]
    second = put_adding(batches, 1)[0]
    batches.run()
    assert batches.begun == [False, True]
    assert statuses(first, second) == ["COMPLETED"] * 2
    assert values(batches.desk)[:2] == [1, 1]
    assert not second.failed and second._policy is None


@pytest.mark.spec("D18", "J17", "R2")
@pytest.mark.parametrize("when", ["before", "in the call", "in the commit"])
def test_whenever_the_next_one_is_cancelled_it_is_not_run(
    when: str, batches: Batches, counters: list[Counter]
) -> None:
    called: list[int] = []

    def cancel() -> None:
        ref = second.ref
        batches.elsewhere(lambda connection: find_job(connection, ref).cancel())

    def first_call() -> None:
        called.append(1)
        if len(called) == 1 and when == "in the call":
            cancel()
        if len(called) == 1 and when == "in the commit":
            transaction.get().addBeforeCommitHook(cancel)

    first = batches.put(first_call)[0]
    second, third = put_adding(batches, 0, 1)
    taken = batches.claim()
    if when == "before":
        cancel()
    batches.run(taken)
    assert len(called) == (1 if when == "before" else 2)
    batches.desk.settle()
    batches.work()
    assert statuses(first, second, third) == ["COMPLETED"] * 3
    assert second.failed and not first.failed and not third.failed
    assert values(batches.desk)[:2] == [0, 1]
    assert len(batches.desk.agent) == 0


@pytest.mark.spec("D18", "J17")
def test_a_job_may_cancel_the_next_one_itself(batches: Batches, counters: list[Counter]) -> None:
    refs: list[JobRef] = []

    def cancel_next() -> None:
        find_job(batches.desk.connection, refs[0]).cancel()

    first = batches.put(cancel_next)[0]
    second, third = put_adding(batches, 0, 1)
    refs.append(second.ref)
    batches.run()
    batches.desk.settle()
    batches.work()
    assert statuses(first, second, third) == ["COMPLETED"] * 3
    assert [job.failed for job in (first, second, third)] == [False, True, False]
    assert values(batches.desk)[:2] == [0, 1]


@pytest.mark.spec("D18", "J22")
@pytest.mark.parametrize("when", ["claimed", "in the call", "in the commit"])
def test_a_callback_that_comes_late_runs_once_and_the_next_one_too(
    when: str, batches: Batches, counters: list[Counter]
) -> None:
    def add() -> None:
        def act(connection: Any) -> None:
            find_job(connection, first.ref).add_callback(deed(called_back))

        batches.elsewhere(act)

    def called_back(result: Any) -> None:
        batches.desk.root["counters"][0].add()

    def first_call() -> None:
        if when == "in the call":
            add()
        elif when == "in the commit":
            transaction.get().addBeforeCommitHook(add)

    first = batches.put(first_call)[0]
    second = put_adding(batches, 1)[0]
    ref = first.ref
    assert ref
    taken = batches.claim()
    if when == "claimed":
        add()
    batches.run(taken)
    batches.desk.settle()
    batches.work()
    assert statuses(first, second) == ["COMPLETED"] * 2
    assert values(batches.desk)[:2] == [1, 1]


@pytest.mark.spec("D11", "D18")
@pytest.mark.parametrize("where", ["call", "commit"])
def test_one_that_ends_its_worker_lets_nobody_begin(
    where: str, batches: Batches, counters: list[Counter]
) -> None:
    def leave() -> None:
        left.append(1)
        if len(left) > 1:
            return
        if where == "call":
            sys.exit()
        transaction.get().addBeforeCommitHook(sys.exit)

    left: list[int] = []

    first = batches.put(leave)[0]
    second = put_adding(batches, 0)[0]
    taken = batches.claim()
    with pytest.raises(SystemExit):
        batches.run(taken)
    assert statuses(first, second) == ["ACTIVE", "ASSIGNED"]
    # The next one is the worker's again, or whose it was.
    assert batches.left.left("worker") == 1
    batches.desk.lose(first)
    batches.give_back(taken[1:])
    batches.work()
    assert statuses(first, second) == ["COMPLETED"] * 2
    assert values(batches.desk)[0] == 1


@pytest.mark.spec("D10", "D18")
def test_the_next_one_is_not_begun_once_the_system_stops(
    batches: Batches, counters: list[Counter]
) -> None:
    first = batches.put(batches.desk.stop.set)[0]
    second = put_adding(batches, 0)[0]
    taken = batches.claim()
    batch = batches.batch(taken)
    claim = batch.take()
    assert claim is not None
    batch.connection = batches.desk.connection
    transaction.begin()
    batches.runner().run(first, viewed=True, following=batch)
    assert statuses(first, second) == ["COMPLETED", "ASSIGNED"]
    assert batches.left.left("worker") == 1
    batches.desk.stop = type(batches.desk.stop)(batches.desk.clock)
    batches.give_back(taken[1:])
    batches.desk.settle()
    assert statuses(second) == ["PENDING"]


@pytest.mark.spec("D18", "D6")
def test_what_was_taken_away_is_neither_begun_nor_run(
    batches: Batches, counters: list[Counter]
) -> None:
    first, second, third = put_adding(batches, 0, 1, 2)
    taken = batches.claim()
    batch = batches.batch(taken)
    claim = batch.take()
    assert claim is not None
    batch.connection = batches.desk.connection
    transaction.begin()
    batches.runner().run(
        find_job(batches.desk.connection, claim.ref), viewed=True, following=batch
    )
    assert statuses(first, second, third) == ["COMPLETED", "ACTIVE", "ASSIGNED"]
    batches.bury()
    assert statuses(first, second, third) == ["COMPLETED", "ACTIVE", "PENDING"]
    assert [job._deaths for job in (first, second, third)] == [0, 1, 0]
    assert third._alone and third._policy is None
    assert check(batches.desk.database) == []
    while (claim := batch.take()) is not None:
        job = find_job(batches.desk.connection, claim.ref)
        assert not job._is_unbegun(claim.number) and not job._was_given(claim.number)
    batches.desk.agent.record.activate("again")
    transaction.commit()
    batches.desk.work()
    assert values(batches.desk)[:3] == [1, 1, 1]


@pytest.mark.spec("D18", "D6")
@pytest.mark.parametrize("when", ["in the call", "in the commit"])
def test_of_a_burial_and_the_end_of_one_that_begins_the_next_one_fails(
    when: str, batches: Batches, counters: list[Counter]
) -> None:
    def bury() -> None:
        if when == "in the call":
            batches.bury()
        else:
            transaction.get().addBeforeCommitHook(batches.bury)

    first = batches.put(bury)[0]
    second = put_adding(batches, 0)[0]
    with pytest.raises(Exception, match="taken from this worker"):
        batches.run()
    assert statuses(first, second) == ["ACTIVE", "PENDING"]
    assert second._deaths == 0
    assert check(batches.desk.database) == []


# Given back.


@pytest.mark.spec("D18")
def test_what_is_taken_from_a_worker_is_not_left_to_it(
    batches: Batches, counters: list[Counter]
) -> None:
    made = put_adding(batches, 0, 1, 2)
    taken = batches.claim()
    batch = batches.batch(taken)
    assert batch.take() is not None
    rest = batches.left.take_rest("worker")
    assert [claim.ref for claim in rest] == [job.ref for job in made[1:]]
    assert batches.left.left("worker") == 0 and batch.take() is None
    batch.connection = batches.desk.connection
    transaction.begin()
    batches.runner().run(made[0], viewed=True, following=batch)
    assert statuses(*made) == ["COMPLETED", "ASSIGNED", "ASSIGNED"]


@pytest.mark.spec("D18", "Q3")
def test_those_that_are_given_back_wait_where_they_did_and_are_run_alone(
    batches: Batches, counters: list[Counter]
) -> None:
    desk = batches.desk
    made = put_adding(batches, 0, 1, 2)
    desk.clock.advance(SECOND)
    taken = batches.claim()
    desk.put(other)
    before = desk.database.lastTransaction()
    batches.give_back(taken)
    [commit] = records_since(desk.database, before)
    assert desk.queue.telling_oids() & set(commit), "no other process hears of it"
    assert statuses(*made) == ["PENDING"] * 3
    assert check(desk.database) == []
    batches.give_back(taken)
    again = batches.claim()
    assert [each.job for each in again][:3] == made
    assert [(each.number, each.batch) for each in again] == [(1, False)] * 3 + [(-1, True)]
    # They are somebody else's by now.
    batches.give_back(taken)
    assert statuses(*made) == ["ASSIGNED"] * 3
    for each in again[:3]:
        desk.run(each.job)
    batches.run(again[3:])
    desk.settle()
    assert values(desk)[:3] == [1, 1, 1]
    assert [job._deaths for job in made] == [0] * 3
    assert len(desk.agent) == 0


@pytest.mark.spec("D18", "R4")
def test_one_that_is_given_back_and_has_begun_counts_as_interrupted(
    batches: Batches, counters: list[Counter]
) -> None:
    desk = batches.desk
    made = put_adding(batches, 0, 1)
    taken = batches.claim()
    batch = batches.batch(taken)
    assert batch.take() is not None
    batch.connection = desk.connection
    transaction.begin()
    batches.runner().run(made[0], viewed=True, following=batch)
    assert statuses(*made) == ["COMPLETED", "ACTIVE"]
    batches.give_back(taken)
    assert check(desk.database) == []
    assert desk.work() == 2  # the one that interrupts it, and itself
    assert statuses(*made) == ["COMPLETED"] * 2
    assert made[1]._policy is not None
    assert values(desk)[:2] == [1, 1]


@pytest.mark.spec("D18", "J17")
def test_one_that_was_cancelled_is_settled_instead_of_given_back(batches: Batches) -> None:
    made = batches.put(lambda: None, lambda: None)
    taken = batches.claim()
    batches.elsewhere(lambda connection: find_job(connection, made[0].ref).cancel())
    batches.give_back(taken)
    assert statuses(*made) == ["CALLBACKS", "PENDING"]
    assert list(batches.desk.agent) == []
    batches.work()
    assert statuses(*made) == ["COMPLETED"] * 2
    assert made[0] in batches.desk.agent.completed


@pytest.mark.spec("D18", "Q5")
@pytest.mark.parametrize("do", ["remove", "cancel", "retry"])
def test_one_that_was_given_back_is_like_any_other(do: str, batches: Batches) -> None:
    desk = batches.desk
    [job] = batches.put(lambda: 5)
    batches.give_back(batches.claim())
    if do == "remove":
        desk.queue.remove(job)
        desk.queue.put(job)
    else:
        job.cancel() if do == "cancel" else job.retry()
    transaction.commit()
    assert check(desk.database) == []
    desk.work()
    batches.work()
    assert job.status is Status.COMPLETED
    assert job.failed if do == "cancel" else job.result == 5


# By hand, and by others.


@pytest.mark.spec("D18", "J17")
def test_one_that_has_failed_in_a_batch_can_be_retried_by_hand(batches: Batches) -> None:
    desk = batches.desk
    called: list[int] = []

    def fail_first() -> int:
        called.append(1)
        if len(called) == 1:
            raise ValueError("no")
        return len(called)

    [job] = batches.put(fail_first)
    batches.run()
    desk.settle()
    job.retry()
    transaction.commit()
    batches.work()
    assert (job.status, job.result) == (Status.COMPLETED, 2)


@pytest.mark.spec("J2", "D18")
def test_an_alias_that_is_made_after_the_claim_holds(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = batches.desk
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "former", _former, raising=False)
    jobs = desk.queue.put_many([module.former] * 3)
    transaction.commit()
    monkeypatch.delattr(module, "former")
    set_alias(desk.connection, f"{__name__}:former", f"{__name__}:_newer")
    transaction.commit()
    taken = batches.claim()
    assert [each.batch for each in taken] == [True] * 3
    batches.run(taken)
    assert [job.result for job in jobs] == ["newer"] * 3


def _former() -> str:
    return "former"


_former.__qualname__ = _former.__name__ = "former"


def _newer() -> str:
    return "newer"


@pytest.mark.spec("J2", "D18")
def test_jobs_whose_callable_vanishes_are_parked_and_do_not_hold_others_up(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = batches.desk
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "former", _former, raising=False)
    made = desk.queue.put_many([module.former, plain, module.former])
    transaction.commit()
    desk.queue._sort_in()
    transaction.commit()
    monkeypatch.delattr(module, "former")
    # As in a process that was started since.
    environment(desk.database).kinds.clear()
    assert [(each.job, each.batch) for each in batches.claim()] == [(made[1], True)]
    assert statuses(*made) == ["PENDING", "ASSIGNED", "PENDING"]
    assert {name: count for name, (_, count) in desk.queue.parked().items()} == {
        f"{__name__}:former": 2
    }
    monkeypatch.setattr(module, "former", _former, raising=False)
    environment(desk.database).unresolved.clear()
    again = batches.claim()
    assert [(each.job, each.batch) for each in again] == [(made[0], True), (made[2], True)]
    batches.run(again)
    assert [made[0].result, made[2].result] == ["former"] * 2


@pytest.mark.spec("D17", "D18")
def test_a_claim_for_a_batch_is_known_to_those_who_ask(batches: Batches) -> None:
    made = batches.put(lambda: None, lambda: None)
    taken: list[Taken] = batches.claim()

    def look(connection: Any) -> None:
        queue = get_queue(connection)
        found = [find_job(connection, job.ref) for job in made]
        assert [job.status for job in found] == [Status.ASSIGNED] * 2
        assert list(queue) == [] and len(queue) == 0
        assert [job in queue for job in found] == [False] * 2

    batches.elsewhere(look)
    assert check(batches.desk.database) == []
    batches.run(taken)


@pytest.mark.spec("D10")
def test_a_wait_of_a_job_in_a_batch_ends_at_the_stop(batches: Batches) -> None:
    def stop() -> None:
        raise StopRequested("made up")

    first = batches.put(stop)[0]
    second = batches.put(lambda: 1)[0]
    taken = batches.claim()
    with pytest.raises(StopRequested):
        batches.run(taken)
    assert statuses(first, second) == ["ACTIVE", "ASSIGNED"]
