"""What the simulator has found, each as the shortest story that shows it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from perdure.model import Job, Status, serial
from perdure.testing import Call, Fault, Process, World, crash_everywhere
from support.simulated import add, doze, note_statuses


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made
        assert made.check() == []


@pytest.mark.spec("C9")
@pytest.mark.parametrize("which", range(3))
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
