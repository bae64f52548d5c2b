"""Jobs that write to ZODB and to a SQL database: the code of the how-to, and its window."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transaction
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, OperationalError
from ZODB.POSException import ConflictError

from perdure.actors import start
from perdure.model import (
    GiveUp,
    Interrupted,
    Job,
    JobErrored,
    ReassignedError,
    Retry,
    check,
    get_queue,
)
from perdure.model.failure import Failure
from support.desk import Desk, deed, fail_commit
from support.systems import HOUR, LIMIT, within
from support.tree import DOCS

PAGE = (DOCS / "howto-sql.md").read_text(encoding="utf-8")

#: Commits, says so, and waits to be killed.
IN_THE_WINDOW = """
import os, sys, threading
import shop
from datetime import timedelta
from perdure.actors import start
from sqlalchemy import event

def say_and_hang(session):
    os.write(1, b"committed\\n")
    threading.Event().wait()

event.listen(shop.Session, "after_commit", say_and_hang)
start(sys.argv[1], {"": 1}, poll_interval=timedelta(hours=1))
threading.Event().wait()
"""


def written(name: str) -> str:
    """The block of the page that is written to the file `name`."""
    found = re.search(
        rf"^```python\n(# {re.escape(name)}\n.*?)^```$", PAGE, re.DOTALL | re.MULTILINE
    )
    assert found is not None
    return found[1]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the page, and a SQL database for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("shop", "policies")
    for name in names:
        Path(f"{name}.py").write_text(written(f"{name}.py"), encoding="utf-8")
    modules: list[ModuleType] = [importlib.import_module(name) for name in names]
    module: Any = modules[0]
    module.RetrySql = modules[1].RetrySql  # type: ignore[attr-defined]
    module.Base.metadata.create_all(module.engine)
    yield module
    transaction.abort()
    module.Session.remove()
    module.engine.dispose()
    for name in names:
        del sys.modules[name]


@pytest.fixture
def account(shop: Any, desk: Desk) -> Any:
    found = desk.root["account"] = shop.Account()
    transaction.commit()
    return found


def balances(shop: Any, desk: Desk) -> tuple[int, tuple[int, int]]:
    """What is committed in ZODB; number and sum of the payments that are in SQL."""
    with desk.elsewhere() as connection:
        return connection.root()["account"].balance, shop.booked()


# Both or neither


@pytest.mark.spec("J6")
@pytest.mark.parametrize("name", ["pay", "pay_once"])
def test_a_job_commits_to_both(name: str, shop: Any, desk: Desk, account: Any) -> None:
    for amount in (5, 7):
        desk.put(Job(getattr(shop, name), account, amount))
    desk.work()
    assert balances(shop, desk) == (12, (2, 12))


@pytest.mark.spec("J6")
def test_a_job_that_raises_commits_to_neither(shop: Any, desk: Desk, account: Any) -> None:
    job = desk.put(Job(shop.pay_too_much, account, 1000))
    desk.work()
    assert job.failed and balances(shop, desk) == (0, (0, 0))


@pytest.mark.spec("J6", "R2")
def test_each_attempt_that_is_retried_leaves_nothing_in_either(
    shop: Any, desk: Desk, account: Any
) -> None:
    left = 3

    def pay_and_conflict() -> None:
        nonlocal left
        shop.pay(account, 5)
        shop.Session.flush()
        assert shop.Session.query(shop.Payment).count() == 1
        left -= 1
        if left >= 0:
            raise ConflictError("made up")

    job = desk.put(Job(deed(pay_and_conflict)))
    desk.work()
    assert left == -1 and not job.failed
    assert balances(shop, desk) == (5, (1, 5))


@pytest.mark.spec("J6", "R2")
def test_a_conflict_that_the_database_finds_at_the_commit_keeps_the_other_from_committing(
    shop: Any, desk: Desk, account: Any
) -> None:
    committed: list[Any] = []
    event.listen(shop.Session, "after_commit", committed.append)
    met = False

    def pay_late() -> None:
        nonlocal met
        shop.pay(account, 5)
        if not met:
            met = True
            with desk.elsewhere() as connection:
                connection.root()["account"].balance += 100

    desk.put(Job(deed(pay_late)))
    desk.work()
    assert balances(shop, desk) == (105, (1, 5))
    assert len(committed) == 1


@pytest.mark.spec("J6")
def test_what_the_sql_database_refuses_at_the_commit_is_in_neither(
    shop: Any, desk: Desk, account: Any
) -> None:
    def pay_twice_with_one_key() -> None:
        account.balance += 5
        shop.Session.add(shop.Payment(id=1, amount=5))

    jobs = [desk.put(Job(deed(pay_twice_with_one_key))) for _ in range(2)]
    desk.work()
    assert [job.failed for job in jobs] == [False, True]
    assert jobs[1].result.check(IntegrityError)
    assert balances(shop, desk) == (5, (1, 5))


@pytest.mark.spec("J6")
def test_another_manager_that_refuses_keeps_both_from_committing(
    shop: Any, desk: Desk, account: Any
) -> None:
    def pay_and_fail() -> None:
        shop.pay(account, 5)
        fail_commit(OSError("disk full"), "commit")

    desk.put(Job(deed(pay_and_fail)))
    desk.work()
    assert balances(shop, desk) == (0, (0, 0))


@pytest.mark.spec("D6")
def test_a_worker_that_has_lost_its_job_commits_nothing_to_the_sql_database(
    shop: Any, desk: Desk, account: Any
) -> None:
    lost: list[Job] = []

    def pay_and_be_buried() -> None:
        shop.pay(account, 5)
        desk.lose(lost[0])

    lost.append(desk.put(Job(deed(pay_and_be_buried))))
    with pytest.raises(ReassignedError):
        desk.runner().run(desk.claim())
    assert balances(shop, desk) == (0, (0, 0))


def test_the_policy_of_the_page_retries_what_may_pass(shop: Any) -> None:
    policy = shop.RetrySql(Job(abs))
    locked = JobErrored(Failure(OperationalError("INSERT", {}, Exception("database is locked"))))
    answers = [policy.on_receive(locked) for _ in range(6)]
    assert answers == [*(Retry(timedelta(seconds=count)) for count in range(1, 6)), GiveUp()]
    assert policy.on_receive(JobErrored(Failure(ValueError("odd")))) == GiveUp()
    assert policy.on_receive(Interrupted()) == Retry()


def test_the_sql_database_commits_between_the_vote_of_zodb_and_its_end(
    shop: Any, desk: Desk, account: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = desk.connection._storage
    steps: list[str] = []

    def noted(step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def do(*args: Any) -> Any:
            steps.append(step)
            return call(*args)

        return do

    for step in ("tpc_vote", "tpc_finish"):
        monkeypatch.setattr(storage, step, noted(step, getattr(storage, step)))
    event.listen(shop.Session, "after_commit", lambda session: steps.append("SQL"))
    desk.put(Job(shop.pay, account, 5))
    desk.work()
    assert steps.count("SQL") == 1
    at = steps.index("SQL")
    assert steps[at - 1 : at + 2] == ["tpc_vote", "SQL", "tpc_finish"]


# The window


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.spec("C4", "J6")
@pytest.mark.parametrize("name, payments", [("pay_once", (1, 5)), ("pay", (2, 10))])
def test_a_kill_in_the_window_has_one_effect_where_the_jobs_id_is_a_key_and_else_two(
    name: str, payments: tuple[int, int], shop: Any, tmp_path: Path
) -> None:
    uri = f"file://{tmp_path / 'shop.fs'}"
    with start(uri, {"": 0}, poll_interval=HOUR) as system:
        with system.transaction() as connection:
            account = connection.root()["account"] = shop.Account()
            ref = get_queue(connection).put(Job(getattr(shop, name), account, 5)).ref
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    killed = subprocess.Popen(
        [sys.executable, "-c", IN_THE_WINDOW, uri],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    try:
        assert within(killed.stdout.readline) == "committed\n"
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(LIMIT.total_seconds()) == -signal.SIGKILL
    finally:
        killed.kill()
        killed.wait()
        killed.stdout.close()
    assert shop.booked() == (1, 5)
    with start(uri, {"": 0}, poll_interval=HOUR) as system:
        with system.transaction() as connection:
            assert connection.root()["account"].balance == 0
    with start(uri, {"": 1}, poll_interval=HOUR) as system:
        system.wait(ref, timeout=LIMIT)
        with system.transaction() as connection:
            assert connection.root()["account"].balance == 5
        assert shop.booked() == payments
        assert check(system.database) == []
