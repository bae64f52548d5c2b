"""The identity of a process, and the proof that an earlier one has ended."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pickle
import select
import subprocess
import sys
import threading
import uuid
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from perdure.model import incarnation as incarnation_module
from perdure.model.clock import SystemClock
from perdure.model.errors import IdentityError
from perdure.model.incarnation import Identity, Incarnation, acquire_identity, proved_dead
from support.manual_clock import ManualClock

LIMIT_SECONDS = 120


def acquire(
    database_file: Path | None = None,
    cwd: Path | None = None,
    environ: dict[str, str] | None = None,
    clock: Any = None,
) -> Identity:
    return acquire_identity(
        database_file, environ=environ or {}, cwd=cwd, clock=clock or SystemClock()
    )


def incarnation_of(identity: Identity) -> Incarnation:
    assert identity.incarnation is not None
    return identity.incarnation


def ended_incarnation(database_file: Path) -> Incarnation:
    with acquire(database_file) as identity:
        return incarnation_of(identity)


# Where the identity is kept


@pytest.mark.spec("D1")
def test_the_identity_is_stable_and_each_start_is_a_new_incarnation(tmp_path: Path) -> None:
    with acquire(tmp_path / "app.fs") as first:
        pass
    with acquire(tmp_path / "app.fs") as second:
        pass
    assert first.uuid == second.uuid
    one, two = incarnation_of(first), incarnation_of(second)
    assert one.token != two.token
    assert replace(one, token="") == replace(two, token="")
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.spec("D1")
def test_the_file_named_by_the_environment_comes_first(tmp_path: Path) -> None:
    named = tmp_path / "me.txt"
    with acquire(tmp_path / "app.fs", tmp_path, {"PERDURE_UUID": str(named)}) as identity:
        assert incarnation_of(identity).path == str(named)
    assert os.listdir(tmp_path) == ["me.txt"]


@pytest.mark.spec("D1")
def test_then_the_folder_beside_the_database_then_the_working_directory(tmp_path: Path) -> None:
    beside = tmp_path / "app.fs.perdure" / "uuid.txt"
    with acquire(tmp_path / "app.fs", tmp_path) as identity:
        assert incarnation_of(identity).path == str(beside)
    with acquire(None, tmp_path) as identity:
        assert incarnation_of(identity).path == str(tmp_path / "uuid.txt")
    nowhere = tmp_path / "missing" / "app.fs"
    with acquire(nowhere, tmp_path) as identity:
        assert incarnation_of(identity).path == str(tmp_path / "uuid.txt")


@pytest.mark.spec("D1")
def test_where_none_can_be_written_the_identity_is_fresh_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with acquire(None, tmp_path / "missing") as first, acquire(None, tmp_path / "missing") as two:
        assert first.incarnation is None
        assert first.uuid != two.uuid
    warning = caplog.records[0]
    assert warning.levelno == logging.WARNING
    assert str(first.uuid) in warning.getMessage() and "PERDURE_UUID" in warning.getMessage()


@pytest.mark.spec("D1")
def test_a_second_one_in_the_same_place_gets_an_identity_of_its_own(tmp_path: Path) -> None:
    database_file = tmp_path / "app.fs"
    with acquire(database_file) as one, acquire(database_file) as two:
        with acquire(database_file) as three:
            pass
        assert len({one.uuid, two.uuid, three.uuid}) == 3
        names = [Path(incarnation_of(identity).path).name for identity in (one, two, three)]
        assert names == ["uuid.txt", "uuid-2.txt", "uuid-3.txt"]
        with acquire(database_file) as again:
            assert again.uuid == three.uuid


@pytest.mark.spec("D1")
def test_the_file_explains_itself_and_keeps_the_last_50_tokens(tmp_path: Path) -> None:
    tokens = [ended_incarnation(tmp_path / "app.fs").token for _ in range(55)]
    lines = (tmp_path / "app.fs.perdure" / "uuid.txt").read_text().splitlines()
    assert lines[0].startswith("# The identity of a process that runs jobs")
    assert [line for line in lines if line.startswith("token")] == [
        f"token: {token}" for token in tokens[-50:]
    ]


@pytest.mark.spec("D1")
def test_a_file_with_nothing_but_a_uuid_or_nothing_at_all_is_taken(tmp_path: Path) -> None:
    mine = uuid.uuid4()
    (tmp_path / "uuid.txt").write_text(f"{mine}\n---- my own words ----")
    with acquire(None, tmp_path) as identity:
        assert identity.uuid == mine
    assert "my own words" in (tmp_path / "uuid.txt").read_text()
    (tmp_path / "uuid.txt").write_text("")
    with acquire(None, tmp_path) as identity:
        assert str(identity.uuid) in (tmp_path / "uuid.txt").read_text()


@pytest.mark.parametrize(
    "content",
    [
        b"not an identity",
        b"\xff\xfe",
        b"x" * 70_000,
        f"{uuid.UUID(int=1)}\n{uuid.UUID(int=2)}\n".encode(),
    ],
    ids=["words", "binary", "long", "two"],
)
def test_a_garbled_file_is_an_error_that_names_it_and_the_remedy(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "uuid.txt"
    path.write_bytes(content)
    with pytest.raises(IdentityError, match="remove it, and a new one is made") as caught:
        acquire(None, tmp_path)
    assert str(path) in str(caught.value)


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "uuid.txt").mkdir()
    with pytest.raises(IdentityError, match=r"uuid\.txt cannot be used"):
        acquire(None, tmp_path)


def test_a_named_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="PERDURE_UUID names cannot be written"):
        acquire(None, tmp_path, {"PERDURE_UUID": str(tmp_path / "missing" / "me.txt")})


def test_a_disk_that_is_full_leaves_a_file_that_can_be_used_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with acquire(None, tmp_path) as identity:
            assert identity.incarnation is None
    with acquire(None, tmp_path) as identity:
        assert incarnation_of(identity).path == str(tmp_path / "uuid.txt")


# Proof of death


@pytest.mark.spec("D5")
def test_a_closed_incarnation_is_proved_dead_and_an_open_one_is_not(tmp_path: Path) -> None:
    identity = acquire(tmp_path / "app.fs")
    alive = proved_dead(incarnation_of(identity))
    identity.close()
    identity.close()
    assert (alive, proved_dead(incarnation_of(identity))) == (False, True)


@pytest.mark.spec("D5")
def test_the_next_incarnation_of_a_process_knows_that_the_one_before_has_ended(
    tmp_path: Path,
) -> None:
    before = ended_incarnation(tmp_path / "app.fs")
    with acquire(tmp_path / "app.fs") as now:
        own = incarnation_of(now)
        assert proved_dead(before, own)
        assert not proved_dead(before)
        assert not proved_dead(own, own)


@pytest.mark.spec("D5")
@pytest.mark.parametrize(
    "change",
    [
        {"host": "elsewhere"},
        {"boot_id": "another"},
        {"boot_id": ""},
        {"device": -1},
        {"inode": -1},
        {"token": "0" * 32},
        {"path": "/nowhere/uuid.txt"},
        {"path": "\0"},
    ],
    ids=repr,
)
def test_anything_that_differs_proves_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    ended = ended_incarnation(tmp_path / "app.fs")
    assert proved_dead(ended)
    assert not proved_dead(replace(ended, **change))


@pytest.mark.spec("D5")
def test_a_file_that_was_removed_copied_or_replaced_proves_nothing(tmp_path: Path) -> None:
    ended = ended_incarnation(tmp_path / "app.fs")
    path = Path(ended.path)
    path.rename(tmp_path / "old")  # kept, so that the inode is not used again
    assert not proved_dead(ended)
    path.write_text((tmp_path / "old").read_text())
    assert not proved_dead(ended)
    path.write_text("no identity")
    assert not proved_dead(ended)


def test_a_file_replaced_while_its_lock_was_awaited_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = ended_incarnation(tmp_path / "app.fs")
    real_lock = incarnation_module._lock

    def replaced_meanwhile(*args: Any) -> bool:
        monkeypatch.setattr(incarnation_module, "_lock", real_lock)
        Path(ended.path).rename(tmp_path / "old")
        return real_lock(*args)

    monkeypatch.setattr(incarnation_module, "_lock", replaced_meanwhile)
    with acquire(tmp_path / "app.fs") as identity:
        assert incarnation_of(identity).inode == os.stat(ended.path).st_ino != ended.inode


@pytest.mark.spec("D1")
def test_a_probe_does_not_cost_a_restarting_process_its_identity(tmp_path: Path) -> None:
    ended = ended_incarnation(tmp_path / "app.fs")
    clock = ManualClock()
    acquired: list[Identity] = []
    with open(ended.path) as probe:
        fcntl.flock(probe, fcntl.LOCK_SH)
        restarting = threading.Thread(
            target=lambda: acquired.append(acquire(tmp_path / "app.fs", clock=clock))
        )
        restarting.start()
        clock.wait_until_waiting(1)
    clock.advance(timedelta(seconds=1))
    restarting.join(LIMIT_SECONDS)
    acquired[0].close()
    assert incarnation_of(acquired[0]).path == ended.path


# Processes

HOLDER = """
import dataclasses, json, os, sys
from perdure.model.clock import SystemClock
from perdure.model.incarnation import acquire_identity
identity = acquire_identity(sys.argv[1], environ={}, clock=SystemClock())
print(json.dumps(dataclasses.asdict(identity.incarnation)), flush=True)
sys.stdin.read()
"""

FORKER = """
import os, subprocess, sys
from perdure.model.clock import SystemClock
from perdure.model.incarnation import acquire_identity, proved_dead
identity = acquire_identity(sys.argv[1], environ={}, clock=SystemClock())
reading, writing = os.pipe()
child_runs, child_ran = os.pipe()
child = os.fork()
if child == 0:
    os.close(writing)
    identity.close()  # in the child: frees nothing
    os.write(child_ran, b"x")
    os.read(reading, 1)  # until the parent has ended or says so
    os._exit(0)
os.read(child_runs, 1)
executed = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
print(proved_dead(identity.incarnation))
identity.close()
print(proved_dead(identity.incarnation))
os.write(writing, b"x")
executed.communicate()
os.waitpid(child, 0)
"""


@pytest.mark.process
@pytest.mark.spec("D1", "D5")
def test_a_killed_process_is_proved_dead_and_a_living_one_is_not(tmp_path: Path) -> None:
    database_file = tmp_path / "app.fs"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(database_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], LIMIT_SECONDS)[0]
            held = Incarnation(**json.loads(process.stdout.readline()))
            alive = proved_dead(held)
            with acquire(database_file) as beside:
                pass
        finally:
            process.kill()
    assert not alive
    assert incarnation_of(beside).path != held.path
    assert proved_dead(held)
    with acquire(database_file) as restarted:
        assert incarnation_of(restarted).path == held.path
        assert proved_dead(held, incarnation_of(restarted))


@pytest.mark.process
@pytest.mark.spec("D5")
def test_children_do_not_keep_the_lock_of_their_parent(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORKER, str(tmp_path / "app.fs")],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert (ended.stdout.split(), ended.stderr) == (["False", "True"], "")
