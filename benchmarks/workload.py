"""What a workload is: what it measures, under which conditions, and what it has to reach."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

__all__ = [
    "GROUPED",
    "SMALL",
    "ZEO",
    "Bar",
    "Bound",
    "Figure",
    "Point",
    "Progress",
    "Run",
    "Workload",
    "WrongError",
]

SMALL = "small commits"
"""The storage's limit: how many commits of one small object one thread makes in a second."""

GROUPED = "groups of 32"
"""The same, for objects, with 32 of them in each commit."""

ZEO = "ZEO commits"
"""Small commits of one client of a server."""

Point: TypeAlias = tuple[int, float, float, float]
"""How many jobs are held, how many others are done in a second, how many where none are held, and
the ratio of the two."""

Bound: TypeAlias = tuple[float, float, float | None]
"""Milliseconds, a ratio of two rates, and the milliseconds of the longest wait, or None."""


SILENT_SECONDS = 10


class WrongError(Exception):
    """Jobs were lost, failed or had an effect twice, so that there is no figure."""


@dataclass(frozen=True)
class Bar:
    """What a figure has to reach: in its unit, or as a multiple of something else."""

    least: float | None = None
    most: float | None = None
    against: str = ""
    """A limit of the storage, a peer, or another figure of the workload; "": the bar is one in
    the figure's unit."""

    def is_met(self, value: float) -> bool:
        """Whether a figure, or its ratio, is good enough."""
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )


@dataclass(frozen=True)
class Figure:
    """Something that a workload measures."""

    name: str
    unit: str
    bars: tuple[Bar, ...] = ()


@dataclass
class Run:
    """What a workload is given for one round."""

    folder: Path
    """Its own, and empty."""
    quick: bool = False
    jobs: int | None = None
    """How many jobs are held, where that was chosen."""
    progress: Callable[[str], None] = lambda text: None
    series: dict[str, list[Point]] = field(default_factory=dict)
    """What was measured at several sizes, by its kind."""
    bounds: dict[str, list[Bound]] = field(default_factory=dict)
    """What was measured with several bounds, by what is bounded."""

    def size(self, usual: int, quick: int) -> int:
        """How much of something there is to be in this run."""
        return quick if self.quick else usual

    def progressed(self, what: str, done: int, of: int) -> None:
        """Say how far it is."""
        self.progress(f"{what}: {done:,} of {of:,}")


@dataclass(frozen=True)
class Workload:
    """A way to use the runtime, whose speed is measured.

    `run` returns the figures by their names, and raises `WrongError` where the jobs did not do
    what they were put for. `title` and `conditions` are told with the figures, formatted with
    `sizes`, the usual and the quick ones.
    """

    name: str
    title: str
    conditions: str
    figures: tuple[Figure, ...]
    run: Callable[[Run], Mapping[str, float]]
    limits: tuple[str, ...] = (SMALL, GROUPED)
    rounds: int = 3
    peer: str = ""
    """What the same is called among the workloads of the peers; "": there is none."""
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def told(self, run: Run, text: str) -> str:
        """The title or the conditions, with the sizes of a run."""
        sizes = {name: f"{run.size(*each):,}" for name, each in self.sizes.items()}
        if run.jobs is not None and "held" in sizes:
            sizes["held"] = f"{run.jobs:,}"
        return text.format(**sizes)


class Progress:
    """A line on standard error that says how far it is; where nobody looks, one now and then."""

    def __init__(self) -> None:
        self._shown = False
        self._next = 0.0

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self._shown = True
        elif time.monotonic() >= self._next:
            print(text, file=sys.stderr, flush=True)
            self._next = time.monotonic() + SILENT_SECONDS

    def end(self) -> None:
        """Take it away."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
