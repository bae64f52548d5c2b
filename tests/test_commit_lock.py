"""The commit lock for which threads wait, and the loop of the server does not."""

from __future__ import annotations

import threading

import pytest
from ZEO.Exceptions import ClientDisconnected

from perdure.storage.commitlock import CommitLock
from support.systems import within


class Waiter:
    """A thread that acquires the lock."""

    def __init__(self, lock: CommitLock) -> None:
        self.has_it = threading.Event()
        self.error: BaseException | None = None
        self.lock = lock
        before = len(lock._line)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        while len(lock._line) == before:  # it is about to stand in line
            threading.Event().wait(0.001)

    def _run(self) -> None:
        try:
            self.lock.acquire()
            self.has_it.set()
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        within(self.thread.join)


def refuse() -> None:
    raise AssertionError("it was there at once")


def test_it_is_handed_over_in_the_order_of_asking() -> None:
    lock, granted = CommitLock(), threading.Event()
    assert lock.acquire()
    first = Waiter(lock)
    assert not lock.reserve(granted.set)
    second = Waiter(lock)
    lock.release()
    first.join()
    assert first.has_it.is_set() and not granted.is_set()
    lock.release()
    assert granted.is_set() and not second.has_it.is_set()
    assert lock.acquire()  # by who has reserved it
    lock.release()
    second.join()
    assert second.has_it.is_set()


def test_what_is_reserved_and_not_used_goes_to_the_next() -> None:
    lock = CommitLock()
    assert lock.reserve(refuse) and lock.reserve(refuse)
    assert not within(lambda: lock.acquire(0.0))  # in another thread
    lock.cancel_reservation()
    lock.cancel_reservation()
    assert within(lambda: lock.acquire(0.0))


def test_asking_twice_stands_in_line_once() -> None:
    lock, calls = CommitLock(), []
    assert lock.acquire()
    for _ in range(2):
        assert not lock.reserve(lambda: calls.append(None))
    lock.release()
    assert calls == [None]
    assert lock.reserve(refuse)
    lock.cancel_reservation()
    assert lock.acquire(0.0)


def test_who_has_waited_long_enough_leaves_the_line() -> None:
    lock = CommitLock()
    assert lock.acquire()
    assert not lock.acquire(0.0)
    lock.release()
    assert lock.acquire(0.0)


def test_after_the_end_nobody_gets_it() -> None:
    lock = CommitLock()
    assert lock.acquire()
    waiter = Waiter(lock)
    lock.end()
    waiter.join()
    assert isinstance(waiter.error, ClientDisconnected)
    with pytest.raises(ClientDisconnected):
        lock.acquire()
