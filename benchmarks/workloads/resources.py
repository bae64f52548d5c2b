"""W7, W8, W10: bytes in the file, and what a process needs of the machine."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from ZODB.FileStorage import FileIterator

from benchmarks.jobs import log_to, note, noted
from benchmarks.processes import runner, wait_for, worker
from benchmarks.stage import WORKERS, note_jobs, stage_on_file
from benchmarks.workload import Bar, Figure, Run, Workload, WrongError
from perdure.actors import start

__all__ = ["WORKLOADS"]

ALONE = (500, 20)
BULK = (10_000, 200)
IDLE_SECONDS = (90, 2)
SETTLE_SECONDS = (10, 1)
HELD = (1_000_000, 500)
FIRST = (10_000, 100)
PING_SECONDS = 30
PATIENCE = timedelta(seconds=60)
LONG_SECONDS = 3600.0


def grow(run: Run) -> Mapping[str, float]:
    """Let jobs be put and done, one after the other, and then many at once."""
    log_to(run.folder / "log")
    path = run.folder / "app.fs"
    with stage_on_file(run.folder) as stage:
        with start(stage.database, {"": WORKERS}) as system:
            # What the first one imports and registers is no job's.
            system.wait(system.put(note), timeout=PATIENCE)
            before = os.path.getsize(path)
            for _ in range(run.size(*ALONE)):
                system.wait(system.put(note), timeout=PATIENCE)
            done = stage.wait_until_done(1 + run.size(*ALONE))
        alone = (os.path.getsize(path) - before) / run.size(*ALONE)
        before = os.path.getsize(path)
        number = stage.fill(note_jobs(run.size(*BULK), transactional=True))
        with start(stage.database, {"": WORKERS}):
            stage.wait_until_done(done + number)
        bulk = (os.path.getsize(path) - before) / number
    return {"alone": alone, "in bulk": bulk}


class Usage:
    """What a process has used of the machine, as the kernel says."""

    def __init__(self, pid: int) -> None:
        folder = Path("/proc", str(pid))
        if not folder.exists():
            raise WrongError(f"{folder} does not exist: this workload needs a Linux with /proc")
        self._folder = folder

    def _status(self, name: str) -> float:
        for line in self._folder.joinpath("status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
        raise WrongError(f"{self._folder / 'status'} has no {name}")

    @property
    def rss(self) -> float:
        """Its memory, in MB."""
        return self._status("VmRSS")

    @property
    def peak(self) -> float:
        """The most that it had."""
        return self._status("VmHWM")

    @property
    def cpu_seconds(self) -> float:
        """The time of processors that it has taken."""
        fields = self._folder.joinpath("stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rest(run: Run) -> Mapping[str, float]:
    """Let a process have nothing to do."""
    log_to(run.folder / "log")
    path = run.folder / "app.fs"
    with stage_on_file(run.folder) as stage:
        stage.fill(note_jobs(WORKERS, transactional=False))
    with runner(path, "runner") as process:
        wait_for(lambda: noted(run.folder / "log") == WORKERS, "the first jobs are not done")
        threading.Event().wait(run.size(*SETTLE_SECONDS))
        usage = Usage(process.pid)
        run.progress(f"W8: waits for {run.size(*IDLE_SECONDS)} s")
        before, cpu, begun = os.path.getsize(path), usage.cpu_seconds, time.monotonic()
        threading.Event().wait(run.size(*IDLE_SECONDS))
        passed = time.monotonic() - begun
        rss, cpu, after = usage.rss, usage.cpu_seconds - cpu, os.path.getsize(path)
    pings = run.size(*IDLE_SECONDS) // PING_SECONDS + 1
    return {
        "memory": rss,
        "a core": 100 * cpu / passed,
        "commits besides the pings": max(0, _commits(path, before, after) - pings),
    }


def _commits(path: Path, start: int, stop: int) -> int:
    """How many transactions a file has between two positions."""
    with contextlib.closing(FileIterator(str(path))) as every:
        return sum(1 for each in every if start <= each._tpos < stop)


def drain_many(run: Run) -> Mapping[str, float]:
    """Let a process do very many jobs, and look how it grows."""
    number = run.jobs or run.size(*HELD)
    first = min(run.size(*FIRST), number)
    log = run.folder / "log"
    log_to(log)
    with stage_on_file(run.folder) as stage:
        stage.fill(
            note_jobs(number, transactional=True),
            lambda done: run.progressed("W10, put", done, number),
        )
    with worker(str(run.folder / "app.fs"), run.folder, "worker") as process:
        usage = Usage(process.pid)
        process.tell("go")
        process.line()
        begun = time.perf_counter()
        process.tell(f"done {number}")
        wait_for(lambda: noted(log) >= first, "the first jobs are not done", LONG_SECONDS)
        early, sorted_in = usage.rss, time.perf_counter() - begun
        threading.Thread(target=_watch, args=(run, log, number), daemon=True).start()
        if int(process.line()) != number or noted(log) < number:
            raise WrongError(f"of {number} jobs {noted(log)} were run")
        passed = time.perf_counter() - begun
        late, peak = usage.rss, usage.peak
    return {
        "growth": late - early,
        "early": early,
        "at most": peak,
        "until then": sorted_in,
        "drained": number / passed,
    }


def _watch(run: Run, log: Path, number: int) -> None:
    with contextlib.suppress(OSError):
        while (done := noted(log)) < number:
            run.progressed("W10, run", done, number)
            threading.Event().wait(5)


WORKLOADS = (
    Workload(
        "W7",
        "growth of the file for a job, from put to completed",
        "FileStorage; alone: {alone} jobs as in W2d, each put when the one before was done; in "
        "bulk: {bulk} transactional jobs, put in commits of 1,000, 4 workers; no pack",
        (
            Figure("alone", "bytes", (Bar(most=1_800),)),
            Figure("in bulk", "bytes", (Bar(most=900),)),
        ),
        grow,
        rounds=1,
        sizes={"alone": ALONE, "bulk": BULK},
    ),
    Workload(
        "W8",
        "a process with nothing to do",
        "`perdure run` on a file with 4 workers, each of which has run a job; {idle} s, of which "
        "one ping each 30 s is the only commit",
        (
            Figure("memory", "MB", (Bar(most=60),)),
            Figure("a core", "%", (Bar(most=0.3),)),
            Figure("commits besides the pings", "", (Bar(most=0),)),
        ),
        rest,
        rounds=1,
        sizes={"idle": IDLE_SECONDS},
    ),
    Workload(
        "W10",
        "memory while {held} jobs are drained",
        "FileStorage with fsync; one process, 4 workers; {held} transactional jobs as in W2, put "
        "before by another process; resident memory at the last job, less that "
        "after the first {first} (early)",
        (
            Figure("growth", "MB", (Bar(most=60),)),
            Figure("early", "MB"),
            Figure("at most", "MB"),
            Figure("until then", "s"),
            Figure("drained", "/s"),
        ),
        drain_many,
        rounds=1,
        sizes={"held": HELD, "first": FIRST},
    ),
)
