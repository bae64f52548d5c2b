"""How long things may take where several processes share a file."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The times after which a process gives up on another one.

    `wait`: how long a call waits while nobody serves the file. `unshared`: how long an opening
    waits for a process that has the file and does not say that it shares it. `vote`: how long a
    client may keep the others waiting between its vote and its finish. `turn`: how long a
    client's vote waits for the commits before it; then it fails with a `ConflictError`, so that
    transactions over two files that two processes own cannot wait for each other for ever.
    `close`: how long a close waits for a commit that is under way.
    """

    wait: timedelta = timedelta(seconds=30)
    unshared: timedelta = timedelta(seconds=3)
    vote: timedelta = timedelta(seconds=8)
    turn: timedelta = timedelta(seconds=30)
    close: timedelta = timedelta(seconds=10)
