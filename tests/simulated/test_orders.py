"""Claim, end and burial in every order: the triangle where systems of jobs break.

A process is taken for dead while it works. In one and the same moment its worker ends a job,
another job is due that both processes want, and the sibling buries it.

Usually one thread is kept waiting, in every place; with ``PERDURE_TEST_SIMULATED=long`` two are.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from perdure.model import Job
from perdure.testing import Process, Seeded, World, explore
from simulated.scenarios import counted, grouped, quotas_of_one
from support.books import (
    audited_effect_later,
    books_balance,
    count,
    effect,
    effect_and_callback,
    effect_later,
    put,
)

SECOND = timedelta(seconds=1)
MOMENT = 2 * SECOND
"""When it all happens: siblings look for the dead each second."""


def prepare(world: World, *names: str) -> tuple[Process, Process]:
    one, other = (world.process(name, {"": 2}) for name in names or ("buried", "sibling"))
    quotas_of_one(one)
    world.run_until_idle()
    return one, other


def take_for_dead(world: World, process: Process) -> None:
    """Let every sibling believe that a process has ended which goes on."""
    assert process._identity is not None
    world.advance(MOMENT - SECOND / 2)
    process._identity.close()


def verify(world: World, process: Process) -> None:
    with world.calmly():
        world.come_to_rest()
    assert world.check() == []
    assert world.unended() == []
    books_balance()(process)


def the_end_of_a_job(world: World) -> None:
    with world.calmly():
        buried, _ = prepare(world)
        put(buried, Job(effect_later, "a", MOMENT.total_seconds()))
        take_for_dead(world, buried)
    world.advance(SECOND)
    verify(world, buried)


def a_callback(world: World) -> None:
    with world.calmly():
        buried, _ = prepare(world)
        job = Job(effect, "a")
        job.add_callback(Job(effect_later, "b", MOMENT.total_seconds()))
        job.add_callback(Job(effect, "c"))
        put(buried, job)
        take_for_dead(world, buried)
    world.advance(SECOND)
    verify(world, buried)


def a_claim(world: World) -> None:
    with world.calmly():
        buried, sibling = prepare(world)
        put(buried, Job(effect_later, "a", 5.0), begin_after=world.now + MOMENT)
        take_for_dead(world, buried)
    world.advance(SECOND * 0.6)
    with world.calmly():
        # Nobody but the sibling can see to what it has claimed.
        buried.crash()
    verify(world, sibling)


def claims_of_one_quota(world: World) -> None:
    with world.calmly():
        # Each of these puts into a stripe of the queue from which it claims first.
        first, second = prepare(world, "first", "second")
        jobs = Job(audited_effect_later, "a"), Job(audited_effect_later, "b")
        for process, job in zip((first, second), jobs, strict=True):
            job.quota_names = ("one",)
            put(process, job, begin_after=world.now + MOMENT)
        world.advance(SECOND)
    world.advance(MOMENT)
    verify(world, first)


def a_callback_in_the_last_moment(world: World) -> None:
    with world.calmly():
        first, _ = prepare(world)
        (ref,) = put(first, Job(effect_later, "a", MOMENT.total_seconds()))
        put(first, Job(effect_and_callback, "b", str(ref), "c"), begin_after=world.now + MOMENT)
        world.advance(SECOND)
    world.advance(MOMENT)
    verify(world, first)
    with world.look() as connection:
        assert connection.root()["books"]["c"] == 1


def all_of_it(world: World) -> None:
    with world.calmly():
        buried, _ = prepare(world)
        job = Job(effect_later, "a", MOMENT.total_seconds())
        job.add_callback(Job(effect, "b"))
        due = Job(effect, "c")
        job.quota_names = due.quota_names = ("one",)
        put(buried, job)
        put(buried, due, Job(effect, "d"), begin_after=world.now + MOMENT)
        take_for_dead(world, buried)
    world.advance(SECOND)
    verify(world, buried)


def a_group(world: World) -> None:
    with world.calmly():
        buried, _ = prepare(world)
        put(buried, *grouped(Job(effect, "first")))
        world.run_until_idle()
        due = world.now + MOMENT
        put(buried, *grouped(*(Job(effect, name) for name in "abc")), begin_after=due)
        take_for_dead(world, buried)
    world.advance(SECOND)
    verify(world, buried)


def a_group_with_a_late_callback(world: World) -> None:
    with world.calmly():
        first, other = prepare(world)
        put(first, *grouped(Job(effect, "first")))
        world.run_until_idle()
        due = world.now + MOMENT
        refs = put(first, *grouped(Job(effect, "a"), Job(effect, "b")), begin_after=due)
        put(other, Job(effect_and_callback, "c", str(refs[1]), "d"), begin_after=due)
        world.advance(SECOND)
    world.advance(MOMENT)
    verify(world, first)
    with world.look() as connection:
        assert connection.root()["books"]["d"] == 1


def a_number_that_groups_write(world: World) -> None:
    with world.calmly():
        first, second = prepare(world, "first", "second")
        for process in (first, second):
            put(process, *grouped(Job(count, f"first of {process.name}")))
            world.run_until_idle()
        due = world.now + MOMENT
        for process in (first, second):
            jobs = (Job(count, f"{number} of {process.name}") for number in range(2))
            put(process, *grouped(*jobs), begin_after=due)
        world.advance(SECOND)
    world.advance(MOMENT)
    verify(world, first)
    counted(first)


STORIES = (
    a_group,
    a_group_with_a_late_callback,
    a_number_that_groups_write,
    the_end_of_a_job,
    a_callback,
    a_claim,
    claims_of_one_quota,
    a_callback_in_the_last_moment,
    all_of_it,
)
each_story = pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)


@pytest.mark.slow
@pytest.mark.spec("D4")
@pytest.mark.spec("D6")
@pytest.mark.spec("C1")
@pytest.mark.spec("C7")
@pytest.mark.spec("J22")
@pytest.mark.spec("Q6")
@pytest.mark.spec("Q7")
@each_story
def test_no_order_does_harm(story: Callable[[World], None], long_run: bool) -> None:
    delays = 2 if long_run else 1
    report = explore(story, preemptions=delays, delays=delays)
    print(report)
    assert report.complete
    assert report.runs > 20


@pytest.mark.slow
@each_story
def test_no_seed_does_harm(story: Callable[[World], None], long_run: bool) -> None:
    ends = []
    for seed in range(1000 if long_run else 20):
        with World(chooser=Seeded(seed)) as world:
            story(world)
            ends.append(len(world.disk.commits))
    assert len(set(ends)) > 1
