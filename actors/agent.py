"""Agents: keep the workers of one queue busy."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from perdure.actors.base import Actor, handles
from perdure.actors.context import Context, agent_role, worker_name
from perdure.actors.messages import (
    AgentJoined,
    AgentReady,
    Claimed,
    JobLost,
    JobRan,
    JobsRan,
    Outcome,
    RunJob,
    RunJobs,
    WorkerLost,
)
from perdure.actors.worker import WorkerActor
from perdure.model.logs import events, fields
from perdure.model.ref import JobRef

__all__ = ["AgentActor"]

CLAIMS_REMEMBERED = 1000
LONGEST_DELAY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Report:
    """Tell the dispatcher what was run: told to itself, behind what came in first."""


@dataclass(frozen=True, slots=True)
class _Delayed:
    """The delay is over with which the loss of this one is reported."""

    claim: Claimed


class AgentActor(Actor):
    """Has as many workers as its agent's size says, and knows what each is doing."""

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
        self._busy: dict[str, Claimed] = {}
        self._waiting: deque[Claimed] = deque()
        self._ran: list[Claimed] = []
        # What the dispatcher may send again, because it has not heard yet.
        self._dealt_with: deque[Claimed] = deque(maxlen=CLAIMS_REMEMBERED)
        self._report_is_due = False
        self._lost: OrderedDict[JobRef, int] = OrderedDict()
        self._held_back: list[Claimed] = []

    def on_start(self) -> None:
        """Make the workers that there are too few of, and tell what this actor knows."""
        self._report_is_due = False
        self._fit()
        if self._ran:
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
        while len(self._workers) < self._size:
            self._number += 1
            worker = WorkerActor.start(self._context, self._queue, self._agent, self._number)
            name = worker_name(self._queue, self._agent, self._number)
            self._workers[name] = worker
            self._context.directory.started(worker)
            self._idle.append(name)
        while len(self._workers) > self._size and self._idle:
            name = self._idle.pop()
            self._workers.pop(name).stop(block=False)
        self._hand_out()

    @handles(RunJobs)
    def _take(self, message: RunJobs) -> None:
        known = {*self._waiting, *self._busy.values(), *self._dealt_with, *self._held_back}
        self._waiting += [claim for claim in message.claims if claim not in known]
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            claim = self._waiting.popleft()
            name = self._idle.popleft()
            self._busy[name] = claim
            self._workers[name].tell(RunJob(claim))

    @handles(JobRan)
    def _free(self, message: JobRan) -> None:
        # A worker of an agent of this name that was removed may still be at work.
        if self._busy.get(message.worker) != message.claim:
            return
        claim = self._busy.pop(message.worker)
        self._idle.append(message.worker)
        if message.outcome is Outcome.DONE:
            self._lost.pop(claim.ref, None)
        if message.outcome is not Outcome.REASSIGNED:
            self._dealt_with.append(claim)
        # One that was left because the system stops is not to be settled, nor run again.
        if message.outcome is not Outcome.STOPPED:
            self._ran.append(claim)
            self._report_soon()
        self._fit()

    @handles(WorkerLost)
    def _replace(self, message: WorkerLost) -> None:
        if self._busy.get(message.worker) != message.claim:
            return
        claim = message.claim
        # Told first: what follows may go wrong.
        seconds = self._delay(claim.ref) if message.fault else 0
        self._held_back.append(claim)
        if seconds:
            self.tell_later(_Delayed(claim), timedelta(seconds=seconds))
        else:
            self._report_lost(claim)
        del self._busy[message.worker]
        self._dealt_with.append(claim)
        del self._workers[message.worker]
        events.error(
            "%s: job %s is interrupted, which is reported in %d s; a new worker is made",
            self.name, claim.ref, seconds,
            extra=fields() | {"job": str(claim.ref)},
        )  # fmt: skip
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
        ran, self._ran = tuple(self._ran), []
        if ran:
            self._context.directory.tell("dispatcher", JobsRan(self._queue, self._agent, ran))
