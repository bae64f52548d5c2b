"""The command line: what it says when something goes wrong, and its exit status."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from perdure.cli import main
from perdure.cli.errors import CommandError, one_line, run, shown


def failing(error: BaseException) -> click.Command:
    """A command that raises `error`, with perdure's own option."""

    @click.command()
    @click.option("--traceback", is_flag=True)
    def command(traceback: bool) -> None:
        raise error

    return command


def test_the_version_is_shown(capsys):
    assert main(["--version"]) == 0

    assert capsys.readouterr().out.startswith("perdure ")


def test_the_help_names_the_commands(capsys):
    assert main(["--help"]) == 0

    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "Missing command (see perdure --help)"),
        (["demmo"], "No such command 'demmo'"),
        (["demo", "--limt", "3"], "--limt"),
        (["demo", "--workers", "0"], "'--workers'"),
        (["demo", "--limit", "0"], "'--limit'"),
        (["demo", "one", "two"], "two"),
    ],
)
def test_wrong_words_are_one_line_and_status_2(capsys, words, expected):
    assert main(words) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("perdure: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CommandError("this\ncannot be"), "perdure: this cannot be\n"),
        (PermissionError(13, "Permission denied", "a\x1bb"), r"'a\x1bb'"),
        (ZeroDivisionError("division by zero"), "unexpected ZeroDivisionError: division by zero"),
        (KeyError(), "unexpected KeyError: KeyError"),
    ],
)
def test_what_a_command_raises_is_one_line_and_status_2(capsys, error, expected):
    assert run(failing(error), []) == 2

    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert expected in text


def test_an_interrupt_is_status_130(capsys):
    assert run(failing(KeyboardInterrupt()), []) == 130

    assert capsys.readouterr().err.strip() == "perdure: interrupted"


def test_the_traceback_can_be_had():
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError()), ["--traceback"])


def test_control_codes_and_broken_names_are_escaped():
    assert shown("a\x1b[31m\n\udcff ü") == r"a\x1b[31m\n\udcff ü"
    assert one_line(ValueError("a\n  b")) == "a b"


@pytest.mark.slow
@pytest.mark.process
def test_it_is_a_module_that_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "perdure.cli", "demo", "/no/such/folder"],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "perdure: there is no folder /no/such/folder\n"
