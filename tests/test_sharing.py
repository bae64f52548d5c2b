"""Sharing one file: both sides in one process, each with a storage of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from BTrees.Length import Length
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from transaction.interfaces import TransientError
from ZEO.Exceptions import ClientDisconnected
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError, ReadConflictError, StorageTransactionError
from ZODB.utils import z64

from perdure.model import DatabaseAccessError, DatabaseLockedError, DatabaseNotFoundError
from perdure.model.lockfile import LockFile
from perdure.storage import SharedStorage
from perdure.storage import client as client_module
from perdure.storage import place as place_module
from perdure.storage import server as server_module
from perdure.storage import sides as sides_module
from perdure.storage.file import SharedFile
from perdure.storage.limits import Limits
from perdure.storage.place import Place
from perdure.storage.server import Server
from support.systems import LIMIT, within

pytestmark = pytest.mark.slow

NOW = timedelta(0)
SOON = timedelta(milliseconds=50)


class Side:
    """One process's database, as if it were in one of its own."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.storage = SharedStorage(str(path), **settings)
        self.database = ZODB.DB(self.storage)
        self.storage.share()
        self.begun: Any = None
        self.told: list[tuple[bytes, Any]] = []
        self._heard = threading.Condition()
        self.storage.on_foreign_commit(self._hear)
        self.manager = transaction.TransactionManager()
        self.connection = self.database.open(transaction_manager=self.manager)

    def _hear(self, tid: bytes, oids: Any) -> None:
        with self._heard:
            self.told.append((tid, oids))
            self._heard.notify_all()

    @property
    def root(self) -> Any:
        return self.connection.root()

    def commit(self, **values: Any) -> bytes:
        """Commit these values, if need be after errors after which one tries again."""
        for _ in range(20):
            try:
                self.manager.begin()
                self.root.update(values)
                self.manager.commit()
            except TransientError:
                self.manager.abort()
                if self.storage._closed:
                    raise
            else:
                return bytes(self.root._p_serial)
        raise AssertionError("errors without end")

    def hear(self, tid: bytes) -> None:
        """Return when this side has heard of that commit, and see it."""
        with self._heard:
            assert self._heard.wait_for(
                lambda: (
                    self.storage.lastTransaction() >= tid
                    or any(each >= tid for each, _ in self.told)
                ),
                LIMIT.total_seconds(),
            )
        self.manager.begin()

    def be_told(self, tid: bytes) -> None:
        """Return when that commit was told on, too, which is a moment later, and see it."""
        with self._heard:
            assert self._heard.wait_for(
                lambda: any(each >= tid for each, _ in self.told), LIMIT.total_seconds()
            )
        self.manager.begin()

    def take_over(self) -> None:
        """Return when this side owns the file, after the one that did has ended."""
        within(self.commit)
        assert self.storage.is_owner()

    def close(self) -> None:
        self.manager.abort()
        self.connection.close()
        self.database.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.fs"


@pytest.fixture
def side(path: Path) -> Iterator[Callable[..., Side]]:
    made: list[Side] = []

    def make(**settings: Any) -> Side:
        made.append(Side(path, **{"blob_dir": f"{path}.blobs", **settings}))
        return made[-1]

    yield make
    for each in reversed(made):
        if not each.storage._ended:
            each.close()


@pytest.fixture
def owner(side: Callable[..., Side]) -> Side:
    return side()


@pytest.fixture
def client(owner: Side, side: Callable[..., Side]) -> Side:
    made = side()
    assert owner.storage.is_owner() and not made.storage.is_owner()
    return made


@pytest.fixture(params=["owner", "client"])
def pair(request: pytest.FixtureRequest, owner: Side, client: Side) -> tuple[Side, Side]:
    """Who does something, and who is to notice."""
    return (owner, client) if request.param == "owner" else (client, owner)


# What one side does, the other sees


def test_a_commit_is_told_to_the_other_side_with_its_objects(pair: tuple[Side, Side]) -> None:
    doer, other = pair
    doer.commit(part=PersistentMapping())
    other.be_told(doer.storage.lastTransaction())
    other.told.clear()
    doer.manager.begin()
    doer.root["part"]["n"] = 1
    doer.manager.commit()
    tid = doer.root["part"]._p_serial
    other.be_told(tid)
    assert other.root["part"]["n"] == 1
    assert [(each, set(oids)) for each, oids in other.told] == [(tid, {doer.root["part"]._p_oid})]


def test_who_commits_is_not_told_of_it(pair: tuple[Side, Side]) -> None:
    doer, other = pair
    other.hear(doer.commit(n=1))
    doer.be_told(other.commit(n=2))
    assert [tid for tid, _ in doer.told if tid] == [other.root._p_serial]


def test_a_callback_that_fails_is_logged_and_the_others_are_called(
    pair: tuple[Side, Side], caplog: pytest.LogCaptureFixture
) -> None:
    doer, other = pair
    called = threading.Event()

    def fail(tid: bytes, oids: Any) -> None:
        raise ValueError("mine")

    end = other.storage.on_foreign_commit(fail)
    other.storage.on_foreign_commit(lambda tid, oids: called.set())
    with caplog.at_level(logging.ERROR, "perdure.events"):
        doer.commit(n=1)
        assert called.wait(LIMIT.total_seconds())
    assert "called after a commit, failed" in caplog.text
    end()
    assert fail not in other.storage._hooks


def test_what_is_undone_is_seen(pair: tuple[Side, Side]) -> None:
    doer, other = pair
    other.hear(doer.commit(n=1))
    other.hear(doer.commit(n=2))
    assert other.root["n"] == 2
    (last,) = doer.database.undoLog(0, 1)
    doer.manager.begin()
    doer.database.undo(last["id"], doer.manager.get())
    doer.manager.commit()
    doer.manager.begin()
    assert doer.root["n"] == 1
    other.hear(doer.storage.lastTransaction())
    assert other.root["n"] == 1


def test_conflicts_are_resolved_and_both_sides_see_the_outcome(pair: tuple[Side, Side]) -> None:
    doer, other = pair
    other.hear(doer.commit(length=Length(), tree=OOBTree()))
    for each, number in ((doer, 1), (other, 10)):
        each.manager.begin()
        each.root["length"].change(number)
        each.root["tree"][number] = number
    doer.manager.commit()
    other.manager.commit()
    doer.hear(other.storage.lastTransaction())
    for each in pair:
        each.manager.begin()
        assert each.root["length"]() == 11
        assert list(each.root["tree"]) == [1, 10]


def test_a_conflict_that_cannot_be_resolved_is_one(pair: tuple[Side, Side]) -> None:
    doer, other = pair
    other.hear(doer.commit(n=1))
    for number, each in enumerate(pair):
        each.manager.begin()
        each.root["n"] = number
    doer.manager.commit()
    with pytest.raises(ConflictError):
        other.manager.commit()
    other.manager.abort()


def test_what_is_read_as_current_is_checked(pair: tuple[Side, Side]) -> None:
    doer, other = pair
    other.hear(doer.commit(read=PersistentMapping(), written=PersistentMapping()))
    other.root["read"]._p_activate()
    other.connection.readCurrent(other.root["read"])
    other.root["written"]["n"] = 1
    doer.manager.begin()
    doer.root["read"]["n"] = 1
    doer.manager.commit()
    with pytest.raises(ReadConflictError):
        other.manager.commit()
    other.manager.abort()


def test_a_deleted_object_is_told(pair: tuple[Side, Side]) -> None:
    doer, other = pair
    other.hear(doer.commit(part=PersistentMapping()))
    part = doer.root["part"]
    meta = TransactionMetaData()
    doer.storage.tpc_begin(meta)
    doer.storage.deleteObject(part._p_oid, part._p_serial, meta)
    doer.storage.tpc_vote(meta)
    tid = doer.storage.tpc_finish(meta)
    other.be_told(tid)
    assert other.told[-1][0] == tid and set(other.told[-1][1]) == {part._p_oid}


def test_a_blob_is_there_on_the_other_side(pair: tuple[Side, Side]) -> None:
    doer, other = pair
    other.hear(doer.commit(blob=Blob(b"contents")))
    with other.root["blob"].open() as file:
        assert file.read() == b"contents"
    with open(other.root["blob"].committed(), "rb") as committed:
        assert committed.read() == b"contents"


def test_the_blobs_are_where_the_owner_has_them(side: Callable[..., Side], path: Path) -> None:
    owner = side(blob_dir=str(path.with_name("elsewhere")))
    client = side(blob_dir=str(path.with_name("nowhere")))
    assert client.storage.blob_dir == str(path.with_name("elsewhere"))
    owner.hear(client.commit(blob=Blob(b"x")))
    owner.close()
    client.take_over()
    client.manager.begin()
    with client.root["blob"].open() as file:
        assert file.read() == b"x"
    assert not path.with_name("nowhere").exists()


def test_packing_is_done_by_either_side_while_both_have_it_open(pair: tuple[Side, Side]) -> None:
    doer, other = pair
    for number in range(5):
        doer.commit(n=number, part=PersistentMapping())
    other.hear(doer.storage.lastTransaction())
    before = doer.storage.getSize(), len(doer.storage)
    other.database.pack()
    assert doer.storage.getSize() < before[0]
    assert len(doer.storage) == len(other.storage) < before[1]
    for each in pair:
        each.connection.cacheMinimize()
        each.manager.begin()
        assert each.root["n"] == 4
    doer.hear(other.commit(n=5))
    assert doer.root["n"] == 5


def test_what_looks_at_the_whole_file_works_on_both_sides(owner: Side, client: Side) -> None:
    client.hear(owner.commit(n=1))

    def seen(storage: Any) -> Any:
        oid, tid, data, following = storage.record_iternext()
        transactions = storage.iterator()
        return (
            oid,
            tid,
            data,
            following,
            [(each.tid, [record.oid for record in each]) for each in transactions],
            storage.loadSerial(z64, tid),
            storage.load(z64),
            storage.getTid(z64),
            [each["tid"] for each in storage.history(z64, 5)],
            [each["id"] for each in storage.undoInfo()],
            storage.getName(),
            storage.sortKey(),
            len(storage),
            storage.getSize(),
        )

    assert seen(owner.storage) == seen(client.storage)


# Telling


def test_others_are_told_when_a_commit_is_on_disk_and_not_before(
    owner: Side, client: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    finish, (session,) = SharedFile._finish, owner.storage._server._sessions
    invalidate = session.invalidate

    def finish_slowly(self: Any, *args: Any) -> None:
        # What the loop has been given to tell is told now.
        asked = threading.Event()
        owner.storage._server.event_loop.call_soon_threadsafe(asked.set)
        asked.wait(LIMIT.total_seconds())
        finish(self, *args)
        order.append("on disk")

    def tell(tid: bytes, oids: Any) -> None:
        order.append("told")
        invalidate(tid, oids)

    monkeypatch.setattr(SharedFile, "_finish", finish_slowly)
    monkeypatch.setattr(session, "invalidate", tell)
    client.hear(owner.commit(n=1))
    assert order == ["on disk", "told"]


def test_a_client_that_comes_later_knows_what_came_before(
    owner: Side, side: Callable[..., Side]
) -> None:
    for number in range(250):
        owner.commit(n=number)
    late = side()
    assert late.root["n"] == 249
    owner.hear(late.commit(n=250))
    assert owner.root["n"] == 250


# Taking over


def test_open_connections_go_on_when_the_owner_ends(owner: Side, client: Side) -> None:
    client.hear(owner.commit(part=PersistentMapping(n=1)))
    assert client.root["part"]["n"] == 1
    owner.close()
    for attempt in client.manager.attempts(5):
        with attempt:
            client.root["part"]["n"] += 1
    assert client.storage.is_owner()
    assert client.root["part"]["n"] == 2


def test_who_takes_over_learns_what_it_was_not_told(
    owner: Side, client: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.hear(owner.commit(part=PersistentMapping(n=1)))
    part = client.root["part"]
    assert part["n"] == 1
    monkeypatch.setattr(Server, "flush", lambda self, tid, tell=True: None)
    owner.manager.begin()
    owner.root["part"]["n"] = 2
    owner.manager.commit()
    tid = owner.root["part"]._p_serial
    client.manager.begin()
    assert part["n"] == 1
    monkeypatch.undo()
    owner.close()
    client.be_told(tid)
    assert client.storage.is_owner()
    assert part["n"] == 2
    assert client.told[-1] == (tid, [part._p_oid])


def test_a_snapshot_that_was_begun_before_is_read_to_its_end(owner: Side, client: Side) -> None:
    client.hear(owner.commit(part=PersistentMapping(n=1), other=PersistentMapping(n=1)))
    client.connection.cacheMinimize()
    assert client.root["part"]["n"] == 1
    owner.manager.begin()
    owner.root["part"]["n"] = owner.root["other"]["n"] = 2
    owner.manager.commit()
    owner.close()
    # Waits for the take-over, and is loaded from the file then.
    assert client.root["other"]["n"] == 1
    client.take_over()
    client.manager.begin()
    assert client.root["other"]["n"] == client.root["part"]["n"] == 2


@pytest.mark.parametrize("until", ["begun", "stored", "voted"])
def test_a_transaction_does_not_change_sides(until: str, owner: Side, client: Side) -> None:
    serial = owner.commit(n=1)
    client.hear(serial)
    data, _ = client.storage.load(z64)
    storage = client.storage
    meta = TransactionMetaData()
    storage.tpc_begin(meta)
    if until != "begun":
        storage.store(z64, serial, data, "", meta)
    if until == "voted":
        storage.tpc_vote(meta)
    owner.close()
    client.take_over()
    with pytest.raises(ClientDisconnected):
        if until == "begun":
            storage.store(z64, serial, data, "", meta)
        elif until == "stored":
            storage.tpc_vote(meta)
        else:
            storage.tpc_finish(meta)
    storage.tpc_abort(meta)
    assert storage.loadSerial(z64, storage.getTid(z64)) == data
    client.commit(n=3)
    assert client.root["n"] == 3


def test_of_several_clients_one_takes_over_and_the_others_go_to_it(
    owner: Side, client: Side, side: Callable[..., Side]
) -> None:
    third = side()
    owner.commit(n=1)
    owner.close()
    third.hear(within(lambda: client.commit(a=1)))
    within(lambda: third.commit(b=1))
    assert client.storage.is_owner() + third.storage.is_owner() == 1
    following, last = (client, third) if client.storage.is_owner() else (third, client)
    last.hear(following.commit(c=1))
    assert dict(last.root) == {"n": 1, "a": 1, "b": 1, "c": 1}
    following.close()
    last.take_over()


def test_who_is_told_to_connect_while_it_does_so_has_one_connection(
    owner: Side, client: Side, side: Callable[..., Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    get_info, calls = server_module._Session.get_info, []

    def told_meanwhile(self: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:  # the first one is part of the registration
            client.storage._side.connect_now()
        return get_info(self)

    with client.storage._turning:
        owner.close()
        monkeypatch.setattr(server_module._Session, "get_info", told_meanwhile)
        following = side()
    within(client.commit)
    assert not client.storage.is_owner() and len(calls) >= 2
    assert len(following.storage._server.connections) == 1
    assert len(following.storage._server._sessions) == 1


def test_a_new_owner_gives_no_object_the_number_that_the_old_one_gave(
    owner: Side, client: Side, side: Callable[..., Side]
) -> None:
    third = side()
    given = {third.storage.new_oid() for _ in range(3)}
    owner.close()
    for each in (client, third):
        within(lambda each=each: each.storage.history(z64))
    for each in (client, third):
        assert not given & {each.storage.new_oid() for _ in range(200)}


def test_the_next_one_to_open_the_file_gives_no_number_again(side: Callable[..., Side]) -> None:
    first = side()
    given = [first.storage.new_oid() for _ in range(2_500)]
    first.close()
    again = side()
    assert again.storage.new_oid() == _next(given[-1])


def test_nor_the_next_one_to_open_the_file_of_an_owner_that_was_killed(
    side: Callable[..., Side], path: Path
) -> None:
    first = side()
    given = [first.storage.new_oid() for _ in range(2_500)]
    noted = Path(f"{path}.perdure/share.lock").read_bytes()
    first.close()
    Path(f"{path}.perdure/share.lock").write_bytes(noted)
    again = side()
    assert given[-1] < again.storage.new_oid() <= _later(given[-1], 1_001)


@pytest.mark.parametrize("note", [b"", b"\0" * 17, b"half of it"])
def test_without_the_note_of_the_numbers_a_wide_berth_is_given(
    note: bytes, side: Callable[..., Side], path: Path
) -> None:
    first = side()
    first.commit(n=1)
    given = [first.storage.new_oid() for _ in range(2_500)]
    first.close()
    Path(f"{path}.perdure/share.lock").write_bytes(note)
    again = side()
    assert again.storage.new_oid() > given[-1]


def test_an_owner_that_has_closed_gives_no_number_any_more(side: Callable[..., Side]) -> None:
    first = side()
    face = first.storage._side
    first.close()
    with pytest.raises(ClientDisconnected):
        face.new_oid()


def test_what_was_added_before_the_file_changed_hands_is_stored_whole_after_that(
    owner: Side, client: Side, side: Callable[..., Side]
) -> None:
    client.hear(owner.commit(n=1))
    client.manager.begin()
    added = [PersistentMapping(number=number) for number in range(20)]
    for each in added:
        client.connection.add(each)
    client.root["added"] = PersistentMapping(dict(enumerate(added)))
    client.manager.savepoint()
    with client.storage._turning:
        owner.close()
        owner = side()
        # Somebody who is given numbers and has not stored anything yet.
        for _ in range(10):
            owner.storage.new_oid()
    assert owner.storage.is_owner()
    within(lambda: client.storage.history(z64))
    client.root["more"] = PersistentMapping()
    within(client.manager.commit)
    assert not client.storage.is_owner()
    owner.manager.begin()
    owner.connection.cacheMinimize()
    assert [owner.root["added"][n]["number"] for n in range(20)] == list(range(20))
    assert dict(owner.root["more"]) == {}


def _later(oid: bytes, count: int) -> bytes:
    return (int.from_bytes(oid, "big") + count).to_bytes(8, "big")


def _next(oid: bytes) -> bytes:
    return _later(oid, 1)


def test_a_file_that_was_replaced_by_an_older_one_is_not_taken_over(
    owner: Side, client: Side, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = path.read_bytes()
    client.hear(owner.commit(n=1))
    turning = client.storage._turning
    with turning:
        owner.close()
        path.write_bytes(older)
        path.with_name("app.fs.index").unlink()
    # Not an error after which one waits: it would be for ever.
    with pytest.raises(DatabaseAccessError, match="replaced by an older one: restart"):
        within(client.commit)
    assert "was replaced" in caplog.text
    assert path.read_bytes() == older
    client.manager.abort()


def test_a_take_over_that_fails_is_tried_again(
    owner: Side,
    client: Side,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client.hear(owner.commit(part=PersistentMapping(n=1)))
    assert client.root["part"]["n"] == 1
    changes_since, failed = sides_module.changes_since, []

    def fail_once(*args: Any) -> Any:
        if not failed:
            failed.append(None)
            raise OSError(5, "Input/output error")
        return changes_since(*args)

    with client.storage._turning:
        monkeypatch.setattr(Server, "flush", lambda self, tid, tell=True: None)
        owner.manager.begin()
        owner.root["part"]["n"] = 2
        owner.manager.commit()
        tid = owner.root["part"]._p_serial
        monkeypatch.undo()
        monkeypatch.setattr(sides_module, "changes_since", fail_once)
        owner.close()
    client.hear(tid)
    assert failed
    assert "cannot be opened again yet" in caplog.text
    assert client.root["part"]["n"] == 2
    client.take_over()


def test_a_take_over_that_failed_may_end_on_another_side(
    owner: Side, client: Side, side: Callable[..., Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.hear(owner.commit(part=PersistentMapping(n=1)))
    assert client.root["part"]["n"] == 1
    move_to, others, tids = client.storage._move_to, [], []

    def fail(face: Any, before: Any) -> Any:
        monkeypatch.setattr(client.storage, "_move_to", move_to)
        face.registerDB = _raise_input_output
        try:
            return move_to(face, before)
        finally:
            others.append(side())
            tids.append(others[0].commit(part=PersistentMapping(n=2)))
            done.set()

    done = threading.Event()
    monkeypatch.setattr(client.storage, "_move_to", fail)
    owner.close()
    assert done.wait(LIMIT.total_seconds())
    (other,) = others
    assert other.storage.is_owner()
    client.hear(tids[0])
    assert not client.storage.is_owner()
    assert client.root["part"]["n"] == 2
    other.hear(client.commit(n=3))
    assert other.root["n"] == 3


def _raise_input_output(*args: Any) -> None:
    raise OSError(5, "Input/output error")


def test_calls_give_up_when_nobody_owns_the_file_for_too_long(
    owner: Side, side: Callable[..., Side], path: Path
) -> None:
    client = side(limits=Limits(wait=SOON))
    client.connection.cacheMinimize()
    with client.storage._turning:  # so that it does not
        owner.close()
        client.manager.begin()
        with pytest.raises(ClientDisconnected):
            client.storage.history(z64)
        with pytest.raises(ClientDisconnected):
            client.storage.tpc_begin(TransactionMetaData())
    client.take_over()


# A commit that keeps the others waiting


def voted(side: Side) -> TransactionMetaData:
    """Let a transaction of this side vote, and leave it there."""
    data, serial = side.storage.load(z64)
    meta = side.begun = TransactionMetaData()
    side.storage.tpc_begin(meta)
    side.storage.store(z64, serial, data, "", meta)
    side.storage.tpc_vote(meta)
    return meta


def test_a_client_that_does_not_finish_is_cut_off(
    side: Callable[..., Side], caplog: pytest.LogCaptureFixture
) -> None:
    owner = side(limits=Limits(vote=SOON))
    client, third = side(), side()
    meta = voted(client)
    within(lambda: owner.commit(n=1))
    within(lambda: third.commit(m=1))
    assert "has not finished its commit within 0.05 seconds" in caplog.text
    with pytest.raises(ClientDisconnected):
        client.storage.tpc_finish(meta)
    client.storage.tpc_abort(meta)
    within(lambda: client.commit(k=1))
    assert dict(client.root) == {"n": 1, "m": 1, "k": 1}


def test_a_client_that_has_not_voted_keeps_nobody_waiting(owner: Side, client: Side) -> None:
    data, serial = client.storage.load(z64)
    meta = TransactionMetaData()
    client.storage.tpc_begin(meta)
    client.storage.store(z64, serial, data, "", meta)
    within(lambda: owner.commit(n=1))
    with pytest.raises(ConflictError):
        client.storage.tpc_vote(meta)
    client.storage.tpc_abort(meta)


def test_a_commit_of_the_owner_keeps_no_reader_waiting(
    owner: Side, client: Side, side: Callable[..., Side]
) -> None:
    third = side()
    meta = voted(owner)
    thread = threading.Thread(target=lambda: client.commit(n=1))
    thread.start()
    line = owner.storage._server.lock_managers["1"].waiting
    while not line:
        threading.Event().wait(0.001)
    within(lambda: third.storage.history(z64))
    assert line
    owner.storage.tpc_finish(meta)
    within(thread.join)
    assert client.root["n"] == 1


def test_a_vote_that_waits_too_long_for_its_turn_is_a_conflict(side: Callable[..., Side]) -> None:
    owner = side(limits=Limits(turn=SOON))
    client = side()
    meta = TransactionMetaData()
    owner.storage.tpc_begin(meta)
    with pytest.raises(ConflictError, match="took too long"):
        within(lambda: voted(client))
    client.storage.tpc_abort(client.begun)
    owner.storage.tpc_abort(meta)
    within(lambda: client.commit(n=2))


def test_a_client_that_is_lost_in_its_vote_is_aborted(
    owner: Side, client: Side, side: Callable[..., Side]
) -> None:
    meta = voted(client)
    client.storage._side.close()
    within(lambda: owner.commit(n=1))
    with pytest.raises(ClientDisconnected):
        client.storage.tpc_finish(meta)


def test_a_client_that_leaves_the_line_keeps_nobody_waiting(
    owner: Side, client: Side, side: Callable[..., Side]
) -> None:
    meta = TransactionMetaData()
    owner.storage.tpc_begin(meta)
    errors: list[BaseException] = []

    def vote() -> None:
        try:
            client.commit(n=1)
        except BaseException as error:
            errors.append(error)
            client.manager.abort()

    thread = threading.Thread(target=vote)
    thread.start()
    line = owner.storage._server.lock_managers["1"].waiting
    while not line:
        threading.Event().wait(0.001)
    client.storage.close()
    within(thread.join)
    assert isinstance(errors[0], ClientDisconnected)
    owner.storage.tpc_abort(meta)
    within(lambda: owner.commit(n=2))
    within(lambda: side().commit(m=2))


def test_a_client_that_reads_nothing_is_cut_off_and_comes_back(
    owner: Side, client: Side, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client.hear(owner.commit(n=0))
    monkeypatch.setattr(server_module, "_UNREAD", 3)
    (connection,) = owner.storage._server.connections
    connection._paused = True  # as if the socket's buffer were full
    for number in range(1, 10):
        last = owner.commit(n=number)
    within(connection._transport.is_closing)
    client.hear(last)
    owner.hear(client.commit(m=1))
    assert dict(owner.root) == {"n": 9, "m": 1}
    assert "does not read what it is told" in caplog.text
    assert connection not in owner.storage._server.connections


# The end


def test_an_owner_that_closes_lets_its_own_commit_finish(owner: Side, path: Path) -> None:
    meta = voted(owner)
    closing = threading.Thread(target=owner.storage.close)
    closing.start()
    while not owner.storage._closed:
        threading.Event().wait(0.001)
    tid = owner.storage.tpc_finish(meta)
    within(closing.join)
    with FileStorageOf(path) as storage:
        assert storage.lastTransaction() == tid


class FileStorageOf:
    """The file, opened without sharing."""

    def __init__(self, path: Path) -> None:
        self.storage = FileStorage(str(path))

    def __enter__(self) -> Any:
        return self.storage

    def __exit__(self, *error: object) -> None:
        self.storage.close()


def test_a_commit_that_takes_too_long_does_not_keep_the_owner_from_closing(
    side: Callable[..., Side], path: Path
) -> None:
    owner = side(limits=Limits(close=SOON))
    before = owner.storage.lastTransaction()
    meta = voted(owner)
    owner.storage.close()
    with pytest.raises(ClientDisconnected):
        owner.storage.tpc_finish(meta)
    owner.storage.tpc_abort(meta)
    again = side()
    assert again.storage.lastTransaction() == before


def test_nothing_but_the_lock_file_is_left_beside_the_file(owner: Side, client: Side) -> None:
    folder = Path(f"{owner.storage.getName()}.perdure")
    assert {each.name for each in folder.iterdir()} == {"share.lock", "share.sock"}
    client.close()
    client.storage.close()
    owner.close()
    owner.storage.close()
    assert {each.name for each in folder.iterdir()} == {"share.lock"}


def test_after_the_close_calls_fail_and_name_the_reason(pair: tuple[Side, Side]) -> None:
    one, _ = pair
    one.close()
    for call in (lambda: one.storage.load(z64), one.storage.new_oid):
        with pytest.raises((ClientDisconnected, ValueError), match="closed"):
            call()


def _fail_to_finish(self: Any, tid: bytes) -> None:
    raise OSError(28, "No space left on device")


def _fail_half_way(side: Side, monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SharedFile, "_finish_finish", _fail_to_finish)
        side.manager.begin()
        side.root.update(values)
        with pytest.raises(Exception, match="No space"):
            side.manager.commit()
    side.manager.abort()


def test_after_a_commit_that_failed_half_way_the_process_opens_the_file_again(
    owner: Side, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    owner.commit(n=1, part=PersistentMapping(n=1))
    size = path.stat().st_size
    _fail_half_way(owner, monkeypatch, n=2)
    assert path.stat().st_size == size
    within(lambda: owner.commit(m=3))
    assert owner.storage.is_owner()
    assert owner.root["n"] == 1
    assert owner.root["part"]["n"] == 1
    assert not list(path.parent.glob("*.tr*"))


def test_it_goes_on_when_there_is_room_again(
    owner: Side, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    owner.commit(n=1)
    tried, room = threading.Event(), threading.Event()
    whole = sides_module.SharedFile

    def full(*args: Any) -> Any:
        if tried.is_set() and room.wait(LIMIT.total_seconds()):
            return whole(*args)
        tried.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sides_module, "SharedFile", full)
    _fail_half_way(owner, monkeypatch, n=2)
    assert tried.wait(LIMIT.total_seconds())
    assert "opening it again" in repr(owner.storage)
    reading = threading.Thread(target=owner.storage.load, args=(z64,))
    reading.start()  # which waits for it
    room.set()
    within(reading.join)
    within(lambda: owner.commit(n=3))
    assert owner.storage.is_owner()
    assert "cannot be opened again yet" in caplog.text


@pytest.mark.parametrize("doer", ["owner", "client"])
def test_after_a_commit_that_failed_half_way_all_go_on_with_one_owner(
    doer: str, owner: Side, client: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.hear(owner.commit(n=1, part=PersistentMapping(n=1)))
    sides = [owner, client]
    for each in sides:
        each.manager.begin()
        assert each.root["part"]["n"] == 1
    _fail_half_way(sides[doer == "client"], monkeypatch, n=2)
    for number, each in enumerate(sides):
        within(lambda each=each, number=number: each.commit(**{f"a{number}": 1}))
    assert owner.storage.is_owner() + client.storage.is_owner() == 1
    for one, other in ((owner, client), (client, owner)):
        one.manager.begin()
        one.root["part"]["n"] += 1
        one.manager.commit()
        other.hear(one.root["part"]._p_serial)
        assert other.root["part"]["n"] == one.root["part"]["n"]
    assert owner.root["n"] == client.root["n"] == 1


def test_an_owner_that_failed_comes_back_as_a_client_and_learns_what_it_missed(
    owner: Side, client: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.hear(owner.commit(n=1, part=PersistentMapping(n=1)))
    assert owner.root["part"]["n"] == 1
    owner.told.clear()
    with owner.storage._turning:  # so that the other is first
        _fail_half_way(owner, monkeypatch, n=2)
        client.take_over()
        client.manager.begin()
        client.root["part"]["n"] = 2
        client.manager.commit()
        owner.connection.cacheMinimize()
        owner.manager.begin()
    # It waits, and reads what it has begun to read.
    assert within(lambda: owner.root["part"]["n"]) == 1
    tid = client.root["part"]._p_serial
    owner.be_told(tid)
    assert not owner.storage.is_owner()
    assert owner.root["part"]["n"] == 2
    assert client.root["part"]._p_oid in owner.told[0][1]
    client.close()
    owner.take_over()


class _Line(deque[Any]):
    """The line at a commit lock, which says that somebody has joined it."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = threading.Event()

    def append(self, each: Any) -> None:
        super().append(each)
        self.joined.set()


def test_a_transaction_that_waited_for_the_commit_that_failed_is_tried_again(
    owner: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.commit(n=1)
    meta = voted(owner)
    errors: list[BaseException] = []

    def commit() -> None:
        try:
            owner.storage.tpc_begin(TransactionMetaData())
        except BaseException as error:
            errors.append(error)

    line = owner.storage._file.commit_lock._line = _Line()
    thread = threading.Thread(target=commit)
    thread.start()
    assert line.joined.wait(LIMIT.total_seconds())
    with monkeypatch.context() as patch:
        patch.setattr(SharedFile, "_finish_finish", _fail_to_finish)
        with pytest.raises(OSError, match="No space"):
            owner.storage.tpc_finish(meta)
    owner.storage.tpc_abort(meta)
    within(thread.join)
    assert [type(error) for error in errors] == [ClientDisconnected]
    within(lambda: owner.commit(n=2))


def test_it_can_be_closed_while_it_has_no_side(
    owner: Side, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    owner.commit(n=1)
    with owner.storage._turning:
        _fail_half_way(owner, monkeypatch, n=2)
        owner.storage._closed = True
    owner.close()
    with FileStorageOf(path) as storage:
        assert len(storage) == 1


def test_a_pack_that_is_overtaken_by_the_close_replaces_nothing(
    owner: Side, client: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        owner.commit(n=number)
    client.hear(owner.storage.lastTransaction())
    packer = FileStorage.packer
    at_it, go_on = threading.Event(), threading.Event()

    def slowly(*args: Any) -> Any:
        at_it.set()
        go_on.wait(LIMIT.total_seconds())
        return packer(*args)

    monkeypatch.setattr(FileStorage, "packer", staticmethod(slowly))
    errors: list[BaseException] = []

    def pack() -> None:
        try:
            owner.storage.pack(4_000_000_000, ZODB.serialize.referencesf)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=pack)
    thread.start()
    assert at_it.wait(LIMIT.total_seconds())
    owner.close()
    client.take_over()
    client.commit(n=5)
    go_on.set()
    within(thread.join)
    assert len(errors) == 1
    client.connection.cacheMinimize()
    client.manager.begin()
    assert client.root["n"] == 5
    assert not os.path.exists(f"{client.storage.getName()}.old")


def test_a_pack_for_a_client_does_not_keep_the_owners_process_from_ending(
    owner: Side, client: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    packer = FileStorage.packer
    threads: list[threading.Thread] = []

    def noting(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return packer(*args)

    monkeypatch.setattr(FileStorage, "packer", staticmethod(noting))
    client.hear(owner.commit(n=1))
    client.database.pack()
    assert [thread.daemon for thread in threads] == [True]


# Finding each other


def test_only_the_owner_of_the_file_may_connect(owner: Side) -> None:
    place = Place(owner.storage.getName())
    assert stat.S_IMODE(os.stat(place.folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(place.socket).st_mode) == 0o600


def test_the_socket_never_listens_with_another_mode(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    listen = socket.socket.listen

    def noted(self: socket.socket, backlog: int) -> None:
        (name,) = [each for each in Path(f"{path}.perdure").iterdir() if "sock" in each.name]
        modes.append(stat.S_IMODE(name.stat().st_mode))
        listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", noted)
    Side(path).close()
    assert set(modes) == {0o600}


def test_a_folder_into_which_others_may_write_is_closed_to_them(path: Path) -> None:
    folder = Path(f"{path}.perdure")
    folder.mkdir()
    folder.chmod(0o775)
    Side(path).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_what_belongs_to_another_user_is_refused(
    owner: Side, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(DatabaseAccessError, match=f"belongs to the user with the number {mine}"):
        SharedStorage(str(path))


def test_a_client_of_another_user_is_not_served(
    owner: Side, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "stranger", lambda connected: (4711, 4712))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT.total_seconds())
        client.connect(owner.storage._place.address())
        # It is closed, and what is said in it is not read: otherwise this would wait.
        with contextlib.suppress(OSError):
            client.sendall(b"\0\0\0\2Z5")
        with contextlib.suppress(ConnectionResetError):
            while client.recv(100):
                pass
    assert "process 4711 of the user with id 4712 was refused" in caplog.text
    owner.commit(n=1)


def test_a_server_of_another_user_is_not_listened_to(
    owner: Side, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "stranger", lambda connected: (4711, 4712))
    with pytest.raises(DatabaseLockedError, match="does not answer"):
        SharedStorage(str(path), limits=Limits(wait=SOON))
    monkeypatch.setattr(place_module, "stranger", lambda connected: (4711, 4712))
    with pytest.raises(DatabaseAccessError, match="process 4711 of the user with the number 4712"):
        SharedStorage(str(path), limits=Limits(wait=SOON))


def test_a_file_in_the_place_of_the_folder_is_refused(path: Path) -> None:
    Path(f"{path}.perdure").write_text("")
    with pytest.raises(DatabaseAccessError, match="is no folder"):
        SharedStorage(str(path))


def test_a_socket_that_was_left_is_replaced(path: Path) -> None:
    folder = Path(f"{path}.perdure")
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "share.sock"))
    owner, client = Side(path), Side(path)
    assert not client.storage.is_owner()
    client.close()
    owner.close()


def test_a_path_may_be_longer_than_the_address_of_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    owner, client = Side(folder / "app.fs"), Side(folder / "app.fs")
    client.hear(owner.commit(n=1))
    assert client.root["n"] == 1
    owner.close()
    client.take_over()
    client.close()


def test_where_that_cannot_be_the_limit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(str(tmp_path / ("d" * 100)))
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    with pytest.raises(DatabaseAccessError, match="longer than the 107 bytes"):
        place.address()


def test_two_names_of_one_file_are_one_place(owner: Side, path: Path) -> None:
    link = path.with_name("link.fs")
    link.symlink_to(path)
    other = Side(link)
    assert not other.storage.is_owner()
    assert other.storage.sortKey() == owner.storage.sortKey()
    other.close()


def test_a_process_that_does_not_share_is_named(path: Path) -> None:
    with FileStorageOf(path), pytest.raises(DatabaseLockedError) as caught:
        SharedStorage(str(path), limits=Limits(unshared=NOW))
    assert f"is open in the process {os.getpid()}, which does not share it" in str(caught.value)


def test_one_that_shares_and_does_not_answer_is_waited_for_longer(path: Path) -> None:
    place = Place(str(path))
    place.prepare()
    lock = place.try_to_share()
    assert isinstance(lock, LockFile)
    with pytest.raises(DatabaseLockedError, match="which does not answer: it may be stopped"):
        SharedStorage(str(path), limits=Limits(unshared=NOW, wait=SOON))
    lock.close()


def test_a_file_that_is_not_there_is_not_made_where_that_is_not_wanted(path: Path) -> None:
    with pytest.raises(DatabaseNotFoundError):
        SharedStorage(str(path), create=False)
    assert not list(path.parent.iterdir())


def test_an_empty_file_is_no_database_where_none_is_to_be_made(path: Path) -> None:
    path.touch()
    with pytest.raises(DatabaseNotFoundError):
        SharedStorage(str(path), create=False)
    assert [each.name for each in path.parent.iterdir()] == ["app.fs"]
    assert path.read_bytes() == b""


def test_a_file_that_cannot_be_opened_leaves_nothing_locked(path: Path) -> None:
    path.write_bytes(b"no database")
    for _ in range(2):
        with pytest.raises(Exception, match="FileStorageFormatError|Invalid|not"):
            SharedStorage(str(path))


# The storage's interface


def test_a_transaction_has_to_be_begun_once(pair: tuple[Side, Side]) -> None:
    one, _ = pair
    meta = TransactionMetaData()
    with pytest.raises(StorageTransactionError):
        one.storage.store(z64, z64, b"", "", meta)
    one.storage.tpc_abort(meta)
    one.storage.tpc_begin(meta)
    with pytest.raises(StorageTransactionError, match="twice"):
        one.storage.tpc_begin(meta)
    one.storage.tpc_abort(meta)


def test_transactions_can_be_copied_into_it(pair: tuple[Side, Side], tmp_path: Path) -> None:
    one, other = pair
    source = ZODB.DB(FileStorage(str(tmp_path / "source.fs")))
    with source.transaction() as connection:
        connection.root()["n"] = 7
    one.storage.copyTransactionsFrom(source.storage)
    last = source.storage.lastTransaction()
    source.close()
    assert one.storage.loadSerial(z64, last)
    assert other.storage.loadSerial(z64, last)


def test_a_retry_is_what_a_lost_owner_costs(owner: Side, client: Side) -> None:
    client.hear(owner.commit(n=1))
    assert issubclass(ClientDisconnected, TransientError)
    client.root["n"] = 2
    owner.close()
    for attempt in client.manager.attempts(3):
        with attempt:
            client.root["n"] = 2
    client.manager.begin()
    assert client.root["n"] == 2
