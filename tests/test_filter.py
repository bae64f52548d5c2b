"""Filters: who is asked about which job, how often, and what becomes of internal jobs."""

from __future__ import annotations

import pytest

from perdure.model import NotStorableError, Status
from perdure.model.errors import CallableNotFoundError
from perdure.model.internal import InternalJob
from support import callables
from support.callables import (
    choose_even,
    counting_filter,
    echo,
    raising_filter,
    takes_all,
    takes_even,
    takes_large,
    takes_none,
    takes_odd,
)
from support.world import HOUR, MINUTE


@pytest.fixture
def asked():
    callables.asked.clear()
    yield callables.asked
    callables.asked.clear()


@pytest.mark.spec("Q10", "Q4")
def test_the_first_job_that_the_filter_accepts_is_claimed(view):
    for number in range(6):
        view.put(echo, number)
    assert view.queue.claim(takes_odd).args == [1]
    assert view.queue.claim(takes_odd).args == [3]
    assert view.queue.claim().args == [0]
    assert view.queue.claim(takes_none) is None
    assert view.queue.claim(takes_none, default=7) == 7
    assert view.queue.claim(takes_all).args == [2]
    view.abort()


@pytest.mark.spec("Q10")
def test_a_filter_is_asked_once_about_each_job(view, asked):
    jobs = [view.put(echo, number) for number in range(5)]
    for _ in range(3):
        assert view.queue.claim(counting_filter) is None
        view.commit()
    assert asked == jobs
    new = view.put(echo, 5)
    assert view.queue.claim(counting_filter) is None
    view.commit()
    assert asked == [*jobs, new]


@pytest.mark.spec("Q10")
def test_a_verdict_is_forgotten_with_the_transaction_that_asked(view, asked):
    view.put(echo, 1)
    view.queue.claim(counting_filter)
    view.abort()
    view.queue.claim(counting_filter)
    assert len(asked) == 2
    view.abort()


@pytest.mark.spec("Q10")
def test_another_filter_has_a_verdict_of_its_own(view, asked):
    view.put(echo, 1)
    assert view.queue.claim(counting_filter) is None
    assert view.queue.claim(takes_even) is None
    assert view.queue.claim(counting_filter) is None
    view.commit()
    assert len(asked) == 1
    assert view.queue.claim(takes_odd).args == [1]
    view.abort()


@pytest.mark.spec("Q10")
def test_an_agent_whose_filter_is_changed_asks_the_new_one(view):
    agent = view.agent(filter=takes_even)
    view.put(echo, 1)
    assert view.claim(agent) is None
    agent.filter = takes_odd
    view.commit()
    assert view.claim(agent).args == [1]


@pytest.mark.spec("Q10")
@pytest.mark.parametrize("change", ["args", "quota_names", "begin_by"])
def test_a_job_that_is_changed_is_asked_about_again(view, asked, change):
    view.queue.quotas.create("mail", 1)
    job = view.put(echo, 1)
    view.queue.claim(counting_filter)
    view.commit()
    if change == "args":
        job.args.append(2)
    elif change == "quota_names":
        job.quota_names = ("mail",)
    else:
        job.begin_by = HOUR
    view.commit()
    view.queue.claim(counting_filter)
    view.commit()
    assert asked == [job, job]


@pytest.mark.spec("Q10", "Q5")
def test_a_job_that_is_taken_out_and_put_again_is_asked_about_again(view, asked):
    job = view.put(echo, 1)
    view.queue.claim(counting_filter)
    view.queue.remove(job)
    view.queue.put(job)
    view.commit()
    view.queue.claim(counting_filter)
    view.abort()
    assert asked == [job, job]


@pytest.mark.spec("Q10")
def test_refused_jobs_stay_in_their_place_for_others(view):
    for number in range(10):
        view.put(echo, number)
    view.queue.claim(takes_none)
    view.queue.claim(takes_large)
    view.commit()
    assert [job.args[0] for job in view.queue] == list(range(10))
    taken = [view.queue.claim(takes_all).args[0] for _ in range(10)]
    assert taken == list(range(10))
    view.abort()


@pytest.mark.spec("Q10", "D9")
def test_a_filter_that_raises_is_its_agents_error_and_stops_nothing_else(view):
    broken = view.agent(1, "broken", filter=raising_filter)
    sound = view.agent(1, "sound")
    job = view.put(echo, 1)
    with pytest.raises(RuntimeError, match="the filter is broken"):
        broken.claim_job()
    view.abort()
    assert view.claim(sound) is job


@pytest.mark.spec("Q10")
def test_a_filter_that_is_not_to_be_had_is_its_agents_error(view):
    agent = view.agent(filter=takes_all)
    agent._filter = "no_such_module:filter"
    view.commit()
    job = view.put(echo, 1)
    with pytest.raises(CallableNotFoundError, match="no_such_module"):
        agent.claim_job()
    view.abort()
    assert view.queue.claim() is job
    view.abort()


@pytest.mark.spec("Q10", "D7")
def test_a_filter_without_a_name_is_refused(view):
    with pytest.raises(NotStorableError):
        view.queue.claim(lambda job: True)
    with pytest.raises(NotStorableError):
        view.agent(filter=lambda job: True)


# Internal jobs


def interrupted(view, agent, number):
    """A job that was ACTIVE with `agent` when that was buried."""
    job = view.put(echo, number)
    assert view.claim(agent) is job
    view.begin(job)
    agent.record.deactivate()
    view.commit()
    return job


@pytest.mark.spec("Q10", "D4")
def test_the_filter_is_asked_about_the_job_that_an_internal_job_serves(view):
    dead = view.agent(1)
    even, odd = view.agent(2, filter=takes_even), view.agent(3, filter=takes_odd)
    job = interrupted(view, dead, 1)
    assert view.claim(even) is None
    internal = view.claim(odd)
    assert isinstance(internal, InternalJob) and internal.serves is job


@pytest.mark.spec("Q10", "D4")
def test_where_no_active_agent_takes_that_job_any_may_take_the_internal_one(view):
    dead = view.agent(1)
    even, none = view.agent(2, filter=takes_even), view.agent(3, filter=takes_none)
    job = interrupted(view, dead, 1)
    # Nobody knows yet that the other would not take it either.
    assert view.claim(even) is None
    internal = view.claim(none)
    assert isinstance(internal, InternalJob) and internal.serves is job
    assert len(view.queue) == 0


@pytest.mark.spec("Q10")
@pytest.mark.parametrize("how", ["inactive", "of size 0"])
def test_an_agent_that_takes_nothing_at_all_does_not_count(view, how):
    dead, idle = view.agent(1), view.agent(3)
    even = view.agent(2, filter=takes_even)
    if how == "inactive":
        idle.record.deactivate()
    else:
        idle.size = 0
    view.commit()
    interrupted(view, dead, 1)
    assert isinstance(view.claim(even), InternalJob)


@pytest.mark.spec("Q10", "D7")
def test_an_agent_whose_chooser_filters_takes_what_nobody_else_takes(view):
    dead = view.agent(1)
    chooser = view.agent(2, chooser=choose_even)
    job = interrupted(view, dead, 1)
    internal = view.claim(chooser)
    assert isinstance(internal, InternalJob) and internal.serves is job


@pytest.mark.spec("Q10")
def test_a_job_that_the_filter_refuses_is_not_claimed_because_of_that(view):
    even = view.agent(2, filter=takes_even)
    view.put(echo, 1)
    assert view.claim(even) is None


@pytest.mark.spec("Q10", "Q4")
def test_an_expired_job_that_was_refused_is_not_asked_about_again(world, view, asked):
    view.agent(2)
    counting = view.agent(1, filter=counting_filter)
    job = view.put(echo, 1, begin_by=MINUTE)
    assert view.claim(counting) is None
    view.advance(HOUR)
    assert view.claim(counting) is None
    assert asked == [job]
    internal = view.claim(view.agent(2))
    assert isinstance(internal, InternalJob)
    view.run(internal)
    assert job.status is Status.COMPLETED
