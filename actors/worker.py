"""Workers: one thread and one connection each, that run jobs and commit them."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
import threading
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import transaction
from ZODB.POSException import POSKeyError

from perdure.actors.base import Actor, handles
from perdure.actors.context import Context, agent_role, worker_name
from perdure.actors.history import report_of
from perdure.actors.messages import (
    BatchRan,
    Claimed,
    GroupRan,
    JobEnded,
    JobRan,
    JobReport,
    JobStarted,
    Outcome,
    RunBatch,
    RunGroup,
    RunJob,
    Wake,
    WorkerLost,
)
from perdure.actors.outage import open_connection
from perdure.model.agent import Claim, Completion
from perdure.model.errors import JobNotFoundError, ReassignedError, StopRequested
from perdure.model.failure import Failure
from perdure.model.grouping import Group, GroupRunner
from perdure.model.internal import InternalJob
from perdure.model.job import Job, call_of
from perdure.model.logs import SUCCEEDED, events, fields, placed, trace
from perdure.model.moments import microseconds, moment
from perdure.model.ref import JobRef, find_job, plain_job
from perdure.model.resolving import is_whole
from perdure.model.retrying import begin_anew, has_transaction, is_away, tell_of_wait
from perdure.model.running import Runner
from perdure.model.saferepr import safe_repr, survive
from perdure.model.status import Status
from perdure.model.suspension import Ended

__all__ = ["WorkerActor"]

LONGEST_TEXT = 10_000
_LOST = (Status.PENDING, Status.ASSIGNED, Status.ACTIVE)
PAUSE_SECONDS = 5
LONGEST_PAUSE_SECONDS = 60


class WorkerActor(Actor):
    """Runs one job at a time, in its thread's own transactions.

    Job code sees the thread's `transaction.manager` as its own.
    """

    def __init__(self, context: Context, queue: str, agent: str, number: int) -> None:
        super().__init__(context, name=worker_name(queue, agent, number))
        self._context = context
        self._queue = queue
        self._agent = agent
        self.log_fields = fields(queue=queue, agent=agent, dispatcher=str(context.uuid))
        self._connection: Any = None
        self._queue_oid = b""
        self._frees_places = False
        self._started: Callable[[], JobStarted] | None = None
        self._completion: Completion | None = None
        self._batch: _Batch | None = None

    def on_start(self) -> None:
        """Make ready; the connection is opened when the first job comes."""
        self._thread_name = threading.current_thread().name
        self._runner = Runner(
            transaction.manager,
            self._clock,
            self._context.stop,
            lane=self._context.lane,
            on_result=self._tell_result,
            suspends=True,
        )
        self._groups = GroupRunner(
            transaction.manager,
            self._clock,
            self._context.stop,
            self._context.lane,
            self._context.experience,
            on_begin=self._begins,
            on_end=self._ends,
        )

    def on_stop(self) -> None:
        """Let go of the connection."""
        connection = self._own_connection()
        self._connection = None
        try:
            transaction.abort()
        finally:
            if connection is not None:
                connection.close()

    def on_crash(self, error: BaseException) -> None:
        """Let go of the connection."""
        self.on_stop()

    @handles(RunJob)
    def _run(self, message: RunJob) -> None:
        self._context.activity.begin()
        try:
            ran = self._run_or_leave(message.claim)
        finally:
            self._context.activity.end()
        self._tell_agent(ran)
        if isinstance(ran, WorkerLost):
            self.stop()

    @handles(RunBatch)
    def _run_batch(self, message: RunBatch) -> None:
        ran: list[JobRan] = []
        self._batch = _Batch(self._context, message.key, message.agent_oid)
        # All the time: the next one may have begun with the end of the one before.
        self._context.activity.begin()
        try:
            while (claim := self._batch.take()) is not None:
                each = self._run_or_leave(claim)
                if isinstance(each, WorkerLost):
                    self._tell_agent(dataclasses.replace(each, ran=tuple(ran)))
                    self.stop()
                    return
                ran.append(each)
                if each.outcome is Outcome.SUSPENDED:
                    # It is to go on as soon as it can, whatever comes behind it here.
                    self._tell_agent(BatchRan(self.name, tuple(ran), goes_on=True))
                    ran.clear()
        finally:
            self._batch = None
            self._context.batches.end(message.key)
            self._context.activity.end()
        self._tell_agent(BatchRan(self.name, tuple(ran)))

    def _run_or_leave(self, claim: Claimed) -> JobRan | WorkerLost:
        with placed(job=str(claim.ref)):
            return self._run_counted(claim)

    def _run_counted(self, claim: Claimed) -> JobRan | WorkerLost:
        try:
            # Looked at after it was counted: whoever stops sees the one or the other.
            suspended = self._context.suspensions.is_suspended(claim)
            # One that has begun may end within the drain.
            begun = suspended or (self._batch is not None and self._batch.begun == claim)
            if self._context.stop.is_set() and not begun:
                raise StopRequested(f"the system stops, {claim.ref} is not begun")
            outcome = self._run_claim(claim)
        # The job raised what is no Exception, or running it went wrong in a way that was
        # not foreseen: this worker is not to be trusted any more.
        except BaseException as error:
            # A job may raise it as well.
            if isinstance(error, StopRequested) and self._context.stop.is_set():
                return JobRan(self.name, claim, Outcome.STOPPED)
            events.error("%s is lost to %r", self.name, error, exc_info=True, extra=fields())
            closed = self._connection is not None and self._own_connection() is None
            fault = isinstance(error, Exception) and not closed
            return WorkerLost(self.name, claim, repr(error), fault)
        completion, self._completion = self._completion, None
        return JobRan(self.name, claim, outcome, completion)

    @handles(RunGroup)
    def _run_group(self, message: RunGroup) -> None:
        claims = {Claim(claim.ref, claim.number): claim for claim in message.claims}
        self._context.activity.begin()
        try:
            if self._context.stop.is_set():
                group = Group(stopped=list(claims))
            else:
                instant = self._context.experience.is_instant(message.claims[0].group)
                with self._context.turn() if instant else nullcontext():
                    group = self._run_claims(message)
        # What each of them raises is dealt with where it is alone: this is something else.
        except BaseException as error:
            events.error("%s is lost to %r", self.name, error, exc_info=True, extra=fields())
            self._tell_agent(WorkerLost(self.name, message.claims[0], repr(error), True))
            self.stop()
            return
        finally:
            self._context.activity.end()
            self._context.board.set(self.name, None)
        kinds = (group.alone, group.rest, group.reassigned, group.stopped)
        parts = [tuple(claims[claim] for claim in kind) for kind in kinds]
        self._tell_agent(GroupRan(self.name, tuple(group.completed), *parts))

    def _run_claims(self, message: RunGroup) -> Group:
        claims = [(Claim(claim.ref, claim.number), claim.group) for claim in message.claims]
        try:
            transaction.abort()
            transaction.begin()
            if self._own_connection() is None:
                self._connection = open_connection(self._context.database)
            agent = self._connection.get(message.agent_oid)
        except Exception as error:
            trace.info("a group is run one by one, for %r", error)
            return Group(alone=[claim for claim, _ in claims])
        return self._groups.run(self._connection, agent, claims)

    def _begins(self, ref: JobRef, name: str, began: int) -> None:
        """Let it be seen at which job of its group this worker is."""

        def report() -> JobReport:
            return report_of(self._beginning(ref, name, name, moment(began)))

        self._context.board.set(self.name, report)

    def _beginning(
        self,
        ref: JobRef,
        call: str | None,
        name: str,
        started: datetime.datetime,
        quota_names: tuple[str, ...] = (),
    ) -> JobStarted:
        return JobStarted(
            ref=ref,
            call=call or call_of(ref, name),
            name=name,
            queue=self._queue,
            agent=self._agent,
            thread=self._thread_name,
            quota_names=quota_names,
            started=started,
        )

    def _ends(self, ref: JobRef, job: Job, began: int, ended: int) -> None:
        result = job._result
        if trace.isEnabledFor(logging.INFO):
            known = fields(job)
            trace.info("%r is started", job, extra=known)
            trace.info(SUCCEEDED, job, safe_repr(result), extra=known)
            trace.info("%r is %s", job, job.status.name, extra=known)
        name, completed = job.callable_name, job._callbacks_end is not None
        text = "None" if result is None else _cut(_text(result))
        thread = self._thread_name
        call = _lasting_call(job)

        def report() -> JobReport:
            return JobReport(
                ref, call or call_of(ref, name), name, self._queue, self._agent, thread, (),
                moment(began), moment(ended), completed, False, False, text,
            )  # fmt: skip

        self._context.board.add(report)
        self._context.results.announce(ref)

    def _tell_agent(self, message: object) -> None:
        self._context.directory.tell(agent_role(self._queue, self._agent), message)

    def _tell_result(self, ref: JobRef) -> None:
        self._context.results.announce(ref)
        if self._frees_places:
            self._context.directory.tell("dispatcher", Wake(self._queue_oid))

    def _run_claim(self, claim: Claimed) -> Outcome:
        suspensions = self._context.suspensions
        if suspensions.is_waiting(claim):
            return Outcome.SUSPENDED
        ended = suspensions.take(claim)
        try:
            return self._begin_or_go_on(claim, ended)
        finally:
            if ended is not None:
                ended.of.close()

    def _begin_or_go_on(self, claim: Claimed, resumed: Ended | None) -> Outcome:
        job = self._find(claim)
        unbegun = job is not None and job._is_unbegun(claim.number)
        if unbegun and not is_whole(job):
            # One for a group was not looked at when it was claimed: it is left to others.
            return Outcome.REASSIGNED
        if job is None or not (unbegun or job._was_given(claim.number)):
            if resumed is not None:
                self._tell_reassigned(claim.ref)
            elif job is not None and job.status in _LOST:
                events.error(
                    "%r was taken from %s before it began: it is left alone",
                    job, self.name, extra=fields(),
                )  # fmt: skip
            return Outcome.REASSIGNED
        # Of a group, the end of one may have been committed, with its callbacks still to run; of
        # a batch, the beginning, with its claim or with the end of the one before.
        of_group = claim.number < 0 and job.status in (Status.CALLBACKS, Status.COMPLETED)
        begun = self._batch is not None and job.status is Status.ACTIVE and resumed is None
        usual = begun or of_group or resumed is not None
        if not usual and job.status is not Status.ASSIGNED:
            events.error(
                "%s found %r, which is %s, instead of ASSIGNED", self.name, job, job.status.name,
                extra=fields(job),
            )  # fmt: skip
        queue = job.queue
        assert queue is not None
        if unbegun and queue.paused:
            return Outcome.UNBEGUN
        self._queue_oid = queue._p_oid
        self._frees_places = bool(job.quota_names)
        self._started = None if resumed is not None else self._tell_started(job)
        ended = False
        try:
            suspension = self._runner.run(
                job, ended=resumed, viewed=True, begun=begun, following=self._batch
            )
            seconds = self._runner.call_seconds
            if claim.name and seconds is not None:
                self._context.experience.took(claim.name, seconds)
            if suspension is not None:
                # The transaction is not to stay open in a worker that is free.
                transaction.abort()
                role = agent_role(self._queue, self._agent)
                if self._started is not None:
                    # It goes on without this worker.
                    self._context.report(self._started())
                self._context.suspensions.suspend(claim, role, suspension)
                ended = True
                return Outcome.SUSPENDED
            self._tell_ended(job, claim.ref)
            ended = True
            self._completion = _completion_of(job, claim)
        except ReassignedError:
            self._tell_reassigned(claim.ref)
            ended = True
            return Outcome.REASSIGNED
        finally:
            if not ended:
                self._report_end(
                    functools.partial(
                        JobEnded, claim.ref, self._clock.now(), True, False, "interrupted", False
                    )
                )
            self._context.board.set(self.name, None)
            if has_transaction(transaction.manager):
                transaction.abort()
        # Its result was told of before its callbacks were run.
        self._context.results.announce(claim.ref)
        return Outcome.DONE

    def _tell_reassigned(self, ref: JobRef) -> None:
        self._report_end(
            functools.partial(JobEnded, ref, self._clock.now(), False, True, "reassigned", False)
        )

    def _report_end(self, ended: Callable[[], JobEnded]) -> None:
        """Tell how a job came back; with how it began, unless that was told when it was left."""
        started = self._started
        if started is None:
            self._context.report(ended())
        else:
            self._context.board.add(lambda: report_of(started(), ended()))

    def _own_connection(self) -> Any:
        """Return the connection, None where the job's code has closed it, or there is none.

        One that was closed is the pool's, and may be another thread's by now.
        """
        connection = self._connection
        if connection is None or connection.opened is None:
            return None
        ours = connection.transaction_manager is transaction.manager.manager
        return connection if ours else None

    def _find(self, claim: Claimed) -> Job | None:
        """Return the job, None where there is none any more; waits for the database.

        Raises what loading it raises, where it cannot be loaded.
        """
        failures = 0
        while True:
            try:
                begin_anew(transaction.manager)
                if self._own_connection() is None:
                    self._connection = open_connection(self._context.database)
                if self._batch is not None:
                    self._batch.connection = self._connection
                if not claim.plain:
                    return find_job(self._connection, claim.ref)
                job = plain_job(self._connection, claim.ref)
                job._p_activate()
                return job
            except POSKeyError:
                return None
            except JobNotFoundError:
                return None
            # The database is waited for; what cannot be loaded cannot be run, either.
            except Exception as error:
                if not is_away(error):
                    raise
                failures += 1
                tell_of_wait(f"{self.name} waits for the database", error, failures, fields())
                seconds = min(LONGEST_PAUSE_SECONDS, failures * PAUSE_SECONDS)
                self._context.stop.wait(timedelta(seconds=seconds))

    def _tell_started(self, job: Job) -> Callable[[], JobStarted]:
        if trace.isEnabledFor(logging.INFO):
            trace.info("%r is started", job, extra=fields(job))
        # Made when somebody looks, which is rare.
        started = functools.partial(
            self._beginning,
            job.ref, _lasting_call(job), job.callable_name, self._clock.now(), job.quota_names,
        )  # fmt: skip
        self._context.board.set(self.name, lambda: report_of(started()))
        return started

    def _tell_ended(self, job: Job, ref: JobRef) -> None:
        subject = job.serves if isinstance(job, InternalJob) else job
        result = subject.result
        failed = isinstance(result, Failure)
        text = result.traceback() if isinstance(result, Failure) else _text(result)
        completed = subject.status is Status.COMPLETED
        if trace.isEnabledFor(logging.INFO):
            trace.info("%r is %s", subject, subject.status.name, extra=fields(subject))
        self._report_end(
            functools.partial(
                JobEnded, ref, self._clock.now(), failed, False, _cut(text), completed
            )
        )
        if subject is not job:
            self._context.results.announce(subject.ref)


class _Batch:
    """What a worker has still to run after the job that it is at; see `Following`."""

    def __init__(self, context: Context, key: Hashable, agent_oid: bytes) -> None:
        self._context = context
        self._key = key
        self._agent_oid = agent_oid
        self._next: Claimed | None = None
        self.begun: Claimed | None = None
        """The one of which it was said last that it may have begun."""
        self.connection: Any = None

    def take(self) -> Claimed | None:
        """Take the next one; None: there is none left."""
        claim, self._next = self._next, None
        return claim or self._context.batches.take(self._key)

    def begin(self) -> None:
        """Say in this transaction of the next one that it may have begun."""
        if self._context.stop.is_set():
            return
        claim = self._next = self._context.batches.take(self._key)
        if claim is None:
            return
        try:
            job = plain_job(self.connection, claim.ref)
            queue = job._queue
            unbegun = job._is_unbegun(claim.number) and is_whole(job)
            if unbegun and queue is not None and not queue.paused:
                agent = self.connection.get(self._agent_oid)
                now = microseconds(self._context.clock.now())
                job._begin_in_batch(agent, claim.number, now)
                self.begun = claim
        # It is dealt with when its turn has come.
        except Exception as error:
            trace.info("job %s is not begun yet, for %r", claim.ref, error)

    def undo(self) -> None:
        """Let that one be the next again, which nobody may have begun."""
        if self._next is not None:
            self._context.batches.put_back(self._key, self._next)
            self._next = self.begun = None


def _completion_of(job: Job, claim: Claimed) -> Completion | None:
    """Return what there is to say of a job that is done; None where it has to be looked at."""
    ended = job._callbacks_end
    if ended is None or isinstance(job, InternalJob) or job._quota_names:
        return None
    failed = job.failed
    keep = job.keep_failed if failed else job.keep_completed
    return Completion(claim.ref, claim.number, ended, failed, keep)


def _lasting_call(job: Job) -> str | None:
    """Return the text of a call that may be another thing when somebody asks, else None."""
    return None if type(job) is Job and not job._args and not job._kwargs else repr(job)


def _text(result: object) -> str:
    return survive(
        lambda: repr(result), lambda error: f"<{type(result).__qualname__} that has no repr>"
    )


def _cut(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    mark = "\n… (cut)"
    return text[: LONGEST_TEXT - len(mark)] + mark
