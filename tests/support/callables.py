"""What the jobs of the tests call, and what their agents choose by."""

from __future__ import annotations

from typing import Any

from persistent import Persistent

from perdure.model import Agent, Job

asked: list[Job] = []
"""The jobs that `counting_filter` was asked about; to be cleared by who uses it."""


def nothing(*args: Any, **kwargs: Any) -> None:
    pass


def echo(value: Any) -> Any:
    return value


def fail(*args: Any) -> None:
    raise ValueError("it fails")


def takes_even(job: Job) -> bool:
    return bool(job.args) and job.args[0] % 2 == 0


def takes_odd(job: Job) -> bool:
    return bool(job.args) and job.args[0] % 2 == 1


def takes_none(job: Job) -> bool:
    return False


def takes_all(job: Job) -> bool:
    return True


def takes_failing(job: Job) -> bool:
    return job.callable_name.endswith(":fail")


def takes_large(job: Job) -> bool:
    return bool(job.args) and job.args[0] >= 10


def counting_filter(job: Job) -> bool:
    asked.append(job)
    return False


def raising_filter(job: Job) -> bool:
    raise RuntimeError("the filter is broken")


def choose_first(agent: Agent) -> Job | None:
    found: Job | None = agent.queue.claim()
    return found


def choose_even(agent: Agent) -> Job | None:
    found: Job | None = agent.queue.claim(takes_even)
    return found


def choose_without_claiming(agent: Agent) -> Job | None:
    return agent.queue[0]


def choose_and_lose(agent: Agent) -> Job | None:
    agent.queue.claim()
    return None


class Account(Persistent):
    """An object of the application."""

    def __init__(self, balance: int = 0) -> None:
        self.balance = balance

    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance
