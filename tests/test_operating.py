"""What an operator does by hand: retry, cancel, pause, resume, resize."""

from __future__ import annotations

import pytest
from ZODB.POSException import ConflictError

from perdure.model import (
    AbortedError,
    BadStatusError,
    Failure,
    Job,
    JobNotFoundError,
    Status,
    UnknownSettingError,
)
from support.callables import Account, echo, fail
from support.world import DAY, HOUR, SECOND


@pytest.fixture
def agent(view):
    return view.agent()


def run_next(view):
    """Claim the next job, run it to its end, and return it."""
    job = view.claim(view.agent())
    assert job is not None
    view.run(job)
    return job


def broken_at_first(account, *args):
    """Fails until the account has something; a defect that was mended in the meantime."""
    if not account.balance:
        raise ValueError("nothing there")
    return account.balance


def failed_job(view, *callbacks):
    """A job that failed and is settled, and the account that makes it succeed next time."""
    account = Account()
    job = Job(broken_at_first, account)
    for success, failure in callbacks:
        job.add_callbacks(success, failure)
    view.put(job)
    assert run_next(view) is job
    assert job.failed and job.status is Status.COMPLETED
    return job, account


told = []


def note_and_fail(result):
    told.append(result)
    raise ValueError("again")


def note(account, text, result):
    account.notes = (*getattr(account, "notes", ()), text)


# Retry.


def test_a_failed_job_that_is_retried_runs_again_as_the_same_job(view, agent):
    job, account = failed_job(view)
    ref = job.ref
    account.balance = 7
    job.retry()
    view.commit()
    assert job.status is Status.PENDING and job.result is None
    assert job.active_start is job.active_end is job.callbacks_end is None
    assert list(agent.completed) == [] and agent.kept(failed=True) == 0

    assert run_next(view) is job

    assert job.ref == ref and job.result == 7
    assert list(agent.completed) == [job] and agent.kept(failed=False) == 1


def test_its_policy_and_its_deadline_count_anew(world, view, agent):
    job = Job(fail)
    job.begin_by = HOUR
    view.put(job)
    run_next(view)
    first = job.get_retry_policy()
    view.advance(2 * HOUR)
    job.retry()
    view.commit()
    assert job.deadline == world.clock.now() + HOUR
    run_next(view)
    assert job.failed and job.result.check(ValueError)
    assert job.get_retry_policy() is not first


def test_callbacks_that_have_run_do_not_run_again_and_the_other_one_of_two_may_run_still(
    view, agent
):
    book = Account()
    job = Job(broken_at_first, account := Account())
    job.add_callback(Job(note, book, "always"))
    job.add_callbacks(Job(note, book, "success"), Job(note, book, "failure"))
    job.add_callbacks(success=Job(note, book, "only success"))
    view.put(job)
    run_next(view)
    assert book.notes == ("always", "failure")
    job.retry()
    view.commit()
    run_next(view)
    assert job.failed and book.notes == ("always", "failure")

    account.balance = 1
    job.retry()
    view.commit()
    run_next(view)

    assert not job.failed
    assert book.notes == ("always", "failure", "success", "only success")
    assert all(callback.status is Status.COMPLETED for callback in job.descendants())


def test_a_callback_that_failed_is_retried_with_the_same_result(view, agent):
    account = Account()
    job = Job(echo, 5)
    callback = job.add_callback(Job(broken_at_first, account))
    view.put(job)
    run_next(view)
    assert callback.failed and not job.failed
    account.balance = 3
    callback.retry()
    view.commit()
    assert callback.status is Status.PENDING and job.status is Status.COMPLETED

    assert run_next(view) is callback

    assert callback.result == 3 and callback in agent.completed


@pytest.mark.spec("J21")
def test_a_job_whose_callback_is_being_retried_is_not_retried(view, agent):
    told.clear()
    job = Job(fail)
    callback = job.add_callback(note_and_fail)
    view.put(job)
    run_next(view)
    failure = job.result
    callback.retry()
    view.commit()
    with pytest.raises(BadStatusError, match="which is still to be called"):
        job.retry()
    view.abort()
    run_next(view)
    assert told == [failure, failure]
    job.retry()
    view.commit()
    assert run_next(view) is job


@pytest.mark.spec("J21", "J22")
def test_a_job_whose_late_callback_was_not_called_yet_is_not_retried(view, agent):
    told.clear()
    job = view.put(fail)
    run_next(view)
    failure = job.result
    callback = job.add_callback(note_and_fail)
    view.commit()
    with pytest.raises(BadStatusError, match="which is still to be called"):
        job.retry()
    view.abort()
    assert run_next(view) is callback
    job.retry()
    view.commit()
    assert run_next(view) is job
    assert told == [failure]


@pytest.mark.spec("J21", "J22")
def test_nor_is_one_to_which_it_was_added_in_the_instant_in_which_it_ended(world, view, agent):
    told.clear()
    job = view.put(fail)
    view.claim(agent)
    view.begin(job)
    other = world.view()
    other.get(job).add_callback(note_and_fail)
    other.commit()
    job._end(Failure(ValueError("no"))), job._complete_if_alone()
    view.commit()
    assert job.status is Status.COMPLETED
    with pytest.raises(BadStatusError, match="which is still to be called"):
        job.retry()
    view.commit()
    run_next(view)
    assert told == [job.result]


def test_a_job_that_is_not_settled_yet_is_retried_all_the_same(view, agent):
    job = view.put(fail)
    view.claim(agent)
    view.begin(job)
    job._end(Failure(ValueError("no"))), job._complete()
    view.commit()
    job.retry()
    view.commit()
    assert len(agent) == 0 and agent.kept(failed=True) == 0
    assert run_next(view) is job


def test_a_late_callback_that_waits_becomes_the_first_in_line(world, view, agent):
    job = view.put(echo, 1)
    run_next(view)
    late = job.add_callback(Job(echo))
    view.commit()
    other = view.put(echo, 2)
    late.retry()
    view.commit()
    assert [view.claim(agent), view.claim(agent)] == [late, other]


def test_of_two_callbacks_the_one_that_failed_is_retried_and_not_their_proxy(view, agent):
    job = Job(fail)
    proxy = job.add_callbacks(failure=fail)
    view.put(job)
    run_next(view)
    assert proxy.failed
    with pytest.raises(BadStatusError, match="retry that one"):
        proxy.retry()
    proxy.failure.retry()
    view.commit()
    assert run_next(view) is proxy.failure


def test_a_job_in_no_queue_is_not_cancelled_and_runs_nothing(view):
    job, account = Job(echo, 1), Account()
    job.add_callback(Job(note, account, "called"))
    view.connection.add(job)
    view.commit()
    with pytest.raises(BadStatusError, match="in no queue"):
        job.cancel()
    assert job.status is Status.NEW and not hasattr(account, "notes")


def test_a_job_that_waits_becomes_the_first_in_line_and_due_at_once(world, view, agent):
    later = view.put(echo, 1, begin_after=world.clock.now() + DAY)
    view.put(echo, 2)
    later.retry()
    view.commit()
    assert view.claim(agent) is later


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda view: view.put(echo, 1) and run_next(view), "has succeeded"),
        (lambda view: view.put(fail) and view.claim(view.agent()), "is ASSIGNED"),
        (lambda view: Job(fail), "is NEW"),
    ],
)
def test_what_has_not_failed_is_not_retried(view, agent, make, text):
    job = make(view)
    before = job.__getstate__()
    with pytest.raises(BadStatusError, match=text):
        job.retry()
    assert job.__getstate__() == before


def test_a_job_that_was_run_by_hand_is_not_retried(view):
    job = Job(fail)
    view.connection.add(job)
    view.commit()
    job()
    with pytest.raises(BadStatusError, match="in no queue"):
        job.retry()


def test_a_forgotten_job_is_not_retried(world, view, agent):
    job, _ = failed_job(view)
    world.advance(9 * DAY)
    agent.forget(world.clock.now())
    view.commit()
    with pytest.raises(JobNotFoundError, match="forgotten"):
        job.retry()


def test_a_callback_of_a_job_that_is_not_done_is_not_retried(view, agent):
    job = Job(echo, 1)
    callback = job.add_callback(fail)
    job.add_callback(echo)
    view.put(job)
    view.claim(agent)
    view.begin(job)
    job._end(1)
    callback._begin(), callback._end(Failure(ValueError("no"))), callback._complete()
    view.commit()
    with pytest.raises(BadStatusError, match="belongs to"):
        callback.retry()
    view.abort()
    job.resume_callbacks()


def test_of_two_who_retry_a_job_at_once_one_fails(world, view, agent):
    job, _ = failed_job(view)
    other = world.view()
    other.get(job).retry()
    job.retry()
    view.commit()
    with pytest.raises(ConflictError):
        other.commit()
    other.abort()
    assert other.get(job).status is Status.PENDING


# Cancel.


@pytest.mark.spec("J17")
@pytest.mark.parametrize("claimed", [False, True])
def test_a_cancelled_job_fails_with_that_reason_and_its_callbacks_run(view, agent, claimed):
    job = Job(echo, 1)
    callback = job.add_callback(echo)
    view.put(job)
    if claimed:
        assert view.claim(agent) is job
    job.cancel()
    view.commit()
    assert isinstance(job.result, Failure) and job.result.check(AbortedError)
    agent.settle_all()
    view.commit()
    run_next(view)
    assert callback.result is job.result or callback.result == job.result
    assert job.status is Status.COMPLETED and job in agent.completed


def test_a_cancel_is_logged_when_it_is_committed(view, agent, caplog):
    job = view.put(echo, 1)
    with caplog.at_level("ERROR", logger="perdure.events"):
        job.cancel()
        view.abort()
        assert caplog.records == []
        view.get(job).cancel()
        assert caplog.records == []
        view.commit()
    [record] = caplog.records
    assert record.job == str(job.ref) and "cancelled before it began" in record.getMessage()


@pytest.mark.parametrize("status", ["ACTIVE", "CALLBACKS", "COMPLETED"])
def test_what_has_begun_is_not_cancelled(view, agent, status):
    job = Job(echo, 1)
    job.add_callback(echo)
    view.put(job)
    view.claim(agent)
    if status == "COMPLETED":
        view.run(job)
    else:
        view.begin(job)
        if status == "CALLBACKS":
            job._end(1)
            view.commit()
    with pytest.raises(BadStatusError, match=f"is {status}, and only a job that has not begun"):
        job.cancel()
    if status != "COMPLETED":
        job.handle_interrupt()


# Pause and resume.


def test_of_a_paused_queue_nothing_is_claimed_until_it_is_resumed(view, agent):
    job = view.put(echo, 1)
    view.queue.pause()
    view.commit()
    assert view.claim(agent) is None and view.queue.claim(default=3) == 3
    view.put(echo, 2)
    view.queue.resume()
    view.commit()
    assert view.claim(agent) is job


def test_in_a_paused_queue_jobs_are_cancelled_and_expire_and_what_has_begun_goes_on(
    world, view, agent
):
    begun, cancelled, expiring = view.put(echo, 1), view.put(echo, 2), Job(echo, 3)
    view.claim(agent)
    view.begin(begun)
    expiring.begin_by = SECOND
    view.put(expiring)
    view.queue.pause()
    cancelled.cancel()
    agent.interrupt(begun)
    view.commit()
    view.advance(HOUR)
    while (job := view.claim(agent)) is not None:
        view.run(job)
    assert cancelled.status is expiring.status is Status.COMPLETED
    assert expiring.failed and begun.status is Status.PENDING
    view.queue.resume()
    view.commit()
    assert run_next(view) is begun and begun.result == 1


def test_a_claim_that_is_under_way_is_not_committed_after_a_pause(world, view, agent):
    view.put(echo, 1)
    other = world.view()
    assert other.get(agent).claim_job() is not None
    view.queue.pause()
    view.commit()
    with pytest.raises(ConflictError):
        other.commit()
    other.abort()
    assert other.claim(other.get(agent)) is None


# Sizes.


@pytest.mark.spec("D7")
def test_a_new_size_holds_for_that_agent_of_every_process_and_for_those_to_come(view):
    agents = [view.agent(1), view.agent(2)]
    extra = agents[0].record.add_agent("extra", size=1)
    view.queue.resize(5)
    view.queue.resize(2, agent="extra")
    view.commit()
    assert [agent.size for agent in agents] == [5, 5]
    assert extra.size == 2 and view.queue.agent_size == 5


@pytest.mark.parametrize(
    ("size", "name", "error", "text"),
    [
        (-1, "main", UnknownSettingError, "0 or more, not -1"),
        (10_001, "main", UnknownSettingError, "10000 at most"),
        ("3", "main", TypeError, "whole number, not '3'"),
        (True, "main", TypeError, "whole number, not True"),
        (3, "mian", UnknownSettingError, "named 'mian', only"),
    ],
)
def test_a_bad_size_or_agent_is_refused_and_changes_nothing(view, agent, size, name, error, text):
    with pytest.raises(error, match=text):
        view.queue.resize(size, agent=name)
    assert agent.size == 3 and view.queue.agent_size is None


def test_counts_of_days_outlive_their_agents(world, view, agent):
    failed_job(view)
    world.advance(SECOND)
    agent.forget(world.clock.now() + 30 * DAY)
    record = agent.record
    record.remove_agent("main")
    view.commit()
    [(_, counts)] = view.queue.past.items()
    assert counts == (0, 1)
