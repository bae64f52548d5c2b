"""What Pykka does with errors must end neither our actors nor anybody else's."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pykka
import pytest
from ZEO.Exceptions import ClientDisconnected

from perdure.actors import (
    AgentActor,
    DispatcherActor,
    SupervisorActor,
    SystemState,
    WorkerActor,
)
from perdure.actors.base import Actor
from perdure.actors.messages import Claimed, RunJobs, StatusAsked
from perdure.model import Job, JobFailedError, JobRef, get_queue
from perdure.model.errors import AskInterruptedError
from perdure.model.running import Runner
from support import jobs
from support.jobs import calls, gates
from support.systems import LIMIT, Systems, read, settled

MOMENT = timedelta(milliseconds=1)


class Neighbour(pykka.ThreadingActor):
    """One of the application's own actors."""

    def on_receive(self, message: Any) -> Any:
        if message == "raise":
            raise KeyboardInterrupt
        return message


@pytest.fixture(autouse=True)
def _quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Actor, "restart_pause", MOMENT)
    monkeypatch.setattr(Actor, "longest_restart_pause", MOMENT)
    monkeypatch.setattr("perdure.actors.dispatcher.FAILED_PAUSE", MOMENT)
    monkeypatch.setattr("perdure.actors.dispatcher.PROBE_INTERVAL", MOMENT)
    monkeypatch.setattr("perdure.actors.outage.LONGEST_PAUSE", MOMENT)
    monkeypatch.setattr("perdure.actors.worker.PAUSE_SECONDS", 0.001)


def raise_first(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException, times: int = 1
) -> None:
    """Let a method raise at its first calls; they are counted over all instances."""
    method: Callable[..., Any] = getattr(owner, name)
    left = [error] * times

    def raising(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise left.pop()
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, raising)


# Jobs


@pytest.mark.spec("D11")
def test_a_claim_that_is_held_back_is_not_begun_when_it_is_sent_again(
    systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AgentActor, "_fit", lambda agent: None)
    agent = AgentActor(systems.start()._context, "", "other", 0)
    held_back, other = Claimed(JobRef(1), 1), Claimed(JobRef(2), 1)
    agent._held_back.append(held_back)
    agent._take(RunJobs((held_back, other)))
    assert list(agent._waiting) == [other]


@pytest.mark.spec("D11")
def test_a_job_that_was_lost_to_a_fault_before_is_given_back_after_a_growing_delay(
    monkeypatch: pytest.MonkeyPatch, systems: Systems
) -> None:
    pauses: list[timedelta] = []
    tell_later = AgentActor.tell_later

    def without_delay(actor: AgentActor, message: Any, delay: timedelta) -> Any:
        pauses.append(delay)
        return tell_later(actor, message, MOMENT)

    monkeypatch.setattr(AgentActor, "tell_later", without_delay)
    raise_first(monkeypatch, Runner, "run", RuntimeError("a fault"), times=4)
    system = systems.start(queues={"": 1})
    ref = system.put(operator.add, 2, 3)
    assert system.result(ref, timeout=LIMIT) == 5
    assert pauses == [timedelta(seconds=seconds) for seconds in (1, 2, 4)]


@pytest.mark.spec("D11")
@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "Bare"])
def test_a_job_that_raises_no_exception_costs_its_worker_and_is_run_again(
    kind: str, systems: Systems
) -> None:
    neighbour = Neighbour.start()
    try:
        system = systems.start(queues={"": 2})
        beside = system.put(jobs.pass_gate, "beside")
        gates["beside"].wait_until_entered()
        ref = system.put(jobs.raise_once, kind)
        assert system.result(ref, timeout=LIMIT) == "done"
        threads = list(calls)
        assert len(threads) == 2 and threads[0] != threads[1]
        assert threads[0] not in {thread.name for thread in threading.enumerate()}
        # Nothing beside it noticed.
        gates["beside"].open()
        assert system.result(beside, timeout=LIMIT) == "beside"
        assert neighbour.ask("alive?") == "alive?"
        status = system.ask(StatusAsked())
        assert (status.state, status.crashes) == (SystemState.RUNNING, 0)
        with system.transaction() as connection:
            agent = get_queue(connection).dispatchers[system.uuid]["main"]
            assert agent.size == 2
    finally:
        neighbour.stop()


@pytest.mark.spec("D11")
@pytest.mark.parametrize("call", [jobs.close_connection_once, jobs.stop_once])
def test_a_job_that_spoils_its_worker_is_run_again_by_another(
    systems: Systems, call: Callable[[], str]
) -> None:
    system = systems.start(queues={"": 1})
    assert system.result(system.put(call), timeout=LIMIT) == "done"
    assert len(calls) == 2
    assert system.result(system.put(operator.add, 1, 1), timeout=LIMIT) == 2


@pytest.mark.spec("D11")
def test_a_job_that_cannot_be_loaded_does_not_hold_its_worker(
    monkeypatch: pytest.MonkeyPatch, systems: Systems
) -> None:
    raise_first(monkeypatch, Runner, "_view", TypeError("no such state"))
    system = systems.start(queues={"": 1})
    assert system.result(system.put(operator.add, 1, 1), timeout=LIMIT) == 2


@pytest.mark.spec("D11", "R2")
def test_a_job_that_always_exits_is_given_up_after_ten_attempts(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    ref = system.put(jobs.raise_always, "SystemExit")
    with pytest.raises(JobFailedError, match="AbortedError"):
        system.result(ref, timeout=LIMIT)
    assert calls == ["SystemExit"] * 10
    assert system.result(system.put(operator.add, 1, 1), timeout=LIMIT) == 2


@pytest.mark.spec("D11", "R4")
def test_a_job_that_may_not_be_retried_is_given_up_at_once(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    with system.transaction() as connection:
        job = Job(jobs.raise_always, "Bare")
        get_queue(connection).put(job, retry_policy_factory=jobs.policy_never)
        ref = job.ref
    with pytest.raises(JobFailedError, match="AbortedError"):
        system.result(ref, timeout=LIMIT)
    assert calls == ["Bare"]


@pytest.mark.spec("D11")
def test_a_callback_that_exits_is_run_again_and_its_parent_is_not(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    job = Job(operator.add, 1, 2)
    job.add_callback(Job(jobs.exit_once))
    ref = system.put(job)
    system.wait(ref, timeout=LIMIT)
    assert calls == [3, 3] and read(system, ref, "result") == 3


# The application's own actors


@pytest.mark.spec("D11")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_actor_of_the_applications_that_stops_all_does_not_stop_ours(
    systems: Systems,
) -> None:
    system = systems.start()
    neighbours = [Neighbour.start() for _ in range(2)]
    neighbours[0].tell("raise")
    for each in neighbours:
        assert each.actor_stopped.wait(LIMIT.total_seconds())
    pykka.ActorRegistry.stop_all()
    assert pykka.ActorRegistry.get_all() == []
    assert system.result(system.put(operator.add, 1, 1), timeout=LIMIT) == 2


# Our own actors


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (DispatcherActor, "on_start"),
        (DispatcherActor, "_poll"),
        (DispatcherActor, "_work"),
        (DispatcherActor, "_woken"),
        (DispatcherActor, "_agent_ready"),
        (DispatcherActor, "_ran"),
        (AgentActor, "on_start"),
        (AgentActor, "_fit"),
        (AgentActor, "_take"),
        (AgentActor, "_report_ran"),
        (WorkerActor, "on_start"),
        (SupervisorActor, "on_start"),
        (SupervisorActor, "_agent_joined"),
        (SupervisorActor, "_polled"),
    ],
)
@pytest.mark.parametrize("error", [ValueError("a fault"), SystemExit("a fault")])
def test_an_actor_that_raises_restarts_and_nothing_is_lost(
    owner: type[Actor],
    name: str,
    error: BaseException,
    systems: Systems,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raise_first(monkeypatch, owner, name, error)
    system = systems.start(queues={"": 1}, poll_interval=timedelta(milliseconds=50))
    for number in range(3):
        assert system.result(system.put(operator.add, number, 1), timeout=LIMIT) == number + 1
    status = system.ask(StatusAsked())
    assert status.crashes == 1 and status.degraded == ()


@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt("a fault")])
def test_an_actor_that_raises_when_asked_answers_with_it_and_goes_on(
    error: BaseException, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start()
    raise_first(monkeypatch, SupervisorActor, "_status", error)
    expected = ValueError if isinstance(error, ValueError) else AskInterruptedError
    with pytest.raises(expected, match="a fault"):
        system.ask(StatusAsked())
    assert system.ask(StatusAsked()).crashes == 0


def test_a_worker_whose_start_fails_keeps_the_job_that_it_was_told_to_run(
    systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start(queues={"": 1})
    raise_first(monkeypatch, WorkerActor, "on_start", OSError("no"), times=3)
    assert system.result(system.put(jobs.raise_once, "Bare"), timeout=LIMIT) == "done"
    assert system.ask(StatusAsked()).crashes == 3


@pytest.mark.parametrize("times", [1, 5, 30])
def test_a_database_that_cannot_be_opened_is_waited_for(
    times: int, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = systems.database()
    opens = database.open
    left = [ClientDisconnected("away")] * times

    def reluctant(*args: Any, **kwargs: Any) -> Any:
        name = threading.current_thread().name
        if left and (name.startswith("worker") or name in ("dispatcher", "heartbeat")):
            raise left.pop()
        return opens(*args, **kwargs)

    monkeypatch.setattr(database, "open", reluctant)
    system = systems.start(database, {"": 1})
    assert system.result(system.put(operator.add, 1, 1), timeout=LIMIT) == 2
    status = system.ask(StatusAsked())
    assert (status.crashes, status.degraded, left) == (0, (), [])


def test_a_dispatcher_that_always_crashes_is_given_up_loudly_and_can_be_stopped(
    systems: Systems, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    database = systems.database()
    system = systems.start(database, {"": 1})
    settled(system)
    raise_first(monkeypatch, DispatcherActor, "_poll", OSError("broken"), times=1000)
    raise_first(monkeypatch, DispatcherActor, "_woken", OSError("broken"))
    heartbeat = system._context.directory.get("heartbeat")
    ref = system.put(operator.add, 1, 1)
    assert heartbeat.join(LIMIT), "whoever does not work must not seem alive"
    status = system.ask(StatusAsked())
    assert len(status.degraded) == 1 and status.degraded[0].startswith("dispatcher: OSError")
    assert "IS GIVEN UP" in caplog.text
    system.stop()
    monkeypatch.undo()
    # Its record is taken for alive until its last ping is old.
    assert read(system, ref, "result") is None
