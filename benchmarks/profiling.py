"""Profiles of the threads of a process: where each kind of thread spends its processor time.

Each thread that is started meanwhile has a `cProfile` of its own, which counts the time of the
processor that this thread takes (and not that in which it waits for a lock, another thread or
the disk). To be profiled costs time, more for code of many small calls: a profile says what to
look at, and no figure of a profiled run is worth anything.
"""

from __future__ import annotations

import contextlib
import cProfile
import os
import pstats
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "profiled", "profiled_if_told"]

FOLDER = "PERDURE_BENCHMARKS_PROFILES"
"""The variable that names the folder for the profiles of processes."""

SHOWN = 25


@contextlib.contextmanager
def profiled(folder: Path, name: str) -> Iterator[None]:
    """Profile this thread, and those that start meanwhile; write what was found to `folder`.

    `<name>.txt` is for reading, `<name>-<kind of thread>.prof` for `pstats` and its like.
    """
    profiles: list[tuple[str, cProfile.Profile]] = []

    def begin() -> cProfile.Profile:
        profile = cProfile.Profile(time.thread_time)
        profiles.append((threading.current_thread().name, profile))
        profile.enable()
        return profile

    def first_event(frame: Any, event: str, argument: Any) -> None:
        # Takes the place of this function, in this thread.
        begin()

    threading.setprofile(first_event)
    own = begin()
    try:
        yield
    finally:
        own.disable()
        threading.setprofile(None)
        _write(folder, name, profiles)


def profiled_if_told(name: str) -> contextlib.AbstractContextManager[None]:
    """The same, where the environment says so, for processes that others start."""
    folder = os.environ.get(FOLDER)
    return contextlib.nullcontext() if folder is None else profiled(Path(folder), name)


def _write(folder: Path, name: str, profiles: list[tuple[str, cProfile.Profile]]) -> None:
    kinds: dict[str, list[cProfile.Profile]] = {}
    for thread, profile in profiles:
        kind = re.sub(r"[^A-Za-z ].*", "", thread).strip().replace(" ", "-") or "thread"
        kinds.setdefault(kind, []).append(profile)
    with (folder / f"{name}.txt").open("w") as page:
        for kind, members in sorted(kinds.items()):
            # What is left out of its type hints is documented, or used by its subclasses.
            stats: Any = _merged(members)
            if stats is None:
                continue
            stats.dump_stats(folder / f"{name}-{kind}.prof")
            seconds = stats.total_tt
            page.write(f"{kind}: {len(members)} threads, {seconds:.2f} s of processor\n\n")
            stats.stream = page
            stats.sort_stats("tottime").print_stats(SHOWN)
    print(f"profile: {folder / f'{name}.txt'}", file=sys.stderr)


def _merged(members: list[cProfile.Profile]) -> pstats.Stats | None:
    stats: pstats.Stats | None = None
    for profile in members:
        # Of a thread that still runs, what it has returned from.
        profile.snapshot_stats()
        found: Any = _Holder(profile.stats)
        if not found.stats:
            continue
        if stats is None:
            stats = pstats.Stats(found)
        else:
            stats.add(found)
    return stats


class _Holder:
    """Statistics as `pstats` takes them, from a profile that is not stopped by it."""

    def __init__(self, stats: dict[Any, Any]) -> None:
        self.stats = stats

    def create_stats(self) -> None:
        """Called by `pstats`; they are there."""
