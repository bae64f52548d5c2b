"""A folder as a user of the command line has it: a module, and a database with some history."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import transaction
import ZODB
from ZODB.FileStorage import FileStorage

from perdure.cli import main
from perdure.model import Agent, Job, Queue, get_queue, install

__all__ = ["Shell", "Shop", "done"]

MODULE = "app"
MODULES = (MODULE, "broken", "helper", "exits")
SOURCE = """
def add(one, other=1):
    return one + other


def fail(text="no"):
    raise ValueError(text)


def greet(name, times=1):
    return " ".join([f"hello {name}"] * times)


def show(*args, **kwargs):
    return args, kwargs


def told(result):
    return str(result)


number = 7
"""


class Shop:
    """The jobs of the database: what each is, and its id as text."""

    def __init__(self) -> None:
        self.added = ""
        self.failed = ""
        self.waiting = ""
        self.mail = ""
        self.dispatcher = ""


class Shell:
    """Types commands in a folder, and looks at what comes of it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        self.out = ""
        self.err = ""

    @property
    def database(self) -> Path:
        return self.folder / "perdure.fs"

    def run(self, *words: str) -> int:
        """Run a command, keep what it writes, and return its exit status."""
        self._capsys.readouterr()
        try:
            return main(words)
        finally:
            self.out, self.err = self._capsys.readouterr()

    def forget_modules(self) -> None:
        """Let the modules of the folder be imported anew, as by another process."""
        for name in [name for name in sys.modules if name.partition(".")[0] in MODULES]:
            del sys.modules[name]
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)

    def ok(self, *words: str) -> str:
        """Run a command that has to do its work; what it printed."""
        assert self.run(*words) == 0, self.err
        return self.out

    def json(self, *words: str) -> Any:
        """Run a command that prints one JSON document; that document."""
        self.ok(*words, "--json")
        return json.loads(self.out)

    def refused(self, *words: str) -> str:
        """Run a command that has to fail with one line; that line."""
        assert self.run(*words) == 2, self.out
        assert self.out == ""
        assert self.err.startswith("perdure: ")
        assert self.err.count("\n") == 1, self.err
        return self.err


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Shell]:
    """An empty folder but for ``app.py``."""
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("PERDURE_DB", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Shell(tmp_path, capsys)
    made.forget_modules()
    yield made
    made.forget_modules()


@pytest.fixture(scope="session")
def _made_shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shop]:
    folder = tmp_path_factory.mktemp("shop")
    (folder / f"{MODULE}.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    try:
        return folder / "perdure.fs", _make(folder / "perdure.fs")
    finally:
        sys.path.remove(str(folder))
        del sys.modules[MODULE]


def _make(path: Path) -> Shop:
    import app  # type: ignore[import-not-found]

    shop = Shop()
    database = ZODB.DB(FileStorage(str(path)))
    install(database, ("", "mail"))
    manager = transaction.TransactionManager()
    connection = database.open(transaction_manager=manager)
    manager.begin()
    queue = get_queue(connection)
    queue.quotas.create("desk", 2)
    agents = [_agent(each, manager) for each in (queue, get_queue(connection, "mail"))]
    shop.dispatcher = str(agents[0].record.uuid)
    shop.added = done(queue, agents[0], Job(app.add, 2, 3), manager)
    failing = Job(app.fail)
    failing.add_callback(app.told)
    shop.failed = done(queue, agents[0], failing, manager)
    shop.waiting = str(queue.put(Job(app.greet, "Ada", times=2)).ref)
    shop.mail = str(get_queue(connection, "mail").put(Job(app.add, 1)).ref)
    for agent in agents:
        agent.record.deactivate()
    manager.commit()
    connection.close()
    database.close()
    return shop


def _agent(queue: Queue, manager: Any) -> Agent:
    record = queue.dispatchers.register(uuid.UUID("8df8057c-204d-4101-869b-71c4ce05f663"))
    agent = record.get("main") or record.add_agent("main")
    record.activate("token")
    manager.commit()
    return agent


def done(queue: Queue, agent: Agent, job: Job, manager: Any) -> str:
    """Put a job, run it by hand, and settle it; its id."""
    queue.put(job)
    manager.commit()
    assert agent.claim_job() is job
    manager.commit()
    job()
    manager.begin()
    agent.settle_all()
    manager.commit()
    return str(job.ref)


@pytest.fixture
def shop(shell: Shell, _made_shop: tuple[Path, Shop]) -> Shop:
    """Lets the folder of `shell` have a database: done, failed and waiting jobs."""
    shutil.copy(_made_shop[0], shell.database)
    return _made_shop[1]


@pytest.fixture(params=["closed", "full"])
def unwritable(request: pytest.FixtureRequest) -> Iterator[TextIO | None]:
    """A standard output that cannot be written: None, as of a closed one, or a full disk."""
    if request.param == "closed":
        yield None
        return
    full = open("/dev/full", "w")
    yield full
    with contextlib.suppress(OSError):
        full.close()
