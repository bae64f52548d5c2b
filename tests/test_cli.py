"""The command line: what it says when something goes wrong, and its exit status."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import click
import pytest

from perdure.cli import main
from perdure.cli.app import _COMMANDS, perdure
from perdure.cli.errors import CommandError, one_line, run, shown
from support.shop import Shell, Shop


def failing(error: BaseException | None) -> click.Command:
    """A command that raises `error`, or prints, with perdure's own option."""

    @click.command()
    @click.option("--traceback", is_flag=True)
    def command(traceback: bool) -> None:
        print("something")
        if error is not None:
            raise error

    return command


def test_the_version_is_shown(capsys):
    assert main(["--version"]) == 0

    assert capsys.readouterr().out.startswith("perdure ")


def test_the_help_names_the_commands(capsys):
    assert main(["--help"]) == 0

    text = capsys.readouterr().out
    assert [name for name in _COMMANDS if f"\n  {name} " not in text] == []


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_help_of_a_command_has_an_example(capsys, name):
    assert main([name, "--help"]) == 0

    text = capsys.readouterr().out
    assert f"Usage: perdure {name} " in text
    assert f"Example:\n    perdure {name}" in text


def test_a_command_without_help_for_an_option_is_no_command():
    context = click.Context(perdure)
    silent = [
        (name, option.name)
        for name in _COMMANDS
        for option in perdure.get_command(context, name).params
        if isinstance(option, click.Option) and not option.help
    ]

    assert silent == []


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["run", "--help"]])
def test_the_help_waits_for_no_database(words):
    code = (
        "import sys\nfrom perdure.cli import main\n"
        f"assert main({words}) == 0\n"
        "assert not {'ZODB', 'pykka', 'rich'} & set(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_be_taught_to_complete(capsys, shell):
    assert main(["completion", shell]) == 0

    assert "_PERDURE_COMPLETE" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("perdure sta", ["plain,status"]),
        ("perdure re", ["plain,retry", "plain,resume", "plain,resize"]),
        ("perdure jobs --stat", ["plain,--status", "plain,--statistics"]),
        ("perdure jobs --status p", ["plain,pending"]),
        ("perdure status --db so", ["file,so"]),
        ("perdure status --app-dir so", ["dir,so"]),
        ("perdure put app:add --policy f", ["plain,four-times", "plain,forever"]),
        ("perdure put app:add --queue m", ["plain,mail"]),
        ("perdure jobs --queue d", ["plain,default"]),
        ("perdure pause m", ["plain,mail"]),
        ("perdure keep --db nowhere.fs m", []),
    ],
)
def test_what_a_shell_wants_is_completed(shell: Shell, shop: Shop, words, expected):
    shell.ok("status")  # leaves the index
    before = sorted(shell.folder.rglob("*")), shell.database.read_bytes()

    done = subprocess.run(
        [sys.executable, "-m", "perdure.cli"],
        env={
            **os.environ,
            "_PERDURE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert [line for line in done.stdout.splitlines() if line] == expected
    assert done.stderr == ""
    assert (sorted(shell.folder.rglob("*")), shell.database.read_bytes()) == before


def test_a_reader_that_has_gone_is_status_1_and_silence(capfd, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert run(failing(None), []) == 1
        monkeypatch.undo()

    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["show", "24"], ["alias"]])
def test_output_that_cannot_be_written_is_status_1_and_told(
    shell: Shell, shop: Shop, monkeypatch, unwritable, words
):
    words = [shop.added if word == "24" else word for word in words]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", unwritable)
        status = shell.run(*words)

    assert status == 1
    assert shell.err.startswith("perdure: the output could not be written: ")
    assert shell.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.process
def test_a_closed_output_is_told_and_no_file_takes_its_place(shell: Shell, shop: Shop):
    before = shell.database.read_bytes()

    done = subprocess.run(
        ["sh", "-c", f"exec {shlex.quote(sys.executable)} -m perdure.cli status >&-"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )

    assert done.returncode == 1
    expected = "perdure: the output could not be written: standard output is closed\n"
    assert done.stderr == expected
    assert shell.database.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "Missing command (see perdure --help)"),
        (["demmo"], "No such command 'demmo'; did you mean 'demo'? (see perdure --help)"),
        (["stauts"], "No such command 'stauts'; did you mean 'status'?"),
        (["zzzzz"], "No such command 'zzzzz' (see perdure --help)"),
        (["--db", "x.fs", "status"], "--db stands behind the command: perdure COMMAND --db"),
        (["--db=x.fs", "status"], "--db stands behind the command: perdure COMMAND --db"),
        (["--dbx", "status"], "--dbx"),
        (
            ["put", "app:add", "--wait=3"],
            "'--wait' does not take a value (see perdure put --help)",
        ),
        (["alias", "--remove"], "'--remove' requires an argument (see perdure alias --help)"),
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


def test_the_traceback_can_be_had(capsys):
    assert run(failing(ZeroDivisionError("no\x1b[31m")), ["--traceback"]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2] == r"ZeroDivisionError: no\x1b[31m"
    assert lines[-1].startswith("perdure: unexpected ZeroDivisionError: no")


@pytest.mark.slow
@pytest.mark.process
def test_an_interrupt_while_modules_are_imported_is_told():
    # As if it came while click is imported.
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.argv = ['perdure', 'status']\n"
        "import runpy\n"
        "runpy.run_module('perdure.cli', run_name='__main__', alter_sys=True)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "perdure: interrupted\n")


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
