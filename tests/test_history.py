"""What a system remembers, and answers to questions."""

from __future__ import annotations

import dataclasses
import operator
import threading
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.actors import (
    ActiveJobsAsked,
    JobAsked,
    PollNow,
    PollsAsked,
    Resize,
    StatisticsAsked,
    StatusAsked,
    SystemState,
)
from perdure.actors.context import Board
from perdure.actors.history import JOBS_KEPT, POLLS_KEPT, History, report_of
from perdure.actors.messages import JobEnded, JobStarted, PollDone
from perdure.model import Job, JobRef, find_job, get_queue
from support import jobs
from support.jobs import gates
from support.manual_clock import ManualClock
from support.systems import LIMIT, Systems, settled, within

SECOND = timedelta(seconds=1)
START = datetime(2026, 1, 1, tzinfo=UTC)


def all_told(system: Any) -> None:
    """Return when the only worker has told all about its jobs: it does before the next."""
    system.wait(system.put(jobs.pass_opened), timeout=LIMIT)
    system.wait(system.put(jobs.pass_opened), timeout=LIMIT)


# States


@pytest.mark.spec("D12")
def test_the_state_is_starting_running_stuck_and_stopped(
    systems: Systems, manual_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = systems.database()
    opens = database.open
    gate = jobs.gates["open"]

    def slow_open(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name == "dispatcher":
            gate.enter()
        return opens(*args, **kwargs)

    monkeypatch.setattr(database, "open", slow_open)
    system = systems.start(database, {"": 1}, clock=manual_clock, poll_interval=5 * SECOND)
    gate.wait_until_entered()
    status = system.ask(StatusAsked())
    assert (status.state, status.since_last_poll) == (SystemState.STARTING, None)
    gate.open()
    within(lambda: system.ask(PollNow()))
    with system.transaction() as connection:
        agent = get_queue(connection).dispatchers[system.uuid]["main"]
        agent.filter = jobs.blocks_at_gate
    status = system.ask(StatusAsked())
    assert status.state is SystemState.RUNNING and status.uuid == system.uuid
    system.put(operator.add, 1, 1)
    gates["filter"].wait_until_entered()
    manual_clock.advance(15 * SECOND)
    assert system.ask(StatusAsked()).state is SystemState.RUNNING
    manual_clock.advance(SECOND)
    status = system.ask(StatusAsked())
    assert status.state is SystemState.STUCK
    assert (status.uptime, status.since_last_poll) == (16 * SECOND, 16 * SECOND)
    gates["filter"].open()
    within(lambda: system.ask(PollNow()))
    assert system.ask(StatusAsked()).state is SystemState.RUNNING


@pytest.mark.spec("D12")
def test_the_state_is_stopped_while_it_stops(systems: Systems) -> None:
    system = jobs.systems["mine"] = systems.start(queues={"": 1})
    ref = system.put(jobs.tell_state_at_stop, "mine")
    gates["state"].wait_until_entered()
    stopping = threading.Thread(target=system.stop)
    stopping.start()
    stopping.join(LIMIT.total_seconds())
    assert system.result(ref, timeout=SECOND) == SystemState.STOPPED.value


# Jobs


@pytest.mark.spec("D12")
def test_a_job_is_reported_while_it_runs_and_after(systems: Systems) -> None:
    system = systems.start(queues={"mail": 1})
    with system.transaction() as connection:
        queue = get_queue(connection, "mail")
        queue.quotas.create("narrow")
        job = Job(jobs.pass_gate, "g")
        job.quota_names = ("narrow",)
        ref = queue.put(job).ref
        failing = queue.put(Job(jobs.fail, "broken")).ref
        last = queue.put(Job(operator.add, 1, 1)).ref
    gates["g"].wait_until_entered()
    (report,) = system.ask(ActiveJobsAsked())
    assert system.ask(StatusAsked()).active_jobs == 1
    assert report == system.ask(JobAsked(ref))
    assert (report.ref, report.queue, report.agent) == (ref, "mail", "main")
    assert report.name == "support.jobs:pass_gate" and "pass_gate('g')" in report.call
    assert report.quota_names == ("narrow",)
    assert report.thread in {thread.name for thread in threading.enumerate()}
    assert (report.ended, report.completed, report.text) == (None, False, "")
    gates["g"].open()
    system.wait(last, timeout=LIMIT)
    report = system.ask(JobAsked(ref))
    assert (report.completed, report.failed, report.reassigned) == (True, False, False)
    assert report.text == "'g'" and report.ended >= report.started
    report = system.ask(JobAsked(failing))
    assert (report.completed, report.failed) == (True, True)
    assert "ValueError: broken" in report.text and "Traceback" in report.text
    assert system.ask(JobAsked(JobRef(2**60))) is None


@pytest.mark.spec("D12")
@pytest.mark.parametrize("transactional", [False, True], ids=["alone", "in a group"])
@pytest.mark.parametrize("arguments", [(), (1, "a")], ids=["nothing", "something"])
def test_the_call_is_told_as_the_job_itself_tells_it(
    systems: Systems, transactional: bool, arguments: tuple[Any, ...]
) -> None:
    system = systems.start(queues={"": 1})
    with system.transaction() as connection:
        made = Job(jobs.note, *arguments)
        ref = get_queue(connection).put(made, transactional=transactional).ref
    system.wait(ref, timeout=LIMIT)
    report = system.ask(JobAsked(ref))
    with system.transaction() as connection:
        assert report.call == repr(find_job(connection, ref))
    assert report.completed and report.text == repr(None)


@pytest.mark.spec("D12")
def test_long_texts_are_cut_and_say_so(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    refs = [system.put(jobs.return_long, 9_998), system.put(jobs.return_long, 9_999)]
    refs.append(system.put(jobs.fail, "x" * 20_000))
    all_told(system)
    texts = [system.ask(JobAsked(ref)).text for ref in refs]
    assert [len(text) for text in texts] == [10_000] * 3
    assert [text.endswith("… (cut)") for text in texts] == [False, True, True]


@pytest.mark.spec("D12", "D6")
def test_a_job_that_was_taken_away_is_reported_so(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    ref = system.put(jobs.pass_gate, "g")
    gates["g"].wait_until_entered()
    with system.transaction() as connection:
        get_queue(connection).dispatchers[system.uuid].deactivate()
        get_queue(connection).quotas.create("nobody's")
    heard: list[Any] = []
    board = system._context.board
    add = board.add

    def noted(report: Any) -> None:
        heard.append(report())
        add(report)

    board.add = noted  # type: ignore[method-assign]
    gates["g"].open()
    settled(system)
    system.wait(ref, timeout=LIMIT)
    all_told(system)
    assert [(e.reassigned, e.completed) for e in heard if e.ref == ref] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.spec("D12")
def test_a_job_that_its_worker_is_just_leaving_is_told_once() -> None:
    board = Board()
    history = History(board)
    first, second = report_of(started(1)), report_of(started(2))
    board.set("worker 1", lambda: first)
    board.set("worker 2", lambda: second)
    history.started(started(1))
    assert history.active() == (first, second)
    board.set("worker 1", None)
    assert history.active() == (first, second)


@pytest.mark.spec("D12")
def test_statistics_count_and_name_the_extremes() -> None:
    history = History()
    for number, (seconds, failed) in enumerate([(3, False), (1, False), (7, True), (5, True)]):
        history.started(started(number))
        history.ended(ended(number, seconds, failed=failed))
    history.started(started(9))
    every = history.statistics(None, None)
    assert (every.started, every.successful, every.failed, every.unknown) == (5, 2, 2, 1)
    assert every.shortest_successful == ("job 1", SECOND)
    assert every.longest_successful == ("job 0", 3 * SECOND)
    assert every.shortest_failed == ("job 3", 5 * SECOND)
    assert every.longest_failed == ("job 2", 7 * SECOND)
    some = history.statistics(START + SECOND, START + 3 * SECOND)
    assert (some.started, some.successful, some.failed) == (2, 1, 1)
    assert history.statistics(START + 99 * SECOND, None).shortest_failed is None


@pytest.mark.spec("D12")
def test_statistics_are_answered(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    system.put(jobs.fail)
    all_told(system)
    found = system.ask(StatisticsAsked())
    assert found.failed == 1 and found.started >= 2
    assert found.longest_failed[0] == "support.jobs:fail"


# Bounds


def started(number: int) -> JobStarted:
    return JobStarted(
        ref=JobRef(number),
        call=f"job {number}()",
        name=f"job {number}",
        queue="",
        agent="main",
        thread="one",
        quota_names=(),
        started=START + number * SECOND,
    )


def ended(number: int, seconds: int = 1, *, failed: bool = False) -> JobEnded:
    return JobEnded(
        ref=JobRef(number),
        ended=START + (number + seconds) * SECOND,
        failed=failed,
        reassigned=False,
        text="",
        completed=True,
    )


@pytest.mark.spec("D12")
def test_the_history_is_bounded() -> None:
    assert (POLLS_KEPT, JOBS_KEPT) == (400, 200)
    history = History()
    for number in range(1000):
        history.polled(PollDone(START + number * SECOND, ()))
        history.started(started(number))
        history.ended(ended(number))
    history.ended(ended(5000))  # of which it never heard
    assert len(history.polls(None, None)) == 400
    assert history.statistics(None, None).started == 200
    assert history.job(JobRef(799)) is None and history.job(JobRef(800)) is not None
    assert history.active() == ()


# Polls


@pytest.mark.spec("D12")
def test_polls_are_answered_newest_first_and_between_times(
    systems: Systems, manual_clock: ManualClock
) -> None:
    system = systems.start(queues={"": 2, "mail": 1}, clock=manual_clock)
    settled(system)
    running = system.put(jobs.pass_gate, "g")
    gates["g"].wait_until_entered()
    manual_clock.advance(SECOND)
    within(lambda: system.ask(PollNow()))
    manual_clock.advance(SECOND)
    within(lambda: system.ask(Resize("mail", "main", 4)))
    polls = system.ask(PollsAsked())
    times = [poll.at for poll in polls]
    assert times == sorted(times, reverse=True)
    (poll,) = system.ask(PollsAsked(since=START + SECOND, until=START + 2 * SECOND))
    assert [queue.queue for queue in poll.queues] == ["", "mail"]
    assert all(queue.active and queue.error == "" for queue in poll.queues)
    (agent,) = poll.queues[0].agents
    assert (agent.agent, agent.size, agent.held, agent.active_before) == ("main", 2, 1, 1)
    # Claimed between the polls, and told by the one that follows.
    assert agent.claimed == (running,) and agent.error == ""
    (agent,) = polls[0].queues[1].agents
    assert (agent.size, agent.held, agent.claimed) == (4, 0, ())
    assert polls[0].queues[0].agents[0].claimed == ()
    gates["g"].open()


@pytest.mark.spec("D12")
def test_reports_hold_nothing_that_can_change(systems: Systems) -> None:
    system = systems.start(queues={"": 1})
    all_told(system)
    reports = [system.ask(StatusAsked()), *system.ask(PollsAsked()), system.ask(StatisticsAsked())]
    for report in reports:
        hash(report)
        name = dataclasses.fields(report)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(report, name, None)
    assert isinstance(reports[0].uuid, uuid.UUID)
