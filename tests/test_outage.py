"""The database is away: what is tried when, how its return is noticed, and that all goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import operator
import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ZEO.Exceptions import ClientDisconnected
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ConflictError, POSKeyError

from perdure.actors import DispatcherActor, PollNow, PollsAsked, Resize, StatusAsked
from perdure.actors.outage import Outage, answers, says_that_it_is_away
from perdure.model import Agent, DispatcherRecord, Job, PerdureError, Status, get_queue
from perdure.model.errors import UnknownMessageError
from support import jobs
from support.jobs import gates
from support.losable import LosableStorage, Server
from support.manual_clock import ManualClock
from support.systems import HOUR, LIMIT, Systems, read, settled, within

SECOND = timedelta(seconds=1)


class Line:
    """The connection of a storage, up or down; `calls` counts what costs something."""

    def __init__(self) -> None:
        self.is_up = True
        self.calls = 0

    def is_connected(self) -> bool:
        return self.is_up

    def lastTransaction(self) -> bytes:  # noqa: N802
        self.calls += 1
        if not self.is_up:
            raise ClientDisconnected("down")
        return b"\0" * 8


def attempts(outage: Outage, clock: ManualClock, seconds: int) -> list[float]:
    """Ask each second, and let each attempt fail; when these were made."""
    made = []
    for _ in range(seconds):
        clock.advance(SECOND)
        if outage.is_to_be_tried():
            made.append(clock.monotonic())
            outage.failed()
    return made


# When to try again


@pytest.mark.spec("D9")
def test_the_pauses_between_attempts_grow_up_to_a_minute(manual_clock: ManualClock) -> None:
    storage = LosableStorage()
    outage = Outage(storage, manual_clock)
    assert not outage.lasts
    storage.away.set()
    outage.failed()
    made = attempts(outage, manual_clock, 600)
    assert outage.lasts
    pauses = [after - before for before, after in zip([0, *made], made, strict=False)]
    assert pauses[:13] == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 60]
    outage.over()
    assert not outage.lasts


@pytest.mark.spec("D9")
def test_a_return_is_noticed_at_the_next_second_however_long_the_pause_is(
    manual_clock: ManualClock,
) -> None:
    storage = LosableStorage()
    outage = Outage(storage, manual_clock)
    storage.away.set()
    outage.failed()
    assert attempts(outage, manual_clock, 20) == [5, 15]
    storage.away.clear()
    assert attempts(outage, manual_clock, 1) == [21]


@pytest.mark.spec("D9")
def test_a_return_before_the_first_question_is_noticed_and_then_the_answer_is_not_believed(
    manual_clock: ManualClock,
) -> None:
    outage = Outage(MappingStorage(), manual_clock)
    outage.failed()
    assert attempts(outage, manual_clock, 60) == [1, 11, 26, 46]


@pytest.mark.spec("D9")
def test_a_storage_that_knows_that_it_is_away_is_asked_nothing_else() -> None:
    line = Line()
    assert answers(line) and not says_that_it_is_away(line)
    line.is_up, line.calls = False, 0
    assert says_that_it_is_away(line) and not answers(line)
    assert line.calls == 0
    assert not says_that_it_is_away(MappingStorage())


def test_whatever_a_storage_raises_is_no_answer() -> None:
    line = Line()
    line.lastTransaction = lambda: 1 // 0  # type: ignore[method-assign]
    assert not answers(line)


# A system


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the dispatcher has polled."""
    made: list[float] = []
    poll = DispatcherActor._poll

    def noted(actor: DispatcherActor) -> bool:
        made.append(actor._clock.monotonic())
        return poll(actor)

    monkeypatch.setattr(DispatcherActor, "_poll", noted)
    return made


def worked(system: Any) -> None:
    """Return when the dispatcher has done what was due by now."""
    for _ in range(4):
        with pytest.raises(UnknownMessageError):
            within(lambda: system._context.directory.get("dispatcher").ask(None))


def pass_seconds(system: Any, clock: ManualClock, seconds: int) -> None:
    for _ in range(seconds):
        worked(system)
        clock.advance(SECOND)
    worked(system)


@pytest.mark.spec("D9", "C2")
def test_a_dispatcher_without_database_waits_loses_nothing_and_resumes(
    systems: Systems,
    manual_clock: ManualClock,
    polls: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = LosableStorage("dispatcher", "heartbeat")
    system = systems.start(systems.database(storage), {"": 1}, clock=manual_clock)
    running = system.put(jobs.pass_gate, "g")
    gates["g"].wait_until_entered()
    settled(system)
    polls.clear()
    storage.away.set()
    gates["g"].open()
    assert within(lambda: system.result(running)) == "g"
    ref = system.put(operator.add, 1, 1)
    pass_seconds(system, manual_clock, 40)
    assert polls == [5, 15, 30]
    assert read(system, ref, "status") is Status.PENDING
    with pytest.raises(PerdureError, match="did not let this poll be done"):
        within(lambda: system.ask(PollNow()))
    storage.away.clear()
    pass_seconds(system, manual_clock, 1)
    assert polls[-1] == 41
    assert within(lambda: system.result(ref)) == 2
    assert system.ask(StatusAsked()).crashes == 0
    errors = [each for each in caplog.records if each.levelname == "ERROR"]
    assert {each.getMessage().split(" (")[0] for each in errors} == {
        "dispatcher: the database is away",
        "heartbeat: the database is away",
    }
    assert len(errors) == 2 and errors[0].exc_info is None


@pytest.mark.spec("D9")
def test_after_an_outage_it_polls_as_before_and_a_second_outage_is_like_the_first(
    systems: Systems, manual_clock: ManualClock, polls: list[float]
) -> None:
    storage = LosableStorage("dispatcher")
    interval = timedelta(seconds=7)
    system = systems.start(
        systems.database(storage), {"": 1}, clock=manual_clock, poll_interval=interval
    )
    settled(system)
    polls.clear()
    pass_seconds(system, manual_clock, 8)
    assert polls == [7]
    for began in (8, 36):
        polls.clear()
        storage.away.set()
        pass_seconds(system, manual_clock, 12)
        # It notices at its poll, six seconds after the last one.
        assert polls == [began + 6, began + 11]
        storage.away.clear()
        pass_seconds(system, manual_clock, 1)
        assert polls[-1] == began + 13
        polls.clear()
        pass_seconds(system, manual_clock, 15)
        assert polls == [began + 20, began + 27]


@pytest.mark.spec("D9")
def test_an_asked_poll_that_succeeds_ends_the_outage(
    systems: Systems, manual_clock: ManualClock, polls: list[float]
) -> None:
    storage = LosableStorage("dispatcher")
    system = systems.start(systems.database(storage), {"": 1}, clock=manual_clock)
    settled(system)
    storage.away.set()
    with pytest.raises(PerdureError, match="did not let this poll be done"):
        within(lambda: system.ask(PollNow()))
    storage.away.clear()
    within(lambda: system.ask(PollNow()))
    polls.clear()
    ref = system.put(operator.add, 1, 1)
    assert within(lambda: system.result(ref)) == 2
    pass_seconds(system, manual_clock, 10)
    assert polls == []


@pytest.mark.spec("D9")
def test_where_the_storage_knows_that_it_is_away_nothing_waits_for_it(
    systems: Systems, manual_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = systems.database()
    system = systems.start(database, {"": 1}, clock=manual_clock)
    settled(system)
    called: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(database.storage, "is_connected", lambda: False, raising=False)
        patched.setattr("perdure.actors.dispatcher.find_queues", called.append)
        patched.setattr("perdure.actors.heartbeat.find_queues", called.append)
        with pytest.raises(PerdureError):
            within(lambda: system.ask(PollNow()))
        with pytest.raises(ClientDisconnected, match="no connection to its server"):
            within(lambda: system.ask(Resize("", "main", 2)))
    assert called == []
    pass_seconds(system, manual_clock, 1)
    ref = system.put(operator.add, 1, 1)
    assert within(lambda: system.result(ref)) == 2


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.spec("D9", "C2")
def test_a_server_that_is_killed_and_started_again_needs_nothing_else_to_be_started(
    server: Server, systems: Systems, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where the identity goes
    # So that only the question to the storage can notice the return.
    monkeypatch.setattr("perdure.actors.outage.STEP", HOUR)
    monkeypatch.setattr("perdure.actors.outage.LONGEST_PAUSE", HOUR)
    storage = server.storage()
    lost = threading.Semaphore(0)
    notify = storage.notify_disconnected

    def notify_disconnected() -> None:
        notify()
        # When the client has taken note of it, too.
        asyncio.get_running_loop().call_soon(lost.release)

    storage.notify_disconnected = notify_disconnected
    system = systems.start(systems.database(storage), {"": 1})
    assert system.result(system.put(operator.add, 1, 1), timeout=LIMIT) == 2
    for number in range(2):
        # What is under way when the server goes waits for it inside of the storage.
        settled(system)
        server.stop()
        assert lost.acquire(timeout=LIMIT.total_seconds())
        with pytest.raises(PerdureError, match="did not let this poll be done"):
            within(lambda: system.ask(PollNow()))
        server.start()
        # A call of the storage waits for the connection.
        within(lambda: storage.history(b"\0" * 8))
        ref = system.put(operator.add, number, 1)
        assert system.result(ref, timeout=LIMIT) == number + 1
    status = system.ask(StatusAsked())
    assert (status.crashes, status.degraded) == (0, ())


# Five times, and one agent's failure


def conflicting(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, times: int
) -> Callable[[], int]:
    """Let a method raise a conflict at its first calls; return how many are left."""
    method = getattr(owner, name)
    left = [ConflictError("made up")] * times

    def raising(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise left.pop()
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, raising)
    return lambda: len(left)


TRANSACTIONS = [
    (DispatcherRecord, "activate"),
    (DispatcherRecord, "ping"),
    (Agent, "claim_jobs"),
    (Agent, "settle_all"),
    (DispatcherRecord, "deactivate"),
]


@pytest.mark.spec("D9", "H3")
@pytest.mark.parametrize("owner, name", TRANSACTIONS)
def test_every_transaction_of_a_dispatcher_is_tried_five_times(
    owner: Any,
    name: str,
    systems: Systems,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = conflicting(monkeypatch, owner, name, 4)
    system = systems.start(queues={"": 1})
    ref = system.put(operator.add, 1, 1)
    settled(system)
    assert system.result(ref, timeout=LIMIT) == 2
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[system.uuid]
        assert record.active
    system.stop()
    assert left() == 0
    with system.transaction() as connection:
        assert not get_queue(connection).dispatchers[system.uuid].active
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


@pytest.mark.spec("D9", "H3", "G1")
@pytest.mark.parametrize("owner, name", TRANSACTIONS[:4])
def test_a_transaction_that_conflicts_five_times_is_left_to_the_next_poll(
    owner: Any,
    name: str,
    systems: Systems,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = conflicting(monkeypatch, owner, name, 5)
    system = systems.start(queues={"": 1})
    ref = system.put(operator.add, 1, 1)
    with contextlib.suppress(PerdureError):
        settled(system)
    settled(system)
    assert system.result(ref, timeout=LIMIT) == 2
    assert left() == 0
    critical = [each for each in caplog.records if each.levelno == logging.CRITICAL]
    assert [each.name for each in critical] == ["perdure.events"]
    assert "5 transaction errors in a row" in critical[0].getMessage()


def conflict_always(job: Job) -> bool:
    raise ConflictError("a filter that writes, say")


@pytest.mark.spec("D9")
def test_a_filter_that_always_conflicts_stops_no_other_agent(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    settled(system)
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid].add_agent("bad", filter=conflict_always)
    settled(system)
    system.ask(Resize("", "main", 0))
    ref = system.put(jobs.tell_agent, 1)
    settled(system)
    with system.transaction() as connection:
        failure = get_queue(connection).dispatchers[system.uuid]["bad"].failure
        assert failure is not None and failure.check(ConflictError)
    system.ask(Resize("", "main", 1))
    assert system.result(ref, timeout=LIMIT) == (1, "main")


@pytest.mark.spec("D9")
@pytest.mark.parametrize("error", [POSKeyError(b"\0" * 8), ConflictError("each time")])
def test_an_agent_that_cannot_settle_stops_no_other_and_neither_the_next_poll(
    error: Exception,
    systems: Systems,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    system = systems.start(queues={"": 0})
    settled(system)
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[system.uuid]
        record.add_agent("bad", size=1)
    settled(system)
    assert system.result(system.put(jobs.tell_agent, 0), timeout=LIMIT) == (0, "bad")
    settle, settle_all = Agent.settle, Agent.settle_all

    def refusing(method: Any) -> Any:
        def call(agent: Agent, *args: Any) -> Any:
            if agent.name == "bad":
                raise error
            return method(agent, *args)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Agent, "settle", refusing(settle))
        patched.setattr(Agent, "settle_completed", refusing(Agent.settle_completed))
        patched.setattr(Agent, "settle_all", refusing(settle_all))
        system.ask(Resize("", "main", 1))
        for number in range(2):
            ref = system.put(jobs.tell_agent, number)
            settled(system)
            assert system.result(ref, timeout=LIMIT) == (number, "main")
        told = [each for each in caplog.records if "cannot be settled" in each.getMessage()]
        assert [(each.levelname, each.__dict__["agent"]) for each in told] == [("ERROR", "bad")]
    settled(system)
    with system.transaction() as connection:
        assert len(get_queue(connection).dispatchers[system.uuid]["bad"]) == 0
    assert len(system.ask(PollsAsked())[0].queues[0].agents) == 2


@pytest.mark.spec("D9", "D4")
def test_an_agent_that_cannot_forget_stops_no_burial(
    systems: Systems, manual_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(agent: Agent, now: Any) -> bool:
        raise POSKeyError(b"\0" * 8)

    monkeypatch.setattr(Agent, "forget", forget)
    system = systems.start(queues={"": 1}, clock=manual_clock)
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers.register(uuid.UUID(int=1))
        record.add_agent("main")
        record.activate("another process")
    # Before the time passes: who has just come into touch judges nobody.
    settled(system)
    manual_clock.advance(timedelta(seconds=61))
    settled(system)
    with system.transaction() as connection:
        assert not get_queue(connection).dispatchers[uuid.UUID(int=1)].active
