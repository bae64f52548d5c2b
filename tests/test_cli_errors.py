"""What each command says when something is wrong: one line, status 2, and nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
import ZODB
from ZEO.Exceptions import ClientDisconnected
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ReadOnlyError

from perdure.cli import database as cli_database
from perdure.cli.app import _COMMANDS, perdure
from perdure.storage import opening
from perdure.storage.limits import Limits
from support.shop import Shell, Shop

#: A call of each command that works on a database, which would do its work with `shop`.
CALLS = {
    "put": ["put", "app:add", "1"],
    "status": ["status"],
    "jobs": ["jobs"],
    "jobs --counts": ["jobs", "--counts"],
    "jobs --statistics": ["jobs", "--statistics"],
    "show": ["show", "24"],
    "traceback": ["traceback", "24"],
    "next": ["next"],
    "last": ["last"],
    "polls": ["polls"],
    "retry": ["retry", "24"],
    "cancel": ["cancel", "24"],
    "pause": ["pause", "mail"],
    "resume": ["resume", "mail"],
    "resize": ["resize", "mail:2"],
    "keep": ["keep"],
    "keep --job": ["keep", "--job", "24", "--failed", "1d"],
    "alias": ["alias"],
    "alias --remove": ["alias", "--remove", "app:old"],
    "pack": ["pack"],
    "check": ["check"],
    "run": ["run"],
}
MAKING = {"run"}
every_call = pytest.mark.parametrize("call", CALLS)


def test_every_command_that_works_on_a_database_is_here():
    context = click.Context(perdure)
    working = {
        name
        for name in _COMMANDS
        for command in [perdure.get_command(context, name)]
        if command is not None and any("--db" in param.opts for param in command.params)
    }

    assert {call.split()[0] for call in CALLS} == working
    assert set(_COMMANDS) - working == {"completion", "demo"}


# The database


@pytest.mark.parametrize("call", [call for call in CALLS if call not in MAKING])
def test_no_database_is_told_with_how_to_make_one(shell: Shell, call):
    text = shell.refused(*CALLS[call])

    assert text == (
        "perdure: there is no database perdure.fs: `perdure run` makes one; --db or $PERDURE_DB "
        "names another\n"
    )
    assert [path.name for path in shell.folder.iterdir()] == ["app.py"]


def a_folder(path: Path) -> None:
    path.mkdir()


def a_text(path: Path) -> None:
    path.write_text("a letter to somebody")


def without_queues(path: Path) -> None:
    ZODB.DB(FileStorage(str(path))).close()


def something_else(path: Path) -> None:
    _put_into_root(path, {"some": "settings"})


class Settings:
    """Something of an application that is not here any more."""


def a_class_that_is_gone(path: Path) -> None:
    _put_into_root(path, Settings())
    # As long as the name that it is stored with.
    path.write_bytes(path.read_bytes().replace(b"Settings", b"Sittengs"))


def _put_into_root(path: Path, thing: Any) -> None:
    database = ZODB.DB(FileStorage(str(path)))
    with database.transaction() as connection:
        connection.root()["perdure"] = thing
    database.close()


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a folder": (a_folder, "is a folder: name the database's file in it"),
    "no database": (a_text, "is a file, and no ZODB database"),
    "something else": (something_else, "'perdure', where the queues go"),
    "a class that is gone": (a_class_that_is_gone, "'perdure', where the queues go"),
}


@every_call
@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_database_of_ours_is_told(shell: Shell, call, broken):
    make, expected = BROKEN[broken]
    make(shell.database)
    before = shell.database.read_bytes() if shell.database.is_file() else b""

    assert expected in shell.refused(*CALLS[call])
    if shell.database.is_file():
        assert shell.database.read_bytes() == before


@pytest.mark.parametrize("call", [call for call in CALLS if call not in MAKING])
def test_a_database_without_queues_is_told(shell: Shell, call):
    without_queues(shell.database)

    assert "this database has no queues yet: `perdure run` makes them" in shell.refused(
        *CALLS[call]
    )


def test_a_file_whose_end_is_cut_off_is_told(shell: Shell, shop: Shop):
    os.truncate(shell.database, shell.database.stat().st_size - 20)

    shell.ok("status")
    first = shell.err
    shell.ok("status")

    assert first.startswith(f"perdure: the end of {shell.database} was damaged, or incomplete")
    assert first.endswith(f"is cut off; it is kept in {shell.database}.tr0\n")
    assert first.count("\n") == 1
    assert (shell.folder / "perdure.fs.tr0").exists()
    assert shell.err == ""


@every_call
def test_a_locked_database_is_told(shell: Shell, shop: Shop, call, monkeypatch):
    # For so long it is waited whether the other one shares it.
    monkeypatch.setattr(opening, "Limits", partial(Limits, unshared=timedelta(milliseconds=10)))
    other = FileStorage(str(shell.database))
    try:
        text = shell.refused(*CALLS[call])
    finally:
        other.close()

    assert f"is open in the process {os.getpid()}, which does not share it: stop that one" in text


@every_call
@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("ftp://host/x", "names no database"),
        ("zeo://", "names no database"),
        ("file://", "names no database"),
        ("no/such/folder/x.fs", "no/such/folder"),
    ],
)
def test_a_bad_uri_is_told(shell: Shell, call, uri, expected):
    assert expected in shell.refused(*CALLS[call], "--db", uri)


@every_call
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied", "x.fs"), "Permission denied: 'x.fs'"),
        (ReadOnlyError(), "the database refuses: ReadOnlyError"),
        (ClientDisconnected("timed out"), "the database went away (timed out): try again when"),
    ],
)
def test_a_database_that_cannot_be_opened_is_told(
    shell: Shell, shop: Shop, monkeypatch, call, error, expected
):
    def refuse(*args: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(cli_database, "open_database", refuse)

    assert expected in shell.refused(*CALLS[call])


# The same function opens it for all of them; the errors of every one are told above.
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
@pytest.mark.parametrize("call", ["run", "status"])
def test_a_database_that_is_not_writable_is_told(shell: Shell, shop: Shop, call):
    shell.database.chmod(0o400)

    assert "Permission denied" in shell.refused(*CALLS[call])


@every_call
def test_a_folder_of_modules_that_is_not_there_is_told(shell: Shell, shop: Shop, call):
    assert "Invalid value for '--app-dir'" in shell.refused(*CALLS[call], "--app-dir", "nowhere")


# Jobs, queues, sizes, times


@pytest.mark.parametrize(
    "words",
    [
        ["show", "JOB"],
        ["traceback", "JOB"],
        ["retry", "JOB"],
        ["cancel", "JOB"],
        ["keep", "--job", "JOB", "--failed", "1d"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ("fffff", "there is no job fffff in this database"),
        ("0", "there is no job 0 in this database"),
        ("1", "there is no job 1 in this database"),
        ("ffffffffffffffff", "there is no job"),
        ("the last", "'the last' names no job: a job is named by the hexadecimal number"),
        ("", "'' names no job"),
        ("other:24", "there is no database named 'other' here"),
    ],
)
def test_an_unknown_job_is_told(shell: Shell, shop: Shop, words, job, expected):
    assert expected in shell.refused(*[job if word == "JOB" else word for word in words])


@pytest.mark.parametrize(
    "words",
    [
        ["put", "app:add", "1", "--queue", "mial"],
        ["jobs", "--queue", "mial"],
        ["jobs", "--counts", "--queue", "mial"],
        ["jobs", "--statistics", "--queue", "mial"],
        ["next", "--queue", "mial"],
        ["last", "--queue", "mial"],
        ["polls", "--queue", "mial"],
        ["pause", "mial"],
        ["resume", "mial"],
        ["resize", "mial:3"],
        ["keep", "mial"],
        ["keep", "mial", "--failed", "1d"],
    ],
    ids=" ".join,
)
def test_an_unknown_queue_is_told_with_the_nearest(shell: Shell, shop: Shop, words):
    assert "there is no queue 'mial'; did you mean 'mail'?" in shell.refused(*words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["resize", "mail"], "'mail' has no size: write mail:4, or :4 for the default queue"),
        (["resize", "mail:"], "the size is a whole number from 0 on, not ''"),
        (["resize", "mail:many"], "not 'many'"),
        (["resize", "--", "mail:-1"], "not '-1'"),
        (["resize", "mail:1.5"], "not '1.5'"),
        (["resize", "mail:٣"], "not '٣'"),
        (["resize", "mail:99999999999999999999"], "not '99999999999999999999'"),
        (["resize", "mail:3", "--agent", "other"], "queue mail has no agent 'other', only main\n"),
        (["resize", ":3", "--agent", "other"], "queue (default) has no agent 'other', only main"),
        (["run", "--queue", "mail"], "'mail' has no size"),
        (["run", "--queue", "mail:x"], "not 'x'"),
        (["run", "--queue", "mail:1", "--queue", "mail:2"], "queue mail is given twice"),
        (["run", "--queue", ":1", "--queue", ":2"], "queue (default) is given twice"),
        (["pause", "zzz"], "there is no queue 'zzz'; there are (default), mail\n"),
        (["pause", "defualt"], "there is no queue 'defualt'; did you mean 'default'?"),
        (["run", "--queue", ":1", "--queue", "default:2"], "queue (default) is given twice"),
        (["run", "--drain", "10"], "'10' is no duration: write 90s"),
        (["run", "--drain", "-1s"], "'-1s' is no duration"),
        (["run", "--log-format", "xml"], "'xml' is not one of 'text', 'json'"),
        (["run", "--log-level", "loud"], "'loud' is not one of"),
        (["run", "--import", "not_there"], "there is no module 'not_there'"),
        (["run", "--import", "ap"], "did you mean app?"),
        (["run", "--import", "app:add"], "'app:add' is no name of a module"),
        (["jobs", "--status", "waiting"], "'waiting' is not one of 'pending'"),
        (["jobs", "--since", "yesterday"], "'yesterday' is no time: write"),
        (["jobs", "--since", "yesterday"], "or 2h for two hours ago"),
        (["jobs", "--until", "2026-02-30"], "'2026-02-30' is no time"),
        (["jobs", "--since", "999999w"], "ago is no time that can be kept"),
        (["jobs", "--limit", "0"], "'--limit'"),
        (["jobs", "--walk", "0"], "'--walk'"),
        (["jobs", "--counts", "--statistics"], "exclude each other"),
        (["jobs", "--counts", "--failed"], "use --statistics with the others"),
        (["jobs", "--since", "0001-01-01"], "'0001-01-01' is no time that can be kept"),
        (["put", "app:add", "1", "--at", "0001-01-01"], "is no time that can be kept"),
        (["polls", "--since", "x"], "'x' is no time"),
        (["polls", "--limit", "0"], "'--limit'"),
        (["keep", "--failed", "1d"], "say for which QUEUE"),
        (["keep", "mail", "--failed", "long"], "'long' is no duration"),
        (["keep", "mail", "--agent", "other", "--failed", "1d"], "no agent 'other', only main"),
        (["keep", "mail", "--job", "24"], "--job goes without a QUEUE and an --agent"),
        (["keep", "--job", "24"], "say --completed or --failed"),
        (["keep", "--job", "DONE", "--failed", "1d"], "can be set while it waits"),
        (["pack", "--keep", "7"], "'7' is no duration"),
        (["alias", "app:old"], "say the NEW name, too"),
        (["alias", "app:old", "--remove", "app:old"], "--remove goes without OLD and NEW"),
        (["alias", "--remove", "app:old"], "there is no alias 'app:old', and no other\n"),
        (["alias", "app:old", "app:ad"], "app has no 'ad'; did you mean app:add?"),
        (["alias", "app:old", "ap:add"], "there is no module 'ap'; did you mean app?"),
        (["alias", "old", "ap"], "there is no module 'ap'; did you mean app?"),
        (["alias", "app:old", "app"], "are not of one kind"),
        (["alias", "app old", "app:add"], "'app old' is no name"),
        (["alias", "app:add", "app:add"], "'app:add' stands for itself already"),
        (["retry"], "Missing argument 'JOB...'"),
        (["retry", "DONE"], "has succeeded, and what it did is committed"),
        (["cancel", "DONE"], "only a job that has not begun can be cancelled"),
        (["traceback", "DONE"], "has no traceback: it is completed"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (["completion"], "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_typed_wrong_is_told(shell: Shell, shop: Shop, words, expected):
    before = shell.database.read_bytes()

    assert expected in shell.refused(*[shop.added if word == "DONE" else word for word in words])
    assert shell.database.read_bytes() == before


def test_what_cannot_be_imported_is_told_before_a_database_is_made(shell: Shell):
    (shell.folder / "broken.py").write_text("1 / 0\n")

    assert "module 'broken' cannot be imported: ZeroDivisionError" in shell.refused(
        "run", "--import", "broken"
    )
    assert not shell.database.exists()
