"""What the jobs of a `RuntimeMachine` do, and what they leave in the database."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from BTrees.OOBTree import OOBTree
from persistent import Persistent

from perdure.model.job import Job
from perdure.model.policy import (
    Decision,
    GiveUp,
    Interrupted,
    PolicyMessage,
    Reschedule,
    Retry,
    RetryPolicy,
)
from perdure.model.ref import JobRef

__all__ = ["LEDGER", "Counter", "Effect", "Ledger", "Patient"]

LEDGER = "perdure.testing"
"""Under this key the root has the `Ledger`."""


class Effect(Persistent):
    """What one job leaves: how often it was done."""

    count = 0
    inners: tuple[Job, ...] = ()
    """The jobs that it has returned."""

    late: JobRef | None = None
    """The job, where that is a callback that was added later."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __repr__(self) -> str:
        return f"<Effect {self.key}>"

    def happen(self) -> None:
        """Count it."""
        self.count += 1


class Counter(Persistent):
    """What many jobs add to."""

    value = 0

    def __repr__(self) -> str:
        return "<Counter>"


class Ledger(Persistent):
    """The effects of all jobs, by key, and a counter that many of them want."""

    def __init__(self) -> None:
        self.effects = OOBTree()
        self.counter = Counter()

    def effect(self, key: str) -> Effect:
        """Return a new effect."""
        made: Effect = Effect(key)
        self.effects[key] = made
        return made


def succeed(effect: Effect) -> str:
    effect.happen()
    return effect.key


def fail(effect: Effect) -> None:
    effect.happen()
    raise ValueError("as asked")


def contend(effect: Effect, counter: Counter) -> str:
    effect.happen()
    counter.value += 1
    return effect.key


def return_job(effect: Effect, inner: Effect, fails: bool) -> Job:
    made = Job(fail if fails else succeed, inner)
    effect.inners = (*effect.inners, made)
    return made


async def doze(effect: Effect, seconds: float) -> str:
    await asyncio.sleep(seconds)
    effect.happen()
    return effect.key


def quit_thread(effect: Effect) -> None:
    effect.happen()
    raise SystemExit(3)


def vanish(effect: Effect) -> str:
    effect.happen()
    return effect.key


def gather(effect: Effect, *parts: Job) -> str:
    effect.happen()
    return effect.key


def hear(effect: Effect, result: Any) -> None:
    effect.happen()


async def hear_later(effect: Effect, seconds: float, result: Any) -> None:
    await asyncio.sleep(seconds)
    effect.happen()


class Patient(RetryPolicy):
    """Reschedules a job that failed, twice; lets an interrupted one wait, five times."""

    def on_receive(self, message: PolicyMessage) -> Decision:
        kind = "interruptions" if isinstance(message, Interrupted) else "reschedules"
        times = self.data[kind] = self.data.get(kind, 0) + 1
        self._p_changed = True
        if isinstance(message, Interrupted):
            return Retry(timedelta(seconds=7)) if times < 6 else GiveUp()
        return Reschedule(timedelta(seconds=20 * (times - 1))) if times < 3 else GiveUp()
