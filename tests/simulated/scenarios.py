"""The scenarios: each is a flow of the specification, with what has to hold at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from perdure.model import (
    BadStatusError,
    Job,
    NeverRetry,
    RetryCommonForever,
    RetryCommonFourTimes,
    find_job,
    get_queue,
    pack,
    parallel,
    serial,
)
from perdure.testing import Process, World
from support import books
from support.books import (
    Patient,
    Resigned,
    Stubborn,
    audited_effect,
    audited_effect_later,
    books_balance,
    count,
    effect,
    effect_and_bad_commit,
    effect_and_callback,
    effect_and_conflict,
    effect_and_error,
    effect_and_further,
    effect_and_job,
    effect_later,
    effect_of_parts,
    effect_of_parts_later,
    future_of,
    looking_after,
    open_books,
    put,
    vanishing,
)

__all__ = ["SCENARIOS", "Scenario"]

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)

ALONE = {"poll_interval": HOUR}
"""Whoever is told of nothing finds out too late: polling saves no scenario of one process."""


@dataclass(frozen=True)
class Scenario:
    """What happens, what is prepared for it, who else is there, and what has to hold then."""

    play: Callable[[Process], object]
    may_fail: tuple[str, ...] = ()
    must_fail: tuple[str, ...] = ()
    setup: Callable[[Process], object] = open_books
    others: Callable[[World], object] = lambda world: None
    also: Callable[[Process], object] = lambda process: None
    restarts: bool = True
    counts_errors: bool = False
    """Whether one error more, of whatever kind, may be one too many."""
    small: bool = False
    """Whether the recovery is broken as well, in the long run."""
    settings: dict[str, Any] = field(default_factory=lambda: dict(ALONE))
    rest_limit: timedelta = 30 * MINUTE

    @property
    def name(self) -> str:
        return self.play.__name__

    def check(self, process: Process) -> None:
        """Check the books, and what is the scenario's own."""
        books_balance(self.may_fail.__contains__, self.must_fail.__contains__)(process)
        self.also(process)

    def check_books(self, process: Process) -> None:
        """Check the books where any job may have failed."""
        books_balance(lambda name: True)(process)


def quotas_of_one(process: Process) -> None:
    open_books(process)
    with process.transaction() as connection:
        get_queue(connection, "").quotas.create("one")


# A job.


def a_job(process: Process) -> None:
    process.put(effect, "a")


def several_jobs(process: Process) -> None:
    put(process, *(Job(effect, name) for name in "abcd"))
    process.put(effect_and_further, "e", "f")
    process.world.run_until_idle()
    process.put(effect, "g")


def async_jobs(process: Process) -> None:
    put(process, *(Job(effect_later, name, 1.0) for name in "abcd"))
    process.put(future_of, "e")


def jobs_that_return_jobs(process: Process) -> None:
    process.put(effect_and_job, "a", "b", "c")
    process.world.advance(5 * SECOND)


def jobs_with_a_schedule(process: Process) -> None:
    now = process.world.now
    put(process, Job(effect, "a"), begin_after=now + MINUTE)
    put(process, Job(effect, "b"), begin_after=now + 30 * SECOND, begin_by=MINUTE)
    # Two keep both places busy for longer than the third may wait.
    put(process, Job(effect_later, "c", 10.0), Job(effect_later, "d", 10.0))
    process.world.run_until_idle()
    put(process, Job(effect, "late"), begin_by=SECOND)
    process.world.advance(20 * SECOND)


# Retries.


def errors_of_a_job(process: Process) -> None:
    put(
        process,
        looking_after(Job(effect_and_error, "a", 2), Stubborn),
        looking_after(Job(effect_and_error, "b", 2), Patient),
        looking_after(Job(effect_and_error, "c", 1), Resigned),
        Job(effect_and_error, "hopeless", 99),
    )


def errors_of_a_commit(process: Process) -> None:
    put(
        process,
        looking_after(Job(effect_and_bad_commit, "a", 2), Stubborn),
        looking_after(Job(effect_and_bad_commit, "b", 3), RetryCommonForever),
        Job(effect_and_bad_commit, "hopeless", 99),
    )


def conflicts_of_a_job(process: Process) -> None:
    put(process, Job(effect_and_conflict, "a", 4))


def conflicts_without_end(process: Process) -> None:
    put(process, Job(effect_and_conflict, "hopeless", 14))


def interruptions(process: Process) -> None:
    policies = RetryCommonFourTimes, RetryCommonForever, NeverRetry
    for name, policy in zip(("a", "b", "never"), policies, strict=True):
        put(process, looking_after(Job(effect_later, name), policy))


def interruptions_of_an_applications_policies(process: Process) -> None:
    for name, policy in zip(("a", "b", "resigned"), (Stubborn, Patient, Resigned), strict=True):
        put(process, looking_after(Job(effect_later, name), policy))


def a_deadline_after_an_interruption(process: Process) -> None:
    put(process, Job(effect_later, "late", 5.0), begin_by=SECOND)
    process.world.advance(3 * SECOND)


# Callbacks.


def callbacks(process: Process) -> None:
    job = Job(effect, "a")
    job.add_callback(Job(effect, "b")).add_callback(Job(effect, "c"))
    job.add_callbacks(success=Job(effect, "d"), failure=Job(effect, "never called"))
    put(process, job)


def callbacks_of_a_failing_job(process: Process) -> None:
    job = Job(effect_and_error, "hopeless", 99)
    job.add_callback(Job(effect, "b"))
    job.add_callbacks(failure=Job(effect, "c")).add_callback(Job(effect, "d"))
    job.add_callback(Job(effect_and_error, "hopeless too", 99)).add_callback(Job(effect, "e"))
    put(process, job)


def late_callbacks(process: Process) -> None:
    (ref,) = put(process, Job(effect_later, "a", 2.0))
    process.world.run_until_idle()
    _add_callback(process, ref, "b")
    process.world.advance(SECOND)
    _add_callback(process, ref, "c")
    process.world.advance(2 * SECOND)
    _add_callback(process, ref, "d")


def _add_callback(process: Process, ref: Any, name: str) -> None:
    with process.transaction() as connection:
        find_job(connection, ref).add_callback(Job(effect, name))


def interrupted_callbacks(process: Process) -> None:
    job = Job(effect, "a")
    job.add_callback(Job(effect, "b"))
    job.add_callback(Job(effect_later, "c", 1.0))
    never = job.add_callback(looking_after(Job(effect_later, "never", 1.0), NeverRetry))
    never.add_callback(Job(effect, "d"))
    job.add_callback(Job(effect, "e"))
    put(process, job)
    process.world.advance(5 * SECOND)


def callbacks_that_wait(process: Process) -> None:
    job = Job(effect, "a")
    job.add_callback(Job(effect_and_error, "b", 1), retry_policy_factory=Stubborn)
    job.add_callback(Job(effect_and_bad_commit, "c", 2))
    job.add_callback(Job(effect_and_job, "d", "e")).add_callback(Job(effect, "f"))
    put(process, job)


# Composition.


def in_series(process: Process) -> None:
    parts = Job(effect, "a"), Job(effect_later, "b"), Job(effect, "c")
    put(process, serial(*parts, postprocess=Job(effect_of_parts, "p")))


def in_parallel(process: Process) -> None:
    parts = Job(effect, "a"), Job(effect_later, "b"), Job(effect_later, "c", 2.0)
    whole = parallel(*parts, postprocess=Job(effect_of_parts_later, "p"))
    whole.add_callback(Job(effect, "q"))
    put(process, whole)


def with_parts_that_fail(process: Process) -> None:
    part = Job(effect, "a")
    part.add_callback(Job(effect_later, "b", 1.0))
    inner = parallel(part, Job(effect_and_error, "hopeless", 99))
    put(process, serial(inner, Job(effect, "c"), postprocess=Job(effect_of_parts, "p")))


# Quotas.


def quotas(process: Process) -> None:
    jobs = [
        Job(audited_effect_later, "a"),
        Job(audited_effect_later, "b"),
        Job(audited_effect, "c"),
        Job(audited_effect, "d"),
    ]
    for job in jobs[:3]:
        job.quota_names = ("one",)
    put(process, *jobs)


def quotas_kept_through_trouble(process: Process) -> None:
    jobs = [
        looking_after(Job(effect_and_error, "a", 2), Stubborn),
        looking_after(Job(effect_and_error, "b", 2), Patient),
        Job(effect_and_error, "hopeless", 99),
        Job(audited_effect, "c"),
    ]
    for job in jobs:
        job.quota_names = ("one",)
    jobs[2].add_callback(Job(audited_effect_later, "d", 1.0))
    put(process, *jobs)


# By hand.


def retried_and_cancelled(process: Process) -> None:
    (ref,) = put(process, Job(effect_and_error, "a", 1))
    put(process, Job(effect, "late"), begin_after=process.world.now + MINUTE)
    process.world.run_until_idle()
    with process.transaction() as connection:
        if find_job(connection, ref).failed:
            find_job(connection, ref).retry()
        late = _waiting(connection, "late")
        late.add_callback(Job(effect, "b"))
    with process.transaction() as connection:
        _waiting(connection, "late").cancel()


def _waiting(connection: Any, name: str) -> Job:
    return next(job for job in get_queue(connection, "") if job.args[0] == name)


def paused_and_resized(process: Process) -> None:
    with process.transaction() as connection:
        get_queue(connection, "").pause()
    put(process, *(Job(effect, name) for name in "abc"))
    process.world.run_until_idle()
    with process.transaction() as connection:
        get_queue(connection, "").resize(1)
    with process.transaction() as connection:
        get_queue(connection, "").resume()


def resumed_in_the_end(process: Process) -> None:
    with process.transaction() as connection:
        get_queue(connection, "").resume()
    process.world.come_to_rest()
    books_balance()(process)
    assert not process.world.unended()


def packed_meanwhile(process: Process) -> None:
    put(process, Job(effect_later, "a", 2.0), Job(effect, "b"))
    process.world.advance(SECOND)
    with process.transaction() as connection:
        database = connection.db()
    pack(database, timedelta(0))
    put(process, Job(effect, "c"))


def parked(process: Process) -> None:
    with process.transaction() as connection:
        get_queue(connection, "").pause()
    put(process, Job(vanishing, "a"), Job(effect, "b"))
    process.stop()
    books.vanish()
    process.start()
    with process.transaction() as connection:
        get_queue(connection, "").resume()
    process.world.run_until_idle()
    process.stop()
    books.come_back()
    process.start()


# Stopping.


def stopped_with_time(process: Process) -> None:
    put(process, Job(effect_later, "a", 3.0), Job(effect, "b"))
    process.world.run_until_idle()
    process.stop(drain=10 * SECOND)
    process.start()


def stopped_at_once(process: Process) -> None:
    job = Job(effect, "a")
    job.add_callback(Job(effect_later, "b", 3.0))
    put(process, Job(effect_later, "c", 3.0), job)
    put(process, looking_after(Job(effect_later, "never", 3.0), NeverRetry))
    process.world.run_until_idle()
    process.stop(drain=timedelta(0))
    process.start()


# Several processes.


def a_sibling(world: World) -> None:
    world.process("sibling", {"": 1})


def sibling_of(process: Process) -> Process:
    return next(each for each in process.world.processes if each.name == "sibling")


def a_sibling_elsewhere(world: World) -> None:
    world.process("sibling", {"": 1}, host="another")


def jobs_of_all_kinds(process: Process) -> None:
    jobs = [Job(effect_later, "a", 5.0), Job(effect_later, "b"), Job(effect, "c")]
    jobs[1].add_callback(Job(effect, "d"))
    jobs[1].add_callback(Job(effect_later, "e", 3.0))
    jobs[2].quota_names = jobs[0].quota_names = ("one",)
    put(process, *jobs)
    put(process, serial(Job(effect, "f"), Job(effect_later, "g"), postprocess=None))
    process.world.advance(3 * SECOND)


def buried_by_a_sibling(process: Process) -> None:
    jobs_of_all_kinds(process)


def buried_from_another_host(process: Process) -> None:
    jobs_of_all_kinds(process)


def one_that_died(world: World) -> None:
    _die(world, "host")


def one_that_died_elsewhere(world: World) -> None:
    _die(world, "another")


def _die(world: World, host: str) -> None:
    other = world.process("dying", host=host)
    jobs = [Job(effect_later, "a", 5.0), Job(effect, "b"), Job(effect, "c")]
    jobs[1].add_callback(Job(effect_later, "d", 5.0))
    jobs[2].quota_names = jobs[0].quota_names = ("one",)
    put(other, *jobs)
    put(other, looking_after(Job(effect_later, "never", 5.0), NeverRetry))
    world.advance(SECOND)
    other.crash()


def burying_a_sibling(process: Process) -> None:
    process.world.advance(5 * SECOND)


def burying_one_elsewhere(process: Process) -> None:
    process.world.advance(2 * MINUTE)


def buried_alive(process: Process) -> None:
    jobs = [Job(effect_later, "a", 5.0), Job(effect_later, "b", 5.0), Job(effect, "c")]
    jobs[2].add_callback(Job(effect_later, "d", 5.0))
    put(process, *jobs)
    process.world.advance(SECOND)
    process.suspend()
    process.world.advance(3 * MINUTE)
    process.resume()
    put(process, Job(effect, "e"))
    process.world.advance(MINUTE)


def cut_off(process: Process) -> None:
    put(process, Job(effect_later, "a", 5.0), Job(effect, "b"))
    process.world.advance(SECOND)
    process.cut()
    process.world.advance(3 * MINUTE)
    process.restore()
    put(process, Job(effect, "c"))


# One stands still in the midst of a claim: what it has read is old when it commits that.


def a_busy_sibling(world: World) -> None:
    """Start one that claims nothing of what others put for a while, and can only bury them."""
    sibling = world.process("sibling", {"": 1}, host="another")
    put(sibling, Job(effect_later, "busy", 2 * MINUTE.total_seconds()))
    world.run_until_idle()


def buried_while_it_claims(process: Process) -> None:
    process.world.run_until_idle()
    put(process, Job(effect_later, "a", 5.0), *grouped(Job(effect, "b")))
    process.world.step_to(process, "begin")
    process.suspend()
    process.world.advance(2 * MINUTE - SECOND)
    process.resume()
    process.world.advance(30 * SECOND)


def claims_that_meet(process: Process) -> None:
    world = process.world
    sibling = sibling_of(process)
    for one, other in ((process, sibling), (sibling, process)):
        for each in (one, other):
            job = Job(audited_effect_later, f"{one.name} is late, {each.name}")
            job.quota_names = ("one",)
            put(each, job, begin_after=world.now + 2 * SECOND)
        # Each has them in the order in which it will look at them: what it has put itself first.
        world.advance(SECOND)
        one.suspend()
        other.suspend()
        world.advance(2 * SECOND)
        one.resume()
        world.step_to(one, "begin")
        one.suspend()
        other.resume()
        world.run_until_idle()
        one.resume()
        world.advance(10 * SECOND)


# Groups. Time stands still while jobs run: each callable is known to be quick once it was called.


def grouped(*jobs: Job) -> tuple[Job, ...]:
    """Let jobs be run in groups, whose effects are one commit."""
    for job in jobs:
        job.transactional = True
    return jobs


def put_groups(process: Process, *jobs: Job) -> None:
    """Put jobs that are run in a group, after some that are run before, so that they are known."""
    known = {job.callable_name: job.callable for job in jobs}
    put(process, *grouped(*(Job(each, f"first {name}") for name, each in known.items())))
    process.world.run_until_idle()
    put(process, *grouped(*jobs))


def groups_of_jobs(process: Process) -> None:
    put_groups(process, *(Job(effect, name) for name in "abcd"))
    put(process, *grouped(Job(effect, "e"), Job(effect, "f")), Job(effect, "alone"))
    process.world.run_until_idle()
    # One puts another job in the commit of all.
    put(process, *grouped(Job(effect_and_further, "g", "h")))
    process.world.run_until_idle()
    further = Job(effect_and_further, "j", "k")
    put(process, *grouped(Job(effect, "i"), further, Job(effect, "l")))


def groups_at_several_places(process: Process) -> None:
    """Beside each other, and beside what is in none: with a policy, or one that takes a while."""
    jobs = grouped(
        Job(effect, "a"),
        looking_after(Job(effect_and_error, "b", 2), Stubborn),
        Job(effect_and_conflict, "c", 2),
        Job(effect, "d"),
        Job(effect_and_error, "hopeless", 99),
    )
    put(process, *jobs, Job(effect_later, "e"))


def a_group_with_one_that_raises(process: Process) -> None:
    # Nothing of its kind has raised before, so that the group is not prepared for that.
    put(process, *grouped(Job(effect_and_error, "known", 0)))
    put_groups(process, Job(effect, "a"))
    hopeless = Job(effect_and_error, "hopeless", 99)
    hopeless.add_callback(Job(effect, "b"))
    put(process, *grouped(Job(effect, "c"), hopeless, Job(effect, "d")))
    process.world.run_until_idle()
    # Now it is.
    hopeless = Job(effect_and_error, "hopeless too", 99)
    put(process, *grouped(Job(effect, "e"), hopeless, Job(effect, "f")))


def a_group_with_one_that_returns_a_job(process: Process) -> None:
    put(process, *grouped(Job(effect_and_job, "a", "b")))
    process.world.advance(2 * SECOND)
    jobs = [Job(effect, "c"), Job(effect_and_job, "d", "e"), Job(effect, "f")]
    put_groups(process, jobs[0])
    put(process, *grouped(*jobs[1:]))


def a_group_whose_commit_fails(process: Process) -> None:
    put(process, *grouped(Job(effect_and_bad_commit, "known", 0)))
    process.world.run_until_idle()
    hopeless = Job(effect_and_bad_commit, "hopeless", 99)
    put_groups(process, Job(effect, "a"))
    put(process, *grouped(Job(effect, "b"), hopeless, Job(effect, "c")))


def a_group_with_conflicts(process: Process) -> None:
    put(process, *grouped(Job(effect_and_conflict, "known", 0)))
    process.world.run_until_idle()
    put(process, *grouped(Job(effect, "a"), Job(effect_and_conflict, "b", 2), Job(effect, "c")))


def a_counter_of_two_processes(process: Process) -> None:
    other = sibling_of(process)
    for number in range(3):
        for each in (process, other):
            if each.is_running:
                put(each, *grouped(*(Job(count, f"{each.name} {number}{i}") for i in range(4))))


def counted(process: Process) -> None:
    """Each that has counted was counted once, though all of them write the same number."""
    with process.world.look() as connection:
        entries = dict(connection.root()["books"])
    number = entries.pop(books.SUM, 0)
    assert number == sum(entries.values()), f"{number} were counted of {entries}"


def a_group_with_callbacks(process: Process) -> None:
    jobs = [Job(effect, "a"), Job(effect, "b"), Job(effect, "c")]
    jobs[0].add_callback(Job(effect, "d"))
    jobs[1].add_callbacks(success=Job(effect, "e"), failure=Job(effect, "never called"))
    jobs[1].add_callback(Job(effect_later, "f", 1.0))
    put_groups(process, *jobs)
    process.world.advance(2 * SECOND)


def parts_that_are_run_in_groups(process: Process) -> None:
    put_groups(process, Job(effect, "a"), Job(effect_of_parts, "b"))
    whole = parallel(*grouped(*(Job(effect, name) for name in "cde")))
    whole.add_callback(Job(effect, "f"))
    row = serial(
        *grouped(Job(effect, "g"), Job(effect, "h")), postprocess=Job(effect_of_parts, "p")
    )
    put(process, whole, row)


def a_group_that_others_add_to(process: Process) -> None:
    (ref,) = put(process, *grouped(Job(effect, "a")))
    process.world.step(3)
    _add_callback(process, ref, "b")
    put_groups(process, Job(effect, "c"))
    (ref,) = put(process, *grouped(Job(effect, "d")))
    process.world.step(3)
    _add_callback(process, ref, "e")
    put(process, *grouped(Job(effect_and_callback, "f", str(ref), "g"), Job(effect, "h")))


def a_group_that_is_cancelled(process: Process) -> None:
    put_groups(process, Job(effect, "first"))
    with process.transaction() as connection:
        get_queue(connection, "").pause()
    put(process, *grouped(*(Job(effect, name) for name in ("a", "cancelled", "b"))))
    with process.transaction() as connection:
        _waiting(connection, "cancelled").cancel()
        get_queue(connection, "").resume()


def a_group_that_is_stopped(process: Process) -> None:
    put_groups(process, *(Job(effect, name) for name in "abc"))
    process.world.step(4)
    process.stop(drain=timedelta(0))
    process.start()
    put(process, *grouped(Job(effect, "d"), Job(effect, "e")))


def a_group_that_a_sibling_buries(process: Process) -> None:
    jobs = [Job(effect, name) for name in "abc"]
    jobs[1].add_callback(Job(effect_later, "d", 2.0))
    put_groups(process, *jobs)
    put(process, *grouped(Job(effect, "e"), Job(effect_later, "f", 3.0)))
    process.world.advance(SECOND)
    put(process, *grouped(Job(effect, "g"), Job(effect, "h")))


def a_group_buried_alive(process: Process) -> None:
    put_groups(process, Job(effect, "first"))
    process.world.run_until_idle()
    put(process, *grouped(*(Job(effect, name) for name in "abc")))
    process.world.step(4)
    process.suspend()
    process.world.advance(3 * MINUTE)
    process.resume()
    put(process, *grouped(Job(effect, "d"), Job(effect, "e")))
    process.world.advance(MINUTE)


# Batches. As with groups: each callable is known to be over at once, once it was called.


def put_batch(process: Process, *jobs: Job) -> list[Any]:
    """Put jobs that are run in a batch, after some that are run before, so that they are known."""
    known = {job.callable_name: job for job in jobs}
    for name, job in known.items():
        put(process, Job(job.callable, f"first {name}", *job.args[1:]))
    process.world.run_until_idle()
    return put(process, *jobs)


def a_batch(process: Process) -> None:
    put_batch(process, *(Job(effect, name) for name in "abcd"))
    process.world.run_until_idle()
    with process.transaction() as connection:
        many = get_queue(connection, "").put_many(Job(effect, name) for name in "efg")
        refs = [job.ref for job in many]
    process.world.acknowledged += refs


def a_batch_with_one_that_raises(process: Process) -> None:
    put(process, Job(effect_and_error, "known", 0), Job(effect, "known too"))
    process.world.run_until_idle()
    hopeless = Job(effect_and_error, "hopeless", 99)
    hopeless.add_callback(Job(effect, "b"))
    put(process, Job(effect, "a"), hopeless, Job(effect, "c"), Job(effect, "d"))


def a_batch_with_conflicts(process: Process) -> None:
    put(process, Job(effect_and_conflict, "known", 0), Job(count, "known too"))
    process.world.run_until_idle()
    jobs = [Job(count, "a"), Job(effect_and_conflict, "b", 2), Job(count, "c"), Job(count, "d")]
    put(process, *jobs)


def a_batch_with_all_that_waits(process: Process) -> None:
    put_batch(process, Job(effect_and_job, "a", "b"), Job(effect_and_further, "c", "d"))
    process.world.run_until_idle()
    put(process, Job(future_of, "known"))
    process.world.run_until_idle()
    jobs = [Job(effect, "e"), Job(future_of, "f"), Job(effect, "g"), Job(effect_and_job, "h", "i")]
    jobs[0].add_callback(Job(effect, "j"))
    jobs[2].add_callback(Job(effect_later, "k", 1.0))
    put(process, *jobs, Job(effect, "l"))


def a_batch_that_is_cancelled(process: Process) -> None:
    refs = put_batch(process, *(Job(effect, name) for name in ("a", "cancelled", "b")))
    process.world.step(4)
    _cancel(process, refs[1])
    process.world.run_until_idle()
    refs = put(process, *(Job(effect, name) for name in ("c", "cancelled too", "d")))
    process.world.step(6)
    _cancel(process, refs[1])


def _cancel(process: Process, ref: Any) -> None:
    with process.transaction() as connection, contextlib.suppress(BadStatusError):
        find_job(connection, ref).cancel()


def a_batch_that_is_stopped(process: Process) -> None:
    put_batch(process, *(Job(effect, name) for name in "abc"))
    process.world.step(5)
    process.stop(drain=timedelta(0))
    process.start()
    put_batch(process, Job(effect, "d"), Job(effect, "e"), Job(effect, "f"))
    process.world.step(6)
    process.stop(drain=SECOND)
    process.start()


def a_batch_that_a_sibling_buries(process: Process) -> None:
    jobs = [Job(effect, name) for name in "abcd"]
    jobs[1].add_callback(Job(effect_later, "e", 2.0))
    put_batch(process, *jobs)
    put(process, Job(effect, "f"), Job(effect_later, "g", 3.0))
    process.world.advance(SECOND)


def a_batch_buried_alive(process: Process) -> None:
    put_batch(process, *(Job(effect, name) for name in "abc"))
    process.world.step(6)
    process.suspend()
    process.world.advance(3 * MINUTE)
    process.resume()
    put(process, Job(effect, "d"), Job(effect, "e"))
    process.world.advance(MINUTE)


POLLING: dict[str, Any] = {}
TOGETHER = {**ALONE, "queues": {"": 1}}
"""With one place only, all that may be run in a group are in the same one."""

SCENARIOS = (
    Scenario(a_job, small=True),
    Scenario(several_jobs),
    Scenario(async_jobs),
    Scenario(jobs_that_return_jobs),
    Scenario(
        jobs_with_a_schedule,
        may_fail=("late", "b"),
        settings={**ALONE, "queues": {"": 2}},
    ),
    Scenario(errors_of_a_job, counts_errors=True, may_fail=("c",), must_fail=("hopeless",)),
    Scenario(errors_of_a_commit, counts_errors=True, must_fail=("hopeless",)),
    Scenario(conflicts_of_a_job, counts_errors=True),
    Scenario(conflicts_without_end, must_fail=("hopeless",)),
    Scenario(interruptions, may_fail=("never",)),
    Scenario(interruptions_of_an_applications_policies, may_fail=("resigned",)),
    Scenario(a_deadline_after_an_interruption, may_fail=("late",), small=True),
    Scenario(callbacks, small=True),
    Scenario(callbacks_of_a_failing_job, must_fail=("hopeless", "hopeless too")),
    Scenario(late_callbacks),
    Scenario(interrupted_callbacks, may_fail=("never",)),
    Scenario(callbacks_that_wait),
    Scenario(in_series),
    Scenario(in_parallel),
    Scenario(with_parts_that_fail, must_fail=("hopeless",)),
    Scenario(quotas, setup=quotas_of_one),
    Scenario(
        quotas_kept_through_trouble,
        counts_errors=True,
        must_fail=("hopeless",),
        setup=quotas_of_one,
    ),
    Scenario(retried_and_cancelled, may_fail=("a", "late")),
    Scenario(paused_and_resized, also=resumed_in_the_end),
    Scenario(packed_meanwhile),
    Scenario(parked),
    Scenario(stopped_with_time),
    Scenario(stopped_at_once, may_fail=("never",)),
    Scenario(
        buried_by_a_sibling,
        setup=quotas_of_one,
        others=a_sibling,
        restarts=False,
        settings=POLLING,
    ),
    Scenario(
        buried_from_another_host,
        setup=quotas_of_one,
        others=a_sibling_elsewhere,
        restarts=False,
        settings=POLLING,
    ),
    Scenario(
        burying_a_sibling,
        may_fail=("never",),
        setup=quotas_of_one,
        others=one_that_died,
        settings=POLLING,
    ),
    Scenario(
        burying_one_elsewhere,
        may_fail=("never",),
        setup=quotas_of_one,
        others=one_that_died_elsewhere,
        settings=POLLING,
    ),
    Scenario(
        buried_while_it_claims,
        others=a_busy_sibling,
        restarts=False,
        settings=POLLING,
    ),
    Scenario(claims_that_meet, setup=quotas_of_one, others=a_sibling, settings=POLLING),
    Scenario(buried_alive, others=a_sibling_elsewhere, settings=POLLING),
    Scenario(cut_off, others=a_sibling_elsewhere, settings=POLLING),
    Scenario(groups_of_jobs, settings=TOGETHER),
    Scenario(groups_at_several_places, counts_errors=True, must_fail=("hopeless",)),
    Scenario(
        a_group_with_one_that_raises,
        counts_errors=True,
        must_fail=("hopeless", "hopeless too"),
        settings=TOGETHER,
    ),
    Scenario(a_group_with_one_that_returns_a_job, settings=TOGETHER),
    Scenario(
        a_group_whose_commit_fails, counts_errors=True, must_fail=("hopeless",), settings=TOGETHER
    ),
    Scenario(a_group_with_conflicts, counts_errors=True, settings=TOGETHER),
    Scenario(
        a_counter_of_two_processes, others=a_sibling, also=counted, settings={"queues": {"": 1}}
    ),
    Scenario(a_group_with_callbacks, settings=TOGETHER),
    Scenario(parts_that_are_run_in_groups, settings=TOGETHER),
    Scenario(a_group_that_others_add_to, settings=TOGETHER),
    Scenario(a_group_that_is_cancelled, may_fail=("cancelled",), settings=TOGETHER),
    Scenario(a_group_that_is_stopped, settings=TOGETHER),
    Scenario(
        a_group_that_a_sibling_buries,
        others=a_sibling,
        restarts=False,
        settings={"queues": {"": 1}},
    ),
    Scenario(a_group_buried_alive, others=a_sibling_elsewhere, settings={"queues": {"": 1}}),
    Scenario(a_batch, settings=TOGETHER),
    Scenario(
        a_batch_with_one_that_raises,
        counts_errors=True,
        must_fail=("hopeless",),
        settings=TOGETHER,
    ),
    Scenario(a_batch_with_conflicts, counts_errors=True, settings=TOGETHER),
    Scenario(a_batch_with_all_that_waits, settings=TOGETHER),
    Scenario(
        a_batch_that_is_cancelled, may_fail=("cancelled", "cancelled too"), settings=TOGETHER
    ),
    Scenario(a_batch_that_is_stopped, settings=TOGETHER),
    Scenario(
        a_batch_that_a_sibling_buries,
        others=a_sibling,
        restarts=False,
        settings={"queues": {"": 1}},
    ),
    Scenario(a_batch_buried_alive, others=a_sibling_elsewhere, settings={"queues": {"": 1}}),
)
