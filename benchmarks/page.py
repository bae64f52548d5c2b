"""The figures on docs/performance.md, which come from docs/performance.json alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmarks import report
from benchmarks.processes import ROOT
from benchmarks.registry import REGISTRY
from benchmarks.report import ReportError, conditions, rows, shown

__all__ = ["PAGE", "filled", "write"]

PAGE = ROOT / "docs" / "performance.md"

_PART = re.compile(r"(<!-- (\w+): begin -->\n).*?(<!-- \2: end -->)", re.DOTALL)


def filled(page: str, document: Mapping[str, Any]) -> str:
    """Return the text of a page with its parts written anew.

    Each part is between two comments, ``<!-- results: begin -->`` and ``<!-- results: end -->``.
    Raises `ReportError` for a part that is not known.
    """

    def part(match: re.Match[str]) -> str:
        if match[2] not in _PARTS:
            raise ReportError(
                f"the page has a part {match[2]!r}: there are {', '.join(_PARTS)}, no others"
            )
        lines = "\n".join(_PARTS[match[2]](document))
        return f"{match[1]}\n{lines}\n\n{match[3]}"

    return _PART.sub(part, page)


def write(document: Mapping[str, Any]) -> None:
    """Write docs/performance.md anew."""
    try:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(filled(text, document), encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{PAGE} cannot be written: {error.strerror}") from error


def _table(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> Iterator[str]:
    columns = list(columns)
    yield _line(columns)
    yield _line("---" for _ in columns)
    yield from map(_line, lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def _results(document: Mapping[str, Any]) -> Iterator[str]:
    lines = []
    for name, result in document["workloads"].items():
        for row in rows(name, result):
            lines.append((f"[{row[0]}](#{row[0].lower()})" if row[0] else "", *row[1:]))
    yield from _table(report.COLUMNS, lines)
    missing = [name for name in REGISTRY if name not in document["workloads"]]
    if missing:
        yield ""
        yield f"Not measured yet: {', '.join(missing)}."


def _workloads(document: Mapping[str, Any]) -> Iterator[str]:
    gap = False
    for name, result in document["workloads"].items():
        if gap:
            yield ""
        gap = True
        yield f"### {name}"
        yield ""
        title = result["title"]
        yield f"{title[0].upper()}{title[1:]}."
        yield ""
        limits = ", ".join(
            f"{each} {shown(value, '/s')}" for each, value in result["limits"].items()
        )
        for text in (*conditions(result), f"The storage alone: {limits}", result["measured"]):
            yield f"- {text}."


def _machine(document: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {each}" for name, each in document["versions"].items())
    yield f"Measured on {document['system']}; Python {document['python']}, {versions}."


def _held(document: Mapping[str, Any]) -> Iterator[str]:
    series = document["workloads"].get("W6", {}).get("series", {})
    counts = sorted({point[0] for points in series.values() for point in points})
    lines = []
    for count in counts:
        ratios = []
        for points in series.values():
            found = {held: ratio for held, _, _, ratio in points}
            ratios.append(f"{found[count]:.2f}" if count in found else "")
        lines.append((f"{count:,}", *ratios))
    yield from _table(("held", *series), lines)


def _bounds(document: Mapping[str, Any]) -> Iterator[str]:
    measured = document["workloads"].get("W11", {}).get("bounds", {})
    for kind, points in measured.items():
        waits = any(wait is not None for _, _, wait in points)
        yield f"*{kind[0].upper()}{kind[1:]}*"
        yield ""
        lines = [
            (f"{milliseconds:g} ms", f"{ratio:.2f}", *([f"{wait:.0f} ms"] if waits else []))
            for milliseconds, ratio, wait in points
        ]
        first = "at most" if waits else "a call takes"
        yield from _table((first, "ratio", *(["longest wait"] if waits else [])), lines)
        yield ""


_PARTS = {
    "results": _results,
    "workloads": _workloads,
    "machine": _machine,
    "held": _held,
    "bounds": _bounds,
}
