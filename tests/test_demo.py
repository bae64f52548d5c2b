"""The demo: its parts, and the whole with real processes."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import transaction
from rich.console import Console

from perdure.cli import main
from perdure.cli.demo import counting
from perdure.cli.demo.comparing import compare
from perdure.cli.demo.counting import UncountableError, count_words, words_of
from perdure.cli.demo.database import FILE_NAME, index_of, make_folder, open_database, put_files
from perdure.cli.demo.files import default_folder, list_files
from perdure.cli.demo.jobs import Index
from perdure.cli.demo.process import WorkerProcess
from perdure.cli.demo.progress import JobProgress
from perdure.cli.demo.report import Crash, Outcome, print_outcome, print_summary
from perdure.cli.errors import CommandError
from perdure.model import Status, check, get_queue
from support.manual_clock import ManualClock

#: Far beyond what it takes; only a hang waits so long.
PATIENCE_SECONDS = 120

NOT_UTF_8 = os.fsdecode(b"caf\xe9.txt")
FAILING = {"binary.txt", "latin.txt", "dangling.txt", "loop.txt", "pipe.txt"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with texts, and with all that is none."""
    top = tmp_path / "files"
    (top / "x.txt").mkdir(parents=True)
    for number in range(12):
        (top / f"{number}.txt").write_text(f"the number {number} " * (number + 1) + "Ärger's end")
    (top / "x.txt" / "deep.py").write_text("def the(): pass\n")
    (top / "empty.txt").write_bytes(b"")
    (top / NOT_UTF_8).write_text("word")
    (top / "binary.txt").write_bytes(b"word\0word")
    (top / "latin.txt").write_bytes(b"caf\xe9")
    (top / "dangling.txt").symlink_to("nowhere")
    (top / "loop.txt").symlink_to("loop.txt")
    (top / "x.txt" / "up").symlink_to("..")
    os.mkfifo(top / "pipe.txt")
    (top / ".git").mkdir()
    (top / ".git" / "hidden").write_text("hidden")
    (top / "__pycache__").mkdir()
    (top / "__pycache__" / "a.pyc").write_bytes(b"\0")
    return top


# Counting


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", {}),
        (b"One two, ONE!", {"one": 2, "two": 1}),
        ("Ärger ärger".encode(), {"ärger": 2}),
        (b"a_b c3d 42", {"a": 1, "b": 1, "c": 1, "d": 1}),
    ],
)
def test_words_are_letters_and_counted_in_small_ones(data, expected):
    assert words_of(data) == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"ab\0cd", "binary: byte 2 is zero"),
        (b"caf\xe9", "not UTF-8: byte 3 is 0xe9"),
    ],
)
def test_what_is_no_text_is_not_counted(data, reason):
    with pytest.raises(UncountableError, match=reason) as caught:
        words_of(data)

    # It is stored with the job, so the bytes must not come along.
    assert caught.value.__context__ is None


def test_a_pipe_and_a_folder_are_not_read(folder):
    for name in ("pipe.txt", "x.txt"):
        with pytest.raises(UncountableError, match="not a regular file"):
            count_words(str(folder / name))


def test_a_large_file_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(counting, "LIMIT_BYTES", 3)

    with pytest.raises(UncountableError, match="more than 3"):
        count_words(str(folder / "0.txt"))


# Which files


def test_every_file_is_listed_in_order_but_no_hidden_one_and_no_loop(folder):
    listing = list_files(str(folder), 1000)

    numbers = {f"{number}.txt" for number in range(12)}
    expected = numbers | FAILING | {"empty.txt", NOT_UTF_8, "x.txt/deep.py"}
    assert set(listing.names) == expected
    assert list(listing.names[:3]) == ["0.txt", "1.txt", "10.txt"]
    assert len(listing.names) == len(expected)
    assert not listing.more


def test_the_limit_is_kept_and_told(folder):
    listing = list_files(str(folder), 2)

    assert (listing.names, listing.more) == (("0.txt", "1.txt"), True)


def test_the_default_is_the_standard_library_without_what_was_installed():
    listing = list_files(None, 100_000)

    assert listing.folder == default_folder()
    assert "os.py" in listing.names
    assert not [name for name in listing.names if name.startswith("site-packages")]


def test_a_folder_inside_that_cannot_be_listed_is_noted(folder, monkeypatch):
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("x.txt"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)

    assert list_files(str(folder), 1000).unlisted == ("x.txt",)


def test_a_folder_that_cannot_be_read_is_refused(folder, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", scandir)

    with pytest.raises(CommandError, match="cannot be read: Permission denied"):
        list_files(str(folder), 1000)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nothing", "no folder"), ("0.txt", "is no folder"), ("hollow", "no files below")],
)
def test_a_folder_that_will_not_do_is_one_line_and_status_2(folder, capsys, name, reason):
    (folder / "hollow").mkdir()

    assert main(["demo", str(folder / name)]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert reason in captured.err


def test_a_folder_that_has_a_database_is_refused(folder, tmp_path, capsys):
    (tmp_path / FILE_NAME).write_bytes(b"")

    assert main(["demo", str(folder), "--database", str(tmp_path)]) == 2

    assert "earlier demo" in capsys.readouterr().err


def test_a_file_is_no_folder_for_the_database(folder):
    with pytest.raises(CommandError, match="is a file"):
        make_folder(str(folder / "0.txt"))


# The jobs, run by hand in this process


@pytest.fixture
def index(folder: Path, tmp_path: Path) -> Iterator[Index]:
    """The index of `folder` with the work done, in a transaction that can be changed."""
    file = str(tmp_path / FILE_NAME)
    put_files(file, list_files(str(folder), 1000))
    with open_database(file) as database:
        manager = transaction.TransactionManager()
        connection = database.open(transaction_manager=manager)
        try:
            _run_by_hand(connection)
            assert check(database) == []
            yield index_of(connection)
        finally:
            manager.abort()
            connection.close()


def _run_by_hand(connection) -> None:
    manager = connection.transaction_manager
    with manager:
        record = get_queue(connection).dispatchers.register(uuid.UUID(int=1))
        agent = record.add_agent()
        record.activate("by hand")
    while True:
        with manager:
            job = agent.claim_job()
        if job is None:
            return
        job()


def test_every_file_is_counted_once_and_the_failed_ones_are_in_the_summary(index):
    summary = index.summary

    assert {name for name, _ in summary.failed} == FAILING
    assert len(summary.names) == 15
    assert [file.effects for file in index.files.values()].count(1) == 15
    assert dict(summary.most_frequent)["the"] == sum(range(1, 13)) + 1
    assert (index.merges, index.groups_left) == (1, 0)
    assert index.merge_job.result == summary.words


def test_what_was_done_right_agrees(index):
    comparison = compare(index)

    assert comparison.differences == ()
    assert comparison.agreed == len(index.files)


def done_twice(index: Index) -> None:
    index.files[0].effects = 2


def lost(index: Index) -> None:
    index.files[0].counts = None


def a_word_more(index: Index) -> None:
    index.files[0].counts = {**index.files[0].counts, "more": 1}


def a_wrong_reason(index: Index) -> None:
    failed = next(file for file in index.files.values() if file.counts is None)
    failed.job._result = type(failed.job.result)(ValueError("another"))


def not_done(index: Index) -> None:
    index.files[0].job._status_name = Status.ACTIVE.value


def merged_twice(index: Index) -> None:
    index.merges = 2


def a_file_merged_twice(index: Index) -> None:
    index.summary.names = (*index.summary.names, index.summary.names[0])


def a_callback_lost(index: Index) -> None:
    index.groups[0].left = 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (done_twice, "0.txt: the effect of its job was stored 2 times instead of 1"),
        (lost, "0.txt: its job and what it has disagree"),
        (a_word_more, "0.txt: 1 words differ, 'more' for one"),
        (a_wrong_reason, "its job ended with 'ValueError: another'"),
        (not_done, "0.txt: its job is ACTIVE"),
        (merged_twice, "the summary was made 2 times"),
        (a_file_merged_twice, "the summary's names are"),
        (a_callback_lost, "the callbacks counted wrong"),
    ],
)
def test_a_fault_is_noticed(index, fault, said):
    fault(index)

    comparison = compare(index)

    assert said in "\n".join(comparison.differences)
    assert not Outcome(1, 1.0, 1.0, None, comparison, ()).agrees


def test_a_file_that_was_changed_is_left_out(index, folder):
    (folder / "3.txt").write_text("something else, of another length")

    comparison = compare(index)

    assert comparison.changed == ("3.txt",)
    assert comparison.differences == ()


# What is shown


def lines_of(console: Console) -> list[str]:
    """What was printed, without the space at the end of lines."""
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_report_says_what_there_is_to_say(index):
    console = Console(file=io.StringIO())
    outcome = Outcome(21, 2.0, 0.1, Crash(4711, 10, 3, 1, 3), compare(index), ())

    print_summary(console, index.summary)
    print_outcome(console, outcome)

    text = "\n".join(lines_of(console))
    assert re.search(r"^files +15 counted, 5 failed$", text, re.MULTILINE)
    assert "binary.txt: binary: byte 4 is zero" in text
    assert "process 4711 was killed after 10 jobs; running then: 3, run again: 3" in text
    assert re.search(r"^result +20 files agree", text, re.MULTILINE)


def test_the_report_says_loudly_that_something_is_wrong(index):
    done_twice(index)
    console = Console(file=io.StringIO())

    print_outcome(console, Outcome(21, 2.0, 0.1, None, compare(index), ("a violation",)))

    assert lines_of(console)[-1].endswith("NO AGREEMENT: see the 2 above")


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal():
    clock = ManualClock()
    console = Console(file=io.StringIO())

    with JobProgress(console, 20, clock) as progress:
        for done in (1, 2, 3, 1, 4):
            progress.update(done)

    assert [line.partition(",")[0] for line in lines_of(console)] == [
        "2 of 20 jobs done",
        "4 of 20 jobs done",
    ]


def test_progress_is_a_bar_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)

    with JobProgress(console, 20, ManualClock()) as progress:
        progress.update(20)

    assert "20/20" in console.file.getvalue()


# The whole, with real processes


def demo(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the demo as it is run from a shell, in the folder that is no place for modules."""
    return subprocess.run(
        [sys.executable, "-m", "perdure.cli", "demo", *words],
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_SECONDS,
        **options,
    )


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("crash", [True, False], ids=["crash", "no-crash"])
def test_the_demo_ends_with_agreement(folder, tmp_path, crash):
    database = tmp_path / "database, or not?"

    done = demo(str(folder), "--database", str(database), *([] if crash else ["--no-crash"]))

    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "20 files agree: exactly once, nothing lost, nothing twice" in done.stdout
    assert "15 counted, 5 failed" in done.stdout
    assert ("killed process" in done.stdout) == crash
    assert done.stdout.splitlines()[-1] == f"The database is in {database}"
    with open_database(str(database / FILE_NAME)) as opened:
        assert check(opened) == []


@pytest.mark.slow
@pytest.mark.process
def test_the_worker_ends_when_nobody_listens_any_more(folder, tmp_path):
    file = str(tmp_path / FILE_NAME)
    put_files(file, list_files(str(folder), 3))

    with WorkerProcess(file, 2, stay=True) as worker:
        assert next(worker.progress()) == 0

    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


@pytest.mark.slow
@pytest.mark.process
def test_a_worker_that_cannot_work_is_one_line(tmp_path):
    file = tmp_path / FILE_NAME
    file.write_bytes(b"no database")

    with (
        WorkerProcess(str(file), 2) as worker,
        pytest.raises(CommandError, match="ended with status 1 .*worker.log"),
    ):
        list(worker.progress())


@pytest.mark.slow
@pytest.mark.process
def test_an_interrupt_ends_the_worker_too(folder, tmp_path):
    for number in range(300):
        (folder / "x.txt" / f"{number}.txt").write_text("word " * 1000)
    command = [sys.executable, "-m", "perdure.cli", "demo", str(folder), "--no-crash"]
    command += ["--database", str(tmp_path)]

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        while "jobs done" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, error.strip()) == (130, "perdure: interrupted")
    assert output.splitlines()[-1] == f"The database is in {tmp_path}"
    # The worker would have it locked.
    with open_database(str(tmp_path / FILE_NAME)) as database:
        assert check(database) == []
