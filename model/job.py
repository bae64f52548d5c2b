"""The job: a durable call, with its status, its result and its callbacks."""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ZODB.utils import z64

from perdure.model import names
from perdure.model.aliases import current_name
from perdure.model.annotations import Annotations
from perdure.model.arguments import Arguments, KeywordArguments
from perdure.model.environment import clock_of, environment
from perdure.model.errors import BadStatusError, NotStorableError
from perdure.model.given import checked_name
from perdure.model.record import JobRecord
from perdure.model.ref import JobRef
from perdure.model.saferepr import survive
from perdure.model.side import SideRecord
from perdure.model.status import Status
from perdure.model.storable import check_arguments, is_fixed

if TYPE_CHECKING:
    from perdure.model.callbacks import CallbackProxy
    from perdure.model.policy import PolicyFactory

__all__ = ["Job", "as_job", "call_of"]

_in_repr: contextvars.ContextVar[bool] = contextvars.ContextVar("perdure job repr", default=False)


class Job(JobRecord):
    """A call that is stored, to be made once, by whoever has it then.

    `callable` is a module-level function, a built-in, a class, a class method, a method
    of a persistent object, or a persistent object with ``__call__``; a
    `functools.partial` is taken apart. The other arguments are the call's.

    Raises `NotStorableError` for a callable or an argument that cannot be stored.
    Making a job touches no transaction. Like every persistent object, it belongs to the
    connection, and so the thread, that it was stored through or loaded from.

    `keep_completed` and `keep_failed`, timedeltas, say how long it is kept when it is
    done (None: as its agent says, then its queue, then 7 days).
    """

    def __init__(self, callable: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        self._callable, bound, keywords = names.split_callable(callable)
        args, kwargs = (*bound, *args), {**keywords, **kwargs}
        if args or kwargs:
            self._set_arguments(list(args), kwargs)

    @classmethod
    def bind(cls, callable: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job:
        """Return a job that gives itself to `callable`, before the other arguments."""
        job = cls(callable, *args, **kwargs)
        job._args = [job, *job._args]
        return job

    def __repr__(self) -> str:
        # Shown in logs just when something else is wrong, so it never raises.
        name = type(self).__name__

        def text() -> str:
            # Jobs among the arguments of jobs may refer to each other.
            call = "" if _in_repr.get() else " " + self.call_text()
            return f"<{name} {self._identity()}{call}>"

        return survive(text, lambda error: f"<{name} that cannot be read>")

    def __getstate__(self) -> Any:
        state = super().__getstate__()
        if not self._args and not self._kwargs:
            return state
        # What was changed deep inside an argument was not checked yet.
        values = [*self._args, *(self._kwargs or {}).values()]
        if self._p_jar is not None and not all(map(is_fixed, values)):
            try:
                # Not for its size: a limit that was lowered must not keep it from ending.
                check_arguments(self._args, self._kwargs or {}, sys.maxsize)
            except NotStorableError as error:
                raise NotStorableError(f"{self!r}: {error}") from error
        return state

    def _identity(self) -> str:
        return "(not stored)" if self._p_oid is None else _identity_of(JobRef.of(self))

    def call_text(self) -> str:
        """Return the call as a text, with its arguments, each cut at 80 characters."""
        if not self._args and not self._kwargs:
            return f"{self.callable_name}()"
        token = _in_repr.set(True)
        try:
            parts = [_short(arg, self) for arg in self._args]
            kwargs = self._kwargs or {}
            parts += [f"{name}={_short(value, self)}" for name, value in kwargs.items()]
            return f"{self.callable_name}({', '.join(parts)})"
        finally:
            _in_repr.reset(token)

    @property
    def ref(self) -> JobRef:
        """The identity of a job that was put, also before that is committed.

        Raises `JobNotFoundError` for one that was not.
        """
        return JobRef.of(self)

    # What is called.

    @property
    def callable(self) -> Callable[..., Any]:
        """What is called; raises `CallableNotFoundError` where it is not to be had."""
        stored = self._callable
        if isinstance(stored, str):
            stored = current_name(self, stored)
        return names.callable_of(stored)

    @property
    def callable_name(self) -> str:
        """The name of what is called, ``module:qualname``; needs no import."""
        if isinstance(self._callable, str):
            return self._callable
        kind = type(self._callable[0])
        return f"{kind.__module__}:{kind.__qualname__}.{self._callable[1]}"

    @property
    def args(self) -> Arguments:
        """The positional arguments, a list that can be changed until the job is ACTIVE."""
        return Arguments(self)

    @args.setter
    def args(self, value: Any) -> None:
        if not isinstance(value, Iterable):
            raise TypeError(f"args is a list of arguments, not {value!r}")
        self._set_arguments(list(value), dict(self._kwargs or {}))

    @property
    def kwargs(self) -> KeywordArguments:
        """The keyword arguments, a mapping that can be changed like `args`."""
        return KeywordArguments(self)

    @kwargs.setter
    def kwargs(self, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise TypeError(f"kwargs is a mapping of names to arguments, not {value!r}")
        for name in value:
            checked_name("an argument", name)
        self._set_arguments(list(self._args), dict(value))

    def _set_arguments(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        self._require("changing its arguments", *self._changeable())
        limit = None
        if self._p_jar is not None:
            limit = environment(self._p_jar.db()).argument_limit_bytes
        check_arguments(args, kwargs, limit)
        with self._sorted_anew():
            # One that is in the record may be removed, one that was never set need not be.
            if args or self._args:
                self._args = args
            if kwargs or self._kwargs:
                self._kwargs = kwargs

    def _changeable(self) -> tuple[Status, ...]:
        return Status.NEW, Status.PENDING, Status.ASSIGNED

    def _hear_of(self, inner: Job) -> bool:
        """Take the result of the job that this one waited for; tell whether it has ended."""
        from perdure.model.following import outcome_of

        self._end(outcome_of(inner))
        self._complete_if_alone()
        return True

    def check_storable(self, limit_bytes: int | None = None) -> None:
        """Raise `NotStorableError` where the callable or an argument cannot be stored."""
        names.check_class(type(self))
        if isinstance(self._callable, tuple):
            names.check_class(type(self._callable[0]))
        check_arguments(self._args, self._kwargs or {}, limit_bytes)

    @property
    def annotations(self) -> Annotations:
        """A mapping for the application's use, also while the job runs.

        What is set belongs to the current transaction; see `perdure.model.local` for what
        is to be seen before the job's commit.
        """
        return Annotations(self)

    # Hooks for subclasses.

    def set_up(self) -> Any:
        """Override: runs right before the callable, in the job's transaction.

        What it returns is given to `tear_down`. What it raises is an error of the job: the
        callable does not run, `tear_down` does, with None.
        """
        return None

    def tear_down(self, info: Any) -> None:
        """Override: runs once after the commit or the abort of each attempt.

        What it raises is logged as critical and changes nothing; what it changes in the
        database is not committed.
        """

    # Callbacks.

    @property
    def callbacks(self) -> list[Job]:
        """The callbacks, in the order in which they were added."""
        side = self._side()
        return [*(self._callbacks or ()), *(() if side is None else side.callbacks)]

    def add_callback(
        self,
        callback: Any,
        *,
        begin_by: timedelta | None = None,
        failure_log_level: int | None = None,
        retry_policy_factory: PolicyFactory | str | None = None,
    ) -> Job:
        """Let `callback`, a job or a callable, be called with this job's result.

        Returns the callback's job, which can have callbacks itself. May be called at any
        moment, from any transaction; where this job is done already, the callback is put
        into its queue. Raises `BadStatusError` where the callback is this job, or is not
        NEW, `NotStorableError` where it cannot be stored.
        """
        job = as_job(callback)
        self._check_callback(job)
        job._set_all(
            begin_by=begin_by,
            failure_log_level=failure_log_level,
            retry_policy_factory=retry_policy_factory,
        )
        self._add(job)
        return job

    def add_callbacks(
        self,
        success: Any = None,
        failure: Any = None,
        *,
        failure_log_level: int | None = None,
        retry_policy_factory: PolicyFactory | str | None = None,
    ) -> CallbackProxy:
        """Let `success` be called with a result, or `failure` with a `Failure`.

        Returns a proxy that has `success`, `failure`, `job` (the one that was called),
        `status` and `result`, and takes callbacks. Raises as `add_callback` does.
        """
        from perdure.model.callbacks import CallbackProxy

        jobs = [None if each is None else as_job(each) for each in (success, failure)]
        if jobs[0] is not None and jobs[0] is jobs[1]:
            raise BadStatusError(f"{jobs[0]!r} cannot be both: use add_callback")
        for job in jobs:
            if job is not None:
                self._check_callback(job)
        proxy = CallbackProxy(
            *jobs,
            failure_log_level=failure_log_level,
            retry_policy_factory=retry_policy_factory,
        )
        self._add(proxy)
        return proxy

    def _check_callback(self, job: Job) -> None:
        """Raise where `job` cannot be a callback of this one."""
        ancestor: Job | None = self
        while ancestor is not None:
            if ancestor is job:
                raise BadStatusError(
                    f"{job!r} is {job.status.name} and cannot be a callback of itself, nor of "
                    "its own callbacks: give a NEW job"
                )
            ancestor = ancestor._parent
        if job.status is not Status.NEW or job._parent is not None:
            raise BadStatusError(
                f"{job!r} is {job.status.name}"
                + (" and a callback already" if job._parent is not None else "")
                + "; only a NEW job that nobody else runs can be a callback"
            )
        job.check_storable()

    def _add(self, job: Job) -> None:
        if self.status is Status.COMPLETED:
            self._add_late(job)
            return
        job._parent = self
        if self._is_ours():
            # A new list, so that the state before an attempt stays what it was.
            self._callbacks = [*(self._callbacks or ()), job]
            return
        # Two readings of the status cannot both win: see the record of this job again
        # at the commit.
        self._p_jar.readCurrent(self)
        self._make_side().add_callback(job)

    def _add_late(self, job: Job) -> None:
        queue = self.queue
        if queue is None:
            raise BadStatusError(
                f"{self!r} is COMPLETED and was in no queue: call the callback with its result"
            )
        job._parent = self
        # Nobody else writes the record of a job that is done, but who lets it run once more:
        # that one has to know of this.
        self._callbacks = [*(self._callbacks or ()), job]
        queue._enter(job, "put", due=job.begin_after or clock_of(queue).now())

    def _is_ours(self) -> bool:
        """Tell whether this transaction may write the job's record."""
        from perdure.model.local import is_running

        if self._p_jar is None:
            return True
        # What was never loaded has no serial to compare.
        self._p_activate()
        if self._p_serial == z64 or is_running(self):
            return True
        return self._own_side is None and self.queue is None

    def _side(self) -> SideRecord | None:
        if self._p_oid is None or self._own_side is not None:
            return self._own_side
        queue = self.queue
        return None if queue is None else queue.side.get(self)

    def _make_side(self) -> SideRecord:
        if self._own_side is not None:
            return self._own_side
        queue = self.queue
        assert queue is not None
        return queue.side.make(self)

    # By hand.

    def __call__(self, *args: Any, commit: bool = False, **kwargs: Any) -> Any:
        """Run the job here and now, with its callbacks; returns the result.

        `args` come after the stored ones, `kwargs` update them. Needs NEW or ASSIGNED.
        Commits the transaction of the job's connection (the thread's, where it was never
        stored) several times; therefore it raises `BadStatusError` inside a running job,
        and where that transaction has changes already, unless `commit` is True. Returns
        the job itself if it was rescheduled. What is no `Exception` aborts, comes out
        and leaves the job ACTIVE.
        """
        from perdure.model.by_hand import run_by_hand

        self._require("calling it", Status.NEW, Status.ASSIGNED)
        return run_by_hand(self, args, kwargs, commit=commit)

    def fail(self, error: BaseException | None = None, *, commit: bool = False) -> None:
        """End a job that has not begun, with a failure (default: `JobTimeoutError`).

        Needs NEW, PENDING or ASSIGNED; in CALLBACKS it resumes the callbacks. A job of a
        queue is ended in the caller's transaction, and its callbacks are then run by the
        queue's agents; for any other they are run here, as by calling it.
        """
        from perdure.model.by_hand import fail_by_hand

        self._require("failing it", Status.NEW, Status.PENDING, Status.ASSIGNED, Status.CALLBACKS)
        fail_by_hand(self, error, commit=commit)

    def retry(self) -> None:
        """Let a failed job run once more, or one that waits be the next.

        A COMPLETED job that failed is put into its queue again, due now, with its policy,
        and a deadline, counting anew. Callbacks that have run do not run again. Of two
        that `add_callbacks` has added, the one that was not called may be called still. A
        callback that failed is put into the queue of its parent, and called with the same
        result. A PENDING job becomes the first in line, due at once.

        Works in the transaction of the job's connection. Raises `BadStatusError` in another
        status, for a job that has succeeded, for one that was in no queue, and while a callback
        of it that was added late, or is being retried, waits for its turn;
        `JobNotFoundError` where it was forgotten; `CallableNotFoundError` where it cannot be
        loaded here.
        """
        from perdure.model.operating import retry

        retry(self)

    def cancel(self) -> None:
        """End a job that has not begun: its result is a failure, an `AbortedError`.

        Its callbacks are then run by the queue's agents, as after `fail`. Works in the
        transaction of the job's connection. Raises `BadStatusError` where it has begun, or has
        callbacks and is in no queue,
        `CallableNotFoundError` where it cannot be loaded here.
        """
        from perdure.model.operating import cancel

        cancel(self)

    def handle_interrupt(self, *, commit: bool = False) -> None:
        """Put an ACTIVE job, that nobody runs any more, to its policy as interrupted.

        In CALLBACKS the callbacks are resumed. Commits, as calling the job does. Raises
        `BadStatusError` in any other status.
        """
        from perdure.model.by_hand import resume_by_hand

        self._require("handling an interruption", Status.ACTIVE, Status.CALLBACKS)
        resume_by_hand(self, commit=commit)

    def resume_callbacks(self, *, commit: bool = False) -> None:
        """Run the callbacks that were not run, after an interruption in CALLBACKS.

        Commits, as calling the job does. Raises `BadStatusError` in any other status.
        """
        from perdure.model.by_hand import resume_by_hand

        self._require("resuming its callbacks", Status.CALLBACKS)
        resume_by_hand(self, commit=commit)

    def descendants(self) -> Iterator[Job]:
        """Return the callbacks, theirs, and so on."""
        waiting = self._children()
        while waiting:
            job = waiting.pop(0)
            yield job
            waiting = [*job._children(), *waiting]

    def _children(self) -> list[Job]:
        return self.callbacks


def _identity_of(ref: JobRef) -> str:
    return f"{ref.oid:x} (database {ref.database_name!r})"


def call_of(ref: JobRef, callable_name: str) -> str:
    """Return the `repr` of a plain job without arguments, of which no more is at hand."""
    return f"<Job {_identity_of(ref)} {callable_name}()>"


def as_job(item: Any) -> Job:
    """Return `item` if it is a job, else a job that calls it."""
    return item if isinstance(item, Job) else Job(item)


def _short(value: Any, job: Job) -> str:
    if value is job:
        return "<this job>"
    text = survive(
        lambda: repr(value), lambda error: f"<{type(value).__qualname__} that has no repr>"
    )
    return text if len(text) <= 80 else text[:77] + "..."
