"""Agents: who takes jobs from a queue for a process, and holds them while they run."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from transaction.interfaces import TransientError
from ZODB.POSException import POSError
from ZODB.utils import p64

from perdure.model import names
from perdure.model.aliases import current_name
from perdure.model.compact import packed_agent, unpacked_agent
from perdure.model.done import Done, DoneByAgent, DoneTrees, Shelf
from perdure.model.environment import clock_of
from perdure.model.errors import BadStatusError, UnknownSettingError
from perdure.model.failure import Failure
from perdure.model.given import checked_name, checked_stored
from perdure.model.guarded import Choice, Guarded
from perdure.model.internal import InternalJob, is_suspect
from perdure.model.logs import events, fields
from perdure.model.moments import Duration, microseconds
from perdure.model.places import Places, Taken
from perdure.model.ref import JobRef
from perdure.model.resolving import family, is_loadable, is_whole
from perdure.model.status import Status
from perdure.model.tally import Tally, day_of

if TYPE_CHECKING:
    from perdure.model.dispatchers import DispatcherRecord
    from perdure.model.job import Job
    from perdure.model.queue import Filter, Queue

__all__ = ["LARGEST_SIZE", "Agent", "Claim", "checked_size"]

KEPT_BY_DEFAULT = timedelta(days=7)

LARGEST_SIZE = 10_000
"""How many jobs an agent may have at once, at most: all are named in its own record."""


class Claim(NamedTuple):
    """One job that an agent holds, and the number of the claim that gave it."""

    ref: JobRef
    number: int


class Completion(NamedTuple):
    """What a worker says of a job that it has completed, so that nobody need load it for that.

    `ended` is when, in microseconds since 1970; `keep` is the job's own word for how long.
    """

    ref: JobRef
    number: int
    ended: int
    failed: bool
    keep: timedelta | None


class Agent(Tally, Guarded):
    """Holds up to `size` jobs of one queue for one dispatcher.

    `filter(job) -> bool` says which jobs it takes; or `chooser(agent) -> job or None`
    claims one itself, by calling `agent.queue.claim`. Both are stored by name.
    `failure` is what the last claim raised, None once one succeeded. `completed` are the
    jobs that are done: iterate over it, newest first, or over ``completed.between(since,
    until)``. `keep_completed` and `keep_failed` say how long they are kept (timedelta; None:
    as the queue says); the job's own word goes before.
    """

    failure: Failure | None = None
    keep_completed = Duration()
    keep_failed = Duration()
    transactional = Choice()
    _filter: str | None = None
    _chooser: str | None = None
    _suspect: bytes | None = None

    def __init__(
        self,
        name: str,
        record: DispatcherRecord,
        *,
        size: int = 3,
        filter: Filter | None = None,
        chooser: Callable[[Agent], Job | None] | None = None,
    ) -> None:
        self.name = checked_name("an agent", name)
        self.record = record
        self._size = checked_size(name, size)
        self._held: dict[bytes, tuple[Job, int]] = {}
        self._left: dict[bytes, tuple[Job, int]] = {}
        self._done: Done | DoneTrees = DoneTrees()
        if filter is not None:
            self.filter = filter
        if chooser is not None:
            self.chooser = chooser

    def __getstate__(self) -> Any:
        """Return what is stored."""
        return packed_agent(super().__getstate__())

    def __setstate__(self, state: Any) -> None:
        """Take what is stored."""
        super().__setstate__(unpacked_agent(state))

    def __repr__(self) -> str:
        return f"<Agent {self.name!r} of {self.record.uuid}>"

    @property
    def queue(self) -> Queue:
        """The queue that it takes jobs from."""
        return self.record.queue

    @property
    def completed(self) -> DoneByAgent:
        """The jobs that are done, newest first."""
        return DoneByAgent(self)

    @property
    def size(self) -> int:
        """How many jobs it may have at once; may be changed while it runs."""
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = checked_size(self.name, size)

    def _resolved(self, name: str | None) -> Any:
        return None if name is None else names.resolve(current_name(self, name))

    @property
    def filter(self) -> Filter | None:
        """Which jobs it takes: a module-level function of the job, or None for all.

        It must be a pure function of the job as it was put: its answer is remembered. It
        runs in the dispatcher's thread and transaction.
        """
        found: Filter | None = self._resolved(self._filter)
        return found

    @filter.setter
    def filter(self, value: Filter | None) -> None:
        if value is not None and self._chooser is not None:
            raise UnknownSettingError(f"{self!r} has a chooser, so it cannot have a filter too")
        self._filter = None if value is None else names.name_of(value)

    @property
    def filter_name(self) -> str | None:
        """The name of the filter, as it stands for it now, or None."""
        return None if self._filter is None else current_name(self, self._filter)

    @property
    def chooser(self) -> Callable[[Agent], Job | None] | None:
        """Claims one job for the agent: a module-level function of the agent, or None."""
        found: Callable[[Agent], Job | None] | None = self._resolved(self._chooser)
        return found

    @chooser.setter
    def chooser(self, value: Callable[[Agent], Job | None] | None) -> None:
        if value is not None and self._filter is not None:
            raise UnknownSettingError(f"{self!r} has a filter, so it cannot have a chooser too")
        self._chooser = None if value is None else names.name_of(value)

    @property
    def chooser_name(self) -> str | None:
        """The name of the chooser, as it stands for it now, or None."""
        return None if self._chooser is None else current_name(self, self._chooser)

    @property
    def chooses(self) -> bool:
        """Whether it has a chooser."""
        return self._chooser is not None

    # What it holds.

    def __len__(self) -> int:
        return len(self._held)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Job]:
        return iter([job for job, _ in self._held.values()])

    def __contains__(self, job: Job) -> bool:
        return checked_stored(job)._p_oid in self._held or job._p_oid in self._left

    @property
    def left(self) -> list[Job]:
        """Jobs that it had and nobody works on: they could not be dealt with where that was due.

        They take none of its places. An internal job in the queue deals with each where it
        can be loaded; so does the next activation.
        """
        return [job for job, _ in self._left.values()]

    @property
    def has_suspect(self) -> bool:
        """Whether a job that it holds is `suspect`, so that it takes no other that is."""
        return self._suspect in self._held

    def claims(self) -> list[Claim]:
        """Return what it holds, for those who run it."""
        return [Claim(JobRef.of(job), number) for job, number in self._held.values()]

    def _number_of(self, oid: bytes) -> int | None:
        """Return the number of the claim by which it has the job with that oid, or None."""
        entry = self._held.get(oid) or self._left.get(oid)
        return None if entry is None else entry[1]

    def keeps(self, job: Job) -> bool:
        """Tell whether it still knows a job that it had."""
        return job in self or job in self.completed

    def claim_job(self) -> Job | None:
        """Take the next job for this agent, which is ASSIGNED then; None if there is none.

        None, too, while it has `size` jobs, its dispatcher is deactivated or dead, or it
        was removed. What a filter or a chooser raises comes out; see `failure`. Raises
        `BadStatusError` where a chooser does not return the one job that it claimed.
        """
        if not self.record.active or self.record.dead or len(self._held) >= self._size:
            return None
        if not self._registered():
            return None
        chooser = self.chooser
        self.queue._v_has_suspect = any(agent.has_suspect for agent in self.record.agents())
        try:
            if chooser is not None:
                job = self._choose(chooser)
            else:
                job = self.queue.claim(filter=self.filter, prefer=self.record.stripes())
        finally:
            self.queue._v_has_suspect = False
        if job is None:
            return None
        self._hold(job)
        return job

    def claim_jobs(
        self,
        parts_of: Callable[[str], int],
        small: Mapping[bytes, int],
        most: Callable[[str], int] = lambda name: sys.maxsize,
        is_brief: Callable[[str], bool] = lambda name: False,
    ) -> list[Taken]:
        """Take all the jobs that there is room for, as `claim_job` takes one.

        What may be run in a group (see `group_of`), and is over soon, shares a place: it takes as
        many of the `GROUPED_PER_PLACE` parts of one as `parts_of` says of its callable's name; 0
        says that it has one for itself. `small` has the oids of those held that share one, and
        their parts. Of these it holds no more than `most` says of the name. What may be run in a
        batch (see `batch_of`), and takes a moment only, as `is_brief` says, takes one part.
        A claim for a group or a batch is not written into the job's record.
        """
        taken: list[Taken] = []
        if not self.record.active or self.record.dead or not self._registered():
            return taken
        if self.chooses:
            while (job := self.claim_job()) is not None:
                taken.append(Taken(job, job._claim, "", 0))
            return taken
        room = Places(self, parts_of, small, most, is_brief)
        if room.left <= 0:
            return taken
        queue = self.queue
        queue._v_has_suspect = any(agent.has_suspect for agent in self.record.agents())
        try:
            for job, line in queue._claims(self.filter, self.record.stripes(), room):
                if line is not None and line.batch:
                    room.take_for_batch()
                    held = self._hold_for_group(job, -1, line.group, 1)
                    taken.append(held._replace(batch=True))
                elif line is not None:
                    name = line.group
                    room.take(name)
                    taken.append(self._hold_for_group(job, -1, name, room.parts(name)))
                elif room.group:
                    number, name = -(job._claim + 1), room.group
                    taken.append(self._hold_for_group(job, number, name, room.parts(name)))
                elif room.batch:
                    name = job.callable_name
                    held = self._hold_for_group(job, -(job._claim + 1), name, 1)
                    taken.append(held._replace(batch=True))
                else:
                    taken.append(self._hold(job))
        finally:
            queue._v_has_suspect = False
        return taken

    def begin_at_once(self, taken: Taken) -> None:
        """Say of a job for a batch, in the transaction that claims it, that it may have begun.

        For one that a worker is waiting for. Loads it; one that cannot be loaded is left to that.
        """
        job, number = taken.job, taken.number
        if is_whole(job) and job._is_unbegun(number):
            job._begin_in_batch(self, number, microseconds(clock_of(job).now()))

    def _hold(self, job: Job) -> Taken:
        job._claimed_from_queue()
        job._assign(self)
        if is_suspect(job):
            self._suspect = job._p_oid
            self.queue._v_has_suspect = True
        return self._hold_for_group(job, job._claim, "", 0)

    def _hold_for_group(self, job: Job, number: int, group: str, parts: int) -> Taken:
        self._held[job._p_oid] = job, number
        self._p_changed = True
        return Taken(job, number, group, parts)

    def _registered(self) -> bool:
        record = self.record
        return record.get(self.name) is self and record.registered

    def _choose(self, chooser: Callable[[Agent], Job | None]) -> Job | None:
        queue = self.queue
        handed: list[Job] = []
        queue._v_handed = handed
        try:
            job = chooser(self)
        finally:
            queue._v_handed = None
        if handed != ([] if job is None else [job]):
            raise BadStatusError(
                f"chooser {self._chooser} of {self!r} returned {job!r} and claimed {handed}: it "
                "must return the one job that it claims from the agent's queue, or None"
            )
        return job

    # What becomes of it.

    def settle(self, ref: JobRef, number: int) -> None:
        """Take note of what a worker has done with a job; harmless when repeated.

        A COMPLETED one moves to `completed`; one that is elsewhere by now is dropped;
        one that is still under way stays; one that cannot be loaded here is `left`; one that
        cannot be settled is logged, and stays.
        """
        job, held = self._held.get(p64(ref.oid), (None, 0))
        # The number of an object is its own within one database only.
        if job is None or held != number or not ref._is_of(job):
            return
        # One for a group was not looked at when it was claimed.
        if is_loadable(job) and (held > 0 or is_whole(job)):
            self._try_to_settle(job, held)
        else:
            self._leave(job, held)

    def settle_completed(self, *completions: Completion) -> None:
        """Do as `settle` for jobs that their workers say they have completed, and load none.

        It needs no more: whatever becomes of such a job, its agent's record is written too.
        """
        if self.queue.side:
            for ref, number, *_ in completions:
                self.settle(ref, number)
            return
        usual = {failed: self._usual_keep(failed=failed) for failed in (False, True)}
        done = self.completed
        counts: dict[tuple[Shelf, int], int] = {}
        for ref, number, ended, failed, keep in completions:
            oid = p64(ref.oid)
            job, held = self._held.get(oid, (None, 0))
            if job is None or held != number or not ref._is_of(job):
                continue
            self._drop(oid)
            shelf = done.put(job, ended, usual[failed] if keep is None else keep, failed=failed)
            counted = shelf, day_of(ended)
            counts[counted] = counts.get(counted, 0) + 1
        for (shelf, day), count in counts.items():
            self._count(shelf, day, count)

    def settle_done(self, job: Job) -> None:
        """Let a COMPLETED job be among the done ones, if it is not yet."""
        oid = checked_stored(job)._p_oid
        entry = self._held.get(oid) or self._left.get(oid)
        if entry is not None:
            self._settle(job._p_oid, *entry)

    def settle_all(self) -> list[Claim]:
        """Settle what can be; return what is still to be run.

        What cannot be settled is logged, and stays as it is.
        """
        for job, number in list(self._held.values()):
            self._try_to_settle(job, number)
        return self.claims()

    def _try_to_settle(self, job: Job, number: int) -> None:
        try:
            self._settle(job._p_oid, job, number)
        except (TransientError, POSError):
            raise
        # One job must not keep the others from being settled.
        except Exception:
            self._tell_stuck("settled", job)
            self._held[job._p_oid] = job, number
            self._p_changed = True

    def _tell_stuck(self, what: str, job: Job) -> None:
        events.error(
            "a job of %r cannot be %s, and stays with it: %r", self, what, JobRef.of(job),
            exc_info=True, extra=fields(queue=self.queue.name, agent=self.name),
        )  # fmt: skip

    def _leave(self, job: Job, number: int) -> None:
        """Let a job that cannot be loaded here wait for a process where it can be."""
        if self._left.get(job._p_oid) == (job, number):
            return
        self._held.pop(job._p_oid, None)
        self._left[job._p_oid] = job, number
        self._p_changed = True
        self.queue._put_internal("recover", job, number)

    def _settle(self, oid: bytes, job: Job, number: int) -> None:
        if not is_loadable(job):
            return
        if not job._is_held(self, number):
            self._drop(oid)
            if (job.status is Status.PENDING and not job._keeps_places) or job._waits_for:
                self.queue._release_quotas(job)
        elif job.status is Status.COMPLETED:
            self._drop(oid)
            if isinstance(job, InternalJob):
                self._settle_served(job)
            else:
                self.job_completed(job)

    def _settle_served(self, internal: InternalJob) -> None:
        job = internal.serves
        if is_loadable(job) and job.status is Status.COMPLETED and job._agent is None:
            job._agent = self
            self.job_completed(job)

    def job_completed(self, job: Job) -> None:
        """Keep a COMPLETED job among the done ones, and free its quota places.

        Callbacks that were added in the instant in which it was completed are put into
        the queue.
        """
        checked_stored(job)._require("keeping it as done", Status.COMPLETED)
        self._drop(job._p_oid)
        self.queue._release_quotas(job)
        self._fold_side_records(job)
        shelf = self.completed.add(job, self._keep(job))
        assert job._callbacks_end is not None
        self._count(shelf, day_of(job._callbacks_end))

    def _give_up(self, job: Job) -> None:
        """Take a done job out of `completed`, since it is to be run once more."""
        self._add_kept(self.completed.remove(job), -1)

    def _fold_side_records(self, job: Job) -> None:
        side = self.queue.side
        if not side:
            return
        for each in list(family(job)):
            record = side.get(each)
            if record is None:
                continue
            if not all(map(is_loadable, record.callbacks)):
                events.critical(
                    "late callbacks of %r cannot be loaded, and are not called", each,
                    extra=fields(each),
                )  # fmt: skip
                continue
            entries = record.annotations_with(each._annotations)
            if entries:
                each._annotations = entries
            if record.callbacks:
                each._callbacks = [*(each._callbacks or ()), *record.callbacks]
            for callback in record.callbacks:
                # What was added to a callback that was never called is never called.
                if callback.status is Status.NEW and each.status is Status.COMPLETED:
                    due = callback.begin_after or clock_of(self).now()
                    self.queue._enter(callback, "put", due=due)
            side.pop(each)

    def _keep(self, job: Job) -> timedelta:
        own = job.keep_failed if job.failed else job.keep_completed
        return self._usual_keep(failed=job.failed) if own is None else own

    def _usual_keep(self, *, failed: bool) -> timedelta:
        for owner in (self, self.queue):
            keep = owner.keep_failed if failed else owner.keep_completed
            if keep is not None:
                return keep
        return KEPT_BY_DEFAULT

    def _drop(self, oid: bytes) -> None:
        held = self._held.pop(oid, None)
        left = self._left.pop(oid, None)
        if held or left:
            self._p_changed = True

    def give_back(self, ref: JobRef, number: int) -> None:
        """Let a job wait again that no worker has begun, though it may seem so: run alone then.

        Harmless when repeated. One that has begun counts as interrupted.
        """
        job, held = self._held.get(p64(ref.oid), (None, 0))
        if job is None or held != number or not ref._is_of(job):
            return
        if not is_whole(job) or not job._is_unbegun(number):
            self.interrupt(job)
            return
        self._drop(job._p_oid)
        # By the same number it may be claimed once more.
        job._alone = True
        self.queue._line_up(job)

    def interrupt(self, job: Job) -> None:
        """Take `job` from its worker, which is lost, and see to what is to become of it.

        Its record is written whatever its status is: that makes sure that the worker
        can commit nothing for it any more. One that cannot be loaded here, with all that
        it holds, is `left` to the next dispatcher that can; one that cannot be interrupted
        is logged, and `left` as well.
        """
        oid = checked_stored(job)._p_oid
        entry = self._held.get(oid) or self._left.get(oid)
        if entry is None:
            return
        try:
            self._interrupt(job, entry)
        except (TransientError, POSError):
            raise
        # One job must not keep a dispatcher from all the others.
        except Exception:
            self._tell_stuck("interrupted", job)
            self._held.pop(job._p_oid, None)
            self._left[job._p_oid] = entry
            self._p_changed = True

    def _interrupt(self, job: Job, entry: tuple[Job, int]) -> None:
        _, number = entry
        if not is_whole(job):
            self._leave(job, number)
            return
        if not job._is_held(self, number):
            self._settle(job._p_oid, job, number)
            return
        if number < 0 and job._agent is None:
            # Whether it was its turn is not known: it is not to blame, nor to trouble others.
            job._write_claim()
            job._alone = True
        self._drop(job._p_oid)
        status = job.status
        if status is Status.COMPLETED:
            self._held[job._p_oid] = entry
            self._settle(job._p_oid, job, number)
        elif isinstance(job, InternalJob):
            job._claim += 1
            self.queue._enter(job, "give back", due=job.begin_after, first=True)
        elif status is Status.ASSIGNED:
            job._claim += 1
            self.queue._enter(job, "give back", due=job.begin_after, keeps_places=True)
        elif status in (Status.ACTIVE, Status.CALLBACKS):
            job._lose()
            kind = "interrupt" if status is Status.ACTIVE else "resume"
            self.queue._put_internal(kind, job, job._claim)
        else:
            raise BadStatusError(f"{job!r} is {status.name}, and an agent holds it")

    def interrupt_all(self, *, died: bool = False) -> int:
        """Interrupt everything that it holds, or that was left; return how many jobs that were.

        `died` tells whether the process has ended unasked: what it ran may be to blame.
        """
        # Written even if it holds nothing here: a claim that is under way, and that this
        # transaction does not see, must not be committed as well.
        self._p_changed = True
        entries = {**self._left, **self._held}
        for job, _ in entries.values():
            if died and is_whole(job) and job.agent is self and _runs_code(job):
                job._deaths += 1
            self.interrupt(job)
        return len(entries)

    def forget(self, now: datetime.datetime) -> bool:
        """Forget the done jobs whose time is over; tell whether there were any."""
        over = self._over(now)
        if over:
            self.completed.forget(over)
            self._drop_kept(over)
        return bool(over)


def _runs_code(job: Job) -> bool:
    """Tell whether a worker may be running the application's code for a job that it has."""
    if isinstance(job, InternalJob):
        return job.kind in ("resume", "follow")
    return job.status in (Status.ACTIVE, Status.CALLBACKS)


def checked_size(name: str, size: object) -> int:
    """Return `size`; raises `TypeError` or `UnknownSettingError` where it is none."""
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"the size of agent {name!r} is a whole number, not {size!r}")
    if not 0 <= size <= LARGEST_SIZE:
        raise UnknownSettingError(
            f"the size of agent {name!r} must be 0 or more, not {size}; {LARGEST_SIZE} at most"
        )
    return size
