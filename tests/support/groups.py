"""Groups in the test's own thread: claimed for a desk's agent, run, gone on with, settled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import transaction

from perdure.model import Job, check, find_job, get_queue
from perdure.model.agent import Claim, Taken
from perdure.model.grouping import Experience, Group, GroupRunner
from perdure.model.lane import Lane
from support.desk import Desk, deed

__all__ = ["Groups", "records_since"]


def records_since(database: Any, tid: bytes) -> list[list[bytes]]:
    """Return the oids of the records of each commit since that one."""
    return [
        [record.oid for record in commit]
        for commit in database.storage.iterator()
        if commit.tid > tid
    ]


class Groups:
    """What a worker has for the groups of a desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.experience = Experience()
        self.lane = Lane(desk.clock)
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.runner = GroupRunner(
            transaction.manager,
            desk.clock,
            desk.stop,
            self.lane,
            self.experience,
            on_begin=lambda ref, *ignored: self.begun.append(ref),
            on_end=lambda ref, *ignored: self.ended.append(ref),
        )

    def put(self, *callables: Callable[..., Any], **settings: Any) -> list[Job]:
        """Put transactional jobs, in one commit."""
        settings.setdefault("transactional", True)
        made = [self.desk.queue.put(deed(each), **settings) for each in callables]
        transaction.commit()
        return made

    def claim(self, agent: Any = None) -> list[Taken]:
        """Claim all that there is, as if every callable were known to be quick."""
        agent = agent or self.desk.agent
        transaction.begin()
        agent.record.ping()
        taken: list[Taken] = agent.claim_jobs(lambda name: True, {})
        transaction.commit()
        return taken

    def run(self, taken: list[Taken] | None = None) -> Group:
        """Run what was claimed (default: all that can be) as one group."""
        found = self.claim() if taken is None else taken
        assert all(each.group for each in found), "one of these may not be in a group"
        claims = [(Claim(each.job.ref, each.number), each.group) for each in found]
        return self.runner.run(self.desk.connection, self.desk.agent, claims)

    def finish(self, group: Group) -> None:
        """Go on with what a group has left, and settle it all."""
        agent = self.desk.agent
        transaction.begin()
        for completion in group.completed:
            agent.settle_completed(completion)
        transaction.commit()
        for claim in (*group.alone, *group.rest):
            job = find_job(self.desk.connection, claim.ref)
            if job._is_held(agent, claim.number):
                self.desk.run(job)
        self.desk.settle()

    def work(self) -> None:
        """Claim, run and finish until there is nothing left."""
        for _ in range(100):
            taken = self.claim()
            if not taken:
                assert check(self.desk.database) == []
                return
            alone = [each.job for each in taken if not each.group]
            self.finish(self.run([each for each in taken if each.group]))
            for job in alone:
                self.desk.run(job)
        raise AssertionError("it never ends")

    def elsewhere(self, act: Callable[[Any], object]) -> None:
        """Commit something in another connection, as another process does."""
        with self.desk.elsewhere() as connection:
            act(connection)

    def bury(self) -> None:
        """Take the desk's dispatcher for dead, through another connection."""
        number = self.desk.agent.record.uuid

        def act(connection: Any) -> None:
            get_queue(connection).dispatchers[number].deactivate()

        self.elsewhere(act)


@pytest.fixture
def groups(desk: Desk) -> Iterator[Groups]:
    made = Groups(desk)
    assert desk.agent is not None
    yield made
    transaction.abort()
    assert check(desk.database) == []
