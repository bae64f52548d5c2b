"""Which stored names do not resolve in this process: to be asked before new code runs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ZODB.POSException import POSKeyError

from perdure.model import names
from perdure.model.agent import Agent
from perdure.model.aliases import current_name
from perdure.model.errors import CallableNotFoundError
from perdure.model.internal import InternalJob
from perdure.model.queue import Queue
from perdure.model.queues import find_queues
from perdure.model.ref import JobRef
from perdure.model.reports import UnresolvedName
from perdure.model.resolving import check_resolvable, is_loadable, stored

__all__ = ["unresolved"]

USERS_NAMED = 10
"""So many agents and retry policies that need a name, at most, are named."""


@dataclass
class _Users:
    """Who needs a name."""

    waiting: int = 0
    parked: int = 0
    first: JobRef | None = None
    users: list[str] = field(default_factory=list)


class _Search:
    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self._found: dict[str, _Users] = {}

    def _note(self, error: CallableNotFoundError) -> _Users:
        self.reasons[error.name] = error.reason
        return self._found.setdefault(error.name, _Users())

    def look_into(self, queue: Queue) -> None:
        """Look at the waiting jobs of a queue, at those under way, and at its agents."""
        # What is missing from the database is told by `check`; all else is looked at.
        for stripe in queue.stripes:
            with suppress(POSKeyError):
                for key, line in stripe.lines():
                    with suppress(POSKeyError):
                        for job in line.values():
                            self._look_at(job, parked=bool(key.unresolved))
        with suppress(POSKeyError):
            for inbox, cursor in queue.unsorted():
                with suppress(POSKeyError):
                    for job in inbox.backwards(cursor):
                        self._look_at(job, parked=False)
        for record in queue.dispatchers.records():
            with suppress(POSKeyError):
                for agent in record.agents():
                    with suppress(POSKeyError):
                        self._look_into(agent)

    def _look_into(self, agent: Agent) -> None:
        for stored_name in (agent._filter, agent._chooser):
            if stored_name is not None:
                self._resolve(agent, stored_name, repr(agent))
        for job in (*agent, *agent.left):
            self._look_at(job, parked=False)

    def _look_at(self, job: Any, *, parked: bool) -> None:
        with suppress(POSKeyError):
            self._look_at_family(job, parked=parked)

    def _look_at_family(self, job: Any, *, parked: bool) -> None:
        if is_loadable(job) and isinstance(job, InternalJob):
            job = job.serves
        family = [job]
        # Callbacks wait, too.
        while family:
            each = family.pop()
            try:
                check_resolvable(each, self.reasons)
            except CallableNotFoundError as error:
                users = self._note(error)
                users.waiting += 1
                users.parked += parked
                users.first = users.first or JobRef.of(each)
            if is_loadable(each):
                policy = stored(each, "_retry_policy_factory", None)
                if policy is not None and not policy.startswith("@"):
                    self._resolve(each, policy, f"the retry policy of {each!r}")
                family += [child for child in each._children() if not _is_done(child)]
            if each._p_changed is False:
                each._p_deactivate()

    def _resolve(self, user: Any, stored_name: str, text: str) -> None:
        name = current_name(user, stored_name)
        try:
            if name in self.reasons:
                raise CallableNotFoundError(name, self.reasons[name])
            names.resolve(name)
        except CallableNotFoundError as error:
            users = self._note(error).users
            if len(users) < USERS_NAMED:
                users.append(text)

    def report(self) -> tuple[UnresolvedName, ...]:
        return tuple(
            UnresolvedName(
                name=name,
                reason=self.reasons[name],
                waiting=users.waiting,
                parked=users.parked,
                first=users.first,
                users=tuple(users.users),
            )
            for name, users in sorted(self._found.items())
        )


def _is_done(job: Any) -> bool:
    return bool(stored(job, "_callbacks_end", None))


def unresolved(connection: Any) -> tuple[UnresolvedName, ...]:
    """Return the names that jobs and agents need, and this process cannot resolve.

    Looks at every job that is not done, at callbacks, at retry policies, filters and
    choosers, and imports what they name. Works in the transaction of `connection`, in its
    thread, and changes nothing. Passes over records that a damaged database lacks, and what is
    found by way of these only; `check` tells of them. Raises `NotInstalledError` where there are
    no queues.
    """
    search = _Search()
    for queue in find_queues(connection).values():
        search.look_into(queue)
    return search.report()
