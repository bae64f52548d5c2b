"""What the jobs of the driver do, and what they leave behind to be counted.

Each piece of work has a number. What it does in the database is noted in a `Ledger` under
keys that begin with that number; what it does elsewhere is a line in a file.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import transaction
from BTrees.OOBTree import OOBTree
from persistent import Persistent

from catastrophes.stage import FOLDER
from perdure.model import (
    GiveUp,
    Interrupted,
    Job,
    Reschedule,
    Retry,
    RetryCommonForever,
    RetryPolicy,
    local,
)

ONCE_FILE = "once.lines"
QUOTA_FILE = "quota.lines"
POISON_FILE = "poison.lines"

RESCHEDULES = 2
FIRST_FEW_COMMITS = 3


class Ledger(Persistent):
    """What was done, how often, and how much in all."""

    def __init__(self) -> None:
        self.entries = OOBTree()
        self.count = 0

    def note(self, key: str) -> str:
        """Note that it was done, once more."""
        self.entries[key] = self.entries.get(key, 0) + 1
        self.count += 1
        return key


def forever(job: Job) -> RetryPolicy:
    """Make the policy of jobs that are not to fail for any catastrophe."""
    return RetryCommonForever(job)


def pause(seconds: float) -> None:
    """Take that long."""
    if seconds:
        threading.Event().wait(seconds)


def write_line(name: str, /, **values: Any) -> None:
    """Append a line to a file that all workers write."""
    data = (json.dumps(values) + "\n").encode()
    descriptor = os.open(
        Path(os.environ[FOLDER], name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
    )
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


# Transactional work


def note(ledger: Ledger, key: str, before: float = 0, after: float = 0) -> str:
    """Note a key, and take some time before and after."""
    pause(before)
    ledger.note(key)
    pause(after)
    return key


def note_and_fail(ledger: Ledger, key: str) -> None:
    """Note a key and raise, so that it is not noted."""
    ledger.note(key)
    raise ValueError(key)


def note_after(ledger: Ledger, key: str, result: Any) -> str:
    """As a callback: note a key."""
    return ledger.note(key)


def note_post(ledger: Ledger, key: str, *parts: Job) -> int:
    """As a postprocess: note a key, and return how many parts there were."""
    ledger.note(key)
    return len(parts)


def note_and_return_job(ledger: Ledger, key: str, depth: int, seconds: float) -> Job:
    """Note a key and return a job that does so as well, that many times."""
    ledger.note(f"{key}/{depth}")
    if depth <= 1:
        made = Job(note, ledger, f"{key}/0", seconds)
    else:
        made = Job(note_and_return_job, ledger, key, depth - 1, seconds)
    made.retry_policy_factory = forever
    return made


class ComesLater(Exception):
    """The job wants to be run later."""


class Later(RetryCommonForever):
    """Reschedules a job that wants it."""

    def on_receive(self, message: Any) -> Any:
        if not isinstance(message, Interrupted) and message.failure.check(ComesLater):
            self.data["later"] = self.data.get("later", 0) + 1
            self._p_changed = True
            if self.data["later"] > RESCHEDULES:
                return GiveUp()
            return Reschedule(timedelta(seconds=0.3 * self.data["later"]))
        return super().on_receive(message)


def note_at_last(ledger: Ledger, key: str) -> str:
    """Want to be run later, a few times, and then note a key."""
    ledger.note(key)
    if local.get_job().get_retry_policy().data.get("later", 0) < RESCHEDULES:
        raise ComesLater(key)
    return key


# Work that commits by itself


class Claims(Persistent):
    """By which claim of a job, and in which process, each commit was made, and when.

    Two that commit do not conflict here, so that only the fence keeps them apart.
    """

    def __init__(self) -> None:
        self._made = OOBTree()

    def note(self, claim: int) -> None:
        """Note that this process commits for that claim."""
        self._made[time.monotonic(), os.getpid()] = claim

    def made(self) -> list[tuple[int, int]]:
        """Return claims and processes, in the order of the commits."""
        return [(claim, pid) for (_, pid), claim in self._made.items()]


def commit_by_itself(claims: Claims, seconds: float) -> int:
    """Commit a few times, and note each time which claim of this job does so."""
    number: int = local.get_job()._claim
    for _ in range(FIRST_FEW_COMMITS):
        claims.note(number)
        transaction.commit()
        pause(seconds)
    claims.note(number)
    return number


# Work outside of the database


def write_once(number: int, seconds: float) -> int:
    """Write a line, with a policy that never lets it be written again."""
    pause(seconds)
    write_line(ONCE_FILE, number=number)
    pause(seconds)
    return number


def occupy(quota: str, number: int, seconds: float) -> int:
    """Write when it begins and ends to occupy a place of the quota."""
    job = local.get_job()
    values = {"quota": quota, "number": number, "claim": job._claim, "pid": os.getpid()}
    write_line(QUOTA_FILE, what="begin", at=time.monotonic(), **values)
    pause(seconds)
    write_line(QUOTA_FILE, what="end", at=time.monotonic(), **values)
    return number


def kill_own_process(number: int) -> None:
    """Take the process down, each time."""
    write_line(POISON_FILE, number=number, pid=os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


class ThreeTimes(RetryPolicy):
    """Gives up at the third interruption, so that poison does not take all day."""

    def on_receive(self, message: Any) -> Any:
        if not isinstance(message, Interrupted):
            return GiveUp()
        self.data["interruptions"] = self.data.get("interruptions", 0) + 1
        self._p_changed = True
        return GiveUp() if self.data["interruptions"] > 2 else Retry()
