"""Dispatchers and agents at work: who is alive, who takes whose jobs, who runs what."""

from __future__ import annotations

import operator
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ZEO.Exceptions import ClientDisconnected
from ZODB.FileStorage import FileStorage
from ZODB.utils import p64, u64

from perdure.actors import PauseQueue, PollNow, PollsAsked, Resize, StatusAsked, WorkerActor
from perdure.actors.messages import DeactivateNow, StopClaiming
from perdure.actors.ref import Ref
from perdure.model import (
    Agent,
    DispatcherEvent,
    DispatcherRecord,
    Environment,
    Happening,
    Job,
    JobFailedError,
    PerdureError,
    Status,
    check,
    environment,
    find_job,
    get_queue,
    install,
    subscribe,
)
from perdure.model.agent import Taken
from perdure.model.clock import SystemClock
from perdure.model.errors import UnknownMessageError
from perdure.model.incarnation import Identity, acquire_identity
from support import jobs
from support.jobs import Counter, calls, gates
from support.manual_clock import ManualClock
from support.systems import HOUR, LIMIT, Systems, queue_length, read, settled, within

SECOND = timedelta(seconds=1)
LOW = uuid.UUID(int=1)


def workers(agent: str = "main", queue: str = "") -> list[threading.Thread]:
    """The threads of an agent's workers."""
    ending = f"of agent {agent!r} of queue {queue!r}"
    return [each for each in threading.enumerate() if each.name.endswith(ending)]


def poll(system: Any) -> None:
    within(lambda: system.ask(PollNow()))


def worked(system: Any) -> None:
    """Return when the dispatcher has worked off what it was told by now, without a poll."""
    for _ in range(2):
        with pytest.raises(UnknownMessageError):
            within(lambda: system._context.directory.get("dispatcher").ask(None))


def make_sibling(system: Any, key: uuid.UUID = LOW, **settings: Any) -> None:
    """Let there be another process, active since now, with an agent `main`."""
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers.register(key)
        record.add_agent("main", **settings)
        record.activate("another process")


def claim_for(system: Any, key: uuid.UUID = LOW) -> Any:
    """Let the sibling claim a job, and return its reference."""
    with system.transaction() as connection:
        job = get_queue(connection).dispatchers[key]["main"].claim_job()
        assert job is not None
        return job.ref


# Registering


@pytest.mark.spec("D2")
def test_a_system_registers_activates_and_gets_an_agent_and_says_so(systems: Systems) -> None:
    database = systems.database()
    install(database, ["", "mail"])
    heard: list[DispatcherEvent] = []
    unsubscribe = subscribe(database, heard.append)
    subscribe(database, lambda event: 1 / 0)  # its fault is its own
    system = systems.start(database)
    poll(system)
    with system.transaction() as connection:
        for name in ("", "mail"):
            record = get_queue(connection, name).dispatchers[system.uuid]
            assert record.active and list(record) == ["main"] and record["main"].size == 3
    assert heard == [
        DispatcherEvent(happening, name, system.uuid)
        for name in ("", "mail")
        for happening in (Happening.REGISTERED, Happening.ACTIVATED)
    ]
    heard.clear()
    system.stop()
    assert heard == [
        DispatcherEvent(Happening.DEACTIVATED, name, system.uuid) for name in ("", "mail")
    ]
    unsubscribe()
    systems.start(database)
    assert len(heard) == 2


@pytest.mark.spec("D2")
def test_who_is_unregistered_is_told(systems: Systems) -> None:
    system = systems.start()
    heard: list[DispatcherEvent] = []
    subscribe(system.database, heard.append)
    with pytest.raises(ZeroDivisionError), system.transaction() as connection:
        get_queue(connection).dispatchers.register(LOW)
        raise ZeroDivisionError
    make_sibling(system)
    with system.transaction() as connection:
        queue = get_queue(connection)
        queue.dispatchers[LOW].deactivate()
        queue.dispatchers.unregister(LOW)
    assert [event.happening.name for event in heard if event.uuid == LOW] == [
        "REGISTERED",
        "ACTIVATED",
        "DEACTIVATED",
        "UNREGISTERED",
    ]


@pytest.mark.spec("D2")
def test_the_sizes_that_are_given_are_those_of_the_agents(systems: Systems) -> None:
    database = systems.database()
    for size in (2, 5):
        system = systems.start(database, {"": size})
        poll(system)
        with system.transaction() as connection:
            assert get_queue(connection).dispatchers[system.uuid]["main"].size == size
        refs = [system.put(jobs.pass_gate, f"{size}") for _ in range(size + 1)]
        for _ in range(size):
            gates[f"{size}"].wait_until_entered()
        settled(system)
        assert len(workers()) == size and queue_length(system) == 1
        gates[f"{size}"].open()
        for ref in refs:
            system.wait(ref, timeout=LIMIT)
        system.stop()


@pytest.mark.spec("D7")
def test_a_worker_is_made_when_there_is_a_job_for_it(systems: Systems) -> None:
    system = systems.start(queues={"": 3})
    settled(system)
    assert not workers()
    for number in range(3):
        assert system.result(system.put(jobs.add, number, 1), timeout=LIMIT) == number + 1
        settled(system)
        assert len(workers()) == 1


@pytest.mark.spec("D1")
def test_the_identity_is_stable_and_a_second_system_gets_its_own(
    systems: Systems, tmp_path: Path
) -> None:
    database = systems.database(FileStorage(str(tmp_path / "app.fs")))
    first = systems.start(database)
    second = systems.start(database)
    assert first.uuid != second.uuid
    identities = {first.uuid, second.uuid}
    systems.stop_all()
    third = systems.start(database)
    assert third.uuid == first.uuid and len(identities) == 2


# Signs of life


@pytest.mark.spec("D3", "X10")
def test_it_gives_a_sign_of_life_however_rarely_it_polls(
    systems: Systems, manual_clock: ManualClock
) -> None:
    system = systems.start(clock=manual_clock, queues={"": 1})
    settled(system)
    started = manual_clock.now()
    ages = []
    for _ in range(20):
        manual_clock.wait_until_waiting(2)  # the dispatcher for its poll, and the heartbeat
        manual_clock.advance(timedelta(seconds=15))
        manual_clock.wait_until_waiting(2)
        with system.transaction() as connection:
            record = get_queue(connection).dispatchers[system.uuid]
            assert not record.dead
            ages.append((manual_clock.now() - record.last_ping).total_seconds())
    # Written when the last one is 30 seconds old, and not before.
    assert ages == [15.0, 0.0] * 10
    assert manual_clock.now() - started < HOUR
    ref = system.put(operator.add, 1, 1)
    assert within(lambda: system.result(ref)) == 2


@pytest.mark.spec("D3")
def test_a_poll_pings_too_and_a_ping_in_the_future_does_not_stop_it(
    systems: Systems, manual_clock: ManualClock
) -> None:
    system = systems.start(clock=manual_clock, queues={"": 1})
    poll(system)
    manual_clock.jump_wall(-HOUR)
    poll(system)
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[system.uuid]
        assert record.last_ping == manual_clock.now()
    manual_clock.jump_wall(timedelta(days=1))
    poll(system)
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[system.uuid]
        assert record.last_ping == manual_clock.now() and record.active


@pytest.mark.spec("X10", "D3", "Q10")
def test_a_filter_that_takes_long_does_not_keep_the_ping_waiting(
    systems: Systems, manual_clock: ManualClock
) -> None:
    system = systems.start(clock=manual_clock, queues={"": 1})
    poll(system)
    with system.transaction() as connection:
        agent = get_queue(connection).dispatchers[system.uuid]["main"]
        agent.filter = jobs.blocks_at_gate
    settled(system)
    ref = system.put(operator.add, 1, 1)
    gates["filter"].wait_until_entered()
    for _ in range(10):
        manual_clock.wait_until_waiting(1)  # the heartbeat
        manual_clock.advance(timedelta(seconds=15))
    manual_clock.wait_until_waiting(1)
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[system.uuid]
        assert manual_clock.now() - record.last_ping <= timedelta(seconds=15)
    gates["filter"].open()
    assert within(lambda: system.result(ref)) == 2


@pytest.mark.spec("D3", "D4")
def test_a_sibling_is_buried_a_moment_after_its_death_and_not_before(
    systems: Systems, manual_clock: ManualClock
) -> None:
    system = systems.start(clock=manual_clock, queues={"": 0})
    # Who has not looked yet when the time passes has lost touch, and gives the others more.
    poll(system)
    make_sibling(system)
    system.put(operator.add, 1, 1)
    ref = claim_for(system)
    manual_clock.advance(timedelta(seconds=60))
    poll(system)
    assert read(system, ref, "status") is Status.ASSIGNED
    manual_clock.advance(timedelta(microseconds=1))
    poll(system)
    assert read(system, ref, "status") is Status.PENDING


@pytest.mark.spec("D4", "C2")
def test_who_has_lost_touch_with_the_database_presumes_nobody_dead(
    systems: Systems, manual_clock: ManualClock
) -> None:
    seconds = timedelta(seconds=1)
    system = systems.start(
        clock=manual_clock,
        queues={"": 0},
        poll_interval=5 * seconds,
        ping_interval=seconds,
        ping_death_interval=10 * seconds,
    )
    poll(system)
    make_sibling(system)
    with system.transaction() as connection:
        get_queue(connection).dispatchers[LOW].ping_death_interval = 10 * seconds
    system.put(operator.add, 1, 1)
    ref = claim_for(system)
    # Nobody could give a sign of life meanwhile, for all that this process knows.
    manual_clock.advance(30 * seconds)
    poll(system)
    manual_clock.advance(9 * seconds)
    poll(system)
    assert read(system, ref, "status") is Status.ASSIGNED
    manual_clock.advance(seconds)
    poll(system)
    assert read(system, ref, "status") is Status.PENDING


@pytest.mark.spec("D4", "J18", "R6")
def test_the_jobs_of_a_dead_sibling_are_seen_to(
    systems: Systems, manual_clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    system = systems.start(clock=manual_clock, queues={"": 1})
    system.ask(Resize("", "main", 0))
    make_sibling(system, size=4)
    refs = {}
    for kind in ("assigned", "active", "callbacks", "completed"):
        job = Job(jobs.note, kind)
        job.add_callback(Job(jobs.note, f"callback of {kind}"))
        system.put(job)
        refs[kind] = claim_for(system)
    with system.transaction() as connection:
        found = {kind: find_job(connection, ref) for kind, ref in refs.items()}
        for kind in ("active", "callbacks", "completed"):
            found[kind]._begin()
        for kind in ("callbacks", "completed"):
            found[kind]._end("by the dead")
        for callback in found["completed"].callbacks:
            callback._begin()
            callback._end(None)
            callback._complete()
        found["completed"]._complete()
    manual_clock.advance(timedelta(seconds=61))
    poll(system)
    with system.transaction() as connection:
        queue = get_queue(connection)
        assert queue.dispatchers.active() == [system.uuid]
        assert list(queue.dispatchers[LOW]["main"].completed) == [
            find_job(connection, refs["completed"])
        ]
        assert len(queue.dispatchers[LOW]["main"]) == 0
    assert "is dead: its jobs are seen to" in caplog.text
    assert read(system, refs["assigned"], "status") is Status.PENDING
    system.ask(Resize("", "main", 1))
    for ref in refs.values():
        within(lambda ref=ref: system.wait(ref))
    assert sorted(call[0] for call in calls) == [
        "active",
        "assigned",
        "callback of active",
        "callback of assigned",
        "callback of callbacks",
    ]
    assert read(system, refs["callbacks"], "result") == "by the dead"
    with system.transaction() as connection:
        policies = {kind: find_job(connection, ref)._policy for kind, ref in refs.items()}
        assert policies["active"].data["interruptions"] == 1
        assert policies["assigned"] is None


@pytest.mark.spec("D4")
def test_each_poll_looks_at_the_next_sibling_wrapping_around(
    systems: Systems, manual_clock: ManualClock
) -> None:
    system = systems.start(clock=manual_clock, queues={"": 1})
    poll(system)
    last = uuid.UUID(int=2**128 - 1)
    make_sibling(system, LOW)
    make_sibling(system, last)
    manual_clock.advance(timedelta(seconds=61))
    active: list[list[uuid.UUID]] = []
    for _ in range(2):
        poll(system)
        with system.transaction() as connection:
            active.append(get_queue(connection).dispatchers.active())
    assert active == [[LOW, system.uuid], [system.uuid]]


# Its own record


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Identity]:
    """An identity that somebody alive has."""
    with acquire_identity(
        None, clock=SystemClock(), environ={"PERDURE_UUID": str(tmp_path / "foreign.txt")}
    ) as identity:
        yield identity


def leave_active(
    systems: Systems, database: Any, foreign: Identity | None, clock: Any = None
) -> tuple[uuid.UUID, Any]:
    """Let a start of a system leave its record active, with a job that was begun."""
    system = systems.start(database, {"": 1}, clock=clock)
    poll(system)
    identifier = system.uuid
    system.ask(Resize("", "main", 0))
    settled(system)
    system.put(jobs.note, "begun before")
    system.stop()
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[identifier]
        record.activate("a former start", None if foreign is None else foreign.incarnation)
        record["main"].size = 1
        job = record["main"].claim_job()
        job._begin()
        ref = job.ref
    return identifier, ref


@pytest.mark.spec("D5")
def test_a_record_of_its_own_is_left_alone_until_the_proof_of_death(
    systems: Systems, foreign: Identity, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = systems.database(FileStorage(str(tmp_path / "app.fs")))
    identifier, ref = leave_active(systems, database, foreign)
    system = systems.start(database, {"": 1})
    assert system.uuid == identifier
    for _ in range(2):
        caplog.clear()
        poll(system)
        assert "is active since" in caplog.text and "its process may live" in caplog.text
        assert read(system, ref, "status") is Status.ACTIVE
    report = system.ask(PollsAsked())[0].queues[0]
    assert not report.active and "is active since" in report.error
    foreign.close()
    poll(system)
    system.wait(ref, timeout=LIMIT)
    assert calls == [("begun before",)]


@pytest.mark.spec("D5")
def test_a_record_of_its_own_is_taken_over_when_it_is_dead(
    systems: Systems, foreign: Identity, tmp_path: Path, manual_clock: ManualClock
) -> None:
    database = systems.database(FileStorage(str(tmp_path / "app.fs")))
    _, ref = leave_active(systems, database, foreign, manual_clock)
    system = systems.start(database, {"": 1}, clock=manual_clock)
    poll(system)
    assert read(system, ref, "status") is Status.ACTIVE
    manual_clock.advance(timedelta(seconds=61))
    poll(system)
    within(lambda: system.wait(ref))
    assert calls == [("begun before",)]


@pytest.mark.spec("D5", "D1")
def test_a_record_whose_process_provably_ended_is_taken_over_at_once(
    systems: Systems, foreign: Identity, tmp_path: Path, manual_clock: ManualClock
) -> None:
    database = systems.database(FileStorage(str(tmp_path / "app.fs")))
    _, ref = leave_active(systems, database, foreign, manual_clock)
    foreign.close()
    system = systems.start(database, {"": 1}, clock=manual_clock)
    within(lambda: system.wait(ref))  # no time passes
    assert calls == [("begun before",)]


# Taken for dead


@pytest.mark.spec("D6")
@pytest.mark.parametrize("seen", ["at work", "at a poll"])
def test_who_was_buried_alive_works_again_and_its_old_work_is_abandoned(
    seen: str, systems: Systems, manual_clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    system = systems.start(clock=manual_clock, queues={"": 1})
    poll(system)
    heard: list[DispatcherEvent] = []
    subscribe(system.database, heard.append)
    counter = Counter()
    with system.transaction() as connection:
        connection.root()["counter"] = counter
        ref = get_queue(connection).put(Job(counter.add_then_gate, "g")).ref
    gates["g"].wait_until_entered()
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid].deactivate()
    if seen == "at work":
        worked(system)
    settled(system)
    critical = [each for each in caplog.records if each.levelname == "CRITICAL"]
    assert ["was taken for dead, and is not" in each.getMessage() for each in critical] == [True]
    assert [event.happening.name for event in heard] == [
        "DEACTIVATED",
        "ACTIVATED",
        "REACTIVATED",
    ]
    gates["g"].open()
    within(lambda: system.wait(ref))
    assert read(system, ref, "result") == 1
    with system.transaction() as connection:
        assert connection.root()["counter"].value == 1
    assert "was taken from this worker" in caplog.text
    # Begun twice.
    gates["g"].wait_until_entered()


@pytest.mark.spec("D6", "Q7")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_burial_in_the_midst_of_a_claim_loses_nothing(
    moment: str, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start(queues={"": 1})
    settled(system)
    claim_jobs = Agent.claim_jobs
    buried: list[bool] = []

    def bury() -> None:
        if not buried:
            buried.append(True)
            with system.transaction() as connection:
                get_queue(connection).dispatchers[system.uuid].deactivate()

    def claim(agent: Agent, *args: Any) -> list[Taken]:
        if threading.current_thread().name == "dispatcher" and moment == "before":
            bury()
        taken = claim_jobs(agent, *args)
        if taken and moment == "after":
            bury()
        return taken

    monkeypatch.setattr(Agent, "claim_jobs", claim)
    ref = system.put(jobs.note, "once")
    settled(system)
    poll(system)
    assert buried
    system.wait(ref, timeout=LIMIT)
    assert calls == [("once",)]
    assert check(system.database) == []


# Agents


@pytest.mark.spec("D7", "D15")
def test_an_agent_with_a_filter_takes_what_it_accepts(systems: Systems) -> None:
    system = systems.start(queues={"": 0})
    poll(system)
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[system.uuid]
        record.add_agent("even", size=1, filter=jobs.takes_even)
        refs = [get_queue(connection).put(Job(jobs.tell_agent, n)).ref for n in range(4)]
    poll(system)
    for number in (0, 2):
        assert system.result(refs[number], timeout=LIMIT) == (number, "even")
    assert [read(system, refs[n], "status") for n in (1, 3)] == [Status.PENDING] * 2
    system.ask(Resize("", "main", 1))
    assert system.result(refs[3], timeout=LIMIT) == (3, "main")


@pytest.mark.spec("D7")
def test_an_agent_with_a_chooser_takes_what_it_chooses(systems: Systems) -> None:
    system = systems.start(queues={"": 0})
    poll(system)
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[system.uuid]
        record.add_agent("choosy", size=1, chooser=jobs.chooses_first)
    poll(system)
    ref = system.put(jobs.tell_agent, 1)
    assert system.result(ref, timeout=LIMIT) == (1, "choosy")
    assert "chooser" in calls


@pytest.mark.spec("Q10", "D12", "D9")
@pytest.mark.parametrize("bad", [jobs.raises, jobs.exits])
def test_an_agent_whose_filter_raises_stops_no_other(bad: Any, systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    poll(system)
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[system.uuid]
        record.add_agent("bad", filter=bad)
        record.add_agent("also bad", filter=bad)
    poll(system)
    settled(system)
    system.ask(Resize("", "main", 0))
    ref = system.put(jobs.tell_agent, 1)
    settled(system)
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[system.uuid]
        for name in ("bad", "also bad"):
            assert record[name].failure is not None
        assert record["main"].failure is None
    errors = {agent.agent: agent.error for agent in system.ask(PollsAsked())[0].queues[0].agents}
    assert "filter" in errors["bad"] and errors["main"] == ""
    system.ask(Resize("", "main", 1))
    assert system.result(ref, timeout=LIMIT) == (1, "main")
    status = system.ask(StatusAsked())
    assert (status.crashes, status.degraded) == (0, ())
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid]["bad"].filter = None
    poll(system)
    with system.transaction() as connection:
        assert get_queue(connection).dispatchers[system.uuid]["bad"].failure is None


@pytest.mark.spec("D7")
def test_who_looks_dead_claims_nothing(
    systems: Systems, manual_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start(queues={"": 1}, clock=manual_clock)
    settled(system)
    with monkeypatch.context() as patched:
        patched.setattr(DispatcherRecord, "ping", lambda record: False)
        manual_clock.advance(timedelta(seconds=61))
        ref = system.put(operator.add, 1, 1)
        settled(system)
        assert read(system, ref, "status") is Status.PENDING
    poll(system)
    assert within(lambda: system.result(ref)) == 2


@pytest.mark.spec("D7")
def test_a_size_that_changes_is_followed_at_once(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    refs = [system.put(jobs.pass_gate, name) for name in "abc"]
    gates["a"].wait_until_entered()
    settled(system)
    assert queue_length(system) == 2
    system.ask(Resize("", "main", 3))
    for name in "bc":
        gates[name].wait_until_entered()
    system.ask(Resize("", "main", 1))
    for name in "abc":
        gates[name].open()
    assert [system.result(ref, timeout=LIMIT) for ref in refs] == ["a", "b", "c"]
    # Those that were busy end when they are free; one is left, and it runs all.
    for name in "de":
        refs.append(system.put(jobs.pass_gate, name))
    gates["d"].wait_until_entered()
    settled(system)
    assert queue_length(system) == 1 and len(workers()) == 1
    for name in "de":
        gates[name].open()


@pytest.mark.spec("D7")
def test_a_size_that_was_changed_in_the_database_is_followed_at_the_next_poll(
    systems: Systems,
) -> None:
    system = systems.start(queues={"": 1})
    refs = [system.put(jobs.pass_gate, name) for name in "ab"]
    gates["a"].wait_until_entered()
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid]["main"].size = 2
    poll(system)
    gates["b"].wait_until_entered()
    for name in "ab":
        gates[name].open()
    assert [system.result(ref, timeout=LIMIT) for ref in refs] == ["a", "b"]


@pytest.mark.spec("D15", "X14")
def test_removing_an_agent_stops_its_own_workers_only(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    poll(system)
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid].add_agent("extra", size=2)
    poll(system)
    settled(system)
    # Three jobs for three places: each of the two agents has one at least.
    refs = [system.put(jobs.pass_gate, "g") for _ in range(3)]
    for _ in refs:
        gates["g"].wait_until_entered()
    ref = refs[0]
    extra = next(iter(workers("extra")))
    with system.transaction() as connection:
        agent = find_job(connection, ref).agent
        assert agent is not None
        with pytest.raises(ValueError, match=f"holds {len(agent)} jobs"):
            agent.record.remove_agent(agent.name)
    gates["g"].open()
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    settled(system)
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid].remove_agent("extra")
    poll(system)
    extra.join(LIMIT.total_seconds())
    assert not extra.is_alive() and len(workers("main")) == 1
    assert system.result(system.put(jobs.tell_agent, 1), timeout=LIMIT) == (1, "main")
    # And it can come again.
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[system.uuid]
        record.add_agent("extra", size=1)
        record["main"].size = 0
    poll(system)
    assert system.result(system.put(jobs.tell_agent, 1), timeout=LIMIT) == (1, "extra")


@pytest.mark.spec("D15", "X14")
def test_queues_come_and_go_at_the_next_poll(systems: Systems) -> None:
    system = systems.start()
    install(system.database, ["late"])
    with system.transaction() as connection:
        ref = get_queue(connection, "late").put(Job(jobs.tell_agent, 1)).ref
    poll(system)
    assert system.result(ref, timeout=LIMIT) == (1, "main")
    system.wait(ref, timeout=LIMIT)
    settled(system)
    threads = workers(queue="late")
    assert len(threads) == 1
    with system.transaction() as connection:
        connection.root()["perdure"].remove("late")
    system.tell(PollNow())
    poll(system)
    for thread in threads:
        thread.join(LIMIT.total_seconds())
    assert not workers(queue="late")
    assert system.result(system.put(jobs.tell_agent, 1), timeout=LIMIT) == (1, "main")
    assert system.ask(StatusAsked()).crashes == 0


@pytest.mark.spec("Q4")
def test_a_deadline_that_passes_while_no_place_is_free_is_seen_to_once_there_is_one(
    systems: Systems, manual_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start(clock=manual_clock, queues={"": 1})
    running = system.put(jobs.pass_gate, "g")
    gates["g"].wait_until_entered()
    with system.transaction() as connection:
        late = get_queue(connection).put(jobs.note, begin_by=SECOND).ref
    settled(system)
    claims: list[Any] = []
    claim_jobs = Agent.claim_jobs

    def claim(agent: Agent, *args: Any) -> list[Taken]:
        claims.append(agent)
        return claim_jobs(agent, *args)

    monkeypatch.setattr(Agent, "claim_jobs", claim)
    for _ in range(10):
        manual_clock.wait_until_waiting(2)
        manual_clock.advance(SECOND)
        worked(system)
    assert len(claims) <= 1
    gates["g"].open()
    assert within(lambda: system.result(running)) == "g"
    with pytest.raises(JobFailedError, match="JobTimeoutError"):
        within(lambda: system.result(late))
    assert calls == []


@pytest.mark.spec("Q6")
def test_what_comes_due_while_the_dispatcher_works_waits_for_no_poll(
    systems: Systems, manual_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start(clock=manual_clock, queues={"": 1})
    settled(system)
    claim_jobs = Agent.claim_jobs
    passed: list[bool] = []

    def claim(agent: Agent, *args: Any) -> list[Taken]:
        taken = claim_jobs(agent, *args)
        if not passed:
            passed.append(True)
            manual_clock.advance(SECOND)
        return taken

    monkeypatch.setattr(Agent, "claim_jobs", claim)
    with system.transaction() as connection:
        due = manual_clock.now() + SECOND
        ref = get_queue(connection).put(Job(operator.add, 1, 1), begin_after=due).ref
    worked(system)
    manual_clock.wait_until_waiting(2)
    manual_clock.advance(SECOND)
    assert passed and within(lambda: system.result(ref)) == 2


@pytest.mark.spec("Q10", "D9")
def test_an_agent_whose_filter_raises_is_logged_once_until_that_changes(
    systems: Systems, caplog: pytest.LogCaptureFixture
) -> None:
    system = systems.start(queues={"": 1})
    settled(system)

    def set_filter(filter: Any) -> None:
        with system.transaction() as connection:
            get_queue(connection).dispatchers[system.uuid]["main"].filter = filter
        for _ in range(3):
            poll(system)

    def logged() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]

    set_filter(jobs.raises)
    with system.transaction() as connection:
        ref = get_queue(connection).put(Job(operator.add, 1, 1)).ref
    for _ in range(3):
        poll(system)
    assert len(logged()) == 1 and "ValueError: a filter of no use" in logged()[0]
    set_filter(jobs.exits)
    assert len(logged()) == 2 and "from a filter" in logged()[1]
    set_filter(None)
    assert system.result(ref, timeout=LIMIT) == 2
    assert len(logged()) == 2


# Jobs in odd states


@pytest.mark.spec("D14")
@pytest.mark.parametrize("status", [Status.ACTIVE, Status.CALLBACKS, Status.COMPLETED])
def test_a_claimed_job_in_an_odd_status_is_dealt_with(
    status: Status,
    systems: Systems,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    system = systems.start(queues={"": 1})
    find = WorkerActor._find
    odd: list[Any] = []

    def find_odd(worker: WorkerActor, claim: Any) -> Any:
        if not odd:
            odd.append(claim)
            with system.transaction() as connection:
                job = find_job(connection, claim.ref)
                job._begin()
                if status is not Status.ACTIVE:
                    job._end(7)
                if status is Status.COMPLETED:
                    job._complete()
        return find(worker, claim)

    monkeypatch.setattr(WorkerActor, "_find", find_odd)
    job = Job(operator.add, 1, 2)
    if status is not Status.COMPLETED:
        job.add_callback(Job(jobs.note))
    ref = system.put(job)
    if status is Status.COMPLETED:
        # Nobody announces what was done behind the worker's back.
        assert system.result(system.put(operator.add, 1, 1), timeout=LIMIT) == 2
    system.wait(ref, timeout=LIMIT)
    result = 3 if status is Status.ACTIVE else 7
    assert system.result(ref, timeout=LIMIT) == result
    assert calls == ([] if status is Status.COMPLETED else [(result,)])
    assert f"which is {status.name}, instead of ASSIGNED" in caplog.text
    if status is Status.ACTIVE:
        assert read(system, ref, "_policy") is not None
    settled(system)
    with system.transaction() as connection:
        agent = get_queue(connection).dispatchers[system.uuid]["main"]
        assert find_job(connection, ref) in agent.completed and len(agent) == 0


# What gets lost


@pytest.mark.spec("C2")
def test_a_poll_without_database_is_an_error_to_its_asker(
    systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = systems.database()
    system = systems.start(database, {"": 1})
    settled(system)

    def no_new_view(*args: Any, **kwargs: Any) -> Any:
        raise ClientDisconnected("away")

    with monkeypatch.context() as patched:
        patched.setattr("perdure.actors.dispatcher.find_queues", no_new_view)
        with pytest.raises(PerdureError, match="did not let this poll be done"):
            system.ask(PollNow())
    poll(system)


@pytest.mark.parametrize("message", ["RunJobs", "JobsRan", "AgentReady", "Wake", "AgentJoined"])
def test_a_message_that_gets_lost_costs_time_and_no_work(
    message: str, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = Ref.tell
    lost: list[Any] = []

    def tell_but_once(ref: Any, what: Any) -> None:
        if type(what).__name__ == message and not lost:
            lost.append(what)
        else:
            tell(ref, what)

    monkeypatch.setattr(Ref, "tell", tell_but_once)
    system = systems.start(queues={"": 1}, poll_interval=timedelta(milliseconds=50))
    for number in range(3):
        ref = system.put(operator.add, number, 1)
        assert system.result(ref, timeout=LIMIT) == number + 1
    assert len(lost) == 1


@pytest.mark.spec("D10")
def test_a_poll_that_comes_late_does_not_activate_a_stopped_system_again(
    systems: Systems,
) -> None:
    system = systems.start(queues={"": 1})
    poll(system)
    dispatcher = system._context.directory.get("dispatcher")
    dispatcher.ask(StopClaiming())
    dispatcher.ask(DeactivateNow())
    dispatcher.ask(PollNow())
    with system.transaction() as connection:
        assert get_queue(connection).dispatchers.active() == []


# What other processes commit


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits are as if another process had made them: nobody here is told of them."""
    monkeypatch.setattr(Environment, "wake", lambda self, oid: None)


def changed_by(database: Any, change: Callable[[Any], None]) -> list[bytes]:
    """Make a change, and return the oids of what it has written."""
    with database.transaction() as connection:
        change(connection)
        tid_before = database.lastTransaction()
    [record] = list(database.storage.iterator(start=p64(u64(tid_before) + 1)))
    return [each.oid for each in record]


@pytest.mark.spec("X7")
def test_a_job_that_another_process_has_put_starts_when_the_storage_tells_of_it(
    systems: Systems, elsewhere: None
) -> None:
    system = systems.start(queues={"": 1})
    settled(system)
    oids = changed_by(
        system.database,
        lambda connection: get_queue(connection).put(Job(jobs.note_and_gate, "a")),
    )
    settled_polls = len(system.ask(PollsAsked()))
    assert jobs.calls == []

    environment(system.database).tell_of_commit_elsewhere(oids)

    jobs.gates["a"].wait_until_entered()
    jobs.gates["a"].open()
    assert len(system.ask(PollsAsked())) == settled_polls


def test_a_queue_that_another_process_has_resumed_goes_on_when_the_storage_tells_of_it(
    systems: Systems, elsewhere: None
) -> None:
    system = systems.start(queues={"": 1})
    system.ask(PauseQueue(""))
    ref = system.put(jobs.add, 1, 2)
    settled(system)
    oids = changed_by(system.database, lambda connection: get_queue(connection).resume())

    environment(system.database).tell_of_commit_elsewhere(oids)

    assert system.result(ref, timeout=LIMIT) == 3


def test_what_concerns_no_queue_wakes_nobody(systems: Systems, elsewhere: None) -> None:
    system = systems.start(queues={"": 1})
    settled(system)
    watch = system._context.watch
    with system.transaction() as connection:
        queue = get_queue(connection)
        assert watch.queues_of([p64(12345)]) == []
        assert watch.queues_of([queue.inboxes._p_oid]) == [queue._p_oid]
        agent = queue.dispatchers[system.uuid]["main"]
        assert watch.queues_of([agent._p_oid, p64(12345)]) == [queue._p_oid]
        assert watch.queues_of(None) == [queue._p_oid]


def test_who_waits_for_a_result_hears_of_it_from_another_process(systems: Systems) -> None:
    system = systems.start(queues={"": 0})
    ref = system.put(jobs.add, 1, 2)
    known = environment(system.database)
    with known.results.listen(ref, known.clock) as listener:
        known.tell_of_commit_elsewhere([p64(ref.oid)])
        assert listener.wait(0)
        known.tell_of_commit_elsewhere([p64(ref.oid + 1)])
        assert not listener.wait(0)
        known.tell_of_commit_elsewhere(None)
        assert listener.wait(0)
