"""Machines that lose their power, and with it what was not flushed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from ZODB.FileStorage import FileStorage

from perdure.testing import (
    BrokenError,
    FileDisk,
    FileImage,
    Loss,
    Process,
    SimulationError,
    World,
    lose_everywhere,
    losses_of,
)
from perdure.testing.files import abandon
from support.simulated import add


def put_one(process: Process) -> None:
    process.put(add, "n")


def counted_once_at_most(process: Process) -> None:
    with process.transaction() as connection:
        assert connection.root().get("n", 0) <= 1


# What a loss leaves.

IMAGE = FileImage("data.fs", b"flushed and more", b"flushed", b"flushed or else!")


@pytest.mark.parametrize(
    ("loss", "left"),
    [
        (Loss.nothing(), b"flushed and more"),
        (Loss.everything(), b"flushed"),
        (Loss.cut("data.fs", 9), b"flushed a"),
        (Loss.cut("data.fs", 3), b"flushed"),
        (Loss.blocks("data.fs", 8, (0,)), b"flushed\0and more"),
        (Loss.blocks("data.fs", 8, (1,)), b"flushed \0\0\0\0\0\0\0\0"),
        (Loss.blocks("data.fs", 8, (1,), stale=True), b"flushed or else!"),
        (Loss.cut("other", 3), b"flushed and more"),
    ],
    ids=str,
)
def test_a_loss_leaves_what_was_flushed(loss: Loss, left: bytes) -> None:
    assert loss.of(IMAGE) == left


def test_each_byte_may_be_the_last_and_each_block_as_it_was() -> None:
    image = FileImage("data.fs", b"1234" + b"x" * 1200, b"1234")
    losses = [*losses_of(image, block_sizes=(512, 4096))]
    cuts = [loss.size for loss in losses if loss.kind == "cut"]
    assert cuts == [*range(4, 1204)]
    small = [loss.numbers for loss in losses if loss.kind == "blocks" and loss.size == 512]
    assert sorted(small) == [(0,), (0, 1), (0, 1, 2), (0, 2), (1,), (1, 2), (2,)]
    assert len([*losses_of(image, step=100)]) < len(losses)
    with pytest.raises(SimulationError, match="step must be 1 or more"):
        next(losses_of(image, step=0))


# Disks in files.


def test_what_was_acknowledged_is_there_when_the_power_is_back(tmp_path: Path) -> None:
    with World(FileDisk(tmp_path / "data.fs")) as world:
        process = world.process()
        ref = process.put(add, "n")
        world.lose_power(Loss.everything())
        assert not process.is_running
        process.start()
        world.come_to_rest()
        assert (world.result(ref), world.check()) == (1, [])


def test_only_a_flush_makes_sure_of_what_was_written(tmp_path: Path) -> None:
    with World(FileDisk(tmp_path / "data.fs")) as world:
        disk = world.disk
        assert isinstance(disk, FileDisk)
        path = tmp_path / "notes"
        with path.open("wb") as file:
            file.write(b"first")
            file.flush()
            os.fsync(file)
            file.write(b", second")
        image = {each.name: each for each in disk.image()}["notes"]
        assert (image.written, image.flushed) == (b"first, second", b"first")
        disk.lose(Loss.everything())
        assert path.read_bytes() == b"first"


def test_flushing_is_what_it_was_when_the_world_is_closed(tmp_path: Path) -> None:
    before = os.fsync, os.fdatasync
    with World(FileDisk(tmp_path / "data.fs")), pytest.raises(SimulationError, match="a FileDisk"):
        FileDisk(tmp_path / "other.fs")
    assert (os.fsync, os.fdatasync) == before


def test_a_disk_in_memory_has_nothing_to_lose() -> None:
    with World() as world, pytest.raises(SimulationError, match="use a FileDisk"):
        world.lose_power(Loss.nothing())


def test_a_disk_that_is_in_use_loses_nothing(tmp_path: Path) -> None:
    with World(FileDisk(tmp_path / "data.fs")) as world:
        world.process("one")
        disk = world.disk
        assert isinstance(disk, FileDisk)
        with pytest.raises(SimulationError, match="one have the disk open"):
            disk.lose(Loss.nothing())


# Losing everywhere.


class PlainFile(FileStorage):
    """The ZODB's own storage, which leaves nothing open if it cannot be opened itself."""

    def __init__(self, path: str) -> None:
        try:
            super().__init__(path)
        except BaseException:
            abandon(self)
            raise


@pytest.mark.slow
@pytest.mark.spec("J10")
def test_a_file_survives_every_loss_of_power() -> None:
    report = lose_everywhere(put_one, counted_once_at_most, step=64)
    assert report.moments > 10
    assert report.losses > 300
    assert report.runs > 5


@pytest.mark.slow
def test_a_storage_that_does_not_survive_is_found_and_that_can_be_repeated() -> None:
    """It marks a transaction as finished before it is on the disk."""
    with pytest.raises(BrokenError, match="broken by a loss of power") as caught:
        lose_everywhere(put_one, step=64, open_storage=PlainFile)
    at = re.search(r"at='(.*)'", str(caught.value))
    assert at is not None
    with pytest.raises(BrokenError, match="broken by a loss of power"):
        lose_everywhere(put_one, step=64, open_storage=PlainFile, at=at[1])


@pytest.mark.slow
def test_a_run_that_does_not_survive_can_be_repeated() -> None:
    def check(process: Process) -> None:
        assert process.world.acknowledged, "it was lost before it was acknowledged"

    with pytest.raises(BrokenError, match="lost before it was acknowledged") as caught:
        lose_everywhere(put_one, check, step=10_000)
    at = re.search(r"at='(commit \d+ lost)'", str(caught.value))
    assert at is not None
    with pytest.raises(BrokenError, match="lost before it was acknowledged"):
        lose_everywhere(put_one, check, at=at[1])


@pytest.mark.slow
def test_the_line_of_a_loss_names_all_that_it_depends_on() -> None:
    with pytest.raises(BrokenError, match="broken by a loss of power") as caught:
        lose_everywhere(
            put_one, setup=put_one, step=64, block_sizes=(512,), open_storage=PlainFile
        )
    line = str(caught.value).rpartition("to repeat it: ")[2]
    assert line.startswith("lose_everywhere(put_one, setup=put_one, step=64, block_sizes=(512,), ")
    with pytest.raises(BrokenError, match="broken by a loss of power"):
        eval(line)


@pytest.mark.slow
def test_a_commit_that_is_not_made_is_no_success() -> None:
    with pytest.raises(SimulationError, match="did not strike"):
        lose_everywhere(put_one, at="commit 9999 lost")


def test_a_place_that_is_none_is_refused() -> None:
    with pytest.raises(SimulationError, match="as the text of a failure gives it"):
        lose_everywhere(put_one, step=10_000, at="x")
