"""Pytest plugin: which lines of the specification the tests of this run have proved.

The lines are read from ``docs/spec.md``: a list item ``- J7 …`` is a line, ``- J8 (planned) …``
one that comes with a later release. A test says what it proves by
``@pytest.mark.spec("J7", "H1")``. A line is

proved
    when a test that is marked with it passed and none failed;
failed
    when one failed;
not run
    when tests are marked with it, of which none ran (or all were skipped);
missing
    when no test is marked with it, and it is not planned for later;
begun
    when it is planned for later, and tests of a part of it have passed already.

For the table of a whole run the claims are read from the sources of the tests, so that they are
complete whatever was skipped; an id that is not on the page is an error before the first test. A
run of tests that were named says only what it has proved, and reads no other tests.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.tree import DOCS, ROOT, TESTS

PROPERTY = "spec"

_LINE = re.compile(r"^- ([A-Z]\d+) (\(planned\) )?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SpecLine:
    """One line of the specification."""

    id: str
    planned: bool

    @property
    def section(self) -> str:
        return self.id[0]


def read_lines(text: str) -> list[SpecLine]:
    """The lines of the page `text`, in its order; `ValueError` for an id that is there twice."""
    lines = [SpecLine(found[1], found[2] is not None) for found in _LINE.finditer(text)]
    ids = [line.id for line in lines]
    if twice := {id_ for id_ in ids if ids.count(id_) > 1}:
        raise ValueError(f"twice in the specification: {' '.join(sorted(twice))}")
    return lines


def claims_in(source: str) -> Iterator[tuple[str, int]]:
    """Each id that a ``pytest.mark.spec(…)`` of the module `source` names, with its line."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "spec"
            and isinstance(node.func.value, ast.Attribute)
            and node.func.value.attr == "mark"
        ):
            for argument in node.args:
                yield ast.literal_eval(argument), argument.lineno


def read_claims(folder: Path) -> dict[str, list[str]]:
    """The places, ``tests/test_x.py:7``, at which each id is claimed."""
    claims: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for id_, number in claims_in(path.read_text(encoding="utf-8")):
            claims.setdefault(id_, []).append(f"{path.relative_to(ROOT).as_posix()}:{number}")
    return claims


def states(
    lines: Iterable[SpecLine],
    claimed: Iterable[str],
    outcomes: Mapping[str, Iterable[str]],
) -> dict[str, str]:
    """The state of each line, by id; `outcomes` has those of the marked tests that ran."""
    claimed = set(claimed)

    def state(line: SpecLine) -> str:
        ran = set(outcomes.get(line.id, ()))
        if "failed" in ran:
            return "failed"
        if "passed" in ran:
            return "begun" if line.planned else "proved"
        if ran or line.id in claimed:
            return "not run"
        return "planned" if line.planned else "missing"

    return {line.id: state(line) for line in lines}


def table(lines: Iterable[SpecLine], state_of: Mapping[str, str]) -> list[str]:
    """The rows to print: per section the ids in each state, and the sums."""
    lines = list(lines)
    order = ["failed", "not run", "missing", "planned", "begun", "proved"]
    rows = []
    for section in dict.fromkeys(line.section for line in lines):
        ids = [line.id for line in lines if line.section == section]
        for state in order:
            if found := [id_ for id_ in ids if state_of[id_] == state]:
                rows.append(f"{section}  {state:8} {len(found):3}  {' '.join(found)}")
    sums = {state: sum(1 for line in lines if state_of[line.id] == state) for state in order}
    later = sums["planned"] + sums["begun"]
    rows.append(
        f"{sums['proved']} of {len(lines) - later} due lines proved: {sums['failed']} failed, "
        f"{sums['not run']} claimed but not run, {sums['missing']} missing; "
        f"{later} planned for later"
    )
    return rows


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--spec-table",
        action="store_true",
        help="print the whole table of the specification's lines after a partial run too",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "spec(*ids): the lines of docs/spec.md that it proves")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SpecTable(config), "perdure-spec-table")


def pytest_itemcollected(item: pytest.Item) -> None:
    ids = sorted({id_ for mark in item.iter_markers("spec") for id_ in mark.args})
    if ids:
        item.user_properties.append((PROPERTY, " ".join(ids)))


class SpecTable:
    """Collects the reports in the process that prints them (the controller, under xdist)."""

    def __init__(self, config: pytest.Config) -> None:
        self.lines = read_lines((DOCS / "spec.md").read_text(encoding="utf-8"))
        self.outcomes: dict[str, set[str]] = {}
        self.whole = config.args_source is not pytest.Config.ArgsSource.ARGS or config.getoption(
            "--spec-table"
        )
        self.claims = read_claims(TESTS) if self.whole else {}
        known = {line.id for line in self.lines}
        if unknown := {id_: places for id_, places in self.claims.items() if id_ not in known}:
            raise pytest.UsageError(
                "not in docs/spec.md: "
                + "; ".join(f"{id_} ({', '.join(places)})" for id_, places in unknown.items())
            )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return  # a fixture that was made or ended proves nothing
        for name, value in report.user_properties:
            if name == PROPERTY:
                for id_ in str(value).split():
                    self.outcomes.setdefault(id_, set()).add(report.outcome)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        state_of = states(self.lines, self.claims, self.outcomes)
        if self.whole:
            terminalreporter.section("lines of the specification")
            for row in table(self.lines, state_of):
                terminalreporter.line(row)
        elif self.outcomes:
            ran = [
                f"{id_} {state_of.get(id_, 'is not in docs/spec.md')}"
                for id_ in sorted(self.outcomes)
            ]
            terminalreporter.section("lines of the specification in this run")
            terminalreporter.line(", ".join(ran))
