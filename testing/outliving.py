"""What of a run outlives a crash: where that has not changed, two crashes leave the same."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from perdure.testing.choosers import Calm

if TYPE_CHECKING:
    from perdure.testing.process import Process

__all__ = ["ApplicationWatch", "Mark", "can_watch", "mark_of"]

Mark = tuple[object, ...]

RUNTIME = ("perdure.actors", "perdure.model", "perdure.storage", "perdure.testing")
LIBRARIES = frozenset(
    ("BTrees", "ZEO", "ZODB", "persistent", "pykka", "pytz", "transaction", "zodbpickle", "zope")
)

JOBS_OF_THE_SIMULATOR = ("perdure.testing.books", "perdure.testing.callables")
"""What is run as an application's code is, wherever it comes from."""

DOORS = ("enter", "leave")
"""Functions of `perdure.model.local`, which are called before and after an application's code."""


class ApplicationWatch:
    """Counts how often the code of an application was begun, left, or gone on with.

    While `watching`, Python tells it of each call and each return in the simulation's threads.
    Code that is neither the runtime's nor of a library that this uses is the application's:
    scenarios and jobs, policies and filters, and what reads and writes the records of its
    objects. A job whose callable is written in C is told by what surrounds it.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._known: dict[str, bool] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calling thread, and those that are started meanwhile; see `can_watch`."""
        sys.setprofile(self._see)
        threading.setprofile(self._see)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        # What Python calls by itself, to load an object say, has the application's frame behind.
        caller = frame.f_back
        if self._is_applications(frame) or (caller is not None and self._is_applications(caller)):
            self.steps += 1

    def _is_applications(self, frame: FrameType) -> bool:
        module = frame.f_globals.get("__name__") or ""
        known = self._known.get(module)
        if known is None:
            known = self._known[module] = _is_applications(module)
        return known or (module == "perdure.model.local" and frame.f_code.co_name in DOORS)


def can_watch() -> bool:
    """Tell whether there can be a watch: there is none beside a profiler, which needs the same."""
    return sys.getprofile() is None and threading.getprofile() is None


def _is_applications(module: str) -> bool:
    if module in JOBS_OF_THE_SIMULATOR:
        return True
    if any(module == room or module.startswith(f"{room}.") for room in RUNTIME):
        return False
    package = module.partition(".")[0]
    # A named tuple has a module of its own; whoever makes one is seen beside.
    named_tuple = package.startswith("namedtuple_")
    return not (named_tuple or package in LIBRARIES or package in sys.stdlib_module_names)


def mark_of(process: Process, watch: ApplicationWatch) -> Mark:
    """Return a mark of all that a crash of a process would leave now.

    Between two moments with the same mark no time has passed, nothing was done to the disk, no
    thread had a turn but the process's own, and no code of an application has run: whatever else
    has happened ends with the process.
    """
    world = process.world
    scheduler = world.scheduler
    choices = 0 if isinstance(scheduler.chooser, Calm) else scheduler.choices
    return (
        scheduler.seconds,
        world.disk.changes,
        scheduler.turns.total() - scheduler.turns[process.name],
        watch.steps,
        choices,
    )
