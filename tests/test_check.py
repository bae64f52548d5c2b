"""`check` finds each violation that it looks for: here they are made by hand."""

from __future__ import annotations

import pytest
import ZODB
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from ZODB.MappingStorage import MappingStorage
from ZODB.utils import u64

from perdure.model import Job, NotInstalledError, check, get_queue, install, unresolved
from perdure.model.internal import InternalJob
from perdure.model.queues import find_queues
from perdure.model.stripe import LineKey
from perdure.model.tally import day_of
from support.callables import echo
from support.world import HOUR, World


@pytest.fixture
def view():
    """A view of a database that need not be sound at the end."""
    world = World(MappingStorage())
    yield world.view()
    world.close()


def only(view):
    """The one violation, after what was done is committed."""
    view.commit()
    [found] = view.world.check()
    assert repr(view.queue) in found
    return found


def sorted_in(view, *numbers, **settings):
    jobs = [view.put(echo, number, **settings) for number in numbers]
    view.queue._sort_in()
    view.commit()
    assert view.world.check() == []
    return jobs


def stripe_of(view, job):
    return view.queue._place(job).stripe


def claimed(view, **settings):
    agent = view.agent()
    job = view.put(echo, 1, **settings)
    assert view.claim(agent) is job
    assert view.world.check() == []
    return agent, job


def lost(view):
    """A job that was ACTIVE, and the internal job that deals with it."""
    agent, job = claimed(view)
    view.begin(job)
    agent.interrupt(job)
    view.queue._sort_in()
    view.commit()
    assert view.world.check() == []
    [internal] = view.queue
    return internal, job


def completed(view, **settings):
    agent, job = claimed(view, **settings)
    view.run(job)
    assert view.world.check() == []
    return agent, job


def test_a_database_without_queues_has_nothing_to_check():
    database = ZODB.DB(MappingStorage())
    with pytest.raises(NotInstalledError):
        check(database)
    database.close()


def test_it_changes_nothing_and_can_be_called_while_others_work(view):
    sorted_in(view, 1, 2)
    view.queue.put(Job(echo, 3))
    before = view.world.database.lastTransaction()
    assert view.world.check() == []
    assert view.world.database.lastTransaction() == before
    view.commit()
    assert view.world.check() == []


# A job is in exactly one place, which agrees with its status.


def test_a_job_in_two_lines_is_found(view):
    [job] = sorted_in(view, 1)
    stripe_of(view, job).insert(LineKey(refused=("a",)), (5, 5), job)
    view.commit()
    found = view.world.check()
    assert any("is in 2 places" in each for each in found)


def test_a_job_in_a_line_and_with_an_agent_is_found(view):
    [job] = sorted_in(view, 1)
    agent = view.agent()
    job._agent = agent
    agent._held[job._p_oid] = (job, job._claim)
    agent._p_changed = True
    view.commit()
    found = " ".join(view.world.check())
    assert "is in 2 places" in found and "is ASSIGNED and waits in line" in found


def test_a_job_in_an_inbox_and_in_a_line_is_found(view):
    [job] = sorted_in(view, 1)
    [(key, _)] = [(k, i) for k, i in view.queue.inboxes.items() if i.entries]
    stripe_of(view, job).advance(key, 0)
    assert "is in 2 places" in only(view)


def test_a_job_that_is_kept_as_done_twice_is_found(view):
    agent, job = completed(view)
    other = view.agent(2)
    other._count(other.completed.add(job, HOUR), day_of(job._callbacks_end))
    assert "is in 2 places" in only(view)


def test_a_callback_in_two_places_is_found(view):
    [one, two] = [Job(echo, 1), Job(echo, 2)]
    callback = one.add_callback(echo)
    view.put(one), view.put(two)
    two._callbacks = [callback]
    assert "is in 2 places" in only(view)


def test_a_job_that_is_dealt_with_and_with_an_agent_is_no_violation_but_two_internals_are(view):
    internal, job = lost(view)
    view.queue._put_internal("interrupt", job)
    assert "is in 2 places" in only(view)


def test_what_dealt_with_a_job_and_has_not_ended_when_that_is_lost_again_is_no_place_of_it(view):
    internal, job = lost(view)
    assert view.claim() is internal
    job.handle_interrupt()
    view.commit()
    # Whoever runs the internal job stands still here, before the commit that ends it.
    other = view.agent(2)
    assert view.claim(other) is job
    view.begin(job)
    other.interrupt(job)
    view.commit()
    assert view.world.check() == []


@pytest.mark.parametrize("place", ["line", "inbox"])
def test_a_job_that_waits_with_another_status_is_found(view, place):
    if place == "line":
        [job] = sorted_in(view, 1)
    else:
        job = view.put(echo, 1)
    job._status_name = "completed"
    assert "is COMPLETED and waits in line" in only(view)


def test_a_job_that_waits_here_and_says_otherwise_is_found(view):
    install(view.world.database, ["mail"])
    mail = view.world.view("mail")
    other = mail.queue
    view.sync()
    [job] = sorted_in(view, 1)
    job._queue = view.get(other)
    assert "says that it waits in <Queue 'mail'>" in only(view)


def test_a_job_at_the_wrong_moment_of_its_line_is_found(view):
    [job] = sorted_in(view, 1)
    job._begin_after += 1
    assert "stands at" in only(view)


def test_a_job_with_an_agent_that_has_another_status_is_found(view):
    agent, job = claimed(view)
    job._agent = None
    job._queue = None
    agent._held[job._p_oid] = (job, job._claim)
    job._agent = agent
    job._status_name = "completed"
    job._callbacks_end = 1
    view.commit()
    assert view.world.check() == []  # done, and not settled yet
    agent._count(agent.completed.add(job, HOUR), day_of(job._callbacks_end))
    assert "is in 2 places" in only(view)


def test_a_job_that_is_kept_as_done_and_is_not_is_found(view):
    agent, job = completed(view)
    job._status_name = "callbacks"
    assert "is CALLBACKS and among the completed" in only(view)


def test_a_done_job_with_a_callback_that_is_not_done_is_found(view):
    agent, job = completed(view)
    callback = Job(echo, 2)
    callback._parent = job
    job._callbacks = [callback]
    assert "is COMPLETED, its callback" in only(view)


def test_an_internal_job_for_a_job_of_another_status_is_found(view):
    internal, job = lost(view)
    internal.kind = "expire"
    assert "deals with" in only(view)


# Lengths agree with a recount.


def test_a_stripe_that_counts_wrongly_is_found(view):
    [job] = sorted_in(view, 1)
    stripe = stripe_of(view, job)
    [key] = stripe._counts
    stripe._counts[key] += 1
    stripe._p_changed = True
    view.commit()
    found = view.world.check()
    assert any("says 2 and has 1" in each for each in found)
    assert any("its length is 2, and it has 1 jobs" in each for each in found)


def test_an_agent_that_counts_its_done_jobs_wrongly_is_found(view):
    agent, _ = completed(view)
    agent._kept = {shelf: count + 1 for shelf, count in agent._kept.items()}
    assert "counts" in only(view)


def test_a_record_of_done_jobs_that_lacks_something_is_found(view):
    agent, _ = completed(view)
    agent._done._flat = agent._done._flat[:-1]
    agent._done._p_changed = True
    assert "has 2 values, which is not three for each" in only(view)


def test_an_empty_line_is_found(view):
    sorted_in(view, 1)
    stripe = view.queue.stripes[0]
    stripe._lines[LineKey(refused=("a",))] = OOBTree()
    stripe._p_changed = True
    assert "is empty" in only(view)


@pytest.mark.parametrize("change", [{"_callable": "builtins:abs"}, {"_quota_names": ("one",)}])
def test_a_job_that_is_not_what_its_line_says_is_found(view, change):
    [job] = sorted_in(view, 1)
    [name] = change
    before = getattr(job, name)
    setattr(job, name, change[name])
    assert "stands in a line of jobs that call" in only(view)
    setattr(job, name, before)
    view.commit()


def test_links_of_an_inbox_that_end_too_early_are_found(view):
    one, two = view.put(echo, 1), view.put(echo, 2)
    assert two._previous is one
    two._previous = None
    assert "end 1 jobs too early" in only(view)
    two._previous = one
    view.commit()


def test_something_else_in_the_place_of_a_job_is_found(view):
    one, two = view.put(echo, 1), view.put(echo, 2)
    two._previous = view.queue.quotas
    view.commit()
    found = view.world.check()
    assert any("where a job should be" in each for each in found)
    two._previous = one
    view.commit()


def test_a_cursor_beyond_its_inbox_is_found(view):
    [job] = sorted_in(view, 1)
    [(key, _)] = [(k, i) for k, i in view.queue.inboxes.items() if i.entries]
    stripe_of(view, job).advance(key, 5)
    view.commit()
    assert any("of which 5 were sorted in" in each for each in view.world.check())


def test_a_deadline_of_no_waiting_job_or_a_missing_one_is_found(view):
    with_deadline, without = sorted_in(view, 1, begin_by=HOUR) + sorted_in(view, 2)
    stripe = stripe_of(view, with_deadline)
    [(key, entry)] = stripe._deadlines.items()
    del stripe._deadlines[key]
    assert "deadline" in only(view)
    stripe._deadlines[key] = entry
    view.commit()
    assert view.world.check() == []
    without._begin_by = 1
    assert "deadline" in only(view)
    without._begin_by = None
    stripe._deadlines[key[0] + 1, key[1]] = entry
    assert "deadline" in only(view)


# Quotas


@pytest.mark.parametrize("how", ["holders", "jobs"])
def test_a_quota_beyond_its_size_is_found(view, how):
    quota = view.queue.quotas.create("mail", 2)
    view.commit()
    agent, job = claimed(view, quota_names=("mail",))
    other = view.put(echo, 2, quota_names=("mail",))
    view.claim(agent)
    quota._size = 1
    if how == "jobs":
        quota._holders = (job._p_oid,)
    view.commit()
    found = " ".join(view.world.check())
    if how == "holders":
        assert "has 2 jobs and a size of 1" in found
    else:
        assert f"{other!r} is ASSIGNED and has no place of quota 'mail'" in found
    assert "2 jobs need quota 'mail' of size 1" in found


def test_a_job_under_way_without_its_place_is_found(view):
    quota = view.queue.quotas.create("mail", 2)
    view.commit()
    claimed(view, quota_names=("mail",))
    quota._holders = ()
    assert "has no place of quota 'mail'" in only(view)


def test_an_internal_job_is_known_by_its_kind(view):
    internal, job = lost(view)
    assert isinstance(internal, InternalJob) and internal.serves is job


def missing(view, job):
    """What is found once the record of `job` is not in the database any more."""
    view.commit()
    database = view.world.database
    del database.storage._data[job._p_oid]
    database.cacheMinimize()
    return view.world.check()


def wrong(job):
    """Make a waiting job one that `check` complains of."""
    job._status_name = "completed"
    return f"{job!r} is COMPLETED and waits in line"


def said_of(found, lacking):
    """The one sentence on a record that is missing, and the others."""
    text = f"record {u64(lacking._p_oid):x} is missing from the database"
    [said] = [each for each in found if text in each]
    return said, [each for each in found if each != said]


@pytest.mark.spec("D13")
@pytest.mark.parametrize("place", ["line", "inbox", "bundle", "agent", "done"])
def test_a_job_whose_record_is_missing_is_found_and_the_others_are_checked(view, place):
    if place == "line":
        job, behind = sorted_in(view, 1, 2, begin_by=HOUR)
    elif place == "bundle":
        behind, job, _ = view.queue.put_many([Job(echo, number) for number in range(3)])
        view.commit()
    elif place == "inbox":
        job, behind = view.put(echo, 1), view.put(echo, 2)
    else:
        _, job = (claimed if place == "agent" else completed)(view)
        [behind] = sorted_in(view, 2)
    expected = wrong(behind)
    said, others = said_of(missing(view, job), job)
    words = {
        "line": "line ",
        "inbox": "inbox ",
        "bundle": "inbox ",
        "agent": "<Agent 'main'",
        "done": "completed by ",
    }[place]
    assert words in said
    assert any(expected in each for each in others)


def test_a_callback_whose_record_is_missing_is_found(view):
    job, other = sorted_in(view, 1, 2)
    callback = job.add_callback(echo)
    expected = {wrong(each) for each in (job, other)}
    said, others = said_of(missing(view, callback), callback)
    assert f"with {job!r}" in said
    assert {each.partition(": ")[2] for each in others} >= expected


@pytest.mark.parametrize("what", ["callable", "argument", "word"])
def test_what_a_job_is_called_with_and_is_missing_is_found(view, what):
    thing = view.connection.root()["thing"] = PersistentMapping()
    if what == "callable":
        job = view.queue.put(Job(thing.values))
    elif what == "argument":
        job = view.queue.put(Job(echo, thing))
    else:
        job = view.queue.put(Job(echo, 1, word=thing))
    said, others = said_of(missing(view, thing), thing)
    assert f"for {job!r}" in said and others == []


@pytest.mark.parametrize("of", ["stripe", "line", "agent", "record", "quota", "quotas"])
def test_other_records_that_are_missing_are_found(view, of):
    quota = view.queue.quotas.create("mail", 2)
    agent, _ = claimed(view, quota_names=("mail",))
    [job] = sorted_in(view, 2)
    lacking = {
        "stripe": stripe_of(view, job),
        "line": next(line for _, line in stripe_of(view, job).lines()),
        "agent": agent,
        "record": agent.record,
        "quota": quota,
        "quotas": view.queue.quotas,
    }[of]
    said_of(missing(view, lacking), lacking)


def test_queues_whose_record_is_missing_are_found_and_the_others_are_checked(view):
    install(view.world.database, ["other"])
    view.commit()
    other = get_queue(view.connection, "other")
    [job] = sorted_in(view, 1)
    expected = wrong(job)
    said, others = said_of(missing(view, other), other)
    assert said.startswith("the queue 'other': ")
    assert any(expected in each for each in others)
    queues = find_queues(view.connection)
    [said] = missing(view, queues)
    assert f"record {u64(queues._p_oid):x} is missing" in said


def test_names_that_are_not_found_are_told_although_records_are_missing(view):
    [one] = sorted_in(view, 1)
    one._callable = "nowhere:f"
    agent = view.agent()
    agent._filter = "nowhere:g"
    lacking = view.put(echo, 2)
    assert missing(view, lacking) != []
    view.abort()
    assert [each.name for each in unresolved(view.connection)] == ["nowhere:f", "nowhere:g"]
