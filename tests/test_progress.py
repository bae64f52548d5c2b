"""The bar that is shown where breaking a scenario takes long."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
from rich.console import Console

from perdure.testing.progress import shown
from support.manual_clock import ManualClock


@pytest.mark.parametrize(
    ("terminal", "seconds", "seen"), [(True, 2, True), (True, 0, False), (False, 2, False)]
)
def test_a_bar_is_shown_on_a_terminal_where_it_takes_long(
    terminal: bool, seconds: int, seen: bool
) -> None:
    clock = ManualClock()
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    done = []
    for item in shown("runs", [1, 2, 3, 4], console=console, clock=clock):
        done.append(item)
        clock.advance(timedelta(seconds=seconds))
    assert done == [1, 2, 3, 4]
    assert ("4/4" in file.getvalue()) is seen
    assert ("runs" in file.getvalue()) is seen


def test_a_bar_is_taken_away_where_the_work_is_broken_off() -> None:
    clock = ManualClock()
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    items = shown("runs", [1, 2, 3], console=console, clock=clock)
    next(items)
    clock.advance(timedelta(seconds=5))
    next(items)
    assert "1/3" in file.getvalue()
    items.close()
    assert "\x1b[?25h" in file.getvalue(), "the cursor is hidden still"
