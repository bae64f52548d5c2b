"""Children that a job's code forks, and that come out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["ending_forked_children"]


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
            text = f"perdure: a child that {job.callable_name} has forked came out of it, and ends"
            with suppress(OSError):
                os.write(2, f"{text}\n".encode(errors="replace"))
            os._exit(1)
