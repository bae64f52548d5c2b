"""Every deliberate fault of ``tests/mutants`` is noticed by the tests that it names."""

from __future__ import annotations

import pytest
from mutants.runner import (
    Mutant,
    MutantError,
    apply,
    failing_without_fault,
    matches,
    named_tests,
    read_mutants,
    unnoticed,
)

from support.spec_lines import read_lines
from support.tree import DOCS

MUTANTS = read_mutants()

PARTS = 8
"""In how many runs the tests are run without a fault: side by side, none of them long."""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.proves}-{mutant.name}")
def test_a_deliberate_fault_is_noticed(mutant, tmp_path):
    assert unnoticed(mutant, tmp_path) == set()


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("part", range(PARTS))
def test_without_a_fault_the_named_tests_pass(part, tmp_path):
    assert failing_without_fault(named_tests(MUTANTS)[part::PARTS], tmp_path) == set()


def test_every_section_of_the_specification_that_is_due_has_a_mutant():
    lines = read_lines((DOCS / "spec.md").read_text(encoding="utf-8"))
    due = {line.section for line in lines if not line.planned} - {"X"}  # X names sections' faults

    assert due - {mutant.section for mutant in MUTANTS} == set()


def test_no_mutant_names_the_tests_of_the_mutants():
    assert not [m.name for m in MUTANTS if any("test_mutants" in test for test in m.tests)]


def test_the_names_of_mutants_differ():
    names = [mutant.name for mutant in MUTANTS]

    assert len(names) == len(set(names))


@pytest.mark.parametrize("text", ["a = 0\n", "a = 1\nb = [1]\na = 1\n"])
def test_a_fault_that_does_not_fit_exactly_once_is_refused(tmp_path, text):
    path = tmp_path / "perdure" / "model" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)

    with pytest.raises(MutantError, match="not once"):
        apply(Mutant("n", "J1", "model/x.py", "a = 1", "a = 2", ("tests/test_x.py",)), tmp_path)


@pytest.mark.parametrize(
    ("test", "matched"),
    [
        ("tests/test_x.py::test_y", True),
        ("tests/test_x.py::test_y[1]", True),
        ("tests/test_x.py::test_y[2]", False),
        ("tests/test_x.py::test_z", False),
        ("tests/test_x.py", True),
        ("tests/test_xy.py", False),
    ],
)
def test_a_named_test_is_found_in_the_report(test, matched):
    assert matches(("tests.test_x", "test_y[1]"), test) is matched
