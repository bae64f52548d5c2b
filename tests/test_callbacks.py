"""Callbacks: called once with the job's result, whenever they were added."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import transaction
from transaction.interfaces import TransientError

from perdure.model import (
    AbortedError,
    BadStatusError,
    Failure,
    GiveUp,
    Job,
    JobTimeoutError,
    Reschedule,
    Retry,
    RetryCommonForever,
    RetryPolicy,
    Status,
    check,
)
from support.desk import Desk, deed

MINUTE = timedelta(minutes=1)

_records: list[Any] = []


@pytest.fixture(autouse=True)
def records() -> list[Any]:
    _records.clear()
    return _records


def fail(*args: Any) -> None:
    raise ValueError("no")


def record(*args: Any) -> Any:
    _records.append(args if len(args) > 1 else args[0])
    return args[-1]


# With what they are called.


@pytest.mark.spec("J20")
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_callback_is_called_with_the_result_whatever_it_is(desk: Desk, by_hand: bool) -> None:
    for callable_, args in ((abs, (-1,)), (fail, ())):
        job = Job(callable_, *args)
        callback = job.add_callback(record)
        if by_hand:
            desk.store(job)()
        else:
            desk.put(job)
            desk.work()
        assert callback.status is Status.COMPLETED
    assert _records[0] == 1 and _records[1].check(ValueError)


@pytest.mark.spec("J20")
def test_the_result_comes_after_the_callbacks_own_arguments(desk: Desk) -> None:
    job = Job(abs, -1)
    job.add_callback(Job(record, "a", "b"))
    desk.put(job)
    desk.work()
    assert _records == [("a", "b", 1)]


@pytest.mark.spec("J20")
@pytest.mark.parametrize(("callable_", "expected"), [(abs, ["success"]), (fail, ["failure"])])
def test_one_of_two_is_picked_by_the_outcome(
    desk: Desk, callable_: Any, expected: list[str]
) -> None:
    job = Job(callable_, -1)
    proxy = job.add_callbacks(success=Job(record, "success"), failure=Job(record, "failure"))
    assert (proxy.job, proxy.status, proxy.result) == (None, Status.NEW, None)
    desk.put(job)
    desk.work()
    assert [name for name, _ in _records] == expected
    assert proxy.job is (proxy.success if callable_ is abs else proxy.failure)
    assert proxy.job is not None
    assert (proxy.status, proxy.job.status) == (Status.COMPLETED, Status.COMPLETED)
    assert str(_records[0][1]) == str(job.result) == str(proxy.result)


@pytest.mark.spec("J20", "X15")
@pytest.mark.parametrize("result", [1, (), (1,), None])
def test_an_outcome_without_a_callback_passes_the_result_on_unchanged(
    desk: Desk, result: Any
) -> None:
    job = Job(deed(lambda: result))
    proxy = job.add_callbacks(failure=record)
    proxy.add_callback(record)
    desk.put(job)
    desk.work()
    assert (proxy.result, _records) == (result, [result])
    assert type(proxy.result) is type(result)


@pytest.mark.spec("J20")
def test_callbacks_can_have_callbacks_in_chains(desk: Desk) -> None:
    job = Job(operator.add, 1, 1)
    last = job.add_callback(operator.neg).add_callback(str).add_callback(record)
    proxy = job.add_callbacks(success=Job(operator.mul, 10), failure=str)
    after = proxy.add_callback(Job(operator.add, 1))
    assert proxy.success is not None
    inner = proxy.success.add_callback(Job(operator.add, 2))
    desk.put(job)
    desk.work()
    assert (last.result, proxy.result, after.result, inner.result) == ("-2", 20, 21, 22)


@pytest.mark.spec("J20")
def test_a_failure_can_be_put_right_by_a_callback(desk: Desk) -> None:
    job = Job(fail)
    proxy = job.add_callbacks(failure=Job(deed(lambda failure: "mended")))
    end = proxy.add_callbacks(success=str.upper)
    desk.put(job)
    desk.work()
    assert (job.failed, proxy.result, end.result) == (True, "mended", "MENDED")


@pytest.mark.spec("J21")
def test_all_callbacks_of_a_job_get_its_result_and_not_each_others(desk: Desk) -> None:
    job = Job(abs, -1)
    callbacks = [job.add_callback(operator.neg), job.add_callback(fail), job.add_callback(str)]
    desk.put(job)
    desk.work()
    assert callbacks[0].result == -1 and callbacks[1].failed and callbacks[2].result == "1"
    assert job.result == 1


@pytest.mark.spec("J20", "J22")
@pytest.mark.slow
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_chain_of_1500_callbacks_meets_no_limit(desk: Desk, by_hand: bool) -> None:
    job = last = Job(int)
    for _ in range(1500):
        last = last.add_callback(Job(operator.add, 1))
    if by_hand:
        desk.store(job)()
    else:
        desk.put(job)
        desk.run(desk.claim())
    assert last.result == 1500
    assert last.queue is (None if by_hand else desk.queue) and not last.forgotten
    assert sum(1 for _ in job.descendants()) == 1500


# Whenever they were added.


@pytest.mark.spec("J22")
def test_a_callback_runs_once_whenever_it_was_added_from_another_connection(desk: Desk) -> None:
    def add(moment: str) -> None:
        with desk.elsewhere() as connection:
            connection.get(job._p_oid).add_callback(Job(record, moment))

    attempts: list[int] = []

    def work() -> int:
        attempts.append(1)
        add("while it runs")
        return 5

    job = Job(deed(work))
    job.add_callback(deed(lambda result: add("while its callbacks run")))
    desk.put(job)
    add("while it waits")
    transaction.begin()
    desk.claim()
    add("before it began")
    desk.runner().run(job)
    add("after it was completed")
    transaction.begin()
    desk.settle()
    add("after it was settled")
    transaction.begin()
    assert job.status is Status.COMPLETED and attempts == [1]
    desk.work()
    assert sorted(moment for moment, _ in _records) == [
        "after it was completed",
        "after it was settled",
        "before it began",
        "while it runs",
        "while it waits",
        "while its callbacks run",
    ]
    assert {result for _, result in _records} == {5}
    assert len(desk.queue.side) == 0


@pytest.mark.spec("J22")
@pytest.mark.parametrize("callbacks_before", [0, 1])
@pytest.mark.parametrize("kind", ["job", "callback", "success", "by hand"])
def test_a_callback_that_is_added_in_the_instant_of_completion_runs_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, kind: str, callbacks_before: int
) -> None:
    calls: list[int] = []

    def add() -> None:
        with desk.elsewhere() as connection:
            found = connection.get(target._p_oid)
            assert found.status in (Status.ACTIVE, Status.CALLBACKS)
            found.add_callback(Job(record, "late"))

    job = target = Job(deed(lambda *args: calls.append(1)))
    if kind == "callback":
        job = Job(abs, 1)
        job.add_callback(target)
    elif kind == "success":
        job = Job(abs, 1)
        job.add_callbacks(success=target)
    for _ in range(callbacks_before):
        target.add_callback(str)

    real = Job._complete
    hooked: list[int] = []

    def complete(self: Job) -> None:
        real(self)
        if self is target and not hooked:
            hooked.append(1)
            add()

    monkeypatch.setattr(Job, "_complete", complete)
    if kind == "by hand":
        desk.store(job)()
    else:
        desk.put(job)
        desk.work()
    assert (hooked, calls, _records) == ([1], [1], [("late", None)])
    assert check(desk.database) == []


@pytest.mark.spec("J22")
def test_two_readings_of_the_status_cannot_both_win(desk: Desk) -> None:
    job = desk.put(Job(abs, 1))
    desk.claim()
    manager = transaction.TransactionManager()
    connection = desk.database.open(transaction_manager=manager)
    found = connection.get(job._p_oid)
    found.add_callback(record)
    desk.run(job)
    with pytest.raises(TransientError):
        manager.commit()
    manager.begin()
    found.add_callback(record)
    manager.commit()
    connection.close()
    desk.work()
    assert _records == [1]


@pytest.mark.spec("J22")
@pytest.mark.parametrize("by_hand", [True, False])
def test_adding_a_callback_does_not_make_the_running_jobs_commit_conflict(
    desk: Desk, by_hand: bool
) -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        job.add_callback(Job(record, "own"))
        with desk.elsewhere() as connection:
            connection.get(job._p_oid).add_callback(Job(record, "other"))

    job = Job(deed(work))
    if by_hand:
        desk.store(job)()
    else:
        desk.put(job)
        desk.work()
    assert (calls, _records) == ([1], [("own", None), ("other", None)])


@pytest.mark.spec("J22")
def test_two_adders_at_once_may_conflict_and_both_callbacks_run(desk: Desk) -> None:
    job = desk.put(Job(abs, 1))
    manager = transaction.TransactionManager()
    connection = desk.database.open(transaction_manager=manager)
    connection.get(job._p_oid).add_callback(record)
    with desk.elsewhere() as other:
        other.get(job._p_oid).add_callback(record)
    with pytest.raises(TransientError):
        manager.commit()
    manager.begin()
    connection.get(job._p_oid).add_callback(record)
    manager.commit()
    connection.close()
    transaction.begin()
    desk.work()
    assert _records == [1, 1]


@pytest.mark.spec("J22")
def test_a_callback_of_a_done_job_goes_to_the_queue_in_the_adders_transaction(
    desk: Desk,
) -> None:
    job = desk.put(Job(abs, -1))
    desk.work()
    callback = job.add_callback(record)
    proxy = job.add_callbacks(success=record)
    assert (callback.status, proxy.status, _records) == (Status.PENDING, Status.PENDING, [])
    transaction.abort()
    assert len(desk.queue) == 0
    callback = job.add_callback(record)
    callback.add_callback(record)
    job.add_callbacks(success=record)
    transaction.commit()
    desk.work()
    assert _records == [1, 1, 1]


@pytest.mark.spec("J22")
def test_a_late_callback_waits_for_its_own_begin_after(desk: Desk) -> None:
    job = desk.put(Job(abs, -1))
    desk.work()
    callback = Job(record)
    callback.begin_after = desk.clock.now() + MINUTE
    job.add_callback(callback)
    transaction.commit()
    desk.work()
    assert _records == []
    desk.clock.advance(MINUTE)
    desk.work()
    assert _records == [1]


@pytest.mark.spec("J22")
def test_a_callback_of_a_done_job_in_no_queue_is_refused_with_what_to_do(desk: Desk) -> None:
    job = desk.store(Job(abs, -1))
    job()
    callback = Job(record)
    with pytest.raises(BadStatusError, match="in no queue: call the callback with its result"):
        job.add_callback(callback)
    assert callback.status is Status.NEW and callback.parent is None


@pytest.mark.spec("J22")
def test_what_a_job_that_is_retried_adds_to_itself_runs_once(desk: Desk) -> None:
    attempts: list[int] = []

    def work() -> None:
        attempts.append(1)
        job.add_callback(record)
        if len(attempts) < 3:
            raise TransientError

    job = desk.put(Job(deed(work)))
    desk.work()
    assert (len(attempts), _records) == (3, [None])


@pytest.mark.spec("J22")
def test_the_alternative_that_was_not_chosen_takes_its_callbacks_with_it(desk: Desk) -> None:
    job = Job(abs, -1)
    proxy = job.add_callbacks(success=str, failure=str)
    desk.put(job)
    with desk.elsewhere() as connection:
        found = connection.get(proxy._p_oid)
        found.success.add_callback(Job(record, "success"))
        found.failure.add_callback(Job(record, "failure"))
    transaction.begin()
    desk.work()
    assert _records == [("success", "1")]
    assert len(desk.queue.side) == 0


# Failing, and policies.


@pytest.mark.spec("J23")
def test_a_failing_callback_is_logged_critical_and_the_others_run(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(abs, -1)
    job.add_callback(fail)
    job.add_callbacks(success=fail)
    job.add_callback(record)
    desk.put(job)
    desk.work()
    failed = [each for each in caplog.records if " failed:" in each.getMessage()]
    assert [(each.name, each.levelname) for each in failed] == [("perdure.events", "CRITICAL")] * 2
    assert all("ValueError: no" in each.getMessage() for each in failed)
    assert _records == [1] and job.status is Status.COMPLETED


@pytest.mark.spec("J24")
def test_callbacks_use_retry_common_forever(desk: Desk) -> None:
    attempts: list[int] = []

    def conflict(result: int) -> int:
        attempts.append(1)
        if len(attempts) < 30:
            raise TransientError
        return result

    job = Job(abs, -1)
    plain = job.add_callback(abs)
    chosen = job.add_callbacks(success=Job(deed(conflict)))
    assert type(plain.get_retry_policy()) is RetryCommonForever
    desk.put(job)
    desk.work()
    assert (chosen.result, len(attempts)) == (1, 30)
    assert chosen.job is not None and type(chosen.job._policy) is RetryCommonForever


@pytest.mark.spec("J24")
def test_a_late_callback_uses_retry_common_forever_too(desk: Desk) -> None:
    job = desk.put(Job(abs, -1))
    desk.work()
    assert type(job.add_callback(abs).get_retry_policy()) is RetryCommonForever


class GivesUp(RetryPolicy):
    def on_receive(self, message: Any) -> GiveUp:
        _records.append(message)
        return GiveUp()


@pytest.mark.spec("J24", "J15")
def test_a_callback_may_be_given_another_policy(desk: Desk) -> None:
    job = Job(abs, -1)
    callback = job.add_callback(fail, retry_policy_factory=GivesUp)
    proxy = job.add_callbacks(success=fail, retry_policy_factory=GivesUp)
    desk.put(job)
    desk.work()
    assert len(_records) == 2
    assert type(callback._policy) is GivesUp and proxy.job is not None
    assert type(proxy.job._policy) is GivesUp


# What cannot be a callback.


@pytest.mark.spec("J25")
def test_a_job_cannot_be_its_own_callback_nor_that_of_its_callback() -> None:
    job = Job(abs, 1)
    callback = job.add_callback(abs)
    deeper = callback.add_callback(abs)
    proxy = job.add_callbacks(success=abs)
    assert proxy.success is not None
    for each in (job, callback, deeper, proxy, proxy.success):
        with pytest.raises(BadStatusError, match="callback of itself"):
            each.add_callback(job)
        for outcome in ("success", "failure"):
            with pytest.raises(BadStatusError, match="callback of itself"):
                each.add_callbacks(**{outcome: job})
    assert job.callbacks == [callback, proxy]


@pytest.mark.spec("J25", "J4")
@pytest.mark.parametrize("by_outcome", [True, False])
def test_only_a_new_job_that_nobody_else_runs_can_be_a_callback(
    desk: Desk, by_outcome: bool
) -> None:
    pending, taken = desk.put(Job(abs, 1)), Job(abs, 1)
    Job(abs).add_callback(taken)
    job = Job(abs, 1)
    for refused in (pending, taken):
        with pytest.raises(BadStatusError, match="only a NEW job that nobody else runs"):
            if by_outcome:
                job.add_callbacks(success=refused)
            else:
                job.add_callback(refused)
    both = Job(abs)
    with pytest.raises(BadStatusError, match="cannot be both"):
        job.add_callbacks(success=both, failure=both)
    assert both.parent is None and job.callbacks == []


@pytest.mark.spec("J25")
def test_a_callback_cannot_be_put_nor_put_back(desk: Desk) -> None:
    job = Job(abs, 1)
    callback = job.add_callback(abs)
    desk.put(job)
    with pytest.raises(BadStatusError, match="is a callback of another job"):
        desk.queue.put(callback)
    with pytest.raises(BadStatusError, match="is a callback of another job"):
        desk.queue.put_back(callback)


# Deadlines.


def advance(desk: Desk, duration: timedelta) -> Callable[..., Any]:
    return deed(lambda *args: desk.clock.advance(duration))


@pytest.mark.spec("J26")
@pytest.mark.parametrize("by_outcome", [True, False])
def test_a_callback_past_its_deadline_is_failed_on_the_first_pass(
    desk: Desk, caplog: pytest.LogCaptureFixture, by_outcome: bool
) -> None:
    job = Job(advance(desk, 5 * MINUTE))  # counts from the end of the call, so this is no matter
    job.add_callback(record, begin_by=MINUTE)
    job.add_callback(advance(desk, 2 * MINUTE))
    late = Job(record, "late")
    late.begin_by = MINUTE
    if by_outcome:
        job.add_callbacks(success=late)
    else:
        job.add_callback(late)
    told = late.add_callback(Job(record, "told"))
    desk.put(job)
    desk.work()
    assert late.result.check(JobTimeoutError) and late.status is Status.COMPLETED
    assert [str(each) for each in _records] == ["None", str(("told", late.result))]
    assert str(told.result) == str(late.result)
    assert [each.levelname for each in caplog.records if "has expired" in each.getMessage()] == [
        "ERROR"
    ]
    assert late.active_start is None


@pytest.mark.spec("J26")
def test_a_proxy_past_its_deadline_is_failed_and_neither_of_the_two_runs(desk: Desk) -> None:
    job = Job(abs, 1)
    job.add_callback(advance(desk, 2 * MINUTE))
    proxy = job.add_callbacks(success=record, failure=record)
    proxy.begin_by = MINUTE
    desk.put(job)
    desk.work()
    assert proxy.result.check(JobTimeoutError) and _records == []


@pytest.mark.spec("J26")
def test_the_deadline_of_a_callback_with_a_begin_after_counts_from_that(desk: Desk) -> None:
    job = Job(abs, 1)
    job.add_callback(advance(desk, 2 * MINUTE))
    callback = Job(record)
    callback.begin_after = desk.clock.now() + 5 * MINUTE
    callback.begin_by = MINUTE
    job.add_callback(callback)
    desk.put(job)
    desk.work()
    assert _records == [1]


# Interruptions.


def interrupted_in_callbacks(desk: Desk, by_hand: bool, callbacks: Callable[[Job], Any]) -> Job:
    """Make a job that lost its worker in CALLBACKS."""
    job = Job(abs, -1)
    if by_hand:
        desk.store(job)
    else:
        desk.put(job)
        desk.claim()
    job._begin()
    job._end(1)
    callbacks(job)
    transaction.commit()
    return job


def resume(desk: Desk, job: Job, by_hand: bool) -> None:
    if by_hand:
        job.resume_callbacks()
    else:
        desk.lose(job)
        transaction.begin()
        assert check(desk.database) == []
        desk.work()
    assert job.status is Status.COMPLETED


@pytest.mark.spec("J26")
@pytest.mark.parametrize("by_hand", [True, False])
def test_resuming_runs_what_was_not_run_and_leaves_alone_what_was(
    desk: Desk, by_hand: bool
) -> None:
    def callbacks(job: Job) -> None:
        done, inside, new = (Job(record, name) for name in ("done", "inside", "new"))
        job._callbacks = []
        for each in (done, inside, new):
            each._parent = job
            job._callbacks = [*job._callbacks, each]
        for each in (done, inside):
            desk.connection.add(each)
            each._begin()
            each._end(None)
        inside._callbacks = [Job(record, "deeper")]
        inside._callbacks[0]._parent = inside
        done._complete()

    job = interrupted_in_callbacks(desk, by_hand, callbacks)
    resume(desk, job, by_hand)
    assert _records == [("deeper", None), ("new", 1)]
    assert all(each.status is Status.COMPLETED for each in job.descendants())


class AsTold(RetryPolicy):
    decision: Any = GiveUp()

    def on_receive(self, message: Any) -> Any:
        _records.append(type(message).__name__)
        return self.decision


class RetriesLater(AsTold):
    decision = Retry(MINUTE)


class Reschedules(AsTold):
    decision = Reschedule(MINUTE)


@pytest.mark.spec("J26", "R7", "X12")
@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize(
    ("policy", "records_", "level"),
    [
        (AsTold, ["Interrupted"], None),
        (RetriesLater, ["Interrupted", 1], None),
        (Reschedules, ["Interrupted", 1], "ERROR"),
        (None, [1], None),
    ],
)
def test_a_callback_that_was_active_is_put_to_its_policy(
    desk: Desk,
    caplog: pytest.LogCaptureFixture,
    by_hand: bool,
    policy: Any,
    records_: list[Any],
    level: str | None,
) -> None:
    def callbacks(job: Job) -> None:
        active = Job(record)
        active._parent = job
        active.retry_policy_factory = policy
        job._callbacks = [active]
        desk.connection.add(active)
        active._begin()

    job = interrupted_in_callbacks(desk, by_hand, callbacks)
    resume(desk, job, by_hand)
    [callback] = job.callbacks
    assert _records == records_
    if policy is AsTold:
        assert isinstance(callback.result, Failure) and callback.result.check(AbortedError)
    else:
        assert callback.result == 1
    expected = [level] if level else []
    assert [
        each.levelname for each in caplog.records if "instead of at" in each.getMessage()
    ] == expected


@pytest.mark.spec("J26")
def test_an_interrupted_proxy_goes_on_with_the_one_that_it_had_chosen(desk: Desk) -> None:
    def callbacks(job: Job) -> None:
        proxy = job.add_callbacks(success=Job(record, "success"))
        transaction.savepoint()
        proxy._begin()
        proxy.choose()
        assert proxy.job is not None
        proxy.job._begin()

    job = interrupted_in_callbacks(desk, False, callbacks)
    resume(desk, job, False)
    [proxy] = job.callbacks
    assert (_records, proxy.result) == ([("success", 1)], 1)


@pytest.mark.spec("J26")
def test_resuming_outside_of_callbacks_is_refused(desk: Desk) -> None:
    job = desk.store(Job(abs, 1))
    for status in (Status.NEW, Status.ACTIVE, None, Status.COMPLETED):
        if status is not None:
            job._status_name = status.value
            with pytest.raises(BadStatusError, match=f"is {status.name}; .* needs CALLBACKS"):
                job.resume_callbacks(commit=True)
    transaction.abort()


@pytest.mark.spec("J26", "D14")
@pytest.mark.parametrize("status", [Status.ACTIVE, Status.CALLBACKS])
def test_a_worker_that_is_given_a_job_in_the_middle_goes_on_from_there(
    desk: Desk, status: Status, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    job = Job(record, 5)
    job.add_callback(Job(record, "told"))
    desk.put(job)
    desk.claim()
    job._begin()
    if status is Status.CALLBACKS:
        job._end(7)
    transaction.commit()
    desk.run(job)
    assert check(desk.database) == []
    desk.work()
    assert _records == ([("told", 7)] if status is Status.CALLBACKS else [5, ("told", 5)])
