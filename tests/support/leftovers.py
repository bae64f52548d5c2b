"""Pytest plugin: no test leaves a thread, an actor, a file, a socket or a handler behind.

The state before a test is taken after the fixtures of a wider scope were made, so that what
those hold (a server for the whole module, say) is no leftover of the test.
"""

from __future__ import annotations

import gc
import os
import signal
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pykka
import pytest

#: Far beyond what a thread that has been told to end needs; only a leak waits so long.
GRACE_SECONDS = 20.0

#: Those that a program ends by, or is told something.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class Held:
    """What this process holds at one moment."""

    threads: frozenset[threading.Thread]
    actors: frozenset[pykka.ActorRef[Any]]
    descriptors: frozenset[tuple[int, str]]
    handlers: Mapping[signal.Signals, Any]

    @classmethod
    def now(cls) -> Held:
        return cls(
            frozenset(threading.enumerate()),
            frozenset(pykka.ActorRegistry.get_all()),
            frozenset(open_files_and_sockets()),
            {number: signal.getsignal(number) for number in SIGNALS},
        )


def open_files_and_sockets() -> Iterator[tuple[int, str]]:
    """Number and target of each descriptor of a regular file or a socket, where /proc tells."""
    if not _DESCRIPTORS.is_dir():
        return
    for name in os.listdir(_DESCRIPTORS):
        try:
            mode = os.fstat(int(name)).st_mode
            target = os.readlink(_DESCRIPTORS / name)
        except OSError:  # closed since the folder was listed, as the one that listed it
            continue
        if stat.S_ISREG(mode) or stat.S_ISSOCK(mode):
            yield int(name), target


def leftovers(before: Held) -> list[str]:
    """What is held now and was not `before`, a line each; waits for threads that are ending."""
    found = []
    for actor in pykka.ActorRegistry.get_all():
        if actor not in before.actors:
            found.append(f"actor {actor}")
            actor.stop(block=False)  # or its thread would keep the interpreter from ending
    for thread in threading.enumerate():
        if thread in before.threads or thread is threading.current_thread():
            continue
        thread.join(0 if found else GRACE_SECONDS)
        if thread.is_alive():
            found.append(f"thread {thread}")
    found += [f"descriptor {number}: {target}" for number, target in _new_files(before)]
    for number, handler in before.handlers.items():
        if (left := signal.getsignal(number)) != handler:
            found.append(f"handler of {number.name}: {left}")
            signal.signal(number, handler)  # or the next tests would be told of it
    return found


def _new_files(before: Held) -> list[tuple[int, str]]:
    """The descriptors that are new, but for further ones of a file that was open before."""

    def new() -> list[tuple[int, str]]:
        targets = {target for _, target in before.descriptors}
        return sorted(held for held in open_files_and_sockets() if held[1] not in targets)

    if new():
        gc.collect()  # what only a cycle of garbage holds has been let go of
    return new()


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    before = Held.now()
    yield
    found = leftovers(before)
    assert not found, "the test left behind:\n  " + "\n  ".join(found)
