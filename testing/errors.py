"""What the simulator raises."""

from __future__ import annotations

from perdure.model.errors import PerdureError

__all__ = ["NotAtRestError", "ProcessCrashed", "SimulationError", "StuckError"]


class SimulationError(PerdureError):
    """Something that cannot be simulated was tried, or went wrong with the simulator itself."""


class StuckError(SimulationError):
    """No thread can go on, whatever time it is, or they go on without end while no time passes.

    The text has their states.
    """


class NotAtRestError(SimulationError):
    """There still was something to do when the time had passed in which all was to be done."""


class ProcessCrashed(BaseException):
    """Raised in the threads of a simulated process that has crashed, to end them.

    Also raised in the test's own thread, where it does something for that process. It is no
    `Exception`, so that nothing handles it by mistake.
    """
