"""Retry policies: what they are told, what they answer, and what becomes of that."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime
import functools
import logging
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import transaction
import ZODB
from persistent import Persistent
from transaction.interfaces import TransientError
from ZEO.Exceptions import ClientDisconnected
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError

from perdure.model import (
    AbortedError,
    BadStatusError,
    CommitErrored,
    Failure,
    GiveUp,
    Interrupted,
    Job,
    JobErrored,
    NeverRetry,
    Reschedule,
    Retry,
    RetryCommonForever,
    RetryCommonFourTimes,
    RetryPolicy,
    Status,
    StopRequested,
    UnknownSettingError,
    check,
    register_retry_policy,
)
from perdure.model.running import Runner
from support.desk import Counter, Desk, PassingClock, deed, fail_commit
from support.manual_clock import ManualClock

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)

_told: list[Any] = []
_answers: list[Any] = []


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    _told.clear()
    _answers.clear()
    yield
    for name in ("", "callback", "mine"):
        register_retry_policy(name, None)


class AsTold(RetryPolicy):
    """Notes what it is told, and answers what the test has prepared."""

    def on_receive(self, message: Any) -> Any:
        _told.append(message)
        self.data["times"] = self.data.get("times", 0) + 1
        self.data.setdefault("list", []).append(len(_told))
        self._p_changed = True
        answer = _answers.pop(0) if _answers else GiveUp()
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Failing:
    """Raises or fails to commit as often as it has errors, then returns 'done'."""

    def __init__(self, *errors: BaseException, at_commit: bool = False) -> None:
        self.errors = list(errors)
        self.attempts = 0
        self.at_commit = at_commit

    def __call__(self, *args: Any) -> str:
        self.attempts += 1
        if self.errors:
            error = self.errors.pop(0)
            if self.at_commit:
                fail_commit(error)
            else:
                raise error
        return "done"


# The conversation.


@pytest.mark.spec("R1")
@pytest.mark.parametrize("message", [JobErrored, CommitErrored])
def test_it_is_told_what_happened_with_the_failure_and_what_it_kept(
    desk: Desk, message: Any
) -> None:
    _answers.extend([Retry(), GiveUp()])
    work = Failing(ValueError("1"), KeyError("2"), at_commit=message is CommitErrored)
    job = desk.put(deed(work), retry_policy_factory=AsTold)
    desk.work()
    assert [type(each) for each in _told] == [message] * 2
    assert [str(each.failure) for each in _told] == ["ValueError: 1", "KeyError: '2'"]
    assert [dict(each.data) for each in _told] == [{}, {"times": 1, "list": [1]}]
    assert job.result.check(KeyError)


@pytest.mark.spec("R1")
def test_messages_and_decisions_are_immutable(desk: Desk) -> None:
    failure = Failure(ValueError())
    for each in (JobErrored(failure), CommitErrored(failure), Interrupted(), Retry(), GiveUp()):
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError, AttributeError)):
            each.data = ()  # type: ignore[union-attr, misc]


@pytest.mark.spec("R1")
def test_what_it_keeps_survives_the_abort_and_is_stored_with_the_next_commit(desk: Desk) -> None:
    stored: list[Any] = []

    def work() -> None:
        with desk.elsewhere() as connection:
            policy = connection.get(job._p_oid)._policy
            stored.append(policy and policy.data["times"])
        if len(stored) < 4:
            raise ValueError

    _answers.extend([Retry(), Retry(), Retry()])
    job = desk.put(Job(deed(work)), retry_policy_factory=AsTold)
    desk.work()
    assert stored == [None] * 4
    with desk.elsewhere() as connection:
        assert connection.get(job._p_oid)._policy.data == {"times": 3, "list": [1, 2, 3]}


@pytest.mark.spec("R1")
@pytest.mark.parametrize("ending", [GiveUp(), Reschedule(HOUR), Reschedule(-HOUR)])
def test_what_it_keeps_is_stored_with_every_kind_of_ending(desk: Desk, ending: Any) -> None:
    _answers.extend([Retry(), ending])
    job = desk.put(Job(deed(Failing(ValueError(), ValueError()))), retry_policy_factory=AsTold)
    desk.run(desk.claim())
    with desk.elsewhere() as connection:
        assert connection.get(job._p_oid)._policy.data["times"] == 2
    assert check(desk.database) == []


@pytest.mark.spec("R1")
def test_what_it_keeps_is_not_touched_by_a_later_attempt_that_is_aborted(desk: Desk) -> None:
    def work() -> None:
        policy = job.get_retry_policy()
        assert isinstance(policy, AsTold)
        policy.data.setdefault("list", []).append("from the job")
        policy._p_changed = True
        raise ValueError

    _answers.extend([Retry(), Retry()])
    job = desk.put(Job(deed(work)), retry_policy_factory=AsTold)
    desk.work()
    assert job._policy is not None and job._policy.data["list"] == [1, 2, 3]


class KeepsObjects(AsTold):
    def on_receive(self, message: Any) -> Any:
        self.data.setdefault("counters", [self.job.args[-1]])
        return super().on_receive(message)


@pytest.mark.spec("R1")
def test_it_may_keep_persistent_objects(desk: Desk) -> None:
    counter = desk.root["counter"] = Counter()
    _answers.extend([Retry(), Retry()])
    job = desk.put(
        Job(deed(Failing(ValueError(), ValueError())), counter),
        retry_policy_factory=KeepsObjects,
    )
    desk.work()
    assert job._policy is not None and job._policy.data["counters"][0] is counter


class ChangesOthers(AsTold):
    def on_receive(self, message: Any) -> Any:
        self.job.args[-1].add()
        self.job.annotations["a"] = 1
        return super().on_receive(message)


@pytest.mark.spec("R1")
def test_nothing_else_that_it_changes_is_stored(desk: Desk) -> None:
    counter = desk.root["counter"] = Counter()
    _answers.extend([Retry()])
    job = desk.put(Job(deed(Failing(ValueError())), counter), retry_policy_factory=ChangesOthers)
    desk.work()
    assert (job.result, counter.value, dict(job.annotations)) == ("done", 0, {})


@pytest.mark.spec("R1")
def test_error_counts_begin_at_zero_when_claimed_and_interruptions_do_not(desk: Desk) -> None:
    work = Failing(*[TransientError() for _ in range(8)])
    job = desk.put(Job(deed(work)))
    first = desk.clock.now()

    for number in range(2):
        desk.claim()
        real_errors = list(work.errors)
        work.errors = [*real_errors[:4], SystemExit()]
        with pytest.raises(SystemExit):
            desk.runner().run(job)
        transaction.abort()
        work.errors = real_errors[4:]
        desk.clock.advance(MINUTE)
        desk.lose(job)
        transaction.begin()
        desk.run(desk.claim())  # puts it to its policy
        assert job.status is Status.PENDING
        assert job._policy is not None and job._policy.data["interruptions"] == number + 1
    desk.work()
    assert job.result == "done" and job._policy is not None
    assert job._policy.data["first_active"] == first
    assert job._policy.data["interruptions"] == 2
    assert {"last_interruption", "first_active"} <= set(job._policy.data)


class FiveThenLater(RetryCommonFourTimes):
    def on_receive(self, message: Any) -> Any:
        decision = super().on_receive(message)
        return Reschedule(MINUTE) if isinstance(decision, GiveUp) else decision


@pytest.mark.spec("R1")
def test_a_job_that_was_rescheduled_has_all_its_attempts_again(desk: Desk) -> None:
    work = Failing(*[ConflictError() for _ in range(9)])
    job = desk.put(Job(deed(work)), retry_policy_factory=FiveThenLater)
    desk.work()
    assert (job.status, work.attempts) == (Status.PENDING, 5)
    desk.clock.advance(MINUTE)
    desk.work()
    assert (job.result, work.attempts) == ("done", 10)


# The common ones.


@pytest.mark.spec("R2")
@pytest.mark.parametrize("at_commit", [True, False])
@pytest.mark.parametrize(("errors", "done"), [(4, True), (5, False)])
def test_transaction_errors_are_followed_by_up_to_five_attempts(
    desk: Desk, errors: int, done: bool, at_commit: bool
) -> None:
    work = Failing(*[ConflictError() for _ in range(errors)], at_commit=at_commit)
    job = desk.put(Job(deed(work)))
    desk.work()
    assert (work.attempts, not job.failed, desk.clock.waits) == (5, done, [])
    assert type(job._policy) is RetryCommonFourTimes


@pytest.mark.spec("R2")
def test_job_errors_and_commit_errors_are_counted_together(desk: Desk) -> None:
    work = Failing(*[ConflictError() for _ in range(9)])

    def alternate(*args: Any) -> str:
        work.at_commit = not work.at_commit
        return work()

    job = desk.put(Job(deed(alternate)))
    desk.work()
    assert (work.attempts, job.failed) == (5, True)


@pytest.mark.spec("R2", "R3")
@pytest.mark.parametrize("at_commit", [True, False])
@pytest.mark.parametrize("policy", [RetryCommonFourTimes, RetryCommonForever])
def test_a_lost_connection_is_waited_for_longer_and_longer_without_end(
    desk: Desk, policy: Any, at_commit: bool
) -> None:
    work = Failing(*[ClientDisconnected() for _ in range(20)], at_commit=at_commit)
    job = desk.put(Job(deed(work)), retry_policy_factory=policy)
    desk.work()
    assert job.result == "done"
    assert desk.clock.waits == [*range(5, 60, 5), *[60] * 9]


@pytest.mark.spec("R2", "R3")
@pytest.mark.parametrize("policy", [RetryCommonFourTimes, RetryCommonForever])
def test_any_other_error_of_the_callable_ends_the_job(desk: Desk, policy: Any) -> None:
    work = Failing(ValueError())
    job = desk.put(Job(deed(work)), retry_policy_factory=policy)
    desk.work()
    assert work.attempts == 1 and job.result.check(ValueError)


@pytest.mark.spec("R2")
def test_any_other_error_at_commit_ends_a_job(desk: Desk) -> None:
    work = Failing(ValueError(), at_commit=True)
    job = desk.put(Job(deed(work)))
    desk.work()
    assert work.attempts == 1 and job.result.check(ValueError)


@pytest.mark.spec("R3")
def test_forever_goes_on_after_transaction_errors_and_any_error_at_commit(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    conflicts = Failing(*[ConflictError() for _ in range(50)])
    commits = Failing(*[ValueError() for _ in range(63)], at_commit=True)
    jobs = [
        desk.put(Job(deed(work)), retry_policy_factory=RetryCommonForever)
        for work in (conflicts, commits)
    ]
    desk.work()
    assert [job.result for job in jobs] == ["done", "done"]
    assert desk.clock.waits == [*range(1, 61), 60, 60]
    critical = [each for each in caplog.records if "cannot be committed" in each.getMessage()]
    assert len(critical) == 1 + 63 // 5
    assert {each.levelname for each in critical} == {"CRITICAL"}


@pytest.mark.spec("R2", "R3", "R4")
@pytest.mark.parametrize(
    ("policy", "runs"), [(RetryCommonFourTimes, 10), (NeverRetry, 1), (RetryCommonForever, 30)]
)
def test_how_often_an_interrupted_job_is_run_again(desk: Desk, policy: Any, runs: int) -> None:
    attempts: list[int] = []

    def work() -> str:
        attempts.append(1)
        if len(attempts) < 30:
            raise SystemExit
        return "done"

    job = desk.put(Job(deed(work)), retry_policy_factory=policy)
    while job.status is not Status.COMPLETED:
        # It may be held for as long.
        desk.clock.advance(MINUTE)
        claimed = desk.claim()
        if claimed is not job:
            desk.run(claimed)
            continue
        try:
            desk.run(job)
        except SystemExit:
            desk.lose(job)
            transaction.begin()
    assert len(attempts) == runs
    assert (job.result == "done") is (runs == 30)
    assert runs == 30 or job.result.check(AbortedError)
    assert check(desk.database) == []


@pytest.mark.spec("R4")
@pytest.mark.parametrize("at_commit", [True, False])
@pytest.mark.parametrize("error", [ConflictError, ClientDisconnected, ValueError])
def test_never_retry_always_gives_up(desk: Desk, error: Any, at_commit: bool) -> None:
    work = Failing(error(), at_commit=at_commit)
    job = desk.put(Job(deed(work)), retry_policy_factory=NeverRetry)
    desk.work()
    assert (work.attempts, job.status, desk.clock.waits) == (1, Status.COMPLETED, [])
    assert job.result.check(error)


# Which one.


class Mine(AsTold):
    pass


def make_mine(job: Job) -> RetryPolicy:
    return Mine(job)


@pytest.mark.spec("R5", "J15")
@pytest.mark.parametrize("factory", [Mine, make_mine, "mine"])
def test_the_policy_is_made_by_the_factory_of_the_job(desk: Desk, factory: Any) -> None:
    register_retry_policy("mine", Mine)
    job = Job(abs, 1)
    job.retry_policy_factory = factory
    assert job.retry_policy_factory == factory
    desk.put(job)
    assert type(job.get_retry_policy()) is Mine
    put = desk.put(Job(abs, 1), retry_policy_factory=factory)
    assert type(put.get_retry_policy()) is Mine
    own = Job(abs, 1)
    own.retry_policy_factory = NeverRetry
    desk.put(own, retry_policy_factory=factory)
    assert type(own.get_retry_policy()) is Mine


@pytest.mark.spec("R5")
def test_without_a_factory_it_is_the_registered_one_else_the_default() -> None:
    job = Job(abs, 1)
    callback = job.add_callback(abs)
    assert type(job.get_retry_policy()) is RetryCommonFourTimes
    assert type(callback.get_retry_policy()) is RetryCommonForever
    register_retry_policy("", Mine)
    other = Job(abs, 1)
    callback = other.add_callback(abs)
    assert type(other.get_retry_policy()) is Mine
    assert type(callback.get_retry_policy()) is RetryCommonForever
    register_retry_policy("callback", NeverRetry)
    assert type(Job(abs).add_callback(abs).get_retry_policy()) is NeverRetry


@pytest.mark.spec("R5")
def test_a_name_that_is_unknown_here_is_refused(desk: Desk) -> None:
    for attempt in (
        lambda: setattr(Job(abs), "retry_policy_factory", "mine"),
        lambda: desk.queue.put(Job(abs), retry_policy_factory="mine"),
        lambda: Job(abs).add_callback(abs, retry_policy_factory="mine"),
        lambda: Job(abs).add_callbacks(success=abs, retry_policy_factory="mine"),
    ):
        with pytest.raises(UnknownSettingError, match="'mine'.*register_retry_policy"):
            attempt()
    with pytest.raises(TypeError):
        Job(abs).retry_policy_factory = 5  # type: ignore[assignment]
    assert len(desk.queue) == 0


@pytest.mark.spec("R5")
def test_a_job_that_has_its_policy_keeps_it(desk: Desk) -> None:
    job = desk.put(Job(abs, 1))
    policy = job.get_retry_policy()
    transaction.commit()
    job.retry_policy_factory = NeverRetry
    assert job.get_retry_policy() is policy


# Interruptions by hand.


@pytest.mark.spec("R6")
def test_handle_interrupt_puts_an_active_job_to_its_policy(desk: Desk) -> None:
    _answers.append(GiveUp())
    job = Job(abs, -1)
    job.retry_policy_factory = AsTold
    desk.store(job)._begin()
    transaction.commit()
    job.handle_interrupt()
    assert (_told, job.status) == ([Interrupted()], Status.COMPLETED)
    assert job.result.check(AbortedError)


@pytest.mark.spec("R6", "R7")
def test_handle_interrupt_of_a_job_in_no_queue_runs_it_again(desk: Desk) -> None:
    job = desk.store(Job(abs, -1))
    job._begin()
    transaction.commit()
    job.handle_interrupt()
    assert job.result == 1


@pytest.mark.spec("R6")
def test_handle_interrupt_of_a_job_that_an_agent_has_puts_it_back(desk: Desk) -> None:
    other = desk.put(Job(abs, -2))
    job = desk.put(Job(abs, -1))
    desk.queue.put_back(desk.queue.pull(1))
    transaction.commit()
    assert desk.claim() is job
    job._begin()
    transaction.commit()
    job.handle_interrupt()
    assert (job.status, job.active_start, len(desk.agent)) == (Status.PENDING, None, 0)
    assert list(desk.queue) == [job, other]
    assert check(desk.database) == []


@pytest.mark.spec("R6")
def test_handle_interrupt_resumes_callbacks_and_is_refused_in_any_other_status(
    desk: Desk,
) -> None:
    job = Job(abs, -1)
    callback = job.add_callback(str)
    for _ in range(2):
        with pytest.raises(BadStatusError, match="needs ACTIVE or CALLBACKS"):
            job.handle_interrupt()
        desk.store(job)
    job._begin()
    job._end(1)
    transaction.commit()
    job.handle_interrupt()
    assert callback.result == "1"
    with pytest.raises(BadStatusError, match="is COMPLETED"):
        job.handle_interrupt()


@pytest.mark.spec("R6", "R7")
@pytest.mark.parametrize(
    ("decision", "due", "first"),
    [
        (Retry(), timedelta(0), True),
        (Retry(HOUR), HOUR, False),
        (Reschedule(-HOUR), timedelta(0), True),
        (Reschedule(HOUR), HOUR, False),
        (Reschedule(datetime.datetime(2025, 1, 1)), timedelta(0), True),
        (Reschedule(datetime.datetime(2026, 1, 1, 1)), HOUR, False),
    ],
)
def test_what_the_decisions_mean_after_an_interruption(
    desk: Desk, decision: Any, due: timedelta, first: bool
) -> None:
    quota = desk.queue.quotas.create("disk")
    job = Job(abs, -1)
    job.quota_names = ("disk",)
    desk.put(job, retry_policy_factory=AsTold)
    _answers.append(decision)
    desk.claim()._begin()
    transaction.commit()
    desk.lose(job)
    transaction.begin()
    desk.run(desk.claim())
    assert (job.status, job._first, quota.has_room()) == (Status.PENDING, first, not first)
    assert job.begin_after == desk.clock.now() + due
    assert check(desk.database) == []
    assert desk.work() == (1 if first else 0)
    desk.clock.advance(HOUR)
    desk.work()
    assert job.result == 1


# After an error.


@pytest.mark.spec("R7")
@pytest.mark.parametrize(
    ("when", "due", "first"),
    [(-HOUR, timedelta(0), True), (timedelta(0), timedelta(0), True), (HOUR, HOUR, False)],
)
def test_rescheduling_puts_a_job_first_in_line_or_holds_it(
    desk: Desk, when: timedelta, due: timedelta, first: bool
) -> None:
    _answers.append(Reschedule(when))
    job = desk.put(Job(deed(Failing(ValueError()))), retry_policy_factory=AsTold)
    other = desk.put(Job(abs, 1))
    desk.run(desk.claim())
    assert (job.status, job._first, len(desk.agent)) == (Status.PENDING, first, 0)
    assert list(desk.queue) == ([job, other] if first else [other, job])
    assert check(desk.database) == []
    desk.clock.advance(due)
    desk.work()
    assert job.result == "done"


@pytest.mark.spec("R7")
@pytest.mark.parametrize("kind", ["by hand", "callback"])
def test_rescheduling_what_no_agent_has_is_logged_and_means_giving_up(
    desk: Desk, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    _answers.append(Reschedule(HOUR))
    failing = Job(deed(Failing(ValueError())))
    failing.retry_policy_factory = AsTold
    if kind == "callback":
        job = Job(abs, 1)
        job.add_callback(failing)
        desk.put(job)
        desk.work()
    else:
        desk.store(failing)()
    assert failing.result.check(ValueError) and failing.status is Status.COMPLETED
    [logged] = [each for each in caplog.records if "cannot be rescheduled" in each.getMessage()]
    assert logged.levelno == logging.CRITICAL


@pytest.mark.spec("R7")
def test_a_callback_that_was_added_late_is_a_job_of_its_queue_and_can_be_rescheduled(
    desk: Desk,
) -> None:
    _answers.append(Reschedule(HOUR))
    job = desk.put(Job(abs, 1))
    desk.work()
    callback = job.add_callback(deed(Failing(ValueError())), retry_policy_factory=AsTold)
    transaction.commit()
    desk.work()
    assert callback.status is Status.PENDING
    desk.clock.advance(HOUR)
    desk.work()
    assert callback.result == "done"


@pytest.mark.spec("R7")
def test_a_reschedule_whose_commit_raised_after_it_took_place_is_no_loss_of_the_job(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _answers.append(Reschedule(HOUR))
    job = desk.put(Job(deed(Failing(ValueError()))), retry_policy_factory=AsTold)
    real = type(desk.queue)._enter

    def enter(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        fail_commit(ClientDisconnected(), "tpc_finish")

    monkeypatch.setattr(type(desk.queue), "_enter", enter)
    desk.run(desk.claim())
    assert (job.status, len(_told), "was taken" in caplog.text) == (Status.PENDING, 1, False)
    assert check(desk.database) == []


# Deadlines.


@pytest.mark.spec("R8", "X1")
def test_a_job_with_a_deadline_is_retried_while_it_is_in_time(desk: Desk) -> None:
    work = Failing(*[ConflictError() for _ in range(3)])
    job = desk.put(Job(deed(work)), begin_by=HOUR)
    desk.work()
    assert (job.result, work.attempts) == ("done", 4)


@pytest.mark.spec("R8", "X1")
@pytest.mark.parametrize("at_commit", [True, False])
def test_past_the_deadline_no_policy_is_asked_and_the_failure_at_hand_is_the_result(
    desk: Desk, at_commit: bool
) -> None:
    def work() -> None:
        desk.clock.advance(2 * HOUR)
        if at_commit:
            fail_commit(ConflictError())
        else:
            raise ConflictError

    job = desk.put(Job(deed(work)), begin_by=HOUR, retry_policy_factory=AsTold)
    desk.work()
    assert _told == [] and job.result.check(ConflictError)


@pytest.mark.spec("R8")
def test_a_wait_that_ends_past_the_deadline_is_not_followed_by_an_attempt(desk: Desk) -> None:
    work = Failing(*[ClientDisconnected() for _ in range(10)])
    job = desk.put(Job(deed(work)), begin_by=timedelta(seconds=12))
    desk.work()
    assert (work.attempts, desk.clock.waits) == (2, [5, 10])
    assert job.result.check(ClientDisconnected)


@pytest.mark.spec("R8", "X1")
@pytest.mark.parametrize("late", [True, False])
def test_an_interrupted_job_past_its_deadline_ends_with_aborted_error(
    desk: Desk, late: bool
) -> None:
    _answers.append(Retry())
    job = desk.put(Job(abs, -1), begin_by=HOUR, retry_policy_factory=AsTold)
    desk.claim()._begin()
    transaction.commit()
    desk.clock.advance(2 * HOUR if late else HOUR)
    desk.lose(job)
    transaction.begin()
    desk.work()
    assert len(_told) == (0 if late else 1)
    assert job.result.check(AbortedError) if late else job.result == 1


# Storing the failure.


@pytest.mark.spec("R9")
def test_storing_the_failure_of_a_commit_goes_on_until_it_succeeds(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [OSError("full"), ClientDisconnected(), ConflictError(), KeyError()]
    real = Job._end

    def end(job: Job, result: Any, arrow: str = "end") -> None:
        real(job, result, arrow)
        if errors:
            fail_commit(errors.pop(0))

    monkeypatch.setattr(Job, "_end", end)
    job = desk.put(Job(abs, -1))
    desk.work()
    assert job.result.check(OSError) and job.status is Status.COMPLETED
    assert errors == [] and desk.clock.waits == [5, 10]


@pytest.mark.spec("R9")
@pytest.mark.parametrize(("level", "expected"), [(None, "ERROR"), (logging.WARNING, "WARNING")])
def test_what_the_job_had_produced_is_logged_before_the_policy_is_asked(
    desk: Desk, caplog: pytest.LogCaptureFixture, level: int | None, expected: str
) -> None:
    caplog.set_level(logging.INFO)

    def work(failing: bool) -> Any:
        fail_commit(OSError("full"))
        return Failure(ValueError("mine")) if failing else "product"

    for failing in (True, False):
        desk.put(Job(deed(work), failing), failure_log_level=level)
    desk.work()
    lost = [each for each in caplog.records if "before its commit failed" in each.getMessage()]
    assert [each.levelname for each in lost] == [expected, "INFO"]
    assert "ValueError: mine" in lost[0].getMessage() and "product" in lost[1].getMessage()


@pytest.mark.spec("R9")
def test_the_lost_failure_of_a_callback_is_logged_critical(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    def work(result: int) -> Any:
        fail_commit(OSError("full"))
        return Failure(ValueError("mine"))

    job = Job(abs, 1)
    job.add_callback(deed(work), retry_policy_factory=NeverRetry)
    desk.put(job)
    desk.work()
    [lost] = [each for each in caplog.records if "before its commit failed" in each.getMessage()]
    assert lost.levelname == "CRITICAL"


# Policies that do not do as they should.


def refuse_to_make(job: Job) -> RetryPolicy:
    _told.append(job)
    if len(_told) < 4:
        raise KeyError("no policy")
    return Mine(job)


@pytest.mark.spec("R10")
def test_a_policy_that_cannot_be_made_is_asked_for_again_with_growing_waits(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    job = desk.put(Job(deed(Failing(ValueError()))), retry_policy_factory=refuse_to_make)
    desk.work()
    assert desk.clock.waits == [5, 10, 15] and job.result.check(ValueError)
    logged = [each for each in caplog.records if "cannot be asked" in each.getMessage()]
    assert [each.levelname for each in logged] == ["CRITICAL"] * 3


@pytest.mark.spec("R10")
def test_a_policy_that_raises_is_asked_again_with_growing_waits(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    _answers.extend([KeyError() for _ in range(14)])
    job = desk.put(Job(deed(Failing(ValueError()))), retry_policy_factory=AsTold)
    desk.work()
    assert job.result.check(ValueError)
    assert desk.clock.waits == [*range(5, 60, 5), 60, 60, 60]
    assert [dict(each.data) for each in _told] == [{}] * 15
    logged = [each for each in caplog.records if "cannot be asked" in each.getMessage()]
    assert [each.levelname for each in logged] == ["CRITICAL"] * 14


class Claimed(AsTold):
    def claimed(self) -> None:
        if not _told[1:]:
            _told.append("claimed")
            raise SystemExit


@pytest.mark.spec("R10")
def test_a_policy_that_raises_no_exception_is_asked_again_all_the_same(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    _answers.extend([SystemExit(1), KeyError()])
    job = desk.put(Job(deed(Failing(ValueError()))), retry_policy_factory=AsTold)
    desk.work()
    assert job.result.check(ValueError) and desk.clock.waits == [5, 10]
    assert "it raised SystemExit" in caplog.text


@pytest.mark.spec("R10")
def test_what_a_policy_raises_when_its_job_is_claimed_is_waited_out_too(desk: Desk) -> None:
    _answers.append(Reschedule(timedelta(0)))
    job = desk.put(Job(deed(Failing(ValueError()))), retry_policy_factory=Claimed)
    desk.work()
    assert job.result == "done" and desk.clock.waits == [5]


@pytest.mark.spec("R3", "R7")
def test_a_callback_that_exits_time_and_again_is_run_again_after_growing_waits(
    desk: Desk,
) -> None:
    calls: list[int] = []

    def work(result: int) -> None:
        calls.append(result)
        if len(calls) < 66:
            raise SystemExit

    job = Job(abs, -1)
    callback = job.add_callback(Job(deed(work)))
    desk.put(job)
    claimed = desk.claim()
    while job.status is not Status.COMPLETED:
        try:
            desk.run(claimed)
        except SystemExit:
            desk.lose(claimed)
            transaction.begin()
            claimed = desk.claim()
    assert callback.status is Status.COMPLETED and len(calls) == 66
    assert desk.clock.waits == [*range(1, 61), 60, 60, 60]


@pytest.mark.spec("R3", "X1")
def test_a_callback_whose_deadline_passes_in_such_a_wait_is_aborted(desk: Desk) -> None:
    _answers.append(Retry(HOUR))
    job = Job(abs, -1)
    callback = job.add_callback(
        Job(abs, -1), retry_policy_factory=AsTold, begin_by=timedelta(seconds=60)
    )
    desk.store(job)._begin()
    job._end(1)
    callback._begin()
    transaction.commit()
    job.resume_callbacks()
    assert desk.clock.waits == [3600] and callback.result.check(AbortedError)


class Overtaken(AsTold):
    """While it is asked, somebody else puts the job back into its queue."""

    def on_receive(self, message: Any) -> Any:
        if not _told:
            manager = transaction.TransactionManager()
            connection = self._p_jar.db().open(transaction_manager=manager)
            job = connection.get(self.job._p_oid)
            job.queue._enter(job, "reschedule", first=True)
            manager.commit()
            connection.close()
        return super().on_receive(message)


@pytest.mark.spec("R6")
@pytest.mark.parametrize("answer", [GiveUp(), Retry(), Retry(HOUR)])
def test_a_job_that_somebody_else_has_dealt_with_meanwhile_is_left_alone(
    desk: Desk, answer: Any
) -> None:
    _answers.append(answer)
    job = desk.put(Job(abs, -1), retry_policy_factory=Overtaken)
    job.get_retry_policy()
    transaction.commit()
    desk.claim()._begin()
    transaction.commit()
    desk.lose(job)
    transaction.begin()
    desk.run(desk.claim())
    assert (len(_told), job.status, desk.clock.waits) == (1, Status.PENDING, [])
    desk.work()
    assert job.result == 1


@pytest.mark.spec("R10")
@pytest.mark.parametrize("interrupted", [True, False])
def test_a_policy_whose_name_is_gone_from_this_process_is_waited_for(
    desk: Desk, interrupted: bool
) -> None:
    register_retry_policy("mine", Mine)
    job = desk.put(Job(deed(Failing(ValueError()))), retry_policy_factory="mine")
    register_retry_policy("mine", None)

    class Registers(PassingClock):
        def wait(self, condition: Any, timeout_seconds: float | None) -> None:
            super().wait(condition, timeout_seconds)
            if len(self.waits) == 2:
                register_retry_policy("mine", Mine)

    desk.clock.__class__ = Registers
    if interrupted:
        desk.claim()._begin()
        transaction.commit()
        desk.lose(job)
        transaction.begin()
    desk.work()
    assert len(_told) == 1 and job.status is Status.COMPLETED


class Unstorable(AsTold):
    def on_receive(self, message: Any) -> Any:
        decision = super().on_receive(message)
        if len(_told) < 3:
            self.data["lock"] = threading.Lock()
        return decision


@pytest.mark.spec("R10", "R1")
def test_what_a_policy_keeps_that_cannot_be_stored_is_its_error(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    job = desk.put(Job(deed(Failing(ValueError()))), retry_policy_factory=Unstorable)
    desk.work()
    assert job.result.check(ValueError) and desk.clock.waits == [5, 10]
    assert "cannot be asked" in caplog.text


@pytest.mark.spec("R10")
@pytest.mark.parametrize("nonsense", [None, "retry", 5, Retry, timedelta(1)])
@pytest.mark.parametrize("interrupted", [True, False])
def test_nothing_or_nonsense_means_giving_up(
    desk: Desk, caplog: pytest.LogCaptureFixture, nonsense: Any, interrupted: bool
) -> None:
    _answers.append(nonsense)
    job = desk.put(Job(deed(Failing(ValueError()))), retry_policy_factory=AsTold)
    if interrupted:
        desk.claim()._begin()
        transaction.commit()
        desk.lose(job)
        transaction.begin()
    desk.work()
    assert job.result.check(AbortedError if interrupted else ValueError)
    logged = [each for each in caplog.records if "instead of a decision" in each.getMessage()]
    assert [each.levelname for each in logged] == ["ERROR"]


@pytest.mark.spec("R10")
def test_decisions_with_nonsense_in_them_cannot_be_made() -> None:
    for make in (lambda: Retry(-MINUTE), lambda: Retry(5), lambda: Reschedule(5)):  # type: ignore[arg-type]
        with pytest.raises(UnknownSettingError, match="give a"):
            make()


# Shutdown ends waits.


def stopped_while_waiting(desk: Desk, job: Job) -> None:
    """Run `job` in this thread, and set the stop signal once it waits on the clock."""
    desk.clock.__class__ = ManualClock

    def set_stop() -> None:
        desk.clock.wait_until_waiting(1)
        desk.stop.set()

    thread = threading.Thread(target=set_stop)
    thread.start()
    try:
        with pytest.raises(StopRequested):
            desk.runner().run(job)
    finally:
        thread.join()
        transaction.abort()


@pytest.mark.spec("R10", "X3", "R2")
@pytest.mark.parametrize("waiting_for", ["retry", "policy", "commit"])
def test_a_shutdown_ends_every_wait_at_once_and_the_job_is_not_lost(
    desk: Desk, waiting_for: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Failing(ClientDisconnected())
    job = desk.put(Job(deed(work)), retry_policy_factory=AsTold)
    desk.claim()
    _answers.append(Retry(HOUR) if waiting_for == "retry" else KeyError())
    if waiting_for == "commit":
        _answers[:] = [GiveUp()]
        real = Job._end

        def end(job: Job, result: Any, arrow: str = "end") -> None:
            real(job, result, arrow)
            fail_commit(OSError("full"))

        monkeypatch.setattr(Job, "_end", end)
    stopped_while_waiting(desk, job)
    monkeypatch.undo()
    assert (job.status, work.attempts) == (Status.ACTIVE, 1)
    assert job in desk.agent and check(desk.database) == []
    desk.clock.__class__ = PassingClock
    desk.clock.waits = []
    desk.stop._stopped = False
    _answers[:] = [Retry()]
    desk.lose(job)
    transaction.begin()
    desk.work()
    assert job.result == "done"


@pytest.mark.spec("X3")
def test_a_stop_that_was_set_before_the_wait_ends_it_too(desk: Desk) -> None:
    job = desk.put(Job(deed(Failing(ClientDisconnected()))))
    desk.claim()
    desk.stop.set()
    with pytest.raises(StopRequested):
        desk.runner().run(job)
    transaction.abort()
    assert (job.status, desk.clock.waits) == (Status.ACTIVE, [])


# A commit that raised although it took place.


@pytest.fixture(params=["mapping", "file"])
def any_desk(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Desk]:
    made = Desk(FileStorage(str(tmp_path / "data.fs")) if request.param == "file" else None)
    yield made
    made.close()


def lose_the_answer(desk: Desk, error: Exception) -> None:
    """Let the storage's next commit take place and then raise."""
    storage = desk.connection._normal_storage._storage
    real = storage.tpc_finish

    def tpc_finish(*args: Any) -> Any:
        del storage.tpc_finish
        real(*args)
        raise error

    storage.tpc_finish = tpc_finish


@pytest.mark.spec("R11")
@pytest.mark.parametrize("how", ["another data manager", "the storage"])
@pytest.mark.parametrize("with_callback", [True, False])
@pytest.mark.parametrize("policy", [None, NeverRetry])
def test_an_attempt_whose_commit_raised_after_it_took_place_is_done(
    any_desk: Desk, how: str, with_callback: bool, policy: Any
) -> None:
    desk = any_desk
    counter = desk.root["counter"] = Counter()
    calls: list[int] = []

    def work() -> int:
        calls.append(1)
        if how == "the storage":
            lose_the_answer(desk, ClientDisconnected("lost"))
        else:
            fail_commit(ClientDisconnected("lost"), "tpc_finish")
        return int(counter.add())

    job = Job(deed(work))
    callback = job.add_callback(str) if with_callback else None
    desk.put(job, retry_policy_factory=policy)
    desk.work()
    assert (job.status, job.result, calls, counter.value) == (Status.COMPLETED, 1, [1], 1)
    assert callback is None or callback.result == "1"
    assert job._policy is None and job.ref in [job.ref for job in desk.agent.completed]
    assert desk.results[0] == str(job.ref)


def done_future(value: Any) -> Any:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_result(value)
    return future


@pytest.mark.spec("R11", "J8", "J9")
@pytest.mark.parametrize("made", [done_future, functools.partial(Job, int)])
@pytest.mark.parametrize("is_callback", [True, False])
def test_an_attempt_that_waits_and_whose_commit_raised_after_it_took_place_has_been_made(
    any_desk: Desk, made: Any, is_callback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    desk = any_desk
    counter = desk.root["counter"] = Counter()
    calls: list[int] = []

    def work(*told: Any) -> Any:
        calls.append(1)
        counter.add()
        if len(calls) == 1:
            lose_the_answer(desk, ClientDisconnected("lost"))
        return made(len(calls))

    job = waiting = Job(deed(work))
    if is_callback:
        waiting = Job(int)
        waiting.add_callback(job)
    desk.put(waiting)
    desk.work()
    assert (calls, counter.value, job.result) == ([1], 1, 1)
    assert waiting.status is Status.COMPLETED
    assert not [each for each in caplog.records if each.name == "perdure.events"]


@pytest.mark.spec("R11", "J8", "J5")
def test_by_hand_a_job_whose_commit_raised_after_it_took_place_waits_for_one_job(
    any_desk: Desk,
) -> None:
    desk = any_desk
    counter = desk.root["counter"] = Counter()

    def work() -> Any:
        if counter.add() == 1:
            lose_the_answer(desk, ClientDisconnected("lost"))
        return Job(int)

    job = desk.store(Job(deed(work)))
    inner = job()
    assert (counter.value, job.status, job._waits_for) == (1, Status.ACTIVE, (inner,))


@pytest.mark.spec("J9", "C9")
@pytest.mark.parametrize("after", [timedelta(0), MINUTE])
def test_what_a_future_brought_is_stored_again_where_the_policy_wants_a_retry(
    desk: Desk, after: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    errors = [OSError("no room"), OSError("still no room")]
    take = Runner._take_result

    def failing(runner: Runner, job: Job, result: Any) -> None:
        take(runner, job, result)
        if errors and result == 5:
            fail_commit(errors.pop(0))

    def work() -> Any:
        calls.append(1)
        return done_future(5)

    monkeypatch.setattr(Runner, "_take_result", failing)
    _answers.extend([Retry(after), Retry(after)])
    job = desk.put(Job(deed(work)), retry_policy_factory=AsTold)
    desk.work()
    assert (job.result, calls, errors) == (5, [1], [])
    assert [type(each) for each in _told] == [CommitErrored] * 2
    assert job._policy.data["times"] == 2


@pytest.mark.spec("R11")
def test_a_job_that_ends_its_own_transaction_in_doubt_is_asked_about_as_usual(
    any_desk: Desk,
) -> None:
    desk = any_desk
    counter = desk.root["counter"] = Counter()
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        if len(calls) == 1:
            counter.add()
            lose_the_answer(desk, ClientDisconnected("lost"))
            transaction.commit()

    job = desk.put(Job(deed(work)))
    desk.work()
    assert (len(calls), job.result, counter.value, desk.clock.waits) == (2, None, 1, [5])


@pytest.mark.spec("R11")
@pytest.mark.parametrize("step", ["_begin", "_complete", "_end"])
def test_every_other_stored_step_may_raise_after_it_took_place(
    any_desk: Desk, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = any_desk
    real = getattr(Job, step)
    lost: list[bytes | None] = []

    def method(job: Job, *args: Any) -> None:
        real(job, *args)
        if job._p_oid not in lost and job._p_jar is desk.connection:
            lost.append(job._p_oid)
            lose_the_answer(desk, ClientDisconnected("lost"))

    work = Failing(ValueError() if step == "_end" else ConflictError())
    job = Job(deed(work))
    told = Failing()
    callback = job.add_callback(deed(told))
    desk.put(job)
    monkeypatch.setattr(Job, step, method)
    desk.work()
    assert (job.status, callback.status, told.attempts) == (
        Status.COMPLETED,
        Status.COMPLETED,
        1,
    )
    assert work.attempts == (1 if step == "_end" else 2)
    assert len(lost) == 2


# A database that goes away.


@pytest.mark.spec("R2")
def test_a_job_goes_on_when_its_database_is_back(desk: Desk) -> None:
    counter = desk.root["counter"] = Counter()
    transaction.commit()
    storage = desk.connection._normal_storage
    failures = iter(range(3))
    real = storage.load

    def load(*args: Any) -> Any:
        for _ in failures:
            raise ClientDisconnected("away")
        return real(*args)

    def work() -> Any:
        desk.connection.cacheMinimize()
        storage.load = load
        return counter.add()

    job = desk.put(Job(deed(work)))
    desk.claim()
    desk.run(job)
    del storage.load
    assert (job.result, counter.value) == (1, 1)


def test_the_database_of_a_test_is_a_real_one(desk: Desk) -> None:
    assert isinstance(desk.database, ZODB.DB) and isinstance(desk.queue, Persistent)
