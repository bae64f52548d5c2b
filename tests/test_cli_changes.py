"""The commands that change jobs, queues and the database."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import transaction
from ZEO.Exceptions import ClientDisconnected
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError
from ZODB.utils import p64

from perdure.cli import changing, maintenance
from perdure.cli.database import change, connected, opened
from perdure.cli.options import Source
from perdure.model import Status, UnresolvedName, find_job, get_queue
from support.shop import Shell, Shop


def status_of(shell: Shell, ref: str) -> str:
    return str(shell.json("show", ref)["status"])


# Jobs


def test_a_failed_job_waits_again_after_a_retry(shell: Shell, shop: Shop):
    assert shell.ok("retry", shop.failed) == f"{shop.failed} retried\n"

    assert status_of(shell, shop.failed) == "pending"
    assert shell.json("check") == {"violations": [], "unresolved": []}


def test_a_waiting_job_is_the_next_after_a_retry(shell: Shell, shop: Shop):
    later = shell.ok("put", "app:add", "1").strip()

    shell.ok("retry", later)

    assert shell.json("next", "--queue", "default")["job"]["ref"] == later


def test_a_cancelled_job_has_failed(shell: Shell, shop: Shop):
    assert shell.ok("cancel", shop.waiting, shop.mail).splitlines() == [
        f"{shop.waiting} cancelled",
        f"{shop.mail} cancelled",
    ]

    assert shell.json("show", shop.waiting)["failed"]
    assert "cancelled before it began" in shell.ok("traceback", shop.waiting)
    assert shell.json("jobs", "--status", "pending")["jobs"] == []


def test_the_same_job_twice_is_changed_once(shell: Shell, shop: Shop):
    assert shell.json("retry", shop.failed, f"0x{shop.failed}") == {"retried": [shop.failed]}


@pytest.mark.parametrize("bad", ["added", "unknown"])
def test_where_one_job_cannot_be_changed_none_is(shell: Shell, shop: Shop, bad):
    ref = shop.added if bad == "added" else "fffff"

    shell.refused("cancel", shop.waiting, ref)
    shell.refused("retry", shop.failed, ref)

    assert status_of(shell, shop.waiting) == "pending"
    assert status_of(shell, shop.failed) == "completed"


# Queues


def test_a_queue_is_paused_and_resumed(shell: Shell, shop: Shop):
    shell.ok("pause", "mail")
    paused = {each["name"]: each["paused"] for each in shell.json("status")["queues"]}
    shell.ok("resume", "mail")
    resumed = {each["name"]: each["paused"] for each in shell.json("status")["queues"]}

    assert paused == {"": False, "mail": True}
    assert resumed == {"": False, "mail": False}


def test_a_paused_queue_is_shown_as_such(shell: Shell, shop: Shop):
    shell.ok("pause", "default")

    assert ["(default)", "1", "0", "0", "0", "1", "1", "0", "paused"] in [
        line.split() for line in shell.ok("status").splitlines()
    ]


@pytest.mark.parametrize("name", [":7", "default:7", "(default):7", "::7"])
def test_the_agents_of_a_queue_get_another_size(shell: Shell, shop: Shop, name):
    assert shell.ok("resize", name) == "queue (default) runs 7 jobs at once in each process\n"

    agents = shell.json("status")["dispatchers"][0]["agents"]
    assert {agent["queue"]: agent["size"] for agent in agents} == {"": 7, "mail": 3}


def test_a_queue_that_is_really_called_default_has_its_name(shell: Shell, shop: Shop):
    with opened(Source("perdure.fs")) as database:
        change(database, lambda connection: _add_queue(connection, "default"))

    assert shell.json("pause", "default")["queue"] == "default"
    assert shell.json("pause", ":")["queue"] == ""


def _add_queue(connection: Any, name: str) -> None:
    connection.root()["perdure"].add(name)


# Retention


@pytest.mark.spec("D8")
def test_the_retention_of_a_queue_is_set_and_taken_back(shell: Shell, shop: Shop):
    set_ = shell.json("keep", "mail", "--completed", "1d", "--failed", "30d")["retention"]
    back = shell.json("keep", "mail", "--failed", "default")["retention"]

    assert [(each["keep_completed_seconds"], each["keep_failed_seconds"]) for each in set_] == [
        (86400, 30 * 86400)
    ]
    assert [(each["keep_completed_seconds"], each["keep_failed_seconds"]) for each in back] == [
        (86400, None)
    ]


@pytest.mark.spec("D8")
def test_the_retention_of_agents_is_set(shell: Shell, shop: Shop):
    shell.ok("keep", "mail", "--agent", "main", "--failed", "2h")

    found = shell.json("keep", "--agent", "main")["retention"]
    assert {each["queue"]: each["keep_failed_seconds"] for each in found} == {
        "": None,
        "mail": 7200,
    }
    assert {each["process"] for each in found} == {shop.dispatcher}


@pytest.mark.spec("D8")
def test_the_retention_of_a_job_that_waits_is_set(shell: Shell, shop: Shop):
    shell.ok("keep", "--job", shop.waiting, "--completed", "0")

    assert shell.json("show", shop.waiting)["keep_completed_seconds"] == 0


def test_the_retention_of_all_is_shown(shell: Shell, shop: Shop):
    shell.ok("keep", "mail", "--completed", "1d")

    lines = [line.split() for line in shell.ok("keep").splitlines()]
    assert ["mail", "1d", "default"] in lines
    assert ["(default)", "main", shop.dispatcher[:8], "default", "default"] in lines


# Code that has moved


def test_an_alias_lets_jobs_of_moved_code_be_found(shell: Shell, shop: Shop):
    source = (shell.folder / "app.py").read_text()
    (shell.folder / "app.py").write_text(source.replace("def greet", "def welcome"))
    shell.forget_modules()

    assert shell.run("check") == 1
    assert "app:greet is not found" in shell.out and "1 job (0 parked, " in shell.out
    shell.forget_modules()
    assert shell.ok("alias", "app:greet", "app:welcome") == (
        "app:greet stands for app:welcome now\n"
    )
    assert shell.ok("check") == "all is well\n"
    assert shell.json("alias") == {"aliases": {"app:greet": "app:welcome"}}
    assert shell.ok("alias").split() == ["old", "new", "app:greet", "app:welcome"]


def test_an_alias_can_be_of_a_module(shell: Shell, shop: Shop):
    (shell.folder / "helper.py").write_text((shell.folder / "app.py").read_text())

    assert shell.json("alias", "app", "helper") == {"aliases": {"app": "helper"}}


def test_an_alias_is_removed(shell: Shell, shop: Shop):
    shell.ok("alias", "app:old", "app:add")
    shell.ok("alias", "--remove", "app:old")

    assert shell.ok("alias") == "there are no aliases\n"


# Packing and checking


@pytest.mark.spec("D8")
def test_packing_makes_the_file_smaller(shell: Shell, shop: Shop):
    for _ in range(20):
        shell.ok("pause", "mail")
        shell.ok("resume", "mail")
    before = shell.database.stat().st_size

    report = shell.json("pack", "--keep", "0s")

    assert report["before_bytes"] == before
    assert report["after_bytes"] == shell.database.stat().st_size < before
    assert "kB before, " in shell.ok("pack", "--keep", "7d")


def test_check_says_what_is_wrong_and_is_status_1(shell: Shell, shop: Shop, monkeypatch):
    monkeypatch.setattr(maintenance, "check", lambda database: ["its length is 3"])

    assert shell.run("check") == 1
    assert shell.out == "its length is 3\n"
    assert shell.run("check", "--json") == 1
    assert '"its length is 3"' in shell.out


def test_check_names_what_a_damaged_file_lacks(shell: Shell, shop: Shop):
    lacking = p64(int(shop.waiting, 16))
    storage = FileStorage(str(shell.database))
    change = TransactionMetaData()
    storage.tpc_begin(change)
    storage.deleteObject(lacking, storage.load(lacking)[1], change)
    storage.tpc_vote(change)
    storage.tpc_finish(change)
    storage.close()

    assert shell.run("check") == 1

    assert f"record {shop.waiting} is missing from the database" in shell.out


def test_check_names_no_alias_for_what_lies_in_a_script(shell: Shell, shop: Shop, monkeypatch):
    names = [
        UnresolvedName(name, "not here", 1, 0, None, ())
        for name in ("/srv/script.py:hello", "shop:gone")
    ]
    monkeypatch.setattr(maintenance, "unresolved", lambda connection: names)

    assert shell.run("check") == 1

    script, module = shell.out.splitlines()
    assert script == "/srv/script.py:hello is not found (not here): needed by 1 job (0 parked)"
    assert module.endswith("; `perdure alias` gives it a new name")


# Conflicts and losses


def test_a_change_that_meets_a_conflict_is_made_again(shell: Shell, shop: Shop):
    with opened(Source("perdure.fs")) as database:
        attempts = []

        def pause(connection: Any) -> None:
            attempts.append(connection)
            get_queue(connection, "mail").pause()
            if len(attempts) < 10:
                raise ConflictError()

        change(database, pause)

        assert len(attempts) == 10
        with connected(database) as connection:
            assert get_queue(connection, "mail").paused


def test_ten_conflicts_end_a_change(shell: Shell, shop: Shop, monkeypatch):
    attempts = []

    def conflict(*args: Any) -> None:
        attempts.append(args)
        raise ConflictError()

    monkeypatch.setattr(changing, "find_job", conflict)

    assert "others changed the same 10 times in a row" in shell.refused("retry", shop.failed)
    assert len(attempts) == 10


def test_a_change_that_may_have_taken_place_is_told(shell: Shell, shop: Shop, monkeypatch):
    pause = changing.Queue.pause
    commit = transaction.TransactionManager.commit

    def lose(manager: Any) -> None:
        commit(manager)
        raise ClientDisconnected("gone")

    def pause_and_lose(queue: Any) -> None:
        pause(queue)
        monkeypatch.setattr(transaction.TransactionManager, "commit", lose)

    monkeypatch.setattr(changing.Queue, "pause", pause_and_lose)

    text = shell.refused("pause", "mail")
    monkeypatch.undo()

    assert "lost at the commit, which may have taken place" in text


def test_a_change_beside_another_loses_nothing(shell: Shell, shop: Shop):
    with opened(Source("perdure.fs")) as database:
        threads = [
            threading.Thread(
                target=change,
                args=(database, lambda connection, ref=ref: find_job(connection, ref).cancel()),
            )
            for ref in (shop.waiting, shop.mail)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with connected(database) as connection:
            found = [find_job(connection, ref) for ref in (shop.waiting, shop.mail)]
            assert all(job.failed and job.status is Status.CALLBACKS for job in found)
