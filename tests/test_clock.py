"""Clocks, and the waits that a stop ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from perdure.model.clock import Clock, StopSignal, SystemClock
from perdure.model.errors import StopRequested
from support.manual_clock import ManualClock

SECOND = timedelta(seconds=1)
LIMIT_SECONDS = 30.0


class Background:
    """A call in a thread of its own, and how it ended."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self.error: BaseException | None = None
        self.ended = threading.Event()
        # A daemon, so that a wait that never ends fails its test and not the whole run.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()

    def join(self) -> None:
        self._thread.join(LIMIT_SECONDS)
        assert not self._thread.is_alive()


def test_the_system_clock_gives_aware_utc_moments_and_never_goes_back() -> None:
    clock = SystemClock()

    assert clock.now().tzinfo is UTC
    before = clock.monotonic()
    assert clock.monotonic() >= before


def test_a_wait_on_the_system_clock_ends_when_its_time_has_passed() -> None:
    StopSignal(SystemClock()).wait(timedelta(milliseconds=1))


def test_the_system_clock_takes_a_wait_longer_than_the_platform_allows() -> None:
    condition = threading.Condition()
    released = threading.Event()

    def wait() -> None:
        with condition:
            released.set()
            SystemClock().wait(condition, 1e30)

    waiter = Background(wait)
    assert released.wait(LIMIT_SECONDS)
    with condition:  # only free once the other thread waits
        condition.notify_all()

    waiter.join()
    assert waiter.error is None


@pytest.mark.spec("X3")
@pytest.mark.spec("H4")
@pytest.mark.parametrize("make_clock", [SystemClock, ManualClock])
def test_a_stop_ends_a_wait_at_once(make_clock: Callable[[], Clock]) -> None:
    stop = StopSignal(make_clock())
    waiter = Background(lambda: stop.wait(timedelta(hours=1)))

    stop.set()

    waiter.join()
    assert isinstance(waiter.error, StopRequested)
    assert stop.is_set()


def test_a_stop_ends_all_waits_on_it() -> None:
    clock = ManualClock()
    stop = StopSignal(clock)
    waiters = [Background(lambda: stop.wait(SECOND)) for _ in range(3)]
    clock.wait_until_waiting(3)

    stop.set()

    for waiter in waiters:
        waiter.join()
        assert isinstance(waiter.error, StopRequested)
    assert clock.waiting() == 0


@pytest.mark.parametrize("duration", [timedelta(), SECOND])
def test_no_wait_begins_after_the_stop(duration: timedelta) -> None:
    stop = StopSignal(ManualClock())
    stop.set()
    stop.set()

    with pytest.raises(StopRequested):
        stop.wait(duration)


@pytest.mark.parametrize("duration", [timedelta(), -SECOND])
def test_a_wait_for_no_time_returns_at_once(duration: timedelta) -> None:
    StopSignal(ManualClock()).wait(duration)


def test_a_stop_request_passes_by_code_that_catches_exceptions() -> None:
    assert not issubclass(StopRequested, Exception)


def test_a_signal_handler_can_stop_the_thread_that_is_entering_its_wait() -> None:
    class Interrupted(ManualClock):
        def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
            stop.set()  # in the same thread, which holds the lock, as a handler would

    stop = StopSignal(Interrupted())
    waiter = Background(lambda: stop.wait(SECOND))

    waiter.join()
    assert isinstance(waiter.error, StopRequested)


def test_a_wait_goes_on_when_the_clock_returns_early() -> None:
    class Restless(ManualClock):
        def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
            left.append(timeout_seconds)
            self.advance(SECOND)

    left: list[float | None] = []
    StopSignal(Restless()).wait(3 * SECOND)

    assert left == [3.0, 2.0, 1.0]


def test_manual_time_stands_still_until_it_is_advanced() -> None:
    clock = ManualClock(datetime(2026, 5, 1, 14, tzinfo=timezone(2 * timedelta(hours=1))))
    assert (clock.now(), clock.monotonic()) == (datetime(2026, 5, 1, 12, tzinfo=UTC), 0.0)
    assert clock.now().tzinfo is UTC

    clock.advance(90 * SECOND)

    assert (clock.now(), clock.monotonic()) == (datetime(2026, 5, 1, 12, 1, 30, tzinfo=UTC), 90.0)


def test_the_wall_can_jump_back_while_monotonic_time_cannot() -> None:
    clock = ManualClock()
    start = clock.now()

    clock.jump_wall(-SECOND)

    assert (clock.now(), clock.monotonic()) == (start - SECOND, 0.0)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-SECOND)


def test_a_manual_clock_starts_at_an_aware_moment() -> None:
    with pytest.raises(ValueError, match="aware"):
        ManualClock(datetime(2026, 1, 1))


def test_advancing_wakes_the_waits_that_are_due_and_no_others() -> None:
    clock = ManualClock()
    short = Background(lambda: StopSignal(clock).wait(2 * SECOND))
    stop = StopSignal(clock)
    long = Background(lambda: stop.wait(3 * SECOND))
    clock.wait_until_waiting(2)

    clock.jump_wall(timedelta(days=1))
    clock.advance(SECOND)
    assert clock.waiting() == 2
    clock.advance(SECOND)

    short.join()
    assert clock.waiting() == 1
    assert not long.ended.is_set()
    stop.set()
    long.join()


def test_a_wait_that_is_over_no_longer_counts_when_advance_returns() -> None:
    clock = ManualClock()
    waiter = Background(lambda: StopSignal(clock).wait(SECOND))
    clock.wait_until_waiting(1)

    clock.advance(SECOND)

    assert clock.waiting() == 0
    waiter.join()


def test_waits_add_up_to_their_time_however_floats_are_rounded() -> None:
    clock = ManualClock()
    clock.advance(timedelta(seconds=0.1))
    for tenths in range(1, 30):
        duration = timedelta(seconds=tenths / 10)
        waiter = Background(lambda duration=duration: StopSignal(clock).wait(duration))
        clock.wait_until_waiting(1)

        clock.advance(duration)

        waiter.join()
        assert waiter.error is None


def test_a_manual_wait_without_time_limit_ends_by_notification_and_is_not_counted() -> None:
    clock = ManualClock()
    condition = threading.Condition()
    entered = threading.Event()

    def wait() -> None:
        with condition:
            entered.set()
            clock.wait(condition, None)

    waiter = Background(wait)
    assert entered.wait(LIMIT_SECONDS)
    with condition:
        assert clock.waiting() == 0
        condition.notify_all()

    waiter.join()


def test_a_test_that_waits_for_nobody_is_told() -> None:
    with pytest.raises(AssertionError, match="0 of 1 threads"):
        ManualClock().wait_until_waiting(1, limit_seconds=0)
