"""Children that a job's code forks, and that come out of it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["end_forked_child", "ending_forked_children", "forks"]


_forks = 0


def _count() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count)


def forks() -> int:
    """Return how many forks lie between this process and the one that has loaded this module.

    It tells a child from its parent, and is no question to the system, as that for its id is. A
    fork that a library makes without Python's knowledge is not counted.
    """
    return _forks


def end_forked_child(job: Job) -> None:
    """End this process: a copy of the one that runs `job`, made by its code and left by it."""
    text = f"perdure: a child that {job.callable_name} has forked came out of it, and ends"
    with suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="replace"))
    os._exit(1)


class ending_forked_children:  # noqa: N801
    """End a child that the job has forked, and that comes out of the job's code.

    It is a copy of this worker, with a database that is not its own.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._forks = forks()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        if forks() != self._forks:
            end_forked_child(self._job)
