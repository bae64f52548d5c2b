"""A Hypothesis state machine for the runtime: whatever befalls it, in whatever order.

Importing this module needs Hypothesis: install ``perdure[testing]``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from transaction.interfaces import TransientError
from ZODB.POSException import ConflictError

from perdure.actors.messages import Resize
from perdure.model.errors import (
    BadStatusError,
    CallableNotFoundError,
    JobNotFoundError,
    PerdureError,
)
from perdure.model.job import Job
from perdure.model.packing import pack
from perdure.model.queues import get_queue
from perdure.model.ref import JobRef, find_job
from perdure.model.status import Status
from perdure.testing import callables, strategies
from perdure.testing.books import Books
from perdure.testing.callables import LEDGER, Ledger
from perdure.testing.choosers import Chooser, Seeded
from perdure.testing.errors import ProcessCrashed, SimulationError
from perdure.testing.plans import Plan
from perdure.testing.process import Process
from perdure.testing.storage import Call, Fault
from perdure.testing.world import World

__all__ = ["RuntimeMachine"]

Turns = Sequence[int] | int

_indexes = st.integers(0, 5)
"""Which one is meant; by the remainder, so that any number means one."""

_points = st.integers(0, 150)
"""How far the others go on after a rule: one that lets them may be left out of a whole run."""

GROUPED = ("succeed", "succeed", "contend", "contend", "fail", "return")
"""The kinds of jobs that are put to be run in groups, the usual ones most often."""

_plans = strategies.plans(("narrow", "wide"))


class _Drawn:
    """Chooses as it was told last: as a list says, or by a seed; then lets each go on."""

    def __init__(self) -> None:
        self._left: list[int] = []
        self._then: Chooser | None = None

    def follow(self, turns: Turns) -> None:
        """Follow these from now on."""
        self._left = [] if isinstance(turns, int) else list(turns)
        self._then = Seeded(turns) if isinstance(turns, int) else None

    def choose(self, names: Sequence[str], goes_on: bool, /) -> int:
        if self._left:
            return min(self._left.pop(0), len(names) - 1)
        return 0 if self._then is None else self._then.choose(names, goes_on)


class RuntimeMachine(RuleBasedStateMachine):
    """Puts jobs of every kind into simulated processes, and lets everything befall them.

    Its rules put jobs, let the threads take turns in any order, or a few of them a part of their
    way, let time pass, crash, stop, start, suspend and resume processes, lose one for good, cut
    their connections, break a call of their storage, let them stand still or crash in the midst
    of a commit, let them claim in the same moment, change clocks and sizes, cancel and retry jobs,
    add callbacks, deploy code in which a callable has vanished, and pack. After each rule
    `perdure.model.check` has to find nothing, and no commit may exceed a quota or do an effect
    twice. At the end all is restored and comes to rest, and the books have to balance: every
    acknowledged job has ended, once, with a result that it may have; every effect is there once,
    or not at all where the job failed; every callback has run once.

    Subclass it to add jobs of your own, with rules that call `put`, and invariants; override
    `set_up` to prepare the database, and `balance` to say what must hold at the end. Its
    ``TestCase`` is a `unittest.TestCase`, which pytest finds. A rule may use `world`, and do
    whatever may fail, since the process may crash amid it, inside `attempt`.
    """

    PROCESSES: Mapping[str, str] = {"anna": "host", "bert": "host", "carl": "another host"}
    """The processes, and the host of each. The first one is started at first."""

    QUOTAS: Mapping[str, int] = {"narrow": 1, "wide": 2}
    """The quotas, and their sizes at first."""

    SETTINGS: Mapping[str, Any] = {}
    """Settings of the processes, as for `perdure.actors.start`."""

    LOSES_PROCESSES = True
    """Whether all but one process may be lost for good.

    False where its siblings would not bury one within `REST_LIMIT`: those on other hosts do that
    when they poll.
    """

    REST_LIMIT = timedelta(hours=2)
    """How much time it may take at the end until there is nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        # An error may be handled around us, which is no error of this run.
        self._around = sys.exc_info()[1]
        self._turns = _Drawn()
        self._vanished: Any = None
        self._armed: dict[str, list[Any]] = {}
        self._cut: set[str] = set()
        self._lost: set[str] = set()
        self._number = 0
        self.world = World(chooser=self._turns)
        self.books = Books(self.world)
        try:
            self._begin()
        except BaseException:
            self.world.close()
            raise

    def _begin(self) -> None:
        for name, host in self.PROCESSES.items():
            process = self.world.process(name, host=host, start=False, **self.SETTINGS)
            process.on_call = self._breaker(name)
        first = self.world.processes[0]
        first.start()
        with first.transaction() as connection:
            connection.root()[LEDGER] = Ledger()
            quotas = get_queue(connection, "").quotas
            for name, size in self.QUOTAS.items():
                quotas.create(name, size)
            self.set_up(connection)

    def set_up(self, connection: Any) -> None:
        """Override: prepare the database, in a transaction that is committed afterwards."""

    # What rules use.

    @property
    def running(self) -> list[Process]:
        """The processes that run, suspended ones included."""
        return [process for process in self.world.processes if process.is_running]

    @property
    def awake(self) -> list[Process]:
        """The processes that run and are not suspended; the database may be away from them."""
        return [process for process in self.running if not process.is_suspended]

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Let what is in the with statement fail as it may while things go wrong.

        That is: for a crash, a conflict, a lost connection, or what a disk does.
        """
        try:
            yield
        except ProcessCrashed:
            pass
        except (TransientError, OSError, TimeoutError):
            pass

    def put(self, make: Callable[[Any], Job], at: int = 0, **entry: Any) -> JobRef | None:
        """Put a job, through one of the processes that are awake; None where that failed.

        :param make: called with the connection; returns the job, and may change the database, too.
        :param at: which process, counted round; a number from 0 on.
        :param entry: what to note of the job in ``books.entries``.

        Where the process crashed, or the database was lost, it is seen on the disk whether the
        job is there. Raises `SimulationError` where no process is awake.
        """
        if not self.awake:
            raise SimulationError("no process is awake: give the rule a precondition")
        process = self.awake[at % len(self.awake)]
        job = None
        done = False
        with self.attempt():
            with process.transaction() as connection:
                job = get_queue(connection, "").put(make(connection))
                ref = job.ref
            done = True
        if job is None:
            return None
        if not done and not self._is_there(ref):
            return None
        self.world.acknowledged.append(ref)
        self.books.entries[ref] = {"retries": 0, "cancelled": False, **entry}
        return ref

    def put_and_crash(
        self,
        make: Callable[[Any], Job],
        at: int = 0,
        *,
        commits: int = 1,
        after: bool = True,
        turns: Turns = (),
        **entry: Any,
    ) -> JobRef | None:
        """Put a job, and let its process crash at a commit that it makes while it works for it.

        For a rule of yours: in a job that makes several commits the crash makes a difference
        between two of them, and by chance it is seldom there.

        :param make: as `put` takes it, and `at` and `entry`.
        :param commits: at which commit after the put, of all that the process makes; from 1 on.
        :param after: whether the commit has taken place.
        :param turns: which thread goes on where several could.
        :return: as `put` does.
        """
        if not isinstance(commits, int) or commits < 1:
            raise SimulationError(f"commits is a whole number of 1 or more, not {commits!r}")
        if not self.awake:
            raise SimulationError("no process is awake: give the rule a precondition")
        process = self.awake[at % len(self.awake)]
        ref = self.put(make, at, **entry)
        self._armed[process.name] = [commits, Fault.crash(after=after), "finish"]
        self.advance(turns, 0)
        return ref

    def _is_there(self, ref: JobRef) -> bool:
        with self.world.look() as connection:
            try:
                find_job(connection, ref)
            except JobNotFoundError:
                return False
        return True

    def balance(self) -> list[str]:
        """Return what does not hold at the end, a sentence each; override to add to it.

        Everything is at rest then, and all processes run that are not lost. Use `world` to look.
        """
        return self.books.balance()

    # Jobs.

    @initialize(plans=st.lists(_plans, min_size=1, max_size=4), more=st.integers(0, 2))
    def begin_with(self, plans: list[Plan], more: int) -> None:
        for process in self.world.processes[1 : 1 + more]:
            process.start()
        for plan in plans:
            self._put(plan, 0)

    @precondition(lambda self: self.awake)
    @rule(plan=_plans, at=_indexes, turns=strategies.turns(), points=_points)
    def put_job(self, plan: Plan, at: int, turns: Turns = (), points: int = 0) -> None:
        self._put(plan, at)
        self.step(turns, points)

    @precondition(lambda self: self.awake)
    @rule(
        plans=st.lists(_plans, min_size=1, max_size=4),
        at=_indexes,
        turns=strategies.turns(),
        points=_points,
    )
    def put_jobs(self, plans: list[Plan], at: int, turns: Turns = (), points: int = 0) -> None:
        for plan in plans:
            if self.awake:
                self._put(plan, at)
        self.step(turns, points)

    @precondition(lambda self: self.awake)
    @rule(
        kinds=st.lists(st.sampled_from(GROUPED), min_size=2, max_size=6),
        callbacks=st.sampled_from([(), ("always", "later")]),
        at=_indexes,
        turns=strategies.turns(),
        points=_points,
    )
    def put_group(
        self,
        kinds: list[str],
        callbacks: tuple[str, ...],
        at: int,
        turns: Turns = (),
        points: int = 0,
    ) -> None:
        """Put jobs that may be run in groups, several for each commit."""
        plans = [Plan(kind, callbacks=callbacks, transactional=True) for kind in kinds]
        self.put_jobs(plans, at, turns, points)

    def _put(self, plan: Plan, at: int) -> None:
        if plan.kind == "vanish" and self._vanished is not None:
            return
        self._number += 1
        key = f"job {self._number}"

        def make(connection: Any) -> Job:
            return plan.make(connection.root()[LEDGER], key, self.world.now)

        self.put(make, at, plan=plan)

    def _pick(self, which: int) -> tuple[JobRef, dict[str, Any]]:
        return list(self.books.entries.items())[-1 - which % len(self.books.entries)]

    def _with_job(self, ref: JobRef, at: int, act: Callable[[Job], object]) -> None:
        process = self.awake[at % len(self.awake)]
        # As an operator is told who comes too late, or to code that is not here.
        refused = contextlib.suppress(BadStatusError, CallableNotFoundError)
        with self.attempt(), refused, process.transaction() as connection:
            act(find_job(connection, ref))

    @precondition(lambda self: self.awake and self.books.entries)
    @rule(which=_indexes, at=_indexes)
    def cancel(self, which: int, at: int) -> None:
        ref, entry = self._pick(which)
        self._with_job(ref, at, lambda job: job.cancel())
        if self.world.status(ref) in (Status.CALLBACKS, Status.COMPLETED):
            if "it was cancelled" in str(self.world.result(ref)):
                entry["cancelled"] = True

    @precondition(lambda self: self.awake and self.books.entries)
    @rule(which=_indexes, at=_indexes)
    def retry(self, which: int, at: int) -> None:
        ref, entry = self._pick(which)
        before = self.world.status(ref)
        self._with_job(ref, at, lambda job: job.retry())
        if before is Status.COMPLETED and self.world.status(ref) is not Status.COMPLETED:
            entry["retries"] += 1
            entry["cancelled"] = False

    @precondition(lambda self: self.awake and self.books.entries)
    @rule(which=_indexes, at=_indexes)
    def add_callback(self, which: int, at: int) -> None:
        ref, _ = self._pick(which)
        self._number += 1
        key = f"late {self._number}"

        def add(job: Job) -> None:
            effect = job._p_jar.root()[LEDGER].effect(key)
            callback = job.add_callback(Job(callables.hear, effect))
            # One that comes after the end is no more found with its job.
            job._p_jar.add(callback)
            effect.late = callback.ref

        self._with_job(ref, at, add)

    # Turns, and time.

    @rule(turns=strategies.turns(), points=st.integers(1, 150))
    def step(self, turns: Turns, points: int) -> None:
        self._turns.follow(turns)
        self.world.step(points)

    @rule(turns=strategies.turns())
    def run_until_idle(self, turns: Turns) -> None:
        self._turns.follow(turns)
        self.world.run_until_idle()

    @rule(turns=strategies.turns(), seconds=st.sampled_from([1, 5, 11, 31, 61, 150]))
    def advance(self, turns: Turns, seconds: int) -> None:
        self._turns.follow(turns)
        self.world.advance(timedelta(seconds=seconds))

    @precondition(lambda self: self.running)
    @rule(at=_indexes, seconds=st.sampled_from([-100, -5, 5, 100]))
    def jump_clock(self, at: int, seconds: int) -> None:
        self.running[at % len(self.running)].clock.jump(timedelta(seconds=seconds))
        self.books.troubles.add("clock")

    # What befalls processes.

    @precondition(lambda self: self.running)
    @rule(at=_indexes, turns=strategies.turns(), points=st.integers(0, 80))
    def crash(self, at: int, turns: Turns = (), points: int = 0) -> None:
        process = self.running[at % len(self.running)]
        self.step(turns, points)
        self.books.troubles.add("crash")
        process.crash()
        self._cut.discard(process.name)

    @precondition(lambda self: self.awake)
    @rule(at=_indexes, drain=st.sampled_from([0, 10]))
    def stop(self, at: int, drain: int) -> None:
        self._stop(self.awake[at % len(self.awake)], drain)

    def _stop(self, process: Process, drain: int) -> None:
        self.books.troubles.add("stop")
        with self.attempt():
            process.stop(timedelta(seconds=drain))
        process.crash()
        self._cut.discard(process.name)

    @precondition(lambda self: self._may_lose and not self._lost)
    @rule(at=_indexes)
    def lose(self, at: int) -> None:
        """Let a process crash, and never be back: its siblings have to see to what it leaves.

        Here that befalls one only: with too few of them, little happens.
        """
        process = self._staying[at % len(self._staying)]
        if process.is_running:
            self.crash(self.running.index(process))
        self._lose(process)

    def _lose(self, process: Process) -> None:
        if self._may_lose:
            self._lost.add(process.name)

    @property
    def _may_lose(self) -> bool:
        return self.LOSES_PROCESSES and len(self._staying) > 1

    @property
    def _staying(self) -> list[Process]:
        """The processes that are not lost for good, whether they run or not."""
        return [process for process in self.world.processes if process.name not in self._lost]

    @precondition(lambda self: not all(process.is_running for process in self._staying))
    @rule(at=_indexes)
    def start(self, at: int) -> None:
        idle = [process for process in self._staying if not process.is_running]
        self._start(idle[at % len(idle)])

    def _start(self, process: Process) -> None:
        try:
            process.start()
        except ProcessCrashed:
            pass
        except (TransientError, OSError, PerdureError):
            if "error" not in self.books.troubles:
                raise
            # It ends then, as a program does that cannot start.
            process.crash()

    @precondition(lambda self: self.awake)
    @rule(at=_indexes)
    def suspend(self, at: int) -> None:
        self.books.troubles.add("suspend")
        self.awake[at % len(self.awake)].suspend()

    @precondition(lambda self: self.awake)
    @rule(
        at=_indexes,
        turns=strategies.turns(),
        points=st.integers(0, 80),
        seconds=st.sampled_from([11, 75, 150]),
    )
    def stand_still(self, at: int, turns: Turns, points: int, seconds: int) -> None:
        """Suspend a process in the middle of something, for longer than others wait for it."""
        process = self.awake[at % len(self.awake)]
        self.step(turns, points)
        # It may have crashed meanwhile, at a call that was broken.
        if process.is_running:
            self.books.troubles.add("suspend")
            process.suspend()
            self.world.advance(timedelta(seconds=seconds))
            process.resume()

    @precondition(lambda self: len(self.awake) < len(self.running))
    @rule()
    def resume(self) -> None:
        for process in self.running:
            process.resume()

    @precondition(lambda self: len(self._cut) < len(self.running))
    @rule(at=_indexes, all_of_them=st.booleans())
    def cut(self, at: int, all_of_them: bool) -> None:
        self.books.troubles.add("cut")
        whole = [process for process in self.running if process.name not in self._cut]
        for process in whole if all_of_them else [whole[at % len(whole)]]:
            process.cut()
            self._cut.add(process.name)

    @precondition(lambda self: self._cut)
    @rule()
    def restore(self) -> None:
        for process in self.running:
            process.restore()
        self._cut.clear()

    @precondition(lambda self: self.running)
    @rule(at=_indexes, calls=st.integers(1, 120), fault=strategies.faults())
    def break_call(self, at: int, calls: int, fault: Fault) -> None:
        self._armed[self.running[at % len(self.running)].name] = [calls, fault, None]

    @precondition(lambda self: self.awake)
    @rule(
        plan=_plans,
        at=_indexes,
        commits=st.integers(1, 8),
        after=st.booleans(),
        turns=strategies.turns(),
        seconds=st.sampled_from([0, 1, 31]),
    )
    def crash_at_a_commit(
        self, plan: Plan, at: int, commits: int, after: bool, turns: Turns, seconds: int
    ) -> None:
        """Let a process crash before or after a commit, while it runs a job that is put into it.

        That is where a crash makes a difference, and most calls of the storage are others.
        """
        process = self.awake[at % len(self.awake)]
        self._put(plan, at)
        self._armed[process.name] = [commits, Fault.crash(after=after), "finish"]
        self.advance(turns, seconds)

    @precondition(lambda self: self.awake)
    @rule(
        plan=_plans,
        at=_indexes,
        calls=st.sampled_from([1, 1, 2]),
        seconds=st.sampled_from([75, 150]),
        others_are_full=st.sampled_from([True, True, False]),
        then=st.sampled_from(["is lost", "is lost", "crashes", "goes on"]),
        turns=strategies.turns(),
    )
    def stand_still_at_a_commit(
        self,
        plan: Plan,
        at: int,
        calls: int,
        seconds: int,
        others_are_full: bool,
        then: str,
        turns: Turns,
    ) -> None:
        """Let a process stand still between what it has read for a job and its commit.

        Its siblings may bury it, and take what it is about to take unless they are full. It may
        crash after the commit, and need not be back ever.
        """
        self._gather()
        process = self._staying[at % len(self._staying)]
        if others_are_full:
            for other in self.awake:
                if other is not process:
                    self._resize(other, 0)
        # Any of them may have crashed, at a call that was broken.
        if not process.is_running:
            return
        self._put(replace(plan, begin_after=None), self.awake.index(process))
        self._stand_still(process, calls, seconds)
        self.advance(turns, seconds - 1)
        if then != "goes on":
            self._armed[process.name] = [1, Fault.crash(after=True), "finish"]
        self.advance(turns, 5)
        if then == "is lost" and not process.is_running:
            self._lose(process)

    def _gather(self) -> None:
        """Let all processes that are not lost run, have the database, and places for jobs."""
        self.resume()
        self.restore()
        for process in self._staying:
            if not process.is_running:
                self._start(process)
        self.world.run_until_idle()
        for process in self.awake:
            self._resize(process, 2)

    def _stand_still(self, process: Process, calls: int, seconds: int) -> None:
        fault = Fault.stand_still(timedelta(seconds=seconds))
        self._armed[process.name] = [calls, fault, "begin"]

    @precondition(lambda self: self.awake)
    @rule(
        plan=_plans,
        number=st.integers(1, 3),
        quota=st.sampled_from(["narrow", "wide"]),
        at=_indexes,
        calls=st.integers(0, 3),
        turns=strategies.turns(),
    )
    def claim_together(
        self, plan: Plan, number: int, quota: str, at: int, calls: int, turns: Turns
    ) -> None:
        """Let all processes want jobs of one quota in the same moment.

        One of them may stand still with what it has read, while the others claim.
        """
        self._gather()
        plan = replace(plan, quotas=(quota,), begin_after=2, begin_by=None)
        for each in range(number * len(self.awake)):
            if self.awake:
                self._put(plan, each)
        # Who is to run them has them in the order in which it looks at them then.
        self.advance((), 1)
        if calls and self.awake:
            self._stand_still(self.awake[at % len(self.awake)], calls, 1)
        self.advance(turns, 2)

    def _breaker(self, name: str) -> Callable[[Call], Fault | None]:
        def on_call(call: Call) -> Fault | None:
            armed = self._armed.get(name)
            if armed is None or armed[2] not in (None, call.kind):
                return None
            armed[0] -= 1
            if armed[0]:
                return None
            fault: Fault = self._armed.pop(name)[1]
            self.books.troubles.add(
                "crash" if fault.crashes else "suspend" if fault.whole else "error"
            )
            return fault

        return on_call

    # What operators do.

    @precondition(lambda self: self.awake)
    @rule(at=_indexes, size=st.integers(0, 4))
    def resize(self, at: int, size: int) -> None:
        self._resize(self.awake[at % len(self.awake)], size)

    def _resize(self, process: Process, size: int) -> None:
        # It may not have joined the queue yet, and have no agent.
        with self.attempt(), contextlib.suppress(PerdureError, KeyError):
            process.ask(Resize("", "main", size))

    @precondition(lambda self: self.awake)
    @rule(at=_indexes, name=st.sampled_from(["narrow", "wide"]), size=st.integers(0, 3))
    def resize_quota(self, at: int, name: str, size: int) -> None:
        self._change(at, lambda queue: setattr(queue.quotas[name], "size", size))

    @precondition(lambda self: self.awake)
    @rule(at=_indexes, paused=st.booleans())
    def pause(self, at: int, paused: bool) -> None:
        self._change(at, lambda queue: queue.pause() if paused else queue.resume())

    def _change(self, at: int, change: Callable[[Any], object]) -> None:
        process = self.awake[at % len(self.awake)]
        with self.attempt(), process.transaction() as connection:
            change(get_queue(connection, ""))

    @precondition(lambda self: self.awake)
    @rule(at=_indexes, keep=st.sampled_from([0, 60, 600]))
    def pack(self, at: int, keep: int) -> None:
        process = self.awake[at % len(self.awake)]
        with self.attempt(), process.acting():
            pack(process.system.database, timedelta(seconds=keep))

    @precondition(lambda self: self.running)
    @rule(vanished=st.booleans())
    def deploy(self, vanished: bool) -> None:
        self._deploy(vanished)

    def _deploy(self, vanished: bool) -> None:
        if vanished == (self._vanished is not None):
            return
        # There is one interpreter for all of them: they are deployed together.
        running = self.running
        for process in running:
            if process.is_suspended:
                process.crash()
                self.books.troubles.add("crash")
            else:
                self._stop(process, 10)
        if vanished:
            self._vanished = callables.vanish
            del callables.vanish
        else:
            self._bring_back()
        for process in running:
            self._start(process)

    def _bring_back(self) -> None:
        if self._vanished is not None:
            setattr(callables, "vanish", self._vanished)  # noqa: B010
            self._vanished = None

    # What always holds.

    @invariant()
    def nothing_is_wrong(self) -> None:
        violations = self.world.check() + self.books.read_commits()
        assert not violations, "; ".join(violations) + "\n" + self.world.scheduler.story()

    # The end.

    def teardown(self) -> None:
        failed = sys.exc_info()[1]
        try:
            if failed is None or failed is self._around:
                self._end()
        finally:
            self._bring_back()
            self.world.close()

    def _end(self) -> None:
        self._turns.follow(())
        self._armed.clear()
        self.resume()
        self.restore()
        self._deploy(vanished=False)
        for process in self._staying:
            process.clock.jump(self.world.now - process.clock.now())
            if not process.is_running:
                self._start(process)
        self._persist(self._open_all)
        self.world.come_to_rest(self.REST_LIMIT)
        self.nothing_is_wrong()
        wrong = self.balance()
        assert not wrong, "; ".join(wrong) + "\n" + self.world.scheduler.story()

    def _open_all(self, connection: Any) -> None:
        """Let everything that was put be run, where somebody has narrowed it."""
        queue = get_queue(connection, "")
        queue.resume()
        queue.resize(2)
        for name in self.QUOTAS:
            queue.quotas[name].size = max(1, queue.quotas[name].size)

    def _persist(self, change: Callable[[Any], None]) -> None:
        """Make a change that others may conflict with, until it is made."""
        while True:
            with contextlib.suppress(ConflictError):
                with self._staying[0].transaction() as connection:
                    change(connection)
                return
