"""W6: what jobs that are held cost the others."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

from benchmarks.jobs import idle, is_noted_by, log_to
from benchmarks.processes import wait_for
from benchmarks.stage import LOOK_SECONDS, WORKERS, Stage, note_jobs, stage_on_file
from benchmarks.workload import Bar, Figure, Point, Run, Workload
from perdure.actors import start
from perdure.model import Job, get_queue
from perdure.model.clock import SystemClock

__all__ = ["HELD", "WORKLOADS", "steps"]

HELD = (1_000_000, 1_000)
READY = (5_000, 100)
FEW = (10_000, 200)
TURNS = 3
FIRST_STEP = 1_000
LONG_SECONDS = 3600.0
QUOTA = "desk"
FAR = timedelta(days=365)


def steps(held: int) -> list[int]:
    """The numbers of held jobs at which is measured: powers of ten, and the last."""
    found = []
    step = FIRST_STEP
    while step < held:
        found.append(step)
        step *= 10
    return [*found, held]


class Side:
    """A database with a system that runs its jobs, and that is paused between measurements."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._done = 0
        self._held = 0
        self._pause(True)

    def _pause(self, paused: bool) -> None:
        with self.stage.transaction() as connection:
            queue = get_queue(connection)
            queue.pause() if paused else queue.resume()

    def wait_until_sorted_in(self) -> float:
        """Wait until no job is unseen by the dispatcher; how many seconds it took."""
        begun = time.perf_counter()

        def look() -> bool:
            with self.stage.transaction() as connection:
                return get_queue(connection).unsorted_count() == 0

        wait_for(look, "not all jobs are sorted in", LONG_SECONDS, LOOK_SECONDS)
        return time.perf_counter() - begun

    def drain(self, number: int) -> float:
        """Let that many of the ready jobs be done; how many in a second."""
        self.wait_until_sorted_in()
        before = self.stage.counts().completed
        begun = time.perf_counter()
        self._pause(False)
        done = self.stage.wait_until_done(before + number, limit=LONG_SECONDS)
        passed = time.perf_counter() - begun
        self._pause(True)
        return (done - before) / passed

    def pass_by(self) -> float:
        """Let one job be done, for which all that is held has to be passed; the seconds."""
        begun = time.perf_counter()
        self.stage.fill(note_jobs(1, transactional=True))
        self.drain(1)
        return time.perf_counter() - begun


@contextlib.contextmanager
def _side(folder: Path, prepare: Callable[[Stage], None]) -> Iterator[Side]:
    folder.mkdir()
    with stage_on_file(folder) as stage, start(stage.database, {"": WORKERS}):
        # The agent is there after the first poll.
        wait_for(lambda: stage.agents(), "no agent is there")
        prepare(stage)
        yield Side(stage)


def _compared(
    run: Run, kind: str, prepare: Callable[[Stage], None], jobs: Callable[[int], Iterable[Job]]
) -> dict[str, float]:
    """Let jobs of a kind be held, ever more of them, beside a database that holds none.

    The two are drained in turns, so that what else the machine has to do meets both.
    """
    ready = run.size(*READY)
    series = run.series[kind] = []
    with (
        _side(run.folder / kind, prepare) as held,
        _side(run.folder / f"{kind}-none", prepare) as none,
    ):
        count = 0
        for step in steps(run.jobs or run.size(*HELD)):
            before = count
            held.stage.fill(
                jobs(step - count),
                functools.partial(_tell, run, kind, before, step),
            )
            count = step
            run.progress(f"W6, {kind}: {step:,} are held, and drained beside")
            first_pass = held.pass_by()
            rates: dict[Side, list[float]] = {held: [], none: []}
            for turn in range(TURNS):
                for side in (held, none) if turn % 2 else (none, held):
                    side.stage.fill(note_jobs(ready, transactional=True))
                    rates[side].append(side.drain(ready))
            series.append(_point(step, rates[held], rates[none]))
        return {
            f"{kind}: first pass": first_pass,
            kind: statistics.median(rates[held]),
            f"{kind}: none held": statistics.median(rates[none]),
        }


def _tell(run: Run, kind: str, before: int, step: int, done: int) -> None:
    run.progressed(f"W6, {kind}, put", before + done, step)


def _point(held: int, rates: Iterable[float], others: Iterable[float]) -> Point:
    rate, other = statistics.median(rates), statistics.median(others)
    return held, rate, other, rate / other


def _backlog(run: Run) -> dict[str, float]:
    """Drain the first of ever more ready jobs, and as many of a few."""
    ready, few_ready = run.size(*READY), run.size(*FEW)
    series = run.series["ready"] = []
    with (
        _side(run.folder / "ready", _nothing) as many,
        _side(run.folder / "ready-none", _nothing) as few,
    ):
        for step in steps(max(run.jobs or run.size(*HELD), 2 * few_ready)):
            if step <= few_ready:
                continue
            rates: dict[Side, list[float]] = {many: [], few: []}
            for turn in range(TURNS):
                for side in (many, few) if turn % 2 else (few, many):
                    before = side.stage.counts().pending
                    side.stage.fill(
                        note_jobs(
                            (step if side is many else few_ready) - before, transactional=True
                        ),
                        functools.partial(_tell, run, "ready", before, step),
                    )
                    rates[side].append(side.drain(ready))
            series.append(_point(step, rates[many], rates[few]))
    return {
        "ready": statistics.median(rates[many]),
        "ready: a few": statistics.median(rates[few]),
    }


def _nothing(stage: Stage) -> None:
    """Leave a database as it is."""


def hold(run: Run) -> Mapping[str, float]:
    """Hold jobs for each reason, and drain others meanwhile."""
    log_to(run.folder / "log")
    return {
        **_compared(run, "scheduled", _nothing, _scheduled),
        **_compared(run, "quota", _close_quota, _blocked),
        **_compared(run, "filter", _set_filter, _plain),
        **_backlog(run),
    }


def _plain(number: int) -> Iterator[Job]:
    return (Job(idle) for _ in range(number))


def _scheduled(number: int) -> Iterator[Job]:
    for job in _plain(number):
        job.begin_after = SystemClock().now() + FAR
        yield job


def _blocked(number: int) -> Iterator[Job]:
    for _ in range(number):
        job = Job(idle)
        job.quota_names = (QUOTA,)
        yield job


def _close_quota(stage: Stage) -> None:
    with stage.transaction() as connection:
        get_queue(connection).quotas.create(QUOTA, size=0)


def _set_filter(stage: Stage) -> None:
    with stage.transaction() as connection:
        for record in get_queue(connection).dispatchers.records():
            record["main"].filter = is_noted_by


def _figures(kind: str, other: str, least: float) -> tuple[Figure, ...]:
    bar = Bar(least=least, against=f"{kind}: {other}")
    return Figure(kind, "/s", (bar,)), Figure(f"{kind}: {other}", "/s")


WORKLOADS = (
    Workload(
        "W6",
        "drain while {held} jobs are held",
        "FileStorage with fsync; one process, 4 workers; {held} jobs are scheduled for next year, "
        "or blocked by a quota, or refused by the agent's filter; after a first pass, in which "
        "one job is done, {ready} transactional jobs as in W2 are drained, sorted in before, in "
        "turns with a database that holds none; ready: the first {ready} of {held} that are "
        "ready, in turns with those of {few}",
        (
            *_figures("scheduled", "none held", 0.9),
            *_figures("quota", "none held", 0.9),
            *_figures("filter", "none held", 0.9),
            *_figures("ready", "a few", 0.8),
            *(Figure(f"{kind}: first pass", "s") for kind in ("scheduled", "quota", "filter")),
        ),
        hold,
        rounds=1,
        sizes={"held": HELD, "ready": READY, "few": FEW},
    ),
)
