"""What is stored of a job: where it is in its life, when and how it is to be run.

Everything that moves a job from one status to another is here, along the arrows of the
table in `status`.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from perdure.model import names
from perdure.model.aliases import current_name
from perdure.model.compact import numbered, packed, unpacked
from perdure.model.environment import clock_of, environment
from perdure.model.errors import BadStatusError, UnknownSettingError
from perdure.model.failure import Failure
from perdure.model.given import checked_name
from perdure.model.guarded import Guarded
from perdure.model.happenings import announce_failed
from perdure.model.moments import Duration, checked_duration, checked_moment, microseconds, moment
from perdure.model.policy import (
    RetryCommonForever,
    RetryCommonFourTimes,
    RetryPolicy,
    registered_retry_policy,
)
from perdure.model.ref import job_class
from perdure.model.side import SideRecord
from perdure.model.status import ARROWS, Status

if TYPE_CHECKING:
    from perdure.model.agent import Agent
    from perdure.model.job import Job
    from perdure.model.policy import PolicyFactory
    from perdure.model.queue import Queue

__all__ = ["JobRecord"]

_MICROSECOND = timedelta(microseconds=1)
_STATUSES = {status.value: status for status in Status}
# An enumeration's value is asked for by a call.
_NEW, _ACTIVE = Status.NEW.value, Status.ACTIVE.value
_CALLBACKS, _COMPLETED = Status.CALLBACKS.value, Status.COMPLETED.value

SUSPECT_AFTER = 2
"""How many processes end under a job before it is suspect."""


class JobRecord(Guarded):
    """The states, the moments and the settings of a job; see `perdure.model.Job`."""

    # What is not set is not stored: these are the defaults.
    _status_name = _NEW
    _args: tuple[Any, ...] | list[Any] = ()
    _kwargs: dict[str, Any] | None = None
    _result: Any = None
    _queue: Queue | None = None
    _agent: Agent | None = None
    _claim = 0
    _deaths = 0
    _parent: Job | None = None
    _root: Job | None = None
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
    _own_side: SideRecord | None = None
    _waits_for: tuple[Job, ...] = ()
    _futures = 0
    """How many attempts have committed something and returned a future."""
    _transactional: bool | None = None
    _alone = False
    """Whether it is not to be run in a group any more."""
    _owns_result = True
    """Whether its result is its own, and not passed on from another job; not stored."""
    keep_completed = Duration()
    keep_failed = Duration()

    @property
    def suspect(self) -> bool:
        """Whether several processes have ended, unasked, while they ran this job.

        It may be what ended them, or may merely have been beside it. Such a job is not run
        beside another one by a dispatcher, so that those that are harmless end.
        """
        return self._deaths >= SUSPECT_AFTER

    def __getstate__(self) -> Any:
        """Return what is stored: a mapping, unless the class is `Job` itself."""
        state = super().__getstate__()
        return packed(state) if type(self) is job_class() else numbered(state)

    def __setstate__(self, state: Any) -> None:
        """Take what is stored; raises `BadStatusError` for a status that is not known here.

        Such a job counts as one whose record cannot be read in this process: it keeps its place,
        is told of, and is left to a process that can.
        """
        try:
            state = unpacked(state)
        except (TypeError, ValueError) as error:
            raise BadStatusError(
                f"its state is of a form that this version of Perdure does not know ({error}): "
                "run it with the version that has stored it"
            ) from error
        name = state.get("_status_name", _NEW)
        if name not in _STATUSES:
            raise BadStatusError(
                f"its status is {name!r}, which this version of Perdure does not know: run it "
                "with the version that has stored it"
            )
        super().__setstate__(state)

    # Where it is, and what became of it.

    @property
    def status(self) -> Status:
        """Where the job is in its life, as this connection's transaction sees it.

        A transaction sees the moment at which it began; begin another to see what is new.
        """
        status = _STATUSES[self._status_name]
        if status is not Status.NEW:
            return status
        if self._agent is not None:
            return Status.ASSIGNED
        if self._queue is not None:
            return Status.PENDING if self._group_agent() is None else Status.ASSIGNED
        return status

    # Claims. One for a group is not written into the job's record: that it was claimed stands
    # with the agent alone, under the negative of the number that the claim has once it is
    # written, which is with the first thing that becomes of the job.

    def _group_agent(self) -> Agent | None:
        """Return the agent that has claimed it for a group, as long as no more is written."""
        if self._p_jar is None or self._p_oid is None:
            return None
        queue = self._queue
        assert queue is not None
        number = -(self._claim + 1)
        for record in queue.dispatchers.records():
            for agent in record.agents():
                if agent._number_of(self._p_oid) == number:
                    return agent
        return None

    def _claimed_by(self) -> tuple[Agent | None, int]:
        """Return the agent that has it, and the number of the claim."""
        if self._agent is None and self.status is Status.ASSIGNED:
            return self._group_agent(), -(self._claim + 1)
        return self._agent, self._claim

    def _is_held(self, agent: Agent | None, number: int) -> bool:
        """Tell whether it is still `agent` that has it, by the claim of that number."""
        if self._claim == abs(number):
            return self._agent is agent
        return self._claim == -number - 1 and self._is_unwritten(agent)

    def _has_late_callbacks(self) -> bool:
        assert self._queue is not None
        record = self._queue.side.get(cast("Job", self)) if self._queue.side else None
        return record is not None and bool(record.callbacks)

    def _is_unbegun(self, number: int) -> bool:
        """Tell whether it was claimed for a group by that number, and not begun since."""
        return number < 0 and self._claim == -number - 1 and self._is_unwritten(None)

    def _was_given(self, number: int) -> bool:
        """Tell whether it is by the claim of that number that an agent has it."""
        return self._agent is not None and self._claim == abs(number)

    def _is_unwritten(self, agent: Agent | None) -> bool:
        """Tell whether nothing was written since it was put, so that a claim may be unwritten."""
        if self._agent is not None or self._status_name != _NEW:
            return False
        return self._queue is not None and (agent is None or agent.queue is self._queue)

    def _write_claim(self) -> None:
        """Write the claim for a group, as one for itself is written at once."""
        agent, number = self._claimed_by()
        if number < 0:
            self._agent, self._claim = agent, -number

    def _require(self, what: str, *allowed: Status) -> None:
        status = self.status
        if status not in allowed:
            names_allowed = " or ".join(status.name for status in allowed)
            raise BadStatusError(f"{self!r} is {status.name}; {what} needs {names_allowed}")

    def _move(self, arrow: str) -> None:
        """Follow an arrow of the table; raises `BadStatusError` where it does not start."""
        move = ARROWS[arrow]
        self._require(f"'{move.name}' ({move.why})", *move.sources)
        if self._agent is None and Status.ASSIGNED in move.sources and self._queue is not None:
            self._write_claim()
        stored = move.target
        if stored in (Status.PENDING, Status.ASSIGNED):
            stored = Status.NEW
        if self._status_name != stored.value:
            self._status_name = stored.value

    @property
    def result(self) -> Any:
        """What the callable returned, or a `Failure`; None until it is stored.

        Read-only, like `status`.
        """
        return self._result

    @property
    def queue(self) -> Queue | None:
        """The queue that the job was put into, or that its parent was."""
        job: JobRecord = self
        # A loop, since chains of callbacks may be long.
        while job._queue is None and job._parent is not None:
            job = job._root or job._parent
        return job._queue

    @property
    def agent(self) -> Agent | None:
        """The agent that has the job, or had it when it was done."""
        job: JobRecord = self
        while job._agent is None and job._parent is not None:
            job = job._root or job._parent
        return job._claimed_by()[0] if job._agent is None else job._agent

    @property
    def parent(self) -> Job | None:
        """The job that this one is a callback of, or None."""
        return self._parent

    @property
    def told_by(self) -> Job | None:
        """The job whose result a callback is called with, or None."""
        return None if self._parent is None else self._parent._speaks_to(self)

    def _speaks_to(self, child: JobRecord) -> Job | None:
        return cast("Job", self)

    @property
    def forgotten(self) -> bool:
        """Whether the job was done and the time for which it is kept is over."""
        job: JobRecord = self
        while job._parent is not None and job._queue is None:
            job = job._root or job._parent
        if job.status is not Status.COMPLETED or job._agent is None:
            return False
        return not job._agent.keeps(cast("Job", job))

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
        if start is None and (told_by := self.told_by) is not None:
            start = told_by._active_end
        return None if start is None else moment(start + self._begin_by)

    @property
    def active_start(self) -> datetime.datetime | None:
        """When it was stored that the call may have begun (aware, in UTC), or None.

        None again when the job waits once more, after a reschedule or an interruption.
        """
        return None if self._active_start is None else moment(self._active_start)

    @property
    def active_end(self) -> datetime.datetime | None:
        """When the result was stored (aware, in UTC), by `fail` too; or None."""
        return None if self._active_end is None else moment(self._active_end)

    @property
    def callbacks_end(self) -> datetime.datetime | None:
        """When the job became COMPLETED (aware, in UTC), or None."""
        return None if self._callbacks_end is None else moment(self._callbacks_end)

    # How.

    @property
    def quota_names(self) -> tuple[str, ...]:
        """The quotas that it needs a place of, all or none; settable in NEW and PENDING.

        A plain text raises `TypeError`, a quota that its queue does not know `ValueError`
        (when the job is put, or set while it waits).
        """
        return self._quota_names

    @quota_names.setter
    def quota_names(self, value: tuple[str, ...]) -> None:
        if isinstance(value, (str, bytes)):
            raise TypeError(f"quota_names must be a tuple of names, not the text {value!r}")
        if not isinstance(value, Iterable):
            raise TypeError(f"quota_names must be a tuple of names, not {value!r}")
        checked = tuple(checked_name("a quota", name) for name in value)
        if self._queue is not None and self.status is Status.PENDING:
            unknown = [name for name in checked if name not in self._queue.quotas]
            if unknown:
                raise UnknownSettingError(
                    f"{self._queue!r} has no quotas {unknown}: create them first"
                )
        self._set_waiting("quota_names", "_quota_names", checked)

    def _set_waiting(self, what: str, attribute: str, value: Any) -> None:
        self._require(f"setting {what}", Status.NEW, Status.PENDING)
        with self._sorted_anew():
            setattr(self, attribute, value)

    def _sorted_anew(self) -> AbstractContextManager[None]:
        """Change what decides when, and by which agent, a job that waits is claimed."""
        if self.status is Status.PENDING and self._queue is not None:
            return self._queue._changing(cast("Job", self))
        return nullcontext()

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
        factory: PolicyFactory = names.resolve(current_name(self, stored))
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
                factory = names.resolve(current_name(self, stored))
            self._policy = factory(cast("Job", self))
        return self._policy

    @property
    def transactional(self) -> bool | None:
        """Whether all effects of the job are in its transaction; None: as others say.

        That makes running it again harmless, so that it may be run in a group with others:
        see `perdure.model.transactional`. Where the job does not say, its callable does, by
        that decorator, else the agent that claims it, else its queue. Settable in NEW.
        """
        return self._transactional

    @transactional.setter
    def transactional(self, value: bool | None) -> None:
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"transactional must be True, False or None, not {value!r}")
        self._require("setting transactional", Status.NEW)
        self._transactional = value

    @property
    def failed(self) -> bool:
        """Whether the result is a `Failure`."""
        return isinstance(self._result, Failure)

    def _set_all(self, **settings: Any) -> None:
        """Set what is not None; where one is refused, none of them is set."""
        given = {name: value for name, value in settings.items() if value is not None}
        if not given:
            return
        before = self.__getstate__()
        try:
            for name, value in given.items():
                setattr(self, name, value)
        except (TypeError, ValueError):
            self.__setstate__(before)
            raise

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
        if arrow in ("give back", "reschedule", "retry"):
            self._require(f"'{arrow}'", *ARROWS[arrow].sources)
            self._agent = None
        else:
            self._move(arrow)
        if self._status_name != _NEW:
            self._status_name = _NEW
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

    def _enter_anew(self, queue: Queue, stamp: int, now: int) -> int:
        """Be put for the first time, as by `_enter`; return when it is due."""
        due = self._begin_after
        self.__dict__.update(_queue=queue, _stamp=stamp)
        if due is None:
            self.__dict__["_begin_after"] = now
        elif due < now:
            self.__dict__["_due"] = now
        return now if due is None or due < now else due

    def _begin_anew(self) -> None:
        """Forget what came of a done job; what it has cost to get there is forgotten, too."""
        self._agent = None
        self._result = None
        self._policy = None
        self._active_start = None
        self._active_end = None
        self._callbacks_end = None
        self._claim += 1
        self._deaths = 0

    def _reopen(self) -> None:
        self._move("reopen")
        self._begin_anew()

    def _claimed_from_queue(self) -> None:
        """Clear the link to the job put before, so that it keeps nothing alive."""
        if self._previous is not None:
            self._previous = None

    def _run_in_group(self, agent: Agent, number: int, now: int) -> None:
        """Be ACTIVE while the call is made in a group, in memory only.

        What is to be stored is stored with the result; the claim says that it may have begun.
        """
        self.__dict__.update(_agent=agent, _claim=-number, _status_name=_ACTIVE, _active_start=now)

    def _begin_in_batch(self, agent: Agent, number: int, now: int) -> None:
        """Claim and begin the job, in the commit of the result of the one before."""
        self._p_activate()
        self.__dict__.pop("_previous", None)
        self.__dict__.update(_agent=agent, _claim=-number, _status_name=_ACTIVE, _active_start=now)
        self._p_changed = True

    def _end_in_group(self, agent: Agent, number: int, began: int, now: int, result: Any) -> None:
        """Claim, begin, end and, where it has no callbacks, complete the job: in one commit."""
        done = not self._callbacks and not self._has_late_callbacks()
        self._p_activate()
        state = self.__dict__
        state.pop("_previous", None)
        state.update(
            _agent=agent,
            _claim=-number,
            _status_name=_COMPLETED if done else _CALLBACKS,
            _active_start=began,
            _active_end=now,
        )
        if result is not None:
            state["_result"] = result
        if done:
            state["_callbacks_end"] = now
        self._p_changed = True

    def _assign(self, agent: Agent) -> None:
        self._move("claim")
        self._agent = agent
        self._claim += 1
        if self._keeps_places:
            self._keeps_places = False

    def _take_over(self, record: SideRecord) -> None:
        """Keep what was added to the job, in its side record, with the job itself."""
        if record.callbacks:
            self._callbacks = [*(self._callbacks or ()), *record.callbacks]
        if record.annotations:
            self._annotations = record.annotations_with(self._annotations)

    def _taken_out(self) -> None:
        self._move("take out")
        self._queue = None
        self._previous = None
        self._first = False
        self._keeps_places = False

    def _begin(self) -> None:
        self._move("begin")
        # One that was claimed for a group or a batch was not written then.
        self._claimed_from_queue()
        self._active_start = microseconds(clock_of(self).now())
        if self._parent is not None and self._queue is None:
            # The way to the queue is short then, from its callbacks too.
            self._root = self._parent._root or self._parent
        if self._p_jar is not None and self._own_side is None and self.queue is None:
            # Run by hand; others can add to it meanwhile, as to a job of a queue.
            self._own_side = SideRecord()

    def _renew(self) -> None:
        self._move("renew")
        self._active_start = None

    def _end(self, result: Any, arrow: str = "end") -> None:
        """Store the result."""
        self._move(arrow)
        if self._previous is not None:
            # It ends without having been claimed, and is to keep nothing alive.
            self._previous = None
        # At once, since this is done so often.
        self.__dict__.update(_result=result, _active_end=microseconds(clock_of(self).now()))
        self._p_changed = True
        if isinstance(result, Failure) and self._owns_result:
            announce_failed(self, result)

    def _complete_if_alone(self) -> None:
        """Complete the job in the commit of its result, where no callback is seen.

        One that is added in this instant is found when the job is settled; a job with a
        side record of its own is not settled by anybody.
        """
        if self._own_side is None and not self.callbacks:
            self._complete()

    def _complete(self) -> None:
        self._move("complete")
        self._callbacks_end = microseconds(clock_of(self).now())

    def _wait(self) -> None:
        """Leave the worker: the jobs that it waits for have it from now on."""
        self._agent = None
        self._claim += 1

    def _lose(self) -> None:
        """Take the job from its worker: nothing that one has under way can be committed."""
        self._agent = None
        self._claim += 1
        self._p_changed = True
