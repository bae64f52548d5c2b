"""What the simulator has found, each as the shortest story that shows it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from perdure.model import Status
from perdure.testing import Call, Fault, World
from support.simulated import add


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
