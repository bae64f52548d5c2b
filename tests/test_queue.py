"""The queue: putting, the order of claims, deadlines, taking out, putting back."""

from __future__ import annotations

import datetime
import uuid
from datetime import UTC, timedelta

import pytest
import transaction
import ZODB
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ConflictError

from perdure.model import (
    ROOT_KEY,
    BadStatusError,
    Failure,
    Job,
    JobTimeoutError,
    NotInstalledError,
    NotStorableError,
    Queue,
    QueueNotFoundError,
    Queues,
    Status,
    UnknownSettingError,
    check,
    environment,
    find_job,
    get_queue,
    install,
    local,
)
from perdure.model import queue as queue_module
from perdure.model.compact import unpacked
from perdure.model.internal import InternalJob
from support.callables import Account, echo, fail, nothing
from support.manual_clock import ManualClock
from support.world import HOUR, MINUTE, SECOND


def numbers(jobs):
    return [job.args[0] for job in jobs]


def claim_all(view):
    """The arguments of all jobs that can be claimed, in the order of the claims."""
    found = []
    while (job := view.queue.claim()) is not None:
        found.append(job.args[0])
    view.abort()
    return found


# Where the queues are


@pytest.mark.spec("Q1")
def test_the_queues_lie_under_one_key_and_the_unnamed_one_is_the_default(view):
    assert isinstance(view.connection.root()[ROOT_KEY], Queues)
    assert get_queue(view.connection) is view.connection.root()[ROOT_KEY][""]


@pytest.mark.spec("Q1")
def test_installing_again_changes_nothing_and_adds_what_is_new(world, view):
    view.put(nothing)
    install(world.database, ["", "mail"])
    view.sync()
    assert list(view.connection.root()[ROOT_KEY]) == ["", "mail"]
    assert len(view.queue) == 1


@pytest.mark.spec("Q1")
def test_a_queue_that_is_not_there_is_named_with_its_nearest_neighbour(world, view):
    install(world.database, ["mail"])
    view.sync()
    with pytest.raises(QueueNotFoundError, match="did you mean 'mail'"):
        get_queue(view.connection, "mial")
    with pytest.raises(NotInstalledError):
        get_queue(object())


@pytest.mark.spec("Q1")
def test_something_else_under_the_key_is_not_touched():
    database = ZODB.DB(MappingStorage())
    with database.transaction() as connection:
        connection.root()[ROOT_KEY] = "mine"
    with pytest.raises(NotInstalledError, match="mine"):
        install(database)
    database.close()


@pytest.mark.spec("Q1", "Q2")
def test_a_queue_may_live_in_another_database_than_the_data():
    databases = {}
    data = ZODB.DB(MappingStorage(), databases=databases, database_name="data")
    jobs = ZODB.DB(MappingStorage(), databases=databases, database_name="jobs")
    environment(jobs).clock = ManualClock()
    install(jobs)
    manager = transaction.TransactionManager()
    connection = data.open(transaction_manager=manager)
    account = connection.root()["account"] = Account(10)
    manager.commit()
    other = connection.get_connection("jobs")
    queue = get_queue(other)
    job = queue.put(Job(account.deposit, 5))
    manager.commit()

    record = queue.dispatchers.register(uuid.UUID(int=1))
    agent = record.add_agent()
    record.activate("token")
    manager.commit()
    assert agent.claim_job() is job
    manager.commit()
    job()

    assert (job.result, account.balance) == (15, 15)
    assert str(job.ref).startswith("jobs:")
    assert check(jobs) == []
    manager.abort()
    connection.close()
    data.close()
    jobs.close()


@pytest.mark.spec("Q2")
def test_a_job_that_is_stored_in_another_database_is_refused():
    databases = {}
    data = ZODB.DB(MappingStorage(), databases=databases, database_name="data")
    jobs = ZODB.DB(MappingStorage(), databases=databases, database_name="jobs")
    install(jobs)
    manager = transaction.TransactionManager()
    connection = data.open(transaction_manager=manager)
    job = connection.root()["job"] = Job(nothing)
    manager.commit()
    queue = get_queue(connection.get_connection("jobs"))
    with pytest.raises(NotStorableError, match="'data'.*'jobs'"):
        queue.put(job)
    with pytest.raises(NotStorableError, match="'data'.*'jobs'"):
        queue.put_back(job)
    assert job.status is Status.NEW
    manager.abort()
    connection.close()
    data.close()
    jobs.close()


@pytest.mark.spec("Q1")
def test_a_queue_with_work_cannot_be_removed_and_a_removed_one_takes_none(world, view):
    install(world.database, ["mail"])
    mail = world.view("mail")
    mail.put(nothing)
    queues = mail.connection.root()[ROOT_KEY]
    with pytest.raises(ValueError, match="1 waiting"):
        queues.remove("mail")
    mail.queue.pull()
    mail.commit()
    queue = mail.queue
    queues.remove("mail")
    mail.commit()
    with pytest.raises(QueueNotFoundError, match="removed"):
        queue.put(nothing)


@pytest.mark.spec("Q1")
@pytest.mark.parametrize("known", [True, False])
def test_a_put_into_a_queue_that_is_removed_meanwhile_fails(file_world, known):
    install(file_world.database, ["mail"])
    producer, remover = file_world.view("mail"), file_world.view("mail")
    if known:
        producer.put(nothing)
        producer.queue.pull()
        producer.commit()
        remover.sync()
    producer.queue.put(nothing)
    remover.connection.root()[ROOT_KEY].remove("mail")
    remover.commit()
    with pytest.raises(transaction.interfaces.TransientError):
        producer.manager.commit()
    producer.abort()


# Putting


@pytest.mark.spec("Q2")
def test_putting_returns_the_job_which_waits_then(view):
    job = view.queue.put(echo)
    assert (job.status, job.queue) == (Status.PENDING, view.queue)
    view.commit()
    assert list(view.queue) == [job]
    assert view.queue.put(Job(echo, 1)).args == [1]


@pytest.mark.spec("Q2")
def test_what_is_not_given_is_the_jobs_own_or_now(world, view):
    now = world.clock.now()
    mine = Job(echo)
    mine.begin_after = now + HOUR
    assert view.queue.put(mine).begin_after == now + HOUR
    assert view.queue.put(echo).begin_after == now
    other = Job(echo)
    other.begin_after = now + HOUR
    assert view.queue.put(other, begin_after=now + MINUTE).begin_after == now + MINUTE


@pytest.mark.spec("Q2")
def test_the_settings_of_a_put_are_the_jobs_attributes(world, view):
    from perdure.model import NeverRetry

    job = view.queue.put(
        echo,
        begin_by=MINUTE,
        failure_log_level=10,
        retry_policy_factory=NeverRetry,
        transactional=True,
    )
    assert job.begin_by == MINUTE
    assert job.failure_log_level == 10
    assert job.retry_policy_factory is NeverRetry
    assert job.transactional


@pytest.mark.spec("Q2", "J4")
def test_only_a_new_job_can_be_put(view):
    job = view.put(echo, 1)
    with pytest.raises(BadStatusError, match="PENDING"):
        view.queue.put(job)
    claimed = view.claim()
    with pytest.raises(BadStatusError, match="ASSIGNED"):
        view.queue.put(claimed)
    view.run(claimed)
    with pytest.raises(BadStatusError, match="COMPLETED"):
        view.queue.put(claimed)


@pytest.mark.spec("Q2", "J25")
def test_a_callback_of_another_job_cannot_be_put(view):
    callback = Job(echo, 1).add_callback(nothing)
    with pytest.raises(BadStatusError, match="callback"):
        view.queue.put(callback)


@pytest.mark.spec("Q2", "J10", "J11")
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"begin_after": datetime.datetime(2026, 1, 1)}, ValueError),
        ({"begin_by": timedelta(seconds=-1)}, ValueError),
        ({"begin_by": 5}, TypeError),
        ({"failure_log_level": "high"}, TypeError),
        ({"retry_policy_factory": "no such name"}, ValueError),
        ({"retry_policy_factory": lambda job: None}, TypeError),
        ({"transactional": 1}, TypeError),
        ({"begin_by": SECOND, "failure_log_level": "high"}, TypeError),
    ],
)
def test_a_refused_put_changes_nothing(view, settings, error):
    job = Job(echo, 1)
    before = job.__getstate__()
    with pytest.raises(error):
        view.queue.put(job, **settings)
    assert job.__getstate__() == before
    assert job.status is Status.NEW
    assert len(view.queue) == 0


@pytest.mark.spec("Q2")
def test_a_queue_that_is_not_stored_refuses_and_changes_nothing(view):
    job = Job(echo, 1)
    with pytest.raises(BadStatusError, match="not stored yet"):
        Queue("new").put(job, begin_by=MINUTE)
    assert (job.status, job.begin_by) == (Status.NEW, None)


@pytest.mark.spec("Q2", "J11")
def test_a_quota_that_the_queue_does_not_know_is_refused(view):
    job = Job(echo, 1)
    job.quota_names = ("mail",)
    with pytest.raises(UnknownSettingError, match="mail"):
        view.queue.put(job)
    assert job.status is Status.NEW


@pytest.mark.spec("Q2")
def test_what_is_put_in_an_aborted_transaction_does_not_wait(view):
    view.queue.put(echo)
    view.abort()
    assert len(view.queue) == 0
    view.put(echo, 1)
    assert numbers(view.queue) == [1]


# The order


@pytest.mark.spec("Q3")
def test_jobs_of_one_moment_are_claimed_as_they_were_put(view):
    for number in range(300):
        view.queue.put(Job(echo, number))
        if number % 7 == 0:
            view.commit()
    view.commit()
    assert numbers(view.queue) == list(range(300))
    assert claim_all(view) == list(range(300))


@pytest.mark.spec("Q3")
def test_the_later_of_begin_after_and_the_put_counts(world, view):
    now = world.clock.now()
    view.put(echo, "in a minute", begin_after=now + MINUTE)
    view.put(echo, "long ago", begin_after=now - HOUR)
    view.advance(SECOND)
    view.put(echo, "now")
    view.put(echo, "longer ago", begin_after=now - 2 * HOUR)
    order = ["long ago", "now", "longer ago", "in a minute"]
    assert numbers(view.queue) == order
    assert claim_all(view) == order[:3]
    view.advance(MINUTE)
    assert claim_all(view) == order


@pytest.mark.spec("Q3", "Q9")
def test_jobs_that_were_put_back_come_first_the_first_put_back_before_the_others(world, view):
    view.put(echo, 1)
    for number in (2, 3):
        job = Job(echo, number)
        view.connection.add(job)
        view.commit()
        view.queue.put_back(job)
        view.commit()
        view.advance(SECOND)
    assert numbers(view.queue) == [2, 3, 1]
    assert claim_all(view) == [2, 3, 1]


@pytest.mark.spec("Q3", "Q5")
def test_looking_and_claiming_agree_before_and_after_the_jobs_were_sorted_in(world, view):
    now = world.clock.now()
    for number in range(40):
        view.put(echo, number, begin_after=now + (number * 7 % 5) * SECOND)
    view.advance(HOUR)
    before = numbers(view.queue)
    view.queue._sort_in()
    view.commit()
    assert numbers(view.queue) == before
    assert claim_all(view) == before


@pytest.mark.spec("Q3")
def test_a_wall_clock_that_goes_back_keeps_no_job_for_ever(world, view):
    view.put(echo, 1)
    world.clock.jump_wall(-HOUR)
    view.put(echo, 2)
    assert claim_all(view) == [2]
    world.clock.jump_wall(HOUR)
    assert claim_all(view) == [2, 1]


@pytest.mark.spec("Q3")
def test_a_dispatcher_takes_from_its_own_stripes_first_and_leaves_none(view):
    for number in range(300):
        view.put(echo, number)
    first, second = view.agent(1, size=1000), view.agent(2, size=1000)
    stripes = {tuple(agent.record.stripes()) for agent in (first, second)}
    assert stripes == {(0, 2), (1, 3)}
    taken = []
    while (job := first.claim_job()) is not None:
        taken.append(job.args[0])
    view.commit()
    assert sorted(taken) == list(range(300))
    assert taken != sorted(taken)


# Claiming


@pytest.mark.spec("Q4")
def test_only_due_jobs_are_claimed(world, view):
    view.put(echo, 1, begin_after=world.clock.now() + SECOND)
    assert view.queue.claim() is None
    assert view.queue.claim(default="none") == "none"
    view.advance(SECOND)
    assert view.queue.claim().args == [1]


@pytest.mark.spec("Q4")
def test_a_claimed_job_is_in_the_queue_no_more(view):
    job = view.put(echo, 1)
    assert view.claim() is job
    assert job.status is Status.ASSIGNED
    assert len(view.queue) == 0 and job not in view.queue
    assert view.claim() is None


@pytest.mark.spec("Q4", "J10")
def test_a_job_past_its_deadline_is_handed_out_as_one_that_fails_it(world, view):
    view.queue.quotas.create("full", 0)
    job = view.put(echo, 1, begin_by=MINUTE, quota_names=("full",))
    view.advance(MINUTE)
    assert view.claim() is None
    view.advance(timedelta(microseconds=1))
    internal = view.claim()
    assert isinstance(internal, InternalJob) and internal.serves is job
    assert internal.quota_names == () and internal.deadline is None
    assert len(view.queue.quotas["full"]) == 0
    view.run(internal)
    assert job.status is Status.COMPLETED
    assert isinstance(job.result, Failure) and job.result.check(JobTimeoutError)
    assert list(view.agent().completed) == [job]


@pytest.mark.spec("Q4", "Q9")
def test_a_job_that_was_put_back_is_failed_past_its_deadline_too(world, view):
    job = Job(echo, 1)
    job.begin_by = MINUTE
    view.connection.add(job)
    view.commit()
    view.queue.put_back(job)
    view.commit()
    assert job.deadline == world.clock.now() + MINUTE
    view.advance(MINUTE + SECOND)
    internal = view.claim()
    assert isinstance(internal, InternalJob)
    view.run(internal)
    assert job.result.check(JobTimeoutError)


@pytest.mark.spec("Q4", "J10")
def test_a_deadline_counts_from_begin_after(world, view):
    now = world.clock.now()
    job = view.put(echo, 1, begin_after=now + HOUR, begin_by=MINUTE)
    view.advance(HOUR + MINUTE)
    assert view.claim() is job


@pytest.mark.spec("Q4", "J10")
@pytest.mark.parametrize("sorted_in", [True, False])
def test_a_deadline_may_be_moved_while_the_job_waits(world, view, sorted_in):
    early, late, none = (view.put(echo, number, begin_by=MINUTE) for number in range(3))
    if sorted_in:
        view.queue._sort_in()
        view.commit()
    early.begin_by = SECOND
    late.begin_by = HOUR
    none.begin_by = None
    view.commit()
    view.advance(MINUTE + SECOND)
    internal = view.queue.claim()
    assert isinstance(internal, InternalJob) and internal.serves is early
    assert [view.queue.claim(), view.queue.claim(), view.queue.claim()] == [late, none, None]
    view.abort()


@pytest.mark.spec("Q4", "Q7")
def test_a_deadline_that_is_moved_while_a_dispatcher_sorts_in_is_not_overlooked(world, view):
    job = view.put(echo, 1, begin_by=HOUR)
    dispatcher = world.view()
    dispatcher.queue._sort_in()
    job.begin_by = SECOND
    view.commit()
    with pytest.raises(transaction.interfaces.TransientError):
        dispatcher.manager.commit()
    dispatcher.abort()
    view.advance(MINUTE)
    assert isinstance(dispatcher.queue.claim(), InternalJob)
    dispatcher.abort()


@pytest.mark.spec("Q4")
def test_a_job_that_is_about_to_be_failed_can_no_longer_be_taken_out(world, view):
    view.put(echo, 0, begin_by=SECOND)
    job = view.put(echo, 1, begin_by=SECOND)
    view.advance(MINUTE)
    assert isinstance(view.claim(), InternalJob)
    with pytest.raises(BadStatusError, match="deadline"):
        view.queue.remove(job)
    with pytest.raises(BadStatusError, match="cannot be taken out"):
        view.queue.pull()
    assert [waiting.serves for waiting in view.queue] == [job]


@pytest.mark.spec("Q4", "X6")
def test_the_next_due_moment_is_that_of_the_first_held_job_or_deadline(world, view):
    now = world.clock.now()
    assert view.queue.next_due() is None
    view.put(echo, 1, begin_after=now + HOUR)
    view.queue.claim()
    assert view.queue.next_due() == now + HOUR
    view.put(echo, 2, begin_after=now + HOUR / 2, begin_by=MINUTE)
    view.queue.claim()
    assert view.queue.next_due() == now + HOUR / 2
    view.advance(HOUR / 2)
    assert view.queue.next_due() == now + HOUR / 2 + MINUTE + timedelta(microseconds=1)
    view.abort()


@pytest.mark.spec("Q4")
def test_a_deadline_that_has_passed_is_no_moment_to_wait_for(world, view):
    job = view.put(echo, 1, begin_by=MINUTE)
    view.queue._sort_in()
    view.commit()
    view.advance(MINUTE)
    assert view.queue.next_due() == world.clock.now() + timedelta(microseconds=1)
    view.advance(timedelta(microseconds=1))
    assert view.queue.next_due() is None
    assert view.queue.claim().serves is job
    view.abort()


# Taking out


@pytest.mark.spec("Q5")
@pytest.mark.parametrize("sorted_in", [True, False])
def test_length_iteration_and_indexing_see_the_jobs_in_claim_order(world, view, sorted_in):
    for number in range(10):
        view.put(echo, number)
    if sorted_in:
        view.queue._sort_in()
        view.commit()
    queue = view.queue
    assert len(queue) == 10
    assert numbers(queue) == list(range(10))
    assert [queue[index].args[0] for index in (0, 9, -1, -10)] == [0, 9, 9, 0]
    for index in (10, -11):
        with pytest.raises(IndexError):
            queue[index]


@pytest.mark.spec("Q5")
def test_held_jobs_are_seen_too(world, view):
    view.put(echo, 1, begin_after=world.clock.now() + HOUR)
    assert len(view.queue) == 1
    assert view.queue[0].args == [1]


@pytest.mark.spec("Q5")
def test_pull_takes_the_first_or_the_one_at_an_index_out(view):
    jobs = [view.put(echo, number) for number in range(4)]
    assert view.queue.pull() is jobs[0]
    assert view.queue.pull(1) is jobs[2]
    assert view.queue.pull(-1) is jobs[3]
    assert [job.status for job in jobs] == [
        Status.NEW, Status.PENDING, Status.NEW, Status.NEW,
    ]  # fmt: skip
    view.commit()
    assert list(view.queue) == [jobs[1]]
    view.queue.pull()
    with pytest.raises(IndexError):
        view.queue.pull()


@pytest.mark.spec("Q5")
def test_remove_takes_a_job_out_and_knows_no_other(world, view):
    install(world.database, ["mail"])
    mail = world.view("mail")
    other = mail.put(echo, 2)
    view.sync()
    job = view.put(echo, 1)
    view.queue.remove(job)
    assert (job.status, job.queue) == (Status.NEW, None)
    with pytest.raises(LookupError, match="NEW"):
        view.queue.remove(job)
    with pytest.raises(LookupError, match="PENDING"):
        view.queue.remove(view.get(other))
    view.commit()


@pytest.mark.spec("Q5", "Q2")
@pytest.mark.parametrize("sorted_in", [True, False])
def test_a_job_that_was_taken_out_can_be_put_again(world, view, sorted_in):
    jobs = [view.put(echo, number) for number in range(5)]
    if sorted_in:
        view.queue._sort_in()
        view.commit()
    for job in (jobs[4], jobs[1]):
        view.queue.remove(job)
        view.commit()
        view.queue.put(job)
        view.commit()
    assert numbers(view.queue) == [0, 2, 3, 4, 1]
    assert claim_all(view) == [0, 2, 3, 4, 1]
    assert world.check() == []


@pytest.mark.spec("Q5", "J22", "J13")
@pytest.mark.parametrize("how", ["by hand", "elsewhere"])
def test_a_job_that_is_taken_out_keeps_what_others_have_added_to_it(world, view, how):
    told.clear()
    job = Job(echo, 5)
    first = job.add_callback(tell)
    view.put(job)
    late = [each.add_callback(tell) for each in (job, first)]
    job.annotations["color"] = "blue"
    view.commit()
    view.queue.remove(job)
    view.commit()
    assert job.callbacks == [first, late[0]] and first.callbacks == [late[1]]
    assert job.annotations["color"] == "blue" and not view.queue.side
    if how == "by hand":
        job()
    else:
        install(world.database, ["mail"])
        view.sync()
        mail = get_queue(view.connection, "mail")
        mail.put(job)
        agent = mail.dispatchers.register(uuid.UUID(int=1)).add_agent()
        agent.record.activate("first")
        view.commit()
        view.run(view.claim(agent))
    assert [each.status for each in (job, first, *late)] == [Status.COMPLETED] * 4
    assert told == [5, 5, 5]


told = []


def tell(result):
    told.append(result)
    return result


@pytest.mark.spec("Q5", "J22", "J8")
@pytest.mark.parametrize("first", ["who adds", "who takes out"])
@pytest.mark.parametrize("to", ["job", "callback"])
@pytest.mark.parametrize("has_record", [True, False])
@pytest.mark.parametrize("others", [1, 200])
def test_who_takes_a_job_out_and_who_adds_to_it_meanwhile_do_not_both_succeed(
    file_world, first, to, has_record, others
):
    view = file_world.view()
    # So many others have side records; where they are many, these lie in parts of a tree.
    for _ in range(others):
        view.put(echo, 0).add_callback(echo)
    job = Job(echo, 5)
    target = job if to == "job" else job.add_callback(echo)
    view.put(job)
    if has_record:
        target.add_callback(echo)
    view.queue._sort_in()
    view.commit()
    adder = file_world.view()
    adder.get(target).add_callback(echo)
    view.queue.remove(job)
    one, other = (adder, view) if first == "who adds" else (view, adder)
    one.commit()
    with pytest.raises(ConflictError):
        other.commit()
    other.abort()


@pytest.mark.spec("Q5", "Q2")
def test_a_job_may_be_put_taken_out_and_put_again_in_one_transaction(view):
    job = view.queue.put(echo)
    other = view.queue.put(Job(echo, 2))
    view.queue.remove(job)
    view.queue.put(job)
    view.commit()
    assert list(view.queue) == [other, job]
    assert view.claim() is other
    assert view.claim() is job


@pytest.mark.spec("Q5")
def test_who_removes_a_job_and_who_claims_it_do_not_both_get_it(world, view):
    job = view.put(echo, 1)
    other = world.view()
    agent = other.agent()
    view.sync()
    view.queue.remove(job)
    assert agent.claim_job() is other.get(job)
    view.commit()
    with pytest.raises(transaction.interfaces.TransientError):
        other.manager.commit()
    other.abort()
    assert agent.claim_job() is None


@pytest.mark.spec("Q5", "J3")
def test_arguments_may_change_while_the_job_waits(view):
    job = view.put(echo, 1)
    view.queue._sort_in()
    view.commit()
    job.args[0] = 2
    job.kwargs["value"] = 3
    view.commit()
    assert view.queue.claim() is job
    assert (job.args, dict(job.kwargs)) == ([2], {"value": 3})
    view.abort()


# Putting back


@pytest.mark.spec("Q9")
def test_put_back_wants_a_job_that_is_new_and_stored(view):
    with pytest.raises(BadStatusError, match="never stored"):
        view.queue.put_back(Job(echo, 1))
    with pytest.raises(BadStatusError, match="PENDING"):
        view.queue.put_back(view.put(echo, 1))


@pytest.mark.spec("Q9")
def test_a_job_that_was_put_back_is_due_whatever_its_begin_after(world, view):
    job = view.put(echo, 1, begin_after=world.clock.now() + HOUR)
    view.queue.pull()
    view.commit()
    view.queue.put_back(job)
    view.commit()
    assert view.claim() is job
    assert job.begin_after == world.clock.now() + HOUR


@pytest.mark.spec("Q9", "Q3")
def test_a_job_that_is_put_after_it_was_put_back_is_no_longer_first(world, view):
    job = view.put(echo, 1)
    view.queue.pull()
    view.commit()
    view.queue.put_back(job)
    view.put(echo, 2)
    view.queue.remove(job)
    view.advance(SECOND)
    view.queue.put(job)
    view.commit()
    assert numbers(view.queue) == [2, 1]


# Two who claim


@pytest.mark.spec("C1", "Q7")
def test_of_two_who_claim_one_job_one_gets_it(world):
    first, second = world.view(), world.view()
    first.put(echo, 1)
    first.agent(1), first.agent(2)
    second.sync()
    one, two = first.agent(1), second.agent(2)
    second.sync()
    assert one.claim_job() is not None and two.claim_job() is not None
    first.commit()
    with pytest.raises(transaction.interfaces.TransientError):
        second.manager.commit()
    second.abort()
    assert two.claim_job() is None
    assert (len(first.agent(1)), len(second.agent(2))) == (1, 0)


@pytest.mark.spec("Q7", "C1")
def test_two_dispatchers_with_work_in_their_own_stripes_do_not_conflict(world):
    producer = world.view()
    for number in range(256):
        producer.put(echo, number)
    first, second = world.view(), world.view()
    one, two = first.agent(1, size=1000), first.agent(2, size=1000)
    second.sync()
    two = second.get(two)
    for _ in range(30):
        assert one.claim_job() and two.claim_job()
        first.commit()
        second.commit()
    assert (len(one), len(two)) == (30, 30)


@pytest.mark.spec("Q3")
def test_a_job_of_a_thread_that_runs_on_the_systems_clock_is_due_at_once():
    database = ZODB.DB(MappingStorage())
    install(database)
    with database.transaction() as connection:
        queue = get_queue(connection)
        job = queue.put(fail)
        assert abs(job.begin_after - datetime.datetime.now(UTC)) < HOUR
        assert queue.claim() is job
    database.close()


@pytest.mark.spec("J10", "X6")
@pytest.mark.parametrize("at_once", [0, 3])
def test_of_many_expired_jobs_a_claim_deals_with_some_and_begins_none(
    world, view, monkeypatch, at_once
):
    monkeypatch.setattr(queue_module, "EXPIRED_AT_ONCE", at_once)
    agent = view.agent(size=20)
    late = [view.put(echo, number, begin_by=SECOND) for number in range(10)]
    view.put(echo, "in time")
    view.advance(MINUTE)
    taken = [view.claim(agent)]
    dealt_with = [job for job in [*taken, *view.queue] if isinstance(job, InternalJob)]
    assert len(dealt_with) <= max(1, at_once * len(view.queue.stripes))
    assert world.check() == []
    while (job := view.claim(agent)) is not None:
        taken.append(job)
    assert {job.serves for job in taken if isinstance(job, InternalJob)} == set(late)
    assert [job.args[0] for job in taken if not isinstance(job, InternalJob)] == ["in time"]
    assert world.check() == []


# Who put it


def put_in_a_job():
    return str(local.get_queue().put(Job(echo, 1)).ref)


@pytest.mark.spec("X2")
def test_nothing_is_recorded_of_who_puts_a_job_so_that_nothing_can_depend_on_it(view):
    by_nobody = view.put(echo, 1)
    known = {*unpacked(by_nobody.__getstate__())}
    agent = view.agent()
    uuids = {str(agent.record.uuid), repr(agent.record.uuid)}
    assert view.run(view.claim(agent)) == 1
    putter = view.put(put_in_a_job)
    assert view.claim(agent) is putter
    in_a_job = find_job(view.connection, view.run(putter))
    beside_a_dispatcher = view.put(echo, 1)
    for job in (in_a_job, beside_a_dispatcher):
        job._p_activate()
        state = unpacked(job.__getstate__())
        # The link to the one before is what the first has not.
        assert {*state} - {"_previous"} == known
        assert not any(text in str(state) for text in uuids)
    # Another dispatcher takes them all the same.
    other = view.agent(2)
    for job in (in_a_job, beside_a_dispatcher):
        assert view.claim(other) is job and view.run(job) == 1
