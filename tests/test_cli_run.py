"""``perdure run``: jobs are run until a signal says stop, and what happens is written."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.cli import serving
from perdure.cli.logs import writing_logs
from perdure.model import Status
from support.shop import Shell, Shop
from support.systems import LIMIT, settled, within
from support.tree import TESTS

SECONDS = LIMIT.total_seconds()


# What is written


def record(name: str, level: int, text: str, *args: Any, **extra: Any) -> None:
    logging.getLogger(name).log(level, text, *args, extra=extra)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_an_event_is_a_line_of_text(capsys):
    with writing_logs("text", "info"):
        record("perdure.events", logging.INFO, "agent %r was added", "main")
        record("perdure.trace", logging.INFO, "%r succeeded with %s", "job", "5")

    texts = [line.split(maxsplit=3)[2:] for line in lines(capsys)]
    assert texts == [["INFO", "agent 'main' was added"], ["INFO", "'job' succeeded with 5"]]


def test_a_long_text_is_its_first_and_its_last_line(capsys):
    with writing_logs("text", "info"):
        record("perdure.events", logging.ERROR, "%s failed:\nTraceback …\n  x\nValueError: no\n",
               "app:f", job="2f")  # fmt: skip

    (line,) = lines(capsys)
    assert line.endswith("ERROR    app:f failed: ValueError: no (perdure traceback 2f)")


def test_an_error_that_is_logged_is_shown_without_its_traceback(capsys):
    with writing_logs("text", "info"):
        try:
            raise ValueError("a\nb\x1b[31m")
        except ValueError:
            logging.getLogger("perdure.events").exception("it was lost")

    (line,) = lines(capsys)
    assert line.endswith(r"it was lost: ValueError: a b\x1b[31m")


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["started", "polled", "came", "app's", "lost", "ZEO's"]),
        ("info", ["came", "app's", "lost"]),
        ("warning", ["lost"]),
        ("critical", []),
    ],
)
def test_what_matters_is_written(capsys, level, written):
    with writing_logs("text", level):
        record("perdure.trace", logging.INFO, "started")
        record("perdure.trace", logging.DEBUG, "polled")
        record("perdure.events", logging.INFO, "came")
        record("app", logging.INFO, "app's")
        record("perdure.events", logging.ERROR, "lost")
        record("ZEO.ClientStorage", logging.INFO, "ZEO's")

    assert [line.split()[-1] for line in lines(capsys)] == written


def test_an_event_is_a_json_object_in_a_line(capsys):
    with writing_logs("json", "info"):
        record(
            "perdure.events", logging.ERROR, "%s failed:\nTraceback …\n  x\n\nValueError: no\n",
            "app:f", job="2f", queue="mail",
        )  # fmt: skip
        try:
            raise ValueError("no")
        except ValueError:
            logging.getLogger("app").exception("lost")

    failed, lost = [json.loads(line) for line in lines(capsys)]
    assert failed.pop("time").endswith("+00:00")
    assert failed == {
        "level": "error", "logger": "perdure.events", "event": "app:f failed: ValueError: no",
        "job": "2f", "queue": "mail", "agent": None, "dispatcher": None,
        "traceback": "Traceback …\n  x\nValueError: no",
    }  # fmt: skip
    assert (lost["event"], lost["job"], lost["queue"]) == ("lost", None, None)
    assert lost["traceback"].endswith("ValueError: no")


def test_the_default_queue_of_a_job_is_no_unknown_one(capsys):
    with writing_logs("json", "info"):
        record("perdure.events", logging.INFO, "done", job="2f", queue="", agent="")
        record("perdure.events", logging.INFO, "done", job="", queue="", dispatcher="8d")

    of_job, of_process = [json.loads(line) for line in lines(capsys)]
    assert (of_job["queue"], of_job["agent"]) == ("", None)
    assert (of_process["queue"], of_process["dispatcher"]) == (None, "8d")


def test_logging_is_afterwards_as_it_was():
    root = logging.getLogger()
    before = root.level, list(root.handlers)

    with writing_logs("text", "debug"):
        pass

    assert (root.level, root.handlers) == before


# In this process


@pytest.mark.slow
@pytest.mark.spec("D10")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_until_a_signal_and_restores_the_handlers(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, number
):
    before = [signal.getsignal(each) for each in serving.SIGNALS]
    say = serving._say_what_runs
    seen: list[dict[str, int]] = []

    def say_and_signal(system: Any, queues: dict[str, int]) -> None:
        say(system, queues)
        seen.append(queues)
        settled(system)
        signal.raise_signal(number)

    monkeypatch.setattr(serving, "_say_what_runs", say_and_signal)

    assert shell.run("run", "--queue", "default:2", "--queue", "mail:1", "--import", "app") == 0

    assert seen == [{"": 2, "mail": 1}]
    assert [signal.getsignal(each) for each in serving.SIGNALS] == before
    assert shell.out == ""
    texts = [line.split(maxsplit=3)[3] for line in shell.err.splitlines()]
    assert texts[-1] == "stopped"
    assert any(text.startswith(f"running jobs of {shell.database}, queues") for text in texts)
    status = shell.json("status")
    assert [queue["name"] for queue in status["queues"]] == ["", "mail"]
    assert not status["dispatchers"][0]["active"]


def test_the_signals_of_a_forked_child_are_its_own():
    arrivals = serving._Arrivals()
    try:
        child = os.fork()
        if child == 0:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        arrived = select.select([arrivals._reading], [], [], 0)[0]
    finally:
        arrivals.close()

    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    assert arrived == []


def test_signals_that_are_the_applications_do_not_arrive():
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    arrivals = serving._Arrivals()
    try:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)
        arrivals.stopped()
        assert [arrivals.wait(), arrivals.wait()] == [True, False]
    finally:
        arrivals.close()
        signal.signal(signal.SIGUSR1, before)


# As a process


class Run:
    """``perdure run`` in a process of its own, whose lines are read one by one."""

    def __init__(self, folder: Path, *words: str, stdin: int = subprocess.DEVNULL) -> None:
        path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "perdure.cli", "run", "--log-format", "json", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def events(self) -> Iterator[dict[str, str]]:
        """What it writes, until it ends."""
        assert self.process.stderr is not None
        while line := within(self.process.stderr.readline):
            yield json.loads(line)

    def wait_for(self, text: str) -> dict[str, str]:
        """The next event that has `text`."""
        return next(event for event in self.events() if text in event["event"])

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def started(shell: Shell) -> Iterator[Any]:
    runs: list[Run] = []

    def start(*words: str, **settings: Any) -> Run:
        runs.append(Run(shell.folder, *words, **settings))
        return runs[-1]

    yield start
    for each in runs:
        each.close()


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.spec("D10")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(shell: Shell, started, number):
    run = started("--queue", ":1")
    running = run.wait_for("running jobs of")

    run.process.send_signal(number)

    events = list(run.events())
    assert run.process.wait(SECONDS) == 0
    assert events[-1]["event"] == "stopped"
    assert running["dispatcher"] and running["level"] == "info"
    assert run.process.stdout.read() == ""


@pytest.mark.slow
@pytest.mark.process
def test_it_runs_jobs_and_tells_each_in_one_line(shell: Shell, shop: Shop, started):
    failing = shell.ok("put", "app:fail").strip()
    run = started("--queue", ":1")

    done = [run.wait_for(" succeeded with "), run.wait_for(" failed: ")]
    run.process.send_signal(signal.SIGTERM)
    rest = list(run.events())

    assert [event["job"] for event in done] == [shop.waiting, failing]
    assert {event["queue"] for event in done} == {""}
    assert {event["agent"] for event in done} == {"main"}
    assert done[1]["level"] == "error" and "ValueError: no" in done[1]["event"]
    assert done[1]["traceback"].startswith("Traceback")
    assert not [event for event in rest if event["job"]]
    assert run.process.wait(SECONDS) == 0
    assert shell.json("show", shop.waiting)["result"] == "'hello Ada hello Ada'"


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.spec("D10", "C3")
def test_a_second_signal_ends_the_drain_at_once(shell: Shell, shop: Shop, started, monkeypatch):
    monkeypatch.setenv("PERDURE_TEST_HANG", "1")
    ref = shell.ok("put", "support.jobs:note_and_hang", "hanging").strip()
    run = started("--queue", ":2", "--drain", "1d")
    assert within(run.process.stdout.readline) == "hanging\n"

    run.process.send_signal(signal.SIGTERM)
    run.wait_for("stopping: claims nothing more, what runs may end within 1d")
    run.process.send_signal(signal.SIGTERM)

    texts = [event["event"] for event in run.events()]
    assert "stopping at once" in texts and texts[-1] == "stopped"
    assert run.process.wait(SECONDS) == 0
    # It counts as interrupted, and is dealt with by the next process.
    assert shell.json("show", ref)["status"] == Status.ACTIVE.value
    assert shell.json("check") == {"violations": [], "unresolved": []}


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.spec("D10")
def test_what_runs_may_end_within_the_drain(shell: Shell, shop: Shop, started):
    (shell.folder / "helper.py").write_text(
        "import os\n\ndef pause():\n    os.write(1, b'begun\\n')\n    os.read(0, 1)\n"
    )
    ref = shell.ok("put", "helper:pause").strip()
    reading, writing = os.pipe()
    try:
        run = started("--queue", ":2", stdin=reading)
        assert within(run.process.stdout.readline) == "begun\n"
        run.process.send_signal(signal.SIGTERM)
        run.wait_for("stopping: claims nothing more, what runs may end within 10s")
        os.write(writing, b"x")
        assert list(run.events())[-1]["event"] == "stopped"
        assert run.process.wait(SECONDS) == 0
    finally:
        os.close(reading)
        os.close(writing)
    assert shell.json("show", ref)["status"] == "completed"


@pytest.mark.slow
@pytest.mark.process
def test_two_terminals_work_on_one_file(shell: Shell, started):
    run = started("--queue", ":2")
    run.wait_for("running jobs of")

    out = shell.ok("put", "app:add", "2", "3", "--wait").splitlines()
    status = shell.json("status")

    assert out[1:] == ["5"]
    assert status["dispatchers"][0]["live"]["pid"] == run.process.pid
    run.process.send_signal(signal.SIGTERM)
    assert list(run.events())[-1]["event"] == "stopped"
    assert run.process.wait(SECONDS) == 0
    assert shell.json("show", out[0])["status"] == "completed"


@pytest.mark.slow
@pytest.mark.process
def test_a_reader_that_leaves_is_met_with_silence(shell: Shell, shop: Shop):
    done = subprocess.run(
        f"{sys.executable} -m perdure.cli jobs --json | head -1",
        shell=True,
        cwd=shell.folder,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")
