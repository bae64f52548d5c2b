"""Jobs whose code is not to be had: parked by name, found again when it is back."""

from __future__ import annotations

import importlib

import pytest
from ZEO.Exceptions import ClientDisconnected

from perdure.model import (
    BadStatusError,
    CallableNotFoundError,
    Failure,
    Job,
    JobRef,
    Status,
    find_job,
    names,
    resolving,
)
from perdure.model.agent import Claim
from perdure.model.clock import StopSignal
from perdure.model.errors import JobTimeoutError
from perdure.model.grouping import Experience, GroupRunner
from perdure.model.internal import InternalJob
from perdure.model.lane import Lane
from support.application import SOURCE
from support.callables import counting_filter, echo, nothing
from support.world import HOUR, MINUTE, SECOND


@pytest.fixture
def restart(open_file):
    """Ends the process, as far as its database goes, and begins another."""
    worlds = []

    def again():
        for world in worlds:
            world.close()
        worlds.append(open_file())
        if len(worlds) > 1:
            worlds[-1].clock.advance(MINUTE)
        return worlds[-1].view()

    return again


def own_job(module):
    return module.OwnJob(echo, 1)


def callable_by_name(module):
    return Job(module.work)


def class_called(module):
    return Job(module.Plain)


def method_of_an_object(module):
    return Job(module.Thing().method)


def argument(module):
    return Job(echo, module.Plain())


def argument_deep_inside(module):
    return Job(echo, [{"key": (module.Plain(),)}])


def persistent_argument(module):
    return Job(nothing, thing=module.Thing())


def class_as_argument(module):
    return Job(echo, module.Plain)


KINDS = [
    callable_by_name, class_called, method_of_an_object, argument, argument_deep_inside,
    persistent_argument, class_as_argument, own_job,
]  # fmt: skip


def name_of(kind):
    return {
        callable_by_name: "work",
        class_called: "Plain",
        method_of_an_object: "Thing",
        argument: "Plain",
        argument_deep_inside: "Plain",
        persistent_argument: "Thing",
        class_as_argument: "Plain",
        own_job: "OwnJob",
    }[kind]


@pytest.mark.spec("J2", "Q4")
@pytest.mark.parametrize("kind", KINDS)
def test_what_vanished_parks_its_jobs_alone_until_it_is_back(module, restart, kind):
    view = restart()
    view.put(kind(module))
    view.put(echo, "behind it, through the same inbox")
    module.vanish()

    view = restart()
    taken = view.claim()
    assert taken is not None and list(taken.args) == ["behind it, through the same inbox"]
    assert view.claim() is None
    name = f"{module.name}:{name_of(kind)}"
    [(parked, (reason, count))] = view.queue.parked().items()
    assert parked.startswith(name) and count == 1
    assert module.name in reason
    assert len(view.queue) == 1 and len(list(view.queue)) == 1
    assert view.world.check() == []

    module.come_back()
    view = restart()
    job = view.claim(view.agent(2))
    assert isinstance(job, Job) and job.status is Status.ASSIGNED
    assert view.queue.parked() == {}
    assert view.world.check() == []


@pytest.mark.spec("J2", "Q4")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not own_job])
@pytest.mark.parametrize(
    "source",
    [
        "import no_such_library\n",
        "raise RuntimeError('broken')\n",
        "def (:\n",
        "",
        "import sys\nsys.exit('not today')\n",
    ],
)
def test_an_error_inside_the_module_parks_the_job_too(module, restart, kind, source):
    view = restart()
    view.put(kind(module), begin_by=HOUR)
    view.put(echo, "sound")
    module.write(source)

    view = restart()
    taken = [view.claim(), view.claim()]
    assert [job and list(job.args) for job in taken] == [["sound"], None]
    [(name, (reason, count))] = view.queue.parked().items()
    assert name.startswith(module.name + ":") and count == 1 and reason
    assert len(view.queue) == 1
    assert view.world.check() == []

    module.come_back()
    view = restart()
    assert view.claim(view.agent(2)) is not None


@pytest.mark.spec("Q4", "X6")
def test_each_name_is_tried_once_however_many_jobs_are_parked_under_it(
    module, restart, monkeypatch
):
    view = restart()
    for number in range(2000):
        view.queue.put(Job(module.work if number % 2 else module.other, number))
    view.commit()
    module.vanish()
    view = restart()
    tried = []
    imported = importlib.import_module

    def counting(name, *args):
        tried.append(name)
        return imported(name, *args)

    monkeypatch.setattr(names.importlib, "import_module", counting)
    for _ in range(3):
        assert view.claim() is None
    assert tried == [module.name] * 2
    assert sum(count for _, count in view.queue.parked().values()) == 2000

    # Put later: known already.
    later = view.queue.put(Job(echo, 1))
    later._callable = view.queue[0]._callable
    view.commit()
    assert view.claim() is None
    assert tried.count(module.name) == 2

    # Another process tries each once again, whatever the number of jobs.
    view = restart()
    tried.clear()
    for _ in range(3):
        assert view.claim() is None
    assert tried == [module.name] * 2
    assert sum(count for _, count in view.queue.parked().values()) == 2001


@pytest.mark.spec("Q4", "X6")
@pytest.mark.slow
def test_parked_jobs_are_not_loaded_again(module, restart):
    view = restart()
    for number in range(500):
        view.queue.put(Job(module.work, number))
    view.commit()
    module.vanish()
    view = restart()
    agent = view.agent()
    assert view.claim() is None
    assert view.claim() is None  # and what it looks at is in the cache now
    view.connection.getTransferCounts(clear=True)
    assert view.claim(agent) is None
    assert view.connection.getTransferCounts()[0] == 0


@pytest.mark.spec("Q4")
def test_a_process_that_has_the_code_takes_what_another_parked(module, restart):
    view = restart()
    jobs = [view.put(Job(module.work, number)).ref.oid for number in range(5)]
    module.vanish()
    view = restart()
    assert view.claim() is None
    module.come_back()
    view = restart()
    agent = view.agent(2, size=5)
    taken = [view.claim(agent) for _ in range(6)]
    assert [job and job.ref.oid for job in taken] == [*jobs, None]
    assert view.run(taken[0]) == "worked"


@pytest.mark.spec("Q4")
def test_a_job_past_its_deadline_is_failed_although_its_callable_is_not_to_be_had(module, restart):
    view = restart()
    view.put(Job(module.work), begin_by=SECOND)
    module.vanish()
    view = restart()
    internal = view.claim()
    assert isinstance(internal, InternalJob)
    view.run(internal)
    assert isinstance(internal.serves.result, Failure)
    assert internal.serves.result.check(JobTimeoutError)


@pytest.mark.spec("Q4", "J10")
def test_a_job_that_cannot_be_loaded_is_failed_where_it_can_be(module, restart):
    view = restart()
    view.put(own_job(module), begin_by=SECOND)
    module.vanish()
    view = restart()
    assert view.claim() is None and view.claim() is None
    assert list(view.queue.parked()) == [f"{module.name}:OwnJob"]
    assert view.queue.next_due() is None
    module.come_back()
    view = restart()
    internal = view.claim(view.agent(2))
    assert isinstance(internal, InternalJob)
    assert type(internal.serves).__name__ == "OwnJob"
    view.run(internal)
    assert internal.serves.result.check(JobTimeoutError)


@pytest.mark.spec("Q4", "J10")
def test_a_job_that_cannot_be_written_is_failed_where_it_can_be(module, restart):
    view = restart()
    view.put(class_as_argument(module), begin_by=SECOND)
    module.vanish()
    view = restart()
    assert view.claim() is None and view.claim() is None
    module.come_back()
    view = restart()
    internal = view.claim(view.agent(2))
    view.run(internal)
    assert internal.serves.result.check(JobTimeoutError)


UNREADABLE = """
class Plain:
    def __setstate__(self, state):
        raise {error}
"""


def unreadable_argument(module):
    """An argument that is readable until its class is written anew."""
    value = module.Plain()
    value.number = 1
    return value


@pytest.mark.spec("J2", "Q4")
@pytest.mark.parametrize("error", ["ValueError('no number')", "SystemExit('no number')"])
def test_a_record_that_cannot_be_read_parks_its_job_alone_and_is_reported(module, restart, error):
    view = restart()
    job = view.put(Job(echo, unreadable_argument(module)), begin_by=HOUR)
    oid = job.ref.oid
    view.put(echo, "behind it, through the same inbox")
    module.write(UNREADABLE.format(error=error))

    view = restart()
    taken = [view.claim(), view.claim()]
    assert [job and list(job.args) for job in taken] == [
        ["behind it, through the same inbox"],
        None,
    ]
    [(name, (reason, count))] = view.queue.parked().items()
    assert name == f"record of job {oid:x}" and count == 1
    assert reason == error.replace("('", ": ").replace("')", "")
    assert len(view.queue) == 1 and len(list(view.queue)) == 1
    [found] = view.world.check()
    assert f"the {name}, line" in found and f"cannot be read: {reason}" in found

    module.come_back()
    view = restart()
    assert view.claim(view.agent(2)).ref.oid == oid


ADDING = """
from perdure.model import Job

class Adding(Job):
    def __getstate__(self):
        state = super().__getstate__()
        state["note"] = "theirs"
        return state
"""

WRAPPING = """
from perdure.model import Job

class Wrapping(Job):
    def __getstate__(self):
        return super().__getstate__(), "more"

    def __setstate__(self, state):
        {begin}
        super().__setstate__(state[0])
"""


@pytest.mark.spec("J2")
def test_a_class_of_an_application_can_add_to_what_is_stored_of_its_jobs(module, restart):
    module.write(ADDING)
    view = restart()
    job = view.put(module.Adding(nothing))
    assert view.run(view.claim()) is None
    ref = job.ref
    view = restart()
    found = find_job(view.connection, ref)
    assert (found.status, found.note) == (Status.COMPLETED, "theirs")


@pytest.mark.spec("J2", "Q4")
@pytest.mark.parametrize("how", ["vanished", "unreadable"])
def test_a_job_whose_class_stores_what_it_likes_parks_alone(module, restart, how):
    module.write(WRAPPING.format(begin="pass"))
    view = restart()
    oid = view.put(module.Wrapping(echo, 1)).ref.oid
    view.put(echo, "behind it, through the same inbox")
    if how == "vanished":
        module.vanish()
    else:
        module.write(WRAPPING.format(begin="raise ValueError('no')"))
    view = restart()
    taken = [view.claim(), view.claim()]
    assert [job and list(job.args) for job in taken] == [
        ["behind it, through the same inbox"],
        None,
    ]
    assert [count for _, count in view.queue.parked().values()] == [1]
    module.write(WRAPPING.format(begin="pass"))
    view = restart()
    assert view.claim(view.agent(2)).ref.oid == oid


@pytest.mark.spec("J2", "Q4")
def test_what_the_storage_raises_is_no_word_about_a_job(module, restart, monkeypatch):
    view = restart()
    view.put(Job(echo, 1))
    view = restart()

    def gone(self, oid, *args):
        raise ClientDisconnected("the database is away")

    oid = next(iter(view.queue))._p_oid
    job = view.connection.get(oid)
    job._p_deactivate()
    with monkeypatch.context() as away:
        away.setattr(type(view.connection._storage), "load", gone)
        with pytest.raises(ClientDisconnected):
            resolving.is_loadable(job)
        with pytest.raises(ClientDisconnected):
            resolving.check_whole(job)
    assert view.claim() is job


@pytest.mark.spec("D4", "Q4")
@pytest.mark.parametrize("how", ["vanished", "unreadable"])
def test_jobs_that_cannot_be_loaded_after_a_restart_take_none_of_its_places(module, restart, how):
    view = restart()
    agent = view.agent(1, size=2)
    kinds = [own_job(module), Job(echo, unreadable_argument(module))]
    lost = [view.put(job) for job in kinds]
    oids = {job.ref.oid for job in lost}
    for job in lost:
        assert view.claim(agent) is job
        view.begin(job)
    view.put(echo, "next")
    if how == "vanished":
        module.vanish()
    else:
        module.write(SOURCE + UNREADABLE.format(error="ValueError") + "del OwnJob\n")

    for _ in range(3):
        view = restart()
        record = view.queue.dispatchers.records()[0]
        if record.active:
            record.deactivate()
        view.commit()
        agent = view.agent(1)
        assert len(agent) == 0 and agent.claims() == []
        assert {JobRef.of(job).oid for job in agent.left} == oids
        taken = view.claim(agent)
        if taken is not None:
            assert view.run(taken) == "next"
        assert view.claim(agent) is None
        # One internal job for each, however often it was tried.
        assert len(view.queue) == 2
        assert sum(count for _, count in view.queue.parked().values()) == 2
        assert len(view.world.check()) == (0 if how == "vanished" else 1)
        with pytest.raises(ValueError, match="holds 2 jobs"):
            record.remove_agent("main")

    module.come_back()
    view = restart()
    other = view.agent(2, size=9)
    run = []
    while (job := view.claim(other)) is not None:
        view.run(job)
        assert view.world.check() == []
        run.append(job.kind if isinstance(job, InternalJob) else job.ref.oid)
    assert sorted(run, key=str) == sorted([*["recover", "interrupt"] * 2, *oids], key=str)
    assert view.queue.dispatchers.records()[0].agents()[0].left == []


@pytest.mark.spec("D4", "Q4")
def test_an_activation_deals_with_what_was_left_once_the_code_is_back(module, restart):
    view = restart()
    job = view.put(own_job(module))
    oid = job.ref.oid
    assert view.claim(view.agent(1)) is job
    module.vanish()
    view = restart()
    view.queue.dispatchers.records()[0].deactivate()
    view.commit()

    module.come_back()
    view = restart()
    agent = view.agent(1)
    assert agent.left == []
    recovering = view.claim(agent)
    assert recovering.kind == "recover"
    view.run(recovering)
    assert view.claim(agent).ref.oid == oid
    assert view.world.check() == []


@pytest.mark.spec("D8", "Q4")
def test_a_job_that_cannot_be_loaded_once_it_was_run_leaves_its_place(module, restart):
    view = restart()
    agent = view.agent(1)
    job = view.put(Job(echo, unreadable_argument(module)))
    assert view.claim(agent) is job
    [claim] = agent.claims()
    module.write(UNREADABLE.format(error="ValueError"))
    view.connection.cacheMinimize()
    agent.settle_all()
    assert agent.claims() == [claim]
    agent.settle(*claim)
    agent.settle(*claim)
    view.commit()
    assert agent.claims() == [] and [JobRef.of(each) for each in agent.left] == [claim.ref]
    assert len(view.queue) == 1


@pytest.mark.spec("Q10")
def test_a_filter_is_not_asked_about_a_job_that_cannot_be_run(module, restart):
    view = restart()
    view.put(own_job(module))
    module.vanish()
    view = restart()
    assert view.queue.claim(counting_filter) is None
    view.abort()
    assert counting_filter.__globals__["asked"] == []


@pytest.mark.spec("Q5")
def test_a_job_that_cannot_be_loaded_cannot_be_taken_out_here(module, restart):
    view = restart()
    view.put(own_job(module))
    view.put(echo, 2)
    module.vanish()
    view = restart()
    with pytest.raises(CallableNotFoundError, match="OwnJob"):
        view.queue.pull()
    assert view.claim() is not None
    [broken] = view.queue
    assert broken in view.queue
    with pytest.raises(CallableNotFoundError, match="OwnJob"):
        view.queue.remove(broken)
    assert len(view.queue) == 1


@pytest.mark.spec("Q6")
def test_a_holder_of_a_quota_that_cannot_be_loaded_counts(module, restart):
    view = restart()
    view.queue.quotas.create("mail", 1)
    view.put(own_job(module), quota_names=("mail",))
    agent = view.agent(1)
    assert view.claim(agent) is not None
    view.put(echo, 2, quota_names=("mail",))
    module.vanish()
    view = restart()
    other = view.agent(2)
    assert view.claim(other) is None
    assert view.world.check() == []


@pytest.mark.spec("D4", "Q6")
@pytest.mark.parametrize("begun", [False, True])
def test_who_buries_and_cannot_load_a_job_leaves_it_to_one_who_can(module, restart, begun):
    view = restart()
    view.queue.quotas.create("mail", 1)
    dead = view.agent(1)
    job = view.put(own_job(module), quota_names=("mail",))
    other_job = view.put(echo, 2)
    assert view.claim(dead) is job and view.claim(dead) is other_job
    if begun:
        view.begin(job)
    module.vanish()

    view = restart()
    record = view.queue.dispatchers.records()[0]
    record.deactivate()
    view.commit()
    other = view.agent(2)
    taken = [view.claim(other), view.claim(other)]
    assert [each and list(each.args) for each in taken] == [[2], None]
    assert view.world.check() == []
    view.put(echo, 3, quota_names=("mail",))
    assert view.claim(other) is None

    module.come_back()
    view = restart()
    other = view.agent(2)
    other.record.ping()
    view.commit()
    recovering = view.claim(other)
    assert isinstance(recovering, InternalJob)
    job = recovering.serves
    view.run(recovering)
    assert view.world.check() == []
    if begun:
        interrupting = view.claim(other)
        assert interrupting.kind == "interrupt"
        view.run(interrupting)
    assert view.claim(other) is job
    assert view.run(job) == 1
    assert job in other.completed
    assert len(view.queue.dispatchers.records()[0].agents()[0]) == 0


@pytest.mark.spec("D4")
@pytest.mark.parametrize("kind", [argument, persistent_argument, class_as_argument])
def test_a_burial_where_an_argument_is_not_to_be_had_loses_nothing(module, restart, kind):
    view = restart()
    dead = view.agent(1)
    job = view.put(kind(module))
    assert view.claim(dead) is job
    module.vanish()

    view = restart()
    view.queue.dispatchers.records()[0].deactivate()
    view.commit()
    assert view.claim(view.agent(2)) is None
    assert len(view.queue.parked()) == 1

    module.come_back()
    view = restart()
    other = view.agent(2)
    other.record.ping()
    view.commit()
    recovering = view.claim(other)
    view.run(recovering)
    assert view.claim(other) is recovering.serves
    [value] = [*recovering.serves.args, *recovering.serves.kwargs.values()]
    kind_now = value if isinstance(value, type) else type(value)
    assert kind_now is getattr(module, name_of(kind))


# For groups, where they are claimed without a look at them.


def claim_jobs(view, agent):
    agent.record.ping()
    taken = agent.claim_jobs(lambda name: True, {})
    view.commit()
    return taken


def run_group(view, agent, taken):
    clock = view.world.clock
    runner = GroupRunner(
        view.manager,
        clock,
        StopSignal(clock),
        Lane(clock),
        Experience(),
        on_begin=lambda *ignored: None,
        on_end=lambda *ignored: None,
    )
    claims = [(Claim(each.job.ref, each.number), each.group) for each in taken]
    group = runner.run(view.connection, agent, claims)
    view.sync()
    return group


@pytest.mark.spec("J32", "D17", "Q4")
@pytest.mark.parametrize("sorted_in", [False, True])
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_job_for_a_group_is_not_run_without_its_code_and_is_once_that_is_back(
    module, restart, kind, sorted_in
):
    view = restart()
    view.put(kind(module), transactional=True)
    if sorted_in:
        view.queue._sort_in()
        view.commit()
    module.vanish()

    view = restart()
    agent = view.agent()
    taken = claim_jobs(view, agent)
    assert view.world.check() == []
    group = run_group(view, agent, taken)
    assert (group.completed, group.alone) == ([], [])
    for claim in group.reassigned:
        agent.settle(*claim)
    view.commit()
    assert agent.claims() == [] and view.world.check() == []
    assert claim_jobs(view, agent) == []
    [(_, count)] = view.queue.parked().values()
    assert count == 1

    module.come_back()
    view = restart()
    agent = view.agent()
    while taken := claim_jobs(view, agent):
        for each in taken:
            if each.group:
                group = run_group(view, agent, [each])
                assert len(group.completed) == 1
                agent.settle_completed(*group.completed)
                view.commit()
            else:
                view.run(each.job)
    done = [job for job in agent.completed if not job.failed]
    assert len(done) == 1 and view.world.check() == []
    assert len(view.queue) == 0 and agent.left == []


@pytest.mark.spec("D4", "Q4")
@pytest.mark.parametrize("begun", [False, True])
def test_who_buries_and_cannot_load_a_job_of_a_group_leaves_it_to_one_who_can(
    module, restart, begun
):
    """Begun alone, its record has another number than the one by which it was claimed."""
    view = restart()
    job = view.put(argument(module), transactional=True)
    dead = view.agent(1)
    [taken] = claim_jobs(view, dead)
    assert (taken.job, taken.number) == (job, -1)
    if begun:
        view.begin(job)
    module.vanish()

    view = restart()
    view.queue.dispatchers.records()[0].deactivate()
    view.commit()
    assert view.claim(view.agent(2)) is None and view.world.check() == []

    module.come_back()
    view = restart()
    other = view.agent(2)
    other.record.ping()
    view.commit()
    recovering = view.claim(other)
    assert recovering.kind == "recover"
    job = recovering.serves
    view.run(recovering)
    if begun:
        view.run(view.claim(other))
    assert view.claim(other) is job and job._alone is not begun
    view.run(job)
    assert job in other.completed and view.world.check() == []
    assert len(view.queue.dispatchers.records()[0].agents()[0].left) == 0


@pytest.mark.spec("Q5")
def test_a_parked_job_can_be_taken_out_and_changed(module, restart):
    view = restart()
    job = view.put(Job(module.work))
    oid = job._p_oid
    module.vanish()
    view = restart()
    assert view.claim() is None
    job = view.connection.get(oid)
    job.begin_by = HOUR
    view.commit()
    assert view.claim() is None
    view.queue.remove(job)
    view.commit()
    assert job.status is Status.NEW and len(view.queue) == 0
    with pytest.raises(BadStatusError):
        job.resume_callbacks()
