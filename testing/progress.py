"""A bar on the terminal, where something takes long."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from perdure.model.clock import Clock, SystemClock

__all__ = ["shown"]

T = TypeVar("T")

SHOWN_AFTER_SECONDS = 3.0


def shown(
    what: str,
    items: Iterable[T],
    *,
    console: Console | None = None,
    clock: Clock | None = None,
) -> Generator[T, None, None]:
    """Yield the items; after some real seconds show how many of them are done.

    :param what: what the bar says.
    :param console: where it is shown, if that is a terminal (default: standard error).
    :param clock: measures how long it takes (default: the machine's).
    """
    console = console or Console(stderr=True)
    clock = clock or SystemClock()
    total = len(items) if isinstance(items, Sized) else None
    begun = clock.monotonic()
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with contextlib.ExitStack() as stack:
        bar = Progress(*columns, console=console, transient=True)
        task = bar.add_task(what, total=total)
        for item in items:
            yield item
            bar.advance(task)
            long = clock.monotonic() - begun >= SHOWN_AFTER_SECONDS
            if long and console.is_terminal and not bar.live.is_started:
                stack.enter_context(bar)
