"""Every order: a scenario, run once for each way in which its threads can take turns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from perdure.testing.choosers import Recorded, Taken
from perdure.testing.errors import SimulationError
from perdure.testing.scheduler import nothing_logged
from perdure.testing.world import World

__all__ = ["COMMITS", "ExploreReport", "OrderError", "explore"]

COMMITS = ("receive", "sync", "begin")
"""The points at which an order shows: what is loaded is as of the `sync`, and nobody else commits
between `begin` and the end of a commit, so that no other point makes a difference."""


class OrderError(AssertionError):
    """A scenario failed in one order; the text tells which, and why."""


@dataclass(frozen=True, slots=True)
class ExploreReport:
    """How many orders were run, how many choices the longest had, and whether those were all."""

    runs: int
    choices: int
    complete: bool

    def __str__(self) -> str:
        rest = "all there are" if self.complete else "and there are more"
        return f"{self.runs} orders of up to {self.choices} choices, {rest}"


def explore(
    scenario: Callable[[World], object],
    *,
    preemptions: int = 2,
    delays: int | None = None,
    depth: int | None = None,
    most_runs: int | None = None,
    points: Collection[str] = COMMITS,
    at: Sequence[int] | None = None,
) -> ExploreReport:
    """Run a scenario in every order in which few threads are kept from going on.

    Most faults that an order brings to light need one or two threads to be kept waiting in the
    wrong moment; the orders in which that befalls at most `preemptions` of them are few enough
    to be run all.

    :param scenario: called with a new world each time; asserts what has to hold. Apart from the
        order, whatever it does has to be the same each time. What it does in `World.calmly`
        has one order only.
    :param preemptions: how often a thread that could go on may be kept from it; 0 or more.
    :param delays: how often anybody but the next in line may go on, wherever that is (default:
        without limit, where the one that went on until then has to wait anyway). Orders grow
        with a power of their length that is this, and not exponentially.
    :param depth: vary that many choices at most, the first ones (default: all).
    :param most_runs: stop after so many (default: when all were run).
    :param points: where another thread may go on.
    :param at: repeat one order, as the text of a failure gives it, with all that is logged.
    :raises OrderError: at the first order in which the scenario raised something.
    """
    if preemptions < 0:
        raise SimulationError(f"preemptions must be 0 or more, not {preemptions!r}")
    if delays is not None and delays < 0:
        raise SimulationError(f"delays must be 0 or more, not {delays!r}")
    if at is not None:
        taken = _run(scenario, points, list(at))
        return ExploreReport(1, len(taken), complete=False)
    runs = choices = 0
    prefix: list[int] | None = []
    while prefix is not None and (most_runs is None or runs < most_runs):
        with nothing_logged():
            taken = _run(scenario, points, prefix)
        runs += 1
        choices = max(choices, len(taken))
        prefix = _next(taken[:depth], preemptions, delays)
    return ExploreReport(runs, choices, complete=prefix is None)


def _run(
    scenario: Callable[[World], object], points: Collection[str], prefix: list[int]
) -> list[Taken]:
    chooser = Recorded(prefix)
    with World(chooser=chooser, points=points) as world:
        try:
            scenario(world)
        except Exception as error:
            order = [taken.index for taken in chooser.taken]
            while order and not order[-1]:
                order.pop()
            name = getattr(scenario, "__name__", scenario)
            others = "" if points == COMMITS else f", points={points!r}"
            raise OrderError(
                f"{type(error).__name__}: {error}\nin this order:\n{world.scheduler.story()}\n"
                f"to repeat it: explore({name}{others}, at={order})"
            ) from error
    return chooser.taken


def _next(taken: list[Taken], preemptions: int, delays: int | None) -> list[int] | None:
    """Return the choices that the next run begins with, None after the last one."""
    preempted, delayed = [0], [0]
    for each in taken:
        preempted.append(preempted[-1] + each.preempts)
        delayed.append(delayed[-1] + (each.index > 0))
    for position in reversed(range(len(taken))):
        each = taken[position]
        index = each.index + 1
        allowed = not each.goes_on or preempted[position] < preemptions
        if delays is not None and delayed[position] >= delays:
            allowed = False
        if index < each.count and allowed:
            return [before.index for before in taken[:position]] + [index]
    return None
