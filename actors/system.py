"""`start`: a system in this process, and all that application code sees of it."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import pickle
import signal
import threading
import uuid as uuids
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, Self

import pykka
import transaction
from ZODB.POSException import ReadConflictError

from perdure.actors import messages, wire
from perdure.actors.base import acts_for
from perdure.actors.context import Activity, Context, Directory, Settings
from perdure.actors.control import ControlServer
from perdure.actors.execution import Execution, ThreadedExecution
from perdure.actors.messages import (
    CancelJob,
    DeactivateNow,
    PauseQueue,
    PollNow,
    Resize,
    ResumeQueue,
    RetryJob,
    StatusAsked,
    StopClaiming,
    StopTree,
    Subscribe,
    Unsubscribe,
    Wake,
)
from perdure.actors.supervisor import SupervisorActor
from perdure.actors.suspensions import Suspensions
from perdure.model import local
from perdure.model.agent import LARGEST_SIZE
from perdure.model.clock import Clock, StopSignal, SystemClock
from perdure.model.environment import environment
from perdure.model.errors import (
    BadStatusError,
    JobFailedError,
    NotStorableError,
    PerdureError,
    PutInDoubtError,
    UnknownMessageError,
    UnknownSettingError,
)
from perdure.model.failure import Failure
from perdure.model.incarnation import Identity, acquire_identity
from perdure.model.job import Job
from perdure.model.lane import Lane
from perdure.model.logs import events, placed
from perdure.model.pool import change_pool_size
from perdure.model.queues import get_queue, install
from perdure.model.ref import JobRef, find_job
from perdure.model.retrying import is_disconnect
from perdure.model.status import Status
from perdure.model.storable import contains_persistent
from perdure.model.unsaved import Unsaved
from perdure.storage.hearing import hear_of_commits
from perdure.storage.opening import database_file, is_in_memory, open_database

__all__ = ["ActorSystem", "start"]

DRAIN = timedelta(seconds=10)
_SUPERVISOR_ANSWERS = timedelta(seconds=60)
_DISPATCHER_STOPS = timedelta(seconds=10)
_THREAD_ENDS = timedelta(seconds=5)
_STUCK_ENDS = timedelta(seconds=1)
_SIGNAL_SEEN_SECONDS = 0.5
_ATTEMPTS = 10

FOR_A_SYSTEM = (*wire.MESSAGES, Subscribe, Unsubscribe)
"""The messages that others may send to a system."""

BETWEEN_ACTORS = tuple(
    kind
    for kind in dict.fromkeys(map(vars(messages).get, messages.__all__))
    if dataclasses.is_dataclass(kind)
    and isinstance(kind, type)
    and kind.__module__ == messages.__name__
    and kind not in (*FOR_A_SYSTEM, Wake)
)
"""Those that its actors tell each other; sent by others, they could spoil what the actors know."""

FOR_THE_DISPATCHER = (CancelJob, PauseQueue, PollNow, Resize, ResumeQueue, RetryJob, Wake)
"""The messages that `ActorSystem.ask` and `tell` bring to the dispatcher."""


def start(
    database: Any,
    queues: Mapping[str, int] | None = None,
    *,
    poll_interval: timedelta = timedelta(seconds=5),
    ping_interval: timedelta = timedelta(seconds=30),
    ping_death_interval: timedelta = timedelta(seconds=60),
    clock: Clock | None = None,
    execution: Execution | None = None,
    identity: Identity | None = None,
    handle_signals: bool = False,
) -> ActorSystem:
    """Start a system that runs the jobs of `database`, and return it.

    :param database: the path of a file or a URI (``file:///path/app.fs``,
        ``zeo://localhost:8100``, ``memory://``), which is opened by
        `perdure.storage.open_database`, and closed by `stop`; or an open `ZODB.DB`, which stays
        open. Other processes may have the file open at the same time.
    :param queues: the queues to work for, each with how many jobs may run at once here (0 or
        more; the size of the agent ``main``); they are made where they are missing, and no
        others are. None: all queues that the database has, now and later, the default one
        in any case, with three jobs at once each.
    :param poll_interval: how often to look for what nobody told us of; above zero.
    :param ping_interval: how often to give a sign of life; above zero.
    :param ping_death_interval: after how long without one the others may take us for dead;
        longer than `ping_interval`.
    :param clock: what time it is (default: the environment's of the database).
    :param execution: how the actors receive and wait (default: with threads).
    :param identity: who this process is (default: as its identity file says); closed by `stop`.
    :param handle_signals: whether SIGTERM and SIGINT stop the system, a second one at
        once; in the main thread only. `stop` restores the handlers that were there.

    Raises `UnknownSettingError` for a bad setting, `DatabaseLockedError` where another
    process has the file open and does not share it, `DatabaseAccessError` where this user may
    not use it, `IdentityError` where the identity file cannot be used.
    May be called from any thread; touches no transaction but its own. Several systems may
    run in one process, also on one database.
    """
    settings = Settings(
        queues=_checked_queues(queues),
        poll_interval=_checked_interval("poll_interval", poll_interval),
        ping_interval=_checked_interval("ping_interval", ping_interval),
        ping_death_interval=_checked_interval("ping_death_interval", ping_death_interval),
    )
    if execution is not None and not hasattr(execution, "start_thread"):
        raise UnknownSettingError(f"execution has to be an Execution, not {execution!r}")
    if clock is not None and not isinstance(clock, Clock):
        raise UnknownSettingError(f"clock has to be a perdure.model.Clock, not {clock!r}")
    if handle_signals and threading.current_thread() is not threading.main_thread():
        raise UnknownSettingError("handle_signals works in the main thread only")
    if settings.ping_death_interval <= settings.ping_interval:
        raise UnknownSettingError(
            f"ping_death_interval ({ping_death_interval}) must be longer than ping_interval "
            f"({ping_interval}), or a process that lives looks dead"
        )
    opened = None
    if isinstance(database, str | os.PathLike):
        database = opened = open_database(database)
    elif not hasattr(database, "open") or not hasattr(database, "storage"):
        raise UnknownSettingError(f"{database!r} is neither a URI nor an open ZODB.DB")
    try:
        return ActorSystem(
            database,
            settings,
            clock=clock,
            execution=execution,
            identity=identity,
            owned=opened is not None,
            handle_signals=handle_signals,
        )
    except BaseException:
        if opened is not None:
            opened.close()
        raise


class ActorSystem:
    """A running system; made by `start`. Its methods may be called from any thread.

    As a context manager, it is stopped at the end of the with statement.
    """

    def __init__(
        self,
        database: Any,
        settings: Settings,
        *,
        clock: Clock | None,
        execution: Execution | None,
        identity: Identity | None,
        owned: bool,
        handle_signals: bool,
    ) -> None:
        self.database = database
        self._owned = owned
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._handlers: dict[int, Any] = {}
        self._signals = 0
        known = environment(database)
        if clock is not None:
            known.clock = clock
        clock = known.clock
        known.unresolved.clear()
        known.kinds.clear()
        hear_of_commits(database)
        install(database, settings.queues if settings.queues is not None else ("",))
        self._identity = identity or _identity(database, clock)
        places = sum((settings.queues or {"": settings.agent_size}).values())
        self._connections = places + 4
        change_pool_size(database, self._connections)
        execution = execution or ThreadedExecution(clock)
        stop, activity, directory = StopSignal(clock), Activity(clock), Directory()
        self._context = Context(
            clock=clock,
            execution=execution,
            database=database,
            environment=known,
            uuid=self._identity.uuid,
            token=known.secrets.token_hex(8),
            incarnation=self._identity.incarnation,
            settings=settings,
            stop=stop,
            lane=Lane(clock),
            activity=activity,
            results=known.results,
            directory=directory,
            suspensions=Suspensions(clock, execution, stop, activity, directory),
        )
        self._control = ControlServer(self._identity.incarnation, self._ask_for)
        self._waker = _Waker(self._context)
        known.subscribe(self._waker)
        try:
            self._supervisor = SupervisorActor.start(self._context)
            self._context.directory.started(self._supervisor)
            # From its answer on there is a dispatcher, to whom `ask` and `stop` can turn.
            self._supervisor.ask(StatusAsked(), timeout=_SUPERVISOR_ANSWERS.total_seconds())
            self._control.start()
        except BaseException:
            self.stop(timedelta(0))
            raise
        # The registration keeps alive a system that its maker has dropped.
        atexit.register(self._stop_at_exit)
        if handle_signals:
            self._handle_signals()

    def __repr__(self) -> str:
        state = "stopped" if self._stopped.is_set() else "running"
        return f"<ActorSystem {self.uuid}, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def uuid(self) -> uuids.UUID:
        """Which process this is, for the database; the same after a restart."""
        return self._identity.uuid

    # Putting, and waiting for what comes of it.

    def put(self, item: Any, /, *args: Any, **kwargs: Any) -> JobRef:
        """Put a callable with its arguments, or a job, into a queue, and commit.

        The queue is the one that the system was started for, where that is one alone,
        else the default queue. All further arguments are the callable's. For another queue,
        or for the settings of `Queue.put`, use that, in a `transaction`.

        Uses a transaction of its own, and tries a conflict again, ten times in all. Raises
        as `Queue.put` does, `QueueNotFoundError` where there is no default queue, and
        `BadStatusError` for a job that belongs to a connection. Where the database is lost,
        it raises `ClientDisconnected` if nothing was put, and `PutInDoubtError`, which names
        the job, if the commit may have taken place.
        """
        if isinstance(item, Job) and (args or kwargs):
            raise TypeError(f"{item!r} has its arguments already; give none besides")
        job = item if isinstance(item, Job) else Job(item, *args, **kwargs)
        if job._p_jar is not None:
            raise BadStatusError(
                f"{job!r} belongs to a connection: put it into a queue of that connection"
            )
        last: BaseException | None = None
        for _ in range(_ATTEMPTS):
            unsaved = Unsaved(job)
            ref: JobRef | None = None
            try:
                with self.transaction() as connection:
                    get_queue(connection, self._default_queue()).put(job)
                    ref = job.ref
                return ref
            except transaction.interfaces.TransientError as error:
                unsaved.restore()
                if is_disconnect(error):
                    if ref is None:
                        raise
                    raise PutInDoubtError(ref) from error
                last = error
        assert last is not None
        raise last

    def _default_queue(self) -> str:
        names = self._context.settings.queues
        return next(iter(names)) if names is not None and len(names) == 1 else ""

    def result(self, job: Job | JobRef | str, *, timeout: timedelta | None = None) -> Any:
        """Return the result of a job, as soon as it is committed; callbacks may still run.

        :param timeout: how long to wait; None: without end.

        Raises `JobFailedError` for a failed job, `TimeoutError`, `JobNotFoundError`,
        `NotStorableError` for a result that holds persistent objects, which would be of no
        use outside their connection, and `PerdureError` where the system is stopped first.
        Uses transactions of its own. It is woken when this process commits the result; one
        that another process commits it sees within a `poll_interval`.
        """
        ref = _ref_of(job)
        result = self._wait_for(ref, (Status.CALLBACKS, Status.COMPLETED), timeout, _portable)
        if isinstance(result, Failure):
            raise JobFailedError(ref, result)
        return result

    def wait(self, job: Job | JobRef | str, *, timeout: timedelta | None = None) -> None:
        """Wait until a job is COMPLETED, its callbacks included, whether it failed or not.

        :param timeout: how long to wait; None: without end.

        Raises `TimeoutError`, `JobNotFoundError`, and `PerdureError` where the system is
        stopped first. Waits, and uses transactions of its own, as `result` does.
        """
        self._wait_for(_ref_of(job), (Status.COMPLETED,), timeout, lambda job: None)

    def _wait_for(
        self,
        ref: JobRef,
        statuses: tuple[Status, ...],
        timeout: timedelta | None,
        read: Callable[[Job], Any],
    ) -> Any:
        clock = self._context.clock
        _check_timeout(timeout)
        deadline = None if timeout is None else clock.monotonic() + timeout.total_seconds()
        # What another process commits is not announced here: the polls are the net.
        longest = self._context.settings.poll_interval.total_seconds()
        with self._context.results.listen(ref, clock) as listener:
            while True:
                try:
                    with self.transaction() as connection:
                        job = find_job(connection, ref)
                        status = job.status.name
                        if job.status in statuses:
                            return read(job)
                # Another client of the server has put it, and we have not heard of that yet.
                except ReadConflictError:
                    status = "not to be seen here yet"
                left = longest if deadline is None else deadline - clock.monotonic()
                if left <= 0:
                    raise TimeoutError(f"job {ref} is {status} after {timeout}")
                if self._stopped.is_set():
                    raise PerdureError(
                        f"the system was stopped, and job {ref} is {status}: it goes on "
                        "when a system is started on this database again"
                    )
                listener.wait(min(left, longest))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        """Open a connection, commit at the end of the with statement, abort on an error.

        The connection has a transaction manager of its own, so that this is safe inside
        another transaction of the thread. What the with statement or the commit raises (a
        conflict, say) comes out, and nothing is tried again. Objects of the connection must
        not be used after its end. Raises `PerdureError` where a database that `start` opened
        is closed already.
        """
        if self._owned and self._stopped.is_set():
            raise PerdureError(f"{self!r} has closed its database: start another system")
        manager = transaction.TransactionManager()
        connection = self.database.open(transaction_manager=manager)
        try:
            with manager:
                yield connection
        finally:
            manager.abort()
            connection.close()

    # Messages.

    def tell(self, message: object) -> None:
        """Send a message, such as `PollNow` or `Resize`, and do not wait for what comes of it.

        Raises `UnknownMessageError` for what only the system's own actors tell each other.
        """
        # Asked, in truth: an error of this message's must not look like one of the actor's.
        with contextlib.suppress(pykka.ActorDeadError):
            self._target(message).ask(message, block=False)

    def ask(self, message: object, timeout: timedelta | None = _SUPERVISOR_ANSWERS) -> Any:
        """Send a message or a question, and return the answer.

        Raises `UnknownMessageError` for what nobody understands, what the answerer raised,
        `TimeoutError`, and `PerdureError` once the system is stopped. Touches no transaction
        of the caller.
        """
        _check_timeout(timeout)
        try:
            seconds = None if timeout is None else timeout.total_seconds()
            return self._target(message).ask(message, timeout=seconds)
        except pykka.Timeout as error:
            raise TimeoutError(
                f"no answer to {type(message).__qualname__} within {timeout}"
            ) from error
        except pykka.ActorDeadError as error:
            raise PerdureError(f"{self!r} does not answer any more") from error

    def _ask_for(self, reply_to: pykka.Future[Any], message: object) -> None:
        self._target(message).ask_for(reply_to, message)

    def _target(self, message: object) -> Any:
        if isinstance(message, BETWEEN_ACTORS):
            raise UnknownMessageError(
                f"{type(message).__qualname__} is what a system's actors tell each other; what it "
                "may be sent: " + ", ".join(kind.__qualname__ for kind in FOR_A_SYSTEM)
            )
        if isinstance(message, FOR_THE_DISPATCHER):
            dispatcher = self._context.directory.get("dispatcher")
            if dispatcher is not None:
                return dispatcher
        return self._supervisor

    # The end.

    def stop(self, drain: timedelta = DRAIN) -> None:
        """Stop: claim nothing more, let what runs end within `drain`, leave the database.

        What still runs then counts as interrupted, once, and its thread can commit nothing
        any more. Complete when it returns; may be called again. With a `drain` of zero it also
        ends the drain that another thread waits for in here. A job whose code does not end
        keeps its thread, a daemon, until it does.

        Raises `UnknownSettingError` for a drain time that is none, `BadStatusError` in the
        code of a job of this process, and in what the system calls itself (a subscriber to
        its events, a filter, a chooser): it would have to wait for them.
        """
        if not isinstance(drain, timedelta) or drain < timedelta(0):
            raise UnknownSettingError(f"drain must be a timedelta of 0 or more, not {drain!r}")
        if local.current() is not None:
            raise BadStatusError(
                "a job cannot stop the system that may be running it: let another thread call stop"
            )
        if acts_for(self._context):
            raise BadStatusError(
                "a subscriber, filter or chooser that the system itself has called cannot stop "
                "it: let another thread call stop"
            )
        if not drain:
            # Another thread may be inside, and wait for its drain.
            self._context.activity.give_up_waiting()
        with self._lock:
            try:
                if not self._stopped.is_set():
                    with placed(dispatcher=str(self.uuid)):
                        self._stop(drain)
            finally:
                self._stopped.set()
                self._context.results.announce_all()
                self._restore_handlers()

    def join(self, timeout: timedelta | None = None) -> bool:
        """Wait until the system was stopped, by whomever; False if not within `timeout`."""
        now = SystemClock().monotonic
        _check_timeout(timeout)
        deadline = None if timeout is None else now() + timeout.total_seconds()
        while not self._stopped.is_set():
            left = None if deadline is None else deadline - now()
            if left is not None and left <= 0:
                return False
            # A signal that comes in the instant before a wait is seen only after it.
            slice_seconds = _SIGNAL_SEEN_SECONDS if self._handlers else None
            bounds = [bound for bound in (left, slice_seconds) if bound is not None]
            self._stopped.wait(min(bounds, default=None))
        self._restore_handlers()
        return True

    def _stop(self, drain: timedelta) -> None:
        with contextlib.ExitStack() as stack:
            if self._owned:
                stack.callback(self.database.close)
            stack.callback(self._identity.close)
            stack.callback(self._shrink_pool)
            stack.callback(self._join_actors)
            # Until here others could see that it stops.
            stack.callback(self._control.stop)
            stack.callback(self._end_coroutines)
            self._deactivate(drain)

    def _deactivate(self, drain: timedelta) -> None:
        context = self._context
        atexit.unregister(self._stop_at_exit)
        context.environment.unsubscribe(self._waker)
        # Ends the waits of retries, and pauses of actors, at once; what runs goes on.
        context.stop.set()
        context.suspensions.end_pauses()
        self._ask_dispatcher(StopClaiming())
        begun = context.clock.monotonic()
        drained = context.activity.wait_until_none(drain)
        # Not before: who waits for the lane is ACTIVE, and may still end within the drain.
        context.lane.end()
        if not drained:
            waited = context.clock.monotonic() - begun
            events.warning(
                "jobs that still run after %.1f s are left, and count as interrupted: %d",
                waited, context.activity.count,
            )  # fmt: skip
        self._ask_dispatcher(DeactivateNow())

    def _join_actors(self) -> None:
        """Stop every actor, and wait until all threads have ended that can end."""
        if not hasattr(self, "_supervisor"):
            return
        self._supervisor.tell(StopTree())
        self._supervisor.stop(block=False)
        directory = self._context.directory
        joined: set[Any] = set()
        # An agent that ends may have made workers until then.
        while left := [ref for ref in directory.all_started() if ref not in joined]:
            for ref in left:
                ref.stop(block=False)
            for ref in left:
                joined.add(ref)
                if not ref.join(_THREAD_ENDS if not self._context.activity.count else _STUCK_ENDS):
                    events.warning("%s has not ended yet", ref)

    def _end_coroutines(self) -> None:
        """Cancel the coroutines that still run, whose jobs are lost by now."""
        self._context.suspensions.close(_STUCK_ENDS, _STUCK_ENDS)

    def _shrink_pool(self) -> None:
        change_pool_size(self.database, -self._connections)

    def _abandon(self) -> None:
        """Let go of what would keep a system whose threads have ended without it."""
        atexit.unregister(self._stop_at_exit)
        self._context.environment.unsubscribe(self._waker)
        self._identity.close()
        self._stopped.set()

    def _stop_at_exit(self) -> None:
        self.stop(timedelta(0))

    def _ask_dispatcher(self, message: object) -> None:
        dispatcher = self._context.directory.get("dispatcher")
        try:
            if dispatcher is not None:
                dispatcher.ask(message, timeout=_DISPATCHER_STOPS.total_seconds())
        # Stopping goes on, whatever the state of the dispatcher: the database has the truth.
        except Exception:
            events.error("the dispatcher could not be asked to %s", message, exc_info=True)

    def _handle_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.getsignal(number)
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stopped.is_set():
            # Stopped from another thread, in which handlers cannot be restored.
            self._restore_handlers()
            signal.raise_signal(number)
            return
        self._signals += 1
        drain = DRAIN if self._signals == 1 else timedelta(0)
        if self._signals > 1:
            self._context.activity.give_up_waiting()
        threading.Thread(target=self.stop, args=(drain,), name="stop", daemon=True).start()

    def _restore_handlers(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                # Whoever put another one in its place meanwhile keeps it.
                if handler is not None and signal.getsignal(number) == self._on_signal:
                    signal.signal(number, handler)
            self._handlers.clear()


class _Waker:
    """Passes on what the database's commits say, from their threads."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def wake(self, queue_oid: bytes) -> None:
        """Tell the dispatcher."""
        self._context.directory.tell("dispatcher", Wake(queue_oid))

    def changed(self, oids: Collection[bytes] | None) -> None:
        """Tell the dispatcher, where one of these says that there may be work."""
        for queue_oid in self._context.watch.queues_of(oids):
            self.wake(queue_oid)


def _identity(database: Any, clock: Clock) -> Identity:
    if is_in_memory(database):
        return Identity(uuids.uuid4())
    return acquire_identity(database_file(database), clock=clock)


def _ref_of(job: Job | JobRef | str) -> JobRef:
    if isinstance(job, Job):
        return job.ref
    return JobRef.parse(job) if isinstance(job, str) else job


def _portable(job: Job) -> Any:
    """Return a copy of the result that is of use without the connection."""
    result = job.result
    if contains_persistent(result):
        raise NotStorableError(
            f"the result of {job!r} holds persistent objects, which are of use in their own "
            "connection only: read job.result in a transaction"
        )
    return pickle.loads(pickle.dumps(result))


def _checked_queues(queues: Mapping[str, int] | None) -> Mapping[str, int] | None:
    if queues is None:
        return None
    if not isinstance(queues, Mapping):
        raise UnknownSettingError(
            f"queues must be a mapping of names to sizes, such as {{'': 4}}, not {queues!r}"
        )
    for name, size in queues.items():
        if not isinstance(name, str):
            raise UnknownSettingError(f"queues: the name of a queue is a text, not {name!r}")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise UnknownSettingError(
                f"queues: the size for queue {name!r} is a whole number of 0 or more, not {size!r}"
            )
        if size > LARGEST_SIZE:
            raise UnknownSettingError(
                f"queues: the size for queue {name!r} is {LARGEST_SIZE} at most, not {size}"
            )
    return dict(queues)


def _checked_interval(name: str, value: object) -> timedelta:
    if not isinstance(value, timedelta):
        raise UnknownSettingError(f"{name} must be a timedelta, not {value!r}")
    if value <= timedelta(0):
        raise UnknownSettingError(f"{name} must be longer than zero, not {value}")
    return value


def _check_timeout(timeout: object) -> None:
    if timeout is not None and not isinstance(timeout, timedelta):
        raise UnknownSettingError(
            f"timeout must be a timedelta, or None to wait without end, not {timeout!r}"
        )
