"""How far the demo is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from perdure.model import Clock

__all__ = ["JobProgress"]

_LINES = 10


class JobProgress:
    """Shows jobs done and jobs a second, of `total` jobs; to be used in a ``with``."""

    def __init__(self, console: Console, total: int, clock: Clock) -> None:
        self._console = console
        self._total = total
        self._clock = clock
        self._begun = clock.monotonic()
        self._done = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("jobs done"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                console=console,
            )
            self._task = self._bar.add_task("", total=total, speed="")

    def __enter__(self) -> JobProgress:
        self._begun = self._clock.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return self._clock.monotonic() - self._begun

    @property
    def total(self) -> int:
        """How many jobs there are."""
        return self._total

    def update(self, done: int) -> None:
        """Show that `done` jobs are done, if that is more than there were."""
        if done <= self._done:
            return
        before, self._done = self._done, done
        speed = f"{done / max(self.seconds, 1e-9):,.0f} jobs/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, speed=speed)
        elif done * _LINES // self._total > before * _LINES // self._total:
            self.say(f"{done:,} of {self._total:,} jobs done, {speed}")

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)
