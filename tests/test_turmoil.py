"""Worlds in bad times, with seeds; and that a seed tells all about a world."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from perdure.model import Status
from perdure.testing import Fault, SimulationError, Trouble, World, break_everywhere, turmoil
from perdure.testing import scheduler as scheduler_module
from support.simulated import Block, add, block, doze, run_in_thread
from support.turmoil import bad_times

SECOND = timedelta(seconds=1)

#: More of them, from another one on: PERDURE_SEEDS=1000 or PERDURE_SEEDS=200:1000.
_GIVEN = os.environ.get("PERDURE_SEEDS", "20")
SEEDS = range(*map(int, _GIVEN.split(":")))


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made
        assert made.check() == []


@pytest.mark.slow
@pytest.mark.spec("C2")
@pytest.mark.spec("C8")
@pytest.mark.parametrize("seed", SEEDS)
def test_the_books_balance_after_bad_times(seed: int) -> None:
    put, troubles = bad_times(seed)
    assert put > 10
    assert troubles > 5


# The same seed, the same story.

TELL = """
import hashlib, re, sys
from datetime import timedelta
import perdure.testing as testing
from support import turmoil

close = testing.World.close

def tell(world):
    text = "\\n".join(map(str, [*world.scheduler.trace, *world.disk.commits]))
    # The text of a failure may have places in memory.
    text = re.sub("0x[0-9a-f]{8,}", "0x", text)
    told = hashlib.sha256(text.encode()).hexdigest()
    print(len(world.scheduler.trace), len(world.disk.commits), told)
    close(world)

testing.World.close = tell
for seed in map(int, sys.argv[1:]):
    turmoil.bad_times(seed, timedelta(minutes=3))
"""


def story_in_a_process(hash_seed: str, *seeds: str) -> list[str]:
    tests = str(Path(__file__).parent)
    told = subprocess.run(
        [sys.executable, "-c", TELL, *seeds],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]),
        },
    )
    return told.stdout.splitlines()


@pytest.mark.process
@pytest.mark.slow
def test_a_seed_tells_the_same_story_in_each_process() -> None:
    first = story_in_a_process("1", "18", "7")
    second = story_in_a_process("2", "7", "18")
    assert first == second[::-1]
    assert len({*first}) == 2


# What may befall.


def test_processes_are_back_when_the_server_is(world: World) -> None:
    processes = world.process("one"), world.process("other")
    world.run_until_idle()
    begun = world.now
    refs = [each.put(doze, 5.0) for each in processes]
    world.restart_server(down=10 * SECOND)
    assert world.now - begun == 10 * SECOND
    assert all(each.is_connected for each in processes)
    world.come_to_rest()
    assert [world.result(ref) for ref in refs] == ["rested", "rested"]


@pytest.mark.spec("C2")
def test_a_commit_under_way_is_lost_with_the_server(world: World) -> None:
    process = world.process("one", {"": 0})
    other = world.process("other", {"": 0})
    ref = other.put(add, "n")
    world.run_until_idle()
    stopped = []

    def stop_there(call: object) -> None:
        if getattr(call, "kind", "") == "vote" and not stopped:
            stopped.append(call)
            process.suspend()

    process.on_call = stop_there  # type: ignore[assignment]
    world.advance(31 * SECOND)
    commits = len(world.disk.commits)
    world.restart_server()
    process.resume()
    assert stopped
    assert world.disk.is_free
    assert world.status(ref) is Status.PENDING
    world.advance(timedelta(minutes=1))
    assert len(world.disk.commits) > commits


def test_one_that_was_cut_off_before_stays_cut_off(world: World) -> None:
    process = world.process()
    process.cut()
    world.restart_server()
    assert not process.is_connected


def test_a_server_is_not_down_for_less_than_no_time() -> None:
    with World() as world, pytest.raises(ValueError, match="must not be negative"):
        world.restart_server(-SECOND)


def test_only_those_troubles_come_that_are_let(world: World) -> None:
    process = world.process()
    assert turmoil(world, 1, timedelta(minutes=5), troubles=[Trouble.JUMP]) > 0
    assert process.starts == 1
    assert turmoil(world, 1, timedelta(minutes=1), troubles=[]) == 0


def test_bad_times_need_somebody_to_befall() -> None:
    with World() as world, pytest.raises(SimulationError, match="no process in the world"):
        turmoil(world, 1)


def test_clocks_that_drift_do_not_let_a_wait_go_on_for_ever(world: World) -> None:
    """What rounding left of a wait was waited for again, without any time passing."""
    for drift in (0.001, -0.01, 1 / 3):
        world.process(drift=drift)
    for seconds in (0.1, 0.7, 31.3, 433.777):
        world.advance(timedelta(seconds=seconds))
    assert all(process.is_running for process in world.processes)


@pytest.mark.slow
@pytest.mark.spec("C2")
def test_a_coroutine_never_runs_in_the_workers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where it cannot be told for a moment that it is one."""

    def refuse(coroutine: object, job: object) -> None:
        raise AssertionError(f"{job!r} runs in the worker's thread")

    from ZEO.Exceptions import ClientDisconnected

    monkeypatch.setattr("perdure.model.attempting.run_here", refuse)
    report = break_everywhere(
        lambda process: process.put(doze, 5.0),
        lambda process: rested(process.world),
        [Fault.fail(ClientDisconnected("gone"))],
    )
    assert report.calls > 20


def rested(world: World) -> None:
    assert [world.result(ref) for ref in world.acknowledged] == ["rested"]


# Threads that the simulation does not know, or that do not come back.


def test_a_job_may_start_a_thread_of_its_own(world: World) -> None:
    process = world.process()
    ref = process.put(run_in_thread, "n")
    world.come_to_rest()
    assert world.result(ref) == "n, in a thread of its own"


@pytest.mark.slow
def test_a_thread_that_waits_outside_of_the_simulation_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Longer than a busy machine keeps a thread waiting that does nothing wrong.
    monkeypatch.setattr(scheduler_module, "HANGS_AFTER_SECONDS", 1.0)
    gate = threading.Event()
    Block.gate = gate
    with World() as world:
        world.process().put(block)
        with pytest.raises(SimulationError, match="has not handed on the baton") as caught:
            world.run_until_idle()
        assert "in block" in str(caught.value)
        monkeypatch.undo()
        gate.set()
        world.come_to_rest()
