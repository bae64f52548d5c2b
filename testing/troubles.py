"""Bad times: processes crash, stand still, are cut off, and clocks jump, all by lot."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from datetime import timedelta
from enum import StrEnum

from transaction.interfaces import TransientError
from ZEO.Exceptions import ClientDisconnected

from perdure.model.errors import PutInDoubtError
from perdure.testing.errors import ProcessCrashed, SimulationError
from perdure.testing.process import Process
from perdure.testing.storage import Call, Fault
from perdure.testing.world import World

__all__ = ["Trouble", "turmoil"]

LONGEST_STEP = timedelta(seconds=20)
LONGEST_TROUBLE = timedelta(minutes=3)
LONGEST_JUMP = timedelta(hours=1)

#: The chance of a trouble at each call of a storage, and between two steps.
_AT_CALLS = 0.004
_BETWEEN = 0.3


class Trouble(StrEnum):
    """What may befall a process or a world."""

    CRASH = "crash"
    """The process ends at once, before or after a call of its storage, or between two."""
    STOP = "stop"
    """It is stopped in good order."""
    SUSPEND = "suspend"
    """It stands still, also inside a commit, and goes on later."""
    CUT = "cut"
    """Its connection is lost, and comes back later."""
    FAIL = "fail"
    """A call of its storage fails, before it has taken place or after that."""
    JUMP = "jump"
    """Its wall clock jumps, by up to an hour."""
    RESTART = "restart"
    """The server of the disk is restarted."""


def turmoil(
    world: World,
    seed: int,
    duration: timedelta = timedelta(minutes=10),
    work: Callable[[Process, random.Random], object] = lambda process, random: None,
    *,
    troubles: Collection[Trouble] = tuple(Trouble),
) -> int:
    """Let time pass in which troubles befall the processes of a world; then repair everything.

    At the end all processes run and are connected; what there is to do still is up to
    `World.come_to_rest`. The invariants are checked all the time.

    :param seed: the same one does the same to the same world.
    :param duration: how long it lasts; it is not longer by more than a step and a restart.
    :param work: called now and then with a process that runs, and a source of chance: puts jobs,
        say. A crash, a lost connection or a conflict may end it, as
        may `PutInDoubtError`.
    :param troubles: which may happen (default: all).
    :returns: how many troubles there were.
    :raises AssertionError: where the invariants do not hold.
    """
    if not world.processes:
        raise SimulationError("there is no process in the world that anything could befall")
    times = _Times(
        world, random.Random(seed), work, [each for each in Trouble if each in troubles]
    )
    return times.pass_by(duration)


class _Times:
    """The bad times of one world."""

    def __init__(
        self,
        world: World,
        chance: random.Random,
        work: Callable[[Process, random.Random], object],
        troubles: list[Trouble],
    ) -> None:
        self._world = world
        self._chance = chance
        self._work = work
        self._troubles = troubles
        self._count = 0
        # For which process the test does something, and would wait for ever if it stood still.
        self._served: Process | None = None
        self._repairs: list[tuple[float, Process]] = []

    def pass_by(self, duration: timedelta) -> int:
        world, chance = self._world, self._chance
        before = {process: process.on_call for process in world.processes}
        end = world.scheduler.seconds + duration.total_seconds()
        for process in world.processes:
            process.on_call = self._at_call(process)
        try:
            while world.scheduler.seconds < end:
                world.advance(LONGEST_STEP * chance.random())
                self._repair(world.scheduler.seconds)
                if self._troubles and chance.random() < _BETWEEN:
                    self._befall(chance.choice(world.processes), chance.choice(self._troubles))
                self._do(chance.choice(world.processes))
                self._check()
        finally:
            for process in world.processes:
                process.on_call = before.get(process, lambda call: None)
        self._repairs += [(0.0, process) for process in world.processes]
        self._repair(world.scheduler.seconds)
        self._check()
        return self._count

    def _check(self) -> None:
        violations = self._world.check()
        assert not violations, (
            "the invariants do not hold: "
            + "; ".join(violations)
            + f"\n{self._world.scheduler.story()}"
        )

    def _do(self, process: Process) -> None:
        if process.is_running and not process.is_suspended:
            self._enduring(process, lambda: self._work(process, self._chance))

    def _enduring(self, process: Process, act: Callable[[], object]) -> None:
        self._served = process
        try:
            act()
        except (ProcessCrashed, TransientError, PutInDoubtError) as error:
            self._world.scheduler.note(f"was kept from it by {error!r}")
        finally:
            self._served = None

    # What befalls.

    def _befall(self, process: Process, trouble: Trouble) -> None:
        """Let something happen while nobody does anything."""
        if trouble is Trouble.RESTART:
            self._note("the server restarts")
            self._world.restart_server(LONGEST_STEP * self._chance.random())
        elif not process.is_running or process.is_suspended or trouble is Trouble.FAIL:
            return
        elif trouble is Trouble.STOP:
            self._note(f"{process.name} is stopped")
            self._enduring(process, process.stop)
            self._repair_later(process)
        elif trouble is Trouble.CRASH:
            self._count += 1
            process.crash()
            self._repair_later(process)
        else:
            self._disturb(process, trouble)

    def _disturb(self, process: Process, trouble: Trouble) -> None:
        if trouble is Trouble.JUMP:
            jump = LONGEST_JUMP * (2 * self._chance.random() - 1)
            self._note(f"the clock of {process.name} jumps by {jump}")
            process.clock.jump(jump)
        elif trouble is Trouble.SUSPEND:
            self._note(f"{process.name} stands still")
            process.suspend()
            self._repair_later(process)
        elif trouble is Trouble.CUT:
            self._note(f"{process.name} is cut off")
            process.cut()
            self._repair_later(process)

    def _at_call(self, process: Process) -> Callable[[Call], Fault | None]:
        at_calls = [each for each in self._troubles if each not in (Trouble.STOP, Trouble.RESTART)]

        def on_call(call: Call) -> Fault | None:
            if not at_calls or self._chance.random() >= _AT_CALLS:
                return None
            trouble = self._chance.choice(at_calls)
            after = self._chance.random() < 0.5
            if trouble is Trouble.CRASH:
                self._count += 1
                self._repair_later(process)
                return Fault.crash(after=after)
            if trouble is Trouble.FAIL:
                self._count += 1
                return Fault.fail(ClientDisconnected("by lot"), after=after)
            if trouble is not Trouble.SUSPEND or self._served is not process:
                self._disturb(process, trouble)
            return None

        return on_call

    def _note(self, text: str) -> None:
        self._count += 1
        self._world.scheduler.note(text)

    # How it ends.

    def _repair_later(self, process: Process) -> None:
        delay = LONGEST_TROUBLE.total_seconds() * self._chance.random()
        self._repairs.append((self._world.scheduler.seconds + delay, process))

    def _repair(self, until: float) -> None:
        due = [process for moment, process in self._repairs if moment <= until]
        self._repairs = [each for each in self._repairs if each[0] > until]
        for process in due:
            if process.is_running:
                process.resume()
                if not process.is_connected:
                    process.restore()
            else:
                self._world.scheduler.note(f"{process.name} is started again")
                self._enduring(process, process.start)
                if not process.is_running:
                    self._repair_later(process)
