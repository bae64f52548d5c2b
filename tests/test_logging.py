"""What is logged, by which logger, at which level, and what every record carries."""

from __future__ import annotations

import contextlib
import logging
import operator
import uuid
from datetime import timedelta
from typing import Any

import pytest
import transaction
from ZEO.Exceptions import ClientDisconnected
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ConflictError

from perdure.actors import WorkerActor
from perdure.actors.messages import Claimed
from perdure.model import (
    DispatcherRecord,
    Failure,
    GiveUp,
    Job,
    NeverRetry,
    ReassignedError,
    Retry,
    RetryPolicy,
    find_job,
    get_queue,
    subscribe,
)
from perdure.model.fence import Fence
from perdure.model.logs import events, fields, place, placed, trace
from perdure.model.queues import find_queues
from support import jobs
from support.desk import Desk, deed, fail_commit
from support.jobs import gates
from support.losable import LosableStorage
from support.manual_clock import ManualClock
from support.systems import LIMIT, Systems, settled, within
from support.world import HOUR, View, World

EVENTS, TRACE = "perdure.events", "perdure.trace"
FIELDS = ("job", "queue", "agent", "dispatcher")


@pytest.fixture(autouse=True)
def _everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, EVENTS)
    caplog.set_level(logging.DEBUG, TRACE)


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [each for each in caplog.records if each.name in (EVENTS, TRACE)]


def logged(caplog: pytest.LogCaptureFixture, text: str) -> list[tuple[str, str]]:
    """Logger and level of each record with `text` in its message."""
    found = [each for each in ours(caplog) if text in each.getMessage()]
    return [(each.name, each.levelname) for each in found]


def about(caplog: pytest.LogCaptureFixture, text: str) -> dict[str, str]:
    """The fields of the only record with `text` in its message."""
    [record] = [each for each in ours(caplog) if text in each.getMessage()]
    return {name: getattr(record, name) for name in FIELDS}


def of_desk(desk: Desk, job: Job) -> dict[str, str]:
    return {
        "job": str(job.ref),
        "queue": "",
        "agent": "main",
        "dispatcher": str(desk.agent.record.uuid),
    }


def raise_value_error(*ignored: Any) -> None:
    raise ValueError("no")


def fail_first(error: BaseException, times: int, *, at_commit: bool = False) -> Any:
    """A callable that raises, or lets the commit raise, at its first calls."""
    left = [error] * times

    def call(*ignored: Any) -> str:
        if left:
            raised = left.pop()
            if not at_commit:
                raise raised
            fail_commit(raised)
        return "done"

    return deed(call)


class Retries(RetryPolicy):
    """Runs the job again without end."""

    def on_receive(self, message: Any) -> Any:
        return Retry()


# The table, row by row


@pytest.mark.spec("G1")
def test_queues_dispatchers_and_agents_that_come_and_go_are_information(
    systems: Systems, caplog: pytest.LogCaptureFixture
) -> None:
    system = systems.start(queues={"mail": 1})
    settled(system)
    place = {"job": "", "queue": "mail", "agent": "", "dispatcher": str(system.uuid)}
    system.stop()
    for text in ("was registered", "was activated", "was deactivated"):
        assert logged(caplog, text) == [(EVENTS, "INFO")]
        assert about(caplog, text) == place
    assert logged(caplog, "agent 'main' was added") == [(EVENTS, "INFO")]
    assert about(caplog, "agent 'main' was added") == {**place, "agent": "main"}
    assert logged(caplog, "queue 'mail' was added") == [(EVENTS, "INFO")]
    assert about(caplog, "queue 'mail' was added")["queue"] == "mail"


@pytest.mark.spec("G1")
def test_what_comes_and_goes_is_logged_when_it_is_committed(
    view: View, caplog: pytest.LogCaptureFixture
) -> None:
    def change() -> None:
        find_queues(view.connection).add("mail")
        record = view.queue.dispatchers.register(uuid.UUID(int=1))
        record.add_agent()
        record.activate("token")
        record.deactivate()
        view.queue.dispatchers.unregister(record.uuid)

    caplog.clear()
    change()
    view.abort()
    assert ours(caplog) == []
    change()
    assert ours(caplog) == []
    view.commit()
    assert len(ours(caplog)) == 6
    assert {(each.name, each.levelname) for each in ours(caplog)} == {(EVENTS, "INFO")}


@pytest.mark.spec("G1", "J15")
def test_a_failed_job_is_an_error_and_a_failed_callback_is_critical(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(raise_value_error)
    callback = job.add_callback(raise_value_error)
    quiet = Job(raise_value_error)
    quiet.failure_log_level = logging.DEBUG
    desk.put(job)
    desk.put(quiet)
    desk.work()
    texts = [f"{each!r} failed:" for each in (job, callback, quiet)]
    assert [logged(caplog, text) for text in texts] == [
        [(EVENTS, "ERROR")],
        [(EVENTS, "CRITICAL")],
        [(EVENTS, "DEBUG")],
    ]
    [text] = [each.getMessage() for each in ours(caplog) if texts[0] in each.getMessage()]
    assert "raise ValueError" in text and "ignored" in text, "verbose: with locals"
    assert about(caplog, texts[0]) == of_desk(desk, job)
    assert about(caplog, texts[1]) == {**of_desk(desk, job), "job": str(callback.ref)}


@pytest.mark.spec("G1")
def test_a_job_that_is_started_and_succeeds_and_is_completed_is_traced(
    systems: Systems, caplog: pytest.LogCaptureFixture
) -> None:
    system = systems.start(queues={"mail": 1})
    with system.transaction() as connection:
        ref = get_queue(connection, "mail").put(Job(operator.add, 1, 2)).ref
    system.wait(ref, timeout=LIMIT)
    system.stop()
    for text in ("> is started", "succeeded with 3", "> is COMPLETED"):
        assert logged(caplog, text) == [(TRACE, "INFO")], text
        assert about(caplog, text) == {
            "job": str(ref),
            "queue": "mail",
            "agent": "main",
            "dispatcher": str(system.uuid),
        }


@pytest.mark.spec("G1", "R9")
@pytest.mark.parametrize("level", [None, logging.WARNING])
def test_what_a_job_had_produced_before_its_commit_failed_is_logged(
    level: int | None, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    def succeed() -> int:
        fail_commit(OSError("disk full"))
        return 7

    def fail() -> Failure:
        fail_commit(OSError("disk full"))
        return Failure(ValueError("returned"))

    good = desk.put(Job(deed(succeed)))
    bad = desk.put(Job(deed(fail)), failure_log_level=level)
    desk.work()
    assert logged(caplog, "had succeeded with 7 before its commit failed") == [(EVENTS, "INFO")]
    expected = "ERROR" if level is None else "WARNING"
    assert logged(caplog, "had failed before its commit failed") == [(EVENTS, expected)]
    assert about(caplog, "had succeeded with 7") == of_desk(desk, good)
    assert about(caplog, "had failed before") == of_desk(desk, bad)


@pytest.mark.spec("G1")
def test_callbacks_that_are_started_or_retried_are_traced(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(abs, -1)
    callback = job.add_callback(fail_first(ConflictError(), 1))
    desk.put(job)
    desk.work()
    for what in ("started", "retried"):
        assert logged(caplog, f"callback {callback!r} is {what}") == [(TRACE, "DEBUG")]
        assert about(caplog, f"callback {callback!r} is {what}") == {
            **of_desk(desk, job),
            "job": str(callback.ref),
        }
    assert logged(caplog, f"callback {job!r}") == []


def interrupted_callback(desk: Desk, factory: Any) -> Job:
    """Run a job one of whose callbacks was ACTIVE when its worker was lost; that callback."""
    job = Job(abs, -1)
    callback = Job(abs)
    job.add_callback(callback, retry_policy_factory=factory)
    desk.put(job)
    desk.claim()
    job._begin()
    job._end(-1)
    callback._begin()
    transaction.commit()
    desk.run(job)
    return callback


@pytest.mark.spec("G1")
def test_an_interrupted_callback_that_is_retried_or_aborted_is_traced(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    again = interrupted_callback(desk, None)
    never = interrupted_callback(desk, NeverRetry)
    assert logged(caplog, f"callback {again!r} is retried") == [(TRACE, "DEBUG")]
    assert logged(caplog, f"callback {never!r} is aborted") == [(TRACE, "DEBUG")]
    assert logged(caplog, f"callback {again!r} is aborted") == []


@pytest.mark.spec("G1", "J26")
def test_a_callback_that_is_too_late_is_an_error(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    def take_long() -> None:
        desk.clock.advance(2 * HOUR)

    job = Job(deed(take_long))
    callback = Job(abs)
    callback.begin_after = desk.clock.now()
    callback.begin_by = HOUR
    job.add_callback(callback)
    desk.put(job)
    desk.work()
    assert logged(caplog, f"callback {callback!r} has expired") == [(EVENTS, "ERROR")]
    assert about(caplog, "has expired") == {**of_desk(desk, job), "job": str(callback.ref)}


@pytest.mark.spec("G1", "D6")
def test_a_job_that_was_reassigned_while_it_ran_is_an_error(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[Job] = []
    job = desk.put(Job(deed(lambda: desk.lose(lost[0]))))
    lost.append(job)
    expected = of_desk(desk, desk.claim())
    with pytest.raises(ReassignedError):
        desk.runner().run(job)
    assert logged(caplog, "was taken from this worker") == [(EVENTS, "ERROR")]
    # Nobody has it any more; who says so is known.
    assert about(caplog, "was taken from this worker") == expected


@pytest.mark.spec("G1", "D6", "D14")
@pytest.mark.parametrize("how", ["buried", "cancelled"])
def test_a_job_that_was_reassigned_before_it_began_is_an_error_unless_it_was_ended(
    how: str,
    systems: Systems,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    system = systems.start(queues={"": 1})
    find = WorkerActor._find
    taken: list[Claimed] = []

    def take_before(worker: WorkerActor, claim: Claimed) -> Job | None:
        if not taken:
            taken.append(claim)
            with system.transaction() as connection:
                job = find_job(connection, claim.ref)
                if how == "buried":
                    get_queue(connection).dispatchers[system.uuid]["main"].interrupt(job)
                else:
                    job.cancel()
        return find(worker, claim)

    monkeypatch.setattr(WorkerActor, "_find", take_before)
    ref = system.put(operator.add, 1, 2)
    settled(system)
    system.wait(ref, timeout=LIMIT)
    expected = [(EVENTS, "ERROR")] if how == "buried" else []
    assert logged(caplog, "before it began: it is left alone") == expected
    if expected:
        assert about(caplog, "before it began: it is left alone")["job"] == str(ref)


@pytest.mark.spec("G1", "D14")
def test_a_job_in_an_odd_status_is_an_error(
    systems: Systems, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    system = systems.start(queues={"": 1})
    find = WorkerActor._find

    def begin_before(worker: WorkerActor, claim: Claimed) -> Job | None:
        if not begun:
            begun.append(claim)
            with system.transaction() as connection:
                find_job(connection, claim.ref)._begin()
        return find(worker, claim)

    begun: list[Claimed] = []
    monkeypatch.setattr(WorkerActor, "_find", begin_before)
    ref = system.put(operator.add, 1, 2)
    assert system.result(ref, timeout=LIMIT) == 3
    assert logged(caplog, "instead of ASSIGNED") == [(EVENTS, "ERROR")]
    assert about(caplog, "instead of ASSIGNED") == {
        "job": str(ref),
        "queue": "",
        "agent": "main",
        "dispatcher": str(system.uuid),
    }


@pytest.mark.spec("G1")
def test_a_policy_that_retries_is_a_warning_at_the_first_and_every_fifth_time(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    job = desk.put(Job(fail_first(ValueError("odd"), 12)), retry_policy_factory=Retries)
    desk.work()
    assert job.result == "done"
    found = [each for each in ours(caplog) if "is run again by its policy" in each.getMessage()]
    assert [(each.name, each.levelname) for each in found] == [(TRACE, "WARNING")] * 3
    assert [each.getMessage().split("policy, ")[1].split()[0] for each in found] == [
        "1",
        "5",
        "10",
    ]
    assert "ValueError: odd in its call" in found[0].getMessage()
    assert {name: getattr(found[0], name) for name in FIELDS} == of_desk(desk, job)


@pytest.mark.spec("G1")
@pytest.mark.parametrize("factory", [None, NeverRetry])
def test_a_policy_that_gives_up_is_a_warning(
    factory: Any, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    job = desk.put(Job(raise_value_error), retry_policy_factory=factory)
    desk.work()
    assert logged(caplog, "is given up by its policy after ValueError: no in its call") == [
        (TRACE, "WARNING")
    ]
    assert about(caplog, "is given up by its policy") == of_desk(desk, job)


@pytest.mark.spec("G1", "R6")
@pytest.mark.parametrize("factory, decision", [(None, Retry()), (NeverRetry, GiveUp())])
def test_the_decision_about_an_interruption_is_traced(
    factory: Any, decision: Any, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    job = desk.put(Job(abs, -1), retry_policy_factory=factory)
    desk.claim()
    job._begin()
    transaction.commit()
    desk.lose(job)
    desk.work()
    assert logged(caplog, f"was interrupted: {decision!r}") == [(TRACE, "INFO")]
    assert about(caplog, "was interrupted:")["job"] == str(job.ref)
    assert logged(caplog, "is given up by its policy after an interruption") == (
        [(TRACE, "WARNING")] if factory else []
    )


@pytest.mark.spec("G1", "R3")
def test_any_error_at_the_commit_of_a_callback_is_critical_at_the_first_and_every_fifth_time(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(abs, -1)
    callback = job.add_callback(fail_first(OSError("disk full"), 11, at_commit=True))
    desk.put(job)
    desk.work()
    assert callback.result == "done"
    found = logged(caplog, f"{callback!r} cannot be committed")
    assert found == [(EVENTS, "CRITICAL")] * 3


def waits(monkeypatch: pytest.MonkeyPatch, desk: Desk, error: Exception, times: int) -> Job:
    """Run a job that is not to be seen at first; that job."""
    job = desk.put(Job(abs, -1))
    desk.claim()
    check = Fence.check
    left = [error] * times

    def raising(fence: Fence) -> None:
        if left:
            raise left.pop()
        check(fence)

    with monkeypatch.context() as patched:
        patched.setattr(Fence, "check", raising)
        # Of the views alone, not of the commits.
        patched.setattr(Fence, "beforeCompletion", lambda fence, transaction: None)
        desk.run(job)
    return job


@pytest.mark.spec("G1")
@pytest.mark.parametrize(
    "error, level",
    [(ClientDisconnected("away"), "INFO"), (ConflictError("each time"), "WARNING")],
)
def test_a_worker_that_waits_for_the_database_or_conflicts_says_so_at_the_first_and_fifth_time(
    error: Exception,
    level: str,
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = waits(monkeypatch, desk, error, 10)
    assert job.result == 1
    assert logged(caplog, "waits for the database") == [(EVENTS, level)] * 3
    texts = [each.getMessage() for each in ours(caplog) if "waits for" in each.getMessage()]
    assert [text.split("database, ")[1].split(" times")[0] for text in texts] == ["1", "5", "10"]


@pytest.mark.spec("G1")
def test_a_worker_that_cannot_find_its_job_says_for_which_it_waits(
    systems: Systems, manual_clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    storage = LosableStorage("worker 1 of agent 'main' of queue 'mail'")
    system = systems.start(systems.database(storage), {"mail": 1}, clock=manual_clock)
    storage.away.set()
    with system.transaction() as connection:
        ref = get_queue(connection, "mail").put(Job(operator.add, 1, 2)).ref
    # The dispatcher, the heartbeat and the worker.
    manual_clock.wait_until_waiting(3)
    storage.away.clear()
    manual_clock.advance(timedelta(seconds=5))
    assert within(lambda: system.result(ref)) == 3
    assert logged(caplog, "waits for the database") == [(EVENTS, "INFO")]
    assert about(caplog, "waits for the database") == {
        "job": str(ref),
        "queue": "mail",
        "agent": "main",
        "dispatcher": str(system.uuid),
    }


@pytest.mark.spec("G1", "D6")
def test_a_dispatcher_that_reactivates_itself_is_critical(
    systems: Systems, caplog: pytest.LogCaptureFixture
) -> None:
    system = systems.start(queues={"mail": 1})
    settled(system)
    with system.transaction() as connection:
        get_queue(connection, "mail").dispatchers[system.uuid].deactivate()
    settled(system)
    assert logged(caplog, "was taken for dead, and is not") == [(EVENTS, "CRITICAL")]
    assert about(caplog, "was taken for dead, and is not") == {
        "job": "",
        "queue": "mail",
        "agent": "",
        "dispatcher": str(system.uuid),
    }


@pytest.mark.spec("G1", "H3")
def test_five_conflicts_in_a_transaction_of_a_poll_are_critical(
    systems: Systems, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    system = systems.start(queues={"": 1})
    settled(system)
    left = [ConflictError("made up")] * 5
    ping = DispatcherRecord.ping

    def conflict(record: DispatcherRecord) -> bool:
        if left:
            raise left.pop()
        return ping(record)

    monkeypatch.setattr(DispatcherRecord, "ping", conflict)
    with contextlib.suppress(Exception):
        settled(system)
    assert logged(caplog, "5 transaction errors in a row") == [(EVENTS, "CRITICAL")]
    assert about(caplog, "5 transaction errors in a row")["dispatcher"] == str(system.uuid)


@pytest.mark.spec("G1")
def test_a_poll_is_traced_when_it_differs_from_the_one_before(
    systems: Systems, caplog: pytest.LogCaptureFixture
) -> None:
    system = systems.start(queues={"": 1})
    settled(system)
    caplog.clear()
    settled(system)
    assert logged(caplog, "poll: ") == []
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid].add_agent("other")
    settled(system)
    found = logged(caplog, "poll: ")
    assert found and set(found) == {(TRACE, "DEBUG")}
    [record, *_] = [each for each in ours(caplog) if "poll: " in each.getMessage()]
    assert record.dispatcher == str(system.uuid)


# What every record carries


@pytest.mark.spec("G1")
def test_every_record_of_a_system_carries_the_four_fields(
    systems: Systems, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("perdure.actors.base.Actor.restart_pause", timedelta(milliseconds=1))
    database = systems.database(MappingStorage())
    system = systems.start(database, {"mail": 3})
    subscribe(database, lambda event: 1 / 0)
    with system.transaction() as connection:
        queue = get_queue(connection, "mail")
        job = queue.put(Job(operator.add, 1, 2))
        job.add_callback(raise_value_error)
        job.add_callbacks(success=fail_first(ConflictError(), 2))
        refs = [job.ref, queue.put(Job(raise_value_error)).ref]
        refs.append(queue.put(Job(fail_first(ConflictError(), 6))).ref)
        refs.append(queue.put(Job(fail_first(OSError("full"), 1, at_commit=True))).ref)
        refs.append(queue.put(Job(fail_first(SystemExit(1), 1))).ref)
        left = queue.put(Job(jobs.pass_gate, "left")).ref
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    gates["left"].wait_until_entered()
    # Buried alive, and an actor that is told what it does not know.
    with system.transaction() as connection:
        get_queue(connection, "mail").dispatchers[system.uuid].deactivate()
    with placed(dispatcher=str(system.uuid)):  # one that has ended drops it in this thread
        for started in system._context.directory.all_started():
            started.tell("what nobody knows")
    settled(system)
    gates["left"].open()
    system.wait(left, timeout=LIMIT)
    system.stop()
    records = ours(caplog)
    assert len(records) > 50
    lacking = [
        (each.getMessage(), name)
        for each in records
        for name in FIELDS
        if not isinstance(getattr(each, name, None), str)
    ]
    assert lacking == []
    # All but what was done before there was a dispatcher.
    nameless = {each.getMessage() for each in records if each.dispatcher != str(system.uuid)}
    assert nameless <= {"queue 'mail' was added"} | {
        text for text in nameless if text.startswith("a subscriber failed")
    }
    workers = [each for each in records if each.threadName.startswith("worker")]
    assert workers and all(each.queue == "mail" and each.agent == "main" for each in workers)
    of_jobs = {each.job for each in records}
    assert {str(ref) for ref in (*refs, left)} <= of_jobs
    ended = [each for each in workers if "has stopped" in each.getMessage()]
    assert ended and all(each.job == "" for each in ended), "no job is left behind in a thread"


@pytest.mark.spec("G1", "H1")
def test_what_is_logged_while_something_is_stored_names_the_job_that_it_is_stored_for(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(abs, -1)
    callback = job.add_callback(raise_value_error)
    desk.put(job)
    begin = Job._begin
    left = [OSError("full")] * 2

    def fail(each: Job) -> None:
        if left and each in (job, callback):
            raise left.pop()
        begin(each)

    monkeypatch.setattr(Job, "_begin", fail)
    desk.work()
    assert logged(caplog, "while beginning") == [(EVENTS, "CRITICAL")]
    assert about(caplog, "while beginning") == of_desk(desk, job)
    left.append(OSError("full"))
    monkeypatch.setattr(Job, "_begin", lambda each: fail(each) if each is other else begin(each))
    job = Job(abs, -1)
    other = callback = job.add_callback(raise_value_error)
    desk.put(job)
    caplog.clear()
    desk.work()
    assert about(caplog, "while beginning") == {**of_desk(desk, job), "job": str(other.ref)}


@pytest.mark.spec("G1")
def test_what_a_record_says_goes_before_where_it_was_made(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with placed(job="1", queue="mail", agent="main"):
        events.warning("one", extra=fields(queue="", dispatcher="d"))
        with placed(job="2"):
            trace.warning("two")
        trace.warning("three")
    events.warning("four")
    assert about(caplog, "one") == {"job": "1", "queue": "", "agent": "main", "dispatcher": "d"}
    assert [about(caplog, text)["job"] for text in ("two", "three", "four")] == ["2", "1", ""]


def test_the_place_of_a_thread_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    def call() -> None:
        place(queue="other")
        events.warning("elsewhere")

    within(call)
    events.warning("in this thread")
    assert about(caplog, "elsewhere")["queue"] == "other"
    assert about(caplog, "in this thread")["queue"] == ""


def test_a_job_that_cannot_be_read_spoils_no_record(world: World, view: View) -> None:
    job = view.put(Job(abs, -1))
    assert fields(job) == {"job": str(job.ref), "queue": ""}
    assert fields(Job(abs)) == {"job": ""}
    view.connection.close()
    job._p_deactivate()
    assert set(fields(job)) == {"job"}
    view.connection = world.database.open(view.manager)
