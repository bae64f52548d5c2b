"""What a database says of itself: counts, lists, statistics, single jobs."""

from __future__ import annotations

import dataclasses
import datetime
import pickle
import uuid

import pytest

from perdure.model import (
    Failure,
    Job,
    JobNotFoundError,
    JobRef,
    NotInstalledError,
    QueueNotFoundError,
    Status,
    UnknownSettingError,
    database_status,
    get_queue,
    install,
    job_details,
    job_statistics,
    last_job,
    list_jobs,
    next_job,
)
from perdure.model.reports import DayCount, StatusCounts
from support.callables import Account, echo, fail, takes_even
from support.world import DAY, HOUR, MINUTE, SECOND

pytestmark = pytest.mark.spec("D13")

ECHO = "support.callables:echo"
FAIL = "support.callables:fail"


@pytest.fixture
def agent(view):
    return view.agent(size=10)


def complete(view, agent, *args, lasting=0 * SECOND):
    """A job that is done and settled; its call has taken `lasting`."""
    job = view.put(*args)
    agent.record.ping()
    assert view.claim(agent) is job
    job._begin()
    view.world.advance(lasting)
    try:
        job._end(None if job.callable is echo else job.callable())
    except ValueError as error:
        job._end(Failure(error))
    job._complete()
    agent.settle_all()
    view.commit()
    return job


def names(found):
    return [job.call for job in found.jobs]


def counts(view, name=""):
    [queue] = [q for q in database_status(view.connection).queues if q.name == name]
    return queue.counts


# The whole database.


def test_counts_are_by_queue_and_status(world, view, agent):
    for number in range(3):
        view.put(echo, number)
    complete_first = view.claim(agent)
    view.claim(agent)
    view.begin(complete_first)
    assert counts(view) == StatusCounts(1, 1, 1, 0, 0, 0)
    complete_first._end(1)
    view.commit()
    assert counts(view) == StatusCounts(1, 1, 0, 1, 0, 0)
    complete_first._complete()
    view.commit()
    # Done, and not settled yet.
    assert counts(view) == StatusCounts(1, 1, 0, 0, 1, 0)
    agent.settle_all()
    view.commit()
    assert counts(view) == StatusCounts(1, 1, 0, 0, 1, 0)


def test_failed_jobs_are_counted_apart_until_they_are_forgotten_or_retried(world, view, agent):
    complete(view, agent, echo, 1)
    failed = [complete(view, agent, fail) for _ in range(3)]
    assert counts(view) == StatusCounts(0, 0, 0, 0, 1, 3)
    failed[0].retry()
    view.commit()
    assert counts(view) == StatusCounts(1, 0, 0, 0, 1, 2)
    agent.forget(world.clock.now() + 9 * DAY)
    view.commit()
    assert counts(view) == StatusCounts(1, 0, 0, 0, 0, 0)
    view.queue.remove(failed[0])


def test_a_job_that_was_lost_counts_by_its_own_status(view, agent):
    job = view.put(echo, 1)
    view.put(echo, 2)
    view.claim(agent)
    view.begin(job)
    agent.interrupt(job)
    view.commit()
    assert counts(view) == StatusCounts(1, 0, 1, 0, 0, 0)
    view.queue._sort_in()
    view.commit()
    assert counts(view) == StatusCounts(1, 0, 1, 0, 0, 0)
    view.claim(agent)
    assert counts(view) == StatusCounts(1, 0, 1, 0, 0, 0)


def test_days_have_numbers_of_what_ended_on_them(world, view, agent):
    first = world.clock.now().date()
    complete(view, agent, echo, 1)
    complete(view, agent, fail)
    for _ in range(9):
        world.advance(DAY)
        complete(view, agent, echo, 1)
    [queue] = database_status(view.connection).queues
    days = [DayCount(first + number * DAY, 1, 0) for number in range(3, 10)]
    assert queue.days == tuple(days)
    assert agent.day_counts()[0][1] == (1, 1)


def test_the_status_shows_queues_quotas_processes_and_agents(world, view):
    install(view.connection, ["mail"])
    mail = get_queue(view.connection, "mail")
    mail.pause()
    mail.keep_failed = 30 * DAY
    view.queue.quotas.create("gpu", size=2)
    agent = view.agent(7, size=4)
    agent.filter = takes_even
    agent.keep_completed = DAY
    job = Job(echo, 2)
    job.quota_names = ("gpu",)
    view.put(job)
    view.claim(agent)

    status = database_status(view.connection)

    default, other = status.queues
    assert (default.name, default.paused, other.name, other.paused) == ("", False, "mail", True)
    [quota] = default.quotas
    assert (quota.name, quota.size, quota.held) == ("gpu", 2, 1)
    assert other.keep_failed == 30 * DAY and other.keep_completed is None
    [process] = status.dispatchers
    assert process.uuid == uuid.UUID(int=7) and process.active and not process.dead
    assert process.last_ping == world.clock.now() == process.activated
    [report] = process.agents
    assert (report.queue, report.name, report.size, report.held) == ("", "main", 4, 1)
    assert report.filter == "support.callables:takes_even" and report.chooser is None
    assert report.keep_completed == DAY and report.failure == ""
    assert status.size_bytes > 0 and status.packed is None
    view.world.advance(HOUR)
    [process] = database_status(view.connection).dispatchers
    assert process.dead


def test_reports_hold_nothing_persistent_and_cannot_be_changed(view, agent):
    complete(view, agent, fail)
    view.put(echo, 1)
    reports = [
        database_status(view.connection),
        list_jobs(view.connection),
        job_statistics(view.connection),
        job_details(view.connection, view.queue[0]),
    ]
    for report in reports:
        assert pickle.loads(pickle.dumps(report)) == report
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(report, dataclasses.fields(report)[0].name, None)


def test_counts_load_no_more_however_many_jobs_there_are(open_file):
    loads = []
    for number in (20, 2000):
        world = open_file()
        view = world.view()
        agent = view.agent(size=3)
        for _ in range(number):
            view.queue.put(Job(echo, 1))
        view.commit()
        view.claim(agent)
        view.close()
        fresh = world.view()
        fresh.connection.cacheMinimize()
        before = fresh.connection.getTransferCounts(clear=True)
        status = database_status(fresh.connection)
        loads.append(fresh.connection.getTransferCounts()[0])
        assert before is not None and status.queues[0].counts.assigned >= 1
        world.close()
    assert loads[1] <= loads[0] + 5


# Lists.


def test_a_list_has_jobs_under_way_then_waiting_ones_in_claim_order_then_done_ones(
    world, view, agent
):
    old = complete(view, agent, echo, "old")
    world.advance(SECOND)
    new = complete(view, agent, fail)
    active = view.put(echo, "active")
    view.claim(agent)
    view.begin(active)
    view.put(echo, "later", begin_after=world.clock.now() + HOUR)
    view.put(echo, "next")

    found = list_jobs(view.connection)

    assert [job.ref for job in found.jobs[0::4]] == [active.ref, old.ref]
    assert [job.status.name for job in found.jobs] == [
        "ACTIVE",
        "PENDING",
        "PENDING",
        "COMPLETED",
        "COMPLETED",
    ]
    assert names(found)[1:3] == [f"{ECHO}('next')", f"{ECHO}('later')"]
    assert found.jobs[3].ref == new.ref and found.jobs[3].failed
    assert (found.walked, found.complete) == (5, True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"status": Status.PENDING}, ["echo(1)", "echo(2)", "fail()"]),
        ({"status": Status.ASSIGNED}, ["echo(0)"]),
        ({"status": [Status.ASSIGNED, Status.PENDING], "callable": FAIL}, ["fail()"]),
        ({"status": Status.COMPLETED}, ["fail()", "echo(9)"]),
        ({"failed": True}, ["fail()"]),
        ({"failed": False, "status": Status.COMPLETED}, ["echo(9)"]),
        ({"agent": "main"}, ["echo(0)", "fail()", "echo(9)"]),
        ({"agent": "other"}, []),
        ({"queue": "mail"}, ["echo('m')"]),
        ({"callable": echo, "limit": 2}, ["echo(0)", "echo(1)"]),
        ({"status": ()}, []),
    ],
)
def test_jobs_are_found_by_status_queue_agent_callable_and_failure(view, agent, given, expected):
    install(view.connection, ["mail"])
    complete(view, agent, echo, 9)
    view.world.advance(SECOND)
    complete(view, agent, fail)
    view.put(echo, 0)
    view.claim(agent)
    for item in ((echo, 1), (echo, 2), (fail,)):
        view.put(*item)
    get_queue(view.connection, "mail").put(Job(echo, "m"))
    view.commit()
    if "queue" not in given:
        given = {"queue": "", **given}

    found = list_jobs(view.connection, **given)

    assert [call.partition(":")[2] for call in names(found)] == expected


def test_jobs_are_found_by_time(world, view, agent):
    begun = world.clock.now()
    for number in range(4):
        complete(view, agent, echo, number)
        world.advance(HOUR)

    def found(since, until):
        jobs = list_jobs(view.connection, since=begun + since * HOUR, until=begun + until * HOUR)
        return [job.call[-2] for job in jobs.jobs], jobs.walked

    assert found(1, 3) == (["2", "1"], 2)
    assert found(4, 9) == ([], 0)
    assert found(0, 1) == (["0"], 1)


def test_a_list_says_what_it_walked_and_whether_there_may_be_more(view, agent):
    for number in range(20):
        view.put(echo, number)
    few = list_jobs(view.connection, limit=5)
    assert len(few.jobs) == 5 and not few.complete
    rare = list_jobs(view.connection, callable=FAIL, walk_limit=7)
    assert (rare.jobs, rare.walked, rare.complete) == ((), 7, False)
    exact = list_jobs(view.connection, walk_limit=20)
    assert (len(exact.jobs), exact.walked, exact.complete) == (20, 20, True)


def test_a_few_failed_jobs_are_found_among_many_without_a_walk_over_the_others(view, agent):
    for number in range(30):
        complete(view, agent, echo, number)
    failed = complete(view, agent, fail)
    found = list_jobs(view.connection, status=Status.COMPLETED, failed=True)
    assert [job.ref for job in found.jobs] == [failed.ref] and found.walked == 1


def test_where_more_were_put_than_are_walked_those_in_line_come_first(view, agent):
    view.put(echo, "sorted")
    view.queue._sort_in()
    view.commit()
    for number in range(9):
        view.queue.put(Job(echo, number))
    view.commit()
    found = list_jobs(view.connection, walk_limit=4)
    assert names(found)[0] == f"{ECHO}('sorted')"
    assert (len(found.jobs), found.walked, found.complete) == (4, 4, False)
    assert names(list_jobs(view.connection))[1:] == [f"{ECHO}({number})" for number in range(9)]


def test_jobs_of_several_queues_are_in_one_order(world, view, agent):
    install(view.connection, ["a", "b"])
    for number, name in enumerate("abba"):
        get_queue(view.connection, name).put(Job(echo, number))
        world.advance(SECOND)
    view.commit()
    found = list_jobs(view.connection, status=Status.PENDING)
    assert [(job.queue, job.call[-2]) for job in found.jobs] == [
        ("a", "0"),
        ("b", "1"),
        ("b", "2"),
        ("a", "3"),
    ]


def test_a_job_that_was_lost_is_shown_as_itself(view, agent):
    job = view.put(echo, 1)
    view.claim(agent)
    view.begin(job)
    agent.interrupt(job)
    view.commit()
    found = list_jobs(view.connection, status=Status.ACTIVE)
    assert [each.ref for each in found.jobs] == [job.ref]
    view.claim(agent)
    assert [each.ref for each in list_jobs(view.connection).jobs] == [job.ref]


def test_the_next_job_and_the_last_one(world, view, agent):
    assert next_job(view.connection) is None and last_job(view.connection) is None
    complete(view, agent, echo, "first")
    world.advance(SECOND)
    complete(view, agent, echo, "last")
    view.put(echo, "later", begin_after=world.clock.now() + HOUR)
    view.put(echo, "next")
    assert next_job(view.connection, "").call == f"{ECHO}('next')"
    assert last_job(view.connection).call == f"{ECHO}('last')"


def test_parked_jobs_say_why_and_are_not_next(view, agent, module):
    job = view.put(module.work)
    module.vanish()
    assert view.claim(agent) is None
    [found] = list_jobs(view.connection).jobs
    assert found.ref == job.ref and "does not resolve: ModuleNotFoundError" in found.parked
    assert next_job(view.connection) is None
    [queue] = database_status(view.connection).queues
    assert (queue.parked, queue.counts.pending) == (1, 1)
    assert "No module named" in job_details(view.connection, job).parked
    module.come_back()


@pytest.mark.parametrize("break_it", ["vanish", "raise"])
def test_a_job_whose_class_is_not_to_be_had_is_told_of_all_the_same(open_file, module, break_it):
    world = open_file()
    view = world.view()
    ref = view.put(module.OwnJob(echo, 1)).ref
    plain = view.put(Job(echo, module.Plain())).ref
    world.close()
    if break_it == "vanish":
        module.vanish()
    world = open_file()
    view = world.view()
    if break_it == "raise":
        module.write("raise RuntimeError('broken')")
        found = job_details(view.connection, plain)
        assert (
            found.queue == ""
            and found.status is Status.PENDING
            and "RuntimeError: broken" in found.parked
        )
    else:
        found = job_details(view.connection, ref)
        assert found.name == ECHO and found.status is Status.PENDING and found.queue == ""
        assert "No module named" in found.parked
        assert {job.ref for job in list_jobs(view.connection).jobs} == {ref, plain}
    world.close()


# Statistics.


def test_statistics_are_by_what_is_called(world, view, agent):
    for seconds in (1, 2, 6):
        complete(view, agent, echo, seconds, lasting=seconds * SECOND)
    complete(view, agent, fail, lasting=MINUTE)
    view.put(echo, 1)
    agent.record.ping()
    view.claim(agent)
    view.put(echo, 2)

    found = job_statistics(view.connection)

    assert (found.walked, found.complete) == (6, True)
    of_echo, of_fail = found.callables
    assert (of_echo.name, of_echo.waiting, of_echo.running) == (ECHO, 1, 1)
    assert (of_echo.successful, of_echo.failed) == (3, 0)
    assert (of_echo.shortest, of_echo.longest, of_echo.mean) == (SECOND, 6 * SECOND, 3 * SECOND)
    assert (of_fail.name, of_fail.failed, of_fail.longest) == (FAIL, 1, MINUTE)
    only = job_statistics(view.connection, failed=True, walk_limit=5)
    assert [each.name for each in only.callables] == [FAIL]


# One job.


def test_the_details_of_a_job_that_waits(world, view):
    job = Job(echo, 1)
    job.begin_by = HOUR
    view.queue.quotas.create("gpu")
    job.quota_names = ("gpu",)
    job.annotations["who"] = "me"
    callback = job.add_callback(echo)
    view.put(job, begin_after=world.clock.now() + DAY)

    found = job_details(view.connection, str(job.ref))

    assert found.ref == job.ref and found.call == f"{ECHO}(1)" and found.name == ECHO
    assert found.status is Status.PENDING and found.queue == "" and found.agent == ""
    assert found.begin_after == world.clock.now() + DAY == found.deadline - HOUR
    assert found.quota_names == ("gpu",) and found.annotations == (("who", "'me'"),)
    assert [each.ref for each in found.callbacks] == [callback.ref]
    assert found.active_start is found.active_end is found.callbacks_end is None
    assert found.result == found.traceback == found.parked == ""
    assert job_details(view.connection, callback).parent == job.ref


def test_the_details_of_jobs_that_are_done(view, agent):
    good = complete(view, agent, echo, 1, lasting=SECOND)
    bad = complete(view, agent, fail)
    found = job_details(view.connection, good.ref)
    assert found.result == "None" and found.traceback == "" and not found.failed
    assert found.active_end - found.active_start == SECOND
    assert found.dispatcher == uuid.UUID(int=1) and found.agent == "main"
    found = job_details(view.connection, bad)
    assert found.failed and found.traceback.endswith("ValueError: it fails")


def test_a_long_result_is_cut_and_marked(view, agent):
    job = view.put(echo, 1)
    view.claim(agent)
    view.begin(job)
    job._end("x" * 20_000), job._complete(), agent.settle_all()
    view.commit()
    found = job_details(view.connection, job).result
    assert len(found) == 10_000 and found.endswith("(cut)")


# Bad input.


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"status": "pending"}, UnknownSettingError, "'pending' is no status"),
        ({"status": ["done"]}, UnknownSettingError, "'done' is no status"),
        ({"queue": "maill"}, QueueNotFoundError, "did you mean 'mail'"),
        ({"limit": 0}, UnknownSettingError, "limit must be a whole number of 1 or more, .* not 0"),
        ({"walk_limit": -3}, UnknownSettingError, "walk_limit must be"),
        ({"walk_limit": 2.5}, UnknownSettingError, "walk_limit must be"),
        ({"limit": 10**20}, UnknownSettingError, "1000000000 at most"),
        ({"since": datetime.datetime(2026, 1, 1)}, UnknownSettingError, "since must have a time"),
        ({"until": 3}, TypeError, "until must be a datetime"),
        ({"callable": lambda: 1}, TypeError, "is a lambda"),
    ],
)
def test_bad_filters_are_refused(view, given, error, text):
    install(view.connection, ["mail"])
    with pytest.raises(error, match=text):
        list_jobs(view.connection, **given)
    given.pop("limit", None)
    if given:
        with pytest.raises(error, match=text):
            job_statistics(view.connection, **given)


@pytest.mark.parametrize(
    "job",
    ["zzz", "ffff", "other:1f", 7, None, "0", JobRef(2**64), JobRef(-1), JobRef("x")],
)
def test_what_is_no_job_has_no_details(view, job):
    with pytest.raises(JobNotFoundError):
        job_details(view.connection, job)


def test_a_job_in_no_queue_says_so(view):
    job = Job(echo, 1)
    view.connection.add(job)
    view.commit()
    assert job_details(view.connection, job).queue is None


def test_an_object_that_is_no_job_has_no_details(view):
    account = view.connection.root()["account"] = Account()
    view.commit()
    with pytest.raises(JobNotFoundError, match="there is no job"):
        job_details(view.connection, account._p_oid.hex())


@pytest.mark.parametrize("ask", [database_status, list_jobs, job_statistics, next_job, last_job])
def test_a_database_without_queues_says_so(view, ask):
    del view.connection.root()["perdure"]
    with pytest.raises(NotInstalledError):
        ask(view.connection)
    view.abort()
