"""What a running system knows is asked by other processes, through its control socket."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import operator
import os
import pickle
import signal
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pykka
import pytest
from ZODB.FileStorage import FileStorage

from perdure.actors import (
    ActiveJobsAsked,
    AgentPoll,
    CancelJob,
    JobAsked,
    PauseQueue,
    PollDone,
    PollNow,
    PollsAsked,
    ProcessAddress,
    QueuePoll,
    Resize,
    ResumeQueue,
    RetryJob,
    StatisticsAsked,
    StatusAsked,
    SystemState,
    active_processes,
    ask_process,
    control,
    start,
    wire,
)
from perdure.actors.control import ControlServer, socket_path
from perdure.actors.messages import DeactivateNow, StopTree, Wake
from perdure.model import (
    AbortedError,
    JobNotFoundError,
    JobRef,
    ProcessNotReachableError,
    PutInDoubtError,
    QueueNotFoundError,
    UnknownSettingError,
    find_job,
    get_queue,
    install,
    localsocket,
)
from perdure.model.clock import SystemClock
from perdure.model.errors import PerdureError, UnknownMessageError
from perdure.model.incarnation import acquire_identity
from support import addresses, jobs
from support.addresses import address_of
from support.jobs import gates
from support.processes import Child
from support.systems import HOUR, LIMIT, Systems, settled, within

NOW = timedelta(0)
SOON = timedelta(milliseconds=50)


# A server on its own, and those who come to it


class Served:
    """A control server whose answers are given by the test."""

    def __init__(self, database_file: Path) -> None:
        self.identity = acquire_identity(database_file, clock=SystemClock(), environ={})
        assert self.identity.incarnation is not None
        self.incarnation = self.identity.incarnation
        self.path = socket_path(self.incarnation)
        self.address = ProcessAddress(self.identity.uuid, (), self.incarnation)
        self.asked: list[Any] = []
        self.arrived = threading.Semaphore(0)
        self.answer: Callable[[pykka.Future[Any], Any], None] = lambda reply, _: reply.set("yes")
        self.server = ControlServer(self.incarnation, self._send)

    def _send(self, reply: pykka.Future[Any], message: Any) -> None:
        self.asked.append((reply, message))
        self.arrived.release()
        self.answer(reply, message)

    def wait_until_asked(self) -> None:
        assert self.arrived.acquire(timeout=LIMIT.total_seconds()), "nothing has arrived"

    def ask(self, message: Any = None, timeout: timedelta = LIMIT) -> Any:
        return ask_process(self.address, message or StatusAsked(), timeout=timeout)

    def raise_at_asker(self, error: Exception) -> Exception:
        """What comes out at the asker when the answerer raises this."""
        self.answer = lambda reply, _: reply.set_exception((type(error), error, None))
        with pytest.raises(Exception) as caught:
            self.ask()
        return caught.value

    def connected(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(LIMIT.total_seconds())
        with localsocket._address(self.path) as address:
            client.connect(address)
        return client

    def sent(self, data: bytes) -> bytes:
        """All that comes back for these bytes, behind which nothing more comes."""
        with self.connected() as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            return all_of(client)

    def sent_message(self, message: Any) -> Any:
        """What is answered to a message that no asker of ours would send."""
        frame = wire._frame(pickle.dumps((self.incarnation.token, message)))
        with self.connected() as client:
            client.sendall(frame)
            return wire.read_answer(all_of(client)[wire.HEADER_BYTES :])


def all_of(client: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := client.recv(2**20):
            data += more
    return data


def bind(unbound: socket.socket, path: str) -> None:
    # The folders of tests may be too deep for a socket.
    with localsocket._address(path) as address:
        unbound.bind(address)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "app.fs")
    made.server.start()
    yield made
    within(made.server.stop)
    made.identity.close()


def file_system(systems: Systems, tmp_path: Path, **settings: Any) -> Any:
    return systems.start(systems.database(FileStorage(str(tmp_path / "app.fs"))), **settings)


# Questions and answers


@pytest.mark.spec("D12")
def test_every_question_is_answered_as_in_the_process_itself(
    systems: Systems, tmp_path: Path
) -> None:
    system = file_system(systems, tmp_path, queues={"": 2, "mail": 1})
    settled(system)
    ref = system.put(jobs.pass_gate, "g")
    gates["g"].wait_until_entered()
    within(lambda: system.ask(PollNow()))
    address = address_of(system)
    for message in (ActiveJobsAsked(), JobAsked(ref), PollsAsked(), StatisticsAsked()):
        assert ask_process(address, message) == system.ask(message) != ()
    status = ask_process(address, StatusAsked())
    assert (status.state, status.uuid, status.active_jobs) == (
        SystemState.RUNNING,
        system.uuid,
        1,
    )
    assert (status.pid, status.host) == (os.getpid(), socket.gethostname())
    assert status.queues == ("", "mail") and status.version[0].isdigit()
    gates["g"].open()


@pytest.mark.spec("D12", "D7")
def test_a_process_is_told_to_poll_and_an_agent_is_resized(
    systems: Systems, tmp_path: Path
) -> None:
    system = file_system(systems, tmp_path)
    settled(system)
    polls = len(system.ask(PollsAsked()))
    assert ask_process(address_of(system), PollNow(), timeout=LIMIT) is None
    assert len(system.ask(PollsAsked())) == polls + 1
    ask_process(address_of(system), Resize("", "main", 7), timeout=LIMIT)
    with system.transaction() as connection:
        assert get_queue(connection).dispatchers[system.uuid]["main"].size == 7


def test_a_queue_is_paused_and_jobs_are_retried_and_cancelled_from_elsewhere(
    systems: Systems, tmp_path: Path
) -> None:
    system = file_system(systems, tmp_path)
    failed = system.put(jobs.fail)
    system.wait(failed, timeout=LIMIT)
    ask_process(address_of(system), PauseQueue(""), timeout=LIMIT)
    ask_process(address_of(system), RetryJob(failed), timeout=LIMIT)
    waiting = system.put(operator.add, 1, 1)
    ask_process(address_of(system), CancelJob(waiting), timeout=LIMIT)
    with system.transaction() as connection:
        assert get_queue(connection).paused
        assert find_job(connection, failed).result is None
    ask_process(address_of(system), ResumeQueue(""), timeout=LIMIT)
    for ref in (failed, waiting):
        system.wait(ref, timeout=LIMIT)
    with system.transaction() as connection:
        assert find_job(connection, waiting).result.check(AbortedError)


def test_the_latest_start_of_a_process_is_asked_where_an_earlier_one_is_not_buried_yet(
    systems: Systems, tmp_path: Path
) -> None:
    database = systems.database(FileStorage(str(tmp_path / "data.fs")))
    system = systems.start(database, {"b": 1})
    with database.transaction() as connection:
        install(connection, ["a"])
        old = get_queue(connection, "a").dispatchers.register(system.uuid)
        old.activate("an earlier start")
        old.activated -= HOUR
    settled(system)
    with system.transaction() as connection:
        [address] = active_processes(connection)
    assert address.queues == ("b",)
    assert ask_process(address, StatusAsked(), timeout=LIMIT).queues == ("b",)


BAD_MESSAGES: list[tuple[Any, type[Exception], str]] = [
    (Resize("no such queue", "main", 2), UnknownSettingError, "works for the queues"),
    (Resize("", "other", 2), KeyError, "has no agent 'other'"),
    (Resize("", "main", -2), UnknownSettingError, "must be 0 or more, not -2"),
    (PollsAsked(since=datetime(2026, 1, 1)), UnknownSettingError, "since must have a time zone"),
    (StatisticsAsked(until="now"), TypeError, "until must be a datetime"),  # type: ignore[arg-type]
    (JobAsked([]), JobNotFoundError, r"\[\] names no job: give a JobRef"),  # type: ignore[arg-type]
    (JobAsked(jobs.Gate()), UnknownMessageError, "JobAsked.* cannot be sent"),  # type: ignore[arg-type]
    (JobAsked(operator.add), UnknownMessageError, "may not be sent add"),  # type: ignore[arg-type]
    (Wake(b""), UnknownMessageError, "may not be sent Wake; what it may be sent: ActiveJobsAsked"),
    (StatusAsked, UnknownMessageError, "may not be sent type"),
    ("status", UnknownMessageError, "may not be sent str"),
    (PauseQueue("mail"), QueueNotFoundError, "there is no queue 'mail'"),
    (RetryJob(JobRef(0)), JobNotFoundError, "there is no job 0"),
]


@pytest.mark.spec("D12")
@pytest.mark.parametrize(("message", "kind", "text"), BAD_MESSAGES)
def test_a_bad_message_is_an_error_to_its_asker_and_to_nobody_else(
    systems: Systems, tmp_path: Path, message: Any, kind: type[Exception], text: str
) -> None:
    system = file_system(systems, tmp_path)
    settled(system)
    with pytest.raises(kind, match=text):
        ask_process(address_of(system), message, timeout=LIMIT)
    status = ask_process(address_of(system), StatusAsked(), timeout=LIMIT)
    assert status.crashes == 0 and status.degraded == ()


def test_moments_of_any_time_zone_are_the_same_moments(served: Served) -> None:
    since = datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Helsinki"))
    served.ask(PollsAsked(since=since))
    ((_, message),) = served.asked
    assert message == PollsAsked(since=since) and message.since.tzinfo is UTC


@pytest.mark.slow
def test_a_large_answer_arrives_whole(systems: Systems, tmp_path: Path) -> None:
    system = file_system(systems, tmp_path)
    settled(system)
    for number in range(400):
        claimed = tuple(JobRef(100 * number + each) for each in range(100))
        agent = AgentPoll("main", 3, number, 0, claimed, "")
        at = datetime(2026, 1, 1, tzinfo=UTC)
        system._context.report(PollDone(at, (QueuePoll("", True, (agent,), ""),)))
    polls = ask_process(address_of(system), PollsAsked(), timeout=LIMIT)
    assert [poll.queues[0].agents[0].held for poll in polls] == [*range(399, -1, -1)]
    assert len(pickle.dumps(polls)) > 2**19  # no buffer of a socket has room for it
    assert polls == system.ask(PollsAsked())


class NotHere(Exception):
    """An error that is made with more than it can be made again with."""

    def __init__(self, one: int, *, other: int) -> None:
        super().__init__(f"{one} and {other}")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (KeyError("x"), KeyError, "'x'"),
        (EOFError("the answerer's own"), EOFError, "the answerer's own"),
        (TimeoutError("the answerer's own"), TimeoutError, "the answerer's own"),
        (PutInDoubtError(JobRef(255)), PutInDoubtError, "job ff was put"),
        (NotHere(1, other=2), PerdureError, "NotHere: 1 and 2"),
        (ValueError(threading.Lock()), PerdureError, "ValueError: <unlocked"),
        (ValueError(operator.add), PerdureError, "ValueError: <built-in function add>"),
        (pykka.ActorDeadError("x"), PerdureError, "does not answer any more"),
    ],
)
def test_what_the_answerer_raises_is_raised_at_the_asker(
    served: Served, error: Exception, kind: type[Exception], text: str
) -> None:
    raised = served.raise_at_asker(error)
    assert type(raised) is kind and text in str(raised)


def test_an_answer_that_cannot_be_sent_is_an_error(served: Served) -> None:
    served.answer = lambda reply, _: reply.set(threading.Lock())
    with pytest.raises(PerdureError, match="the answer cannot be sent: cannot pickle"):
        served.ask()
    served.answer = lambda reply, _: reply.set(jobs.Counter())
    with pytest.raises(
        ProcessNotReachableError, match="no Perdure: its answer has a Counter in it"
    ):
        served.ask()


# Who gets in, and with what


@pytest.mark.spec("D12")
@pytest.mark.parametrize(
    "message", [Wake(b"x"), StopTree(), DeactivateNow(), JobRef(1), "text", None, (1, 2)]
)
def test_nothing_but_the_listed_messages_gets_in(served: Served, message: Any) -> None:
    with pytest.raises(UnknownMessageError, match="another process may not be sent"):
        served.sent_message(message)
    assert served.asked == []


def test_no_question_makes_a_process_import_or_call_anything(
    served: Served, tmp_path: Path
) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "trapped"),)

    with pytest.raises(UnknownMessageError, match="may not be sent mkdir"):
        served.sent_message(Trap())
    assert "this" not in sys.modules
    pickled = pickle.dumps((served.incarnation.token, None), protocol=2)
    importing = pickled.replace(b"N\x86", b"cthis\ns\n\x86")
    assert importing != pickled
    served.sent(wire._frame(importing))
    assert "this" not in sys.modules and not (tmp_path / "trapped").exists()
    assert served.asked == []


def test_the_socket_is_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        served = Served(tmp_path / "app.fs")
        served.server.start()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(served.path).st_mode) == 0o600
    served.server.stop()
    served.identity.close()


def test_nobody_can_connect_before_the_socket_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chmod = os.chmod
    refused: list[bool] = []

    def chmod_late(path: str, mode: int) -> None:
        with socket.socket(socket.AF_UNIX) as client, localsocket._address(path) as address:
            with pytest.raises(ConnectionRefusedError):
                client.connect(address)
        refused.append(True)
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", chmod_late)
    localsocket.LocalListener(str(tmp_path / "s")).close()
    assert refused == [True]


def test_another_user_is_refused_and_logged(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(localsocket, "peer", lambda connected: (4711, os.geteuid() + 1))
    assert served.sent(wire.question(served.incarnation.token, StatusAsked())) == b""
    assert served.asked == []
    assert f"process 4711 of the user with id {os.geteuid() + 1} was refused" in caplog.text
    # The asker looks as well.
    with pytest.raises(ProcessNotReachableError, match="is not for this user"):
        served.ask()


def test_a_socket_of_another_user_is_not_even_connected_to(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(
        ProcessNotReachableError, match=f"the user with id {mine}.*ask as the one it runs as"
    ):
        served.ask()
    assert served.asked == []


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="nobody tells who is there")
def test_the_other_side_is_known() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert localsocket.peer(one) == (os.getpid(), os.geteuid())


# Clients that do what they should not


def question_of(served: Served) -> bytes:
    return wire.question(served.incarnation.token, StatusAsked())


def body(content: Any) -> bytes:
    return wire._frame(pickle.dumps(content))


MALFORMED: list[tuple[str, Callable[[Served], bytes]]] = [
    ("nothing", lambda served: b""),
    ("other bytes", lambda served: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ("zeros", lambda served: bytes(1000)),
    ("a long header", lambda served: question_of(served)[:12] + struct.pack(">I", 2**32 - 1)),
    ("no body", lambda served: wire._frame(b"")),
    ("no pickle", lambda served: wire._frame(b"\xff" * 100)),
    ("no tuple", lambda served: body("text")),
    ("an empty tuple", lambda served: body(())),
    ("three parts", lambda served: body(("token", StatusAsked(), 1))),
    ("another token", lambda served: body((1, StatusAsked()))),
]


@pytest.mark.parametrize(
    "make", [make for _, make in MALFORMED], ids=[name for name, _ in MALFORMED]
)
def test_malformed_bytes_harm_nobody(
    served: Served, make: Callable[[Served], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert served.sent(make(served)) == b""
    assert served.ask() == "yes"
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_a_question_that_is_cut_anywhere_harms_nobody(served: Served) -> None:
    frame = question_of(served)
    for length in range(len(frame)):
        assert served.sent(frame[:length]) == b""
    assert served.asked == [] and served.ask() == "yes"


def test_a_client_that_says_nothing_is_left(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.02)
    with served.connected() as silent, served.connected() as slow:
        slow.sendall(question_of(served)[:-1])
        assert all_of(silent) == all_of(slow) == b""


def test_a_client_that_does_not_take_its_answer_is_left(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REPLY_SECONDS", 0.02)
    monkeypatch.setattr(control, "CLIENTS", 1)
    served.answer = lambda reply, _: reply.set("long" * 2**20)
    with served.connected() as deaf:
        deaf.sendall(question_of(served))
        served.wait_until_asked()
        served.answer = lambda reply, _: reply.set("yes")
        assert served.ask() == "yes"  # there is a place for one
        assert len(all_of(deaf)) < 2**22


def test_an_answer_that_does_not_come_is_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_SECONDS", 0.02)
    served.answer = lambda reply, _: None
    with pytest.raises(TimeoutError, match="no answer to StatusAsked within 0 s"):
        served.ask()
    # What comes too late is dropped.
    served.asked[0][0].set("late")
    served.answer = lambda reply, _: reply.set("yes")
    assert served.ask() == "yes"


def test_who_does_not_wait_for_an_answer_frees_its_place(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CLIENTS", 1)
    served.answer = lambda reply, _: None
    with served.connected() as gone:
        gone.sendall(question_of(served))
        served.wait_until_asked()
    with pytest.raises(TimeoutError, match=f"process id {os.getpid()}"):
        served.ask(timeout=SOON)
    served.answer = lambda reply, _: reply.set("yes")
    assert served.ask() == "yes"


def test_further_clients_wait_until_there_is_a_place(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CLIENTS", 2)
    with served.connected(), served.connected() as second:
        # That both are in is known when a third is not let in.
        with pytest.raises(TimeoutError):
            served.ask(timeout=SOON)
        second.close()
        assert served.ask() == "yes"


def test_a_flood_of_clients_is_answered(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CLIENTS", 24)
    served.answer = lambda reply, message: reply.set(message.ref)
    answers: list[Any] = []

    def ask(number: int) -> None:
        answers.append(served.ask(JobAsked(JobRef(number))).oid)

    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(served.connected())
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT.total_seconds())
    assert sorted(answers) == [*range(100)]


@pytest.mark.spec("D12")
def test_a_slow_answer_keeps_no_other_question_waiting(systems: Systems, tmp_path: Path) -> None:
    system = file_system(systems, tmp_path, queues={"": 1})
    settled(system)
    with system.transaction() as connection:
        record = get_queue(connection).dispatchers[system.uuid]
        record["main"].filter = jobs.blocks_at_gate
    system.put(operator.add, 1, 1)
    gates["filter"].wait_until_entered()
    with pytest.raises(TimeoutError, match="no answer to PollNow within 0:00:00.05"):
        ask_process(address_of(system), PollNow(), timeout=SOON)
    assert ask_process(address_of(system), StatusAsked(), timeout=LIMIT).uuid == system.uuid
    gates["filter"].open()


def test_who_cannot_be_let_in_now_is_let_in_later(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept = localsocket.LocalListener.accept
    errors = iter([OSError(errno.EMFILE, "Too many open files"), BlockingIOError()])

    def refuse_once(listener: Any) -> Any:
        for error in errors:
            raise error
        return accept(listener)

    monkeypatch.setattr(control, "_ACCEPT_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(localsocket.LocalListener, "accept", refuse_once)
    assert served.ask() == "yes"
    assert "nobody can be let in at the control socket: " in caplog.text


def test_a_fault_in_serving_one_client_is_logged_and_harms_no_other(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(wire, "read_question", lambda body: 1 / 0)
        with pytest.raises(ProcessNotReachableError, match="stopped while it was asked"):
            served.ask()
    assert served.ask() == "yes"
    assert "a client of the control socket could not be served" in caplog.text


# The end


@pytest.mark.spec("D10")
def test_stop_leaves_nothing_whoever_is_connected(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    served = Served(tmp_path / "app.fs")
    served.server.start()
    served.answer = lambda reply, _: None
    with served.connected() as silent, served.connected() as cut, served.connected() as waits:
        cut.sendall(question_of(served)[:20])
        waits.sendall(question_of(served))
        served.wait_until_asked()
        within(served.server.stop)
        assert all_of(silent) == all_of(cut) == all_of(waits) == b""
    assert set(threading.enumerate()) == before and not os.path.lexists(served.path)
    served.asked[0][0].set("nobody waits for this any more")
    within(served.server.stop)
    served.identity.close()


def test_a_server_is_stopped_before_it_was_started_and_at_once_after_it(tmp_path: Path) -> None:
    for _ in range(20):
        served = Served(tmp_path / "app.fs")
        served.server.stop()
        served.server.start()
        within(served.server.stop)
        served.identity.close()
    assert os.listdir(tmp_path / "app.fs.perdure") == ["uuid.txt"]


@pytest.mark.spec("D10")
def test_the_socket_goes_before_the_lock_and_the_state_is_seen_until_then(
    systems: Systems, tmp_path: Path
) -> None:
    system = jobs.systems["mine"] = file_system(systems, tmp_path, queues={"": 1})
    path = socket_path(system._identity.incarnation)
    close = system._identity.close
    there: list[bool] = []

    def close_late() -> None:
        there.append(os.path.lexists(path))
        close()

    system._identity.close = close_late
    address = address_of(system)
    jobs.calls.append(lambda: ask_process(address, StatusAsked(), timeout=LIMIT).state.value)
    ref = system.put(jobs.call_at_stop, "mine")
    gates["state"].wait_until_entered()
    stopping = threading.Thread(target=system.stop)
    stopping.start()
    stopping.join(LIMIT.total_seconds())
    assert system.result(ref, timeout=LIMIT) == SystemState.STOPPED.value
    assert there == [False]
    with pytest.raises(ProcessNotReachableError, match="it has ended"):
        ask_process(address, StatusAsked(), timeout=LIMIT)


def test_a_socket_that_another_has_put_in_its_place_is_left(served: Served) -> None:
    os.unlink(served.path)
    with socket.socket(socket.AF_UNIX) as other:
        bind(other, served.path)
        served.server.stop()
        assert stat.S_ISSOCK(os.lstat(served.path).st_mode)


# Where the socket is, or cannot be


@pytest.mark.spec("D12")
def test_a_socket_that_was_left_is_replaced(tmp_path: Path) -> None:
    served = Served(tmp_path / "app.fs")
    with socket.socket(socket.AF_UNIX) as killed:
        bind(killed, served.path)
    with pytest.raises(ProcessNotReachableError, match="nobody listens at"):
        served.ask()
    served.server.start()
    assert served.ask() == "yes"
    served.server.stop()
    served.identity.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_long_path_is_no_hindrance(systems: Systems, tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("é" * 50)
    folder.mkdir(parents=True)
    system = file_system(systems, folder)
    path = socket_path(system._identity.incarnation)
    assert len(os.fsencode(path)) > 107 and os.path.lexists(path)
    assert ask_process(address_of(system), StatusAsked(), timeout=LIMIT).uuid == system.uuid
    system.stop()
    assert os.listdir(folder / "app.fs.perdure") == ["uuid.txt"]


def works_without(system: Any, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    assert f"there is no control socket at {socket_path(system._identity.incarnation)}" in (
        caplog.text
    )
    assert reason in caplog.text
    assert system.result(system.put(operator.add, 2, 3), timeout=LIMIT) == 5
    with pytest.raises(ProcessNotReachableError):
        ask_process(address_of(system), StatusAsked(), timeout=LIMIT)


def test_a_path_that_is_too_long_costs_the_socket_and_no_more(
    systems: Systems,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PERDURE_UUID", str(tmp_path / ("i" * 200)))
    system = file_system(systems, tmp_path)
    works_without(system, caplog, "over 10")


def test_what_is_no_socket_is_left_alone(
    systems: Systems, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "app.fs.perdure" / "uuid.txt.sock"
    path.parent.mkdir()
    path.write_text("somebody's")
    system = file_system(systems, tmp_path)
    works_without(system, caplog, "there is something that is no socket")
    system.stop()
    assert path.read_text() == "somebody's"


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (os, "chmod", PermissionError(errno.EPERM, "Operation not permitted")),
        (control.asyncio, "SelectorEventLoop", OSError(errno.EMFILE, "Too many open files")),
        (threading.Thread, "start", RuntimeError("can't start new thread")),
    ],
)
def test_a_server_that_cannot_be_had_leaves_nothing_but_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: Any,
    name: str,
    error: Exception,
) -> None:
    served = Served(tmp_path / "app.fs")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, refuse)
        served.server.start()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and str(error) in record.getMessage()
    assert not os.path.lexists(served.path)
    served.server.stop()
    served.identity.close()


# Whom one can ask


@pytest.mark.spec("D12")
def test_the_database_says_whom_one_can_ask(systems: Systems, tmp_path: Path) -> None:
    one = file_system(systems, tmp_path, queues={"": 1, "mail": 1})
    other = systems.start(one.database, {"mail": 1})
    third = systems.start(one.database, {"": 1})
    for system in (one, other, third):
        settled(system)
    third.stop()
    with one.transaction() as connection:
        found = active_processes(connection)
    expected = {one.uuid: ("", "mail"), other.uuid: ("mail",)}
    assert [process.uuid for process in found] == sorted(expected)
    assert {process.uuid: process.queues for process in found} == expected
    assert all(process.is_here for process in found)
    for process in found:
        assert ask_process(process, StatusAsked(), timeout=LIMIT).uuid == process.uuid
        assert str(process) == f"process {process.uuid} on host {socket.gethostname()}"


@pytest.mark.spec("D12")
def test_a_system_in_memory_is_listed_and_cannot_be_asked(systems: Systems) -> None:
    system = systems.start()
    settled(system)
    with system.transaction() as connection:
        (process,) = active_processes(connection)
    assert (process.uuid, process.is_here) == (system.uuid, False)
    with pytest.raises(ProcessNotReachableError, match=f"{system.uuid}.* has no identity file"):
        ask_process(process, StatusAsked())


def replaced(served: Served, **changes: Any) -> ProcessAddress:
    incarnation = dataclasses.replace(served.incarnation, **changes)
    return dataclasses.replace(served.address, incarnation=incarnation)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"host": "elsewhere"}, "this host is .*: ask on elsewhere"),
        ({"boot_id": "before"}, "it has ended, for the host was booted since"),
        ({"token": "0" * 32}, "it has ended, and was started again: read its record again"),
        ({"path": "/no/such/folder/uuid.txt"}, "it has no control socket at /no/such/folder"),
        ({"path": "/" + "x" * 300}, "File name too long"),
    ],
)
def test_who_cannot_be_reached_is_told_why(
    served: Served, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ProcessNotReachableError, match=text) as caught:
        ask_process(replaced(served, **changes), StatusAsked(), timeout=LIMIT)
    assert str(served.identity.uuid) in str(caught.value)
    assert served.asked == []


@pytest.mark.parametrize("timeout", [5, None, timedelta(0), timedelta(seconds=-1)])
def test_a_bad_timeout_is_refused(served: Served, timeout: Any) -> None:
    with pytest.raises(UnknownSettingError, match="timeout must be a timedelta above zero"):
        served.ask(timeout=timeout)


def test_only_a_process_can_be_asked(served: Served) -> None:
    with pytest.raises(TypeError, match="one of active_processes"):
        ask_process(served.incarnation, StatusAsked())  # type: ignore[arg-type]


FAKES: list[tuple[str, bytes, str]] = [
    ("silence", b"", "it stopped while it was asked"),
    ("half a header", b"PRDR", "it stopped while it was asked"),
    ("half an answer", wire.answer("yes")[:-1], "it stopped while it was asked"),
    ("other bytes", b"HTTP/1.1 200 OK\r\n\r\n", "no Perdure: no frame begins with b'HTTP'"),
    ("no answer", body(("what", 1)), "no Perdure: 'what' is no kind of reply"),
    ("no reply", body("what"), "no Perdure: these bytes hold no question and no reply"),
    ("another version", b"PRDR" + bytes(12), "a version of Perdure that has other messages"),
]


@pytest.mark.parametrize(("sent", "text"), [f[1:] for f in FAKES], ids=[f[0] for f in FAKES])
def test_what_answers_wrongly_is_told_of(tmp_path: Path, sent: bytes, text: str) -> None:
    served = Served(tmp_path / "app.fs")
    listener = localsocket.LocalListener(served.path)
    listener.socket.setblocking(True)

    def answer() -> None:
        client, _ = listener.socket.accept()
        with client:
            client.recv(2**16)
            client.sendall(sent)

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(ProcessNotReachableError, match=text):
        served.ask()
    thread.join(LIMIT.total_seconds())
    listener.close()
    served.identity.close()


def test_another_version_is_told_which_one_answers(served: Served) -> None:
    frame = bytearray(question_of(served))
    frame[4] ^= 1
    reply = served.sent(bytes(frame))
    assert len(reply) == wire.HEADER_BYTES and wire.read_header(reply) == 0
    assert served.asked == []


@pytest.mark.skipif(sys.platform != "linux", reason="who is too many is refused elsewhere")
def test_who_is_not_let_in_within_the_time_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localsocket, "_BACKLOG", 0)
    served = Served(tmp_path / "app.fs")
    listener = localsocket.LocalListener(served.path)
    with served.connected():
        with pytest.raises(TimeoutError, match="is slow, suspended, or stuck"):
            served.ask(timeout=SOON)
    listener.close()
    served.identity.close()


# Real processes


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def make(what: str, **settings: Any) -> Child:
            made = Child(what, f"file://{tmp_path / 'app.fs'}", **settings)
            stack.callback(made.close)
            return made

        yield make


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.spec("D12", "C4")
def test_another_process_answers_until_it_ends(tmp_path: Path, child: Any) -> None:
    process = child("answer")
    lines = sorted([process.line(), process.line()])
    address = addresses.read(lines[0])
    assert lines[1] == "begun"
    status = ask_process(address, StatusAsked(), timeout=LIMIT)
    assert (status.pid, status.uuid) == (process.process.pid, address.uuid)
    (job,) = ask_process(address, ActiveJobsAsked(), timeout=LIMIT)
    assert "note_and_hang" in job.call
    process.process.send_signal(signal.SIGSTOP)
    within(lambda: os.waitid(os.P_PID, status.pid, os.WSTOPPED))
    with pytest.raises(TimeoutError, match=f"process id {process.process.pid}"):
        ask_process(address, StatusAsked(), timeout=SOON)
    process.process.send_signal(signal.SIGCONT)
    assert ask_process(address, StatusAsked(), timeout=LIMIT).pid == status.pid
    process.process.kill()
    process.end()
    assert os.path.lexists(socket_path(address.incarnation))  # type: ignore[arg-type]
    with pytest.raises(ProcessNotReachableError, match="it has ended; when it is started again"):
        ask_process(address, StatusAsked(), timeout=LIMIT)
    with start(f"file://{tmp_path / 'app.fs'}", {"": 0}, poll_interval=HOUR) as system:
        status = ask_process(address_of(system), StatusAsked(), timeout=LIMIT)
        assert (status.pid, status.uuid) == (os.getpid(), address.uuid)
        with pytest.raises(ProcessNotReachableError, match="was started again"):
            ask_process(address, StatusAsked(), timeout=LIMIT)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.spec("D12")
def test_a_forked_child_neither_serves_nor_removes_nor_keeps_the_socket(child: Any) -> None:
    process = child("fork", stdin=True)
    lines = sorted([process.line(), process.line()])
    address = addresses.read(lines[0])
    assert lines[1] == "forked"
    assert ask_process(address, StatusAsked(), timeout=LIMIT).pid == process.process.pid
    process.process.kill()
    process.end()
    # The child is still there, and with a copy of the socket nobody would be refused.
    with pytest.raises(ProcessNotReachableError, match="it has ended"):
        ask_process(address, StatusAsked(), timeout=LIMIT)
