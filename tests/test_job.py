"""The job itself: arguments, settings, moments, annotations, its text, and failing it."""

from __future__ import annotations

import datetime
import logging
import operator
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import transaction

from perdure.model import (
    BadStatusError,
    Failure,
    Job,
    JobTimeoutError,
    NotStorableError,
    Reschedule,
    RetryPolicy,
    Status,
    check,
    environment,
    local,
)
from support.desk import Counter, Desk, deed, fail_commit

HOUR = timedelta(hours=1)
NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


class Postpone(RetryPolicy):
    when: Any = HOUR

    def on_receive(self, message: Any) -> Reschedule:
        return Reschedule(self.when)


class PostponeNaively(Postpone):
    when = datetime.datetime(2026, 1, 1, 6)


def fail() -> None:
    raise ValueError("no")


# Arguments.


@pytest.mark.spec("J3")
def test_arguments_can_be_read_and_changed_in_place_until_the_job_is_active(desk: Desk) -> None:
    job = desk.queue.put(Job(operator.add, 1))
    job.args.append(2)
    job.args[0] = 5
    job.kwargs["x"] = 1
    del job.kwargs["x"]
    transaction.commit()
    desk.work()
    assert (list(job.args), dict(job.kwargs), job.result) == ([5, 2], {}, 7)


@pytest.mark.spec("J3")
def test_arguments_can_be_replaced_as_a_whole() -> None:
    job = Job(dict, [("a", 1)], b=2)
    job.args = [[("c", 3)]]
    job.kwargs = {"d": 4}
    assert (job.args, job.kwargs) == ([[("c", 3)]], {"d": 4})
    assert job() == {"c": 3, "d": 4}


@pytest.mark.spec("J3")
@pytest.mark.parametrize(
    "change",
    [
        lambda job: job.args.append(1),
        lambda job: job.args.clear(),
        lambda job: job.args.__setitem__(0, 1),
        lambda job: setattr(job, "args", []),
        lambda job: job.kwargs.update(a=1),
        lambda job: setattr(job, "kwargs", {}),
    ],
)
def test_changing_the_arguments_of_a_job_that_has_begun_is_refused(
    desk: Desk, change: Callable[[Job], object]
) -> None:
    job = desk.queue.put(Job(abs, -1))
    transaction.commit()
    desk.work()
    with pytest.raises(BadStatusError, match="is COMPLETED.*NEW or PENDING or ASSIGNED"):
        change(job)
    assert list(job.args) == [-1]


@pytest.mark.spec("J3")
def test_a_running_job_cannot_change_its_own_arguments(desk: Desk) -> None:
    job = desk.put(Job(deed(lambda: local.get_job().args.append(1))))
    desk.work()
    assert job.result.check(BadStatusError)


@pytest.mark.spec("J3")
def test_arguments_may_be_persistent_objects_and_jobs_also_the_job_itself(desk: Desk) -> None:
    counter, other = Counter(), Job(abs, 1)
    seen: list[Any] = []
    job = Job(deed(lambda *args, **kwargs: seen.extend([*args, kwargs])), counter, k=[other])
    job.args.append(job)
    desk.put(job)
    desk.work()
    assert seen == [counter, job, {"k": [other]}]


@pytest.mark.spec("J3")
def test_what_an_attempt_does_to_its_arguments_is_not_seen_by_the_next(desk: Desk) -> None:
    seen: list[Any] = []

    def spoil(items: list[int], *, more: dict[str, Any]) -> None:
        seen.append((list(items), dict(more)))
        items.append(9)
        more["lock"] = threading.Lock()
        transaction.commit()
        if len(seen) < 3:
            raise transaction.interfaces.TransientError

    job = desk.put(Job(deed(spoil), [1], more={"a": 1}))
    desk.work()
    assert seen == [([1], {"a": 1})] * 3
    assert job.args[-1] == [1] and not job.failed


@pytest.mark.spec("J3")
def test_a_job_that_was_never_stored_gets_fresh_arguments_at_each_attempt_too() -> None:
    seen: list[Any] = []

    def spoil(items: list[int]) -> None:
        seen.append(list(items))
        items.append(9)
        if len(seen) < 3:
            raise transaction.interfaces.TransientError

    Job(deed(spoil), [1])()
    assert seen == [[1]] * 3


@pytest.mark.spec("J2")
def test_a_deep_change_that_fails_the_commit_names_the_job_and_the_argument(desk: Desk) -> None:
    items: list[Any] = []
    job = desk.queue.put(Job(print, 1, items))
    items.append(lambda: None)
    with pytest.raises(NotStorableError, match=r"builtins:print\(.*argument 1 cannot be stored"):
        transaction.commit()
    transaction.abort()
    assert job.args[0] == 1
    assert len(desk.queue) == 0


@pytest.mark.spec("J2")
def test_arguments_that_are_too_large_are_refused_with_the_advice_to_use_a_blob(
    desk: Desk,
) -> None:
    with pytest.raises(NotStorableError, match="blob"):
        Job(len, b"x" * 1_000_001)
    environment(desk.database).argument_limit_bytes = 100
    with pytest.raises(NotStorableError, match="more than the 100 allowed"):
        desk.queue.put(Job(len, b"x" * 200))
    job = desk.put(Job(len, b"x"))
    with pytest.raises(NotStorableError, match="blob"):
        job.args[0] = b"x" * 200
    assert job.args == [b"x"] and len(desk.queue) == 1


@pytest.mark.spec("J2")
def test_a_limit_that_was_lowered_does_not_keep_a_job_from_ending(desk: Desk) -> None:
    job = desk.put(Job(len, ["x" * 200]))
    environment(desk.database).argument_limit_bytes = 100
    desk.work()
    assert (job.result, desk.clock.waits) == (1, [])


# Status.


@pytest.mark.spec("J4")
@pytest.mark.parametrize("name", ["status", "result", "active_start", "queue", "agent"])
def test_status_and_result_are_read_only(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(Job(abs, 1), name, None)


@pytest.mark.spec("J4")
def test_pending_and_assigned_follow_from_where_the_job_is(desk: Desk) -> None:
    job = Job(abs, -1)
    seen = [job.status]
    desk.put(job)
    seen.append(job.status)
    desk.queue.remove(job)
    seen.append(job.status)
    desk.put(job)
    desk.claim()
    seen.append(job.status)
    assert seen == [Status.NEW, Status.PENDING, Status.NEW, Status.ASSIGNED]
    assert job._status_name == "new"


@pytest.mark.spec("J4")
def test_a_job_goes_through_its_states_in_order(desk: Desk) -> None:
    seen: list[str] = []

    def look() -> None:
        seen.append(job.status.name)

    job = Job(deed(look))
    job.add_callback(deed(lambda result: look()))
    look()
    desk.put(job)
    look()
    desk.claim()
    look()
    desk.run(job)
    look()
    assert seen == ["NEW", "PENDING", "ASSIGNED", "ACTIVE", "CALLBACKS", "COMPLETED"]


# When.


@pytest.mark.spec("J10")
def test_begin_after_is_kept_in_utc(desk: Desk) -> None:
    job = Job(abs, 1)
    job.begin_after = NOON.astimezone(datetime.timezone(timedelta(hours=5)))
    desk.store(job)
    assert job.begin_after == NOON
    assert job.begin_after.utcoffset() == timedelta(0)


@pytest.mark.spec("J10")
def test_naive_moments_are_refused(desk: Desk) -> None:
    naive = datetime.datetime(2026, 1, 1)
    job = Job(abs, 1)
    with pytest.raises(ValueError, match="time zone"):
        job.begin_after = naive
    with pytest.raises(ValueError, match="time zone"):
        desk.queue.put(job, begin_after=naive)
    assert (job.status, len(desk.queue)) == (Status.NEW, 0)


@pytest.mark.spec("J10")
def test_begin_by_is_a_duration_of_zero_or_more(desk: Desk) -> None:
    job = Job(abs, 1)
    assert job.begin_by is None
    with pytest.raises(ValueError, match="negative"):
        job.begin_by = timedelta(seconds=-1)
    with pytest.raises(ValueError, match="negative"):
        desk.queue.put(job, begin_by=timedelta(seconds=-1))
    with pytest.raises(TypeError):
        job.begin_by = 5  # type: ignore[assignment]
    job.begin_by = timedelta(0)
    assert (job.begin_by, job.status) == (timedelta(0), Status.NEW)


@pytest.mark.spec("J10")
def test_begin_after_is_settable_in_new_and_begin_by_in_new_and_pending(desk: Desk) -> None:
    job = desk.put(Job(abs, 1), begin_after=NOON)
    with pytest.raises(BadStatusError, match="is PENDING; setting begin_after needs NEW"):
        job.begin_after = NOON
    job.begin_by = HOUR
    transaction.commit()
    assert job.deadline == NOON + HOUR
    desk.clock.advance(timedelta(days=1) / 2)
    desk.claim()
    with pytest.raises(BadStatusError, match="is ASSIGNED; setting begin_by needs NEW or PEND"):
        job.begin_by = None


@pytest.mark.spec("J10")
@pytest.mark.parametrize(
    ("factory", "when"),
    [(Postpone, NOON - timedelta(hours=11)), (PostponeNaively, NOON - timedelta(hours=6))],
)
def test_rescheduling_for_later_moves_begin_after_and_the_deadline(
    desk: Desk, factory: Any, when: datetime.datetime
) -> None:
    job = desk.put(Job(fail), begin_by=HOUR / 2, retry_policy_factory=factory)
    desk.run(desk.claim())
    assert job.status is Status.PENDING
    assert (job.begin_after, job.deadline) == (when, when + HOUR / 2)


@pytest.mark.spec("J11")
def test_quota_names_are_a_tuple_of_texts() -> None:
    job = Job(abs, 1)
    for wrong in ("disk", b"disk", [1], 5):
        with pytest.raises(TypeError):
            job.quota_names = wrong  # type: ignore[assignment]
    job.quota_names = ["disk"]  # type: ignore[assignment]
    assert job.quota_names == ("disk",)


@pytest.mark.spec("J11")
def test_unknown_quotas_are_refused_when_put_and_when_set_while_pending(desk: Desk) -> None:
    job = Job(abs, 1)
    job.quota_names = ("disk",)
    with pytest.raises(ValueError, match="disk"):
        desk.queue.put(job)
    desk.queue.quotas.create("disk")
    desk.put(job)
    with pytest.raises(ValueError, match="net"):
        job.quota_names = ("disk", "net")
    job.quota_names = ()
    job.quota_names = ("disk",)
    transaction.commit()
    desk.claim()
    with pytest.raises(BadStatusError, match="is ASSIGNED"):
        job.quota_names = ()
    assert job in desk.queue.quotas["disk"]


@pytest.mark.spec("J12")
def test_the_moments_of_a_life_are_aware_and_in_utc(desk: Desk) -> None:
    minute = timedelta(minutes=1)
    start = desk.clock.now()
    job = Job(deed(lambda: desk.clock.advance(minute)))
    job.add_callback(deed(lambda result: desk.clock.advance(minute)))
    assert (job.active_start, job.active_end, job.callbacks_end) == (None, None, None)
    desk.put(job)
    desk.work()
    moments = (job.active_start, job.active_end, job.callbacks_end)
    assert moments == (start, start + minute, start + 2 * minute)
    assert all(each is not None and each.utcoffset() == timedelta(0) for each in moments)


@pytest.mark.spec("J12")
def test_the_start_is_forgotten_by_a_reschedule_and_by_an_interruption(desk: Desk) -> None:
    rescheduled = desk.put(Job(fail), retry_policy_factory=Postpone)
    desk.run(desk.claim())
    interrupted = desk.put(Job(abs, 1))
    desk.claim()._begin()
    transaction.commit()
    assert interrupted.active_start is not None
    desk.lose(interrupted)
    transaction.begin()
    desk.run(desk.claim())
    assert interrupted.status is Status.PENDING
    assert (rescheduled.active_start, interrupted.active_start) == (None, None)


# Annotations.


@pytest.mark.spec("J13")
def test_annotations_are_a_mapping_that_is_stored(desk: Desk) -> None:
    job = Job(abs, 1)
    job.annotations["a"] = 1
    job.annotations["b"] = 2
    del job.annotations["b"]
    desk.put(job)
    with desk.elsewhere() as connection:
        found = connection.get(job._p_oid).annotations
        assert (dict(found), len(found), "b" in found) == ({"a": 1}, 1, False)
        with pytest.raises(KeyError):
            del found["b"]
        with pytest.raises(NotStorableError, match="annotation 'f'"):
            found["f"] = lambda: None


@pytest.mark.spec("J13")
@pytest.mark.parametrize("in_a_queue", [True, False])
def test_annotations_from_outside_do_not_disturb_the_job_that_runs(
    desk: Desk, in_a_queue: bool
) -> None:
    attempts: list[Any] = []

    def work() -> None:
        attempts.append(dict(job.annotations))
        job.annotations["from"] = "job"
        job.annotations["mine"] = 1
        desk.clock.advance(HOUR)
        with desk.elsewhere() as connection:
            other = connection.get(job._p_oid)
            other.annotations["from"] = "outside"
            other.annotations["theirs"] = len(other.annotations)

    job = Job(deed(work))
    if in_a_queue:
        desk.put(job)
        desk.work()
    else:
        desk.store(job)()
    assert attempts == [{}]
    assert dict(job.annotations) == {"from": "outside", "mine": 1, "theirs": 1}


@pytest.mark.spec("J13")
def test_annotations_from_outside_are_kept_at_every_moment_of_a_jobs_life(desk: Desk) -> None:
    def annotate(name: str) -> None:
        with desk.elsewhere() as connection:
            connection.get(job._p_oid).annotations[name] = True

    names = ["pending", "assigned", "active", "callbacks", "completed", "settled"]
    job = Job(deed(lambda: annotate("active")))
    job.add_callback(deed(lambda result: annotate("callbacks")))
    desk.put(job)
    annotate("pending")
    transaction.begin()
    desk.claim()
    annotate("assigned")
    desk.runner().run(job)
    annotate("completed")
    transaction.begin()
    desk.settle()
    annotate("settled")
    transaction.begin()
    assert sorted(job.annotations) == sorted(names)
    assert len(desk.queue.side) == 0


@pytest.mark.spec("J13")
def test_an_annotation_is_not_lost_in_the_instant_in_which_the_job_is_settled(desk: Desk) -> None:
    job = desk.put(Job(abs, 1))
    with desk.elsewhere() as connection:
        connection.get(job._p_oid).annotations["early"] = 1
    transaction.begin()
    desk.claim()
    manager = transaction.TransactionManager()
    connection = desk.database.open(transaction_manager=manager)
    found = connection.get(job._p_oid)
    assert found.status is Status.ASSIGNED
    found.annotations["late"] = 2
    desk.run(job)
    with pytest.raises(transaction.interfaces.TransientError):
        manager.commit()
    manager.begin()
    found.annotations["late"] = 2
    manager.commit()
    connection.close()
    transaction.begin()
    assert dict(job.annotations) == {"early": 1, "late": 2}


# What is logged, and which policy.


@pytest.mark.spec("J15")
@pytest.mark.parametrize(
    ("own", "argument", "expected"),
    [(None, None, "ERROR"), (logging.INFO, None, "INFO"), (logging.INFO, 30, "WARNING")],
)
def test_the_log_level_is_the_argument_else_the_jobs_own_else_error(
    desk: Desk,
    caplog: pytest.LogCaptureFixture,
    own: int | None,
    argument: int | None,
    expected: str,
) -> None:
    caplog.set_level(1)
    job = Job(fail)
    job.failure_log_level = own
    desk.put(job, failure_log_level=argument)
    desk.work()
    assert levels(caplog, "ValueError: no") == [expected]


@pytest.mark.spec("J15", "J23")
@pytest.mark.parametrize(
    ("own", "argument", "expected"),
    [(None, None, "CRITICAL"), (logging.INFO, None, "INFO"), (logging.INFO, 30, "WARNING")],
)
@pytest.mark.parametrize("by_outcome", [True, False])
def test_the_log_level_of_a_callback_is_the_argument_else_its_own_else_critical(
    desk: Desk,
    caplog: pytest.LogCaptureFixture,
    own: int | None,
    argument: int | None,
    expected: str,
    by_outcome: bool,
) -> None:
    caplog.set_level(1)
    job = Job(abs, 1)
    callback = Job(deed(lambda result: fail()))
    callback.failure_log_level = own
    if by_outcome:
        job.add_callbacks(success=callback, failure_log_level=argument)
    else:
        job.add_callback(callback, failure_log_level=argument)
    desk.put(job)
    desk.work()
    assert levels(caplog, "ValueError: no") == [expected]


@pytest.mark.spec("J15")
def test_a_failure_that_merely_passes_through_is_logged_once(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(fail)
    proxy = job.add_callbacks(success=abs)
    desk.put(job)
    desk.work()
    assert proxy.result.check(ValueError)
    assert levels(caplog, "ValueError: no") == ["ERROR"]


def levels(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [
        record.levelname
        for record in caplog.records
        if record.name == "perdure.events" and text in record.getMessage()
    ]


@pytest.mark.spec("J15")
@pytest.mark.parametrize("wrong", ["ERROR", True, 1.5])
def test_a_log_level_that_is_none_is_refused(desk: Desk, wrong: Any) -> None:
    with pytest.raises(TypeError):
        desk.queue.put(Job(abs, 1), failure_log_level=wrong)
    assert len(desk.queue) == 0


@pytest.mark.spec("J15")
def test_a_refused_callback_is_left_as_it_was() -> None:
    job, pending = Job(abs, 1), Job(abs, 2)
    pending.add_callback(job)
    with pytest.raises(BadStatusError):
        Job(abs).add_callback(job, failure_log_level=10)
    assert job.failure_log_level is None and job.parent is pending


# Its text.


class Shy:
    def __init__(self, error: type[BaseException] = RuntimeError) -> None:
        self._error = error

    def __repr__(self) -> str:
        raise self._error("no repr")


@pytest.mark.spec("J16")
def test_the_repr_shows_oid_database_and_the_call(desk: Desk) -> None:
    job = desk.put(Job(operator.add, 1, b=[2]))
    assert repr(job) == f"<Job {job.ref.oid:x} (database 'unnamed') _operator:add(1, b=[2])>"
    assert repr(Job(desk.store(Job(Counter()))._callable[0].add)) == (
        "<Job (not stored) support.desk:Counter.add()>"
    )


@pytest.mark.spec("J16")
@pytest.mark.parametrize("error", [RuntimeError, SystemExit, GeneratorExit])
def test_the_repr_never_raises(desk: Desk, error: type[BaseException]) -> None:
    job = Job(abs, Shy(error), "x" * 1000)
    assert "<Shy that has no repr>" in repr(job)
    assert len(repr(job)) < 300
    desk.store(job)
    job._p_invalidate()
    desk.connection._storage = None  # as after a lost connection, the record cannot be loaded
    assert repr(job) == "<Job that cannot be read>"
    del desk.connection._storage
    desk.connection._storage = desk.connection._normal_storage


@pytest.mark.spec("J16")
def test_the_repr_of_jobs_that_hold_each_other_ends(desk: Desk) -> None:
    first, second = Job(abs), Job(abs)
    first.args = [[second] * 30, second, first]
    second.args = [[first] * 30, first, second]
    assert repr(first).count("<this job>") == 1
    assert len(repr(first)) < 300


# Failing it.


@pytest.mark.spec("J17")
def test_a_new_job_that_is_failed_ends_with_a_timeout_or_the_error_given() -> None:
    job, other = Job(abs, 1), Job(abs, 1)
    job.fail()
    other.fail(KeyError("k"))
    assert job.status is other.status is Status.COMPLETED
    assert isinstance(job.result, Failure) and job.result.check(JobTimeoutError)
    assert other.result.check(KeyError)
    assert job.active_start is None and job.active_end is not None


@pytest.mark.spec("J17", "Q7")
@pytest.mark.parametrize("ended_by", ["fail", "deadline"])
def test_a_job_that_ends_without_being_claimed_keeps_none_of_those_before_it(
    desk: Desk, ended_by: str
) -> None:
    jobs = [desk.queue.put(Job(abs, n), begin_by=timedelta(minutes=1)) for n in range(3)]
    transaction.commit()
    assert jobs[2]._previous is not None
    if ended_by == "fail":
        for job in jobs:
            job.fail()
        transaction.commit()
    else:
        desk.clock.advance(timedelta(hours=1))
    desk.work()
    assert [job.failed for job in jobs] == [True] * 3
    assert [job._previous for job in jobs] == [None] * 3


@pytest.mark.spec("J17")
def test_failing_a_new_job_runs_its_callbacks(desk: Desk) -> None:
    told: list[Any] = []
    job = Job(abs, 1)
    job.add_callback(deed(told.append))
    desk.store(job).fail()
    assert job.status is Status.COMPLETED and told == [job.result]


@pytest.mark.spec("J17", "J5")
def test_failing_a_new_job_with_callbacks_does_not_commit_changes_unasked(desk: Desk) -> None:
    job = Job(abs, 1)
    job.add_callback(abs)
    desk.store(job)
    desk.root["x"] = 1
    with pytest.raises(BadStatusError, match="commit=True"):
        job.fail()
    assert job.status is Status.NEW
    job.fail(commit=True)
    assert job.status is Status.COMPLETED and desk.root["x"] == 1


@pytest.mark.spec("J17", "J12")
def test_failing_a_pending_job_takes_it_out_of_its_queue_and_frees_its_quotas(
    desk: Desk,
) -> None:
    told: list[Any] = []
    quota = desk.queue.quotas.create("disk")
    job = Job(abs, 1)
    job.quota_names = ("disk",)
    job.add_callback(deed(told.append))
    desk.put(job)
    job.fail()
    transaction.commit()
    assert job.status is Status.CALLBACKS and job not in list(desk.queue)
    assert job.active_end == desk.clock.now()
    assert check(desk.database) == []
    desk.work()
    assert job.status is Status.COMPLETED and told == [job.result]
    assert list(desk.agent.completed) == [job] and len(quota) == 0


@pytest.mark.spec("J17")
def test_failing_an_assigned_job_frees_its_place_and_completes_it(desk: Desk) -> None:
    told: list[Any] = []
    quota = desk.queue.quotas.create("disk")
    job = Job(abs, 1)
    job.quota_names = ("disk",)
    job.add_callback(deed(told.append))
    desk.put(job)
    desk.claim()
    job.fail()
    transaction.commit()
    assert job.status is Status.CALLBACKS and len(quota) == 0
    desk.settle()
    assert len(desk.agent) == 0
    desk.work()
    assert job.status is Status.COMPLETED and told == [job.result]
    assert list(desk.agent.completed) == [job]


@pytest.mark.spec("J17")
def test_failing_an_active_or_completed_job_is_refused(desk: Desk) -> None:
    def fail_itself() -> None:
        with pytest.raises(BadStatusError, match="is ACTIVE; failing it needs"):
            local.get_job().fail()

    job = desk.put(Job(deed(fail_itself)))
    desk.work()
    assert not job.failed
    with pytest.raises(BadStatusError, match="is COMPLETED; failing it needs"):
        job.fail()


@pytest.mark.spec("J17")
def test_failing_a_job_in_callbacks_resumes_them(desk: Desk) -> None:
    job = Job(abs, -1)
    callback = job.add_callback(operator.neg)
    desk.store(job)
    job._begin()
    job._end(1)
    transaction.commit()
    job.fail()
    assert (job.status, job.result, callback.result) == (Status.COMPLETED, 1, -1)


@pytest.mark.spec("J17")
def test_a_callback_that_was_failed_is_not_run_and_its_own_callbacks_are(desk: Desk) -> None:
    told: list[Any] = []
    job = Job(abs, 1)
    callback = job.add_callback(deed(told.append))
    callback.add_callback(deed(told.append))
    desk.put(job)
    callback.fail(KeyError())
    transaction.commit()
    desk.work()
    assert told == [callback.result] and callback.result.check(KeyError)
    assert callback.status is Status.COMPLETED


@pytest.mark.spec("J17")
def test_a_callback_that_is_failed_while_its_worker_begins_it_ends_the_parent(desk: Desk) -> None:
    def fail_it() -> None:
        with desk.elsewhere() as connection:
            connection.get(callback._p_oid).fail(KeyError())

    job = Job(abs, 1)
    callback = job.add_callback(deed(lambda result: None))
    desk.put(job)
    desk.claim()
    real_begin = Job._begin
    with pytest.MonkeyPatch.context() as patch:

        def begin(self: Job) -> None:
            if self is callback:
                patch.setattr(Job, "_begin", real_begin)
                fail_it()
            real_begin(self)

        patch.setattr(Job, "_begin", begin)
        desk.run(job)
    assert job.status is Status.COMPLETED
    assert callback.result.check(KeyError)


# Begun or not.


@pytest.mark.spec("J18")
def test_a_callable_begins_only_after_a_commit_that_says_so(desk: Desk) -> None:
    seen: list[Any] = []

    def look() -> None:
        with desk.elsewhere() as connection:
            found = connection.get(local.get_job()._p_oid)
            seen.append((found.status, found.active_start))

    job = Job(deed(look))
    job.add_callback(deed(lambda result: look()))
    desk.put(job)
    desk.work()
    assert seen == [(Status.ACTIVE, desk.clock.now())] * 2


@pytest.mark.spec("J18")
def test_a_job_whose_beginning_cannot_be_committed_does_not_begin(desk: Desk) -> None:
    calls: list[int] = []
    job = desk.put(Job(deed(calls.append), 1))
    desk.claim()
    real_begin = Job._begin
    failures = iter([OSError("full"), OSError("full")])

    def begin(self: Job) -> None:
        real_begin(self)
        assert calls == []
        for error in failures:
            fail_commit(error)
            break

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "_begin", begin)
        desk.run(job)
    assert calls == [1] and desk.clock.waits == [5, 10]


@pytest.mark.spec("J18")
def test_a_claimed_job_that_had_not_begun_is_not_counted_as_interrupted(desk: Desk) -> None:
    asked: list[Any] = []

    class Asked(RetryPolicy):
        def on_receive(self, message: Any) -> Any:
            asked.append(message)

    job = desk.put(Job(abs, 1))
    for _ in range(20):
        desk.claim()
        desk.lose(job)
        transaction.begin()
        assert job.status is Status.PENDING
    desk.work()
    assert (job.result, asked, job._policy) == (1, [], None)
