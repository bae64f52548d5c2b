"""What a `RuntimeMachine` believes: plain dictionaries, and what the commits should agree with."""

from __future__ import annotations

import io
import pickle
from collections import Counter as Count
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ZODB.utils import p64, u64

from perdure.model.callbacks import CallbackProxy
from perdure.model.compact import unpacked
from perdure.model.composition import Composite
from perdure.model.errors import AbortedError, JobTimeoutError
from perdure.model.failure import Failure
from perdure.model.job import Job
from perdure.model.quota import Quota
from perdure.model.record import JobRecord
from perdure.model.ref import JobRef, find_job
from perdure.model.status import Status
from perdure.testing.callables import LEDGER, Effect, Ledger
from perdure.testing.disk import Commit
from perdure.testing.plans import Plan
from perdure.testing.world import World

__all__ = ["Books"]


@dataclass
class Books:
    """The jobs that were acknowledged, and all that was ever committed of them.

    `entries` has for each job what was done with it; `sizes` those of the quotas.
    """

    world: World
    entries: dict[JobRef, dict[str, Any]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    troubles: set[str] = field(default_factory=set)
    """What has befallen processes: ``crash``, ``error`` and so on."""
    ends: Count[bytes] = field(default_factory=Count)
    """How often each job has ended, by its oid."""
    _read: int = 0
    _held: Count[str] = field(default_factory=Count)
    _active: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    _ended: set[bytes] = field(default_factory=set)

    # While it runs.

    def read_commits(self) -> list[str]:
        """Return what is wrong in the commits since the last time."""
        commits = self.world.disk.commits
        found = []
        while self._read < len(commits):
            commit = commits[self._read]
            self._read += 1
            found += [f"{each}, since a commit of {commit.process}" for each in self._in(commit)]
        return found

    def _in(self, commit: Commit) -> Iterator[str]:
        before = self._used()
        for oid, data in commit.records:
            kind, state = _load(data)
            if issubclass(kind, Quota):
                yield from self._of_quota(state)
            elif issubclass(kind, Effect):
                if state.get("count", 0) > 1:
                    yield f"{state['key']!r} was done {state['count']} times"
            # What chooses one of two callbacks does so again where its job is retried.
            elif issubclass(kind, Job) and not issubclass(kind, CallbackProxy):
                self._of_job(oid, state)
        for name, used in self._used().items():
            # One that was put back keeps its place, in a quota that has become smaller, too.
            if used > max(self.sizes[name], self._held[name], before[name]):
                size = self.sizes[name]
                yield f"{used} jobs of quota {name!r} are active, and its size is {size}"

    def _of_quota(self, state: dict[str, Any]) -> Iterator[str]:
        name, held, size = state["name"], len(state["_holders"]), state["_size"]
        if held > max(size, self._held[name]):
            yield f"quota {name!r} of size {size} has {held} holders"
        self._held[name], self.sizes[name] = held, size

    def _of_job(self, oid: bytes, state: dict[str, Any]) -> None:
        active = state.get("_status_name") == Status.ACTIVE.value and not state.get("_waits_for")
        self._active[oid] = state.get("_quota_names", ()) if active else ()
        if state.get("_callbacks_end") is None:
            self._ended.discard(oid)
        elif oid not in self._ended:
            self._ended.add(oid)
            self.ends[oid] += 1

    def _used(self) -> Count[str]:
        return Count(name for names in self._active.values() for name in names)

    # At the end.

    def balance(self) -> list[str]:
        """Return what does not balance once everything is at rest."""
        found = self.world.unended()
        with self.world.look() as connection:
            ledger = connection.root()[LEDGER]
            seen: dict[str, Job] = {}
            for ref, entry in self.entries.items():
                job = find_job(connection, ref)
                if job.status is Status.COMPLETED:
                    found += self._of_entry(job, entry)
                for each in _family(job):
                    found += self._of_each(each, entry, seen)
            for effect in ledger.effects.values():
                if effect.late is not None:
                    job = find_job(connection, effect.late)
                    if job.status is not Status.COMPLETED:
                        found.append(f"{job!r}, added later, is {job.status.name}")
                    for each in _family(job):
                        found += self._of_each(each, {}, seen)
            found += _of_ledger(ledger, seen)
            for oid, ends in self.ends.items():
                entry = self.entries.get(JobRef(u64(oid)), {})
                most = 1 + entry.get("retries", 0)
                if ends > most:
                    found.append(f"{connection.get(oid)!r} has ended {ends} times")
        return found

    def _of_entry(self, job: Job, entry: dict[str, Any]) -> Iterator[str]:
        plan: Plan | None = entry.get("plan")
        if self.ends[p64(job.ref.oid)] < 1:
            yield f"{job!r} has not ended in any commit"
        if entry.get("cancelled") and not _failed_with(job, AbortedError):
            yield f"{job!r} was cancelled, and its result is {job.result!r}"
        if plan is not None and job.failed and not self._may_fail(job, plan, entry):
            yield f"{job!r} has failed without a reason: {job.result}"
        if plan is not None and not job.failed and plan.kind in ("fail", "quit"):
            yield f"{job!r} cannot have succeeded with {job.result!r}"

    def _may_fail(self, job: Job, plan: Plan, entry: dict[str, Any]) -> bool:
        if "error" in self.troubles or plan.kind in ("fail", "quit"):
            return True
        if plan.kind == "return" and _of(job, Effect)[0].inners:
            return bool(_of(job, Effect)[0].inners[-1].failed)
        if _failed_with(job, JobTimeoutError):
            return plan.begin_by is not None
        if _failed_with(job, AbortedError):
            return bool(entry.get("cancelled") or self.troubles)
        return plan.kind == "contend"

    def _of_each(self, job: Job, entry: dict[str, Any], seen: dict[str, Job]) -> Iterator[str]:
        if isinstance(job, Composite) and job.status is Status.COMPLETED and not job.failed:
            for part in job.args:
                if part.status is not Status.COMPLETED:
                    yield f"{part!r} is {part.status.name}, and {job!r} has succeeded"
        done = job.status is Status.COMPLETED and not job.failed
        for effect in _of(job, Effect)[:1]:
            if effect.key in seen:
                continue
            seen[effect.key] = job
            if job.callable_name.endswith(":return_job"):
                inners = effect.inners
                if done and (not inners or inners[-1].result != job.result):
                    yield f"{job!r} has the result {job.result!r}, its inner job {inners!r}"
                if len(inners) > 1 + entry.get("retries", 0):
                    yield f"{job!r} has returned {len(inners)} jobs"
            elif effect.count != int(done):
                yield (
                    f"{job!r} is {job.status.name} with {job.result!r}, and {effect.key!r} was "
                    f"done {effect.count} times"
                )


def _of_ledger(ledger: Ledger, seen: dict[str, Job]) -> Iterator[str]:
    for key, effect in ledger.effects.items():
        if key not in seen and effect.count:
            yield f"{key!r} was done {effect.count} times by a job that is not to be found"
    wanted = sum(
        1
        for job in seen.values()
        if job.callable_name.endswith(":contend")
        and job.status is Status.COMPLETED
        and not job.failed
    )
    if ledger.counter.value != wanted:
        yield f"{wanted} jobs have counted to {ledger.counter.value}"


def _family(job: Job) -> Iterator[Job]:
    """Return a job, and all that runs because of it."""
    yield job
    for child in job.callbacks:
        yield from _family(child)
    if isinstance(job, CallbackProxy):
        for alternative in job._alternatives():
            yield from _family(alternative)
    if isinstance(job, Composite):
        for part in job.args:
            yield from _family(part)
        if job.postprocess is not None:
            yield from _family(job.postprocess)
    for effect in _of(job, Effect)[:1]:
        for inner in effect.inners:
            yield from _family(inner)


def _of(job: Job, kind: type) -> list[Any]:
    return [each for each in job.args if isinstance(each, kind)]


def _failed_with(job: Job, kind: type[BaseException]) -> bool:
    return isinstance(job.result, Failure) and bool(job.result.check(kind))


class _Unpickler(pickle.Unpickler):
    """Reads a record, whose references to others remain as they are."""

    def persistent_load(self, reference: Any) -> Any:
        return reference


def _load(data: bytes) -> tuple[type, dict[str, Any]]:
    unpickler = _Unpickler(io.BytesIO(data))
    kind = unpickler.load()
    while isinstance(kind, tuple):
        kind = kind[0]
    state = unpickler.load()
    if issubclass(kind, JobRecord):
        state = unpacked(state)
    return kind, state if isinstance(state, dict) else {}
