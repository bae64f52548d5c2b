"""Bad input to a running system, its messages and its storage: an error to the caller alone."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ZODB.FileStorage import FileStorage

from perdure.actors import (
    ActorSystem,
    CancelJob,
    JobAsked,
    PauseQueue,
    PollsAsked,
    Resize,
    ResumeQueue,
    RetryJob,
    StatisticsAsked,
    StatusAsked,
    Subscribe,
    Unsubscribe,
    active_processes,
    ask_process,
    messages,
    start,
    wire,
)
from perdure.actors.system import BETWEEN_ACTORS, FOR_A_SYSTEM
from perdure.model import (
    Job,
    JobNotFoundError,
    JobRef,
    NotInstalledError,
    NotStorableError,
    QueueNotFoundError,
    UnknownMessageError,
    UnknownSettingError,
)
from perdure.server import main as serve
from perdure.storage import SharedStorage, database_file, is_in_memory, open_database
from support.addresses import address_of
from support.jobs import add
from support.public import inputs_of
from support.systems import LIMIT, Systems, settled, within

SECOND = timedelta(seconds=1)
NAIVE = datetime(2026, 1, 2)
PAST_THE_CALENDAR = datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))
OPEN = sys.stderr

NO_ZONE = ("datetime.datetime(2026, 1, 2, 0, 0) has none", "use datetime.now(datetime.UTC)")
NO_REF = ("names no job", "give a Job, a JobRef or its text")
NO_SIZE = "is a whole number"
NO_TIMEOUT = ("timeout must be a timedelta, or None to wait without end", "not 5")
NO_ACTOR = ("5 is no reference to an actor", "give its actor_ref")


class Bad(NamedTuple):
    """A call, or a message, with a bad value, and what comes of it."""

    name: str
    call: Any
    error: type[Exception]
    texts: tuple[str, ...]


CALLS: list[Bad] = []
MESSAGES: list[Bad] = []
ELSEWHERE: list[Bad] = []


def bad(
    name: str, call: Callable[[ActorSystem], Any], error: type[Exception], *texts: str
) -> None:
    CALLS.append(Bad(name, call, error, texts))


def bad_message(message: Any, error: type[Exception], *texts: str) -> None:
    MESSAGES.append(Bad(type(message).__qualname__, message, error, texts))


def bad_elsewhere(
    name: str, call: Callable[[Path], Any], error: type[Exception], *texts: str
) -> None:
    ELSEWHERE.append(Bad(name, call, error, texts))


# A system

bad("ActorSystem.put", lambda s: s.put(5), NotStorableError, "5 cannot be called: give a function")
bad("ActorSystem.put", lambda s: s.put(add, OPEN), NotStorableError, "argument 0 cannot be stored")
bad("ActorSystem.put", lambda s: s.put(add, "x" * 1_000_001), NotStorableError, "in a blob")
bad("ActorSystem.put", lambda s: s.put(Job(add), 1), TypeError, "its arguments already")
bad("ActorSystem.result", lambda s: s.result(5), JobNotFoundError, "5", *NO_REF)
bad("ActorSystem.result", lambda s: s.result("last"), JobNotFoundError, "'last' names no job")
bad("ActorSystem.result", lambda s: s.result(Job(add)), JobNotFoundError, "put it first")
bad("ActorSystem.result", lambda s: s.result("1", timeout=5), UnknownSettingError, *NO_TIMEOUT)
bad("ActorSystem.wait", lambda s: s.wait(None), JobNotFoundError, "None", *NO_REF)
bad("ActorSystem.wait", lambda s: s.wait("1", timeout=5), UnknownSettingError, *NO_TIMEOUT)
bad("ActorSystem.join", lambda s: s.join(5), UnknownSettingError, *NO_TIMEOUT)
bad(
    "ActorSystem.stop", lambda s: s.stop(5), UnknownSettingError, "a timedelta of 0 or more, not 5"
)
bad("ActorSystem.stop", lambda s: s.stop(-SECOND), UnknownSettingError, "of 0 or more, not")
bad("ActorSystem.ask", lambda s: s.ask(5), UnknownMessageError, "no handler for int", "it handles")
bad("ActorSystem.ask", lambda s: s.ask(StatusAsked(), 5), UnknownSettingError, *NO_TIMEOUT)
bad(
    "ActorSystem.tell", lambda s: s.tell(messages.StopTree()),
    UnknownMessageError, "StopTree is what a system's actors tell each other", "may be sent: Act",
)  # fmt: skip
bad("ask_process", lambda s: ask_process(5, StatusAsked()), TypeError, "active_processes", "not 5")
bad(
    "ask_process", lambda s: ask_process(address_of(s), 5),
    UnknownMessageError, "may not be sent int; what it may be sent: ActiveJobsAsked",
)  # fmt: skip
bad(
    "ask_process", lambda s: ask_process(address_of(s), StatusAsked(), timeout=5),
    UnknownSettingError, "a timedelta above zero, not 5",
)  # fmt: skip
bad("active_processes", lambda s: active_processes(5), NotInstalledError, "5 is neither a conn")

# Its messages, in this process and from another one

bad_message(Resize(5, "main", 1), UnknownSettingError, "works for the queues ['']", "not 5")
bad_message(Resize([], "main", 1), UnknownSettingError, "works for the queues ['']", "not []")
bad_message(Resize("mail", "main", 1), UnknownSettingError, "not 'mail'")
bad_message(Resize("", "other", 1), KeyError, "has no agent 'other', only ['main']")
bad_message(Resize("", [], 1), KeyError, "has no agent [], only ['main']")
bad_message(Resize("", "main", "3"), TypeError, NO_SIZE, "not '3'")
bad_message(Resize("", "main", None), TypeError, NO_SIZE, "not None")
bad_message(Resize("", "main", True), TypeError, NO_SIZE, "not True")
bad_message(Resize("", "main", -1), UnknownSettingError, "must be 0 or more, not -1")
bad_message(Resize("", "main", 10_001), UnknownSettingError, "10000 at most")
for kind in (RetryJob, CancelJob):
    bad_message(kind(5), JobNotFoundError, "5", *NO_REF)
    bad_message(kind(None), JobNotFoundError, "None", *NO_REF)
    bad_message(kind(JobRef("x")), JobNotFoundError, "'x'", *NO_REF)
    bad_message(kind(JobRef(-1)), JobNotFoundError, "there is no job -1 in this database")
    bad_message(kind(JobRef(1, "shop")), JobNotFoundError, "no database named 'shop' here")
    bad_message(kind(JobRef(1, 5)), JobNotFoundError, "no database named 5 here")
for kind in (PauseQueue, ResumeQueue):
    bad_message(kind("mail"), QueueNotFoundError, "there is no queue 'mail'; there are ['']")
    bad_message(kind(5), QueueNotFoundError, "a text, not by 5")
    bad_message(kind(None), QueueNotFoundError, "a text, not by None")
    bad_message(kind([]), QueueNotFoundError, "a text, not by []")
bad_message(JobAsked(5), JobNotFoundError, "5 names no job: give a JobRef")
bad_message(JobAsked([]), JobNotFoundError, "[] names no job: give a JobRef")
for kind in (PollsAsked, StatisticsAsked):
    bad_message(kind(since=NAIVE), UnknownSettingError, "since must have a time zone", *NO_ZONE)
    bad_message(kind(until=5), TypeError, "until must be a datetime with a time zone, not 5")
bad_message(PollsAsked(since="now"), TypeError, "since must be a datetime", "not 'now'")
bad_message(Subscribe(5), TypeError, *NO_ACTOR)
bad_message(Unsubscribe(5), TypeError, *NO_ACTOR)
FROM_ELSEWHERE = [row for row in MESSAGES if type(row.call) in wire.MESSAGES]

# Starting one, and its storage

bad_elsewhere("start", lambda p: start(5), UnknownSettingError, "5 is neither a URI nor an open")
bad_elsewhere("start", lambda p: start(p / "a.fs", 5), UnknownSettingError, "such as {'': 4}")
bad_elsewhere("start", lambda p: start(p / "a.fs", {5: 1}), UnknownSettingError, "a text, not 5")
bad_elsewhere("start", lambda p: start(p / "a.fs", {"": -1}), UnknownSettingError, "not -1")
bad_elsewhere(
    "start", lambda p: start(p / "a.fs", poll_interval=5),
    UnknownSettingError, "poll_interval must be a timedelta, not 5",
)  # fmt: skip
bad_elsewhere(
    "start", lambda p: start(p / "a.fs", ping_interval=-SECOND),
    UnknownSettingError, "ping_interval must be longer than zero",
)  # fmt: skip
bad_elsewhere(
    "start", lambda p: start(p / "a.fs", ping_death_interval=SECOND),
    UnknownSettingError, "ping_death_interval (0:00:01) must be longer than ping_interval",
)  # fmt: skip
bad_elsewhere(
    "start", lambda p: start(p / "a.fs", clock=5),
    UnknownSettingError, "clock has to be a perdure.model.Clock, not 5",
)  # fmt: skip
bad_elsewhere(
    "start", lambda p: start(p / "a.fs", execution=5),
    UnknownSettingError, "execution has to be an Execution, not 5",
)  # fmt: skip
bad_elsewhere("open_database", lambda p: open_database(5), UnknownSettingError, "a path or a URI")
bad_elsewhere("open_database", lambda p: open_database(b"a"), UnknownSettingError, "b'a' names no")
bad_elsewhere("open_database", lambda p: open_database(""), UnknownSettingError, "'' names no")
bad_elsewhere("open_database", lambda p: open_database("a\0b"), UnknownSettingError, "null charac")
bad_elsewhere(
    "open_database", lambda p: open_database(p / "a.fs", wait=5),
    UnknownSettingError, "wait must be a timedelta, not 5",
)  # fmt: skip
bad_elsewhere(
    "open_database", lambda p: open_database(p / "a.fs", wait=-SECOND),
    UnknownSettingError, "wait must be longer than zero",
)  # fmt: skip
bad_elsewhere("database_file", lambda p: database_file(5), TypeError, "give the ZODB.DB")
bad_elsewhere("is_in_memory", lambda p: is_in_memory(5), TypeError, "give the ZODB.DB")
bad_elsewhere("SharedStorage", lambda p: SharedStorage(5), UnknownSettingError, "path", "not 5")
bad_elsewhere("SharedStorage", lambda p: SharedStorage(""), UnknownSettingError, "path", "not ''")
bad_elsewhere(
    "SharedStorage", lambda p: SharedStorage(str(p / "a.fs"), blob_dir=5),
    UnknownSettingError, "blob_dir has to be the path of a file, not 5",
)  # fmt: skip
bad_elsewhere(
    "SharedStorage", lambda p: SharedStorage(str(p / "a.fs"), blob_layout="odd"),
    UnknownSettingError, "blob_layout is 'odd', and has to be one of automatic, bushy, lawn",
)  # fmt: skip


@pytest.fixture
def system(systems: Systems, tmp_path: Path) -> ActorSystem:
    return systems.start(systems.database(FileStorage(str(tmp_path / "app.fs"))), {"": 1})


def refused(system: ActorSystem, row: Bad, call: Callable[[], Any], caplog: Any) -> None:
    """Call, and see that it is an error to the caller, and nothing else."""
    settled(system)
    before = system.database.lastTransaction()

    with pytest.raises(row.error) as caught:
        within(call)

    for text in row.texts:
        assert text in str(caught.value)
    assert system.database.lastTransaction() == before
    assert [each for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")] == []
    status = system.ask(StatusAsked())
    assert status.crashes == 0 and status.degraded == ()
    assert system.result(system.put(add, 1, 2), timeout=LIMIT) == 3


@pytest.mark.parametrize("row", CALLS, ids=lambda row: row.name)
def test_a_bad_call_is_an_error_to_its_caller_alone(
    system: ActorSystem, row: Bad, caplog: pytest.LogCaptureFixture
) -> None:
    refused(system, row, lambda: row.call(system), caplog)


@pytest.mark.spec("D12")
@pytest.mark.parametrize("row", MESSAGES, ids=lambda row: row.name)
def test_a_bad_message_is_an_error_to_its_asker_alone(
    system: ActorSystem, row: Bad, caplog: pytest.LogCaptureFixture
) -> None:
    refused(system, row, lambda: system.ask(row.call), caplog)


@pytest.mark.spec("D12")
@pytest.mark.parametrize("row", FROM_ELSEWHERE, ids=lambda row: row.name)
def test_so_it_is_where_it_comes_from_another_process(
    system: ActorSystem, row: Bad, caplog: pytest.LogCaptureFixture
) -> None:
    address = address_of(system)
    refused(system, row, lambda: ask_process(address, row.call, timeout=LIMIT), caplog)


@pytest.mark.parametrize("kind", BETWEEN_ACTORS, ids=lambda kind: kind.__name__)
def test_what_a_systems_actors_tell_each_other_is_for_nobody_else_to_send(
    system: ActorSystem, kind: type[Any]
) -> None:
    message = object.__new__(kind)
    for send in (system.ask, system.tell):
        with pytest.raises(UnknownMessageError, match="tell each other; what it may be sent: Act"):
            send(message)
    assert system.ask(StatusAsked()).crashes == 0


@pytest.mark.parametrize("row", ELSEWHERE, ids=lambda row: row.name)
def test_what_cannot_be_started_or_opened_leaves_nothing(tmp_path: Path, row: Bad) -> None:
    with pytest.raises(row.error) as caught:
        row.call(tmp_path)
    for text in row.texts:
        assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_storage_is_given_a_function_to_tell_of_foreign_commits(tmp_path: Path) -> None:
    storage = SharedStorage(str(tmp_path / "a.fs"))
    with pytest.raises(TypeError, match="told has to be a function, and 5 cannot be called"):
        storage.on_foreign_commit(5)
    storage.close()


@pytest.mark.parametrize("words", [["--colour", "red"], ["-a", "x:y:z"], []])
def test_a_server_is_not_started_with_bad_options(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        serve(words)
    assert caught.value.code == 2
    assert "Error: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_begin_leaves_signals_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(program: Any) -> None:
        program.setup_signals()
        assert signal.getsignal(signal.SIGTERM) != before
        raise FileNotFoundError("app.fs")

    monkeypatch.setattr("perdure.server.zeo._Program.main", begin)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FileNotFoundError):
        serve(["-a", str(tmp_path / "socket"), "-f", str(tmp_path / "app.fs")])
    assert signal.getsignal(signal.SIGTERM) == before


# Completeness

RECORDS = "a frozen report, made by a system to be read"
NOT_BY_HAND = "an actor, started and told by a system, not by hand"
OF_ZODB = "part of ZODB's own protocol between a database and its storage"
OF_ZEO = "ZEO's server, whose arguments are ZEO's to check"
NO_ROW = {
    **dict.fromkeys(
        (
            "AgentPoll", "JobReport", "PollDone", "ProcessAddress", "QueuePoll", "Statistics",
            "StatusReport",
        ),
        RECORDS,
    ),
    **{
        name: NOT_BY_HAND
        for name in inputs_of("actors")
        if name.partition(".")[0].endswith("Actor")
    },
    **{
        name: OF_ZODB
        for name in inputs_of("storage")
        if name.startswith("SharedStorage.") and name != "SharedStorage.on_foreign_commit"
    },
    "ActorSystem": "made by start, which has rows",
    "Server": OF_ZEO,
    "SharedStorage.on_foreign_commit": "has a test of its own, here",
    "main": "has a test of its own: here that of the server, in test_cli_errors the commands",
}  # fmt: skip


def test_everything_public_that_is_given_something_has_a_row():
    public = {name for room in ("actors", "storage", "cli", "server") for name in inputs_of(room)}
    with_rows = {row.name for row in (*CALLS, *MESSAGES, *ELSEWHERE)}

    assert public - with_rows == set(NO_ROW)


def test_every_message_that_a_system_may_be_sent_has_a_row_if_it_has_fields():
    with_fields = {kind.__qualname__ for kind in FOR_A_SYSTEM if dataclasses.fields(kind)}

    assert {row.name for row in MESSAGES} == with_fields
    assert {row.name for row in FROM_ELSEWHERE} == with_fields - {"Subscribe", "Unsubscribe"}


def test_every_message_is_one_that_may_be_sent_or_one_that_may_not():
    # Those of policies, and of events, are no messages to actors of a system.
    every = {getattr(messages, name) for name in messages.__all__}
    here = {kind for kind in every if kind.__module__ == messages.__name__}
    told = {kind for kind in here if dataclasses.is_dataclass(kind)}

    assert told == {*FOR_A_SYSTEM, *BETWEEN_ACTORS, messages.Wake}
    assert not set(FOR_A_SYSTEM) & set(BETWEEN_ACTORS)
