"""Claim, end and burial in every order: the triangle where systems of jobs break.

A process is taken for dead while it works. In one and the same moment its worker ends a job,
another job is due that both processes want, and the sibling buries it.

Usually one thread is kept waiting, in every place; with ``PERDURE_TEST_SIMULATED=long`` two are,
and one more where a story has few orders. What may depend on whose threads go on first, where
nobody says otherwise, is told both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest

from perdure.model import Job, Status
from perdure.testing import Call, Fault, Process, Seeded, World, explore
from simulated.scenarios import counted, grouped, quotas_of_one
from support.books import (
    audited_effect_later,
    books_balance,
    count,
    effect,
    effect_and_callback,
    effect_and_cancel,
    effect_and_slow_callback,
    effect_later,
    open_books,
    put,
)

SECOND = timedelta(seconds=1)
MOMENT = 2 * SECOND
"""When it all happens: siblings look for the dead each second."""

FEW = 20
"""So few orders are run in a second or two, so that more can be tried."""

Story = Callable[[World], None]


def prepare(
    world: World, first: str = "buried", *, names: tuple[str, str] = ("buried", "sibling")
) -> tuple[Process, Process]:
    """Start the process that is buried and its sibling; return them in this order.

    Of those that could go on, the threads of the one that was started `first` do so first.
    """
    order = reversed(names) if first == "sibling" else names
    made = {name: world.process(name, {"": 2}) for name in order}
    quotas_of_one(made[names[0]])
    world.run_until_idle()
    return made[names[0]], made[names[1]]


def give(world: World, process: Process, *jobs: Job) -> None:
    """Put jobs, and let that process claim them, whoever else could."""
    others = [each for each in world.processes if each is not process]
    for other in others:
        other.suspend()
    put(process, *jobs)
    world.run_until_idle()
    for other in others:
        other.resume()


def take_for_dead(world: World, process: Process) -> None:
    """Let every sibling believe that a process has ended which goes on."""
    assert process._identity is not None
    world.advance(MOMENT - SECOND / 2)
    process._identity.close()


def verify(world: World, process: Process, *, may_fail: str = "") -> None:
    with world.calmly():
        world.come_to_rest()
    assert world.check() == []
    assert world.unended() == []
    books_balance(lambda name: name == may_fail)(process)


def the_end_of_a_job(world: World, first: str = "buried") -> None:
    with world.calmly():
        buried, _ = prepare(world, first)
        give(world, buried, Job(effect_later, "a", MOMENT.total_seconds()))
        take_for_dead(world, buried)
    world.advance(SECOND)
    verify(world, buried)


def a_callback(world: World) -> None:
    with world.calmly():
        buried, _ = prepare(world)
        job = Job(effect, "a")
        job.add_callback(Job(effect_later, "b", MOMENT.total_seconds()))
        job.add_callback(Job(effect, "c"))
        give(world, buried, job)
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


def a_last_claim(world: World, first: str = "buried") -> None:
    """As before, but it cannot even hear that it was buried, and give back what it claimed."""
    with world.calmly():
        buried, sibling = prepare(world, first)
        # The sibling has no place, and so cannot be the one who claims what is due.
        give(world, sibling, Job(effect_later, "c", 5.0), Job(effect_later, "d", 5.0))
        jobs = Job(effect_later, "a", 5.0), Job(effect_later, "b", 5.0)
        put(buried, *jobs, begin_after=world.now + MOMENT)
        take_for_dead(world, buried)
    buried.on_call = crash_after_a_commit
    world.advance(SECOND * 0.6)
    with world.calmly():
        buried.crash()
    verify(world, sibling)


def crash_after_a_commit(call: Call) -> Fault | None:
    return Fault.crash(after=True) if call.kind == "finish" else None


def claims_of_one_quota(world: World) -> None:
    with world.calmly():
        # Each of these, by these names, puts into a stripe from which it claims first.
        first, second = prepare(world, names=("first", "second"))
        jobs = Job(audited_effect_later, "a"), Job(audited_effect_later, "b")
        for process, job in zip((first, second), jobs, strict=True):
            job.quota_names = ("one",)
            put(process, job, begin_after=world.now + MOMENT)
        world.advance(SECOND)
    world.advance(MOMENT)
    verify(world, first)


def a_callback_in_the_last_moment(world: World) -> None:
    """Its transaction has begun before the job's end, and is committed in any place of that."""
    with world.calmly():
        # The first one has its only place taken, so that the callback is added by the second,
        # which goes on after the first where nobody says otherwise.
        first = world.process("first", {"": 1})
        open_books(first)
        (ref,) = put(first, Job(effect_later, "a", MOMENT.total_seconds()))
        world.run_until_idle()
        world.process("second", {"": 1})
        put(first, Job(effect_and_slow_callback, "b", str(ref), "c", MOMENT.total_seconds()))
        world.advance(MOMENT - SECOND / 2)
        assert world.status(ref) is Status.ACTIVE
    world.advance(SECOND)
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
        give(world, buried, job)
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
        first, second = prepare(world, names=("first", "second"))
        for process in (first, second):
            put(process, *grouped(Job(count, f"first of {process.name}")))
            world.run_until_idle()
        due = world.now + MOMENT
        for process in (first, second):
            jobs = (Job(count, f"{number} of {process.name}") for number in range(3))
            put(process, *grouped(*jobs), begin_after=due)
        world.advance(SECOND)
    world.advance(MOMENT)
    verify(world, first)
    counted(first)


def a_batch(world: World) -> None:
    with world.calmly():
        buried, _ = prepare(world)
        put(buried, Job(effect, "first"))
        world.run_until_idle()
        put(buried, *(Job(effect, name) for name in "abc"), begin_after=world.now + MOMENT)
        take_for_dead(world, buried)
    world.advance(SECOND)
    verify(world, buried)


def a_batch_whose_next_job_is_cancelled(world: World) -> None:
    with world.calmly():
        first, other = prepare(world)
        put(first, Job(effect, "first"))
        world.run_until_idle()
        due = world.now + MOMENT
        refs = put(first, *(Job(effect, name) for name in "abc"), begin_after=due)
        put(other, Job(effect_and_cancel, "d", str(refs[1])), begin_after=due)
        world.advance(SECOND)
    world.advance(MOMENT)
    verify(world, first, may_fail="b")


STORIES: dict[str, Story] = {
    "the_end_of_a_job": the_end_of_a_job,
    "the_end_of_a_job, the sibling first": partial(the_end_of_a_job, first="sibling"),
    "a_callback": a_callback,
    "a_claim": a_claim,
    "a_last_claim": a_last_claim,
    "a_last_claim, the sibling first": partial(a_last_claim, first="sibling"),
    "claims_of_one_quota": claims_of_one_quota,
    "a_callback_in_the_last_moment": a_callback_in_the_last_moment,
    "all_of_it": all_of_it,
    "a_group": a_group,
    "a_group_with_a_late_callback": a_group_with_a_late_callback,
    "a_number_that_groups_write": a_number_that_groups_write,
    "a_batch": a_batch,
    "a_batch_whose_next_job_is_cancelled": a_batch_whose_next_job_is_cancelled,
}
each_story = pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)


@pytest.mark.slow
@pytest.mark.spec("D4")
@pytest.mark.spec("D6")
@pytest.mark.spec("C1")
@pytest.mark.spec("C7")
@pytest.mark.spec("J22")
@pytest.mark.spec("Q6")
@pytest.mark.spec("Q7")
@each_story
def test_no_order_does_harm(story: Story, long_run: bool) -> None:
    delays = 2 if long_run else 1
    report = explore(story, preemptions=delays, delays=delays)
    print(report)
    if report.runs <= FEW:
        report = explore(story, preemptions=delays + 1, delays=delays + 1)
        print(report)
    assert report.complete
    assert report.runs > FEW


@pytest.mark.slow
@each_story
def test_no_seed_does_harm(story: Story, long_run: bool) -> None:
    ends = []
    for seed in range(1000 if long_run else 20):
        with World(chooser=Seeded(seed)) as world:
            story(world)
            ends.append(len(world.disk.commits))
    assert len(set(ends)) > 1
