"""The event loop of a system: one thread, in which all its coroutines take turns.

Each step of a coroutine, and of the tasks that it makes, is taken with a transaction manager
of the call's own in the place of the thread's.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pykka

from perdure.actors.execution import Execution
from perdure.model import local
from perdure.model.errors import AbortedError
from perdure.model.logs import events
from perdure.model.suspension import CoroutineCall, without_frames_of

__all__ = ["EventLoop"]

OnEnd = Callable[[object, BaseException | None], None]
"""Told, in the loop's thread, the value and the error; one of them is None."""

SHORTEST_LOOK_SECONDS = 0.002
LONGEST_LOOK_SECONDS = 0.25
"""So often, and so seldom, it looks at the futures that cannot tell when they are done."""
CANCEL_AGAIN_SECONDS = 0.1


class EventLoop:
    """Runs coroutines and watches futures in a thread of its own, from when it is made.

    Its methods may be called from any thread, and return at once, `stop` apart.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._calls: dict[CoroutineCall, _Call] = {}
        self._watched: list[_Watched] = []
        self._next_look: asyncio.TimerHandle | None = None
        self._look_seconds = SHORTEST_LOOK_SECONDS
        self._over = False
        self._ending = threading.Event()
        self._loop = execution.create_event_loop()
        self._loop.set_task_factory(self._make_task)
        try:
            self._thread = execution.start_thread(self._live, "event loop")
        except BaseException:
            self._loop.close()
            raise

    def run(self, call: CoroutineCall, on_end: OnEnd) -> None:
        """Run a call to its end, and that of every task that it has made.

        Raises `RuntimeError` once the loop was stopped.
        """
        self._soon(self._begin, call, on_end)

    def cancel(self, call: CoroutineCall) -> None:
        """Have `asyncio.CancelledError` raised in a coroutine, if it still runs."""
        # Where the loop is closed, nothing runs.
        with contextlib.suppress(RuntimeError):
            self._soon(self._cancel, call)

    def watch(self, future: Any, on_end: OnEnd, wanted: Callable[[], bool]) -> None:
        """Look at a `pykka.Future` now and then until it is done, or not `wanted` any more."""
        self._soon(self._watch, _Watched(future, on_end, wanted))

    def stop(self, grace: timedelta, longest: timedelta) -> bool:
        """Cancel what runs, leave after `grace` what does not end, and end the thread.

        Return whether that has ended within about `longest`: a coroutine that blocks it keeps
        it until it does not.
        """
        self._soon(self._shut_down, grace.total_seconds())
        if self._thread.join(longest.total_seconds()):
            return True
        # Where it has got so far that nothing blocks it, the rest takes as long as it takes.
        return self._ending.is_set() and self._thread.join((longest + grace).total_seconds())

    def _soon(self, call: Callable[..., object], *args: Any) -> None:
        # What the calling thread is about is none of the loop's business.
        self._loop.call_soon_threadsafe(call, *args, context=contextvars.Context())

    # In its own thread.

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            while not self._over and not self._execution.has_crashed:
                try:
                    self._loop.run_forever()
                # Of a callback that the application has registered; or it has called `stop`.
                except BaseException as error:
                    events.error("the event loop goes on after %r", error, exc_info=True)
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        # At the end of the interpreter no thread can be started, which that would do.
        except Exception:
            events.error("the event loop has left something behind", exc_info=True)
        finally:
            asyncio.set_event_loop(None)
            # Those of a process that has crashed end with it, and it says no word of them.
            for task in asyncio.all_tasks(self._loop) if self._execution.has_crashed else ():
                _collect_silently(task)
            self._loop.close()

    def _begin(self, call: CoroutineCall, on_end: OnEnd) -> None:
        try:
            coroutine = call.step(call.begin)
        except BaseException as error:
            on_end(None, without_frames_of(error, __name__))
            return
        running = self._calls[call] = _Call(on_end)
        running.steps = _Steps(call, running, coroutine)
        running.task = asyncio.Task(running.steps, loop=self._loop)
        running.task.add_done_callback(lambda task: self._ended(call))

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **settings: Any
    ) -> asyncio.Task[Any]:
        """Make a task; one that a coroutine of ours makes is a part of its call."""
        call = local.current()
        running = self._calls.get(call) if isinstance(call, CoroutineCall) else None
        if running is None or not inspect.iscoroutine(coroutine):
            return asyncio.Task(coroutine, loop=loop, **settings)
        assert isinstance(call, CoroutineCall)
        steps = _Steps(call, running, coroutine)
        task: asyncio.Task[Any] = asyncio.Task(steps, loop=loop, **settings)
        running.parts[task] = steps
        task.add_done_callback(lambda done: running.parts.pop(done, None))
        return task

    def _ended(self, call: CoroutineCall) -> None:
        """Tell how a call has ended, once the tasks that it has left behind have ended, too."""
        running = self._calls.get(call)
        if running is None:
            return
        if running.parts:
            for part in list(running.parts):
                part.cancel()
            waiting = self._loop.create_task(asyncio.wait(list(running.parts)))
            waiting.add_done_callback(lambda task: self._ended(call))
            return
        del self._calls[call]
        running.on_end(*running.outcome(call))

    def _cancel(self, call: CoroutineCall) -> None:
        running = self._calls.get(call)
        if running is not None and running.task is not None:
            running.task.cancel()

    # Futures that tell nobody.

    def _watch(self, watched: _Watched) -> None:
        self._watched.append(watched)
        self._look_seconds = SHORTEST_LOOK_SECONDS
        self._look()

    def _look(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        left = []
        for each in self._watched:
            if not each.wanted():
                continue
            outcome = each.outcome()
            if outcome is None:
                left.append(each)
            else:
                each.on_end(*outcome)
                self._look_seconds = SHORTEST_LOOK_SECONDS
        self._watched = left
        if left:
            self._next_look = self._loop.call_later(self._look_seconds, self._look)
            self._look_seconds = min(LONGEST_LOOK_SECONDS, 2 * self._look_seconds)

    # The end.

    def _shut_down(self, grace_seconds: float) -> None:
        self._ending.set()
        self._watched.clear()
        task = self._loop.create_task(self._cancel_all(grace_seconds))
        task.add_done_callback(lambda task: self._leave())

    async def _cancel_all(self, grace_seconds: float) -> None:
        deadline = self._loop.time() + grace_seconds
        mine = asyncio.current_task()
        while others := {task for task in asyncio.all_tasks() if task is not mine}:
            left = deadline - self._loop.time()
            if left <= 0:
                return
            # Again and again: one that goes on after the first may end at the next.
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=min(left, CANCEL_AGAIN_SECONDS))

    def _leave(self) -> None:
        """Let go of what has not ended although it was cancelled."""
        for call, running in list(self._calls.items()):
            events.warning("%r goes on although it was cancelled, and is left", call)
            del self._calls[call]
            for task, steps in [(running.task, running.steps), *running.parts.items()]:
                # Nobody is to hear of it once more when it is collected.
                _collect_silently(task)
                try:
                    assert steps is not None
                    steps.close()
                # It may answer to that with anything as well, or go on.
                except BaseException as error:
                    events.warning("%r could not be closed: %r", call, error)
            running.on_end(None, AbortedError(f"{call!r} was cancelled"))
        self._over = True
        self._loop.stop()


def _collect_silently(task: Any) -> None:
    """Let nothing be said of a task that is collected before it has ended."""
    task._log_destroy_pending = False


class _Call:
    """One call that runs."""

    def __init__(self, on_end: OnEnd) -> None:
        self.on_end = on_end
        self.task: asyncio.Task[Any] | None = None
        self.steps: _Steps | None = None
        self.parts: dict[asyncio.Task[Any], _Steps] = {}
        """The tasks that its coroutine has made, and that have not ended."""
        self.thrown_out: BaseException | None = None
        """What it raised that would end the thread."""

    def outcome(self, call: CoroutineCall) -> tuple[object, BaseException | None]:
        task = self.task
        assert task is not None
        if self.thrown_out is not None:
            return None, self.thrown_out
        if task.cancelled():
            return None, AbortedError(f"{call!r} was cancelled")
        error = task.exception()
        if error is not None:
            return None, without_frames_of(error, __name__)
        return task.result(), None


class _Steps(collections.abc.Coroutine[Any, Any, Any]):
    """A coroutine, each step of which is one of a call's."""

    def __init__(self, call: CoroutineCall, running: _Call, coroutine: Any) -> None:
        self._call = call
        self._running = running
        self._coroutine = coroutine
        self.__name__ = coroutine.__name__
        self.__qualname__ = coroutine.__qualname__

    def send(self, value: Any) -> Any:
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        self._call.step(self._coroutine.close)

    def __await__(self) -> Any:
        return self._coroutine.__await__()

    def _step(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return self._call.step(call, *args)
        # Raised on, they would end the loop with all that is in it.
        except (SystemExit, KeyboardInterrupt) as error:
            running = self._running
            if running.thrown_out is None:
                running.thrown_out = without_frames_of(error, __name__)
            if running.task is not None and running.steps is not self:
                running.task.cancel()
            raise asyncio.CancelledError from None


class _Watched:
    """A future of Pykka's, which has to be asked."""

    def __init__(self, future: Any, on_end: OnEnd, wanted: Callable[[], bool]) -> None:
        self._future = future
        self.on_end = on_end
        self.wanted = wanted
        self._timeout: pykka.Timeout | None = None

    def outcome(self) -> tuple[object, BaseException | None] | None:
        """Return the value and the error, None where there is neither yet."""
        try:
            return self._future.get(timeout=0), None
        except pykka.Timeout as error:
            # One that is its result is the same each time.
            if error is self._timeout:
                return None, without_frames_of(error, __name__)
            self._timeout = error
            return None
        except BaseException as error:
            return None, without_frames_of(error, __name__)
