"""Jobs that return jobs, and jobs made of jobs: one after the other, or all at once."""

from __future__ import annotations

import pytest
from persistent import Persistent
from ZODB.POSException import ConflictError

from perdure.model import (
    AbortedError,
    BadStatusError,
    Composite,
    Failure,
    Job,
    Status,
    get_queue,
    install,
    local,
    parallel,
    serial,
)
from perdure.model.following import await_jobs, inner_ended
from perdure.model.internal import InternalJob
from support.callables import echo, fail
from support.world import HOUR, SECOND


class Book(Persistent):
    """Keeps jobs, and what they did."""

    def __init__(self):
        self.lines = ()

    def note(self, text, *rest):
        self.lines = (*self.lines, text)
        return text


def return_it(job):
    return job


def note_and_return(book, job):
    book.note("called")
    return job


def exits(*args):
    raise SystemExit


def make_chain(length):
    """Returns a job that returns a job that returns … a number."""
    return Job(make_chain, length - 1) if length else "the end"


def put_and_return(name):
    queue = get_queue(local.get_queue(), name)
    return queue.put(Job(echo, "of another queue"))


def return_itself():
    return local.get_job()


def return_own_callback():
    return local.get_job().callbacks[0]


def values(*jobs):
    return [job.result for job in jobs]


def values_with(text, *jobs):
    return text, len(jobs)


def add_part(whole, *parts):
    for part in parts:
        whole.args.append(part)


@pytest.fixture
def agent(view):
    return view.agent(size=100)


def step(view, agent=None):
    """Claim a job and run it; return it, None where there is none."""
    agent = agent or view.agent()
    agent.record.ping()
    job = view.claim(agent)
    if job is not None:
        view.run(job)
    return job


def drain(view, agent=None):
    """Run everything that there is to run; return how many jobs that were."""
    count = 0
    while step(view, agent) is not None:
        count += 1
        assert count < 1000
    return count


def note_length_of_queue(book, result):
    book.note(len(local.get_queue()))


# Jobs that return jobs.


@pytest.mark.spec("J8")
def test_a_job_that_returns_a_job_takes_its_result(view, agent):
    inner = Job(echo, 5)
    outer = view.put(return_it, inner)
    assert step(view) is outer
    assert outer.status is Status.ACTIVE and outer.result is None and outer.agent is None
    assert inner.status is Status.PENDING and inner.queue is view.queue
    assert len(agent) == 0

    drain(view)

    assert (outer.status, outer.result) == (Status.COMPLETED, 5)
    assert outer in agent.completed and inner in agent.completed


@pytest.mark.spec("J8")
def test_its_callbacks_run_when_it_has_the_result_and_its_effects_are_committed_before(
    view, agent
):
    book = Book()
    view.connection.root()["book"] = book
    inner = Job(book.note, "inner")
    inner.add_callback(Job(book.note, "callback of the inner one"))
    # Nobody was told yet, who could go on beside it.
    inner.add_callback(Job(note_length_of_queue, book))
    outer = Job(return_it, inner)
    outer.add_callback(Job(book.note, "callback of the outer one"))
    view.put(outer)
    drain(view)
    assert book.lines == (
        "inner",
        "callback of the inner one",
        0,
        "callback of the outer one",
    )


@pytest.mark.spec("J8")
def test_chains_of_any_length_are_followed(view, agent):
    outer = view.put(make_chain, 100)
    drain(view)
    assert outer.result == "the end" and outer.status is Status.COMPLETED


@pytest.mark.spec("J8")
def test_an_inner_job_that_is_taken_out_while_it_comes_to_be_waited_for_is_noticed(
    world, view, agent
):
    inner = view.put(echo, 5, begin_after=world.clock.now() + HOUR)
    outer = view.put(return_it, inner)
    assert view.claim(agent) is outer
    other = world.view()
    other.queue.remove(other.get(inner))
    view.run(outer)
    with pytest.raises(ConflictError):
        other.commit()
    other.abort()
    other.queue.remove(other.get(inner))
    other.commit()
    view.sync()
    drain(view)
    assert outer.result.check(AbortedError)


@pytest.mark.spec("J8")
def test_two_that_begin_to_wait_for_each_other_at_the_same_time_do_not_both(file_world):
    view = file_world.view()
    agent = view.agent()
    # Not the first ones to have a side record, which conflict anyway.
    view.put(echo, begin_after=file_world.clock.now() + HOUR).add_callback(echo)
    view.commit()
    jobs = [Job(echo), Job(echo)]
    callbacks = [[job.add_callback(echo) for _ in range(2)] for job in jobs]
    for job in jobs:
        view.put(job)
        assert view.claim(agent) is job
        view.begin(job)
        job._end(None)
        view.commit()
    for first, _ in callbacks:
        view.begin(first)
    other = file_world.view()
    waiting = callbacks[0][0], callbacks[1][1]
    await_jobs(waiting[0], [waiting[1]])
    # Its worker leaves it.
    jobs[0]._agent = None
    others = other.get(callbacks[1][0]), other.get(callbacks[0][1])
    await_jobs(others[0], [others[1]])
    view.commit()
    with pytest.raises(ConflictError):
        other.commit()
    other.abort()
    with pytest.raises(BadStatusError, match="cannot end before"):
        await_jobs(others[0], [others[1]])
    other.abort()
    agent.settle_all()
    view.commit()


class Shy:
    """Something that cannot be loaded while `away` is set."""

    away = False

    def __init__(self):
        self.state = "some"

    def __setstate__(self, state):
        if Shy.away:
            raise RuntimeError("not here")
        vars(self).update(state)


def return_with(shy, job, *told):
    return job


@pytest.mark.spec("J8")
@pytest.mark.parametrize("as_callback", [True, False])
def test_a_job_that_cannot_be_loaded_hears_of_the_end_where_it_can(
    open_file, as_callback, monkeypatch
):
    world = open_file()
    view = world.view()
    view.agent()
    inner = Job(echo, 5)
    outer = whole = Job(return_with, Shy(), inner)
    if as_callback:
        whole = Job(echo)
        whole.add_callback(outer)
    view.put(whole)
    step(view)
    assert outer.status is Status.ACTIVE
    oids = [job._p_oid for job in (outer, inner)]
    world.close()

    monkeypatch.setattr(Shy, "away", True)
    world = open_file()
    view = world.view()
    drain(view)
    outer, inner = map(view.connection.get, oids)
    assert inner.status is Status.COMPLETED and len(view.queue.parked()) == 1
    world.close()

    monkeypatch.setattr(Shy, "away", False)
    world = open_file()
    view = world.view()
    drain(view)
    outer, inner = map(view.connection.get, oids)
    assert (outer.status, outer.result) == (Status.COMPLETED, 5)
    assert world.check() == []


@pytest.mark.spec("J8", "Q6")
def test_while_it_waits_it_needs_no_place_and_no_quota(view):
    agent = view.agent(size=1)
    view.queue.quotas.create("one", size=1)
    inner, outer = Job(echo, 1), None
    outer = Job(return_it, inner)
    for job in (inner, outer):
        job.quota_names = ("one",)
    view.put(outer)
    assert step(view, agent) is outer
    assert len(agent) == 0 and len(view.queue.quotas["one"]) == 0
    assert step(view, agent) is inner
    drain(view, agent)
    assert outer.result == 1


@pytest.mark.spec("J8", "X11")
def test_as_many_waiting_jobs_as_it_has_places_do_not_stop_an_agent(view):
    agent = view.agent(size=3)
    outers = [view.put(return_it, Job(echo, number)) for number in range(3)]
    for job in [view.claim(agent) for _ in range(3)]:
        view.run(job)
    drain(view, agent)
    assert [outer.result for outer in outers] == [0, 1, 2]


@pytest.mark.spec("J8", "D4")
def test_no_death_interrupts_the_wait(world, view):
    inner = Job(echo, 1)
    outer = view.put(return_it, inner)
    first = view.agent(1)
    assert step(view, first) is outer
    first.record.deactivate()
    view.commit()
    assert outer.status is Status.ACTIVE
    drain(view, view.agent(2))
    assert outer.result == 1 and outer.active_start is not None


@pytest.mark.spec("J8", "D4", "C5")
def test_an_interruption_that_was_dealt_with_is_not_put_to_a_job_that_waits_since(
    view, monkeypatch
):
    book = view.connection.root()["book"] = Book()
    outer = view.put(note_and_return, book, Job(echo, 1))
    first, second = view.agent(1), view.agent(2)
    view.begin(view.claim(first))
    first.record.deactivate()
    view.commit()
    interrupting = view.claim(second)
    assert interrupting.serves is outer
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        # Its process dies when it has dealt with the job, and has not noted that.
        patched.setattr("perdure.model.serving._end_internal", exits)
        interrupting()
    view.sync()
    assert outer.status is Status.PENDING
    second.record.deactivate()
    view.commit()
    third = view.agent(3)
    outer_first = sorted([view.claim(third), view.claim(third)], key=lambda job: job is not outer)
    for job in outer_first:
        view.run(job)
    assert outer_first == [outer, interrupting]
    drain(view, third)
    assert (outer.result, book.lines) == (1, ("called",))


@pytest.mark.spec("J8", "D4")
def test_who_dies_while_telling_it_is_followed_by_another(view):
    outer = view.put(return_it, Job(echo, 1))
    first = view.agent(1, size=9)
    step(view, first), step(view, first)
    telling = view.claim(first)
    assert telling.serves is outer
    first.record.deactivate()
    view.commit()
    drain(view, view.agent(2))
    assert outer.result == 1


@pytest.mark.spec("J8")
def test_the_failure_of_the_inner_job_is_its_result_and_no_policy_is_asked(view, agent):
    outer = view.put(return_it, Job(fail))
    drain(view)
    assert isinstance(outer.result, Failure) and outer.result.check(ValueError)
    assert outer._policy is None


@pytest.mark.spec("J8")
@pytest.mark.parametrize("how", ["remove", "cancel"])
def test_an_inner_job_that_is_removed_or_cancelled_fails_it(view, agent, how):
    inner = Job(echo, 1)
    outer = view.put(return_it, inner)
    step(view)
    if how == "remove":
        view.queue.remove(inner)
    else:
        inner.cancel()
    view.commit()
    drain(view)
    assert outer.result.check(AbortedError) and outer.status is Status.COMPLETED
    if how == "remove":
        assert inner.status is Status.NEW
        view.put(inner)
        drain(view)
        assert inner.result == 1 and outer.result.check(AbortedError)


@pytest.mark.spec("J8")
def test_an_inner_job_of_another_queue_stays_there(world, view, agent):
    install(view.connection, ["mail"])
    outer = view.put(put_and_return, "mail")
    step(view)
    mail = world.view("mail")
    drain(mail, mail.agent(3))
    view.sync()
    drain(view)
    assert outer.result == "of another queue"


@pytest.mark.spec("J8")
def test_an_inner_job_that_is_done_gives_its_result_at_once(view, agent):
    inner = view.put(echo, 7)
    drain(view)
    outer = view.put(return_it, inner)
    assert step(view) is outer
    assert outer.result == 7 and outer.status is Status.COMPLETED


@pytest.mark.spec("J8")
@pytest.mark.parametrize("make", ["itself", "own callback", "one that waits for it"])
def test_a_circle_is_refused(view, agent, make):
    if make == "itself":
        outer = view.put(return_itself)
    elif make == "own callback":
        outer = Job(return_own_callback)
        outer.add_callback(echo)
        view.put(outer)
    else:
        one, two = Job(return_it, None), Job(return_it, None)
        one.args = [two]
        two.args = [one]
        view.put(one), view.put(two)
        outer = two
        assert step(view) is one
    drain(view)
    assert outer.result.check(BadStatusError)


@pytest.mark.spec("J8")
def test_a_callback_may_return_a_job_and_its_job_waits_with_it(view, agent):
    inner = Job(echo, "late")
    job = Job(echo, 1)
    callback = job.add_callback(Job(return_second, inner))
    after = job.add_callback(echo)
    view.put(job)
    assert step(view) is job
    assert (job.status, callback.status) == (Status.CALLBACKS, Status.ACTIVE)
    assert after.status is Status.NEW and len(agent) == 0
    drain(view)
    assert callback.result == "late" and after.result == 1
    assert job.status is Status.COMPLETED and job in agent.completed


def return_second(job, result):
    return job


@pytest.mark.spec("J5", "J8")
def test_a_job_that_is_called_by_hand_returns_the_job_that_it_waits_for(view):
    inner = Job(echo, 3)
    outer = Job(return_it, inner)
    view.connection.add(outer)
    view.connection.add(inner)
    view.commit()
    assert outer() is inner
    assert outer.status is Status.ACTIVE
    assert inner() == 3
    assert outer.result == 3 and outer.status is Status.COMPLETED


@pytest.mark.spec("J8")
def test_an_interrupted_inner_job_is_run_again_and_the_outer_one_has_it_once(view):
    inner = Job(echo, 2)
    outer = view.put(return_it, inner)
    first = view.agent(1)
    step(view, first)
    assert view.claim(first) is inner
    view.begin(inner)
    first.record.deactivate()
    view.commit()
    drain(view, view.agent(2))
    assert outer.result == 2


# Composites.


@pytest.mark.spec("J30")
@pytest.mark.parametrize("make", [serial, parallel])
def test_the_result_is_that_of_the_postprocess_or_the_jobs_themselves(view, agent, make):
    whole = view.put(make(Job(echo, 1), Job(echo, 2), postprocess=values))
    bare = view.put(make(Job(echo, 3), Job(fail)))
    with_arguments = view.put(make(Job(echo, 4), postprocess=Job(values_with, "text")))
    empty = view.put(make())
    drain(view)
    assert whole.result == [1, 2]
    assert bare.result == tuple(bare.args) and bare.args[1].failed
    assert with_arguments.result == ("text", 1)
    assert empty.result == () and empty.status is Status.COMPLETED


@pytest.mark.spec("J30")
def test_serial_jobs_run_one_after_the_other_and_parallel_ones_at_once(view, agent):
    parts = [Job(echo, number) for number in range(3)]
    whole = view.put(serial(*parts))
    step(view)
    assert [part.status.name for part in parts] == ["PENDING", "NEW", "NEW"]
    drain(view)
    others = [Job(echo, number) for number in range(3)]
    view.put(parallel(*others))
    step(view)
    assert [part.status.name for part in others] == ["PENDING"] * 3
    drain(view)
    ends = [part.active_end for part in parts]
    assert ends == sorted(ends) and whole.status is Status.COMPLETED


@pytest.mark.spec("J30")
@pytest.mark.parametrize("make", [serial, parallel])
def test_a_part_is_over_when_it_failed_expired_or_was_cancelled(world, view, agent, make):
    expiring, cancelled = Job(echo, 1), Job(echo, 2)
    expiring.begin_by = SECOND
    expiring.begin_after = world.clock.now()
    whole = view.put(make(Job(fail), expiring, cancelled, Job(echo, 3), postprocess=values))
    step(view)
    cancelled.cancel()
    view.commit()
    view.advance(HOUR)
    drain(view)
    assert whole.status is Status.COMPLETED
    assert [isinstance(each, Failure) for each in whole.result] == [True, True, True, False]


@pytest.mark.spec("J3", "J30")
@pytest.mark.parametrize("make", [serial, parallel])
def test_parts_may_be_added_by_a_part_and_by_a_callback_of_one(view, agent, make):
    more, late = Job(echo, "more"), Job(echo, "late")
    whole = make(postprocess=values)
    first = Job(add_part, whole, more)
    second = Job(echo, "second")
    second.add_callback(Job(add_by_callback, whole, late))
    whole.args = [first, second]
    view.put(whole)
    drain(view)
    assert whole.result == [None, "second", "more", "late"]
    with pytest.raises(BadStatusError):
        whole.args.append(Job(echo, 1))


def add_by_callback(whole, part, result):
    whole.args.append(part)


@pytest.mark.spec("J30")
@pytest.mark.parametrize("make", [serial, parallel])
def test_interruptions_of_a_part_and_of_the_postprocess_are_survived(view, make):
    book = Book()
    view.connection.root()["book"] = book
    parts = [Job(book.note, "one"), Job(book.note, "two")]
    whole = view.put(make(*parts, postprocess=Job(book.note, "post")))
    agents = iter(view.agent(number, size=9) for number in range(1, 100))
    interrupted = set()
    agent = next(agents)
    while (job := view.claim(agent)) is not None:
        # Each job begins, and then its process dies; the next one has more luck.
        if isinstance(job, InternalJob) or job.ref in interrupted:
            view.run(job)
            continue
        interrupted.add(job.ref)
        view.begin(job)
        agent.record.deactivate()
        view.commit()
        agent = next(agents)
    assert len(interrupted) == 4
    assert whole.result == "post" and whole.status is Status.COMPLETED
    assert sorted(book.lines) == ["one", "post", "two"]


@pytest.mark.spec("J30")
def test_two_parts_that_end_at_once_do_not_lose_the_end_of_the_whole(world, view):
    whole = view.put(parallel(Job(echo, 1), Job(echo, 2), postprocess=values))
    agent = view.agent(size=9)
    step(view)
    for part in [view.claim(agent), view.claim(agent)]:
        view.run(part)
    one, two = view.claim(agent), view.claim(agent)
    assert one.kind == two.kind == "follow"
    other = world.view()
    mine, theirs = other.get(one), two
    inner_ended(mine.outer, mine.inner)
    inner_ended(theirs.outer, theirs.inner)
    view.commit()
    with pytest.raises(ConflictError):
        other.commit()
    other.abort()
    view.abort()
    for each in (one, two):
        view.run(each)
    drain(view)
    assert sorted(whole.result) == [1, 2]


@pytest.mark.spec("J30")
def test_composites_can_be_parts_of_others(view, agent):
    inner = parallel(Job(echo, 1), serial(Job(echo, 2), Job(echo, 3), postprocess=values))
    whole = view.put(serial(inner, Job(echo, 4), postprocess=values))
    drain(view)
    assert whole.result[1] == 4 and whole.result[0][1].result == [2, 3]


@pytest.mark.spec("J30")
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda job, done: serial(job, job), "each job once"),
        (lambda job, done: parallel(done), "COMPLETED"),
        (lambda job, done: serial(postprocess=done), "COMPLETED"),
        (lambda job, done: serial(job.add_callback(echo)), "and a callback"),
    ],
)
def test_parts_that_cannot_be_run_are_refused(view, agent, make, text):
    done = view.put(echo, 1)
    drain(view)
    with pytest.raises(BadStatusError, match=text):
        make(Job(echo, 2), done)


def test_a_composite_takes_jobs_and_callables_and_no_keywords(view, agent):
    whole = serial(values)
    assert isinstance(whole, Composite) and isinstance(whole.args[0], Job)
    with pytest.raises(TypeError):
        serial(3)
    with pytest.raises(TypeError, match="no keyword arguments"):
        whole.kwargs["a"] = 1


def test_a_composite_that_is_done_is_not_retried(view, agent):
    whole = view.put(serial(postprocess=fail))
    drain(view)
    assert whole.failed
    with pytest.raises(BadStatusError, match="not run twice"):
        whole.retry()
