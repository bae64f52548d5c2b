"""The job: a durable call, with its status, its result and its callbacks."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from persistent import Persistent
from ZODB.utils import z64

from perdure.model import names
from perdure.model.annotations import Annotations
from perdure.model.arguments import Arguments, KeywordArguments
from perdure.model.environment import clock_of, environment
from perdure.model.errors import BadStatusError, NotStorableError, UnknownSettingError
from perdure.model.failure import Failure
from perdure.model.moments import checked_duration, checked_moment, microseconds, moment
from perdure.model.policy import (
    RetryCommonForever,
    RetryCommonFourTimes,
    RetryPolicy,
    registered_retry_policy,
)
from perdure.model.ref import JobRef
from perdure.model.status import ARROWS, Status
from perdure.model.storable import check_arguments

if TYPE_CHECKING:
    from perdure.model.agent import Agent
    from perdure.model.callbacks import CallbackProxy
    from perdure.model.policy import PolicyFactory
    from perdure.model.queue import Queue
    from perdure.model.side import SideRecord

__all__ = ["Job", "as_job"]

_MICROSECOND = timedelta(microseconds=1)


class Job(Persistent):
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

    # What is not set is not stored: these are the defaults.
    _status_name = Status.NEW.value
    _args: tuple[Any, ...] | list[Any] = ()
    _kwargs: dict[str, Any] | None = None
    _result: Any = None
    _queue: Queue | None = None
    _agent: Agent | None = None
    _claim = 0
    _parent: Job | None = None
    _previous: Job | None = None
    _begin_after: int | None = None
    _due: int | None = None
    _stamp = 0
    _first = False
    _keeps_places = False
    _begin_by: int | None = None
    _quota_names: tuple[str, ...] = ()
    _failure_log_level: int | None = None
    _retry_policy_factory: str | None = None
    _policy: RetryPolicy | None = None
    _active_start: int | None = None
    _active_end: int | None = None
    _callbacks_end: int | None = None
    _callbacks: list[Job] | None = None
    _annotations: dict[str, tuple[int, Any]] | None = None
    _transactional: bool | None = None
    keep_completed: timedelta | None = None
    keep_failed: timedelta | None = None

    def __init__(self, callable: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        self._callable, bound, keywords = names.split_callable(callable)
        keywords = {**keywords, **kwargs}
        self._set_arguments([*bound, *args], keywords)

    @classmethod
    def bind(cls, callable: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job:
        """Return a job that gives itself to `callable`, before the other arguments."""
        job = cls(callable, *args, **kwargs)
        job._args = [job, *job._args]
        return job

    def __repr__(self) -> str:
        # Shown in logs just when something else is wrong, so it never raises.
        try:
            return f"<{type(self).__name__} {self._identity()} {self._call_text()}>"
        except Exception:
            return f"<{type(self).__name__} that cannot be read>"

    def _identity(self) -> str:
        if self._p_oid is None:
            return "(not stored)"
        ref = JobRef.of(self)
        return f"{ref.oid:x} (database {ref.database_name!r})"

    def _call_text(self) -> str:
        parts = [_short(arg, self) for arg in self._args]
        parts += [f"{name}={_short(value, self)}" for name, value in (self._kwargs or {}).items()]
        return f"{self.callable_name}({', '.join(parts)})"

    @property
    def ref(self) -> JobRef:
        """The identity of a job that was put; raises `JobNotFoundError` before."""
        return JobRef.of(self)

    # What is called.

    @property
    def callable(self) -> Callable[..., Any]:
        """What is called; raises `CallableNotFoundError` where it is not to be had."""
        return names.callable_of(self._callable)

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
        self._set_arguments(list(value), dict(self._kwargs or {}))

    @property
    def kwargs(self) -> KeywordArguments:
        """The keyword arguments, a mapping that can be changed like `args`."""
        return KeywordArguments(self)

    @kwargs.setter
    def kwargs(self, value: Any) -> None:
        self._set_arguments(list(self._args), dict(value))

    def _set_arguments(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        self._require("changing its arguments", Status.NEW, Status.PENDING, Status.ASSIGNED)
        limit = None
        if self._p_jar is not None:
            limit = environment(self._p_jar.db()).argument_limit_bytes
        check_arguments(args, kwargs, limit)
        # One that is in the record may be removed, one that was never set need not be.
        if args or self._args:
            self._args = args
        if kwargs or self._kwargs:
            self._kwargs = kwargs

    def check_storable(self, limit_bytes: int | None = None) -> None:
        """Raise `NotStorableError` where the callable or an argument cannot be stored."""
        stored = self._callable
        if isinstance(stored, tuple) and "<" in type(stored[0]).__qualname__:
            raise NotStorableError(
                f"{self!r}: the class of its object lies inside a function, so no other "
                "process could find it: move it to the top of its module"
            )
        check_arguments(self._args, self._kwargs or {}, limit_bytes)

    # Where it is, and what became of it.

    @property
    def status(self) -> Status:
        """Where the job is in its life, as this connection's transaction sees it."""
        status = Status(self._status_name)
        if status is Status.NEW and self._agent is not None:
            return Status.ASSIGNED
        if status is Status.NEW and self._queue is not None:
            return Status.PENDING
        return status

    def _require(self, what: str, *allowed: Status) -> None:
        status = self.status
        if status not in allowed:
            names_allowed = " or ".join(status.name for status in allowed)
            raise BadStatusError(f"{self!r} is {status.name}; {what} needs {names_allowed}")

    def _move(self, arrow: str) -> None:
        """Follow an arrow of the table; raises `BadStatusError` where it does not start."""
        move = ARROWS[arrow]
        self._require(f"'{move.name}' ({move.why})", *move.sources)
        stored = move.target
        if stored in (Status.PENDING, Status.ASSIGNED):
            stored = Status.NEW
        if self._status_name != stored.value:
            self._status_name = stored.value

    @property
    def result(self) -> Any:
        """What the callable returned, or a `Failure`; None until it is stored."""
        return self._result

    @property
    def queue(self) -> Queue | None:
        """The queue that the job was put into, or that its parent was."""
        if self._queue is None and self._parent is not None:
            return self._parent.queue
        return self._queue

    @property
    def agent(self) -> Agent | None:
        """The agent that has the job, or had it when it was done."""
        if self._agent is None and self._parent is not None:
            return self._parent.agent
        return self._agent

    @property
    def parent(self) -> Job | None:
        """The job that this one is a callback of, or None."""
        return self._parent

    @property
    def forgotten(self) -> bool:
        """Whether the job was done and the time for which it is kept is over."""
        if self._parent is not None and self._queue is None:
            return self._parent.forgotten
        if self.status is not Status.COMPLETED or self._agent is None:
            return False
        return not self._agent.keeps(self)

    # When.

    @property
    def begin_after(self) -> datetime.datetime | None:
        """The moment from which the job may begin (aware; in UTC); settable in NEW."""
        return None if self._begin_after is None else moment(self._begin_after)

    @begin_after.setter
    def begin_after(self, value: datetime.datetime | None) -> None:
        self._require("setting begin_after", Status.NEW)
        checked = None if value is None else checked_moment("begin_after", value)
        self._begin_after = None if checked is None else microseconds(checked)

    @property
    def begin_by(self) -> timedelta | None:
        """How long after `begin_after` the job may begin at the latest; None: no limit.

        Settable in NEW and PENDING.
        """
        return None if self._begin_by is None else timedelta(microseconds=self._begin_by)

    @begin_by.setter
    def begin_by(self, value: timedelta | None) -> None:
        stored = None if value is None else checked_duration("begin_by", value) // _MICROSECOND
        self._set_waiting("begin_by", "_begin_by", stored)

    @property
    def deadline(self) -> datetime.datetime | None:
        """The moment after which the job is failed instead of begun, or None.

        A callback without a `begin_after` counts from the end of its parent's call.
        """
        if self._begin_by is None:
            return None
        start = self._begin_after
        if start is None and self._parent is not None:
            start = self._parent._active_end
        return None if start is None else moment(start + self._begin_by)

    @property
    def active_start(self) -> datetime.datetime | None:
        """When it was stored that the call may have begun."""
        return None if self._active_start is None else moment(self._active_start)

    @property
    def active_end(self) -> datetime.datetime | None:
        """When the result was stored."""
        return None if self._active_end is None else moment(self._active_end)

    @property
    def callbacks_end(self) -> datetime.datetime | None:
        """When the job was COMPLETED."""
        return None if self._callbacks_end is None else moment(self._callbacks_end)

    # How.

    @property
    def quota_names(self) -> tuple[str, ...]:
        """The quotas that it needs a place of; settable in NEW and PENDING."""
        return self._quota_names

    @quota_names.setter
    def quota_names(self, value: tuple[str, ...]) -> None:
        if isinstance(value, (str, bytes)):
            raise TypeError(f"quota_names must be a tuple of names, not the text {value!r}")
        checked = tuple(value)
        for name in checked:
            if not isinstance(name, str):
                raise TypeError(f"the name of a quota is a text, not {name!r}")
        if self._queue is not None and self.status is Status.PENDING:
            unknown = [name for name in checked if name not in self._queue.quotas]
            if unknown:
                raise UnknownSettingError(
                    f"{self._queue!r} has no quotas {unknown}: create them first"
                )
        self._set_waiting("quota_names", "_quota_names", checked)

    def _set_waiting(self, what: str, attribute: str, value: Any) -> None:
        """Set what decides when a job is claimed; one that waits is sorted anew."""
        self._require(f"setting {what}", Status.NEW, Status.PENDING)
        if self.status is Status.PENDING and self._queue is not None:
            with self._queue._changing(self):
                setattr(self, attribute, value)
        else:
            setattr(self, attribute, value)

    @property
    def failure_log_level(self) -> int | None:
        """The level at which a failure is logged; None: ERROR, for a callback CRITICAL."""
        return self._failure_log_level

    @failure_log_level.setter
    def failure_log_level(self, value: int | None) -> None:
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise TypeError(f"failure_log_level must be a level of logging, not {value!r}")
        self._failure_log_level = value

    @property
    def retry_policy_factory(self) -> PolicyFactory | str | None:
        """What makes the job's retry policy: a factory, a registered name, or None.

        None means the one registered under ``""`` (for callbacks: ``"callback"``), else
        `RetryCommonFourTimes` (`RetryCommonForever`).
        """
        stored = self._retry_policy_factory
        if stored is None or stored.startswith("@"):
            return stored and stored[1:]
        factory: PolicyFactory = names.resolve(stored)
        return factory

    @retry_policy_factory.setter
    def retry_policy_factory(self, value: PolicyFactory | str | None) -> None:
        if value is None:
            self._retry_policy_factory = None
        elif isinstance(value, str):
            if registered_retry_policy(value) is None:
                raise UnknownSettingError(
                    f"no retry policy is registered under {value!r} in this process: call "
                    "perdure.model.register_retry_policy first"
                )
            self._retry_policy_factory = "@" + value
        elif callable(value):
            self._retry_policy_factory = names.name_of(value)
        else:
            raise TypeError(
                f"retry_policy_factory must be a factory or a registered name, not {value!r}"
            )

    def get_retry_policy(self) -> RetryPolicy:
        """Return the job's policy, made at the first call and kept from then on.

        Raises what its factory raises, `CallableNotFoundError` where that is not found.
        """
        if self._policy is None:
            stored = self._retry_policy_factory
            factory: PolicyFactory | None
            if stored is None:
                is_callback = self._parent is not None
                factory = registered_retry_policy("callback" if is_callback else "")
                if factory is None:
                    factory = RetryCommonForever if is_callback else RetryCommonFourTimes
            elif stored.startswith("@"):
                factory = registered_retry_policy(stored[1:])
                if factory is None:
                    raise UnknownSettingError(
                        f"no retry policy is registered under {stored[1:]!r} in this process"
                    )
            else:
                factory = names.resolve(stored)
            self._policy = factory(self)
        return self._policy

    @property
    def transactional(self) -> bool:
        """Whether all effects of the job are in its transaction.

        That makes running it again harmless; it is recorded with the job, for its
        dispatcher to use.
        """
        return bool(self._transactional)

    @transactional.setter
    def transactional(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"transactional must be True or False, not {value!r}")
        self._require("setting transactional", Status.NEW)
        self._transactional = value or None

    @property
    def annotations(self) -> Annotations:
        """A mapping for the application's use, also while the job runs."""
        return Annotations(self)

    # Hooks for subclasses.

    def set_up(self) -> Any:
        """Run right before the callable; what it returns is given to `tear_down`."""
        return None

    def tear_down(self, info: Any) -> None:
        """Run after the commit or the abort of each attempt."""

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
        for name, value in (
            ("begin_by", begin_by),
            ("failure_log_level", failure_log_level),
            ("retry_policy_factory", retry_policy_factory),
        ):
            if value is not None:
                setattr(job, name, value)
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

        proxy = CallbackProxy(
            success,
            failure,
            failure_log_level=failure_log_level,
            retry_policy_factory=retry_policy_factory,
        )
        self._add(proxy)
        return proxy

    def _add(self, job: Job) -> None:
        ancestor: Job | None = self
        while ancestor is not None:
            if ancestor is job:
                raise BadStatusError(f"{job!r} cannot be a callback of itself")
            ancestor = ancestor._parent
        if job.status is not Status.NEW or job._parent is not None:
            raise BadStatusError(
                f"{job!r} is {job.status.name}"
                + (" and a callback already" if job._parent is not None else "")
                + "; only a NEW job that nobody else runs can be a callback"
            )
        if self.status is Status.COMPLETED:
            self._add_late(job)
            return
        job._parent = self
        if self._is_ours():
            if self._callbacks is None:
                self._callbacks = []
            self._callbacks.append(job)
            self._p_changed = True
            return
        queue = self.queue
        assert queue is not None
        # Two readings of the status cannot both win: see the record of this job again
        # at the commit.
        self._p_jar.readCurrent(self)
        queue.side.make(self).add_callback(job)

    def _add_late(self, job: Job) -> None:
        queue = self.queue
        if queue is None:
            raise BadStatusError(
                f"{self!r} is COMPLETED and was in no queue: call the callback with its result"
            )
        job.check_storable()
        job._parent = self
        queue._enter(job, "put", due=clock_of(queue).now())

    def _is_ours(self) -> bool:
        """Tell whether this transaction may write the job's record."""
        from perdure.model.local import is_running

        if self._p_jar is None or self._p_serial == z64 or self.queue is None:
            return True
        return is_running(self)

    def _side(self) -> SideRecord | None:
        if self._p_oid is None:
            return None
        queue = self.queue
        return None if queue is None else queue.side.get(self)

    # Moving: one method for each arrow, called by queue, agent and runner.

    def _enter(
        self,
        queue: Queue,
        arrow: str,
        *,
        due: datetime.datetime | None,
        stamp: int,
        first: bool,
        keeps_places: bool,
    ) -> None:
        now = microseconds(environment(queue._p_jar.db()).clock.now())
        if arrow in ("give back", "reschedule"):
            self._require(f"'{arrow}'", *ARROWS[arrow].sources)
            self._agent = None
        else:
            self._move(arrow)
        self._status_name = Status.NEW.value
        self._queue = queue
        self._stamp = stamp
        if self._active_start is not None:
            self._active_start = None
        if due is not None:
            self._begin_after = microseconds(due)
        elif self._begin_after is None:
            self._begin_after = now
        late = self._begin_after < now
        if late or self._due is not None:
            self._due = now if late else None
        if first or self._first:
            self._first = first
        if keeps_places or self._keeps_places:
            self._keeps_places = keeps_places

    def _claimed_from_queue(self) -> None:
        """Clear the link to the job put before, so that it keeps nothing alive."""
        if self._previous is not None:
            self._previous = None

    def _assign(self, agent: Agent) -> None:
        self._move("claim")
        self._agent = agent
        self._claim += 1
        if self._keeps_places:
            self._keeps_places = False

    def _taken_out(self) -> None:
        self._move("take out")
        self._queue = None
        self._previous = None
        self._first = False
        self._keeps_places = False

    def _begin(self) -> None:
        self._move("begin")
        self._active_start = microseconds(clock_of(self).now())

    def _renew(self) -> None:
        self._move("renew")
        self._active_start = None

    def _end(self, result: Any, arrow: str = "end") -> None:
        """Store the result; the job is COMPLETED at once where nothing awaits it."""
        self._move(arrow)
        self._result = result
        self._active_end = microseconds(clock_of(self).now())

    def _complete(self) -> None:
        self._move("complete")
        self._callbacks_end = microseconds(clock_of(self).now())

    def _lose(self) -> None:
        """Take the job from its worker: nothing that one has under way can be committed."""
        self._agent = None
        self._claim += 1
        self._p_changed = True

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
        from perdure.model.running import run_by_hand

        self._require("calling it", Status.NEW, Status.ASSIGNED)
        return run_by_hand(self, args, kwargs, commit=commit)

    def fail(self, error: BaseException | None = None, *, commit: bool = False) -> None:
        """End a job that has not begun, with a failure (default: `JobTimeoutError`).

        Needs NEW, PENDING or ASSIGNED; in CALLBACKS it resumes the callbacks. A job of a
        queue is ended in the caller's transaction, and its callbacks are then run by the
        queue's agents; for any other they are run here, as by calling it.
        """
        from perdure.model.running import fail_by_hand

        self._require(
            "failing it", Status.NEW, Status.PENDING, Status.ASSIGNED, Status.CALLBACKS
        )
        fail_by_hand(self, error, commit=commit)

    def handle_interrupt(self, *, commit: bool = False) -> None:
        """Put an ACTIVE job, that nobody runs any more, to its policy as interrupted.

        In CALLBACKS the callbacks are resumed. Commits, as calling the job does.
        """
        from perdure.model.running import resume_by_hand

        self._require("handling an interruption", Status.ACTIVE, Status.CALLBACKS)
        resume_by_hand(self, commit=commit)

    def resume_callbacks(self, *, commit: bool = False) -> None:
        """Run the callbacks that were not run, after an interruption in CALLBACKS.

        Commits, as calling the job does. Raises `BadStatusError` in any other status.
        """
        from perdure.model.running import resume_by_hand

        self._require("resuming its callbacks", Status.CALLBACKS)
        resume_by_hand(self, commit=commit)

    def descendants(self) -> Iterator[Job]:
        """Return the callbacks, theirs, and so on."""
        for job in self.callbacks:
            yield job
            yield from job.descendants()

    @property
    def failed(self) -> bool:
        """Whether the result is a `Failure`."""
        return isinstance(self._result, Failure)


def as_job(item: Any) -> Job:
    """Return `item` if it is a job, else a job that calls it."""
    return item if isinstance(item, Job) else Job(item)


def _short(value: Any, job: Job) -> str:
    if value is job:
        return "<this job>"
    try:
        text = repr(value)
    # A repr in a repr must not raise.
    except Exception:
        text = f"<{type(value).__qualname__} that has no repr>"
    return text if len(text) <= 80 else text[:77] + "..."
