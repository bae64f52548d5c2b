"""Running jobs until a signal says stop."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import transaction

from perdure.actors import ActorSystem, start
from perdure.cli.durations import show_duration
from perdure.cli.errors import CommandError
from perdure.cli.naming import queue_name, queue_shown
from perdure.model import NotInstalledError
from perdure.model.queues import find_queues

__all__ = ["serve"]

events = logging.getLogger("perdure.cli")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(database: Any, queues: Mapping[str, int], drain: timedelta) -> None:
    """Run the jobs of `database` until SIGTERM or SIGINT, then drain and stop.

    `queues` are names as they are typed, with sizes; none: all queues. A second signal ends
    the drain. To be called in the main thread, whose handlers are restored at the end.
    Raises as `perdure.actors.start` does.
    """
    with _signals() as arrived:
        named = _named(database, queues)
        system = start(database, named or None)
        try:
            _say_what_runs(system, named)
            arrived.get()
            _stop(system, drain, arrived)
        finally:
            system.stop(timedelta(0))
    events.info("stopped")


@contextlib.contextmanager
def _signals() -> Iterator[queue.SimpleQueue[int]]:
    """Let signals arrive in a queue, which may be put into while it is waited on."""
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
    before = {}
    for number in SIGNALS:
        before[number] = signal.signal(number, lambda number, frame: arrived.put(number))
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _named(database: Any, queues: Mapping[str, int]) -> dict[str, int]:
    connection = database.open(transaction_manager=transaction.TransactionManager())
    try:
        known = list(find_queues(connection))
    except NotInstalledError:
        # They are about to be made.
        known = []
    finally:
        connection.close()
    named: dict[str, int] = {}
    for text, size in queues.items():
        name = queue_name(text, known)
        if name in named:
            raise CommandError(f"queue {queue_shown(name)} is given twice: give it one size")
        named[name] = size
    return named


def _say_what_runs(system: ActorSystem, queues: Mapping[str, int]) -> None:
    served = ", ".join(f"{queue_shown(name)}:{size}" for name, size in queues.items())
    events.info(
        "running jobs of %s, queues %s, process %d", system.database.storage.getName(),
        served or "all", os.getpid(), extra={"dispatcher": str(system.uuid)},
    )  # fmt: skip


def _stop(system: ActorSystem, drain: timedelta, arrived: queue.SimpleQueue[int]) -> None:
    events.info(
        "stopping: claims nothing more, what runs may end within %s; a second signal ends that",
        show_duration(drain),
    )

    def stop() -> None:
        try:
            system.stop(drain)
        finally:
            arrived.put(0)

    stopping = threading.Thread(target=stop, name="stop")
    stopping.start()
    while arrived.get():
        events.info("stopping at once")
        # Ends the drain, and returns when the stop is complete.
        system.stop(timedelta(0))
    stopping.join()
