"""The process of a worker: a system on the server's database, under a clock that can jump."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
import uuid
from datetime import datetime, timedelta
from typing import Any

from transaction.interfaces import TransientError
from ZODB.POSException import StorageError

from catastrophes import faults, scenes
from catastrophes.children import end_with_starter, say
from perdure.actors import PollNow, start
from perdure.model import PerdureError, SystemClock, incarnation


class JumpingClock(SystemClock):
    """The machine's clock, off by as much as it was told."""

    offset = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.offset

    def command(self, line: str) -> None:
        """Obey ``jump SECONDS``: be off by as much from now on."""
        word, _, value = line.partition(" ")
        if word == "jump":
            self.offset = timedelta(seconds=float(value))
            say(f"jumped {value}")


class _Lines(logging.Formatter):
    """Begins each line with the time that all processes of a machine share."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{time.monotonic():.6f} {os.getpid()} {record.levelname} {text}"


class _Say(logging.Handler):
    """Says what is logged, for the tests that wait for it."""

    def emit(self, record: logging.LogRecord) -> None:
        say("log " + record.getMessage().partition("\n")[0])


def _log_to_standard_error() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("perdure.events").addHandler(_Say())
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("perdure.events").setLevel(logging.INFO)


def main(settings: dict[str, Any]) -> None:
    """Run jobs until SIGTERM, and a second one where they do not end."""
    _log_to_standard_error()
    clock = JumpingClock()
    end_with_starter(lambda line: (clock.command(line), scenes.command(line)))
    scenes.place = settings.get("place", "")
    for name in settings.get("faults", ()):
        faults.FAULTS[name].switch_on()
    if settings.get("other_host"):
        # As if it was another one for each process: no end can be proved.
        boot_id = str(uuid.uuid4())
        incarnation._boot_id = lambda: boot_id
    intervals = {
        name: timedelta(seconds=settings[name])
        for name in ("poll_interval", "ping_interval", "ping_death_interval")
    }
    while True:
        try:
            system = start(
                settings["uri"],
                {"": settings["size"]},
                clock=clock,
                handle_signals=True,
                **intervals,
            )
            break
        # As whoever starts services would: the server may be away for longer than we wait.
        except (TransientError, StorageError, OSError):
            logging.warning("cannot start yet", exc_info=True)
            threading.Event().wait(0.2)
    # It has registered then, where it could.
    with contextlib.suppress(PerdureError, TimeoutError):
        system.ask(PollNow())
    say(f"ready {system.uuid}")
    system.join()
    say("stopped")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
