"""The two loggers, and what every record about a job carries."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.model.job import Job

__all__ = ["SUCCEEDED", "events", "fields", "trace"]

events = logging.getLogger("perdure.events")
"""What an operator wants to see."""

trace = logging.getLogger("perdure.trace")
"""What each job went through."""

# Without it, a program that has not set up logging would show the warnings on stderr.
trace.addHandler(logging.NullHandler())


SUCCEEDED = "%r succeeded with %s"
"""The message of a job that has succeeded, by which others know it."""


def fields(
    job: Job | None = None, *, queue: str = "", agent: str = "", dispatcher: str = ""
) -> dict[str, Any]:
    """Return the fields for a record's `extra`: job, queue, agent and dispatcher.

    Never raises: a log call must not fail for a job that cannot be read.
    """
    found = {"job": "", "queue": queue, "agent": agent, "dispatcher": dispatcher}
    if job is None:
        return found
    try:
        found["job"] = str(job.ref) if job._p_oid is not None else ""
        if job.queue is not None:
            found["queue"] = job.queue.name
        if job.agent is not None:
            found["agent"] = job.agent.name
            found["dispatcher"] = str(job.agent.record.uuid)
    # The database may be away just when this is logged.
    except Exception:
        found.setdefault("job", "")
    return found
