"""Inboxes: how jobs get into a queue without conflicts.

Every thread that puts has an inbox of its own while its transaction lasts. An inbox is
one small record: the job put last, and how many there were; each job links to the one
before. Dispatchers walk the links back to where they were and never write an inbox, so
that putting conflicts neither with putting nor with claiming.

Where one transaction puts many, a bundle takes the place of the links: one record that
names them all, with what sorting them in has to know, so that it loads none of them.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from persistent import Persistent
from ZODB.POSException import ConflictError
from ZODB.utils import z64

from perdure.model.compact import Numbered
from perdure.model.errors import PerdureError
from perdure.model.resolving import position_of, previous_of
from perdure.model.stripe import LineKey, Position

if TYPE_CHECKING:
    from perdure.model.environment import Secrets
    from perdure.model.job import Job
    from perdure.model.queue import Queue

__all__ = ["Bundle", "Inbox", "InboxTable", "Leases", "Put"]

ROTATE_AFTER = 64
"""How many jobs go into one inbox, and so into one stripe, before the next is used."""

SILENCE_MICROSECONDS = 600_000_000
"""How long nothing was put into an inbox before it may be dropped."""

INBOXES_AT_FIRST = 4
"""How many inboxes a process rotates through while its puts do not overlap."""


BUNDLED = 128
"""So many jobs are in one bundle at most."""


class Put(NamedTuple):
    """A job that was put; with its line and its position where the job itself need not tell."""

    job: Job
    line: LineKey | None = None
    position: Position = (0, 0)


class Bundle(Persistent):
    """Jobs that one transaction has put, one after the other, with their lines.

    Written once by their producer, and once by the dispatcher that sorts them in, which empties
    it: what was put before is kept by nobody then.
    """

    def __init__(self, previous: Job | Bundle | None) -> None:
        self.previous = previous
        self._lines: list[tuple[Any, ...]] = []
        self._jobs: list[Job] = []
        # Which of the lines each is for; nothing, where there is one.
        self._kinds: list[int] = []
        # The first position, and for each job by how much its own is more: numbers that are small.
        self._first: Position | None = None
        self._more: list[int] = []
        self._stamp = 0

    @classmethod
    def of(cls, puts: Sequence[Put], previous: Job | Bundle | None) -> Bundle:
        """Make one of jobs with their lines and positions."""
        made = cls(previous)
        made._jobs = [put.job for put in puts]
        due, stamp = made._first = puts[0].position
        for _, _, position in puts:
            made._more += position[0] - due, position[1] - stamp
        made._stamp = position[1]
        made._lines = [tuple(line) for line in dict.fromkeys(put.line or () for put in puts)]
        if len(made._lines) > 1:
            made._kinds = [made._lines.index(put.line or ()) for put in puts]
        return made

    def __len__(self) -> int:
        return len(self._jobs)

    def has_room(self) -> bool:
        """Tell whether a job may still be added."""
        return len(self._jobs) < BUNDLED

    def add(self, job: Job, line: LineKey) -> None:
        """Add one that is put now."""
        if line not in self._lines:
            self._lines.append(tuple(line))
        kind = self._lines.index(line)
        if kind and not self._kinds:
            self._kinds = [0] * len(self._jobs)
        if kind or self._kinds:
            self._kinds.append(kind)
        due, self._stamp = position_of(job)
        if self._first is None:
            self._first = due, self._stamp
        self._jobs.append(job)
        self._more += [due - self._first[0], self._stamp - self._first[1]]
        self._p_changed = True

    def puts(self) -> list[Put]:
        """Return the jobs, oldest first; loads none."""
        if self._first is None:
            return []
        number = len(self._jobs)
        if len(self._more) != 2 * number or len(self._kinds) not in (0, number):
            raise PerdureError(
                f"a bundle of an inbox has {number} jobs, positions for {len(self._more) / 2:g} "
                f"and lines for {len(self._kinds) or number}: the database is damaged"
            )
        lines, (due, stamp) = [LineKey(*line) for line in self._lines], self._first
        more = iter(self._more)
        each = zip(self._jobs, self._kinds or itertools.repeat(0), more, more, strict=False)
        return [
            Put(job, lines[kind], (due + later, stamp + after)) for job, kind, later, after in each
        ]

    def empty(self) -> None:
        """Let go of the jobs, which were sorted in, and of what was put before."""
        self.previous = None
        self._jobs, self._kinds, self._more = [], [], []


class Inbox(Numbered):
    """The jobs that one producer has put, newest first, by their links."""

    _numbers = MappingProxyType({"stripe": 1, "head": 2, "entries": 3, "retiring": 4, "gone": 5})

    head: Job | Bundle | None = None
    entries: int = 0
    retiring: bool = False
    gone: bool = False
    """Set when it is taken out of the table, so that a late put conflicts."""

    def __init__(self, stripe: int) -> None:
        self.stripe = stripe

    @property
    def is_open(self) -> bool:
        """Whether this transaction has put something, so that more may be in a bundle."""
        head = self.head
        return head is not None and head._p_changed is not None and head._p_serial == z64

    def add(self, job: Job, line: LineKey | None = None) -> None:
        """Put `job` at the head; into a bundle, where its line is given and this `is_open`."""
        head = self.head
        if line is None or not self.is_open:
            job._previous = head
            self.head = job
        else:
            # Of an inbox that it was in before: it is to keep nothing alive.
            if job._previous is not None:
                job._previous = None
            if not isinstance(head, Bundle) or not head.has_room():
                head = self.head = Bundle(head)
            head.add(job, line)
        self.entries += 1
        if self.retiring:
            self.retiring = False

    def add_many(self, puts: Sequence[Put]) -> None:
        """Put jobs that were never in an inbox at the head; those with a line go into bundles."""
        at = 0
        while at < len(puts):
            end, last = at, min(len(puts), at + BUNDLED) if self.is_open else at
            while end < last and puts[end].line:
                end += 1
            if end == at:
                self.add(puts[at].job)
                at += 1
                continue
            self.head = Bundle.of(puts[at:end], self.head)
            self.entries += end - at
            at = end

    def since(self, entries: int) -> list[Put]:
        """Return the jobs after the first `entries`, oldest first."""
        found: list[Put] = []
        for each in self._links(entries):
            found += reversed(each.puts()) if isinstance(each, Bundle) else [Put(each)]
        found.reverse()
        return found

    def backwards(self, entries: int) -> Iterator[Job]:
        """Return the jobs after the first `entries`, newest first, loading one at a time."""
        for each in self._links(entries):
            if isinstance(each, Bundle):
                yield from (put.job for put in reversed(each.puts()))
            else:
                yield each

    def bundles(self, entries: int) -> list[Bundle]:
        """Return the bundles in which jobs after the first `entries` are."""
        return [each for each in self._links(entries) if isinstance(each, Bundle)]

    def _links(self, entries: int) -> Iterator[Any]:
        link: Any = self.head
        left = self.entries - entries
        while left > 0:
            number = len(link) if isinstance(link, Bundle) else int(link is not None)
            if not number:
                raise PerdureError(
                    f"the links of an inbox end {left} jobs too early: the database is damaged"
                )
            yield link
            left -= number
            if left > 0:
                link = link.previous if isinstance(link, Bundle) else previous_of(link)

    def _p_resolveConflict(
        self, old: dict[Any, Any], committed: dict[Any, Any], mine: dict[Any, Any]
    ) -> dict[Any, Any]:
        """Let a put win over the mark that this inbox is to be retired."""
        # They are as they are stored, and neither taken nor given by this object.
        found = self._resolved(*map(self._named, (old, committed, mine)))
        return self._numbered(found)

    def _resolved(
        self, old: dict[str, Any], committed: dict[str, Any], mine: dict[str, Any]
    ) -> dict[str, Any]:
        if committed.get("gone") or mine.get("gone"):
            raise ConflictError("this inbox was retired")
        # The states hold references, which cannot be compared; the counts tell as much.
        before, there, here = (state.get("entries", 0) for state in (old, committed, mine))
        if there != before and here != before:
            raise ConflictError("two producers have put into one inbox")
        winner = committed if there != before else mine
        return {key: value for key, value in winner.items() if key != "retiring"}


class InboxTable(Persistent):
    """The inboxes of a queue, by key; producers that add one at once do not conflict."""

    closed: bool = False
    """Set when its queue is removed, so that a put that meets with it conflicts."""

    def __init__(self) -> None:
        self._inboxes: dict[str, Inbox] = {}

    def close(self) -> None:
        """Let every put that this transaction does not see fail at its commit."""
        self.closed = True
        for inbox in self._inboxes.values():
            inbox.gone = True

    def get(self, key: str) -> Inbox | None:
        """Return the inbox of that key, or None."""
        return self._inboxes.get(key)

    def add(self, key: str, inbox: Inbox) -> None:
        """Add an inbox under a key that no other producer uses."""
        self._inboxes[key] = inbox
        self._p_changed = True

    def remove(self, key: str) -> None:
        """Forget an inbox whose jobs were all sorted in."""
        del self._inboxes[key]
        self._p_changed = True

    def items(self) -> list[tuple[str, Inbox]]:
        """Return the inboxes with their keys, in the order of the keys."""
        return sorted(self._inboxes.items())

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._inboxes))

    def __len__(self) -> int:
        return len(self._inboxes)

    def _p_resolveConflict(
        self, old: dict[str, Any], committed: dict[str, Any], mine: dict[str, Any]
    ) -> dict[str, Any]:
        """Apply both sides' additions and removals.

        Their keys are the same only where a commit raised and took place, and its process, in a
        transaction that does not see it, has used the number again.
        """
        if committed.get("closed") or mine.get("closed"):
            raise ConflictError("the queue of these inboxes was removed")
        before, there, here = old["_inboxes"], committed["_inboxes"], mine["_inboxes"]
        if (there.keys() - before.keys()) & (here.keys() - before.keys()):
            raise ConflictError("two transactions have made one inbox")
        merged = {key: value for key, value in there.items() if key in here or key not in before}
        merged |= {key: value for key, value in here.items() if key not in before}
        return {**committed, "_inboxes": merged}


@dataclass
class _Lease:
    transaction: weakref.ref[Any]
    number: int
    entries: int = 0
    stamp: int = 0


class Leases:
    """Which inbox each transaction of this process uses, for one database.

    An inbox is leased at the first put of a transaction and given back when that ends,
    so that two transactions of one process never share one; the keys begin with a token
    of the process, so that two processes never do. A transaction that began before the
    inbox was last written gets another one. Safe to use from any thread.
    """

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._token = self._secrets.token_hex(6)
        self._offset = self._secrets.randbelow(1 << 16)
        self._made: dict[bytes, int] = {}
        self._free: dict[bytes, deque[int]] = {}
        self._leases: dict[tuple[int, bytes], _Lease] = {}
        self._lost: deque[tuple[int, bytes, _Lease]] = deque()
        self._written: dict[tuple[bytes, int], tuple[int, int]] = {}
        self._used: dict[tuple[bytes, int], int] = {}

    def _renew_after_fork(self) -> None:
        if self._process != os.getpid():
            # Another thread may have held it when this process was forked.
            self._lock = threading.Lock()
            self._start()

    def add(self, queue: Queue, job: Job) -> None:
        """Put `job` into the inbox of the current transaction for `queue`."""
        with self.filling(queue, job._stamp, 1) as inbox:
            inbox.add(job, queue._line_to_be(job) if inbox.is_open else None)

    @contextmanager
    def filling(self, queue: Queue, stamp: int, number: int) -> Iterator[Inbox]:
        """Let so many jobs be put into the inbox, the first of which has this stamp."""
        lease = self._lease(queue, stamp)
        place = queue._p_oid, lease.number
        with self._lock:
            self._used[place] = self._used.get(place, 0) + number
        inbox = queue.inboxes.get(self._key(lease.number))
        if inbox is None:
            inbox = Inbox((self._offset + lease.number) % queue.stripe_count)
            queue.inboxes.add(self._key(lease.number), inbox)
        yield inbox
        # A put by somebody's own hook comes after that of `_before_commit`.
        lease.entries, lease.stamp = inbox.entries, stamp + number - 1

    def _key(self, number: int) -> str:
        return f"{self._token}-{number}"

    def _lease(self, queue: Queue, now: int) -> _Lease:
        jar, oid = queue._p_jar, queue._p_oid
        transaction = jar.transaction_manager.get()
        self._renew_after_fork()
        # Those of threads that have ended without commit and abort.
        while self._lost:
            self._ended(False, *self._lost.popleft())
        with self._lock:
            lease = self._leases.get((id(jar), oid))
            if lease is not None and lease.transaction() is transaction:
                return lease
        lost, jar_id = self._lost, id(jar)
        lease = _Lease(weakref.ref(transaction), self._take(queue, oid, now))
        # Called whenever garbage is collected, so that it must not want the lock.
        weakref.finalize(transaction, lost.append, (jar_id, oid, lease)).atexit = False
        with self._lock:
            self._leases[jar_id, oid] = lease
        transaction.addBeforeCommitHook(self._before_commit, args=(queue, lease))
        transaction.addAfterCommitHook(self._ended, args=(id(jar), oid, lease))
        transaction.addAfterAbortHook(self._ended, args=(False, id(jar), oid, lease))
        return lease

    def _take(self, queue: Queue, oid: bytes, now: int) -> int:
        """Return the number of a free inbox that this transaction sees as last written."""
        stale: list[int] = []
        try:
            while True:
                with self._lock:
                    free = self._free.setdefault(oid, deque())
                    if not free:
                        made = self._made.get(oid, 0)
                        more = INBOXES_AT_FIRST if made == 0 else 1
                        free.extend(range(made, made + more))
                        self._made[oid] = made + more
                    number = free.popleft()
                    written, stamp = self._written.get((oid, number), (0, now))
                inbox = queue.inboxes.get(self._key(number))
                entries = 0 if inbox is None else inbox.entries
                # More than we know of, after a commit that raised and took place.
                if entries >= written:
                    return number
                # One that is not in the table is not there yet, or was dropped for good.
                if inbox is not None or now - stamp < SILENCE_MICROSECONDS:
                    stale.append(number)
        finally:
            with self._lock:
                self._free[oid].extend(stale)

    def _before_commit(self, queue: Queue, lease: _Lease) -> None:
        """Note what is to be committed, less than was put where a savepoint was rolled back."""
        inbox = queue.inboxes.get(self._key(lease.number))
        lease.entries = 0 if inbox is None else inbox.entries

    def _ended(self, committed: bool, jar_id: int, oid: bytes, lease: _Lease) -> None:
        """Give the inbox back."""
        with self._lock:
            if self._leases.get((jar_id, oid)) is not lease:
                return
            del self._leases[jar_id, oid]
            number = lease.number
            if committed:
                self._written[oid, number] = lease.entries, lease.stamp
            if self._used.get((oid, number), 0) >= ROTATE_AFTER:
                self._used[oid, number] = 0
                self._free[oid].append(number)
            else:
                self._free[oid].appendleft(number)
