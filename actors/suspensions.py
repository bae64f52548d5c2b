"""The jobs of a system that wait without a worker, and what they wait for."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from perdure.actors.context import Activity, Directory
from perdure.actors.execution import Execution
from perdure.actors.messages import Claimed, JobResumable
from perdure.model.clock import Clock, StopSignal
from perdure.model.errors import AbortedError, StopRequested
from perdure.model.logs import events
from perdure.model.suspension import (
    CoroutineCall,
    Ended,
    Pause,
    Suspension,
    outcome_of_future,
)

if TYPE_CHECKING:
    from perdure.actors.eventloop import EventLoop

__all__ = ["Suspensions"]


@dataclass(eq=False)
class _Entry:
    claim: Claimed
    role: str
    suspension: Suspension
    due: float
    ended: Ended | None = None


class Suspensions:
    """Keeps each suspended job from when its worker leaves it until one takes it up again.

    The messages about them carry claims alone. A claim that is here and has not ended is to be
    left alone; one that has is to be given to a worker; so whoever has missed a message finds
    out by asking. Each counts as activity of the system. Safe to use from any thread.
    """

    def __init__(
        self,
        clock: Clock,
        execution: Execution,
        stop: StopSignal,
        activity: Activity,
        directory: Directory,
    ) -> None:
        self._clock = clock
        self._execution = execution
        self._stop = stop
        self._activity = activity
        self._directory = directory
        self._lock = threading.Lock()
        self._entries: dict[Claimed, _Entry] = {}
        self._event_loop: EventLoop | None = None
        self._closed = False

    def suspend(self, claim: Claimed, role: str, suspension: Suspension) -> None:
        """Take over what a job waits for; tell the actor of that role when it has ended.

        Raises `StopRequested` where the system no longer waits for such.
        """
        after = suspension.after.total_seconds() if isinstance(suspension, Pause) else 0.0
        entry = _Entry(claim, role, suspension, self._clock.monotonic() + after)
        with self._lock:
            refused = self._closed or (isinstance(suspension, Pause) and self._stop.is_set())
            if not refused:
                self._entries[claim] = entry
                self._activity.begin()
        if refused:
            suspension.close()
            raise StopRequested(f"the system stops: job {claim.ref} is left as it is")
        try:
            self._begin(entry)
        except BaseException:
            self._drop(entry)
            suspension.close()
            raise

    def _begin(self, entry: _Entry) -> None:
        suspension = entry.suspension

        def on_end(value: object, error: BaseException | None) -> None:
            self._end(entry, value, error)

        if isinstance(suspension, CoroutineCall):
            self._loop().run(suspension, on_end)
        elif isinstance(suspension, Pause):
            # The agent counts the time.
            return
        elif isinstance(suspension.future, concurrent.futures.Future):
            suspension.future.add_done_callback(lambda done: on_end(*outcome_of_future(done)))
        else:
            self._loop().watch(suspension.future, on_end, lambda: entry.ended is None)

    def _loop(self) -> EventLoop:
        with self._lock:
            if self._closed:
                raise StopRequested("the system stops: no event loop is started any more")
            if self._event_loop is None:
                # The import of asyncio takes longer than a whole start, and few need it.
                from perdure.actors.eventloop import EventLoop

                self._event_loop = EventLoop(self._execution)
            return self._event_loop

    def _end(self, entry: _Entry, value: object, error: BaseException | None) -> None:
        with self._lock:
            wanted = self._entries.get(entry.claim) is entry and entry.ended is None
            if wanted:
                entry.ended = Ended(entry.suspension, value, error)
        if not wanted:
            entry.suspension.close()
        elif self._directory.get(entry.role) is None:
            # Its agent was removed: nobody asks any more.
            self._drop(entry)
        else:
            self._directory.tell(entry.role, JobResumable(entry.claim))

    def _drop(self, entry: _Entry) -> None:
        """Forget a job, and let go of what it waits for: a coroutine that runs, when it ends."""
        with self._lock:
            if self._entries.get(entry.claim) is not entry:
                # Somebody else has it.
                return
            del self._entries[entry.claim]
            runs = isinstance(entry.suspension, CoroutineCall) and entry.ended is None
            entry.ended = Ended(entry.suspension)
        self._activity.end()
        if not runs:
            entry.suspension.close()

    # For agents and workers.

    def is_suspended(self, claim: Claimed) -> bool:
        """Tell whether no worker has that job, though it has begun."""
        with self._lock:
            return claim in self._entries

    def is_waiting(self, claim: Claimed) -> bool:
        """Tell whether what that job waits for has not ended."""
        with self._lock:
            entry = self._entries.get(claim)
            return entry is not None and entry.ended is None

    def is_light(self, claim: Claimed) -> bool:
        """Tell whether that job needs a worker for an instant only; so it said when it began."""
        with self._lock:
            entry = self._entries.get(claim)
            return claim.asynchronous if entry is None else entry.suspension.light

    def pause_seconds(self, claim: Claimed) -> float | None:
        """Return how long that job is to wait for its retry; None where it waits for nothing."""
        with self._lock:
            entry = self._entries.get(claim)
            if entry is None or entry.ended or not isinstance(entry.suspension, Pause):
                return None
            return max(0.0, entry.due - self._clock.monotonic())

    def end_pause(self, claim: Claimed) -> None:
        """Let the retry of that job begin, if it waits for that."""
        with self._lock:
            entry = self._entries.get(claim)
            if entry is not None and not entry.ended and isinstance(entry.suspension, Pause):
                entry.ended = Ended(entry.suspension)

    def of(self, role: str) -> list[Claimed]:
        """Return the claims of an agent that are here."""
        with self._lock:
            return [entry.claim for entry in self._entries.values() if entry.role == role]

    def take(self, claim: Claimed) -> Ended | None:
        """Return how that ended which the job waited for; it is the caller's then.

        None where it waits for nothing, or has not ended.
        """
        with self._lock:
            entry = self._entries.get(claim)
            if entry is None or entry.ended is None:
                return None
            del self._entries[claim]
        self._activity.end()
        return entry.ended

    # For the dispatcher, and for whoever stops the system.

    def leave_all_but(self, role: str, held: Collection[Claimed]) -> None:
        """Cancel what jobs wait for that an agent has lost; nobody would take the results."""
        with self._lock:
            lost = [
                entry
                for entry in self._entries.values()
                if entry.role == role and entry.ended is None and entry.claim not in held
            ]
            loop = self._event_loop
        for entry in lost:
            if isinstance(entry.suspension, CoroutineCall):
                if loop is not None:
                    loop.cancel(entry.suspension)
            else:
                self._end(entry, None, AbortedError(f"job {entry.claim.ref} was taken away"))

    def end_pauses(self) -> None:
        """Leave those that wait for a retry: the stop signal is set, and it does not come."""
        with self._lock:
            paused = [
                entry for entry in self._entries.values() if isinstance(entry.suspension, Pause)
            ]
        for entry in paused:
            self._drop(entry)

    def close(self, grace: timedelta, longest: timedelta) -> None:
        """Leave all there is; cancel coroutines, and end the event loop. May be repeated.

        What is left after `grace` is let go of; a coroutine that blocks the loop is waited for
        as long as about `longest`.
        """
        with self._lock:
            self._closed = True
            entries = list(self._entries.values())
            loop, self._event_loop = self._event_loop, None
        for entry in entries:
            self._drop(entry)
        if loop is not None and not loop.stop(grace, longest):
            events.warning("a coroutine blocks the event loop, which has not ended yet")
