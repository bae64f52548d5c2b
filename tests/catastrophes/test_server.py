"""The server of the project."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import ZODB
from ZEO.Exceptions import ClientDisconnected
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.utils import z64

from catastrophes import scenes
from catastrophes.children import LIMIT_SECONDS
from catastrophes.conftest import Scene
from catastrophes.stage import Stage

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.mark.spec("C2")
def test_a_server_that_was_killed_hands_out_no_id_again(scene: Scene) -> None:
    before = scene.put(scenes.note, "before")
    with scene.database.transaction() as connection:
        # Fetched in advance, with many others, and not committed by anybody.
        last_known = int.from_bytes(connection.new_oid(), "big") + 1000
    assert scene.stage.server is not None
    scene.stage.server.kill()
    scene.stage.start_server()
    scene.connect()
    after = scene.put(scenes.note, "after")
    assert before.oid < last_known < after.oid


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage")
    yield made
    made.close()


@pytest.mark.spec("C11")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_as_the_server_falls_asleep_ends_it(
    stage: Stage, number: signal.Signals
) -> None:
    server = stage.start_server()
    server.tell(f"signal {int(number)}")
    assert server.wait() == 0


@pytest.mark.spec("C11")
def test_a_signal_in_a_commit_ends_the_server_after_it(stage: Stage) -> None:
    ZODB.DB(FileStorage(str(stage.file))).close()  # there is a root now
    server = stage.start_server(before=("_finish_finish", "signal"))
    with stage.database().transaction() as connection:
        connection.root()["written"] = True
    assert server.wait() == 0
    with closing(ZODB.DB(FileStorage(str(stage.file)))) as database:
        with database.transaction() as connection:
            assert connection.root()["written"] is True


@pytest.mark.spec("C11")
@pytest.mark.parametrize("wait", [True, False])
def test_the_end_of_the_server_waits_for_no_pack(stage: Stage, wait: bool) -> None:
    server = stage.start_server(before=("pack", "hold"))
    storage = stage.database().storage

    def pack() -> None:
        with suppress(ClientDisconnected):
            storage.pack(time.time(), wait=wait)

    packing = threading.Thread(target=pack)
    packing.start()
    assert server.line("held") == "held pack"
    server.terminate()
    assert server.wait() == 0
    packing.join(LIMIT_SECONDS)


@pytest.mark.spec("C11")
def test_the_end_of_the_server_waits_for_no_client_that_is_in_its_commit(stage: Stage) -> None:
    server = stage.start_server()
    storage = stage.database().storage
    commit = TransactionMetaData()
    storage.tpc_begin(commit)
    storage.store(storage.new_oid(), z64, b"something", "", commit)
    storage.tpc_vote(commit)
    server.terminate()
    assert server.wait() == 0
    storage.tpc_abort(commit)
    with closing(FileStorage(str(stage.file))) as file:
        assert [len(list(each)) for each in file.iterator()] == [1]  # the root


@pytest.mark.spec("C11")
def test_a_signal_ends_a_server_that_is_not_ready_yet_and_nothing_is_left_of_it(
    stage: Stage, tmp_path: Path
) -> None:
    number = tmp_path / "server.pid"
    server = stage.start_server(
        "--pid-file", str(number), before=("__init__", "hold"), ready=False
    )
    assert server.line("held") == "held __init__"
    assert number.read_text().strip() == str(server.pid)
    server.terminate()
    assert server.wait() == 0
    assert not number.exists()


@pytest.mark.spec("C11")
def test_a_second_signal_ends_a_server_that_cannot_close_its_file(stage: Stage) -> None:
    server = stage.start_server(before=("close", "hold"))
    server.tell(f"signal {int(signal.SIGTERM)}")
    assert server.line("held") == "held close"
    server.terminate()
    assert server.wait() == -signal.SIGTERM
