"""Children that a job's code forks, and that come out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["end_forked_child", "ending_forked_children"]


def end_forked_child(job: Job) -> None:
    """End this process: a copy of the one that runs `job`, made by its code and left by it."""
    text = f"perdure: a child that {job.callable_name} has forked came out of it, and ends"
    with suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="replace"))
    os._exit(1)


@contextmanager
def ending_forked_children(job: Job) -> Iterator[None]:
    """End a child that the job has forked, and that comes out of the job's code.

    It is a copy of this worker, with a database that is not its own.
    """
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != process:
            end_forked_child(job)
