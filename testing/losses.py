"""What becomes of a scenario when its machine loses its power, whatever of its files is lost."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.testing.crashes import (
    BrokenError,
    Check,
    Runner,
    Scenario,
    Strike,
    calm,
    name_of,
    nothing,
)
from perdure.testing.errors import SimulationError
from perdure.testing.files import (
    BLOCK_SIZES,
    FileDisk,
    FileImage,
    Loss,
    flushes_noted_by,
    losses_of,
    open_file,
)
from perdure.testing.progress import shown
from perdure.testing.storage import Call, Fault
from perdure.testing.world import REST_LIMIT, World

__all__ = ["LossReport", "lose_everywhere"]

#: A folder in memory, where there is one: nothing that is put there has to last.
_QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

#: One transaction: its id, and its records.
_Transaction = tuple[bytes, tuple[tuple[bytes, bytes | None], ...]]


@dataclass(frozen=True, slots=True)
class LossReport:
    """At how many moments, in how many ways data was lost, and how often the scenario was run."""

    moments: int
    losses: int
    runs: int

    def __str__(self) -> str:
        return f"{self.losses} losses of data at {self.moments} moments, {self.runs} runs"


def lose_everywhere(
    scenario: Scenario,
    check: Check = nothing,
    *,
    setup: Scenario = nothing,
    step: int = 1,
    block_sizes: Sequence[int] = BLOCK_SIZES,
    open_storage: Callable[[str], Any] = open_file,
    at: str = "",
    **settings: Any,
) -> LossReport:
    """Run a scenario on a file, and let the machine lose its power wherever that loses data.

    First it is run to the end once. Whenever it is about to flush a file, and before each vote,
    finish and abort, the files are kept as they are, and damaged in every way in which a loss of
    power can: cut at each byte of what was not flushed, blocks of that zeroed or as they were.
    Each time the file must open, and have, to the byte, the transactions whose commit had
    returned, or those and the one that was under way; every object must be found. Of what this
    leaves there are two cases for each commit; in each the scenario is run once more, and
    recovered and checked as by `crash_everywhere`.

    :param scenario: as for `crash_everywhere`; it must not pack.
    :param check: as for `crash_everywhere`.
    :param setup: as for `crash_everywhere`; nothing is lost in it.
    :param step: cuts the file at each that manyth byte alone, besides those where the parts of a
        transaction meet and those beside the borders of blocks: 1 or more.
    :param block_sizes: the sizes of what the disk writes at once, as for `losses_of`.
    :param open_storage: as for `FileDisk`.
    :param at: repeats one loss, or one run, as the text of a failure gives it.
    :param settings: for the process, as for `World.process`.
    :raises BrokenError: at the first loss that does harm.
    """
    with tempfile.TemporaryDirectory(prefix="perdure-lose-", dir=_QUICK) as folder:
        known = (scenario, check, setup, calm, REST_LIMIT, settings)
        looker = _Looker(*known, open_storage=open_storage, folder=Path(folder))
        runner = _Runner(*known, open_storage=open_storage, folder=Path(folder, "again"))
        runner.folder.mkdir()
        if run := re.fullmatch(r"commit (\d+) (lost|kept)", at):
            runner.lose(int(run[1]), run[2] == "kept")
            return LossReport(0, 0, 1)
        looker.look()
        with flushes_noted_by(lambda descriptor: True):
            losses = looker.try_all(step, block_sizes, at)
        if at:
            return LossReport(len(looker.moments), losses, 1)
        commits = looker.commits
        for number in shown("commits lost and kept", commits):
            runner.lose(number, kept=False)
            runner.lose(number, kept=True)
    return LossReport(len(looker.moments), losses, 1 + 2 * len(commits))


@dataclass
class _OnFile(Runner):
    """Runs a scenario on a file."""

    open_storage: Callable[[str], Any] = open_file
    folder: Path = Path()
    _worlds: int = 0

    @contextlib.contextmanager
    def world(self) -> Iterator[World]:
        self._worlds += 1
        path = self.folder / f"world {self._worlds}" / "data.fs"
        path.parent.mkdir()
        with World(FileDisk(path, self.open_storage)) as made:
            yield made

    def call(self, at: str, more: Mapping[str, object] | None = None) -> str:
        named = []
        if self.open_storage is not open_file:
            named.append(f"open_storage={name_of(self.open_storage)}")
        return self.call_of("lose_everywhere", at, more or {}, *named)


@dataclass
class _Runner(_OnFile):
    """Runs a scenario with one loss of all that may be lost, or of nothing of it."""

    kept: bool = False

    def lose(self, number: int, kept: bool) -> None:
        """Run it, and lose power at a commit: what it has written is lost, or is there."""
        self.kept = kept
        self.run((Strike(0, number, int(kept), Fault.crash(after=kept)),))

    def crashed(self, world: World) -> None:
        loss = Loss.nothing() if self.kept else Loss.everything()
        world.scheduler.note(f"the power fails, {loss}")
        world.lose_power(loss)

    def place(self, strikes: tuple[Strike, ...]) -> str:
        return f"commit {strikes[0].number} {'kept' if self.kept else 'lost'}"


@dataclass(frozen=True, slots=True)
class _Moment:
    """A moment at which data could be lost: what was done, how many commits had returned."""

    about: str
    returned: int
    files: tuple[FileImage, ...]
    story: str


@dataclass
class _Looker(_OnFile):
    """Runs a scenario without a loss, and tries what would have been left."""

    moments: list[_Moment] = field(default_factory=list)
    commits: list[int] = field(default_factory=list)
    committed: list[_Transaction] = field(default_factory=list)

    def look(self) -> None:
        """Run it once, and keep what is in the files at each moment."""
        with self.world() as world:
            disk = world.disk
            assert isinstance(disk, FileDisk)
            first = world.process("before")
            self.setup(first)
            first.stop()
            process = world.process("process", start=False, **self.settings)
            seen: set[tuple[FileImage, ...]] = set()

            def keep(about: str) -> None:
                files = disk.image()
                if files in seen or all(each.is_flushed for each in files):
                    return
                seen.add(files)
                story = world.scheduler.story(10)
                self.moments.append(_Moment(about, len(disk.commits), files, story))

            def on_call(call: Call) -> Fault | None:
                if call.kind == "finish":
                    self.commits.append(call.number)
                if call.kind in ("vote", "finish", "abort"):
                    keep(f"before {call}")
                return None

            disk.on_flush = lambda: keep(f"in {world.scheduler.story(1).strip()}")
            process.on_call = on_call
            process.start()
            self.scenario(process)
            if process.is_running:
                world.come_to_rest(self.rest_limit)
            self.committed = _transactions(disk.base)
            if len(self.committed) != len(disk.commits):
                raise SimulationError("the scenario must not pack: its commits are not there")
            disk.restart()
            keep("when the file was opened again")

    def try_all(self, step: int, block_sizes: Sequence[int], at: str) -> int:
        """Try every loss at every moment, or one; return how many those were."""
        tried = 0
        # Upon these depends which loss has which number.
        numbered: dict[str, object] = {"step": step}
        if block_sizes != BLOCK_SIZES:
            numbered["block_sizes"] = block_sizes
        known: set[tuple[int, tuple[tuple[str, bytes], ...]]] = set()
        for moment, loss, place in shown("losses", [*self._losses(step, block_sizes)]):
            tried += 1
            if at and place != at:
                continue
            left = tuple((image.name, loss.of(image)) for image in moment.files)
            if (moment.returned, left) in known:
                continue
            known.add((moment.returned, left))
            try:
                self._try(moment, left)
            except Exception as error:
                raise BrokenError(
                    f"broken by a loss of power {moment.about}, with {loss}\n"
                    f"{type(error).__name__}: {error}\n"
                    f"what happened until then:\n{moment.story}\n"
                    f"to repeat it: {self.call(place, numbered)}"
                ) from error
            if at:
                return tried
        if at:
            raise SimulationError(f"at must be as the text of a failure gives it, not {at!r}")
        return tried

    def _losses(
        self, step: int, block_sizes: Sequence[int]
    ) -> Iterator[tuple[_Moment, Loss, str]]:
        for number, moment in enumerate(self.moments):
            losses = [Loss.everything(), Loss.nothing()]
            for image in moment.files:
                if not image.is_flushed:
                    losses += losses_of(image, step, block_sizes)
            for second, loss in enumerate(losses):
                yield moment, loss, f"{number} {second}"

    def _try(self, moment: _Moment, left: tuple[tuple[str, bytes], ...]) -> None:
        with tempfile.TemporaryDirectory(prefix="lost-", dir=self.folder) as folder:
            for name, content in left:
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            storage = self.open_storage(f"{folder}/data.fs")
            try:
                found = _transactions(storage)
                known = [
                    self.committed[: moment.returned],
                    self.committed[: moment.returned + 1],
                ]
                assert found in known, _difference(found, known[0])
                for oid, data in {
                    oid: data for _, records in found for oid, data in records
                }.items():
                    assert storage.load(oid)[0] == data, f"the object {oid.hex()} is another one"
            finally:
                storage.close()


def _transactions(storage: Any) -> list[_Transaction]:
    iterator = storage.iterator()
    try:
        return [
            (each.tid, tuple((record.oid, record.data) for record in each)) for each in iterator
        ]
    finally:
        iterator.close()


def _difference(found: list[_Transaction], expected: list[_Transaction]) -> str:
    same = 0
    for one, other in zip(found, expected, strict=False):
        if one != other:
            break
        same += 1
    if same < len(expected):
        return f"of {len(expected)} transactions whose commit had returned {same} are there"
    return "a part is there of a transaction that was not finished"
