"""W5: a process is killed while it runs jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from persistent.list import PersistentList

from benchmarks.jobs import Counter, beginnings, log_to
from benchmarks.processes import Process, runner, wait_for
from benchmarks.stage import Stage, stage_on_file
from benchmarks.workload import Bar, Figure, Run, Workload, WrongError
from perdure.model import Job, get_queue

__all__ = ["WORKLOADS"]

RUNNING = 4
QUEUED = 50
READY = "running jobs of"


class Scene:
    """A database with one process that has four jobs in hand."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.path = folder / "app.fs"
        self.log = folder / "log"
        self.end = folder / "end"
        log_to(self.log)
        with self.stage() as stage, stage.transaction() as connection:
            connection.root()["counters"] = PersistentList(
                Counter() for _ in range(RUNNING + QUEUED)
            )

    @contextlib.contextmanager
    def stage(self) -> Iterator[Stage]:
        """The database; not kept open, or this process could come to own the file."""
        with stage_on_file(self.folder) as stage:
            yield stage

    def begin(self) -> None:
        """Put the jobs that hold, and wait until all are begun."""
        with self.stage() as stage, stage.transaction() as connection:
            for number in range(RUNNING):
                counter = connection.root()["counters"][number]
                get_queue(connection).put(Job(counter.hold, number, str(self.end)))
        wait_for(lambda: len(self.begun()) == RUNNING, "the jobs are not begun")

    def queue(self) -> None:
        """Put the other jobs, in one commit."""
        with self.stage() as stage, stage.transaction() as connection:
            for number in range(RUNNING, RUNNING + QUEUED):
                get_queue(connection).put(Job(connection.root()["counters"][number].add))

    def begun(self) -> list[tuple[int, int, float]]:
        """What the jobs that hold have noted."""
        return beginnings(self.log)

    def begun_again(self) -> float:
        """Wait until all that ran run again; when the first of them did."""
        wait_for(lambda: len(self.begun()) >= 2 * RUNNING, "not all are begun again")
        return min(moment for _, _, moment in self.begun()[RUNNING:])

    def finish(self) -> None:
        """Let the jobs end, and raise `WrongError` unless each was done once."""
        self.end.touch()
        with self.stage() as stage:
            done = stage.wait_until_done(RUNNING + QUEUED)
            with stage.transaction() as connection:
                values = [counter.value for counter in connection.root()["counters"]]
        begun = sorted(number for number, _, _ in self.begun())
        if done != len(values) or set(values) != {1} or begun != sorted([*range(RUNNING)] * 2):
            raise WrongError(f"{done} jobs are done, with the effects {values}, begun: {begun}")


def killed(run: Run) -> Mapping[str, float]:
    """Kill a process and restart it; then kill one that has a sibling."""
    figures: dict[str, float] = {}
    for name, story in (("restart", _restart), ("sibling", _sibling)):
        scene = Scene(run.folder / name)
        with contextlib.ExitStack() as stack:

            def started(
                name: str, stack: contextlib.ExitStack = stack, scene: Scene = scene
            ) -> Process:
                return stack.enter_context(runner(scene.path, name, RUNNING))

            figures[name] = story(scene, started)
            scene.finish()
    return figures


def _restart(scene: Scene, started: Callable[[str], Process]) -> float:
    one = started("one")
    one.said(READY)
    scene.begin()
    scene.queue()
    one.kill()
    ready = started("one").said(READY)
    return max(0.0, scene.begun_again() - ready)


def _sibling(scene: Scene, started: Callable[[str], Process]) -> float:
    one = started("one")
    one.said(READY)
    scene.begin()
    started("two").said(READY)
    scene.queue()
    moment = one.kill()
    return scene.begun_again() - moment


WORKLOADS = (
    Workload(
        "W5",
        "SIGKILL with 4 jobs running and 50 queued",
        "FileStorage with fsync, shared; `perdure run` with 4 workers; the first of the four is "
        "begun again: after the restarted process is ready, and after the kill, by a sibling; all "
        "54 jobs are done, each has its effect once (checked)",
        (
            Figure("restart", "s", (Bar(most=1),)),
            Figure("sibling", "s", (Bar(most=2),)),
        ),
        killed,
    ),
)
