"""The queue: where jobs wait, and how they are put, claimed and taken out."""

from __future__ import annotations

import contextlib
import datetime
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from persistent import Persistent

from perdure.model.dispatchers import Dispatchers
from perdure.model.environment import Environment, environment
from perdure.model.errors import BadStatusError, CallableNotFoundError, UnknownSettingError
from perdure.model.inbox import InboxTable
from perdure.model.internal import InternalJob
from perdure.model.job import Job, as_job
from perdure.model.moments import checked_moment, microseconds, moment
from perdure.model.names import name_of
from perdure.model.quota import Quotas
from perdure.model.side import SideRecords
from perdure.model.status import Status
from perdure.model.resolving import check_resolvable, position_of, stored
from perdure.model.stripe import LineKey, Place, Stripe

if TYPE_CHECKING:
    from perdure.model.policy import PolicyFactory

__all__ = ["Filter", "Queue"]

T = TypeVar("T")
Filter = Callable[[Job], bool]

STRIPES = 4
"""How many stripes a new queue has: that many dispatchers can claim without meeting."""

_INBOX_SILENCE_MICROSECONDS = 600_000_000
_FIRST_IN_LINE = 0


class Queue(Persistent):
    """Jobs waiting for agents, in one database.

    Every method works in the transaction of the queue's connection and commits nothing.
    `keep_completed` and `keep_failed` say how long done jobs are kept (timedelta; None:
    7 days).
    """

    keep_completed: timedelta | None = None
    keep_failed: timedelta | None = None

    def __init__(self, name: str = "", *, stripes: int = STRIPES) -> None:
        self.name = name
        self.stripe_count = stripes
        self.stripes = tuple(Stripe() for _ in range(stripes))
        self.inboxes = InboxTable()
        self.quotas = Quotas()
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
        job = as_job(item)
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
        job.check_storable(self._environment.argument_limit_bytes)
        if begin_after is not None:
            begin_after = checked_moment("begin_after", begin_after)
        settings = {
            "begin_by": begin_by,
            "failure_log_level": failure_log_level,
            "retry_policy_factory": retry_policy_factory,
            "transactional": transactional,
        }
        given = {name: value for name, value in settings.items() if value is not None}
        before = {name: getattr(job, name) for name in given}
        try:
            for name, value in given.items():
                setattr(job, name, value)
        except (TypeError, ValueError):
            for name, value in before.items():
                setattr(job, name, value)
            raise
        due = begin_after or job.begin_after or self._environment.clock.now()
        self._enter(job, "put", due=due)
        return job

    def put_back(self, job: Job) -> Job:
        """Put a NEW job that was stored first in line; it is due at once."""
        if job._p_oid is None:
            raise BadStatusError(f"{job!r} was never stored: put it instead")
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
        jar = self._p_jar
        if jar is None:
            raise BadStatusError(f"{self!r} was not stored yet: commit it first")
        stamp = self._environment.stamp()
        job._enter(self, arrow, due=due, stamp=stamp, first=first, keeps_places=keeps_places)
        if job._p_jar is None:
            jar.add(job)
        environment(jar.db()).leases.add(self, job)
        self._wake_after_commit()

    def _put_internal(self, kind: str, job: Job) -> None:
        """Let an internal job, first in line, do `kind` to `job`."""
        self._enter(InternalJob(kind, job), "put", first=True)

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
        look into first. What a filter raises comes out.
        """
        now = microseconds(self._environment.clock.now())
        filter_name = None if filter is None else name_of(filter)
        self._sort_in()
        self._expire(now)
        while True:
            found = self._first(now, filter_name, prefer)
            if found is None:
                return default
            place, job = found
            key = place.line
            if name := self._unresolved(job):
                if name != key.unresolved:
                    self._move(place, job, key._replace(unresolved=name))
                continue
            if filter is not None and filter_name not in key.refused:
                assert filter_name is not None
                served = job.serves if isinstance(job, InternalJob) else job
                if not filter(served):
                    refused = tuple(sorted({*key.refused, filter_name}))
                    self._move(place, job, key._replace(refused=refused))
                    continue
            if not self._take_quotas(job):
                self._move(place, job, key._replace(quotas=tuple(sorted(job.quota_names))))
                continue
            place.stripe.remove(place, job)
            job._claimed_from_queue()
            return job

    def _first(
        self, now: int, filter_name: str | None, prefer: Sequence[int] | None
    ) -> tuple[Place, Job] | None:
        rooms: dict[tuple[str, ...], bool] = {}
        candidates: list[tuple[bool, tuple[int, int], int, Place, Job]] = []
        for index, stripe in enumerate(self.stripes):
            behind = prefer is not None and index not in prefer
            for key, line in stripe.lines():
                if not self._may_have(key, filter_name):
                    continue
                if key.quotas not in rooms:
                    rooms[key.quotas] = self._has_room(key.quotas)
                if not rooms[key.quotas]:
                    continue
                position = line.minKey()
                if position[0] <= now:
                    candidates.append(
                        (behind, position, len(candidates), Place(stripe, key, position),
                         line[position])
                    )  # fmt: skip
        if not candidates:
            return None
        _, _, _, place, job = min(candidates, key=lambda candidate: candidate[:3])
        return place, job

    def _may_have(self, key: LineKey, filter_name: str | None) -> bool:
        if key.unresolved and key.unresolved in self._environment.unresolved:
            return False
        if filter_name is None or filter_name not in key.refused:
            return True
        return key.internal and self.dispatchers.filters_of_active() <= set(key.refused)

    def _has_room(self, names: tuple[str, ...]) -> bool:
        quotas = (self.quotas.get(name) for name in names)
        return all(quota is None or quota.has_room() for quota in quotas)

    def _take_quotas(self, job: Job) -> bool:
        quotas = [self.quotas[name] for name in job.quota_names if name in self.quotas]
        if not all(job in quota or quota.has_room() for quota in quotas):
            return False
        for quota in quotas:
            quota.take(job)
        return True

    def _release_quotas(self, job: Job) -> None:
        for name in job.quota_names:
            quota = self.quotas.get(name)
            if quota is not None:
                quota.release(job)

    def _move(self, place: Place, job: Job, key: LineKey) -> None:
        place.stripe.remove(place, job)
        place.stripe.insert(key, place.position, job)

    def _unresolved(self, job: Job) -> str:
        """Return the name that keeps `job` from running in this process, or ''."""
        try:
            check_resolvable(job)
        except CallableNotFoundError as error:
            self._environment.unresolved[error.name] = error.reason
            if self._parked.get(error.name) != error.reason:
                self._parked[error.name] = error.reason
                self._p_changed = True
            return error.name
        return ""

    def parked(self) -> dict[str, tuple[str, int]]:
        """Return why jobs are parked and how many: by the name that did not resolve.

        Counting walks the keys of those jobs, and loads none of them.
        """
        found: dict[str, tuple[str, int]] = {}
        for stripe in self.stripes:
            for key, line in stripe.lines():
                if key.unresolved:
                    reason = self._parked.get(key.unresolved, "")
                    _, count = found.get(key.unresolved, (reason, 0))
                    found[key.unresolved] = (reason, count + len(line))
        return found

    def _expire(self, now: int) -> None:
        """Let the jobs whose deadline passed be failed, each by an internal job."""
        for stripe in self.stripes:
            while (expired := stripe.expired(now)) is not None:
                job, place = expired
                stripe.remove(place, job)
                self._release_quotas(job)
                internal = InternalJob("expire", job)
                self._p_jar.add(internal)
                internal._enter_for(self, job)
                stripe.insert(
                    LineKey(refused=place.line.refused, internal=True), place.position, internal
                )

    def _sort_in(self) -> None:
        """Sort the jobs in the inboxes into their stripes."""
        for index, stripe in enumerate(self.stripes):
            for key, cursor, entries in list(stripe.unsorted(self.inboxes, index)):
                inbox = self.inboxes.get(key)
                assert inbox is not None
                for job in inbox.since(cursor):
                    stripe.insert(self._line_key(job), position_of(job), job)
                    if job._p_changed is False:
                        job._p_deactivate()
                stripe.advance(key, entries)

    def _line_key(self, job: Job) -> LineKey:
        if isinstance(job, InternalJob):
            return LineKey(internal=True)
        names: tuple[str, ...] = stored(job, "_quota_names", ())
        if stored(job, "_keeps_places", False) and all(
            job in self.quotas[name] for name in names if name in self.quotas
        ):
            return LineKey()
        return LineKey(tuple(sorted(names)))

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
            if now - stored(inbox.head, "_stamp", 0) < _INBOX_SILENCE_MICROSECONDS:
                continue
            if not inbox.retiring:
                inbox.retiring = True
            else:
                inbox.gone = True
                self.inboxes.remove(key)
                stripe.forget(key)

    # Looking, and taking out by hand.

    def _waiting(self) -> Iterator[Job]:
        lines: list[Iterator[tuple[tuple[int, int], int, Job]]] = []
        numbers = itertools.count()
        for index, stripe in enumerate(self.stripes):
            for _, line in stripe.lines():
                lines.append((at, next(numbers), job) for at, job in line.items())
            new: list[tuple[tuple[int, int], int, Job]] = []
            for key, cursor, _ in stripe.unsorted(self.inboxes, index):
                inbox = self.inboxes.get(key)
                assert inbox is not None
                new += [(position_of(job), next(numbers), job) for job in inbox.since(cursor)]
            lines.append(iter(sorted(new)))
        for _, _, job in heapq.merge(*lines):
            yield job

    def __iter__(self) -> Iterator[Job]:
        return self._waiting()

    def __len__(self) -> int:
        return sum(
            len(stripe)
            + sum(
                count - cursor for _, cursor, count in stripe.unsorted(self.inboxes, index)
            )
            for index, stripe in enumerate(self.stripes)
        )

    def __bool__(self) -> bool:
        return True

    def __contains__(self, job: object) -> bool:
        return isinstance(job, Job) and job.queue is self and job.status is Status.PENDING

    def __getitem__(self, index: int) -> Job:
        """Return the job at `index` in claim order; walks the queue up to it."""
        place = index + len(self) if index < 0 else index
        if place >= 0:
            for job in itertools.islice(self, place, None):
                return job
        raise IndexError(f"{self!r} has {len(self)} jobs, so none at {index}")

    def pull(self, index: int = 0) -> Job:
        """Take the job at `index` in claim order out; it is NEW again.

        Raises `IndexError` where there is none.
        """
        job = self[index]
        self.remove(job)
        return job

    def remove(self, job: Job) -> None:
        """Take `job` out; it is NEW again and holds no quota places.

        Raises `LookupError` where it does not wait here.
        """
        if job not in self:
            raise LookupError(f"{job!r} is {job.status.name} and does not wait in {self!r}")
        self._leave(job)
        job._taken_out()

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
        yield
        key = self._line_key(job)
        place.stripe.insert(key, place.position, job)
        self._wake_after_commit()

    def next_due(self) -> datetime.datetime | None:
        """Return when the next held job comes due, or expires, or None; loads no job."""
        now = microseconds(self._environment.clock.now())
        soonest = min((due for stripe in self.stripes for due in stripe.upcoming(now)), default=None)
        return None if soonest is None else moment(soonest)

    @property
    def _environment(self) -> Environment:
        return environment(self._p_jar.db())


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
