"""Turns: threads that compute for long do so one by one, unless one of them does not end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ZODB.MappingStorage import MappingStorage

from perdure.actors import execution
from perdure.actors.context import Context
from perdure.actors.dispatcher import DispatcherActor
from perdure.actors.execution import ThreadedExecution
from perdure.model import Job, SystemClock, get_queue
from perdure.testing import World
from support import jobs
from support.jobs import gates
from support.systems import LIMIT, Systems, settled, within

LONG_SECONDS = 3600.0


@pytest.fixture
def threads() -> ThreadedExecution:
    return ThreadedExecution(SystemClock())


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a turn does so until it has it."""
    monkeypatch.setattr(execution, "TURN_SECONDS", LONG_SECONDS)


def enter(turns: Any, entered: threading.Event) -> None:
    with turns.turn():
        entered.set()


def entering(turns: Any) -> tuple[threading.Thread, threading.Event]:
    """Let a thread enter; it, and what it sets then."""
    entered = threading.Event()
    thread = threading.Thread(target=enter, args=(turns, entered), daemon=True)
    thread.start()
    return thread, entered


@pytest.mark.usefixtures("long")
def test_one_enters_when_the_other_has_left(threads: ThreadedExecution) -> None:
    with threads.turn():
        thread, entered = entering(threads)
        assert not entered.wait(0.05)
    within(thread.join)
    assert entered.is_set()


@pytest.mark.usefixtures("long")
def test_an_error_ends_a_turn_as_well(threads: ThreadedExecution) -> None:
    with pytest.raises(ValueError, match="mine"), threads.turn():
        raise ValueError("mine")
    within(entering(threads)[1].wait)


def test_who_does_not_end_is_waited_for_once(
    threads: ThreadedExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    with threads.turn():
        within(entering(threads)[1].wait)
        # From now on, that would be too long.
        monkeypatch.setattr(execution, "TURN_SECONDS", LONG_SECONDS)
        within(entering(threads)[1].wait)
    with threads.turn():
        thread, entered = entering(threads)
        assert not entered.wait(0.05)
    within(thread.join)


@pytest.mark.usefixtures("long")
def test_turns_go_on_where_one_has_ended_just_as_another_one_waited_in_vain(
    threads: ThreadedExecution,
) -> None:
    # That one says so after the other has left.
    threads._turn_lasts = True
    with threads.turn():
        thread, entered = entering(threads)
        assert not entered.wait(0.05)
    within(thread.join)
    assert entered.is_set()


def test_a_simulated_process_has_no_turns() -> None:
    with World() as world:
        stepped = world.process()._execution
        assert stepped is not None
        with stepped.turn(), stepped.turn():
            pass


@pytest.mark.usefixtures("long")
def test_who_asks_a_storage_ahead_waits_for_no_turn(threads: ThreadedExecution) -> None:
    class Far:
        def prefetch(self, oids: Any, tid: bytes) -> None:
            """As storages have it that are asked over a network."""

    class Shared(Far):
        """As in `perdure.storage`."""

        def __init__(self, owned: bool) -> None:
            self.is_owner = lambda: owned

    def turns_with(storage: Any) -> Any:
        fields: Any = SimpleNamespace(execution=threads, database=SimpleNamespace(storage=storage))
        return SimpleNamespace(turn=lambda: Context.turn(fields))

    with threads.turn():
        for storage in (Far(), Shared(owned=False)):
            within(entering(turns_with(storage))[1].wait)
        near = [entering(turns_with(each)) for each in (MappingStorage(), Shared(owned=True))]
        assert [entered.wait(0.05) for _, entered in near] == [False, False]
    for thread, _ in near:
        within(thread.join)


# At work.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, threading.Event]:
    """By the names of threads, or what these begin with: set once one is about to enter."""
    events = {"dispatcher": threading.Event(), "worker": threading.Event()}
    turn = ThreadedExecution.turn

    @contextlib.contextmanager
    def noted(self: ThreadedExecution) -> Iterator[None]:
        events[threading.current_thread().name.split()[0]].set()
        with turn(self):
            yield

    monkeypatch.setattr(ThreadedExecution, "turn", noted)
    return events


def know(system: Any, function: Any, seconds: float) -> None:
    system._context.experience.took(f"{function.__module__}:{function.__qualname__}", seconds)


def put(system: Any, name: str) -> Any:
    with system.transaction() as connection:
        return get_queue(connection).put(Job(jobs.pass_gate, name), transactional=True).ref


@pytest.mark.usefixtures("long")
def test_a_dispatcher_does_not_work_beside_a_group_of_instant_calls(
    systems: Systems,
    asked: dict[str, threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system = systems.start(queues={"": 4})
    settled(system)
    know(system, jobs.pass_gate, 0.0)
    first = put(system, "first")
    gates["first"].wait_until_entered()
    assert asked["worker"].is_set()
    worked: list[bool] = []
    work = DispatcherActor._work_agents

    def noted(dispatcher: DispatcherActor, *args: Any) -> Any:
        worked.append(gates["first"].opened.is_set())
        return work(dispatcher, *args)

    monkeypatch.setattr(DispatcherActor, "_work_agents", noted)
    asked["dispatcher"].clear()
    gates["second"].open()
    second = put(system, "second")
    within(asked["dispatcher"].wait)
    gates["first"].open()
    assert [system.result(ref, timeout=LIMIT) for ref in (first, second)] == ["first", "second"]
    assert worked and all(worked)


@pytest.mark.usefixtures("long")
def test_a_dispatcher_works_beside_a_group_of_calls_that_last(
    systems: Systems, asked: dict[str, threading.Event]
) -> None:
    system = systems.start(queues={"": 4})
    settled(system)
    know(system, jobs.pass_gate, 0.001)
    first = put(system, "first")
    gates["first"].wait_until_entered()
    gates["second"].open()
    assert system.result(put(system, "second"), timeout=LIMIT) == "second"
    assert not asked["worker"].is_set()
    gates["first"].open()
    assert system.result(first, timeout=LIMIT) == "first"
