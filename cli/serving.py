"""Running jobs until a signal says stop."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import weakref
from collections.abc import Mapping
from datetime import timedelta
from types import FrameType
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
    with contextlib.closing(_Arrivals()) as arrivals:
        named = _named(database, queues)
        system = start(database, named or None)
        try:
            _say_what_runs(system, named)
            arrivals.wait()
            _stop(system, drain, arrivals)
        finally:
            system.stop(timedelta(0))
    events.info("stopped")


class _Arrivals:
    """What has arrived: signals, and the end of a stop.

    By a pipe, which the interpreter writes to at the very moment of a signal. A handler is
    called only when the main thread goes on, and one that waits for a lock may not. A forked
    child has none of it: its signals are its own.
    """

    STOPPED = 0

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._handlers = {each: signal.signal(each, _ignore) for each in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._writing)
        _arrivals.add(self)

    def wait(self) -> bool:
        """Wait for the next; whether it is a signal. In the main thread."""
        while True:
            (number,) = os.read(self._reading, 1)
            # Others may be the application's.
            if number == self.STOPPED or number in SIGNALS:
                return bool(number)

    def stopped(self) -> None:
        """Say that a stop is complete; from any thread."""
        os.write(self._writing, bytes([self.STOPPED]))

    def close(self) -> None:
        """Restore the handlers that there were."""
        _arrivals.discard(self)
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._reading)
        os.close(self._writing)


_arrivals: weakref.WeakSet[_Arrivals] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for each in list(_arrivals):
        each.close()


os.register_at_fork(after_in_child=_leave_to_parent)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Let a signal do nothing but arrive."""


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


def _stop(system: ActorSystem, drain: timedelta, arrivals: _Arrivals) -> None:
    events.info(
        "stopping: claims nothing more, what runs may end within %s; a second signal ends that",
        show_duration(drain),
    )

    def stop() -> None:
        try:
            system.stop(drain)
        finally:
            arrivals.stopped()

    stopping = threading.Thread(target=stop, name="stop")
    stopping.start()
    while arrivals.wait():
        events.info("stopping at once")
        # Ends the drain, and returns when the stop is complete.
        system.stop(timedelta(0))
    stopping.join()
