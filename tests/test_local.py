"""What a running job can reach."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import transaction

from perdure.model import (
    BadStatusError,
    Job,
    JobNotFoundError,
    NotStorableError,
    local,
)
from support.desk import Desk, deed
from support.manual_clock import ManualClock

HOUR = timedelta(hours=1)
LIMIT_SECONDS = 60.0


@pytest.mark.spec("L1")
def test_a_running_job_reaches_itself_its_queue_its_dispatcher_and_its_agents_name(
    desk: Desk,
) -> None:
    seen: list[Any] = []

    def look(*args: Any) -> None:
        seen.append(
            (local.get_job(), local.get_queue(), local.get_dispatcher(), local.get_agent_name())
        )

    job = Job(deed(look))
    callback = job.add_callback(deed(look))
    proxy = job.add_callbacks(success=deed(look))
    desk.put(job)
    desk.work()
    where = (desk.queue, desk.agent.record, "main")
    assert seen == [(job, *where), (callback, *where), (proxy.success, *where)]


@pytest.mark.spec("L1")
def test_a_job_that_is_called_by_hand_reaches_itself_and_is_nowhere() -> None:
    job = Job(
        deed(
            lambda: (
                local.get_job() is job,
                local.get_queue(),
                local.get_dispatcher(),
                local.get_agent_name(),
            )
        )
    )
    assert job() == (True, None, None, None)


class Reaches(Job):
    def set_up(self) -> Any:
        assert local.get_job() is self

    def tear_down(self, info: Any) -> None:
        assert local.get_job() is self
        reached.append(self)


reached: list[Job] = []


@pytest.mark.spec("L1", "J14")
def test_its_hooks_reach_it_too() -> None:
    reached.clear()
    job = Reaches(abs, 1)
    job()
    assert reached == [job]


@pytest.mark.spec("L1")
@pytest.mark.parametrize(
    "call",
    [
        local.get_job,
        local.get_queue,
        local.get_dispatcher,
        local.get_agent_name,
        lambda: local.set_live_annotation("a", 1),
        lambda: local.get_live_annotation("a"),
    ],
)
def test_outside_of_a_job_there_is_nothing_to_reach(call: Any) -> None:
    for _ in range(2):
        with pytest.raises(BadStatusError, match="no job runs in this thread"):
            call()
        Job(deed(lambda: None))()


@pytest.mark.spec("L1")
def test_each_thread_reaches_its_own_job(desk: Desk) -> None:
    seen: list[Any] = []

    def other() -> None:
        try:
            local.get_job()
        except BadStatusError:
            seen.append("none")
        own = Job(deed(lambda: seen.append(local.get_job() is own)))
        own()

    def work() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(LIMIT_SECONDS)
        seen.append(local.get_job() is job)

    job = desk.put(Job(deed(work)))
    desk.work()
    assert seen == ["none", True, True]


# Live annotations.


@pytest.mark.spec("L2")
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_live_annotation_is_seen_while_the_job_runs_and_costs_it_no_attempt(
    desk: Desk, by_hand: bool
) -> None:
    seen: list[Any] = []

    def work() -> None:
        desk.root["effect"] = len(seen)
        for number in range(3):
            local.set_live_annotation("progress", number)
            with desk.elsewhere() as connection:
                found = connection.get(job._p_oid)
                seen.append((found.annotations["progress"], "effect" in connection.root()))
        seen.append(local.get_live_annotation("progress"))

    job = Job(deed(work))
    if by_hand:
        desk.store(job)()
    else:
        desk.put(job)
        desk.work()
    transaction.begin()
    assert not job.failed
    assert seen == [(0, False), (1, False), (2, False), 2]
    assert dict(job.annotations) == {"progress": 2} and desk.root["effect"] == 0


@pytest.mark.spec("L2")
def test_a_live_annotation_survives_the_failure_of_the_job(desk: Desk) -> None:
    def work() -> None:
        local.set_live_annotation("progress", 50)
        raise ValueError

    job = desk.put(Job(deed(work)))
    desk.work()
    assert job.failed and dict(job.annotations) == {"progress": 50}


@pytest.mark.spec("L2")
def test_the_callers_transaction_is_not_touched(desk: Desk) -> None:
    job = desk.put(Job(abs, 1))
    desk.root["x"] = 1
    before = transaction.get()
    local.set_live_annotation("flag", True, job=job)
    assert local.get_live_annotation("flag", job=job) is True
    assert transaction.get() is before and "flag" not in job.annotations
    transaction.abort()
    assert "x" not in desk.root and job.annotations["flag"] is True


@pytest.mark.spec("L2")
def test_a_flag_that_is_set_from_outside_is_seen_by_the_running_job(desk: Desk) -> None:
    def work() -> Any:
        before = local.get_live_annotation("stop", default="not yet")
        with desk.elsewhere() as connection:
            connection.get(job._p_oid).annotations["stop"] = "now"
        return before, local.get_live_annotation("stop"), "stop" in job.annotations

    job = desk.put(Job(deed(work)))
    desk.work()
    assert job.result == ("not yet", "now", False)


@pytest.mark.spec("L2")
def test_conflicting_setters_both_succeed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure.model.annotations import Annotations

    job = desk.put(Job(abs, 1))
    real = Annotations.__setitem__
    nested: list[str] = []

    def setitem(self: Annotations, name: str, value: Any) -> None:
        if not nested:
            nested.append(name)
            local.set_live_annotation("second", 2, job=job)
        real(self, name, value)

    with job._p_jar.db().transaction():
        pass
    monkeypatch.setattr(Annotations, "__setitem__", setitem)
    local.set_live_annotation("first", 1, job=job)
    assert local.get_live_annotation("first", job=job) == 1
    assert local.get_live_annotation("second", job=job) == 2


@pytest.mark.spec("L2")
def test_waiting_for_an_annotation_ends_when_it_is_set(desk: Desk) -> None:
    clock = desk.clock
    clock.__class__ = ManualClock
    job = desk.put(Job(abs, 1))
    found: list[Any] = []

    def wait() -> None:
        with desk.elsewhere() as connection:
            found.append(
                local.get_live_annotation("flag", timeout=HOUR, job=connection.get(job._p_oid))
            )

    thread = threading.Thread(target=wait)
    thread.start()
    clock.wait_until_waiting(1)
    local.set_live_annotation("flag", "up", job=job)
    thread.join(LIMIT_SECONDS)
    assert found == ["up"] and clock.monotonic() == 0


@pytest.mark.spec("L2")
def test_waiting_for_an_annotation_ends_with_the_default_after_the_timeout(desk: Desk) -> None:
    job = desk.put(Job(abs, 1))
    started = desk.clock.monotonic()
    found = local.get_live_annotation(
        "flag", default="none", timeout=timedelta(seconds=3), job=job
    )
    assert (found, desk.clock.monotonic() - started) == ("none", pytest.approx(3))
    assert local.get_live_annotation("flag", job=job) is None


@pytest.mark.spec("L2")
def test_what_was_set_by_another_process_is_noticed_while_waiting(desk: Desk) -> None:
    """Nobody announces it here, as nobody does across processes."""
    job = desk.put(Job(abs, 1))
    real = type(desk.clock).wait
    rounds: list[int] = []

    def wait(self: Any, condition: Any, timeout_seconds: float | None) -> None:
        rounds.append(1)
        if len(rounds) == 3:
            with desk.elsewhere() as connection:
                connection.get(job._p_oid).annotations["flag"] = "up"
        real(self, condition, timeout_seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(desk.clock), "wait", wait)
        assert local.get_live_annotation("flag", timeout=HOUR, job=job) == "up"
    assert len(rounds) == 3


@pytest.mark.spec("L2")
def test_a_job_that_is_not_stored_has_no_live_annotations() -> None:
    job = Job(abs, 1)
    with pytest.raises(JobNotFoundError, match="was not stored yet"):
        local.set_live_annotation("a", 1, job=job)
    with pytest.raises(JobNotFoundError, match="was not stored yet"):
        local.get_live_annotation("a", job=job)


@pytest.mark.spec("L2")
def test_what_cannot_be_stored_is_refused_and_leaves_nothing_open(desk: Desk) -> None:
    job = desk.put(Job(abs, 1))
    with pytest.raises(NotStorableError, match="annotation 'a'"):
        local.set_live_annotation("a", lambda: None, job=job)
    assert len(desk.database.connectionDebugInfo()) <= 2
    assert local.get_live_annotation("a", job=job) is None
