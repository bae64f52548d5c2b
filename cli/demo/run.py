"""The demo from its beginning to its end."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace

from rich.console import Console

from perdure.cli.demo.comparing import compare
from perdure.cli.demo.database import (
    FILE_NAME,
    make_folder,
    open_database,
    put_files,
    read_index,
)
from perdure.cli.demo.files import Listing, list_files
from perdure.cli.demo.jobs import Index
from perdure.cli.demo.process import WorkerProcess
from perdure.cli.demo.progress import JobProgress
from perdure.cli.demo.report import Crash, Outcome, print_outcome, print_summary
from perdure.cli.errors import CommandError, shown
from perdure.model import Clock, Job, Status, check

__all__ = ["Settings", "run_demo"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the demo was told; `folder` None is the standard library."""

    folder: str | None = None
    database: str | None = None
    limit: int = 1500
    workers: int = 4
    crash: bool = True


def run_demo(settings: Settings, console: Console, clock: Clock) -> int:
    """Run the demo and print its report; return 0 if all agrees, else 1.

    Raises `CommandError` where it cannot be run. Ends the worker process in any case.
    """
    listing = list_files(settings.folder, settings.limit)
    folder = make_folder(settings.database)
    file = os.path.join(folder, FILE_NAME)
    _announce(console, settings, listing)
    try:
        put_files(file, listing)
        with JobProgress(console, len(listing.names), clock) as progress:
            crash = _work(file, settings, progress)
            seconds = progress.seconds
        return _judge(console, clock, file, crash, seconds)
    finally:
        _say(console, f"The database is in {folder}")


def _announce(console: Console, settings: Settings, listing: Listing) -> None:
    number = len(listing.names)
    _say(
        console,
        f"Counting the words of {'the first ' if listing.more else ''}{number:,} "
        f"file{'s' if number != 1 else ''} below {listing.folder}"
        + (" (there are more, see --limit)" if listing.more else "")
        + f", a job each, {settings.workers} at once",
    )
    for name in listing.unlisted:
        _say(console, f"left out, because it cannot be listed: {name}")


def _say(console: Console, text: str) -> None:
    console.print(shown(text), soft_wrap=True, markup=False, highlight=False)


def _work(file: str, settings: Settings, progress: JobProgress) -> Crash | None:
    """Have the work done, by two processes where the first is killed."""
    crash = None
    if settings.crash:
        crash = _work_until_killed(file, settings, progress)
        progress.say(
            f"killed process {crash.pid} after {crash.done:,} jobs, {crash.running:,} running; "
            "starting another"
        )
    with WorkerProcess(file, settings.workers) as worker:
        for done in worker.progress():
            progress.update(done)
    return crash


def _work_until_killed(file: str, settings: Settings, progress: JobProgress) -> Crash:
    with WorkerProcess(file, settings.workers, stay=True) as worker:
        for done in worker.progress():
            progress.update(done)
            if done * 2 >= progress.total:
                worker.kill()
                break
        else:
            raise CommandError("the worker process ended before it was killed")
    with open_database(file, read_only=True) as database, read_index(database) as index:
        found = Counter(_stage(each.job) for each in index.files.values())
    return Crash(worker.pid, found["done"], found["running"], found["taken"])


def _stage(job: Job) -> str:
    if job.status is Status.COMPLETED:
        return "done"
    if _running(job):
        return "running"
    return "taken" if job.status in (Status.ASSIGNED, Status.CALLBACKS) else "waiting"


def _running(job: Job) -> bool:
    """Tell whether the job's own call, or that of a callback, was under way."""
    calls = [job, *job.descendants()]
    return any(each.status is Status.ACTIVE for each in calls)


def _judge(console: Console, clock: Clock, file: str, crash: Crash | None, seconds: float) -> int:
    """Look at what was stored, count all again, and print both; return the exit status."""
    with open_database(file, read_only=True) as database:
        with read_index(database) as index:
            if crash is not None:
                crash = replace(crash, run_again=_run_again(index))
            begun = clock.monotonic()
            comparison = compare(index)
            plain_seconds = clock.monotonic() - begun
            jobs = len(index.files) + index.merges
            if index.summary is not None:
                print_summary(console, index.summary)
        outcome = Outcome(jobs, seconds, plain_seconds, crash, comparison, check(database))
    print_outcome(console, outcome)
    return 0 if outcome.agrees else 1


def _run_again(index: Index) -> int:
    """Count the files of which a call was interrupted, and so begun again."""
    return sum(
        any(_interruptions(call) for call in [file.job, *file.job.descendants()])
        for file in index.files.values()
    )


def _interruptions(job: Job) -> int:
    # Only looked at: where there is no policy yet, the one made here is dropped.
    found: int = job.get_retry_policy().data.get("interruptions", 0)
    return found
