"""A soak of jobs that wait for jobs and coroutines, with their processes killed.

    python -m tests.soak_jobs --minutes 1 --processes 3 --jobs 200 --seed 1

Processes that share a file run jobs of all kinds that wait: serial and parallel ones, chains,
coroutines, callbacks that wait, and some of these inside others. Meanwhile they are killed
(SIGKILL), suspended until the others take them for dead (SIGSTOP, SIGCONT), and stopped in good
order (SIGTERM). What has ended is started again.

Wrong is: a job that has not ended within five minutes after that; a piece of work that was done
twice, or not at all; anything that `check` finds. It prints numbers; the exit status is 1, and
the seed is named, if anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
PATIENCE_SECONDS = 300.0


class Soak:
    """A run of the driver."""

    def __init__(self, folder: Path, processes: int, jobs: int, seed: int) -> None:
        self.path = str(folder / "soak.fs")
        self.log = folder / "log"
        self.processes = processes
        self.jobs = jobs
        self.random = random.Random(seed)
        self.numbers: Counter[str] = Counter()
        self.running: list[subprocess.Popen[bytes]] = []

    def prepare(self) -> None:
        """Put the jobs."""
        from perdure.model import get_queue, install
        from perdure.storage import open_database
        from support.waiting import KINDS, Count, forever

        database = open_database(self.path)
        install(database)
        with database.transaction() as connection:
            made = []
            for number in range(self.jobs):
                length, make = KINDS[number % len(KINDS)]
                counts = [Count() for _ in range(length)]
                job = get_queue(connection).put(make(counts), retry_policy_factory=forever)
                made.append((number % len(KINDS), job, counts))
            connection.root()["made"] = made
        database.close()

    def start(self) -> None:
        self.numbers["started"] += 1
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self.log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "support.waiting", self.path],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        self.running.append(process)

    def disturb(self, seconds: float) -> None:
        """Do one thing after another to the processes, for that long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rest(self.random.uniform(0.7, 2))
            process = self.random.choice(self.running)
            what = self.random.choice(["killed", "killed", "killed", "suspended", "stopped"])
            self.numbers[what] += 1
            if what == "suspended":
                process.send_signal(signal.SIGSTOP)
                rest(self.random.uniform(0, 8))
                process.send_signal(signal.SIGCONT)
                continue
            process.send_signal(signal.SIGKILL if what == "killed" else signal.SIGTERM)
            process.wait(PATIENCE_SECONDS)
            self.running.remove(process)
            self.start()

    def look(self, *, final: bool = False) -> list[str]:
        """Return what is wrong, or, before the end, what has not ended."""
        from perdure.model import Status, check
        from perdure.storage import open_database

        found = []
        database = open_database(self.path, create=False)
        connection = database.open()
        try:
            for kind, job, counts in connection.root()["made"]:
                done = [each.value for each in counts]
                ended = job.status is Status.COMPLETED
                if not ended or (final and set(done) != {1}):
                    found.append(f"{job!r} of kind {kind} is {job.status.name}, done: {done}")
            if final:
                found += check(database)
        finally:
            connection.close()
            database.close()
        return found

    def run(self, seconds: float) -> list[str]:
        """Return what was wrong."""
        self.prepare()
        for _ in range(self.processes):
            self.start()
        self.disturb(seconds)
        end = time.monotonic() + PATIENCE_SECONDS
        while self.look() and time.monotonic() < end:
            rest(2)
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            process.wait(PATIENCE_SECONDS)
        return self.look(final=True)

    def end(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()


def rest(seconds: float) -> None:
    threading.Event().wait(seconds)


def main(arguments: Any = None) -> int:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args(arguments)
    # What is stored names modules as the workers import them, from the folder of the tests.
    sys.path.insert(0, str(TESTS))
    folder = Path(tempfile.mkdtemp(prefix="perdure-soak-"))
    soak = Soak(folder, given.processes, given.jobs, given.seed)
    try:
        wrong = soak.run(given.minutes * 60)
    finally:
        soak.end()
    print(f"seed {given.seed}, {given.jobs} jobs")
    for what, number in sorted(soak.numbers.items()):
        print(f"{number:8} {what}")
    for line in wrong:
        print(f"wrong: {line}")
    if wrong:
        print(f"failed with --seed {given.seed}; the database and the log are in {folder}")
        return 1
    shutil.rmtree(folder)
    print("nothing was wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
