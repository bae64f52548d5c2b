"""Keeping at it: which errors are tried again, after what wait, with what in the log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import transaction
from transaction.interfaces import TransientError
from ZEO.Exceptions import ClientDisconnected
from ZODB.DB import DB
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ConflictError, POSKeyError

from perdure.model.clock import StopSignal
from perdure.model.errors import StopRequested
from perdure.model.failure import Failure
from perdure.model.retrying import (
    OutageLog,
    is_disconnect,
    is_transaction_error,
    never_fail,
    try_five_times,
    wait_for_system_recovery,
)
from support.manual_clock import ManualClock

ALL = [never_fail, wait_for_system_recovery, try_five_times]


class PassingClock(ManualClock):
    """Lets the time of each wait pass at once, and notes it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
        assert timeout_seconds is not None
        self.waits.append(timeout_seconds)
        self.advance(timedelta(seconds=timeout_seconds))


class Resource:
    """A data manager that notes how its transaction ended, and can refuse the commit."""

    transaction_manager: Any = None

    def __init__(self, log: list[str], refuse_with: BaseException | None = None) -> None:
        self.log = log
        self.refuse_with = refuse_with

    def sortKey(self) -> str:
        return "resource"

    def tpc_begin(self, txn: object) -> None: ...

    def commit(self, txn: object) -> None:
        if self.refuse_with is not None:
            raise self.refuse_with

    def tpc_vote(self, txn: object) -> None: ...

    def tpc_finish(self, txn: object) -> None:
        self.log.append("committed")

    def abort(self, txn: object) -> None:
        self.log.append("aborted")

    tpc_abort = abort


class Call:
    """Raises the given errors, one in each attempt, then returns ``"done"``."""

    def __init__(self, tm: Any, *errors: BaseException, at_commit: bool = False) -> None:
        self.tm = tm
        self.errors = list(errors)
        self.at_commit = at_commit
        self.attempts = 0
        self.log: list[str] = []

    def __call__(self) -> str:
        self.attempts += 1
        error = self.errors.pop(0) if self.errors else None
        self.tm.get().join(Resource(self.log, error if self.at_commit else None))
        if error is not None and not self.at_commit:
            raise error
        return "done"


@pytest.fixture(params=[False, True], ids=["implicit", "explicit"])
def tm(request: pytest.FixtureRequest) -> transaction.TransactionManager:
    return transaction.TransactionManager(explicit=request.param)


@pytest.fixture
def clock() -> PassingClock:
    return PassingClock()


@pytest.fixture
def stop(clock: PassingClock) -> StopSignal:
    return StopSignal(clock)


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Returns what was logged: level, and the message's part that tells it."""
    with caplog.at_level(logging.DEBUG, "perdure.events"):
        yield lambda: [
            (record.levelname, record.getMessage())
            for record in caplog.records
            if record.name == "perdure.events"
        ]


def is_idle(tm: Any) -> bool:
    return tm._txn is None


@pytest.mark.spec("H1")
def test_a_lost_connection_is_no_transaction_error_though_it_is_transient() -> None:
    assert issubclass(ClientDisconnected, TransientError)
    assert is_disconnect(ClientDisconnected())
    assert not is_transaction_error(ClientDisconnected())
    assert is_transaction_error(ConflictError())
    assert is_transaction_error(TransientError())
    assert not is_transaction_error(ValueError())
    assert not is_disconnect(ConflictError())


@pytest.mark.spec("H1")
@pytest.mark.spec("H2")
@pytest.mark.spec("H3")
@pytest.mark.parametrize("keep", ALL)
def test_what_the_call_returned_is_committed_and_returned(
    keep: Any, tm: Any, stop: StopSignal
) -> None:
    call = Call(tm)

    assert keep(call, "counting", tm, stop) == "done"

    assert call.log == ["committed"]
    assert is_idle(tm)


@pytest.mark.parametrize("keep", ALL)
def test_without_a_stop_signal_a_call_is_made_all_the_same(keep: Any, tm: Any) -> None:
    assert keep(Call(tm, ConflictError()), "counting", tm) == "done"


@pytest.mark.parametrize("keep", ALL)
def test_what_was_open_before_is_aborted_and_not_committed_along(
    keep: Any, tm: Any, clock: PassingClock, stop: StopSignal
) -> None:
    earlier: list[str] = []
    tm.begin().join(Resource(earlier))

    assert keep(Call(tm), "counting", tm, stop) == "done"

    assert earlier == ["aborted"]
    assert clock.waits == []


@pytest.mark.spec("H1")
@pytest.mark.spec("H2")
@pytest.mark.parametrize("keep", [never_fail, wait_for_system_recovery])
@pytest.mark.parametrize("at_commit", [False, True])
def test_transaction_errors_are_tried_again_at_once_with_a_warning_at_every_fifth(
    keep: Any, at_commit: bool, tm: Any, clock: PassingClock, stop: StopSignal, records: Any
) -> None:
    call = Call(tm, *[ConflictError() for _ in range(11)], at_commit=at_commit)

    assert keep(call, "counting", tm, stop) == "done"

    assert call.attempts == 12
    assert clock.waits == []
    assert call.log[-1] == "committed"
    assert call.log.count("committed") == 1
    assert records() == [
        ("WARNING", "5 transaction errors while counting; trying again"),
        ("WARNING", "10 transaction errors while counting; trying again"),
    ]


@pytest.mark.spec("H1")
@pytest.mark.parametrize(
    ("error", "level"),
    [
        (ClientDisconnected("gone"), "ERROR"),
        (POSKeyError(b"\0" * 8), "ERROR"),
        (ValueError("odd"), "CRITICAL"),
        (OSError(28, "No space left on device"), "CRITICAL"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_never_fail_waits_longer_and_longer_and_logs_the_first_and_every_tenth(
    error: Exception, level: str, tm: Any, clock: PassingClock, stop: StopSignal, records: Any
) -> None:
    call = Call(tm, *[error] * 20)

    assert never_fail(call, "storing it", tm, stop) == "done"

    assert clock.waits == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55] + [60] * 9
    assert [found for found, _ in records()] == [level] * 3
    assert [message for _, message in records()] == [
        "Error number 1 while storing it; trying again in 5 seconds",
        "Error number 10 while storing it; trying again in 50 seconds",
        "Error number 20 while storing it; trying again in 60 seconds",
    ]


@pytest.mark.spec("X5")
@pytest.mark.spec("H2")
def test_waiting_for_recovery_logs_the_first_lost_connection_and_every_fifth(
    tm: Any, clock: PassingClock, stop: StopSignal, records: Any
) -> None:
    call = Call(tm, *[ClientDisconnected("gone")] * 13)

    assert wait_for_system_recovery(call, "claiming", tm, stop) == "done"

    assert clock.waits == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 60]
    assert records() == [
        ("ERROR", "Error number 1 while claiming; trying again in 5 seconds"),
        ("ERROR", "Error number 5 while claiming; trying again in 25 seconds"),
        ("ERROR", "Error number 10 while claiming; trying again in 50 seconds"),
    ]


@pytest.mark.spec("H2")
@pytest.mark.spec("H3")
@pytest.mark.parametrize("keep", [wait_for_system_recovery, try_five_times])
@pytest.mark.parametrize("error", [ValueError("odd"), POSKeyError(b"\0" * 8)])
@pytest.mark.parametrize("at_commit", [False, True])
def test_any_other_error_is_logged_and_returned_as_a_failure(
    keep: Any, error: Exception, at_commit: bool, tm: Any, clock: PassingClock, records: Any
) -> None:
    call = Call(tm, error, at_commit=at_commit)

    result = keep(call, "claiming", tm, StopSignal(clock))

    assert isinstance(result, Failure)
    assert result.check(type(error))
    assert call.attempts == 1
    assert "committed" not in call.log
    assert is_idle(tm)
    assert clock.waits == []
    assert records() == [("ERROR", "Error while claiming")]


@pytest.mark.spec("H3")
def test_the_fifth_transaction_error_is_critical_and_becomes_a_failure(
    tm: Any, stop: StopSignal, records: Any
) -> None:
    call = Call(tm, *[ConflictError() for _ in range(5)])

    result = try_five_times(call, "pinging", tm, stop)

    assert isinstance(result, Failure)
    assert result.check(ConflictError)
    assert call.attempts == 5
    assert records() == [("CRITICAL", "5 transaction errors in a row while pinging; giving up")]


@pytest.mark.spec("H3")
def test_four_transaction_errors_leave_one_attempt(
    tm: Any, stop: StopSignal, records: Any
) -> None:
    call = Call(tm, *[ConflictError() for _ in range(4)])

    assert try_five_times(call, "pinging", tm, stop) == "done"
    assert records() == []


@pytest.mark.spec("H3")
def test_five_times_logs_no_error_that_its_caller_has_logged(
    tm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for answer, lines in ((True, 0), (False, 1)):
        errors: list[Exception] = []

        def logged(
            error: Exception, answer: bool = answer, errors: list[Exception] = errors
        ) -> bool:
            errors.append(error)
            return answer

        error = ValueError("odd")
        result = try_five_times(Call(tm, error), "pinging", tm, logged=logged)
        assert isinstance(result, Failure) and errors == [error]
        assert len(caplog.records) == lines


@pytest.mark.spec("D9")
def test_a_database_that_is_away_is_logged_once_and_at_every_tenth_attempt(
    clock: PassingClock, caplog: pytest.LogCaptureFixture
) -> None:
    outage = OutageLog("somebody", clock)
    for _ in range(20):
        assert outage(ClientDisconnected("away"))
        clock.advance(timedelta(seconds=1))
    assert not outage(ValueError("odd")) and not outage(ConflictError())
    clock.advance(timedelta(seconds=121))
    assert outage(ClientDisconnected("away again"))
    texts = [each.getMessage() for each in caplog.records]
    assert [text.partition("attempt ")[2].partition(";")[0] for text in texts] == [
        "1", "10", "20", "1",
    ]  # fmt: skip
    assert "away again" in texts[-1]
    assert not any(each.exc_info for each in caplog.records)


@pytest.mark.spec("H3")
def test_five_times_does_not_wait_for_a_lost_connection(
    tm: Any, clock: PassingClock, stop: StopSignal
) -> None:
    result = try_five_times(Call(tm, ClientDisconnected("gone")), "pinging", tm, stop)

    assert isinstance(result, Failure)
    assert result.check(ClientDisconnected)
    assert clock.waits == []


@pytest.mark.spec("H4")
@pytest.mark.parametrize("keep", ALL)
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopRequested, GeneratorExit])
@pytest.mark.parametrize("at_commit", [False, True])
def test_what_is_no_exception_aborts_and_propagates(
    keep: Any, kind: type[BaseException], at_commit: bool, tm: Any, stop: StopSignal, records: Any
) -> None:
    call = Call(tm, kind(), at_commit=at_commit)

    with pytest.raises(kind):
        keep(call, "claiming", tm, stop)

    assert call.attempts == 1
    assert "committed" not in call.log
    assert "aborted" in call.log
    assert is_idle(tm)
    assert records() == []


@pytest.mark.spec("H4")
@pytest.mark.spec("X3")
@pytest.mark.parametrize("keep", [never_fail, wait_for_system_recovery])
def test_a_stop_ends_the_wait_with_no_transaction_open(keep: Any, tm: Any) -> None:
    clock = ManualClock()
    stop = StopSignal(clock)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            keep(Call(tm, *[ClientDisconnected("gone")] * 99), "claiming", tm, stop)
        except StopRequested as error:
            ended.append(error)

    # A daemon, so that a wait that never ends fails this test and not the whole run.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    clock.wait_until_waiting(1)
    assert is_idle(tm)

    stop.set()

    thread.join(30)
    assert not thread.is_alive()
    assert len(ended) == 1


@pytest.mark.spec("H4")
def test_a_stop_also_ends_conflicts_without_end(tm: Any, stop: StopSignal) -> None:
    call = Call(tm, *[ConflictError() for _ in range(99)])
    stop.set()

    with pytest.raises(StopRequested, match="storing it"):
        never_fail(call, "storing it", tm, stop)

    assert call.attempts == 5


@pytest.mark.spec("H4")
@pytest.mark.parametrize("keep", ALL)
def test_after_the_stop_there_still_is_an_attempt(keep: Any, tm: Any, stop: StopSignal) -> None:
    stop.set()

    assert keep(Call(tm, ConflictError()), "deactivating", tm, stop) == "done"


@pytest.mark.spec("H1")
def test_an_abort_that_fails_is_logged_and_stops_nothing(
    tm: Any, clock: PassingClock, stop: StopSignal, records: Any
) -> None:
    class Stubborn(Resource):
        def abort(self, txn: object) -> None:
            raise OSError("not even that")

    attempts: list[int] = []

    def call() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            tm.get().join(Stubborn([]))
            raise ValueError("odd")
        return "done"

    assert never_fail(call, "storing it", tm, stop) == "done"

    assert clock.waits == [5]
    assert records() == [
        ("ERROR", "The abort failed too, while storing it"),
        ("CRITICAL", "Error number 1 while storing it; trying again in 5 seconds"),
    ]


def test_a_call_that_ends_the_transaction_of_an_explicit_manager_has_failed(
    stop: StopSignal,
) -> None:
    tm = transaction.TransactionManager(explicit=True)
    result = try_five_times(tm.commit, "counting", tm, stop)

    assert isinstance(result, Failure)
    assert result.check("transaction.interfaces.NoTransaction")


@pytest.mark.spec("H1")
def test_conflicts_and_waits_are_counted_each_for_itself(
    tm: Any, clock: PassingClock, stop: StopSignal
) -> None:
    errors = [ValueError(), ConflictError(), ValueError(), ConflictError(), ValueError()]

    never_fail(Call(tm, *errors), "storing it", tm, stop)

    assert clock.waits == [5, 10, 15]


@pytest.mark.spec("H1")
@pytest.mark.spec("H2")
@pytest.mark.spec("H3")
@pytest.mark.parametrize("keep", ALL)
def test_a_real_conflict_is_resolved_by_reading_anew(keep: Any, tm: Any, stop: StopSignal) -> None:
    database = DB(MappingStorage())
    other_tm = transaction.TransactionManager()
    try:
        with database.transaction() as connection:
            connection.root()["count"] = 0
        mine = database.open(tm)
        theirs = database.open(other_tm)
        seen: list[int] = []

        def add_one() -> None:
            seen.append(mine.root()["count"])
            if len(seen) == 1:
                theirs.root()["count"] += 10
                other_tm.commit()
            mine.root()["count"] += 1

        keep(add_one, "adding one", tm, stop)

        assert seen == [0, 10]
        other_tm.begin()
        assert theirs.root()["count"] == 11
    finally:
        other_tm.abort()
        theirs.close()
        mine.close()
        database.close()
