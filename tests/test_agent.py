"""Agents: how many jobs they take, which, and what becomes of those that they have."""

from __future__ import annotations

import itertools

import pytest
from transaction.interfaces import TransientError

from perdure.model import Agent, BadStatusError, Job, Status, UnknownSettingError
from perdure.model.internal import InternalJob
from perdure.model.places import GROUPED_PER_PLACE
from support.callables import (
    choose_and_lose,
    choose_even,
    choose_first,
    choose_without_claiming,
    echo,
    nothing,
    takes_even,
)
from support.world import HOUR, MINUTE, SECOND

# How many, and which


@pytest.mark.spec("D7")
def test_an_agent_takes_no_more_jobs_than_its_size(view):
    agent = view.agent(size=2)
    for number in range(4):
        view.put(echo, number)
    taken = [view.claim(agent) for _ in range(3)]
    assert [job and job.args[0] for job in taken] == [0, 1, None]
    assert list(agent) == taken[:2] and len(agent) == 2
    view.run(taken[0])
    assert view.claim(agent).args == [2]


@pytest.mark.spec("D7", "D2")
def test_unless_told_otherwise_its_size_is_3(view):
    assert view.agent().size == 3


@pytest.mark.spec("D7")
def test_its_size_can_change_while_it_has_jobs(view):
    agent = view.agent(size=2)
    for number in range(5):
        view.put(echo, number)
    first, second = view.claim(agent), view.claim(agent)
    agent.size = 1
    view.commit()
    view.run(first)
    assert view.claim(agent) is None
    view.run(second)
    assert view.claim(agent).args == [2]
    agent.size = 3
    assert view.claim(agent).args == [3]


@pytest.mark.spec("D7")
@pytest.mark.parametrize(
    ("size", "error"), [(-1, ValueError), (True, TypeError), ("2", TypeError)]
)
def test_a_size_that_is_none_is_refused(view, size, error):
    agent = view.agent()
    with pytest.raises(error, match="main"):
        agent.size = size
    assert agent.size == 3


@pytest.mark.spec("D7")
def test_an_agent_takes_what_its_filter_accepts(view):
    agent = view.agent(filter=takes_even)
    assert agent.filter is takes_even
    for number in (1, 2):
        view.put(echo, number)
    assert view.claim(agent).args == [2]
    assert view.claim(agent) is None


@pytest.mark.spec("D7")
def test_a_chooser_claims_itself(view):
    agent = view.agent(chooser=choose_even)
    assert agent.chooser is choose_even
    for number in (1, 2):
        view.put(echo, number)
    job = view.claim(agent)
    assert (job.args, job.status, job.agent) == ([2], Status.ASSIGNED, agent)
    assert view.claim(agent) is None


@pytest.mark.spec("D7")
def test_a_chooser_is_not_asked_beyond_the_size(view):
    agent = view.agent(size=1, chooser=choose_first)
    view.put(echo, 1), view.put(echo, 2)
    assert view.claim(agent).args == [1]
    assert view.claim(agent) is None


@pytest.mark.spec("D7")
@pytest.mark.parametrize("chooser", [choose_without_claiming, choose_and_lose])
def test_a_chooser_that_does_not_return_what_it_claims_is_an_error(view, chooser):
    agent = view.agent(chooser=chooser)
    job = view.put(echo, 1)
    with pytest.raises(BadStatusError, match="chooser"):
        agent.claim_job()
    view.abort()
    assert list(view.queue) == [job]
    assert view.queue.claim() is job  # and queues count nothing for anybody else
    view.abort()


@pytest.mark.spec("D7")
def test_an_agent_has_a_filter_or_a_chooser_and_not_both(view):
    agent = view.agent(filter=takes_even)
    with pytest.raises(UnknownSettingError, match="has a filter"):
        agent.chooser = choose_first
    agent.filter = None
    agent.chooser = choose_first
    with pytest.raises(UnknownSettingError, match="has a chooser"):
        agent.filter = takes_even
    assert (agent.filter, agent.chooser) == (None, choose_first)
    with pytest.raises(UnknownSettingError):
        view.agent(1, "other", filter=takes_even, chooser=choose_first)


@pytest.mark.spec("D7")
def test_it_claims_nothing_while_its_dispatcher_is_deactivated_or_dead(world, view):
    agent = view.agent()
    view.put(echo, 1)
    agent.record.deactivate()
    assert agent.claim_job() is None
    agent.record.activate("again")
    world.advance(MINUTE + SECOND)
    assert agent.record.dead and agent.claim_job() is None
    agent.record.ping()
    assert agent.claim_job() is not None
    view.abort()


@pytest.mark.spec("D15", "X14")
def test_a_removed_agent_claims_nothing_and_the_others_go_on(view):
    one, two = view.agent(1, "one"), view.agent(1, "two")
    view.put(echo, 1)
    one.record.remove_agent("one")
    view.commit()
    assert view.claim(one) is None
    assert view.claim(two).args == [1]
    assert list(two.record) == ["two"]


@pytest.mark.spec("D15")
def test_an_agent_that_holds_jobs_cannot_be_removed(view):
    agent = view.agent()
    job = view.put(echo, 1)
    view.claim(agent)
    with pytest.raises(ValueError, match="holds 1 jobs"):
        agent.record.remove_agent("main")
    view.run(job)
    agent.record.remove_agent("main")
    assert "main" not in agent.record
    view.commit()


@pytest.mark.spec("D15")
@pytest.mark.parametrize("first", ["claim", "remove"])
def test_of_a_claim_and_the_removal_of_the_agent_one_fails(world, view, first):
    agent = view.agent()
    view.put(echo, 1)
    other = world.view()
    agent.claim_job()
    other.get(agent).record.remove_agent("main")
    winner, loser = (view, other) if first == "claim" else (other, view)
    winner.commit()
    with pytest.raises(TransientError):
        loser.manager.commit()
    loser.abort()


# What becomes of its jobs


@pytest.mark.spec("D8", "Q6")
def test_settling_moves_a_done_job_to_completed_and_may_be_repeated(view):
    view.queue.quotas.create("mail", 1)
    agent = view.agent()
    job = view.put(echo, 1, quota_names=("mail",))
    view.claim(agent)
    [claim] = agent.claims()
    assert (claim.ref, claim.number) == (job.ref, job._claim)
    agent.settle(claim.ref, claim.number)
    assert job in agent
    view.begin(job)
    job._end(None)
    job._complete()
    for _ in range(2):
        agent.settle(claim.ref, claim.number)
        assert job not in agent and list(agent.completed) == [job]
    assert len(view.queue.quotas["mail"]) == 0
    view.commit()


@pytest.mark.spec("D8")
def test_settling_an_older_claim_does_nothing(view):
    agent = view.agent()
    job = view.put(echo, 1)
    view.claim(agent)
    view.begin(job)
    job._end(None)
    job._complete()
    agent.settle(job.ref, job._claim - 1)
    assert job in agent
    assert agent.settle_all() == []
    assert job not in agent
    view.commit()


@pytest.mark.spec("D8")
def test_settling_all_returns_what_is_still_to_be_run(view):
    agent = view.agent()
    jobs = [view.put(echo, number) for number in range(3)]
    for _ in jobs:
        view.claim(agent)
    view.begin(jobs[0])
    jobs[0]._end(None)
    jobs[0]._complete()
    assert {claim.ref for claim in agent.settle_all()} == {job.ref for job in jobs[1:]}
    view.commit()


@pytest.mark.spec("D8")
def test_only_a_done_job_can_be_kept_as_done(view):
    agent = view.agent()
    job = view.put(echo, 1)
    view.claim(agent)
    with pytest.raises(BadStatusError, match="ASSIGNED"):
        agent.job_completed(job)


@pytest.mark.spec("D4", "J18")
def test_an_interrupted_job_that_had_not_begun_waits_again_as_it_was_put(world, view):
    agent = view.agent(1)
    job = view.put(echo, 1)
    begin_after = job.begin_after
    view.claim(agent)
    world.advance(MINUTE / 2)
    other = view.put(echo, 2)
    world.advance(MINUTE / 2)
    agent.interrupt(job)
    view.commit()
    assert (job.status, job.agent, job.begin_after) == (Status.PENDING, None, begin_after)
    assert list(view.queue) == [other, job]
    assert job._policy is None


@pytest.mark.spec("D4", "D6")
@pytest.mark.parametrize(
    ("status", "kind"), [(Status.ACTIVE, "interrupt"), (Status.CALLBACKS, "resume")]
)
def test_an_interrupted_job_that_had_begun_is_dealt_with_by_an_internal_job(view, status, kind):
    agent = view.agent(1)
    job = view.put(echo, 1)
    job_callback = job.add_callback(nothing)
    view.commit()
    view.claim(agent)
    view.begin(job)
    if status is Status.CALLBACKS:
        job._end(1)
        view.commit()
    number = job._claim
    agent.interrupt(job)
    view.commit()
    assert (job.status, job.agent) == (status, None)
    assert job._claim > number
    [internal] = view.queue
    assert isinstance(internal, InternalJob)
    assert (internal.kind, internal.serves) == (kind, job)
    view.put(echo, 2)
    assert view.claim(agent) is internal
    view.run(internal)
    assert job_callback.status is (Status.COMPLETED if kind == "resume" else Status.NEW)


@pytest.mark.spec("D4")
def test_an_interrupted_job_that_is_done_is_kept_as_done(view):
    agent = view.agent(1)
    job = view.put(echo, 1)
    view.claim(agent)
    view.begin(job)
    job._end(1)
    job._complete()
    agent.interrupt(job)
    assert job not in agent and list(agent.completed) == [job]
    view.commit()


@pytest.mark.spec("D4")
def test_an_internal_job_that_is_interrupted_waits_again_first_in_line(view):
    agent = view.agent(1)
    job = view.put(echo, 1)
    view.claim(agent)
    view.begin(job)
    agent.interrupt(job)
    view.commit()
    view.put(echo, 2)
    internal = view.claim(agent)
    number = internal._claim
    agent.interrupt(internal)
    view.commit()
    assert internal.status is Status.PENDING and internal._claim > number
    assert view.claim(agent) is internal


@pytest.mark.spec("D4")
def test_interrupting_what_the_agent_does_not_have_does_nothing(view):
    agent, other = view.agent(1), view.agent(2)
    job = view.put(echo, 1)
    agent.interrupt(job)
    assert job.status is Status.PENDING
    view.claim(other)
    agent.interrupt(job)
    assert job.agent is other


@pytest.mark.spec("D6", "D4")
def test_a_job_that_an_agent_lost_is_dropped_and_left_alone(view):
    agent, other = view.agent(1), view.agent(2)
    job = view.put(echo, 1)
    view.claim(agent)
    entry = agent._held[job._p_oid]
    agent.interrupt(job)
    view.commit()
    view.claim(other)
    agent._held[job._p_oid] = entry
    agent.interrupt(job)
    view.commit()
    assert job not in agent and job.agent is other and job.status is Status.ASSIGNED


@pytest.mark.spec("R6", "D4", "C5")
def test_an_internal_job_leaves_a_job_alone_that_was_taken_up_again(view):
    dead, other = view.agent(1), view.agent(2)
    job = view.put(echo, 1)
    view.claim(dead)
    view.begin(job)
    dead.record.deactivate()
    view.commit()
    internal = view.claim(other)
    # The worker of the internal job has put the job to its policy and hangs since.
    view.queue._enter(job, "reschedule", first=True, keeps_places=True)
    view.commit()
    assert view.world.check() == []
    assert view.claim(other) is job
    view.begin(job)
    number = job._claim
    assert view.world.check() == []
    view.run(internal)
    assert (job.status, job.agent, job._claim) == (Status.ACTIVE, other, number)
    job._end(1)
    job._complete()
    other.settle_all()
    view.commit()


@pytest.mark.spec("D4", "J26")
def test_a_job_that_was_left_and_taken_up_again_is_dealt_with_once(view):
    agent = view.agent(size=3)
    job = view.put(echo, 1)
    callback = job.add_callback(echo)
    view.commit()
    view.claim(agent)
    view.begin(job)
    job._end(1)
    # As where it cannot be loaded, and then where it can.
    agent._leave(job, job._claim)
    agent.interrupt_all()
    view.commit()
    internal = {each.kind: each for each in (view.claim(agent), view.claim(agent))}
    assert set(internal) == {"recover", "resume"}
    view.run(internal["recover"])
    assert (job.status, callback.status) == (Status.CALLBACKS, Status.NEW)
    view.run(internal["resume"])
    assert (job.status, callback.result) == (Status.COMPLETED, 1)
    agent.settle_all()
    view.commit()


@pytest.mark.spec("D4")
def test_a_job_that_cannot_be_interrupted_keeps_no_other_from_it(view, monkeypatch, caplog):
    agent = view.agent(size=2)
    jobs = [view.put(echo, number) for number in range(2)]
    for job in jobs:
        view.claim(agent)
        view.begin(job)
    lose = Job._lose

    def failing(self):
        if self is jobs[0]:
            raise RuntimeError("a fault of ours")
        lose(self)

    with monkeypatch.context() as faulty:
        faulty.setattr(Job, "_lose", failing)
        agent.record.deactivate()
    view.commit()
    assert "cannot be interrupted" in caplog.text and "a fault of ours" in caplog.text
    assert [internal.serves for internal in view.queue] == [jobs[1]]
    agent.record.activate("again")
    view.commit()
    assert {internal.serves for internal in view.queue} == set(jobs)


@pytest.mark.spec("D8")
def test_a_job_that_cannot_be_settled_keeps_no_other_from_it(view, monkeypatch, caplog):
    agent = view.agent(size=3)
    jobs = [view.put(echo, number) for number in range(3)]
    for job in jobs:
        view.claim(agent)
        view.begin(job)
        job._end(1)
        job._complete()
    view.commit()
    keep = Agent.job_completed

    def failing(self, job):
        self._drop(job._p_oid)
        if job is jobs[1]:
            raise RuntimeError("a fault of ours")
        keep(self, job)

    with monkeypatch.context() as faulty:
        faulty.setattr(Agent, "job_completed", failing)
        assert [claim.ref for claim in agent.settle_all()] == [jobs[1].ref]
        agent.settle(jobs[1].ref, jobs[1]._claim)
    view.commit()
    assert "cannot be settled" in caplog.text and "a fault of ours" in caplog.text
    assert set(agent.completed) == {jobs[0], jobs[2]} and list(agent) == [jobs[1]]
    assert agent.settle_all() == []
    view.commit()


@pytest.mark.spec("D8")
def test_a_late_callback_that_was_lost_is_kept_as_done_in_the_end(view):
    agent = view.agent(1)
    parent = view.put(echo, 1)
    view.run(view.claim(agent))
    late = parent.add_callback(Job(nothing))
    view.commit()
    assert view.claim(agent) is late
    view.begin(late)
    late._end(None)
    view.commit()
    agent.interrupt(late)
    view.commit()
    view.run(view.claim(agent))
    assert late.status is Status.COMPLETED
    assert late in agent.completed


@pytest.mark.spec("D4")
def test_interrupting_all_tells_how_many_there_were(world, view):
    agent = view.agent(size=5)
    for number in range(4):
        view.put(echo, number)
        view.claim(agent)
    assert agent.interrupt_all() == 4
    view.commit()
    assert len(agent) == 0 and len(view.queue) == 4
    world.advance(HOUR)


@pytest.mark.spec("D7", "D17", "C1")
def test_a_callable_that_turns_out_slow_in_the_midst_of_a_claim_costs_no_job(view):
    agent = view.agent(size=2)
    made = [view.put(nothing, transactional=True) for _ in range(300)]
    answers = itertools.chain([True] * 3, itertools.repeat(False))
    taken = agent.claim_jobs(lambda name: next(answers), {})
    view.commit()
    assert [each.job for each in taken] + list(view.queue) == made
    assert len(agent) == len(taken) == 2 * GROUPED_PER_PLACE
