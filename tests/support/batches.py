"""Batches in the test's own thread: claimed for a desk's agent, run one by one, given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import transaction

from perdure.actors.context import Batches as Left
from perdure.actors.messages import Claimed
from perdure.actors.worker import _Batch
from perdure.model import Job, Status, check, find_job, get_queue
from perdure.model.lane import Lane
from perdure.model.places import Taken
from perdure.model.ref import JobRef
from perdure.model.retrying import begin_anew
from perdure.model.running import Runner
from support.desk import Desk, deed

__all__ = ["Batches"]

WORKER = "worker"


class Batches:
    """What a worker has for the batches of a desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.left = Left()
        self.instant = True
        self.begun: list[bool] = []
        """Of each job that was run, whether it had begun with the end of the one before."""
        self.lane = Lane(desk.clock)
        self.small: dict[bytes, int] = {}
        """The oids of those that share a place, and their parts of one."""

    def put(self, *callables: Callable[..., Any], **settings: Any) -> list[Job]:
        """Put jobs, in one commit."""
        made = [self.desk.queue.put(deed(each), **settings) for each in callables]
        transaction.commit()
        return made

    def claim(self, agent: Any = None) -> list[Taken]:
        """Claim all that there is, as if every callable were known to be over at once."""
        agent = agent or self.desk.agent
        transaction.begin()
        agent.record.ping()
        taken: list[Taken] = agent.claim_jobs(
            lambda name: True, self.small, is_brief=lambda name: self.instant
        )
        transaction.commit()
        self.small |= {each.job._p_oid: each.parts for each in taken if each.parts}
        return taken

    def run(self, taken: list[Taken] | None = None) -> None:
        """Run what was claimed (default: all that can be) as one batch."""
        found = self.claim() if taken is None else taken
        desk = self.desk
        batch = self.batch([each for each in found if each.batch])
        while (claim := batch.take()) is not None:
            begin_anew(transaction.manager)
            batch.connection = desk.connection
            job = find_job(desk.connection, claim.ref)
            if not (job._is_unbegun(claim.number) or job._was_given(claim.number)):
                self.begun.append(False)
                continue
            begun = job.status is Status.ACTIVE
            self.begun.append(begun)
            try:
                self.runner().run(job, viewed=True, begun=begun, following=batch)
            finally:
                transaction.abort()

    def batch(self, taken: list[Taken]) -> _Batch:
        """Let these be what the worker has to run."""
        context: Any = SimpleNamespace(
            stop=self.desk.stop, batches=self.left, clock=self.desk.clock
        )
        claims = [Claimed(JobRef.of(each.job), each.number, batch=True) for each in taken]
        self.left.begin(WORKER, claims)
        return _Batch(context, WORKER, self.desk.agent._p_oid)

    def runner(self) -> Runner:
        return self.desk.runner(lane=self.lane)

    def give_back(self, taken: list[Taken]) -> None:
        """Let these wait again."""
        transaction.begin()
        for each in taken:
            self.desk.agent.give_back(JobRef.of(each.job), each.number)
        transaction.commit()

    def work(self) -> None:
        """Claim, run and settle until there is nothing left."""
        for _ in range(100):
            taken = self.claim()
            if not taken:
                assert check(self.desk.database) == []
                return
            self.run(taken)
            for each in taken:
                if not each.batch:
                    self.desk.run(each.job)
            self.desk.settle()
        raise AssertionError("it never ends")

    def elsewhere(self, act: Callable[[Any], object]) -> None:
        """Commit something in another connection, as another process does."""
        with self.desk.elsewhere() as connection:
            act(connection)

    def bury(self, *, died: bool = False) -> None:
        """Take the desk's dispatcher for dead, through another connection."""
        number = self.desk.agent.record.uuid

        def act(connection: Any) -> None:
            record = get_queue(connection).dispatchers[number]
            if died:
                for agent in record.agents():
                    agent.interrupt_all(died=True)
            record.deactivate()

        self.elsewhere(act)


@pytest.fixture
def batches(desk: Desk) -> Iterator[Batches]:
    made = Batches(desk)
    assert desk.agent is not None
    yield made
    transaction.abort()
    assert check(desk.database) == []
