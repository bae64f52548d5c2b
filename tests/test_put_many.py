"""Many jobs put at once."""

from __future__ import annotations

import functools
import operator
from datetime import timedelta
from typing import Any

import pytest
import transaction
from ZODB.POSException import POSKeyError
from ZODB.utils import get_pickle_metadata, load_current

from perdure.model import (
    BadStatusError,
    Job,
    NotStorableError,
    Status,
    UnknownSettingError,
    check,
    get_queue,
    pack,
)
from support import jobs
from support.desk import Desk, deed
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


@pytest.mark.spec("Q2", "Q3")
def test_many_of_several_kinds_keep_their_order_before_and_after_they_are_sorted_in(
    desk: Desk,
) -> None:
    kinds = [operator.not_, operator.neg, jobs.note, OwnJob(operator.not_), operator.not_]
    given = [type(each)(operator.not_) if isinstance(each, Job) else each for each in kinds * MANY]
    made = desk.queue.put_many(given)
    transaction.commit()
    assert list(desk.queue) == made and len(desk.queue) == len(made)
    assert check(desk.database) == []
    desk.queue._sort_in()
    transaction.commit()
    assert list(desk.queue) == made and check(desk.database) == []


class OwnJob(Job):
    """A job of an application's class, which may be run in no group and no batch."""


@pytest.mark.spec("D18", "J32")
def test_one_of_a_class_of_its_own_is_in_no_line_of_others(desk: Desk) -> None:
    made = desk.queue.put_many([operator.not_, operator.not_, OwnJob(operator.not_)])
    transaction.commit()
    desk.queue._sort_in()
    lines = {
        job: key.batch for stripe in desk.queue.stripes for key, line in stripe.lines()
        for job in line.values()
    }  # fmt: skip
    assert [lines[job] for job in made] == [True, True, False]
    transaction.abort()


@pytest.mark.spec("D17", "D18")
def test_each_is_in_the_line_of_its_own_word_on_groups(desk: Desk) -> None:
    given = [Job(operator.not_) for _ in range(6)]
    for job, word in zip(given, [None, True, False, True, None, False], strict=True):
        job.transactional = word
    made = desk.queue.put_many(given)
    transaction.commit()
    desk.queue._sort_in()
    lines = {
        job: (bool(key.group), key.batch)
        for stripe in desk.queue.stripes for key, line in stripe.lines() for job in line.values()
    }  # fmt: skip
    grouped, batched = (True, False), (True, True)
    assert [lines[job] for job in made] == [batched, grouped, batched, grouped, batched, batched]
    transaction.abort()


@pytest.mark.spec("Q7")
def test_a_pack_drops_what_is_done_and_all_bundles_but_the_last(desk: Desk) -> None:
    desk.queue.keep_completed = timedelta(0)
    made = desk.queue.put_many(deed(lambda: None) for _ in range(MANY))
    transaction.commit()
    oids = [job._p_oid for job in made]
    assert desk.work() == MANY
    desk.clock.advance(timedelta(days=1))
    report = pack(desk.database, timedelta(0))
    assert report is not None
    desk.connection.cacheMinimize()
    transaction.begin()
    left = [oid for oid in oids if is_stored(desk, oid)]
    bundles = [
        record
        for transaction_ in desk.database.storage.iterator()
        for record in transaction_
        if record.data and get_pickle_metadata(record.data)[1] == "Bundle"
    ]
    # What an inbox has at its head is kept until it is dropped.
    assert len(left) <= 1 and len(bundles) <= 1


def is_stored(desk: Desk, oid: bytes) -> bool:
    try:
        load_current(desk.database.storage, oid)
    except POSKeyError:
        return False
    return True


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
