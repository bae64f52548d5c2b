"""Code that was moved: aliases, and what does not resolve."""

from __future__ import annotations

import sys
import types

import pytest
import ZODB
import ZODB.broken
from ZODB.FileStorage import FileStorage

from perdure.model import (
    Job,
    NeverRetry,
    NotInstalledError,
    UnknownSettingError,
    aliases,
    class_factory,
    environment,
    get_queue,
    remove_alias,
    set_alias,
    unresolved,
)
from perdure.model.aliases import translate
from support.application import Module
from support.callables import echo
from support.world import View, World

FILTERS = """
def takes_all(job):
    return True

def policy(job):
    from perdure.model import NeverRetry
    return NeverRetry(job)
"""


@pytest.fixture
def elsewhere(module, tmp_path):
    """The same code, in another module."""
    made = Module(tmp_path / "application", "moved_application")
    yield made
    made.forget()


class _World(World):
    """One whose classes are found by the aliases."""

    def __init__(self, path):
        super().__init__(FileStorage(path), class_factory=class_factory)


@pytest.fixture
def open_aliased(tmp_path):
    worlds = []

    def open() -> View:
        for world in worlds:
            world.close()
        worlds.append(_World(str(tmp_path / "data.fs")))
        return worlds[-1].view()

    yield open
    assert worlds[-1].check() == []
    worlds[-1].close()


@pytest.mark.parametrize(
    ("table", "name", "expected"),
    [
        ({}, "a.b:f", "a.b:f"),
        ({"a.b:f": "c:g"}, "a.b:f", "c:g"),
        ({"a.b:f": "c:g"}, "a.b:ff", "a.b:ff"),
        ({"a.b": "c"}, "a.b:f", "c:f"),
        ({"a:K": "b:L"}, "a:K.make", "b:L.make"),
        ({"a:K": "b:L", "a:K.make": "c:f"}, "a:K.make", "c:f"),
        ({"a:K": "b:L"}, "a:Kind", "a:Kind"),
        ({"a.b": "c"}, "a.bb:f", "a.bb:f"),
        ({"a": "z.y"}, "a.b:C.f", "z.y.b:C.f"),
        ({"a": "x", "a.b": "y"}, "a.b.c:f", "y.c:f"),
        ({"a.b": "y", "a.b:f": "z:f"}, "a.b:f", "z:f"),
        ({"a": "b", "b": "c"}, "a:f", "c:f"),
        ({"shop": "shop.old"}, "shop:f", "shop.old:f"),
        ({"a": "b"}, "record of job 1f", "record of job 1f"),
    ],
)
def test_a_name_is_translated_by_the_most_particular_alias(table, name, expected):
    assert translate(table, name) == expected


@pytest.mark.spec("J2")
@pytest.mark.parametrize("by_module", [False, True])
def test_a_parked_job_goes_on_under_an_alias(view, module, elsewhere, by_module):
    agent = view.agent()
    job = view.put(module.work)
    module.vanish()
    assert view.claim(agent) is None

    if by_module:
        set_alias(view.connection, module.name, elsewhere.name)
    else:
        set_alias(view.connection, f"{module.name}:work", f"{elsewhere.name}:work")
    view.commit()

    assert view.claim(agent) is job
    view.run(job)
    assert job.result == "worked"
    # What is stored stays as it was.
    assert job.callable_name == f"{module.name}:work"


def test_an_alias_holds_although_the_old_name_is_still_there(view, module):
    job = view.put(module.work)
    set_alias(view.connection, f"{module.name}:work", f"{module.name}:other")
    view.commit()
    assert view.claim(view.agent()) is job
    view.run(job)
    assert job.result == "worked too"


def test_an_alias_that_leads_nowhere_parks_under_the_new_name_and_can_be_mended(view, module):
    agent = view.agent()
    job = view.put(module.work)
    set_alias(view.connection, f"{module.name}:work", f"{module.name}:wrok")
    view.commit()
    assert view.claim(agent) is None
    assert list(view.queue.parked()) == [f"{module.name}:wrok"]
    set_alias(view.connection, f"{module.name}:work", f"{module.name}:other")
    set_alias(view.connection, f"{module.name}:wrok", f"{module.name}:work")
    view.commit()
    assert view.claim(agent) is job


def test_policies_filters_and_choosers_are_found_by_aliases_too(view, module, elsewhere):
    module.write(FILTERS)
    elsewhere.write(FILTERS)
    agent = view.agent()
    agent.filter = module.takes_all
    job = Job(echo, 1)
    job.retry_policy_factory = module.policy
    view.put(job)
    module.vanish()
    set_alias(view.connection, module.name, elsewhere.name)
    view.commit()
    assert agent.filter_name == f"{elsewhere.name}:takes_all"
    assert view.claim(agent) is job
    assert isinstance(job.get_retry_policy(), NeverRetry)


def test_objects_of_classes_that_were_moved_are_loaded_by_the_class_factory(
    open_aliased, module, elsewhere
):
    view = open_aliased()
    jobs = [
        view.put(Job(echo, module.Plain())),
        view.put(module.OwnJob(echo, 2)),
        view.put(Job(module.Thing().method)),
    ]
    refs = [job.ref for job in jobs]
    set_alias(view.connection, module.name, elsewhere.name)
    view.commit()
    module.vanish()

    view = open_aliased()
    # Known to the process from the time on when it first looks at the queues.
    get_queue(view.connection)
    environment(view.connection.db())
    view.connection.cacheMinimize()
    agent = view.agent()
    view.world.advance(agent.record.ping_interval)
    agent.record.ping()
    claimed = [view.claim(agent) for _ in range(3)]

    assert [job.ref for job in claimed] == refs
    for job in claimed:
        view.run(job)
    assert type(claimed[0].result).__module__ == elsewhere.name
    assert isinstance(claimed[1], elsewhere.OwnJob)
    assert claimed[2].result == "of a thing"


def test_a_class_of_perdures_that_is_not_there_yet_is_found_once_it_is(open_aliased, monkeypatch):
    view = open_aliased()
    name = "perdure.model.of_a_later_version"
    missing = class_factory(view.connection, name, "Thing")
    assert issubclass(missing, ZODB.broken.Broken)
    found = class_factory(view.connection, "perdure.model.job", "Job")
    assert found is class_factory(view.connection, "perdure.model.job", "Job") is Job
    made = types.ModuleType(name)
    made.Thing = type("Thing", (), {"__module__": name})
    monkeypatch.setitem(sys.modules, name, made)
    assert class_factory(view.connection, name, "Thing") is made.Thing
    ZODB.broken.broken_cache.pop((name, "Thing"))


def test_an_alias_of_a_class_of_perdures_goes_before_what_was_found_before(open_aliased):
    view = open_aliased()
    assert class_factory(view.connection, "perdure.model.job", "Job") is Job
    set_alias(view.connection, "perdure.model.job:Job", "support.everyday:Reckless")
    view.commit()
    view = open_aliased()
    environment(view.connection.db())
    get_queue(view.connection)
    assert class_factory(view.connection, "perdure.model.job", "Job").__name__ == "Reckless"
    remove_alias(view.connection, "perdure.model.job:Job")
    view.commit()


def test_a_module_that_raises_does_not_make_what_refers_to_its_classes_unreadable(
    open_aliased, module
):
    view = open_aliased()
    broken = view.put(module.OwnJob(echo, 1))
    ref = broken.ref
    view.queue._sort_in()
    view.commit()
    module.write("raise RuntimeError('broken')")
    view = open_aliased()
    fine = view.put(echo, 2)
    agent = view.agent()
    assert view.claim(agent) is fine
    assert view.claim(agent) is None
    [name] = view.queue.parked()
    assert name == f"{module.name}:OwnJob"
    module.come_back()
    view = open_aliased()
    assert [job.ref for job in view.queue] == [ref]


def test_the_table_can_be_read_and_an_alias_removed(view):
    assert aliases(view.connection) == {}
    set_alias(view.connection, "a:f", "b:g")
    set_alias(view.queue, "c", "d")
    assert aliases(view.queue) == {"a:f": "b:g", "c": "d"}
    remove_alias(view.connection, "a:f")
    assert aliases(view.connection) == {"c": "d"}
    with pytest.raises(UnknownSettingError, match=r"no alias 'a:f', only \['c'\]"):
        remove_alias(view.connection, "a:f")


@pytest.mark.parametrize(
    ("old", "new", "error", "text"),
    [
        ("a:f", "b", UnknownSettingError, "not of one kind"),
        ("a", "b:g", UnknownSettingError, "not of one kind"),
        ("a b", "c", UnknownSettingError, "'a b' is no name"),
        ("a:", "c:d", UnknownSettingError, "'a:' is no name"),
        ("", "c", UnknownSettingError, "'' is no name"),
        ("a:f", "c:<lambda>", UnknownSettingError, "is no name"),
        ("a", 3, TypeError, "not 3"),
        ("a:f", "a:f", UnknownSettingError, "stands for 'a:f' itself"),
        ("c:h", "a:f", UnknownSettingError, "stands for 'c:h' itself"),
    ],
)
def test_bad_aliases_are_refused_and_change_nothing(view, old, new, error, text):
    set_alias(view.connection, "a:f", "b:g")
    set_alias(view.connection, "b:g", "c:h")
    with pytest.raises(error, match=text):
        set_alias(view.connection, old, new)
    assert aliases(view.connection) == {"a:f": "b:g", "b:g": "c:h"}


# What does not resolve.


@pytest.mark.spec("D13")
def test_everything_that_does_not_resolve_is_named_with_who_needs_it(view, module):
    module.write(FILTERS + "\ndef work(*args): pass\ndef called_back(result): pass\n")
    agent = view.agent(2)
    agent.filter = module.takes_all
    parked = view.put(module.work)
    waiting = Job(echo, 1)
    waiting.add_callback(module.called_back)
    waiting.retry_policy_factory = module.policy
    view.put(waiting)
    assert unresolved(view.connection) == ()
    module.vanish()
    assert view.claim(view.agent(1)) is waiting

    found = {each.name.partition(":")[2]: each for each in unresolved(view.connection)}

    assert set(found) == {"work", "called_back", "policy", "takes_all"}
    assert (found["work"].waiting, found["work"].parked) == (1, 1)
    assert found["work"].first == parked.ref and "No module named" in found["work"].reason
    assert (found["called_back"].waiting, found["called_back"].parked) == (1, 0)
    assert found["takes_all"].users == (repr(agent),) and found["takes_all"].waiting == 0
    assert repr(waiting) in found["policy"].users[0]
    set_alias(view.connection, f"{module.name}:work", "support.callables:echo")
    assert "work" not in {each.name.partition(":")[2] for each in unresolved(view.connection)}
    view.abort()
    module.come_back()


@pytest.mark.spec("D13")
def test_names_are_looked_for_before_anything_was_parked(view, module):
    for _ in range(3):
        view.put(module.work)
    module.vanish()
    [found] = unresolved(view.connection)
    assert (found.waiting, found.parked) == (3, 0)
    module.come_back()


def test_a_database_without_queues_has_no_aliases():
    database = ZODB.DB(None)
    connection = database.open()
    for call in (aliases, unresolved, lambda each: set_alias(each, "a", "b")):
        with pytest.raises(NotInstalledError):
            call(connection)
    connection.close()
    database.close()
