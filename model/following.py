"""Jobs that wait for jobs: how the one that waits hears of the end of the other.

A job that waits stays ACTIVE. No agent has it then, and no quota; it is kept by the jobs
that it waits for, each of which has a `Follow` among its callbacks. That one is called
last, and has the queue deal with the job that waits, by an internal job of the kind
``"follow"``, wherever that job can be loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from perdure.model.errors import AbortedError, BadStatusError, NotStorableError
from perdure.model.failure import Failure
from perdure.model.job import Job
from perdure.model.resolving import is_loadable, parent_of, queue_and_agent_of
from perdure.model.status import Status

if TYPE_CHECKING:
    from perdure.model.queue import Queue

__all__ = [
    "Follow",
    "await_jobs",
    "followers",
    "has_ended",
    "inner_ended",
    "outcome_of",
    "queue_to_follow",
    "whole_of",
]


class Follow(Job):
    """Tells `outer` of the end of the job that it is a callback of."""

    def __init__(self, outer: Job) -> None:
        super().__init__(_follow)
        self.outer = outer

    def _end_unheard(self) -> None:
        """End it without a run."""
        self._end(None, "fail")
        self._complete()


def _follow(result: object) -> None:
    raise NotImplementedError("the runner deals with these callbacks itself")


def has_ended(job: Job) -> bool:
    """Tell whether `job` has a result."""
    return job.status in (Status.CALLBACKS, Status.COMPLETED)


def whole_of(job: Job) -> Job:
    """Return the job that agents have in hand for `job`: itself, or what it is a callback of."""
    while True:
        queue, _ = queue_and_agent_of(job)
        parent = parent_of(job)
        if queue is not None or parent is None:
            return job
        job = parent


def await_jobs(outer: Job, inner: Iterable[Job]) -> None:
    """Let `outer`, which is ACTIVE, wait for jobs that have not ended.

    One that is in no queue is put into that of `outer`. Raises `BadStatusError` where one
    cannot end before `outer` does, and `NotStorableError` where nobody would run it.
    """
    for job in inner:
        _check_order(outer, job)
        job.add_callback(Follow(outer))
        if job.status is Status.NEW and job._parent is None:
            queue = outer.queue
            if queue is not None:
                queue.put(job)
            elif job._p_jar is None and outer._p_jar is not None:
                outer._p_jar.add(job)
        outer._waits_for = (*outer._waits_for, job)


def _check_order(outer: Job, inner: Job) -> None:
    """Raise `BadStatusError` where `inner` waits for `outer` itself, however indirectly."""
    whole = whole_of(outer)
    seen: list[Job] = []
    waiting = [inner]
    while waiting:
        job = whole_of(waiting.pop())
        if job is whole or job is outer:
            raise BadStatusError(
                f"{outer!r} cannot wait for {inner!r}, which cannot end before {outer!r} has: "
                "return a job that does not depend on it"
            )
        if not any(job is other for other in seen):
            seen.append(job)
            for member in _family(job):
                # Two that begin to wait for each other at the same time cannot both do so.
                if member._p_jar is not None:
                    member._p_jar.readCurrent(member)
                waiting += member._waits_for
    if inner._p_jar is not None and outer._p_jar not in (None, inner._p_jar):
        raise NotStorableError(
            f"{outer!r} cannot wait for {inner!r}, which was stored through another connection"
        )


def _family(job: Job) -> Iterator[Job]:
    yield job
    yield from job.descendants()


def queue_to_follow(outer: Job, inner: Job) -> Queue | None:
    """Return the queue that is to deal with `outer` when `inner` has ended, if there is one.

    `outer` need not be loadable where that is seen.
    """
    found: Queue | None = queue_and_agent_of(whole_of(outer))[0]
    return inner.queue if found is None else found


def followers(job: Job) -> list[Follow]:
    """Return those who are to hear of the end of `job`, and have not."""
    return [
        each
        for each in job.callbacks
        if is_loadable(each) and isinstance(each, Follow) and each.status is Status.NEW
    ]


def inner_ended(outer: Job, inner: Job) -> bool:
    """Let `outer` hear of the end of a job; tell whether it has ended with that.

    Harmless when repeated. The result of `inner`, a failure too, becomes that of an ordinary
    job; where `inner` was taken out of its queue that is an `AbortedError`.
    """
    if outer.status is not Status.ACTIVE or not any(inner is job for job in outer._waits_for):
        return False
    outer._waits_for = tuple(job for job in outer._waits_for if job is not inner)
    return outer._hear_of(inner)


def outcome_of(inner: Job) -> object:
    """Return what became of a job that was waited for."""
    if has_ended(inner):
        return inner.result
    return Failure(AbortedError(f"{inner!r} was taken out of its queue and does not run"))
