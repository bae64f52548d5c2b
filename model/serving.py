"""Jobs that have no callable: internal ones, those that follow another, and proxies."""

from __future__ import annotations

from perdure.model.attempting import Attempting
from perdure.model.callbacks import CallbackProxy
from perdure.model.errors import JobTimeoutError
from perdure.model.failure import Failure
from perdure.model.following import Follow, inner_ended, queue_to_follow, whole_of
from perdure.model.internal import InternalJob
from perdure.model.job import Job
from perdure.model.resolving import check_whole
from perdure.model.status import Status
from perdure.model.steps import next_callback

__all__ = ["Serving"]


class Serving(Attempting):
    """Deals with what a `Runner` meets beside ordinary jobs."""

    def _serve(self, internal: InternalJob, stack: list[Job]) -> None:
        job = internal.serves
        status = job.status

        def end() -> None:
            agent, number = job._claimed_by()
            # The number of a claim for a group is another one once it is written.
            noted = abs(number) == abs(internal.claim or 0)
            if internal.kind == "recover" and agent is not None and noted:
                agent.interrupt(job)
            _end_internal(internal)

        if internal.kind == "follow" and not internal.heard:
            self._hear(internal)
        elif job._claimed_by()[0] is not None or internal.kind == "recover" or internal.is_over:
            # Nobody's to deal with here: an agent has it, or had it, since it was dealt with;
            # or another internal job does, made when who had it started again.
            self._store(internal, "ending", end)
        elif internal.kind == "expire" and status is Status.PENDING:
            error = JobTimeoutError(f"{job!r} was to begin by {job.deadline}, and did not")
            self._finish(job, Failure(error), "fail")
        elif internal.kind == "interrupt" and status is Status.ACTIVE:
            self._interrupted(job)
        elif status is Status.CALLBACKS and (internal.kind != "follow" or internal.goes_on):
            stack.append(job)
        else:
            self._store(internal, "ending", end)

    def _hear(self, internal: InternalJob) -> None:
        """Let a job that waits hear of the end of another one."""
        outer, inner = internal.outer, internal.inner
        assert outer is not None and inner is not None

        def hear() -> None:
            if not internal.heard:
                internal.heard = True
                internal.goes_on = inner_ended(outer, inner)

        self._store(internal, "telling", hear)
        if internal.goes_on:
            self._tell_result(outer, outer.result)

    def _run_follow(self, follow: Follow, stack: list[Job]) -> None:
        inner, outer = follow.parent, follow.outer
        assert inner is not None
        ended = False

        def tell() -> None:
            nonlocal ended
            if follow.status is Status.COMPLETED:
                return
            queue = queue_to_follow(outer, inner)
            if queue is not None:
                queue._put_follower(outer, inner)
            else:
                ended = inner_ended(outer, inner)
            follow._begin()
            follow._end(None)
            follow._complete()
            # In this commit, or the one that waits could find it not quite done.
            alone = inner._own_side is None and next_callback(inner) is None
            if alone and inner.status is Status.CALLBACKS:
                inner._complete()

        self._store(follow, "telling", tell)
        if ended:
            # In no queue: nobody but this runner goes on with it.
            stack.insert(0, whole_of(outer))

    def _let_go(self, root: Job) -> None:
        """Leave a job, of which a callback waits for another job."""
        fence = self._fence
        assert fence is not None

        def wait() -> None:
            if isinstance(root, InternalJob):
                _end_internal(root)
            else:
                self._fence_root_waits()

        self._store(root, "leaving", wait)
        fence.released = True

    def _run_proxy(self, proxy: CallbackProxy, stack: list[Job]) -> None:
        if proxy.status is not Status.ACTIVE:

            def choose() -> None:
                if proxy.status in (Status.NEW, Status.ASSIGNED):
                    proxy._begin()
                    proxy.choose()

            self._store(proxy, "choosing for", choose)
            return
        chosen = proxy.job
        if chosen is not None:
            check_whole(chosen)
        if chosen is None:
            assert proxy.told_by is not None
            self._finish(proxy, proxy.told_by.result)
        elif chosen.status is not Status.COMPLETED:
            stack.append(chosen)
        else:
            self._finish(proxy, chosen.result)


def _end_internal(internal: InternalJob) -> None:
    if internal.status is not Status.COMPLETED:
        internal._begin()
        internal._end(None)
        internal._complete()
