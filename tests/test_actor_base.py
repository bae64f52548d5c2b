"""The base of all actors, the way they receive and wait, and what it needs of Pykka."""

from __future__ import annotations

import inspect
import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pykka
import pykka._envelope
import pykka.messages
import pytest

from perdure.actors.base import Actor, ActorContext, handles
from perdure.actors.execution import (
    ClockFuture,
    Execution,
    ThreadedExecution,
    ThreadedInbox,
    ThreadHandle,
)
from perdure.actors.messages import ActorCrashed, ActorGivenUp, UnknownMessageTold
from perdure.actors.ref import Ref
from perdure.actors.timers import Timers, TimerToken
from perdure.model.clock import Clock, StopSignal, SystemClock
from perdure.model.errors import (
    ActorGivenUpError,
    AskInterruptedError,
    StopRequested,
    UnknownMessageError,
)
from support.manual_clock import ManualClock

SECOND = timedelta(seconds=1)


class BareError(BaseException):
    """Neither an `Exception` nor known to anybody."""


ANY_KIND = pytest.mark.parametrize(
    "error", [ValueError("v"), SystemExit(3), KeyboardInterrupt(), BareError("b")], ids=repr
)


@dataclass(frozen=True)
class Context:
    clock: Clock
    execution: Execution
    reports: queue.SimpleQueue[object] = field(default_factory=queue.SimpleQueue)
    stop: StopSignal = field(default_factory=lambda: StopSignal(SystemClock()))

    def report(self, message: object, /) -> None:
        self.reports.put(message)

    def next_report(self) -> Any:
        return self.reports.get(timeout=30)


@dataclass(frozen=True)
class Raise:
    error: BaseException


@dataclass(frozen=True)
class Note:
    text: str


@dataclass(frozen=True)
class SpecialNote(Note):
    pass


@dataclass(frozen=True)
class NoteLater:
    text: str
    delay: timedelta


@dataclass(frozen=True)
class Cancel:
    token: TimerToken


@dataclass(frozen=True)
class GetNotes:
    pass


@dataclass(frozen=True)
class Block:
    entered: threading.Event
    leave: threading.Event


@dataclass(frozen=True)
class Stranger:
    pass


class Notebook(Actor):
    """Writes down what it is told and what happens to it."""

    def __init__(
        self, context: ActorContext, start_errors: tuple[BaseException, ...] = (), **kwargs: Any
    ) -> None:
        super().__init__(context, **kwargs)
        self.start_errors = list(start_errors)
        self.notes: list[str] = []

    def on_start(self) -> None:
        self.notes.append("start")
        if self.start_errors:
            raise self.start_errors.pop(0)

    def on_crash(self, error: BaseException) -> None:
        self.notes.append("crash")

    def on_restart(self) -> None:
        self.notes.append("restart")

    def on_stop(self) -> None:
        self.notes.append("stop")

    @handles(Raise)
    def raise_it(self, message: Raise) -> None:
        raise message.error

    @handles(Note)
    def note(self, message: Note) -> None:
        self.notes.append(message.text)

    @handles(NoteLater)
    def note_later(self, message: NoteLater) -> TimerToken:
        return self.tell_later(Note(message.text), message.delay)

    @handles(Cancel)
    def cancel(self, message: Cancel) -> None:
        self.cancel_later(message.token)

    @handles(GetNotes)
    def get_notes(self, message: GetNotes) -> tuple[str, ...]:
        return tuple(self.notes)

    @handles(Block)
    def block(self, message: Block) -> None:
        message.entered.set()
        message.leave.wait(30)


class AlwaysFailing(Notebook):
    def on_start(self) -> None:
        self.notes.append("start")
        raise ValueError("no luck")


class Bystander(pykka.ThreadingActor):
    """An application's own actor."""

    def on_receive(self, message: Any) -> Any:
        return message


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def context(clock: ManualClock) -> Context:
    return Context(clock, ThreadedExecution(clock))


@pytest.fixture
def bystander() -> Iterator[pykka.ActorRef[Bystander]]:
    ref = Bystander.start()
    yield ref
    ref.stop()


def finish(ref: Ref[Any]) -> None:
    assert ref.stop()
    ref.join()


def notes_with_timers(ref: Ref[Any]) -> Any:
    """The notes once the timers that are due now have been handled.

    One round to end the wait, one to queue up what is due, one behind that.
    """
    ref.ask(GetNotes())
    ref.ask(GetNotes())
    return ref.ask(GetNotes())


# Messages and their handlers


def test_a_message_goes_to_the_handler_of_its_type(context: Context) -> None:
    ref = Notebook.start(context)
    ref.tell(Note("one"))
    assert ref.ask(GetNotes()) == ("start", "one")
    finish(ref)


def test_a_message_of_a_subclass_goes_to_the_handler_of_its_base(context: Context) -> None:
    ref = Notebook.start(context)
    ref.tell(SpecialNote("special"))
    assert "special" in ref.ask(GetNotes())
    finish(ref)


def test_an_overridden_handler_needs_no_mark(context: Context) -> None:
    class Shouting(Notebook):
        def note(self, message: Note) -> None:
            self.notes.append(message.text.upper())

    ref = Shouting.start(context)
    ref.tell(Note("one"))
    assert ref.ask(GetNotes()) == ("start", "ONE")
    finish(ref)


def test_two_handlers_for_one_type_are_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="both first and second handle Note"):

        class Torn(Actor):
            @handles(Note)
            def first(self, message: Note) -> None: ...

            @handles(Note)
            def second(self, message: Note) -> None: ...


def test_asking_something_unknown_is_an_error_to_the_asker(context: Context) -> None:
    ref = Notebook.start(context)
    with pytest.raises(UnknownMessageError, match="no handler for Stranger; it handles: Block,"):
        ref.ask(Stranger())
    finish(ref)
    assert context.reports.empty()


def test_telling_something_unknown_is_logged_and_reported_and_is_no_crash(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    ref = Notebook.start(context, name="notebook")
    ref.tell(Stranger())
    assert ref.ask(GetNotes()) == ("start",)
    finish(ref)
    assert context.next_report() == UnknownMessageTold("notebook", ref.actor_urn, "Stranger")
    assert [r.levelno for r in caplog.records if "Stranger" in r.message] == [logging.ERROR]


# What handlers and hooks raise


def test_an_error_in_an_ask_goes_to_the_asker_alone(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    ref = Notebook.start(context)
    with pytest.raises(ValueError, match="mine"):
        ref.ask(Raise(ValueError("mine")))
    assert ref.ask(GetNotes()) == ("start",)
    finish(ref)
    assert context.reports.empty()
    assert not [r for r in caplog.records if r.levelno > logging.DEBUG]


@pytest.mark.spec("D11")
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), BareError()], ids=repr)
def test_an_ask_that_is_no_exception_ends_neither_the_actor_nor_the_asker(
    context: Context, bystander: pykka.ActorRef[Bystander], error: BaseException
) -> None:
    ref = Notebook.start(context)
    with pytest.raises(AskInterruptedError, match=type(error).__name__) as caught:
        ref.ask(Raise(error))
    assert caught.value.__cause__ is error
    assert ref.ask(GetNotes()) == ("start",)
    finish(ref)
    assert bystander.ask("still there") == "still there"


@pytest.mark.spec("D11")
@ANY_KIND
def test_an_error_in_a_tell_restarts_the_actor_in_place(
    context: Context,
    clock: ManualClock,
    bystander: pykka.ActorRef[Bystander],
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    other = Notebook.start(context)
    ref = Notebook.start(context, name="notebook")
    entered, leave = threading.Event(), threading.Event()
    ref.tell(Block(entered, leave))
    assert entered.wait(30)
    ref.tell(Raise(error))
    ref.tell(Note("behind"))
    answer = ref.ask(GetNotes(), block=False)
    leave.set()
    report = context.next_report()
    clock.wait_until_waiting(1)
    clock.advance(SECOND)
    assert answer.get() == ("start", "crash", "restart", "start", "behind")
    assert (report.actor_name, report.actor_urn, report.count) == ("notebook", ref.actor_urn, 1)
    assert isinstance(report, ActorCrashed) and type(error).__name__ in report.reason_text
    assert [r.levelno for r in caplog.records if "crashed" in r.message] == [logging.CRITICAL]
    assert other.ask(GetNotes()) == ("start",)
    assert bystander.ask("still there") == "still there"
    finish(ref)
    finish(other)


@pytest.mark.spec("D11")
@ANY_KIND
def test_an_error_in_on_start_is_followed_by_another_try(
    context: Context,
    clock: ManualClock,
    bystander: pykka.ActorRef[Bystander],
    error: BaseException,
) -> None:
    ref = Notebook.start(context, (error,))
    assert context.next_report().count == 1
    ref.tell(Note("waiting"))
    clock.wait_until_waiting(1)
    clock.advance(SECOND)
    assert ref.ask(GetNotes()) == ("start", "crash", "restart", "start", "waiting")
    assert bystander.ask("still there") == "still there"
    finish(ref)


def test_the_pauses_between_restarts_grow_to_a_minute(
    context: Context, clock: ManualClock
) -> None:
    ref = AlwaysFailing.start(context)
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60, 60):
        context.next_report()
        clock.wait_until_waiting(1)
        clock.advance(timedelta(seconds=seconds) - timedelta(milliseconds=1))
        assert clock.waiting() == 1
        clock.advance(timedelta(milliseconds=1))
    assert context.next_report().count == 10
    finish(ref)


def test_an_actor_that_crashes_too_often_is_given_up_loudly(
    context: Context,
    clock: ManualClock,
    bystander: pykka.ActorRef[Bystander],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ref = AlwaysFailing.start(context, name="unlucky")
    for _ in range(AlwaysFailing.crash_limit - 1):
        assert isinstance(context.next_report(), ActorCrashed)
        clock.wait_until_waiting(1)
        clock.advance(timedelta(minutes=1))
    assert context.next_report().count == 10
    given_up = context.next_report()
    assert given_up == ActorGivenUp("unlucky", ref.actor_urn, "ValueError: no luck", 10)
    assert [r.levelno for r in caplog.records if "GIVEN UP" in r.message] == [logging.CRITICAL]

    ref.tell(Note("lost"))
    with pytest.raises(ActorGivenUpError, match="unlucky"):
        ref.ask(GetNotes())
    assert [r.levelno for r in caplog.records if "dropped a Note" in r.message] == [logging.ERROR]
    assert bystander.ask("still there") == "still there"
    finish(ref)


def test_old_crashes_are_forgotten(context: Context, clock: ManualClock) -> None:
    ref = Notebook.start(context)
    for _ in range(3 * Notebook.crash_limit):
        ref.tell(Raise(ValueError()))
        assert context.next_report().count == 1
        clock.wait_until_waiting(1)
        clock.advance(SECOND)
        ref.ask(GetNotes())
        clock.advance(Notebook.crash_window)
    finish(ref)


def test_a_stop_ends_the_pause_at_once_and_what_was_told_before_it_is_handled(
    context: Context, clock: ManualClock
) -> None:
    ref = Notebook.start(context, (ValueError(),))
    answer = ref.ask(GetNotes(), block=False)
    clock.wait_until_waiting(1)
    finish(ref)
    assert answer.get() == ("start", "crash", "restart", "start")


def test_a_stop_of_the_system_ends_the_pause_with_the_next_message(
    context: Context, clock: ManualClock
) -> None:
    ref = Notebook.start(context, (ValueError(),))
    clock.wait_until_waiting(1)
    context.stop.set()
    assert ref.ask(GetNotes()) == ("start", "crash", "restart", "start")
    finish(ref)


def test_an_actor_that_cannot_restart_when_the_system_stops_is_given_up(
    context: Context, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    ref = AlwaysFailing.start(context)
    clock.wait_until_waiting(1)
    context.stop.set()
    with pytest.raises(ActorGivenUpError):
        ref.ask(GetNotes())
    assert "is stopped before it could restart" in caplog.text
    finish(ref)


def test_an_actor_that_cannot_restart_can_be_stopped(context: Context) -> None:
    ref = AlwaysFailing.start(context)
    answer = ref.ask(GetNotes(), block=False)
    finish(ref)
    with pytest.raises(ActorGivenUpError):
        answer.get()


def test_being_stopped_in_a_wait_is_no_crash(context: Context) -> None:
    ref = Notebook.start(context)
    ref.tell(Raise(StopRequested("the system stops")))
    assert ref.ask(GetNotes()) == ("start",)
    finish(ref)
    assert context.reports.empty()


def test_being_stopped_in_on_start_leaves_an_actor_that_stops(context: Context) -> None:
    ref = Notebook.start(context, (StopRequested(),))
    finish(ref)
    assert context.reports.empty()


@ANY_KIND
def test_errors_in_on_crash_and_on_stop_and_of_the_supervisor_are_logged(
    clock: ManualClock, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    class Deaf(Context):
        def report(self, message: object, /) -> None:
            raise error

    class Clumsy(Notebook):
        def on_crash(self, failure: BaseException) -> None:
            raise error

        def on_stop(self) -> None:
            raise error

    ref = Clumsy.start(Deaf(clock, ThreadedExecution(clock)))
    ref.tell(Raise(ValueError()))
    finish(ref)
    logged = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert logged == [
        "actor Clumsy could not report to its supervisor",
        "actor Clumsy failed in on_crash",
        "actor Clumsy failed in on_stop",
    ]


def test_a_wait_that_fails_ends_the_actor_and_says_so(clock: ManualClock) -> None:
    class BrokenInbox(ThreadedInbox):
        def get(self, timeout_seconds: float | None = None) -> Any:
            raise BareError("the baton is gone")

    class BrokenExecution(ThreadedExecution):
        def create_inbox(self, actor: pykka.Actor) -> ThreadedInbox:
            return BrokenInbox(clock, str(actor))

    context = Context(clock, BrokenExecution(clock))
    ref = Notebook.start(context)
    ref.join()
    assert isinstance(context.next_report(), ActorCrashed)
    assert isinstance(context.next_report(), ActorGivenUp)
    with pytest.raises(pykka.ActorDeadError):
        ref.ask(GetNotes())
    assert not ref.stop()


# Stopping


def test_after_a_stop_no_thread_and_no_registration_is_left(context: Context) -> None:
    before = set(threading.enumerate())
    ref = Notebook.start(context, name="short-lived")
    assert ref not in pykka.ActorRegistry.get_all()  # whoever stops all, means others
    thread = next(thread for thread in threading.enumerate() if thread.name == "short-lived")
    assert thread.daemon and not ref.join(timedelta(0))
    finish(ref)
    assert ref.join()
    assert not ref.is_alive() and not thread.is_alive()
    assert set(threading.enumerate()) == before
    assert ref not in pykka.ActorRegistry.get_all()


def test_stopping_a_stopped_actor_says_that_it_was_dead(context: Context) -> None:
    ref = Notebook.start(context)
    finish(ref)
    assert ref.stop() is False


def test_what_is_told_and_asked_before_a_stop_is_handled(context: Context) -> None:
    ref = Notebook.start(context)
    ref.tell(Note("in time"))
    answer = ref.ask(GetNotes(), block=False)
    finish(ref)
    assert answer.get() == ("start", "in time")


def test_what_comes_behind_a_stop_is_refused_or_dropped_with_a_line_in_the_log(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "perdure.trace")
    entered, leave = threading.Event(), threading.Event()
    ref = Notebook.start(context)
    ref.tell(Block(entered, leave))
    assert entered.wait(30)
    stopped = ref.stop(block=False)
    ref.tell(Note("late"))
    late = ref.ask(GetNotes(), block=False)
    again = ref.stop(block=False)
    leave.set()
    ref.join()
    ref.tell(Note("very late"))
    assert stopped.get() and again.get()
    with pytest.raises(pykka.ActorDeadError):
        late.get()
    with pytest.raises(pykka.ActorDeadError):
        ref.ask(GetNotes())
    dropped = [r.levelno for r in caplog.records if "dropped a Note" in r.getMessage()]
    assert dropped == [logging.DEBUG] * 2


def test_an_actor_cannot_wait_for_its_own_end(context: Context) -> None:
    class Narcissus(Actor):
        @handles(Note)
        def wait(self, message: Note) -> None:
            self.actor_ref.join()

    ref = Narcissus.start(context)
    with pytest.raises(RuntimeError, match="own end"):
        ref.ask(Note(""))
    finish(ref)


def test_an_actor_whose_thread_cannot_start_leaves_nothing(clock: ManualClock) -> None:
    class Exhausted(ThreadedExecution):
        def start_thread(self, target: Any, name: str) -> ThreadHandle:
            raise RuntimeError("can't start new thread")

    before = pykka.ActorRegistry.get_all()
    with pytest.raises(RuntimeError, match="new thread"):
        Notebook.start(Context(clock, Exhausted(clock)))
    assert pykka.ActorRegistry.get_all() == before


@pytest.mark.process
def test_a_forgotten_actor_does_not_keep_the_interpreter_from_ending() -> None:
    program = """
from dataclasses import dataclass
from perdure.actors.base import Actor
from perdure.actors.execution import Execution, ThreadedExecution
from perdure.model.clock import Clock, StopSignal, SystemClock

@dataclass(frozen=True)
class Context:
    clock: Clock
    execution: Execution
    stop: StopSignal
    def report(self, message): pass

class Forgotten(Actor):
    pass

clock = SystemClock()
ref = Forgotten.start(Context(clock, ThreadedExecution(clock), StopSignal(clock)))
print(ref.is_alive())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


# Timers


def test_timers_come_in_the_order_of_their_moments(context: Context, clock: ManualClock) -> None:
    ref = Notebook.start(context)
    for text, seconds in (("c", 3), ("a", 1), ("b", 2), ("b2", 2)):
        ref.ask(NoteLater(text, seconds * SECOND))
    clock.wait_until_waiting(1)
    clock.advance(SECOND)
    assert notes_with_timers(ref) == ("start", "a")
    clock.wait_until_waiting(1)
    clock.advance(5 * SECOND)
    assert notes_with_timers(ref) == ("start", "a", "b", "b2", "c")
    finish(ref)


def test_a_cancelled_timer_does_not_come(context: Context, clock: ManualClock) -> None:
    ref = Notebook.start(context)
    token: Any = ref.ask(NoteLater("never", SECOND))
    ref.ask(NoteLater("later", 2 * SECOND))
    ref.tell(Cancel(token))
    ref.tell(Cancel(token))
    clock.wait_until_waiting(1)
    clock.advance(3 * SECOND)
    assert notes_with_timers(ref) == ("start", "later")
    finish(ref)


def test_cancelled_timers_take_no_place() -> None:
    timers = Timers()
    kept = [timers.add(moment, "kept") for moment in (3.0, 1.0, 2.0)]
    for number in range(1000):
        timers.cancel(timers.add(float(number), "cancelled"))
    assert len(timers._heap) < 50 and len(timers._messages) == 3
    assert timers.pop_due(10.0) == [kept[1], kept[2], kept[0]]


def test_a_timer_can_be_cancelled_until_it_is_handled(
    context: Context, clock: ManualClock
) -> None:
    ref = Notebook.start(context)
    token: Any = ref.ask(NoteLater("never", SECOND))
    entered, leave = threading.Event(), threading.Event()
    ref.tell(Block(entered, leave))
    assert entered.wait(30)
    ref.tell(Cancel(token))
    clock.advance(SECOND)  # due now, and it will queue up behind its cancellation
    leave.set()
    assert notes_with_timers(ref) == ("start",)
    finish(ref)


def test_a_timer_that_is_due_again_and_again_lets_others_have_their_turn(
    context: Context,
) -> None:
    class Restless(Notebook):
        def note(self, message: Note) -> None:
            self.tell_later(message, timedelta(0))

    ref = Restless.start(context)
    ref.tell(Note("tick"))
    assert [ref.ask(GetNotes()) for _ in range(3)] == [("start",)] * 3
    finish(ref)


def test_a_timer_that_raises_is_a_crash_and_a_restart_begins_without_timers(
    context: Context, clock: ManualClock
) -> None:
    class Fragile(Notebook):
        def note(self, message: Note) -> None:
            if message.text == "raise":
                raise ValueError("in a timer")
            super().note(message)

    ref = Fragile.start(context)
    ref.ask(NoteLater("raise", SECOND))
    ref.ask(NoteLater("forgotten", 2 * SECOND))
    clock.wait_until_waiting(1)
    clock.advance(SECOND)
    assert context.next_report().reason_text == "ValueError: in a timer"
    clock.wait_until_waiting(1)
    clock.advance(60 * SECOND)
    assert notes_with_timers(ref) == ("start", "crash", "restart", "start")
    finish(ref)


# Waiting


def test_an_asker_waits_in_the_time_of_the_clock(context: Context, clock: ManualClock) -> None:
    ref = Notebook.start(context)
    entered, leave = threading.Event(), threading.Event()
    ref.tell(Block(entered, leave))
    caught: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def ask() -> None:
        try:
            ref.ask(GetNotes(), timeout=5)
        except pykka.Timeout as error:
            caught.put(error)

    asker = threading.Thread(target=ask)
    asker.start()
    clock.wait_until_waiting(1)
    clock.advance(5 * SECOND)
    asker.join()
    leave.set()
    finish(ref)
    assert "5 seconds" in str(caught.get(timeout=30))


def test_a_future_gives_its_value_to_all_who_wait_and_takes_it_once(clock: ManualClock) -> None:
    future = ClockFuture[int](clock)
    doubled = future.map(lambda value: 2 * value)
    got: queue.SimpleQueue[int] = queue.SimpleQueue()
    threads = [
        threading.Thread(target=lambda waited=waited: got.put(waited.get()))
        for waited in (future, future, doubled)
    ]
    for thread in threads:
        thread.start()
    future.set(4)
    for thread in threads:
        thread.join()
    assert sorted(got.get() for _ in threads) == [4, 4, 8]
    with pytest.raises(RuntimeError, match="only once"):
        future.set(5)
    with pytest.raises(RuntimeError, match="only once"):
        future.set_exception((ValueError, ValueError(), None))


def test_it_all_works_in_real_time() -> None:
    clock = SystemClock()
    ref = Notebook.start(Context(clock, ThreadedExecution(clock)))
    fired = threading.Event()

    class Alarm(Actor):
        def on_start(self) -> None:
            self.tell_later(Note(""), timedelta(milliseconds=5))

        @handles(Note)
        def ring(self, message: Note) -> None:
            fired.set()

    alarm = Alarm.start(Context(clock, ThreadedExecution(clock)))
    assert fired.wait(30)
    assert ref.ask(GetNotes(), timeout=30) == ("start",)
    finish(alarm)
    finish(ref)


# Pykka's private names


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (pykka.Actor, "_start_actor_loop", ["self"]),
        (pykka.Actor, "_actor_loop", ["self"]),
        (pykka.Actor, "on_receive", ["self", "message"]),
        (pykka.Actor, "_create_actor_inbox", []),
        (pykka.Actor, "_create_future", []),
        (pykka.ActorRef, "__init__", ["self", "actor"]),
        (pykka.ActorRef, "tell", ["self", "message"]),
        (pykka.ActorRef, "ask", ["self", "message", "block", "timeout"]),
        (pykka.ActorRef, "stop", ["self", "block", "timeout"]),
        (pykka.Future, "get", ["self", "timeout"]),
        (pykka.Future, "set_get_hook", ["self", "func"]),
        (pykka._envelope.Envelope, "__init__", ["self", "message", "reply_to"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_pykka_still_has_what_the_base_is_built_on(
    owner: type, name: str, parameters: list[str]
) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_pykka_still_starts_and_stops_by_the_names_that_the_base_replaces() -> None:
    assert "obj._start_actor_loop()" in inspect.getsource(pykka.Actor.start)
    assert "return self._actor_ref" in inspect.getsource(pykka.Actor)
    assert "self.ask(_ActorStop(), block=False)" in inspect.getsource(pykka.ActorRef.stop)
    assert "self._get_hook" in inspect.getsource(pykka.Future.get)
    assert pykka.messages._ActorStop() == ()
