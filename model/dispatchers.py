"""The processes that work for a queue, each with a record that says whether it lives."""

from __future__ import annotations

import datetime
import uuid as uuids
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from persistent import Persistent

from perdure.model.agent import Agent
from perdure.model.environment import clock_of, proofs_of
from perdure.model.errors import BadStatusError, UnknownSettingError
from perdure.model.given import checked_name, checked_uuid
from perdure.model.happenings import Happening, announce, log_after_commit
from perdure.model.incarnation import Incarnation
from perdure.model.logs import fields
from perdure.model.moments import checked_moment

if TYPE_CHECKING:
    from perdure.model.job import Job
    from perdure.model.queue import Filter, Queue

__all__ = ["DispatcherRecord", "Dispatchers"]

PING_INTERVAL = timedelta(seconds=30)
PING_DEATH_INTERVAL = timedelta(seconds=60)
KEPT_WHEN_DEAD = timedelta(days=7)


class DispatcherRecord(Persistent):
    """One process as one queue knows it: when it last gave sign of life, and its agents.

    `activated` and `last_ping` are aware UTC datetimes, or None. `ping_interval` and
    `ping_death_interval` are what its process was started with.
    """

    ping_interval = PING_INTERVAL
    ping_death_interval = PING_DEATH_INTERVAL
    activated: datetime.datetime | None = None
    last_ping: datetime.datetime | None = None
    incarnation: Incarnation | None = None
    token: str = ""
    """Which start of the process activated it."""

    def __init__(self, uuid: uuids.UUID, queue: Queue) -> None:
        self.uuid = uuid
        self.queue = queue
        self._agents: dict[str, Agent] = {}

    def __repr__(self) -> str:
        return f"<DispatcherRecord {self.uuid} of {self.queue!r}>"

    # Its agents.

    def add_agent(
        self,
        name: str = "main",
        *,
        size: int = 3,
        filter: Filter | None = None,
        chooser: Callable[[Agent], Job | None] | None = None,
    ) -> Agent:
        """Make an agent; it is joined at the dispatcher's next poll.

        Raises `UnknownSettingError` where the name is taken.
        """
        if checked_name("an agent", name) in self._agents:
            raise UnknownSettingError(f"{self!r} has an agent {name!r} already: change that one")
        agent = Agent(name, self, size=size, filter=filter, chooser=chooser)
        self._agents[name] = agent
        self._p_changed = True
        log_after_commit(
            self.queue,
            f"agent {name!r} was added to {self!r}",
            **fields(queue=self.queue.name, agent=name, dispatcher=str(self.uuid)),
        )
        return agent

    def remove_agent(self, name: str) -> None:
        """Remove an agent; raises `ValueError` while it holds jobs."""
        agent = self[name]
        if held := len(agent) + len(agent.left):
            raise UnknownSettingError(
                f"{agent!r} holds {held} jobs: set its size to 0 and wait until they are done"
            )
        self.queue.keep_day_counts(agent)
        # A claim that is under way must not be committed as well.
        agent._p_changed = True
        del self._agents[name]
        self._p_changed = True

    def __getitem__(self, name: str) -> Agent:
        if name not in self:
            raise KeyError(f"{self!r} has no agent {name!r}, only {sorted(self._agents)}")
        return self._agents[name]

    def get(self, name: str) -> Agent | None:
        """Return the agent of that name, or None."""
        return self._agents[name] if name in self else None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._agents

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._agents))

    def __len__(self) -> int:
        return len(self._agents)

    def __bool__(self) -> bool:
        return True

    def agents(self) -> list[Agent]:
        """Return the agents in the order of their names.

        Those of classes that this version does not know are left out, and alone.
        """
        found = [self._agents[name] for name in self]
        return [agent for agent in found if isinstance(agent, Agent)]

    def unknown(self) -> list[str]:
        """Return the names of agents of classes that this version does not know."""
        return [name for name in self if not isinstance(self._agents[name], Agent)]

    # Its life.

    @property
    def registered(self) -> bool:
        """Whether its queue still knows it."""
        return self.queue.dispatchers.get(self.uuid) is self

    @property
    def active(self) -> bool:
        """Whether it says of itself that it works."""
        return self.activated is not None

    @property
    def dead(self) -> bool:
        """Whether its last sign of life is longer ago than `ping_death_interval`."""
        signs = [sign for sign in (self.last_ping, self.activated) if sign is not None]
        if not signs:
            return False
        return clock_of(self.queue).now() - max(signs) > self.ping_death_interval

    def activate(self, token: str, incarnation: Incarnation | None = None) -> None:
        """Say that the process begins to work, as the start named by `token`.

        Raises `BadStatusError` where it is active, or was unregistered. Jobs that its
        agents still have, because who buried it could not load them, are interrupted.
        """
        if self.active:
            raise BadStatusError(f"{self!r} is active since {self.activated}: deactivate it first")
        if not self.registered:
            raise BadStatusError(f"{self!r} was unregistered: register {self.uuid} again")
        for agent in self.agents():
            if len(agent) or agent.left:
                agent.interrupt_all()
        self.activated = self.last_ping = clock_of(self.queue).now()
        self.incarnation = incarnation
        self.token = token
        announce(self.queue, Happening.ACTIVATED, self.uuid, f"{self!r} was activated")

    def deactivate(self, *, died: bool = True) -> None:
        """Say that the process works no more, and see to the jobs that it had.

        `died` is False where it stops by itself, so that no job is to blame for that.

        Those that had not begun wait again, those that had are put to their policies as
        interrupted, done ones are settled. The record of every one is written, so that a
        worker which still runs can commit nothing for it.
        """
        if not self.active:
            raise BadStatusError(f"{self!r} is not active")
        for agent in self.agents():
            agent.interrupt_all(died=died)
        self.activated = None
        self.incarnation = None
        self.token = ""
        self.queue._wake_after_commit()
        announce(self.queue, Happening.DEACTIVATED, self.uuid, f"{self!r} was deactivated")

    def ping(self) -> bool:
        """Give a sign of life where the last one is old enough; tell whether it was.

        A ping that lies in the future is replaced, too.
        """
        now = clock_of(self.queue).now()
        last = self.last_ping
        if last is not None and last <= now and now - last < self.ping_interval:
            return False
        self.last_ping = now
        return True

    def ended(self, own: Incarnation | None = None) -> bool:
        """Tell whether the process that activated it is provably or presumably gone.

        `own` is the incarnation of the process that asks.
        """
        return self.dead or self.proved_dead(own)

    def proved_dead(self, own: Incarnation | None = None) -> bool:
        """Tell whether the process that activated it is provably gone; as `ended`."""
        if self.incarnation is None:
            return False
        return proofs_of(self.queue).proved_dead(self.incarnation, own)

    def stripes(self) -> list[int]:
        """Return the stripes of the queue that are this dispatcher's to claim from first."""
        uuids_active = self.queue.dispatchers.active()
        if self.uuid not in uuids_active:
            return []
        rank, count = uuids_active.index(self.uuid), len(uuids_active)
        return [index for index in range(self.queue.stripe_count) if index % count == rank]


class Dispatchers(Persistent):
    """The dispatchers of one queue, by UUID."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._records: dict[uuids.UUID, DispatcherRecord] = {}

    def register(self, uuid: uuids.UUID) -> DispatcherRecord:
        """Make a record for a process; raises `UnknownSettingError` where it has one."""
        if checked_uuid(uuid) in self._records:
            raise UnknownSettingError(f"{uuid} is registered with {self._queue!r} already")
        record = self._records[uuid] = DispatcherRecord(uuid, self._queue)
        self._p_changed = True
        text = f"dispatcher {uuid} was registered with {self._queue!r}"
        announce(self._queue, Happening.REGISTERED, uuid, text)
        return record

    def unregister(self, uuid: uuids.UUID) -> None:
        """Forget a process.

        Raises `KeyError` where it is not registered, `BadStatusError` while it is active
        or its agents have jobs.
        """
        record = self[uuid]
        if record.active:
            raise BadStatusError(f"{record!r} is active: deactivate it first")
        if any(len(agent) or agent.left for agent in record.agents()):
            raise BadStatusError(f"{record!r} has agents that hold jobs")
        for agent in record.agents():
            self._queue.keep_day_counts(agent)
        # An activation that is under way must not be committed as well.
        record._p_changed = True
        del self._records[uuid]
        self._p_changed = True
        text = f"dispatcher {uuid} was unregistered from {self._queue!r}"
        announce(self._queue, Happening.UNREGISTERED, uuid, text)

    def __getitem__(self, uuid: uuids.UUID) -> DispatcherRecord:
        if uuid not in self:
            raise KeyError(f"no dispatcher {uuid!s} is registered with {self._queue!r}")
        return self._records[uuid]

    def get(self, uuid: uuids.UUID) -> DispatcherRecord | None:
        """Return the record of that process, or None."""
        return self._records[uuid] if uuid in self else None

    def __contains__(self, uuid: object) -> bool:
        return isinstance(uuid, uuids.UUID) and uuid in self._records

    def __iter__(self) -> Iterator[uuids.UUID]:
        return iter(sorted(self._records))

    def __len__(self) -> int:
        return len(self._records)

    def __bool__(self) -> bool:
        return True

    def records(self) -> list[DispatcherRecord]:
        """Return the records in the order of their UUIDs.

        Those of classes that this version does not know are left out, and alone.
        """
        found = [self._records[uuid] for uuid in self]
        return [record for record in found if isinstance(record, DispatcherRecord)]

    def unknown(self) -> list[uuids.UUID]:
        """Return the UUIDs of records of classes that this version does not know."""
        return [uuid for uuid in self if not isinstance(self._records[uuid], DispatcherRecord)]

    def active(self) -> list[uuids.UUID]:
        """Return the UUIDs of the active dispatchers, in their order."""
        return [record.uuid for record in self.records() if record.active]

    def next_active_sibling(self, uuid: uuids.UUID) -> DispatcherRecord | None:
        """Return the active record that follows `uuid`, wrapping around, or None."""
        others = [other for other in self.active() if other != checked_uuid(uuid)]
        if not others:
            return None
        following = [other for other in others if other > uuid]
        return self._records[(following or others)[0]]

    def filters_of_active(self) -> set[str]:
        """Return the filters of all agents of active dispatchers that have one.

        Where any of these agents takes every job, the set holds ``""``, which no filter
        is named. What an agent with a chooser takes cannot be known, so that it counts as
        one that takes none; neither does one of size 0.
        """
        agents = [agent for record in self.records() if record.active for agent in record.agents()]
        return {agent.filter_name or "" for agent in agents if agent.size and not agent.chooses}

    def forget_old(self, now: datetime.datetime) -> list[uuids.UUID]:
        """Unregister the records that are inactive, hold nothing and are a week old."""
        now = checked_moment("now", now)
        old = [
            record.uuid
            for record in self.records()
            if not record.active
            and record.last_ping is not None
            and now - record.last_ping > KEPT_WHEN_DEAD
            and not any(len(a) or a.left or a.completed for a in record.agents())
        ]
        for uuid in old:
            self.unregister(uuid)
        return old
