"""Perdure's simulator: the real runtime under a clock, an order and a disk that a test holds.

A `World` has simulated processes, each with the real actors on a database of its own, all on
one `Disk`. Of all their threads exactly one runs at a time; the same choices make the same run.
"""

if __name__ != "perdure.testing":
    raise ImportError(
        f"this is perdure.testing, imported as {__name__}: install the project and import it as "
        "perdure.testing"
    )

import importlib
from typing import TYPE_CHECKING, Any

from perdure.testing.choosers import Calm, Chooser, Recorded, Seeded
from perdure.testing.crashes import BreakReport, BrokenError, break_everywhere, crash_everywhere
from perdure.testing.disk import Commit, Disk, MemoryStorage
from perdure.testing.errors import NotAtRestError, ProcessCrashed, SimulationError, StuckError
from perdure.testing.exploring import COMMITS, ExploreReport, OrderError, explore
from perdure.testing.process import Process
from perdure.testing.storage import Call, Fault
from perdure.testing.world import World

if TYPE_CHECKING:
    from perdure.testing import strategies
    from perdure.testing.machine import RuntimeMachine

__all__ = [
    "COMMITS",
    "BreakReport",
    "BrokenError",
    "Call",
    "Calm",
    "Chooser",
    "Commit",
    "Disk",
    "ExploreReport",
    "Fault",
    "MemoryStorage",
    "NotAtRestError",
    "OrderError",
    "Process",
    "ProcessCrashed",
    "Recorded",
    "RuntimeMachine",
    "Seeded",
    "SimulationError",
    "StuckError",
    "World",
    "break_everywhere",
    "crash_everywhere",
    "explore",
    "strategies",
]


def __getattr__(name: str) -> Any:
    """Import what needs Hypothesis when it is asked for, and not before."""
    if name not in ("RuntimeMachine", "strategies"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        strategies = importlib.import_module("perdure.testing.strategies")
        machine = importlib.import_module("perdure.testing.machine")
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ImportError(
            f"perdure.testing.{name} needs Hypothesis, which is not installed: "
            "install perdure[testing]",
            name=error.name,
        ) from error
    return strategies if name == "strategies" else machine.RuntimeMachine
