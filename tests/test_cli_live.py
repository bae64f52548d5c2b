"""What commands see and do while a process runs jobs of the same file."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from test_cli_reports import differences, documented, shape

from perdure.actors import ActorSystem, PollNow, start
from perdure.cli.output import plain
from perdure.cli.processes import ask_all
from support import jobs
from support.shop import Shell, Shop
from support.systems import HOUR, within

pytestmark = pytest.mark.slow


@pytest.fixture
def system(shell: Shell, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[ActorSystem]:
    """Works for the default queue, whose one waiting job it has run."""
    monkeypatch.syspath_prepend(shell.folder)
    with start(f"file://{shell.database}", {"": 2}, poll_interval=HOUR) as made:
        within(lambda: made.wait(shop.waiting))
        yield made


@pytest.mark.spec("D12")
def test_the_status_asks_the_process_that_runs(shell: Shell, system: ActorSystem):
    status = shell.json("status")

    (process,) = [each for each in status["dispatchers"] if each["active"]]
    assert process["uuid"] == str(system.uuid)
    assert process["live"]["state"] == "running" and process["live_error"] == ""
    assert differences(shape(documented("status")), shape(status)) == []
    line = next(
        line.split()
        for line in shell.ok("status").splitlines()
        if line.startswith(str(system.uuid)[:8])
    )
    assert line[2] == "running" and str(process["live"]["pid"]) in line


@pytest.mark.spec("D12")
def test_the_polls_of_a_process_are_shown(shell: Shell, shop: Shop, system: ActorSystem):
    system.ask(PollNow())

    found = shell.json("polls")

    assert differences(shape(documented("polls")), shape(found)) == []
    (process,) = found["processes"]
    assert process["uuid"] == str(system.uuid)
    claimed = [
        ref
        for poll in process["polls"]
        for queue in poll["queues"]
        for agent in queue["agents"]
        for ref in agent["claimed"]
    ]
    assert claimed == [shop.waiting]
    assert [line.split()[2:5] for line in shell.ok("polls").splitlines()[2:]] == [
        ["(default)", "main", "2"] for _ in process["polls"]
    ]


@pytest.mark.spec("D12")
def test_polls_are_chosen(shell: Shell, system: ActorSystem):
    system.ask(PollNow())
    system.ask(PollNow())

    def number(*words: str) -> int:
        return len(shell.json("polls", *words)["processes"][0]["polls"])

    assert number() >= 3
    assert number("--limit", "2") == 2
    assert number("--since", "1h") >= 3
    assert number("--until", "1h") == 0
    assert number("--queue", "default") >= 3
    assert number("--queue", "mail") == 0


def test_without_a_process_there_are_no_polls(shell: Shell, shop: Shop):
    assert shell.json("polls") == {"processes": []}
    assert shell.ok("polls") == "no process runs jobs now: start `perdure run`\n"


@pytest.mark.spec("D12")
def test_a_process_that_cannot_be_asked_is_told(
    shell: Shell, system: ActorSystem, monkeypatch: pytest.MonkeyPatch
):
    def slow(*args: Any, **settings: Any) -> None:
        raise TimeoutError("no answer within 3 s")

    monkeypatch.setattr("perdure.cli.processes.ask_process", slow)

    assert "no answer within 3 s" in shell.ok("polls")
    assert shell.json("polls")["processes"][0]["error"] == "no answer within 3 s"
    (process,) = [each for each in shell.json("status")["dispatchers"] if each["active"]]
    assert (process["live"], process["live_error"]) == (None, "no answer within 3 s")


def test_a_job_is_put_and_run_while_others_have_the_file(shell: Shell, system: ActorSystem):
    ref = shell.ok("put", "app:add", "2", "3").strip()

    within(lambda: system.ask(PollNow()))

    assert within(lambda: system.result(ref)) == 5
    assert shell.json("show", ref)["result"] == "5"


def test_a_queue_is_paused_under_a_process_that_works_for_it(shell: Shell, system: ActorSystem):
    shell.ok("pause", "default")
    ref = shell.ok("put", "app:add", "1").strip()
    within(lambda: system.ask(PollNow()))

    assert shell.json("show", ref)["status"] == "pending"
    shell.ok("resume", "default")
    within(lambda: system.ask(PollNow()))
    within(lambda: system.wait(ref))


@pytest.mark.spec("D8")
def test_a_pack_beside_a_process_that_runs_jobs_loses_nothing(shell: Shell, system: ActorSystem):
    refs = []
    for _ in range(3):
        refs += [system.put(jobs.add, number, 1) for number in range(20)]
        shell.ok("pack")

    for ref in refs:
        within(lambda ref=ref: system.wait(ref, timeout=timedelta(minutes=1)))
    assert shell.ok("check") == "all is well\n"


def test_nobody_is_asked_where_there_is_nobody():
    assert plain(ask_all([], PollNow())) == []
