"""A bad value for each option and each word of each command: one line, and nothing is changed.

What `--db` and `--app-dir` are given, which every command has, is in `test_cli_errors`.
"""

from __future__ import annotations

import click
import pytest

from perdure.cli.app import _COMMANDS, perdure
from support.shop import Shell, Shop

EVERYWHERE = {"db", "app_dir"}

#: By command and parameter: the words with a bad value, and the texts of the line.
ROWS: dict[tuple[str, str], list[tuple[list[str], tuple[str, ...]]]] = {
    ("run", "queues"): [
        (["--queue", "mail"], ("'mail' has no size", "write mail:4")),
        (["--queue", "mail:10001"], ("10000",)),
        (["--queue", "mail:-1"], ("not '-1'",)),
    ],
    ("run", "modules"): [
        (["--import", "not_there"], ("there is no module 'not_there'",)),
        (["--import", "a b"], ("'a b' is no name of a module",)),
        (["--import", ""], ("'' is no name of a module",)),
    ],
    ("run", "drain"): [(["--drain", "soon"], ("'soon' is no duration", "write 90s"))],
    ("run", "log_format"): [(["--log-format", "xml"], ("'xml' is not one of",))],
    ("run", "log_level"): [(["--log-level", "loud"], ("'loud' is not one of",))],
    ("put", "words"): [
        ([], ("say what to call: MODULE:FUNCTION",)),
        (["app:ad"], ("app has no 'ad'", "did you mean app:add?")),
        (["ap:add"], ("there is no module 'ap'", "did you mean app?")),
        (["app"], ("'app' names no function: write MODULE:FUNCTION",)),
        (["app:number"], ("app:number", "cannot be called")),
        (["app:add", "x" * 1_000_001], ("more than the 1,000,000 allowed", "blob")),
    ],
    ("put", "queue"): [(["app:add", "1", "--queue", "mial"], ("did you mean 'mail'?",))],
    ("put", "in_"): [(["app:add", "1", "--in", "soon"], ("'soon' is no duration",))],
    ("put", "at"): [
        (["app:add", "1", "--at", "noon"], ("'noon' is no time",)),
        (["app:add", "1", "--at", "2026-13-01"], ("'2026-13-01' is no time",)),
    ],
    ("put", "by"): [(["app:add", "1", "--by", "-1h"], ("'-1h' is no duration",))],
    ("put", "quotas"): [(["app:add", "1", "--quota", "desc"], ("'desc'", "desk"))],
    ("put", "policy"): [(["app:add", "1", "--policy", "patient"], ("'patient'",))],
    ("put", "keep_completed"): [
        (["app:add", "1", "--keep-completed", "long"], ("'long' is no duration",))
    ],
    ("put", "keep_failed"): [
        (["app:add", "1", "--keep-failed", "-1d"], ("'-1d' is no duration",))
    ],
    ("jobs", "statuses"): [(["--status", "lazy"], ("'lazy' is not one of 'pending'",))],
    ("jobs", "queue"): [(["--queue", "mial"], ("did you mean 'mail'?",))],
    ("jobs", "since"): [(["--since", "then"], ("'then' is no time: write",))],
    ("jobs", "until"): [(["--until", "2026-02-30"], ("'2026-02-30' is no time",))],
    ("jobs", "limit"): [
        (["--limit", "0"], ("'--limit'", "0")),
        (["--limit", "many"], ("'many' is not a valid integer",)),
    ],
    ("jobs", "walk"): [(["--walk", "-1"], ("'--walk'", "-1"))],
    ("show", "job"): [(["the last"], ("'the last' names no job", "hexadecimal number"))],
    ("traceback", "job"): [(["fffff"], ("there is no job fffff in this database",))],
    ("next", "queue"): [(["--queue", "mial"], ("did you mean 'mail'?",))],
    ("last", "queue"): [(["--queue", "mial"], ("did you mean 'mail'?",))],
    ("polls", "queue"): [(["--queue", "mial"], ("did you mean 'mail'?",))],
    ("polls", "since"): [(["--since", "then"], ("'then' is no time",))],
    ("polls", "until"): [(["--until", "then"], ("'then' is no time",))],
    ("polls", "limit"): [(["--limit", "0"], ("'--limit'", "0"))],
    ("retry", "jobs"): [([], ("Missing argument 'JOB...'",)), (["zz"], ("'zz' names no job",))],
    ("cancel", "jobs"): [([], ("Missing argument 'JOB...'",)), (["zz"], ("'zz' names no job",))],
    ("pause", "queue"): [([], ("Missing argument",)), (["mial"], ("did you mean 'mail'?",))],
    ("resume", "queue"): [([], ("Missing argument",)), (["mial"], ("did you mean 'mail'?",))],
    ("resize", "queue_and_size"): [
        ([], ("Missing argument",)),
        (["mail:many"], ("a whole number from 0 on, not 'many'",)),
        (["mail:10001"], ("10000",)),
    ],
    ("resize", "agent"): [(["mail:1", "--agent", "other"], ("has no agent 'other', only main",))],
    ("keep", "queue"): [(["mial"], ("did you mean 'mail'?",))],
    ("keep", "agent"): [
        (["mail", "--agent", "other", "--failed", "1d"], ("no agent 'other', only main",))
    ],
    ("keep", "job"): [(["--job", "zz", "--failed", "1d"], ("'zz' names no job",))],
    ("keep", "completed"): [(["mail", "--completed", "long"], ("'long' is no duration",))],
    ("keep", "failed"): [(["mail", "--failed", "-1d"], ("'-1d' is no duration",))],
    ("alias", "old"): [(["a b", "app:add"], ("'a b' is no name",))],
    ("alias", "new"): [(["app:old", "app:ad"], ("did you mean app:add?",))],
    ("alias", "remove"): [(["--remove", "app:old"], ("there is no alias 'app:old'",))],
    ("pack", "keep"): [
        (["--keep", "7"], ("'7' is no duration",)),
        (["--keep", "99999d"], ("36500 days at most",)),
    ],
    ("completion", "shell"): [(["tcsh"], ("'tcsh' is not one of 'bash', 'zsh', 'fish'",))],
    ("demo", "folder"): [(["no/such/folder"], ("no/such/folder",))],
    ("demo", "database"): [(["--database", "app.py"], ("app.py is a file: name a folder",))],
    ("demo", "workers"): [(["--workers", "0"], ("'--workers'", "0"))],
    ("demo", "limit"): [(["--limit", "few"], ("'few' is not a valid integer",))],
}
FILTERS = {
    ("jobs", "agent"): "an agent that is gone had jobs, and what finds none says so",
    ("jobs", "name"): "so does a callable that is gone",
}
CASES = [
    pytest.param(command, words, texts, id=f"{command} {parameter}")
    for (command, parameter), rows in ROWS.items()
    for words, texts in rows
]


def commands() -> dict[str, click.Command]:
    context = click.Context(perdure)
    found = {name: perdure.get_command(context, name) for name in _COMMANDS}
    return {name: command for name, command in found.items() if command is not None}


@pytest.mark.parametrize(("command", "words", "texts"), CASES)
def test_a_bad_value_is_told_in_one_line_and_changes_nothing(
    shell: Shell, shop: Shop, command: str, words: list[str], texts: tuple[str, ...]
) -> None:
    before = shell.database.read_bytes()
    names = {path.name for path in shell.folder.iterdir()}

    line = shell.refused(command, *words)

    for text in texts:
        assert text in line
    assert len(line) < 1000
    assert shell.database.read_bytes() == before
    assert {path.name for path in shell.folder.iterdir()} - names <= {
        "perdure.fs.index", "perdure.fs.lock", "perdure.fs.tmp", "perdure.fs.blobs",
        "perdure.fs.perdure",
    }  # fmt: skip


@pytest.mark.parametrize("command", _COMMANDS)
@pytest.mark.parametrize(
    ("words", "text"),
    [(["--colour"], "--colour"), (["one", "two", "three", "--colour=red"], "--colour")],
)
def test_an_option_that_a_command_has_not_is_told(
    shell: Shell, shop: Shop, command: str, words: list[str], text: str
) -> None:
    before = shell.database.read_bytes()
    assert text in shell.refused(command, *words)
    assert shell.database.read_bytes() == before


@pytest.mark.parametrize("word", ["statsu", "", "--colour", "\udcff", "a\0b"])
def test_a_command_that_there_is_not_is_told(shell: Shell, shop: Shop, word: str) -> None:
    before = shell.database.read_bytes()
    shell.refused(word)
    assert shell.database.read_bytes() == before


@pytest.mark.parametrize("word", ["\udcff", "a\0b", "\x1b[31m", "two\nlines"])
@pytest.mark.parametrize("command", ["show", "retry", "pause", "resize", "put", "pack"])
def test_words_of_odd_characters_are_told_in_one_line(
    shell: Shell, shop: Shop, command: str, word: str
) -> None:
    before = shell.database.read_bytes()
    line = shell.refused(command, word)
    assert "\x1b" not in line and "\0" not in line
    assert shell.database.read_bytes() == before


def test_every_word_and_option_of_every_command_has_a_row():
    taken = {
        (name, str(parameter.name))
        for name, command in commands().items()
        for parameter in command.params
        if not getattr(parameter, "is_flag", False) and parameter.name not in EVERYWHERE
    }

    assert taken - set(ROWS) == set(FILTERS)
