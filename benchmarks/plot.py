"""Drawing what held jobs cost: the drain of others, against how many are held."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from benchmarks.report import ReportError

__all__ = ["DRAWN", "digest", "draw"]

DRAWN = ROOT / "docs" / "_static" / "held.svg"

MARKS = {"scheduled": "o", "quota": "s", "filter": "^", "ready": "D"}


def digest(series: Mapping[str, Any]) -> str:
    """What stands in a drawing and says from which results it was made."""
    return hashlib.sha256(json.dumps(series, sort_keys=True).encode()).hexdigest()


def draw(document: Mapping[str, Any], path: Path | None = None) -> Path:
    """Draw the series of W6 into a file of SVG (default: that of the docs), and return where.

    Raises `ReportError` where they were not measured, matplotlib is missing, or the file cannot
    be written. The same results make the same file.
    """
    path = path or DRAWN
    series = document["workloads"].get("W6", {}).get("series")
    if not series:
        raise ReportError("W6 was not measured: run python -m benchmarks W6 --json FILE first")
    try:
        import matplotlib
    except ImportError as error:
        raise ReportError("plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "perdure", "svg.fonttype": "none"})
    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    for kind, points in series.items():
        held, ratios = [point[0] for point in points], [point[3] for point in points]
        axes.plot(held, ratios, marker=MARKS.get(kind, "x"), label=kind)
    axes.axhline(1, color="0.7", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("jobs that are held")
    axes.set_ylabel("drain of others,\nas a share of that with none")
    axes.legend(loc="lower left")
    figure.tight_layout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"Date": None, "Description": digest(series)}
        figure.savefig(path, format="svg", metadata=told)
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        pyplot.close(figure)
    # As editors and checks of white space want it.
    lines = [line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
