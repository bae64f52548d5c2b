"""Perdure's simulator: the real runtime under a clock, an order and a disk that a test holds.

A `World` has simulated processes, each with the real actors on a database of its own, all on
one `Disk`. Of all their threads exactly one runs at a time; the same choices make the same run.
"""

if __name__ != "perdure.testing":
    raise ImportError(
        f"this is perdure.testing, imported as {__name__}: install the project and import it as "
        "perdure.testing"
    )

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.testing import strategies
    from perdure.testing.choosers import Calm, Chooser, Recorded, Seeded
    from perdure.testing.crashes import (
        BreakReport,
        BrokenError,
        break_everywhere,
        crash_everywhere,
    )
    from perdure.testing.disk import Commit, Disk, MemoryStorage
    from perdure.testing.errors import NotAtRestError, ProcessCrashed, SimulationError, StuckError
    from perdure.testing.execution import SteppedClock
    from perdure.testing.exploring import COMMITS, ExploreReport, OrderError, explore
    from perdure.testing.files import FileDisk, FileImage, Loss, losses_of, open_file
    from perdure.testing.losses import LossReport, lose_everywhere
    from perdure.testing.machine import RuntimeMachine
    from perdure.testing.process import Process
    from perdure.testing.storage import Call, Fault
    from perdure.testing.system import SteppedSystem
    from perdure.testing.troubles import Trouble, turmoil
    from perdure.testing.world import World

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
    "FileDisk",
    "FileImage",
    "Loss",
    "LossReport",
    "MemoryStorage",
    "NotAtRestError",
    "OrderError",
    "Process",
    "ProcessCrashed",
    "Recorded",
    "RuntimeMachine",
    "Seeded",
    "SimulationError",
    "SteppedClock",
    "SteppedSystem",
    "StuckError",
    "Trouble",
    "World",
    "break_everywhere",
    "crash_everywhere",
    "explore",
    "lose_everywhere",
    "losses_of",
    "open_file",
    "strategies",
    "turmoil",
]

_MODULES = (
    "choosers",
    "crashes",
    "disk",
    "errors",
    "execution",
    "exploring",
    "files",
    "losses",
    "process",
    "storage",
    "system",
    "troubles",
    "world",
)
"""Where the public names are, but for those that need Hypothesis."""

_WITH_HYPOTHESIS = ("RuntimeMachine", "strategies")


def __getattr__(name: str) -> Any:
    if name in _WITH_HYPOTHESIS:
        return _with_hypothesis(name)
    # Not imported before it is used: pytest loads the plugin, and so this package, in each of
    # its runs, whatever they test.
    if name in __all__:
        for module_name in _MODULES:
            module = import_module(f"perdure.testing.{module_name}")
            if name in module.__all__:
                found = globals()[name] = getattr(module, name)
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _with_hypothesis(name: str) -> Any:
    try:
        strategies = import_module("perdure.testing.strategies")
        machine = import_module("perdure.testing.machine")
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ImportError(
            f"perdure.testing.{name} needs Hypothesis, which is not installed: "
            "install perdure[testing]",
            name=error.name,
        ) from error
    return strategies if name == "strategies" else machine.RuntimeMachine


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
