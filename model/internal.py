"""Jobs that the system makes for itself: each deals with another job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.model.errors import BadStatusError
from perdure.model.job import Job
from perdure.model.resolving import is_loadable

if TYPE_CHECKING:
    from perdure.model.queue import Queue

__all__ = ["InternalJob", "is_suspect"]

_KINDS = ("interrupt", "resume", "expire", "follow", "recover")


class InternalJob(Job):
    """Deals with `serves`, whose own record says how far that has come.

    `kind` is ``"interrupt"`` (put it to its policy as interrupted), ``"resume"`` (run
    its callbacks), ``"expire"`` (fail it, since its deadline has passed) or
    ``"follow"`` (let `outer`, which it is or has among its callbacks, hear that `inner` has
    ended, and go on with it if that ends it) or ``"recover"`` (take it from its agent, whose
    dispatcher died under the claim with the number `claim`, and was buried by one that could
    not load the job). It may be run any number of times, so that it needs no policy: losing
    its worker only puts it back into the queue. An interruption and a resumption note the
    `claim` by which the job was taken from its worker: once it was claimed again, they are over.
    """

    claim: int | None = None
    outer: Job | None = None
    inner: Job | None = None
    heard = False
    """Whether `outer` has heard."""
    goes_on = False
    """Whether that has ended it, so that its callbacks are this one's to run."""

    def __init__(self, kind: str, job: Job, claim: int | None = None) -> None:
        super().__init__(_serve, kind)
        self.kind = kind
        self.serves = job
        if claim is not None:
            self.claim = claim

    def __setstate__(self, state: Any) -> None:
        """Take what is stored; raises `BadStatusError` for a kind that is not known here."""
        kind = (state or {}).get("kind")
        if kind not in _KINDS:
            raise BadStatusError(
                f"its kind is {kind!r}, which this version of Perdure does not know: run it with "
                "the version that has stored it"
            )
        super().__setstate__(state)

    @property
    def is_over(self) -> bool:
        """Whether its job was dealt with, and claimed since; that may wait for another by now."""
        noted = self.kind in ("interrupt", "resume") and self.claim is not None
        return noted and self.serves._claim != self.claim

    def _enter_for(self, queue: Queue, job: Job) -> None:
        """Wait in the place of `job`, without going through an inbox."""
        self._move("put")
        self._queue = queue
        self._begin_after = job._begin_after
        self._due = job._due
        self._stamp = job._stamp
        self._first = job._first


def _serve(kind: str) -> None:
    raise NotImplementedError(f"the runner deals with internal jobs of kind {kind} itself")


def is_suspect(job: Job) -> bool:
    """Tell whether `job` is suspect, or is to run callbacks of one that is."""
    if not is_loadable(job):
        return False
    if isinstance(job, InternalJob) and job.kind == "resume" and is_loadable(job.serves):
        return job.suspect or job.serves.suspect
    return job.suspect
