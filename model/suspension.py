"""What a job waits for without a worker: a coroutine, a future, or the time of a retry.

A `Runner` that has come to such a point returns one of these and is free for other jobs.
Whoever has called it sees to the waiting, and has some runner go on with an `Ended`.
"""

from __future__ import annotations

import concurrent.futures
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import transaction
from transaction.interfaces import TransactionFailedError, TransientError
from ZODB.POSException import POSKeyError, StorageError

from perdure.model import local
from perdure.model.errors import AbortedError, BadStatusError, ReassignedError
from perdure.model.failure import Failure
from perdure.model.fence import Fence, Refusal
from perdure.model.groupable import kind_of
from perdure.model.internal import InternalJob
from perdure.model.job import Job
from perdure.model.logs import events
from perdure.model.pool import change_pool_size
from perdure.model.ref import JobRef, locate
from perdure.model.storable import contains_persistent, copied, is_fixed, is_plain

__all__ = [
    "AwaitedFuture",
    "CoroutineCall",
    "Ended",
    "Pause",
    "Suspension",
    "fresh",
    "is_coroutine_job",
    "is_future",
    "is_light",
    "outcome_of_future",
    "refuse_inside_a_loop",
    "run_here",
    "without_frames_of",
]

T = TypeVar("T")


def is_coroutine_job(job: Job) -> bool:
    """Tell whether what `job` calls is a coroutine function, as far as that is to be had.

    Raises what the storage does where it cannot tell now.
    """
    if job._p_jar is not None and isinstance(job._callable, str):
        return kind_of(job)[1]
    try:
        return inspect.iscoroutinefunction(job.callable)
    except POSKeyError:
        return False
    except (StorageError, TransientError):
        raise
    # It will be told when the job is called.
    except Exception:
        return False


def is_light(job: Job) -> bool:
    """Tell whether running `job` takes a worker for an instant only, before and after."""
    return not isinstance(job, InternalJob) and is_coroutine_job(job) and not job.callbacks


def is_future(value: object) -> bool:
    """Tell whether a job that returns `value` waits for it."""
    if isinstance(value, concurrent.futures.Future):
        return True
    # Whoever has one has imported it, and nothing else here needs it.
    pykka = sys.modules.get("pykka")
    return pykka is not None and isinstance(value, pykka.Future)


def outcome_of_future(future: Any) -> tuple[object, BaseException | None]:
    """Wait for a future; return its value and its error, one of them None.

    One that was cancelled has an error. In a thread that has the time to wait.
    """
    try:
        if not isinstance(future, concurrent.futures.Future):
            return future.get(), None
        error = future.exception()
        return (future.result(), None) if error is None else (None, error)
    except concurrent.futures.CancelledError:
        return None, AbortedError("the future that the job waited for was cancelled")
    # What is not an Exception is the future's, and is dealt with where the job is.
    except BaseException as raised:
        return None, without_frames_of(raised, __name__)


@dataclass(frozen=True, slots=True, eq=False)
class AwaitedFuture:
    """The result of the job is that of a future; what the job did until now is committed."""

    future: Any
    light: bool

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


@dataclass(frozen=True, slots=True, eq=False)
class Pause:
    """The job is to be run again after a time; `failure` is why."""

    after: timedelta
    failure: Failure
    light: bool

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


class CoroutineCall:
    """One call of a coroutine function, with a transaction and a connection of its own.

    It is made by a worker that has committed ACTIVE, is used then by whoever runs the
    coroutine, and by a worker again, which commits: by one thread at a time. The connection
    is opened when something needs it: the job itself, a persistent object in its arguments,
    `set_up` and `tear_down`, or a commit that is to be fenced off.
    """

    def __init__(self, job: Job, root: Job) -> None:
        self.manager: Any = transaction.TransactionManager()
        self.light = job is root and not root.callbacks
        """Whether a worker is needed for an instant only when it has ended."""
        self._database = root._p_jar.db()
        self._refs = JobRef.of(root), JobRef.of(job)
        self._number = root._claim
        self._text = repr(job)
        self._made = _made_without_connection(job)
        self._info: Any = None
        self._is_set_up = False
        self._connection: Any = None
        self._root: Job | None = None
        self._job: Job | None = None
        self._fence: Fence | None = None
        self._closed = False
        self._guard = _Guard(self)
        self.manager.registerSynch(self._guard)

    def __repr__(self) -> str:
        return f"<the call of {self._text}>"

    # Once there is a connection.

    @property
    def job(self) -> Job:
        """The job, as the coroutine's own connection has it."""
        self.open()
        assert self._job is not None
        return self._job

    @property
    def root(self) -> Job:
        """The job that was claimed: this one, or the one that it is a callback of."""
        self.open()
        assert self._root is not None
        return self._root

    @property
    def fence(self) -> Fence:
        """What keeps it from committing for a job that was lost."""
        self.open()
        assert self._fence is not None
        return self._fence

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    @property
    def has_changes(self) -> bool:
        """Whether something takes part in its transaction."""
        return bool(self.manager.get()._resources)

    def works_for(self, job: Job) -> bool:
        """Tell whether `job` is one of its own, through its own connection."""
        return self.is_open and (job is self._job or job is self._root)

    def open(self) -> None:
        """See that there is a connection.

        Raises `ReassignedError` where the job was lost meanwhile, `BadStatusError` once the
        call is over, and whatever the database raises.
        """
        if self._connection is not None:
            return
        if self._closed:
            raise BadStatusError(
                f"{self._text} is over: what its coroutine has left behind cannot use it any more"
            )
        change_pool_size(self._database, 1)
        connection = None
        try:
            connection = self._database.open(transaction_manager=self.manager)
            root, job = (locate(connection, ref) for ref in self._refs)
            root._p_activate()
            if root._agent is None or root._claim != self._number:
                raise ReassignedError(
                    f"{self._text} was taken from this worker: what it has not committed is "
                    "dropped"
                )
            fence = Fence(root)
        except BaseException:
            self._give_back(connection)
            raise
        fence.calling = True
        self._root, self._job, self._fence = root, job, fence
        self._connection = connection

    # The call.

    def begin(self) -> Any:
        """Call the function, after `set_up`; return the coroutine."""
        if self._made is None:
            job = self.job
            self._is_set_up = True
            self._info = job.set_up()
            told_by = job.told_by
            told = () if told_by is None else (told_by.result,)
            self._made = job.callable, (*fresh(job._args), *told), fresh(job._kwargs or {})
        function, args, kwargs = self._made
        return function(*args, **kwargs)

    def step(self, call: Callable[..., T], *args: Any) -> T:
        """Call something as the coroutine's code, in the thread that runs it.

        `transaction.manager` is the coroutine's meanwhile, and `perdure.model.local` finds
        its job.
        """
        before = transaction.manager.manager
        transaction.manager.manager = self.manager
        token = local.enter(self)
        try:
            return call(*args)
        finally:
            local.leave(token)
            transaction.manager.manager = before

    def tear_down(self) -> None:
        """Call the job's `tear_down`, after the commit or the abort, if that is due still."""
        if not self._is_set_up:
            return
        self._is_set_up = False
        try:
            self.step(self.job.tear_down, self._info)
        # The job's fate is settled, whatever this raises.
        except Exception:
            events.critical("tear_down of %s failed", self._text, exc_info=True)

    def close(self) -> None:
        """Drop what was not committed, and let go of the connection; may be repeated."""
        if self._closed:
            return
        self._abort()
        try:
            self.tear_down()
        finally:
            self._closed = True
            self._abort()
            self.manager.unregisterSynch(self._guard)
            connection, self._connection = self._connection, None
            if connection is not None:
                self._give_back(connection)

    def _abort(self) -> None:
        try:
            self.manager.abort()
        # The transaction is over even so.
        except Exception:
            events.error("an abort failed", exc_info=True)

    def _give_back(self, connection: Any) -> None:
        try:
            # One that the job's own code has closed may be another thread's by now.
            ours = connection is not None and connection.opened is not None
            if ours and connection.transaction_manager is self.manager:
                connection.close()
        finally:
            change_pool_size(self._database, -1)


Suspension = AwaitedFuture | CoroutineCall | Pause


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """How that ended which a job waited for."""

    of: Suspension
    value: object = None
    error: BaseException | None = None

    def get(self) -> object:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


class _Guard:
    """Sees to it that a call which ends a transaction by itself has a fence.

    A synchronizer, as the fence is; but that one needs the connection.
    """

    def __init__(self, call: CoroutineCall) -> None:
        self._call = call

    def newTransaction(self, transaction: Any) -> None:  # noqa: N802
        """Do nothing."""

    def beforeCompletion(self, transaction: Any) -> None:  # noqa: N802
        """Fence the transaction off, where it has anything to commit."""
        call = self._call
        if not call.is_open:
            if not transaction._resources:
                return
            try:
                call.open()
            # Raised here, it would spoil an abort; joined, it spoils a commit alone.
            except Exception as error:
                try:
                    transaction.join(Refusal(error))
                except TransactionFailedError:
                    # It can only be aborted anyway.
                    pass
                return
        call.fence.beforeCompletion(transaction)

    def afterCompletion(self, transaction: Any) -> None:  # noqa: N802
        """Do nothing."""


def fresh(arguments: Any) -> Any:
    """Return a copy for one attempt, so that what it does to them is nobody else's."""
    values = arguments.values() if isinstance(arguments, dict) else arguments
    return arguments if all(map(is_fixed, values)) else copied(arguments)


def _made_without_connection(job: Job) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """Return the function and its arguments where these need no connection, else None."""
    kind = type(job)
    hooks = kind.set_up is not Job.set_up or kind.tear_down is not Job.tear_down
    if hooks or not isinstance(job._callable, str):
        return None
    told_by = job.told_by
    told = () if told_by is None else (told_by.result,)
    args, kwargs = (*job._args, *told), job._kwargs or {}
    values = [value for value in (*args, *kwargs.values()) if not is_plain(value)]
    if values and contains_persistent(values):
        return None
    return job.callable, tuple(fresh(args)), dict(fresh(kwargs))


def refuse_inside_a_loop(job: Job) -> None:
    """Raise `BadStatusError` in a thread in which an event loop runs."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise BadStatusError(
        f"{job!r} calls a coroutine function, which cannot be run by hand inside a running event "
        "loop: put it into a queue, or call it in a thread (asyncio.to_thread)"
    )


def run_here(coroutine: Any, job: Job) -> Any:
    """Run a coroutine in this thread to its end; return what it returns."""
    # Costs time, and few need it.
    import asyncio

    try:
        refuse_inside_a_loop(job)
        return asyncio.run(coroutine)
    except asyncio.CancelledError as error:
        raise AbortedError(f"{job!r} was cancelled") from error
    finally:
        coroutine.close()


def without_frames_of(error: BaseException, module: str) -> BaseException:
    """Let the traceback of `error` begin behind the frames of a module and of this one."""
    traceback = error.__traceback__
    while (
        traceback is not None
        and traceback.tb_next is not None
        and traceback.tb_frame.f_globals.get("__name__") in (module, __name__)
    ):
        traceback = traceback.tb_next
    error.__traceback__ = traceback
    return error
