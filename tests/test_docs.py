"""What looks like code in the README and the docs does what it says.

Each page is one test, run in an empty folder, its blocks from top to bottom:

``python`` blocks
    run in one namespace for the page; a block that begins with ``>>>`` is a doctest. A block
    whose first line is a comment that names a file (``# app.py``) is written to that file
    instead, so that a `console` block can run it.
``console`` blocks
    each ``$ command`` is run by the shell and has to end with status 0; the lines below it are
    what it prints (both streams), where ``...`` stands for anything.
``shell-session`` blocks
    the same in a first terminal, where ``$ command`` goes on while other blocks are run; the
    block is done when it has printed what stands below. One that begins with ``^C`` ends it.

Blocks of any other language (``text``, ``sh``) are only shown. ``<!-- skip: next -->`` before a
block leaves it out.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.metadata
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser

from support.terminal import Terminal
from support.tree import DOCS, ROOT

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

PLUGIN = "perdure.testing.plugin"

#: Far beyond what any command of the docs takes.
COMMAND_TIMEOUT_SECONDS = 240

_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_FILE_NAME = re.compile(r"# ([\w.-]+\.py)\n")


class PythonParser(PythonCodeBlockParser):
    """Runs python blocks, but writes those that name a file."""

    def __call__(self, document):
        for region in super().__call__(document):
            if _FILE_NAME.match(str(region.parsed)):
                region.evaluator = write_file
            yield region


def write_file(example: Example) -> None:
    """Write a block to the file that its first line names."""
    source = str(example.parsed)
    Path(_FILE_NAME.match(source)[1]).write_text(source, encoding="utf-8")


def run_commands(example: Example) -> str | None:
    """Run the commands of a block; what went wrong, or None."""
    for command, expected in commands(str(example.parsed)):
        done = subprocess.run(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT_SECONDS,
            env=environment(),
        )
        if done.returncode != 0:
            return f"{command}: status {done.returncode}\n{done.stdout}"
        if not doctest.OutputChecker().check_output(expected, done.stdout, _FLAGS):
            return f"{command}\nexpected:\n{expected}\nprinted:\n{done.stdout}"
    return None


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, with what it is to print."""
    parts = re.split(r"^\$ ((?:.*\\\n)*.*)\n?", block, flags=re.MULTILINE)
    assert not parts[0].strip(), f"a console block begins with `$ `: {block!r}"
    yield from zip(parts[1::2], parts[2::2], strict=True)


def environment() -> dict[str, str]:
    """The environment, in which `python` and the scripts beside it are those of this run."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    plugins = {each.value for each in importlib.metadata.entry_points(group="pytest11")}
    # Where the package is tested without being installed, pytest does not find its plugin.
    options = "" if PLUGIN in plugins else f"-p {PLUGIN}"
    return {**os.environ, "PATH": path, "COLUMNS": "100", "PYTEST_ADDOPTS": options}


def parser(terminal: Terminal) -> Sybil:
    """What takes a page apart into blocks."""

    def run_in_terminal(example: Example) -> str | None:
        return terminal.type(str(example.parsed))

    return Sybil(
        parsers=[
            PythonParser(doctest_optionflags=_FLAGS),
            CodeBlockParser("console", run_commands),
            CodeBlockParser("shell-session", run_in_terminal),
            SkipParser(),
        ],
        path=str(ROOT),
        patterns=["*.md"],
    )


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_do_what_they_say(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with contextlib.closing(Terminal(environment, _FLAGS)) as terminal:
        for example in parser(terminal).parse(page).examples():
            example.evaluate()


@pytest.mark.process
@pytest.mark.slow
def test_the_first_terminal_is_compared_with_what_it_should_print(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.py").write_text(TALK)

    with contextlib.closing(Terminal(environment, _FLAGS)) as terminal:
        assert "nothing runs" in terminal.type("^C\n")
        assert terminal.type("$ python talk.py\nhel...\n") is None
        assert "still busy" in terminal.type("$ python talk.py\nhello\n")
        assert terminal.type("^C\nbye\n") is None
        assert "printed:\nhello" in terminal.type("$ python talk.py end\ngoodbye\n")
        assert "status 3" in terminal.type("^C\n")


TALK = """
import signal, sys
signal.signal(signal.SIGINT, lambda *args: (print("bye"), sys.exit(0)))
print("hello", flush=True)
if sys.argv[1:]:
    sys.exit(3)
signal.pause()
"""


def modules() -> list[str]:
    """Every module of the package, by its import name."""
    found = []
    for room in ("model", "storage", "actors", "cli", "server", "testing"):
        package = importlib.import_module(f"perdure.{room}")
        found += [package.__name__]
        found += [
            module.name
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
            if not module.name.endswith("__main__")
        ]
    return found


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_docstring_do_what_they_say(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=_FLAGS).failed == 0


def test_a_console_block_is_taken_apart_into_commands_and_what_they_print():
    block = "$ one\nprints\nthis\n$ two \\\n  more\n$ three\n"

    assert list(commands(block)) == [
        ("one", "prints\nthis\n"),
        ("two \\\n  more", ""),
        ("three", ""),
    ]
