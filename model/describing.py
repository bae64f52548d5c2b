"""Telling of single jobs, also of those that cannot be loaded in this process."""

from __future__ import annotations

import datetime
from datetime import timedelta
from typing import Any

from perdure.model.environment import clock_of
from perdure.model.errors import CallableNotFoundError
from perdure.model.failure import Failure
from perdure.model.job import Job
from perdure.model.moments import microseconds, moment
from perdure.model.ref import JobRef, find_job, locate
from perdure.model.reports import JobDetails, JobSummary
from perdure.model.resolving import (
    check_resolvable,
    deadline_of,
    is_loadable,
    queue_and_agent_of,
    status_of,
    stored,
    unreadable,
)
from perdure.model.saferepr import safe_repr, survive
from perdure.model.status import Status

__all__ = ["job_details", "summary"]

_LONGEST_TEXT = 10_000
_LONGEST_ANNOTATION = 200
_CUT = "\n… (cut)"
_MICROSECOND = timedelta(microseconds=1)


def summary(
    job: Any, *, agent: str = "", parked: str = "", queue: str | None = None
) -> JobSummary:
    """Return one row for `job`, which need not be loadable; `queue` names the one it is in."""
    status = status_of(job)
    loadable = is_loadable(job)
    start, end = stored(job, "_active_start", None), stored(job, "_active_end", None)
    if not loadable and not parked and (error := unreadable(job)) is not None:
        parked = str(error)
    duration = None
    if start is not None:
        until = end if end is not None else microseconds(clock_of(job).now())
        duration = max(0, until - start) * _MICROSECOND
    return JobSummary(
        ref=JobRef.of(job),
        name=_name(job),
        call=job.call_text() if loadable else _name(job),
        status=status,
        failed=isinstance(stored(job, "_result", None), Failure),
        queue=queue,
        agent=agent,
        at=_at(job, status),
        duration=duration,
        parked=parked,
    )


def _name(job: Any) -> str:
    if is_loadable(job):
        return str(job.callable_name)
    name = stored(job, "_callable", None)
    return name if isinstance(name, str) else f"{type(job).__module__}:{type(job).__qualname__}"


def _at(job: Any, status: Status) -> datetime.datetime | None:
    if status is Status.COMPLETED:
        when = stored(job, "_callbacks_end", None)
    elif status in (Status.ACTIVE, Status.CALLBACKS):
        when = stored(job, "_active_start", None) or stored(job, "_active_end", None)
    elif status is Status.ASSIGNED:
        when = None
    else:
        when = stored(job, "_begin_after", None)
    return None if when is None else moment(when)


def job_details(connection: Any, job: Job | JobRef | str) -> JobDetails:
    """Return all about one job; see `JobDetails`.

    :param job: a `Job`, a `JobRef`, or its text.

    Works in the transaction of `connection`, in its thread, and changes nothing. Raises
    `JobNotFoundError` for what is no job, is unknown, or was forgotten. A job whose code is
    not to be had here is told of as far as it can be read.
    """
    found = locate(connection, job)
    # What cannot be loaded is a job if its record looks like one.
    if found is not None and not is_loadable(found) and stored(found, "_callable", None):
        return _broken_details(found)
    return _details(find_job(connection, job))


def _details(job: Job) -> JobDetails:
    agent, queue, result = job.agent, job.queue, job.result
    name = None if queue is None else queue.name
    row = summary(job, agent="" if agent is None else agent.name, queue=name)
    factory = job._retry_policy_factory
    policy = "" if job._policy is None else type(job._policy).__qualname__
    return JobDetails(
        ref=row.ref,
        name=row.name,
        call=row.call,
        status=row.status,
        failed=row.failed,
        queue=row.queue,
        agent=row.agent,
        dispatcher=None if agent is None else agent.record.uuid,
        begin_after=job.begin_after,
        deadline=job.deadline,
        active_start=job.active_start,
        active_end=job.active_end,
        callbacks_end=job.callbacks_end,
        quota_names=job.quota_names,
        transactional=bool(job.transactional),
        retry_policy=policy or (factory or "").removeprefix("@"),
        keep_completed=job.keep_completed,
        keep_failed=job.keep_failed,
        annotations=tuple(
            (str(name), safe_repr(value, _LONGEST_ANNOTATION))
            for name, value in job.annotations.items()
        ),
        parent=None if job.parent is None else JobRef.of(job.parent),
        callbacks=tuple(summary(callback, queue=name) for callback in job.callbacks),
        parked=_unresolved(job) if row.status is Status.PENDING else "",
        result="" if isinstance(result, Failure) or not _ended(row.status) else _text(result),
        traceback=_cut(result.traceback()) if isinstance(result, Failure) else "",
    )


def _broken_details(job: Any) -> JobDetails:
    row = summary(job)
    queue, agent = queue_and_agent_of(job)

    def when(name: str) -> datetime.datetime | None:
        found = stored(job, name, None)
        return None if found is None else moment(found)

    deadline = deadline_of(job)
    return JobDetails(
        ref=row.ref,
        name=row.name,
        call=row.call,
        status=row.status,
        failed=row.failed,
        queue=None if queue is None else queue.name,
        agent="" if agent is None else agent.name,
        dispatcher=None if agent is None else agent.record.uuid,
        begin_after=when("_begin_after"),
        deadline=None if deadline is None else moment(deadline),
        active_start=when("_active_start"),
        active_end=when("_active_end"),
        callbacks_end=when("_callbacks_end"),
        quota_names=tuple(stored(job, "_quota_names", ())),
        transactional=bool(stored(job, "_transactional", None)),
        retry_policy="",
        keep_completed=None,
        keep_failed=None,
        annotations=(),
        parent=None,
        callbacks=(),
        parked=_unresolved(job),
        result="",
        traceback="",
    )


def _ended(status: Status) -> bool:
    return status in (Status.CALLBACKS, Status.COMPLETED)


def _unresolved(job: Any) -> str:
    try:
        check_resolvable(job)
    except CallableNotFoundError as error:
        return str(error)
    return ""


def _text(value: object) -> str:
    kind = type(value).__qualname__
    return _cut(survive(lambda: repr(value), lambda error: f"<{kind} that has no repr>"))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - len(_CUT)] + _CUT
