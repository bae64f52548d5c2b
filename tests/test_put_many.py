"""Many jobs put at once."""

from __future__ import annotations

import functools
import operator
from datetime import timedelta
from typing import Any

import pytest
import transaction

from perdure.model import (
    BadStatusError,
    Job,
    NotStorableError,
    Status,
    UnknownSettingError,
    check,
    get_queue,
)
from support import jobs
from support.desk import Desk
from support.systems import LIMIT, Systems

MANY = 300


@pytest.mark.spec("Q2")
def test_jobs_and_callables_are_put_in_the_order_in_which_they_are_given(desk: Desk) -> None:
    given = [Job(operator.add, 1, 1), operator.not_, functools.partial(operator.add, 2, 2)]
    made = desk.queue.put_many(given)
    transaction.commit()
    assert made[0] is given[0]
    assert [job.call_text() for job in desk.queue] == [
        "_operator:add(1, 1)", "_operator:not_()", "_operator:add(2, 2)",
    ]  # fmt: skip
    assert {job.status for job in made} == {Status.PENDING}
    assert list(desk.queue) == made and check(desk.database) == []


@pytest.mark.spec("Q2")
def test_they_are_stored_as_jobs_that_were_put_one_by_one(desk: Desk) -> None:
    one = desk.queue.put(operator.not_)
    (other,) = desk.queue.put_many([operator.not_])
    transaction.commit()
    states = [{**vars(job)} for job in (one, other)]
    for state in states:
        for name in ("_stamp", "_begin_after", "_previous"):
            state.pop(name, None)
    assert states[0] == states[1]


@pytest.mark.spec("Q7")
def test_what_is_put_afterwards_comes_behind(desk: Desk) -> None:
    first = desk.queue.put(operator.not_)
    made = desk.queue.put_many(operator.not_ for _ in range(MANY))
    last = desk.queue.put(operator.not_)
    transaction.commit()
    assert list(desk.queue) == [first, *made, last]
    assert len(desk.queue) == MANY + 2


@pytest.mark.spec("J10", "J11")
def test_each_keeps_its_own_settings(desk: Desk) -> None:
    later = Job(operator.not_)
    later.begin_after = desk.clock.now() + timedelta(days=1)
    limited = Job(operator.not_)
    desk.queue.quotas.create("one")
    limited.quota_names = ("one",)
    word = Job(operator.not_)
    word.transactional = True
    desk.queue.put_many([later, limited, word])
    transaction.commit()
    assert list(desk.queue) == [limited, word, later]
    assert (later.begin_after, limited.quota_names, word.transactional) == (
        desk.clock.now() + timedelta(days=1), ("one",), True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spoilt", "error", "text"),
    [
        (lambda desk: lambda: None, NotStorableError, "lambda"),
        (lambda desk: 5, NotStorableError, "5"),
        (lambda desk: limited_by("nobody"), UnknownSettingError, "nobody"),
        (lambda desk: spoilt_since(), NotStorableError, "lambda"),
        (lambda desk: desk.queue.put(operator.not_), BadStatusError, "PENDING"),
        (lambda desk: with_parent(), BadStatusError, "a callback of another job"),
    ],
)
@pytest.mark.spec("J2", "Q2")
def test_where_one_is_refused_none_is_put(
    spoilt: Any, error: type[Exception], text: str, desk: Desk
) -> None:
    bad = spoilt(desk)
    before = len(desk.queue)
    good = Job(operator.not_)
    with pytest.raises(error, match=text):
        desk.queue.put_many([good, operator.not_, bad])
    assert (good.status, len(desk.queue)) == (Status.NEW, before)
    desk.queue.put(good)
    transaction.commit()
    assert check(desk.database) == []


def limited_by(name: str) -> Job:
    job = Job(operator.not_)
    job.quota_names = (name,)
    return job


def spoilt_since() -> Job:
    job = Job(operator.not_, [])
    job._args[0].append(lambda: None)
    return job


def with_parent() -> Job:
    return Job(operator.not_).add_callback(operator.not_)


def test_a_job_that_is_given_twice_is_refused(desk: Desk) -> None:
    job = Job(operator.not_)
    with pytest.raises(BadStatusError, match="to be put twice"):
        desk.queue.put_many([job, operator.not_, job])
    assert len(desk.queue) == 0


def test_nothing_may_be_put(desk: Desk) -> None:
    assert desk.queue.put_many([]) == []
    transaction.commit()
    assert len(desk.queue) == 0


@pytest.mark.spec("X7")
def test_they_run_once_the_transaction_is_committed(systems: Systems) -> None:
    system = systems.start()
    with system.transaction() as connection:
        refs = [job.ref for job in get_queue(connection).put_many(jobs.note for _ in range(9))]
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    with system.transaction() as connection:
        assert len(get_queue(connection)) == 0
    assert jobs.calls == [()] * 9
