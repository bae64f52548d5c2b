"""Quotas: a hard limit, places that are kept, and what changes them."""

from __future__ import annotations

import pytest
import transaction

from perdure.model import BadStatusError, Job, Reschedule, RetryPolicy, Status
from perdure.model.internal import InternalJob
from perdure.model.quota import Quota
from perdure.model.resolving import position_of
from support.callables import echo, fail, takes_failing
from support.world import HOUR, MINUTE, SECOND


class RetryAtOnce(RetryPolicy):
    def on_receive(self, message):
        return Reschedule(-SECOND)


class RetryInAnHour(RetryPolicy):
    def on_receive(self, message):
        return Reschedule(HOUR)


@pytest.fixture
def quota(view):
    made = view.queue.quotas.create("mail", 1)
    view.commit()
    return made


def put(view, number, *names, **settings):
    return view.put(echo, number, quota_names=names or ("mail",), **settings)


def put_failing(view, policy):
    return view.put(fail, quota_names=("mail",), retry_policy_factory=policy)


# The limit


@pytest.mark.spec("Q6")
def test_no_more_jobs_than_the_size_are_claimed_over_all_dispatchers(world, view, quota):
    quota.size = 2
    for number in range(5):
        put(view, number)
    first, second = view.agent(1), view.agent(2)
    taken = [view.claim(agent) for agent in (first, second, first, second)]
    assert [job and job.args[0] for job in taken] == [0, 1, None, None]
    assert len(quota) == 2


@pytest.mark.spec("Q6")
@pytest.mark.parametrize("earlier", ["none", "done", "held"])
def test_two_connections_that_claim_the_last_place_at_once_do_not_both_get_it(
    world, view, quota, earlier
):
    if earlier != "none":
        job = put(view, 0)
        view.claim()
        if earlier == "done":
            # Its result is stored, and nobody has settled it yet.
            view.begin(job)
            job._end(None)
            view.commit()
        else:
            quota.size = 2
    for number in range(1, 300):
        put(view, number)
    one, two = view.agent(1, size=9), view.agent(2, size=9)
    other = world.view()
    two = other.get(two)
    # Of stripes of their own, so that only the quota is what both write.
    assert one.claim_job().args != two.claim_job().args
    view.commit()
    with pytest.raises(transaction.interfaces.TransientError):
        other.manager.commit()
    other.abort()
    assert two.claim_job() is None


@pytest.mark.spec("Q6")
def test_a_place_that_a_rescheduled_job_left_is_not_given_twice(world, view, quota):
    agents = [view.agent(number, size=9) for number in (1, 2)]
    job = put_failing(view, RetryInAnHour)
    assert view.run(view.claim(agents[0])) is job
    # As long as nobody has settled it, the record has it among the holders.
    quota._holders = (job._p_oid,)
    view.commit()
    for number in range(1, 300):
        put(view, number)
    view.advance(HOUR)
    view.queue._sort_in()
    view.commit()
    [stripe] = [i for i, each in enumerate(view.queue.stripes) if each.find(job, position_of(job))]
    mine, its = sorted(agents, key=lambda agent: stripe not in agent.record.stripes())
    mine.filter = takes_failing
    view.commit()
    other = world.view()
    its = other.get(its)
    # Of stripes of their own, so that only the quota is what both write.
    assert mine.claim_job() is job
    assert its.claim_job().args != []
    view.commit()
    with pytest.raises(transaction.interfaces.TransientError) as raised:
        other.manager.commit()
    assert raised.value.oid == quota._p_oid
    other.abort()


@pytest.mark.spec("Q6")
def test_a_quota_has_no_conflict_resolution():
    assert not hasattr(Quota, "_p_resolveConflict")


@pytest.mark.spec("Q6", "X6")
def test_jobs_without_the_quota_are_not_kept_waiting(view, quota):
    put(view, 1), put(view, 2)
    view.put(echo, 3)
    assert [view.claim().args[0] for _ in range(2)] == [1, 3]


# When a place is free


@pytest.mark.spec("Q6")
@pytest.mark.parametrize("status", [Status.CALLBACKS, Status.COMPLETED])
def test_a_place_is_free_as_soon_as_the_status_is_stored(view, quota, status):
    job = put(view, 1)
    put(view, 2)
    view.claim()
    view.begin(job)
    assert view.claim() is None
    job._end(None)
    if status is Status.COMPLETED:
        job._complete()
    view.commit()
    assert job.status is status
    assert view.claim().args == [2]
    assert len(quota) == 1


@pytest.mark.spec("Q6")
def test_a_place_is_free_when_the_job_is_rescheduled_for_later(world, view, quota):
    job = put_failing(view, RetryInAnHour)
    put(view, 2)
    assert view.run(view.claim()) is job
    assert view.claim().args == [2]
    view.advance(HOUR)
    assert view.claim() is None


@pytest.mark.spec("Q6", "R7")
def test_a_job_that_is_rescheduled_first_in_line_keeps_its_place(world, view, quota):
    other = view.put(echo, 0)
    job = put_failing(view, RetryAtOnce)
    put(view, 2)
    view.queue.remove(other)
    view.queue.put_back(other)
    view.commit()
    assert view.claim() is other
    assert view.run(view.claim()) is job
    assert job.status is Status.PENDING and job in quota
    assert view.claim() is job
    assert view.claim() is None


@pytest.mark.spec("Q6", "D4")
@pytest.mark.parametrize("begun", [False, True])
def test_what_a_dead_dispatcher_had_keeps_its_place_until_dealt_with(world, view, quota, begun):
    agent = view.agent(1)
    job = put(view, 1)
    view.claim(agent)
    if begun:
        view.begin(job)
    put(view, 2)
    view.advance(HOUR)
    agent.record.deactivate()
    view.commit()
    other = view.agent(2)
    assert job in quota
    if begun:
        internal = view.claim(other)
        assert isinstance(internal, InternalJob) and internal.serves is job
        assert view.claim(other) is None
        view.run(internal)
    assert view.claim(other) is job
    assert view.claim(other) is None


@pytest.mark.spec("X13", "Q5")
@pytest.mark.parametrize("how", ["pull", "remove", "fail"])
def test_a_job_that_is_taken_out_by_hand_leaves_the_place_that_it_kept(view, quota, how):
    job = put_failing(view, RetryAtOnce)
    view.run(view.claim())
    assert job in quota
    if how == "pull":
        assert view.queue.pull() is job
    elif how == "remove":
        view.queue.remove(job)
    else:
        job.fail()
    view.commit()
    assert job not in quota
    put(view, 2)
    assert 2 in [claimed.args[-1] for claimed in iter(lambda: view.claim(), None)]


@pytest.mark.spec("J17", "Q6")
def test_a_job_that_is_failed_while_it_is_assigned_leaves_its_place(view, quota):
    job = put(view, 1)
    view.claim()
    job.fail()
    view.commit()
    assert len(quota) == 0
    put(view, 2)
    claimed = [view.claim(), view.claim()]
    assert isinstance(claimed[0], InternalJob) and claimed[1].args == [2]


@pytest.mark.spec("Q6", "Q4")
def test_a_kept_place_is_left_when_the_job_expires(world, view, quota):
    job = put_failing(view, RetryAtOnce)
    job_with_deadline = put(view, 2, begin_by=MINUTE)
    agent = view.agent(1)
    view.run(view.claim(agent))
    view.queue.remove(job)
    view.commit()
    assert view.claim(agent) is job_with_deadline
    agent.record.deactivate()
    view.commit()
    assert job_with_deadline in quota
    view.advance(HOUR)
    agent.record.activate("again")
    view.commit()
    internal = view.claim(agent)
    assert internal.serves is job_with_deadline
    assert len(quota) == 0


# Several quotas, sizes, removal


@pytest.mark.spec("Q8")
def test_a_job_takes_a_place_in_all_of_its_quotas_or_in_none(view, quota):
    disk = view.queue.quotas.create("disk", 1)
    view.commit()
    put(view, 1, "disk")
    both = put(view, 2, "mail", "disk")
    put(view, 3, "mail")
    first = view.claim()
    assert first.args == [1]
    third = view.claim()
    assert third.args == [3]
    assert (len(quota), len(disk)) == (1, 1)
    view.run(first)
    assert view.claim() is None
    assert (len(quota), len(disk)) == (1, 0)
    view.run(third)
    assert view.claim() is both
    assert both in quota and both in disk


@pytest.mark.spec("Q8", "Q6")
def test_a_job_that_keeps_one_place_waits_for_another_without_blocking_itself(view, quota):
    disk = view.queue.quotas.create("disk", 1)
    view.commit()
    job = put_failing(view, RetryAtOnce)
    view.run(view.claim())
    job.quota_names = ("mail", "disk")
    view.commit()
    assert job in quota and job not in disk
    assert view.claim() is job
    assert job in quota and job in disk


@pytest.mark.spec("Q8", "J11")
def test_a_quota_that_a_waiting_job_no_longer_names_gets_its_place_back(view, quota):
    view.queue.quotas.create("disk", 1)
    view.commit()
    job = put_failing(view, RetryAtOnce)
    view.run(view.claim())
    assert job in quota
    job.quota_names = ("disk",)
    view.commit()
    assert job not in quota


@pytest.mark.spec("Q8", "J11")
@pytest.mark.parametrize("sorted_in", [True, False])
def test_quota_names_may_change_while_the_job_waits(view, quota, sorted_in):
    put(view, 1)
    view.claim()
    job = put(view, 2)
    if sorted_in:
        assert view.claim() is None
    with pytest.raises(ValueError, match="disk"):
        job.quota_names = ("disk",)
    job.quota_names = ()
    view.commit()
    assert view.claim() is job


@pytest.mark.spec("Q8")
def test_a_smaller_size_stops_nothing_and_counts_from_then_on(world, view, quota):
    quota.size = 3
    jobs = [put(view, number) for number in range(5)]
    agent = view.agent(1, size=9)
    for _ in range(3):
        view.claim(agent)
    quota.size = 1
    view.commit()
    assert world.check() == []
    assert [job.status for job in jobs[:3]] == [Status.ASSIGNED] * 3
    for job in jobs[:2]:
        view.run(job)
        assert view.claim(agent) is None
    view.run(jobs[2])
    assert view.claim(agent) is jobs[3]
    assert view.claim(agent) is None
    quota.size = 2
    view.commit()
    assert view.claim(agent) is jobs[4]


@pytest.mark.spec("Q8")
def test_a_job_whose_place_is_free_does_not_run_beyond_a_smaller_size(world, view, quota):
    quota.size = 2
    agent = view.agent(1, size=9)
    left = put_failing(view, RetryInAnHour)
    view.run(view.claim(agent))
    quota._holders = (left._p_oid,)  # settled by nobody yet
    put(view, 1)
    assert view.claim(agent).args == [1]
    quota.size = 1
    view.commit()
    view.advance(HOUR)
    assert view.claim(agent) is None


@pytest.mark.spec("Q8")
def test_size_0_lets_nothing_through(view, quota):
    quota.size = 0
    put(view, 1)
    assert view.claim() is None


@pytest.mark.spec("Q8")
def test_a_quota_that_was_removed_limits_nothing(view, quota):
    jobs = [put(view, number) for number in range(3)]
    assert view.claim() is jobs[0]
    assert view.claim() is None
    view.queue.quotas.remove("mail")
    view.commit()
    assert view.claim() is jobs[1]
    view.run(jobs[0])
    assert view.claim() is jobs[2]


@pytest.mark.spec("Q8", "Q6")
def test_a_quota_that_is_made_again_counts_what_is_under_way(world, view, quota):
    agent = view.agent(1, size=9)
    jobs = [put(view, number) for number in range(4)]
    view.queue.quotas.remove("mail")
    view.commit()
    assert view.claim(agent) is jobs[0] and view.claim(agent) is jobs[1]
    again = view.queue.quotas.create("mail", 1)
    view.commit()
    assert world.check() == []
    assert len(again) == 2
    assert view.claim(agent) is None
    view.run(jobs[0])
    assert view.claim(agent) is None
    view.run(jobs[1])
    assert view.claim(agent) is jobs[2]


@pytest.mark.spec("Q8", "Q6")
def test_a_quota_that_is_made_again_counts_what_was_interrupted(world, view, quota):
    agent = view.agent(1)
    job = put(view, 1)
    view.claim(agent)
    view.begin(job)
    view.queue.quotas.remove("mail")
    agent.record.deactivate()
    view.commit()
    again = view.queue.quotas.create("mail", 1)
    view.commit()
    assert job in again and world.check() == []


@pytest.mark.spec("Q6")
@pytest.mark.parametrize(
    ("size", "error"), [(-1, ValueError), (True, TypeError), ("2", TypeError)]
)
def test_a_size_that_is_none_is_refused(view, quota, size, error):
    with pytest.raises(error, match="disk"):
        view.queue.quotas.create("disk", size)
    with pytest.raises(error, match="mail"):
        quota.size = size
    assert quota.size == 1


@pytest.mark.spec("Q6")
def test_quotas_are_found_by_name(view, quota):
    quotas = view.queue.quotas
    assert list(quotas) == ["mail"] and len(quotas) == 1 and quotas["mail"] is quota
    with pytest.raises(ValueError, match="already"):
        quotas.create("mail", 2)
    for name in ("disk",):
        with pytest.raises(KeyError, match="disk"):
            quotas.remove(name)


@pytest.mark.spec("Q6")
def test_a_full_quota_gives_no_place_even_if_asked_to(view, quota):
    put(view, 1), put(view, 2)
    view.claim()
    waiting = view.queue[0]
    with pytest.raises(BadStatusError, match="no room"):
        quota.take(waiting)


@pytest.mark.spec("Q6")
def test_a_holder_that_is_gone_from_the_database_needs_no_place(view, quota):
    quota._holders = (b"\0\0\0\0\0\0\xff\xff",)
    view.commit()
    assert quota.has_room()
    job = put(view, 1)
    assert view.claim() is job
    assert isinstance(job, Job) and len(quota) == 1
