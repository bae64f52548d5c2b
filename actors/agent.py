"""Agents: keep the workers of one queue busy."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from perdure.actors.base import Actor, handles
from perdure.actors.context import Context, agent_role, worker_name
from perdure.actors.messages import (
    AgentJoined,
    AgentReady,
    BatchRan,
    Claimed,
    GroupRan,
    JobLost,
    JobRan,
    JobResumable,
    JobsRan,
    Outcome,
    RunBatch,
    RunGroup,
    RunJob,
    RunJobs,
    WorkerLost,
)
from perdure.actors.worker import WorkerActor
from perdure.model.agent import Completion
from perdure.model.logs import events, fields
from perdure.model.places import BATCHED, GROUPED_PER_PLACE
from perdure.model.ref import JobRef

__all__ = ["AgentActor"]

CLAIMS_REMEMBERED = 1000
LIGHT_WORKERS = 2
"""So many workers at once are made for jobs that take one for an instant only."""
IDLE_KEPT = 8
IDLE_FOR = timedelta(seconds=30)
"""Of the workers that were not needed for so long, so many are kept."""
LONGEST_DELAY_SECONDS = 60
LONGEST_HOLD = timedelta(milliseconds=10)
"""So long at most is the end of one job kept back, to be settled with those of others.

A dispatcher's commit for each of them would slow them all down: they commit to the same storage.
"""


LONGEST_TURN = timedelta(milliseconds=100)
"""Where a worker has been at one job of a batch for so long, the others are not to wait for it.

It may itself wait for one of them.
"""


@dataclass(frozen=True, slots=True)
class _LookAtBatches:
    """See whether the workers that are at a batch get on."""


@dataclass(frozen=True, slots=True)
class _Report:
    """Tell the dispatcher what was run: told to itself, behind what came in first."""


@dataclass(frozen=True, slots=True)
class _ReportHeld:
    """What was held back for the sake of others is to be reported without them."""


@dataclass(frozen=True, slots=True)
class _Delayed:
    """The delay is over with which the loss of this one is reported."""

    claim: Claimed


@dataclass(frozen=True, slots=True)
class _TrimWorkers:
    """Let workers go that were not needed for a while."""


@dataclass(frozen=True, slots=True)
class _PauseOver:
    """The time has come for the retry of this one, which is suspended until then."""

    claim: Claimed


class AgentActor(Actor):
    """Makes workers as they are needed, its agent's size at most; knows what each is doing."""

    def __init__(self, context: Context, queue: str, agent: str, size: int) -> None:
        super().__init__(context, name=agent_role(queue, agent))
        self.log_fields = fields(queue=queue, agent=agent, dispatcher=str(context.uuid))
        self._context = context
        self._queue = queue
        self._agent = agent
        self._size = size
        self._number = 0
        self._workers: dict[str, Any] = {}
        self._idle: deque[str] = deque()
        self._busy: dict[str, tuple[Claimed, ...]] = {}
        self._busy_with_light: set[str] = set()
        self._waiting: deque[Claimed] = deque()
        self._light: deque[Claimed] = deque()
        self._grouped: deque[Claimed] = deque()
        self._batched: deque[Claimed] = deque()
        self._at_batch: dict[str, tuple[int, int | None]] = {}
        """The workers at batches: the key, and how many jobs were left at the last look."""
        self._unbegun: list[Claimed] = []
        self._lasting: list[Claimed] = []
        self._seen_waiting: Claimed | None = None
        """The first one for a batch that found no worker when they were looked at last."""
        self._look_timer: Any = None
        self._turns: deque[Callable[[int], bool]] = deque(
            [self._give_waiting, self._give_batch, self._give_group]
        )
        self._agent_oid = b""
        self._queued: set[Claimed] = set()
        self._trims = False
        self._least_idle = 0
        self._ran: list[Claimed] = []
        self._completed: list[Completion] = []
        # What the dispatcher may send again, because it has not heard yet.
        self._dealt_with: OrderedDict[Claimed, None] = OrderedDict()
        self._report_is_due = False
        self._hold_timer: Any = None
        self._lost: OrderedDict[JobRef, int] = OrderedDict()
        self._held_back: list[Claimed] = []

    def on_start(self) -> None:
        """Go on with what there is to do, and tell what this actor knows."""
        self._report_is_due = False
        self._hold_timer = self._look_timer = None
        self._trims = False
        for claim in self._context.suspensions.of(self.name):
            self._time_pause(claim)
        self._fit()
        if self._ran or self._completed or self._unbegun or self._lasting:
            self._report_soon()
        directory = self._context.directory
        # First of all: the answer may be on its way before whoever made this actor goes on.
        directory.set(self.name, self.actor_ref)
        directory.tell("dispatcher", AgentReady(self._queue, self._agent))
        # What was to end their delay is forgotten.
        for claim in tuple(self._held_back):
            self._report_lost(claim)

    def on_stop(self) -> None:
        """Let every worker end, after the job that it runs."""
        for ref in self._workers.values():
            ref.stop(block=False)

    @handles(AgentJoined)
    def _resize(self, message: AgentJoined) -> None:
        self._size = message.size
        self._fit()

    def _fit(self) -> None:
        self._hand_out()
        self._look_later()
        while len(self._workers) > self._size and self._idle:
            self._dismiss()
        if len(self._idle) > IDLE_KEPT and not self._trims:
            self._trims = True
            self._least_idle = len(self._idle)
            self.tell_later(_TrimWorkers(), IDLE_FOR)

    def _dismiss(self) -> None:
        name = self._idle.popleft()
        self._workers.pop(name).stop(block=False)

    @handles(_TrimWorkers)
    def _trim(self, message: _TrimWorkers) -> None:
        # A thousand jobs that return futures have taken a thousand workers for an instant.
        self._trims = False
        for _ in range(min(self._least_idle, len(self._idle)) - IDLE_KEPT):
            self._dismiss()
        self._fit()

    @handles(RunJobs)
    def _take(self, message: RunJobs) -> None:
        self._agent_oid = message.agent_oid
        busy = {claim for claims in self._busy.values() for claim in claims}
        for claim in message.claims:
            if claim in self._queued or claim in self._dealt_with or claim in busy:
                continue
            # It may have been suspended for an actor of this name that fell and is gone.
            if claim not in self._held_back and not self._context.suspensions.is_waiting(claim):
                self._queue_up(claim)
        self._fit()

    def _queue_up(self, claim: Claimed) -> None:
        if claim.group:
            self._grouped.append(claim)
        elif claim.batch:
            self._batched.append(claim)
        elif self._context.suspensions.is_light(claim):
            self._light.append(claim)
        else:
            self._waiting.append(claim)
        self._queued.add(claim)

    def _deal_with(self, claims: Iterable[Claimed]) -> None:
        for claim in claims:
            self._dealt_with[claim] = None
        while len(self._dealt_with) > CLAIMS_REMEMBERED:
            self._dealt_with.popitem(last=False)

    def _hand_out(self) -> None:
        # What the agent had before it got smaller is run all the same. In turn, where there are
        # several kinds.
        most = max(1, self._size)
        while any(give(most) for give in tuple(self._turns)):
            pass
        # These are done with a worker so soon that few are enough for a thousand of them.
        while self._light:
            few = len(self._busy_with_light) < LIGHT_WORKERS
            name = self._free_worker(most if few else 0)
            if not name:
                break
            self._busy_with_light.add(name)
            claim = self._light.popleft()
            self._give(name, (claim,), RunJob(claim))

    def _free_worker(self, at_most: int) -> str:
        """Return one that is free, a new one where there are fewer than that, or ""."""
        if not self._idle and len(self._workers) < at_most:
            self._number += 1
            worker = WorkerActor.start(self._context, self._queue, self._agent, self._number)
            name = worker_name(self._queue, self._agent, self._number)
            self._workers[name] = worker
            self._context.directory.started(worker)
            self._idle.append(name)
        # The one that was free last: it has in memory what it needs.
        name = self._idle.pop() if self._idle else ""
        self._least_idle = min(self._least_idle, len(self._idle))
        return name

    def _may_begin_group(self) -> bool:
        """Tell whether there is a group to run, and now.

        Calls that are over at once are run by one worker at a time: what they cost is mostly what
        the interpreter does for them, and that is done by one thread at a time anyway.
        """
        if not self._grouped:
            return False
        is_instant = self._context.experience.is_instant
        return not (
            is_instant(self._grouped[0].group)
            and any(
                claims and claims[0].group and is_instant(claims[0].group)
                for claims in self._busy.values()
            )
        )

    def _next_group(self) -> tuple[Claimed, ...]:
        """Return the next of those that may be in a group: a fair share for a worker.

        One that calls what is not known to take an instant only is on its own.
        """
        experience = self._context.experience
        free = len(self._idle) + 1 + max(0, self._size - len(self._workers))
        share = min(GROUPED_PER_PLACE, -(-len(self._grouped) // free))
        if experience.is_instant(self._grouped[0].group):
            share = min(GROUPED_PER_PLACE, len(self._grouped))
        group = [self._grouped.popleft()]
        lasts = experience.with_another(group[0].group, 0)
        while lasts is not None and len(group) < share:
            lasts = experience.with_another(self._grouped[0].group, lasts)
            if lasts is not None:
                group.append(self._grouped.popleft())
        return tuple(group)

    # Each of these gives something to a worker, where there are both; at most so many workers.

    def _give_group(self, most: int) -> bool:
        name = self._free_worker(most) if self._may_begin_group() else ""
        if name:
            claims = self._next_group()
            self._give(name, claims, RunGroup(claims, self._agent_oid), self._give_group)
        return bool(name)

    def _give_batch(self, most: int) -> bool:
        # By one worker at a time, as with groups, as long as it gets on.
        name = self._free_worker(most) if self._batched and not self._at_batch else ""
        if name:
            number = min(BATCHED, len(self._batched))
            claims = tuple(self._batched.popleft() for _ in range(number))
            key = self._context.batches.make(claims)
            self._at_batch[name] = key, None
            self._give(name, claims, RunBatch(self._agent_oid, key), self._give_batch)
        return bool(name)

    def _give_waiting(self, most: int) -> bool:
        name = self._free_worker(most) if self._waiting else ""
        if name:
            claim = self._waiting.popleft()
            self._give(name, (claim,), RunJob(claim), self._give_waiting)
        return bool(name)

    def _give(
        self,
        name: str,
        claims: tuple[Claimed, ...],
        message: object,
        turn: Callable[[int], bool] | None = None,
    ) -> None:
        self._queued.difference_update(claims)
        self._busy[name] = claims
        self._workers[name].tell(message)
        if turn is not None:
            self._turns.remove(turn)
            self._turns.append(turn)

    @handles(JobRan)
    def _free(self, message: JobRan) -> None:
        # A worker of an agent of this name that was removed may still be at work.
        if self._busy.get(message.worker) != (message.claim,):
            return
        del self._busy[message.worker]
        self._busy_with_light.discard(message.worker)
        self._idle.append(message.worker)
        self._take_in(message)
        self._fit()

    @handles(BatchRan)
    def _free_of_batch(self, message: BatchRan) -> None:
        given = self._busy.get(message.worker)
        ran = {each.claim for each in message.ran}
        if given is None or not ran <= set(given):
            return
        if message.goes_on:
            self._busy[message.worker] = tuple(claim for claim in given if claim not in ran)
        else:
            del self._busy[message.worker]
            self._at_batch.pop(message.worker, None)
            self._idle.append(message.worker)
        for each in message.ran:
            self._take_in(each)
        self._fit()

    def _take_in(self, ran: JobRan) -> None:
        """Take note of what became of a job."""
        claim = ran.claim
        if ran.outcome is Outcome.SUSPENDED:
            self._time_pause(claim)
            self._resume_if_ended(claim)
            return
        if ran.outcome is Outcome.DONE:
            self._lost.pop(claim.ref, None)
        if ran.outcome is not Outcome.REASSIGNED:
            self._deal_with([claim])
        # One that was left because the system stops is not to be settled, nor run again.
        if ran.outcome is Outcome.UNBEGUN:
            self._unbegun.append(claim)
            self._report_soon()
        elif ran.completion is not None:
            self._completed.append(ran.completion)
            self._report_soon()
        elif ran.outcome is not Outcome.STOPPED:
            self._ran.append(claim)
            self._report_soon()

    def _look_later(self) -> None:
        if self._look_timer is None and (self._at_batch or self._batched):
            self._look_timer = self.tell_later(_LookAtBatches(), LONGEST_TURN)

    @handles(_LookAtBatches)
    def _look_at_batches(self, message: _LookAtBatches) -> None:
        self._look_timer = None
        batches = self._context.batches
        for name, (key, before) in tuple(self._at_batch.items()):
            left = batches.left(key)
            if left != before or left == len(self._busy[name]):
                self._at_batch[name] = key, left
                continue
            rest = batches.take_rest(key)
            given = self._busy[name]
            self._busy[name] = tuple(claim for claim in given if claim not in rest)
            del self._at_batch[name]
            # The last one is that which it is at.
            lasting = self._busy[name][-1]
            self._context.experience.lasts(lasting.name)
            self._lasting.append(lasting)
            self._leave_to_others(rest)
        self._look_at_waiting()
        self._fit()

    def _look_at_waiting(self) -> None:
        """Leave it to others what is for a batch, and finds no worker here."""
        first = self._batched[0] if self._batched and not self._at_batch else None
        if first is not None and first is self._seen_waiting:
            self._leave_to_others(self._batched)
            self._queued.difference_update(self._batched)
            self._batched.clear()
            first = None
        self._seen_waiting = first

    def _leave_to_others(self, claims: Iterable[Claimed]) -> None:
        self._deal_with(claims)
        self._unbegun += claims
        self._report_soon()

    @handles(GroupRan)
    def _free_of_group(self, message: GroupRan) -> None:
        if message.worker not in self._busy:
            return
        claims = self._busy.pop(message.worker)
        self._idle.append(message.worker)
        again = {*message.alone, *message.rest}
        self._deal_with(c for c in claims if c not in again and c not in message.reassigned)
        self._completed += message.completed
        self._ran += message.reassigned
        for claim in message.alone:
            self._queue_up(dataclasses.replace(claim, group=""))
        # Before those that were claimed later.
        self._grouped.extendleft(reversed(message.rest))
        self._queued.update(message.rest)
        if message.completed or message.reassigned:
            self._report_soon()
        self._fit()

    @handles(JobResumable)
    def _resume(self, message: JobResumable) -> None:
        # While its worker has not told that it left it, it is known; that comes next then.
        claim = message.claim
        at_work = any(claim in claims for claims in self._busy.values())
        if claim not in self._queued and not at_work:
            self._resume_if_ended(claim)
            self._fit()

    def _resume_if_ended(self, claim: Claimed) -> None:
        suspensions = self._context.suspensions
        if suspensions.is_suspended(claim) and not suspensions.is_waiting(claim):
            self._queue_up(dataclasses.replace(claim, batch=False))

    def _time_pause(self, claim: Claimed) -> None:
        seconds = self._context.suspensions.pause_seconds(claim)
        if seconds is not None:
            self.tell_later(_PauseOver(claim), timedelta(seconds=seconds))

    @handles(_PauseOver)
    def _end_pause(self, message: _PauseOver) -> None:
        self._context.suspensions.end_pause(message.claim)
        self._resume(JobResumable(message.claim))

    @handles(WorkerLost)
    def _replace(self, message: WorkerLost) -> None:
        if message.claim not in self._busy.get(message.worker, ()):
            return
        claim = message.claim
        # Told first: what follows may go wrong.
        seconds = self._delay(claim.ref) if message.fault else 0
        self._held_back.append(claim)
        if seconds:
            self.tell_later(_Delayed(claim), timedelta(seconds=seconds))
        else:
            self._report_lost(claim)
        ran = {each.claim for each in message.ran} | {claim}
        others = [other for other in self._busy.pop(message.worker) if other not in ran]
        self._busy_with_light.discard(message.worker)
        self._at_batch.pop(message.worker, None)
        for each in message.ran:
            self._take_in(each)
        self._deal_with([claim])
        del self._workers[message.worker]
        events.error(
            "%s: job %s is interrupted, which is reported in %d s; another worker goes on",
            self.name, claim.ref, seconds,
            extra=fields() | {"job": str(claim.ref)},
        )  # fmt: skip
        for other in others:
            self._queue_up(dataclasses.replace(other, group="", batch=False))
        self._fit()

    def _delay(self, ref: JobRef) -> int:
        """Return for how many seconds a job that was lost to a fault is held back.

        Whatever it is, it will hit the next worker too: not without end at full speed. The
        job keeps its place meanwhile, but the others go on.
        """
        count = self._lost[ref] = self._lost.pop(ref, 0) + 1
        if len(self._lost) > CLAIMS_REMEMBERED:
            self._lost.popitem(last=False)
        return 0 if count == 1 else min(LONGEST_DELAY_SECONDS, 2 ** min(count - 2, 10))

    @handles(_Delayed)
    def _end_delay(self, message: _Delayed) -> None:
        self._report_lost(message.claim)

    def _report_lost(self, claim: Claimed) -> None:
        if claim in self._held_back:
            self._held_back.remove(claim)
            lost = JobLost(self._queue, self._agent, claim)
            self._context.directory.tell("dispatcher", lost)

    def _report_soon(self) -> None:
        if not self._report_is_due:
            self._report_is_due = True
            self.actor_ref.tell(_Report())

    @handles(_Report)
    def _report_ran(self, message: _Report) -> None:
        self._report_is_due = False
        if self._has_others_to_wait_for():
            if self._hold_timer is None:
                self._hold_timer = self.tell_later(_ReportHeld(), LONGEST_HOLD)
        else:
            self._report_now()

    def _has_others_to_wait_for(self) -> bool:
        """Tell whether more jobs are about to end that can be settled with those that have."""
        if self._unbegun or self._lasting or len(self._ran) + len(self._completed) >= self._size:
            return False
        ends_soon = self._context.experience.ends_soon
        firsts = (claims[0] for claims in self._busy.values() if claims)
        return any(claim.name and ends_soon(claim.name) for claim in firsts)

    @handles(_ReportHeld)
    def _report_held(self, message: _ReportHeld) -> None:
        self._report_now()

    def _report_now(self) -> None:
        if self._hold_timer is not None:
            self.cancel_later(self._hold_timer)
            self._hold_timer = None
        ran, self._ran = tuple(self._ran), []
        completed, self._completed = tuple(self._completed), []
        unbegun, self._unbegun = tuple(self._unbegun), []
        lasting, self._lasting = tuple(self._lasting), []
        if ran or completed or unbegun or lasting:
            finished = JobsRan(self._queue, self._agent, ran, completed, unbegun, lasting)
            self._context.directory.tell("dispatcher", finished)
