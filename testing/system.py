"""One process in a world of its own: what everyday tests of an application use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from perdure.model.errors import BadStatusError
from perdure.model.failure import Failure
from perdure.model.job import Job
from perdure.model.listing import list_jobs
from perdure.model.moments import checked_duration, checked_moment
from perdure.model.queues import install
from perdure.model.ref import JobRef, find_job
from perdure.model.reports import JobSummary
from perdure.model.status import Status
from perdure.testing.choosers import Calm, Chooser
from perdure.testing.disk import Disk
from perdure.testing.enqueued import Waiting, Wanted
from perdure.testing.errors import NotAtRestError
from perdure.testing.execution import START, SteppedClock
from perdure.testing.pickles import Pickles
from perdure.testing.process import Process
from perdure.testing.scheduler import DRIVER
from perdure.testing.world import REST_LIMIT, World

__all__ = ["SteppedSystem"]

PERFORM_LIMIT = timedelta(minutes=30)

_QUIET = {
    "poll_interval": timedelta(hours=1),
    "ping_interval": timedelta(hours=1),
    "ping_death_interval": timedelta(hours=2),
}
"""Polls and signs of life are of no use to one process, and cost a test that lets a day pass."""


class SteppedSystem:
    """A system in memory that does something only while the test lets it.

    Jobs can be put and looked at in peace: they begin to run in `run_until_idle`, `advance`,
    `come_to_rest`, `result` and `perform`, and end there. It is one `Process` of a `World`, with
    the real actors. A context manager that closes it. All of it is for the test's own thread.

    :param queues: as for `perdure.actors.start`.
    :param start: what time it is at first, aware.
    :param disk: where the data is (default: in memory).
    :param chooser: which of its threads goes on where several could (default: each for as long
        as it can). The test itself goes on wherever it can.
    :param another_process: whether `perform` starts a real process to read what it pickles.
    :param settings: what else `perdure.actors.start` takes. It polls, and gives signs of life,
        once an hour unless told otherwise, so that a day that passes costs little.

    Raises `UnknownSettingError` for a bad setting, a naive `start` among them.
    """

    def __init__(
        self,
        queues: Mapping[str, int] | None = None,
        *,
        start: datetime = START,
        disk: Disk | None = None,
        chooser: Chooser | None = None,
        another_process: bool = True,
        **settings: Any,
    ) -> None:
        checked_moment("start", start)
        self.world = World(disk, chooser=_TestFirst(chooser or Calm()), start=start)
        self._another_process = another_process
        self._settings = {**_QUIET, **settings}
        self._performers: dict[str, Process] = {}
        try:
            self.process = self.world.process("app", queues, **self._settings)
        except BaseException:
            self.world.close()
            raise

    def __repr__(self) -> str:
        return f"<SteppedSystem at {self.clock.now():%Y-%m-%d %H:%M:%S}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, whatever still waits or runs; the test's open connections are closed."""
        self.world.close()

    # What an application has.

    @property
    def database(self) -> Any:
        """The open `ZODB.DB`, for code that opens connections by itself."""
        return self.process.system.database

    @property
    def clock(self) -> SteppedClock:
        """The clock of the process."""
        return self.process.clock

    def transaction(self) -> AbstractContextManager[Any]:
        """Open a connection, as `perdure.actors.ActorSystem.transaction`."""
        return self.process.transaction()

    def add_queues(self, *names: str) -> None:
        """Make sure that there are queues of these names, and commit."""
        install(self.database, names)

    def put(self, item: Any, /, *args: Any, **kwargs: Any) -> JobRef:
        """Put a job and commit, as `perdure.actors.ActorSystem.put`; it does not run yet."""
        return self.process.put(item, *args, **kwargs)

    def result(
        self, job: Job | JobRef | JobSummary | str, *, timeout: timedelta | None = None
    ) -> Any:
        """Let time pass until a job has a result, and return it.

        As `perdure.actors.ActorSystem.result`, which says what it raises.
        """
        return self.process.result(_ref_of(job), timeout=timeout)

    def status(self, job: Job | JobRef | JobSummary | str) -> Status:
        """Return the status of a job; raises `JobNotFoundError` where there is none."""
        with self.world.look() as connection:
            return find_job(connection, _ref_of(job)).status

    # Time.

    def run_until_idle(self) -> None:
        """Run all that is due now, and what comes of it; no time passes."""
        self.world.run_until_idle()

    def advance(self, duration: timedelta) -> None:
        """Let time pass, and run in order what comes due until then, that moment included.

        Raises `TypeError` for what is no timedelta, `ValueError` for a negative one.
        """
        self.world.advance(checked_duration("duration", duration))

    def come_to_rest(self, limit: timedelta = REST_LIMIT) -> None:
        """Let time pass until no job waits or runs, but for parked ones.

        Raises `NotAtRestError` where that takes longer than `limit`.
        """
        self.world.come_to_rest(checked_duration("limit", limit))

    def jobs_text(self, limit: int = 30) -> str:
        """Return what there is of jobs, and what time it is, as a text of a line each.

        Those under way come first, then those that wait, then done ones, the latest first.
        """
        with self.world.look() as connection:
            jobs = list_jobs(connection, limit=limit)
            lines = [_line(connection, row) for row in jobs.jobs] or ["no jobs"]
        more = [] if jobs.complete else ["..."]
        return "\n".join([f"{self.clock.now():%Y-%m-%d %H:%M:%S} UTC", *lines, *more])

    # What waits.

    def enqueued(
        self,
        callable: Any = None,
        /,
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        within: timedelta | None = None,
    ) -> tuple[JobSummary, ...]:
        """Return the jobs that wait and are as given, the first one that is due first.

        What was put and not committed does not wait yet; what has begun waits no more.

        :param callable: what is called, or its name ``module:qualname``; None: anything.
        :param args: all positional arguments, as they were given, a list or tuple; None: any.
            Persistent objects may come from any connection.
        :param kwargs: all keyword arguments; None: any.
        :param queue: the name of a queue; None: any.
        :param within: due at most so long after now; None: whenever.

        Raises `NotStorableError` for a callable that no job can have (a lambda, say),
        `QueueNotFoundError` for a queue that is not there, `TypeError` or `ValueError` for
        anything else that cannot be.
        """
        wanted = Wanted(callable, args, kwargs, queue, within)
        with self.world.look() as connection:
            found = wanted.find(connection, self.clock.now())
        return tuple(each.row for each in _as_wanted(found))

    def assert_enqueued(
        self,
        callable: Any = None,
        /,
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        within: timedelta | None = None,
    ) -> JobSummary:
        """Return the first job that `enqueued` would; raises `AssertionError` if there is none.

        The error shows what does wait, the nearest to what was wanted first.
        """
        __tracebackhide__ = True
        wanted = Wanted(callable, args, kwargs, queue, within)
        now = self.clock.now()
        with self.world.look() as connection:
            found = wanted.find(connection, now)
            for each in _as_wanted(found):
                return each.row
            text = wanted.not_found(found, connection, now)
        raise AssertionError(text)

    def refute_enqueued(
        self,
        callable: Any = None,
        /,
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        within: timedelta | None = None,
    ) -> None:
        """Raise `AssertionError`, which shows what waits, if `enqueued` would find any job."""
        __tracebackhide__ = True
        wanted = Wanted(callable, args, kwargs, queue, within)
        now = self.clock.now()
        with self.world.look() as connection:
            found = wanted.find(connection, now)
        if any(_as_wanted(found)):
            raise AssertionError(wanted.found_all_the_same(found, now))

    # Running one.

    def perform(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run one job to its end, with its callbacks, alone, and return its result.

        The job is put, first in line, and run by a simulated process of its own, which knows
        nothing but what the disk has. So what it puts is left waiting, for `assert_enqueued`.
        Time passes only if the job waits for it. A job that waits for other jobs (`serial`, say)
        lets them run, too, and those that were first in line before it run before it. Then a real
        process, another Python, reads the names, arguments and result of the job, and writes them
        again; the result is read from what that one wrote.

        :param item: a callable, which is called with the further arguments, or a job; or one
            that waits: its `JobRef`, or what `assert_enqueued` returned.

        Raises as `put` does; `JobFailedError` for a job that failed; `CallableNotFoundError` or
        `NotStorableError` where the other process could not read it; `BadStatusError` for a job
        that does not wait, or whose queue is paused; `NotAtRestError` for one that has not ended
        within half an hour of the simulation. A result that holds persistent objects is of use in
        its own connection only, and a `NotStorableError`, too: the job has run.
        """
        ref, queue = self._put_first(item, args, kwargs)
        with self.world.look() as connection:
            job = find_job(connection, ref)
            pickles = Pickles(job) if self._another_process else None
        self._run_alone(self._performer(queue), ref)
        failed = isinstance(self.world.result(ref), Failure)
        if failed and pickles is not None:
            pickles.survive()
        result = self.result(ref)
        return result if pickles is None else pickles.survive(result)

    def _put_first(
        self, item: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[JobRef, str]:
        if isinstance(item, JobRef | JobSummary | Job) and (args or kwargs):
            raise TypeError(f"{item!r} has its arguments already; give none besides")
        if isinstance(item, JobSummary):
            item = item.ref
        if isinstance(item, Job) and item._p_jar is not None:
            item = item.ref
        ref = item if isinstance(item, JobRef) else self.put(item, *args, **kwargs)
        with self.transaction() as connection:
            job = find_job(connection, ref)
            if job.status is not Status.PENDING or job.queue is None:
                raise BadStatusError(
                    f"{job!r} is {job.status.name}, and only a job that waits can be performed"
                )
            if job.queue.paused:
                raise BadStatusError(f"{job.queue!r} is paused: resume it first")
            # First in line, and due at once.
            job.retry()
            return ref, job.queue.name

    def _performer(self, queue: str) -> Process:
        if queue not in self._performers:
            self._performers[queue] = self.world.process(
                f"perform {queue}".strip(), {queue: 1}, start=False, **self._settings
            )
        return self._performers[queue]

    def _run_alone(self, performer: Process, ref: JobRef) -> None:
        """Run a job while the application's own process stands still."""
        self.process.suspend()
        try:
            performer.start()
            drain = timedelta(0)
            try:
                performer.wait(ref, timeout=PERFORM_LIMIT)
                # The worker may have committed the result, and not come back yet.
                drain = timedelta(seconds=10)
            finally:
                performer.stop(drain)
        except TimeoutError as error:
            raise NotAtRestError(
                f"{error}; what happened:\n{self.world.scheduler.story()}"
            ) from error
        finally:
            self.process.resume()


class _TestFirst:
    """Lets the test go on wherever it can; who else does, another one says."""

    def __init__(self, then: Chooser) -> None:
        self._then = then

    def choose(self, names: Sequence[str], goes_on: bool, /) -> int:
        if DRIVER in names:
            return names.index(DRIVER)
        return self._then.choose(names, goes_on)


def _as_wanted(found: Iterable[Waiting]) -> list[Waiting]:
    return [each for each in found if not each.differences]


def _line(connection: Any, row: JobSummary) -> str:
    text = f"{row.call} in queue {row.queue!r}: {row.status.name}"
    if row.failed:
        return f"{text}, failed: {find_job(connection, row.ref).result}"
    if row.parked:
        return f"{text}, parked: {row.parked}"
    return text if row.status is not Status.PENDING else f"{text}, due {row.at:%Y-%m-%d %H:%M:%S}"


def _ref_of(job: Job | JobRef | JobSummary | str) -> Job | JobRef | str:
    return job.ref if isinstance(job, JobSummary) else job
