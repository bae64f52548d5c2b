"""How long it takes until another process goes on with the jobs of one that was killed.

    python -m benchmarks.takeover --kills 20

Two `perdure run` with their default settings work for one database on this host. One that has a
job in hand gets SIGKILL, and the time is taken from there until the job is begun by the other
one; then the killed one is started again. Printed are the median, the 90th percentile and the
worst, in seconds, for a database on a server (`perdure.server`, at a socket), and for a file that
both have open: with the owner of the file killed, and with the other one killed.

Between the start of a job and the kill there are up to `--longest` seconds, at random: the other
process may be at anything then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perdure.model import Job, get_queue, install
from perdure.storage import open_database

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 120.0
KINDS = ("server", "owner", "other")


def hold(folder: str, number: int) -> None:
    """What the jobs do: say who has begun when, and wait until they may end."""
    with open(Path(folder, "begun"), "a") as begun:
        begun.write(f"{number} {os.getpid()} {time.monotonic()}\n")
    while not Path(folder, f"end-{number}").exists():
        threading.Event().wait(0.01)


class Place:
    """Where one process works, one after the other."""

    def __init__(self, folder: Path, uri: str, name: str) -> None:
        self._log = folder / f"{name}.log"
        self._uri = uri
        self._environ = {
            **os.environ,
            "PERDURE_UUID": str(folder / f"{name}.uuid"),
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }
        self.start()

    def start(self) -> None:
        """Start it; returns when it runs jobs."""
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "perdure.cli", "run", "--db", self._uri],
                env=self._environ,
                stderr=log,
            )
        wait_for(lambda: "running jobs of" in self._log.read_text(), f"{self._log}: no start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def wait_for(ready: Any, what: str) -> Any:
    """Wait until `ready` returns something true, and return that."""
    until = time.monotonic() + LIMIT_SECONDS
    while not (found := ready()):
        if time.monotonic() > until:
            raise SystemExit(what)
        threading.Event().wait(0.005)
    return found


class Stage:
    """A database, two places, and the jobs that they have."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        self._number = 0
        Path(folder, "begun").touch()
        with self._database() as database:
            install(database)
        self.places = [Place(folder, uri, name) for name in ("one", "two")]

    @contextlib.contextmanager
    def _database(self) -> Iterator[Any]:
        # Not kept open: it could come to own the file.
        database = open_database(self.uri)
        try:
            yield database
        finally:
            database.close()

    def begun(self, number: int) -> list[tuple[int, float]]:
        """Which processes have begun the job, and when."""
        lines = (line.split() for line in Path(self.folder, "begun").read_text().splitlines())
        return [(int(pid), float(when)) for each, pid, when in lines if int(each) == number]

    def put(self) -> int:
        """Put a job; returns its number."""
        self._number += 1
        with self._database() as database, database.transaction() as connection:
            get_queue(connection).put(Job(hold, str(self.folder), self._number))
        return self._number

    def end(self, *numbers: int) -> None:
        """Let jobs end."""
        for number in numbers:
            Path(self.folder, f"end-{number}").touch()

    def give(self, place: Place) -> int:
        """Let that process have one job, and the other none; returns its number."""
        others = []
        while True:
            number = self.put()
            [(pid, _)] = wait_for(lambda number=number: self.begun(number), "no job is begun")
            if pid == place.process.pid:
                self.end(*others)
                return number
            others.append(number)

    def kill(self, place: Place, number: int) -> float:
        """Kill the process that has this job; the seconds until another one has begun it."""
        at = time.monotonic()
        place.kill()
        before = len(self.begun(number))
        begun = wait_for(lambda: self.begun(number)[before:], f"{number} is not begun again")
        self.end(number)
        return float(begun[0][1] - at)

    def close(self) -> None:
        for place in self.places:
            place.kill()


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """A server at a socket; the URI for its clients."""
    address = str(folder / "socket")
    with Path(folder, "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "perdure.server", "-a", address, "-f", str(folder / "data.fs")],
            stderr=log,
        )
    try:
        wait_for(lambda: os.path.exists(address), "the server does not start")
        yield f"zeo://{address}?wait_timeout=60"
    finally:
        process.terminate()
        process.wait(LIMIT_SECONDS)


def measure(folder: Path, kind: str, kills: int, longest: float) -> list[float]:
    """The seconds of each take-over."""
    found = []
    with contextlib.ExitStack() as stack:
        uri = stack.enter_context(server(folder)) if kind == "server" else f"{folder / 'data.fs'}"
        stage = Stage(folder, uri)
        stack.callback(stage.close)
        # The first of the places owns the file.
        for _ in range(kills):
            victim = stage.places[1 if kind == "other" else 0]
            number = stage.give(victim)
            threading.Event().wait(random.uniform(0, longest))
            found.append(stage.kill(victim, number))
            victim.start()
            if kind != "other":
                stage.places.reverse()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--longest", type=float, default=3.0, help="seconds before a kill")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    random.seed(given.seed)
    print(f"{'killed':8} {'kills':>5} {'median':>8} {'90th':>8} {'worst':>8}")
    for kind in given.kinds:
        with tempfile.TemporaryDirectory(prefix="perdure-") as folder:
            found = measure(Path(folder), kind, given.kills, given.longest)
        found.sort()
        print(
            f"{kind:8} {len(found):5} {statistics.median(found):8.2f} "
            f"{found[int(len(found) * 0.9 + 0.5) - 1]:8.2f} {found[-1]:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
