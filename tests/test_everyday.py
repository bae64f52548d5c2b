"""What everyday tests of an application use: a system that does something only when it is let."""

from __future__ import annotations

import contextlib
import datetime
import threading
import unittest.mock
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import transaction

from perdure.model import (
    BadStatusError,
    CallableNotFoundError,
    Job,
    JobFailedError,
    JobNotFoundError,
    NotStorableError,
    QueueNotFoundError,
    Status,
    UnknownSettingError,
    find_job,
    get_queue,
    serial,
)
from perdure.testing import NotAtRestError, Seeded, SteppedSystem
from support import everyday
from support.everyday import Basket, Odd, Reckless, Unreadable, double, echo, sent

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def nothing_sent() -> None:
    sent.clear()


@pytest.fixture
def system() -> Iterator[SteppedSystem]:
    with SteppedSystem(another_process=False) as made:
        yield made
        assert made.world.check() == []


def put_held(system: SteppedSystem, job: Any, after: timedelta, queue: str = "") -> None:
    with system.transaction() as connection:
        get_queue(connection, queue).put(job, begin_after=system.clock.now() + after)


def text_of(system: SteppedSystem, *args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(AssertionError) as caught:
        system.assert_enqueued(*args, **kwargs)
    return str(caught.value).splitlines()


# When jobs run.


def test_a_job_that_was_put_waits_until_the_test_lets_it_run(system: SteppedSystem) -> None:
    ref = system.put(everyday.send, "ann")
    assert (system.status(ref), sent) == (Status.PENDING, [])
    system.run_until_idle()
    assert (system.status(ref), system.result(ref), sent) == (
        Status.COMPLETED,
        "dear ann",
        ["ann"],
    )


def test_what_comes_of_a_job_runs_too_and_no_time_passes(system: SteppedSystem) -> None:
    begun = system.clock.now()
    system.put(everyday.place_order, "ann")
    system.run_until_idle()
    assert (sent, system.clock.now()) == (["ann"], begun)


def test_a_held_job_runs_when_time_has_come_to_its_moment(system: SteppedSystem) -> None:
    put_held(system, Job(everyday.send, "ann"), HOUR)
    system.advance(HOUR - timedelta(seconds=1))
    assert sent == []
    system.advance(timedelta(seconds=1))
    assert sent == ["ann"]


def test_time_passes_until_all_is_done(system: SteppedSystem) -> None:
    put_held(system, Job(everyday.send, "ann"), HOUR)
    system.come_to_rest()
    assert sent == ["ann"]


def test_the_result_of_a_coroutine_is_there_when_its_time_has_passed(
    system: SteppedSystem,
) -> None:
    begun = system.clock.now()
    assert system.result(system.put(everyday.rest, 90.0)) == "rested"
    assert system.clock.now() - begun >= timedelta(seconds=90)


def test_what_still_waits_or_runs_is_given_up_with_the_system() -> None:
    before = threading.active_count()
    with SteppedSystem() as system:
        system.put(everyday.rest, 90.0)
        system.run_until_idle()
        system.put(everyday.send, "ann")
    system.close()
    assert (threading.active_count(), sent) == (before, [])


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_others_may_be_another_one(seed: int) -> None:
    with SteppedSystem(chooser=Seeded(seed, 1.0), another_process=False) as system:
        for name in ("ann", "bob", "cy"):
            system.put(everyday.send, name)
        assert sent == []
        assert system.perform(everyday.place_order, "dee") == "dee"
        assert len(system.enqueued(everyday.send)) == 4
        system.run_until_idle()
        assert sorted(sent) == ["ann", "bob", "cy", "dee"]


# An application that has connections of its own.


def test_an_application_commits_with_the_manager_of_its_thread(system: SteppedSystem) -> None:
    connection = system.database.open()
    connection.root()["now"] = system.clock.now()
    everyday.remind(connection, "ann", HOUR)
    system.assert_enqueued(everyday.send, args=["ann"], within=HOUR)
    system.advance(HOUR)
    assert sent == ["ann"]
    connection.close()


def test_what_was_put_and_not_committed_does_not_wait(system: SteppedSystem) -> None:
    connection = system.database.open()
    get_queue(connection).put(Job(everyday.send, "ann"))
    system.refute_enqueued(everyday.send)
    transaction.abort()
    system.run_until_idle()
    assert sent == []
    connection.close()


def test_a_connection_left_open_does_not_outlive_the_system() -> None:
    with SteppedSystem() as system:
        get_queue(system.database.open()).put(Job(everyday.send, "ann"))
    with transaction.manager:
        pass
    with SteppedSystem() as system:
        system.refute_enqueued()


# What is enqueued.


def test_what_is_enqueued_is_found_by_each_of_its_sides(system: SteppedSystem) -> None:
    system.add_queues("mail")
    with system.transaction() as connection:
        get_queue(connection, "mail").put(
            Job(double, 3, times=2), begin_after=system.clock.now() + HOUR
        )
    row = system.assert_enqueued(double, args=(3,), kwargs={"times": 2}, queue="mail", within=HOUR)
    assert (row.call, row.queue, row.at) == (
        "support.everyday:double(3, times=2)",
        "mail",
        system.clock.now() + HOUR,
    )
    assert system.assert_enqueued("support.everyday:double") == row
    assert system.enqueued() == (row,)
    for other in (
        {"args": [4]},
        {"args": []},
        {"kwargs": {}},
        {"kwargs": {"times": 1}},
        {"queue": ""},
        {"within": HOUR - timedelta(seconds=1)},
    ):
        system.refute_enqueued(double, **other)
    system.refute_enqueued(echo)
    system.refute_enqueued("support.everyday:doubled")


def test_the_first_one_that_is_due_is_the_first_one_found(system: SteppedSystem) -> None:
    put_held(system, Job(everyday.send, "ann"), HOUR)
    system.put(everyday.send, "bob")
    assert [row.call[-6:] for row in system.enqueued(everyday.send)] == ["'bob')", "'ann')"]
    assert system.assert_enqueued().ref == system.enqueued()[0].ref


def test_a_partial_and_a_matcher_are_compared_as_they_mean_it(system: SteppedSystem) -> None:
    system.put(double, 3, times=2)
    import functools

    system.assert_enqueued(functools.partial(double, 3, times=2))
    system.assert_enqueued(double, args=[unittest.mock.ANY])
    system.refute_enqueued(functools.partial(double, 4))


def test_persistent_objects_are_the_same_through_any_connection(system: SteppedSystem) -> None:
    with system.transaction() as connection:
        first, second = Basket(), Basket()
        connection.root().update(first=first, second=second)
        connection.add(first)
        connection.add(second)
        queue = get_queue(connection)
        queue.put(Job(first.take, "milk"))
        queue.put(Job(everyday.count_basket, first))
    with system.transaction() as connection:
        first, second = connection.root()["first"], connection.root()["second"]
        system.assert_enqueued(first.take, args=["milk"])
        system.refute_enqueued(second.take)
        system.assert_enqueued(everyday.count_basket, args=[first])
        system.refute_enqueued(everyday.count_basket, args=[second])


def test_a_failure_shows_what_is_enqueued_the_nearest_first(system: SteppedSystem) -> None:
    system.add_queues("mail")
    system.put(echo, 1)
    put_held(system, Job(everyday.send, "ann"), 2 * HOUR, "mail")
    system.put(everyday.send, "bob")
    assert text_of(system, everyday.send, args=["ann"], within=HOUR) == [
        "no job support.everyday:send('ann'), due within 1:00:00, is enqueued",
        "enqueued are, nearest first:",
        "  support.everyday:send('ann') in queue 'mail', due in 2:00:00 (due differ)",
        "  support.everyday:send('bob') in queue '', due now (args differ)",
        "  support.everyday:echo(1) in queue '', due now (callable, args differ)",
    ]


def test_a_failure_says_that_the_job_has_run_already(system: SteppedSystem) -> None:
    system.put(everyday.send, "ann")
    system.run_until_idle()
    assert text_of(system, everyday.send, queue="") == [
        "no job support.everyday:send in queue '' is enqueued",
        "nothing is enqueued",
        "waiting no more:",
        "  support.everyday:send('ann') is COMPLETED",
    ]


def test_a_refutation_that_fails_shows_what_is_there(system: SteppedSystem) -> None:
    system.put(everyday.send, "ann")
    system.put(echo, 1)
    with pytest.raises(AssertionError) as caught:
        system.refute_enqueued(kwargs={}, args=["ann"])
    assert str(caught.value).splitlines() == [
        "a job('ann') is enqueued, and must not be:",
        "  support.everyday:send('ann') in queue '', due now",
        "besides, nearest first:",
        "  support.everyday:echo(1) in queue '', due now (args differ)",
    ]


def test_a_failure_does_not_show_a_thousand_jobs(system: SteppedSystem) -> None:
    with system.transaction() as connection:
        for number in range(25):
            get_queue(connection).put(Job(echo, number))
    lines = text_of(system, double)
    assert (len(lines), lines[-1]) == (23, "  and 5 more")


def test_a_parked_job_waits_and_says_why(system: SteppedSystem) -> None:
    everyday.gone = lambda: None  # type: ignore[attr-defined]
    everyday.gone.__module__ = everyday.__name__  # type: ignore[attr-defined]
    everyday.gone.__qualname__ = "gone"  # type: ignore[attr-defined]
    try:
        ref = system.put(everyday.gone)  # type: ignore[attr-defined]
    finally:
        del everyday.gone  # type: ignore[attr-defined]
    system.run_until_idle()
    row = system.assert_enqueued("support.everyday:gone")
    assert row.ref == ref
    assert "has no attribute 'gone'" in row.parked
    assert "parked: AttributeError" in text_of(system, double)[2]


def test_the_text_of_all_jobs_says_how_each_of_them_is(system: SteppedSystem) -> None:
    assert system.jobs_text() == "2030-01-01 00:00:00 UTC\nno jobs"
    system.put(everyday.fail, "no")
    system.run_until_idle()
    system.put(echo, 1)
    assert system.jobs_text().splitlines() == [
        "2030-01-01 00:00:00 UTC",
        "support.everyday:echo(1) in queue '': PENDING, due 2030-01-01 00:00:00",
        "support.everyday:fail('no') in queue '': COMPLETED, failed: ValueError: no",
    ]
    assert system.jobs_text(limit=1).endswith("\n...")


@pytest.mark.parametrize(
    ("kind", "match", "given"),
    [
        (TypeError, "args must be a list or a tuple", {"args": "ann"}),
        (TypeError, "args must be a list or a tuple", {"args": 3}),
        (TypeError, "kwargs must be a dictionary", {"kwargs": [1]}),
        (TypeError, "queue must be the name of a queue", {"queue": 3}),
        (TypeError, "within must be a timedelta, not 3", {"within": 3}),
        (ValueError, "within must not be negative", {"within": -HOUR}),
        (QueueNotFoundError, "no queue 'mial'", {"queue": "mial"}),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    system: SteppedSystem, kind: type[Exception], match: str, given: Any
) -> None:
    for ask in (system.enqueued, system.assert_enqueued, system.refute_enqueued):
        with pytest.raises(kind, match=match):
            ask(echo, **given)


def test_a_callable_that_no_job_can_have_is_refused(system: SteppedSystem) -> None:
    def inside() -> None: ...

    for ask in (system.put, system.perform, system.assert_enqueued, system.refute_enqueued):
        for target in (lambda: None, inside):
            with pytest.raises(NotStorableError, match="move it to the top of its module"):
                ask(target)
        with pytest.raises(NotStorableError, match="cannot be called: give a function"):
            ask(3)
    with pytest.raises(TypeError, match="by its name 'module:name', not 'send'"):
        system.assert_enqueued("send")


# Performing one.


def test_one_job_is_performed_and_what_it_puts_is_left_waiting(
    system: SteppedSystem, caplog: pytest.LogCaptureFixture
) -> None:
    system.put(everyday.send, "first")
    assert system.perform(everyday.place_order, "ann") == "ann"
    assert (sent, caplog.records) == ([], [])
    system.assert_enqueued(everyday.send, args=["ann"])
    system.assert_enqueued(everyday.send, args=["first"])
    system.run_until_idle()
    assert sorted(sent) == ["ann", "first"]


def test_a_job_that_waits_is_performed_before_its_time(system: SteppedSystem) -> None:
    put_held(system, Job(everyday.send, "ann"), HOUR)
    begun = system.clock.now()
    assert system.perform(system.assert_enqueued(everyday.send)) == "dear ann"
    assert (sent, system.clock.now()) == (["ann"], begun)
    system.refute_enqueued()
    assert system.perform(system.put(echo, 1)) == 1


def test_a_job_is_performed_in_its_queue_with_its_callbacks(system: SteppedSystem) -> None:
    system.add_queues("mail")
    with system.transaction() as connection:
        job = get_queue(connection, "mail").put(Job(echo, "ann"))
        job.add_callbacks(success=everyday.send)
        ref = job.ref
    assert system.perform(ref) == "ann"
    assert (sent, system.status(ref)) == (["ann"], Status.COMPLETED)


def test_many_are_performed_one_after_the_other(system: SteppedSystem) -> None:
    assert [system.perform(double, number) for number in range(5)] == [0, 2, 4, 6, 8]


def test_time_passes_for_a_job_that_waits_for_it(system: SteppedSystem) -> None:
    begun = system.clock.now()
    put_held(system, Job(everyday.send, "ann"), timedelta(seconds=30))
    assert system.perform(everyday.rest, 60.0) == "rested"
    assert system.clock.now() - begun >= timedelta(seconds=60)
    assert sent == []
    system.run_until_idle()
    assert sent == ["ann"]


def test_a_job_made_of_jobs_is_performed_with_them(system: SteppedSystem) -> None:
    with pytest.raises(NotStorableError, match="of use in their own connection only"):
        system.perform(serial(Job(everyday.send, "ann"), Job(everyday.send, "bob")))
    assert sent == ["ann", "bob"]


def test_a_performed_job_that_fails_raises_what_a_result_does(system: SteppedSystem) -> None:
    with pytest.raises(JobFailedError, match="ValueError: no"):
        system.perform(everyday.fail, "no")


@pytest.mark.slow
def test_a_job_that_never_ends_is_not_waited_for_for_ever(system: SteppedSystem) -> None:
    with pytest.raises(NotAtRestError, match="is ACTIVE after 0:30:00"):
        system.perform(everyday.rest, 10_000.0)
    # It counts as interrupted, and whoever claims next puts it to its policy.
    assert system.result(system.put(echo, 1)) == 1


def test_what_cannot_be_performed_is_refused(system: SteppedSystem) -> None:
    ref = system.put(echo, 1)
    with pytest.raises(TypeError, match="has its arguments already"):
        system.perform(ref, 3)
    with pytest.raises(TypeError, match="has its arguments already"):
        system.perform(Job(echo, 1), 3)
    system.run_until_idle()
    with pytest.raises(BadStatusError, match="is COMPLETED, and only a job that waits"):
        system.perform(ref)
    with system.transaction() as connection:
        get_queue(connection).pause()
    with pytest.raises(BadStatusError, match="is paused: resume it first"):
        system.perform(echo, 1)
    with system.transaction() as connection:
        get_queue(connection).remove(get_queue(connection)[0])
    with pytest.raises(JobNotFoundError):
        system.perform(type(ref)(12345))


def test_a_job_of_a_connection_is_performed_once_it_is_committed(system: SteppedSystem) -> None:
    connection = system.database.open()
    job = get_queue(connection).put(Job(echo, 1))
    with pytest.raises(JobNotFoundError):
        system.perform(job)
    transaction.commit()
    assert system.perform(job) == 1
    connection.close()


# In another process, a real one.


@pytest.fixture
def with_process() -> Iterator[SteppedSystem]:
    with SteppedSystem() as made:
        yield made


@pytest.mark.process
@pytest.mark.slow
def test_a_job_is_read_by_another_process_and_its_result_comes_from_there(
    with_process: SteppedSystem,
) -> None:
    given = Odd(3)
    result = with_process.perform(echo, given)
    assert (result, result is given) == (Odd(3), False)


@pytest.mark.process
@pytest.mark.slow
def test_persistent_objects_and_methods_are_references_in_another_process(
    with_process: SteppedSystem,
) -> None:
    with with_process.transaction() as connection:
        basket = connection.root()["basket"] = Basket()
        connection.add(basket)
        refs = [
            get_queue(connection).put(Job(basket.take, "milk")).ref,
            get_queue(connection).put(Reckless(everyday.count_basket, basket)).ref,
        ]
    assert [with_process.perform(ref) for ref in refs] == [1, 1]
    with pytest.raises(NotStorableError, match="read job.result in a transaction"):
        with_process.perform(everyday.get_basket)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("result", [False, True])
def test_what_another_process_cannot_read_is_told(
    with_process: SteppedSystem, monkeypatch: pytest.MonkeyPatch, result: bool
) -> None:
    monkeypatch.setattr(Unreadable, "readable_here", True)
    what = "the result" if result else "argument 0"
    with pytest.raises(NotStorableError, match=f"{what} of .*RuntimeError: was not configured"):
        if result:
            with_process.perform(Unreadable)
        else:
            with_process.perform(everyday.place_order, Unreadable())


@pytest.mark.process
@pytest.mark.slow
def test_a_callable_that_another_process_does_not_find_is_told(
    with_process: SteppedSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    module = types.ModuleType("made_up")
    exec("def work():\n    raise ValueError('no')", vars(module))
    monkeypatch.setitem(sys.modules, "made_up", module)
    # Also where the job has failed.
    with pytest.raises(CallableNotFoundError, match="another process, ModuleNotFoundError"):
        with_process.perform(module.work)


@pytest.mark.process
@pytest.mark.slow
def test_a_failed_job_is_a_failure_in_another_process_too(with_process: SteppedSystem) -> None:
    with pytest.raises(JobFailedError, match="ValueError: no"):
        with_process.perform(everyday.fail, "no")


# Settings.


def test_settings_are_those_of_a_process() -> None:
    moment = datetime.datetime(2031, 5, 1, 12, tzinfo=datetime.UTC)
    with SteppedSystem({"": 1, "mail": 2}, start=moment, poll_interval=HOUR) as system:
        assert system.clock.now() == moment
        assert "2031-05-01 12:00:00" in repr(system)
        with system.transaction() as connection:
            assert get_queue(connection, "mail").name == "mail"


@pytest.mark.parametrize(
    ("kind", "match", "settings"),
    [
        (ValueError, "must have a time zone", {"start": datetime.datetime(2030, 1, 1)}),
        (TypeError, "must be a datetime", {"start": "now"}),
        (UnknownSettingError, "queues must be a mapping", {"queues": ["mail"]}),
        (TypeError, "poll_intervall", {"poll_intervall": HOUR}),
        (UnknownSettingError, "poll_interval", {"poll_interval": 3}),
    ],
)
def test_settings_that_make_no_sense_are_refused_and_leave_nothing_behind(
    kind: type[Exception], match: str, settings: Any
) -> None:
    before = threading.active_count()
    with pytest.raises(kind, match=match):
        SteppedSystem(**settings)
    assert threading.active_count() == before


def test_durations_that_are_none_are_refused(system: SteppedSystem) -> None:
    for wait in (system.advance, system.come_to_rest):
        with pytest.raises(TypeError, match="must be a timedelta, not 5"):
            wait(5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="must not be negative"):
            wait(-HOUR)


def test_a_crash_of_the_process_is_survived_as_elsewhere(system: SteppedSystem) -> None:
    ref = system.put(everyday.send, "ann")
    system.process.crash()
    system.process.start()
    system.run_until_idle()
    with system.transaction() as connection:
        assert find_job(connection, ref).result == "dear ann"
    with contextlib.suppress(JobFailedError):
        system.perform(everyday.exit_at_once)
