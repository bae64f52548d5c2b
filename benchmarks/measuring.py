"""Measuring a workload: its rounds, with the storage's limits before and after each."""

from __future__ import annotations

import configparser
import contextlib
import importlib.metadata
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import limits
from benchmarks.jobs import stop_logging
from benchmarks.peers import outside
from benchmarks.processes import ROOT
from benchmarks.workload import Bar, Figure, Run, Workload
from perdure.model.clock import SystemClock

__all__ = ["machine", "measure"]

LIBRARIES = ("perdure", "ZODB", "ZEO", "BTrees", "persistent", "transaction", "pykka")


def machine() -> dict[str, Any]:
    """What was measured on, and which versions."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str:
    if name == "perdure":
        # What is measured may be run from its source.
        parser = configparser.ConfigParser()
        parser.read(ROOT / "setup.cfg", encoding="utf-8")
        return parser["metadata"]["version"]
    return importlib.metadata.version(name)


def measure(
    workload: Workload,
    *,
    quick: bool = False,
    jobs: int | None = None,
    peers: Sequence[str] = (),
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
    around: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
) -> dict[str, Any]:
    """Measure a workload, and return what there is to say of it, as JSON knows it.

    Each round has a new folder in `folder` (default: that of temporary files), which is on the
    disk that is measured. `around`, where there is one, makes what the workload runs in, once.
    Raises `WrongError` where jobs did not do what they were put for.
    """
    load = os.getloadavg()[0]
    rounds: list[dict[str, float]] = []
    series: dict[str, Any] = {}
    bounds: dict[str, Any] = {}
    told: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix="perdure-") as place:
        for number in range(1 if quick or around else workload.rounds):
            own = Path(place, str(number))
            own.mkdir()
            run = Run(own, quick, jobs, progress)
            progress(f"{workload.name}: round {number + 1}")
            before = limits.measured(workload.limits, Path(place), quick=quick)
            try:
                with around() if around else contextlib.nullcontext():
                    found = dict(workload.run(run))
            finally:
                stop_logging()
            for peer in peers:
                if workload.peer in outside.PEERS[peer].operations:
                    progress(f"{workload.name}: round {number + 1}, {peer}")
                    there = outside.measured(peer, workload.peer, own, quick=quick)
                    found |= {f"{peer} {each}".strip(): v for each, v in there.values.items()}
                    told[peer] = there.conditions
            after = limits.measured(workload.limits, Path(place), quick=quick)
            found |= {name: (before[name] + after[name]) / 2 for name in before}
            rounds.append(found)
            series |= run.series
            bounds |= run.bounds
    return {
        "title": workload.told(run, workload.title),
        "conditions": workload.told(run, workload.conditions),
        "peers": told,
        "rounds": len(rounds),
        "measured": SystemClock().now().date().isoformat(),
        "load": round(load, 1),
        "quick": quick,
        "limits": {name: _rounded(_median(rounds, name)) for name in workload.limits},
        "figures": [_figure(each, workload, rounds, tuple(told)) for each in workload.figures],
        "series": series,
        "bounds": bounds,
    }


def _figure(
    figure: Figure, workload: Workload, rounds: Sequence[Mapping[str, float]], peers: Sequence[str]
) -> dict[str, Any]:
    """A figure with its ratios and bars.

    A ratio is the median of those of the rounds, in which the machine was the same.
    """
    figures = {each.name for each in workload.figures}
    against = [bar.against for bar in figure.bars]
    if figure.bars and not figures & {*against}:
        against = [*(workload.limits if figure.unit == "/s" else ()), *peers, *against]
    rows = [_compared(bar, _median(rounds, figure.name)) for bar in figure.bars if not bar.against]
    for name in dict.fromkeys(against):
        # What a peer has measured is one rate, or has the names of the figures.
        there = next((each for each in (f"{name} {figure.name}", name) if each in rounds[0]), None)
        if there is None:
            continue
        ratio = statistics.median(each[figure.name] / each[there] for each in rounds)
        bars = [bar for bar in figure.bars if bar.against == name]
        rows += [
            {
                "against": name,
                "there": _rounded(_median(rounds, there)),
                "ratio": _rounded(ratio),
                **extra,
            }
            for extra in [_compared(bar, ratio) for bar in bars] or [{}]
        ]
    return {
        "name": figure.name,
        "unit": figure.unit,
        "value": _rounded(_median(rounds, figure.name)),
        "each": [_rounded(each[figure.name]) for each in rounds],
        "compared": rows,
    }


def _compared(bar: Bar, value: float) -> dict[str, Any]:
    sides = {"least": bar.least, "most": bar.most}
    return {
        **{name: side for name, side in sides.items() if side is not None},
        "met": bar.is_met(value),
    }


def _median(rounds: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in rounds)


def _rounded(value: float) -> float:
    """Four digits, which is more than is known."""
    return float(f"{value:.4g}")
