"""What the actors of one system share: handed to each when it is made."""

from __future__ import annotations

import itertools
import threading
import uuid as uuids
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from perdure.actors.execution import Execution, wait_for
from perdure.model.announcements import Announcements
from perdure.model.clock import Clock, StopSignal
from perdure.model.environment import Environment
from perdure.model.grouping import Experience
from perdure.model.incarnation import Incarnation
from perdure.model.lane import Lane

if TYPE_CHECKING:
    from perdure.actors.messages import Claimed, JobReport
    from perdure.actors.suspensions import Suspensions

__all__ = [
    "Activity",
    "Batches",
    "Board",
    "Context",
    "Directory",
    "Settings",
    "Watch",
    "agent_role",
    "worker_name",
]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a system works; see `perdure.actors.start` for the meanings."""

    queues: Mapping[str, int] | None
    poll_interval: timedelta
    ping_interval: timedelta
    ping_death_interval: timedelta
    agent_size: int = 3


class Directory:
    """Where the actors of a system are. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refs: dict[str, Any] = {}
        self._started: list[Any] = []

    def started(self, ref: Any) -> None:
        """Note an actor that was started, for whoever waits for its end."""
        with self._lock:
            self._started = [other for other in self._started if not other.has_ended] + [ref]

    def all_started(self) -> list[Any]:
        """Return the actors that were started and may still run."""
        with self._lock:
            return list(self._started)

    def set(self, role: str, ref: Any) -> None:
        """Let messages for `role` go to `ref`; None: to nobody."""
        with self._lock:
            self._refs[role] = ref

    def get(self, role: str) -> Any:
        """Return the reference for `role`, or None."""
        with self._lock:
            return self._refs.get(role)

    def tell(self, role: str, message: object) -> None:
        """Send a message; it is dropped where there is nobody. Never raises."""
        with self._lock:
            ref = self._refs.get(role)
        if ref is not None:
            ref.tell(message)


JOBS_KEPT = 200
"""So many jobs that have ended are remembered."""


class Board:
    """Which job each worker is at, and which were run lately: for whoever wants to know.

    Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Callable[[], JobReport]] = {}
        self._ended: deque[Callable[[], JobReport]] = deque(maxlen=JOBS_KEPT)

    def add(self, report: Callable[[], JobReport]) -> None:
        """Say how a job has ended, by what makes a report of it, if anybody looks.

        Only the last 200 are kept until then.
        """
        self._ended.append(report)

    def take(self) -> Iterator[JobReport]:
        """Take off what has ended since this was last done, the first first; for one thread."""
        while self._ended:
            yield self._ended.popleft()()

    def set(self, worker: str, report: Callable[[], JobReport] | None) -> None:
        """Say at which job a worker is, by what makes a report of it; None: at none."""
        if report is not None:
            self._jobs[worker] = report
        else:
            self._jobs.pop(worker, None)

    def jobs(self) -> tuple[JobReport, ...]:
        """Return reports of the jobs."""
        return tuple(report() for report in list(self._jobs.values()))


class Batches:
    """Which jobs of each batch are still to be run: until its worker takes one, or loses them.

    Each has a key of its own: a worker may be at one for an agent that is gone, while another
    worker has its name. Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._keys = itertools.count(1)
        self._left: dict[Hashable, deque[Claimed]] = {}

    def make(self, claims: Iterable[Claimed]) -> int:
        """Make a batch of these, in that order, and return its key."""
        key = next(self._keys)
        self.begin(key, claims)
        return key

    def begin(self, key: Hashable, claims: Iterable[Claimed]) -> None:
        """Let these be what is to be run under a key, in that order."""
        self._left[key] = deque(claims)

    def end(self, key: Hashable) -> None:
        """Forget a batch."""
        self._left.pop(key, None)

    def take(self, key: Hashable) -> Claimed | None:
        """Take the next one, which is the caller's then; None: there is none left."""
        left = self._left.get(key)
        try:
            return left.popleft() if left else None
        # Somebody else was faster.
        except IndexError:
            return None

    def put_back(self, key: Hashable, claim: Claimed) -> None:
        """Let one that was taken be the next again."""
        self._left.setdefault(key, deque()).appendleft(claim)

    def left(self, key: Hashable) -> int:
        """Return how many are still to be run."""
        return len(self._left.get(key, ()))

    def take_rest(self, key: Hashable) -> tuple[Claimed, ...]:
        """Take all that the worker has not taken."""
        rest = []
        while (claim := self.take(key)) is not None:
            rest.append(claim)
        return tuple(rest)


class Watch:
    """Which records tell, when another process has changed them, that there may be work.

    Written by the dispatcher; safe to read from any thread.
    """

    def __init__(self) -> None:
        self._oids: Mapping[bytes, frozenset[bytes]] = {}

    def set(self, queue_oid: bytes, oids: frozenset[bytes]) -> None:
        """Watch these records of one queue; none: no more."""
        if self._oids.get(queue_oid, frozenset()) != oids:
            # A new mapping, for whoever is reading the old one.
            others = {queue: found for queue, found in self._oids.items() if queue != queue_oid}
            self._oids = {**others, queue_oid: oids} if oids else others

    def queues_of(self, oids: Collection[bytes] | None) -> list[bytes]:
        """Return the oids of the queues that one of these records (None: any) is watched for."""
        if oids is None:
            return list(self._oids)
        return [queue for queue, watched in self._oids.items() if not watched.isdisjoint(oids)]


class Activity:
    """How many jobs are being run, by a worker or without; safe to use from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._count = 0
        self._given_up = False

    def begin(self) -> None:
        """Count one more."""
        with self._condition:
            self._count += 1

    def end(self) -> None:
        """Count one less."""
        with self._condition:
            self._count -= 1
            self._condition.notify_all()

    @property
    def count(self) -> int:
        """How many there are now."""
        with self._condition:
            return self._count

    def give_up_waiting(self) -> None:
        """End the wait for the jobs that are being run, now and later."""
        with self._condition:
            self._given_up = True
            self._condition.notify_all()

    def wait_until_none(self, timeout: timedelta) -> bool:
        """Wait until there is none; False if there still is one after `timeout`."""
        with self._condition:
            wait_for(
                self._clock,
                self._condition,
                lambda: not self._count or self._given_up,
                timeout.total_seconds(),
            )
            return not self._count


@dataclass(frozen=True)
class Context:
    """One system's clock, way of executing, database and identity."""

    clock: Clock
    execution: Execution
    database: Any
    environment: Environment
    uuid: uuids.UUID
    token: str
    incarnation: Incarnation | None
    settings: Settings
    stop: StopSignal
    lane: Lane
    activity: Activity
    results: Announcements
    directory: Directory
    suspensions: Suspensions
    experience: Experience = field(default_factory=Experience)
    """How long the calls of jobs take."""
    board: Board = field(default_factory=Board)
    batches: Batches = field(default_factory=Batches)
    watch: Watch = field(default_factory=Watch)

    def turn(self) -> AbstractContextManager[None]:
        """Return what is entered to compute for long; see `perdure.actors.execution.Execution`.

        Where the storage is asked over a network, and so can be asked ahead, whoever computes
        waits for it most of the time, and is not to keep others waiting, too.
        """
        return nullcontext() if _is_far(self.database.storage) else self.execution.turn()

    def report(self, message: object, /) -> None:
        """Tell the supervisor, if there still is one."""
        self.directory.tell("supervisor", message)


def _is_far(storage: Any) -> bool:
    """Tell whether a storage is in another process, as far as it says."""
    # One of `perdure.storage` may be in this one by now.
    is_owner = getattr(storage, "is_owner", None)
    return callable(getattr(storage, "prefetch", None)) if is_owner is None else not is_owner()


def agent_role(queue: str, agent: str) -> str:
    """Return the name under which an agent's actor is in the directory."""
    return f"agent {agent!r} of queue {queue!r}"


def worker_name(queue: str, agent: str, number: int) -> str:
    """Return the name of one of an agent's workers."""
    return f"worker {number} of {agent_role(queue, agent)}"
