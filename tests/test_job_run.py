"""Running a job: by hand and by a worker's runner, its one commit, its fence, its hooks."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import transaction
import ZODB
from transaction.interfaces import DoomedTransaction, TransientError
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError

from perdure.model import (
    BadStatusError,
    Failure,
    GiveUp,
    Job,
    NotStorableError,
    ReassignedError,
    Reschedule,
    RetryPolicy,
    Status,
    StopRequested,
    check,
    local,
)
from support.desk import Counter, Desk, PassingClock, deed, fail_commit

HOUR = timedelta(hours=1)


class Postpone(RetryPolicy):
    when: Any = HOUR

    def on_receive(self, message: Any) -> Reschedule:
        return Reschedule(self.when)


class FirstInLine(Postpone):
    when = timedelta(0)


def fail(*args: Any) -> None:
    raise ValueError("no")


@pytest.fixture
def counter(desk: Desk) -> Counter:
    made = desk.root["counter"] = Counter()
    transaction.commit()
    return made


def committed(desk: Desk, counter: Counter) -> int:
    """The value that another connection sees."""
    with desk.elsewhere() as connection:
        return int(connection.get(counter._p_oid).value)


# By hand.


@pytest.mark.spec("J5")
def test_a_job_that_was_never_stored_can_be_called() -> None:
    job = Job(operator.sub, 5)
    told: list[Any] = []
    job.add_callback(deed(told.append))
    assert job(3) == 2
    assert (job.status, job.result, told) == (Status.COMPLETED, 2, [2])


@pytest.mark.spec("J5")
def test_arguments_of_the_call_come_after_the_stored_ones_and_keywords_update_them() -> None:
    job = Job(deed(lambda *args, **kwargs: (args, kwargs)), 1, 2, a=1, b=2)
    assert job(3, b=3, c=4) == ((1, 2, 3), {"a": 1, "b": 3, "c": 4})
    assert (len(job.args), dict(job.kwargs)) == (3, {"a": 1, "b": 2})


@pytest.mark.spec("J5")
def test_a_call_by_hand_commits_active_then_the_result_then_completed(desk: Desk) -> None:
    seen: list[Any] = []

    def look(*args: Any) -> None:
        with desk.elsewhere() as connection:
            found = connection.get(job._p_oid)
            seen.append((found.status, found.result))

    job = Job(deed(lambda: look() or 7))
    job.add_callback(deed(look))
    desk.store(job)()
    look()
    assert seen == [(Status.ACTIVE, None), (Status.CALLBACKS, 7), (Status.COMPLETED, 7)]


@pytest.mark.spec("J5")
def test_an_assigned_job_that_is_called_by_hand_is_settled(desk: Desk) -> None:
    quota = desk.queue.quotas.create("disk")
    job = Job(abs, -1)
    job.quota_names = ("disk",)
    desk.put(job)
    assert desk.claim()() == 1
    transaction.commit()
    assert list(desk.agent.completed) == [job]
    assert (len(desk.agent), len(quota), check(desk.database)) == (0, 0, [])


@pytest.mark.spec("J5", "R7")
@pytest.mark.parametrize(("policy", "first"), [(Postpone, False), (FirstInLine, True)])
def test_calling_a_job_that_is_rescheduled_returns_the_job(
    desk: Desk, policy: Any, first: bool
) -> None:
    quota = desk.queue.quotas.create("disk")
    job = Job(fail)
    job.quota_names = ("disk",)
    desk.put(job, retry_policy_factory=policy)
    assert desk.claim()() is job
    assert (job.status, job.agent, len(desk.agent)) == (Status.PENDING, None, 0)
    assert (job._first, len(quota)) == (first, int(first))
    assert check(desk.database) == []


@pytest.mark.spec("J5")
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, StopRequested])
def test_what_is_no_exception_aborts_comes_out_and_leaves_the_job_active(
    desk: Desk, counter: Counter, error: type[BaseException]
) -> None:
    def work() -> None:
        counter.add()
        raise error

    job = desk.store(Job(deed(work)))
    with pytest.raises(error):
        job()
    assert (job.status, counter.value, local.current()) == (Status.ACTIVE, 0, None)
    assert committed(desk, counter) == 0


@pytest.mark.spec("J5")
def test_a_call_is_refused_where_the_transaction_has_changes_unless_told_to_commit(
    desk: Desk, counter: Counter
) -> None:
    job = desk.store(Job(abs, -1))
    counter.add()
    with pytest.raises(BadStatusError, match="commit=True"):
        job()
    assert (job.status, counter.value) == (Status.NEW, 1)
    assert job(commit=True) == 1
    assert committed(desk, counter) == 1


@pytest.mark.spec("J5")
@pytest.mark.parametrize("commit", [True, False])
def test_a_call_is_refused_inside_a_running_job(
    desk: Desk, counter: Counter, commit: bool
) -> None:
    inner = desk.store(Job(abs, -1))

    def outer() -> None:
        counter.add()
        for refused in (inner, Job(abs, -1)):
            with pytest.raises(BadStatusError, match="inside a running job"):
                refused(commit=commit)
        raise KeyError

    assert desk.store(Job(deed(outer)))().check(KeyError)
    assert (inner.status, committed(desk, counter)) == (Status.NEW, 0)


@pytest.mark.spec("J5")
def test_a_callback_is_refused_before_there_is_a_result_to_call_it_with(desk: Desk) -> None:
    job = Job(abs, -1)
    callback = job.add_callback(operator.neg)
    with pytest.raises(BadStatusError, match="is a callback of .* which is NEW"):
        callback()
    desk.store(job)()
    assert callback.result == -1


@pytest.mark.spec("J5")
def test_a_job_is_called_through_an_explicit_transaction_manager(desk: Desk) -> None:
    job = desk.store(Job(abs, -1))
    manager = transaction.TransactionManager(explicit=True)
    connection = desk.database.open(transaction_manager=manager)
    manager.begin()
    found = connection.get(job._p_oid)
    assert (found(), desk.clock.waits) == (1, [])
    manager.abort()
    connection.close()


@pytest.mark.spec("J5")
def test_a_transaction_that_cannot_be_aborted_does_not_stop_the_job(desk: Desk) -> None:
    def work() -> None:
        fail_commit(OSError("abort"), "abort")
        raise ValueError

    job = desk.store(Job(deed(work)))
    assert job().check(ValueError)
    assert job.status is Status.COMPLETED


# One commit.


@pytest.mark.spec("J6")
def test_effects_and_result_are_in_one_commit(desk: Desk, counter: Counter) -> None:
    seen: list[Any] = []
    job = desk.put(Job(counter.add, 5))

    def look() -> tuple[Any, Any]:
        with desk.elsewhere() as connection:
            return connection.get(counter._p_oid).value, connection.get(job._p_oid).result

    storage = desk.database.storage
    real = storage.tpc_finish

    def tpc_finish(*args: Any) -> Any:
        before = look()
        done = real(*args)
        seen.append((before, look()))
        return done

    desk.claim()
    storage.tpc_finish = tpc_finish
    for instance in (desk.connection._normal_storage,):
        instance._storage = storage
    desk.run(job)
    assert ((0, None), (5, 5)) in seen
    assert all(state in [(0, None), (5, 5)] for pair in seen for state in pair)


@pytest.mark.spec("J6", "J7")
def test_an_exception_aborts_what_the_job_had_done(desk: Desk, counter: Counter) -> None:
    def work() -> None:
        counter.add()
        transaction.savepoint()
        job.add_callback(abs)
        job.annotations["a"] = 1
        raise ValueError("no")

    job = desk.put(Job(deed(work)))
    desk.work()
    assert (committed(desk, counter), job.callbacks, dict(job.annotations)) == (0, [], {})
    assert isinstance(job.result, Failure) and str(job.result) == "ValueError: no"


@pytest.mark.spec("J6")
def test_a_job_that_was_never_stored_is_rolled_back_too() -> None:
    attempts: list[int] = []

    def work() -> None:
        attempts.append(1)
        job.add_callback(str)
        job.annotations["n"] = len(attempts)
        if len(attempts) < 3:
            raise TransientError

    job = Job(deed(work))
    job()
    assert (len(job.callbacks), dict(job.annotations)) == (1, {"n": 3})


@pytest.mark.spec("J6")
def test_a_failure_that_is_returned_keeps_the_changes(
    desk: Desk, counter: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> Failure:
        counter.add()
        return Failure(ValueError("returned"))

    job = desk.put(Job(deed(work)))
    desk.work()
    assert (job.result.check(ValueError), committed(desk, counter)) == (ValueError, 1)
    assert "ValueError: returned" in caplog.text


@pytest.mark.spec("J6")
@pytest.mark.parametrize(
    "make", [lambda: lambda: None, lambda: [Job(abs).__reduce__, (i for i in ())]]
)
@pytest.mark.parametrize("as_callback", [False, True])
def test_a_result_that_cannot_be_stored_is_the_jobs_failure(
    desk: Desk, counter: Counter, make: Callable[[], Any], as_callback: bool
) -> None:
    def work(*args: Any) -> Any:
        counter.add()
        return make()

    job = failing = Job(deed(work))
    if as_callback:
        job = Job(abs, 1)
        job.add_callback(failing)
    desk.put(job)
    desk.work()
    assert (job.status, committed(desk, counter), desk.clock.waits) == (Status.COMPLETED, 0, [])
    assert failing.result.check(NotStorableError) and "the result of" in str(failing.result)


@pytest.mark.spec("J6")
def test_a_callback_that_returns_a_job_takes_its_result(desk: Desk) -> None:
    job = Job(abs, 1)
    callback = job.add_callback(deed(lambda result: Job(abs, -2)))
    desk.put(job)
    desk.work()
    assert callback.result == 2 and job.status is Status.COMPLETED


class Loud:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.mark.spec("J6")
def test_a_result_whose_repr_raises_can_be_logged(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    attempts: list[int] = []

    def work() -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            fail_commit(ConflictError())
        return Loud()

    job = desk.put(Job(deed(work)))
    desk.work()
    assert isinstance(job.result, Loud)
    assert caplog.text.count("repr raised RuntimeError") == 2


# Set up and tear down.


class Hooked(Job):
    def set_up(self) -> Any:
        return self.kwargs["hooks"].value.append("set up") or len(self.kwargs["hooks"].value)

    def tear_down(self, info: Any) -> None:
        self.kwargs["hooks"].value.append(("tear down", info, self.status.name))


class Recorder(Counter):
    """A list that aborts do not touch."""

    def __init__(self) -> None:
        self._v_value: list[Any] = []

    @property
    def value(self) -> Any:
        return _records

    @value.setter
    def value(self, value: Any) -> None:
        raise AttributeError


_records: list[Any] = []


@pytest.fixture
def records() -> list[Any]:
    _records.clear()
    return _records


@pytest.mark.spec("J14")
def test_set_up_runs_before_the_callable_and_tear_down_after_the_commit(
    desk: Desk, records: list[Any]
) -> None:
    def work(hooks: Any) -> None:
        records.append("called")

    desk.put(Hooked(deed(work), hooks=Recorder()))
    desk.work()
    assert records == ["set up", "called", ("tear down", 1, "COMPLETED")]


@pytest.mark.spec("J14")
def test_they_run_once_for_each_attempt_also_for_one_whose_commit_failed(
    desk: Desk, records: list[Any]
) -> None:
    def work(hooks: Any) -> None:
        records.append("called")
        if len(records) < 3:
            raise ConflictError
        if len(records) < 6:
            fail_commit(ConflictError())

    desk.put(Hooked(deed(work), hooks=Recorder()))
    desk.work()
    assert records == [
        *["set up", "called", ("tear down", 1, "ACTIVE")],
        *["set up", "called", ("tear down", 4, "ACTIVE")],
        *["set up", "called", ("tear down", 7, "COMPLETED")],
    ]


class FailsInSetUp(Hooked):
    def set_up(self) -> Any:
        super().set_up()
        raise KeyError("set up")


class FailsInTearDown(Hooked):
    def tear_down(self, info: Any) -> None:
        super().tear_down(info)
        raise KeyError("tear down")


class Recording(RetryPolicy):
    def on_receive(self, message: Any) -> GiveUp:
        _records.append(type(message).__name__)
        return GiveUp()


@pytest.mark.spec("J14")
def test_a_set_up_that_fails_is_a_failure_of_the_job(desk: Desk, records: list[Any]) -> None:
    job = FailsInSetUp(fail, hooks=Recorder())
    desk.put(job, retry_policy_factory=Recording)
    desk.work()
    assert job.result.check(KeyError)
    assert records == ["set up", ("tear down", None, "ACTIVE"), "JobErrored"]


@pytest.mark.spec("J14")
@pytest.mark.parametrize("callable_", [deed(lambda hooks: 5), fail])
def test_a_tear_down_that_fails_is_logged_critical_and_changes_nothing(
    desk: Desk, records: list[Any], caplog: pytest.LogCaptureFixture, callable_: Any
) -> None:
    job = desk.put(FailsInTearDown(callable_, hooks=Recorder()))
    desk.work()
    assert job.status is Status.COMPLETED
    assert job.result == 5 if callable_ is not fail else job.failed
    critical = [each for each in caplog.records if each.levelno == logging.CRITICAL]
    assert [str(each.exc_info and each.exc_info[1]) for each in critical] == ["'tear down'"]


class CallsByHand(Hooked):
    def tear_down(self, info: Any) -> None:
        assert local.get_job() is self
        Job(abs, 1)()


@pytest.mark.spec("J14", "J5")
def test_tear_down_is_inside_the_running_job_as_far_as_calls_by_hand_go(
    desk: Desk, records: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    desk.put(CallsByHand(deed(lambda hooks: 5), hooks=Recorder()))
    desk.work()
    assert "inside a running job" in caplog.text


# A job that ends its transaction by itself.


@pytest.mark.spec("J19")
def test_a_job_may_commit_and_abort_and_that_is_logged_once(
    desk: Desk, counter: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        counter.add()
        transaction.commit()
        counter.add(10)
        transaction.abort()
        counter.add(100)
        transaction.commit()
        counter.add(1000)
        raise ValueError

    job = desk.put(Job(deed(work)))
    desk.work()
    assert (committed(desk, counter), job.failed) == (101, True)
    assert caplog.text.count("ends its transaction by itself") == 1


@pytest.mark.spec("J19")
@pytest.mark.parametrize("end", [transaction.commit, transaction.abort, transaction.begin])
def test_it_is_logged_also_where_that_is_the_last_thing_the_job_does(
    desk: Desk, caplog: pytest.LogCaptureFixture, end: Callable[[], None]
) -> None:
    job = desk.put(Job(deed(lambda: [end(), 5][1])))
    desk.work()
    assert (job.result, caplog.text.count("ends its transaction by itself")) == (5, 1)


@pytest.mark.spec("J19")
def test_a_job_that_leaves_its_transaction_alone_is_not_said_to_end_it(
    desk: Desk, counter: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    desk.put(Job(deed(lambda: counter.add() and transaction.savepoint() and None)))
    desk.put(Job(deed(lambda: counter.add() and fail())))
    desk.work()
    assert "ends its transaction" not in caplog.text


@pytest.mark.spec("J19")
def test_a_doomed_transaction_is_an_error_at_commit(desk: Desk, counter: Counter) -> None:
    def work() -> None:
        counter.add()
        transaction.doom()

    job = desk.put(Job(deed(work)))
    desk.work()
    assert job.result.check(DoomedTransaction) and committed(desk, counter) == 0


# The fence: nothing is committed for a job that was lost.


def test_two_connections_may_be_open_while_a_job_runs(desk: Desk, counter: Counter) -> None:
    job = desk.put(Job(counter.add))
    desk.claim()
    with desk.elsewhere() as connection:
        assert connection.get(job._p_oid).status is Status.ASSIGNED


def run_lost(desk: Desk, job: Job) -> None:
    with pytest.raises(ReassignedError, match="was taken from this worker"):
        desk.runner().run(job)
    transaction.abort()


@pytest.mark.spec("D6", "J6")
@pytest.mark.parametrize("bury", ["agent", "dispatcher"])
def test_a_lost_job_commits_neither_result_nor_effects(
    desk: Desk, counter: Counter, caplog: pytest.LogCaptureFixture, bury: str
) -> None:
    def work() -> None:
        counter.add()
        if bury == "agent":
            desk.lose(job)
        else:
            with desk.elsewhere() as connection:
                connection.get(desk.agent.record._p_oid).deactivate()

    job = desk.put(Job(deed(work)))
    desk.claim()
    run_lost(desk, job)
    assert (job.status, job.result, committed(desk, counter)) == (Status.ACTIVE, None, 0)
    assert [each.levelname for each in caplog.records if "was taken" in each.getMessage()] == [
        "ERROR"
    ]
    assert check(desk.database) == []
    assert desk.results == []


@pytest.mark.spec("D6")
def test_a_lost_job_that_fails_is_not_put_to_its_policy(desk: Desk) -> None:
    def work() -> None:
        desk.lose(job)
        raise ValueError

    job = desk.put(Job(deed(work)))
    desk.claim()
    run_lost(desk, job)
    assert (job.status, job.result) == (Status.ACTIVE, None)


@pytest.mark.spec("D6")
def test_a_job_that_is_lost_before_it_begins_does_not_begin(desk: Desk) -> None:
    calls: list[int] = []
    job = desk.put(Job(deed(calls.append), 1))
    desk.claim()
    runner = desk.runner()
    desk.lose(job)
    run = pytest.raises(ReassignedError)
    with run:
        runner.run(job)
    transaction.abort()
    assert (calls, job.status) == ([], Status.PENDING)


@pytest.mark.spec("D6", "J19")
@pytest.mark.parametrize("touched", ["nothing", "invalidated", "deactivated", "minimized"])
@pytest.mark.parametrize("commits_before", [0, 2])
def test_the_own_commits_of_a_lost_job_are_refused_also_in_later_transactions(
    desk: Desk, counter: Counter, commits_before: int, touched: str
) -> None:
    refused: list[str] = []

    def work() -> None:
        for _ in range(commits_before):
            counter.add()
            transaction.commit()
        desk.lose(job)
        for _ in range(3):
            counter.add(100)
            if touched == "invalidated":
                job._p_invalidate()
            elif touched == "deactivated":
                job._p_deactivate()
            elif touched == "minimized":
                desk.connection.cacheMinimize()
            try:
                transaction.commit()
            except Exception as error:
                refused.append(type(error).__name__)
                transaction.abort()

    job = desk.put(Job(deed(work)))
    desk.claim()
    run_lost(desk, job)
    assert committed(desk, counter) == commits_before
    assert refused == ["ConflictError", "ReassignedError", "ReassignedError"]


@pytest.mark.spec("D6")
@pytest.mark.parametrize("own_commits", [0, 2])
def test_a_callback_of_a_lost_job_commits_nothing_though_it_only_reads_its_parent(
    desk: Desk, counter: Counter, own_commits: int
) -> None:
    def callback(result: Any) -> None:
        for _ in range(own_commits):
            counter.add()
            transaction.commit()
        counter.add(100)
        desk.lose(job)

    job = Job(abs, 1)
    child = job.add_callback(deed(callback))
    desk.put(job)
    desk.claim()
    run_lost(desk, job)
    assert (child.status, committed(desk, counter)) == (Status.ACTIVE, own_commits)
    assert job.status is Status.CALLBACKS


@pytest.mark.spec("D6")
def test_a_callback_of_a_job_that_was_lost_between_two_callbacks_does_not_begin(
    desk: Desk,
) -> None:
    calls: list[int] = []
    job = Job(abs, 1)
    job.add_callback(deed(lambda result: calls.append(1)))
    job.add_callback(deed(lambda result: calls.append(2)))
    desk.put(job)
    desk.claim()
    runner = desk.runner()
    runner._on_result = lambda ref: desk.lose(job) if calls else None
    with pytest.raises(ReassignedError):
        runner.run(job)
    transaction.abort()
    assert calls == [1]


class CommitsInTearDown(Job):
    def tear_down(self, info: Any) -> None:
        self.args[0].add(100)
        transaction.commit()


@pytest.mark.spec("D6")
def test_tear_down_of_a_lost_job_cannot_commit_either(
    desk: Desk, counter: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    def work(counter: Counter) -> None:
        desk.lose(job)
        raise ValueError

    job = desk.put(CommitsInTearDown(deed(work), counter))
    desk.claim()
    run_lost(desk, job)
    assert committed(desk, counter) == 0
    assert "tear_down" in caplog.text and "was taken from this worker" in caplog.text


@pytest.mark.spec("D6")
def test_a_lost_job_that_waits_for_a_retry_commits_nothing(desk: Desk, counter: Counter) -> None:
    def work() -> None:
        counter.add()
        raise ClientDisconnected

    class LosesIt(PassingClock):
        def wait(self, condition: Any, timeout_seconds: float | None) -> None:
            super().wait(condition, timeout_seconds)
            if timeout_seconds and len(self.waits) == 1:
                desk.lose(job)

    job = desk.put(Job(deed(work)))
    desk.claim()
    desk.clock.__class__ = LosesIt
    run_lost(desk, job)
    assert (job.status, committed(desk, counter), desk.clock.waits) == (Status.ACTIVE, 0, [5])


@pytest.mark.spec("D6")
def test_what_a_lost_job_had_already_committed_as_its_result_stays(desk: Desk) -> None:
    job = Job(abs, -1)
    job.add_callback(deed(lambda result: desk.lose(job)))
    desk.put(job)
    desk.claim()
    run_lost(desk, job)
    assert (job.status, job.result) == (Status.CALLBACKS, 1)


@pytest.mark.spec("D6", "D14")
def test_a_job_that_was_claimed_again_by_the_same_agent_is_no_longer_the_first_workers(
    desk: Desk, counter: Counter
) -> None:
    def work() -> None:
        counter.add()
        desk.lose(job)
        with desk.elsewhere() as connection:
            agent = connection.get(desk.agent._p_oid)
            internal = agent.claim_job()
            internal._p_jar.transaction_manager.commit()
            found = connection.get(job._p_oid)
            found._policy = None
            found._enter(
                found.queue, "reschedule", due=None, stamp=1, first=True, keeps_places=True
            )
            found._assign(agent)
            found._begin()

    job = desk.put(Job(deed(work)))
    desk.claim()
    with pytest.raises(ReassignedError):
        desk.runner().run(job)
    transaction.abort()
    assert committed(desk, counter) == 0


# Nothing is left behind in the thread.


@pytest.mark.spec("J5")
def test_the_fence_is_down_when_the_job_is_over(desk: Desk, counter: Counter) -> None:
    def work() -> None:
        raise SystemExit

    job = desk.store(Job(deed(work)))
    synchs = transaction.manager.manager._synchs
    before = len(synchs)
    with pytest.raises(SystemExit):
        job()
    assert len(synchs) == before
    counter.add()
    transaction.commit()
    assert committed(desk, counter) == 1


@pytest.mark.spec("J5")
def test_a_job_of_another_database_is_run_in_its_own(desk: Desk) -> None:
    from ZODB.MappingStorage import MappingStorage

    databases: dict[str, Any] = {}
    first = ZODB.DB(MappingStorage(), database_name="first", databases=databases)
    second = ZODB.DB(MappingStorage(), database_name="second", databases=databases)
    connection = first.open()
    job = connection.get_connection("second").root()["job"] = Job(abs, -1)
    transaction.commit()
    assert (job(), job.ref.database_name) == (1, "second")
    transaction.abort()
    connection.close()
    first.close()
    second.close()


def fork_and_return() -> int:
    child = os.fork()
    if child == 0:
        return 0
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.slow
@pytest.mark.process
def test_a_child_that_comes_out_of_a_jobs_code_ends_and_is_no_second_worker(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    job = desk.put(Job(fork_and_return))
    desk.work()
    assert job.result == 1
    assert "has forked came out of it" in capfd.readouterr().err
