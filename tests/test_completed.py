"""Done jobs: kept in time order, forgotten a day's worth at once."""

from __future__ import annotations

from datetime import timedelta

import pytest

from perdure.model import Job, JobNotFoundError, Status, find_job
from support.callables import echo, fail
from support.world import DAY, HOUR, SECOND


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
    assert len(agent.completed._shelves) == 9
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
