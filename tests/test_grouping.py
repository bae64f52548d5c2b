"""Groups of transactional jobs: who is in one, what it costs, and what goes wrong in it."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import transaction
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError

from perdure.model import (
    AbortedError,
    BadStatusError,
    Failure,
    GiveUp,
    Job,
    JobRef,
    NotStorableError,
    Retry,
    RetryPolicy,
    Status,
    StopRequested,
    check,
    find_job,
    get_queue,
    local,
    transactional,
)
from perdure.model.agent import Claim
from perdure.model.groupable import group_of
from perdure.model.grouping import Experience
from perdure.model.places import GROUPED_PER_PLACE
from support.callables import echo, takes_all
from support.desk import Counter, Desk, deed, fail_commit
from support.groups import Groups, records_since
from support.losable import LosableStorage

SECOND = timedelta(seconds=1)


@transactional
def marked(*args: Any) -> None:
    pass


def plain(*args: Any) -> None:
    pass


@transactional
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


# Who may be in a group.


WORDS = [
    # the job's, the function's, the agent's, the queue's
    (None, plain, None, None, False),
    (True, plain, None, None, True),
    (True, plain, False, False, True),
    (False, marked, True, True, False),
    (None, marked, None, None, True),
    (None, marked, False, False, True),
    (None, plain, True, None, True),
    (None, plain, True, False, True),
    (None, plain, False, True, False),
    (None, plain, None, True, True),
    (None, plain, None, False, False),
]


@pytest.mark.spec("J32", "Q2")
@pytest.mark.parametrize(("own", "function", "agents", "queues", "expected"), WORDS)
def test_the_word_of_the_job_goes_before_its_functions_its_agents_and_its_queues(
    own: Any, function: Any, agents: Any, queues: Any, expected: bool, groups: Groups
) -> None:
    desk = groups.desk
    desk.agent.transactional, desk.queue.transactional = agents, queues
    job = desk.put(function, transactional=own)
    assert bool(group_of(job, desk.agent)) is expected
    [taken] = groups.claim()
    assert taken.job is job and bool(taken.group) is expected
    assert (taken.number < 0) is expected


@pytest.mark.spec("J32")
def test_an_agents_word_holds_for_jobs_that_were_sorted_in_under_another_one(
    groups: Groups,
) -> None:
    desk = groups.desk
    desk.queue.transactional = True
    desk.put(plain)
    desk.queue._sort_in()
    desk.agent.transactional = False
    transaction.commit()
    assert [taken.group for taken in groups.claim()] == [""]


def with_quota(job: Job) -> None:
    job.quota_names = ("one",)


def with_deadline(job: Job) -> None:
    job.begin_by = SECOND


def with_policy(job: Job) -> None:
    job.get_retry_policy()


def with_deaths(job: Job) -> None:
    job._deaths = 1


def run_alone_before(job: Job) -> None:
    job._alone = True


def put_first_in_line(job: Job) -> None:
    job.retry()


@pytest.mark.spec("J32")
@pytest.mark.parametrize(
    "change", [with_quota, with_deadline, with_policy, with_deaths, run_alone_before]
)
def test_what_needs_more_than_a_group_gives_is_run_alone(
    change: Callable[[Job], None], groups: Groups
) -> None:
    queue = groups.desk.queue
    queue.quotas.create("one")
    job = Job(marked)
    change(job)
    groups.desk.put(job)
    assert group_of(job, groups.desk.agent) == ""
    [taken] = groups.claim()
    assert (taken.job, taken.group, taken.number) == (job, "", 1)


@pytest.mark.spec("J32")
def test_jobs_of_other_classes_coroutines_and_callbacks_are_in_no_group(groups: Groups) -> None:
    desk = groups.desk
    desk.queue.transactional = True
    made = [desk.put(OwnJob(marked)), desk.put(coroutine)]
    callback = made[0].add_callback(marked)
    first = desk.store(Job(marked))
    desk.queue.put_back(first)
    transaction.commit()
    assert [group_of(job, desk.agent) for job in (*made, callback, first)] == [""] * 4
    assert [taken.group for taken in groups.claim()] == [""] * 3


@pytest.mark.spec("J32", "J31")
def test_the_word_of_a_job_can_be_given_until_it_is_put(groups: Groups) -> None:
    [job] = groups.put(plain)
    with pytest.raises(BadStatusError, match="setting transactional needs NEW"):
        job.transactional = False
    with pytest.raises(TypeError, match="True, False or None, not 1"):
        Job(plain).transactional = 1  # type: ignore[assignment]
    assert job.transactional is True


@pytest.mark.spec("J32")
def test_what_cannot_be_marked_is_refused_with_what_to_do() -> None:
    with pytest.raises(NotStorableError, match=r"put\(…, transactional=True\)"):
        transactional(len)
    for refused in (Counter().add, functools.partial(plain, 1)):
        with pytest.raises(NotStorableError, match="has to be a function"):
            transactional(refused)


class Tool:
    @transactional
    @classmethod
    def of_the_class(cls) -> None:
        pass

    @transactional
    @staticmethod
    def of_nobody() -> None:
        pass


@pytest.mark.spec("J32")
def test_methods_of_classes_can_be_marked_like_functions(groups: Groups) -> None:
    jobs = [groups.desk.put(Tool.of_the_class), groups.desk.put(Tool.of_nobody)]
    assert [group_of(job) for job in jobs] == [job.callable_name for job in jobs]


@pytest.mark.spec("J32")
@pytest.mark.parametrize("agents", [None, True, False])
def test_what_the_queue_says_can_be_taken_back_while_jobs_wait(
    agents: Any, groups: Groups
) -> None:
    desk = groups.desk
    desk.queue.transactional = True
    desk.put(plain)
    desk.put(marked)
    desk.queue._sort_in()
    desk.queue.transactional, desk.agent.transactional = False, agents
    transaction.commit()
    assert [bool(taken.group) for taken in groups.claim()] == [bool(agents), True]


@pytest.mark.spec("D7")
def test_an_agent_with_a_chooser_claims_one_by_one(groups: Groups) -> None:
    desk = groups.desk
    groups.put(plain, plain)
    desk.agent.chooser = chooses
    transaction.commit()
    assert [taken.group for taken in groups.claim()] == ["", ""]


def chooses(agent: Any) -> Job | None:
    found: Job | None = agent.queue.claim()
    return found


@pytest.mark.spec("Q10", "D17")
def test_an_agent_with_a_filter_claims_for_groups_too(groups: Groups) -> None:
    groups.desk.agent.filter = takes_all
    transaction.commit()
    jobs = groups.put(plain, plain)
    assert [(taken.job, bool(taken.group)) for taken in groups.claim()] == [
        (job, True) for job in jobs
    ]


@pytest.mark.spec("Q3", "D17")
def test_jobs_for_groups_and_others_are_claimed_in_the_order_of_the_queue(groups: Groups) -> None:
    desk = groups.desk
    jobs = [
        desk.queue.put(function, transactional=word)
        for function, word in (
            (plain, True), (plain, None), (marked, None), (marked, None), (plain, False),
            (plain, True), (echo_nothing, True), (plain, None), (plain, True),
        )
    ]  # fmt: skip
    transaction.commit()
    taken = groups.claim()
    assert [each.job for each in taken] == jobs
    alone = [jobs.index(each.job) for each in taken if not each.group]
    assert alone == [1, 4, 7]


def echo_nothing() -> None:
    pass


@pytest.mark.spec("J11", "J10", "J32", "D17")
@pytest.mark.parametrize("change", [with_quota, with_deadline, put_first_in_line])
def test_a_waiting_job_that_comes_to_need_more_is_taken_out_of_its_line(
    change: Callable[[Job], None], groups: Groups
) -> None:
    desk = groups.desk
    desk.queue.quotas.create("one")
    job, other = groups.put(plain, plain)
    desk.queue._sort_in()
    transaction.commit()
    change(job)
    transaction.commit()
    assert check(desk.database) == []
    taken = groups.claim()
    assert {each.job: bool(each.group) for each in taken} == {job: False, other: True}
    assert check(desk.database) == []


# What it costs.


@pytest.mark.spec("D17", "X8")
def test_a_claim_for_a_group_writes_no_job_and_a_group_is_one_commit_with_one_record_for_each(
    groups: Groups,
) -> None:
    desk = groups.desk
    made = groups.put(*[lambda: None] * 9)
    oids = {job._p_oid for job in made}
    before = desk.database.lastTransaction()
    taken = groups.claim()
    [claimed] = records_since(desk.database, before)
    assert not oids & set(claimed)
    before = desk.database.lastTransaction()
    group = groups.run(taken)
    [ended] = records_since(desk.database, before)
    assert sorted(ended) == sorted(oids)
    before = desk.database.lastTransaction()
    desk.connection.cacheMinimize()
    for completion in group.completed:
        desk.agent.settle_completed(completion)
    assert [job._p_state for job in made] == [-1] * 9, "a job was loaded to be settled"
    transaction.commit()
    [settled] = records_since(desk.database, before)
    assert not oids & set(settled)
    assert statuses(*made) == ["COMPLETED"] * 9
    assert [job in desk.agent.completed for job in made] == [True] * 9
    assert len(desk.agent) == 0


@pytest.mark.spec("J6", "J12", "D17")
def test_results_and_effects_of_a_group_are_stored_together(
    groups: Groups, counters: list[Counter]
) -> None:
    made = groups.put(*[counter.add for counter in counters])
    group = groups.run()
    assert values(groups.desk) == [1] * 5
    assert [job.result for job in made] == [1] * 5
    assert [job.active_start and job.active_end and job.callbacks_end for job in made] == [
        groups.desk.clock.now()
    ] * 5
    assert groups.begun == groups.ended == [job.ref for job in made]
    groups.finish(group)
    assert [job.agent for job in made] == [groups.desk.agent] * 5


# What is seen of it.


@pytest.mark.spec("J4", "J18", "L1")
def test_a_job_in_a_group_sees_itself_active_and_others_see_it_assigned(groups: Groups) -> None:
    desk = groups.desk
    seen: list[Any] = []

    def look() -> None:
        job = local.get_job()
        assert local.get_queue() is desk.queue
        assert (local.get_agent_name(), local.get_dispatcher()) == ("main", desk.agent.record)
        seen.append((job.status, job.active_start == desk.clock.now(), job.agent is desk.agent))
        with pytest.raises(BadStatusError, match="is ACTIVE"):
            job.args = [1]
        with desk.elsewhere() as connection:
            found = find_job(connection, job.ref)
            seen.append((found.status, found.active_start, found.agent.name))
        assert check(desk.database) == []

    [job] = groups.put(look)
    assert statuses(job) == ["PENDING"]
    taken = groups.claim()
    assert statuses(job) == ["ASSIGNED"]
    assert job.agent is desk.agent and job in desk.agent and check(desk.database) == []
    groups.finish(groups.run(taken))
    assert seen == [(Status.ACTIVE, True, True), (Status.ASSIGNED, None, "main")]
    assert statuses(job) == ["COMPLETED"]
    with pytest.raises(BadStatusError, match="no job runs"):
        local.get_job()


# What others do to a job that was claimed for a group, and to one that runs in it.


def cancelled(job: Job) -> None:
    job.cancel()


def failed(job: Job) -> None:
    job.fail(KeyError("by hand"))


def altered(job: Job) -> None:
    job.args = [*job.args[:1], 7]


def called(job: Job) -> None:
    job(commit=True)


DEEDS = [
    (cancelled, AbortedError, [1, 0]),
    (failed, KeyError, [1, 0]),
    (altered, None, [1, 7]),
    (called, None, [1, 1]),
]


@pytest.mark.spec("J3", "J4", "J5", "J17", "D6")
@pytest.mark.parametrize("when", ["claimed", "running"])
@pytest.mark.parametrize(("deed_", "error", "expected"), DEEDS)
def test_what_is_done_to_a_job_of_a_group_holds_and_its_neighbour_is_run_once(
    when: str,
    deed_: Callable[[Job], None],
    error: Any,
    expected: list[int],
    groups: Groups,
    counters: list[Counter],
) -> None:
    desk = groups.desk
    done: list[bool] = []

    def act(connection: Any) -> None:
        deed_(find_job(connection, made[1].ref))

    def second(number: int = 1) -> None:
        root = local.get_job()._p_jar.root()
        root["counters"][1].add(number)

    def first() -> None:
        counters[0].add()
        if when == "running" and not done:
            done.append(True)
            groups.elsewhere(act)

    made = groups.put(first, second)
    taken = groups.claim()
    if when == "claimed":
        groups.elsewhere(act)
        assert check(desk.database) == []
    group = groups.run(taken)
    assert check(desk.database) == []
    groups.finish(group)
    groups.work()
    assert values(desk)[:2] == expected
    assert statuses(*made) == ["COMPLETED"] * 2
    assert not made[0].failed and made[1].failed is bool(error)
    if error:
        assert made[1].result.check(error)


@pytest.mark.spec("Q5", "J4")
def test_a_job_that_was_claimed_for_a_group_cannot_be_taken_out_or_put_first(
    groups: Groups,
) -> None:
    [job] = groups.put(plain)
    taken = groups.claim()
    with pytest.raises(LookupError, match="is ASSIGNED"):
        groups.desk.queue.remove(job)
    with pytest.raises(BadStatusError, match="is ASSIGNED"):
        job.retry()
    with pytest.raises(BadStatusError, match="is ASSIGNED"):
        job.begin_by = SECOND
    with pytest.raises(BadStatusError, match="is ASSIGNED"):
        groups.desk.queue.put(job)
    transaction.abort()
    groups.finish(groups.run(taken))
    assert statuses(job) == ["COMPLETED"]


def removed(job: Job) -> None:
    get_queue(job._p_jar).remove(job)


def given_a_deadline(job: Job) -> None:
    job.begin_by = SECOND


@pytest.mark.spec("Q7", "C1")
@pytest.mark.parametrize("sorted_in", [False, True])
@pytest.mark.parametrize(
    "deed_", [cancelled, failed, removed, given_a_deadline, put_first_in_line, with_quota]
)
def test_of_a_claim_for_a_group_and_what_is_done_to_a_waiting_job_one_fails(
    deed_: Callable[[Job], None], sorted_in: bool, groups: Groups
) -> None:
    desk = groups.desk
    desk.queue.quotas.create("one")
    job, _ = groups.put(plain, plain)
    if sorted_in:
        desk.queue._sort_in()
        transaction.commit()

    def act(connection: Any) -> None:
        deed_(find_job(connection, job.ref))
        groups.claim()

    with pytest.raises(ConflictError):
        groups.elsewhere(act)
    assert statuses(job) == ["ASSIGNED"] and check(desk.database) == []


@pytest.mark.spec("J13", "L2")
def test_annotations_of_a_job_in_a_group_are_kept_whoever_sets_them(groups: Groups) -> None:
    desk = groups.desk

    def annotate() -> None:
        job = local.get_job()
        job.annotations["own"] = 1
        local.set_live_annotation("live", 2)
        assert local.get_live_annotation("live") == 2

        def act(connection: Any) -> None:
            find_job(connection, job.ref).annotations["others"] = 3

        groups.elsewhere(act)

    [job] = groups.put(annotate)
    group = groups.run()
    assert len(group.completed) == 1
    groups.finish(group)
    assert dict(job.annotations) == {"own": 1, "live": 2, "others": 3}
    assert not desk.queue.side and job in desk.agent.completed


# Callbacks.


@pytest.mark.spec("J20", "J22", "D17")
def test_callbacks_of_a_job_in_a_group_run_once(groups: Groups, counters: list[Counter]) -> None:
    desk = groups.desk
    job = Job(deed(counters[0].add))
    job.transactional = True
    job.add_callback(deed(lambda result: counters[1].add(result)))
    desk.put(job)
    [other] = groups.put(counters[2].add)
    group = groups.run()
    assert statuses(job, other) == ["CALLBACKS", "COMPLETED"]
    assert check(desk.database) == []
    groups.finish(group)
    assert statuses(job) == ["COMPLETED"]
    assert values(desk)[:3] == [1, 1, 1]


@pytest.mark.spec("J22")
@pytest.mark.parametrize("when", ["claimed", "itself", "running", "completed", "settled"])
def test_a_late_callback_of_a_job_in_a_group_runs_once_whenever_it_is_added(
    when: str, groups: Groups, counters: list[Counter]
) -> None:
    desk = groups.desk
    callback = deed(lambda result: counters[1].add())

    def add() -> None:
        def act(connection: Any) -> None:
            find_job(connection, job.ref).add_callback(callback)

        groups.elsewhere(act)

    def run() -> None:
        counters[0].add()
        if when == "itself":
            local.get_job().add_callback(callback)
        elif when == "running":
            add()

    [job] = groups.put(run)
    taken = groups.claim()
    if when == "claimed":
        add()
    group = groups.run(taken)
    if when == "completed":
        assert statuses(job) == ["COMPLETED"]
        add()
    groups.finish(group)
    if when == "settled":
        add()
    groups.work()
    assert values(desk)[:2] == [1, 1]
    assert [each.status for each in job.callbacks] == [Status.COMPLETED]
    assert not desk.queue.side


@pytest.mark.spec("J22")
def test_a_callback_that_is_added_in_the_instant_of_the_groups_commit_runs_once(
    groups: Groups, counters: list[Counter]
) -> None:
    """It sees the job before that commit, and is committed after that job was looked at."""
    desk = groups.desk
    added: list[bool] = []

    class Late:
        """A data manager that lets another one add it while the group's commit is under way."""

        def sortKey(self) -> str:  # noqa: N802
            return "\0"

        def tpc_begin(self, transaction: Any) -> None:
            added.append(True)

            def act(connection: Any) -> None:
                callback = deed(lambda result: counters[1].add())
                find_job(connection, job.ref).add_callback(callback)

            groups.elsewhere(act)

        def abort(self, transaction: Any) -> None:
            pass

        commit = tpc_vote = tpc_finish = tpc_abort = abort

    def run() -> None:
        counters[0].add()
        if not added:
            transaction.get().join(Late())

    [job] = groups.put(run)
    group = groups.run()
    groups.finish(group)
    groups.work()
    assert added == [True]
    assert values(desk)[:2] == [1, 1]
    assert [each.status for each in job.callbacks] == [Status.COMPLETED]


# A job that cannot be in it.


def raises() -> None:
    raise ValueError("no")


def exits() -> None:
    raise SystemExit("no")


def commits() -> None:
    transaction.commit()


def aborts() -> None:
    transaction.abort()


def begins() -> None:
    transaction.begin()


def commits_and_hides_it() -> str:
    try:
        transaction.commit()
    except BadStatusError:
        transaction.abort()
    return "hidden"


def dooms() -> None:
    transaction.doom()


def refuses() -> None:
    fail_commit(ValueError("refused"))


def returns_a_job() -> Job:
    return Job(echo, "inner")


def returns_a_future() -> Any:
    future: Any = concurrent.futures.Future()
    future.set_result("outcome")
    return future


def returns_a_failure() -> Failure:
    return Failure(ValueError("returned"))


def returns_a_coroutine() -> Any:
    return awaited()


async def awaited() -> str:
    return "awaited"


def returns_what_cannot_be_stored() -> Any:
    return lambda: None


# What it does, how often it is called in all, its effect, and what becomes of it.
TROUBLES = [
    (raises, 2, 0, ValueError),
    (commits, 2, 1, None),
    (aborts, 2, 0, None),
    (begins, 2, 0, None),
    (commits_and_hides_it, 2, 1, "hidden"),
    (dooms, 2, 0, transaction.interfaces.DoomedTransaction),
    (refuses, 2, 0, ValueError),
    (returns_a_job, 2, 1, "inner"),
    (returns_a_future, 2, 1, "outcome"),
    (returns_a_failure, 2, 1, ValueError),
    (returns_what_cannot_be_stored, 2, 0, NotStorableError),
]


@pytest.fixture(params=[False, True], ids=["unprepared", "careful"])
def careful(request: Any, groups: Groups) -> bool:
    """Whether it is known that such jobs fail, so that there are savepoints."""
    if request.param:
        groups.experience.failed("support.desk:perform")
    return bool(request.param)


@pytest.mark.spec("J32", "D17", "J6", "J19")
@pytest.mark.parametrize(
    ("trouble", "calls", "effect", "outcome"), TROUBLES, ids=[row[0].__name__ for row in TROUBLES]
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_job_that_cannot_be_in_a_group_is_run_alone_and_its_neighbours_once(
    trouble: Callable[[], Any],
    calls: int,
    effect: int,
    outcome: Any,
    place: int,
    careful: bool,
    groups: Groups,
    counters: list[Counter],
) -> None:
    called: list[str] = []

    def troubled() -> Any:
        called.append("called")
        counters[3].add()
        return trouble()

    acts: list[Callable[[], Any]] = [counters[0].add, counters[1].add]
    acts.insert(place, troubled)
    made = groups.put(*acts)
    job = made.pop(place)
    group = groups.run()
    at_commit = trouble in (dooms, refuses)
    assert Claim(job.ref, -1) in group.alone
    assert len(group.completed) == (0 if at_commit else 2)
    assert values(groups.desk)[3] == 0 and check(groups.desk.database) == []
    groups.finish(group)
    groups.work()
    assert values(groups.desk)[:4] == [1, 1, 0, effect]
    assert [each.result for each in made] == [1, 1]
    assert len(called) == calls
    assert statuses(job, *made) == ["COMPLETED"] * 3
    if isinstance(outcome, type):
        assert job.result.check(outcome)
    else:
        assert job.result == outcome


@pytest.mark.spec("D11", "D17")
def test_what_is_no_exception_takes_no_neighbour_with_it(
    groups: Groups, counters: list[Counter]
) -> None:
    made = groups.put(counters[0].add, exits, counters[1].add)
    group = groups.run()
    assert group.alone == [Claim(made[1].ref, -1)]
    assert statuses(*made) == ["COMPLETED", "ASSIGNED", "COMPLETED"]
    with pytest.raises(SystemExit):
        groups.finish(group)
    transaction.abort()
    assert statuses(*made) == ["COMPLETED", "ACTIVE", "COMPLETED"]


@pytest.mark.spec("J32")
def test_a_coroutine_that_a_plain_function_returns_is_closed_and_the_job_run_alone(
    groups: Groups,
) -> None:
    [job] = groups.put(returns_a_coroutine)
    group = groups.run()
    assert group.alone == [Claim(job.ref, -1)]
    groups.finish(group)
    assert job.status is Status.COMPLETED


class Noting(RetryPolicy):
    """Has an error tried again once, and keeps what it was asked."""

    def on_receive(self, message: Any) -> Any:
        self.data["asked"] = [*self.data.get("asked", ()), type(message).__name__]
        return Retry() if len(self.data["asked"]) < 2 else GiveUp()


@pytest.mark.spec("R1", "R5", "D17")
def test_a_policy_is_asked_of_what_happens_alone_and_of_nothing_in_a_group(
    careful: bool, groups: Groups, counters: list[Counter]
) -> None:
    calls: list[Any] = []

    def fail() -> None:
        calls.append(local.get_job()._policy)
        raise ValueError("no")

    groups.put(counters[0].add)
    [job] = groups.put(fail, retry_policy_factory=Noting)
    groups.finish(groups.run())
    assert job.get_retry_policy().data["asked"] == ["JobErrored", "JobErrored"]
    assert len(calls) == 3 and calls[0] is None and job.failed


# Taking back.


class Noticing:
    """A data manager with savepoints, or without."""

    def __init__(self) -> None:
        self.finished = 0

    def sortKey(self) -> str:  # noqa: N802
        return "~noticing"

    def abort(self, transaction: Any) -> None:
        pass

    tpc_begin = commit = tpc_vote = tpc_abort = abort

    def tpc_finish(self, transaction: Any) -> None:
        self.finished += 1


@pytest.mark.spec("D17")
def test_savepoints_are_made_only_where_there_is_something_to_keep(
    groups: Groups, counters: list[Counter], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    savepoint = transaction.manager.savepoint

    def counted(optimistic: bool = False) -> Any:
        made.append(optimistic)
        return savepoint(optimistic)

    monkeypatch.setattr(groups.runner._manager, "savepoint", counted)
    acts = [plain, raises, counters[0].add, raises, counters[1].add]
    groups.put(*acts)
    group = groups.run()
    assert (len(group.alone), len(group.completed)) == (2, 3)
    groups.finish(group)
    assert values(groups.desk)[:2] == [1, 1]
    made.clear()
    groups.put(*acts)
    group = groups.run()
    # Once there was one that is not to be called again.
    assert made == [True] * 4
    assert (len(group.alone), len(group.completed)) == (2, 3)
    groups.finish(group)
    assert values(groups.desk)[:2] == [2, 2]


@pytest.mark.spec("D17")
def test_a_neighbour_that_writes_where_there_are_no_savepoints_is_called_again_without_the_other(
    careful: bool, groups: Groups, counters: list[Counter]
) -> None:
    managers: list[Noticing] = []

    def join() -> None:
        counters[0].add()
        managers.append(Noticing())
        transaction.get().join(managers[-1])

    made = groups.put(join, raises)
    group = groups.run()
    assert group.alone == [Claim(made[1].ref, -1)]
    assert [manager.finished for manager in managers] == [0, 1]
    assert values(groups.desk)[0] == 1
    groups.finish(group)


@pytest.mark.spec("D17", "J6")
def test_hooks_of_a_job_that_was_taken_back_are_not_called_and_those_of_its_neighbours_once(
    careful: bool, groups: Groups, counters: list[Counter]
) -> None:
    heard: list[str] = []

    def set_hooks(name: str) -> None:
        current = transaction.get()
        current.addBeforeCommitHook(lambda: heard.append(f"{name} before"))
        current.addAfterCommitHook(lambda done: heard.append(f"{name} after") if done else None)

    def good() -> None:
        counters[0].add()
        set_hooks("good")

    def bad() -> None:
        set_hooks("bad")
        raise ValueError("no")

    made = groups.put(good, bad, good)
    group = groups.run()
    assert group.alone == [Claim(made[1].ref, -1)]
    assert heard == ["good before"] * 2 + ["good after"] * 2
    groups.finish(group)
    assert values(groups.desk)[0] == 2


@pytest.mark.spec("D17")
def test_an_abort_that_fails_costs_nobody_anything(
    groups: Groups, counters: list[Counter]
) -> None:
    tries: list[bool] = []

    def refuse() -> None:
        tries.append(True)
        if len(tries) < 3:
            fail_commit(ValueError("this one cannot even abort"), "abort")
        if len(tries) < 2:
            raise ValueError("no")

    made = groups.put(counters[0].add, refuse)
    group = groups.run()
    assert group.alone == [Claim(made[1].ref, -1)]
    groups.finish(group)
    assert statuses(*made) == ["COMPLETED"] * 2 and values(groups.desk)[0] == 1


@pytest.mark.spec("D17", "J3")
def test_what_was_called_before_a_neighbour_was_taken_back_counts_only_if_nothing_has_changed(
    groups: Groups,
) -> None:
    """A job without effects is not called again, and its arguments may be altered meanwhile."""

    def fail_later() -> None:
        def act(connection: Any) -> None:
            altered(find_job(connection, job.ref))

        if not done:
            done.append(True)
            groups.elsewhere(act)
        raise ValueError("no")

    done: list[bool] = []
    job = groups.desk.put(Job(deed(lambda *args: list(args))), transactional=True)
    [failing] = groups.put(fail_later)
    group = groups.run()
    groups.finish(group)
    assert failing.failed
    assert job.result == [7], "it has the result of arguments that it has no more"


@pytest.mark.spec("D17")
def test_a_guard_of_a_job_without_effects_holds_when_a_neighbour_is_taken_back(
    careful: bool, groups: Groups, counters: list[Counter]
) -> None:
    """What it has only read is to be current at the commit, as it has asked for."""
    seen: list[int] = []

    def guarded() -> None:
        counters[0]._p_activate()
        seen.append(counters[0].value)
        groups.desk.connection.readCurrent(counters[0])

    def fail_later() -> None:
        if len(seen) == 1:

            def act(connection: Any) -> None:
                connection.get(counters[0]._p_oid).add()

            groups.elsewhere(act)
        raise ValueError("no")

    job, _ = groups.put(guarded, fail_later)
    groups.finish(groups.run())
    # Alone, it sees what the other one has done meanwhile.
    assert seen[0] == 0 and len(seen) == 2


@pytest.mark.spec("D17")
def test_a_neighbour_that_another_job_of_the_group_has_cancelled_in_vain_is_run(
    careful: bool, groups: Groups, counters: list[Counter]
) -> None:
    """The one that cancels it raises in the end, and does not do so again."""
    tries: list[bool] = []

    def cancel() -> None:
        tries.append(True)
        if len(tries) == 1:
            find_job(groups.desk.connection, job.ref).cancel()
            raise ValueError("no")

    _, job = groups.put(cancel, counters[0].add)
    groups.finish(groups.run())
    groups.work()
    assert values(groups.desk)[0] == 1 and statuses(job) == ["COMPLETED"]


@pytest.mark.spec("J17", "D17")
def test_a_neighbour_that_another_job_of_the_group_cancels_is_not_run(
    groups: Groups, counters: list[Counter]
) -> None:
    def cancel() -> None:
        job.cancel()

    _, job = groups.put(cancel, counters[0].add)
    groups.finish(groups.run())
    groups.work()
    assert values(groups.desk)[0] == 0
    assert job.result.check(AbortedError) and job in groups.desk.agent.completed


@pytest.mark.spec("D17")
def test_a_neighbour_whose_cancelling_was_not_committed_is_run(
    groups: Groups, counters: list[Counter]
) -> None:
    """The commit of the group fails, and the one that cancels does not do so again."""
    tries: list[bool] = []

    def cancel() -> None:
        tries.append(True)
        if len(tries) == 1:
            job.cancel()
            fail_commit(ValueError("refused"))

    first, job, last = groups.put(cancel, counters[0].add, counters[1].add)
    group = groups.run()
    # All that were claimed are told of, or what is not is found by the next poll only.
    told = {claim.ref for claim in (*group.alone, *group.rest)}
    assert told == {first.ref, job.ref, last.ref}
    groups.finish(group)
    groups.work()
    assert values(groups.desk)[:2] == [1, 1]


# Commits that fail.


@pytest.mark.spec("R12", "D17")
def test_after_a_conflict_all_are_run_one_by_one_and_nothing_is_lost_or_done_twice(
    groups: Groups, counters: list[Counter]
) -> None:
    done: list[bool] = []

    def add() -> None:
        counters[0].add()
        if not done:
            done.append(True)
            groups.elsewhere(lambda connection: connection.get(counters[0]._p_oid).add())

    made = groups.put(add, counters[1].add, counters[2].add)
    group = groups.run()
    assert (group.completed, len(group.alone)) == ([], 3)
    assert values(groups.desk)[:3] == [1, 0, 0]
    groups.finish(group)
    assert values(groups.desk)[:3] == [2, 1, 1]
    assert not any(job.failed for job in made)
    # The next ones of that name are run beside no other.
    inside: list[int] = []
    groups.put(lambda: inside.append(groups.lane._waiting_alone))
    groups.finish(groups.run())
    assert inside == [1]


@pytest.mark.spec("R12")
def test_groups_are_run_beside_others_again_after_some_without_conflict(groups: Groups) -> None:
    groups.experience.conflicted(["m:f"])
    groups.experience.failed("m:g")
    begins = [groups.experience.begins({"m:f", "m:g"}) for _ in range(501)]
    assert [sum(column) for column in zip(*begins, strict=True)] == [20, 500]
    assert begins[0] == (True, True) and begins[-1] == (False, False)


@pytest.mark.spec("R11", "D17")
@pytest.mark.parametrize("callbacks", [0, 1])
def test_a_commit_that_raised_and_took_place_is_not_made_again(
    callbacks: int, groups: Groups, counters: list[Counter]
) -> None:
    tries: list[bool] = []

    def add() -> None:
        counters[0].add()
        tries.append(True)
        if len(tries) == 1:
            fail_commit(ClientDisconnected("made up"), "tpc_finish")

    job = Job(deed(add))
    job.transactional = True
    for _ in range(callbacks):
        job.add_callback(deed(lambda result: counters[2].add()))
    groups.desk.put(job)
    [other] = groups.put(counters[1].add)
    group = groups.run()
    assert len(group.completed) == 2 - callbacks
    groups.finish(group)
    groups.work()
    assert values(groups.desk)[:3] == [1, 1, callbacks]
    assert statuses(job, other) == ["COMPLETED"] * 2
    assert len(tries) == 1


@pytest.mark.spec("C2", "D17")
def test_a_group_whose_database_is_away_is_left_to_be_run_alone() -> None:
    storage = LosableStorage()
    desk = Desk(storage)
    groups = Groups(desk)
    counter = desk.root["counter"] = Counter()
    transaction.commit()

    def lose() -> None:
        counter.add()
        if not groups.ended:
            storage.away.set()

    made = groups.put(lose, lose)
    taken = groups.claim()
    counter._p_activate()
    made[1]._p_deactivate()
    group = groups.run(taken)
    storage.away.clear()
    assert {claim.ref for claim in group.alone} == {job.ref for job in made}
    groups.ended.append("no more")
    groups.finish(group)
    assert statuses(*made) == ["COMPLETED"] * 2
    assert counter.value == 2 and check(desk.database) == []
    desk.close()


# Time.


@pytest.mark.spec("D17")
def test_a_group_that_has_lasted_is_committed_and_the_others_are_left_for_another(
    groups: Groups, counters: list[Counter]
) -> None:
    desk = groups.desk

    def take_time() -> None:
        counters[0].add()
        desk.clock.advance(timedelta(milliseconds=60))

    made = groups.put(*[take_time] * 5)
    group = groups.run()
    assert (len(group.completed), len(group.rest), group.alone) == (2, 3, [])
    assert statuses(*made) == ["COMPLETED"] * 2 + ["ASSIGNED"] * 3
    assert check(desk.database) == []
    groups.finish(group)
    assert values(desk)[0] == 5


@pytest.mark.spec("J4", "D17")
def test_each_job_of_a_group_began_when_it_was_called(groups: Groups) -> None:
    desk = groups.desk

    def take_time() -> None:
        desk.clock.advance(timedelta(milliseconds=7))

    made = groups.put(*[take_time] * 4)
    desk.clock.advance(timedelta(hours=3))
    start = desk.clock.now()
    groups.run()
    passed = [(job.active_start - start) // timedelta(milliseconds=1) for job in made]
    assert passed == [0, 7, 14, 21]
    assert {job.active_end - start for job in made} == {timedelta(milliseconds=28)}


@pytest.mark.spec("D17")
def test_a_call_that_was_taken_back_counts_among_what_a_group_has_lasted(
    groups: Groups, counters: list[Counter]
) -> None:
    desk = groups.desk

    def fail_late() -> None:
        if desk.clock.now() == start:
            return
        desk.clock.advance(timedelta(seconds=1))
        raise ValueError("no")

    def step() -> None:
        counters[0].add()
        desk.clock.advance(timedelta(milliseconds=1))

    groups.experience.failed(group_of(groups.put(fail_late)[0]))
    groups.work()
    made = groups.put(step, fail_late, step, step)
    start = desk.clock.now()
    group = groups.run()
    # It is prepared for the failure, so that the first one stays called.
    assert [len(each) for each in (group.completed, group.alone, group.rest)] == [1, 1, 2]
    assert statuses(*made) == ["COMPLETED", "ASSIGNED", "ASSIGNED", "ASSIGNED"]


@pytest.mark.spec("D17")
def test_a_callable_is_known_by_the_average_of_its_latest_calls() -> None:
    known = Experience()
    assert not known.is_quick("m:f")
    known.took("m:f", 0.0)
    assert known.is_quick("m:f") and not known.is_quick("m:g")
    # One call that had to wait for the interpreter says nothing of the others.
    known.took("m:f", 0.2)
    assert known.is_quick("m:f")
    known.took("m:f", 0.2)
    assert not known.is_quick("m:f")
    quick = 0
    while not known.is_quick("m:f"):
        quick += 1
        known.took("m:f", 0.0)
    assert 5 < quick < 50
    known.took("m:h", 0.1)
    assert not known.is_quick("m:h")


@pytest.mark.spec("D17")
def test_of_calls_as_many_go_into_a_group_as_are_over_before_it_has_lasted() -> None:
    known = Experience()
    for name, seconds in (("m:f", 0.004), ("m:slow", 0.02), ("m:z", 0.0)):
        known.took(name, seconds)
    assert known.with_another("m:unknown", 0) is None
    assert known.with_another("m:slow", 0) is None
    assert known.with_another("m:f", 0.09) == pytest.approx(0.094)
    assert known.with_another("m:f", 0.097) is None
    assert known.with_another("m:z", 0.097) == 0.097
    # However small an average becomes, under a clock that stands still.
    known.took("m:tiny", 0.004)
    for _ in range(25_000):
        known.took("m:tiny", 0.0)
    assert 0 <= known.with_another("m:tiny", 0) < 1e-300
    assert known.parts_of("m:tiny") == 1


@pytest.mark.spec("J4", "D17")
def test_a_wall_clock_that_is_set_while_a_group_runs_makes_no_call_longer_or_shorter(
    groups: Groups,
) -> None:
    desk = groups.desk
    steps = iter([timedelta(0), timedelta(hours=-1), timedelta(hours=2), timedelta(0)])

    def take_time() -> None:
        desk.clock.jump_wall(next(steps))
        desk.clock.advance(timedelta(milliseconds=7))

    made = groups.put(*[take_time] * 4)
    groups.run()
    lasted = [(job.active_end - job.active_start) // timedelta(milliseconds=1) for job in made]
    assert lasted == [28, 21, 14, 7]


@pytest.mark.spec("D17", "D7")
def test_quick_jobs_share_a_place_and_others_have_one_of_their_own(groups: Groups) -> None:
    desk = groups.desk
    desk.agent.size = 2
    groups.put(*[plain] * (3 * GROUPED_PER_PLACE))
    agent = desk.agent
    assert len(agent.claim_jobs(lambda name: False, {})) == 2
    transaction.abort()
    taken = agent.claim_jobs(lambda name: True, {})
    assert len(taken) == 2 * GROUPED_PER_PLACE
    assert agent.claim_jobs(lambda name: True, {each.job._p_oid: 1 for each in taken}) == []
    transaction.abort()
    agent.size = 0
    assert agent.claim_jobs(lambda name: True, {}) == []


@pytest.mark.spec("D17", "D7")
def test_of_calls_as_many_share_a_place_as_two_groups_last() -> None:
    known = Experience()
    for name, seconds in (("m:z", 0.0), ("m:f", 0.001), ("m:g", 0.005), ("m:h", 0.02)):
        known.took(name, seconds)
    parts = [known.parts_of(f"m:{each}") for each in ("z", "f", "g", "h", "unknown")]
    # So many times 5 ms are the 200 ms of two groups.
    assert parts == [1, 1, 3, 0, 0] and GROUPED_PER_PLACE // 3 == 42


@pytest.mark.spec("D17", "D7")
def test_jobs_share_a_place_by_the_time_that_they_take(groups: Groups) -> None:
    agent = groups.desk.agent
    agent.size = 2
    groups.put(*[plain] * 100)
    taken = agent.claim_jobs(lambda name: 50, {})
    assert len(taken) == 5 and {each.parts for each in taken} == {50}
    held = {each.job._p_oid: each.parts for each in taken}
    assert agent.claim_jobs(lambda name: 7, held) == []
    assert len(agent.claim_jobs(lambda name: 3, held)) == 2
    transaction.abort()
    agent.size = 2
    # Whatever it would take by now.
    taken = agent.claim_jobs(lambda name: 1, {})
    assert len(taken) == 100


@pytest.mark.spec("D17", "D7")
def test_beside_a_job_that_is_alone_quick_ones_share_what_is_left(groups: Groups) -> None:
    desk = groups.desk
    desk.agent.size = 2
    alone = desk.put(plain)
    groups.put(*[plain] * (2 * GROUPED_PER_PLACE))
    taken = groups.claim()
    assert [each.job for each in taken if not each.group] == [alone]
    assert len(taken) == 1 + GROUPED_PER_PLACE


# Burial and stopping.


@pytest.mark.spec("D4", "D6", "D17", "J18", "C10")
@pytest.mark.parametrize("when", ["claimed", "running", "returned"])
def test_nothing_is_committed_for_a_group_that_was_taken_away_and_nobody_is_to_blame(
    when: str, groups: Groups, counters: list[Counter]
) -> None:
    desk = groups.desk
    buried: list[bool] = []

    def bury_once() -> None:
        if not buried:
            buried.append(True)
            groups.bury()

    def first() -> None:
        counters[0].add()
        if when == "running":
            bury_once()

    def last() -> None:
        counters[1].add()
        if when == "returned":
            bury_once()

    made = groups.put(first, last)
    taken = groups.claim()
    if when == "claimed":
        bury_once()
    group = groups.run(taken)
    assert group.completed == []
    assert statuses(*made) == ["PENDING"] * 2 and values(desk)[:2] == [0, 0]
    assert check(desk.database) == []
    assert [job._alone for job in made] == [True] * 2
    assert [(job._deaths, job._policy) for job in made] == [(0, None)] * 2
    for claim in (*group.alone, *group.reassigned):
        assert not find_job(desk.connection, claim.ref)._is_held(desk.agent, claim.number)
    desk.agent.record.activate("again")
    transaction.commit()
    again = groups.claim()
    assert [(each.job, each.group) for each in again] == [(job, "") for job in made]
    for each in again:
        desk.run(each.job)
    assert values(desk)[:2] == [1, 1]


@pytest.mark.spec("D6", "Q7")
@pytest.mark.parametrize("first", ["claim", "burial"])
def test_of_a_claim_for_a_group_and_the_burial_of_its_dispatcher_one_fails(
    first: str, groups: Groups
) -> None:
    desk = groups.desk
    [job] = groups.put(plain)
    agent = desk.agent
    transaction.begin()
    assert [each.job for each in agent.claim_jobs(lambda name: True, {})] == [job]
    if first == "burial":
        groups.bury()
        with pytest.raises(ConflictError):
            transaction.commit()
        transaction.abort()
        assert statuses(job) == ["PENDING"]
        return

    def act(connection: Any) -> None:
        get_queue(connection).dispatchers[agent.record.uuid].deactivate()
        transaction.commit()

    with pytest.raises(ConflictError):
        groups.elsewhere(act)
    assert statuses(job) == ["ASSIGNED"]


@pytest.mark.spec("D10", "D17")
def test_a_group_is_not_gone_on_with_once_the_system_stops(
    groups: Groups, counters: list[Counter]
) -> None:
    def stop() -> None:
        counters[0].add()
        groups.desk.stop.set()

    made = groups.put(stop, counters[1].add)
    group = groups.run()
    assert {claim.ref for claim in group.stopped} == {job.ref for job in made}
    assert values(groups.desk)[:2] == [0, 0]
    assert statuses(*made) == ["ASSIGNED"] * 2


@pytest.mark.spec("D11")
def test_a_job_may_raise_what_ends_waits_at_a_stop(
    groups: Groups, counters: list[Counter]
) -> None:
    def stop() -> None:
        raise StopRequested("made up")

    made = groups.put(stop, counters[1].add)
    group = groups.run()
    assert {claim.ref for claim in group.alone} == {job.ref for job in made}
    assert group.stopped == []


# What is done.


@pytest.mark.spec("D8", "D17")
def test_a_job_of_a_group_is_kept_for_as_long_as_it_says(groups: Groups) -> None:
    desk = groups.desk
    short = Job(deed(plain))
    short.transactional, short.keep_completed = True, timedelta(days=1)
    desk.put(short)
    [usual] = groups.put(plain)
    groups.finish(groups.run())
    desk.clock.advance(timedelta(days=3))
    desk.agent.forget(desk.clock.now())
    transaction.commit()
    assert (short.forgotten, usual.forgotten) == (True, False)
    desk.clock.advance(timedelta(days=7))
    desk.agent.forget(desk.clock.now())
    assert usual.forgotten


@pytest.mark.spec("D13", "D17")
def test_what_is_settled_without_being_loaded_is_counted(groups: Groups) -> None:
    groups.put(plain, raises, plain)
    groups.finish(groups.run())
    completed = groups.desk.agent.completed
    assert (len(completed), sum(job.failed for job in completed)) == (3, 1)
    assert check(groups.desk.database) == []


@pytest.mark.spec("D17", "J22")
def test_settling_without_a_look_at_the_job_is_for_queues_without_late_additions(
    groups: Groups, counters: list[Counter]
) -> None:
    [job, other] = groups.put(plain, plain)
    group = groups.run()

    def act(connection: Any) -> None:
        found = find_job(connection, other.ref)
        found._p_jar.readCurrent(found)
        get_queue(connection).side.make(found).add_callback(
            Job(deed(lambda *told: counters[0].add()))
        )

    groups.elsewhere(act)
    transaction.begin()
    assert groups.desk.queue.side
    groups.finish(group)
    groups.work()
    assert values(groups.desk)[0] == 1 and not groups.desk.queue.side


@pytest.mark.spec("D17")
def test_to_settle_again_changes_nothing(groups: Groups) -> None:
    groups.put(plain, plain)
    group = groups.run()
    groups.finish(group)
    before = groups.desk.database.lastTransaction()
    for completion in group.completed:
        groups.desk.agent.settle_completed(completion)
        groups.desk.agent.settle_completed(completion._replace(number=-2))
    transaction.commit()
    assert records_since(groups.desk.database, before) == []


@pytest.mark.spec("D17")
def test_a_completion_that_names_another_database_settles_nothing(groups: Groups) -> None:
    agent = groups.desk.agent
    groups.put(plain)
    (completion,) = groups.run().completed
    agent.settle_completed(completion._replace(ref=JobRef(completion.ref.oid, "shop")))
    assert (len(agent), agent.kept(failed=False)) == (1, 0)
    agent.settle(JobRef(completion.ref.oid, "shop"), completion.number)
    assert (len(agent), agent.kept(failed=False)) == (1, 0)
    agent.settle_completed(completion)
    assert (len(agent), agent.kept(failed=False)) == (0, 1)
    transaction.commit()


@pytest.mark.spec("D8", "D10", "D17")
def test_jobs_that_are_settled_together_are_counted_by_day_and_kept_each_for_its_own_time(
    groups: Groups,
) -> None:
    agent, day = groups.desk.agent, timedelta(days=1)
    made = groups.put(*[lambda: None] * 4)
    made[1].keep_completed = 30 * day
    transaction.commit()
    group = groups.run()
    first, second, third, fourth = group.completed
    next_day = day // timedelta(microseconds=1) + fourth.ended
    agent.settle_completed(
        first, second, third._replace(failed=True), fourth._replace(ended=next_day), first
    )
    transaction.commit()
    assert (agent.kept(failed=False), agent.kept(failed=True), len(agent)) == (3, 1, 0)
    counts = [numbers for _, numbers in agent.day_counts()]
    assert counts == [(2, 1), (1, 0)]
    days = agent.completed.counts()
    # Up to a whole day.
    today = -(-first.ended // (day // timedelta(microseconds=1)))
    assert days == {
        (today + 7, False): 1, (today + 30, False): 1, (today + 7, True): 1,
        (today + 8, False): 1,
    }  # fmt: skip


@pytest.mark.spec("D8", "J4")
def test_a_failed_job_that_is_run_once_more_may_be_in_a_group_again(
    groups: Groups, counters: list[Counter]
) -> None:
    tries: list[bool] = []

    def fail_at_first() -> None:
        tries.append(True)
        if len(tries) < 3:
            raise ValueError("no")
        counters[0].add()

    [job] = groups.put(fail_at_first)
    groups.finish(groups.run())
    assert job.failed
    job.retry()
    transaction.commit()
    [taken] = groups.claim()
    assert taken.number < -1 and taken.group
    assert check(groups.desk.database) == []
    groups.finish(groups.run([taken]))
    assert not job.failed and values(groups.desk)[0] == 1
