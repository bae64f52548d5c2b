"""Groups at work: what dispatchers, agents and workers make of transactional jobs."""

from __future__ import annotations

import contextlib
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ZODB.FileStorage import FileStorage

from perdure.actors import ActiveJobsAsked, AgentActor, PauseQueue, PollNow, StatisticsAsked
from perdure.actors.messages import GroupRan, RunGroup
from perdure.actors.worker import WorkerActor
from perdure.model import (
    Agent,
    BadStatusError,
    Job,
    JobFailedError,
    RetryCommonForever,
    Status,
    StopRequested,
    SystemClock,
    check,
    find_job,
    get_queue,
)
from perdure.model.places import GROUPED_PER_PLACE
from support import jobs
from support.groups import records_since
from support.jobs import Counter, calls, gates
from support.manual_clock import ManualClock
from support.systems import LIMIT, Systems, read, settled, within

SECOND = timedelta(seconds=1)
KNOWN = (
    jobs.note, jobs.note_and_gate, jobs.fail, jobs.exit_once, jobs.stop_once, jobs.pass_gate,
    jobs.raise_once,
    Counter.add, Counter.add_then_gate, Counter.add_behind_gate,
)  # fmt: skip


@pytest.fixture
def groups_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs were in each group that a worker was given."""
    seen: list[int] = []
    run = WorkerActor._run_claims

    def noted(worker: WorkerActor, message: RunGroup) -> Any:
        seen.append(len(message.claims))
        return run(worker, message)

    monkeypatch.setattr(WorkerActor, "_run_claims", noted)
    return seen


def know(system: Any, *functions: Any) -> None:
    """Let a system know that these take no time."""
    for function in functions or KNOWN:
        name = f"{function.__module__}:{function.__qualname__}"
        system._context.experience.took(name, 0.0)


def start(systems: Systems, database: Any = None, size: int = 1, **settings: Any) -> Any:
    settings.setdefault("clock", ManualClock())
    system = systems.start(database, {"": size}, **settings)
    settled(system)
    know(system)
    return system


def put(system: Any, *made: Job) -> list[Any]:
    """Put transactional jobs in one commit."""
    with system.transaction() as connection:
        queue = get_queue(connection)
        return [queue.put(job, transactional=True).ref for job in made]


def make_counter(system: Any) -> None:
    with system.transaction() as connection:
        connection.root()["counter"] = Counter()


def put_adding(system: Any, method: str, *args: Any, **settings: Any) -> Any:
    with system.transaction() as connection:
        bound = getattr(connection.root()["counter"], method)
        return get_queue(connection).put(Job(bound, *args), transactional=True, **settings).ref


def counted(system: Any) -> int:
    with system.transaction() as connection:
        return int(connection.root()["counter"].value)


def deactivate(system: Any) -> None:
    """Bury the system's dispatcher, as a sibling does that takes it for dead."""
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid].deactivate()


# Claiming and running.


@pytest.mark.spec("D17")
def test_a_group_has_no_more_jobs_than_are_likely_to_be_over_before_it_has_lasted(
    systems: Systems, groups_seen: list[int]
) -> None:
    system = start(systems)
    for _ in range(500):
        system._context.experience.took("support.jobs:note", 0.005)
    refs = put(system, *(Job(jobs.note, number) for number in range(50)))
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    assert groups_seen[0] == 20 and sum(groups_seen) == 50
    assert calls == [(number,) for number in range(50)]


@pytest.mark.spec("D17", "X8")
def test_many_jobs_are_claimed_in_one_commit_and_run_in_another(
    systems: Systems, groups_seen: list[int]
) -> None:
    system = start(systems)
    before = system.database.lastTransaction()
    refs = put(system, *(Job(jobs.note, number) for number in range(50)))
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    settled(system)
    assert groups_seen == [50]
    assert calls == [(number,) for number in range(50)]
    oids = {oid_of(ref) for ref in refs}
    commits = [len(oids & set(oids_)) for oids_ in records_since(system.database, before)]
    # Put and run; what claims and settles writes none of them.
    assert [number for number in commits if number] == [50, 50]
    assert check(system.database) == []


def oid_of(ref: Any) -> bytes:
    return int(ref.oid).to_bytes(8, "big")


@pytest.mark.spec("D17")
def test_a_callable_that_nobody_knows_is_run_by_itself_first(
    systems: Systems, groups_seen: list[int]
) -> None:
    system = systems.start(queues={"": 1}, clock=ManualClock())
    settled(system)
    for _ in range(2):
        refs = put(system, *(Job(jobs.note, number) for number in range(4)))
        for ref in refs:
            system.wait(ref, timeout=LIMIT)
        settled(system)
    # Size 1 has one place for what may take long; each of the first ones had it.
    assert groups_seen[0] == 1 and sum(groups_seen) == 8
    assert groups_seen[-1] == 4


@pytest.mark.spec("D17", "D7")
def test_a_callable_that_was_slow_is_not_grouped_until_it_was_quick_for_a_while(
    systems: Systems, groups_seen: list[int]
) -> None:
    clock = ManualClock()
    system = start(systems, clock=clock)
    (slow,) = put(system, Job(jobs.pass_gate, "g"))
    gates["g"].wait_until_entered()
    clock.advance(SECOND)
    gates["g"].open()
    system.wait(slow, timeout=LIMIT)
    settled(system)
    refs = put(system, *(Job(jobs.pass_gate, "g") for _ in range(3)))
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    assert groups_seen == [1] * 4


@pytest.mark.spec("D17", "D7")
def test_jobs_of_both_kinds_take_turns(systems: Systems, groups_seen: list[int]) -> None:
    system = start(systems, size=2)
    with system.transaction() as connection:
        queue = get_queue(connection)
        refs = [
            queue.put(Job(jobs.note, number), transactional=bool(number % 2)).ref
            for number in range(20)
        ]
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    assert sorted(calls) == [(number,) for number in range(20)]
    assert sum(groups_seen) == 10


@pytest.mark.spec("J4", "J13", "J18", "L2")
def test_a_job_that_runs_in_a_group_is_assigned_for_others(systems: Systems) -> None:
    system = start(systems)
    refs = put(system, Job(jobs.report_progress, "g"), Job(jobs.note, 1))
    know(system, jobs.report_progress)
    gates["g"].wait_until_entered()
    assert [read(system, ref, "status") for ref in refs] == [Status.ASSIGNED] * 2
    assert check(system.database) == []
    with system.transaction() as connection:
        found = find_job(connection, refs[0])
        assert found.annotations["progress"] == 50
        found.annotations["flag"] = "seen"
    gates["g"].open()
    assert system.result(refs[0], timeout=LIMIT) == "seen"
    settled(system)
    with system.transaction() as connection:
        found = find_job(connection, refs[0])
        assert dict(found.annotations) == {"progress": 50, "flag": "seen"}


# What goes wrong for one of them.


@pytest.mark.spec("J6", "J7", "J32", "D17")
def test_one_that_fails_takes_no_neighbour_with_it(
    systems: Systems, groups_seen: list[int]
) -> None:
    system = start(systems)
    refs = put(system, Job(jobs.note, 1), Job(jobs.fail, "no"), Job(jobs.note, 2))
    assert [system.result(ref, timeout=LIMIT) for ref in (refs[0], refs[2])] == [None, None]
    with pytest.raises(JobFailedError, match="no"):
        system.result(refs[1], timeout=LIMIT)
    settled(system)
    assert groups_seen == [3]
    report = system.ask(StatisticsAsked())
    assert (report.started, report.successful, report.failed) == (3, 2, 1)


@pytest.mark.spec("D11", "D17")
@pytest.mark.parametrize(
    "bad",
    [Job(jobs.exit_once, 1), Job(jobs.stop_once), Job(jobs.raise_once, "KeyboardInterrupt")],
    ids=lambda job: job.callable_name,
)
def test_one_that_raises_what_is_no_exception_costs_its_neighbours_nothing(
    bad: Job, systems: Systems
) -> None:
    system = start(systems)
    made = Job(bad.callable, *bad.args)
    refs = put(system, made, Job(jobs.note, 1), Job(jobs.note, 2))
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    settled(system)
    assert {(1,), (2,)} < set(calls)
    assert not any(read(system, ref, "failed") for ref in refs)
    # It was called in the group, where it raised, and alone.
    assert len([call for call in calls if not isinstance(call, tuple)]) == 2
    assert check(system.database) == []


@pytest.mark.spec("R12", "D17", "J6")
@pytest.mark.parametrize("systems_", [1, 2])
def test_a_number_that_everybody_writes_is_right(
    systems_: int, systems: Systems, tmp_path: Path
) -> None:
    database = systems.database(FileStorage(str(tmp_path / "data.fs")))
    started = [start(systems, database, size=2) for _ in range(systems_)]
    make_counter(started[0])
    # Conflicts with another dispatcher's jobs count, so that five of them are the end.
    forever = {"retry_policy_factory": RetryCommonForever}
    refs = [put_adding(each, "add", **forever) for _ in range(30) for each in started]
    for ref in refs:
        started[0].wait(ref, timeout=LIMIT)
    assert counted(started[0]) == 30 * systems_
    results = sorted(read(started[0], ref, "result") for ref in refs)
    assert results == list(range(1, 30 * systems_ + 1))


# Burial, stops and crashes.


@pytest.mark.spec("D4", "D6", "D17", "C10")
def test_a_burial_while_a_group_runs_gives_all_of_it_back_to_be_run_alone(
    systems: Systems, groups_seen: list[int]
) -> None:
    system = start(systems)
    make_counter(system)
    with system.transaction() as connection:
        counter, queue = connection.root()["counter"], get_queue(connection)
        made = [Job(counter.add), Job(counter.add_then_gate, "g"), Job(counter.add)]
        refs = [queue.put(job, transactional=True).ref for job in made]
    gates["g"].wait_until_entered()
    deactivate(system)
    assert [read(system, ref, "status") for ref in refs] == [Status.PENDING] * 3
    assert [read(system, ref, "_alone") for ref in refs] == [True] * 3
    gates["g"].open()
    within(lambda: system.ask(PollNow()))
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    settled(system)
    assert counted(system) == 3 and groups_seen == [3]
    assert [read(system, ref, "_deaths") for ref in refs] == [0] * 3
    assert check(system.database) == []


@pytest.mark.spec("D10", "D17", "C3")
@pytest.mark.parametrize("drain", [True, False])
def test_a_stop_while_a_group_runs_begins_no_more_of_it(
    drain: bool, systems: Systems, tmp_path: Path
) -> None:
    database = systems.database(FileStorage(str(tmp_path / "data.fs")))
    system = start(systems, database, clock=SystemClock())
    make_counter(system)
    with system.transaction() as connection:
        counter, queue = connection.root()["counter"], get_queue(connection)
        made = [Job(counter.add_then_gate, "g"), Job(counter.add)]
        refs = [queue.put(job, transactional=True).ref for job in made]
    gates["g"].wait_until_entered()
    if drain:
        stopping = threading.Thread(target=lambda: system.stop(LIMIT))
        stopping.start()
        with contextlib.suppress(StopRequested):
            system._context.stop.wait(LIMIT)
        gates["g"].open()
        stopping.join(LIMIT.total_seconds())
        assert not stopping.is_alive()
    else:
        system.stop(timedelta(0))
        gates["g"].open()
    within(lambda: [ref.join() for ref in system._context.directory.all_started()])
    with database.transaction() as connection:
        found = [find_job(connection, ref) for ref in refs]
        value = connection.root()["counter"].value
        done = [job.status is Status.COMPLETED for job in found]
        assert value == sum(done)
        assert not done[1]
        waiting = [job for job in found if job.status is not Status.COMPLETED]
        assert [job.status for job in waiting] == [Status.PENDING] * len(waiting)
        assert [job._policy for job in waiting] == [None] * len(waiting)
    assert check(database) == []
    again = start(systems, database, clock=SystemClock())
    for ref in refs:
        again.wait(ref, timeout=LIMIT)
    assert counted(again) == 2


@pytest.mark.spec("D17")
def test_what_is_sent_again_while_a_group_runs_or_waits_is_run_once(systems: Systems) -> None:
    system = start(systems)
    first = put(system, Job(jobs.note_and_gate, "g"), Job(jobs.note, 1))
    gates["g"].wait_until_entered()
    second = put(system, *(Job(jobs.note, number) for number in (2, 3)))
    for _ in range(3):
        within(lambda: system.ask(PollNow()))
    gates["g"].open()
    for ref in (*first, *second):
        system.wait(ref, timeout=LIMIT)
    settled(system)
    assert sorted(calls, key=str) == [(1,), (2,), (3,), "g"]
    assert check(system.database) == []


@pytest.mark.spec("D17")
@pytest.mark.slow
def test_an_agents_actor_that_falls_while_a_group_runs_loses_nothing(
    systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = start(systems, clock=SystemClock())
    fallen: list[bool] = []
    free = AgentActor._free_of_group

    def fall_once(actor: AgentActor, message: GroupRan) -> None:
        free(actor, message)
        if not fallen:
            fallen.append(True)
            raise RuntimeError("a fault of the actor's own")

    monkeypatch.setattr(AgentActor, "_free_of_group", fall_once)
    refs = put(system, *(Job(jobs.note, number) for number in range(3)))
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    within(lambda: system.ask(PollNow()))
    settled(system)
    further = put(system, Job(jobs.note, 4))
    system.wait(further[0], timeout=LIMIT)
    settled(system)
    assert sorted(calls) == [(0,), (1,), (2,), (4,)]
    assert check(system.database) == []


@pytest.mark.spec("J17", "D17")
def test_a_job_that_waits_for_its_turn_in_a_group_can_be_cancelled(systems: Systems) -> None:
    system = start(systems)
    make_counter(system)
    first = put(system, Job(jobs.note_and_gate, "g"))
    gates["g"].wait_until_entered()
    others = put(system, Job(jobs.note, 1), Job(jobs.note, 2))
    settled_claims(system, others)
    with system.transaction() as connection:
        find_job(connection, others[0]).cancel()
    with pytest.raises(BadStatusError), system.transaction() as connection:
        find_job(connection, others[0]).cancel()
    gates["g"].open()
    for ref in (*first, *others):
        system.wait(ref, timeout=LIMIT)
    settled(system)
    assert calls == ["g", (2,)]
    assert read(system, others[0], "failed")


def settled_claims(system: Any, refs: list[Any]) -> None:
    """Return when these are claimed."""
    within(lambda: system.ask(PollNow()))
    assert [read(system, ref, "status") for ref in refs] == [Status.ASSIGNED] * len(refs)


@pytest.mark.spec("D17")
def test_a_paused_queue_lets_what_was_claimed_for_a_group_end(systems: Systems) -> None:
    system = start(systems)
    first = put(system, Job(jobs.note_and_gate, "g"))
    gates["g"].wait_until_entered()
    others = put(system, Job(jobs.note, 1))
    settled_claims(system, others)
    system.ask(PauseQueue(""))
    gates["g"].open()
    for ref in (*first, *others):
        system.wait(ref, timeout=LIMIT)
    assert calls == ["g", (1,)]


# Settling.


@pytest.mark.spec("D8", "D13", "D17")
def test_what_a_group_has_done_is_among_the_completed_and_counted(systems: Systems) -> None:
    system = start(systems)
    refs = put(system, *(Job(jobs.note, number) for number in range(5)))
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    settled(system)
    with system.transaction() as connection:
        agent: Agent = get_queue(connection).dispatchers[system.uuid]["main"]
        assert {job.ref for job in agent.completed} == set(refs)
        assert len(agent) == 0


def put_at_gates(system: Any, names: list[str], seconds: float) -> list[Any]:
    """Put jobs for groups that wait at gates, while their calls are known to take so long."""
    settled(system)
    system._context.experience.took("support.jobs:pass_gate", seconds)
    with system.transaction() as connection:
        queue = get_queue(connection)
        return [queue.put(Job(jobs.pass_gate, name), transactional=True).ref for name in names]


@pytest.mark.spec("D17", "D7")
@pytest.mark.parametrize(("seconds", "most"), [(0.0001, 256), (0.001, 384), (0.008, 76)])
def test_an_agent_holds_what_takes_its_workers_the_time_of_two_groups(
    seconds: float, most: int, systems: Systems
) -> None:
    system = systems.start(queues={"": 3})
    names = [f"held {number}" for number in range(most + 20)]
    refs = put_at_gates(system, names, seconds)
    jobs.gates[names[0]].wait_until_entered()
    settled(system)
    with system.transaction() as connection:
        assert len(get_queue(connection).dispatchers[system.uuid]["main"]) == most
    for name in names:
        jobs.gates[name].open()
    for ref in refs:
        system.wait(ref, timeout=LIMIT)


@pytest.mark.spec("D17")
@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_only_calls_that_are_over_at_once_are_left_to_one_worker(
    seconds: float, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.start(queues={"": 2})
    names = [f"gate {number}" for number in range(GROUPED_PER_PLACE + 1)]
    refs = put_at_gates(system, names, seconds)
    jobs.gates[names[0]].wait_until_entered()
    if seconds:
        # Two share what there is.
        jobs.gates[names[GROUPED_PER_PLACE // 2 + 1]].wait_until_entered()
    settled(system)
    busy = [job for job in system.ask(ActiveJobsAsked()) if job.ended is None]
    assert len(busy) == (2 if seconds else 1)
    for name in names:
        jobs.gates[name].open()
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
