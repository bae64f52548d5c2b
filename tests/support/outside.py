"""What jobs do outside of the database, looked at in each place where a crash could come."""

from __future__ import annotations

from pathlib import Path

from perdure.testing import Process
from perdure.testing.outliving import ApplicationWatch, Mark, mark_of
from support.simulated import letters

__all__ = ["Outside", "States"]


class Outside:
    """What is there, but for letters."""

    marked = False
    folder = Path()


class States:
    """Notes what is outside wherever a mark is taken.

    Its own code must not count as an application's.
    """

    def __init__(self) -> None:
        self.by_mark: dict[Mark, set[tuple[object, ...]]] = {}

    def mark(self, process: Process, watch: ApplicationWatch) -> Mark:
        """Take the place of `mark_of`."""
        mark = mark_of(process, watch)
        state = tuple(letters), Outside.marked, Outside.folder.exists()
        self.by_mark.setdefault(mark, set()).add(state)
        return mark
