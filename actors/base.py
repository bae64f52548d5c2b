"""`Actor`, the base of all actors of Perdure: no exception leaves it.

What Pykka does with an exception is to end the actor and drop what is queued behind it;
with one that is no `Exception`, to stop every actor of the process. Here:

| raised in | what happens |
| --- | --- |
| an `ask` handler | the asker gets it; nothing else |
| a `tell` handler, `on_start`, `on_restart` | a crash: the actor restarts in place |
| a `tell` handler or `on_start`, `StopRequested` | no crash: a `Stop` is on its way |
| `on_crash`, `on_stop` | logged |

*In place* means: thread, inbox, reference and attributes stay, what is queued waits. After
a growing pause `on_restart` and `on_start` are tried, until they succeed or there were too
many crashes. Then the actor is *given up*: it refuses every message, loudly, until it is
stopped.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import FunctionType, MappingProxyType
from typing import Any, ClassVar, Protocol, Self, TypeVar, cast

import pykka
from pykka._actor import ActorInbox
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from perdure.actors.execution import Execution
from perdure.actors.messages import ActorCrashed, ActorGivenUp, UnknownMessageTold
from perdure.actors.ref import Ref
from perdure.actors.timers import TimerDue, Timers, TimerToken
from perdure.model.clock import Clock, StopSignal
from perdure.model.errors import (
    ActorGivenUpError,
    AskInterruptedError,
    StopRequested,
    UnknownMessageError,
)
from perdure.model.logs import events, place, trace

__all__ = ["Actor", "ActorContext", "acts_for", "handles"]

Handler = TypeVar("Handler", bound=Callable[..., Any])


class ActorContext(Protocol):
    """What every actor needs from the system that it belongs to."""

    @property
    def clock(self) -> Clock: ...

    @property
    def execution(self) -> Execution: ...

    @property
    def stop(self) -> StopSignal:
        """Set, before a message tells of it, when the system stops: ends pauses."""

    def report(self, message: object, /) -> None:
        """Take a message of the supervision; from any actor's thread, must not raise."""


_acting_for: contextvars.ContextVar[ActorContext | None] = contextvars.ContextVar(
    "perdure actor's context", default=None
)


def acts_for(context: ActorContext) -> bool:
    """Whether this thread is one of the actors that belong to that system."""
    return _acting_for.get() is context


def handles(*message_types: type[Any]) -> Callable[[Handler], Handler]:
    """Mark a method as the handler of these types of messages.

    The method gets the message; what it returns is the answer to an `ask`. A method that
    overrides it needs no mark.
    """

    def mark(method: Handler) -> Handler:
        vars(method)["_handles"] = message_types
        return method

    return mark


class Actor(pykka.ThreadingActor):
    """An actor that outlives its own faults.

    Started with `Actor.start(context, …)`, which returns a `Ref`; stopped with `Ref.stop`,
    whose thread has ended after `Ref.join`. Hooks and handlers run in the actor's thread.
    """

    use_daemon_thread = True

    crash_limit: ClassVar[int] = 10
    """So many crashes within `crash_window`, and the actor is given up."""

    crash_window: ClassVar[timedelta] = timedelta(minutes=10)
    """Older crashes are forgotten."""

    restart_pause: ClassVar[timedelta] = timedelta(seconds=1)
    """The pause after the first crash; it doubles with each crash in the window."""

    longest_restart_pause: ClassVar[timedelta] = timedelta(seconds=60)

    log_fields: Mapping[str, str] = MappingProxyType({})
    """What the log records of its thread carry; to be set, if at all, in `__init__`."""

    _handlers: ClassVar[Mapping[type[Any], str]] = MappingProxyType({})

    # The life of an actor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        hidden = [n for n in vars(cls) if n[0] == "_" and n[:2] != "__" and hasattr(Actor, n)]
        if set(hidden) - {"_handlers"}:
            raise TypeError(f"{cls.__qualname__} hides {hidden}, which the base class needs")
        handlers: dict[type[Any], str] = {}
        for owner in reversed(cls.__mro__):
            handlers.update(_marked_handlers(owner))
        cls._handlers = MappingProxyType(handlers)

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> Ref[Self]:
        """Make an actor with these arguments (the context first) and start it.

        Raises what `__init__` raises, and `RuntimeError` if there can be no thread.
        """
        # Not registered with Pykka, not even for a moment: whoever stops all actors of the
        # process, as Pykka itself does where one of the application's raises what is no
        # Exception, means the application's.
        actor = cls(*args, **kwargs)
        actor._start_actor_loop()
        return actor._ref

    def __init__(self, context: ActorContext, *, name: str | None = None) -> None:
        super().__init__()
        self.context = context
        self.name = name or type(self).__name__
        self._clock = context.clock
        self._inbox = context.execution.create_inbox(self)
        self.actor_inbox = cast("ActorInbox", self._inbox)
        self._ref: Ref[Self] = Ref(self, context.execution, self._inbox)
        self._actor_ref = self._ref
        self._backlog: deque[Envelope[Any]] = deque()  # taken from the inbox, not handled yet
        self._stop_seen = False  # there is a stop in the backlog
        self._timers = Timers()
        self._crashes: deque[float] = deque()
        self._given_up = False

    @property
    def actor_ref(self) -> Ref[Self]:
        """The reference to this actor, to be given to others instead of `self`."""
        return self._ref

    def on_start(self) -> None:
        """Override: begin, or begin again after a crash. No timer is left from before."""

    def on_crash(self, error: BaseException) -> None:
        """Override: let go at once of what must not be kept while the actor pauses.

        Called after every crash, the last one included.
        """

    def on_restart(self) -> None:
        """Override: clear away what the crash left, just before `on_start` is tried again."""

    def on_stop(self) -> None:
        """Override: the end, also of an actor whose `on_start` never succeeded."""

    def tell_later(self, message: Any, delay: timedelta) -> TimerToken:
        """Tell this actor a message after a delay; in its own thread only.

        It queues behind what is in the inbox by then. Stopping and restarting forget it.
        """
        return self._timers.add(self._clock.monotonic() + delay.total_seconds(), message)

    def cancel_later(self, token: TimerToken) -> None:
        """Let that message not come; too late is no error. In the actor's thread only."""
        self._timers.cancel(token)

    # Receiving

    def _start_actor_loop(self) -> None:
        try:
            thread = self.context.execution.start_thread(self._actor_loop, self.name)
        except BaseException:
            self._leave()
            raise
        self._ref._runs_on(thread)

    def _actor_loop(self) -> None:
        """Live: what the actor's thread runs."""
        stop: Envelope[Any] | None = None
        _acting_for.set(self.context)
        place(**self.log_fields)
        try:
            self._begin()
            while stop is None:
                stop = self._run_once()
        except BaseException as error:  # of the loop itself, or of waiting: it cannot go on
            count = self._count_crash()
            self._report_crash(error, count)
            self._report(ActorGivenUp(self.name, self.actor_urn, _text(error), count))
        finally:
            self._end(stop)

    def _begin(self) -> None:
        error = _caught(self.on_start)
        if error is not None:
            self._recover(error)

    def _run_once(self) -> Envelope[Any] | None:
        """Handle one message, or wait for the next timer; return the envelope of a stop."""
        for token in self._timers.pop_due(self._clock.monotonic()):
            self._inbox.put(Envelope(TimerDue(token)))
        if self._backlog:
            envelope: Envelope[Any] | None = self._backlog.popleft()
        else:
            envelope = self._inbox.get(self._seconds_to_next_timer())
        if envelope is None:
            return None
        message = envelope.message
        if isinstance(message, _ActorStop):
            return envelope
        if envelope.reply_to is not None:
            self._answer(message, envelope.reply_to)
        elif isinstance(message, TimerDue):
            for later_message in self._timers.take(message.token):
                self._handle_told(later_message)
        else:
            self._handle_told(message)
        return None

    def _seconds_to_next_timer(self) -> float | None:
        moment = self._timers.next_moment()
        return None if moment is None else max(0.0, moment - self._clock.monotonic())

    def on_receive(self, message: Any) -> Any:
        """Give the message to its handler; not to be overridden.

        Raises `UnknownMessageError` if the actor has no handler for it.
        """
        handler = self._handler_of(message)
        if handler is None:
            raise UnknownMessageError(
                f"{self.name} has no handler for {type(message).__qualname__}; it handles: "
                + (", ".join(sorted(kind.__qualname__ for kind in self._handlers)) or "nothing")
            )
        return handler(message)

    def _handler_of(self, message: Any) -> Callable[[Any], Any] | None:
        for kind in type(message).__mro__:
            if kind in self._handlers:
                return cast("Callable[[Any], Any]", getattr(self, self._handlers[kind]))
        return None

    def _answer(self, message: Any, reply_to: pykka.Future[Any]) -> None:
        kind = type(message).__qualname__
        try:
            if self._given_up:
                raise ActorGivenUpError(f"{self.name} crashed too often; see the log")
            reply_to.set(self.on_receive(message))
        except Exception as error:
            self._log(trace, logging.DEBUG, f"was asked {kind}, answers with an error", error)
            reply_to.set_exception((type(error), error, error.__traceback__))
        except BaseException as error:
            # As it is, it would end the asker's thread too.
            self._log(events, logging.ERROR, f"was interrupted in its answer to {kind}", error)
            answer = AskInterruptedError(f"{self.name}, asked {kind}, raised {_text(error)}")
            answer.__cause__ = error
            reply_to.set_exception((type(answer), answer, None))
        finally:
            del reply_to  # the traceback has this frame: do not close the circle

    def _handle_told(self, message: Any) -> None:
        kind = type(message).__qualname__
        if self._given_up:
            self._log(events, logging.ERROR, f"is given up; dropped a {kind}")
            return
        handler = self._handler_of(message)
        if handler is None:
            self._log(events, logging.ERROR, f"was told {kind}, which it has no handler for")
            self._report(UnknownMessageTold(self.name, self.actor_urn, kind))
            return
        error = _caught(handler, message)
        if isinstance(error, StopRequested):
            self._log(trace, logging.DEBUG, f"was stopped while it handled {kind}")
        elif error is not None:
            self._recover(error)

    # Crashing

    def _recover(self, error: BaseException) -> None:
        """Restart in place, until it succeeds or the actor is given up."""
        failure: BaseException | None = error
        while failure is not None:
            if isinstance(failure, StopRequested):  # on_start: nothing was begun, a stop comes
                self._give_up()
                return
            count = self._count_crash()
            self._report_crash(failure, count)
            hook_error = _caught(self.on_crash, failure)
            if hook_error is not None:
                self._log(events, logging.ERROR, "failed in on_crash", hook_error)
            if count >= self.crash_limit:
                self._give_up()
                self._log(
                    events,
                    logging.CRITICAL,
                    f"IS GIVEN UP after {count} crashes within {self.crash_window}: it does "
                    "nothing any more. Stop and start the system when the cause is mended.",
                )
                self._report(ActorGivenUp(self.name, self.actor_urn, _text(failure), count))
                return
            self._pause(count)
            failure = _caught(self._restart)
            if failure is not None and self._stops():
                self._log(events, logging.ERROR, "is stopped before it could restart", failure)
                self._give_up()
                return

    def _restart(self) -> None:
        self._timers.clear()
        self.on_restart()
        self.on_start()

    def _give_up(self) -> None:
        self._given_up = True
        self._timers.clear()

    def _count_crash(self) -> int:
        now = self._clock.monotonic()
        self._crashes.append(now)
        while self._crashes[0] < now - self.crash_window.total_seconds():
            self._crashes.popleft()
        return len(self._crashes)

    def _pause(self, count: int) -> None:
        """Wait before a restart, the longer the more crashes; not once there is a stop.

        A stop of the system is seen with the message that comes next.
        """
        # The exponent is bounded, because a float is.
        pause = self.restart_pause.total_seconds() * 2.0 ** min(count - 1, 64)
        pause = min(pause, self.longest_restart_pause.total_seconds())
        end = self._clock.monotonic() + pause
        while not self._stops() and (remaining := end - self._clock.monotonic()) > 0:
            envelope = self._inbox.get(remaining)
            if envelope is None:
                return
            self._backlog.append(envelope)
            self._stop_seen = isinstance(envelope.message, _ActorStop)

    def _stops(self) -> bool:
        return self._stop_seen or self.context.stop.is_set()

    # Ending

    def _leave(self) -> list[Envelope[Any]]:
        self.actor_stopped.set()
        return [*self._backlog, *self._inbox.close()]

    def _end(self, stop: Envelope[Any] | None) -> None:
        left = self._leave()
        error = _caught(self.on_stop)
        if error is not None and not isinstance(error, StopRequested):
            self._log(events, logging.ERROR, "failed in on_stop", error)
        self._timers.clear()
        self._backlog.clear()
        if stop is not None:
            left.append(stop)
        for envelope in left:
            self._refuse(envelope)
        self._log(trace, logging.DEBUG, "has stopped")

    def _refuse(self, envelope: Envelope[Any]) -> None:
        """Answer what is left when the actor has stopped."""
        kind = type(envelope.message).__qualname__
        if isinstance(envelope.message, _ActorStop):
            if envelope.reply_to is not None:
                envelope.reply_to.set(None)
        elif envelope.reply_to is not None:
            error = pykka.ActorDeadError(f"{self.name} stopped before it handled the {kind}")
            envelope.reply_to.set_exception((type(error), error, None))
        elif not isinstance(envelope.message, TimerDue):
            self._log(trace, logging.DEBUG, f"has stopped; dropped a {kind}")

    # Telling about it

    def _report_crash(self, error: BaseException, count: int) -> None:
        self._log(events, logging.CRITICAL, f"crashed ({count})", error)
        self._report(ActorCrashed(self.name, self.actor_urn, _text(error), count))

    def _report(self, message: object) -> None:
        error = _caught(self.context.report, message)
        if error is not None:
            self._log(events, logging.ERROR, "could not report to its supervisor", error)

    def _log(
        self, logger: logging.Logger, level: int, text: str, error: BaseException | None = None
    ) -> None:
        # A filter or handler of the application's that raises must not end the actor.
        with contextlib.suppress(BaseException):
            logger.log(
                level,
                "actor %s %s",
                self.name,
                text,
                exc_info=error,
                extra={"actor": self.name, "actor_urn": self.actor_urn},
            )


def _marked_handlers(owner: type[Any]) -> dict[type[Any], str]:
    """Return the handlers that a class itself defines; raise `TypeError` if two compete."""
    handlers: dict[type[Any], str] = {}
    for name, member in vars(owner).items():
        if not isinstance(member, FunctionType):
            continue
        for kind in vars(member).get("_handles", ()):
            if kind in handlers:
                raise TypeError(
                    f"{owner.__qualname__}: both {handlers[kind]} and {name} handle "
                    f"{kind.__qualname__}; leave one"
                )
            handlers[kind] = name
    return handlers


def _caught(call: Callable[..., object], *args: Any) -> BaseException | None:
    """Call it; return what it raised, whatever that is."""
    try:
        call(*args)
    except BaseException as error:
        return error
    return None


def _text(error: BaseException) -> str:
    """Return `Type: message` in one line or few, even if the message cannot be had."""
    return "".join(traceback.format_exception_only(error)).strip()
