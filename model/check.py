"""The invariants of a database, looked at one by one."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import transaction
from persistent import Persistent
from ZODB.POSException import POSKeyError
from ZODB.utils import u64

from perdure.model.agent import Agent
from perdure.model.errors import PerdureError
from perdure.model.following import Follow, whole_of
from perdure.model.given import checked_database
from perdure.model.inbox import Bundle, Inbox
from perdure.model.internal import InternalJob
from perdure.model.job import Job
from perdure.model.queue import Queue
from perdure.model.queues import find_queues
from perdure.model.resolving import deadline_of, is_loadable, position_of, stored, unreadable
from perdure.model.status import Status
from perdure.model.stripe import LineKey, Stripe

__all__ = ["check"]

_UNKNOWN = "that this version of Perdure does not know: run it with the one that has stored it"


def check(database: Any) -> list[str]:
    """Return what is wrong in a database, a sentence each; an empty list if nothing is.

    Opens a connection of its own, walks every job, and changes nothing. May be called
    at any time, also while jobs run. Raises `NotInstalledError` where there are no queues.

    A record that a damaged database lacks is a sentence, too. What is found by way of that
    record only is not looked at: check again when it has been restored.
    """
    found: list[str] = []
    manager = transaction.TransactionManager()
    connection = checked_database(database).open(transaction_manager=manager)
    try:
        manager.begin()
        queues = find_queues(connection)
        found += [f"the queue {name!r} is of a class {_UNKNOWN}" for name in queues.unknown()]
        for name, queue in zip(queues, queues.values(), strict=True):
            checker = _Checker(queue)
            try:
                found += checker.violations()
            # Without its own record, there is no more to say of it.
            except POSKeyError as error:
                found.append(f"the queue {name!r}: {_lacking(error)}")
        return found
    except POSKeyError as error:
        return [*found, f"the queues: {_lacking(error)}"]
    finally:
        manager.abort()
        connection.close()


def _lacking(error: POSKeyError) -> str:
    oid = error.args[0]
    name = f"{u64(oid):x}" if isinstance(oid, bytes) and len(oid) == 8 else str(oid)
    return f"record {name} is missing from the database; restore it from a backup"


class _Checker:
    """Walks one queue, notes where each job is, and what disagrees."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._found: list[str] = []
        self._places: dict[bytes, list[str]] = {}
        self._jobs: dict[bytes, Job] = {}
        self._countable = True
        self._missing: set[str] = set()
        self._kept: dict[bytes, tuple[Job, str]] = {}

    def violations(self) -> list[str]:
        """Return the sentences."""
        with self._whatever_is_missing("the processes"):
            self._tell_unknown()
        with self._whatever_is_missing("the stripes"):
            self._walk_stripes()
        with self._whatever_is_missing("the inboxes"):
            self._walk_inboxes()
        with self._whatever_is_missing("the agents"):
            self._walk_agents()
        self._place_waiting()
        for oid, places in self._places.items():
            if len(places) > 1:
                self._say(f"{self._jobs[oid]!r} is in {len(places)} places: {', '.join(places)}")
        with self._whatever_is_missing("its jobs"):
            self._compare_length()
        with self._whatever_is_missing("the quotas"):
            self._check_quotas()
        return self._found

    def _say(self, violation: str) -> None:
        self._found.append(f"{self._queue!r}: {violation}")

    @contextlib.contextmanager
    def _whatever_is_missing(self, place: str) -> Iterator[None]:
        """Say which record is not in the database, once, and go on behind what needed it."""
        try:
            yield
        except POSKeyError as error:
            text = _lacking(error)
            self._countable = False
            if text not in self._missing:
                self._missing.add(text)
                self._say(f"{place}: {text}")

    def _tell_unknown(self) -> None:
        for uuid in self._queue.dispatchers.unknown():
            self._say(f"the record of process {uuid} is of a class {_UNKNOWN}")
        for record in self._queue.dispatchers.records():
            for name in record.unknown():
                self._say(f"the agent {name!r} of {record!r} is of a class {_UNKNOWN}")

    def _place(self, job: Job, place: str) -> None:
        if not is_loadable(job):
            # Code that is not here is no violation; a record that it cannot load is.
            if job._p_oid not in self._places and (error := unreadable(job)):
                self._say(f"the {error.name}, {place}, cannot be read: {error.reason}")
            self._jobs[job._p_oid] = job
            self._places.setdefault(job._p_oid, []).append(place)
            return
        seen = job._p_oid in self._places
        self._jobs[job._p_oid] = job
        self._places.setdefault(job._p_oid, []).append(place)
        if seen:
            return
        if isinstance(job, InternalJob) and job.status is not Status.COMPLETED:
            self._place_served(job)
        if isinstance(job, Follow) and job.status is Status.NEW and is_loadable(job.outer):
            whole = whole_of(job.outer)
            self._kept[whole._p_oid] = whole, f"waiting, with {job!r}"
        for callback in job.callbacks:
            with self._whatever_is_missing(f"with {job!r}"):
                if stored(callback, "_queue", None) is None:
                    self._place(callback, f"with {job!r}")
        if job.status is not Status.COMPLETED:
            self._check_parts(job)
            return
        for callback in job._callbacks or ():
            with self._whatever_is_missing(f"with {job!r}"):
                if not is_loadable(callback) or callback._queue is not None:
                    continue
                if callback.status is not Status.COMPLETED:
                    self._say(f"{job!r} is COMPLETED, its callback {callback!r} is not")

    def _check_parts(self, job: Job) -> None:
        """Look whether there are the objects that it is to be called with, without their code."""
        target = job._callable
        parts = [*job._args, *(job._kwargs or {}).values()]
        for part in parts if isinstance(target, str) else [target[0], *parts]:
            if isinstance(part, Persistent) and part._p_changed is None and part._p_jar:
                with self._whatever_is_missing(f"for {job!r}"):
                    part._p_jar._storage.load(part._p_oid)

    def _place_served(self, internal: InternalJob) -> None:
        job = internal.serves
        if not is_loadable(job):
            if internal.kind != "recover":
                self._place(job, f"with {internal!r}")
            return
        # One that was taken up by an agent meanwhile is in a place of its own again, and stays
        # no business of this one's when it is lost there.
        if internal.kind == "recover" or job._claimed_by()[0] is not None or internal.is_over:
            return
        if internal.kind == "follow" and not internal.goes_on:
            if not internal.heard:
                self._kept[job._p_oid] = job, f"waiting, with {internal!r}"
            return
        expected = {
            "interrupt": (Status.ACTIVE, Status.CALLBACKS, Status.COMPLETED),
            "follow": (Status.ACTIVE, Status.CALLBACKS, Status.COMPLETED),
            "resume": (Status.CALLBACKS, Status.COMPLETED),
            "expire": (Status.PENDING, Status.CALLBACKS, Status.COMPLETED),
        }[internal.kind]
        # So is one that was rescheduled.
        if internal.kind == "interrupt" and job.status in (Status.PENDING, Status.NEW):
            return
        if job.status not in expected:
            self._say(f"{internal!r} deals with {job!r}, which is {job.status.name}")
        self._place(job, f"with {internal!r}")

    def _place_waiting(self) -> None:
        """Place the jobs that others keep: by several of them, maybe, and nowhere else."""
        while self._kept:
            _, (job, place) = self._kept.popitem()
            with self._whatever_is_missing(place):
                self._place(job, place)

    def _walk_stripes(self) -> None:
        for index, stripe in enumerate(self._queue.stripes):
            with self._whatever_is_missing(f"stripe {index}"):
                counts = dict(stripe.counts())
                for key, line in stripe.lines():
                    place = f"line {key} of stripe {index}"
                    with self._whatever_is_missing(place):
                        self._walk_line(place, key, line, counts.pop(key, 0))
                self._check_deadlines(index, stripe)
                for key in counts:
                    self._say(f"stripe {index} counts jobs of line {key}, which it has not")

    def _walk_line(self, place: str, key: LineKey, line: Any, count: int) -> None:
        if not len(line):
            self._say(f"{place} is empty")
        if count != len(line):
            self._say(f"{place} says {count} and has {len(line)}")
        for position, job in line.items():
            with self._whatever_is_missing(place):
                self._place(job, place)
                self._check_waiting(job)
                self._check_known(key, job)
                if position[0] != position_of(job)[0]:
                    self._say(f"{job!r} stands at {position} instead of {position_of(job)}")

    def _check_deadlines(self, index: int, stripe: Stripe) -> None:
        noted = {oid: (due, key, position) for due, oid, key, position in stripe.deadlines()}
        for key, line in stripe.lines():
            for position, job in line.items():
                found = noted.pop(job._p_oid, None)
                with self._whatever_is_missing(f"line {key} of stripe {index}"):
                    deadline = None if key.internal else deadline_of(job)
                    expected = None if deadline is None else (deadline, key, position)
                    # That of a parked one may be looked at when it is claimed.
                    if found != expected and not (key.unresolved and found is None):
                        self._say(f"the deadline of {job!r} is noted as {found}, not {expected}")
        for due, key, _ in noted.values():
            self._say(f"stripe {index} notes the deadline {due} of a job not in line {key}")

    def _walk_inboxes(self) -> None:
        inboxes = self._queue.inboxes.items()
        for index, stripe in enumerate(self._queue.stripes):
            with self._whatever_is_missing(f"the inboxes of stripe {index}"):
                for key, inbox, cursor in stripe.unsorted(inboxes, index):
                    with self._whatever_is_missing(f"inbox {key}"):
                        self._walk_inbox(key, inbox, cursor)

    def _walk_inbox(self, key: str, inbox: Inbox, cursor: int) -> None:
        if cursor > inbox.entries:
            self._say(f"inbox {key} has {inbox.entries} jobs, of which {cursor} were sorted in")
            return
        try:
            for job in inbox.backwards(cursor):
                with self._whatever_is_missing(f"inbox {key}"):
                    if isinstance(job, Job) or not is_loadable(job):
                        self._place(job, f"inbox {key}")
                        self._check_waiting(job)
                    else:
                        self._say(f"inbox {key} has {job!r} where a job should be")
            for bundle in inbox.bundles(cursor):
                self._check_bundle(key, bundle)
        except PerdureError as error:
            self._say(f"inbox {key}: {error}")
            self._countable = False

    def _check_known(self, key: LineKey, job: Job) -> None:
        """Look whether a job is what a claim takes it for that does not load it."""
        if not key.group or not is_loadable(job):
            return
        if job.callable_name != key.group or job._quota_names:
            self._say(
                f"{job!r} stands in a line of jobs that call {key.group} and need no quotas, and "
                f"needs {job.quota_names}"
            )

    def _check_bundle(self, key: str, bundle: Bundle) -> None:
        for job, _, position in bundle.puts():
            with self._whatever_is_missing(f"inbox {key}"):
                if is_loadable(job) and position != position_of(job):
                    self._say(
                        f"{job!r} is at {position} in a bundle of inbox {key} instead of "
                        f"{position_of(job)}"
                    )

    def _check_waiting(self, job: Job) -> None:
        if not is_loadable(job):
            return
        if job.status is not Status.PENDING:
            self._say(f"{job!r} is {job.status.name} and waits in line")
        if job._queue is not self._queue:
            self._say(f"{job!r} waits here and says that it waits in {job._queue!r}")

    def _walk_agents(self) -> None:
        for record in self._queue.dispatchers.records():
            with self._whatever_is_missing("a process"):
                for agent in record.agents():
                    with self._whatever_is_missing(f"an agent of {record!r}"):
                        self._walk_held(agent)
                    with self._whatever_is_missing(f"completed by an agent of {record!r}"):
                        self._walk_completed(agent)

    def _walk_held(self, agent: Agent) -> None:
        allowed = (Status.ASSIGNED, Status.ACTIVE, Status.CALLBACKS, Status.COMPLETED)
        for job, number in [*agent._held.values(), *agent._left.values()]:
            with self._whatever_is_missing(repr(agent)):
                if not is_loadable(job):
                    self._place(job, repr(agent))
                    continue
                if not job._is_held(agent, number):
                    continue
                self._place(job, repr(agent))
                if job.status not in allowed:
                    self._say(f"{job!r} is {job.status.name} and {agent!r} has it")

    def _walk_completed(self, agent: Agent) -> None:
        try:
            kept, found = agent._kept or {}, agent.completed.counts()
        except PerdureError as error:
            self._say(f"{agent!r}: {error}")
            return
        if kept != found:
            self._say(f"{agent!r} counts {kept} done jobs by day and failure, and has {found}")
        for job in agent.completed:
            with self._whatever_is_missing(f"completed by {agent!r}"):
                self._place(job, f"completed by {agent!r}")
                if is_loadable(job) and job.status is not Status.COMPLETED:
                    self._say(f"{job!r} is {job.status.name} and among the completed of {agent!r}")

    def _compare_length(self) -> None:
        if not self._countable:
            return
        walked = sum(1 for _ in self._queue)
        # Not by `len`, which refuses to tell of one below zero.
        length = self._queue.__len__()
        if walked != length:
            self._say(f"its length is {length}, and it has {walked} jobs")

    def _check_quotas(self) -> None:
        used: Counter[str] = Counter()
        for job in self._jobs.values():
            for name in self._limiting(job):
                used[name] += 1
                with self._whatever_is_missing(f"the quota {name!r}"):
                    if job not in self._queue.quotas[name]:
                        self._say(
                            f"{job!r} is {job.status.name} and has no place of quota {name!r}"
                        )
        for name in self._queue.quotas:
            with self._whatever_is_missing(f"the quota {name!r}"):
                quota = self._queue.quotas[name]
                if len(quota) > quota.limit:
                    self._say(f"quota {name!r} has {len(quota)} jobs and a size of {quota.size}")
                if used[name] > quota.limit:
                    self._say(f"{used[name]} jobs need quota {name!r} of size {quota.size}")

    def _limiting(self, job: Job) -> list[str]:
        """Return the quotas that the job must hold a place of now."""
        if not is_loadable(job) or isinstance(job, InternalJob) or job._queue is None:
            return []
        if job.status not in (Status.ASSIGNED, Status.ACTIVE) or job._waits_for:
            return []
        names: tuple[str, ...] = stored(job, "_quota_names", ())
        return [name for name in names if name in self._queue.quotas]
