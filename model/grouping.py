"""Groups: jobs of which one worker runs one after the other, in one transaction.

The claim has said that they may have begun, and is not written into their records; what is
written is the result of each, with its effects, in the commit of the group. So a job of a group
costs one record and its share of two commits.

Whatever goes wrong for one of them, it is as if that one had never been called: it is left to be
run alone, as any other job is, with its policy and its own commits, and so are all of a group
whose commit fails.
"""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from transaction.interfaces import NoTransaction, TransactionFailedError
from ZODB.POSException import ConflictError, POSKeyError
from ZODB.utils import p64

from perdure.model import local, logs
from perdure.model.agent import Agent, Claim, Completion
from perdure.model.clock import Clock, StopSignal
from perdure.model.errors import BadStatusError, StopRequested
from perdure.model.failure import Failure
from perdure.model.fence import Refusal
from perdure.model.forked import end_forked_child, forks
from perdure.model.job import Job
from perdure.model.lane import Lane
from perdure.model.logs import events, fields, trace
from perdure.model.moments import microseconds
from perdure.model.names import NOT_OF_THE_CODE
from perdure.model.places import GROUPED_PER_PLACE
from perdure.model.ref import JobRef, plain_job
from perdure.model.resolving import is_whole
from perdure.model.status import Status
from perdure.model.storable import check_value, is_plain
from perdure.model.suspension import fresh, is_future

__all__ = ["Experience", "Group", "GroupRunner"]

GROUP_SECONDS = 0.1
"""When a group has lasted so long, it is committed, and the others go into another one.

With calls of 1 ms, a tenth of that costs half of the drain, half of it a fifth, and no bound at
all would gain a tenth at most. Measured by W11 of the benchmarks, as the next three are.
"""

QUICK_SECONDS = 0.01
"""A callable that lately took longer is run in a group of its own: it would gain little."""

_INSTANT_SECONDS = 0.0002
_BRIEF_SECONDS = 0.001
"""A job of a callable that takes longer is not run in a batch: what threads and commits cost for
each of the others is about as much, and several may be at such calls at once."""
_SHORT_SECONDS = 0.002
_REMEMBERED = 1000
_AVERAGED = 32
"""Of so many calls, about, is the time that is taken for that of a callable: one of them may have
waited for the interpreter longer than all the others took."""
_CAREFUL_GROUPS = 20
_EXCLUSIVE_GROUPS = 500


class Experience:
    """What a process has learnt of the callables that it runs in groups. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: OrderedDict[str, float] = OrderedDict()
        self._fails: dict[str, int] = {}
        self._conflicts: dict[str, int] = {}

    def is_quick(self, name: str) -> bool:
        """Tell whether calls of that name are known to take an instant only, on the average."""
        with self._lock:
            return self._seconds.get(name, QUICK_SECONDS) < QUICK_SECONDS

    def is_instant(self, name: str) -> bool:
        """Tell whether calls of that name are known to take next to no time."""
        with self._lock:
            return self._seconds.get(name, QUICK_SECONDS) < _INSTANT_SECONDS

    def is_brief(self, name: str) -> bool:
        """Tell whether calls of that name are known to take less than running them does."""
        with self._lock:
            return self._seconds.get(name, QUICK_SECONDS) < _BRIEF_SECONDS

    def with_another(self, name: str, seconds: float) -> float | None:
        """Return how long a group of `seconds` is likely to last with another call, of that name.

        None where it is not to have that: it would last too long, or the callable is not quick.
        """
        with self._lock:
            average = self._seconds.get(name, QUICK_SECONDS)
        total = seconds + average
        return total if average < QUICK_SECONDS and total <= GROUP_SECONDS else None

    def parts_of(self, name: str) -> int:
        """Return how many parts of an agent's place a job takes that is such a call.

        0 says that it has one for itself. The jobs that share a place take a worker the time of
        two groups, about: one to run, and one to go on with.
        """
        with self._lock:
            average = self._seconds.get(name, QUICK_SECONDS)
        if average >= QUICK_SECONDS:
            return 0
        return max(1, round(GROUPED_PER_PLACE * average / (2 * GROUP_SECONDS)))

    def ends_soon(self, name: str) -> bool:
        """Tell whether a job that calls what has that name is over in a few commits' time.

        What has taken no time at all was measured by a clock that stands still.
        """
        with self._lock:
            return 0 < self._seconds.get(name, 0) < _SHORT_SECONDS

    def took(self, name: str, seconds: float) -> None:
        """Note how long a call took."""
        with self._lock:
            before = self._seconds.pop(name, seconds)
            self._seconds[name] = before + (seconds - before) / _AVERAGED
            if len(self._seconds) > _REMEMBERED:
                forgotten, _ = self._seconds.popitem(last=False)
                self._fails.pop(forgotten, None)
                self._conflicts.pop(forgotten, None)

    def lasts(self, name: str) -> None:
        """Note that a call of that name takes long, and is not over yet."""
        with self._lock:
            if self._seconds.get(name, 0) < QUICK_SECONDS:
                self._seconds[name] = QUICK_SECONDS

    def failed(self, name: str) -> None:
        """Note that a call of that name had to be taken back, which costs a group that is not
        prepared for it all its calls.
        """
        with self._lock:
            self._fails[name] = _CAREFUL_GROUPS

    def conflicted(self, names: Iterable[str]) -> None:
        """Note that a group with such calls has met with another transaction."""
        with self._lock:
            for name in names:
                self._conflicts[name] = _EXCLUSIVE_GROUPS

    def begins(self, names: set[str]) -> tuple[bool, bool]:
        """Tell whether a group is to be prepared for failures, and to be run beside no other."""
        with self._lock:
            return _count_down(self._fails, names), _count_down(self._conflicts, names)


def _count_down(counts: dict[str, int], names: set[str]) -> bool:
    found = False
    for name in names & counts.keys():
        found = True
        counts[name] -= 1
        if not counts[name]:
            del counts[name]
    return found


@dataclass
class Group:
    """What has become of each claim of a group."""

    completed: list[Completion] = field(default_factory=list)
    """These are done, and can be settled by what is said here."""
    alone: list[Claim] = field(default_factory=list)
    """These are to be run, or to be gone on with, alone."""
    rest: list[Claim] = field(default_factory=list)
    """These were not begun, and may be in another group."""
    reassigned: list[Claim] = field(default_factory=list)
    """These were taken away before they began."""
    stopped: list[Claim] = field(default_factory=list)
    """These were not begun, and are not to be, since the system stops."""


@dataclass(slots=True)
class _Called:
    """A job that was called, and is to be stored with what it returned."""

    claim: Claim
    job: Job
    start: float
    """When it was called, by the clock that only goes on."""
    result: Any
    began: int = 0
    """The same in microseconds since 1970, once it is to be stored."""


class _Again(Exception):
    """The transaction is spoilt: the calls are to be made again, without one of them."""


class _NotForGroups(Exception):
    """The job does what one in a group cannot."""


class GroupRunner:
    """Runs groups, one after the other, in the thread that calls it.

    `manager` is the transaction manager of the connection. `on_begin` is told of each job before
    its call, with what it calls; `on_end` once its result is committed, with the moments between
    which it was called (the last one being that of the commit). Moments are in microseconds.
    """

    def __init__(
        self,
        manager: Any,
        clock: Clock,
        stop: StopSignal,
        lane: Lane,
        experience: Experience,
        *,
        on_begin: Callable[[JobRef, str, int], None],
        on_end: Callable[[JobRef, Job, int, int], None],
    ) -> None:
        self._manager = manager
        self._clock = clock
        self._stop = stop
        self._lane = lane
        self._experience = experience
        self._on_begin = on_begin
        self._on_end = on_end
        self._fence = _Fence()
        self._touched: list[Job] = []
        self._functions: dict[str, Callable[..., Any]] = {}
        self._began = 0
        """When the attempt that is under way began, in microseconds since 1970."""
        self._begun = self._latest = 0.0
        """The same by the clock that only goes on, and when a call was over last."""

    def run(self, connection: Any, agent: Agent, claims: Iterable[tuple[Claim, str]]) -> Group:
        """Run these, each given with the name of what it calls; return what became of them.

        Where the database is away, all are left to be run alone, which waits for it. No
        transaction is open afterwards.
        """
        group = Group()
        left = dict(claims)
        careful, exclusive = self._experience.begins(set(left.values()))
        self._manager.registerSynch(self._fence)
        try:
            with self._lane.exclusive() if exclusive else self._lane.shared():
                while left:
                    try:
                        self._attempt(connection, agent, left, group, careful)
                    except _Again:
                        # What has spoilt it is not among those that are left any more.
                        careful = True
        except StopRequested:
            # A job may raise it as well.
            into = group.stopped if self._stop.is_set() else group.alone
            into += left
        # Whatever it is, each of them meets with it alone, where it is dealt with.
        except Exception as error:
            trace.info("a group of %d is run one by one, for %r", len(left), error)
            group.alone += left
        finally:
            self._abort()
            self._manager.unregisterSynch(self._fence)
        return group

    def _abort(self) -> None:
        try:
            self._manager.abort()
        except NoTransaction:
            # Only explicit managers say so; nothing is open, and that is what is wanted.
            pass
        # The transaction is over even so.
        except Exception:
            events.error("an abort failed", exc_info=True, extra=fields())
        # What they are in memory alone is over.
        for job in self._touched:
            job._p_invalidate()
        self._touched.clear()

    def _begin(self) -> None:
        self._abort()
        self._manager.begin()
        self._fence.broken = False
        # An alias may have been made since.
        self._functions.clear()

    def _attempt(
        self, connection: Any, agent: Agent, left: dict[Claim, str], group: Group, careful: bool
    ) -> None:
        """Call what is `left` and commit it; take out of it what is dealt with.

        Raises `_Again` where that is to be done again with those that are still `left`.
        """
        self._begin()
        # For a storage that is far away: asked for all at once.
        connection.prefetch([p64(claim.ref.oid) for claim in left])
        called: list[_Called] = []
        self._began = microseconds(self._clock.now())
        self._begun = self._latest = self._clock.monotonic()
        for claim, name in tuple(left.items()):
            if self._stop.is_set():
                raise StopRequested("the system stops: a group is not run")
            if called and self._latest - self._begun > GROUP_SECONDS:
                del left[claim]
                group.rest.append(claim)
                continue
            job = self._find(connection, claim)
            if job is None or not job._is_unbegun(claim.number):
                del left[claim]
                # Where one that was called has taken it away, that is not so before the commit.
                ours = job is not None and (called or job._is_held(agent, claim.number))
                (group.alone if ours else group.reassigned).append(claim)
                continue
            savepoint = self._manager.savepoint(optimistic=True) if careful and called else None
            hooks = self._hooks() if savepoint else ()
            try:
                called.append(self._call(agent, claim, name, job))
            except NOT_OF_THE_CODE:
                raise
            # The job's own code may raise anything; that is dealt with where it is alone.
            except BaseException as error:
                self._latest = self._clock.monotonic()
                trace.info("%r is run alone, for %r", job, error, extra=fields(job))
                del left[claim]
                group.alone.append(claim)
                self._experience.failed(name)
                job._p_invalidate()
                self._take_back(bool(called), savepoint, hooks)
        if called:
            self._commit(agent, called, left, group)

    def _find(self, connection: Any, claim: Claim) -> Job | None:
        """Return the job, loaded; None where it cannot be, with all that it holds."""
        job = plain_job(connection, claim.ref)
        try:
            whole = is_whole(job)
        # There is none any more.
        except POSKeyError:
            return None
        return job if whole and type(job) is Job else None

    def _hooks(self) -> tuple[Any, ...]:
        current = self._manager.get()
        return (
            *current.getBeforeCommitHooks(),
            *current.getAfterCommitHooks(),
            *current.getBeforeAbortHooks(),
            *current.getAfterAbortHooks(),
        )

    def _take_back(self, called: bool, savepoint: Any, hooks: tuple[Any, ...]) -> None:
        """Undo what one job has done, and nothing that others have; raise `_Again` else.

        Of those that were called the view has to stay as well, even if they have changed nothing:
        a later one would hide that what they have read, such as their arguments, is out of date.
        """
        if self._fence.broken:
            raise _Again
        if not called:
            self._begin()
            return
        # The hooks that it has set cannot be taken back.
        if savepoint is None or self._hooks() != hooks:
            raise _Again
        try:
            savepoint.rollback()
        # A data manager that cannot do this.
        except Exception as error:
            raise _Again from error

    def _call(self, agent: Agent, claim: Claim, name: str, job: Job) -> _Called:
        function = self._function(job)
        self._touched.append(job)
        # One clock tells both how long it takes and when that was.
        start = self._clock.monotonic()
        began = self._began + round((start - self._begun) * 1_000_000)
        job._run_in_group(agent, claim.number, began)
        self._on_begin(claim.ref, name, began)
        with self._fence.in_call(job, claim.ref):
            if job._args or job._kwargs:
                result = function(*fresh(job._args), **fresh(job._kwargs or {}))
            else:
                result = function()
        self._latest = self._clock.monotonic()
        self._experience.took(name, self._latest - start)
        if self._fence.broken:
            raise _NotForGroups("it has ended its transaction by itself")
        if not is_plain(result):
            if inspect.iscoroutine(result):
                result.close()
                raise _NotForGroups("it has returned a coroutine")
            if isinstance(result, (Job, Failure)) or is_future(result):
                raise _NotForGroups(f"it has returned {result!r}")
            check_value(result, f"the result of {job!r}")
        return _Called(claim, job, start, result)

    def _function(self, job: Job) -> Callable[..., Any]:
        """Return what `job` calls; a name is looked up once in a group."""
        stored = job._callable
        if not isinstance(stored, str):
            return job.callable
        function = self._functions.get(stored)
        if function is None:
            function = self._functions[stored] = job.callable
        return function

    def _commit(
        self, agent: Agent, called: list[_Called], left: dict[Claim, str], group: Group
    ) -> None:
        now, moment = microseconds(self._clock.now()), self._clock.monotonic()
        stored = []
        for each in called:
            # Backwards: the other clock may have been set meanwhile.
            each.began = now - round((moment - each.start) * 1_000_000)
            # Where a transaction has ended after its call, it had no effects.
            if each.job._is_held(agent, each.claim.number):
                each.job._end_in_group(agent, each.claim.number, each.began, now, each.result)
                stored.append(each)
            else:
                del left[each.claim]
                group.reassigned.append(each.claim)
        try:
            self._manager.commit()
        except Exception as error:
            if isinstance(error, ConflictError):
                self._experience.conflicted(set(left.values()))
            trace.info("a group of %d is run one by one, for %r", len(stored), error)
            self._sort_out(agent, stored, left, group)
            return
        for each in stored:
            self._ended(each, now, group)
            del left[each.claim]

    def _sort_out(
        self, agent: Agent, stored: list[_Called], left: dict[Claim, str], group: Group
    ) -> None:
        """Leave those of a group alone whose commit has raised; it may have taken place."""
        self._begin()
        for each in stored:
            del left[each.claim]
            try:
                each.job._p_activate()
                done = each.job._claim == -each.claim.number
                done = done and each.job.status is Status.COMPLETED
            # It is looked at again where it is alone.
            except Exception:
                done = False
            if done:
                self._ended(each, microseconds(self._clock.now()), group)
            else:
                group.alone.append(each.claim)

    def _ended(self, each: _Called, now: int, group: Group) -> None:
        job = each.job
        self._on_end(each.claim.ref, job, each.began, now)
        ended = job._callbacks_end
        if ended is None:
            # Its callbacks are run as those of a job that was alone.
            group.alone.append(each.claim)
        else:
            group.completed.append(
                Completion(each.claim.ref, each.claim.number, ended, False, job.keep_completed)
            )


class _Fence:
    """Sees to it that no job of a group commits what the others have done.

    A synchronizer of the transaction manager, which tells it of every end of a transaction. That
    nothing is committed for a job that was lost needs no more: all that are committed write the
    records of their jobs.
    """

    def __init__(self) -> None:
        self.broken = False
        """Whether a job has ended the transaction by itself."""
        self._calling = False
        self._thread = threading.get_ident()
        self._forks = forks()
        self._job: Any = None
        self._tokens: tuple[Any, Any] | None = None

    def in_call(self, job: Job, ref: JobRef) -> _Fence:
        """While the code of `job` runs: it is the current job, and the logs say so."""
        self._job = job
        self._tokens = local.enter(local.Running(job, job)), logs.enter(job=ref)
        return self

    def __enter__(self) -> None:
        self._thread = threading.get_ident()
        self._forks = forks()
        self._calling = True

    def __exit__(self, *exc_info: object) -> None:
        if forks() != self._forks:
            end_forked_child(self._job)
        self._calling = False
        assert self._tokens is not None
        running, place = self._tokens
        local.leave(running)
        logs.leave(place)

    def newTransaction(self, transaction: Any) -> None:  # noqa: N802
        """Do nothing."""

    def beforeCompletion(self, transaction: Any) -> None:  # noqa: N802
        """Let a transaction that a job ends by itself be aborted, and not committed."""
        # Another thread aborts it when the database is closed; that is not the job's doing.
        if not self._calling or threading.get_ident() != self._thread:
            return
        self.broken = True
        error = BadStatusError(
            "a transactional job was about to commit by itself: it is run alone, again"
        )
        with suppress(TransactionFailedError):
            transaction.join(Refusal(error))

    def afterCompletion(self, transaction: Any) -> None:  # noqa: N802
        """Do nothing."""
