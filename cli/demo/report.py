"""What the demo prints at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from perdure.cli.demo.comparing import Comparison
from perdure.cli.demo.jobs import Summary
from perdure.cli.errors import shown

__all__ = ["Crash", "Outcome", "print_outcome", "print_summary"]

_SHOWN = 5
_WORDS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Crash:
    """The worker process as it was when it was killed.

    `done` jobs were done; of `running` ones the call, or that of the callback, had begun
    and its effect was not stored; `taken` ones were claimed, and between two such calls.
    `run_again` is how many were interrupted, and had the call made again.
    """

    pid: int
    done: int
    running: int
    taken: int
    run_again: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What there is to say besides the summary.

    `seconds` from the start of the first worker process to the end of the last,
    `plain_seconds` for counting all again without Perdure; `violations` is what
    `perdure.model.check` found.
    """

    jobs: int
    seconds: float
    plain_seconds: float
    crash: Crash | None
    comparison: Comparison
    violations: Sequence[str]

    @property
    def agrees(self) -> bool:
        """Whether all is as it should be."""
        return not self.comparison.differences and not self.violations


def print_summary(console: Console, summary: Summary) -> None:
    """Print what the job that merges has stored."""
    console.print()
    _line(console, "files", f"{len(summary.names):,} counted, {len(summary.failed):,} failed")
    _line(console, "words", f"{summary.words:,}, of which {summary.different:,} different")
    frequent = [f"{word} {count:,}" for word, count in summary.most_frequent[:_WORDS_SHOWN]]
    _line(console, "frequent", ", ".join(frequent) or "(no words)")
    _list(console, "failed", [f"{name}: {reason}" for name, reason in summary.failed])


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print how it went and whether it agrees."""
    speed = outcome.jobs / max(outcome.seconds, 1e-9)
    _line(
        console,
        "time",
        f"{outcome.seconds:.1f} s, {speed:,.0f} jobs/s, all starts included "
        f"({outcome.plain_seconds:.1f} s without Perdure)",
    )
    crash = outcome.crash
    if crash is not None:
        _line(
            console,
            "crash",
            f"process {crash.pid} was killed after {crash.done:,} jobs; running then: "
            f"{crash.running:,}, run again: {crash.run_again:,}; claimed, with no call "
            f"under way: {crash.taken:,}",
        )
    comparison = outcome.comparison
    _list(console, "changed", [f"{name}: left out" for name in comparison.changed])
    _list(console, "violation", outcome.violations, style="red")
    _list(console, "difference", comparison.differences, style="red")
    if outcome.agrees:
        text = f"{comparison.agreed:,} files agree: exactly once, nothing lost, nothing twice"
        _line(console, "result", text, style="green")
    else:
        wrong = len(comparison.differences) + len(outcome.violations)
        _line(console, "result", f"NO AGREEMENT: see the {wrong:,} above", style="bold red")


def _list(console: Console, label: str, lines: Iterable[str], style: str = "") -> None:
    everything = list(lines)
    for line in everything[:_SHOWN]:
        _line(console, label, line, style)
        label = ""
    if len(everything) > _SHOWN:
        _line(console, "", f"… and {len(everything) - _SHOWN:,} more")


def _line(console: Console, label: str, text: str, style: str = "") -> None:
    line = Text.assemble((f"{label:<11}", "bold"), (shown(text), style))
    # A path that is cut in two cannot be copied.
    console.print(line, soft_wrap=True)
