"""The simulator itself: one thread at a time, time that stands still, faults on command."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import transaction
from persistent import Persistent
from ZEO.Exceptions import ClientDisconnected
from ZODB import ConflictResolution
from ZODB.FileStorage import FileStorage

from perdure.actors import Resize
from perdure.model import (
    Failure,
    Job,
    NeverRetry,
    PerdureError,
    PutInDoubtError,
    Reschedule,
    RetryPolicy,
    Status,
    get_queue,
    pack,
)
from perdure.testing import (
    Disk,
    Fault,
    FileDisk,
    NotAtRestError,
    Process,
    ProcessCrashed,
    Recorded,
    Seeded,
    SimulationError,
    SteppedSystem,
    StuckError,
    World,
    scheduler,
)
from perdure.testing import scheduler as scheduler_module
from perdure.testing.execution import SteppedExecution
from support import simulated
from support.simulated import add, doze, letters

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def no_letters() -> None:
    letters.clear()


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made
        assert made.check() == []


def counter(world: World, name: str = "n") -> int:
    with world.look() as connection:
        return int(connection.root().get(name, 0))


# Time.


def test_a_job_is_run_when_the_test_lets_the_others_go_on(world: World) -> None:
    process = world.process()
    ref = process.put(add, "n", 3)
    assert world.status(ref) is Status.PENDING
    world.run_until_idle()
    assert (world.status(ref), world.result(ref), counter(world)) == (Status.COMPLETED, 3, 3)


def test_no_time_passes_while_anybody_can_go_on(world: World) -> None:
    process = world.process()
    begun = world.now
    for _ in range(20):
        process.put(add, "n")
    world.run_until_idle()
    assert (world.now - begun, counter(world)) == (timedelta(0), 20)


def test_time_passes_by_as_much_as_it_is_told(world: World) -> None:
    world.process()
    begun = world.now
    world.advance(MINUTE)
    assert world.now - begun == MINUTE


def test_a_job_that_is_held_begins_at_its_moment(world: World) -> None:
    process = world.process(poll_interval=timedelta(hours=1))
    with process.transaction() as connection:
        job = get_queue(connection, "").put(Job(add, "n"), begin_after=world.now + MINUTE)
        ref = job.ref
    world.advance(MINUTE - SECOND)
    assert world.status(ref) is Status.PENDING
    world.advance(SECOND)
    assert world.status(ref) is Status.COMPLETED


def test_the_test_itself_may_wait_and_time_passes_for_it(world: World) -> None:
    process = world.process()
    begun = world.now
    ref = process.put(doze, 40.0)
    assert process.system.result(ref, timeout=MINUTE) == "rested"
    assert world.now - begun >= 40 * SECOND


def test_a_wait_for_what_never_comes_ends_with_the_states_of_all(world: World) -> None:
    process = world.process()
    with process.transaction() as connection:
        get_queue(connection, "").pause()
    ref = process.put(add, "n")
    with pytest.raises(StuckError, match="waits for what never comes"):
        process.system.result(ref)


class AtOnce(RetryPolicy):
    """Lets a job be run again at once, without end."""

    def on_receive(self, message: object) -> Reschedule:
        return Reschedule(timedelta(0))


def test_what_goes_on_without_end_while_no_time_passes_is_broken_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MOST_POINTS_AT_ONCE", 1000)
    process = world.process()
    job = Job(simulated.fail, "no")
    job.retry_policy_factory = AtOnce
    ref = process.put(job)
    with pytest.raises(StuckError, match="goes on and on, and no time passes"):
        world.come_to_rest()
    with pytest.raises(StuckError, match="goes on and on, and no time passes"):
        process.result(ref)


def test_each_process_has_a_clock_of_its_own(world: World) -> None:
    fast, slow = world.process(drift=0.5), world.process(drift=-0.5)
    world.advance(MINUTE)
    assert fast.clock.monotonic() == pytest.approx(90)
    assert slow.clock.monotonic() == pytest.approx(30)
    fast.clock.jump(timedelta(days=1))
    assert fast.clock.now() - slow.clock.now() == timedelta(days=1, minutes=1)
    assert fast.clock.monotonic() == pytest.approx(90)


def test_rest_is_not_waited_for_without_end(world: World) -> None:
    process = world.process()
    with process.transaction() as connection:
        job = Job(add, "n")
        get_queue(connection, "").put(job, begin_after=world.now + timedelta(days=1))
    with pytest.raises(NotAtRestError, match="1 jobs wait in queue ''"):
        world.come_to_rest(MINUTE)


# Turns.


def story_of(seed: int) -> tuple[list[str], list[object], int]:
    with World(chooser=Seeded(seed)) as world:
        first, second = world.process("first"), world.process("second")
        for process in (first, second, first):
            process.put(add, "n")
        world.come_to_rest()
        return (
            [str(event) for event in world.scheduler.trace],
            [*world.disk.commits],
            counter(world),
        )


def test_the_same_seed_gives_the_same_trace_and_the_same_records() -> None:
    # Else a conflict's frames would show that ZODB notes a class at the first conflict.
    ConflictResolution._unresolvable.clear()
    assert story_of(3) == story_of(3)


class Teller(Persistent):
    """Its text is on the disk."""

    def __repr__(self) -> str:
        return f"<Teller {self.name}>"


def tell_of(name: str) -> None:
    """Log what has to be loaded for that, in the midst of it."""
    teller = simulated.root()[name]
    for _ in range(30):
        teller._p_deactivate()
        logging.getLogger("told").warning("of %r", teller)


def test_what_is_loaded_while_it_is_logged_keeps_nobody_waiting_who_logs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "HANGS_AFTER_SECONDS", 5.0)
    for seed in range(5):
        with World(chooser=Seeded(seed, 1.0)) as world:
            process = world.process(queues={"": 2})
            with process.transaction() as connection:
                connection.root()["one"], connection.root()["other"] = Teller(), Teller()
                connection.root()["one"].name = connection.root()["other"].name = "both"
            for name in ("one", "other"):
                process.put(tell_of, name)
            world.come_to_rest()
    assert caplog.text.count("of <Teller both>") == 300


def test_other_seeds_give_other_stories_with_the_same_end() -> None:
    stories = [story_of(seed) for seed in range(5)]
    assert len({tuple(trace) for trace, _, _ in stories}) == 5
    assert {end for _, _, end in stories} == {3}


def test_what_was_chosen_can_be_chosen_again() -> None:
    def run(chooser: Recorded) -> list[str]:
        with World(chooser=chooser) as world:
            world.process().put(add, "n")
            world.come_to_rest()
            return [str(event) for event in world.scheduler.trace]

    first = Recorded(then=Seeded(5))
    trace = run(first)
    assert len({taken.index for taken in first.taken}) > 1
    assert run(Recorded([taken.index for taken in first.taken])) == trace


def test_what_is_done_calmly_leaves_the_chooser_no_choice() -> None:
    chooser = Recorded(then=Seeded(1))
    with World(chooser=chooser) as world:
        with world.calmly():
            world.process().put(add, "n")
            world.run_until_idle()
        assert not chooser.taken
        world.process("another")
        world.run_until_idle()
        assert chooser.taken


def test_transactions_of_two_processes_conflict_where_they_would() -> None:
    conflicts = 0
    for seed in range(10):
        with World(chooser=Seeded(seed)) as world:
            processes = world.process("one"), world.process("other")
            for process in processes:
                for _ in range(3):
                    process.put(add, "n")
            world.come_to_rest()
            assert counter(world) == 6
            begins = [str(event) for event in world.scheduler.trace if "abort" in str(event)]
            conflicts += len(begins)
    assert conflicts > 0


def test_the_test_may_go_on_while_others_are_in_the_middle_of_something(world: World) -> None:
    process = world.process()
    world.run_until_idle()
    ref = process.put(add, "n")
    statuses = set()
    for _ in range(200):
        passed = len(process.storage.calls)
        world.step()
        assert len(process.storage.calls) - passed <= 1
        statuses.add(world.status(ref))
        assert world.check() == []
    assert statuses == {Status.PENDING, Status.ASSIGNED, Status.ACTIVE, Status.COMPLETED}
    with pytest.raises(ValueError, match="points must be 0 or more"):
        world.step(-1)


def test_a_process_answers_questions_and_time_passes_until_it_does(world: World) -> None:
    process = world.process()
    assert process.ask(Resize("", "main", 7)) is None
    with world.look() as connection:
        record = get_queue(connection, "").dispatchers[process.uuid]
        assert record["main"].size == 7
    process.suspend()
    assert process.is_suspended
    process.crash()
    with pytest.raises(ProcessCrashed):
        process.ask(Resize("", "main", 7))
    assert not process.is_suspended


def test_a_thread_that_the_simulation_does_not_know_cannot_wait_in_it(world: World) -> None:
    process = world.process()
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            process.system.wait(process.put(add, "n"), timeout=SECOND)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert isinstance(raised[0], SimulationError)


def test_an_application_that_uses_a_thread_of_its_own_is_not_hindered(world: World) -> None:
    process = world.process()
    thread = threading.Thread(target=process.put, args=(add, "n"))
    thread.start()
    thread.join()
    world.come_to_rest()
    assert counter(world) == 1


def test_no_thread_is_left_when_a_world_is_closed() -> None:
    before = threading.active_count()
    with World() as world:
        world.process().put(add, "n")
        world.process().put(doze, 5.0)
        world.run_until_idle()
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_nothing_of_a_world_is_left_when_it_was_closed() -> None:
    """Thousands of runs, and each kept its disk: that was gigabytes."""
    with World() as world:
        process = world.process()
        process.put(add, "n")
        world.process().crash()
        world.come_to_rest()
        world.check()
        left = weakref.ref(world), weakref.ref(world.disk), weakref.ref(process)
    del world, process
    gc.collect()
    assert [each() for each in left] == [None, None, None]


@pytest.mark.spec("X7")
def test_a_process_hears_of_what_another_one_has_put(world: World) -> None:
    hour = timedelta(hours=1)
    first = world.process("first", {"": 0}, poll_interval=hour)
    world.process("second", {"": 1}, poll_interval=hour)
    world.run_until_idle()
    begun = world.now
    ref = first.put(add, "n")
    world.run_until_idle()
    assert (world.status(ref), world.now) == (Status.COMPLETED, begun)


# Crashes, and what else may befall a process.


def test_a_process_that_crashed_has_nothing_but_the_disk(world: World) -> None:
    process = world.process()
    ref = process.put(add, "n")
    process.crash()
    assert not process.is_running
    with pytest.raises(ProcessCrashed):
        process.put(add, "n")
    process.start()
    world.come_to_rest()
    assert (world.result(ref), counter(world)) == (1, 1)


@pytest.mark.parametrize(("after", "times"), [(False, 0), (True, 1)])
def test_a_crash_comes_before_a_call_or_after_it(world: World, after: bool, times: int) -> None:
    process = world.process()
    world.run_until_idle()
    done = len(world.disk.commits)
    process.on_call = lambda call: Fault.crash(after=after) if call.kind == "finish" else None
    with pytest.raises(ProcessCrashed):
        process.put(add, "n")
    assert len(world.disk.commits) - done == times
    process.on_call = lambda call: None
    process.start()
    world.come_to_rest()
    assert counter(world) == times


def test_a_crash_in_a_thread_of_the_process_ends_all_of_them(world: World) -> None:
    process = world.process()
    world.run_until_idle()
    process.on_call = lambda call: (
        Fault.crash() if call.kind == "vote" and "worker" in world.scheduler.who else None
    )
    process.put(add, "n")
    world.run_until_idle()
    assert not process.is_running
    assert world.restless() == [
        "<Agent 'main' of 00000000-0000-0000-0000-000000000001> has 1 jobs"
    ]


def test_a_crash_before_the_first_turn_of_an_event_loop_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loops = []
    make = SteppedExecution.create_event_loop

    def make_and_keep(execution: SteppedExecution) -> asyncio.AbstractEventLoop:
        loops.append(make(execution))
        process.crash()
        return loops[-1]

    monkeypatch.setattr(SteppedExecution, "create_event_loop", make_and_keep)
    with World() as world:
        process = world.process()
        process.put(doze, 5.0)
        world.run_until_idle()
        assert not process.is_running
    assert [loop.is_closed() for loop in loops] == [True]


def test_nothing_is_said_of_the_coroutines_of_a_process_that_has_crashed(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with World() as world:
        process = world.process()
        refs = [process.put(doze, 5.0), process.put(doze, 50.0)]
        world.run_until_idle()
        assert [world.status(ref) for ref in refs] == [Status.ACTIVE] * 2
        process.crash()
        world.run_until_idle()
        # As a later run would collect them.
        gc.collect()
        process.start()
        world.run_until_idle()
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []
    assert capsys.readouterr().err == ""


def test_the_tests_own_wait_ends_where_the_process_crashes(world: World) -> None:
    process = world.process()
    world.run_until_idle()
    ref = process.put(add, "n")
    process.on_call = lambda call: Fault.crash() if "worker" in world.scheduler.who else None
    with pytest.raises(ProcessCrashed):
        process.result(ref)


@pytest.mark.spec("C1")
def test_a_sibling_on_the_same_host_sees_the_crash_and_takes_over(world: World) -> None:
    first = world.process("first", poll_interval=timedelta(hours=1))
    ref = first.put(doze, 100.0)
    world.run_until_idle()
    assert world.status(ref) is Status.ACTIVE
    world.process("second", {"": 0}, poll_interval=timedelta(hours=1))
    world.run_until_idle()
    first.crash()
    assert "000001> has 1 jobs" in world.restless()[0]
    world.advance(2 * SECOND)
    assert world.restless() == ["1 jobs wait in queue ''"]


def test_one_on_another_host_waits_until_it_must_be_dead(world: World) -> None:
    first = world.process("first")
    ref = first.put(doze, 1000.0)
    world.run_until_idle()
    world.process("second", {"": 0}, host="another")
    first.crash()
    world.advance(50 * SECOND)
    assert world.status(ref) is Status.ACTIVE
    assert "000001> has 1 jobs" in world.restless()[0]
    world.advance(30 * SECOND)
    assert world.restless() == ["1 jobs wait in queue ''"]


@pytest.mark.spec("D4")
def test_a_process_that_stood_still_for_too_long_can_commit_nothing(world: World) -> None:
    first = world.process("first")
    world.run_until_idle()
    suspended = []

    def suspend_in_commit(call: object) -> None:
        if "worker" in world.scheduler.who and counter_is_stored(call) and not suspended:
            suspended.append(call)
            first.suspend()

    def counter_is_stored(call: object) -> bool:
        return getattr(call, "kind", "") == "begin" and counter_started(world)

    first.on_call = suspend_in_commit  # type: ignore[assignment]
    ref = first.put(add, "n")
    second = world.process("second", host="another")
    world.advance(3 * MINUTE)
    assert suspended
    assert world.result(ref) == 1
    first.resume()
    world.advance(MINUTE)
    assert counter(world) == 1
    assert second.is_running
    assert first.is_running


def counter_started(world: World) -> bool:
    return any(
        "JobStarted" in str(event) or "worker" in str(event) for event in world.scheduler.trace
    )


@pytest.mark.spec("D9")
def test_a_process_that_is_cut_off_goes_on_when_it_is_not_any_more(world: World) -> None:
    process = world.process()
    world.run_until_idle()
    process.cut()
    with pytest.raises(ClientDisconnected):
        process.put(add, "n")
    world.advance(5 * MINUTE)
    process.restore()
    ref = process.put(add, "n")
    world.come_to_rest()
    assert world.result(ref) == 1


def test_an_error_may_come_after_a_commit_that_took_place(world: World) -> None:
    process = world.process()
    world.run_until_idle()
    done = len(world.disk.commits)
    error = ClientDisconnected("lost")
    process.on_call = lambda call: (
        Fault.fail(error, after=True)
        if call.kind == "finish" and world.scheduler.is_driver
        else None
    )
    with pytest.raises(PutInDoubtError, match="may have taken place"):
        process.put(add, "n")
    assert len(world.disk.commits) == done + 1
    process.on_call = lambda call: None
    world.come_to_rest()
    assert counter(world) == 1


def test_an_error_keeps_nothing_of_the_worlds_that_it_was_raised_in_before() -> None:
    """Else what is stored of a failure is longer in each run, and each world stays in memory."""
    error = ClientDisconnected("lost")
    frames = []
    for _ in range(3):
        with World() as world:
            process = world.process()
            process.on_call = lambda call: Fault.fail(error) if call.kind == "vote" else None
            with pytest.raises(PutInDoubtError):
                process.put(add, "n")
            frames.append(len([*traceback.walk_tb(error.__traceback__)]))
    assert frames[0] == frames[1] == frames[2]


def test_a_call_may_take_long(world: World) -> None:
    process = world.process()
    world.run_until_idle()
    begun = world.now
    process.on_call = lambda call: Fault.slow(SECOND) if call.kind == "vote" else None
    process.put(add, "n")
    assert world.now - begun == SECOND


def test_a_process_may_stand_still_at_a_call_until_it_goes_on_by_itself(world: World) -> None:
    process, other = world.process("stands"), world.process("goes on", {"": 0})
    world.run_until_idle()
    faults = [Fault.stand_still(MINUTE)]
    process.on_call = lambda call: faults.pop() if faults and call.kind == "begin" else None
    ref = other.put(add, "n")
    world.advance(MINUTE - SECOND)
    assert faults == []
    assert process.is_suspended
    assert world.status(ref) is Status.PENDING
    world.advance(SECOND)
    assert not process.is_suspended
    assert world.result(ref) == 1


def test_the_test_stands_still_with_the_process_that_it_acts_for(world: World) -> None:
    process = world.process()
    world.run_until_idle()
    faults = [Fault.stand_still(MINUTE, after=True)]
    process.on_call = lambda call: faults.pop() if faults and call.kind == "finish" else None
    begun = world.now
    process.put(add, "n")
    assert world.now - begun == MINUTE


def test_one_that_stands_still_can_be_resumed_before_its_time(world: World) -> None:
    process = world.process()
    world.run_until_idle()
    process.on_call = lambda call: Fault.stand_still(MINUTE)
    world.advance(31 * SECOND)  # a sign of life is due
    assert process.is_suspended
    process.on_call = lambda call: None
    process.resume()
    world.advance(SECOND)
    process.suspend()
    world.advance(2 * MINUTE)
    assert process.is_suspended


def test_the_others_go_on_until_one_is_about_to_make_a_call(world: World) -> None:
    process = world.process()
    world.run_until_idle()
    ref = process.put(add, "n")
    assert world.step_to(process, "finish")
    assert world.status(ref) is Status.PENDING
    assert world.scheduler.trace[-1].text == "finish"
    assert world.step_to(process, "finish")
    assert world.status(ref) is Status.ASSIGNED
    while world.step_to(process, "finish"):
        pass
    assert world.result(ref) == 1
    with pytest.raises(SimulationError, match="a call is of a kind of begin, .*not 'commit'"):
        world.step_to(process, "commit")


def test_one_that_crashes_is_about_to_make_no_call(world: World) -> None:
    process, other = world.process("crashes"), world.process("other", {"": 0})
    world.run_until_idle()
    process.on_call = lambda call: Fault.crash() if call.kind == "begin" else None
    other.put(add, "n")
    assert not world.step_to(process, "finish")


def test_a_commit_that_stands_still_is_broken_off_for_others(world: World) -> None:
    stuck, other = world.process("stuck"), world.process("other")
    world.run_until_idle()
    caught = []

    def suspend(call: object) -> None:
        if getattr(call, "kind", "") == "vote" and not caught:
            caught.append(call)
            stuck.suspend()

    stuck.on_call = suspend  # type: ignore[assignment]
    world.advance(timedelta(seconds=31))  # a sign of life is due
    assert caught
    ref = other.put(add, "n")
    world.advance(timedelta(seconds=30))
    assert world.result(ref) == 1
    stuck.resume()
    world.advance(MINUTE)
    assert stuck.is_running


def test_one_that_crashes_while_it_waits_for_a_commit_is_not_woken_by_its_end(
    world: World,
) -> None:
    holder, waiter = world.process("holder"), world.process("waiter")
    world.run_until_idle()

    def suspend(call: object) -> None:
        if getattr(call, "kind", "") == "vote":
            holder.suspend()

    holder.on_call = suspend  # type: ignore[assignment]
    world.advance(timedelta(seconds=31))  # signs of life are due
    assert holder.is_suspended
    waiter.crash()
    holder.on_call = lambda call: None
    holder.resume()
    ref = holder.put(add, "n")
    world.come_to_rest()
    assert world.result(ref) == 1


# What an application does with its own connections.


@pytest.mark.parametrize("ends", ["crashes", "stops", "runs"])
def test_what_the_test_has_left_open_is_let_go_of_with_its_process(ends: str) -> None:
    with World() as world:
        process = world.process()
        connection = process.system.database.open()
        get_queue(connection).put(Job(add, "n"))
        if ends == "crashes":
            process.crash()
        elif ends == "stops":
            process.stop()
    # The thread's own manager has no part of it any more.
    with transaction.manager:
        pass
    assert connection.opened is None


def test_a_crash_in_the_commit_of_the_tests_own_manager_leaves_it_usable(world: World) -> None:
    process = world.process()
    connection = process.system.database.open()
    get_queue(connection).put(Job(add, "n"))
    process.on_call = lambda call: Fault.crash() if call.kind == "vote" else None
    with pytest.raises(ProcessCrashed):
        transaction.commit()
    process.on_call = lambda call: None
    process.start()
    connection = process.system.database.open()
    get_queue(connection).put(Job(add, "n"))
    transaction.commit()
    connection.close()
    world.come_to_rest()
    assert counter(world) == 1


# Disks.


def test_a_file_may_be_the_disk(tmp_path: object) -> None:
    disk = Disk(FileStorage(f"{tmp_path}/data.fs"))
    with World(disk) as world:
        process = world.process()
        ref = process.put(add, "n")
        process.crash()
        process.start()
        world.come_to_rest()
        assert (world.result(ref), world.check()) == (1, [])


def test_a_disk_may_be_packed_to_a_moment_before_the_last_one(world: World) -> None:
    process = world.process()
    process.put(add, "n")
    world.come_to_rest()
    with process.acting():
        pack(process.system.database, timedelta(0))
        pack(process.system.database, MINUTE)
    assert counter(world) == 1


def test_a_process_that_could_not_open_a_connection_can_be_stopped(world: World) -> None:
    process = world.process()
    world.run_until_idle()
    process.cut()
    with pytest.raises(ClientDisconnected), process.transaction():
        pass
    process.stop()
    assert not process.is_running


# Misuse.


def test_what_makes_no_sense_is_refused(world: World) -> None:
    process = world.process("one")
    with pytest.raises(SimulationError, match="is a process 'one' already"):
        world.process("one")
    with pytest.raises(SimulationError, match="runs: stop it"):
        process.start()
    with pytest.raises(ValueError, match="must not be negative"):
        world.advance(-SECOND)
    process.stop()
    with pytest.raises(ProcessCrashed):
        process.put(add, "n")


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda world: world.process().clock.jump(3), "duration must be a timedelta, not 3"),
        (lambda world: world.step_to("one", "begin"), "process must be one of .*, not 'one'"),
        (lambda world: world.process(drift="x"), "drift must be a number of seconds .*'x'"),
        (lambda world: world.process(drift=-1), "drift must be above -1, not -1"),
        (lambda world: World("x"), r"disk must be a Disk, such as FileDisk\(path\), not 'x'"),
        (lambda world: SteppedSystem(disk="x"), "disk must be a Disk"),
        (lambda world: FileDisk("/no/such/folder/x.fs"), "no folder /no/such/folder: make it"),
    ],
)
def test_what_is_of_no_use_is_named_with_what_would_be(
    act: Callable[[World], object], text: str
) -> None:
    refused = pytest.raises((TypeError, ValueError, SimulationError), match=text)
    with World() as world, refused:
        act(world)


def test_failures_and_policies_are_what_they_are_elsewhere(world: World) -> None:
    process = world.process()
    ref = process.put(simulated.fail, "no")
    world.come_to_rest()
    result = world.result(ref)
    assert isinstance(result, Failure)
    assert "ValueError: no" in str(result)


def test_an_interrupted_job_that_is_never_retried_has_failed(world: World) -> None:
    process = world.process()
    with process.transaction() as connection:
        job = Job(doze, 100.0)
        job.retry_policy_factory = NeverRetry
        ref = get_queue(connection, "").put(job).ref
    world.run_until_idle()
    process.crash()
    process.start()
    world.come_to_rest()
    assert "AbortedError" in str(world.result(ref))


def test_processes_are_given_as_they_were_made(world: World) -> None:
    made: list[Process] = [world.process("a"), world.process("b")]
    assert list(world.processes) == made


def test_who_has_not_joined_a_queue_yet_says_so_when_it_is_to_be_resized(world: World) -> None:
    process = world.process(start=False)
    process.on_call = lambda call: (
        Fault.fail(ClientDisconnected("away"))
        if call.kind == "begin" and "dispatcher" in world.scheduler.who
        else None
    )
    process.start()
    world.run_until_idle()
    with pytest.raises(PerdureError, match="has not joined queue '' yet"):
        process.ask(Resize("", "main", 2))
    process.on_call = lambda call: None
    world.advance(MINUTE)
    process.ask(Resize("", "main", 2))
    with world.look() as connection:
        assert get_queue(connection).dispatchers[process.uuid]["main"].size == 2
