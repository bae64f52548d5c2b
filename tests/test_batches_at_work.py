"""Batches at work: what systems make of jobs whose calls are over at once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import transaction
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError

from perdure.actors import AgentActor, PauseQueue, PollNow, ResumeQueue
from perdure.actors.agent import LONGEST_TURN
from perdure.actors.context import Batches
from perdure.actors.messages import BatchRan
from perdure.model import (
    Agent,
    Job,
    JobFailedError,
    Status,
    StopRequested,
    SystemClock,
    check,
    find_job,
    get_queue,
)
from perdure.model.places import BATCHED
from support import coroutines, jobs
from support.desk import deed
from support.jobs import calls, gates
from support.manual_clock import ManualClock
from support.systems import LIMIT, Systems, read, settled, within

SECOND = timedelta(seconds=1)
MANY = range(3 * BATCHED)
KNOWN = (
    jobs.note, jobs.note_and_gate, jobs.fail, jobs.exit_once, jobs.stop_once, jobs.pass_gate,
    jobs.raise_once, jobs.return_persistent, coroutines.future,
)  # fmt: skip
PERFORM = "support.desk:perform"


@pytest.fixture
def batches_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs were in each batch that a worker was given."""
    seen: list[int] = []
    begin = Batches.begin

    def noted(batches: Batches, worker: str, claims: Any) -> None:
        seen.append(len(claims))
        begin(batches, worker, claims)

    monkeypatch.setattr(Batches, "begin", noted)
    return seen


def start(systems: Systems, database: Any = None, size: int = 1, **settings: Any) -> Any:
    """Start a system that knows that these take no time."""
    settings.setdefault("clock", ManualClock())
    system = systems.start(database, {"": size}, **settings)
    settled(system)
    know(system)
    return system


def know(system: Any) -> None:
    for name in (*(f"{each.__module__}:{each.__qualname__}" for each in KNOWN), PERFORM):
        system._context.experience.took(name, 0.0)


def put(system: Any, *made: Any) -> list[Any]:
    """Put jobs, or callables, in one commit."""
    with system.transaction() as connection:
        queue = get_queue(connection)
        return [queue.put(each if isinstance(each, Job) else deed(each)).ref for each in made]


def wait_for(system: Any, *refs: Any) -> None:
    for ref in refs:
        system.wait(ref, timeout=LIMIT)


def turn(system: Any, times: int = 3) -> None:
    """Let agents look at their batches, and let all that come of it be done."""
    for _ in range(times):
        system._context.clock.advance(LONGEST_TURN)
        settled(system)


def statuses(system: Any, refs: list[Any]) -> list[str]:
    return [read(system, ref, "status").name for ref in refs]


def deactivate(system: Any) -> None:
    """Bury the system's dispatcher, as a sibling does that takes it for dead."""
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid].deactivate()


# Claiming and running.


@pytest.mark.spec("D18", "D7", "Q3")
def test_many_jobs_are_run_one_after_the_other_by_one_worker(
    systems: Systems, batches_seen: list[int]
) -> None:
    system = start(systems, size=3)
    first = put(system, Job(jobs.note_and_gate, "g"))
    gates["g"].wait_until_entered()
    refs = put(system, *(Job(jobs.note, number) for number in MANY))
    settled(system)
    with system.transaction() as connection:
        agent: Agent = get_queue(connection).dispatchers[system.uuid]["main"]
        assert len(agent) == 2 * BATCHED
    gates["g"].open()
    wait_for(system, *first, *refs)
    settled(system)
    assert calls == ["g", *((number,) for number in MANY)]
    assert max(batches_seen) == BATCHED and sum(batches_seen) == len(MANY) + 1
    assert check(system.database) == []


@pytest.mark.spec("D18", "Q3")
def test_jobs_of_several_callables_are_run_in_the_order_of_the_queue(systems: Systems) -> None:
    system = start(systems)
    system.ask(PauseQueue(""))
    made = [
        Job(jobs.note, number) if number % 3 else deed(lambda n=number: calls.append((n,)))
        for number in range(40)
    ]
    with system.transaction() as connection:
        refs = [get_queue(connection).put(each).ref for each in made]
    system.ask(ResumeQueue(""))
    wait_for(system, *refs)
    assert calls == [(number,) for number in range(40)]


@pytest.mark.spec("D18", "J18", "J17")
def test_the_next_one_is_active_for_others_only_once_the_one_before_it_is_completed(
    systems: Systems,
) -> None:
    system = start(systems)
    refs = put(system, *(Job(jobs.note_and_gate, name) for name in "abc"))
    gates["a"].wait_until_entered()
    assert statuses(system, refs) == ["ACTIVE", "ASSIGNED", "ASSIGNED"]
    gates["a"].open()
    gates["b"].wait_until_entered()
    assert statuses(system, refs) == ["COMPLETED", "ACTIVE", "ASSIGNED"]
    assert check(system.database) == []
    for name in "bc":
        gates[name].open()
    wait_for(system, *refs)
    assert calls == ["a", "b", "c"]


@pytest.mark.spec("D18", "J17")
def test_who_cancels_one_that_is_not_the_next_is_in_nobodys_way(systems: Systems) -> None:
    system = start(systems)
    refs = put(system, *(Job(jobs.note_and_gate, name) for name in "abc"))
    gates["a"].wait_until_entered()
    with system.transaction() as connection:
        find_job(connection, refs[2]).cancel()
    for name in "ab":
        gates[name].open()
    wait_for(system, *refs)
    assert calls == ["a", "b"] and read(system, refs[2], "failed")


@pytest.mark.spec("D18", "J17", "R2")
def test_a_call_that_has_taken_a_while_is_not_made_again_since_the_next_one_was_cancelled(
    systems: Systems,
) -> None:
    system = start(systems)
    refs = put(system, *(Job(jobs.note_and_gate, name) for name in "ab"))
    gates["a"].wait_until_entered()
    with system.transaction() as connection:
        find_job(connection, refs[1]).cancel()
    system._context.clock.advance(LONGEST_TURN / 10)
    gates["a"].open()
    wait_for(system, *refs)
    assert calls == ["a"] and read(system, refs[1], "failed")


# What goes wrong for one of them.


@pytest.mark.spec("J6", "J7", "D18")
def test_one_that_fails_takes_no_neighbour_with_it(systems: Systems) -> None:
    system = start(systems)
    refs = put(system, Job(jobs.note, 1), Job(jobs.fail, "no"), Job(jobs.note, 2))
    wait_for(system, *refs)
    with pytest.raises(JobFailedError, match="no"):
        system.result(refs[1], timeout=LIMIT)
    assert calls == [(1,), (2,)]


@pytest.mark.spec("D11", "D18")
@pytest.mark.parametrize(
    "bad",
    [Job(jobs.exit_once, 1), Job(jobs.stop_once), Job(jobs.raise_once, "KeyboardInterrupt")],
    ids=lambda job: job.callable_name,
)
def test_a_worker_that_is_lost_costs_those_behind_it_nothing(bad: Job, systems: Systems) -> None:
    system = start(systems)
    made = Job(bad.callable, *bad.args)
    refs = put(system, Job(jobs.note_and_gate, "g"), made, Job(jobs.note, 2), Job(jobs.note, 3))
    gates["g"].wait_until_entered()
    calls.clear()
    gates["g"].open()
    wait_for(system, *refs)
    settled(system)
    assert [call for call in calls if isinstance(call, tuple)] == [(2,), (3,)]
    assert len(calls) == 4
    assert not any(read(system, ref, "failed") for ref in refs)
    assert check(system.database) == []


@pytest.mark.spec("R11", "D11", "D18")
def test_a_worker_that_is_lost_in_the_commit_loses_nobody(systems: Systems) -> None:
    system = start(systems)
    exits = [True]

    def exit_in_the_commit() -> None:
        if exits.pop() if exits else False:
            transaction.get().addBeforeCommitHook(jobs.raise_always, args=("SystemExit",))

    refs = put(system, exit_in_the_commit, Job(jobs.note, 1), Job(jobs.note, 2))
    wait_for(system, *refs)
    settled(system)
    assert calls == ["SystemExit", (1,), (2,)]
    assert not any(read(system, ref, "failed") for ref in refs)


@pytest.mark.spec("D18", "J17", "R2")
def test_who_cancels_the_next_one_in_the_very_moment_has_the_one_before_it_called_again(
    systems: Systems,
) -> None:
    system = start(systems)
    refs: list[Any] = []
    effects: list[int] = []

    def cancel_next() -> int:
        """Cancel it after its beginning was written, and before that is committed."""
        effects.append(1)
        if len(effects) == 1:
            transaction.get().addBeforeCommitHook(cancel)
        return len(effects)

    def cancel() -> None:
        with system.transaction() as connection:
            find_job(connection, refs[1]).cancel()

    system.ask(PauseQueue(""))
    refs += put(system, cancel_next, Job(jobs.note, 1), Job(jobs.note, 2))
    system.ask(ResumeQueue(""))
    wait_for(system, *refs)
    settled(system)
    assert read(system, refs[0], "result") == 2
    assert statuses(system, refs) == ["COMPLETED"] * 3
    assert [read(system, ref, "failed") for ref in refs] == [False, True, False]
    assert calls == [(2,)]


# Those that take longer than was expected.


@pytest.mark.spec("D18")
def test_those_behind_one_that_lasts_are_run_by_others(
    systems: Systems, batches_seen: list[int]
) -> None:
    system = start(systems, size=2)
    refs = put(system, Job(jobs.note_and_gate, "g"), *(Job(jobs.note, n) for n in range(5)))
    gates["g"].wait_until_entered()
    turn(system)
    wait_for(system, *refs[1:])
    assert read(system, refs[0], "status") is Status.ACTIVE
    assert calls == ["g", *((number,) for number in range(5))]
    assert [read(system, ref, "_alone") for ref in refs] == [False] + [True] * 5
    gates["g"].open()
    wait_for(system, *refs)
    settled(system)
    assert batches_seen == [6] and len(calls) == 6
    assert check(system.database) == []


@pytest.mark.spec("D18")
def test_a_job_may_wait_for_one_behind_it_in_its_batch(systems: Systems) -> None:
    system = start(systems, size=2)
    refs: list[Any] = []

    def wait_for_next() -> Any:
        gates["g"].enter()
        return system.result(refs[1], timeout=LIMIT)

    refs += put(system, wait_for_next, Job(jobs.pass_gate, "h"))
    gates["g"].wait_until_entered()
    gates["h"].open()
    gates["g"].open()
    turn(system)
    assert system.result(refs[0], timeout=LIMIT) == "h"


@pytest.mark.spec("D18", "D7")
@pytest.mark.parametrize("number", [5, BATCHED + 5])
def test_what_cannot_be_run_here_meanwhile_is_left_to_other_processes(
    number: int, systems: Systems, tmp_path: Path
) -> None:
    database = systems.database(FileStorage(str(tmp_path / "data.fs")))
    clock = ManualClock()
    first = start(systems, database, clock=clock)
    (lasting,) = put(first, Job(jobs.note_and_gate, "g"))
    gates["g"].wait_until_entered()
    refs = put(first, *(Job(jobs.note, n) for n in range(number)))
    settled(first)
    turn(first)
    assert statuses(first, refs) == ["PENDING"] * number
    second = start(systems, database, clock=clock)
    wait_for(second, *refs)
    gates["g"].open()
    wait_for(first, lasting)
    assert sorted(calls[1:]) == [(n,) for n in range(number)]


@pytest.mark.spec("D7", "D18")
def test_one_that_lasts_has_a_place_of_its_own(systems: Systems) -> None:
    system = start(systems, size=2)
    lasting = []
    for function in (jobs.note_and_gate, jobs.pass_gate):
        name = function.__name__
        lasting += put(system, Job(function, name))
        gates[name].wait_until_entered()
        turn(system)
    refs = put(system, Job(jobs.note, 1))
    settled(system)
    assert statuses(system, refs) == ["PENDING"]
    gates["pass_gate"].open()
    wait_for(system, *refs)
    gates["note_and_gate"].open()
    wait_for(system, *lasting)


@pytest.mark.spec("D18")
def test_what_is_taken_from_a_worker_is_sent_again_and_run_once(systems: Systems) -> None:
    system = start(systems, size=2)
    refs = put(system, Job(jobs.note_and_gate, "g"), *(Job(jobs.note, n) for n in range(5)))
    gates["g"].wait_until_entered()
    for _ in range(3):
        within(lambda: system.ask(PollNow()))
    turn(system)
    for _ in range(3):
        within(lambda: system.ask(PollNow()))
    gates["g"].open()
    wait_for(system, *refs)
    settled(system)
    # By now two workers run them, in whatever order.
    assert calls[0] == "g" and sorted(calls[1:]) == [(number,) for number in range(5)]


@pytest.mark.spec("J17", "D18")
def test_one_that_was_cancelled_is_not_given_back(systems: Systems) -> None:
    system = start(systems)
    refs = put(system, Job(jobs.note_and_gate, "g"), Job(jobs.note, 1), Job(jobs.note, 2))
    gates["g"].wait_until_entered()
    with system.transaction() as connection:
        find_job(connection, refs[1]).cancel()
    turn(system)
    assert check(system.database) == []
    gates["g"].open()
    wait_for(system, *refs)
    settled(system)
    assert calls == ["g", (2,)]
    assert read(system, refs[1], "failed")
    # Its worker is free again.
    refs += put(system, Job(jobs.note, 3))
    wait_for(system, *refs)
    settled(system)
    with system.transaction() as connection:
        agent: Agent = get_queue(connection).dispatchers[system.uuid]["main"]
        assert len(agent) == 0 and {job.ref for job in agent.completed} == set(refs)


# Those that wait for a future.


@pytest.mark.spec("J9", "D18")
@pytest.mark.parametrize("size", [1, 2])
def test_one_whose_future_has_come_goes_on_while_its_batch_is_run(
    size: int, systems: Systems
) -> None:
    coroutines.futures.clear()
    system = start(systems, size=size)
    refs = put(system, Job(coroutines.future, "f"), Job(jobs.pass_gate, "g"), Job(jobs.note, 1))
    gates["g"].wait_until_entered()
    coroutines.futures["f"].set_result(5)
    if size == 2:
        turn(system)
        assert system.result(refs[0], timeout=LIMIT) == 5
        wait_for(system, refs[2])
    gates["g"].open()
    wait_for(system, *refs)
    settled(system)
    # Nobody waited for its gate in vain.
    assert [read(system, ref, "result") for ref in refs] == [5, "g", None]
    assert calls == ["f", (1,)]
    assert check(system.database) == []


@pytest.mark.spec("J9", "D18")
@pytest.mark.parametrize("early", [False, True])
def test_one_whose_future_failed_and_who_is_called_again_is_run_by_one_worker(
    early: bool, systems: Systems, caplog: pytest.LogCaptureFixture
) -> None:
    system = start(systems, size=2)
    futures: list[concurrent.futures.Future[Any]] = []

    def fail_first() -> Any:
        futures.append(concurrent.futures.Future())
        if len(futures) == 1 and early:
            futures[0].set_exception(ConflictError("made up"))
        if len(futures) > 1:
            gates["again"].enter()
            futures[-1].set_result(7)
        return futures[-1]

    # Both workers are busy when it is to go on.
    refs = put(system, Job(jobs.report_progress, "h"))
    gates["h"].wait_until_entered()
    refs += put(system, fail_first, Job(jobs.pass_gate, "g"))
    gates["g"].wait_until_entered()
    if not early:
        futures[0].set_exception(ConflictError("made up"))
    settled(system)
    gates["h"].open()
    # It is called again alone.
    gates["g"].open()
    gates["again"].wait_until_entered()
    turn(system)
    gates["again"].open()
    wait_for(system, *refs)
    settled(system)
    assert [read(system, ref, "result") for ref in refs] == [None, 7, "g"]
    assert len(futures) == 2
    # Nor was it found by another one, and taken for interrupted.
    assert [each for each in caplog.records if each.levelname == "ERROR"] == []
    assert check(system.database) == []


# Burial, stops and crashes.


@pytest.mark.spec("D4", "D6", "D18", "J18")
def test_a_burial_interrupts_the_one_that_runs_and_gives_the_others_back(
    systems: Systems,
) -> None:
    system = start(systems)
    refs = put(system, Job(jobs.note_and_gate, "g"), *(Job(jobs.note, n) for n in range(3)))
    gates["g"].wait_until_entered()
    deactivate(system)
    assert statuses(system, refs) == ["ACTIVE"] + ["PENDING"] * 3
    assert check(system.database) == []
    gates["g"].open()
    within(lambda: system.ask(PollNow()))
    wait_for(system, *refs)
    settled(system)
    assert calls.count("g") == 2 and sorted(calls[1:], key=str)[:3] == [(0,), (1,), (2,)]
    assert len(calls) == 5


@pytest.mark.spec("D10", "D18", "J18")
@pytest.mark.parametrize("drain", [timedelta(0), LIMIT])
def test_a_stop_begins_no_more_of_a_batch(
    drain: timedelta, systems: Systems, tmp_path: Path
) -> None:
    database = systems.database(FileStorage(str(tmp_path / "data.fs")))
    system = start(systems, database, clock=SystemClock())
    refs = put(system, Job(jobs.note_and_gate, "g"), *(Job(jobs.note, n) for n in range(3)))
    gates["g"].wait_until_entered()
    stopping = threading.Thread(target=lambda: system.stop(drain))
    stopping.start()
    with contextlib.suppress(StopRequested):
        system._context.stop.wait(LIMIT)
    if not drain:
        stopping.join(LIMIT.total_seconds())
    gates["g"].open()
    stopping.join(LIMIT.total_seconds())
    within(lambda: [ref.join() for ref in system._context.directory.all_started()])
    assert calls == ["g"]
    with database.transaction() as connection:
        found = [find_job(connection, ref) for ref in refs]
        assert [job.status.name for job in found[1:]] == ["PENDING"] * 3
        assert (found[0].status is Status.COMPLETED) is bool(drain)
        assert [(job._deaths, job._policy) for job in found[1:]] == [(0, None)] * 3
    assert check(database) == []


@pytest.mark.spec("D10", "D18")
def test_the_next_one_that_has_begun_when_a_stop_comes_is_run_within_the_drain(
    systems: Systems,
) -> None:
    database = systems.database()
    system = start(systems, database)

    def stop_after_the_commit() -> None:
        def stop(committed: bool) -> None:
            if committed:
                stopping.start()
                with contextlib.suppress(StopRequested):
                    system._context.stop.wait(LIMIT)

        transaction.get().addAfterCommitHook(stop)

    stopping = threading.Thread(target=lambda: system.stop(LIMIT))
    refs = put(system, stop_after_the_commit, *(Job(jobs.note, n) for n in range(2)))
    with contextlib.suppress(StopRequested):
        system._context.stop.wait(LIMIT)
    within(lambda: stopping.join(LIMIT.total_seconds()))
    assert calls == [(0,)]
    with database.transaction() as connection:
        found = [find_job(connection, ref) for ref in refs]
        assert [job.status.name for job in found] == ["COMPLETED", "COMPLETED", "PENDING"]


@pytest.mark.spec("D18")
@pytest.mark.slow
def test_an_agents_actor_that_falls_while_a_batch_is_run_loses_nothing(
    systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = start(systems, clock=SystemClock())
    fallen: list[bool] = []
    free = AgentActor._free_of_batch

    def fall_once(actor: AgentActor, message: BatchRan) -> None:
        free(actor, message)
        if not fallen:
            fallen.append(True)
            raise RuntimeError("a fault of the actor's own")

    monkeypatch.setattr(AgentActor, "_free_of_batch", fall_once)
    refs = put(system, *(Job(jobs.note, number) for number in range(3)))
    wait_for(system, *refs)
    within(lambda: system.ask(PollNow()))
    settled(system)
    wait_for(system, *put(system, Job(jobs.note, 4)))
    assert sorted(calls) == [(0,), (1,), (2,), (4,)]
    assert check(system.database) == []


# Operating.


@pytest.mark.spec("D18", "D7")
def test_what_was_claimed_is_run_although_its_agent_gets_smaller(systems: Systems) -> None:
    system = start(systems, size=3)
    refs = put(system, Job(jobs.note_and_gate, "g"), *(Job(jobs.note, n) for n in range(3)))
    gates["g"].wait_until_entered()
    with system.transaction() as connection:
        get_queue(connection).resize(0)
    within(lambda: system.ask(PollNow()))
    late = put(system, Job(jobs.note, 9))
    gates["g"].open()
    wait_for(system, *refs)
    settled(system)
    assert calls == ["g", (0,), (1,), (2,)]
    assert statuses(system, late) == ["PENDING"]


@pytest.mark.spec("D18", "Q4")
def test_of_a_batch_no_more_begin_once_a_worker_sees_that_its_queue_is_paused(
    systems: Systems,
) -> None:
    system = start(systems, size=3)
    refs = put(system, Job(jobs.note_and_gate, "g"), *(Job(jobs.note, n) for n in range(3)))
    gates["g"].wait_until_entered()
    with system.transaction() as connection:
        get_queue(connection).pause()
    gates["g"].open()
    # The first one cannot have seen it, and has let the next one begin.
    wait_for(system, *refs[:2])
    settled(system)
    within(lambda: system.ask(PollNow()))
    assert statuses(system, refs[2:]) == ["PENDING", "PENDING"]
    assert check(system.database) == []
    with system.transaction() as connection:
        get_queue(connection).resume()
    wait_for(system, *refs)
    assert calls[:2] == ["g", (0,)]
    assert sorted(calls[2:]) == [(1,), (2,)]
