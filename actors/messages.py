"""The messages between actors.

Each is a frozen, slotted dataclass of immutable parts; none carries a persistent object.
They are grouped by conversation.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ActorCrashed", "ActorGivenUp", "UnknownMessageTold"]


# Supervision: an actor → whoever its context reports to, the moment it happens. Nothing
# answers and nothing hangs on it: the actor restarts itself, and has logged the same. A
# report that gets lost costs a line in the status.


@dataclass(frozen=True, slots=True)
class ActorCrashed:
    """An actor's `on_start` or `tell` handler raised; the actor restarts in place."""

    actor_name: str
    actor_urn: str
    reason_text: str
    count: int  # of the crashes that are within the actor's crash window, this one included


@dataclass(frozen=True, slots=True)
class ActorGivenUp:
    """An actor crashed too often; from now on it refuses everything but to stop."""

    actor_name: str
    actor_urn: str
    reason_text: str
    count: int


@dataclass(frozen=True, slots=True)
class UnknownMessageTold:
    """An actor was told something that it has no handler for, and dropped it."""

    actor_name: str
    actor_urn: str
    message_type: str
