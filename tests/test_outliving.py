"""Crashes that leave the same: one of them is run, and no harm is overlooked."""

from __future__ import annotations

import asyncio
import cProfile
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from persistent import Persistent
from ZEO.Exceptions import ClientDisconnected

from perdure.model import GiveUp, Job, RetryPolicy, get_queue
from perdure.testing import (
    Fault,
    Process,
    Seeded,
    World,
    break_everywhere,
    crash_everywhere,
    crashes,
    outliving,
)
from perdure.testing.crashes import CRASHES, Runner, Strike
from perdure.testing.scheduler import nothing_logged
from perdure.testing.world import REST_LIMIT
from support.outside import InTurns, Outside, States
from support.simulated import add, letters

SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def no_letters() -> None:
    letters.clear()


# What is not run would have been recovered in the same way.


async def rest(*told: Any) -> str:
    await asyncio.sleep(1.0)
    return "rested"


def several_jobs(process: Process) -> None:
    job = Job(add, "n")
    job.add_callback(Job(rest))
    process.put(job)
    process.world.advance(SECOND / 2)
    process.put(add, "m")


def a_sibling(world: World) -> None:
    world.process("sibling", {"": 1})


def nobody(world: World) -> None:
    pass


def nothing(process: Process) -> None:
    pass


@dataclass
class Telling(Runner):
    """Keeps what has happened since the crash, and what is on the disk in the end."""

    told: str = field(default="", init=False)

    def _verify(self, world: World, process: Process) -> None:
        super()._verify(world, process)
        since = world.scheduler.trace[self.until or 0 :]
        # Who had the process crash, and where.
        told = [str(event) for event in since if "crashes" not in event.text.lower()]
        text = "\n".join([*told, *map(repr, world.disk.commits)])
        self.told = re.sub("0x[0-9a-f]{8,}", "0x", text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "restarts", "chooser"),
    [
        (nobody, True, lambda: None),
        (a_sibling, False, InTurns),
        (nobody, True, lambda: Seeded(1)),
    ],
    ids=["alone", "left to a sibling", "by lot"],
)
def test_crashes_that_leave_the_same_are_recovered_in_the_same_way(
    others: Callable[[World], object],
    restarts: bool,
    chooser: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outliving, "RUNTIME", (*outliving.RUNTIME, InTurns.__module__))
    runner = Telling(
        several_jobs, nothing, nothing, chooser, REST_LIMIT, {}, others=others, restarts=restarts
    )
    with nothing_logged():
        calls = runner.run((), marking=True)
        marks = dict(runner.marks)
        stories: dict[object, str] = {}
        for call in calls:
            for index, fault in enumerate(CRASHES):
                # There is no crash after a call that has raised; others change nothing.
                mark = marks.get((call.number, fault.after))
                if mark is None or (fault.after and call.kind not in ("begin", "finish")):
                    continue
                runner.run((Strike(0, call.number, index, fault),))
                told = stories.setdefault(mark, runner.told)
                assert runner.told == told, f"{fault} {call} is recovered in another way"
    assert len(set(stories.values())) > 10
    assert len(stories) < len(calls)


# What a job, or a scenario, does outside of the database makes a difference.


def write() -> None:
    letters.append("written")


async def write_later() -> None:
    write()
    await asyncio.sleep(1.0)
    write()


class Complaining(RetryPolicy):
    """Writes a letter before it gives up."""

    def on_receive(self, message: Any) -> Any:
        letters.append("it has failed")
        return GiveUp()


def fail() -> None:
    raise ValueError("of the job")


class Thing(Persistent):
    data: int

    def __init__(self) -> None:
        self.data = 1


def mark_between_two_loads(first: Thing, second: Thing) -> None:
    """Assignments are no calls, and loads look like none."""
    first.data  # noqa: B018
    Outside.marked = True
    second.data  # noqa: B018
    Outside.marked = False


def a_job(process: Process) -> None:
    process.put(write)


def a_coroutine(process: Process) -> None:
    process.put(write_later)


def a_policy(process: Process) -> None:
    job = Job(fail)
    job.retry_policy_factory = Complaining
    process.put(job)


def an_assignment(process: Process) -> None:
    with process.transaction() as connection:
        things = connection.root()["things"] = Thing(), Thing()
    with process.transaction() as connection:
        things = connection.root()["things"]
        get_queue(connection, "").put(Job(mark_between_two_loads, *things))


def a_function_in_c(process: Process) -> None:
    process.put(os.mkdir, str(Outside.folder))


def a_function_of_pythons_library(process: Process) -> None:
    process.put(shutil.copytree, str(Outside.folder.parent / "old"), str(Outside.folder))


def the_scenario_itself(process: Process) -> None:
    with process.transaction() as connection:
        connection.root()
    Outside.marked = True
    with process.transaction() as connection:
        connection.root()
    Outside.marked = False


@pytest.mark.parametrize(
    "scenario",
    [
        a_job,
        a_coroutine,
        a_policy,
        an_assignment,
        a_function_in_c,
        a_function_of_pythons_library,
        the_scenario_itself,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_crashes_leave_the_same_only_where_the_same_was_done_outside(
    scenario: Callable[[Process], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outside, "marked", False)
    monkeypatch.setattr(Outside, "folder", tmp_path / "new")
    (tmp_path / "old").mkdir()
    states = States()
    monkeypatch.setattr(outliving, "RUNTIME", (*outliving.RUNTIME, States.__module__))
    monkeypatch.setattr(crashes, "mark_of", states.mark)
    runner = Runner(scenario, nothing, nothing, lambda: None, REST_LIMIT, {})
    calls = runner.run((), marking=True)
    assert len(set.union(*states.by_mark.values())) > 1
    assert max(map(len, states.by_mark.values())) == 1
    assert len(states.by_mark) < len(calls)


# How much is run.


@pytest.mark.slow
def test_each_point_can_be_run_by_itself() -> None:
    def put(process: Process) -> None:
        process.put(add, "n")

    few = crash_everywhere(put)
    all_of_them = crash_everywhere(put, every_point=True)
    assert few.points == all_of_them.points == 2 * few.calls
    assert few.runs < all_of_them.runs / 2
    assert all_of_them.runs == all_of_them.points + 1


@pytest.mark.slow
def test_beside_a_profiler_each_point_is_run_and_it_goes_on() -> None:
    def put(process: Process) -> None:
        process.put(add, "n")

    profiler = cProfile.Profile()
    with profiler:
        report = crash_everywhere(put, kinds=("begin", "finish"))
        profiled = sys.getprofile()
    assert report.runs == report.points + 1
    assert profiled is profiler


@pytest.mark.slow
def test_a_crash_of_the_recovery_is_run_where_it_leaves_something_else() -> None:
    def put(process: Process) -> None:
        process.put(add, "n")

    once = crash_everywhere(put, kinds=("begin", "finish"))
    twice = crash_everywhere(put, kinds=("begin", "finish"), recoveries=2)
    assert twice.points > 2 * once.points
    assert once.runs < twice.runs < twice.points


@pytest.mark.slow
def test_other_faults_strike_each_call() -> None:
    faults = [*CRASHES, Fault.fail(ClientDisconnected("gone"))]
    report = break_everywhere(lambda process: process.put(add, "n"), faults=faults)
    assert 2.5 * report.calls < report.points < 3 * report.calls
    assert report.calls / 2 < report.runs < report.points / 2
