"""What the commands that only look show, to people and as JSON."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest

from perdure.actors import start
from perdure.cli.app import _COMMANDS, perdure
from perdure.cli.database import connected, opened
from perdure.cli.options import Source
from perdure.model import Job, environment, get_queue
from support import jobs
from support.manual_clock import ManualClock
from support.shop import Shell, Shop, done
from support.systems import HOUR, settled
from support.tree import DOCS

LOOKING = ("status", "jobs", "next", "last", "polls", "keep", "alias", "check")


# JSON


def shape(value: Any) -> Any:
    """The form of a JSON value: names and kinds; the first of a list stands for all."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    if isinstance(value, bool) or value is None:
        return value if value is None else "bool"
    return "number" if isinstance(value, int | float) else "text"


def differences(documented: Any, found: Any, path: str = "") -> list[str]:
    """Where the two forms differ; null and an empty list go with anything."""
    if documented is None or found is None:
        return []
    if isinstance(documented, dict) and isinstance(found, dict):
        lines = [f"{path}.{key}: only in one" for key in documented.keys() ^ found.keys()]
        for key in documented.keys() & found.keys():
            lines += differences(documented[key], found[key], f"{path}.{key}")
        return lines
    if isinstance(documented, list) and isinstance(found, list):
        if documented and found:
            return differences(documented[0], found[0], f"{path}[]")
        return []
    return [] if documented == found else [f"{path}: {documented} in the docs, {found} here"]


def documented(command: str) -> Any:
    """The document that the page shows for a command."""
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    start = rf"`perdure {command}(?: [A-Z:…]+)?(?: …)? --json`"
    match = re.search(rf"{start}.{{,100}}?```json\n(.*?)```", page, re.DOTALL)
    assert match, f"docs/cli.md shows no JSON of perdure {command}"
    return json.loads(match[1])


COMMANDS_WITH_JSON = {
    "put": ["app:add", "1"],
    "status": [],
    "jobs": [],
    "jobs --counts": ["--counts"],
    "jobs --statistics": ["--statistics"],
    "show": ["{failed}"],
    "traceback": ["{failed}"],
    "next": [],
    "last": [],
    "retry": ["{failed}"],
    "cancel": ["{waiting}"],
    "pause": ["mail"],
    "resume": ["mail"],
    "resize": ["mail:2"],
    "keep": [],
    "alias": ["app:old", "app:add"],
    "pack": [],
    "check": [],
}


@pytest.mark.parametrize("command", COMMANDS_WITH_JSON)
def test_the_json_of_a_command_has_the_documented_shape(shell: Shell, shop: Shop, command):
    words = [word.format(**vars(shop)) for word in COMMANDS_WITH_JSON[command]]

    found = shell.json(command.split()[0], *words)

    assert differences(shape(documented(command)), shape(found)) == []
    assert shell.err == ""


def test_a_difference_of_shape_is_noticed():
    one = {"a": [{"b": 1, "c": None}], "d": "text"}

    assert differences(shape(one), shape({"a": [{"b": 2, "c": "x"}], "d": "other"})) == []
    assert differences(shape(one), shape({"a": [{"b": "2", "c": 1}], "d": "text"}))
    assert differences(shape(one), shape({"a": [{"b": 2}], "d": "text"}))
    assert differences(shape(one), shape({"a": [], "d": 1}))


def test_the_commands_with_json_are_those_that_take_it():
    context = click.Context(perdure)
    taking = {
        name
        for name in _COMMANDS
        for command in [perdure.get_command(context, name)]
        if command is not None and any("--json" in param.opts for param in command.params)
    }
    assert taking - {"polls"} == {command.split()[0] for command in COMMANDS_WITH_JSON}
    assert set(_COMMANDS) - taking == {"run", "completion", "demo"}


# Status


@pytest.mark.spec("D13")
def test_the_status_counts_jobs_by_queue(shell: Shell, shop: Shop):
    queues = {each["name"]: each for each in shell.json("status")["queues"]}

    assert queues[""]["counts"] == {
        "pending": 1, "assigned": 0, "active": 0, "callbacks": 0, "completed": 1, "failed": 1,
    }  # fmt: skip
    assert queues["mail"]["counts"]["pending"] == 1
    assert queues[""]["quotas"] == [{"name": "desk", "size": 2, "held": 0}]


def test_the_status_is_shown_in_tables(shell: Shell, shop: Shop):
    lines = [line.split() for line in shell.ok("status").splitlines()]

    assert ["(default)", "1", "0", "0", "0", "1", "1", "0"] in lines
    assert ["mail", "1", "0", "0", "0", "0", "0", "0"] in lines
    assert ["desk", "(default)", "0", "2"] in lines
    assert lines[0][:2] == ["database", f"{shell.database},"]
    assert any(line[:2] == [shop.dispatcher[:8], "ended"] for line in lines)


def test_the_status_of_a_new_database_says_what_to_do_next(shell: Shell):
    with start(f"file://{shell.database}", {"": 0}, poll_interval=HOUR) as system:
        settled(system)

    assert "ended" in shell.ok("status")


@pytest.mark.spec("D8")
def test_the_status_says_how_large_the_file_is_and_when_it_was_packed(shell: Shell, shop: Shop):
    assert "never packed" in shell.ok("status")
    shell.ok("pack")

    status = shell.json("status")
    assert status["size_bytes"] == shell.database.stat().st_size
    assert status["packed"] is not None
    assert ", packed 20" in shell.ok("status")


# Jobs


@pytest.mark.spec("D13")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], ["waiting", "mail", "failed", "added"]),
        (["--status", "pending"], ["waiting", "mail"]),
        (["--status", "pending", "--status", "completed", "--queue", "mail"], ["mail"]),
        (["--queue", "default"], ["waiting", "failed", "added"]),
        (["--failed"], ["failed"]),
        (["--succeeded"], ["waiting", "mail", "added"]),
        (["--succeeded", "--status", "completed"], ["added"]),
        (["--agent", "main"], ["failed", "added"]),
        (["--agent", "other"], []),
        (["--callable", "app:add"], ["mail", "added"]),
        (["--since", "1h", "--status", "completed"], ["failed", "added"]),
        (["--until", "1h"], []),
        (["--limit", "1"], ["waiting"]),
    ],
)
def test_jobs_are_chosen(shell: Shell, shop: Shop, words, found):
    names = {getattr(shop, name): name for name in ("waiting", "mail", "failed", "added")}

    listed = [names[job["ref"]] for job in shell.json("jobs", *words)["jobs"]]

    assert sorted(listed) == sorted(found)


@pytest.mark.spec("D13")
def test_a_list_says_what_it_walked(shell: Shell, shop: Shop):
    assert "4 jobs, of 4 looked at\n" in shell.ok("jobs")
    assert "1 job, of " in shell.ok("jobs", "--limit", "1")
    assert "there are more (--walk, --limit)" in shell.out
    assert shell.json("jobs", "--walk", "2")["complete"] is False


def test_a_list_shows_each_job_in_a_line(shell: Shell, shop: Shop):
    lines = shell.ok("jobs", "--status", "completed").splitlines()

    failed = next(line for line in lines if line.startswith(shop.failed))
    assert failed.split()[1:4] == ["failed", "(default)", "main"]
    assert failed.rstrip().endswith("app:fail()")


def test_jobs_are_counted(shell: Shell, shop: Shop):
    counts = shell.json("jobs", "--counts", "--queue", "default")["queues"]

    assert counts == {
        "": {"pending": 1, "assigned": 0, "active": 0, "callbacks": 0, "completed": 1, "failed": 1}
    }
    assert shell.json("jobs", "--counts", "--status", "pending")["queues"] == {
        "": {"pending": 1},
        "mail": {"pending": 1},
    }
    assert ["(default)", "1"] in [
        line.split() for line in shell.ok("jobs", "--counts", "--status", "pending").splitlines()
    ]


@pytest.mark.spec("D13")
def test_jobs_are_summed_up_by_what_they_call(shell: Shell, shop: Shop):
    found = {each["name"]: each for each in shell.json("jobs", "--statistics")["callables"]}

    assert {
        name: [each[key] for key in ("waiting", "running", "successful", "failed")]
        for name, each in found.items()
    } == {"app:add": [1, 0, 1, 0], "app:fail": [0, 0, 0, 1], "app:greet": [1, 0, 0, 0]}
    assert ["app:greet", "1", "0", "0", "0"] in [
        line.split() for line in shell.ok("jobs", "--statistics").splitlines()
    ]


def test_what_a_name_holds_cannot_draw_on_the_terminal(shell: Shell, shop: Shop):
    ref = shell.ok("put", "app:show", "\x1b[31mred").strip()

    assert "\x1b" not in shell.ok("show", ref)
    assert "\x1b" not in shell.ok("jobs")


# One job


@pytest.mark.spec("D13")
def test_all_about_a_job_is_shown(shell: Shell, shop: Shop):
    text = shell.ok("show", shop.failed)

    facts = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in text.splitlines()[:6])
    assert facts["call"] == "app:fail()"
    assert facts["status"] == "failed"
    assert "callback" in text and "app:told" in text
    assert text.rstrip().endswith("ValueError: no")


@pytest.mark.spec("D13")
def test_the_traceback_of_a_job_is_shown(shell: Shell, shop: Shop):
    lines = shell.ok("traceback", shop.failed).splitlines()

    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: no"


def test_a_job_without_a_traceback_says_how_it_is(shell: Shell, shop: Shop):
    assert f"job {shop.added} has no traceback: it is completed" in shell.refused(
        "traceback", shop.added
    )


@pytest.mark.spec("D13")
def test_the_next_and_the_last_job_are_shown(shell: Shell, shop: Shop):
    assert shell.json("next")["job"]["ref"] == shop.waiting
    assert shell.json("next", "--queue", "mail")["job"]["ref"] == shop.mail
    assert shell.json("last")["job"]["ref"] == shop.failed
    assert shell.json("last", "--queue", "mail") == {"job": None}
    assert shop.waiting in shell.ok("next")
    assert shell.ok("last", "--queue", "mail") == "no job is done\n"


# What they leave alone


@pytest.mark.spec("D1")
@pytest.mark.parametrize("command", LOOKING)
def test_a_command_that_runs_no_jobs_makes_no_identity_and_changes_nothing(
    shell: Shell, shop: Shop, command
):
    before = shell.database.read_bytes()

    shell.ok(command)

    assert shell.database.read_bytes() == before
    assert not list(shell.folder.rglob("uuid*"))


def test_the_modules_of_the_folder_are_found_only_while_a_command_runs(shell: Shell, shop: Shop):
    before = list(sys.path)
    shell.ok("put", "app:add", "1")

    assert sys.path == before


def test_the_folder_of_the_modules_can_be_named(shell: Shell, shop: Shop, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    put = shell.json("put", "app:add", "1", "--db", "../perdure.fs", "--app-dir", "..")

    assert put["name"] == "app:add"


def test_the_database_can_be_named_by_the_environment(shell: Shell, shop: Shop, monkeypatch):
    shell.database.rename(shell.folder / "other.fs")
    monkeypatch.setenv("PERDURE_DB", f"file://{shell.folder / 'other.fs'}")

    assert shell.json("next")["job"]["ref"] == shop.waiting


# With a process at work


@pytest.mark.spec("D8")
def test_a_pack_forgets_the_jobs_whose_time_is_over(shell: Shell, shop: Shop):
    long_ago = ManualClock(datetime.now(UTC) - timedelta(days=30))
    with opened(Source("perdure.fs")) as database:
        environment(database).clock = long_ago
        with connected(database) as connection:
            queue = get_queue(connection)
            record = queue.dispatchers.records()[0]
            agent = record.get("main")
            record.activate("token")
            ref = done(queue, agent, Job(jobs.add, 1, 2), connection.transaction_manager)
    assert shell.json("show", ref)["result"] == "3"

    assert shell.json("pack")["forgotten"] == 1

    assert f"job {ref} was forgotten" in shell.refused("show", ref)
    assert ref not in [job["ref"] for job in shell.json("jobs")["jobs"]]
    assert shell.json("show", shop.added)["result"] == "5"


@pytest.mark.parametrize(
    "words",
    [
        ["check", "--json"],
        ["show", "MAIL", "--json"],
        ["put", "app:add", "1", "--json"],
        ["alias", "app:old", "app:add", "--json"],
    ],
    ids=lambda words: words[0],
)
def test_what_a_module_prints_is_not_in_the_output(shell: Shell, shop: Shop, words):
    with (shell.folder / "app.py").open("a") as module:
        module.write('print("here I am")\n')
    shell.forget_modules()

    status = shell.run(*[shop.mail if word == "MAIL" else word for word in words])

    assert status == 0
    json.loads(shell.out)
    if words[0] != "show":
        assert "here I am" in shell.err


def test_what_a_module_prints_is_not_in_the_number_of_a_job(shell: Shell, shop: Shop):
    with (shell.folder / "app.py").open("a") as module:
        module.write('print("here I am")\n')
    shell.forget_modules()

    number = shell.ok("put", "app:add", "1").strip()

    assert int(number, 16)
    assert shell.err == "here I am\n"
