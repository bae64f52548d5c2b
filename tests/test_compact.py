"""What is stored of a job, in few bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.model.compact import (
    Numbered,
    packed,
    packed_agent,
    unpacked,
    unpacked_agent,
)
from perdure.model.inbox import Inbox
from perdure.model.record import JobRecord
from perdure.model.status import Status
from perdure.model.stripe import LineKey, Stripe

MOMENTS = ("_begin_after", "_active_start", "_active_end", "_callbacks_end")

NEW = "_status_name", "new"
"""That of a job which has not begun, and so by default."""

moments = st.integers(min_value=-(2**40), max_value=2**53)
states = st.fixed_dictionaries(
    {},
    optional={
        "_callable": st.text(),
        "_status_name": st.sampled_from([status.value for status in Status]) | st.just("snoozed"),
        "_stamp": moments,
        "_claim": st.integers(),
        "_result": st.integers() | st.text(),
        "of an application": st.none() | st.integers(),
        **dict.fromkeys(MOMENTS, moments),
    },
)


@given(states)
def test_a_state_is_read_as_it_was_written(state: dict[str, object]) -> None:
    kept = {name: value for name, value in state.items() if (name, value) != NEW}
    assert unpacked(packed(state)) == kept


@pytest.mark.spec("J4")
@given(states)
def test_what_most_jobs_have_is_stored_without_names(state: dict[str, object]) -> None:
    state.pop("of an application", None)
    written = packed(state)
    assert isinstance(written, tuple) is ("_stamp" in state)
    # One more that few have, and it is as ever.
    rare = {**state, "_begin_by": 1}
    assert isinstance(packed(rare), dict)
    assert unpacked(packed(rare)) == {k: v for k, v in rare.items() if (k, v) != NEW}


def test_of_what_most_jobs_have_nothing_is_stored_behind_the_last() -> None:
    assert packed({"_callable": "a:b", "_stamp": 7, "_begin_after": 9, "_result": None}) == (
        "a:b", None, None, 7, 2
    )  # fmt: skip


@given(states)
def test_a_state_that_was_written_with_names_is_read_too(state: dict[str, object]) -> None:
    assert unpacked(state) == state


def test_what_is_none_is_not_stored_but_by_an_application() -> None:
    assert packed({"_result": None, "theirs": None}) == {"theirs": None}


@pytest.mark.spec("J4")
def test_what_is_stored_of_a_job_has_a_number_each() -> None:
    few = {"_deaths", "_keeps_places", "_waits_for", "_futures", "_alone"}
    stored = {
        name
        for name, default in vars(JobRecord).items()
        if name.startswith("_") and not name.startswith("__") and not callable(default)
    }
    stored -= {"_owns_result", "_guards", "_p_resolveConflict", *few}
    names = {name for name in stored if not isinstance(default_of(name), property)}
    numbers = {name: next(iter(packed({name: 1, "theirs": 1}))) for name in names}
    assert [name for name, number in numbers.items() if not isinstance(number, int)] == []
    assert len(set(numbers.values())) == len(numbers)


def default_of(name: str) -> object:
    return vars(JobRecord)[name]


SMALL = [
    (Inbox, {"stripe": 3, "entries": 0, "retiring": True, "theirs": {}}),
    (Stripe, {"_cursors": {}, "_lines": {LineKey(): 1}, "_counts": {LineKey(): 0}, "theirs": 1}),
]


@pytest.mark.spec("Q7")
@pytest.mark.parametrize(("kind", "attributes"), SMALL, ids=["inbox", "stripe"])
def test_small_records_have_numbers_for_names(
    kind: type[Numbered], attributes: dict[str, object]
) -> None:
    made = kind.__new__(kind)
    vars(made).update(attributes)
    state = made.__getstate__()
    assert [name for name in state if not isinstance(name, int)] == ["theirs"]
    assert {} not in [value for name, value in state.items() if name != "theirs"]
    for written in (state, attributes):
        read = kind.__new__(kind)
        read.__setstate__(written)
        assert vars(read) == attributes


class Stored:
    """Stands for a job that is stored."""

    def __init__(self, number: int) -> None:
        self._p_oid = number.to_bytes(8, "big")


@pytest.mark.spec("J4")
@given(st.lists(st.integers(min_value=-(2**62), max_value=2**62), max_size=5))
def test_what_an_agent_holds_is_read_as_it_was_written_now_and_at_first(
    numbers: list[int],
) -> None:
    jobs = [Stored(each) for each in range(len(numbers))]
    held = {job._p_oid: (job, number) for job, number in zip(jobs, numbers, strict=True)}
    state = {"name": "main", "_held": held, "_left": {}}
    written = packed_agent(state)
    assert unpacked_agent(written) == state
    at_first = [each for entry in held.values() for each in entry]
    assert unpacked_agent({1: "main", 5: at_first} if at_first else {1: "main"}) == state
    # One value for all the numbers.
    assert not held or written[5][1:] == jobs


@pytest.mark.parametrize("kind", [Inbox, Stripe])
def test_each_attribute_of_a_small_record_has_a_number_of_its_own(kind: type[Numbered]) -> None:
    made = kind(0) if kind is Inbox else kind()
    assert vars(made).keys() <= kind._numbers.keys()
    assert len(set(kind._numbers.values())) == len(kind._numbers)
