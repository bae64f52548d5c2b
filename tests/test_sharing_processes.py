"""Sharing one file: real processes, killed, suspended, forked, and started at once."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from persistent.mapping import PersistentMapping
from transaction.interfaces import TransientError
from ZODB.FileStorage import FileStorage

from perdure.actors import start
from perdure.model import DatabaseLockedError, PutInDoubtError, check
from perdure.storage import SharedStorage, open_database
from perdure.storage.limits import Limits
from support.systems import within
from support.tree import ROOT, TESTS

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: Far beyond what is needed, on a machine that has other things to do.
LIMIT = timedelta(seconds=90)


class Child:
    """A process that runs `support.sharing_process`."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        search = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.sharing_process"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **settings,
        )

    def tell(self, name: str, *arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\t".join([name, *map(str, arguments)]) + "\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return str(within(self.process.stdout.readline, LIMIT)).strip()

    def ask(self, name: str, *arguments: object) -> str:
        self.tell(name, *arguments)
        return self.line()

    def open(self, *arguments: object) -> str:
        return self.ask("open", self.path, *arguments)

    def added(self) -> tuple[int, int]:
        """Wait until all was added; how much was acknowledged, and how much is in doubt."""
        while (line := self.line()) == "adding":
            pass
        word, done, doubt = line.split()
        assert word == "added", line
        return int(done), int(doubt)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait(LIMIT.total_seconds())

    def close(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.fs"


@pytest.fixture
def child(path: Path) -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def make(**settings: Any) -> Child:
        children.append(Child(path, **settings))
        return children[-1]

    yield make
    for each in children:
        each.close()


def prepare(path: Path) -> None:
    database = open_database(path)
    with database.transaction() as connection:
        connection.root().update(left=PersistentMapping(n=0), right=PersistentMapping(n=0))
    database.close()


def stored(path: Path) -> tuple[int, int]:
    """The counters, when all have ended."""
    database = ZODB.DB(FileStorage(str(path)))
    with database.transaction() as connection:
        found = connection.root()["left"]["n"], connection.root()["right"]["n"]
    database.close()
    return found


def test_increments_of_two_threads_and_two_processes_are_all_there(
    path: Path, child: Callable[..., Child]
) -> None:
    prepare(path)
    database = open_database(path)
    clients = [child(), child()]
    assert [each.open() for each in clients] == ["client", "client"]
    wrong: list[str] = []
    stop = threading.Event()

    def work(number: int) -> None:
        manager = transaction.TransactionManager()
        connection = database.open(transaction_manager=manager)
        while number:
            manager.begin()
            left, right = connection.root()["left"], connection.root()["right"]
            try:
                if left["n"] != right["n"]:
                    wrong.append(f"{left['n']} and {right['n']}")
                left["n"] += 1
                right["n"] += 1
                manager.commit()
                number -= 1
            except TransientError:
                manager.abort()
        manager.abort()
        connection.close()

    def look() -> None:
        manager = transaction.TransactionManager()
        connection = database.open(transaction_manager=manager)
        while not stop.is_set():
            manager.begin()
            left, right = connection.root()["left"], connection.root()["right"]
            connection.cacheMinimize()
            if left["n"] != right["n"]:
                wrong.append(f"read {left['n']} and {right['n']}")
        manager.abort()
        connection.close()

    reader = threading.Thread(target=look)
    writers = [threading.Thread(target=work, args=(100,)) for _ in range(2)]
    for each in clients:
        each.tell("add", 100)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        within(thread.join, LIMIT)
    assert [each.added() for each in clients] == [(100, 0), (100, 0)]
    stop.set()
    within(reader.join, LIMIT)
    assert wrong == []
    for each in clients:
        assert each.ask("close") == "closed"
    database.close()
    assert stored(path) == (400, 400)


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_when_the_owner_is_gone_the_others_go_on_and_nothing_is_lost(
    how: str, path: Path, child: Callable[..., Child]
) -> None:
    prepare(path)
    owner, *clients = [child() for _ in range(3)]
    assert [each.open() for each in (owner, *clients)] == ["owner", "client", "client"]
    for each in clients:
        each.tell("add", 300)
        assert each.line() == "adding"
    if how == "killed":
        owner.tell("add", 100_000)
        assert owner.line() == "adding"
        owner.kill()
    else:
        assert owner.ask("close") == "closed"
    done = doubt = 0
    for each in clients:
        one = each.added()
        done, doubt = done + one[0], doubt + one[1]
    assert sorted(each.ask("owner") for each in clients) == ["no", "yes"]
    for each in clients:
        assert each.ask("close") == "closed"
    left, right = stored(path)
    assert left == right and done == 600
    if how == "closed":
        assert done <= left <= done + doubt
    else:
        assert left >= done


def test_of_several_that_start_at_once_one_owns_the_file(
    path: Path, child: Callable[..., Child]
) -> None:
    prepare(path)
    children = [child() for _ in range(4)]
    for each in children:
        each.tell("open", path)
    assert sorted(each.line() for each in children) == ["client", "client", "client", "owner"]
    for each in children:
        each.tell("add", 20)
    assert [each.added()[0] for each in children] == [20] * 4
    for each in children:
        assert each.ask("close") == "closed"
    assert stored(path) == (80, 80)


def test_a_socket_of_one_that_was_killed_is_replaced(
    path: Path, child: Callable[..., Child]
) -> None:
    killed = child()
    assert killed.open() == "owner"
    killed.kill()
    assert (path.with_name("app.fs.perdure") / "share.sock").is_socket()
    database = open_database(path)
    client = child()
    assert client.open() == "client"
    database.close()


def test_a_client_suspended_in_its_vote_keeps_the_others_waiting_for_a_while(
    path: Path, child: Callable[..., Child]
) -> None:
    storage = SharedStorage(str(path), limits=Limits(vote=timedelta(milliseconds=300)))
    database = ZODB.DB(storage)
    storage.share()
    suspended, other = child(), child()
    for each in (suspended, other):
        assert each.open() == "client"
    assert suspended.ask("store") == "stored"
    assert suspended.ask("vote") == "voted"
    suspended.signal(signal.SIGSTOP)

    def commit() -> None:
        with database.transaction() as connection:
            connection.root()["n"] = 1

    within(commit, LIMIT)
    assert other.ask("commit") == "committed"
    suspended.signal(signal.SIGCONT)
    assert suspended.ask("finish").startswith("ClientDisconnected")
    assert suspended.ask("commit") == "committed"
    for each in (suspended, other):
        assert each.ask("close") == "closed"
    database.close()


def test_the_limit_for_a_vote_is_below_ten_seconds() -> None:
    assert Limits().vote < timedelta(seconds=10)


def test_a_client_suspended_before_its_vote_keeps_nobody_waiting(
    path: Path, child: Callable[..., Child]
) -> None:
    database = open_database(path)
    suspended = child()
    assert suspended.open() == "client"
    assert suspended.ask("store") == "stored"
    suspended.signal(signal.SIGSTOP)

    def commit() -> None:
        for number in range(50):
            with database.transaction() as connection:
                connection.root()["n"] = number

    within(commit, LIMIT)
    suspended.signal(signal.SIGCONT)
    assert suspended.ask("vote").startswith("ConflictError")
    within(database.close, LIMIT)


def test_who_comes_to_a_suspended_owner_is_told_its_process(
    path: Path, child: Callable[..., Child]
) -> None:
    owner, other = child(), child()
    assert owner.open() == "owner"
    owner.signal(signal.SIGSTOP)
    answer = other.open(0.2)
    assert answer.startswith("DatabaseLockedError")
    assert f"shared by the process {owner.process.pid}, which does not answer" in answer
    owner.signal(signal.SIGCONT)
    assert other.open() == "client"


def test_a_client_can_be_closed_while_the_owner_is_suspended(
    path: Path, child: Callable[..., Child]
) -> None:
    owner = child()
    assert owner.open() == "owner"
    database = open_database(path)
    owner.signal(signal.SIGSTOP)
    within(database.close, LIMIT)
    owner.signal(signal.SIGCONT)
    assert owner.ask("commit") == "committed"


def test_a_process_that_does_not_share_is_told_by_its_number(path: Path) -> None:
    code = (
        "import sys, ZODB; db = ZODB.DB(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(DatabaseLockedError, match=f"the process {other.pid}, which does not"):
            within(lambda: open_database(path), LIMIT)
        other.stdin.close()


def test_a_forked_child_has_nothing_of_the_file(path: Path, child: Callable[..., Child]) -> None:
    owner, client = child(), child()
    assert [owner.open(), client.open()] == ["owner", "client"]
    forked: list[int] = []
    try:
        for each in (owner, client):
            answer = each.ask("fork")
            assert answer.startswith("forked "), answer
            forked.append(int(answer.split()[1]))
            assert "was opened before this process was forked: open it again here" in answer
            # Neither the child's attempt nor its close did its parent any harm.
            assert each.ask("commit") == "committed"
        owner.kill()
        # The owner's child lives, and keeps neither the lock nor the connections.
        assert client.ask("commit") == "committed"
        assert client.ask("owner") == "yes"
        assert client.ask("close") == "closed"
    finally:
        for number in forked:
            os.kill(number, signal.SIGKILL)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_this_user_may_not_use_is_refused_with_the_reason() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "app.fs")
        prepare(path)
        assert attempt(path).startswith("DatabaseAccessError")
        path.chmod(0o600)
        assert "must be able to read and write the file" in attempt(path)


def attempt(path: Path) -> str:
    """What a process of a user without any rights says."""
    code = (
        "import sys\n"
        "from perdure.model import PerdureError\n"
        "from perdure.storage import open_database\n"
        "import os; os.setuid(65534)\n"
        "try: open_database(sys.argv[1])\n"
        "except PerdureError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=90
    )
    assert done.stderr == ""
    return done.stdout


# The soak


def soak(folder: Path, *arguments: str, of: str = "sharing") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"tests.soak_{of}", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_short_soak_finds_nothing(tmp_path: Path) -> None:
    done = soak(tmp_path, "--minutes", "0.1", "--processes", "3", "--kills", "3", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was wrong" in done.stdout


@pytest.mark.spec("J8", "J30", "C5")
def test_a_short_soak_of_jobs_that_wait_finds_nothing(tmp_path: Path) -> None:
    done = soak(tmp_path, "--minutes", "0.1", "--jobs", "14", "--seed", "1", of="jobs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was wrong" in done.stdout


@pytest.mark.parametrize(
    "fault", ["deaf_owner", "deaf_clients", "blind_takeover", "early_answer", "forgetful_owner"]
)
def test_the_soak_finds_a_deliberate_fault(fault: str, tmp_path: Path) -> None:
    done = soak(
        tmp_path,
        *("--minutes", "1", "--processes", "3", "--kills", "20", "--seed", "2"),
        *("--patience", "15", "--fault", fault),
    )
    assert done.returncode == 1, done.stdout
    assert "wrong: " in done.stdout and "failed with --seed 2" in done.stdout
    # A fault that could not be committed shows as a process that does not get on.
    assert "Error" not in done.stderr


# Systems


@pytest.mark.spec("D1")
def test_a_second_process_runs_the_jobs_that_the_first_one_puts(path: Path) -> None:
    search = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    with start(path, {"": 0}, poll_interval=timedelta(seconds=0.2)) as system:
        ref = system.put(operator.add, 2, 3)
        with subprocess.Popen(
            [sys.executable, "-m", "support.worker_process", "run", f"file://{path}"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
            stdout=subprocess.PIPE,
            text=True,
        ) as other:
            try:
                assert other.stdout is not None
                said = within(other.stdout.readline, LIMIT)
                assert said.startswith("uuid ") and str(system.uuid) not in said
                assert system.result(ref, timeout=LIMIT) == 5
            finally:
                other.kill()
        assert check(system.database) == []


def test_a_system_goes_on_when_the_process_that_had_the_file_is_killed(
    path: Path, child: Callable[..., Child]
) -> None:
    owner = child()
    assert owner.open() == "owner"
    with start(path, {"": 1}, poll_interval=timedelta(seconds=0.2)) as system:
        assert system.result(system.put(operator.add, 2, 3), timeout=LIMIT) == 5
        owner.kill()
        while True:
            try:
                ref = system.put(operator.add, 3, 4)
            except (TransientError, PutInDoubtError):
                continue
            break
        assert system.result(ref, timeout=LIMIT) == 7
        assert system.database.storage.is_owner()
        assert check(system.database) == []
