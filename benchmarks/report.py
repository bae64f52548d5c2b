"""What was measured: as a table on the screen, in a file of JSON, and on a page of the docs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["ReportError", "check_writable", "empty", "load", "print_workload", "rows", "save"]

COLUMNS = ("workload", "figure", "measured", "against", "there", "ratio", "bar", "met")
NUMBERS = ("measured", "there", "ratio")


class ReportError(Exception):
    """A file of results cannot be read or written."""


def empty(machine: Mapping[str, Any]) -> dict[str, Any]:
    """A document without results."""
    return {**machine, "workloads": {}}


def load(path: Path) -> dict[str, Any]:
    """Read a document; raises `ReportError` for what is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ReportError(
            f"{path} is no JSON ({error}): name another file, or remove this one"
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("workloads"), dict):
        raise ReportError(
            f"{path} has no results of these workloads: name another file, or remove this one"
        )
    return document


def check_writable(path: Path) -> dict[str, Any] | None:
    """What is in the file, None for nothing; raises `ReportError` if it could not be written."""
    existed = path.exists()
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise ReportError(
            f"{path} cannot be written: {error.strerror}; name a file in a folder that is there "
            "and that you may write to"
        ) from error
    if existed and path.stat().st_size:
        return load(path)
    if not existed:
        path.unlink()
    return None


def save(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document."""
    try:
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror}") from error


def rows(name: str, result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The rows of a table about one workload; what repeats the row above is left empty."""
    for number, figure in enumerate(result["figures"]):
        first = ("" if number else name, figure["name"], shown(figure["value"], figure["unit"]))
        for row in figure["compared"] or [{}]:
            against = row.get("against", "")
            yield (
                *first,
                against,
                shown(row["there"], figure["unit"]) if against else "",
                f"{row['ratio']:,.3g}" if against else "",
                _bar(row, figure["unit"]),
                {True: "yes", False: "no", None: ""}[row.get("met")],
            )
            first = ("", "", "")


def shown(value: float, unit: str) -> str:
    """A figure with its unit."""
    digits = 0 if value == int(value) or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    gap = "" if unit == "%" else " "
    return f"{value:,.{digits}f}{gap}{unit}".strip()


def _bar(row: Mapping[str, Any], unit: str) -> str:
    for side, sign in (("least", "≥"), ("most", "≤")):
        if side in row:
            number = f"{row[side]:,g}"
            return f"{sign} {number} ×" if "against" in row else f"{sign} {number} {unit}".strip()
    return ""


def conditions(result: Mapping[str, Any]) -> Iterator[str]:
    """Under which conditions it was measured, a text each."""
    yield result["conditions"]
    rounds = result["rounds"]
    more = ", quick sizes" if result["quick"] else ""
    more += ", profiled: no figure is worth anything" if result.get("profiled") else ""
    yield f"{'One round' if rounds == 1 else f'Median of {rounds} rounds'}{more}"
    yield from result["peers"].values()
    if "load" in result:
        yield f"Load of the machine before it began: {result['load']:g}"


def print_workload(name: str, result: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    """Print a table about one workload."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        # Nothing is cut for a file or a pipe.
        console = Console(highlight=False, width=1_000)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in NUMBERS else "left")
    for row in rows(name, result):
        table.add_row(*map(Text, row))
    console.print(Text(f"{name}: {result['title']}", style="bold"))
    console.print(table)
    limits = ", ".join(f"{each} {shown(value, '/s')}" for each, value in result["limits"].items())
    for text in (*conditions(result), f"The storage alone: {limits}"):
        console.print(Text(f"  {text}"))
    console.print()
