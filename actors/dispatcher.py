"""The dispatcher: the only one in its process that writes a queue's bookkeeping."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from transaction.interfaces import TransientError
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError, POSKeyError
from ZODB.utils import p64, u64

from perdure.actors.base import handles
from perdure.actors.context import Context, agent_role
from perdure.actors.database import DatabaseActor
from perdure.actors.messages import (
    AgentJoined,
    AgentLeft,
    AgentPoll,
    AgentReady,
    CancelJob,
    Claimed,
    DeactivateNow,
    JobLost,
    JobsRan,
    PauseQueue,
    PollDone,
    PollNow,
    QueuePoll,
    Resize,
    ResumeQueue,
    RetryJob,
    RunJobs,
    StopClaiming,
    Wake,
)
from perdure.actors.outage import PROBE_INTERVAL, Outage
from perdure.model.agent import Agent, Completion, checked_size
from perdure.model.dispatchers import DispatcherRecord
from perdure.model.errors import PerdureError, UnknownSettingError
from perdure.model.failure import Failure
from perdure.model.happenings import Happening, announce
from perdure.model.incarnation import Incarnation
from perdure.model.job import Job
from perdure.model.logs import events, fields, trace
from perdure.model.moments import microseconds, moment
from perdure.model.places import GROUPED_PER_PLACE
from perdure.model.queue import Queue
from perdure.model.queues import find_queues
from perdure.model.ref import JobRef, find_job
from perdure.model.retrying import is_disconnect, try_five_times
from perdure.model.suspension import is_light
from perdure.storage.hearing import is_to_be_asked

__all__ = ["DispatcherActor"]

T = TypeVar("T")

FAILED_PAUSE = timedelta(seconds=1)
"""After this what failed is tried again, where the database is not away."""

LOOK_INTERVAL = timedelta(seconds=1)
"""How often to look whether a process of this host has ended; that costs no transaction."""

SHORTEST_WAIT = timedelta(milliseconds=10)
"""So often at most it works because something comes due."""

SHORTEST_ASK = timedelta(milliseconds=20)
LONGEST_ASK = timedelta(milliseconds=500)
"""How often to ask a storage that does not tell of other processes' commits: soon after there was
something, and twice as long after each time that there was nothing, up to this."""

NO_ANSWER = "the database did not answer"
CLAIMS_TOLD = 200
"""So many claims of one agent, the newest, are named in the report of a poll."""


@dataclass(frozen=True, slots=True)
class _Poll:
    """It is time to poll."""


@dataclass(frozen=True, slots=True)
class _Work:
    """Settle and claim: told by the dispatcher to itself, behind what it has to take in first."""


@dataclass(frozen=True, slots=True)
class _WorkAgain:
    """Try again what the database did not let us do."""


@dataclass(frozen=True, slots=True)
class _Probe:
    """Look whether the database is back."""


@dataclass(frozen=True, slots=True)
class _AgentFault:
    """What failed for one agent: claiming, or else settling what was run."""

    agent: str
    claiming: bool
    error: Exception


@dataclass(frozen=True, slots=True)
class _Look:
    """It is time to look whether a sibling on this host has ended."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """It is time to ask whether another process has put something."""


@dataclass(frozen=True, slots=True)
class _Due:
    """A held job of these queues comes due now."""

    queues: tuple[str, ...]


class _Done(NamedTuple):
    """What is known of what was run for one agent, and is not settled yet."""

    ran: tuple[Claimed, ...]
    lost: tuple[Claimed, ...]
    completed: tuple[Completion, ...]
    unbegun: tuple[Claimed, ...]


class _Worked(NamedTuple):
    """What was done for one agent: the claims to send, which may be all that it has."""

    oid: bytes
    claims: list[Claimed]
    is_all: bool
    report: AgentPoll


@dataclass
class _AgentState:
    """What this process knows of one of its agents."""

    size: int
    ready: bool = False
    """Whether its actor is up; before, nothing is claimed for it."""
    asynchronous: set[Claimed] = field(default_factory=set)
    """Those that take a worker for an instant only."""
    small: dict[bytes, int] = field(default_factory=dict)
    """The oids of those that share places, and their parts of one; see `Agent.claim_jobs`."""
    resend: bool = True
    """Whether all that it has is to be sent to its actor, which may lack some of it."""
    ran: list[Claimed] = field(default_factory=list)
    completed: list[Completion] = field(default_factory=list)
    unbegun: list[Claimed] = field(default_factory=list)
    lost: list[Claimed] = field(default_factory=list)
    claimed: deque[JobRef] = field(default_factory=lambda: deque(maxlen=CLAIMS_TOLD))
    """What was claimed since the last poll."""
    told: str = ""
    """With what its filter or chooser failed, as the log knows already."""
    stuck: str = ""
    """With what settling failed, as the log knows already."""


@dataclass
class _QueueState:
    """What this process knows of one queue."""

    agents: dict[str, _AgentState] = field(default_factory=dict)
    oid: bytes = b""
    watched: frozenset[bytes] = frozenset()
    ours: bool = False
    """Whether the record in the database says that this start of the process works for it."""
    taken: bool = False
    """Whether it said so before, and somebody else changed that."""
    siblings: tuple[Incarnation, ...] = ()
    """Those of this host that worked for it when we last saw."""
    due: int | None = None
    """When, in microseconds, what comes next since the last work comes due or expires."""
    polled: tuple[AgentPoll, ...] = ()
    put: tuple[tuple[str, int], ...] = ()
    """How many jobs were put into each inbox, as far as was seen."""


class DispatcherActor(DatabaseActor):
    """Registers the process, looks after its sibling, claims, and settles.

    Messages are taken in first and worked off together: the more there is to do, the
    fewer commits a job costs.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context, "dispatcher")
        self._queues: dict[str, _QueueState] = {}
        self._claiming = True
        self._deactivated = False
        self._last_poll: tuple[QueuePoll, ...] | None = None
        self._unknown: tuple[str, ...] = ()
        self._outage = Outage(context.database.storage, context.clock)
        self._touched: float | None = None
        self._in_touch_since: float | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._dirty: set[str] = set()
        self._work_is_due = False
        self._due_timer: Any = None
        self._again_timer: Any = None
        self._poll_timer: Any = None
        self._look_timer: Any = None
        self._ask_after = SHORTEST_ASK
        self._outage.over()
        self._away = False

    # The life of the actor.

    def on_start(self) -> None:
        """Poll for the first time, or again after a crash."""
        self._begin_anew()
        # After a crash, with a stop on its way, only the deactivation is left to do.
        if not self._context.stop.is_set():
            self._poll_and_go_on()
            if is_to_be_asked(self._context.database):
                self.tell_later(_Ask(), SHORTEST_ASK)

    # Taking in.

    @handles(Wake)
    def _woken(self, message: Wake) -> None:
        for name, state in self._queues.items():
            if state.oid == message.queue_oid:
                self._work_soon(name)

    @handles(AgentReady)
    def _agent_ready(self, message: AgentReady) -> None:
        state = self._agent_state(message.queue, message.agent)
        if state is not None:
            state.ready = True
            state.resend = True
            self._work_soon(message.queue)

    @handles(JobsRan)
    def _ran(self, message: JobsRan) -> None:
        state = self._agent_state(message.queue, message.agent)
        if state is not None:
            state.ran += message.claims
            state.completed += message.completed
            state.unbegun += message.unbegun
            for claim in message.lasting:
                state.small.pop(p64(claim.ref.oid), None)
            self._work_soon(message.queue)

    @handles(JobLost)
    def _lost(self, message: JobLost) -> None:
        state = self._agent_state(message.queue, message.agent)
        if state is not None:
            state.lost.append(message.claim)
            self._work_soon(message.queue)

    @handles(StopClaiming)
    def _stop_claiming(self, message: StopClaiming) -> None:
        self._claiming = False

    @handles(Resize)
    def _resize(self, message: Resize) -> None:
        def resize() -> None:
            queue = find_queues(self._connection)[message.queue]
            record = queue.dispatchers.get(self._context.uuid)
            if record is None:
                raise PerdureError(
                    f"this process has not joined queue {message.queue!r} yet, which it does at "
                    "its first poll that the database lets it do: try again then"
                )
            record[message.agent].size = message.size

        checked_size(str(message.agent), message.size)
        if not isinstance(message.queue, str) or message.queue not in self._queues:
            raise UnknownSettingError(
                f"this system works for the queues {sorted(self._queues)}, not {message.queue!r}"
            )
        self._operate(resize)
        self._poll()

    @handles(RetryJob)
    def _retry_job(self, message: RetryJob) -> None:
        self._operate(lambda: find_job(self._connection, message.ref).retry())

    @handles(CancelJob)
    def _cancel_job(self, message: CancelJob) -> None:
        self._operate(lambda: find_job(self._connection, message.ref).cancel())

    @handles(PauseQueue)
    def _pause_queue(self, message: PauseQueue) -> None:
        self._operate(lambda: find_queues(self._connection)[message.queue].pause())

    @handles(ResumeQueue)
    def _resume_queue(self, message: ResumeQueue) -> None:
        self._operate(lambda: find_queues(self._connection)[message.queue].resume())

    def _operate(self, change: Callable[[], None]) -> None:
        """Commit what an operator wants; what speaks against it is for the asker alone."""

        def is_the_askers(error: Exception) -> bool:
            return isinstance(error, (PerdureError, KeyError))

        self._commit(change, raises=True, logged=is_the_askers)

    @handles(PollNow)
    def _poll_now(self, message: PollNow) -> None:
        if not self._poll():
            raise PerdureError("the database did not let this poll be done: see the log")

    @handles(_Poll)
    def _poll_in_time(self, message: _Poll) -> None:
        self._poll_and_go_on()

    @handles(DeactivateNow)
    def _deactivate(self, message: DeactivateNow) -> None:
        # A poll after this would activate the records again.
        self._claiming = False
        self._deactivated = True
        for name, state in self._queues.items():
            if state.ours:
                self._commit(functools.partial(self._deactivate_own, name))
                state.ours = False

    def _deactivate_own(self, name: str) -> None:
        record = self._record(name)
        for agent in record.agents():
            agent.settle_all()
        if self._is_ours(record):
            record.deactivate(died=False)

    def _agent_state(self, queue: str, agent: str) -> _AgentState | None:
        state = self._queues.get(queue)
        return None if state is None else state.agents.get(agent)

    # Working off.

    def _work_soon(self, name: str) -> None:
        self._dirty.add(name)
        if not self._work_is_due:
            self._work_is_due = True
            self.actor_ref.tell(_Work())

    @handles(_Due)
    def _come_due(self, message: _Due) -> None:
        for name in message.queues:
            self._work_soon(name)

    @handles(_Work)
    def _work(self, message: _Work) -> None:
        self._work_is_due = False
        if self._outage.lasts:
            # The poll at its end sees to everything.
            return
        dirty, self._dirty = sorted(self._dirty), set()
        for name in dirty:
            state = self._queues.get(name)
            if state is not None and state.ours:
                self._work_queue(name)
        self._wake_when_due()

    def _work_queue(self, name: str, *, settle_all: bool = False) -> None:
        """Settle and claim for one queue, in one commit; then send what was claimed.

        With `settle_all` it looks at all that the agents have, not only at what was heard of.
        """
        state = self._queues[name]
        begun = microseconds(self._clock.now())
        failed: dict[str, Failure] = {}
        left_out: dict[str, Failure] = {}
        due: list[int | None] = [None]
        while True:
            done = {
                agent: _Done(tuple(s.ran), tuple(s.lost), tuple(s.completed), tuple(s.unbegun))
                for agent, s in state.agents.items()
                if agent not in left_out
            }
            raised: list[_AgentFault] = []

            def work(
                done: dict[str, _Done] = done,
                raised: list[_AgentFault] = raised,
            ) -> dict[str, _Worked]:
                raised.clear()
                worked = self._work_agents(name, done, failed, raised, settle_all)
                # What comes next since this was begun, even if it is over by now.
                due[0] = self._next_due(name, begun)
                return worked

            def is_the_agents(error: Exception, raised: list[_AgentFault] = raised) -> bool:
                return bool(raised)

            with self._context.turn():
                worked = self._commit(work, logged=is_the_agents)
            if worked is not None:
                break
            # A commit that raised may have taken place.
            for each in state.agents.values():
                each.resend = True
            if not raised:
                # The database, not an agent.
                self._dirty.add(name)
                self._work_again_later()
                return
            for fault in raised:
                (failed if fault.claiming else left_out)[fault.agent] = Failure(fault.error)
        self._dirty.discard(name)
        self._tell_left_out(name, left_out)
        if any(each.check(TransientError) for each in (*failed.values(), *left_out.values())):
            self._dirty.add(name)
            self._work_again_later()
        state.due = due[0]
        self._context.watch.set(state.oid, state.watched)
        for agent_name, (oid, claims, is_all, report) in worked.items():
            agent_state = state.agents[agent_name]
            agent_state.claimed += report.claimed
            if report.size != agent_state.size:
                # Somebody has set it; its workers are to follow at once.
                agent_state.size = report.size
                self._context.report(AgentJoined(name, agent_name, report.size))
            self._tell_failure(name, agent_state, report, failed.get(agent_name))
            finished = done[agent_name]
            if settle_all or any(finished):
                agent_state.stuck = ""
            # Nothing was added meanwhile: that is this actor's to do, too.
            del agent_state.ran[: len(finished.ran)]
            del agent_state.lost[: len(finished.lost)]
            del agent_state.completed[: len(finished.completed)]
            del agent_state.unbegun[: len(finished.unbegun)]
            agent_state.asynchronous |= {claim for claim in claims if claim.asynchronous}
            role = agent_role(name, agent_name)
            if is_all:
                agent_state.asynchronous &= set(claims)
                self._context.suspensions.leave_all_but(role, set(claims))
            if not agent_state.ready:
                continue
            agent_state.resend = False
            if claims:
                self._context.directory.tell(role, RunJobs(tuple(claims), oid))
        state.polled = tuple(each.report for each in worked.values())

    def _tell_failure(
        self, name: str, state: _AgentState, report: AgentPoll, failure: Failure | None
    ) -> None:
        """Log what an agent's filter or chooser raised, or the database, once for each change."""
        if failure is not None and report.error != state.told:
            events.error(
                "agent %r of queue %r cannot claim any more jobs: its filter or chooser raised "
                "this, or the database did (`perdure check` tells more then); it is tried again "
                "and again, and logged when this changes:\n%s",
                report.agent, name, failure.traceback(),
                extra=fields(queue=name, agent=report.agent),
            )  # fmt: skip
            state.told = report.error
        elif failure is None and report.held < report.size:
            # It was asked, and all was well.
            state.told = ""

    def _tell_left_out(self, name: str, left_out: dict[str, Failure]) -> None:
        """Log with what settling failed, once for each change."""
        for agent, failure in left_out.items():
            state = self._queues[name].agents[agent]
            if state.stuck != str(failure):
                state.stuck = str(failure)
                events.error(
                    "what agent %r of queue %r has run cannot be settled, and it claims no more; "
                    "this is tried at each poll, and logged when it changes:\n%s",
                    agent, name, failure.traceback(), extra=fields(queue=name, agent=agent),
                )  # fmt: skip

    def _work_agents(
        self,
        name: str,
        done: dict[str, _Done],
        failed: dict[str, Failure],
        raised: list[_AgentFault],
        settle_all: bool,
    ) -> dict[str, _Worked]:
        record = self._record(name)
        if not self._is_ours(record):
            self._queues[name].ours = False
            self._queues[name].taken = True
            return {}
        worked = {}
        watched: set[bytes] = set()
        self._note_siblings(record)
        for agent_name, finished in done.items():
            agent = record.get(agent_name)
            if agent is None:
                continue
            watched.add(agent._p_oid)
            state = self._queues[name].agents[agent_name]
            try:
                before = len(agent)
                self._settle(agent, finished, settle_all)
            except Exception as error:
                # The others are to go on without it; without the database nobody can.
                if not is_disconnect(error):
                    raised.append(_AgentFault(agent_name, False, error))
                raise
            claims = self._claim(agent, failed, raised)
            failure = failed.get(agent_name)
            if str(failure) != str(agent.failure):
                agent.failure = failure
            report = AgentPoll(
                agent=agent_name,
                size=agent.size,
                held=len(agent),
                active_before=before,
                claimed=tuple(claim.ref for claim in claims),
                error="" if failure is None else str(failure),
            )
            role = agent_role(name, agent_name)
            is_all = settle_all or state.resend or bool(self._context.suspensions.of(role))
            if is_all:
                claims = self._all_claims(agent, state, claims)
            worked[agent_name] = _Worked(agent._p_oid, claims, is_all, report)
        self._queues[name].put = _put_into(record.queue)
        queues = find_queues(self._connection)
        # An alias that was made lets jobs go on that were parked.
        watched |= {each._p_oid for each in (queues, queues.aliases) if each is not None}
        self._queues[name].watched = record.queue.telling_oids() | watched
        return worked

    def _all_claims(self, agent: Agent, state: _AgentState, new: list[Claimed]) -> list[Claimed]:
        """Return the claims of all that the agent has; what is not new is run alone."""
        known = {claim: claim for claim in (*state.asynchronous, *new)}
        claims = [Claimed(*each) for each in agent.claims()]
        held = {p64(claim.ref.oid) for claim in claims}
        state.small = {oid: parts for oid, parts in state.small.items() if oid in held}
        return [known.get(claim, claim) for claim in claims]

    def _settle(self, agent: Agent, finished: _Done, settle_all: bool) -> None:
        lost = finished.lost
        if lost:
            held = dict(zip((Claimed(*each) for each in agent.claims()), agent, strict=True))
            for claim in lost:
                # Another claim of the same job is another worker's.
                if claim in held:
                    agent.interrupt(held[claim])
        for claim in finished.unbegun:
            agent.give_back(claim.ref, claim.number)
        agent.settle_completed(*finished.completed)
        if settle_all:
            agent.settle_all()
        for claim in finished.ran:
            agent.settle(claim.ref, claim.number)

    def _claim(
        self, agent: Agent, failed: dict[str, Failure], raised: list[_AgentFault]
    ) -> list[Claimed]:
        """Claim what there is room for, and return it."""
        state = self._agent_state(agent.queue.name, agent.name)
        if not self._claiming or agent.name in failed or state is None or not state.ready:
            return []
        known = self._context.experience
        try:
            taken = agent.claim_jobs(known.parts_of, state.small, self._most_of, known.is_brief)
        # A filter or a chooser is the application's code, which may raise anything: also
        # a conflict, each time that it is asked.
        except Exception as error:
            if not is_disconnect(error):
                raised.append(_AgentFault(agent.name, True, error))
            raise
        except BaseException as error:
            text = f"the filter or chooser of {agent!r} raised {error!r}"
            unwanted = PerdureError(text)
            raised.append(_AgentFault(agent.name, True, unwanted))
            raise unwanted from error
        if taken and taken[0].batch and len(agent) == len(taken):
            agent.begin_at_once(taken[0])
        claims = []
        database = self._connection.db().database_name
        for job, number, group, parts, batch in taken:
            if parts:
                state.small[job._p_oid] = parts
            else:
                state.small.pop(job._p_oid, None)
            light = not group and is_light(job)
            plain = type(job) is Job
            if batch:
                group, name = "", group
            else:
                name = "" if group else job.callable_name
            own = job._p_jar is self._connection
            ref = JobRef(u64(job._p_oid), database) if own else JobRef.of(job)
            claims.append(Claimed(ref, number, light, group, name, plain, batch))
        return claims

    def _most_of(self, name: str) -> int:
        """Return how many jobs that call what has that name are held at most, for groups.

        Where one worker runs them all, two groups are enough: one to run, one to go on with.
        """
        instant = self._context.experience.is_instant(name)
        return 2 * GROUPED_PER_PLACE if instant else sys.maxsize

    def _work_again_later(self) -> None:
        if self._again_timer is None and not self._outage.lasts:
            self._again_timer = self.tell_later(_WorkAgain(), FAILED_PAUSE)

    @handles(_WorkAgain)
    def _work_again(self, message: _WorkAgain) -> None:
        self._again_timer = None
        self._work(_Work())

    def _wake_when_due(self) -> None:
        """Work again when the next held job comes due, rather than at the next poll."""
        if self._due_timer is not None:
            self.cancel_later(self._due_timer)
            self._due_timer = None
        if not self._claiming:
            return
        # What is to be worked for anyway has no need of it.
        moments = {
            name: state.due
            for name, state in self._queues.items()
            if state.ours and state.due is not None and name not in self._dirty
        }
        if moments:
            soonest = min(moments.values())
            delay = max(SHORTEST_WAIT, moment(soonest) - self._clock.now())
            if delay < self._context.settings.poll_interval:
                self._due_timer = self.tell_later(
                    _Due(tuple(name for name, due in moments.items() if due == soonest)), delay
                )

    def _next_due(self, name: str, since: int) -> int | None:
        queue: Queue = find_queues(self._connection)[name]
        return min((due for each in queue.stripes for due in each.upcoming(since)), default=None)

    # Polling.

    def _poll_and_go_on(self) -> None:
        pause = self._context.settings.poll_interval
        if not self._poll():
            pause = min(pause, FAILED_PAUSE)
        if not self._outage.lasts:
            self._poll_later(pause)

    def _poll_later(self, pause: timedelta) -> None:
        if self._poll_timer is not None:
            self.cancel_later(self._poll_timer)
        self._poll_timer = self.tell_later(_Poll(), pause)

    def _poll(self) -> bool:
        """Do what is done at each poll; tell whether the database let us."""
        self._away = False
        answered = self._poll_queues()
        if self._outage.lasts and not self._away:
            self._outage.over()
            self._poll_later(self._context.settings.poll_interval)
        return answered and not self._away

    def _poll_queues(self) -> bool:
        if self._deactivated:
            return True
        names = self._commit(self._names_to_serve)
        if names is None:
            return False
        answered = True
        for name in set(self._queues) - set(names):
            gone = self._queues.pop(name)
            self._context.watch.set(gone.oid, frozenset())
            for agent in gone.agents:
                self._context.report(AgentLeft(name, agent))
        reports = []
        for name in names:
            state = self._queues.setdefault(name, _QueueState())
            error = self._join_queue(name, state)
            answered = answered and error != NO_ANSWER
            state.polled = ()
            for agent, agent_state in state.agents.items():
                # In case that something got lost: that an agent's actor is up, or what was
                # sent to it; all that it has is sent to it again.
                if self._context.directory.get(agent_role(name, agent)) is not None:
                    agent_state.ready = True
            if state.ours and not self._away:
                self._join_agents(name, state)
                self._look_after(name)
                self._work_queue(name, settle_all=True)
            reports.append(QueuePoll(name, state.ours, self._since_last_poll(state), error))
        self._wake_when_due()
        poll = tuple(reports)
        if poll != self._last_poll:
            trace.debug("poll: %s", poll)
            self._last_poll = poll
        self._context.report(PollDone(self._clock.now(), poll))
        return answered

    def _since_last_poll(self, state: _QueueState) -> tuple[AgentPoll, ...]:
        """Return what the poll found, with all that was claimed since the last one."""
        found = []
        for report in state.polled:
            claimed = state.agents[report.agent].claimed
            found.append(dataclasses.replace(report, claimed=tuple(claimed)))
            claimed.clear()
        return tuple(found)

    def _names_to_serve(self) -> list[str]:
        wanted = self._context.settings.queues
        queues = find_queues(self._connection)
        there, unknown = list(queues), tuple(queues.unknown())
        if unknown != self._unknown:
            self._unknown = unknown
            for name in unknown:
                events.error(
                    "the queue %r is of a class that this version of Perdure does not know, and "
                    "is left alone: run it with the version that has stored it",
                    name, extra=fields(queue=name),
                )  # fmt: skip
        return there if wanted is None else [name for name in there if name in wanted]

    def _join_queue(self, name: str, state: _QueueState) -> str:
        """Make sure that the record says that we work; return what keeps it from that."""
        was_ours = state.ours or state.taken

        def join() -> tuple[bytes, str]:
            queue = find_queues(self._connection)[name]
            record = queue.dispatchers.get(self._context.uuid)
            if record is None:
                record = queue.dispatchers.register(self._context.uuid)
            return queue._p_oid, self._activate(record, was_ours)

        joined = self._commit(join)
        if joined is None:
            return NO_ANSWER
        state.oid, error = joined
        state.ours = not error
        state.taken = was_ours and not state.ours
        return error

    def _activate(self, record: DispatcherRecord, was_ours: bool) -> str:
        context = self._context
        if self._is_ours(record):
            record.ping()
            return ""
        extra = fields(queue=record.queue.name)
        if record.active:
            if not record.ended(context.incarnation):
                text = f"{record!r} is active since {record.activated}, and its process may live"
                events.error("%s: left alone until the next poll", text, extra=extra)
                return text
            record.deactivate()
        if was_ours:
            events.critical(
                "%r was taken for dead, and is not: it works again, and what was taken from "
                "it is left to others", record, extra=extra,
            )  # fmt: skip
        settings = context.settings
        if record.ping_interval != settings.ping_interval:
            record.ping_interval = settings.ping_interval
        if record.ping_death_interval != settings.ping_death_interval:
            record.ping_death_interval = settings.ping_death_interval
        record.activate(context.token, context.incarnation)
        if was_ours:
            announce(record.queue, Happening.REACTIVATED, context.uuid)
        size = settings.agent_size
        if record.queue.agent_size is not None:
            size = record.queue.agent_size
        if settings.queues is not None:
            size = settings.queues.get(record.queue.name, size)
        if not len(record):
            record.add_agent("main", size=size)
        elif settings.queues is not None and "main" in record:
            record["main"].size = size
        return ""

    def _join_agents(self, name: str, state: _QueueState) -> None:
        sizes = self._commit(
            lambda: {agent.name: agent.size for agent in self._record(name).agents()}
        )
        if sizes is None:
            return
        for agent in set(state.agents) - set(sizes):
            del state.agents[agent]
            self._context.report(AgentLeft(name, agent))
        for agent, size in sizes.items():
            known = state.agents.get(agent)
            if known is None:
                state.agents[agent] = _AgentState(size)
            state.agents[agent].size = size
            # Told at each poll, in case that it got lost.
            self._context.report(AgentJoined(name, agent, size))

    def _look_after(self, name: str) -> None:
        """Bury the next sibling if it is dead, and drop what is out of date."""

        def look() -> None:
            queue: Queue = find_queues(self._connection)[name]
            sibling = queue.dispatchers.next_active_sibling(self._context.uuid)
            if sibling is not None and (
                sibling.proved_dead(self._context.incarnation)
                or (sibling.dead and self._may_judge(sibling))
            ):
                self._bury(sibling)

        def tidy() -> None:
            queue: Queue = find_queues(self._connection)[name]
            now = self._clock.now()
            queue.dispatchers.forget_old(now)
            queue.sweep_inboxes()
            for record in queue.dispatchers.records():
                for agent in record.agents():
                    agent.forget(now)

        self._commit(look)
        self._commit(tidy)

    # The database is away.

    def _lose_database(self) -> None:
        """Begin to wait for the database, unless that is done already."""
        self._away = True
        if self._outage.lasts:
            return
        self._outage.failed()
        for timer in (self._poll_timer, self._again_timer):
            if timer is not None:
                self.cancel_later(timer)
        self._poll_timer = self._again_timer = None
        self.tell_later(_Probe(), PROBE_INTERVAL)

    @handles(_Probe)
    def _probe(self, message: _Probe) -> None:
        if not self._outage.lasts:
            return
        if self._outage.is_to_be_tried():
            self._poll_and_go_on()
            if self._outage.lasts:
                self._outage.failed()
        if self._outage.lasts:
            self.tell_later(_Probe(), PROBE_INTERVAL)

    def _bury(self, sibling: DispatcherRecord) -> None:
        events.warning(
            "%r is dead: its jobs are seen to", sibling,
            extra=fields(queue=sibling.queue.name, dispatcher=str(self._context.uuid)),
        )  # fmt: skip
        sibling.deactivate()

    def _may_judge(self, sibling: DispatcherRecord) -> bool:
        """Tell whether we would have seen a sign of life that the sibling gave.

        A database that was away, or so slow that nobody could give one, proves nothing.
        """
        since = self._in_touch_since
        if since is None:
            return True
        return self._clock.monotonic() - since >= sibling.ping_death_interval.total_seconds()

    def _note_siblings(self, record: DispatcherRecord) -> None:
        """Note who of this host works for the queue; those that are dead are looked for."""
        others = [other for other in record.queue.dispatchers.records() if other is not record]
        active = [other.incarnation for other in others if other.active]
        proofs = self._context.environment.proofs
        self._queues[record.queue.name].siblings = tuple(
            each for each in active if each and proofs.may_be_proved(each)
        )
        if self._look_timer is None and any(each.siblings for each in self._queues.values()):
            self._look_timer = self.tell_later(_Look(), LOOK_INTERVAL)

    @handles(_Ask)
    def _ask(self, message: _Ask) -> None:
        """See whether another process has put something, where nobody tells of it."""
        if not self._claiming:
            return
        found = [] if self._outage.lasts else self._commit(self._names_put_into) or []
        for name in found:
            self._work_soon(name)
        self._ask_after = SHORTEST_ASK if found else min(LONGEST_ASK, 2 * self._ask_after)
        self.tell_later(_Ask(), self._ask_after)

    def _names_put_into(self) -> list[str]:
        queues = find_queues(self._connection)
        return [
            name
            for name, state in self._queues.items()
            if state.ours and name in queues and _put_into(queues[name]) != state.put
        ]

    @handles(_Look)
    def _look(self, message: _Look) -> None:
        """See whether a process of this host has ended, without the database."""
        self._look_timer = None
        if not self._claiming:
            return
        own, proofs = self._context.incarnation, self._context.environment.proofs
        for name, state in self._queues.items():
            if state.ours and any(proofs.proved_dead(each, own) for each in state.siblings):
                self._commit(functools.partial(self._bury_proved, name))
                self._work_soon(name)
        if any(each.siblings for each in self._queues.values()):
            self._look_timer = self.tell_later(_Look(), LOOK_INTERVAL)

    def _bury_proved(self, name: str) -> None:
        record = self._record(name)
        for sibling in record.queue.dispatchers.records():
            if sibling is not record and sibling.active:
                if sibling.proved_dead(self._context.incarnation):
                    self._bury(sibling)
        self._note_siblings(record)

    # The database.

    def _record(self, name: str) -> DispatcherRecord:
        return find_queues(self._connection)[name].dispatchers[self._context.uuid]

    def _is_ours(self, record: DispatcherRecord) -> bool:
        return record.active and record.token == self._context.token

    def _commit(
        self,
        call: Callable[[], T],
        *,
        raises: bool = False,
        logged: Callable[[Exception], bool] = lambda error: False,
    ) -> T | None:
        """Call in a transaction and commit, five times at most; None where it failed.

        With `raises` it raises instead what the call, or the commit, raised. `logged` is as
        for `try_five_times`; a lost connection is seen to.
        """
        results: list[T] = []

        def keep() -> None:
            results.clear()
            try:
                self._connect()
                results.append(call())
            except Exception as error:
                raised.append(error)
                raise

        raised: list[Exception] = []
        outcome = try_five_times(
            keep,
            "a dispatcher's transaction",
            self._manager,
            logged=lambda error: self._outage_log(error) or logged(error),
        )
        # An object that is missing, or that others have changed, was answered for.
        answered = not isinstance(outcome, Failure) or outcome.check(ConflictError, POSKeyError)
        self._note_touch(not answered)
        if not isinstance(outcome, Failure):
            return results[0]
        if outcome.check(ClientDisconnected):
            self._lose_database()
        if raises:
            raise raised[-1] if raised else PerdureError(f"the database refused: {outcome}")
        return None

    def _note_touch(self, failed: bool) -> None:
        """Take note of whether the database let us do something just now."""
        now = self._clock.monotonic()
        settings = self._context.settings
        longest = settings.poll_interval + settings.ping_death_interval / 2
        away = self._touched is not None and now - self._touched > longest.total_seconds()
        if failed or away:
            self._in_touch_since = now
        self._touched = now


def _put_into(queue: Queue) -> tuple[tuple[str, int], ...]:
    return tuple((key, inbox.entries) for key, inbox in queue.inboxes.items())
