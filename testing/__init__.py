"""Perdure's simulator: the real runtime under a clock, an order and a disk that a test holds.

A `World` has simulated processes, each with the real actors on a database of its own, all on
one `Disk`. Of all their threads exactly one runs at a time; the same choices make the same run.
"""

if __name__ != "perdure.testing":
    raise ImportError(
        f"this is perdure.testing, imported as {__name__}: install the project and import it as "
        "perdure.testing"
    )

from perdure.testing.choosers import Calm, Chooser, Recorded, Seeded
from perdure.testing.crashes import BreakReport, BrokenError, break_everywhere, crash_everywhere
from perdure.testing.disk import Commit, Disk, MemoryStorage
from perdure.testing.errors import NotAtRestError, ProcessCrashed, SimulationError, StuckError
from perdure.testing.exploring import COMMITS, ExploreReport, OrderError, explore
from perdure.testing.files import FileDisk, FileImage, Loss, losses_of, open_file
from perdure.testing.losses import LossReport, lose_everywhere
from perdure.testing.process import Process
from perdure.testing.storage import Call, Fault
from perdure.testing.turmoil import Trouble, turmoil
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
    "Seeded",
    "SimulationError",
    "StuckError",
    "Trouble",
    "World",
    "break_everywhere",
    "crash_everywhere",
    "explore",
    "lose_everywhere",
    "losses_of",
    "open_file",
    "turmoil",
]
