"""`start`, and the system that it returns, as an application uses them."""

from __future__ import annotations

import fractions
import operator
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import transaction
from ZEO.Exceptions import ClientDisconnected
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError

from perdure.actors import (
    CancelJob,
    PauseQueue,
    PollNow,
    Resize,
    ResumeQueue,
    RetryJob,
    StatusAsked,
    start,
)
from perdure.actors.context import Activity
from perdure.actors.dispatcher import DispatcherActor
from perdure.model import (
    AbortedError,
    BadStatusError,
    DispatcherEvent,
    Job,
    JobFailedError,
    JobNotFoundError,
    JobRef,
    NeverRetry,
    NotStorableError,
    PerdureError,
    PutInDoubtError,
    QueueNotFoundError,
    Status,
    UnknownSettingError,
    find_job,
    get_queue,
    install,
    local,
    subscribe,
)
from perdure.model.errors import StopRequested, UnknownMessageError
from perdure.model.lane import Lane
from support import jobs
from support.jobs import Counter, calls, gates
from support.manual_clock import ManualClock
from support.systems import HOUR, LIMIT, Systems, queue_length, read, settled, within

NOW = timedelta(0)


# Starting


@pytest.mark.parametrize("kind", ["memory", "file", "database"])
def test_a_job_runs_on_whatever_database_is_given(
    kind: str, systems: Systems, tmp_path: Path
) -> None:
    database: Any = {"memory": "memory://", "file": f"file://{tmp_path / 'app.fs'}"}.get(kind)
    if database is None:
        database = systems.database()
    with start(database, {"": 1}, poll_interval=HOUR) as system:
        ref = system.put(operator.add, 2, 3)
        assert system.result(ref, timeout=LIMIT) == 5


def test_what_was_put_before_the_start_is_run(tmp_path: Path) -> None:
    uri = f"file://{tmp_path / 'app.fs'}"
    with start(uri, {"": 0}, poll_interval=HOUR) as system:
        ref = system.put(operator.add, 2, 3)
    with start(uri, {"": 1}, poll_interval=HOUR) as system:
        assert system.result(ref, timeout=LIMIT) == 5


def test_queues_that_are_missing_are_made(systems: Systems) -> None:
    system = systems.start(queues={"mail": 1, "other": 1})
    with system.transaction() as connection:
        ref = get_queue(connection, "mail").put(Job(operator.add, 2, 3)).ref
    assert system.result(ref, timeout=LIMIT) == 5


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"database": 7}, "7 is neither a URI nor an open ZODB.DB"),
    ({"database": "file://"}, "'file://' names no database: give a path, or a URI such as file:"),
    ({"database": "nonsense://x"}, "'nonsense://x' names no database"),
    ({"database": "file:///no/such/folder/app.fs"}, "there is no folder /no/such/folder"),
    ({"queues": ["a"]}, "queues must be a mapping of names to sizes, such as {'': 4}"),
    ({"queues": {1: 1}}, "the name of a queue is a text, not 1"),
    ({"queues": {"": -1}}, "whole number of 0 or more, not -1"),
    ({"queues": {"": 10_001}}, "is 10000 at most, not 10001"),
    ({"queues": {"": True}}, "whole number of 0 or more, not True"),
    ({"queues": {"": "3"}}, "whole number of 0 or more, not '3'"),
    ({"poll_interval": 5}, "poll_interval must be a timedelta, not 5"),
    ({"poll_interval": timedelta(0)}, "poll_interval must be longer than zero, not 0:00:00"),
    ({"ping_interval": timedelta(seconds=-1)}, "ping_interval must be longer than zero"),
    ({"ping_death_interval": None}, "ping_death_interval must be a timedelta, not None"),
    (
        {"ping_interval": timedelta(seconds=60), "ping_death_interval": timedelta(seconds=60)},
        "ping_death_interval (0:01:00) must be longer than ping_interval (0:01:00)",
    ),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_a_bad_setting_is_refused_with_its_name_and_value(
    settings: dict[str, Any], message: str
) -> None:
    settings = {"database": "memory://", **settings}
    with pytest.raises(UnknownSettingError) as caught:
        start(settings.pop("database"), settings.pop("queues", None), **settings)
    assert message in str(caught.value)


def test_signals_are_handled_in_the_main_thread_only() -> None:
    with pytest.raises(UnknownSettingError, match="in the main thread only"):
        within(lambda: start("memory://", handle_signals=True))


def test_a_start_that_fails_leaves_nothing(systems: Systems, tmp_path: Path) -> None:
    class NoThreads:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("can't start new thread")

    database = systems.database(FileStorage(str(tmp_path / "app.fs")))
    with pytest.raises(RuntimeError, match="can't start new thread"):
        start(database, execution=NoThreads())  # type: ignore[arg-type]
    # Its identity is free for the next one, which has the same then.
    uuids = {systems.start(database).uuid}
    systems.stop_all()
    uuids.add(systems.start(database).uuid)
    assert len(uuids) == 1


# Putting, and what comes of it


def test_a_job_with_arguments_takes_no_others(systems: Systems) -> None:
    system = systems.start()
    with pytest.raises(TypeError, match="has its arguments already"):
        system.put(Job(operator.add, 2), 3)
    assert system.result(system.put(Job(operator.add, 2, 4)), timeout=LIMIT) == 6


def test_a_job_of_a_connection_is_refused(systems: Systems) -> None:
    system = systems.start()
    job = Job(operator.add, 2, 4)
    system.put(job)
    with pytest.raises(BadStatusError, match="belongs to a connection"):
        system.put(job)


def test_a_failed_job_raises_with_its_failure(systems: Systems) -> None:
    system = systems.start()
    ref = system.put(jobs.fail, "broken")
    with pytest.raises(JobFailedError, match="ValueError: broken") as caught:
        system.result(ref, timeout=LIMIT)
    assert caught.value.failure.check(ValueError) is ValueError


def test_a_result_that_does_not_come_in_time_is_a_timeout(systems: Systems) -> None:
    system = systems.start()
    ref = system.put(jobs.pass_gate, "g")
    gates["g"].wait_until_entered()
    with pytest.raises(TimeoutError, match=f"job {ref} is ACTIVE"):
        system.result(ref, timeout=NOW)
    with pytest.raises(TimeoutError, match=f"job {ref} is ACTIVE"):
        system.wait(ref, timeout=NOW)
    gates["g"].open()
    assert system.result(str(ref), timeout=LIMIT) == "g"


def test_no_such_job_is_an_error_of_its_own(systems: Systems) -> None:
    system = systems.start()
    with pytest.raises(JobNotFoundError, match="there is no job ffff"):
        system.result("ffff", timeout=LIMIT)
    with pytest.raises(JobNotFoundError, match="names no job"):
        system.wait("what?", timeout=LIMIT)


def test_a_result_with_persistent_objects_is_refused(systems: Systems) -> None:
    system = systems.start()
    ref = system.put(jobs.return_persistent)
    with pytest.raises(NotStorableError, match=r"read job\.result in a transaction"):
        system.result(ref, timeout=LIMIT)
    assert isinstance(read(system, ref, "result"), Counter)


def test_the_result_is_there_before_the_callbacks_are_done(systems: Systems) -> None:
    system = systems.start()
    job = Job(operator.add, 2, 3)
    job.add_callback(Job(jobs.pass_gate, "callback"))
    ref = system.put(job)
    gates["callback"].wait_until_entered()
    assert system.result(ref, timeout=NOW) == 5
    with pytest.raises(TimeoutError, match="is CALLBACKS"):
        system.wait(ref, timeout=NOW)
    gates["callback"].open()
    system.wait(ref, timeout=LIMIT)
    assert read(system, ref, "status") is Status.COMPLETED


@pytest.mark.spec("X7")
def test_nothing_waits_for_a_poll(systems: Systems, manual_clock: ManualClock) -> None:
    # Its time stands still, so that no poll but the first ever comes.
    system = systems.start(clock=manual_clock)
    for number in range(3):
        ref = system.put(operator.add, number, 1)
        assert within(lambda ref=ref: system.result(ref)) == number + 1
        within(lambda ref=ref: system.wait(ref))
    connection = system.database.open()
    ref = get_queue(connection).put(Job(operator.add, 5, 5)).ref
    transaction.commit()
    connection.close()
    assert within(lambda: system.result(ref)) == 10


@pytest.mark.spec("X7", "J22")
def test_the_end_of_callbacks_is_heard_of_without_a_poll(
    systems: Systems, manual_clock: ManualClock
) -> None:
    system = systems.start(clock=manual_clock)
    job = Job(operator.add, 2, 3)
    job.add_callback(Job(jobs.pass_gate, "callback"))
    ref = system.put(job)
    gates["callback"].wait_until_entered()
    assert within(lambda: system.result(ref)) == 5
    waiter = threading.Thread(target=system.wait, args=(ref,), daemon=True)
    waiter.start()
    manual_clock.wait_until_waiting(3)  # heartbeat, dispatcher, and who waits for the job
    gates["callback"].open()
    waiter.join(LIMIT.total_seconds())
    assert not waiter.is_alive()
    assert read(system, ref, "status") is Status.COMPLETED


@pytest.mark.spec("X7", "J10")
def test_a_held_job_begins_when_it_is_due_without_a_poll(
    systems: Systems, manual_clock: ManualClock
) -> None:
    system = systems.start(clock=manual_clock)
    refs = []
    with system.transaction() as connection:
        for seconds in (30, 10):
            due = manual_clock.now() + timedelta(seconds=seconds)
            job = get_queue(connection).put(Job(jobs.note, seconds), begin_after=due)
            refs.append(job.ref)
    settled(system)
    assert calls == []
    manual_clock.advance(timedelta(seconds=10))
    within(lambda: system.wait(refs[1]))
    assert calls == [(10,)]
    settled(system)
    manual_clock.advance(timedelta(seconds=20))
    within(lambda: system.wait(refs[0]))
    assert calls == [(10,), (30,)]


def test_a_conflict_at_put_is_tried_again(
    systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start(queues={"": 1})
    storage = system.database.storage
    begin = storage.tpc_begin
    conflicts = iter([ConflictError("once"), ConflictError("twice")])

    def tpc_begin(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            for error in conflicts:
                raise error
        return begin(*args, **kwargs)

    monkeypatch.setattr(storage, "tpc_begin", tpc_begin)
    ref = system.put(jobs.note, "once")
    system.wait(ref, timeout=LIMIT)
    assert list(conflicts) == [] and calls == [("once",)]


@pytest.mark.spec("C2")
def test_a_put_that_raised_and_may_have_taken_place_is_not_repeated(
    systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start(queues={"": 1})
    storage = system.database.storage
    finish = storage.tpc_finish

    def tpc_finish(*args: Any, **kwargs: Any) -> Any:
        finish(*args, **kwargs)
        if threading.current_thread() is threading.main_thread():
            raise ClientDisconnected("away")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "tpc_finish", tpc_finish)
        with pytest.raises(PutInDoubtError) as caught:
            system.put(jobs.note, "once")
    assert isinstance(caught.value.__cause__, ClientDisconnected)
    assert str(caught.value.ref) in str(caught.value)
    settled(system)
    system.wait(caught.value.ref, timeout=LIMIT)
    assert calls == [("once",)] and queue_length(system) == 0


@pytest.mark.spec("C2")
def test_a_put_that_found_no_database_is_not_in_doubt_and_the_job_may_be_put_again(
    systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start(queues={"": 1})
    job = Job(jobs.note, "once")
    tried: list[Any] = []

    def away(*args: Any) -> Any:
        tried.append(args)
        raise ClientDisconnected("away")

    with monkeypatch.context() as patched:
        patched.setattr("perdure.actors.system.get_queue", away)
        with pytest.raises(ClientDisconnected):
            system.put(job)
    assert len(tried) == 1
    system.wait(system.put(job), timeout=LIMIT)
    assert calls == [("once",)]


def test_a_transaction_commits_and_aborts_apart_from_that_of_the_thread(
    systems: Systems,
) -> None:
    system = systems.start()
    mine = system.database.open()
    mine.root()["mine"] = "not committed"
    with system.transaction() as connection:
        connection.root()["kept"] = 1
    with pytest.raises(ZeroDivisionError), system.transaction() as connection:
        connection.root()["kept"] = 1 / 0
    assert mine.root()["mine"] == "not committed"
    transaction.abort()
    assert mine.root().get("kept") == 1 and "mine" not in mine.root()
    mine.close()


# Messages


@pytest.mark.spec("D12")
def test_a_message_that_nobody_knows_is_an_error_to_the_asker(systems: Systems) -> None:
    system = systems.start()
    with pytest.raises(UnknownMessageError, match="supervisor has no handler for str"):
        system.ask("what?")
    system.tell("what?")
    system.tell(Resize("no such queue", "main", 2))
    system.tell(Resize("", "main", -2))
    with pytest.raises(UnknownSettingError, match="works for the queues"):
        system.ask(Resize("no such queue", "main", 2))
    with pytest.raises(KeyError, match="has no agent 'other'"):
        system.ask(Resize("", "other", 2))
    with pytest.raises(UnknownSettingError, match="must be 0 or more, not -2"):
        system.ask(Resize("", "main", -2))
    status = system.ask(StatusAsked())
    assert status.crashes == 0 and status.degraded == ()


def test_an_operator_pauses_resumes_retries_and_cancels_by_messages(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    failed = system.put(jobs.fail)
    system.wait(failed, timeout=LIMIT)
    system.ask(PauseQueue(""))
    kept = system.put(jobs.note, "never")
    system.ask(CancelJob(kept))
    system.ask(RetryJob(failed))
    settled(system)
    assert read(system, failed, "status") is Status.PENDING

    system.ask(ResumeQueue(""))

    system.wait(failed, timeout=LIMIT)
    system.wait(kept, timeout=LIMIT)
    assert jobs.calls == [] and read(system, failed, "failed")
    assert read(system, kept, "result").check(AbortedError)


def test_what_an_operator_may_not_do_is_raised_and_harms_nothing(
    systems: Systems, caplog: pytest.LogCaptureFixture
) -> None:
    system = systems.start(queues={"": 1})
    done = system.put(jobs.add, 1, 2)
    system.wait(done, timeout=LIMIT)
    with caplog.at_level("ERROR", logger="perdure"):
        for message, error in (
            (PauseQueue("mail"), QueueNotFoundError),
            (ResumeQueue("mail"), QueueNotFoundError),
            (RetryJob(done), BadStatusError),
            (CancelJob(done), BadStatusError),
            (CancelJob(JobRef(0)), JobNotFoundError),
            (RetryJob("no reference"), JobNotFoundError),  # type: ignore[arg-type]
        ):
            with pytest.raises(error):
                system.ask(message)
    assert caplog.records == []
    assert system.ask(StatusAsked()).crashes == 0


def test_a_size_that_was_set_in_the_database_is_followed_at_once(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    refs = [system.put(jobs.pass_gate, name) for name in "ab"]
    gates["a"].wait_until_entered()
    with system.transaction() as connection:
        get_queue(connection).resize(2)
    gates["b"].wait_until_entered()
    for name, ref in zip("ab", refs, strict=True):
        gates[name].open()
        system.wait(ref, timeout=LIMIT)


def test_a_new_process_takes_the_size_that_was_set_for_its_queue(systems: Systems) -> None:
    database = systems.database()
    with database.transaction() as connection:
        install(connection)
        get_queue(connection).resize(7)
    system = systems.start(database)
    settled(system)
    with system.transaction() as connection:
        assert get_queue(connection).dispatchers[system.uuid]["main"].size == 7


def test_a_message_right_after_the_start_finds_its_receiver(systems: Systems) -> None:
    system = systems.start()
    system.ask(PollNow())
    system.tell(PollNow())
    system.ask(Resize("", "main", 5))


def test_an_answer_that_does_not_come_in_time_is_a_timeout(
    systems: Systems, manual_clock: ManualClock
) -> None:
    system = systems.start(clock=manual_clock)
    settled(system)
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[system.uuid]
        record["main"].filter = jobs.blocks_at_gate
    system.put(operator.add, 1, 1)
    gates["filter"].wait_until_entered()
    with pytest.raises(TimeoutError, match="no answer to PollNow within 0:00:00"):
        system.ask(PollNow(), timeout=NOW)


# Two systems


def test_two_systems_on_two_databases_do_not_meet(systems: Systems) -> None:
    one, other = systems.start(), systems.start()
    refs = [system.put(jobs.pass_gate, name) for system, name in ((one, "1"), (other, "2"))]
    gates["1"].wait_until_entered()
    gates["2"].wait_until_entered()
    one.stop(NOW)
    gates["2"].open()
    assert other.result(refs[1], timeout=LIMIT) == "2"
    assert other.result(other.put(operator.add, 1, 1), timeout=LIMIT) == 2


def test_two_systems_on_one_database_share_the_work(systems: Systems) -> None:
    database = systems.database()
    pair = [systems.start(database, {"": 1}) for _ in range(2)]
    assert pair[0].uuid != pair[1].uuid
    refs = [pair[0].put(jobs.pass_gate, name) for name in ("1", "2")]
    # Each has one place, so that both run at once only if each system runs one.
    gates["1"].wait_until_entered()
    gates["2"].wait_until_entered()
    gates["1"].open()
    gates["2"].open()
    for system in pair:
        assert [system.result(ref, timeout=LIMIT) for ref in refs] == ["1", "2"]
    pair[0].stop()
    assert pair[1].result(pair[1].put(operator.add, 1, 1), timeout=LIMIT) == 2


# Stopping


def test_stop_is_complete_when_it_returns_and_may_be_repeated(systems: Systems) -> None:
    before = set(threading.enumerate())
    system = systems.start()
    system.put(operator.add, 1, 1)
    assert not system.join(NOW)
    within(system.stop)
    assert set(threading.enumerate()) == before
    assert system.join(NOW)
    system.stop()
    with pytest.raises(PerdureError, match="does not answer any more"):
        system.ask(StatusAsked())
    system.tell(PollNow())


def test_stop_from_many_threads_returns_when_it_is_done(systems: Systems) -> None:
    system = systems.start()
    ended = []

    def stop() -> None:
        system.stop()
        ended.append(system.join(NOW))

    threads = [threading.Thread(target=stop) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [True] * 5


@pytest.mark.spec("D10")
def test_stop_right_after_the_start_leaves_no_active_record(systems: Systems) -> None:
    database = systems.database()
    for _ in range(20):
        system = systems.start(database)
        system.put(operator.add, 1, 1)
        system.stop()
        with system.transaction() as connection:
            assert get_queue(connection).dispatchers.active() == []


def test_a_system_that_opened_its_database_closes_it(tmp_path: Path) -> None:
    system = start(f"file://{tmp_path / 'app.fs'}", poll_interval=HOUR)
    ref = system.put(operator.add, 1, 1)
    system.result(ref, timeout=LIMIT)
    system.stop()
    for call in (lambda: system.put(operator.add, 1, 1), lambda: system.result(ref)):
        with pytest.raises(PerdureError, match="has closed its database"):
            call()


def test_a_drain_time_that_is_none_is_refused(systems: Systems) -> None:
    system = systems.start()
    for drain in (5, timedelta(seconds=-1), None):
        with pytest.raises(UnknownSettingError, match="drain must be a timedelta of 0 or more"):
            system.stop(drain)  # type: ignore[arg-type]
    assert system.result(system.put(operator.add, 1, 1), timeout=LIMIT) == 2


def test_who_waits_for_a_result_is_told_of_the_stop(
    systems: Systems, manual_clock: ManualClock
) -> None:
    system = systems.start(queues={"": 0}, clock=manual_clock)
    ref = system.put(operator.add, 1, 1)
    outcome: list[str] = []

    def wait() -> None:
        with pytest.raises(PerdureError) as caught:
            system.result(ref)
        outcome.append(str(caught.value))

    thread = threading.Thread(target=wait)
    thread.start()
    manual_clock.wait_until_waiting(3)  # heartbeat, dispatcher, and this one
    within(system.stop)
    thread.join(LIMIT.total_seconds())
    assert "the system was stopped" in outcome[0]


@pytest.mark.spec("D10")
def test_what_runs_may_end_within_the_drain_time(
    systems: Systems, manual_clock: ManualClock
) -> None:
    system = systems.start(queues={"": 1}, clock=manual_clock)
    running = system.put(jobs.pass_gate, "g")
    waiting = system.put(jobs.note, "too late")
    gates["g"].wait_until_entered()
    settled(system)
    stopping = threading.Thread(target=system.stop)
    stopping.start()
    manual_clock.wait_until_waiting(3)  # heartbeat, dispatcher, and who waits for the job
    gates["g"].open()
    stopping.join(LIMIT.total_seconds())
    assert read(system, running, "result") == "g"
    assert read(system, running, "status") is Status.COMPLETED
    assert read(system, waiting, "status") is Status.PENDING and calls == []


@pytest.mark.spec("D10")
def test_a_stop_without_a_drain_ends_the_drain_of_another_thread(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    running = system.put(jobs.pass_gate, "g")
    gates["g"].wait_until_entered()
    stopping = threading.Thread(target=system.stop, args=(timedelta(days=1),))
    stopping.start()
    with pytest.raises(StopRequested):
        system._context.stop.wait(LIMIT)
    within(lambda: system.stop(NOW))
    stopping.join(LIMIT.total_seconds())
    assert not stopping.is_alive()
    assert read(system, running, "status") is Status.ACTIVE


@pytest.mark.spec("D10", "D6")
def test_what_does_not_end_in_time_is_interrupted_and_can_commit_no_more(
    systems: Systems, caplog: pytest.LogCaptureFixture
) -> None:
    database = systems.database()
    system = systems.start(database, {"": 1})
    counter = Counter()
    with system.transaction() as connection:
        connection.root()["counter"] = counter
        ref = get_queue(connection).put(Job(counter.add_then_gate, "g")).ref
    gates["g"].wait_until_entered()
    stuck = next(each for each in threading.enumerate() if each.name.startswith("worker"))
    system.stop(NOW)
    with system.transaction() as connection:
        assert get_queue(connection).dispatchers.active() == []
        assert find_job(connection, ref).agent is None
    gates["g"].open()
    stuck.join(LIMIT.total_seconds())
    with system.transaction() as connection:
        assert connection.root()["counter"].value == 0
    assert "was taken from this worker" in caplog.text
    following = systems.start(database, {"": 1})
    assert following.result(ref, timeout=LIMIT) == 1
    with system.transaction() as connection:
        assert connection.root()["counter"].value == 1


@pytest.mark.spec("D6", "J19")
def test_a_stuck_job_that_commits_by_itself_is_refused_too(systems: Systems) -> None:
    database = systems.database()
    system = systems.start(database, {"": 1})
    counter = Counter()
    with system.transaction() as connection:
        connection.root()["counter"] = counter
        job = Job(jobs.commit_by_itself, "g", counter)
        get_queue(connection).put(job, retry_policy_factory=jobs.policy_never)
        ref = job.ref
    gates["g"].wait_until_entered()
    stuck = next(each for each in threading.enumerate() if each.name.startswith("worker"))
    system.stop(NOW)
    gates["g"].open()
    stuck.join(LIMIT.total_seconds())
    following = systems.start(database, {"": 1})
    with pytest.raises(JobFailedError, match="AbortedError"):
        following.result(ref, timeout=LIMIT)
    with system.transaction() as connection:
        assert connection.root()["counter"].value == 0


@pytest.mark.spec("J18", "D10")
def test_what_was_claimed_and_not_begun_is_no_interruption(
    systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = systems.database()
    system = systems.start(database, {"": 1})
    blocked = gates["worker"]

    def find(worker: Any, ref: Any) -> Any:
        blocked.enter()
        return None

    monkeypatch.setattr("perdure.actors.worker.WorkerActor._find", find)
    ref = system.put(jobs.note, "begun once")
    blocked.wait_until_entered()
    assert read(system, ref, "status") is Status.ASSIGNED
    system.stop(NOW)
    assert read(system, ref, "status") is Status.PENDING
    blocked.open()
    monkeypatch.undo()
    following = systems.start(database, {"": 1})
    following.result(ref, timeout=LIMIT)
    assert read(following, ref, "_policy") is None and calls == [("begun once",)]


@pytest.mark.spec("J18", "D10")
def test_a_worker_begins_nothing_once_the_system_stops(
    systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start(queues={"": 1})
    activity, stop = system._context.activity, system._context.stop
    begin, set_stop = activity.begin, stop.set
    handed, stops, begun = threading.Event(), threading.Event(), threading.Event()

    def begin_late() -> None:
        handed.set()
        assert stops.wait(LIMIT.total_seconds())
        begin()
        begun.set()

    def set_and_tell() -> None:
        set_stop()
        stops.set()
        # Now it counts as running, so that stop waits for it.
        assert begun.wait(LIMIT.total_seconds())

    monkeypatch.setattr(activity, "begin", begin_late)
    monkeypatch.setattr(stop, "set", set_and_tell)
    ref = system.put(jobs.note, "late")
    assert handed.wait(LIMIT.total_seconds())
    system.stop()
    assert calls == [] and read(system, ref, "status") is Status.PENDING


@pytest.mark.spec("X3", "D10")
def test_stop_ends_the_wait_for_a_retry_at_once(
    systems: Systems, manual_clock: ManualClock
) -> None:
    database = systems.database()
    system = systems.start(database, {"": 1}, clock=manual_clock)
    with system.transaction() as connection:
        ref = (
            get_queue(connection)
            .put(Job(jobs.fail), retry_policy_factory=jobs.RetryAfterAnHour)
            .ref
        )
    settled(system)
    manual_clock.wait_until_waiting(3)  # heartbeat, dispatcher, and the retry
    within(system.stop)  # although no time passes
    assert calls == ["JobErrored"]
    assert read(system, ref, "status") is Status.ACTIVE
    following = systems.start(database, {"": 1})
    # Its one worker has dealt with the interruption when it comes to this.
    following.wait(following.put(operator.add, 1, 1), timeout=LIMIT)
    assert calls == ["JobErrored", "Interrupted"]
    assert read(following, ref, "status") is Status.PENDING


def test_a_job_cannot_stop_its_system(systems: Systems) -> None:
    system = jobs.systems["mine"] = systems.start()
    with pytest.raises(JobFailedError, match="a job cannot stop the system"):
        system.result(system.put(jobs.stop_system, "mine"), timeout=LIMIT)
    assert system.result(system.put(operator.add, 1, 1), timeout=LIMIT) == 2


def test_what_the_dispatcher_calls_cannot_stop_the_system(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    settled(system)
    refused: list[bool] = []

    def stop(event: DispatcherEvent) -> None:
        try:
            system.stop()
        except BadStatusError as error:
            refused.append("let another thread call stop" in str(error))

    unsubscribe = subscribe(system.database, stop)
    within(system.stop)  # the dispatcher tells that it was deactivated
    unsubscribe()
    assert refused == [True]


@pytest.mark.spec("D10")
def test_stop_does_not_wait_for_the_pause_after_a_crash(
    systems: Systems, manual_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start(queues={"": 1}, clock=manual_clock)
    settled(system)
    polled: list[Any] = []

    def crash(dispatcher: Any) -> Any:
        polled.append(dispatcher)
        raise ZeroDivisionError

    monkeypatch.setattr(DispatcherActor, "_poll", crash)
    system._context.directory.get("dispatcher").tell(PollNow())
    manual_clock.wait_until_waiting(2)  # the dispatcher in its pause, and the heartbeat
    within(lambda: system.stop(timedelta(0)))  # no time passes
    assert len(polled) == 1
    with system.transaction() as connection:
        assert get_queue(connection).dispatchers.active() == []


def test_an_error_ends_the_with_statement_and_the_system(systems: Systems) -> None:
    with pytest.raises(ZeroDivisionError), start("memory://", poll_interval=HOUR) as system:
        raise ZeroDivisionError
    assert system.join(NOW)


def test_the_pool_is_as_large_as_before(systems: Systems) -> None:
    database = systems.database()
    size = database.getPoolSize()
    system = systems.start(database, {"": 20})
    assert database.getPoolSize() >= size + 20
    system.stop()
    assert database.getPoolSize() == size


# Jobs that use the system


@pytest.mark.spec("L1")
def test_a_running_job_reaches_what_it_belongs_to(systems: Systems) -> None:
    system = systems.start(queues={"mail": 1})
    with system.transaction() as connection:
        ref = get_queue(connection, "mail").put(Job(jobs.report_local)).ref
    expected = (str(ref), "mail", str(system.uuid), "main")
    assert system.result(ref, timeout=LIMIT) == expected


def test_a_job_puts_further_jobs(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    system.put(jobs.put_further, 5)
    gates["last"].wait_until_entered()
    assert calls == [5, 4, 3, 2, 1, 0]


def test_a_job_puts_through_the_system_and_waits_for_the_result(systems: Systems) -> None:
    system = jobs.systems["mine"] = systems.start(queues={"": 2})
    assert system.result(system.put(jobs.put_through_system, "mine"), timeout=LIMIT) == 4


def test_a_job_adds_a_callback_to_itself(systems: Systems) -> None:
    system = systems.start()
    system.wait(system.put(jobs.add_callback_to_itself, "hello"), timeout=LIMIT)
    assert calls == [("hello", "hello")]


@pytest.mark.slow
def test_five_hundred_jobs_with_callbacks_and_quotas_end_in_order(systems: Systems) -> None:
    system = systems.start(queues={"": 4})
    refs = []
    with system.transaction() as connection:
        queue = get_queue(connection)
        queue.quotas.create("narrow", size=2)
        counters = connection.root()["counters"] = [Counter() for _ in range(500)]
        for number, counter in enumerate(counters):
            job = Job(counter.add)
            if number % 2:
                job.quota_names = ("narrow",)
            job.add_callback(Job(counter.add, 10) if number % 3 else Job(jobs.note, number))
            refs.append(queue.put(job).ref)
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    with system.transaction() as connection:
        values = [counter.value for counter in connection.root()["counters"]]
    assert values == [11 if number % 3 else 1 for number in range(500)]
    assert len(calls) == len(range(0, 500, 3))


@pytest.mark.spec("L2")
def test_progress_is_seen_while_the_job_runs(systems: Systems) -> None:
    system = systems.start()
    ref = system.put(jobs.report_progress, "g")
    gates["g"].wait_until_entered()
    with system.transaction() as connection:
        job = find_job(connection, ref)
        assert job.annotations["progress"] == 50
        assert local.get_live_annotation("progress", job=job) == 50
        local.set_live_annotation("flag", "go on", job=job)
    gates["g"].open()
    assert system.result(ref, timeout=LIMIT) == "go on"


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader")
    with pytest.raises(UnknownSettingError, match=r"letter\.txt is a file, and no ZODB database"):
        start(f"file://{path}")
    assert [each.name for each in tmp_path.iterdir()] == ["letter.txt"]
    assert path.read_text() == "Dear reader"


@pytest.mark.parametrize("call", ["result", "wait", "ask", "join"])
def test_a_timeout_that_is_no_duration_is_refused(call: str, systems: Systems) -> None:
    system = systems.start()
    ref = system.put(operator.add, 2, 3)
    calls: dict[str, Any] = {
        "result": lambda: system.result(ref, timeout=5),
        "wait": lambda: system.wait(ref, timeout=5),
        "ask": lambda: system.ask(StatusAsked(), timeout=5),
        "join": lambda: system.join(timeout=5),
    }
    with pytest.raises(UnknownSettingError, match="timeout must be a timedelta.*not 5"):
        calls[call]()


@pytest.mark.spec("J7")
def test_the_traceback_of_a_failed_job_begins_with_the_jobs_own_code(systems: Systems) -> None:
    system = systems.start()
    ref = system.put(fractions.Fraction, "no number")
    with pytest.raises(JobFailedError) as caught:
        system.result(ref, timeout=LIMIT)
    assert caught.value.failure.frames[0].file == fractions.__file__


@pytest.mark.spec("D10")
def test_a_job_that_waits_for_the_lane_may_end_within_the_drain(
    systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, drains, ended = threading.Event(), threading.Event(), threading.Event()
    wait, wait_until_none, end = Lane._wait, Activity.wait_until_none, Lane.end

    def signalling_wait(lane: Lane, *args: Any) -> Any:
        waits.set()
        return wait(lane, *args)

    def signalling_drain(activity: Activity, timeout: timedelta) -> bool:
        drains.set()
        return wait_until_none(activity, timeout)

    def signalling_end(lane: Lane) -> None:
        ended.set()
        end(lane)

    database = systems.database()
    system = systems.start(database, queues={"": 1})
    with system._context.lane.exclusive():
        monkeypatch.setattr(Lane, "end", signalling_end)
        monkeypatch.setattr(Lane, "_wait", signalling_wait)
        monkeypatch.setattr(Activity, "wait_until_none", signalling_drain)
        job = Job(operator.add, 2, 3)
        job.retry_policy_factory = NeverRetry
        ref = system.put(job)
        assert waits.wait(LIMIT.total_seconds())
        stopping = threading.Thread(target=system.stop, args=(LIMIT,))
        stopping.start()
        assert drains.wait(LIMIT.total_seconds())
        # Whoever waits is told of that as soon as there is a processor for it.
        assert not ended.is_set()
    stopping.join(LIMIT.total_seconds())
    with system.transaction() as connection:
        assert find_job(connection, ref).result == 5
