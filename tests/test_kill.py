"""Real processes: killed, told to end by signals, or left to end by themselves."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from perdure.actors import start
from perdure.model import Job, JobFailedError, Status, check, find_job, get_queue
from support import jobs
from support.coroutines import count_and_hang
from support.jobs import Counter, calls
from support.manual_clock import ManualClock
from support.processes import Child
from support.systems import HOUR, LIMIT, settled, within

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    calls.clear()
    return f"file://{tmp_path / 'app.fs'}"


@pytest.fixture
def child(uri: str) -> Iterator[Any]:
    children: list[Child] = []

    def make(what: str, **settings: Any) -> Child:
        children.append(Child(what, uri, **settings))
        return children[-1]

    yield make
    for each in children:
        each.close()


@pytest.mark.spec("C4", "D5", "D1", "J6", "R2")
def test_a_restart_after_a_kill_takes_the_jobs_up_at_once(uri: str, child: Any) -> None:
    with start(uri, {"": 0}, poll_interval=HOUR) as system:
        with system.transaction() as connection:
            queue = get_queue(connection)
            counters = connection.root()["counters"] = [Counter() for _ in range(6)]
            refs = [
                queue.put(Job(jobs.count_and_hang, counter, f"begun {number}")).ref
                for number, counter in enumerate(counters[:3])
            ]
            never = queue.put(
                Job(jobs.note_and_hang, "begun 3"), retry_policy_factory=jobs.policy_never
            ).ref
            # No place is left for these.
            refs += [
                queue.put(Job(jobs.count_and_hang, counter, "later")).ref
                for counter in counters[3:]
            ]
        identifier = system.uuid
    killed = child("run")
    assert killed.line() == f"uuid {identifier}"
    assert sorted(killed.line() for _ in range(4)) == [f"begun {number}" for number in range(4)]
    killed.process.send_signal(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    # Its time stands still, so that nobody can be dead for lack of a ping.
    clock = ManualClock(datetime.now(UTC))
    with start(uri, {"": 4}, poll_interval=HOUR, clock=clock) as system:
        assert system.uuid == identifier
        for ref in refs:
            within(lambda ref=ref: system.wait(ref))
        with pytest.raises(JobFailedError, match="AbortedError"):
            within(lambda: system.result(never))
        with system.transaction() as connection:
            assert [counter.value for counter in connection.root()["counters"]] == [1] * 6
            policies = [find_job(connection, ref)._policy for ref in refs]
            interruptions = [policy and policy.data["interruptions"] for policy in policies]
            assert interruptions == [1, 1, 1, None, None, None]
        within(lambda: system.wait(never))
        assert "begun 3" not in calls
        assert check(system.database) == []


@pytest.mark.spec("C3", "C4", "R2")
def test_each_kill_counts_as_one_interruption(uri: str, child: Any) -> None:
    with start(uri, {"": 0}, poll_interval=HOUR) as system:
        ref = system.put(jobs.note_and_hang, "begun")
    for _ in range(2):
        killed = child("run")
        assert killed.line().startswith("uuid") and killed.line() == "begun"
        killed.close()
    with start(uri, {"": 1}, poll_interval=HOUR) as system:
        assert system.result(ref, timeout=LIMIT) == "begun"
        with system.transaction() as connection:
            policy = find_job(connection, ref)._policy
            assert policy is not None and policy.data["interruptions"] == 2
    assert calls == ["begun"]


@pytest.mark.spec("D10")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_drain_and_the_handlers_are_restored(
    number: signal.Signals, uri: str, child: Any
) -> None:
    process = child("interrupted")
    assert process.line() == "started"
    process.process.send_signal(number)
    assert process.line() == "stopping"
    process.process.send_signal(number)
    assert process.line() == "restored"
    assert process.end() == 0
    with start(uri, {"": 0}, poll_interval=HOUR) as system, system.transaction() as connection:
        (job,) = get_queue(connection)
        assert job.serves.status is Status.ACTIVE  # put to its policy as interrupted


@pytest.mark.spec("D10")
def test_a_signal_after_the_stop_does_what_it_did_before_the_start(uri: str, child: Any) -> None:
    process = child("polite")
    assert process.line() == "started"
    process.process.send_signal(signal.SIGTERM)
    assert process.line() == "stopped"
    process.process.send_signal(signal.SIGTERM)
    assert process.end() == -signal.SIGTERM


@pytest.mark.spec("D10")
def test_the_interpreter_ends_although_nobody_stopped_the_system(uri: str, child: Any) -> None:
    process = child("forget")
    assert process.line() == "5"
    assert process.end() == 0
    with start(uri, {"": 0}, poll_interval=HOUR) as system:
        settled(system)
        with system.transaction() as connection:
            assert get_queue(connection).dispatchers[system.uuid].active
        assert check(system.database) == []


@pytest.mark.spec("J9", "C4", "R6")
def test_a_kill_interrupts_the_coroutines_that_wait(uri: str, child: Any) -> None:
    with start(uri, {"": 0}, poll_interval=HOUR) as system, system.transaction() as connection:
        queue = get_queue(connection)
        counters = connection.root()["counters"] = [Counter() for _ in range(3)]
        refs = [
            queue.put(Job(count_and_hang, counter, f"begun {number}")).ref
            for number, counter in enumerate(counters)
        ]
    killed = child("run")
    assert killed.line().startswith("uuid")
    assert sorted(killed.line() for _ in refs) == [f"begun {number}" for number in range(3)]
    killed.process.send_signal(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    with start(uri, {"": 3}, poll_interval=HOUR) as system:
        assert [system.result(ref, timeout=LIMIT) for ref in refs] == [1, 1, 1]
        with system.transaction() as connection:
            assert [counter.value for counter in connection.root()["counters"]] == [1] * 3
            policies = [find_job(connection, ref)._policy for ref in refs]
            assert [policy and policy.data["interruptions"] for policy in policies] == [1] * 3
        assert check(system.database) == []
