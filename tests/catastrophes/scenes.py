"""What the jobs of the tests do in the workers: each says how far it is, and waits at gates.

A worker opens a gate when it is told ``open NAME``.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import transaction

from catastrophes.children import say
from catastrophes.workload import Ledger, write_line
from perdure.model import Job, Status
from support.once import MadeOnce

place = ""
"""The name of this process."""

gates: MadeOnce[str, threading.Event] = MadeOnce(threading.Event)

VISITS = "visits.lines"


def command(line: str) -> None:
    """Obey ``open NAME``."""
    word, _, name = line.partition(" ")
    if word == "open":
        gates[name].set()


def pass_gate(name: str) -> None:
    """Say that it is there, and wait until it is opened."""
    say(f"at {name}")
    gates[name].wait()


def visit(name: str) -> None:
    """Leave a trace that no abort takes back."""
    write_line(VISITS, name=name, place=place, pid=os.getpid())


class Told(Job):
    """A job that says when an attempt is over."""

    def tear_down(self, info: Any) -> None:
        job_is = Status(self.status).name
        say(f"over {self.args[-1]} {job_is}")


def note_at_gate(ledger: Ledger, key: str) -> str:
    """Note a key, and wait at the gate of that name before it is committed."""
    visit(key)
    ledger.note(key)
    pass_gate(key)
    return key


def note_behind_gate(ledger: Ledger, key: str) -> str:
    """Wait at the gate, and note the key then."""
    visit(key)
    pass_gate(key)
    return ledger.note(key)


def note(ledger: Ledger, key: str) -> str:
    """Note a key, and say so."""
    visit(key)
    ledger.note(key)
    say(f"noted {key}")
    return key


def count_up_to(ledger: Ledger, key: str, total: int) -> None:
    """Note a key, and say when there are as many as there should be."""
    ledger.note(key)
    if ledger.count == total:
        say("all were counted")


def note_result(ledger: Ledger, key: str, result: Any) -> str:
    """As a callback: note a key."""
    return note(ledger, key)


def note_result_at_gate(ledger: Ledger, key: str, result: Any) -> str:
    """As a callback: note a key, and wait at its gate."""
    return note_at_gate(ledger, key)


def tell_done(key: str, result: Any) -> None:
    """As a callback: say that the result of the job is stored."""
    say(f"done {key}")


def only_once(key: str) -> str:
    """Leave a trace, and wait at the gate."""
    visit(key)
    pass_gate(key)
    return key


def poison(key: str) -> None:
    """Take the process down."""
    visit(key)
    os.kill(os.getpid(), signal.SIGKILL)


def commit_twice(ledger: Ledger, key: str) -> None:
    """Commit by itself, wait at the gate, and do so again."""
    ledger.note(f"{key}/first")
    transaction.commit()
    visit(key)
    pass_gate(key)
    ledger.note(f"{key}/second")
    transaction.commit()


class InTheCommit:
    """A data manager that does something between the vote of the database and the finish."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def sortKey(self) -> str:  # noqa: N802
        return "~"

    def tpc_vote(self, transaction: Any) -> None:
        self._call()

    def _nothing(self, transaction: Any) -> None:
        pass

    abort = commit = tpc_begin = tpc_finish = tpc_abort = _nothing


def note_and_be_suspended(ledger: Ledger, key: str) -> str:
    """Note a key, and let the process be suspended in the commit, where it is ``first``."""
    visit(key)
    ledger.note(key)
    say(f"noted {key}")
    if place == "first":

        def suspend() -> None:
            os.kill(os.getpid(), signal.SIGSTOP)
            # Other threads may be stopped a little earlier than this one.
            gates[key].wait()

        transaction.get().join(InTheCommit(suspend))
    return key


def note_and_wait_in_the_commit(ledger: Ledger, key: str) -> str:
    """Note a key, and wait at the gate of that name between vote and finish."""
    visit(key)
    ledger.note(key)
    if not gates[key].is_set():
        transaction.get().join(InTheCommit(lambda: pass_gate(key)))
    return key


def asks_at_gate(job: Job) -> bool:
    """As a filter: wait at the gate of the claim, in the process of that name."""
    if job.callable_name.startswith("catastrophes"):
        pass_gate("the claim")
    return True
