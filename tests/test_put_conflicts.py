"""A put that meets a conflict is tried again, whichever call of the storage tells of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from persistent import Persistent
from persistent.mapping import PersistentMapping
from ZODB.POSException import ConflictError

from perdure.model import Job
from perdure.model.ref import find_job
from perdure.model.unsaved import Unsaved
from perdure.testing import Call, Fault, World
from support.simulated import add


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made
        assert made.check() == []


def conflict_at(world: World, kind: str, number: int) -> Any:
    """Let one call of that kind, of the test's own, meet a conflict."""
    seen: list[Call] = []

    def on_call(call: Call) -> Fault | None:
        if call.kind == kind and world.scheduler.is_driver:
            seen.append(call)
            if len(seen) == number:
                return Fault.fail(ConflictError("by order"))
        return None

    return on_call


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_conflict_at_a_store_is_tried_again(world: World, number: int) -> None:
    process = world.process()
    world.run_until_idle()
    process.on_call = conflict_at(world, "store", number)
    ref = process.put(add, "n")
    world.come_to_rest()
    assert world.result(ref) == 1


def test_a_conflict_at_the_vote_is_tried_again(world: World) -> None:
    process = world.process()
    world.run_until_idle()
    process.on_call = conflict_at(world, "vote", 1)
    ref = process.put(add, "n")
    world.come_to_rest()
    assert world.result(ref) == 1


def test_what_a_job_holds_is_put_again_with_it(world: World) -> None:
    process = world.process()
    world.run_until_idle()
    job = Job(add, "n")
    job.add_callback(Job(add, "told")).add_callback(Job(add, "told of that"))
    process.on_call = conflict_at(world, "vote", 1)
    ref = process.put(job)
    world.come_to_rest()
    with world.look() as connection:
        names = [str(each.args[0]) for each in find_job(connection, ref).callbacks]
        assert (names, sorted(connection.root())) == (
            ["told"],
            ["n", "perdure", "told", "told of that"],
        )


def test_new_objects_get_the_state_back_that_they_had() -> None:
    inner = PersistentMapping({"a": 1})
    outer = PersistentMapping({"list": [inner, (inner,)], "self": None})
    outer["self"] = outer
    unsaved = Unsaved(outer)
    for each in (inner, outer):
        lose(each)
    unsaved.restore()
    assert (dict(inner), outer["self"]) == ({"a": 1}, outer)
    assert (inner._p_jar, outer._p_oid, outer._p_state) == (None, None, 0)


def lose(item: Persistent) -> None:
    """Take the state of a new object, as a connection does that disowns it."""

    class Jar:
        def setstate(self, other: Persistent) -> None:
            raise AssertionError

        def register(self, other: Persistent) -> None: ...

    item._p_jar = Jar()  # type: ignore[assignment]
    item._p_oid = b"12345678"
    item._p_invalidate()
    del item._p_jar, item._p_oid
