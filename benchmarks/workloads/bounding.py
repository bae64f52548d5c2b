"""W11: what the bounds of groups and batches cost, and what they save.

The bounds are constants of `perdure.model.grouping`. Here they are given other values, so that
those that they have can be seen to be sensible, or not to be.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import count
from pathlib import Path
from unittest.mock import patch

from benchmarks.jobs import pause
from benchmarks.stage import Stage, stage_on_file
from benchmarks.workload import Figure, Run, Workload
from perdure.model import Job, get_queue, grouping

__all__ = ["WORKLOADS"]

SECONDS = (1.0, 0.05)
"""For so long a drain lasts about, if its calls are all that takes time."""

TURNS = (3, 1)
LONG = 60.0
"""As good as no bound, in seconds."""

CALL_SECONDS = 0.001
SURPRISE_SECONDS = 0.1
EACH = 250
"""One call of so many is a surprise: it takes a hundred times as long as the others."""
LENGTHS = sorted({0.005, 0.01, 0.02, 0.05, 0.1, 0.2, grouping.GROUP_SECONDS})
QUICK = 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02
INSTANT = 0.0, 0.0001, 0.0002, 0.0005, 0.001
BRIEF = 0.0, 0.0002, 0.0005, 0.001, 0.002, 0.004

QUICKLY = 0.0005, grouping.GROUP_SECONDS

_OVERHEAD_SECONDS = 0.0005
"""What a job costs besides its call, roughly; for the sizes alone."""

_numbers = count()


@contextlib.contextmanager
def _filled(
    folder: Path, number: int, seconds: float, transactional: bool = True, surprises: bool = False
) -> Iterator[Stage]:
    place = folder / str(next(_numbers))
    place.mkdir()
    with stage_on_file(place) as stage:
        jobs = [
            Job(pause, SURPRISE_SECONDS if surprises and not each % EACH else seconds)
            for each in range(1, number + 1)
        ]
        for job in jobs:
            job.transactional = transactional
        stage.fill(jobs)
        yield stage


def _rate(run: Run, seconds: float, *, transactional: bool = True, **bounds: float) -> float:
    """Drain calls that take so long, with other bounds; how many in a second."""
    number = int(run.size(*SECONDS) / (seconds + _OVERHEAD_SECONDS))
    with _bounded(bounds), _filled(run.folder, number, seconds, transactional) as stage:
        return stage.drain(number)


@contextlib.contextmanager
def _bounded(bounds: Mapping[str, float]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, value in bounds.items():
            stack.enter_context(patch.object(grouping, name, value))
        yield


def _lengths(run: Run, kind: str, *, surprises: bool) -> dict[str, float]:
    """Let groups last for so long at most; what that costs, and how long a result waits."""
    found: dict[str, float] = {}
    points = run.bounds[kind] = []
    number = int(run.size(*SECONDS) / CALL_SECONDS)
    for length in _some(run, LENGTHS):
        run.progress(f"W11, {kind}: {length * 1000:g} ms")
        rates: dict[float, list[float]] = {length: [], LONG: []}
        waits: list[float] = []
        for turn in range(run.size(*TURNS)):
            for each in (length, LONG) if turn % 2 else (LONG, length):
                with (
                    _bounded({"GROUP_SECONDS": each}),
                    _filled(run.folder, number, CALL_SECONDS, surprises=surprises) as stage,
                ):
                    rates[each].append(stage.drain(number))
                    if each == length:
                        waits.append(_longest_wait(stage))
        ratio = _ratio(rates[length], rates[LONG])
        wait = statistics.median(waits)
        points.append((length * 1000, ratio, wait * 1000))
        if length == grouping.GROUP_SECONDS:
            found["groups of that length"] = statistics.median(rates[length])
            found["groups of any length"] = statistics.median(rates[LONG])
            found["longest wait"] = wait * 1000
    return found


def _longest_wait(stage: Stage) -> float:
    """How long the result of a call waited, at most, for the commit of its group; in seconds."""
    longest = timedelta()
    with stage.transaction() as connection:
        for record in get_queue(connection).dispatchers.records():
            for agent in record.agents():
                for job in agent.completed:
                    own = timedelta(seconds=job.args[0])
                    longest = max(longest, job.active_end - job.active_start - own)
    return longest.total_seconds()


def _some(run: Run, values: Sequence[float]) -> Sequence[float]:
    """All of them; in a quick run one that matters, since there it is to be seen to work."""
    return [value for value in values if value in QUICKLY] if run.quick else values


def _compared(
    run: Run,
    kind: str,
    bound: str,
    calls: Sequence[float],
    *,
    transactional: bool = True,
    **others: float,
) -> None:
    """Drain ever longer calls with what the bound is for, and without it, in turns."""
    points = run.bounds[kind] = []
    for seconds in _some(run, calls):
        run.progress(f"W11, {kind}: calls of {seconds * 1000:g} ms")
        rates: dict[float, list[float]] = {LONG: [], 0.0: []}
        for turn in range(run.size(*TURNS)):
            for value in (LONG, 0.0) if turn % 2 else (0.0, LONG):
                bounds = {bound: value, **others}
                rates[value].append(_rate(run, seconds, transactional=transactional, **bounds))
        points.append((seconds * 1000, _ratio(rates[LONG], rates[0.0]), None))


def _ratio(rates: Sequence[float], others: Sequence[float]) -> float:
    ratio = statistics.median(a / b for a, b in zip(rates, others, strict=True))
    return float(f"{ratio:.3g}")


def measure_bounds(run: Run) -> Mapping[str, float]:
    """Measure what each bound costs, and what it saves."""
    found = _lengths(run, "length of a group", surprises=False)
    surprised = _lengths(run, "length, with surprises", surprises=True)
    found["longest wait, with surprises"] = surprised["longest wait"]
    _compared(run, "in groups", "QUICK_SECONDS", QUICK)
    _compared(run, "one worker at a time", "_INSTANT_SECONDS", INSTANT)
    _compared(run, "in batches", "_BRIEF_SECONDS", BRIEF, transactional=False)
    return found


WORKLOADS: tuple[Workload, ...] = (
    Workload(
        "W11",
        "the bounds of groups and batches",
        "FileStorage with fsync; one process, 4 workers; transactional jobs whose calls sleep "
        "for 1 ms, in groups that are committed when they have lasted 100 ms, in turns with "
        "groups that last as long as they like; surprises: of 250 calls, one sleeps for 100 ms; "
        "and what the part on bounds tells",
        (
            Figure("groups of that length", "/s"),
            Figure("groups of any length", "/s"),
            Figure("longest wait", "ms"),
            Figure("longest wait, with surprises", "ms"),
        ),
        measure_bounds,
        rounds=1,
    ),
)
