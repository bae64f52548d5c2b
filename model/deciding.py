"""What a job's retry policy says, and what becomes of the job then."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from perdure.model.errors import AbortedError, StopRequested
from perdure.model.failure import Failure
from perdure.model.job import Job
from perdure.model.logs import events, fields, trace
from perdure.model.memory import Memory
from perdure.model.moments import LONGEST, after
from perdure.model.policy import (
    CommitErrored,
    Decision,
    GiveUp,
    Interrupted,
    JobErrored,
    Reschedule,
    Retry,
)
from perdure.model.status import Status
from perdure.model.steps import Place, Steps, place_of
from perdure.model.storable import copied
from perdure.model.telling import trouble

__all__ = ["Deciding", "only_exceptions"]

_ZERO = timedelta(0)


class _PolicyError(Exception):
    """A policy raised what is no `Exception`."""


class Deciding(Steps):
    """Asks the policies of the jobs of a `Runner`."""

    def _decide(
        self, job: Job, message: JobErrored | CommitErrored | Interrupted, memory: Memory
    ) -> Decision:
        """Ask the policy until it answers; what it keeps is in `memory` afterwards."""
        failures = 0
        while True:
            self._view(job)
            if self._late(job):
                return GiveUp()
            try:
                with only_exceptions():
                    memory.restore(job)
                    policy = job.get_retry_policy()
                    data = tuple(sorted(copied(getattr(policy, "data", {})).items()))
                    decision: object = policy.on_receive(_with_data(message, data))
                    memory.keep(policy)
                break
            # A policy is the application's code, which may raise anything.
            except Exception:
                failures += 1
                events.critical(
                    "the retry policy of %r cannot be asked, %d times so far", job, failures,
                    exc_info=True, extra=fields(job),
                )  # fmt: skip
                self._abort()
                self._pause(failures)
        self._abort()
        if isinstance(decision, GiveUp):
            trace.warning(
                "%r is given up by its policy after %s", job, trouble(message), extra=fields(job)
            )
        if isinstance(decision, Retry):
            return Retry(min(decision.after, LONGEST))
        if isinstance(decision, (Reschedule, GiveUp)):
            return decision
        events.error(
            "the retry policy of %r answered %r instead of a decision: it is given up",
            job, decision, extra=fields(job),
        )  # fmt: skip
        return GiveUp()

    def _reschedule(
        self,
        job: Job,
        when: datetime.datetime | timedelta,
        memory: Memory,
        place: Place | None = None,
    ) -> None:
        place = place or place_of(job)

        def enter() -> None:
            queue = job.queue
            if job.status is not Status.ACTIVE or place_of(job) != place or queue is None:
                return
            memory.restore(job)
            now = self._clock.now()
            due = after(now, when) if isinstance(when, timedelta) else when
            if due.utcoffset() is None:
                due = due.replace(tzinfo=datetime.UTC)
            if due <= now:
                queue._enter(job, "reschedule", first=True, keeps_places=True)
            else:
                queue._enter(job, "reschedule", due=due)

        fence = self._fence
        assert fence is not None
        fence.letting_go = job is fence.root
        self._store(job, "rescheduling", enter)
        fence.released = fence.letting_go

    def _interrupted(self, job: Job) -> None:
        """Put an ACTIVE job, whose worker is gone, to its policy."""
        memory = Memory()
        # Two may be at it, and the other one may have dealt with it in this instant.
        place = place_of(job)
        decision = self._decide(job, Interrupted(), memory)
        if isinstance(decision, Retry) and decision.after > _ZERO and job._queue is None:
            self._stop.wait(decision.after)
            self._view(job)
            if self._late(job):
                decision = GiveUp()
        trace.info("%r was interrupted: %r", job, decision, extra=fields(job))
        if isinstance(decision, GiveUp):
            error = AbortedError(f"{job!r} was interrupted and is not run again")
            if job.parent is not None:
                trace.debug("callback %r is aborted", job, extra=fields(job))
            self._finish(job, Failure(error), memory=memory, place=place)
        elif job._queue is None:
            if isinstance(decision, Reschedule):
                events.error(
                    "%r is in no queue, so it is run again at once instead of at %s",
                    job, decision.when, extra=fields(job),
                )  # fmt: skip

            if job.parent is not None:
                trace.debug("callback %r is retried", job, extra=fields(job))

            def renew() -> None:
                if place_of(job) == place:
                    memory.restore(job)
                    job._renew()

            self._store(job, "renewing", renew)
        else:
            when = decision.when if isinstance(decision, Reschedule) else decision.after
            self._reschedule(job, when, memory, place)


@contextmanager
def only_exceptions() -> Iterator[None]:
    """Let what a policy raises be an `Exception`, unless it comes from outside."""
    try:
        yield
    except (Exception, KeyboardInterrupt, GeneratorExit, StopRequested):
        raise
    except BaseException as error:
        raise _PolicyError(f"it raised {type(error).__name__}") from error


def _with_data(message: Any, data: tuple[tuple[str, Any], ...]) -> Any:
    if isinstance(message, Interrupted):
        return Interrupted(data)
    return type(message)(message.failure, data, message.alone)
