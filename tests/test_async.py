"""Jobs that are coroutines or return futures: no worker waits for them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pykka
import pytest
import transaction
from ZODB.POSException import ConflictError

from perdure.actors import ActiveJobsAsked, AgentActor, JobAsked, StatisticsAsked, StatusAsked
from perdure.actors.context import Activity
from perdure.actors.suspensions import Suspensions
from perdure.model import (
    BadStatusError,
    Failure,
    Job,
    JobFailedError,
    ReassignedError,
    Retry,
    RetryPolicy,
    Status,
    find_job,
    get_queue,
    local,
)
from perdure.model.running import Runner
from support import coroutines, jobs
from support.coroutines import Register, async_deed, futures, gates, plain_deed
from support.desk import Desk, FailingManager
from support.jobs import LIMIT_SECONDS, calls
from support.manual_clock import ManualClock
from support.systems import LIMIT, Systems, queue_length, read, settled, within

NOW = timedelta(0)


class Suspended:
    """Tells when workers have left jobs."""

    def __init__(self) -> None:
        self._semaphore = threading.Semaphore(0)

    def note(self) -> None:
        self._semaphore.release()

    def wait(self, system: Any, number: int = 1) -> None:
        """Return when so many more jobs were left, and their agents know."""
        for _ in range(number):
            assert self._semaphore.acquire(timeout=LIMIT_SECONDS), "no worker has left its job"
        settled(system)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Suspended:
    made = Suspended()
    suspend = Suspensions.suspend

    def noting(suspensions: Suspensions, *args: Any) -> None:
        suspend(suspensions, *args)
        made.note()

    monkeypatch.setattr(Suspensions, "suspend", noting)
    return made


@pytest.fixture
def system(systems: Systems) -> Any:
    """A system with one queue, eight places, and three registers in the root."""
    made = systems.start(queues={"": 8})
    with made.transaction() as connection:
        connection.root()["registers"] = [Register() for _ in range(3)]
    return made


def values(system: Any) -> list[int]:
    """What the registers have, as it is stored now."""
    with system.transaction() as connection:
        return [each.value for each in connection.root()["registers"]]


def put(system: Any, make: Callable[..., Any], **settings: Any) -> Any:
    """Put what `make` returns for the three registers; return the job's reference."""
    with system.transaction() as connection:
        job = make(*connection.root()["registers"])
        return get_queue(connection).put(job, **settings).ref


def threads(word: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith(word)]


def policy_once(job: Job) -> RetryPolicy:
    return RetryOnceInAnHour(job)


class RetryOnceInAnHour(RetryPolicy):
    """Lets a job run again after an hour, once; keeps in itself whether it did."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.data = {"retried": 0}

    def on_receive(self, message: Any) -> Any:
        calls.append(type(message).__name__)
        if dict(message.data)["retried"]:
            return jobs.NeverRetry(None).on_receive(message)
        self.data["retried"] = 1
        return Retry(timedelta(hours=1))


# What is called.


@pytest.mark.spec("J9", "J1")
@pytest.mark.parametrize(
    ("make", "result"),
    [
        (lambda register: Job(coroutines.add, 1, other=2), 3),
        (lambda register: Job(register.add, 5), 5),
        (lambda register: Job(register, 7), 7),
        (lambda register: Job(Register.name), "Register"),
        (lambda register: Job(coroutines.add, [1], [2]), [1, 2]),
    ],
    ids=["function", "method", "object", "class method", "data"],
)
def test_coroutines_of_every_kind_are_run(
    make: Callable[[Any], Job], result: Any, system: Any
) -> None:
    ref = put(system, lambda first, *others: make(first))
    assert system.result(ref, timeout=LIMIT) == result


@pytest.mark.spec("J9", "J1")
def test_a_coroutine_can_be_given_its_job(system: Any) -> None:
    ref = put(system, lambda *registers: Job.bind(coroutines.describe, "text"))
    assert system.result(ref, timeout=LIMIT) == (str(ref), "text")


@pytest.mark.spec("J9")
def test_a_function_that_returns_a_coroutine_fails_with_the_remedy(system: Any) -> None:
    ref = system.put(plain_deed(lambda: coroutines.add(1, 2)))
    with pytest.raises(JobFailedError, match="NotStorableError.*async def"):
        system.result(ref, timeout=LIMIT)


@pytest.mark.spec("J9")
def test_the_result_of_a_coroutine_has_to_be_storable(system: Any) -> None:
    async def give() -> Any:
        return threading.Lock()

    with pytest.raises(JobFailedError, match="NotStorableError"):
        system.result(system.put(async_deed(give)), timeout=LIMIT)


# No worker waits.


@pytest.mark.slow
@pytest.mark.spec("J9")
def test_a_thousand_that_wait_at_once_hold_no_thread(systems: Systems) -> None:
    system = systems.start(queues={"": 1000})
    settled(system)  # else its own threads may be counted, too
    before = threading.active_count()
    with system.transaction() as connection:
        queue = get_queue(connection)
        refs = [
            queue.put(Job(coroutines.note_and_pass_gate, "g", number)).ref
            for number in range(1000)
        ]
    gates["g"].wait_until_entered(1000)
    # Two workers, and the event loop; whoever waits has no connection either.
    assert threading.active_count() - before <= 3
    opened = [each for each in system.database.connectionDebugInfo() if each["opened"]]
    assert len(opened) <= 8
    assert len(system.ask(ActiveJobsAsked())) == 1000
    gates["g"].open()
    assert [system.result(ref, timeout=5 * LIMIT) for ref in refs] == list(range(1000))
    assert sorted(calls) == list(range(1000))
    assert threading.active_count() - before <= 3


@pytest.mark.spec("J9")
def test_two_workers_are_enough_to_begin_and_to_end_many(systems: Systems) -> None:
    system = systems.start(queues={"": 40})
    with system.transaction() as connection:
        queue = get_queue(connection)
        refs = [queue.put(Job(coroutines.pass_gate, "g")).ref for _ in range(40)]
    gates["g"].wait_until_entered(40)
    gates["g"].open()
    assert [system.result(ref, timeout=LIMIT) for ref in refs] == ["g"] * 40
    assert len(threads("worker")) <= 2


@pytest.mark.spec("J9", "Q6")
def test_it_keeps_its_place_and_its_quota(systems: Systems, left: Suspended) -> None:
    system = systems.start(queues={"": 2})
    with system.transaction() as connection:
        queue = get_queue(connection)
        queue.quotas.create("mail", 1)
        first, second = (
            queue.put(_limited(Job(coroutines.pass_gate, name), "mail")).ref for name in "ab"
        )
    gates["a"].wait_until_entered()
    left.wait(system)
    assert read(system, second, "status") is Status.PENDING
    # The quota has no place, and then the agent has none.
    third, fourth = (system.put(coroutines.pass_gate, name) for name in "cd")
    gates["c"].wait_until_entered()
    left.wait(system)
    assert queue_length(system) == 2
    assert read(system, first, "status") is Status.ACTIVE
    for name in "abcd":
        gates[name].open()
    assert [system.result(ref, timeout=LIMIT) for ref in (first, second, third, fourth)] == [
        *"abcd"
    ]


def _limited(job: Job, *names: str) -> Job:
    job.quota_names = names
    return job


@pytest.mark.spec("J9")
def test_one_worker_serves_many_and_others_have_theirs_beside_it(
    systems: Systems, left: Suspended
) -> None:
    system = systems.start(queues={"": 6})
    waiting = [system.put(coroutines.pass_gate, "g") for _ in range(3)]
    gates["g"].wait_until_entered(3)
    left.wait(system, 3)
    blocking = [system.put(jobs.pass_gate, "blocks") for _ in range(3)]
    for _ in blocking:
        jobs.gates["blocks"].wait_until_entered()
    gates["g"].open()
    # Every place is taken, and every thread of those that block.
    assert [system.result(ref, timeout=LIMIT) for ref in waiting] == ["g"] * 3
    jobs.gates["blocks"].open()
    assert [system.result(ref, timeout=LIMIT) for ref in blocking] == ["blocks"] * 3
    assert len(threads("worker")) <= 5


@pytest.mark.spec("J9", "D7")
def test_workers_that_were_needed_for_an_instant_are_let_go_of(
    systems: Systems, manual_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dismissed = threading.Semaphore(0)
    dismiss = AgentActor._dismiss

    def noting(agent: AgentActor) -> None:
        dismiss(agent)
        dismissed.release()

    monkeypatch.setattr(AgentActor, "_dismiss", noting)
    system = systems.start(queues={"": 20}, clock=manual_clock)
    refs = [system.put(jobs.pass_gate, "g") for _ in range(12)]
    for _ in refs:
        jobs.gates["g"].wait_until_entered()
    jobs.gates["g"].open()
    for ref in refs:
        system.wait(ref, timeout=LIMIT)
    settled(system)
    # The nine that were idle when it began to look, of which eight are kept; then the others.
    for number in (1, 3):
        manual_clock.advance(timedelta(seconds=31))
        for _ in range(number):
            assert dismissed.acquire(timeout=LIMIT_SECONDS)
        settled(system)
    manual_clock.advance(timedelta(seconds=31))
    settled(system)
    assert not dismissed.acquire(blocking=False)


@pytest.mark.spec("J9", "D7")
def test_those_that_wait_end_although_their_agent_got_smaller(
    systems: Systems, left: Suspended
) -> None:
    system = systems.start(queues={"": 3})
    refs = [system.put(coroutines.pass_gate, "g") for _ in range(3)]
    gates["g"].wait_until_entered(3)
    left.wait(system, 3)
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid]["main"].size = 0
    settled(system)
    gates["g"].open()
    assert [system.result(ref, timeout=LIMIT) for ref in refs] == ["g"] * 3


@pytest.mark.spec("J9", "D12")
def test_a_job_that_waits_counts_as_active_and_is_told_of_once(
    system: Any, left: Suspended
) -> None:
    ref = system.put(coroutines.pass_gate, "g")
    gates["g"].wait_until_entered()
    left.wait(system)
    (report,) = system.ask(ActiveJobsAsked())
    assert report.ref == ref and report.ended is None
    gates["g"].open()
    system.wait(ref, timeout=LIMIT)
    settled(system)
    assert system.ask(ActiveJobsAsked()) == ()
    assert system.ask(JobAsked(ref)).text == "'g'"
    assert system.ask(StatisticsAsked()).started == 1


# A transaction and a connection of its own.


@pytest.mark.spec("J9", "J6")
def test_result_and_effects_are_one_commit(system: Any) -> None:
    ref = put(system, lambda first, *others: Job(first.add, 5))
    assert system.result(ref, timeout=LIMIT) == 5
    with system.transaction() as connection:
        job, register = find_job(connection, ref), connection.root()["registers"][0]
        job._p_activate(), register._p_activate()
        assert job._p_serial == register._p_serial


@pytest.mark.spec("J9", "J6")
def test_what_another_coroutine_or_thread_ends_is_not_this_ones_transaction(system: Any) -> None:
    """They take turns in one thread, and each commits and aborts for itself."""

    async def commit_twice(register: Any) -> Any:
        register.value += 1
        await gates["one"].enter()
        transaction.commit()
        register.value += 10
        await gates["two"].enter()
        transaction.abort()
        register.value += 100
        return register.value

    async def abort_then_commit(register: Any) -> Any:
        register.value += 1
        await gates["three"].enter()
        transaction.abort()
        register.value += 10
        await gates["four"].enter()
        transaction.commit()
        register.value += 100
        return register.value

    refs = [
        put(system, lambda first, second, third: Job(async_deed(commit_twice), first)),
        put(system, lambda first, second, third: Job(async_deed(abort_then_commit), second)),
    ]
    seen = []
    gates["one"].wait_until_entered()
    for opened, entered in [("three", "three"), ("one", "four"), ("four", "two")]:
        gates[entered].wait_until_entered()
        if opened == "three":
            seen.append(values(system))
        gates[opened].open()
    seen.append(system.result(refs[1], timeout=LIMIT))
    seen.append(values(system))
    gates["two"].open()
    seen.append(system.result(refs[0], timeout=LIMIT))
    assert seen == [[0, 0, 0], 110, [1, 110, 0], 101]
    assert values(system) == [101, 110, 0]


@pytest.mark.spec("J9", "L1")
def test_the_thread_of_the_event_loop_is_nobodys_transaction(system: Any) -> None:
    async def tell() -> tuple[bool, bool]:
        mine = transaction.manager.manager
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        seen: asyncio.Future[Any] = loop.create_future()
        loop.call_soon(lambda: seen.set_result(transaction.manager.manager))
        return mine is transaction.manager.manager, (await seen) is mine

    assert system.result(system.put(async_deed(tell)), timeout=LIMIT) == (True, False)


@pytest.mark.spec("J9")
def test_tasks_that_it_makes_have_its_transaction_and_end_with_it(system: Any) -> None:
    async def part(register: Any, number: int) -> None:
        await asyncio.sleep(0)
        register.value += number
        transaction.commit()
        assert local.get_job().args[-1] is register

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            calls.append("ended")

    async def work(register: Any) -> str:
        # Kept, or it could be collected.
        task = asyncio.create_task(endless())
        await asyncio.gather(part(register, 1), part(register, 10))
        register.value += 100
        transaction.abort()
        return f"{task.done()}"

    ref = put(system, lambda first, *others: Job(async_deed(work), first))
    assert system.result(ref, timeout=LIMIT) == "False"
    assert values(system) == [11, 0, 0]
    assert calls == ["ended"]


@pytest.mark.spec("J9", "L1", "L2", "J13")
def test_it_reaches_what_a_running_job_can_reach(system: Any) -> None:
    async def tell(name: str) -> Any:
        await gates[name].enter()
        local.set_live_annotation("progress", 50)
        job = local.get_job()
        job.annotations["mine"] = 1
        job.add_callback(Job(jobs.note, "told"))
        return *jobs.report_local(), local.get_live_annotation("progress")

    ref = system.put(async_deed(tell), "g")
    gates["g"].open()
    expected = (str(ref), "", str(system.uuid), "main", 50)
    assert system.result(ref, timeout=LIMIT) == expected
    system.wait(ref, timeout=LIMIT)
    assert calls == [("told", expected)]
    with system.transaction() as connection:
        assert dict(find_job(connection, ref).annotations) == {"progress": 50, "mine": 1}


@pytest.mark.spec("J9")
def test_a_connection_is_opened_when_it_is_first_used_and_given_back(system: Any) -> None:
    async def open_late(name: str) -> str:
        await gates["before"].enter()
        local.get_job()
        await gates["after"].enter()
        return name

    def opened() -> int:
        info = system.database.connectionDebugInfo()
        return len([each for each in info if each["opened"]])

    pool_size = system.database.getPoolSize()
    ref = system.put(async_deed(open_late), "x")
    gates["before"].wait_until_entered()
    settled(system)
    before = opened()
    gates["before"].open()
    gates["after"].wait_until_entered()
    assert (opened(), system.database.getPoolSize()) == (before + 1, pool_size + 1)
    gates["after"].open()
    system.wait(ref, timeout=LIMIT)
    settled(system)
    assert (opened(), system.database.getPoolSize()) == (before, pool_size)


@pytest.mark.spec("J9", "D6", "J19")
def test_other_data_managers_are_committed_with_its_result(system: Any) -> None:
    class Manager(FailingManager):
        def tpc_finish(self, transaction: Any) -> None:
            calls.append([type(each).__name__ for each in transaction._resources])

    async def join() -> None:
        transaction.get().join(Manager(ValueError(), ""))

    system.result(system.put(async_deed(join)), timeout=LIMIT)
    # With the job's own connection, which nothing else has opened.
    assert calls and sorted(calls[0]) == ["Connection", "Manager"]


@pytest.mark.spec("J9", "J19")
def test_its_own_commit_is_logged_and_ends_the_one_transaction(
    system: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def commit(register: Any) -> None:
        register.value = 5
        transaction.commit()
        await asyncio.sleep(0)
        raise ValueError("after all")

    ref = put(system, lambda first, *others: Job(async_deed(commit), first))
    with pytest.raises(JobFailedError, match="after all"):
        system.result(ref, timeout=LIMIT)
    assert values(system) == [5, 0, 0]
    assert [
        r.levelno for r in caplog.records if "ends its transaction by itself" in r.message
    ] == [logging.WARNING]


class Hooked(Job):
    def set_up(self) -> Any:
        calls.append(("set up", self._p_jar is not None))
        if self.args[-1] == "no":
            raise ValueError("no set up")
        return "info"

    def tear_down(self, info: Any) -> None:
        calls.append(("tear down", info, self.status.name))


@pytest.mark.spec("J9", "J14")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", [("set up", True), "yes", ("tear down", "info", "COMPLETED")]),
        ("no", [("set up", True), ("tear down", None, "ACTIVE")]),
    ],
)
def test_set_up_and_tear_down_are_around_a_coroutine(
    text: str, expected: list[Any], system: Any
) -> None:
    async def note(text: str) -> None:
        await asyncio.sleep(0)
        calls.append(text)

    made = async_deed(note)
    ref = put(system, lambda *registers: Hooked(made, text))
    system.wait(ref, timeout=LIMIT)
    assert calls == expected
    assert read(system, ref, "failed") is (text == "no")


# Errors, and what the policy says to them.


@pytest.mark.spec("J9", "J6", "J7")
def test_an_error_rolls_back_and_has_the_coroutines_own_frames(system: Any) -> None:
    async def raising(register: Any) -> None:
        register.value = 5
        await asyncio.sleep(0)
        raise ValueError("no")

    ref = put(system, lambda first, *others: Job(async_deed(raising), first))
    with pytest.raises(JobFailedError, match="ValueError: no"):
        system.result(ref, timeout=LIMIT)
    assert values(system) == [0, 0, 0]
    failure = read(system, ref, "result")
    assert [frame.function for frame in failure.frames] == ["perform_async", "raising"]


@pytest.mark.spec("J9", "J6", "R2")
def test_a_conflict_is_met_by_another_attempt(system: Any) -> None:
    async def add(register: Any) -> int:
        register.value += 1
        calls.append("attempt")
        await gates[f"{len(calls)}"].enter()
        return int(register.value)

    ref = put(system, lambda first, *others: Job(async_deed(add), first))
    gates["1"].wait_until_entered()
    with system.transaction() as connection:
        connection.root()["registers"][0].value = 10
    gates["2"].open(), gates["1"].open()
    assert system.result(ref, timeout=LIMIT) == 11
    assert (values(system)[0], calls) == (11, ["attempt"] * 2)


@pytest.mark.spec("J9", "R1", "R2")
def test_what_its_policy_counts_is_kept_from_attempt_to_attempt(system: Any) -> None:
    async def conflict() -> None:
        calls.append("attempt")
        raise ConflictError("always")

    ref = system.put(async_deed(conflict))
    with pytest.raises(JobFailedError, match="ConflictError"):
        system.result(ref, timeout=LIMIT)
    assert calls == ["attempt"] * 5


@pytest.mark.spec("J9", "R1")
@pytest.mark.parametrize("kind", ["coroutine", "future"])
def test_no_worker_waits_for_the_time_of_a_retry(
    kind: str, systems: Systems, left: Suspended, manual_clock: ManualClock
) -> None:
    system = systems.start(queues={"": 2}, clock=manual_clock)

    async def once() -> str:
        calls.append("attempt")
        if calls.count("attempt") == 1:
            raise ValueError("no")
        return "done"

    def give() -> Any:
        calls.append("attempt")
        future: concurrent.futures.Future[str] = concurrent.futures.Future()
        if calls.count("attempt") == 1:
            future.set_exception(ValueError("no"))
        else:
            future.set_result("done")
        return future

    item = async_deed(once) if kind == "coroutine" else plain_deed(give)
    ref = put_with_policy(system, item)
    left.wait(system, 2)
    assert calls == ["attempt", "JobErrored"]
    assert [system.result(system.put(jobs.add, n, 1), timeout=LIMIT) for n in (1, 2)] == [2, 3]
    assert len(threads("worker")) <= 2
    manual_clock.advance(timedelta(minutes=59))
    settled(system)
    assert calls == ["attempt", "JobErrored"]
    manual_clock.advance(timedelta(minutes=2))
    assert system.result(ref, timeout=LIMIT) == "done"
    assert calls == ["attempt", "JobErrored", "attempt"]
    with system.transaction() as connection:
        assert find_job(connection, ref)._policy.data == {"retried": 1}


def put_with_policy(system: Any, item: Any) -> Any:
    with system.transaction() as connection:
        return get_queue(connection).put(Job(item), retry_policy_factory=policy_once).ref


@pytest.mark.spec("J9", "X3", "R10", "D10")
def test_a_stop_ends_the_wait_for_a_retry(systems: Systems, left: Suspended) -> None:
    database = systems.database()
    system = systems.start(database, {"": 1})
    ref = put_with_policy(system, coroutines.fail)
    left.wait(system, 2)
    # It is not used: else the limit is passed.
    within(lambda: system.stop(2 * LIMIT))
    system = systems.start(database, {"": 0})
    assert read(system, ref, "status") is Status.ACTIVE
    with system.transaction() as connection:
        (internal,) = get_queue(connection)
        assert (internal.kind, internal.serves.ref) == ("interrupt", ref)


@pytest.mark.spec("J9", "D11")
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["coroutine", "task", "set up"])
def test_one_that_ends_its_thread_costs_neither_the_loop_nor_the_others(
    where: str, error: type[BaseException], systems: Systems
) -> None:
    system = systems.start(queues={"": 3})
    beside = system.put(coroutines.pass_gate, "g")
    gates["g"].wait_until_entered()

    async def once() -> str:
        calls.append("attempt")
        if len(calls) > 1:
            return "done"
        if where == "task":
            await asyncio.gather(leave())
        await leave()
        return "never"

    async def leave() -> None:
        await asyncio.sleep(0)
        raise error("out")

    class_ = {"set up": LeavesInSetUp}.get(where, Job)
    LeavesInSetUp.error = error
    with system.transaction() as connection:
        ref = get_queue(connection).put(class_(async_deed(once))).ref
    assert system.result(ref, timeout=LIMIT) == "done"
    with system.transaction() as connection:
        policy = find_job(connection, ref)._policy
        assert policy is not None and policy.data["interruptions"] == 1
    gates["g"].open()
    assert system.result(beside, timeout=LIMIT) == "g"
    assert system.ask(StatusAsked()).crashes == 0
    assert len(threads("event loop")) == 1


class LeavesInSetUp(Job):
    error: type[BaseException] = SystemExit

    def set_up(self) -> None:
        if not calls:
            calls.append("set up")
            raise self.error("out")


@pytest.mark.spec("J9")
def test_one_that_is_cancelled_by_its_own_code_fails(system: Any) -> None:
    async def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(JobFailedError, match="AbortedError.*was cancelled"):
        system.result(system.put(async_deed(cancel)), timeout=LIMIT)


@pytest.mark.spec("J9", "R11")
def test_a_commit_that_raised_but_took_place_is_done(system: Any) -> None:
    async def add(register: Any) -> str:
        calls.append("attempt")
        register.value += 1
        transaction.get().join(FailingManager(ConflictError("afterwards"), "tpc_finish"))
        return "done"

    ref = put(system, lambda first, *others: Job(async_deed(add), first))
    assert system.result(ref, timeout=LIMIT) == "done"
    system.wait(ref, timeout=LIMIT)
    assert (values(system)[0], calls) == (1, ["attempt"])


@pytest.mark.spec("J9", "J8")
def test_it_may_return_a_job(system: Any) -> None:
    async def give(register: Any) -> Job:
        register.value = 5
        return Job(jobs.add, 2, 3)

    async def give_without_connection() -> Job:
        return Job(jobs.add, 3, 4)

    ref = put(system, lambda first, *others: Job(async_deed(give), first))
    other = system.put(async_deed(give_without_connection))
    assert system.result(ref, timeout=LIMIT) == 5
    assert system.result(other, timeout=LIMIT) == 7
    assert values(system)[0] == 5


# Losing the job, the actor, the worker.


@pytest.mark.spec("J9", "D6")
def test_a_connection_that_is_opened_too_late_finds_the_job_lost(
    system: Any, left: Suspended
) -> None:
    told = threading.Event()

    async def work() -> None:
        if calls:
            return
        calls.append("begun")
        try:
            await gates["g"].enter()
        except asyncio.CancelledError:
            try:
                local.get_job()
            except ReassignedError:
                calls.append("lost")
                told.set()

    ref = system.put(async_deed(work))
    gates["g"].wait_until_entered()
    left.wait(system)
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid].deactivate()
    settled(system)
    system.wait(ref, timeout=LIMIT)
    # That is told in the thread of the event loop, behind what waits for the job.
    assert told.wait(LIMIT.total_seconds())
    assert calls == ["begun", "lost"]


@pytest.mark.spec("J9", "J14")
def test_tear_down_is_called_for_one_that_was_lost_too(system: Any, left: Suspended) -> None:
    async def work(text: str) -> None:
        calls.append(text)
        if calls.count(text) == 1:
            await gates["g"].enter()

    made = async_deed(work)
    ref = put(system, lambda *registers: Hooked(made, "text"))
    gates["g"].wait_until_entered()
    left.wait(system)
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid].deactivate()
    settled(system)
    system.wait(ref, timeout=LIMIT)
    settled(system)
    assert calls.count(("set up", True)) == 2
    assert [each[1] for each in calls if each[0] == "tear down"] == ["info"] * 2


@pytest.mark.spec("J9", "D6", "D4")
@pytest.mark.parametrize("how", ["returns", "commits"])
def test_a_coroutine_whose_job_was_taken_away_commits_nothing(
    how: str, system: Any, left: Suspended
) -> None:
    errors: list[str] = []

    async def work(register: Any) -> None:
        if calls:
            return
        calls.append("begun")
        register.value = 5
        try:
            await gates["g"].enter()
        # Cancelled, as it is told that it was lost; it goes on all the same.
        except asyncio.CancelledError:
            calls.append("cancelled")
        if how == "commits":
            try:
                transaction.commit()
            except Exception as error:
                errors.append(type(error).__name__)

    ref = put(system, lambda first, *others: Job(async_deed(work), first))
    gates["g"].wait_until_entered()
    left.wait(system)
    with system.transaction() as connection:
        # As a sibling does that takes this process for dead.
        get_queue(connection).dispatchers[system.uuid].deactivate()
    settled(system)
    system.wait(ref, timeout=LIMIT)
    settled(system)
    assert values(system) == [0, 0, 0]
    assert calls == ["begun", "cancelled"]
    assert len(errors) == (how == "commits")
    assert system._context.suspensions.of("") == []
    assert system._context.activity.count == 0


@pytest.mark.spec("J9", "D6")
def test_the_future_of_a_job_that_was_taken_away_is_waited_for_no_more(
    system: Any, left: Suspended
) -> None:
    ref = system.put(coroutines.future, "f")
    left.wait(system)
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid].deactivate()
    settled(system)
    left.wait(system)  # the next attempt
    assert system._context.activity.count == 1
    assert calls == ["f", "f"]
    futures["f"].set_result(5)
    assert system.result(ref, timeout=LIMIT) == 5


@pytest.mark.spec("J9", "J18")
@pytest.mark.parametrize("polls", [1, 3])
def test_what_is_sent_again_at_a_poll_is_not_begun_again(
    polls: int, system: Any, left: Suspended
) -> None:
    refs = [
        system.put(async_deed(coroutines.note_and_pass_gate), "g", 1),
        system.put(coroutines.future, "f"),
    ]
    gates["g"].wait_until_entered()
    left.wait(system, 2)
    for _ in range(polls):
        settled(system)
    futures["f"].set_result(2)
    gates["g"].open()
    assert [system.result(ref, timeout=LIMIT) for ref in refs] == [1, 2]
    assert sorted(calls, key=str) == [1, "f"]


@pytest.mark.spec("J9", "D11")
@pytest.mark.parametrize("lost", ["_free", "_resume", "_queue_up", "_take"])
def test_an_agent_that_crashes_goes_on_with_what_waits(
    lost: str, systems: Systems, left: Suspended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AgentActor, "restart_pause", timedelta(0))
    system = systems.start(queues={"": 4})
    begun = system.put(coroutines.note_and_pass_gate, "g", 1)
    gates["g"].wait_until_entered()
    left.wait(system)
    method = getattr(AgentActor, lost)
    fail = [OSError("a fault")]

    def crashing(actor: Any, *args: Any) -> Any:
        if fail:
            if lost == "_free":
                # Where it is found last: the message is lost with all that it says.
                method(actor, *args)
            raise fail.pop()
        return method(actor, *args)

    monkeypatch.setattr(AgentActor, lost, crashing)
    other = system.put(coroutines.note_and_pass_gate, "h", 2)
    gates["h"].open(), gates["g"].open()
    assert [system.result(ref, timeout=LIMIT) for ref in (begun, other)] == [1, 2]
    assert sorted(calls) == [1, 2]
    assert system.ask(StatusAsked()).crashes == 1


@pytest.mark.spec("J9")
def test_an_end_that_nobody_was_told_of_is_found_at_the_next_poll(
    system: Any, left: Suspended, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = system.put(coroutines.note_and_pass_gate, "g", 1)
    gates["g"].wait_until_entered()
    left.wait(system)
    ended = threading.Event()
    tell = type(system._context.directory).tell

    def losing(directory: Any, role: str, message: Any) -> None:
        if type(message).__name__ == "JobResumable":
            ended.set()
        else:
            tell(directory, role, message)

    monkeypatch.setattr(type(system._context.directory), "tell", losing)
    gates["g"].open()
    assert ended.wait(LIMIT_SECONDS)
    settled(system)
    assert system.result(ref, timeout=LIMIT) == 1
    assert calls == [1]


@pytest.mark.spec("J9", "D11")
@pytest.mark.parametrize("error", [SystemExit("a fault"), RuntimeError("a fault")])
def test_a_worker_that_is_lost_while_it_goes_on_interrupts_the_job(
    error: BaseException, system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Runner._take_ended
    errors = [error]

    def failing(runner: Runner, *args: Any) -> Any:
        if errors:
            raise errors.pop()
        return take(runner, *args)

    monkeypatch.setattr(Runner, "_take_ended", failing)
    ref = put(system, lambda first, *others: Job(first.add, 5))
    assert system.result(ref, timeout=LIMIT) == 5
    settled(system)
    assert values(system) == [5, 0, 0]
    assert system._context.activity.count == 0


@pytest.mark.spec("J9", "D15")
def test_what_waits_for_an_agent_whose_queue_was_removed_is_let_go_of(
    systems: Systems, left: Suspended
) -> None:
    system = systems.start(queues={"": 1, "late": 1})
    with system.transaction() as connection:
        ref = get_queue(connection, "late").put(Job(coroutines.pass_gate, "g")).ref
    gates["g"].wait_until_entered()
    left.wait(system)
    role = "agent 'main' of queue 'late'"
    assert [claim.ref for claim in system._context.suspensions.of(role)] == [ref]
    actor = system._context.directory.get(role)
    system._context.directory.set(role, None)
    closed = threading.Event()
    activity = system._context.activity
    end = activity.end
    activity.end = lambda: (end(), closed.set())
    gates["g"].open()
    assert closed.wait(LIMIT_SECONDS)
    assert system._context.suspensions.of(role) == []
    system._context.directory.set(role, actor)


# The end.


@pytest.mark.spec("J9", "D10")
def test_a_stop_waits_for_coroutines_and_futures_within_the_drain(
    systems: Systems, left: Suspended, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    waits = threading.Event()
    wait = Activity.wait_until_none

    def noting(activity: Activity, timeout: timedelta) -> bool:
        counts.append(activity.count)
        waits.set()
        return wait(activity, timeout)

    monkeypatch.setattr(Activity, "wait_until_none", noting)
    database = systems.database()
    system = systems.start(database, {"": 2})
    refs = [system.put(coroutines.pass_gate, "g"), system.put(coroutines.future, "f")]
    gates["g"].wait_until_entered()
    left.wait(system, 2)
    stopping = threading.Thread(target=system.stop, args=(LIMIT,), daemon=True)
    stopping.start()
    assert waits.wait(LIMIT_SECONDS)
    assert counts == [2]
    gates["g"].open()
    futures["f"].set_result("future")
    stopping.join(2 * LIMIT_SECONDS)
    assert not stopping.is_alive()
    system = systems.start(database, {"": 0})
    assert [read(system, ref, "result") for ref in refs] == ["g", "future"]
    assert [read(system, ref, "status") for ref in refs] == [Status.COMPLETED] * 2


async def _swallow(name: str) -> None:
    try:
        await gates[name].enter()
    except asyncio.CancelledError:
        calls.append("swallowed")
    await asyncio.sleep(0)


async def _swallow_always(name: str) -> None:
    while True:
        try:
            await gates[name].enter()
        except asyncio.CancelledError:
            calls.append("swallowed")


async def _cancelled(name: str) -> None:
    try:
        await gates[name].enter()
    finally:
        calls.append("cancelled")


async def _in_task(name: str) -> None:
    await asyncio.gather(_swallow_always(name))


async def _in_thread(name: str) -> None:
    await asyncio.to_thread(jobs.gates[name].enter)


@pytest.mark.spec("J9", "D10", "C3")
@pytest.mark.parametrize("work", [_cancelled, _swallow, _swallow_always, _in_task])
def test_what_the_drain_was_too_short_for_is_interrupted_once(
    work: Any, systems: Systems, left: Suspended
) -> None:
    async def change(register: Any) -> None:
        if "again" in calls:
            return
        register.value = 5
        await work("g")

    database = systems.database()
    system = systems.start(database, {"": 1})
    with system.transaction() as connection:
        connection.root()["registers"] = [Register()]
    ref = put(system, lambda register: Job(async_deed(change), register))
    gates["g"].wait_until_entered()
    left.wait(system)
    within(lambda: system.stop(NOW))
    assert not threads("event loop") and not threads("worker")
    calls.append("again")
    system = systems.start(database, {"": 1})
    system.wait(ref, timeout=LIMIT)
    assert values(system) == [0]
    with system.transaction() as connection:
        policy = find_job(connection, ref)._policy
        assert policy is not None and policy.data["interruptions"] == 1


@pytest.mark.spec("J9", "D10")
def test_one_that_blocks_the_loop_does_not_hang_the_stop(systems: Systems) -> None:
    async def block(name: str) -> None:
        jobs.gates[name].enter()

    system = systems.start(queues={"": 1})
    system.put(async_deed(block), "blocks")
    jobs.gates["blocks"].wait_until_entered()
    within(lambda: system.stop(NOW))
    (thread,) = threads("event loop")
    jobs.gates["blocks"].open()
    thread.join(LIMIT_SECONDS)
    assert not thread.is_alive()


@pytest.mark.spec("J9", "D10")
def test_threads_that_coroutines_have_used_end_with_the_system(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    jobs.gates["thread"].open()
    assert system.result(system.put(async_deed(_in_thread), "thread"), timeout=LIMIT) is None
    assert threads("asyncio")
    system.stop()
    assert not threads("asyncio") and not threads("event loop")


@pytest.mark.spec("J9", "D10")
def test_there_is_no_event_loop_before_one_is_needed(system: Any) -> None:
    assert system.result(system.put(jobs.add, 1, 2), timeout=LIMIT) == 3
    assert not threads("event loop")


@pytest.mark.spec("J9")
def test_a_coroutine_cannot_stop_its_system_nor_call_a_job_by_hand(systems: Systems) -> None:
    async def misbehave() -> list[str]:
        errors = []
        for call in (lambda: jobs.systems["s"].stop(), lambda: Job(jobs.add, 1, 2)()):
            try:
                call()
            except BadStatusError as error:
                errors.append(str(error))
        return errors

    system = jobs.systems["s"] = systems.start(queues={"": 1})
    errors = system.result(system.put(async_deed(misbehave)), timeout=LIMIT)
    assert "cannot stop the system" in errors[0] and "inside a running job" in errors[1]


# Futures.


@pytest.mark.spec("J9", "J6")
def test_what_a_job_did_before_it_returned_a_future_is_committed_at_once(
    system: Any, left: Suspended
) -> None:
    ref = put(system, lambda first, *others: Job(coroutines.add_and_return_future, first, "f"))
    left.wait(system)
    assert values(system) == [1, 0, 0]
    assert (read(system, ref, "status"), read(system, ref, "result")) == (Status.ACTIVE, None)
    futures["f"].set_result([1, 2])
    assert system.result(ref, timeout=LIMIT) == [1, 2]
    assert (calls, values(system)) == (["f"], [1, 0, 0])


def _never(item: Any) -> Job:
    job = Job(item)
    job.retry_policy_factory = jobs.policy_never
    return job


@pytest.mark.spec("J9")
@pytest.mark.parametrize(
    ("settle", "message"),
    [
        (lambda future: future.set_exception(ValueError("no")), "ValueError: no"),
        (lambda future: future.cancel(), "AbortedError.*was cancelled"),
        (lambda future: future.set_result(threading.Lock()), "NotStorableError"),
    ],
    ids=["error", "cancelled", "not storable"],
)
@pytest.mark.parametrize("before", [True, False])
def test_a_future_that_brings_no_result_is_an_error_of_the_job(
    before: bool, settle: Any, message: str, system: Any, left: Suspended
) -> None:
    if before:
        settle(futures["f"])
    ref = system.put(coroutines.future, "f")
    if not before:
        left.wait(system)
        settle(futures["f"])
    with pytest.raises(JobFailedError, match=message):
        system.result(ref, timeout=LIMIT)


@pytest.mark.spec("J9", "J8")
def test_a_future_may_bring_a_future_or_a_job(system: Any) -> None:
    ref = system.put(coroutines.future, "outer")
    inner = put(system, lambda *registers: Job(async_deed(_give_future), "inner"))
    # Each a job of its own: one belongs to the connection that has stored it.
    for name in ("inner", "nested"):
        futures[name].set_result(Job(jobs.add, 2, 3))
    futures["outer"].set_result(futures["nested"])
    assert [system.result(each, timeout=LIMIT) for each in (inner, ref)] == [5, 5]


async def _give_future(name: str) -> Any:
    return futures[name]


@pytest.mark.spec("J9", "R9")
def test_storing_what_a_future_brought_is_tried_again_without_another_attempt(
    system: Any, left: Suspended, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = put(system, lambda first, *others: Job(coroutines.add_and_return_future, first, "f"))
    left.wait(system)
    take = Runner._take_result
    fails = [FailingManager(ConflictError("at first"), "tpc_vote")]

    def conflicting(runner: Runner, job: Job, result: Any) -> None:
        take(runner, job, result)
        if fails:
            transaction.get().join(fails.pop())

    monkeypatch.setattr(Runner, "_take_result", conflicting)
    futures["f"].set_result(5)
    assert system.result(ref, timeout=LIMIT) == 5
    assert not fails and calls == ["f"] and values(system) == [1, 0, 0]


class Oracle(pykka.ThreadingActor):
    """An actor of the application's, which is asked by a job."""

    def on_receive(self, message: Any) -> Any:
        jobs.gates["oracle"].enter()
        if isinstance(message, BaseException):
            raise message
        return message


def ask(message: Any) -> Any:
    return jobs.systems["oracle"].ask(message, block=False)


def ask_twice(message: Any) -> Any:
    return ask(message).map(lambda answer: answer * 2)


@pytest.fixture
def oracle() -> Iterator[Any]:
    ref = jobs.systems["oracle"] = Oracle.start()
    yield ref
    jobs.gates["oracle"].open()
    ref.stop()


@pytest.mark.spec("J9")
def test_the_answer_of_an_actor_is_waited_for_without_a_thread(
    system: Any, oracle: Any, left: Suspended
) -> None:
    refs = [system.put(ask, 5), system.put(ask_twice, 6), system.put(ask, ValueError("no"))]
    late = system.put(ask, pykka.Timeout("its own"))
    left.wait(system, 4)
    assert [read(system, ref, "status") for ref in refs] == [Status.ACTIVE] * 3
    jobs.gates["oracle"].open()
    assert [system.result(ref, timeout=LIMIT) for ref in refs[:2]] == [5, 12]
    with pytest.raises(JobFailedError, match="ValueError: no"):
        system.result(refs[2], timeout=LIMIT)
    with pytest.raises(JobFailedError, match="Timeout: its own"):
        system.result(late, timeout=LIMIT)


# Callbacks.


@pytest.mark.spec("J9", "J20", "J21", "J22")
def test_callbacks_may_wait_too_and_the_others_are_called_after_them(
    system: Any, left: Suspended
) -> None:
    async def plus(name: str, result: int) -> int:
        calls.append(("coroutine", result))
        await gates[name].enter()
        return result + 1

    def make(*registers: Any) -> Job:
        job = Job(async_deed(lambda: coroutines.add(1, 2)))
        first = job.add_callback(Job(async_deed(plus), "g"))
        first.add_callback(Job(jobs.note, "of the coroutine"))
        second = job.add_callback(Job(coroutines.future, "f"))
        second.add_callback(Job(jobs.note, "of the future"))
        job.add_callbacks(success=Job(async_deed(plus), "h"))
        job.add_callback(Job(jobs.note, "at last"))
        return job

    ref = put(system, make)
    gates["g"].wait_until_entered()
    left.wait(system, 2)
    assert system.result(ref, timeout=LIMIT) == 3
    assert read(system, ref, "status") is Status.CALLBACKS
    gates["g"].open()
    left.wait(system)
    futures["f"].set_result("future")
    gates["h"].wait_until_entered()
    gates["h"].open()
    system.wait(ref, timeout=LIMIT)
    assert calls == [
        ("coroutine", 3),
        ("of the coroutine", 4),
        "f",
        ("of the future", "future"),
        ("coroutine", 3),
        ("at last", 3),
    ]


@pytest.mark.spec("J9", "J24")
def test_a_callback_that_is_a_coroutine_has_its_own_connection(system: Any) -> None:
    def make(first: Any, *others: Any) -> Job:
        job = Job(coroutines.add, 2, 3)
        job.add_callback(first.add)
        return job

    ref = put(system, make)
    system.wait(ref, timeout=LIMIT)
    assert values(system) == [5, 0, 0]


# By hand.


@pytest.mark.spec("J9", "J5")
def test_by_hand_a_coroutine_runs_in_the_callers_thread_and_transaction(desk: Desk) -> None:
    register = desk.root["register"] = Register()
    transaction.commit()

    async def work() -> Any:
        await asyncio.sleep(0)
        register.value += 1
        return threading.current_thread(), local.get_job()._p_jar is desk.connection

    async def keep(register: Any) -> int:
        thread, same = await work()
        calls.append((thread, same))
        return int(register.value)

    calls.clear()
    job = desk.store(Job(async_deed(keep), register))
    job.add_callback(Job(async_deed(_note_result)))
    transaction.commit()
    assert job() == 1
    assert calls == [(threading.current_thread(), True), 1]
    with desk.elsewhere() as connection:
        assert connection.get(register._p_oid).value == 1


async def _note_result(result: Any) -> None:
    await asyncio.sleep(0)
    calls.append(result)


@pytest.mark.spec("J9", "J5")
def test_by_hand_a_job_that_was_never_stored_may_be_a_coroutine() -> None:
    assert Job(coroutines.add, 1)(2) == 3


@pytest.mark.spec("J9", "J5", "J6")
def test_by_hand_a_future_is_waited_for_and_what_went_before_is_committed(desk: Desk) -> None:
    register = desk.root["register"] = Register()
    seen: list[int] = []

    class Future(concurrent.futures.Future[int]):
        def exception(self, timeout: float | None = None) -> Any:
            with desk.elsewhere() as connection:
                seen.append(connection.get(register._p_oid).value)
            return super().exception(timeout)

    future = Future()
    future.set_result(7)

    def work(register: Any) -> Any:
        register.value += 1
        return future

    job = desk.store(Job(plain_deed(work), register))
    assert job() == 7
    assert (seen, job.status) == ([1], Status.COMPLETED)


@pytest.mark.spec("J9", "J5")
def test_by_hand_errors_of_coroutines_and_futures_are_failures(desk: Desk) -> None:
    async def cancel() -> None:
        raise asyncio.CancelledError

    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    future.cancel()
    results = [
        desk.store(Job(item))()
        for item in (async_deed(coroutines.fail), async_deed(cancel), plain_deed(lambda: future))
    ]
    assert all(isinstance(result, Failure) for result in results)
    assert [str(result).split(":")[0] for result in results] == [
        "ValueError",
        "perdure.model.errors.AbortedError",
        "perdure.model.errors.AbortedError",
    ]


@pytest.mark.spec("J9", "J5")
def test_by_hand_a_coroutine_is_refused_inside_a_running_loop(desk: Desk) -> None:
    job = desk.store(Job(coroutines.add, 1, 2))

    async def call() -> str:
        with pytest.raises(BadStatusError, match="running event loop.*put it into a queue"):
            job()
        return job.status.name

    assert asyncio.run(call()) == "NEW"
    # A callback is begun by then, and this is its failure.
    plain = desk.store(Job(jobs.add, 1, 2))
    callback = plain.add_callback(Job(async_deed(_note_result)))
    transaction.commit()

    async def call_plain() -> Any:
        return plain()

    assert asyncio.run(call_plain()) == 3
    assert isinstance(callback.result, Failure) and "running event loop" in str(callback.result)
