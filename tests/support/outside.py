"""What jobs do outside of the database, looked at in each place where a crash could come.

What is here must not count as an application's code itself: see `perdure.testing.outliving`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from perdure.testing import Process
from perdure.testing.choosers import Calm
from perdure.testing.outliving import ApplicationWatch, Mark, mark_of
from support.simulated import letters

__all__ = ["InTurns", "Outside", "States"]


class InTurns(Calm):
    """Lets another go on at each point; what it chooses depends on nothing else."""

    def choose(self, names: Sequence[str], goes_on: bool, /) -> int:
        return int(goes_on)


class Outside:
    """What is there, but for letters."""

    marked = False
    folder = Path()


class States:
    """Notes what is outside wherever a mark is taken."""

    def __init__(self) -> None:
        self.by_mark: dict[Mark, set[tuple[object, ...]]] = {}

    def mark(self, process: Process, watch: ApplicationWatch) -> Mark:
        """Take the place of `mark_of`."""
        mark = mark_of(process, watch)
        state = tuple(letters), Outside.marked, Outside.folder.exists()
        self.by_mark.setdefault(mark, set()).add(state)
        return mark
