"""The queue: where jobs wait, and how they are put, claimed and taken out."""

from __future__ import annotations

import contextlib
import datetime
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from persistent import Persistent

from perdure.model.agent import checked_size
from perdure.model.aliases import current_name
from perdure.model.callbacks import check_callbacks
from perdure.model.dispatchers import Dispatchers
from perdure.model.environment import Environment, environment
from perdure.model.errors import (
    BadStatusError,
    CallableNotFoundError,
    NotStorableError,
    QueueNotFoundError,
    UnknownSettingError,
)
from perdure.model.following import followers, whole_of
from perdure.model.given import checked_index, checked_name, checked_stored
from perdure.model.groupable import batch_of, group_of, has_known_callable, has_own_word
from perdure.model.guarded import Choice, Guarded
from perdure.model.happenings import announce_parked
from perdure.model.inbox import SILENCE_MICROSECONDS, Inbox, InboxTable, Put
from perdure.model.internal import InternalJob, is_suspect
from perdure.model.job import Job, as_job
from perdure.model.moments import Duration, checked_moment, microseconds, moment
from perdure.model.names import name_of, resolve
from perdure.model.policy import registered_retry_policy
from perdure.model.quota import Quotas
from perdure.model.resolving import (
    check_resolvable,
    check_whole,
    deadline_of,
    family,
    is_loadable,
    is_whole,
    position_of,
    stored,
)
from perdure.model.side import SideRecords
from perdure.model.status import Status
from perdure.model.stripe import LineKey, Place, Position, Stripe
from perdure.model.tally import DayCounts, Tally

if TYPE_CHECKING:
    from perdure.model.policy import PolicyFactory

__all__ = ["Filter", "Queue", "WaitingJob"]

T = TypeVar("T")
Filter = Callable[[Job], bool]

EXPIRED_AT_ONCE = 1000
"""How many jobs of a stripe, at most, one claim lets expire; the next one goes on."""

_LAST_STAMP = 1 << 62
_FEW = 32
_PLAIN = frozenset(
    {"_callable", "_args", "_kwargs", "_queue", "_stamp", "_begin_after", "_transactional"}
)
"""What a record has of a job that was put as it was made, or with its own word on groups."""

STRIPES = 4
"""How many stripes a new queue has: that many dispatchers can claim without meeting."""


class WaitingJob(NamedTuple):
    """A job in line, where it stands, and the name for which it is parked, or ""."""

    position: Position
    job: Job
    unresolved: str = ""


class Room(Protocol):
    """What whoever claims has room for."""

    @property
    def word(self) -> bool | None:
        """What the one who claims, or else the queue, says of jobs that do not say it."""

    def admits(self, job: Job) -> bool:
        """Tell whether this one may be claimed; it is, then."""

    def batches(self, name: str) -> bool:
        """Tell whether those that call what has that name are to be run in batches now."""

    def for_line(self, key: LineKey) -> int:
        """Return how many jobs of a line may be claimed, for groups or for batches."""


class Queue(Guarded):
    """Jobs waiting for agents, in one database.

    `quotas` are its `Quotas`, `dispatchers` its `Dispatchers`. Every method works in the
    transaction of the queue's connection and commits nothing. Iterating, ``len(queue)`` and
    ``queue[index]`` see the waiting jobs in the order of claims.
    `keep_completed` and `keep_failed` say how long done jobs are kept (timedelta; None:
    7 days). `paused` and `agent_size` are set by `pause`, `resume` and `resize`.
    """

    keep_completed = Duration()
    keep_failed = Duration()
    transactional = Choice()
    paused = False
    agent_size: int | None = None
    past: DayCounts | None = None
    """What ended with agents that are gone, by day."""

    def __init__(self, name: str = "", *, stripes: int = STRIPES) -> None:
        if not isinstance(stripes, int) or stripes < 1:
            raise UnknownSettingError(f"stripes is a whole number of 1 or more, not {stripes!r}")
        self.name = checked_name("a queue", name)
        self.stripe_count = stripes
        self.stripes = tuple(Stripe() for _ in range(stripes))
        self.inboxes = InboxTable()
        self.quotas = Quotas(self)
        self.dispatchers = Dispatchers(self)
        self.side = SideRecords()
        self._parked: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Queue {self.name!r}>"

    # Putting: writes the job and the producer's inbox, nothing else.

    def put(
        self,
        item: Any,
        *,
        begin_after: datetime.datetime | None = None,
        begin_by: timedelta | None = None,
        failure_log_level: int | None = None,
        retry_policy_factory: PolicyFactory | str | None = None,
        transactional: bool | None = None,
    ) -> Job:
        """Put a job, or a callable that becomes one, and return the job.

        It is to begin after `begin_after` (aware; default: the job's own, else now) and
        no later than `begin_by` after that. The other arguments set the job's attributes
        of that name. The job runs once the transaction is committed.

        Raises `BadStatusError` for a job that is not NEW, `NotStorableError` for what
        cannot be stored, `ValueError` for a quota that the queue does not know, a naive
        moment or a negative duration. A refused put changes nothing.
        """
        jar = self._stored_in()
        job = as_job(item)
        self._check_to_put(job, environment(jar.db()).argument_limit_bytes)
        if begin_after is not None:
            begin_after = checked_moment("begin_after", begin_after)
        job._set_all(
            begin_by=begin_by,
            failure_log_level=failure_log_level,
            retry_policy_factory=retry_policy_factory,
            transactional=transactional,
        )
        self._enter(job, "put", due=begin_after or job.begin_after)
        return job

    def _check_to_put(self, job: Job, argument_limit: int) -> None:
        self._check_database(job)
        if job.parent is not None:
            raise BadStatusError(f"{job!r} is a callback of another job, which runs it")
        if job.status is not Status.NEW:
            raise BadStatusError(
                f"{job!r} is {job.status.name}, and only a NEW job can be put: make another"
            )
        unknown = [name for name in job.quota_names if name not in self.quotas]
        if unknown:
            raise UnknownSettingError(
                f"{job!r} needs the quotas {unknown}, which queue {self.name!r} does not have: "
                f"call queue.quotas.create({unknown[0]!r}, size=…) first"
            )
        job.check_storable(argument_limit)

    def put_many(self, items: Iterable[Any]) -> list[Job]:
        """Put jobs, or callables that become some, and return the jobs, in the same order.

        Costs less than to `put` each. All are put in the current transaction, each with its own
        settings; they run once it is committed. Raises as `put` does, and `BadStatusError` for a
        job that is given twice; then none of them was put.
        """
        jar = self._stored_in()
        limit = environment(jar.db()).argument_limit_bytes
        if not isinstance(items, Iterable):
            raise TypeError(f"put_many takes jobs, or callables, not {items!r}: give a list")
        jobs = _as_jobs(items)
        if len(set(map(id, jobs))) != len(jobs):
            twice = next(job for at, job in enumerate(jobs) if any(job is j for j in jobs[:at]))
            raise BadStatusError(f"{twice!r} is to be put twice: make another of it")
        for job in jobs:
            if job._p_jar is not None or job._parent is not None or not _is_simple(job):
                self._check_to_put(job, limit)
        new = [job for job in jobs if job._p_jar is None]
        known = self._environment
        now = microseconds(known.clock.now())
        stamp = known.stamps(len(new))
        if new:
            lines: dict[Any, LineKey | None] = {}
            puts = []
            with known.leases.filling(self, stamp, len(new)) as inbox:
                for job in new:
                    due = job._enter_anew(self, stamp, now)
                    jar.add(job)
                    puts.append(Put(job, self._line_of_kind(job, lines), (due, stamp)))
                    stamp += 1
                inbox.add_many(puts)
            self._wake_after_commit()
        for job in jobs:
            if job._queue is None:
                self._enter(job, "put", due=job.begin_after)
        return jobs

    def _stored_in(self) -> Any:
        """Return the connection; raises `BadStatusError` where the queue has none yet."""
        if self._p_jar is None or self._p_oid is None:
            raise BadStatusError(f"{self!r} was not stored yet: commit it first")
        if self.inboxes.closed:
            raise QueueNotFoundError(f"{self!r} was removed from its database")
        return self._p_jar

    def _check_database(self, job: Job) -> None:
        jar = job._p_jar
        if jar is None or jar is self._p_jar:
            return
        here, there = self._p_jar.db().database_name, jar.db().database_name
        raise NotStorableError(
            f"{job!r} is stored in the database {there!r} through another connection than that "
            f"of {self!r} in {here!r}: put a job that was not stored, or load it from there"
        )

    def put_back(self, job: Job) -> Job:
        """Put a NEW job that was stored first in line; it is due at once."""
        self._stored_in()
        self._check_database(checked_stored(job))
        if job._p_oid is None:
            raise BadStatusError(f"{job!r} was never stored: put it instead")
        if job.parent is not None:
            raise BadStatusError(f"{job!r} is a callback of another job, which runs it")
        if job.status is not Status.NEW:
            raise BadStatusError(
                f"{job!r} is {job.status.name}, and only a NEW job can be put back"
            )
        self._enter(job, "put", first=True)
        return job

    def _enter(
        self,
        job: Job,
        arrow: str,
        *,
        due: datetime.datetime | None = None,
        first: bool = False,
        keeps_places: bool = False,
    ) -> None:
        """Let `job` wait here, moved by `arrow`; whoever calls may be any thread."""
        jar = self._stored_in()
        stamp = self._environment.stamp()
        job._enter(self, arrow, due=due, stamp=stamp, first=first, keeps_places=keeps_places)
        if job._p_jar is None:
            jar.add(job)
        environment(jar.db()).leases.add(self, job)
        self._wake_after_commit()

    def _put_internal(self, kind: str, job: Job, claim: int | None = None) -> None:
        """Let an internal job, first in line, do `kind` to `job`."""
        self._enter(InternalJob(kind, job, claim), "put", first=True)

    def _put_follower(self, outer: Job, inner: Job) -> None:
        """Let an internal job tell `outer`, which waits for `inner`, that this has ended."""
        internal = InternalJob("follow", whole_of(outer))
        internal.outer, internal.inner = outer, inner
        self._enter(internal, "put", first=True)

    def _wake_after_commit(self) -> None:
        wake_after_commit(self._p_jar, self._p_oid)

    # Claiming: for dispatchers, and for whoever plays one.

    def claim(
        self,
        filter: Filter | None = None,
        default: T | None = None,
        *,
        prefer: Sequence[int] | None = None,
    ) -> Job | T | None:
        """Take the first due job that `filter` accepts and whose quotas have room.

        It holds its quota places then, and is to be given to an agent in the same
        transaction. Returns `default` where there is none. `prefer` names the stripes to
        look into first. What a filter raises comes out. While the queue is paused, internal jobs
        alone are claimed, which see to those that have begun, were cancelled, or expired.
        """
        job, _ = next(self._claims(filter, prefer), (None, None))
        if job is None:
            return default
        job._claimed_from_queue()
        handed: list[Job] | None = getattr(self, "_v_handed", None)
        if handed is not None:
            handed.append(job)
        return job

    def _claims(
        self,
        filter: Filter | None,
        prefer: Sequence[int] | None,
        room: Room | None = None,
    ) -> Iterator[tuple[Job, LineKey | None]]:
        """Take one job after the other, as `claim` does, while there is `room`.

        Each comes with the line where that is all that is known of it, since it was not loaded,
        else with None. The link to the job that was put before is for the caller to clear.
        """
        # A claim that is under way must not be committed after a pause.
        self._p_jar.readCurrent(self)
        now = microseconds(self._environment.clock.now())
        filter_name = None if filter is None else name_of(filter)
        for stripes in self._in_turn(prefer):
            self._sort_in(stripes)
            self._expire(stripes, now)
            while True:
                found = self._first(stripes, now, filter_name)
                if found is None:
                    break
                place, job, until = found
                if room is not None and filter is None and self._is_known(place.line, room):
                    # All of these are taken: there is no way back once they are out of the line.
                    most = room.for_line(place.line)
                    jobs = place.stripe.first_of(place.line, until, most)
                    if not jobs:
                        return
                    place.stripe.take(place.line, [position for position, _ in jobs])
                    for _, job in jobs:
                        yield job, place.line
                    continue
                taken = self._take(place, job, now, filter, filter_name, room)
                if taken is False:
                    return
                if taken:
                    yield job, None

    def _is_known(self, key: LineKey, room: Room) -> bool:
        """Tell whether the jobs of a line can be claimed without a look at each of them."""
        if not key.group or key.unresolved:
            return False
        if key.batch:
            if room.word or registered_retry_policy("") is not None or not room.batches(key.group):
                return False
        elif key.by_queue and not room.word:
            return False
        name = current_name(self, key.group)
        if name in self._environment.unresolved:
            return False
        try:
            resolve(name)
        except CallableNotFoundError:
            # They are parked, which is done one by one.
            return False
        return True

    def _in_turn(self, prefer: Sequence[int] | None) -> list[list[int]]:
        """Return the stripes to look into first, then the others.

        Sorting in writes a stripe, so that two dispatchers, each with stripes of its own,
        do not meet as long as there is work in these.
        """
        everything = list(range(len(self.stripes)))
        if prefer is None:
            return [everything]
        if not isinstance(prefer, Sequence):
            raise TypeError(f"prefer is a list of stripes, such as [0, 1], not {prefer!r}")
        first = [index for index in everything if index in prefer]
        return [turn for turn in (first, [i for i in everything if i not in prefer]) if turn]

    def _take(
        self,
        place: Place,
        job: Job,
        now: int,
        filter: Filter | None,
        filter_name: str | None,
        room: Room | None,
    ) -> bool | None:
        """Take a job out of its line, or see to what keeps it from that.

        Return True where it was taken, False where there is no room, None where another is to be
        looked for.
        """
        key = place.line
        if name := self._unresolved(job):
            if name != key.unresolved:
                self._move(place, job, key._replace(unresolved=name))
                self._tell_parked(job, name)
            return None
        if self._is_late(job, now):
            self._expire_one(place, job)
            return None
        if filter is not None and filter_name not in key.refused:
            assert filter_name is not None
            served = job.serves if isinstance(job, InternalJob) else job
            if not filter(served):
                refused = tuple(sorted({*key.refused, filter_name}))
                self._move(place, job, key._replace(refused=refused))
                return None
        if room is not None and not room.admits(job):
            return False
        if not self._take_quotas(job):
            self._move(place, job, key._replace(quotas=self._needed_quotas(job)))
            return None
        place.stripe.remove(place, job)
        return True

    def _first(
        self, stripes: Sequence[int], now: int, filter_name: str | None
    ) -> tuple[Place, Job, Position] | None:
        """Return the first job that may be claimed, and up to which position its line goes on."""
        rooms: dict[tuple[str, ...], bool] = {}
        first: tuple[Position, Stripe, LineKey, Any] | None = None
        until = now, _LAST_STAMP
        for index in stripes:
            stripe = self.stripes[index]
            for key, line in stripe.lines():
                if not self._may_have(key, filter_name):
                    continue
                if key.quotas:
                    if key.quotas not in rooms:
                        rooms[key.quotas] = self._has_room(key.quotas)
                    if not rooms[key.quotas]:
                        continue
                position = line.minKey()
                if first is None or position < first[0]:
                    if first is not None:
                        until = min(until, first[0])
                    if position[0] <= now:
                        first = position, stripe, key, line
                else:
                    until = min(until, position)
        if first is None:
            return None
        position, stripe, key, line = first
        return Place(stripe, key, position), line[position], until

    def _may_have(self, key: LineKey, filter_name: str | None) -> bool:
        if self.paused and not key.internal:
            return False
        if key.suspect and getattr(self, "_v_has_suspect", False):
            return False
        if key.unresolved:
            # Under what it stands for now: an alias may have been made since.
            if current_name(self, key.unresolved) in self._environment.unresolved:
                return False
        if filter_name is None or filter_name not in key.refused:
            return True
        return key.internal and self.dispatchers.filters_of_active() <= set(key.refused)

    def _has_room(self, names: tuple[str, ...]) -> bool:
        quotas = (self.quotas.get(name) for name in names)
        return all(quota is None or quota.has_room() for quota in quotas)

    def _take_quotas(self, job: Job) -> bool:
        if not job._quota_names:
            return True
        quotas = [self.quotas[name] for name in job.quota_names if name in self.quotas]
        if not all(quota.keeps(job) or quota.has_room() for quota in quotas):
            return False
        for quota in quotas:
            quota.take(job)
        return True

    def _needed_quotas(self, job: Any) -> tuple[str, ...]:
        """Return the quotas that a waiting job has to find room in."""
        names: tuple[str, ...] = stored(job, "_quota_names", ())
        if stored(job, "_keeps_places", False):
            names = tuple(
                name for name in names if name in self.quotas and job not in self.quotas[name]
            )
        return tuple(sorted(set(names)))

    def _release_quotas(self, job: Job) -> None:
        self._release(job, job.quota_names)

    def _release(self, job: Job, names: Iterable[str]) -> None:
        for name in names:
            quota = self.quotas.get(name)
            if quota is not None:
                quota.release(job)

    def _under_way(self) -> Iterator[Job]:
        """Return the jobs that hold places: with agents, or lost by their workers."""
        for record in self.dispatchers.records():
            for agent in record.agents():
                for job in (*agent, *agent.left):
                    if is_loadable(job) and job.agent is agent:
                        yield job
        # Those that deal with the lost ones may not be sorted in yet.
        self._sort_in()
        for stripe in self.stripes:
            for key, line in stripe.lines():
                for job in line.values() if key.internal else ():
                    if is_loadable(job) and is_loadable(job.serves):
                        if job.serves.status is Status.ACTIVE and job.serves._agent is None:
                            yield job.serves

    def _move(self, place: Place, job: Job, key: LineKey) -> None:
        place.stripe.remove(place, job)
        place.stripe.insert(key, place.position, job)

    def _unresolved(self, job: Job) -> str:
        """Return the name that keeps `job` from running in this process, or ''."""
        unresolved = self._environment.unresolved
        if type(job) is Job and is_whole(job) and has_known_callable(job):
            return ""
        try:
            check_resolvable(job, unresolved)
            if isinstance(job, InternalJob):
                for each in (job.serves, job.outer, job.inner):
                    if each is not None:
                        check_whole(each, unresolved)
                if job.kind == "resume":
                    check_callbacks(job.serves, unresolved)
        except CallableNotFoundError as error:
            unresolved[error.name] = error.reason
            if self._parked.get(error.name) != error.reason:
                self._parked[error.name] = error.reason
                self._p_changed = True
            return error.name
        return ""

    def _tell_parked(self, job: Job, name: str) -> None:
        served = job.serves if is_loadable(job) and isinstance(job, InternalJob) else job
        announce_parked(self, served, name, self._environment.unresolved.get(name, ""))

    def parked(self) -> dict[str, tuple[str, int]]:
        """Return why jobs are parked and how many: by the name that did not resolve.

        Loads none of them, and walks none.
        """
        found: dict[str, tuple[str, int]] = {}
        for stripe in self.stripes:
            for key, number in stripe.counts():
                if key.unresolved:
                    reason = self._parked.get(key.unresolved, "")
                    _, count = found.get(key.unresolved, (reason, 0))
                    found[key.unresolved] = (reason, count + number)
        return found

    def _expire(self, stripes: Sequence[int], now: int) -> None:
        """Let jobs whose deadline passed be failed, each by an internal job.

        Not too many of them at once, however long nothing was claimed.
        """
        for index in stripes:
            for _ in range(EXPIRED_AT_ONCE):
                expired = self.stripes[index].expired(now)
                if expired is None:
                    break
                job, place = expired
                if is_whole(job):
                    self._expire_one(place, job)
                else:
                    # Its deadline is looked at again where it can be written.
                    name = self._unresolved(job) or place.line.unresolved
                    self._move(place, job, place.line._replace(unresolved=name))
                    if name != place.line.unresolved:
                        self._tell_parked(job, name)

    def _expire_one(self, place: Place, job: Job) -> None:
        place.stripe.remove(place, job)
        self._release_quotas(job)
        internal = InternalJob("expire", job)
        self._p_jar.add(internal)
        internal._enter_for(self, job)
        key = LineKey(refused=place.line.refused, internal=True)
        place.stripe.insert(key, place.position, internal)

    def _is_late(self, job: Job, now: int) -> bool:
        deadline = deadline_of(job)
        return deadline is not None and deadline < now and not isinstance(job, InternalJob)

    def _sort_in(self, stripes: Iterable[int] | None = None) -> None:
        """Sort the jobs in the inboxes into their stripes; default: into all of them."""
        inboxes = self.inboxes.items()
        for index in range(len(self.stripes)) if stripes is None else stripes:
            stripe = self.stripes[index]
            for key, inbox, cursor in stripe.unsorted(inboxes, index):
                # A few are likely to be claimed next, and are not loaded again for that.
                many = inbox.entries - cursor > _FEW
                for job, line, position in inbox.since(cursor):
                    if line is not None:
                        stripe.insert(line, position, job)
                        continue
                    stripe.insert(self._line_key(job), position_of(job), job)
                    if many and job._p_changed is False:
                        job._p_deactivate()
                for bundle in inbox.bundles(cursor):
                    bundle.empty()
                stripe.advance(key, inbox.entries)

    def _line_up(self, job: Job) -> None:
        """Let a job that was claimed, and of which nothing was written since, wait where it did.

        By way of an inbox, as if it was put: others hear of that.
        """
        with self._environment.leases.filling(self, self._environment.stamp(), 1) as inbox:
            inbox.add(job)
        self._wake_after_commit()

    def _line_to_be(self, job: Job) -> LineKey | None:
        """Return the line for a job that is put now; None where it is to be looked at later."""
        line = self._line_key(job)
        return line if line.group else None

    def _line_of_kind(self, job: Job, known: dict[Any, LineKey | None]) -> LineKey | None:
        """Return the line as `_line_to_be` does; `known` are those of plain jobs."""
        plain = type(job) is Job and isinstance(job._callable, str)
        if not plain or not _PLAIN.issuperset(job.__dict__):
            return self._line_to_be(job)
        kind = job._callable, job._transactional
        if kind not in known:
            known[kind] = self._line_to_be(job)
        return known[kind]

    def _line_key(self, job: Job) -> LineKey:
        if type(job) is Job and is_loadable(job) and not job._quota_names and not job._deaths:
            if job._claim or not is_whole(job):
                return LineKey()
            if name := group_of(job):
                return LineKey(group=name, by_queue=not has_own_word(job))
            name = batch_of(job)
            return LineKey(group=name, batch=bool(name))
        suspect = is_suspect(job)
        if isinstance(job, InternalJob):
            return LineKey(internal=True, suspect=suspect)
        return LineKey(self._needed_quotas(job), suspect=suspect)

    def telling_oids(self) -> frozenset[bytes]:
        """Return the oids of the records that say that there may be something to claim.

        They are written by whoever puts a job, frees a place, or pauses and resumes.
        """
        inboxes = [inbox for _, inbox in self.inboxes.items()]
        quotas = [self.quotas[name] for name in self.quotas]
        told: list[Persistent] = [self, self.inboxes, *inboxes, *quotas]
        return frozenset(each._p_oid for each in told if each._p_oid is not None)

    def sweep_inboxes(self) -> None:
        """Drop inboxes that were silent for long; called by a dispatcher now and then.

        An inbox is marked first, and dropped by a later call: a producer that comes back
        in between keeps it.
        """
        now = microseconds(self._environment.clock.now())
        for key, inbox in self.inboxes.items():
            stripe = self.stripes[inbox.stripe]
            if stripe.cursor(key) != inbox.entries or inbox.head is None:
                continue
            if now - stored(inbox.head, "_stamp", 0) < SILENCE_MICROSECONDS:
                continue
            if not inbox.retiring:
                inbox.retiring = True
            else:
                inbox.gone = True
                self.inboxes.remove(key)
                stripe.forget(key)

    # For those who operate it.

    def pause(self) -> None:
        """Let no more jobs begin, in any process, until `resume`.

        What has begun goes on, with its callbacks; jobs can be put, cancelled, and expire.
        Harmless when repeated.
        """
        self.paused = True

    def resume(self) -> None:
        """Let jobs be claimed again; harmless when repeated."""
        self.paused = False
        self._wake_after_commit()

    def resize(self, size: int, *, agent: str = "main") -> None:
        """Let the agents of that name have at most `size` jobs at once, in every process.

        That is 0 or more for each process; what runs is not stopped. For ``main`` it holds
        for processes that register later, too. A process that is started with a size of its
        own keeps to that one. Raises `UnknownSettingError` for a size below 0, and for a name
        that no agent here has.
        """
        checked_size(agent, size)
        found = [record[agent] for record in self.dispatchers.records() if agent in record]
        if not found and agent != "main":
            known = sorted({name for record in self.dispatchers.records() for name in record})
            raise UnknownSettingError(f"no agent of {self!r} is named {agent!r}, only {known}")
        for each in found:
            each.size = size
        if agent == "main":
            self.agent_size = size
        self._wake_after_commit()

    def keep_day_counts(self, agent: Tally) -> None:
        """Keep what an agent that is about to go has counted by day."""
        for day, (successful, failed) in agent.day_counts():
            if self.past is None:
                self.past = DayCounts()
            self.past.add(day, successful, failed)

    # Looking, and taking out by hand.

    def waiting(
        self, unsorted_limit: int | None = None, *, parked: bool = True
    ) -> Iterator[WaitingJob]:
        """Return the waiting jobs in claim order; loads those that are not sorted in yet.

        Where these are more than `unsorted_limit`, they come behind the others instead, the
        newest of each producer first, and are loaded one by one. With `parked` False, those
        that are known to be parked are left out.
        """
        if unsorted_limit is not None and not isinstance(unsorted_limit, int):
            raise TypeError(f"unsorted_limit is a whole number, not {unsorted_limit!r}")
        lines: list[Iterator[WaitingJob]] = []
        for stripe in self.stripes:
            for key, line in stripe.lines():
                if parked or not key.unresolved:
                    lines.append(_entries(key, line))
        if unsorted_limit is None or self.unsorted_count() <= unsorted_limit:
            for inbox, cursor in self.unsorted():
                new = [WaitingJob(position_of(put.job), put.job) for put in inbox.since(cursor)]
                lines.append(iter(sorted(new, key=_by_position)))
            yield from heapq.merge(*lines, key=_by_position)
            return
        yield from heapq.merge(*lines, key=_by_position)
        for inbox, cursor in self.unsorted():
            for job in inbox.backwards(cursor):
                yield WaitingJob(position_of(job), job)

    def unsorted(self) -> Iterator[tuple[Inbox, int]]:
        """Return the inboxes that have news, with how many of their jobs were sorted in."""
        inboxes = self.inboxes.items()
        for index, stripe in enumerate(self.stripes):
            for _, inbox, cursor in stripe.unsorted(inboxes, index):
                yield inbox, cursor

    def unsorted_count(self) -> int:
        """Return how many jobs were put and not sorted in yet; loads none of them."""
        return sum(inbox.entries - cursor for inbox, cursor in self.unsorted())

    def __iter__(self) -> Iterator[Job]:
        return (each.job for each in self.waiting())

    def __len__(self) -> int:
        return sum(map(len, self.stripes)) + self.unsorted_count()

    def __bool__(self) -> bool:
        return True

    def __contains__(self, job: Any) -> bool:
        if not isinstance(job, Persistent):
            return False
        if is_loadable(job):
            return isinstance(job, Job) and job._queue is self and job.status is Status.PENDING
        return any(stripe.find(job, position_of(job)) for stripe in self.stripes)

    def __getitem__(self, index: int) -> Job:
        """Return the job at `index` in claim order; walks the queue up to it."""
        index = checked_index(index)
        place = index + len(self) if index < 0 else index
        if place >= 0:
            for job in itertools.islice(self, place, None):
                return job
        raise IndexError(f"{self!r} has {len(self)} jobs, so none at {index}")

    def pull(self, index: int = 0) -> Job:
        """Take the job at `index` in claim order out; it is NEW again.

        Raises `IndexError` where there is none, else what `remove` raises.
        """
        job = self[index]
        self.remove(job)
        return job

    def remove(self, job: Job) -> None:
        """Take `job` out; it is NEW again and holds no quota places.

        Raises `LookupError` where it does not wait here, also `CallableNotFoundError`
        where it cannot be loaded here, and `BadStatusError` for an internal job, without
        which the job that it deals with would never end.
        """
        check_whole(checked_stored(job))
        if job not in self:
            raise LookupError(f"{job!r} is {job.status.name} and does not wait in {self!r}")
        if isinstance(job, InternalJob):
            raise BadStatusError(f"{job!r} deals with {job.serves!r} and cannot be taken out")
        self._leave(job)
        for each in list(family(job)):
            if is_whole(each):
                self._give_side_record(each)
        for follow in followers(job):
            # It will not end here, for those who wait for it.
            self._put_follower(follow.outer, job)
            follow._end_unheard()
        job._taken_out()

    def _give_side_record(self, job: Job) -> None:
        """Let a job that is taken out have for its own what others have added to it.

        Its record is written here: who adds to it at the same time sees it taken out, or this
        transaction fails.
        """
        self.side.read_current(job)
        job._p_changed = True
        record = self.side.pop(job)
        if record is not None:
            job._take_over(record)

    def _leave(self, job: Job) -> None:
        """Take a waiting job out of line; its record is for the caller to write."""
        place = self._place(job)
        place.stripe.remove(place, job)
        self._release_quotas(job)

    def _place(self, job: Job) -> Place:
        self._sort_in()
        for stripe in self.stripes:
            place = stripe.find(job, position_of(job))
            if place is not None:
                return place
        raise BadStatusError(f"{job!r} is about to be failed, since its deadline has passed")

    @contextlib.contextmanager
    def _changing(self, job: Job) -> Iterator[None]:
        """Sort a waiting job anew after what is done to it in the with statement."""
        place = self._place(job)
        place.stripe.remove(place, job)
        names = job.quota_names
        try:
            yield
        finally:
            self._release(job, set(names) - set(job.quota_names))
            place.stripe.insert(self._line_key(job), place.position, job)
        self._wake_after_commit()

    def next_due(self) -> datetime.datetime | None:
        """Return when the next held job comes due, or expires, or None; loads no job."""
        now = microseconds(self._environment.clock.now())
        upcoming = (due for stripe in self.stripes for due in stripe.upcoming(now))
        soonest = min(upcoming, default=None)
        return None if soonest is None else moment(soonest)

    @property
    def _environment(self) -> Environment:
        return environment(self._p_jar.db())


def _as_jobs(items: Iterable[Any]) -> list[Job]:
    """Return jobs of what is given; each callable is looked at once."""
    jobs: list[Job] = []
    known: dict[int, tuple[Any, Any]] = {}
    for item in items:
        if isinstance(item, Job):
            jobs.append(item)
            continue
        # Kept, so that no other has its number.
        entry = known.get(id(item))
        if entry is None:
            jobs.append(Job(item))
            if isinstance(jobs[-1]._callable, str) and not jobs[-1]._args:
                known[id(item)] = item, jobs[-1]._callable
            continue
        job = Job.__new__(Job)
        job._callable = entry[1]
        jobs.append(job)
    return jobs


def _is_simple(job: Job) -> bool:
    """Tell whether there is nothing about a new job that a queue could refuse."""
    if type(job) is not Job or job._args or job._kwargs or job._quota_names:
        return False
    return isinstance(job._callable, str) and job.status is Status.NEW


def _by_position(waiting: WaitingJob) -> Position:
    return waiting.position


def _entries(key: LineKey, line: Any) -> Iterator[WaitingJob]:
    for position, job in line.items():
        yield WaitingJob(position, job, key.unresolved)


def wake_after_commit(jar: Any, queue_oid: bytes) -> None:
    """Tell the listeners of the database, once this transaction is committed."""
    transaction = jar.transaction_manager.get()
    told = environment(jar.db())
    try:
        oids = transaction.data(told)
    except KeyError:
        oids = set()
        transaction.set_data(told, oids)
        transaction.addAfterCommitHook(_wake, args=(told, oids))
    oids.add(queue_oid)


def _wake(committed: bool, told: Environment, oids: set[bytes]) -> None:
    if committed:
        for oid in oids:
            told.wake(oid)
        told.announce_change()
