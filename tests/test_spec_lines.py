"""The table of the specification's lines tells what the tests have proved, and no more."""

from __future__ import annotations

import pytest

from support.spec_lines import SpecLine, claims_in, read_lines, states, table

PAGE = """
## J. Job

- J1 First.
  It mentions (planned) and J7.
- J8 (planned) Later.
- Not a line.
"""


def test_a_line_is_an_item_that_begins_with_an_id():
    assert read_lines(PAGE) == [SpecLine("J1", False), SpecLine("J8", True)]


def test_an_id_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="twice in the specification: J1"):
        read_lines("- J1 a\n- J1 b\n")


def test_claims_are_found_in_decorators_and_parameters():
    source = (
        "@pytest.mark.spec('J1', 'H2')\n"
        "@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.spec('Q3'))])\n"
        "def test_x(x): pass\n"
    )

    assert set(claims_in(source)) == {("J1", 1), ("H2", 1), ("Q3", 2)}


@pytest.mark.parametrize(
    ("claimed", "outcomes", "state"),
    [
        ([], {}, "missing"),
        (["J1"], {}, "not run"),
        (["J1"], {"J1": {"skipped"}}, "not run"),
        ([], {"J1": {"skipped"}}, "not run"),
        (["J1"], {"J1": {"passed", "skipped"}}, "proved"),
        (["J1"], {"J1": {"passed", "failed"}}, "failed"),
    ],
)
def test_a_due_line_is_proved_only_by_tests_that_passed(claimed, outcomes, state):
    assert states([SpecLine("J1", False)], claimed, outcomes) == {"J1": state}


def test_a_planned_line_is_not_missing():
    assert states([SpecLine("J8", True)], [], {}) == {"J8": "planned"}


def test_a_planned_line_is_not_proved_by_tests_of_a_part_of_it():
    assert states([SpecLine("J8", True)], ["J8"], {"J8": {"passed"}}) == {"J8": "begun"}


def test_the_table_counts_what_is_due():
    lines = [SpecLine(id_, id_ in ("J8", "J9")) for id_ in ("J1", "J8", "J9", "H1")]

    assert table(lines, {"J1": "proved", "J8": "planned", "J9": "begun", "H1": "missing"}) == [
        "J  planned    1  J8",
        "J  begun      1  J9",
        "J  proved     1  J1",
        "H  missing    1  H1",
        "1 of 2 due lines proved: 0 failed, 0 claimed but not run, 1 missing; 2 planned for later",
    ]
