"""The states of a job and the arrows between them: the one table.

The code that moves a job, the diagram in the docs and the tests all work from
`ARROWS`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["ARROWS", "Arrow", "Status", "diagram"]


class Status(enum.Enum):
    """Where a job is in its life.

    PENDING and ASSIGNED are not stored: they follow from where the job is, in a
    queue or with an agent, so that they cannot disagree with it.
    """

    NEW = "new"
    PENDING = "pending"
    ASSIGNED = "assigned"
    ACTIVE = "active"
    CALLBACKS = "callbacks"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class Arrow:
    """One kind of move: what is called, from which statuses, to which.

    `why` is the sentence that the diagram and the docs show.
    """

    name: str
    sources: tuple[Status, ...]
    target: Status
    why: str


ARROWS: dict[str, Arrow] = {
    arrow.name: arrow
    for arrow in (
        Arrow("put", (Status.NEW,), Status.PENDING, "put into a queue"),
        Arrow("take out", (Status.PENDING,), Status.NEW, "pulled or removed from its queue"),
        Arrow("claim", (Status.PENDING,), Status.ASSIGNED, "claimed for an agent"),
        Arrow(
            "give back",
            (Status.ASSIGNED,),
            Status.PENDING,
            "its dispatcher ended before it began",
        ),
        Arrow("begin", (Status.NEW, Status.ASSIGNED), Status.ACTIVE, "it may have begun"),
        Arrow("end", (Status.ACTIVE,), Status.CALLBACKS, "its result is stored"),
        Arrow(
            "fail",
            (Status.NEW, Status.PENDING, Status.ASSIGNED),
            Status.CALLBACKS,
            "ended before it began",
        ),
        Arrow("reschedule", (Status.ACTIVE,), Status.PENDING, "to be run again later"),
        Arrow("renew", (Status.ACTIVE,), Status.NEW, "an interrupted callback, to be run again"),
        Arrow("retry", (Status.COMPLETED,), Status.PENDING, "failed, to be run again by hand"),
        Arrow("reopen", (Status.COMPLETED,), Status.NEW, "one of two callbacks, to choose anew"),
        Arrow("complete", (Status.CALLBACKS,), Status.COMPLETED, "no callback is left"),
    )
}
"""Every way in which a job can move, by its name."""


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> NEW"]
    lines += [
        f"    {source.name} --> {arrow.target.name}: {arrow.name}"
        for arrow in ARROWS.values()
        for source in arrow.sources
    ]
    return "\n".join([*lines, "    COMPLETED --> [*]"])
