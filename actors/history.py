"""What a system remembers of its polls and jobs, for the questions; bounded."""

from __future__ import annotations

import datetime
from collections import OrderedDict, deque
from datetime import timedelta
from operator import attrgetter

from perdure.actors.context import JOBS_KEPT, Board
from perdure.actors.messages import JobEnded, JobReport, JobStarted, PollDone, Statistics
from perdure.model.errors import JobNotFoundError
from perdure.model.moments import checked_moment
from perdure.model.ref import JobRef

__all__ = ["History", "report_of"]

POLLS_KEPT = 400


class History:
    """The last 400 polls and 200 jobs, and what runs now; see the `board` for most of them."""

    def __init__(self, board: Board | None = None) -> None:
        self._board = Board() if board is None else board
        self._polls: deque[PollDone] = deque(maxlen=POLLS_KEPT)
        self._active: dict[JobRef, JobReport] = {}
        self._done: OrderedDict[JobRef, JobReport] = OrderedDict()

    def polled(self, poll: PollDone) -> None:
        """Remember a poll."""
        self._polls.appendleft(poll)

    def started(self, message: JobStarted) -> None:
        """Remember that a job runs."""
        self._active[message.ref] = report_of(message)

    def ended(self, message: JobEnded) -> None:
        """Remember how a job came back."""
        self._look()
        report = self._active.pop(message.ref, None)
        if report is None:
            return
        self._done[message.ref] = report_of(report, message)
        self._done.move_to_end(message.ref)
        self._trim()

    def _look(self) -> None:
        for job in self._board.take():
            self._done.pop(job.ref, None)
            self._done[job.ref] = job
        self._trim()

    def _trim(self) -> None:
        while len(self._done) > JOBS_KEPT:
            self._done.popitem(last=False)

    @property
    def last_poll(self) -> datetime.datetime | None:
        """When the last poll was."""
        return self._polls[0].at if self._polls else None

    @property
    def last_queues(self) -> tuple[str, ...]:
        """The queues that the last poll worked for."""
        if not self._polls:
            return ()
        return tuple(queue.queue for queue in self._polls[0].queues if queue.active)

    def active(self) -> tuple[JobReport, ...]:
        """Return what runs now, the longest first."""
        # In this order: what ends in between is seen twice, and told once.
        at_workers = self._board.jobs()
        self._look()
        known = self._done
        found = [
            job
            for job in at_workers
            # One that was just left by its worker, to go on later, is told of already.
            if job.ref not in self._active
            and (job.ref not in known or known[job.ref].started != job.started)
        ]
        return tuple(sorted([*self._active.values(), *found], key=attrgetter("started")))

    def job(self, ref: JobRef) -> JobReport | None:
        """Return what is remembered of a job, or None; raises for what is no `JobRef`."""
        if not isinstance(ref, JobRef):
            raise JobNotFoundError(f"{ref!r} names no job: give a JobRef, as put returns it")
        active = next((job for job in self.active() if job.ref == ref), None)
        return active or self._done.get(ref)

    def polls(
        self, since: datetime.datetime | None, until: datetime.datetime | None
    ) -> tuple[PollDone, ...]:
        """Return the polls from `since` to before `until`, newest first.

        Raises `UnknownSettingError` for moments without a time zone, `TypeError` for others.
        """
        since, until = _moment("since", since), _moment("until", until)
        return tuple(poll for poll in self._polls if _within(poll.at, since, until))

    def statistics(
        self, since: datetime.datetime | None, until: datetime.datetime | None
    ) -> Statistics:
        """Count the remembered jobs that began in that time; raises as `polls` does."""
        since, until = _moment("since", since), _moment("until", until)
        jobs = [
            job
            for job in (*self.active(), *self._done.values())
            if _within(job.started, since, until)
        ]
        successful = [job for job in jobs if job.completed and not job.failed]
        failed = [job for job in jobs if job.completed and job.failed]
        return Statistics(
            started=len(jobs),
            successful=len(successful),
            failed=len(failed),
            unknown=len(jobs) - len(successful) - len(failed),
            shortest_successful=_extreme(successful, longest=False),
            longest_successful=_extreme(successful, longest=True),
            shortest_failed=_extreme(failed, longest=False),
            longest_failed=_extreme(failed, longest=True),
        )


def report_of(started: JobStarted | JobReport, ended: JobEnded | None = None) -> JobReport:
    """Return a report of a job that runs, or has ended."""
    return JobReport(
        ref=started.ref,
        call=started.call,
        name=started.name,
        queue=started.queue,
        agent=started.agent,
        thread=started.thread,
        quota_names=started.quota_names,
        started=started.started,
        ended=None if ended is None else ended.ended,
        completed=ended is not None and ended.completed,
        failed=ended is not None and ended.failed,
        reassigned=ended is not None and ended.reassigned,
        text="" if ended is None else ended.text,
    )


def _moment(name: str, value: datetime.datetime | None) -> datetime.datetime | None:
    return None if value is None else checked_moment(name, value)


def _within(
    at: datetime.datetime, since: datetime.datetime | None, until: datetime.datetime | None
) -> bool:
    return (since is None or at >= since) and (until is None or at < until)


def _extreme(jobs: list[JobReport], *, longest: bool) -> tuple[str, timedelta] | None:
    ended = [(job.ended - job.started, job.name) for job in jobs if job.ended is not None]
    if not ended:
        return None
    duration, name = max(ended) if longest else min(ended)
    return name, duration
