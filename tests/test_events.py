"""Events: what is told of queues, dispatchers and jobs, to whom, and when."""

from __future__ import annotations

import dataclasses
import logging
import operator
import pickle
import queue as queues
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pykka
import pytest
from ZODB.POSException import ConflictError

from perdure.actors import PollNow, Subscribe, Unsubscribe
from perdure.model import (
    DispatcherEvent,
    Event,
    Happening,
    Job,
    JobEvent,
    JobRef,
    QueueEvent,
    get_queue,
    serial,
    subscribe,
)
from perdure.model.queues import find_queues
from support import jobs
from support.desk import Desk, deed, fail_commit
from support.systems import LIMIT, Systems, settled, within
from support.world import HOUR, View, World


def raise_value_error(*ignored: Any) -> None:
    raise ValueError("no")


def return_job() -> Job:
    return Job(raise_value_error)


@pytest.fixture
def heard(desk: Desk) -> Iterator[list[JobEvent]]:
    """What is told of jobs."""
    found: list[JobEvent] = []
    end = subscribe(desk.database, found.append, JobEvent)
    yield found
    end()


def failed(job: Job, reason: str, queue: str | None = "") -> JobEvent:
    return JobEvent(Happening.JOB_FAILED, queue, job.ref, job.callable_name, reason)


# What is told


@pytest.mark.spec("D2")
def test_that_a_queue_was_added_is_told_after_the_commit_in_its_thread(
    world: World, view: View
) -> None:
    told: list[tuple[Event, int]] = []
    subscribe(world.database, lambda event: told.append((event, threading.get_ident())), Event)
    find_queues(view.connection).add("mail")
    view.abort()
    find_queues(view.connection).add("mail")
    assert told == []
    view.commit()
    assert told == [(QueueEvent(Happening.QUEUE_ADDED, "mail"), threading.get_ident())]


@pytest.mark.spec("D2")
def test_that_a_job_or_a_callback_failed_is_told_once(desk: Desk, heard: list[JobEvent]) -> None:
    job = Job(raise_value_error)
    callback = job.add_callback(raise_value_error)
    job.add_callback(abs)  # cannot be called with a failure
    job.add_callbacks(success=abs)  # passes the failure on, which is not its own
    desk.put(job)
    desk.work()
    other = job.callbacks[1]
    assert heard[:2] == [failed(job, "ValueError: no"), failed(callback, "ValueError: no")]
    assert [(event.ref, event.happening) for event in heard[2:]] == [
        (other.ref, Happening.JOB_FAILED)
    ]


def test_an_attempt_that_is_followed_by_another_is_no_failure(
    desk: Desk, heard: list[JobEvent]
) -> None:
    left = [ConflictError()] * 3

    def conflict() -> None:
        if left:
            fail_commit(left.pop())

    desk.put(Job(deed(conflict)))
    desk.work()
    assert left == [] and heard == []


def test_a_failure_of_the_commit_is_told(desk: Desk, heard: list[JobEvent]) -> None:
    job = desk.put(Job(deed(lambda: fail_commit(OSError("disk full")))))
    desk.work()
    assert heard == [failed(job, "OSError: disk full")]


def test_who_is_cancelled_or_too_late_or_waited_for_a_failed_one_has_failed(
    desk: Desk, heard: list[JobEvent]
) -> None:
    job = desk.put(Job(abs, 1))
    job.cancel()
    late = desk.put(Job(abs, 1), begin_by=HOUR)
    assert [event.ref for event in heard] == [job.ref]
    assert heard[0].reason.endswith("AbortedError: it was cancelled before it began")
    heard.clear()
    desk.clock.advance(2 * HOUR)
    desk.work()
    assert [event.ref for event in heard] == [late.ref]
    assert "JobTimeoutError" in heard[0].reason
    heard.clear()
    outer = desk.put(Job(return_job))
    desk.work()
    assert [event.reason for event in heard] == ["ValueError: no"] * 2
    assert heard[1].ref == outer.ref
    heard.clear()
    desk.put(serial(Job(raise_value_error)))
    desk.work()
    assert len(heard) == 1, "the whole has not failed"


def test_a_job_in_no_queue_says_so(desk: Desk, heard: list[JobEvent]) -> None:
    job = desk.store(Job(raise_value_error))
    job()
    assert heard == [failed(job, "ValueError: no", None)]
    Job(raise_value_error)()  # never stored: there is no database to tell it of
    assert len(heard) == 1


def test_a_long_reason_is_cut(desk: Desk, heard: list[JobEvent]) -> None:
    def fail() -> None:
        raise ValueError("x" * 5000)

    desk.put(Job(deed(fail)))
    desk.work()
    assert len(heard[0].reason) == 1000


@pytest.mark.spec("D2")
def test_that_a_job_was_parked_is_told_with_the_name_and_the_reason(
    desk: Desk, heard: list[JobEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = desk.put(Job(jobs.add, 1, 2))
    other = desk.put(Job(jobs.add, 1, 3))
    monkeypatch.delattr(jobs, "add")
    for _ in range(2):
        desk.work()
    assert [(event.happening, event.queue, event.ref) for event in heard] == [
        (Happening.JOB_PARKED, "", each.ref) for each in (job, other)
    ]
    assert {event.name for event in heard} == {"support.jobs:add"}
    assert "add" in heard[0].reason and heard[0].reason == heard[1].reason


EVENTS = [
    DispatcherEvent(Happening.ACTIVATED, "mail", uuid.UUID(int=1)),
    QueueEvent(Happening.QUEUE_ADDED, "mail"),
    JobEvent(Happening.JOB_FAILED, None, JobRef(1), "app:send", "ValueError: no"),
]


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_frozen_and_goes_anywhere(event: Event) -> None:
    assert pickle.loads(pickle.dumps(event)) == event
    for field in dataclasses.fields(event):
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
            setattr(event, field.name, None)
    assert not hasattr(event, "__dict__")


# To whom


def test_only_what_was_subscribed_to_is_told(desk: Desk) -> None:
    told: dict[str, list[Event]] = {name: [] for name in ("none", "all", "two")}
    subscribe(desk.database, told["none"].append)
    subscribe(desk.database, told["all"].append, Event)
    subscribe(desk.database, told["two"].append, (JobEvent, QueueEvent))
    find_queues(desk.connection).add("mail")
    desk.put(Job(raise_value_error))
    desk.work()
    kinds = {name: [type(event).__name__ for event in found] for name, found in told.items()}
    assert kinds == {
        "none": ["DispatcherEvent"] * 2,  # registered and activated, as they were from the start
        "all": ["QueueEvent", *["DispatcherEvent"] * 2, "JobEvent"],
        "two": ["QueueEvent", "JobEvent"],
    }


@pytest.mark.parametrize("kinds", [int, "JobEvent", (JobEvent, None), EVENTS[0]])
def test_what_is_no_kind_of_event_is_refused(desk: Desk, kinds: Any) -> None:
    with pytest.raises(TypeError, match="is no kind of event: give Event or a class"):
        subscribe(desk.database, print, kinds)


def test_the_fault_of_a_subscriber_is_its_own(
    desk: Desk, heard: list[JobEvent], caplog: pytest.LogCaptureFixture
) -> None:
    end = subscribe(desk.database, raise_value_error, JobEvent)
    more: list[Event] = []
    subscribe(desk.database, more.append, JobEvent)
    job = desk.put(Job(raise_value_error))
    desk.work()
    assert heard == more and len(more) == 1
    [record] = [each for each in caplog.records if "a subscriber failed" in each.getMessage()]
    assert (record.name, record.levelname) == ("perdure.events", "ERROR")
    assert (record.__dict__["job"], record.exc_info is not None) == (str(job.ref), True)
    end()
    caplog.clear()
    desk.put(Job(raise_value_error))
    desk.work()
    assert "a subscriber failed" not in caplog.text and len(more) == 2


# By message


class Listener(pykka.ThreadingActor):
    """An actor of the application's."""

    def __init__(self, heard: queues.Queue[Any]) -> None:
        super().__init__()
        self._heard = heard

    def on_receive(self, message: Any) -> None:
        self._heard.put(message)


@pytest.fixture
def listener() -> Iterator[tuple[Any, queues.Queue[Any]]]:
    inbox: queues.Queue[Any] = queues.Queue()
    ref = Listener.start(inbox)
    yield ref, inbox
    ref.stop()


@pytest.mark.spec("D2")
def test_an_actor_is_told_what_it_has_subscribed_to_until_it_ends_that(
    systems: Systems, listener: tuple[Any, queues.Queue[Any]]
) -> None:
    ref, inbox = listener
    system = systems.start(queues={"": 1})
    system.ask(Subscribe(ref, JobEvent))
    job = system.put(raise_value_error)
    limit = LIMIT.total_seconds()
    assert inbox.get(timeout=limit) == JobEvent(
        Happening.JOB_FAILED, "", job, f"{__name__}:raise_value_error", "ValueError: no"
    )
    system.ask(Subscribe(ref))  # instead, not besides
    with system.transaction() as connection:
        find_queues(connection).add("mail")
    assert inbox.get(timeout=limit) == QueueEvent(Happening.QUEUE_ADDED, "mail")
    system.wait(system.put(raise_value_error), timeout=LIMIT)
    assert inbox.get(timeout=limit).happening is Happening.JOB_FAILED
    system.ask(Unsubscribe(ref))
    system.ask(Unsubscribe(ref))
    system.wait(system.put(raise_value_error), timeout=LIMIT)
    ref.ask("the last")
    assert inbox.get(timeout=limit) == "the last"


def test_a_subscription_by_message_hears_of_the_end_of_its_system_and_ends_with_it(
    systems: Systems, listener: tuple[Any, queues.Queue[Any]]
) -> None:
    ref, inbox = listener
    database = systems.database()
    system = systems.start(database, {"": 1})
    settled(system)
    system.tell(Subscribe(ref))
    system.ask(PollNow())
    system.stop()
    assert inbox.get(timeout=LIMIT.total_seconds()) == DispatcherEvent(
        Happening.DEACTIVATED, "", system.uuid
    )
    within(lambda: systems.start(database, {"": 1}))
    ref.ask("the last")
    assert inbox.get(timeout=LIMIT.total_seconds()) == "the last"


def test_an_actor_that_has_stopped_is_forgotten(
    systems: Systems,
    listener: tuple[Any, queues.Queue[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "perdure.trace")
    ref, _ = listener
    system = systems.start(queues={"": 1})
    system.ask(Subscribe(ref))
    ref.stop()
    for _ in range(2):
        system.wait(system.put(raise_value_error), timeout=LIMIT)
    assert caplog.text.count("has stopped, and is told no more events") == 1
    assert "a subscriber failed" not in caplog.text


@pytest.mark.parametrize("message", [Subscribe("me"), Unsubscribe(print)])  # type: ignore[arg-type]
def test_what_is_no_actor_is_refused(systems: Systems, message: Any) -> None:
    system = systems.start()
    with pytest.raises(TypeError, match="no reference to an actor: give its actor_ref"):
        system.ask(message)


def test_a_subscriber_that_takes_long_keeps_no_other_process_step_from_being_committed(
    systems: Systems,
) -> None:
    gate = jobs.Gate()
    system = systems.start(queues={"": 2})
    subscribe(system.database, lambda event: gate.enter(), JobEvent)
    slow = system.put(raise_value_error)
    gate.wait_until_entered()
    assert system.result(system.put(operator.add, 1, 2), timeout=LIMIT) == 3
    gate.open()
    system.wait(slow, timeout=LIMIT)
    with system.transaction() as connection:
        assert len(get_queue(connection)) == 0
