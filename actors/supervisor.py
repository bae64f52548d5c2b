"""The supervisor: owns the tree, and answers questions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import socket
from datetime import timedelta
from typing import Any

from perdure.actors.agent import AgentActor
from perdure.actors.base import Actor, handles
from perdure.actors.context import Context, agent_role
from perdure.actors.dispatcher import DispatcherActor
from perdure.actors.heartbeat import HeartbeatActor
from perdure.actors.history import History
from perdure.actors.messages import (
    ActiveJobsAsked,
    ActorCrashed,
    ActorGivenUp,
    AgentJoined,
    AgentLeft,
    JobAsked,
    JobEnded,
    JobReport,
    JobStarted,
    PollDone,
    PollsAsked,
    Statistics,
    StatisticsAsked,
    StatusAsked,
    StatusReport,
    StopTree,
    Subscribe,
    SystemState,
    UnknownMessageTold,
    Unsubscribe,
)
from perdure.actors.subscriptions import Subscriptions
from perdure.model.logs import fields

__all__ = ["SupervisorActor"]

POLLS_MISSED = 3


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version("perdure")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


class SupervisorActor(Actor):
    """Starts the dispatcher, the heartbeat and an actor for each agent; knows how they are.

    An actor that falls restarts in place; one that does so too often is given up, and
    makes the system's status say so from then on.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context, name="supervisor")
        self.log_fields = fields(dispatcher=str(context.uuid))
        self._context = context
        self._history = History(context.board)
        self._begun_monotonic = context.clock.monotonic()
        self._last_poll_monotonic: float | None = None
        self._crash_count = 0
        self._degraded: list[str] = []
        self._children: dict[str, Any] = {}
        self._leaving: list[Any] = []
        self._subscriptions = Subscriptions(context.database)
        # Before it begins, so that it hears of a crash in that.
        context.directory.set("supervisor", self.actor_ref)

    def on_start(self) -> None:
        """Start the tree; what is there already stays."""
        context = self._context
        for role, kind in (("dispatcher", DispatcherActor), ("heartbeat", HeartbeatActor)):
            if role not in self._children:
                self._add(role, kind.start(context))
                # There even before it has begun, for whoever asks or stops right away.
                context.directory.set(role, self._children[role])

    def on_stop(self) -> None:
        """Let nobody be told of events any more."""
        self._subscriptions.end_all()

    # The tree.

    def _add(self, role: str, ref: Any) -> None:
        """Note a child."""
        self._children[role] = ref
        self._context.directory.started(ref)

    @handles(StopTree)
    def _stop_tree(self, message: StopTree) -> None:
        for ref in [*self._children.values(), *self._leaving]:
            ref.stop(block=False)

    @handles(AgentJoined)
    def _agent_joined(self, message: AgentJoined) -> None:
        role = agent_role(message.queue, message.agent)
        if role in self._children:
            self._children[role].tell(message)
        else:
            context = self._context
            self._add(role, AgentActor.start(context, message.queue, message.agent, message.size))

    @handles(AgentLeft)
    def _agent_left(self, message: AgentLeft) -> None:
        role = agent_role(message.queue, message.agent)
        ref = self._children.pop(role, None)
        if ref is not None:
            self._context.directory.set(role, None)
            ref.stop(block=False)
            self._leaving = [other for other in self._leaving if not other.has_ended] + [ref]

    @handles(ActorCrashed)
    def _crashed(self, message: ActorCrashed) -> None:
        self._crash_count += 1

    @handles(ActorGivenUp)
    def _given_up_by(self, message: ActorGivenUp) -> None:
        self._degraded.append(f"{message.actor_name}: {message.reason_text}")
        # Where nobody claims and settles any more, others must be able to take over.
        if message.actor_name == "dispatcher" and "heartbeat" in self._children:
            self._children["heartbeat"].stop(block=False)

    @handles(UnknownMessageTold)
    def _unknown_told(self, message: UnknownMessageTold) -> None:
        """It was logged by the actor that was told."""

    # Events.

    @handles(Subscribe)
    def _subscribe(self, message: Subscribe) -> None:
        self._subscriptions.begin(message.actor, message.kinds)

    @handles(Unsubscribe)
    def _unsubscribe(self, message: Unsubscribe) -> None:
        self._subscriptions.end(message.actor)

    # History and questions.

    @handles(JobStarted)
    def _started(self, message: JobStarted) -> None:
        self._history.started(message)

    @handles(JobEnded)
    def _ended(self, message: JobEnded) -> None:
        self._history.ended(message)

    @handles(PollDone)
    def _polled(self, message: PollDone) -> None:
        self._last_poll_monotonic = self._clock.monotonic()
        self._history.polled(message)

    @handles(StatusAsked)
    def _status(self, message: StatusAsked) -> StatusReport:
        now = self._clock.monotonic()
        last = self._last_poll_monotonic
        since = None if last is None else now - last
        interval = self._context.settings.poll_interval.total_seconds()
        if self._context.stop.is_set():
            state = SystemState.STOPPED
        elif since is None:
            state = SystemState.STARTING
        elif since > POLLS_MISSED * interval:
            state = SystemState.STUCK
        else:
            state = SystemState.RUNNING
        return StatusReport(
            state=state,
            uuid=self._context.uuid,
            uptime=timedelta(seconds=now - self._begun_monotonic),
            since_last_poll=None if since is None else timedelta(seconds=since),
            active_jobs=len(self._history.active()),
            degraded=tuple(self._degraded),
            crashes=self._crash_count,
            queues=self._history.last_queues,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=_version(),
        )

    @handles(ActiveJobsAsked)
    def _active_jobs(self, message: ActiveJobsAsked) -> tuple[JobReport, ...]:
        return self._history.active()

    @handles(JobAsked)
    def _job(self, message: JobAsked) -> JobReport | None:
        return self._history.job(message.ref)

    @handles(PollsAsked)
    def _polls(self, message: PollsAsked) -> tuple[PollDone, ...]:
        return self._history.polls(message.since, message.until)

    @handles(StatisticsAsked)
    def _statistics(self, message: StatisticsAsked) -> Statistics:
        return self._history.statistics(message.since, message.until)
