"""How an actor receives and waits: handed in when the system is made.

The actors themselves make no thread, no lock and no queue. They get an `Execution`,
and everything in it that can block does so through `Clock.wait`. An execution in which
exactly one thread holds the baton hands it on in `Inbox.get`, in `Inbox.put`, and in its
clock's `wait`; nothing else here waits.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol, TypeVar

import pykka
from pykka._envelope import Envelope

from perdure.model.clock import Clock, SystemClock

__all__ = [
    "ClockFuture",
    "Execution",
    "Inbox",
    "ThreadHandle",
    "ThreadedExecution",
    "ThreadedInbox",
    "wait_for",
]

T = TypeVar("T")

ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

# Sums of floating-point seconds miss a moment by a hair; without this, a wait that ends
# exactly at its deadline could be followed by one of a femtosecond, for ever.
TOLERANCE_SECONDS = 1e-6
TURN_SECONDS = 0.1
"""So long, at most, a thread that is about to compute for long waits for another one that does.

Two that compute at once take the interpreter from each other at every call of the system, some of
which each load and each store makes. With two processors that took a fifth of a drain of small
jobs.
"""


class Inbox(Protocol):
    """What is waiting for one actor, in the order in which it was put."""

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add an envelope; from any thread.

        Raises `pykka.ActorDeadError` once the inbox is closed.
        """

    def get(self, timeout_seconds: float | None = None) -> Envelope[Any] | None:
        """Take the oldest envelope, or None if none came in time; the actor's thread only."""

    def empty(self) -> bool:
        """Whether nothing is waiting."""

    def close(self) -> list[Envelope[Any]]:
        """Refuse whatever is put from now on; return what was left."""


class ThreadHandle(Protocol):
    """A thread that was started by an execution."""

    @property
    def name(self) -> str:
        """The name that the thread was started with."""

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Wait until the thread has ended; False if it has not in time.

        Raises `RuntimeError` in that thread itself.
        """

    def is_alive(self) -> bool:
        """Whether the thread has not ended yet."""


class Execution(abc.ABC):
    """Makes what the actors of one system receive with, wait with and run on."""

    @abc.abstractmethod
    def create_inbox(self, actor: pykka.Actor) -> Inbox:
        """Return a new inbox for that actor."""

    @abc.abstractmethod
    def create_future(self) -> pykka.Future[Any]:
        """Return a new future; `get` may be called from any thread, an actor's or not."""

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Return what threads enter that are about to compute for long, to do so one by one.

        A courtesy, and no lock to rely on: it may be entered by several, and by default is.
        """
        return contextlib.nullcontext()

    @property
    def has_crashed(self) -> bool:
        """Whether the process is a simulated one that has crashed, so that nothing goes on."""
        return False

    def create_event_loop(self) -> asyncio.AbstractEventLoop:
        """Return a new loop for coroutines, to be run in a thread of this execution."""
        return asyncio.new_event_loop()

    @abc.abstractmethod
    def start_thread(self, target: Callable[[], None], name: str) -> ThreadHandle:
        """Run `target` in a thread of its own, which does not keep the interpreter alive.

        Raises `RuntimeError` if no thread can be started.
        """


def wait_for(
    clock: Clock,
    condition: threading.Condition,
    predicate: Callable[[], bool],
    timeout_seconds: float | None = None,
) -> bool:
    """Wait until the predicate holds; the condition's lock is held by the caller.

    Like `threading.Condition.wait_for`, but in the clock's time. Returns the
    predicate's last value, so False means that the time has passed.
    """
    deadline = None if timeout_seconds is None else clock.monotonic() + timeout_seconds
    while not predicate():
        remaining = None if deadline is None else deadline - clock.monotonic()
        if remaining is not None and remaining <= TOLERANCE_SECONDS:
            return False
        clock.wait(condition, remaining)
    return True


class ThreadedExecution(Execution):
    """Real threads: daemons, so that a forgotten one does not hang the interpreter."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._turn = threading.Lock()
        self._turn_lasts = False

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        # It is about the processors, and none of the clock's business. Where somebody has waited
        # in vain, whoever has it does not compute, or for long, and is not waited for again.
        entered = self._turn.acquire(timeout=0 if self._turn_lasts else TURN_SECONDS)
        self._turn_lasts = not entered
        try:
            yield
        finally:
            if entered:
                self._turn_lasts = False
                self._turn.release()

    def create_inbox(self, actor: pykka.Actor) -> Inbox:
        return ThreadedInbox(self._clock, str(actor))

    def create_future(self) -> pykka.Future[Any]:
        return ClockFuture(self._clock)

    def start_thread(self, target: Callable[[], None], name: str) -> ThreadHandle:
        return _Thread(self._clock, target, name)


class ThreadedInbox:
    """A queue between real threads."""

    def __init__(self, clock: Clock, owner: str) -> None:
        self._clock = clock
        self._owner = owner
        self._condition = threading.Condition()
        self._envelopes: deque[Envelope[Any]] = deque()
        self._closed = False

    def put(self, envelope: Envelope[Any], /) -> None:
        with self._condition:
            if self._closed:
                raise pykka.ActorDeadError(f"{self._owner} not found")
            self._envelopes.append(envelope)
            self._condition.notify()

    def get(self, timeout_seconds: float | None = None) -> Envelope[Any] | None:
        with self._condition:
            if wait_for(self._clock, self._condition, self._filled, timeout_seconds):
                return self._envelopes.popleft()
            return None

    def _filled(self) -> bool:
        return bool(self._envelopes)

    def empty(self) -> bool:
        return not self._envelopes

    def close(self) -> list[Envelope[Any]]:
        with self._condition:
            self._closed = True
            left = list(self._envelopes)
            self._envelopes.clear()
            return left


class ClockFuture(pykka.Future[T]):
    """A future whose time-outs pass on a clock.

    Pykka makes derived futures (`map`, the answer of `ActorRef.stop`) without arguments;
    they never wait themselves but call `get` of those that they were made from.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        self._clock = SystemClock() if clock is None else clock
        self._condition = threading.Condition()
        self._outcome: tuple[T | None, ExcInfo | None] | None = None

    def get(self, *, timeout: float | None = None) -> Any:
        """Return the value, or raise the exception; from any thread.

        Raises `pykka.Timeout` when there is neither after `timeout` seconds.
        """
        with self._condition:
            if not wait_for(self._clock, self._condition, self._settled, timeout):
                raise pykka.Timeout(f"{timeout} seconds")
            outcome = self._outcome
        if outcome is None:  # not under the lock: the hook waits for other futures
            return super().get(timeout=timeout)
        value, exc_info = outcome
        if exc_info is None:
            return value
        kind, error, traceback = exc_info
        if error is None:
            error = (kind or RuntimeError)()
        raise error.with_traceback(traceback)

    def _settled(self) -> bool:
        return self._outcome is not None or self._get_hook is not None

    def set(self, value: T | None = None) -> None:
        """Set the value and wake who waits; raises `RuntimeError` the second time."""
        self._settle((value, None))

    def set_exception(self, exc_info: ExcInfo | None = None) -> None:
        """Set the exception (default: the one being handled) and wake who waits.

        Raises `RuntimeError` if the future is settled already.
        """
        self._settle((None, sys.exc_info() if exc_info is None else exc_info))

    def set_get_hook(self, func: Callable[[float | None], T]) -> None:
        """Let `get` return what `func(timeout)` returns.

        Raises `RuntimeError` if the future is settled already.
        """
        with self._condition:
            self._refuse_if_settled()
            super().set_get_hook(func)
            self._condition.notify_all()

    def _settle(self, outcome: tuple[T | None, ExcInfo | None]) -> None:
        with self._condition:
            self._refuse_if_settled()
            self._outcome = outcome
            self._condition.notify_all()

    def _refuse_if_settled(self) -> None:
        if self._settled():
            raise RuntimeError("this future is settled already; it can be set only once")


class _Thread:
    """The handle of a real thread; joining it waits in the clock's time."""

    def __init__(self, clock: Clock, target: Callable[[], None], name: str) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, args=(target,), name=name, daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        return self._thread.name

    def _run(self, target: Callable[[], None]) -> None:
        try:
            target()
        finally:
            with self._condition:
                self._ended = True
                self._condition.notify_all()

    def join(self, timeout_seconds: float | None = None) -> bool:
        if threading.current_thread() is self._thread:
            raise RuntimeError(f"thread {self.name} cannot wait for its own end")
        with self._condition:
            if not wait_for(self._clock, self._condition, self._has_ended, timeout_seconds):
                return False
        self._thread.join()  # what is left of it are a few instructions
        return True

    def _has_ended(self) -> bool:
        return self._ended

    def is_alive(self) -> bool:
        return self._thread.is_alive()
