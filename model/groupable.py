"""The word that a job's effects are all in its transaction, so that it may be run in a group.

A group is run by one worker, one job after the other, in one transaction: the more there is to
do, the fewer commits a job costs. That asks for calls that may be made again without harm,
since what goes wrong for one of them, or at the commit, undoes them all.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from perdure.model import names
from perdure.model.aliases import current_name
from perdure.model.environment import environment
from perdure.model.errors import CallableNotFoundError, NotStorableError
from perdure.model.policy import registered_retry_policy
from perdure.model.ref import job_class

if TYPE_CHECKING:
    from perdure.model.agent import Agent
    from perdure.model.job import Job

__all__ = [
    "agent_word",
    "batch_of",
    "group_of",
    "has_known_callable",
    "has_own_word",
    "kind_of",
    "transactional",
]

T = TypeVar("T", bound=Callable[..., Any])

_MARK = "__perdure_transactional__"


def transactional(function: T) -> T:
    """Say of a function that all its effects are in its transaction; a decorator.

    Its jobs may then be run in a group with others, in one transaction, and called again
    where something comes between. So it has no effect outside of the transaction that would harm
    if it happened twice; it does not commit or abort by itself; and it takes a few milliseconds,
    or is run alone from its second call on. What a job says by its own `transactional` goes
    before. Raises `NotStorableError` for what cannot be marked.
    """
    # Of a method of a class, it is the function in it whose mark is seen.
    methods = classmethod, staticmethod
    marked = function.__func__ if isinstance(function, methods) else function
    try:
        if isinstance(marked, functools.partial):
            raise TypeError("a partial is taken apart when its job is made")
        setattr(marked, _MARK, True)
    except (AttributeError, TypeError) as error:
        raise NotStorableError(
            f"{function!r} cannot be marked as transactional: it has to be a function; say "
            "put(…, transactional=True) instead"
        ) from error
    return function


def group_of(job: Job, agent: Agent | None = None) -> str:
    """Return the name of what `job` calls where it may be run in a group, else "".

    Only a job of the class `Job` itself may, that its word, or its function's, or else, where it
    has no retry policy of its own, the agent's or the queue's calls transactional; that needs no
    quota, has no deadline, and has not begun before. The job is loaded.
    """
    if job._transactional is False or not _has_nothing_to_it(job):
        return ""
    queue = job._queue
    assert queue is not None
    marked, coroutine = kind_of(job)
    if coroutine:
        return ""
    # What says no was seen above.
    said: bool | None = job._transactional or marked
    if not said:
        # One that has a policy of its own has had its way of being called looked at.
        if job._retry_policy_factory is not None:
            return ""
        said = None if agent is None else agent.transactional
        said = queue.transactional if said is None else said
    return job.callable_name if said else ""


def batch_of(job: Job) -> str:
    """Return the name of what `job` calls where it may be run in a batch, else "".

    That asks for the same as `group_of`, but for the word; and for the default retry policy,
    under which a conflict has it called again.
    """
    if not _has_nothing_to_it(job) or job._retry_policy_factory is not None:
        return ""
    if registered_retry_policy("") is not None or kind_of(job)[1]:
        return ""
    return job.callable_name


def _has_nothing_to_it(job: Job) -> bool:
    """Tell whether all that a claim could look at in a job, which is loaded, is as in most."""
    if type(job) is not job_class() or job._alone:
        return False
    if job._quota_names or job._begin_by is not None or job._policy is not None:
        return False
    if job._first or job._keeps_places or job._deaths or job._parent is not None:
        return False
    return not (job._waits_for or job._futures)


def has_own_word(job: Job) -> bool:
    """Tell whether it is the job, or its function, that says that it may be in a group.

    Nobody can change that as long as it waits.
    """
    return bool(job._transactional) or kind_of(job)[0]


def agent_word(agent: Agent) -> bool | None:
    """Return what an agent, or else its queue, says of jobs that do not say it themselves."""
    return agent.queue.transactional if agent.transactional is None else agent.transactional


def has_known_callable(job: Job) -> bool:
    """Tell whether what `job`, which is loaded, calls was found in this process by its name."""
    stored = job._callable
    if not isinstance(stored, str):
        return False
    return current_name(job, stored) in environment(job._p_jar.db()).kinds


def kind_of(job: Job) -> tuple[bool, bool]:
    """Tell whether what a stored job calls is marked, and whether it is a coroutine function.

    Neither, where it is not to be had in this process. Each name is looked at once.
    """
    known = environment(job._p_jar.db())
    name = current_name(job, job.callable_name)
    kind = known.kinds.get(name)
    if kind is None:
        if name in known.unresolved:
            return False, False
        try:
            # Of a method, the class tells; the object is not loaded for it.
            function = names.resolve(name)
        except CallableNotFoundError as error:
            # It is parked when it is claimed.
            known.unresolved[error.name] = error.reason
            return False, False
        marked = bool(getattr(function, _MARK, False))
        kind = known.kinds[name] = marked, inspect.iscoroutinefunction(function)
    return kind
