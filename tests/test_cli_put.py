"""``perdure put``: from words to a job, and to its result."""

from __future__ import annotations

import datetime
import json
import signal
import sys
import threading
from datetime import timedelta
from typing import Any

import pytest
import transaction
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError

from perdure.actors import start
from perdure.cli import putting
from perdure.cli.database import change, connected, opened
from perdure.cli.options import Source
from perdure.cli.putting import arguments
from perdure.model import (
    RetryCommonForever,
    Status,
    SystemClock,
    find_job,
    get_queue,
    register_retry_policy,
)
from perdure.model.incarnation import Identity, acquire_identity
from support.shop import Shell, Shop
from support.systems import HOUR


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (["5"], [5]),
        (["-5", "1.5"], [-5, 1.5]),
        (["five"], ["five"]),
        (['"five"'], ["five"]),
        (["true", "null", "None"], [True, None, "None"]),
        (["[1, 2]", '{"a": 1}'], [[1, 2], {"a": 1}]),
        (["[1, 2"], ["[1, 2"]),
        (["NaN", "-Infinity"], ["NaN", "-Infinity"]),
        ([""], [""]),
        (["http://host/?a=b"], ["http://host/?a=b"]),
        (["2026-11-25"], ["2026-11-25"]),
        (["[" * 100_000], ["[" * 100_000]),
    ],
)
def test_an_argument_is_json_where_it_parses_as_json_else_text(words, args):
    assert arguments(tuple(words)) == (args, {})


@pytest.mark.parametrize(
    ("words", "kwargs"),
    [
        (["one=1"], {"one": 1}),
        (["one="], {"one": ""}),
        (["one=a=b"], {"one": "a=b"}),
        (["one=two\nlines"], {"one": "two\nlines"}),
        (["größe=3"], {"größe": 3}),
    ],
)
def test_name_and_value_are_a_keyword_argument(words, kwargs):
    assert arguments(tuple(words)) == ([], kwargs)


def test_what_comes_after_two_dashes_is_no_keyword():
    assert arguments((), ("one=1", "--wait", "3")) == (["one=1", "--wait", 3], {})


def job_in(shell: Shell, ref: str) -> dict[str, Any]:
    found: dict[str, Any] = shell.json("show", ref)
    return found


def test_the_id_of_the_job_is_printed(shell: Shell, shop: Shop):
    ref = shell.ok("put", "app:show", "1", "two", "x=3").strip()

    job = job_in(shell, ref)
    assert job["call"] == "app:show(1, 'two', x=3)"
    assert (job["status"], job["queue"]) == ("pending", "")
    assert shell.err == ""


@pytest.mark.parametrize("extra", [[], ["--json"]], ids=["text", "json"])
def test_a_job_whose_number_cannot_be_written_is_told(
    shell: Shell, shop: Shop, monkeypatch, unwritable, extra
):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", unwritable)
        status = shell.run("put", "app:show", "unheard", *extra)
    told = shell.err

    jobs = shell.json("jobs", "--status", "pending")["jobs"]
    (ref,) = [job["ref"] for job in jobs if job["call"] == "app:show('unheard')"]
    assert status == 1
    assert told.startswith(f"perdure: job {ref} was put, but its number could not be written")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["app:show", "--", "a=b", "--wait"], "app:show('a=b', '--wait')"),
        (["app:show", "x=1", "--", "y=2"], "app:show('y=2', x=1)"),
        (["--", "app:show", "a=b"], "app:show('a=b')"),
        (["app:show", "-5", "-1.5e3", "-"], "app:show(-5, -1500.0, '-')"),
        (["--queue", "default", "app:show", "--", "--"], "app:show('--')"),
    ],
)
def test_two_dashes_and_negative_numbers_are_understood(shell: Shell, shop: Shop, words, call):
    ref = shell.ok("put", *words).strip()

    assert job_in(shell, ref)["call"] == call


def test_the_settings_of_a_job_are_stored(shell: Shell, shop: Shop):
    ref = shell.ok(
        *("put", "app:add", "1", "--quota", "desk", "--by", "1h30m", "--at", "2040-01-02T03:04Z"),
        *("--keep-completed", "1d", "--keep-failed", "30d", "--policy", "never"),
    ).strip()

    job = job_in(shell, ref)
    assert job["quota_names"] == ["desk"]
    assert job["begin_after"] == "2040-01-02T03:04:00+00:00"
    assert job["deadline"] == "2040-01-02T04:34:00+00:00"
    assert (job["keep_completed_seconds"], job["keep_failed_seconds"]) == (86400, 30 * 86400)
    with opened(Source("perdure.fs")) as database, connected(database) as connection:
        assert find_job(connection, ref).retry_policy_factory.__name__ == "NeverRetry"


def test_in_a_time_means_not_before_it_has_passed(shell: Shell, shop: Shop):
    before = datetime.datetime.now(datetime.UTC)
    put = shell.json("put", "app:add", "1", "--in", "10m")
    after = datetime.datetime.now(datetime.UTC)

    begin = datetime.datetime.fromisoformat(put["begin_after"])
    assert before + timedelta(minutes=10) <= begin <= after + timedelta(minutes=10)


def test_a_time_without_a_zone_is_local_time(shell: Shell, shop: Shop):
    put = shell.json("put", "app:add", "1", "--at", "2040-01-02T03:04")

    local = datetime.datetime(2040, 1, 2, 3, 4).astimezone()
    assert datetime.datetime.fromisoformat(put["begin_after"]) == local


@pytest.mark.parametrize("queue", ["default", ":", "(default)", ""])
def test_the_default_queue_has_a_name_to_type(shell: Shell, shop: Shop, queue):
    assert shell.json("put", "app:add", "1", "--queue", queue)["queue"] == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "say what to call: MODULE:FUNCTION"),
        (["app"], "'app' names no function: write MODULE:FUNCTION"),
        (["app.add"], "did you mean app:add?"),
        (["ap:add"], "there is no module 'ap'; did you mean app?"),
        (["app.py:add"], "'app.py' is no name of a module: write it as in an import, such as app"),
        (["./app.py:add"], "such as app"),
        (["zzzz:add"], "there is no module 'zzzz' (--app-dir names"),
        (["email.mim:x"], "there is no module 'email.mim'; did you mean email.mime?"),
        (["app:ad"], "app has no 'ad'; did you mean app:add?"),
        (["app:zzzzz"], "app has no 'zzzzz'; it has add, fail, greet, show, told"),
        (["app:add.zz"], "app:add has no 'zz'"),
        (["app:number"], "app:number cannot be called: give a function"),
        (["app:__name__"], "app:__name__ cannot be called: give a function"),
        (["app:add", "1", "--policy", "app:number"], "app:number cannot be called"),
        (["broken:f"], "module 'broken' cannot be imported: ZeroDivisionError: division by zero"),
        (["helper:f"], "module 'helper' cannot be imported: it needs 'not_there', which is not"),
        (["exits:f"], "module 'exits' cannot be imported: SystemExit: 3"),
        (["app:add"], "app:add(one, other=1) cannot be called like this: missing a required"),
        (["app:add", "1", "2", "3"], "too many positional arguments"),
        (["app:add", "1", "two=2"], "unexpected keyword argument 'two'"),
        (["app:add", "one=1", "one=2"], "the argument one is given twice"),
        (["app:add", "1", "--in", "10x"], "'10x' is no duration: write 90s, 10m, 2h, 7d"),
        (["app:add", "1", "--in", "9999999w"], "is no time that can be kept"),
        (["app:add", "1", "--at", "soon"], "'soon' is no time: write 2026-11-25T17:30"),
        (["app:add", "1", "--at", "17:30", "--in", "1m"], "--in and --at exclude each other"),
        (["app:add", "1", "--by", "-1m"], "'-1m' is no duration"),
        (["app:add", "1", "--queue", "mial"], "there is no queue 'mial'; did you mean 'mail'?"),
        (
            ["app:add", "1", "--quota", "dest"],
            "(default) has no quota 'dest'; did you mean 'desk'?",
        ),
        (["app:add", "1", "--quota", "dest"], "with queue.quotas.create('dest', size=1)"),
        (
            ["app:add", "1", "--policy", "nevr"],
            "in this process; did you mean 'never'?",
        ),
        (
            ["app:add", "1", "--policy", "x"],
            "there are never, four-times, forever, and",
        ),
        (["app:add", "1", "--policy", "app:add"], "app:add makes no retry policy: called with a"),
        (["app:add", "1", "--policy", "app:told"], "app:told makes no retry policy, but a str"),
        (["app:add", "1", "--policy", "app:nevr"], "app has no 'nevr'"),
        (["app:add", "1", "--quue", "x"], "No such option"),
        (["app:add", "1", "-x"], "No such option"),
        (["app:greet", "x" * 1_200_000], "blob"),
    ],
)
def test_what_cannot_be_put_is_refused_and_nothing_is_put(
    shell: Shell, shop: Shop, words, expected
):
    (shell.folder / "broken.py").write_text("1 / 0\n")
    (shell.folder / "helper.py").write_text("import not_there\n")
    (shell.folder / "exits.py").write_text("raise SystemExit(3)\n")

    assert expected in shell.refused("put", *words)
    assert len(shell.json("jobs", "--status", "pending")["jobs"]) == 2


def test_a_registered_policy_is_found_by_its_name_or_the_nearest(shell: Shell, shop: Shop):
    register_retry_policy("patient", RetryCommonForever)
    try:
        text = shell.refused("put", "app:add", "1", "--policy", "patien")
        ref = shell.ok("put", "app:add", "1", "--policy", "patient").strip()
    finally:
        register_retry_policy("patient", None)

    assert "did you mean 'patient'?" in text
    assert job_in(shell, ref)["retry_policy"] == "patient"


@pytest.mark.parametrize("name", ["os:environ", "os:environ.get", "os:environ.__iter__"])
@pytest.mark.parametrize("before", [[], ["app:add", "1", "--policy"]], ids=["call", "policy"])
def test_what_cannot_be_stored_is_named_as_it_was_typed_and_not_shown(
    shell: Shell, shop: Shop, monkeypatch, before, name
):
    monkeypatch.setenv("PASSWORD_OF_A_TEST", "secret-of-a-test")

    text = shell.refused("put", *before, name)

    assert f"perdure: {name} " in text
    assert "OF_A_TEST" not in text and "secret-of-a-test" not in text


def test_what_has_no_signature_is_put_all_the_same(shell: Shell, shop: Shop):
    assert shell.ok("put", "builtins:int", "5")


# The database goes away, or others are faster


class _Commit:
    """Raises what it is given, one after the other, instead of committing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: BaseException | None) -> None:
        self._errors = list(errors)
        self._commit = transaction.TransactionManager.commit
        self._putting = False
        put = putting._put

        def put_then(*args: Any) -> Any:
            # Opening the database commits as well.
            self._putting = True
            try:
                return put(*args)
            finally:
                self._putting = False

        monkeypatch.setattr(putting, "_put", put_then)
        monkeypatch.setattr(
            transaction.TransactionManager, "commit", lambda manager: self(manager)
        )

    def __call__(self, manager: Any) -> None:
        error = self._errors.pop(0) if self._putting and self._errors else None
        if error is not None:
            raise error
        self._commit(manager)


def test_a_conflict_is_tried_again(shell: Shell, shop: Shop, monkeypatch):
    _Commit(monkeypatch, *[ConflictError() for _ in range(9)])

    ref = shell.ok("put", "app:add", "1").strip()

    assert job_in(shell, ref)["status"] == "pending"


def test_ten_conflicts_are_told(shell: Shell, shop: Shop, monkeypatch):
    _Commit(monkeypatch, *[ConflictError() for _ in range(10)])

    assert "nothing was put" in shell.refused("put", "app:add", "1")


def test_a_commit_in_doubt_names_the_job(shell: Shell, shop: Shop, monkeypatch):
    _Commit(monkeypatch, ClientDisconnected("gone"))

    text = shell.refused("put", "app:add", "1")

    assert "may have been put all the same: `perdure show " in text


def test_a_database_that_is_gone_before_the_put_is_told(shell: Shell, shop: Shop, monkeypatch):
    def put(*args: Any, **settings: Any) -> None:
        raise ClientDisconnected("gone")

    monkeypatch.setattr("perdure.model.Queue.put", put)

    assert "the database went away (gone)" in shell.refused("put", "app:add", "1")


# Waiting


@pytest.fixture
def worker(shell: Shell, shop: Shop, monkeypatch: pytest.MonkeyPatch):
    """Runs jobs in this process, on the database that the command opens."""
    systems: list[Any] = []
    put = putting._put

    def put_and_start(database: Any, *rest: Any) -> Any:
        done = put(database, *rest)
        systems.append(start(database, {"": 1}, poll_interval=HOUR))
        return done

    outcome = putting._outcome

    def stop_and_tell(*args: Any) -> Any:
        for system in systems:
            system.stop()
        return outcome(*args)

    monkeypatch.setattr(putting, "_put", put_and_start)
    monkeypatch.setattr(putting, "_outcome", stop_and_tell)
    # That it is at work is in the database a little later.
    monkeypatch.setattr(putting, "_is_served", lambda job: True)
    return systems


@pytest.mark.slow
def test_a_result_is_waited_for(shell: Shell, worker):
    out = shell.ok("put", "app:add", "2", "3", "--wait").splitlines()

    assert out[1:] == ["5"]
    assert job_in(shell, out[0])["status"] == "completed"


@pytest.mark.slow
def test_a_failure_that_is_waited_for_is_status_1(shell: Shell, worker):
    assert shell.run("put", "app:fail", "text=too\nbad", "--wait") == 1

    ref = shell.out.strip()
    line = f"perdure: job {ref} failed: ValueError: too bad (perdure traceback {ref})"
    assert shell.err.splitlines() == [line]


@pytest.mark.slow
def test_a_result_that_is_waited_for_is_one_json_document(shell: Shell, worker):
    assert shell.run("put", "app:fail", "--wait", "--json") == 1

    outcome = json.loads(shell.out)
    assert (outcome["failed"], outcome["result"]) == (True, "ValueError: no")
    assert outcome["status"] in ("callbacks", "completed")


def test_the_wait_says_that_nobody_is_at_work_and_can_be_interrupted(
    shell: Shell, shop: Shop, monkeypatch
):
    told = threading.Event()
    tell = putting._tell

    def interrupt(text: str) -> None:
        tell(text)
        told.set()
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(putting, "_tell", interrupt)

    assert shell.run("put", "app:add", "1", "--wait") == 130
    assert "no process runs jobs of queue (default) now; waiting" in shell.err
    assert job_in(shell, shell.out.strip())["status"] == Status.PENDING.value


def test_the_wait_says_again_whenever_what_it_waits_for_changes(
    shell: Shell, shop: Shop, monkeypatch
):
    served = [True, False, False, True, False]

    def is_served(job: Any) -> bool:
        if not served:
            signal.raise_signal(signal.SIGINT)
        return served.pop(0)

    monkeypatch.setattr(putting, "_is_served", is_served)
    monkeypatch.setattr(putting, "_LOOK_SECONDS", 0)

    assert shell.run("put", "app:add", "1", "--wait") == 130
    assert [line.split()[1:3] for line in shell.err.splitlines() if line] == [
        ["no", "process"],
        ["a", "process"],
        ["no", "process"],
        ["interrupted"],
    ]


def test_a_process_that_has_ended_serves_nobody_from_that_moment_on(shell: Shell, shop: Shop):
    identity = acquire_identity(shell.database, clock=SystemClock(), environ={})
    with opened(Source("perdure.fs")) as database:
        change(database, lambda connection: _activate(connection, identity))
        with connected(database) as connection:
            job = find_job(connection, shop.waiting)
            before = putting._is_served(job)
            identity.close()
            assert (before, putting._is_served(job)) == (True, False)


def _activate(connection: Any, identity: Identity) -> None:
    record = get_queue(connection).dispatchers.register(identity.uuid)
    record.activate("token", identity.incarnation)


@pytest.mark.slow
def test_the_wait_outlasts_a_database_that_is_away(shell: Shell, worker, monkeypatch):
    connect, wait = putting.connected, putting._wait
    errors: list[ClientDisconnected] = []

    def connect_unless_away(database: Any) -> Any:
        if errors:
            raise errors.pop()
        return connect(database)

    def lose_and_wait(*args: Any) -> Any:
        errors.append(ClientDisconnected("gone"))
        return wait(*args)

    monkeypatch.setattr(putting, "connected", connect_unless_away)
    monkeypatch.setattr(putting, "_wait", lose_and_wait)

    assert shell.ok("put", "app:add", "1", "--wait").splitlines()[1:] == ["2"]
    assert "the database is away; waiting" in shell.err
