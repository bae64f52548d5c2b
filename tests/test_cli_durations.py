"""Durations and moments as people type and read them."""

from __future__ import annotations

import datetime
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cli.durations import parse_duration, parse_moment, show_duration, show_moment

NOW = datetime.datetime(2026, 11, 25, 17, 30, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("90s", 90),
        ("1.5s", 1.5),
        ("10m", 600),
        ("2h", 7200),
        ("7d", 604800),
        ("2w", 1209600),
        ("1h30m", 5400),
        (" 1D12H ", 129600),
    ],
)
def test_a_duration_is_read(text, seconds):
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", "90", "s", "-1s", "10 m", "1h30", "1m1m", "ten", "1e3s", "9999999999d", "1y", "١s"],
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="is no duration|longer than any time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (None, ""),
        (timedelta(0), "0s"),
        (timedelta(milliseconds=2), "0.002s"),
        (timedelta(seconds=5), "5s"),
        (timedelta(seconds=5.25), "5.2s"),
        (timedelta(seconds=59.99), "60s"),
        (timedelta(minutes=2), "2m"),
        (timedelta(seconds=3661), "1h1m"),
        (timedelta(days=7), "7d"),
        (timedelta(days=1, seconds=1), "1d"),
        (timedelta(seconds=-90), "-1m30s"),
    ],
)
def test_a_duration_is_shown_in_two_units_at_most(duration, text):
    assert show_duration(duration) == text


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=10_000)))
def test_what_is_shown_is_read_again_as_nearly_the_same(duration):
    shown = parse_duration(show_duration(duration))

    assert abs(shown - duration) <= max(timedelta(milliseconds=1), duration * 0.05)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-25T18:00+01:00", datetime.datetime(2026, 11, 25, 17, tzinfo=datetime.UTC)),
        ("2026-11-25T18:00Z", datetime.datetime(2026, 11, 25, 18, tzinfo=datetime.UTC)),
        ("20261125T180000Z", datetime.datetime(2026, 11, 25, 18, tzinfo=datetime.UTC)),
        ("2026-11-25 18:00", datetime.datetime(2026, 11, 25, 18).astimezone()),
        ("2026-11-25", datetime.datetime(2026, 11, 25).astimezone()),
    ],
)
def test_a_moment_is_read_and_without_a_zone_it_is_local(text, moment):
    found = parse_moment(text, NOW)

    assert found == moment and found.utcoffset() == timedelta(0)


def test_a_time_alone_is_of_today():
    local = NOW.astimezone()

    assert parse_moment(f"{local:%H:%M}", NOW) == NOW


@pytest.mark.parametrize(
    "text", ["", "soon", "25:00", "2026-13-01", "17", "0001-01-01T00:00+14:00"]
)
def test_what_is_no_moment_is_refused(text):
    with pytest.raises(ValueError, match="is no time"):
        parse_moment(text, NOW)


def test_a_moment_is_shown_in_local_time():
    assert show_moment(NOW) == f"{NOW.astimezone():%Y-%m-%d %H:%M:%S}"
    assert show_moment(None) == ""
