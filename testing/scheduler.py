"""The scheduler: of all threads exactly one runs, and the others wait for their turn.

The one that runs holds the baton. It hands it on at the points that it passes (`pause`), when
it waits on a clock (`wait`), and when it ends; a chooser says to whom. So a run is a sequence of
choices, and the same choices make the same run. Time stands still while anybody can go on.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from perdure.testing.choosers import Calm, Chooser
from perdure.testing.errors import ProcessCrashed, SimulationError, StuckError

__all__ = ["DRIVER", "Event", "Owner", "Scheduler", "Task", "nothing_logged"]

DRIVER = "the test"
"""What the test itself is called, among the threads."""

HANGS_AFTER_SECONDS = 120.0
"""Real seconds after which a thread that does not hand on the baton has hung."""

WAITS_IN_VAIN_SECONDS = 3600.0
"""So long, in its own time, the simulation goes on for a test that does nothing but wait."""

MOST_POINTS_AT_ONCE = 200_000
"""So many points may be passed while no time passes; more are taken for a loop without end."""

MOST_ENDINGS = 10_000
"""So often a thread of a crashed process may try to go on before it is left as it is."""

_LOGGERS = ("perdure.events", "perdure.trace", "ZODB.Connection")

_TOLERANCE_SECONDS = 1e-9

_EVENTS_PER_COLLECTION = 50_000


class _Garbage:
    """Keeps Python from looking for garbage whenever it likes.

    What an object in a cycle holds would be gone at one moment in one run and at another in the
    next: a record is loaded again, and all is another story from there on.
    """

    _kept_by = 0
    _was_enabled = False

    @classmethod
    def keep(cls) -> None:
        if not cls._kept_by:
            cls._was_enabled = gc.isenabled()
            gc.disable()
        cls._kept_by += 1

    @classmethod
    def release(cls) -> None:
        cls._kept_by -= 1
        if not cls._kept_by and cls._was_enabled:
            gc.enable()


@dataclass(frozen=True, slots=True)
class Event:
    """A point that a thread passed: when, in seconds of the simulation, who, and what."""

    seconds: float
    task: str
    text: str

    def __str__(self) -> str:
        return f"{self.seconds:10.3f} s  {self.task}: {self.text}"


def _transaction_log() -> logging.Logger:
    """Return the logger that `transaction` uses in this thread."""
    return logging.getLogger(f"txn.{threading.get_ident()}")


class Owner:
    """What a thread belongs to: a simulated process, say."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gone = False
        """Whether it has crashed: its threads are to end."""
        self.suspended = False
        """Whether its threads get no turn."""
        self.until: float | None = None
        """When it goes on by itself, where it is suspended until then."""

    def suspend(self, until: float | None = None) -> None:
        """Give its threads no turn until then, or until it is resumed."""
        self.suspended, self.until = True, until

    def resume(self) -> None:
        """Give them turns again."""
        self.suspended, self.until = False, None


class _Quiet(logging.Filter):
    """Lets the threads of a crashed process say nothing while they end."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def filter(self, record: logging.LogRecord) -> bool:
        task = self._scheduler.me()
        return task is None or not task.is_gone


def is_logging() -> bool:
    """Tell whether the calling thread has the lock of a log's handler.

    A text that is logged may load what it names. Whoever gave the baton away then would keep all
    others waiting that log something, and not for their turn.
    """
    handlers = [reference() for reference in logging._handlerList]  # type: ignore[attr-defined]
    locks = [handler.lock for handler in handlers if handler is not None]
    return any(lock is not None and lock._is_owned() for lock in locks)


@contextlib.contextmanager
def nothing_logged() -> Iterator[None]:
    """Let Perdure and ZODB log nothing: what hundreds of runs say hides what one has to say."""

    def refuse(record: logging.LogRecord) -> bool:
        return False

    for name in _LOGGERS:
        logging.getLogger(name).addFilter(refuse)
    try:
        yield
    finally:
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(refuse)


class _State(Enum):
    READY = "can go on"
    WAITING = "waits"
    IDLE = "lets the others go on"
    ENDED = "has ended"


class Task:
    """One thread of the simulation, as the scheduler knows it."""

    def __init__(self, number: int, name: str, owner: Owner | None) -> None:
        self.number = number
        self.name = name
        self.owner = owner
        self.state = _State.READY
        self.deadline: float | None = None
        self.condition: threading.Condition | None = None
        self.turn = threading.Semaphore(0)
        self.thread: threading.Thread | None = None
        self.endings = 0
        self.error: Exception | None = None
        self.joined = threading.Condition()

    def __repr__(self) -> str:
        until = "" if self.deadline is None else f" until {self.deadline:.3f} s"
        still = ", and stands still" if self.is_suspended else ""
        return f"<{self.name}: {self.state.value}{until}{still}>"

    @property
    def ended(self) -> bool:
        return self.state is _State.ENDED

    @property
    def is_gone(self) -> bool:
        return self.owner is not None and self.owner.gone

    @property
    def is_suspended(self) -> bool:
        return self.owner is not None and self.owner.suspended and not self.owner.gone


class Scheduler:
    """Owns the baton, the time and the trace of one simulation.

    The thread that makes it is the *driver*: the test, which takes part as the others do. A
    thread that was not started by `start_thread` is not part of the simulation: points mean
    nothing to it, and it must not wait on a clock of it.
    """

    def __init__(
        self, chooser: Chooser | None = None, points: Collection[str] | None = None
    ) -> None:
        self.chooser: Chooser = chooser or Calm()
        self.points = points
        """At which kinds of points the baton may be handed on; None: at all."""
        self.seconds = 0.0
        self.trace: list[Event] = []
        self.choices = 0
        """How often the chooser was asked."""
        self.turns: Counter[str] = Counter()
        """How often the threads of each owner were given the baton, by its name.

        For the test, how often it began or ended something else as well.
        """
        self._tasks: list[Task] = []
        self._by_thread: dict[int, Task] = {}
        self._waiters: dict[threading.Condition, list[Task]] = {}
        self._limit: float | None = None
        self._points_left: int | None = None
        self._points_since = 0.0, 0
        self._ending: Task | None = None
        self._waits_since = 0.0
        self._standing: list[Owner] = []
        self._numbers = 0
        self._closed = False
        _Garbage.keep()
        self._quiet = _Quiet(self)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._quiet)
        self.driver = self._add(DRIVER, None)
        self.driver.thread = threading.current_thread()
        self._join(self.driver)
        self._current = self.driver

    # What a thread calls.

    def me(self) -> Task | None:
        """Return the calling thread's task, None where it is not part of the simulation."""
        return self._by_thread.get(threading.get_ident())

    def pause(self, kind: str, about: str = "") -> None:
        """Pass a point: note it, and let another go on if the chooser says so.

        Raises `ProcessCrashed` where the thread's process has crashed.
        """
        task = self.me()
        if task is None:
            return
        self._note(task, f"{kind} {about}".rstrip())
        since, passed = self._points_since
        self._points_since = self.seconds, passed + 1 if since == self.seconds else 1
        if task is self.driver and kind == "begin":
            self._waits_since = self.seconds
        self._check(task)
        if (self.points is None or kind in self.points) and not is_logging():
            if self._points_left is not None and task is not self.driver:
                self._points_left -= 1
            self._hand_on(task)
            self._check(task)

    def stand_still(self, seconds: float) -> None:
        """Let the process that the calling thread belongs to get no turn for so long."""
        task = self.me()
        if task is None or task.owner is None:
            return
        self._note(task, f"{task.owner.name} stands still for {seconds:g} s")
        task.owner.suspend(self.seconds + seconds)
        self._standing.append(task.owner)
        # Else it does so at its next point.
        if not is_logging():
            self._hand_on(task)
        self._check(task)

    @property
    def is_driver(self) -> bool:
        """Whether the calling thread is the test itself."""
        return self.me() is self.driver

    @property
    def who(self) -> str:
        """The name of the calling thread."""
        task = self.me()
        return threading.current_thread().name if task is None else task.name

    def note(self, text: str) -> None:
        """Note something in the trace; nobody else gets a turn."""
        task = self.me()
        if task is not None:
            self._note(task, text)

    def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
        """Wait as `perdure.model.Clock.wait` does, in seconds of the simulation."""
        task = self.me()
        if task is None:
            raise SimulationError(
                f"the thread {threading.current_thread().name!r} is not part of the simulation, "
                "and cannot wait on its clock: let the test or a job do what it does"
            )
        self._check(task)
        if timeout_seconds is not None and timeout_seconds <= 0:
            return
        self._hear(condition)
        waiters = self._waiters.setdefault(condition, [])
        waiters.append(task)
        task.condition = condition
        task.deadline = None if timeout_seconds is None else self.seconds + timeout_seconds
        task.state = _State.WAITING
        condition.release()
        try:
            self._hand_on(task)
        finally:
            if task.condition is not None:
                # It goes on to end, and must not be woken once it has ended.
                self._wake(task)
            if not condition.acquire(blocking=False):
                raise SimulationError(f"{task} needs a lock that another thread has kept")
        self._check(task)

    def let_others_go_on(self, until: float | None = None, points: int | None = None) -> None:
        """Let the others go on until none can; the driver only.

        With `until`, time passes to that moment, and what it brings is done in order. With
        `points`, the driver goes on after that many points, whoever could go on.
        """
        task = self.me()
        if task is not self.driver:
            raise SimulationError("only the test itself can let time pass")
        if points is not None and points <= 0:
            return
        self.turns[DRIVER] += 1
        self._limit = self.seconds if until is None else until
        self._points_left = points
        task.state = _State.IDLE
        self._hand_on(task)
        self._points_left = None
        self._check(task)

    @contextlib.contextmanager
    def acting(self, owner: Owner) -> Iterator[None]:
        """Let the test take part as one of a process's threads, and share its fate."""
        if self.me() is not self.driver:
            yield
            return
        self._waits_since = self.seconds
        before, self.driver.owner = self.driver.owner, owner
        self.turns[DRIVER] += 1
        try:
            yield
        finally:
            self.turns[DRIVER] += 1
            self.driver.owner = before
            if owner.gone:
                self.end(owner)

    def start_thread(self, target: Callable[[], None], name: str, owner: Owner | None) -> Task:
        """Run `target` in a thread of the simulation, from its first turn on."""
        task = self._add(name, owner)
        task.thread = threading.Thread(
            target=self._live, args=(task, target), name=f"simulated {name}", daemon=True
        )
        task.thread.start()
        return task

    # What the test and the simulated processes ask.

    def next_moment(self) -> float | None:
        """Return when the next wait of somebody ends, None if none ever does."""
        moments = [task.deadline for task in self._sleepers()]
        moments += [owner.until for owner in self._standing if not owner.gone]
        return min((each for each in moments if each is not None), default=None)

    def end(self, owner: Owner) -> None:
        """Let a process crash: end its threads, the calling one at the next point that it passes.

        Nobody else gets a turn before that is done.
        """
        me = self.me()
        if me is None:
            raise SimulationError("only a thread of the simulation can let a process crash")
        owner.gone = True
        if me.is_gone:
            return
        self._ending = me
        while gone := self._gone():
            self._hand_on(me, to=gone[0])
        self._ending = None

    def close(self) -> list[str]:
        """Forget the simulation; return the names of the threads that have not ended."""
        if not self._closed:
            _Garbage.release()
        self._closed = True
        left = [task.name for task in self._tasks if task is not self.driver and not task.ended]
        self._leave()
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._quiet)
        return left

    def story(self, last: int = 40, until: int | None = None) -> str:
        """Return the last events of the trace, or of its first `until` ones, a line each."""
        return "\n".join(map(str, self.trace[:until][-last:]))

    # Turns.

    def _add(self, name: str, owner: Owner | None) -> Task:
        task = Task(self._numbers, name, owner)
        self._numbers += 1
        self._tasks = [each for each in self._tasks if not each.ended] + [task]
        return task

    def _note(self, task: Task, text: str) -> None:
        if not task.is_gone:
            self.trace.append(Event(self.seconds, task.name, text))
            if not len(self.trace) % _EVENTS_PER_COLLECTION:
                gc.collect()

    def _check(self, task: Task) -> None:
        if task.error is not None:
            error, task.error = task.error, None
            raise error
        if not task.is_gone:
            return
        task.endings += 1
        if task.endings > MOST_ENDINGS and task is not self.driver:
            self._end(task)
            threading.Event().wait()  # for ever: whatever it does, it does not do it again
        raise ProcessCrashed(task.owner.name if task.owner else "")

    def _live(self, task: Task, target: Callable[[], None]) -> None:
        self._join(task)
        task.turn.acquire()
        try:
            self._check(task)
            target()
        except ProcessCrashed:
            pass
        finally:
            self._leave()
            self._end(task)

    def _join(self, task: Task) -> None:
        self._by_thread[threading.get_ident()] = task
        _transaction_log().addFilter(self._quiet)

    def _leave(self) -> None:
        self._by_thread.pop(threading.get_ident(), None)
        _transaction_log().removeFilter(self._quiet)

    def _end(self, task: Task) -> None:
        task.state = _State.ENDED
        with task.joined:
            task.joined.notify_all()
        if not self._closed:
            self._give(self._pick(task))

    def _give(self, task: Task) -> None:
        self._current = task
        # Whoever the test acts for, its turns are its own.
        self.turns[DRIVER if task is self.driver or task.owner is None else task.owner.name] += 1
        task.turn.release()

    def _hand_on(self, task: Task, to: Task | None = None) -> None:
        """Let whoever is next go on, and come back at one's own turn."""
        chosen = to or self._pick(task)
        if chosen is task:
            return
        self._give(chosen)
        if task is not self.driver:
            task.turn.acquire()
        elif not task.turn.acquire(timeout=HANGS_AFTER_SECONDS):
            raise SimulationError(
                f"{self._current} has not handed on the baton for {HANGS_AFTER_SECONDS} real "
                f"seconds; it may wait for something outside of the simulation:\n{self._stacks()}"
            )

    def _pick(self, current: Task) -> Task:
        if current.is_gone and not current.ended:
            return current
        while True:
            if gone := self._gone():
                return gone[0]
            if self._ending is not None:
                return self._ending
            if self._points_left is not None and self._points_left <= 0:
                self.driver.state = _State.READY
                return self.driver
            if self._points_since[1] > MOST_POINTS_AT_ONCE:
                self._points_since = self.seconds, 0
                self._break_off("it goes on and on, and no time passes")
                return self.driver
            self._wake_due()
            ready = [
                task
                for task in self._tasks
                if task.state is _State.READY and not task.is_suspended
            ]
            if ready:
                goes_on = current in ready
                if goes_on:
                    ready.remove(current)
                    ready.insert(0, current)
                if len(ready) == 1:
                    return ready[0]
                self.choices += 1
                return ready[self.chooser.choose([task.name for task in ready], goes_on)]
            if self._let_time_pass():
                return self.driver

    def _gone(self) -> list[Task]:
        return [task for task in self._tasks if task.is_gone and not task.ended]

    def _let_time_pass(self) -> bool:
        """Go to the next moment at which something happens; tell whether the driver goes on."""
        driver = self.driver
        moment = self.next_moment()
        if driver.state is _State.IDLE:
            assert self._limit is not None
            if moment is None or moment > self._limit:
                self.seconds = self._waits_since = max(self.seconds, self._limit)
                driver.state = _State.READY
                return True
        elif moment is None or moment - self._waits_since > WAITS_IN_VAIN_SECONDS:
            what = "nobody can go on" if moment is None else "the test waits for what never comes"
            self._break_off(what)
            return True
        if moment is not None:
            self.seconds = max(self.seconds, moment)
        return False

    def _break_off(self, what: str) -> None:
        """Let the driver go on with an error."""
        tasks = "\n".join(f"  {task!r}" for task in self._tasks)
        self.driver.error = StuckError(f"{what}:\n{tasks}\nafter\n{self.story()}")
        self._wake(self.driver)

    def _sleepers(self) -> Iterator[Task]:
        return (
            task
            for task in self._tasks
            if task.state is _State.WAITING and task.deadline is not None and not task.is_suspended
        )

    def _wake_due(self) -> None:
        now = self.seconds + _TOLERANCE_SECONDS
        for owner in self._standing:
            if owner.until is not None and owner.until <= now:
                owner.resume()
        if self._standing:
            self._standing = [each for each in self._standing if each.until is not None]
        for task in [*self._sleepers()]:
            if task.deadline is not None and task.deadline <= now:
                self._wake(task)

    def _wake(self, task: Task) -> None:
        if task.condition is not None:
            waiters = self._waiters[task.condition]
            waiters.remove(task)
            if not waiters:
                del self._waiters[task.condition]
        task.condition = task.deadline = None
        task.state = _State.READY

    # Notifications.

    def _hear(self, condition: threading.Condition) -> None:
        """Make sure that who waits for a condition here is woken when it is notified."""
        if "notify" not in vars(condition):
            hooked: Any = condition
            hooked.notify_all = functools.partial(self._notified, condition, condition.notify_all)
            hooked.notify = functools.partial(self._notified, condition, condition.notify)

    def _notified(
        self, condition: threading.Condition, notify: Callable[..., None], count: int | None = None
    ) -> None:
        if notify.__name__ == "notify_all":
            notify()
            number = None
        else:
            number = 1 if count is None else count
            notify(number)
        for task in self._waiters.get(condition, [])[:number]:
            self._wake(task)

    def _stacks(self) -> str:
        frames = sys._current_frames()
        found = []
        for task in self._tasks:
            ident = None if task.thread is None else task.thread.ident
            if ident in frames and not task.ended:
                stack = "".join(traceback.format_stack(frames[ident]))
                found.append(f"{task!r}\n{stack}")
        return "\n".join(found)
