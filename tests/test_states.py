"""The one table of states: every arrow, and everything that is no arrow."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
import transaction

from perdure.model import (
    ARROWS,
    BadStatusError,
    Job,
    Status,
    check,
    diagram,
)
from support.desk import Desk


def in_status(desk: Desk, status: Status) -> Job:
    """Make a stored job that is in that status."""
    job = Job(abs, -1)
    if status is Status.NEW:
        return desk.store(job)
    desk.put(job)
    if status is Status.PENDING:
        return job
    desk.claim()
    if status is not Status.ASSIGNED:
        job._begin()
    if status in (Status.CALLBACKS, Status.COMPLETED):
        job._end(1)
    if status is Status.COMPLETED:
        job._complete()
    transaction.commit()
    assert job.status is status
    return job


def enter(arrow: str) -> Callable[[Desk, Job], object]:
    def follow(desk: Desk, job: Job) -> None:
        job._enter(desk.queue, arrow, due=None, stamp=1, first=False, keeps_places=False)

    return follow


FOLLOW: dict[str, Callable[[Desk, Job], object]] = {
    "put": enter("put"),
    "take out": lambda desk, job: job._taken_out(),
    "claim": lambda desk, job: job._assign(desk.agent),
    "give back": enter("give back"),
    "begin": lambda desk, job: job._begin(),
    "end": lambda desk, job: job._end(1),
    "fail": lambda desk, job: job._end(1, "fail"),
    "reschedule": enter("reschedule"),
    "renew": lambda desk, job: job._renew(),
    "complete": lambda desk, job: job._complete(),
    "retry": enter("retry"),
    "reopen": lambda desk, job: job._reopen(),
}


@pytest.mark.spec("J4")
def test_every_arrow_of_the_table_is_followed_by_some_method() -> None:
    assert set(FOLLOW) == set(ARROWS)


@pytest.mark.spec("J4")
@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("arrow", ARROWS)
def test_an_arrow_leads_from_its_sources_to_its_target_and_from_nowhere_else(
    desk: Desk, status: Status, arrow: str
) -> None:
    job = in_status(desk, status)
    state = job.__getstate__()
    allowed = ARROWS[arrow].sources
    if status in allowed:
        FOLLOW[arrow](desk, job)
        # A callback is in no queue; here it is, and NEW again with a queue is PENDING.
        expected = {"renew": Status.ASSIGNED, "reopen": Status.PENDING}
        assert job.status is expected.get(arrow, ARROWS[arrow].target)
        return
    with pytest.raises(BadStatusError) as caught:
        FOLLOW[arrow](desk, job)
    assert_names(caught.value, status, allowed)
    assert job.__getstate__() == state


def assert_names(error: BadStatusError, status: Status, allowed: tuple[Status, ...]) -> None:
    """The text says in which status the job is, and in which ones it would have been allowed."""
    named = re.findall(r"\b[A-Z]{3,}\b", str(error))
    assert named[0] == status.name
    assert set(named[1:]) == {each.name for each in allowed}


NEW, PENDING, ASSIGNED, ACTIVE, CALLBACKS, COMPLETED = Status

OPERATIONS: dict[str, tuple[tuple[Status, ...], Callable[[Desk, Job], object]]] = {
    "put": ((NEW,), lambda desk, job: desk.queue.put(job)),
    "put_back": ((NEW,), lambda desk, job: desk.queue.put_back(job)),
    "call": ((NEW, ASSIGNED), lambda desk, job: job()),
    "fail": ((NEW, PENDING, ASSIGNED, CALLBACKS), lambda desk, job: job.fail()),
    "handle_interrupt": ((ACTIVE, CALLBACKS), lambda desk, job: job.handle_interrupt()),
    "resume_callbacks": ((CALLBACKS,), lambda desk, job: job.resume_callbacks()),
    "args": ((NEW, PENDING, ASSIGNED), lambda desk, job: job.args.append(1)),
    "kwargs": ((NEW, PENDING, ASSIGNED), lambda desk, job: job.kwargs.update(a=1)),
    "begin_after": ((NEW,), lambda desk, job: setattr(job, "begin_after", desk.clock.now())),
    "begin_by": (
        (NEW, PENDING),
        lambda desk, job: setattr(job, "begin_by", timedelta(hours=1)),
    ),
    "quota_names": ((NEW, PENDING), lambda desk, job: setattr(job, "quota_names", ())),
    "transactional": ((NEW,), lambda desk, job: setattr(job, "transactional", True)),
    "become a callback": ((NEW,), lambda desk, job: Job(abs).add_callback(job)),
    "become one of two": ((NEW,), lambda desk, job: Job(abs).add_callbacks(success=job)),
    "be kept as done": ((COMPLETED,), lambda desk, job: desk.agent.job_completed(job)),
}


@pytest.mark.spec("J4", "J3", "J10", "J11", "J17", "R6", "J26", "Q2", "Q9")
@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_the_status_does_not_allow_is_refused_and_changes_nothing(
    desk: Desk, status: Status, operation: str
) -> None:
    job = in_status(desk, status)
    allowed, operate = OPERATIONS[operation]
    state = job.__getstate__()
    if status in allowed:
        operate(desk, job)
        return
    with pytest.raises(BadStatusError) as caught:
        operate(desk, job)
    assert_names(caught.value, status, allowed)
    assert job.__getstate__() == state
    transaction.abort()
    if status is not NEW:
        assert check(desk.database) == []


@pytest.mark.spec("J4", "J22")
@pytest.mark.parametrize("status", Status)
def test_callbacks_and_annotations_can_be_added_in_every_status(
    desk: Desk, status: Status
) -> None:
    job = in_status(desk, status)
    with desk.elsewhere() as connection:
        found = connection.get(job._p_oid)
        callback = found.add_callback(str)
        found.annotations["a"] = 1
        assert callback.status is (PENDING if status is COMPLETED else NEW)
    transaction.begin()
    assert job.annotations["a"] == 1


@pytest.mark.spec("J4")
def test_the_diagram_shows_every_arrow_and_nothing_else() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    shown = re.findall(r"^    ([A-Z]+) --> ([A-Z]+): (.+)$", diagram(), re.MULTILINE)
    assert sorted(shown) == sorted(
        (source.name, arrow.target.name, name)
        for name, arrow in ARROWS.items()
        for source in arrow.sources
    )
    assert len(lines) == len(shown) + 3
    assert "    [*] --> NEW" in lines and "    COMPLETED --> [*]" in lines


@pytest.mark.spec("J4")
def test_every_status_can_be_reached_and_left() -> None:
    targets = {arrow.target for arrow in ARROWS.values()}
    sources = {source for arrow in ARROWS.values() for source in arrow.sources}
    assert targets == set(Status)
    assert sources == set(Status)


@pytest.mark.spec("J4")
def test_a_done_job_is_left_by_hand_alone() -> None:
    leaving = {name for name, arrow in ARROWS.items() if Status.COMPLETED in arrow.sources}
    assert leaving == {"retry", "reopen"}
