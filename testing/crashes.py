"""What becomes of a scenario that is broken at each call of the storage, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from perdure.testing.choosers import Chooser
from perdure.testing.errors import ProcessCrashed, SimulationError
from perdure.testing.process import Process
from perdure.testing.scheduler import nothing_logged
from perdure.testing.storage import Call, Fault
from perdure.testing.world import REST_LIMIT, World

__all__ = ["BreakReport", "BrokenError", "break_everywhere", "crash_everywhere"]

Scenario = Callable[[Process], object]
Check = Callable[[Process], object]


def _nothing(process: Process) -> None:
    """Take the place of a check, or a setup, that was not given."""


def _name(function: object) -> str:
    return getattr(function, "__name__", repr(function))


CRASHES = (Fault.crash(), Fault.crash(after=True))


class BrokenError(AssertionError):
    """A scenario did not survive a fault; the text tells which, what went before, and why."""


@dataclass(frozen=True, slots=True)
class BreakReport:
    """How many calls of the storage there were, and in how many runs they were broken."""

    calls: int
    runs: int

    def __str__(self) -> str:
        return f"{self.calls} calls of the storage, broken in {self.runs} runs"


def crash_everywhere(
    scenario: Scenario,
    check: Check = _nothing,
    *,
    setup: Scenario = _nothing,
    recoveries: int = 1,
    at: str = "",
    **settings: Any,
) -> BreakReport:
    """Run a scenario, and again with a crash at each call of its storage; check what is left.

    First it is run to the end once, and the calls of the storage are counted. Then, for each of
    them, twice: with a crash before it and with one after it. After each crash the process is
    started again, with what is on the disk alone, time passes until there is nothing to do, and
    it is checked that the invariants hold (`perdure.model.check`), that every job whose `put` has
    returned is there and has ended, and that `check` raises nothing.

    :param scenario: called with a `Process` that was just started: puts jobs, lets time pass.
        Whatever it does has to be the same each time. The crash ends it.
    :param check: called with the process, started again and at rest, to assert what must hold.
    :param setup: called with the process before the scenario, without crashes.
    :param recoveries: 2 lets the process crash at each call of the recovery, too: many runs.
    :param at: repeats one run alone, as the text of a failure gives it, with all that is logged.
    :param settings: for the process, as for `World.process`.
    :raises BrokenError: at the first crash that does harm.
    """
    __tracebackhide__ = True
    return break_everywhere(
        scenario, check, CRASHES, setup=setup, recoveries=recoveries, at=at, **settings
    )


def break_everywhere(
    scenario: Scenario,
    check: Check = _nothing,
    faults: Sequence[Fault] = CRASHES,
    *,
    setup: Scenario = _nothing,
    recoveries: int = 1,
    at: str = "",
    chooser: Callable[[], Chooser | None] = lambda: None,
    rest_limit: timedelta = REST_LIMIT,
    **settings: Any,
) -> BreakReport:
    """Do what `crash_everywhere` does with any faults.

    One that is no crash strikes the calls of the process's own threads alone, and not those of
    the scenario; the process has to go on by itself.

    :param chooser: makes the chooser of each run (default: each thread as long as it can).
    :param rest_limit: how much time may pass until there is nothing to do.
    """
    __tracebackhide__ = True
    if recoveries not in (1, 2):
        raise SimulationError(f"recoveries must be 1 or 2, not {recoveries!r}")
    runner = _Runner(scenario, check, setup, chooser, rest_limit, settings)
    if at:
        runner.run(_parse(at, faults))
        return BreakReport(0, 1)
    with nothing_logged():
        return _break_everywhere(runner, faults, recoveries)


def _break_everywhere(runner: _Runner, faults: Sequence[Fault], recoveries: int) -> BreakReport:
    __tracebackhide__ = True
    calls = runner.run(())
    runs = 1
    for number, index in itertools.product(range(1, calls + 1), range(len(faults))):
        strike = _Strike(0, number, index, faults[index])
        recovery_calls = runner.run((strike,))
        runs += 1
        if recoveries == 2 and faults[index].crashes:
            for second in range(1, recovery_calls + 1):
                for again, fault in enumerate(faults):
                    runner.run((strike, _Strike(1, second, again, fault)))
                    runs += 1
    return BreakReport(calls, runs)


@dataclass(frozen=True, slots=True)
class _Strike:
    """One fault: in which life of the process, counted from 0, at which call, which one."""

    life: int
    number: int
    index: int
    fault: Fault

    def __str__(self) -> str:
        return f"{self.number}:{self.index}"


def _parse(text: str, faults: Sequence[Fault]) -> tuple[_Strike, ...]:
    try:
        pairs = [tuple(map(int, part.split(":"))) for part in text.split()]
        return tuple(
            _Strike(life, number, index, faults[index])
            for life, (number, index) in enumerate(pairs)
        )
    except (ValueError, IndexError) as error:
        raise SimulationError(
            f"at must be as the text of a failure gives it, '12:0' or '12:1 3:0', not {text!r}"
        ) from error


@dataclass
class _Runner:
    """Runs a scenario with some faults."""

    scenario: Scenario
    check: Check
    setup: Scenario
    chooser: Callable[[], Chooser | None]
    rest_limit: timedelta
    settings: dict[str, Any]
    struck: list[str] = field(default_factory=list)
    until: int | None = None
    """How many events there were when the last fault struck."""

    def run(self, strikes: tuple[_Strike, ...]) -> int:
        """Run it, and return how many calls the last life of the process had."""
        __tracebackhide__ = True
        self.struck, self.until = [], None
        with World(chooser=self.chooser()) as world:
            try:
                return self._run(world, strikes)
            except Exception as error:
                if not strikes:
                    raise
                raise BrokenError(self._text(world, strikes, error)) from error

    def _run(self, world: World, strikes: tuple[_Strike, ...]) -> int:
        first = world.process("before")
        self.setup(first)
        first.stop()
        process = world.process("process", start=False, **self.settings)
        self._live(world, process, strikes, 0)
        life = 0
        while not process.is_running:
            life += 1
            if life > len(strikes):
                raise SimulationError(f"{process!r} has ended without a fault")
            self._live(world, process, strikes, life)
        calls = len(process.storage.calls)
        process.on_call = lambda call: None
        self._verify(world, process)
        return calls

    def _live(
        self, world: World, process: Process, strikes: tuple[_Strike, ...], life: int
    ) -> None:
        """Start the process, and let it do what there is to do, unless it crashes."""
        self._arm(world, process, strikes, life)
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
            if process.is_running:
                raise

    def _arm(
        self, world: World, process: Process, strikes: tuple[_Strike, ...], life: int
    ) -> None:
        planned = {strike.number: strike.fault for strike in strikes if strike.life == life}

        def on_call(call: Call) -> Fault | None:
            fault = planned.get(call.number)
            if fault is None or (not fault.crashes and world.scheduler.is_driver):
                return None
            self.struck.append(f"{fault} {call}, in {world.scheduler.who}")
            self.until = len(world.scheduler.trace)
            return fault

        process.on_call = on_call

    def _verify(self, world: World, process: Process) -> None:
        violations = world.check()
        assert not violations, "the invariants do not hold: " + "; ".join(violations)
        unended = world.unended()
        assert not unended, "jobs were acknowledged and have not ended: " + "; ".join(unended)
        self.check(process)

    def _text(self, world: World, strikes: tuple[_Strike, ...], error: Exception) -> str:
        names = f"{_name(self.scenario)}, {_name(self.check)}"
        if self.setup is not _nothing:
            names += f", setup={_name(self.setup)}"
        where = "; then ".join(self.struck) or "nothing: the run was another one this time"
        at = " ".join(map(str, strikes))
        return (
            f"broken by {where}\n{type(error).__name__}: {error}\n"
            f"what happened until then:\n{world.scheduler.story(until=self.until)}\n"
            f"to repeat it: crash_everywhere({names}, at={at!r})"
        )
