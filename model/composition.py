"""Jobs made of other jobs: one after the other, or all at once."""

from __future__ import annotations

from typing import Any

from perdure.model.errors import BadStatusError, PerdureError
from perdure.model.failure import Failure
from perdure.model.following import await_jobs, outcome_of
from perdure.model.job import Job, as_job
from perdure.model.status import Status

__all__ = ["Composite", "parallel", "serial"]


def serial(*jobs: Any, postprocess: Any = None) -> Composite:
    """Return a job that runs `jobs` one after the other, and then `postprocess`.

    :param jobs: NEW jobs, or what becomes one. They are put into the queue of the whole when
        their turn comes, with settings of their own: quotas, policy, callbacks.
    :param postprocess: a callable or a NEW job; it is called with all the jobs, behind the
        arguments that it has itself, when the last one has ended, and what it returns is the
        result. Without it, the result is the tuple of the jobs.

    A job is over when it failed, was cancelled or expired, too; its callbacks are waited for.
    More of them may be added to the whole's `args` until the postprocess begins: by a job of
    the whole, or by a callback of one. While it waits, the whole needs no worker, no place
    and no quota. Raises `BadStatusError` for a job that is not NEW, `NotStorableError` for
    what cannot be stored. Touches no transaction.
    """
    return Composite(jobs, postprocess, all_at_once=False)


def parallel(*jobs: Any, postprocess: Any = None) -> Composite:
    """Return a job that runs `jobs` all at once, and then `postprocess`; see `serial`."""
    return Composite(jobs, postprocess, all_at_once=True)


class Composite(Job):
    """A job made of others, which are its `args`; made by `serial` and `parallel`."""

    _ended: tuple[Job, ...] = ()
    _finishing = False
    all_at_once = False
    postprocess: Job | None = None
    """What is called at the end with the jobs, or None."""

    def __init__(self, jobs: tuple[Any, ...], postprocess: Any, *, all_at_once: bool) -> None:
        super().__init__(_begin_parts)
        if all_at_once:
            self.all_at_once = True
        if postprocess is not None:
            self.postprocess = as_job(postprocess)
            _check_new(self.postprocess)
        self.args = jobs

    def _set_arguments(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        if kwargs:
            raise TypeError(f"{self!r} has jobs only, and no keyword arguments: {sorted(kwargs)}")
        known = list(self._args)
        parts = [as_job(arg) for arg in args]
        for part in parts:
            if not any(part is other for other in known):
                _check_new(part)
        if len({id(part) for part in parts}) < len(parts):
            raise BadStatusError(f"{self!r} can have each job once only")
        super()._set_arguments(parts, {})

    def _changeable(self) -> tuple[Status, ...]:
        statuses = super()._changeable()
        return statuses if self._finishing else (*statuses, Status.ACTIVE)

    def begin_parts(self) -> None:
        """Let the first of its jobs begin, or all of them; it waits then, or has ended."""
        self._ended = ()
        self._go_on()

    def _hear_of(self, inner: Job) -> bool:
        if inner is self.postprocess:
            self._end(outcome_of(inner))
        else:
            self._ended = (*self._ended, inner)
            try:
                self._go_on()
            # Raised here it would be tried again for ever; it is a fault of the job's.
            except (PerdureError, TypeError, ValueError) as error:
                self._waits_for = ()
                self._end(Failure(error))
        return self.status is not Status.ACTIVE

    def _go_on(self) -> None:
        # Compared one by one, a thousand jobs would take minutes.
        dealt_with = {id(each) for each in (*self._ended, *self._waits_for)}
        for part in self._args:
            if id(part) in dealt_with:
                continue
            if part.status is Status.COMPLETED:
                self._ended = (*self._ended, part)
            elif self.all_at_once or not self._waits_for:
                await_jobs(self, [part])
        if not self._waits_for:
            self._finish()

    def _finish(self) -> None:
        self._finishing = True
        if self.postprocess is None:
            self._end(tuple(self._args))
        else:
            self.postprocess.args.extend(self._args)
            await_jobs(self, [self.postprocess])

    def _begin_anew(self) -> None:
        raise BadStatusError(
            f"{self!r} has run its jobs, and they are not run twice: retry those that failed"
        )


def _begin_parts(*parts: Job) -> None:
    raise NotImplementedError("the runner deals with composites itself")


def _check_new(job: Job) -> None:
    if job.status is not Status.NEW or job._parent is not None:
        raise BadStatusError(
            f"{job!r} is {job.status.name}"
            + (" and a callback" if job._parent is not None else "")
            + "; only a NEW job that nobody else runs can be a part of another"
        )
