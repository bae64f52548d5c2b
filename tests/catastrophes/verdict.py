"""What must be true in the end, checked from what the driver and the jobs have noted."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ZODB

from catastrophes.books import Books
from catastrophes.putting import CLAIMS, GROUPS, LEDGERS, PUT, QUOTAS
from catastrophes.workload import ONCE_FILE, QUOTA_FILE
from perdure.model import Failure, Job, Status, check
from perdure.model.queues import find_queues

__all__ = ["progress", "unended", "verdict"]

_STALE_SECONDS = 30.0
"""So long before it begins, at most, a job that is begun in vain was taken from its worker."""

_ENDURED = (
    "AbortedError",
    "ClientDisconnected",
    "ConflictError",
    "OSError",
    "ReadConflictError",
    "ServerException",
    "StorageError",
    "StorageTransactionError",
)
"""What the default policy, or that of jobs which are never run again, may give a job up for."""


def unended(connection: Any) -> list[Job]:
    """Return the jobs that have not ended."""
    root = connection.root()
    jobs = [*root[PUT].values(), *(job for group in root[GROUPS].values() for job in group)]
    return [job for job in jobs if job.status is not Status.COMPLETED]


def progress(connection: Any) -> tuple[int, ...]:
    """Return numbers that change as long as there is progress."""
    root = connection.root()
    queues = list(find_queues(connection).values())
    return (
        sum(ledger.count for ledger in root[LEDGERS]),
        sum(len(queue) for queue in queues),
        len(unended(connection)),
        sum(len(claims.made()) for claims in root[CLAIMS].values()),
    )


def verdict(database: ZODB.DB, folder: Path, books: Books) -> list[str]:
    """Return what is wrong, a sentence each, and count what there was."""
    with database.transaction() as connection:
        found = list(_Verdict(connection, folder, books).sentences())
    return found + check(database)


class _Verdict:
    def __init__(self, connection: Any, folder: Path, books: Books) -> None:
        root = connection.root()
        self._jobs: dict[int, Job] = dict(root[PUT].items())
        self._claims = root[CLAIMS]
        self._groups = root[GROUPS]
        self._ledgers = root[LEDGERS]
        self._queues = list(find_queues(connection).values())
        self._folder = folder
        self._books = books
        self._kinds = {**books.in_doubt, **books.acknowledged}
        self._expected: set[str] = set()
        self._times: Counter[str] = Counter()

    def sentences(self) -> Iterator[str]:
        yield from self._puts()
        yield from self._counts()
        for number, job in self._jobs.items():
            kind = self._kinds.get(number, "")
            self._books.counts[f"jobs: {kind}"] += 1
            if job.status is not Status.COMPLETED:
                yield f"job {number} ({kind}) has not ended: {job!r} is {job.status.name}"
                continue
            if job.failed:
                self._books.counts[f"failed: {kind}"] += 1
            yield from self._job(number, kind, job)
        for number in self._groups:
            yield from self._group(number)
        for key in self._times.keys() - self._expected:
            yield f"{key} was noted, and nothing was put that does so"
        yield from self._once()
        yield from self._occupied()
        yield from self._own_commits()
        for queue in self._queues:
            if len(queue):
                yield f"{queue!r} still has {len(queue)} jobs"

    def _puts(self) -> Iterator[str]:
        for number in self._books.acknowledged.keys() - self._jobs.keys():
            yield f"job {number} was acknowledged and is lost"
        for number in self._jobs.keys() - self._kinds.keys():
            yield f"job {number} is there and was never put"
        self._books.counts["in doubt and there"] = len(
            self._books.in_doubt.keys() & self._jobs.keys()
        )

    def _counts(self) -> Iterator[str]:
        for number, ledger in enumerate(self._ledgers):
            times = dict(ledger.entries.items())
            self._times.update(times)
            if ledger.count != sum(times.values()):
                yield f"ledger {number} says {ledger.count} and has {sum(times.values())}"
        for key, count in self._times.items():
            if count != 1:
                yield f"{key} was noted {count} times"

    # One job.

    def _note(self, key: str, *, done: bool) -> Iterator[str]:
        self._expected.add(key)
        if done and not self._times[key]:
            yield f"{key} was not noted, and its job has succeeded"
        if not done and self._times[key]:
            yield f"{key} was noted, and its job has failed"

    def _job(self, number: int, kind: str, job: Job) -> Iterator[str]:
        key = f"{number}"
        if kind in ("note", "hot", "later", "deadline"):
            yield from self._note(key, done=not job.failed)
            forever = kind != "note" or job.retry_policy_factory is not None
            expires = kind == "deadline"
            yield from self._outcome(job, key, forever, expires)
        elif kind == "callbacks":
            yield from self._note(key, done=not job.failed)
            yield from self._note(f"{key}/success", done=not job.failed)
            yield from self._note(f"{key}/failure", done=job.failed)
            yield from self._note(f"{key}/chain", done=True)
            yield from self._note(f"{key}/always", done=True)
            if job.failed and job.callable_name.endswith(":note"):
                yield f"job {key} has failed with {job.result}"
            for callback in job.descendants():
                if callback.failed:
                    yield f"callback {callback!r} has failed with {callback.result}"
        elif kind == "composite":
            yield from self._outcome(job, key, True, False)
            for part, each in enumerate(job.args):
                yield from self._note(f"{key}/{part}", done=not each.failed)
                yield from self._outcome(each, f"{key}/{part}", True, False)
            yield from self._note(f"{key}/post", done=not job.failed)
            if not job.failed and job.result != len(job.args):
                yield f"job {key} says {job.result} of {len(job.args)} parts"
        elif kind == "returns":
            yield from self._outcome(job, key, True, False)
            for depth in range(job.args[2] + 1):
                yield from self._note(f"{key}/{depth}", done=not job.failed)
        elif kind == "quota":
            yield from self._outcome(job, key, True, False)
        elif kind == "own-commits":
            # What its own commits meet is an error of its code.
            yield from self._outcome(job, key, False, False)
        elif kind == "poison" and not job.failed:
            yield f"job {key} kills its process, and has succeeded"

    def _group(self, number: int) -> Iterator[str]:
        if number not in self._jobs:
            yield f"the group {number} is there, and its first job is not"
            return
        for part, job in enumerate((self._jobs[number], *self._groups[number])):
            key = f"{number}/{part}"
            self._books.counts["jobs of groups"] += 1
            if job.status is not Status.COMPLETED:
                yield f"job {key} (group) has not ended: {job!r} is {job.status.name}"
                continue
            yield from self._note(key, done=not job.failed)
            fails = job.callable_name.endswith(":note_and_fail")
            if fails is not job.failed:
                yield f"job {key} (group) came to {job.result!r}"
            for callback in job.callbacks:
                yield from self._note(f"{key}/after", done=not callback.failed)

    def _outcome(self, job: Job, key: str, forever: bool, expires: bool) -> Iterator[str]:
        if not isinstance(job.result, Failure):
            return
        name = job.result.type_name.rpartition(".")[2]
        self._books.counts[f"failed with {name}"] += 1
        if expires and name in ("JobTimeoutError", "AbortedError", *_ENDURED):
            return
        if not forever and name in _ENDURED:
            return
        yield f"job {key} has failed with {job.result}"

    # Outside of the database.

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        path = self._folder / name
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                yield json.loads(line)

    def _once(self) -> Iterator[str]:
        times = Counter(line["number"] for line in self._lines(ONCE_FILE))
        for number, count in times.items():
            if count > 1:
                yield f"job {number} must be run once at most, and was {count} times"
            if self._kinds.get(number) != "once":
                yield f"job {number} was run, and never put"
        for number, job in self._jobs.items():
            if self._kinds.get(number) == "once" and not job.failed and not times[number]:
                yield f"job {number} has succeeded, and was not run"

    def _own_commits(self) -> Iterator[str]:
        for number, claims in self._claims.items():
            made = claims.made()
            claim_numbers = [claim for claim, _ in made]
            if claim_numbers != sorted(claim_numbers):
                yield f"job {number} was committed for by claims that it had lost: {made}"
            if len(set(made)) != len(set(claim_numbers)):
                yield f"job {number} was committed for by two processes with one claim: {made}"
            job = self._jobs.get(number)
            if job is not None and not job.failed and not made:
                yield f"job {number} has succeeded, and its commits are lost"

    # Quotas.

    def _occupied(self) -> Iterator[str]:
        spans = self._spans()
        self._books.counts["places of quotas occupied"] = len(spans)
        for quota, size in QUOTAS.items():
            changes = sorted(
                change
                for span in spans
                if span.quota == quota and span.end > span.begin
                for change in ((span.begin, 1, span.number), (span.end, -1, span.number))
            )
            inside: list[int] = []
            for at, change, number in changes:
                if change > 0:
                    inside.append(number)
                else:
                    inside.remove(number)
                if len(inside) > size:
                    yield (
                        f"quota {quota!r} has a size of {size}, and jobs {inside} were run at "
                        f"once, at {at:.6f}"
                    )
                    return

    def _spans(self) -> list[_Span]:
        begins: list[dict[str, Any]] = []
        running: dict[tuple[int, int, int], dict[str, Any]] = {}
        for line in self._lines(QUOTA_FILE):
            attempt = line["number"], line["claim"], line["pid"]
            if line["what"] == "begin":
                begins.append(line)
                running[attempt] = line
            else:
                running.pop(attempt)["end"] = line["at"]
        last_claims: Counter[int] = Counter()
        for line in begins:
            last_claims[line["number"]] = max(last_claims[line["number"]], line["claim"])
        losses = self._losses()
        spans = []
        for line in begins:
            number, claim, pid, begin = line["number"], line["claim"], line["pid"], line["at"]
            end = line.get("end", float("inf"))
            # A worker that has lost a job goes on with its code, and occupies nothing by that.
            for lost in losses[pid]:
                if lost >= begin:
                    end = min(end, lost)
                elif claim < last_claims[number] and lost > begin - _STALE_SECONDS:
                    end = begin
            spans.append(_Span(line["quota"], number, begin, end))
        return spans

    def _losses(self) -> defaultdict[int, list[float]]:
        """When each process lost what it had: it was killed or suspended, or buried."""
        losses: defaultdict[int, list[float]] = defaultdict(list)
        for deed in self._books.deeds:
            if deed.what in ("kill", "suspend", "died"):
                losses[deed.pid].append(deed.at)
        pids = defaultdict(list)
        for pid, identity in self._books.identities.items():
            pids[identity].append(pid)
        for path in self._folder.glob("worker-*.log"):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                _, found, rest = line.partition("<DispatcherRecord ")
                if found and "was deactivated" in rest:
                    self._books.counts["dispatchers deactivated"] += 1
                    for pid in pids[rest.split()[0]]:
                        losses[pid].append(float(line.split()[0]))
        return losses


@dataclass(frozen=True, slots=True)
class _Span:
    """How long a job occupied a place of a quota."""

    quota: str
    number: int
    begin: float
    end: float
