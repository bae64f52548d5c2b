"""Hypothesis strategies for jobs, retry policies, what those are told, and faults.

Importing this module needs Hypothesis: install ``perdure[testing]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from transaction.interfaces import TransientError
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError, ReadConflictError

from perdure.model.failure import Failure
from perdure.model.job import Job
from perdure.model.policy import (
    CommitErrored,
    GiveUp,
    Interrupted,
    JobErrored,
    NeverRetry,
    Reschedule,
    Retry,
    RetryCommonForever,
    RetryCommonFourTimes,
)
from perdure.testing.execution import START
from perdure.testing.plans import CALLBACKS, COMPOSITES, KINDS, POLICIES, Plan
from perdure.testing.storage import Fault

__all__ = [
    "decisions",
    "durations",
    "failures",
    "faults",
    "jobs",
    "messages",
    "plans",
    "policies",
    "turns",
]


def durations(longest: timedelta = timedelta(days=1)) -> st.SearchStrategy[timedelta]:
    """Return whole seconds from 0 to `longest`, as timedeltas."""
    seconds = st.integers(0, int(longest.total_seconds()))
    return seconds.map(lambda number: timedelta(seconds=number))


def policies() -> st.SearchStrategy[Any]:
    """Return what a job's `retry_policy_factory` may be: None, or one of Perdure's policies."""
    return st.sampled_from([None, RetryCommonFourTimes, RetryCommonForever, NeverRetry])


def jobs(
    target: Callable[..., Any],
    args: st.SearchStrategy[tuple[Any, ...]] | None = None,
    kwargs: st.SearchStrategy[dict[str, Any]] | None = None,
    *,
    quotas: Sequence[str] = (),
    policies: st.SearchStrategy[Any] | None = None,
) -> st.SearchStrategy[Job]:
    """Return NEW jobs that call `target`, with all that can be set before they are put.

    :param target: what the job calls; raises `NotStorableError` when drawn where it cannot be.
    :param args: strategy of tuples, the positional arguments (default: none).
    :param kwargs: strategy of dictionaries, the keyword arguments (default: none).
    :param quotas: names, of which some are given to each job.
    :param policies: strategy of policy factories (default: `policies`).

    `begin_after` is None, or up to an hour after `perdure.testing.World` begins.
    """
    drawn_policies = policies if policies is not None else globals()["policies"]()

    def make(
        call: tuple[tuple[Any, ...], dict[str, Any]],
        names: list[str],
        after: timedelta | None,
        by: timedelta | None,
        level: int | None,
        policy: Any,
    ) -> Job:
        job = Job(target, *call[0], **call[1])
        job.quota_names = tuple(names)
        job.begin_after = None if after is None else START + after
        job.begin_by = by
        job.failure_log_level = level
        job.retry_policy_factory = policy
        return job

    hour = st.none() | durations(timedelta(hours=1))
    return st.builds(
        make,
        st.tuples(
            args if args is not None else st.just(()),
            kwargs if kwargs is not None else st.just({}),
        ),
        st.lists(st.sampled_from(list(quotas)), unique=True) if quotas else st.just([]),
        hour,
        hour,
        st.sampled_from([None, 10, 30, 50]),
        drawn_policies,
    )


def failures() -> st.SearchStrategy[Failure]:
    """Return failures: of the job's own code, of conflicts, of a lost database, of a full disk."""
    errors = [
        lambda: ValueError("the job's own"),
        lambda: ConflictError("a conflict"),
        lambda: ReadConflictError("a conflict in reading"),
        lambda: TransientError("another passing error"),
        lambda: ClientDisconnected("the database is away"),
        lambda: OSError(28, "No space left on device"),
    ]
    return st.sampled_from(errors).map(lambda make: Failure(make()))


def messages() -> st.SearchStrategy[JobErrored | CommitErrored | Interrupted]:
    """Return what a retry policy may be sent, for the tests of one: see `RetryPolicy.on_receive`.

    The messages have no `data`: let the policy keep its own.
    """
    return st.one_of(
        st.just(Interrupted()),
        st.builds(JobErrored, failures(), alone=st.booleans()),
        st.builds(CommitErrored, failures(), alone=st.booleans()),
    )


def decisions() -> st.SearchStrategy[Retry | Reschedule | GiveUp]:
    """Return what a retry policy may answer, with waits of up to an hour."""
    hour = durations(timedelta(hours=1))
    return st.one_of(st.just(GiveUp()), st.builds(Retry, hour), st.builds(Reschedule, hour))


def faults() -> st.SearchStrategy[Fault]:
    """Return what may befall a call of the storage: a crash, an error, up to a minute's delay."""
    errors = st.sampled_from(
        [
            lambda: ClientDisconnected("the connection was lost"),
            lambda: ConflictError("a conflict"),
            lambda: ReadConflictError("a conflict in reading"),
            lambda: OSError(28, "No space left on device"),
            lambda: OSError(5, "Input/output error"),
        ]
    )
    return st.one_of(
        st.booleans().map(lambda after: Fault.crash(after=after)),
        st.builds(lambda make, after: Fault.fail(make(), after=after), errors, st.booleans()),
        st.integers(1, 60).map(lambda seconds: Fault.slow(timedelta(seconds=seconds))),
    )


def turns() -> st.SearchStrategy[tuple[int, ...] | int]:
    """Return who is to go on: the first choices one by one, or the seed of all; for machines."""
    one_by_one = st.lists(st.integers(0, 4), max_size=12).map(tuple)
    return one_by_one | st.integers(1, 2**16)


def plans(quotas: Sequence[str] = ()) -> st.SearchStrategy[Plan]:
    """Return the jobs that `perdure.testing.RuntimeMachine` puts.

    :param quotas: names, of which some are given to each job.
    """
    few = st.sampled_from([(), *((name,) for name in quotas), tuple(quotas)])
    moments = st.none() | st.integers(0, 90)
    settings: dict[str, Any] = {
        "quotas": few,
        "begin_after": moments,
        "begin_by": moments,
        "policy": st.sampled_from(list(POLICIES)),
        "callbacks": st.lists(st.sampled_from(CALLBACKS), unique=True, max_size=3).map(tuple),
    }
    parts = st.lists(st.sampled_from(["succeed", "fail", "contend"]), min_size=1, max_size=3)
    return st.one_of(
        st.builds(Plan, st.sampled_from(KINDS), **settings),
        st.builds(
            Plan,
            st.sampled_from(COMPOSITES),
            parts.map(tuple),
            st.booleans(),
            **settings,
        ),
    )
