"""The troubles that the driver makes: what happens is chosen by the seed, one after the other."""

from __future__ import annotations

import heapq
import itertools
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from catastrophes.books import Books
from catastrophes.children import Child
from catastrophes.stage import Place, Stage
from catastrophes.workload import POISON_FILE

__all__ = ["Troubles", "WEIGHTS"]

WEIGHTS: Mapping[str, int] = {
    "kill": 8,
    "suspend": 4,
    "suspend-long": 3,
    "terminate": 3,
    "kill-server": 2,
    "suspend-server": 2,
    "cut-all": 2,
    "cut-one": 4,
    "disk-full": 2,
    "jump": 2,
}
"""How often each is chosen, in comparison to the others."""

DEATH_SECONDS = 4.0
_DRAIN_SECONDS = 60.0


class Troubles:
    """Makes troubles in a thread of its own, and mends everything at the end.

    `stop` returns when all that it had broken is whole again.
    """

    def __init__(
        self,
        stage: Stage,
        books: Books,
        seed: int,
        weights: Mapping[str, int],
        pause_seconds: float,
        longest_jump_seconds: float,
    ) -> None:
        self._stage = stage
        self._books = books
        self._random = random.Random(f"trouble {seed}")
        self._kinds = list(weights)
        self._weights = list(weights.values())
        self._pause_seconds = pause_seconds
        self._longest_jump_seconds = longest_jump_seconds
        self._stop = threading.Event()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._lock = threading.RLock()
        self._busy: set[Place] = set()
        """The places that something is done to, or that are empty for now."""
        self._server_busy = False
        self._thread = threading.Thread(target=self._run, name="troubles", daemon=True)
        self._poisoned = stage.folder / POISON_FILE

    # Workers.

    def start_worker(self, place: Place) -> None:
        """Start a worker, and note the identity that it has."""
        child = place.start(lambda child: self._ended(place, child))
        self._books.write("start", pid=child.pid, place=place.name)
        name = f"identity of {place.name}"
        threading.Thread(target=self._note_identity, args=(child,), name=name, daemon=True).start()
        self._busy.discard(place)

    def _note_identity(self, child: Child) -> None:
        line = child.line("ready", limit_seconds=300)
        if line:
            self._books.identities[child.pid] = line.split()[1]
            self._books.write("ready", pid=child.pid, uuid=line.split()[1])

    def _ended(self, place: Place, child: Child) -> None:
        """Take note of the end of a process; in the thread that reads what it says."""
        status = child.process.returncode
        expected = {deed.what for deed in self._books.deeds if deed.pid == child.pid}
        if expected & {"kill", "terminate", "end"}:
            return
        self._books.did("died", child.pid, status=status)
        if status == -signal.SIGKILL and child.pid in self._poisoned_pids():
            self._books.counts["killed by poison"] += 1
        else:
            self._books.found(f"{place.name} (pid {child.pid}) has ended by itself: {status}")
        self._in(0.2 + self._random.random(), lambda: self._start_again(place, child))

    def _poisoned_pids(self) -> set[int]:
        if not self._poisoned.exists():
            return set()
        return {json.loads(line)["pid"] for line in self._poisoned.read_text().splitlines()}

    def _start_again(self, place: Place, child: Child) -> None:
        if place.child is child:
            self.start_worker(place)

    # When.

    def _in(self, seconds: float, call: Callable[[], None]) -> None:
        with self._lock:
            heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), call))

    def _do_what_is_due(self) -> float:
        """Do it, and return for how many seconds there is nothing to do."""
        while True:
            with self._lock:
                if not self._later:
                    return 0.2
                left = self._later[0][0] - time.monotonic()
                if left > 0:
                    return min(0.2, left)
                _, _, call = heapq.heappop(self._later)
            call()

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            next_one = time.monotonic() + self._pause_seconds
            while not self._stop.wait(self._do_what_is_due()):
                if time.monotonic() < next_one:
                    continue
                (kind,) = self._random.choices(self._kinds, self._weights)
                _MAKERS[kind](self)
                next_one = time.monotonic() + self._pause_seconds * 2 * self._random.random()
            while self._later:
                _, _, call = heapq.heappop(self._later)
                call()
        # Whatever it is, nobody else would tell.
        except BaseException as error:
            self._books.found(f"the driver could not make troubles: {error!r}")
            raise

    def stop(self) -> None:
        """Make no more, and mend at once what is to be mended later."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def end_workers(self) -> None:
        """Let every worker stop gracefully; each must."""
        for place in self._stage.places:
            if place.running and place.child is not None:
                self._books.did("end", place.child.pid)
                place.child.terminate()
        for place in self._stage.places:
            if place.child is not None:
                try:
                    status = place.child.wait(_DRAIN_SECONDS)
                except Exception:
                    self._books.found(f"{place.name} does not stop when it is told to")
                    continue
                ready = place.child.pid in self._books.identities
                if status not in (0, -signal.SIGKILL) and ready:
                    self._books.found(f"{place.name} has ended with status {status}")

    def mend_deaths(self) -> None:
        """Start again those that poison took down; while no troubles are made any more."""
        self._do_what_is_due()

    # The troubles.

    def _choose(self) -> Place | None:
        places = [
            place for place in self._stage.places if place not in self._busy and place.running
        ]
        return self._random.choice(places) if places else None

    def kill(self) -> None:
        place = self._choose()
        if place is None or place.child is None:
            return
        self._busy.add(place)
        self._books.did("kill", place.child.pid)
        place.child.kill()
        # Often at once, sometimes so late that a sibling has to bury it.
        pause = self._random.choices([0.1, 2, 2.5 * DEATH_SECONDS], [3, 3, 2])[0]
        self._in(pause * self._random.random(), lambda: self.start_worker(place))

    def suspend(self, longest_seconds: float = DEATH_SECONDS / 2) -> None:
        place = self._choose()
        if place is None or place.child is None:
            return
        self._busy.add(place)
        child = place.child
        self._books.did("suspend", child.pid)
        child.suspend()

        def resume() -> None:
            self._books.write("resume", pid=child.pid)
            child.resume()
            self._busy.discard(place)

        self._in(longest_seconds * (0.7 + 0.3 * self._random.random()), resume)

    def suspend_long(self) -> None:
        """Suspend it for longer than it may live without a sign."""
        self.suspend(2 * DEATH_SECONDS)

    def terminate(self) -> None:
        place = self._choose()
        if place is None or place.child is None:
            return
        self._busy.add(place)
        child = place.child
        self._books.did("terminate", child.pid)
        child.terminate()
        pause = 2 * self._random.random()

        def start_again() -> None:
            if not child.ended:
                # It drains.
                self._in(0.5, start_again)
                return
            # Before its system has started, a signal ends it as it ends any process.
            poisoned = child.pid in self._poisoned_pids()
            ready = child.pid in self._books.identities
            if child.process.returncode != 0 and ready and not poisoned:
                self._books.found(
                    f"{place.name} (pid {child.pid}) was to stop, and ended with "
                    f"{child.process.returncode}"
                )
            self.start_worker(place)

        self._in(pause, start_again)

    def kill_server(self) -> None:
        server = self._take_server()
        if server is None:
            return
        self._books.did("kill server", server.pid)
        server.kill()

        def start_again() -> None:
            self._stage.start_server()
            self._server_busy = False

        self._in(self._random.choice([0.2, 3, 8]) * self._random.random(), start_again)

    def suspend_server(self) -> None:
        server = self._take_server()
        if server is None:
            return
        self._books.did("suspend server", server.pid)
        server.suspend()

        def resume() -> None:
            server.resume()
            self._server_busy = False

        self._in(1 + 5 * self._random.random(), resume)

    def disk_full(self) -> None:
        server = self._take_server()
        if server is None:
            return
        self._books.did("disk full", server.pid)
        self._stage.disk_is_full(self._random.randrange(4096))

        def has_room() -> None:
            self._stage.disk_has_room()
            self._server_busy = False

        self._in(1 + 4 * self._random.random(), has_room)

    def _take_server(self) -> Child | None:
        if self._server_busy:
            return None
        self._server_busy = True
        return self._stage.server

    def cut_all(self) -> None:
        self._books.did("cut all")
        self._stage.relays.cut()

    def cut_one(self) -> None:
        place = self._random.choice(self._stage.places)
        self._books.did("cut", place=place.name)
        self._stage.relays.cut(place.relay)

    def jump(self) -> None:
        place = self._choose()
        if place is None or place.child is None:
            return
        # Far enough for a sibling to look dead. What is put off for later by a clock that is
        # ahead comes as much later.
        shortest = 2 * DEATH_SECONDS
        seconds = shortest + (self._longest_jump_seconds - shortest) * self._random.random()
        seconds *= self._random.choice([-1, 1])
        self._books.did("jump", place.child.pid, seconds=seconds)
        child = place.child
        child.tell(f"jump {seconds}")
        self._in(2 + 6 * self._random.random(), lambda: child.tell("jump 0"))


_MAKERS: Mapping[str, Callable[[Troubles], Any]] = {
    "kill": Troubles.kill,
    "suspend": Troubles.suspend,
    "suspend-long": Troubles.suspend_long,
    "terminate": Troubles.terminate,
    "kill-server": Troubles.kill_server,
    "suspend-server": Troubles.suspend_server,
    "cut-all": Troubles.cut_all,
    "cut-one": Troubles.cut_one,
    "disk-full": Troubles.disk_full,
    "jump": Troubles.jump,
}
