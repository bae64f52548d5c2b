"""Perdure's actors: what runs the jobs of a database in this process."""

if __name__ != "perdure.actors":
    raise ImportError(
        f"this is perdure.actors, imported as {__name__}: install the project and import it as "
        "perdure.actors"
    )

from perdure.actors.agent import AgentActor
from perdure.actors.asking import ProcessAddress, active_processes, ask_process
from perdure.actors.dispatcher import DispatcherActor
from perdure.actors.messages import (
    ActiveJobsAsked,
    AgentPoll,
    CancelJob,
    JobAsked,
    JobReport,
    PauseQueue,
    PollDone,
    PollNow,
    PollsAsked,
    QueuePoll,
    Resize,
    ResumeQueue,
    RetryJob,
    Statistics,
    StatisticsAsked,
    StatusAsked,
    StatusReport,
    Subscribe,
    SystemState,
    Unsubscribe,
)
from perdure.actors.supervisor import SupervisorActor
from perdure.actors.system import ActorSystem, start
from perdure.actors.worker import WorkerActor

__all__ = [
    "ActiveJobsAsked",
    "ActorSystem",
    "AgentActor",
    "AgentPoll",
    "CancelJob",
    "DispatcherActor",
    "JobAsked",
    "JobReport",
    "PauseQueue",
    "PollDone",
    "PollNow",
    "PollsAsked",
    "ProcessAddress",
    "QueuePoll",
    "Resize",
    "ResumeQueue",
    "RetryJob",
    "Statistics",
    "StatisticsAsked",
    "StatusAsked",
    "StatusReport",
    "Subscribe",
    "SupervisorActor",
    "SystemState",
    "Unsubscribe",
    "WorkerActor",
    "active_processes",
    "ask_process",
    "start",
]
