"""A simulated process: a database opened, a system started, and all that may befall them."""

from __future__ import annotations

import contextlib
import random
import uuid as uuids
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ZODB

from perdure.actors import ActorSystem, start
from perdure.model.environment import environment
from perdure.model.inbox import Leases
from perdure.model.incarnation import Identity, Incarnation
from perdure.model.job import Job
from perdure.model.ref import JobRef
from perdure.testing.errors import ProcessCrashed, SimulationError
from perdure.testing.execution import SteppedClock, SteppedExecution
from perdure.testing.scheduler import Owner, Scheduler
from perdure.testing.storage import Call, Fault, SteppedStorage

if TYPE_CHECKING:
    from perdure.testing.world import World

__all__ = ["Process", "SimulatedIdentity"]


class SimulatedIdentity(Identity):
    """Who a simulated process is; its end is known to the world that it is in."""

    def __init__(self, world: World, uuid: uuids.UUID, host: str, token: str) -> None:
        incarnation = Incarnation(
            host=host, boot_id="simulated", device=0, inode=uuid.int & 0xFFFF, token=token, path=""
        )
        super().__init__(uuid, incarnation)
        self._world = world
        world.living.add(token)
        self.token = token

    def close(self) -> None:
        """End it, which its siblings on the same host can see."""
        self._world.living.discard(self.token)


class _Secrets:
    """Tokens by lot, the same ones for the same seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def token_hex(self, nbytes: int, /) -> str:
        return self._random.randbytes(nbytes).hex()

    def randbelow(self, exclusive_upper_bound: int, /) -> int:
        return self._random.randrange(exclusive_upper_bound)


class _Database(ZODB.DB):
    """A database that knows what the test itself has opened."""

    def __init__(self, storage: SteppedStorage, scheduler: Scheduler, class_factory: Any) -> None:
        self._scheduler = scheduler
        self._opened_by_test: set[Any] = set()
        # It is one process: a pool that is never too small.
        super().__init__(storage, pool_size=100, class_factory=class_factory)

    def open(self, *args: Any, **kwargs: Any) -> Any:
        connection = super().open(*args, **kwargs)
        if self._scheduler.is_driver:
            self._opened_by_test.add(connection)
        return connection

    def let_go(self) -> None:
        """Close what the test has left open, without a call of the storage.

        Else the next transaction of the test's thread would begin one of it, too.
        """
        for connection in self._opened_by_test:
            if connection.opened is None or connection.transaction_manager is None:
                continue
            for each in connection.connections.values():
                each.explicit_transactions = True
            # Whoever is told of an abort may ask the storage. A connection whose closing was
            # broken off by the crash is not known to its manager any more.
            with contextlib.suppress(ProcessCrashed):
                connection.transaction_manager.abort()
            with contextlib.suppress(ProcessCrashed, KeyError):
                connection.close()
        self._opened_by_test.clear()


class Process:
    """One process on the world's disk; made by `World.process`.

    It is started at once. What it is asked to do is done in the test's thread, which takes its
    turns like the others.
    """

    def __init__(
        self,
        world: World,
        name: str,
        number: int,
        host: str,
        drift: float,
        queues: Mapping[str, int] | None,
        settings: dict[str, Any],
    ) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.uuid = uuids.UUID(int=number)
        self.clock = SteppedClock(world.scheduler, world.start, drift)
        self.starts = 0
        self.on_call: Callable[[Call], Fault | None] = lambda call: None
        """Called before each call of its storage, across restarts; may return a `Fault`."""
        self.on_called: Callable[[Call], None] = lambda call: None
        """Called after each that has raised nothing."""
        self._queues = queues
        self._settings = settings
        self._owner = Owner(name)
        self._owner.gone = True
        self._storage: SteppedStorage | None = None
        self._database: _Database | None = None
        self._execution: SteppedExecution | None = None
        self._system: ActorSystem | None = None
        self._identity: SimulatedIdentity | None = None

    def __repr__(self) -> str:
        return f"<Process {self.name}, {'running' if self.is_running else 'not running'}>"

    # Its life.

    @property
    def is_running(self) -> bool:
        """Whether it was started, and neither stopped nor crashed since."""
        return self._system is not None and not self._owner.gone

    @property
    def is_suspended(self) -> bool:
        """Whether it runs, and stands still."""
        return self.is_running and self._owner.suspended

    @property
    def system(self) -> ActorSystem:
        """Its system; raises `ProcessCrashed` where it has crashed, or was stopped."""
        self._storage_alive()
        if self._system is None:
            raise SimulationError(f"{self!r}: start it first")
        return self._system

    @property
    def storage(self) -> SteppedStorage:
        """What it has for a storage since it was started last."""
        return self._storage_alive()

    def _storage_alive(self) -> SteppedStorage:
        if self._storage is None:
            raise SimulationError(f"{self!r}: start it first")
        if self._owner.gone:
            raise ProcessCrashed(self.name)
        return self._storage

    def start(self) -> None:
        """Start it, or start it again, with nothing but what is on the disk."""
        if self.is_running:
            raise SimulationError(f"{self!r} runs: stop it, or let it crash, first")
        self.let_go()
        self.starts += 1
        self._owner = Owner(self.name)
        self._system = self._storage = self._identity = None
        with self._acting():
            self._start()

    def _start(self) -> None:
        world = self.world
        secrets = _Secrets(f"{self.name} {self.starts}")
        self._storage = storage = SteppedStorage(
            world.disk, world.scheduler, self.clock, self.name, self.crash
        )
        storage.on_call = lambda call: self.on_call(call)
        storage.on_called = lambda call: self.on_called(call)
        self._database = _Database(storage, world.scheduler, world.class_factory)
        known = environment(self._database)
        known.clock = self.clock
        known.secrets = secrets
        known.leases = Leases(secrets)
        known.proofs = world.proofs_of(self)
        # As shared files and ZEO servers do.
        storage.on_foreign_commit = known.tell_of_commit_elsewhere
        self._identity = SimulatedIdentity(world, self.uuid, self.host, secrets.token_hex(8))
        self._execution = SteppedExecution(world.scheduler, self.clock, self._owner)
        self._system = start(
            self._database,
            self._queues,
            clock=self.clock,
            execution=self._execution,
            identity=self._identity,
            **self._settings,
        )

    def _acting(self) -> contextlib.AbstractContextManager[None]:
        return self.world.scheduler.acting(self._owner)

    def stop(self, drain: timedelta = timedelta(seconds=10)) -> None:
        """Stop it as `perdure.actors.ActorSystem.stop` does; what has not ended then is ended."""
        try:
            with self._acting():
                self.system.stop(drain)
                self.let_go()
                # What ZODB raises of a connection that failed while it was opened.
                with contextlib.suppress(KeyError):
                    self.system.database.close()
        finally:
            self._end()

    def crash(self) -> None:
        """Let it end at once, without its threads and its memory; the disk is as it is."""
        if self._owner.gone:
            return
        self.world.scheduler.note(f"{self.name} crashes")
        self._end()

    def _end(self) -> None:
        """End all that it has, as its machine does with a process."""
        if self._storage is not None:
            self._storage.die()
        if self._identity is not None:
            self._identity.close()
        self.world.scheduler.end(self._owner)
        if self._system is not None:
            self._system._abandon()

    def let_go(self) -> None:
        """Close what the end of a process closes, and abort what the test did in its connections.

        That is the connections that the test has opened in it, and sockets of event loops.
        """
        if self._database is not None:
            self._database.let_go()
        if self._execution is not None and self._owner.gone:
            self._execution.let_go()

    @property
    def is_connected(self) -> bool:
        """Whether it can reach the disk."""
        return self._storage_alive().is_connected()

    def suspend(self) -> None:
        """Let it stand still, as SIGSTOP does, until it is resumed; its clock goes on."""
        self._storage_alive()
        self._owner.suspend()

    def resume(self) -> None:
        """Let it go on."""
        self._owner.resume()

    def cut(self) -> None:
        """Cut its connection to the disk."""
        self._storage_alive().cut()

    def restore(self) -> None:
        """Give it its connection to the disk again."""
        self._storage_alive().restore()

    # What an application does in it.

    def acting(self) -> contextlib.AbstractContextManager[None]:
        """Let what the test does in a with statement be done by this process.

        It shares the fate of the process then: `ProcessCrashed` is raised where that crashes.
        """
        return self._acting()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        """Open a connection of its database, as `perdure.actors.ActorSystem.transaction`."""
        with self._acting(), self.system.transaction() as connection:
            yield connection

    def put(self, item: Any, /, *args: Any, **kwargs: Any) -> JobRef:
        """Put a job as `perdure.actors.ActorSystem.put`; once that is done, it is acknowledged."""
        with self._acting():
            ref = self.system.put(item, *args, **kwargs)
        self.world.acknowledged.append(ref)
        return ref

    def ask(self, message: object, timeout: timedelta | None = timedelta(seconds=60)) -> Any:
        """Ask its system, as `perdure.actors.ActorSystem.ask`; time passes until it answers."""
        with self._acting():
            return self.system.ask(message, timeout)

    def result(self, job: Job | JobRef | str, *, timeout: timedelta | None = None) -> Any:
        """Wait for a job's result, as `perdure.actors.ActorSystem.result`; time passes for it."""
        with self._acting():
            return self.system.result(job, timeout=timeout)

    def wait(self, job: Job | JobRef | str, *, timeout: timedelta | None = None) -> None:
        """Wait until a job is COMPLETED, as `perdure.actors.ActorSystem.wait`."""
        with self._acting():
            self.system.wait(job, timeout=timeout)
