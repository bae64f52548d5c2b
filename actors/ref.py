"""The reference to one of our actors: Pykka's, without its holes.

A `tell` to an actor that has stopped is dropped and logged at DEBUG instead of raising;
an envelope that arrives in the instant in which the actor ends is answered, not lost; and
one can wait for the actor's thread.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal, TypeVar, cast, overload

import pykka
from pykka._envelope import Envelope

from perdure.actors.execution import Execution, Inbox, ThreadHandle
from perdure.model.logs import trace

__all__ = ["Ref"]

A = TypeVar("A", bound=pykka.Actor)


class Ref(pykka.ActorRef[A]):
    """A reference to a running actor; may be passed around and used from any thread."""

    def __init__(self, actor: pykka.Actor, execution: Execution, inbox: Inbox) -> None:
        super().__init__(cast("A", actor))
        self._execution = execution
        self._inbox = inbox
        self._thread: ThreadHandle | None = None

    def tell(self, message: Any) -> None:
        """Send a message; never blocks, never raises.

        If the actor has stopped, the message is logged at DEBUG and dropped.
        """
        try:
            self._inbox.put(Envelope(message))
        except pykka.ActorDeadError:
            trace.debug("%s has stopped; dropped a %s", self, type(message).__qualname__)

    @overload
    def ask(
        self, message: Any, *, block: Literal[False], timeout: float | None = None
    ) -> pykka.Future[Any]: ...

    @overload
    def ask(self, message: Any, *, block: Literal[True], timeout: float | None = None) -> Any: ...

    @overload
    def ask(
        self, message: Any, *, block: bool = True, timeout: float | None = None
    ) -> Any | pykka.Future[Any]: ...

    def ask(
        self, message: Any, *, block: bool = True, timeout: float | None = None
    ) -> Any | pykka.Future[Any]:
        """Send a message and wait for the answer, `timeout` seconds if given.

        With `block=False` it returns a future. Raises what the actor's handler raised;
        `UnknownMessageError` if it has none; `pykka.ActorDeadError` if it has stopped or
        stops first; `ActorGivenUpError` if it crashed too often; `pykka.Timeout`.
        An actor must not wait for an answer of its own.
        """
        future = self._execution.create_future()
        self.ask_for(future, message)
        return future.get(timeout=timeout) if block else future

    def ask_for(self, reply_to: pykka.Future[Any], message: Any) -> None:
        """Send a message whose answer, or exception, `reply_to` gets; never blocks or raises.

        It gets it in another thread, as a rule the actor's, which its methods must not hold up.
        """
        try:
            self._inbox.put(Envelope(message, reply_to=reply_to))
        except pykka.ActorDeadError as error:
            reply_to.set_exception((type(error), error, None))

    def join(self, timeout: timedelta | None = None) -> bool:
        """Wait until the actor's thread has ended; False if it has not in time.

        It ends after a `stop`, which this does not send. Raises `RuntimeError` in that
        thread itself.
        """
        if self._thread is None:
            raise RuntimeError(f"{self} has not been started")
        return self._thread.join(None if timeout is None else timeout.total_seconds())

    @property
    def has_ended(self) -> bool:
        """Whether the actor's thread has ended; it may have stopped a little before."""
        return self._thread is not None and not self._thread.is_alive()

    def _runs_on(self, thread: ThreadHandle) -> None:
        self._thread = thread
