"""What the simulator has found, each as the shortest story that shows it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest
from ZEO.Exceptions import ClientDisconnected

from perdure.model import Job, Status, serial
from perdure.testing import Call, Fault, Process, World, crash_everywhere
from support import books
from support.books import open_books
from support.simulated import add, doze, note_statuses


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made
        assert made.check() == []


@pytest.mark.spec("C9")
@pytest.mark.parametrize("which", range(2))
def test_an_error_of_the_disk_that_passes_parks_no_job(world: World, which: int) -> None:
    process = world.process()
    world.run_until_idle()
    ref = process.put(add, "n")
    loads: list[Call] = []

    def fail_once(call: Call) -> Fault | None:
        if (call.kind, call.about) != ("load", f"{ref.oid:#x}"):
            return None
        loads.append(call)
        if len(loads) != which + 1:
            return None
        return Fault.fail(OSError(errno.EIO, os.strerror(errno.EIO)))

    process.on_call = fail_once
    world.come_to_rest()
    assert len(loads) > which
    assert world.status(ref) is Status.COMPLETED


def test_who_was_just_started_and_lost_the_database_is_not_at_rest_with_a_parked_job(
    world: World,
) -> None:
    process = world.process()
    open_books(process)
    ref = process.put(books.vanishing, "a")
    process.crash()
    books.vanish()
    process.start()
    world.come_to_rest()
    assert world.status(ref) is Status.PENDING
    process.crash()
    books.come_back()
    lost: list[Call] = []

    def lose_once(call: Call) -> Fault | None:
        if lost or world.scheduler.is_driver:
            return None
        lost.append(call)
        return Fault.fail(ClientDisconnected("cut"))

    process.on_call = lose_once
    process.start()
    world.come_to_rest()
    assert len(lost) == 1
    assert world.status(ref) is Status.COMPLETED


@pytest.mark.slow
@pytest.mark.spec("J30")
def test_a_postprocess_never_sees_a_part_that_is_not_quite_done() -> None:
    def scenario(process: Process) -> None:
        parts = Job(add, "n"), Job(doze, 1.0), Job(add, "n")
        process.put(serial(*parts, postprocess=Job(note_statuses)))

    def check(process: Process) -> None:
        with process.world.look() as connection:
            assert set(connection.root().get("statuses", ())) <= {"COMPLETED"}

    report = crash_everywhere(scenario, check, kinds=("finish",))
    assert report.runs > 10
