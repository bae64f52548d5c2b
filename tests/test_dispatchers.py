"""Dispatchers: registration, signs of life, death, burial, and the stripes of each."""

from __future__ import annotations

import uuid

import pytest
from transaction.interfaces import TransientError

from perdure.model import BadStatusError, Job, Status, UnknownSettingError, install
from perdure.model.clock import SystemClock
from perdure.model.incarnation import acquire_identity
from perdure.model.internal import InternalJob
from support.callables import echo
from support.world import DAY, HOUR, MINUTE, SECOND

ONE, TWO, THREE = (uuid.UUID(int=number) for number in (1, 2, 3))


@pytest.fixture
def dispatchers(view):
    return view.queue.dispatchers


# Registering


@pytest.mark.spec("D2")
def test_a_dispatcher_registers_once_with_each_queue(world, view, dispatchers):
    record = dispatchers.register(ONE)
    assert dispatchers[ONE] is record and record.queue is view.queue
    assert (record.active, record.dead, len(record)) == (False, False, 0)
    with pytest.raises(UnknownSettingError, match="already"):
        dispatchers.register(ONE)
    install(world.database, ["mail"])
    view.commit()
    assert ONE not in world.view("mail").queue.dispatchers


@pytest.mark.spec("X9", "D1")
def test_a_dispatcher_can_be_unregistered(view, dispatchers):
    record = dispatchers.register(ONE)
    record.activate("token")
    with pytest.raises(BadStatusError, match="active"):
        dispatchers.unregister(ONE)
    record.deactivate()
    dispatchers.unregister(ONE)
    assert ONE not in dispatchers and len(dispatchers) == 0
    with pytest.raises(KeyError, match=str(ONE)):
        dispatchers.unregister(ONE)
    with pytest.raises(BadStatusError, match="unregistered"):
        record.activate("again")


@pytest.mark.spec("D1")
@pytest.mark.parametrize("first", ["activate", "unregister"])
def test_of_an_activation_and_an_unregistration_one_fails(world, view, dispatchers, first):
    record = dispatchers.register(ONE)
    view.commit()
    other = world.view()
    record.activate("token")
    other.queue.dispatchers.unregister(ONE)
    winner, loser = (view, other) if first == "activate" else (other, view)
    winner.commit()
    with pytest.raises(TransientError):
        loser.manager.commit()
    loser.abort()


@pytest.mark.spec("D1")
def test_old_records_that_are_dead_and_empty_are_forgotten(world, view, dispatchers):
    agents = {number: view.agent(number) for number in (1, 2, 3, 4)}
    view.put(echo, 0)
    done = view.claim(agents[3])
    view.run(done)
    for number in (1, 3):
        agents[number].record.deactivate()
    world.advance(7 * DAY + SECOND)
    agents[4].record.deactivate()
    agents[4].record.last_ping = world.clock.now() - 7 * DAY
    view.commit()
    assert dispatchers.forget_old(world.clock.now()) == [ONE]
    assert list(dispatchers) == [TWO, THREE, uuid.UUID(int=4)]
    view.commit()


# Signs of life


@pytest.mark.spec("D2", "D3")
def test_activating_is_a_sign_of_life_and_needs_a_record_that_is_not_active(world, dispatchers):
    record = dispatchers.register(ONE)
    record.activate("token")
    assert record.active and record.token == "token"
    assert record.activated == record.last_ping == world.clock.now()
    with pytest.raises(BadStatusError, match="is active"):
        record.activate("other")
    record.deactivate()
    assert (record.active, record.token, record.incarnation) == (False, "", None)
    with pytest.raises(BadStatusError, match="not active"):
        record.deactivate()


@pytest.mark.spec("D3")
def test_a_ping_is_written_when_the_last_one_is_old_enough(world, dispatchers):
    record = dispatchers.register(ONE)
    assert record.ping()
    begun = world.clock.now()
    world.advance(29 * SECOND)
    assert not record.ping()
    assert record.last_ping == begun
    world.advance(SECOND)
    assert record.ping()
    assert record.last_ping == begun + 30 * SECOND


@pytest.mark.spec("D3", "C8")
def test_a_ping_in_the_future_does_not_stop_pings(world, dispatchers):
    record = dispatchers.register(ONE)
    record.ping()
    world.clock.jump_wall(-HOUR)
    assert record.ping()
    assert record.last_ping == world.clock.now()


@pytest.mark.spec("D3")
def test_nothing_is_written_by_a_ping_that_is_not_due(view, dispatchers):
    record = dispatchers.register(ONE)
    record.ping()
    view.commit()
    assert not record.ping()
    assert not record._p_changed


@pytest.mark.spec("D3")
def test_a_record_is_dead_when_its_last_sign_of_life_is_too_old(world, dispatchers):
    record = dispatchers.register(ONE)
    assert not record.dead
    record.last_ping = world.clock.now()
    world.advance(MINUTE)
    assert not record.dead
    world.advance(SECOND)
    assert record.dead
    record.activated = world.clock.now()
    assert not record.dead
    record.activated = None
    record.ping()
    assert not record.dead


@pytest.mark.spec("D5")
def test_a_record_has_ended_when_it_is_dead_or_its_incarnation_provably_is(
    world, dispatchers, tmp_path
):
    record = dispatchers.register(ONE)
    identity = acquire_identity(
        str(tmp_path / "data.fs"), environ={}, cwd=tmp_path, clock=SystemClock()
    )
    record.activate("token", identity.incarnation)
    assert not record.ended()
    identity.close()
    assert record.ended()
    record.incarnation = None
    assert not record.ended()
    world.advance(HOUR)
    assert record.ended()


@pytest.mark.spec("D4")
def test_the_next_active_sibling_is_found_by_uuid_and_wraps_around(dispatchers):
    for number in (1, 3, 5, 7):
        dispatchers.register(uuid.UUID(int=number)).activate("token")
    dispatchers[uuid.UUID(int=5)].deactivate()

    def sibling(number):
        found = dispatchers.next_active_sibling(uuid.UUID(int=number))
        return found and found.uuid.int

    assert [sibling(number) for number in (1, 3, 4, 7, 9)] == [3, 7, 7, 1, 1]
    for number in (3, 7):
        dispatchers[uuid.UUID(int=number)].deactivate()
    assert sibling(1) is None


# Burial


def in_every_status(view, agent):
    """Jobs that `agent` has: ASSIGNED, ACTIVE, CALLBACKS, COMPLETED."""
    agent.size = 4
    jobs = {}
    for status in (Status.ASSIGNED, Status.ACTIVE, Status.CALLBACKS, Status.COMPLETED):
        job = jobs[status] = view.put(echo, status.name)
        assert view.claim(agent) is job
        if status is not Status.ASSIGNED:
            view.begin(job)
        if status in (Status.CALLBACKS, Status.COMPLETED):
            job._end(1)
        if status is Status.COMPLETED:
            job._complete()
        view.commit()
        assert job.status is status
    return jobs


@pytest.mark.spec("D4", "X4")
def test_burial_sees_to_every_job_that_the_dead_one_had(world, view, caplog):
    caplog.set_level("INFO", "perdure")
    agent = view.agent(1)
    jobs = in_every_status(view, agent)
    agent.record.deactivate()
    view.commit()
    assert [record.getMessage() for record in caplog.records if "deactiv" in record.msg] == [
        f"{agent.record!r} was deactivated"
    ]
    assert len(agent) == 0 and world.check() == []
    waiting = {type(job).__name__: [] for job in view.queue}
    for job in view.queue:
        waiting[type(job).__name__].append(job)
    assert waiting["Job"] == [jobs[Status.ASSIGNED]]
    assert {(job.kind, job.serves) for job in waiting["InternalJob"]} == {
        ("interrupt", jobs[Status.ACTIVE]),
        ("resume", jobs[Status.CALLBACKS]),
    }
    assert list(agent.completed) == [jobs[Status.COMPLETED]]


@pytest.mark.spec("D6")
@pytest.mark.parametrize("status", [Status.ASSIGNED, Status.ACTIVE, Status.CALLBACKS])
def test_burial_writes_the_record_of_every_job_that_it_takes(world, view, status):
    agent = view.agent(1)
    job = in_every_status(view, agent)[status]
    worker = world.view()
    # What a worker does at the least: it makes sure that the record is current.
    mine = worker.get(job)
    mine._p_activate()
    worker.connection.readCurrent(mine)
    worker.connection.root()["effect"] = 1
    agent.record.deactivate()
    view.commit()
    with pytest.raises(TransientError):
        worker.manager.commit()
    worker.abort()
    assert "effect" not in worker.connection.root()


@pytest.mark.spec("D4", "D6", "D7")
@pytest.mark.parametrize("first", ["claim", "burial"])
def test_of_a_claim_and_the_burial_of_its_dispatcher_one_fails(world, view, first):
    agent = view.agent(1)
    view.put(echo, 1)
    sibling = world.view()
    assert agent.claim_job() is not None
    sibling.get(agent).record.deactivate()
    winner, loser = (view, sibling) if first == "claim" else (sibling, view)
    winner.commit()
    with pytest.raises(TransientError):
        loser.manager.commit()
    loser.abort()
    if first == "claim":
        sibling.get(agent).record.deactivate()
        sibling.commit()
    else:
        assert agent.claim_job() is None
    view.sync()
    assert len(view.queue) == 1 and len(agent) == 0


@pytest.mark.spec("D4")
def test_of_two_siblings_that_bury_one_dispatcher_one_fails(world, view):
    agent = view.agent(1)
    view.put(echo, 1)
    view.claim(agent)
    other = world.view()
    agent.record.deactivate()
    other.get(agent).record.deactivate()
    view.commit()
    with pytest.raises(TransientError):
        other.manager.commit()
    other.abort()
    assert len(other.queue) == 1


@pytest.mark.spec("D3", "D4")
def test_a_dispatcher_that_pings_in_the_last_moment_is_not_buried(world, view):
    agent = view.agent(1)
    world.advance(HOUR)
    sibling = world.view()
    view.sync()
    agent.record.ping()
    sibling.get(agent).record.deactivate()
    view.commit()
    with pytest.raises(TransientError):
        sibling.manager.commit()
    sibling.abort()
    assert not sibling.get(agent).record.dead


@pytest.mark.spec("D4", "Q3")
def test_what_had_not_begun_goes_back_as_by_put(world, view):
    agent = view.agent(1)
    old = view.put(echo, "old", begin_after=world.clock.now() - HOUR)
    view.claim(agent)
    world.advance(SECOND)
    view.put(echo, "new")
    world.advance(SECOND)
    agent.record.deactivate()
    view.commit()
    assert [job.args[0] for job in view.queue] == ["new", "old"]
    assert old.begin_after == world.clock.now() - HOUR - 2 * SECOND


@pytest.mark.spec("D4", "R7")
def test_internal_jobs_come_first_and_are_run_by_whoever_claims_them(world, view):
    dead, other = view.agent(1), view.agent(2)
    job = view.put(echo, 1)
    view.claim(dead)
    view.begin(job)
    dead.record.deactivate()
    view.commit()
    view.put(echo, 2)
    internal = view.claim(other)
    assert isinstance(internal, InternalJob)
    view.run(internal)
    assert job.status is Status.PENDING
    assert view.claim(other) is job
    assert view.run(job) == 1
    assert list(other.completed) == [job]
    assert internal not in other


@pytest.mark.spec("D6", "D5")
def test_an_activation_interrupts_what_a_burial_had_to_leave(view):
    agent = view.agent(1)
    job = view.put(echo, 1)
    view.claim(agent)
    view.begin(job)
    agent.record.activated = None
    view.commit()
    agent.record.activate("again")
    view.commit()
    assert len(agent) == 0
    assert [internal.serves for internal in view.queue] == [job]


# Stripes


@pytest.mark.spec("Q7")
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_every_stripe_belongs_to_one_active_dispatcher(dispatchers, count):
    for number in range(count):
        dispatchers.register(uuid.UUID(int=number)).activate("token")
    idle = dispatchers.register(uuid.UUID(int=99))
    stripes = [stripe for record in dispatchers.records() for stripe in record.stripes()]
    assert sorted(stripes) == [0, 1, 2, 3]
    assert idle.stripes() == []


@pytest.mark.spec("Q7")
def test_a_dispatcher_without_a_stripe_takes_from_the_others(view):
    for number in range(1, 6):
        view.agent(number)
    job = view.put(echo, 1)
    last = view.agent(5)
    assert last.record.stripes() == []
    assert view.claim(last) is job


# Agents of a record


@pytest.mark.spec("D2", "D15")
def test_agents_are_found_by_name(view, dispatchers):
    record = dispatchers.register(ONE)
    main, other = record.add_agent(), record.add_agent("a", size=1)
    assert (list(record), record.agents()) == (["a", "main"], [other, main])
    assert record["main"] is main and record.get("b") is None
    with pytest.raises(UnknownSettingError, match="already"):
        record.add_agent("a")
    with pytest.raises(KeyError, match="no agent 'b'"):
        record["b"]
    assert isinstance(view.put(echo, 1), Job)


def interrupt_all(view, jobs, number, **settings):
    """Let a dispatcher end in the middle of these jobs, and another one deal with that."""
    agent = view.agent(number, size=9)
    for job in jobs:
        assert view.claim(agent) is job
        view.begin(job)
    agent.record.deactivate(**settings)
    view.commit()
    helper = view.agent(100)
    for job in jobs:
        interrupting = view.claim(helper)
        assert interrupting.serves is job
        view.run(interrupting)


@pytest.mark.spec("C10")
def test_jobs_under_which_processes_keep_ending_are_not_run_beside_each_other(view):
    jobs = [view.put(echo, number) for number in range(3)]
    interrupt_all(view, jobs, 1)
    interrupt_all(view, jobs, 2)
    assert all(job.suspect for job in jobs)
    agent, other = view.agent(3, size=9), view.agent(3, "other", size=9)
    view.commit()
    assert view.claim(agent) is jobs[0]
    assert view.claim(agent) is None and view.claim(other) is None
    harmless = view.put(echo, 3)
    assert view.claim(other) is harmless
    elsewhere = view.agent(4)
    assert view.claim(elsewhere) is jobs[1]
    view.run(jobs[0])
    assert view.claim(other) is jobs[2]


@pytest.mark.spec("C10", "D10")
def test_who_stops_by_itself_blames_no_job(view):
    jobs = [view.put(echo, number) for number in range(2)]
    for number in (1, 2, 3):
        interrupt_all(view, jobs, number, died=False)
    assert not any(job.suspect for job in jobs)
    agent = view.agent(4, size=9)
    assert [view.claim(agent), view.claim(agent)] == jobs
