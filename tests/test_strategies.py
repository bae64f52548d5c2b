"""What is drawn for jobs, policies, their messages, and faults is what it says."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from perdure.model import (
    CommitErrored,
    GiveUp,
    Interrupted,
    Job,
    JobErrored,
    NeverRetry,
    NotStorableError,
    Reschedule,
    Retry,
    RetryCommonForever,
    RetryCommonFourTimes,
    Status,
)
from perdure.testing import Fault, World, strategies
from perdure.testing.plans import COMPOSITES, KINDS
from support.simulated import add

HOUR = timedelta(hours=1)
FEW = settings(
    max_examples=30,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

SEARCH = settings(FEW, max_examples=2000, phases=[Phase.generate])


def drawn(strategy: st.SearchStrategy[Any], like: Any) -> Any:
    """One that is `like` this; fails where there is none."""
    try:
        return find(strategy, like, settings=SEARCH)
    except NoSuchExample:
        pytest.fail("none was drawn")


@FEW
@given(strategies.jobs(add, st.tuples(st.text()), quotas=("a", "b")))
def test_jobs_are_new_and_have_what_was_asked_for(job: Job) -> None:
    assert (job.status, job.callable, len(job.args)) == (Status.NEW, add, 1)
    assert set(job.quota_names) <= {"a", "b"}
    job.check_storable()


@pytest.mark.parametrize(
    "like",
    [
        lambda job: job.quota_names == ("b", "a"),
        lambda job: job.begin_after is not None and job.begin_by is None,
        lambda job: job.begin_by == timedelta(0),
        lambda job: job.retry_policy_factory is NeverRetry,
        lambda job: job.failure_log_level == 50,
        lambda job: job.kwargs == {"number": 2},
    ],
)
def test_every_setting_of_a_job_is_drawn(like: Any) -> None:
    kwargs = st.sampled_from([{}, {"number": 2}])
    drawn(strategies.jobs(add, st.just(("n",)), kwargs, quotas=("a", "b")), like)


@settings(FEW, max_examples=5)
@given(st.lists(strategies.jobs(add, st.just(("n",))), min_size=1, max_size=3))
def test_jobs_that_were_drawn_can_be_put_and_end(jobs: list[Job]) -> None:
    with World() as world:
        process = world.process()
        for job in jobs:
            process.put(job)
        world.come_to_rest()
        assert world.unended() == []


def test_a_job_that_could_not_be_stored_is_refused_when_it_is_drawn() -> None:
    with pytest.raises(NotStorableError):
        find(strategies.jobs(lambda: None), lambda job: True, settings=FEW)


def test_policies_are_those_that_there_are() -> None:
    for policy in (None, RetryCommonFourTimes, RetryCommonForever, NeverRetry):
        assert drawn(strategies.policies(), lambda each, policy=policy: each is policy) is policy


@FEW
@given(strategies.messages(), strategies.decisions())
def test_messages_and_decisions_are_what_policies_know(message: Any, decision: Any) -> None:
    policy = RetryCommonFourTimes(Job(add, "n"))
    assert isinstance(policy.on_receive(message), Retry | GiveUp)
    assert isinstance(decision, Retry | Reschedule | GiveUp)
    assert type(pickle.loads(pickle.dumps(message))) is type(message)


def test_every_message_and_decision_is_drawn() -> None:
    for kind in (JobErrored, CommitErrored, Interrupted):
        drawn(strategies.messages(), lambda each, kind=kind: type(each) is kind)
    for kind in (Retry, Reschedule, GiveUp):
        drawn(strategies.decisions(), lambda each, kind=kind: type(each) is kind)


def test_every_fault_is_drawn() -> None:
    likes = [
        lambda fault: fault.crashes and fault.after,
        lambda fault: fault.crashes and not fault.after,
        lambda fault: isinstance(fault.error, OSError),
        lambda fault: fault.delay > timedelta(seconds=30),
    ]
    for like in likes:
        assert isinstance(drawn(strategies.faults(), like), Fault)


@FEW
@given(strategies.durations(HOUR))
def test_durations_are_within_what_was_asked_for(duration: timedelta) -> None:
    assert timedelta(0) <= duration <= HOUR


def test_every_kind_of_job_is_planned_and_turns_are_lists_or_seeds() -> None:
    for kind in (*KINDS, *COMPOSITES):
        drawn(strategies.plans(("a",)), lambda plan, kind=kind: plan.kind == kind)
    for kind in (tuple, int):
        drawn(strategies.turns(), lambda turns, kind=kind: type(turns) is kind)
