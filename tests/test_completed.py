"""Done jobs: kept in time order, forgotten a day's worth at once."""

from __future__ import annotations

from datetime import timedelta
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ZODB.MappingStorage import MappingStorage

from perdure.model import Job, JobNotFoundError, Status, find_job, pack
from perdure.model.done import Done, DoneTrees
from perdure.model.moments import DAY_MICROSECONDS, moment
from support.callables import echo, fail
from support.world import DAY, HOUR, SECOND, World


@pytest.fixture
def agent(view):
    return view.agent()


def complete(view, *args, **settings):
    """A job that is done and settled."""
    job = view.put(*args, **settings)
    agent = view.agent()
    agent.record.ping()
    view.commit()
    assert view.claim(agent) is job
    view.run(job)
    assert job.status is Status.COMPLETED
    return job


def keep(world, view, agent, days):
    """Whether the agent forgets after so many days; forgets what is due."""
    world.advance(days * DAY)
    agent.forget(world.clock.now())
    view.commit()


@pytest.mark.spec("D8")
def test_the_newest_done_job_comes_first(world, view, agent):
    jobs = []
    for number in range(5):
        jobs.append(complete(view, echo, number))
        world.advance(HOUR * 10)
    assert list(agent.completed) == jobs[::-1]
    assert len(agent.completed) == 5 and all(job in agent.completed for job in jobs)


@pytest.mark.spec("D8")
def test_jobs_between_two_times_can_be_asked_for(world, view, agent):
    begun = world.clock.now()
    jobs = []
    for number in range(6):
        jobs.append(complete(view, echo, number))
        world.advance(12 * HOUR)
    between = agent.completed.between

    def found(since, until):
        return [
            job.args[0]
            for job in between(
                None if since is None else begun + since * HOUR,
                None if until is None else begun + until * HOUR,
            )
        ]

    assert found(None, None) == [5, 4, 3, 2, 1, 0]
    assert found(12, 36) == [2, 1]
    assert found(12, None) == [5, 4, 3, 2, 1]
    assert found(None, 12) == [0]
    assert found(12, 12) == []
    moment = timedelta(microseconds=1)
    since, until = begun + 12 * HOUR, begun + 24 * HOUR
    assert list(between(since + moment, until + moment)) == [jobs[2]]


@pytest.mark.spec("D8")
def test_done_jobs_are_forgotten_after_7_days_and_before_8(world, view, agent):
    job = complete(view, echo, 1)
    world.advance(7 * DAY - SECOND)
    assert not agent.forget(world.clock.now())
    assert job in agent.completed
    world.advance(DAY)
    assert agent.forget(world.clock.now())
    view.commit()
    assert job not in agent.completed and len(agent.completed) == 0
    assert not agent.completed


@pytest.mark.spec("D8")
def test_forgetting_is_by_the_day(world, view, agent):
    for number in range(9):
        complete(view, echo, number)
        world.advance(DAY)
    assert len(agent._kept) == 9
    agent.forget(world.clock.now())
    view.commit()
    assert [job.args[0] for job in agent.completed] == [8, 7, 6, 5, 4, 3]


@pytest.mark.spec("D8")
def test_asking_for_a_forgotten_job_says_so(world, view, agent):
    job = complete(view, echo, 1)
    assert find_job(view.connection, job.ref) is job
    keep(world, view, agent, 9)
    assert job.forgotten
    with pytest.raises(JobNotFoundError, match="forgotten"):
        find_job(view.connection, job.ref)


@pytest.mark.spec("D8")
@pytest.mark.parametrize("owner", ["job", "agent", "queue"])
def test_the_time_can_be_set_per_job_agent_and_queue(world, view, agent, owner):
    settings = {}
    if owner == "job":
        settings["keep_completed"] = DAY
    else:
        (agent if owner == "agent" else view.queue).keep_completed = DAY
    done = complete(view, echo, 1, **settings)
    settings = {}
    failed = complete(view, fail)
    keep(world, view, agent, 2)
    assert done.forgotten and not failed.forgotten
    keep(world, view, agent, 6)
    assert failed.forgotten


@pytest.mark.spec("D8")
def test_the_time_of_the_job_counts_before_that_of_agent_and_queue(world, view, agent):
    view.queue.keep_completed = DAY
    agent.keep_completed = 3 * DAY
    of_agent = complete(view, echo, 1)
    own = complete(view, echo, 2, keep_completed=20 * DAY)
    keep(world, view, agent, 2)
    assert not of_agent.forgotten
    keep(world, view, agent, 2)
    assert of_agent.forgotten and not own.forgotten


@pytest.mark.spec("D8")
def test_failed_jobs_have_a_time_of_their_own(world, view, agent):
    view.queue.keep_failed = 30 * DAY
    done, failed = complete(view, echo, 1), complete(view, fail)
    keep(world, view, agent, 9)
    assert done.forgotten and not failed.forgotten


@pytest.mark.spec("D8")
@pytest.mark.parametrize(("value", "error"), [(7, TypeError), (-DAY, ValueError)])
def test_a_time_that_is_none_is_refused_when_it_is_set(view, agent, value, error):
    job = view.put(echo, 1)
    for owner in (job, agent, view.queue):
        for name in ("keep_completed", "keep_failed"):
            with pytest.raises(error, match=name):
                setattr(owner, name, value)
            setattr(owner, name, None)
            assert getattr(owner, name) is None


@pytest.mark.spec("D8")
def test_nothing_is_kept_of_a_job_that_is_to_be_kept_for_no_time(world, view, agent):
    job = complete(view, echo, 1, keep_completed=timedelta(0))
    keep(world, view, agent, 1)
    assert job.forgotten


@pytest.mark.spec("D8")
@pytest.mark.slow
def test_forgetting_looks_at_no_job_however_many_there_are(world, view, agent):
    loads = []
    for count in (1, 600):
        for number in range(count):
            view.queue.put(Job(echo, number))
        view.commit()
        agent.size = count
        while (job := agent.claim_job()) is not None:
            job._begin()
            job._end(None)
            job._complete()
        agent.settle_all()
        view.commit()
        assert len(agent.completed) == count
        other = world.view()
        world.advance(9 * DAY)
        agent.record.ping()
        view.commit()
        other.sync()
        mine = other.get(agent)
        mine.forget(world.clock.now())
        loads.append(other.connection.getTransferCounts()[0])
        other.commit()
        view.sync()
        assert len(agent.completed) == 0
    assert loads[0] == loads[1]


# How they are stored: the latest ones in records of their own, the others in trees.


def unsorted(agent):
    """The records with those that are not sorted in, the latest first."""
    found, each = [], agent._done
    while isinstance(each, Done):
        found.append(each)
        each = each.before
    return found


def unsettled(view, agent, number):
    """Jobs that are done, and that the agent has still."""
    jobs = [view.put(echo, each) for each in range(number)]
    agent.size = number
    for job in jobs:
        assert view.claim(agent) is job
        job._begin()
        job._end(None)
        job._complete()
    view.commit()
    return jobs


@pytest.mark.spec("D8")
def test_a_job_that_is_done_alone_is_written_once_and_by_itself(view, agent):
    complete(view, echo, 1)
    (first,) = unsorted(agent)
    written = first._p_serial
    complete(view, echo, 2)
    complete(view, echo, 3)
    assert [len(list(each.entries())) for each in unsorted(agent)] == [1, 1, 1]
    assert unsorted(agent)[2] is first and first._p_serial == written


@pytest.mark.spec("D8")
def test_what_one_transaction_settles_is_in_one_record(view, agent):
    complete(view, echo, 0)
    jobs = unsettled(view, agent, 3)
    agent.settle_all()
    view.commit()
    assert [{job for job, _, _ in each.entries()} for each in unsorted(agent)][0] == set(jobs)
    assert len(unsorted(agent)) == 2 and set(jobs) < set(agent.completed)


@pytest.mark.spec("D8")
def test_when_many_were_done_alone_all_are_sorted_in(view, agent):
    with mock.patch("perdure.model.done.UNSORTED", 3):
        jobs = {complete(view, echo, number) for number in range(7)}
    assert len(unsorted(agent)) == 1 and set(agent.completed) == jobs
    (last,) = unsorted(agent)
    assert isinstance(last.before, DoneTrees)
    assert [len(tree) for _, tree in last.before.items()] == [6]


@pytest.mark.spec("D8")
def test_nothing_stays_of_what_was_settled_in_a_transaction_that_is_aborted(view, agent):
    first = complete(view, echo, 1)
    job = view.put(echo, 2)
    assert view.claim(agent) is job
    job._begin()
    job._end(None)
    job._complete()
    view.commit()
    agent.settle_all()
    view.abort()
    assert list(agent.completed) == [first] and job in agent
    agent.settle_all()
    view.commit()
    assert set(agent.completed) == {job, first} and len(unsorted(agent)) == 2


@pytest.mark.spec("D8", "C11")
def test_a_pack_keeps_those_that_are_not_sorted_in(world, view, agent):
    for number in range(3):
        complete(view, echo, number)
    world.advance(HOUR)
    assert pack(world.database, timedelta(0)) is not None
    other = world.view()
    assert {job.args[0] for job in other.agent().completed} == {0, 1, 2}


@pytest.mark.spec("D8")
def test_whether_there_are_any_is_told_without_a_walk_over_them(world, view, agent):
    for number in range(5):
        complete(view, echo, number)
    other = world.view()
    mine = other.agent()
    assert mine.size
    loaded, _ = other.connection.getTransferCounts()
    assert mine.completed and other.connection.getTransferCounts()[0] == loaded
    for job in list(agent.completed):
        agent._give_up(job)
    assert not agent.completed
    view.abort()


@pytest.mark.spec("D8")
@pytest.mark.parametrize("number", [3, 9, 12], ids=["few", "some sorted in", "all sorted in"])
def test_each_done_job_is_told_of_once_while_they_are_retried(view, agent, number):
    with mock.patch("perdure.model.done.UNSORTED", 6), mock.patch("perdure.model.done._PAGE", 2):
        jobs = [complete(view, fail) for _ in range(number)]
        seen = []
        for job in agent.completed:
            seen.append(job)
            if len(seen) == 2:
                job.retry()
        assert sorted(seen, key=jobs.index) == jobs
        for job in agent.completed.between(failed=True):
            job.retry()
    view.commit()
    assert {job.status for job in jobs} == {Status.PENDING} and not agent.completed


@pytest.mark.spec("D8")
def test_what_a_savepoint_has_kept_stays_when_what_came_then_is_rolled_back(view, agent):
    jobs = unsettled(view, agent, 2)
    agent.settle_done(jobs[0])
    savepoint = view.manager.savepoint()
    agent.settle_done(jobs[1])
    assert len(unsorted(agent)) == 1 and set(agent.completed) == set(jobs)
    savepoint.rollback()
    assert list(agent.completed) == [jobs[0]] and jobs[1] in agent
    agent.settle_done(jobs[1])
    view.commit()
    assert set(agent.completed) == set(jobs) and agent._kept == agent.completed.counts()


WHEN = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), WHEN, st.integers(0, 2), st.booleans()),
        st.tuples(st.just("remove"), WHEN),
        st.tuples(st.just("forget"), WHEN),
        st.tuples(st.just("commit")),
        st.tuples(st.just("abort")),
    ),
    max_size=30,
)


@pytest.mark.spec("D8")
@settings(deadline=None, max_examples=150)
@given(steps=STEPS, since=st.none() | WHEN, until=st.none() | WHEN)
def test_wherever_they_lie_they_are_the_same(steps, since, until):
    world = World(MappingStorage())
    view = world.view()
    agent = view.agent()
    known, committed = {}, {}
    with mock.patch("perdure.model.done.UNSORTED", 4):
        for what, *values in steps:
            if what == "put":
                ended, keep, failed = values
                job = Job(echo, ended)
                view.connection.add(job)
                job._callbacks_end = ended * DAY_MICROSECONDS + len(known)
                put = agent.completed.put
                known[job] = put(job, job._callbacks_end, keep * DAY, failed=failed)
            elif what == "remove" and (found := [j for j in known if j.args[0] == values[0]]):
                assert agent.completed.remove(found[0]) == known.pop(found[0])
            elif what == "forget":
                over = {s for s in known.values() if s[0] <= values[0]}
                agent.completed.forget(over)
                known = {job: shelf for job, shelf in known.items() if shelf not in over}
            elif what == "commit":
                view.commit()
                committed = dict(known)
            elif what == "abort":
                view.abort()
                known = dict(committed)
            of_failed = {True: [], False: []}
            for job, (_, failed) in known.items():
                of_failed[failed].append(job)
            compare(agent.completed, known, of_failed, since, until)
    world.close()


def compare(completed, known, of_failed, since, until):
    def key(job):
        return -job._callbacks_end, job._p_oid

    assert list(completed) == sorted(known, key=key)
    assert len(completed) == len(known) and bool(completed) is bool(known)
    assert all(job in completed for job in known)
    counts = {}
    for shelf in known.values():
        counts[shelf] = counts.get(shelf, 0) + 1
    assert completed.counts() == counts
    limits = [None if day is None else moment(day * DAY_MICROSECONDS) for day in (since, until)]
    for failed, jobs in of_failed.items():
        found = list(completed.between(*limits, failed=failed))
        assert found == sorted(
            (
                job for job in jobs
                if (since is None or job._callbacks_end >= since * DAY_MICROSECONDS)
                and (until is None or job._callbacks_end < until * DAY_MICROSECONDS)
            ),
            key=key,
        )  # fmt: skip
