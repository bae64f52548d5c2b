"""Running a job: attempts, commits, retries, callbacks, all fenced.

A `Runner` works in one thread, with one connection. It keeps the jobs that it is busy
with on a stack, the one that was claimed at the bottom, its callbacks above it, and
does what the status of the topmost one asks for until the stack is empty. Every status
is stored before the next step, so that another runner can go on from any of them.

Where a job waits for a coroutine or a future, a runner that `suspends` leaves it and returns
what it waits for; any runner goes on with it once that has ended.

How it does it is in `steps` (transactions), `deciding` (retry policies), `attempting` (calls) and
`serving` (jobs without a callable), each on top of the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from ZODB.POSException import ConnectionStateError

from perdure.model.callbacks import CallbackProxy
from perdure.model.errors import JobTimeoutError, ReassignedError
from perdure.model.failure import Failure
from perdure.model.fence import Fence
from perdure.model.following import Follow
from perdure.model.internal import InternalJob
from perdure.model.job import Job
from perdure.model.logs import events, fields, placed, trace
from perdure.model.serving import Serving
from perdure.model.status import Status
from perdure.model.steps import Closed, Following, Lost, next_callback
from perdure.model.suspension import Ended, Suspension

__all__ = ["Runner"]


class Runner(Serving):
    """Runs jobs, one after the other, in the thread that calls it.

    `manager` is the transaction manager of the jobs' connection. Waits go through
    `stop`, and end with `StopRequested` when that is set. `on_result` is told the
    `JobRef` of each job whose result was committed. With `suspends`, it leaves a job that
    waits for a coroutine, a future, or the time of such a one's retry; without, it waits.
    """

    def run(
        self,
        root: Job,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        ended: Ended | None = None,
        viewed: bool = False,
        begun: bool = False,
        following: Following | None = None,
    ) -> Suspension | None:
        """Run `root` and its callbacks, from whatever status they are in.

        Return what is to be waited for, whereupon it is to be run again with that `Ended`;
        None when all is done. Whoever has an `Ended` closes what it is of, afterwards. With
        `viewed`, a transaction is open in which `root` was loaded and nothing was changed, and the
        log's place is set. With `begun` it is stored, for this run, that it has begun, and it is
        `viewed`. `following` is asked to begin in the commit in which `root` is completed.

        It must be held by this thread: claimed by its agent, or nobody else's. Raises
        `ReassignedError` where it is taken away meanwhile, `StopRequested`, and whatever
        else is no `Exception` and comes out of a job; the transaction is aborted then. What
        cannot be loaded raises what loading it raises, a connection that the job has closed
        `ConnectionStateError`.
        """
        with nullcontext() if viewed else placed(**fields(root)):
            self._begun = root if begun else None
            self._following = following
            return self._run_fenced(root, args, dict(kwargs or {}), ended, viewed)

    def _run_fenced(
        self,
        root: Job,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        ended: Ended | None,
        viewed: bool,
    ) -> Suspension | None:
        fence = self._fence = Fence(root)
        self._suspension = None
        self.call_seconds = None
        self._ended = ended
        self._manager.registerSynch(fence)
        try:
            self._run(root, args, kwargs, viewed)
            return self._suspension
        except Lost as lost:
            self._abort()
            events.error("%s", lost, extra=fields(root))
            raise ReassignedError(str(lost)) from lost.__cause__
        except Closed as closed:
            raise ConnectionStateError(str(closed)) from closed
        finally:
            self._abort()
            self._manager.unregisterSynch(fence)
            self._fence = None
            self._ended = None
            self._begun = None
            self._following = None

    def _run(self, root: Job, args: tuple[Any, ...], kwargs: dict[str, Any], viewed: bool) -> None:
        assert self._fence is not None
        stack = [root]
        while stack and not self._fence.released and self._suspension is None:
            job = stack[-1]
            if not viewed:
                self._view(job)
            viewed = False
            status = job.status
            if status is Status.COMPLETED or (status is Status.PENDING and job is stack[0]):
                stack.pop()
            elif isinstance(job, InternalJob):
                self._serve(job, stack)
            elif status is Status.CALLBACKS:
                waiting = next_callback(job)
                if waiting is None:
                    self._complete(job)
                else:
                    stack.append(waiting)
            elif status is Status.NEW and job is not root and self._late(job):
                events.error("callback %r has expired", job, extra=fields(job))
                error = JobTimeoutError(f"{job!r} was to begin by {job.deadline}, and did not")
                self._finish(job, Failure(error), "fail")
            elif isinstance(job, CallbackProxy):
                self._run_proxy(job, stack)
            elif isinstance(job, Follow):
                self._run_follow(job, stack)
            elif status is Status.ACTIVE and job._waits_for:
                self._let_go(stack[0])
            elif status is Status.ACTIVE and self._ended is None and job is not self._begun:
                self._interrupted(job)
            else:
                if job.parent is not None and self._ended is None:
                    trace.debug("callback %r is started", job, extra=fields(job))
                told_by = job.told_by
                told = () if told_by is None else (told_by.result,)
                extra = (*args, *told) if job is root else told
                self._completed = None
                self._execute(job, extra, kwargs if job is root else {})
                if self._completed is job:
                    stack.pop()
