"""What becomes of a scenario that is broken at each call of the storage, one after the other."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from perdure.testing.choosers import Chooser
from perdure.testing.errors import ProcessCrashed, SimulationError
from perdure.testing.outliving import ApplicationWatch, Mark, can_watch, mark_of
from perdure.testing.process import Process
from perdure.testing.progress import shown
from perdure.testing.scheduler import nothing_logged
from perdure.testing.storage import Call, Fault, checked_kinds
from perdure.testing.world import REST_LIMIT, World

__all__ = ["BreakReport", "BrokenError", "break_everywhere", "crash_everywhere"]

Scenario = Callable[[Process], object]
Check = Callable[[Process], object]
Others = Callable[[World], object]


def nothing(process: Process) -> None:
    """Take the place of a check, or a setup, that was not given."""


def _nobody(world: World) -> None:
    """Take the place of others that were not given."""


def calm() -> None:
    """Take the place of a chooser that was not given."""


def name_of(function: object) -> str:
    return getattr(function, "__name__", repr(function))


CRASHES = (Fault.crash(), Fault.crash(after=True))


class BrokenError(AssertionError):
    """A scenario did not survive a fault; the text tells which, what went before, and why."""


@dataclass(frozen=True, slots=True)
class BreakReport:
    """How many calls of the storage there were, and at how many points a fault was tried.

    There are fewer `runs` than points where crashes at several points leave the same, of which
    one was run. `calls` are those of the run without a fault, which is one of the `runs`.
    """

    calls: int
    runs: int
    points: int = 0

    def __str__(self) -> str:
        return (
            f"{self.calls} calls of the storage, broken at {self.points} points "
            f"in {self.runs} runs"
        )


def crash_everywhere(
    scenario: Scenario,
    check: Check = nothing,
    *,
    setup: Scenario = nothing,
    others: Others = _nobody,
    restarts: bool = True,
    recoveries: int = 1,
    kinds: Collection[str] | None = None,
    every_point: bool = False,
    at: str = "",
    **settings: Any,
) -> BreakReport:
    """Run a scenario, and again with a crash at each call of its storage; check what is left.

    First it is run to the end once, and the calls of the storage are counted. There are two
    points for each of them: a crash before it and one after it. For each point it is run again,
    but for those that leave what one before them leaves: since then nothing was done to the disk,
    no time has passed, no other process had a turn, and no code but Perdure's has run. After each
    crash the process is started again, with what is on the disk alone, time passes until there is
    nothing to do, and it is checked that the invariants hold (`perdure.model.check`), that every
    job whose `put` has returned is there and has ended, and that `check` raises nothing.

    :param scenario: called with a `Process` that was just started: puts jobs, lets time pass.
        Whatever it does has to be the same each time. The crash ends it.
    :param check: called with the process, started again and at rest, to assert what must hold.
    :param setup: called with a process before the scenario, without crashes.
    :param others: called with the world after that, to start further processes, which do not
        crash; the one that does is the ``"process"``.
    :param restarts: False does not start it again: the others have to see to what it leaves, and
        `check` is called with the first of them. Without `others`, a `SimulationError`.
    :param recoveries: 2 lets the process crash at each call of the recovery, too: many runs.
    :param kinds: crash at calls of these kinds alone; ``("finish",)`` is before and after each
        commit, which takes a fraction of the time: in between only what happens outside of the
        database makes a difference.
    :param every_point: True runs each point, also those that leave what one before them leaves;
        for jobs that do something outside of the database in code written in C, say. So it is
        while a profiler is at work, too.
    :param at: repeats one run alone, as the text of a failure gives it, with all that is logged.
    :param settings: for the process, as for `World.process`.
    :raises BrokenError: at the first crash that does harm.
    """
    __tracebackhide__ = True
    return break_everywhere(
        scenario,
        check,
        CRASHES,
        setup=setup,
        others=others,
        restarts=restarts,
        recoveries=recoveries,
        kinds=kinds,
        every_point=every_point,
        at=at,
        **settings,
    )


def break_everywhere(
    scenario: Scenario,
    check: Check = nothing,
    faults: Sequence[Fault] = CRASHES,
    *,
    setup: Scenario = nothing,
    others: Others = _nobody,
    restarts: bool = True,
    recoveries: int = 1,
    kinds: Collection[str] | None = None,
    every_point: bool = False,
    at: str = "",
    in_turn: bool = False,
    chooser: Callable[[], Chooser | None] = calm,
    rest_limit: timedelta = REST_LIMIT,
    **settings: Any,
) -> BreakReport:
    """Do what `crash_everywhere` does with any faults.

    One that is no crash strikes the calls of the process's own threads alone, and not those of
    the scenario; the process has to go on by itself.

    :param in_turn: strike each call with one of the faults, in turn, instead of with each: a
        sample that takes at most as many runs as there are calls.
    :param chooser: makes the chooser of each run (default: each thread as long as it can).
    :param rest_limit: how much time may pass until there is nothing to do.
    """
    __tracebackhide__ = True
    if recoveries not in (1, 2):
        raise SimulationError(f"recoveries must be 1 or 2, not {recoveries!r}")
    if kinds is not None:
        checked_kinds("kinds", kinds)
    faults = _checked_faults(faults)
    runner = Runner(
        scenario,
        check,
        setup,
        chooser,
        rest_limit,
        settings,
        others=others,
        restarts=restarts,
        faults=faults,
    )
    plan = _Plan(faults, kinds, in_turn, every_point or not can_watch())
    if at:
        runner.run(_parse(at, faults))
        return BreakReport(0, 1)
    with nothing_logged():
        return _break_everywhere(runner, plan, recoveries)


def _checked_faults(faults: Sequence[Fault]) -> Sequence[Fault]:
    if isinstance(faults, list | tuple) and faults:
        if all(isinstance(each, Fault) for each in faults):
            return faults
    raise SimulationError(f"faults must be a list or tuple of one or more, not {faults!r}")


def _break_everywhere(runner: Runner, plan: _Plan, recoveries: int) -> BreakReport:
    __tracebackhide__ = True
    every_call = runner.run((), marking=plan.merges)
    runner.expected = every_call
    calls = plan.calls_of(every_call)
    runs, points = 1, plan.points(calls, runner.of_scenario)
    strikes = plan.strikes(0, calls, runner.marks, runner.of_scenario)
    for strike in shown("runs with a fault", strikes):
        again = recoveries == 2 and strike.fault.crashes
        recovery_calls = plan.calls_of(runner.run((strike,), marking=again and plan.merges))
        runs += 1
        if again:
            points += plan.points(recovery_calls, runner.of_scenario)
            for second in plan.strikes(1, recovery_calls, runner.marks, runner.of_scenario):
                runner.run((strike, second))
                runs += 1
    return BreakReport(len(calls), runs, points)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which faults are to strike which calls, and whether each of the crashes is to be run."""

    faults: Sequence[Fault]
    kinds: Collection[str] | None
    in_turn: bool
    every_point: bool

    @property
    def merges(self) -> bool:
        """Whether of several crashes that leave the same one is enough."""
        crashes = any(fault.crashes for fault in self.faults)
        return crashes and not self.every_point and not self.in_turn

    def calls_of(self, calls: Sequence[Call]) -> list[Call]:
        """Return those calls that are to be broken."""
        return [call for call in calls if self.kinds is None or call.kind in self.kinds]

    def _points(
        self, calls: Sequence[Call], of_scenario: Collection[int]
    ) -> Iterator[tuple[Call, int, Fault]]:
        for call, (index, fault) in itertools.product(calls, enumerate(self.faults)):
            if self.in_turn and index != call.number % len(self.faults):
                continue
            if fault.crashes or call.number not in of_scenario:
                yield call, index, fault

    def points(self, calls: Sequence[Call], of_scenario: Collection[int]) -> int:
        """Return how many points there are at these calls; see `strikes`."""
        return sum(1 for _ in self._points(calls, of_scenario))

    def strikes(
        self,
        life: int,
        calls: Sequence[Call],
        marks: Mapping[tuple[int, bool], Mark],
        of_scenario: Collection[int],
    ) -> list[Strike]:
        """Return what is to be tried in one life of a process that has had these calls.

        `marks` are those before and after each call, none after one that has raised. The calls
        `of_scenario`, by number, are struck by crashes alone.
        """
        strikes = []
        seen: set[Mark] = set()
        for call, index, fault in self._points(calls, of_scenario):
            if self.merges and fault.crashes:
                mark = marks.get((call.number, fault.after))
                if mark is None or mark in seen:
                    continue
                seen.add(mark)
            strikes.append(Strike(life, call.number, index, fault))
        return strikes


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: in which life of the process, counted from 0, at which call, which one."""

    life: int
    number: int
    index: int
    fault: Fault

    def __str__(self) -> str:
        return f"{self.number}:{self.index}"


def _parse(text: str, faults: Sequence[Fault]) -> tuple[Strike, ...]:
    try:
        if re.search(r"[^\d: ]", text):
            raise ValueError(text)
        pairs = [tuple(map(int, part.split(":"))) for part in text.split()]
        return tuple(
            Strike(life, number, index, faults[index])
            for life, (number, index) in enumerate(pairs)
        )
    except (ValueError, IndexError) as error:
        raise SimulationError(
            f"at must be as the text of a failure gives it, '12:0' or '12:1 3:0', not {text!r}"
        ) from error


@dataclass
class Runner:
    """Runs a scenario with some faults."""

    scenario: Scenario
    check: Check
    setup: Scenario
    chooser: Callable[[], Chooser | None]
    rest_limit: timedelta
    settings: dict[str, Any]
    others: Others = _nobody
    restarts: bool = True
    faults: Sequence[Fault] = CRASHES
    struck: list[str] = field(default_factory=list)
    until: int | None = None
    """How many events there were when the last fault struck."""
    marks: dict[tuple[int, bool], Mark] = field(default_factory=dict)
    """What a crash would have left before a call, by number, or (True) after it."""
    of_scenario: set[int] = field(default_factory=set)
    """The calls that the scenario made itself, by number."""
    watch: ApplicationWatch | None = None
    first: list[Call] = field(default_factory=list)
    """The calls of the process's first life in the last run."""
    expected: list[Call] | None = None
    """What those were without a fault, once that is known."""

    def run(self, strikes: tuple[Strike, ...], marking: bool = False) -> list[Call]:
        """Run it, and return the calls of the last life of the process.

        Those have marks then, if `marking`, which takes longer.
        """
        __tracebackhide__ = True
        self.struck, self.until = [], None
        self.watch = ApplicationWatch() if marking else None
        with self.watch.watching() if self.watch else contextlib.nullcontext():
            calls = self._run_in_a_world(strikes)
        self._compare(strikes)
        return calls

    def _compare(self, strikes: tuple[Strike, ...]) -> None:
        """Raise `SimulationError` where a run that has shown no harm was not what was meant."""
        same = "; what a scenario does has to be the same each time"
        for known, made in zip(self.expected or (), self.first, strict=False):
            if strikes and made.number <= strikes[0].number and made != known:
                raise SimulationError(f"{known} was another one in a later run, {made}{same}")
        if len(self.struck) < len(strikes):
            strike = strikes[len(self.struck)]
            raise SimulationError(
                f"{strike.fault!r} did not strike, as the process made no call {strike.number} "
                f"that it could{same}"
            )

    def _run_in_a_world(self, strikes: tuple[Strike, ...]) -> list[Call]:
        __tracebackhide__ = True
        with self.world() as world:
            try:
                return self._run(world, strikes)
            except Exception as error:
                if not strikes:
                    raise
                raise BrokenError(self._text(world, strikes, error)) from error

    def world(self) -> contextlib.AbstractContextManager[World]:
        """Make the world of one run."""
        return World(chooser=self.chooser())

    def crashed(self, world: World) -> None:
        """Be called when the process has crashed, before it is started again."""

    def _run(self, world: World, strikes: tuple[Strike, ...]) -> list[Call]:
        first = world.process("before")
        self.setup(first)
        first.stop()
        self.others(world)
        if not (self.restarts or any(other.is_running for other in world.processes)):
            raise SimulationError("with restarts=False, others has to start a process that stays")
        process = world.process("process", start=False, **self.settings)
        calls = self.first = self._live(world, process, strikes, 0)
        life = 0
        while not process.is_running and self.restarts:
            life += 1
            if life > len(strikes):
                raise SimulationError(
                    f"{process!r} has ended without a fault: a scenario that stops it has to "
                    "start it again"
                )
            self.crashed(world)
            calls = self._live(world, process, strikes, life)
        process.on_call = process.on_called = lambda call: None
        if process.is_running:
            self._verify(world, process)
            return calls
        world.come_to_rest(self.rest_limit)
        self._verify(world, next(other for other in world.processes if other.is_running))
        return []

    def _live(
        self, world: World, process: Process, strikes: tuple[Strike, ...], life: int
    ) -> list[Call]:
        """Start the process, and let it do what there is to do, unless it crashes."""
        calls = self._arm(world, process, strikes, life)
        struck = len(self.struck)
        try:
            process.start()
            if life == 0:
                self.scenario(process)
            if process.is_running:
                world.come_to_rest(self.rest_limit)
        except ProcessCrashed:
            pass
        # What else it says of a process that has crashed meanwhile is no finding.
        except Exception:
            if process.is_running or len(self.struck) == struck:
                raise
        return calls

    def _arm(
        self, world: World, process: Process, strikes: tuple[Strike, ...], life: int
    ) -> list[Call]:
        planned = {strike.number: strike.fault for strike in strikes if strike.life == life}
        # A scenario may start the process again, whose calls count on.
        calls: list[Call] = []
        numbers: dict[Call, int] = {}
        self.marks, self.of_scenario = {}, set()

        def mark(call: Call, after: bool) -> None:
            if self.watch is not None:
                self.marks[call.number, after] = mark_of(process, self.watch)

        def on_called(call: Call) -> None:
            mark(replace(call, number=numbers.pop(call)), after=True)

        def on_call(call: Call) -> Fault | None:
            given, call = call, replace(call, number=len(calls) + 1)
            numbers[given] = call.number
            calls.append(call)
            mark(call, after=False)
            if world.scheduler.is_driver:
                self.of_scenario.add(call.number)
            fault = planned.get(call.number)
            if fault is None or (not fault.crashes and call.number in self.of_scenario):
                return None
            self.struck.append(f"{fault} {call}, in {world.scheduler.who}")
            self.until = len(world.scheduler.trace)
            return fault

        process.on_call = on_call
        process.on_called = on_called
        return calls

    def _verify(self, world: World, process: Process) -> None:
        violations = world.check()
        assert not violations, "the invariants do not hold: " + "; ".join(violations)
        unended = world.unended()
        assert not unended, "jobs were acknowledged and have not ended: " + "; ".join(unended)
        self.check(process)

    def _text(self, world: World, strikes: tuple[Strike, ...], error: Exception) -> str:
        where = "; then ".join(self.struck) or "nothing: the run was another one this time"
        return (
            f"broken by {where}\n{type(error).__name__}: {error}\n"
            f"what happened until then:\n{world.scheduler.story(until=self.until)}\n"
            f"to repeat it: {self.call(self.place(strikes))}"
        )

    def place(self, strikes: tuple[Strike, ...]) -> str:
        """Return the `at` that repeats a run with these."""
        return " ".join(map(str, strikes))

    def call(self, at: str) -> str:
        """Return the call that repeats a run: all that was given, as far as it has a name."""
        function, faults = "crash_everywhere", {}
        # These are the arguments that `crash_everywhere` has not.
        if (self.faults, self.chooser, self.rest_limit) != (CRASHES, calm, REST_LIMIT):
            function = "break_everywhere"
            if self.faults != CRASHES:
                faults = {"faults": [*self.faults]}
        return self.call_of(function, at, faults)

    def call_of(self, function: str, at: str, more: Mapping[str, object], *named: str) -> str:
        """Return a call of a function with all that was given, and more by name."""
        parts = [name_of(self.scenario)]
        if self.check is not nothing:
            parts.append(name_of(self.check))
        for name, given, default in (
            ("setup", self.setup, nothing),
            ("others", self.others, _nobody),
            ("chooser", self.chooser, calm),
        ):
            if given is not default:
                parts.append(f"{name}={name_of(given)}")
        values: dict[str, object] = {**more, **self.settings}
        if not self.restarts:
            values["restarts"] = False
        if self.rest_limit != REST_LIMIT:
            values["rest_limit"] = self.rest_limit
        parts += [f"{name}={value!r}" for name, value in values.items()]
        parts += named
        return f"{function}({', '.join(parts)}, at={at!r})"
