"""Whatever is done to a queue, in whatever order, it agrees with a few plain dicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ZODB.MappingStorage import MappingStorage

from perdure.model import BadStatusError, Job, Status
from perdure.model.internal import InternalJob
from perdure.model.logs import events, trace
from support.callables import echo
from support.world import SECOND, World

QUOTAS = ("mail", "disk")


@dataclass
class Expected:
    """What one job should be, in seconds since the start."""

    number: int
    quotas: tuple[str, ...] = ()
    begin_after: float | None = None
    begin_by: float | None = None
    where: str = "new"
    first: bool = False
    due: float = 0
    order: int = 0
    keeps: bool = False
    holds: set[str] = field(default_factory=set)

    @property
    def position(self) -> tuple[float, int]:
        return (-1 if self.first else self.due), self.order

    def late(self, now: float) -> bool:
        return (
            self.begin_by is not None
            and self.begin_after is not None
            and self.begin_after + self.begin_by < now
        )


class QueueMachine(RuleBasedStateMachine):
    """One process: so the order of claims is exact."""

    def __init__(self) -> None:
        super().__init__()
        events.disabled = trace.disabled = True
        self.world = World(MappingStorage())
        self.view = self.world.view()
        self.start = self.world.clock.now()
        self.size = {"mail": 1, "disk": 2}
        for name, size in self.size.items():
            self.view.queue.quotas.create(name, size)
        self.view.commit()
        self.agent = self.view.agent(size=100)
        self.jobs: dict[int, Job] = {}
        self.expected: dict[int, Expected] = {}
        self.orders = 0

    def teardown(self) -> None:
        self.world.close()
        events.disabled = trace.disabled = False

    # The plain half.

    @property
    def now(self) -> float:
        return (self.world.clock.now() - self.start).total_seconds()

    def of(self, *where: str) -> list[Expected]:
        return [each for each in self.expected.values() if each.where in where]

    def waiting(self) -> list[Expected]:
        return sorted(self.of("waiting"), key=lambda each: each.position)

    def in_line(self) -> list[Expected]:
        """What waits, with the internal jobs at the places of those that they deal with."""
        return sorted(
            self.of("waiting", "failing", "interrupted", "resuming"),
            key=lambda each: each.position,
        )

    def can_be_had(self, each: Expected) -> bool:
        due = each.first or each.due <= self.now
        return due and (each.where != "waiting" or self.has_room(each))

    def enter(self, each: Expected, due: float | None, *, first: bool = False) -> None:
        self.orders += 1
        each.where, each.first, each.order = "waiting", first, self.orders
        if due is not None:
            each.begin_after = due
        elif each.begin_after is None:
            each.begin_after = self.now
        each.due = max(each.begin_after, self.now)

    def used(self, name: str) -> int:
        return sum(1 for each in self.expected.values() if name in each.holds)

    def has_room(self, each: Expected) -> bool:
        return all(
            name not in self.size or name in each.holds or self.used(name) < self.size[name]
            for name in each.quotas
        )

    def leave(self, each: Expected) -> None:
        each.holds, each.keeps, each.first = set(), False, False

    # The rules.

    def pick(self, data: st.DataObject, *where: str) -> tuple[Expected, Job]:
        each = data.draw(st.sampled_from(self.of(*where)))
        return each, self.jobs[each.number]

    @rule(
        quotas=st.sampled_from([(), ("mail",), ("disk",), ("disk", "mail")]),
        begin_after=st.none() | st.integers(-3, 5),
        begin_by=st.none() | st.integers(0, 6),
        stored=st.booleans(),
    )
    def make_and_put(
        self,
        quotas: tuple[str, ...],
        begin_after: int | None,
        begin_by: int | None,
        stored: bool,
    ) -> None:
        number = len(self.jobs)
        each = self.expected[number] = Expected(number, quotas, begin_by=begin_by)
        job = self.jobs[number] = Job(echo, number)
        job.quota_names = tuple(name for name in quotas if name in self.size)
        each.quotas = job.quota_names
        if begin_by is not None:
            job.begin_by = begin_by * SECOND
        if stored:
            self.view.connection.add(job)
            self.view.commit()
            self.view.queue.put_back(job)
            self.enter(each, None, first=True)
        else:
            moment = None if begin_after is None else self.now + begin_after
            at = None if moment is None else self.start + timedelta(seconds=moment)
            self.view.queue.put(job, begin_after=at)
            self.enter(each, moment)
        self.view.commit()

    @precondition(lambda self: self.of("new"))
    @rule(data=st.data(), back=st.booleans())
    def put_again(self, data: st.DataObject, back: bool) -> None:
        each, job = self.pick(data, "new")
        known = tuple(name for name in each.quotas if name in self.size)
        job.quota_names = each.quotas = known
        if back:
            self.view.queue.put_back(job)
        else:
            self.view.queue.put(job)
        self.enter(each, None, first=back)
        self.view.commit()

    @rule()
    def claim(self) -> None:
        for each in self.waiting():
            if each.late(self.now):
                # It is failed from now on, in its place, whoever changes or wants it.
                each.where = "failing"
                each.holds, each.keeps = set(), False
        found = next((each for each in self.in_line() if self.can_be_had(each)), None)
        claimed = self.agent.claim_job()
        self.view.commit()
        if found is None:
            assert claimed is None
            return
        job = self.jobs[found.number]
        if found.where == "waiting":
            assert claimed is job
            found.where, found.keeps = "assigned", False
            found.holds = {name for name in found.quotas if name in self.size}
            return
        assert isinstance(claimed, InternalJob) and claimed.serves is job
        interrupted = found.where == "interrupted"
        self.view.run(claimed)
        if interrupted and not found.late(self.now) and not job.failed:
            self.enter(found, None, first=True)
            found.keeps = True
        else:
            assert job.failed and job.status is Status.COMPLETED
            found.where = "done"
            self.leave(found)

    @precondition(lambda self: self.of("assigned"))
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        each, job = self.pick(data, "assigned")
        self.view.begin(job)
        each.where = "active"

    @precondition(lambda self: self.of("active"))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        each, job = self.pick(data, "active")
        job._end(None)
        job._complete()
        self.view.commit()
        each.where = "done"
        self.leave(each)

    @rule()
    def settle(self) -> None:
        self.agent.settle_all()
        self.view.commit()

    @precondition(lambda self: self.of("active"))
    @rule(data=st.data(), after=st.integers(0, 4))
    def reschedule(self, data: st.DataObject, after: int) -> None:
        each, job = self.pick(data, "active")
        queue = self.view.queue
        if after == 0:
            queue._enter(job, "reschedule", first=True, keeps_places=True)
            self.enter(each, None, first=True)
            each.keeps = True
        else:
            at = self.world.clock.now() + after * SECOND
            queue._enter(job, "reschedule", due=at)
            self.enter(each, self.now + after)
            self.leave(each)
        self.view.commit()

    @precondition(lambda self: self.of("assigned", "waiting"))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        each, job = self.pick(data, "assigned", "waiting")
        job.fail()
        self.view.commit()
        self.leave(each)
        self.enter(each, each.begin_after, first=True)
        each.where = "resuming"

    @precondition(lambda self: self.of("waiting"))
    @rule(data=st.data())
    def pull(self, data: st.DataObject) -> None:
        line = self.in_line()
        indexes = [index for index, each in enumerate(line) if each.where == "waiting"]
        index = data.draw(st.sampled_from(indexes))
        each = line[index]
        if data.draw(st.booleans()):
            index -= len(line)
        assert self.view.queue.pull(index) is self.jobs[each.number]
        self.view.commit()
        each.where = "new"
        self.leave(each)

    @precondition(lambda self: self.of("waiting"))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        each, job = self.pick(data, "waiting")
        self.view.queue.remove(job)
        self.view.commit()
        each.where = "new"
        self.leave(each)

    @precondition(lambda self: self.of("failing"))
    @rule(data=st.data())
    def touch_what_is_failing(self, data: st.DataObject) -> None:
        _, job = self.pick(data, "failing")
        with pytest.raises(BadStatusError):
            self.view.queue.remove(job)
        self.view.abort()

    @precondition(lambda self: self.of("waiting"))
    @rule(data=st.data(), quotas=st.sampled_from([(), ("mail",), ("mail", "disk")]))
    def change_quotas(self, data: st.DataObject, quotas: tuple[str, ...]) -> None:
        each, job = self.pick(data, "waiting")
        each.quotas = job.quota_names = tuple(name for name in quotas if name in self.size)
        each.holds &= set(each.quotas)
        self.view.commit()

    @precondition(lambda self: self.of("waiting"))
    @rule(data=st.data(), begin_by=st.none() | st.integers(0, 6))
    def change_begin_by(self, data: st.DataObject, begin_by: int | None) -> None:
        each, job = self.pick(data, "waiting")
        each.begin_by = begin_by
        job.begin_by = None if begin_by is None else begin_by * SECOND
        self.view.commit()

    @rule(name=st.sampled_from(QUOTAS), size=st.integers(0, 3))
    def change_size(self, name: str, size: int) -> None:
        quotas = self.view.queue.quotas
        if name in self.size:
            quotas[name].size = size
        else:
            quotas.create(name, size)
            for each in self.of("assigned", "active", "interrupted"):
                if name in each.quotas:
                    each.holds.add(name)
        self.size[name] = size
        self.view.commit()

    @rule(name=st.sampled_from(QUOTAS))
    def remove_quota(self, name: str) -> None:
        if self.size.pop(name, None) is not None:
            self.view.queue.quotas.remove(name)
            self.view.commit()
            for each in self.expected.values():
                each.holds.discard(name)

    @rule()
    def bury(self) -> None:
        held = [self.expected[job.args[0]] for job in self.agent]
        self.agent.record.deactivate()
        self.agent.record.activate("again")
        self.view.commit()
        for each in held:
            if each.where == "assigned":
                self.enter(each, each.begin_after)
                each.keeps = True
            elif each.where == "active":
                self.enter(each, each.begin_after, first=True)
                each.where = "interrupted"

    @rule(seconds=st.integers(1, 4))
    def advance(self, seconds: int) -> None:
        self.world.advance(seconds * SECOND)
        self.agent.record.ping()
        self.view.commit()

    @rule()
    def sweep(self) -> None:
        self.view.queue.sweep_inboxes()
        self.view.commit()

    # What always holds.

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert self.world.check() == []

    @invariant()
    def the_queue_is_as_expected(self) -> None:
        jobs = [job.serves if isinstance(job, InternalJob) else job for job in self.view.queue]
        assert [job.args[0] for job in jobs] == [each.number for each in self.in_line()]
        assert len(self.view.queue) == len(jobs)

    @invariant()
    def every_status_is_as_expected(self) -> None:
        statuses = {
            "new": {Status.NEW},
            "waiting": {Status.PENDING},
            "failing": {Status.PENDING},
            "assigned": {Status.ASSIGNED},
            "active": {Status.ACTIVE},
            "interrupted": {Status.ACTIVE},
            "resuming": {Status.CALLBACKS, Status.COMPLETED},
            "done": {Status.COMPLETED},
        }
        for number, each in self.expected.items():
            assert self.jobs[number].status in statuses[each.where], each

    @invariant()
    def no_quota_is_overrun(self) -> None:
        for name in self.view.queue.quotas:
            quota = self.view.queue.quotas[name]
            running = self.of("assigned", "active", "interrupted")
            under_way = [each for each in running if name in each.holds]
            assert len(under_way) <= quota.limit
            assert len(quota) <= quota.limit


TestQueueMachine = pytest.mark.slow(
    pytest.mark.spec("Q2", "Q3", "Q4", "Q5", "Q6", "Q8", "Q9", "D4")(QueueMachine.TestCase)
)
TestQueueMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
