"""The driver: a workload, and meanwhile catastrophes; then everything must have come out right.

It starts a ZEO server and workers, puts work of all kinds, and keeps an account of each put
that was acknowledged. Meanwhile it kills, suspends and ends workers, kills and suspends the
server, cuts connections, lets the disk be full, and lets clocks jump. Then it makes everything
whole, waits until all work has ended, and compares. What happens is chosen by the seed; when
exactly, by the machine.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ZODB
from transaction.interfaces import TransientError
from ZODB.FileStorage import FileStorage

from catastrophes.books import Books
from catastrophes.faults import FAULTS
from catastrophes.putting import Putter
from catastrophes.stage import Stage
from catastrophes.troubles import WEIGHTS, Troubles
from catastrophes.verdict import progress, unended, verdict

__all__ = ["Outcome", "drive", "main"]

WORK_WEIGHTS = {
    "note": 10,
    "hot": 8,
    "deadline": 3,
    "once": 5,
    "callbacks": 5,
    "composite": 3,
    "returns": 3,
    "later": 2,
    "quota": 6,
    "own-commits": 3,
    "group": 4,
}
_POISON_EVERY = 400
"""One in so many pieces of work is poison."""

_WORKER_SIZE = 4
_TELL_EVERY_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: what was found, and how much there was of everything."""

    findings: tuple[str, ...]
    counts: dict[str, int]


def drive(
    seconds: float,
    seed: int,
    *,
    folder: Path,
    workers: int = 4,
    fault: str | None = None,
    put_pause_seconds: float = 0.03,
    patience_seconds: float = 150,
    longest_jump_seconds: float = 150,
    tell: bool = True,
) -> Outcome:
    """Make trouble for that long, let everything end, and return what was found."""
    run = _Run(
        seed,
        folder,
        workers,
        fault,
        put_pause_seconds,
        patience_seconds,
        longest_jump_seconds,
        tell,
    )
    try:
        return run.run(seconds)
    finally:
        run.close()


class _Run:
    def __init__(
        self,
        seed: int,
        folder: Path,
        workers: int,
        fault: str | None,
        put_pause_seconds: float,
        patience_seconds: float,
        longest_jump_seconds: float,
        tell: bool,
    ) -> None:
        self._tell = tell
        # A job that was put off by a clock that is ahead comes as much later.
        self._patience_seconds = patience_seconds
        if fault is None:
            self._patience_seconds += longest_jump_seconds
        self._stage = Stage(folder)
        self._books = Books(folder / "books.lines")
        self._stage.start_server()
        self._database = self._stage.database("driver")
        names = [] if fault is None else [fault]
        for _ in range(workers):
            self._stage.place(size=_WORKER_SIZE, faults=names)
        work = {kind: weight * _POISON_EVERY for kind, weight in WORK_WEIGHTS.items()}
        work["poison"] = sum(WORK_WEIGHTS.values())
        troubles, pause_seconds = WEIGHTS, 1.5
        if fault is not None:
            pause_seconds = FAULTS[fault].pause_seconds
            work, troubles = dict(FAULTS[fault].work), dict(FAULTS[fault].troubles)
        self._putter = Putter(self._database, self._books, seed, work, put_pause_seconds)
        self._troubles = Troubles(
            self._stage, self._books, seed, troubles, pause_seconds, longest_jump_seconds
        )

    def run(self, seconds: float) -> Outcome:
        self._putter.install()
        for place in self._stage.places:
            self._troubles.start_worker(place)
        self._putter.start()
        self._troubles.start()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            threading.Event().wait(min(left, _TELL_EVERY_SECONDS))
            self._say(f"{max(0, end - time.monotonic()):.0f} s of trouble are left")
        self._putter.stop()
        self._troubles.stop()
        self._say("everything is whole again, and ends")
        self._wait_until_ended()
        self._troubles.end_workers()
        self._stage.end()
        return self._judge()

    def _say(self, text: str) -> None:
        if self._tell:
            counts = self._books.counts
            made = sum(counts[kind] for kind in counts if not kind.startswith(("jobs", "failed")))
            print(
                f"{text}; {len(self._books.acknowledged)} jobs put, {made} troubles, "
                f"{len(self._books.findings)} findings",
                flush=True,
            )

    def _wait_until_ended(self) -> None:
        """Return when all work has ended, or when nothing has moved for long."""
        last: tuple[int, ...] = ()
        moved = time.monotonic()
        left = 1
        while left:
            self._troubles.mend_deaths()
            try:
                with self._database.transaction() as connection:
                    now = progress(connection)
                    left = len(unended(connection))
                    waiting = now[1]
            except TransientError:
                now, waiting = last, 1
            left = left or waiting
            if now != last:
                last, moved = now, time.monotonic()
            if left and time.monotonic() - moved > self._patience_seconds:
                self._books.found(
                    f"{left} jobs have not ended, and nothing has moved for "
                    f"{self._patience_seconds} s"
                )
                return
            threading.Event().wait(0.5 if left else 0)

    def _judge(self) -> Outcome:
        # The file is opened as whoever comes later finds it.
        database = ZODB.DB(FileStorage(str(self._stage.file)))
        try:
            found = verdict(database, self._stage.folder, self._books)
        finally:
            database.close()
        self._books.counts["jobs acknowledged"] = len(self._books.acknowledged)
        self._books.counts["jobs in doubt"] = len(self._books.in_doubt)
        return Outcome((*self._books.findings, *found), dict(self._books.counts))

    def close(self) -> None:
        self._putter.stop()
        self._troubles.stop()
        self._stage.close()
        self._books.close()


def main(args: Sequence[str] | None = None) -> int:
    """Run the driver; return 0 where nothing was found, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.catastrophes", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to make trouble")
    parser.add_argument("--seed", type=int, default=1, help="chooses what happens")
    parser.add_argument("--workers", type=int, default=4, help="how many worker processes")
    parser.add_argument(
        "--fault", choices=sorted(FAULTS), help="switch a deliberate fault on, to be found"
    )
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="keep logs and database there")
    given = parser.parse_args(args)
    folder = given.keep or Path(tempfile.mkdtemp(prefix="perdure-catastrophes-"))
    keep = given.keep is not None
    folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    logging.basicConfig(filename=folder / "driver.log", level=logging.WARNING)
    try:
        outcome = drive(
            60 * given.minutes,
            given.seed,
            folder=folder,
            workers=given.workers,
            fault=given.fault,
            patience_seconds=150 if given.fault is None else 20,
        )
    except KeyboardInterrupt:
        print("interrupted; every process was ended", file=sys.stderr)
        return 130
    else:
        for what, count in sorted(outcome.counts.items()):
            print(f"{count:8}  {what}")
        for sentence in outcome.findings:
            print(f"FOUND: {sentence}")
        if outcome.findings:
            keep = True
            print(f"{len(outcome.findings)} findings with seed {given.seed}; see {folder}")
            return 1
        print(f"seed {given.seed}: nothing was lost, and nothing happened twice")
        return 0
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
