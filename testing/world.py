"""A world: a disk, the processes that have it open, and the time that passes for them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Set
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

import transaction
import ZODB

from perdure.model import names
from perdure.model.aliases import current_name
from perdure.model.check import check
from perdure.model.describing import job_details
from perdure.model.environment import environment
from perdure.model.errors import CallableNotFoundError, JobNotFoundError
from perdure.model.incarnation import Incarnation, Proofs
from perdure.model.job import Job
from perdure.model.moments import checked_duration
from perdure.model.queue import Queue
from perdure.model.queues import find_queues
from perdure.model.ref import JobRef, find_job
from perdure.model.status import Status
from perdure.testing.choosers import Calm, Chooser
from perdure.testing.disk import Disk, forget_what_resolves
from perdure.testing.errors import NotAtRestError, SimulationError
from perdure.testing.execution import START, SteppedClock
from perdure.testing.files import FileDisk, Loss
from perdure.testing.process import Process
from perdure.testing.scheduler import Scheduler
from perdure.testing.storage import CALLS, SteppedStorage, checked_kinds

__all__ = ["World"]

REST_LIMIT = timedelta(hours=2)

POINTS = ("receive", *CALLS)
"""The kinds of points at which the baton is handed on."""


class World:
    """Simulated processes on one disk.

    Everything in it happens in the test's thread or at its word: time passes while the test
    waits, in `advance`, and in `come_to_rest`. A context manager that closes it.

    :param disk: what the processes have open (default: a new one, in memory).
    :param chooser: who goes on where several could (default: each for as long as it can).
    :param points: at which kinds of points another may go on: ``receive``, and calls of the
        storage such as ``begin`` (default: at all).
    :param start: what time it is at first.
    """

    def __init__(
        self,
        disk: Disk | None = None,
        *,
        chooser: Chooser | None = None,
        points: Collection[str] | None = None,
        start: datetime = START,
        class_factory: Any = None,
    ) -> None:
        if points is not None:
            checked_kinds("points", points, POINTS)
        if disk is not None and not isinstance(disk, Disk):
            raise TypeError(f"disk must be a Disk, such as FileDisk(path), not {disk!r}")
        forget_what_resolves()
        self.disk = Disk() if disk is None else disk
        self.start = start
        self.scheduler = Scheduler(chooser, points)
        self.class_factory = class_factory
        self.acknowledged: list[JobRef] = []
        """The jobs whose put has returned."""
        self.notes: list[Any] = []
        """For what happens outside of the database: the letters that were sent, say."""
        self.living: set[str] = set()
        """The tokens of the processes that have not ended."""
        self._processes: dict[str, Process] = {}
        self._clock = SteppedClock(self.scheduler, start)
        self._observed: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes as a crash does; raises `SimulationError` if a thread does not end."""
        for process in self._processes.values():
            process.crash()
            process.let_go()
        if self._observed is not None:
            self._observed.close()
        self.disk.close()
        left = self.scheduler.close()
        if left:
            raise SimulationError(f"these threads have not ended: {', '.join(left)}")

    # Processes.

    def process(
        self,
        name: str = "",
        queues: Mapping[str, int] | None = None,
        *,
        host: str = "host",
        drift: float = 0.0,
        start: bool = True,
        **settings: Any,
    ) -> Process:
        """Return a new process, which is started.

        :param name: what the trace calls it; must be new in this world.
        :param queues: as for `perdure.actors.start`, to which the further settings go.
        :param host: on which machine it is: only there the end of a process can be proved.
        :param drift: how many seconds its clock gains in each second.
        :param start: False leaves it to be started by `Process.start`.
        """
        name = name or f"process {len(self._processes) + 1}"
        if name in self._processes:
            raise SimulationError(f"there is a process {name!r} already: restart that one")
        number = len(self._processes) + 1
        process = Process(self, name, number, host, drift, queues, settings)
        self._processes[name] = process
        if start:
            process.start()
        return process

    @property
    def processes(self) -> tuple[Process, ...]:
        """All processes, in the order in which they were made."""
        return tuple(self._processes.values())

    def proofs_of(self, process: Process) -> Proofs:
        """Return how that process finds out who has ended."""
        return _Proofs(self.living, process.host)

    # Turns.

    @contextlib.contextmanager
    def calmly(self) -> Iterator[None]:
        """Let each go on for as long as it can meanwhile, whoever chooses else.

        For what a scenario prepares, and for its end: `explore` tries no other orders there.
        """
        before, self.scheduler.chooser = self.scheduler.chooser, Calm()
        try:
            yield
        finally:
            self.scheduler.chooser = before

    # The disk, and how it is reached.

    def restart_server(self, down: timedelta = timedelta(seconds=1)) -> None:
        """Restart what serves the disk: all connections are lost, and back when it is up again.

        Commits that are under way are aborted. Time passes meanwhile, and what processes want of
        the disk fails. A process whose connection was cut before stays cut off.

        :param down: how long it takes; zero or more.
        """
        checked_duration("down", down)
        cut = [each for each in self.processes if each.is_running and each.is_connected]
        for process in cut:
            process.cut()
        self.disk.restart()
        self.advance(down)
        for process in cut:
            if process.is_running:
                process.restore()

    def lose_power(self, loss: Loss) -> None:
        """Let the machine of a `FileDisk` lose its power: all processes crash, and data is lost.

        The file is opened again as it is then; processes stay as they are until they are started.
        Raises `SimulationError` for another disk, and what the opening raises.
        """
        if not isinstance(self.disk, FileDisk):
            raise SimulationError(f"{type(self.disk).__name__} is in no file: use a FileDisk")
        for process in self.processes:
            process.crash()
        if self._observed is not None:
            self._observed.close()
            self._observed = None
        self.disk.lose(loss)

    # Time.

    @property
    def now(self) -> datetime:
        """What time it is, by a clock that does not drift or jump."""
        return self._clock.now()

    def run_until_idle(self) -> None:
        """Let everybody go on until nobody can, without any time passing."""
        self.scheduler.let_others_go_on()

    def step(self, points: int = 1) -> None:
        """Let the others pass that many points, or fewer where nobody can go on.

        So the test can do something while others are in the middle of a commit. No time passes.
        Raises `ValueError` for a negative number.
        """
        if points < 0:
            raise ValueError(f"points must be 0 or more, not {points!r}")
        self.scheduler.let_others_go_on(points=points)

    def step_to(self, process: Process, kind: str) -> bool:
        """Let the others go on until a thread of that process is about to make a call.

        So it can be suspended, say, between what it has read and its commit. No time passes.

        :param kind: of which kind, as of `Call`: ``"begin"``, or ``"finish"``.
        :returns: False where nobody can go on, and it makes none, or has crashed.
        """
        if kind not in CALLS:
            raise SimulationError(f"a call is of a kind of {', '.join(CALLS)}, not {kind!r}")
        if not isinstance(process, Process):
            raise TypeError(f"process must be one of this world's processes, not {process!r}")
        trace = self.scheduler.trace
        passed = -1
        while process.is_running and passed != len(trace):
            passed = len(trace)
            self.step()
            last = trace[-1] if passed != len(trace) else None
            if last and last.task.startswith(f"{process.name}/") and last.text.split()[0] == kind:
                return True
        return False

    def advance(self, duration: timedelta) -> None:
        """Let time pass, and all happen in order that happens meanwhile."""
        seconds = checked_duration("duration", duration).total_seconds()
        self.scheduler.let_others_go_on(self.scheduler.seconds + seconds)

    def come_to_rest(self, limit: timedelta = REST_LIMIT) -> None:
        """Let time pass until there is nothing to do: no job waits, but parked ones, or runs.

        Raises `NotAtRestError` where that takes longer than `limit`.
        """
        end = self.scheduler.seconds + checked_duration("limit", limit).total_seconds()
        self.run_until_idle()
        while restless := self.restless():
            moment = self.scheduler.next_moment()
            if moment is None or moment > end:
                raise NotAtRestError(
                    f"after {limit} there still is something to do: {'; '.join(restless)}\n"
                    + self.scheduler.story()
                )
            self.scheduler.let_others_go_on(moment)

    # Looking at the disk, without anybody's noticing.

    @contextlib.contextmanager
    def look(self) -> Iterator[Any]:
        """Open a connection that takes no part: no point, no fault, nothing counted."""
        if self._observed is None:
            side = _Observer(self.disk, self.scheduler, self._clock, "the test", lambda: None)
            self._observed = ZODB.DB(side, class_factory=self.class_factory)
            environment(self._observed).clock = self._clock
        manager = transaction.TransactionManager()
        connection = self._observed.open(transaction_manager=manager)
        try:
            yield connection
        finally:
            manager.abort()
            connection.close()

    def check(self) -> list[str]:
        """Return what `perdure.model.check` finds."""
        with self.look():
            return check(self._observed)

    def restless(self) -> list[str]:
        """Return what there is to do still, or is being done; parked jobs are left out."""
        found = []
        with self.look() as connection:
            for queue in find_queues(connection).values():
                parked = sum(
                    number
                    for name, (_, number) in queue.parked().items()
                    if self._stays_parked(queue, name)
                )
                if len(queue) > parked and not queue.paused:
                    found.append(f"{len(queue) - parked} jobs wait in queue {queue.name!r}")
                for record in queue.dispatchers.records():
                    for agent in record.agents():
                        if held := len(agent) + len(agent.left):
                            found.append(f"{agent!r} has {held} jobs")
        return found

    def _stays_parked(self, queue: Queue, name: str) -> bool:
        """Tell whether nobody who runs takes up the jobs that are parked for a name."""
        try:
            names.resolve(current_name(queue, name))
        except CallableNotFoundError:
            return True
        # Who was just started tries each name once, as soon as it has the database.
        running = [process for process in self.processes if process.is_running]
        return all(name in environment(each.system.database).unresolved for each in running)

    def unended(self) -> list[str]:
        """Return which acknowledged jobs are not there, or have not ended and could.

        Those that are parked, or in a queue that is paused, could not.
        """
        found = []
        with self.look() as connection:
            for ref in self.acknowledged:
                try:
                    details = job_details(connection, ref)
                except JobNotFoundError:
                    found.append(f"{ref} is not there")
                    continue
                queue = find_job(connection, ref).queue
                waits = details.parked or (queue is not None and queue.paused)
                if details.status is not Status.COMPLETED and not waits:
                    found.append(f"{ref} is {details.status.name}: {details.call}")
        return found

    def status(self, ref: JobRef) -> Status:
        """Return the status of a job, as it is on the disk."""
        with self.look() as connection:
            return find_job(connection, ref).status

    def result(self, ref: JobRef) -> Any:
        """Return the result of a job, a `perdure.model.Failure` for one that has failed."""
        with self.look() as connection:
            job: Job = find_job(connection, ref)
            return job.result


class _Observer(SteppedStorage):
    """The side of one who looks on."""

    def _do(self, kind: str, about: str, act: Any, transaction: Any = None) -> Any:
        return act()


class _Proofs:
    """Who has ended, seen from one host."""

    def __init__(self, living: Set[str], host: str) -> None:
        self._living = living
        self._host = host

    def may_be_proved(self, incarnation: Incarnation, /) -> bool:
        return incarnation.host == self._host

    def proved_dead(self, incarnation: Incarnation, own: Incarnation | None = None, /) -> bool:
        return self.may_be_proved(incarnation) and incarnation.token not in self._living
