"""The process of the ZEO server: `perdure.server`, which says when it listens.

With ``--before METHOD`` and one of `TROUBLES` as first arguments it has that trouble where its
storage gets to that method. It takes one command: ``signal NUMBER`` lets a signal come in the
instant in which its main thread falls asleep.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import ZODB.event
from ZEO.StorageServer import Serving
from ZODB.FileStorage import FileStorage

from catastrophes.children import end_with_starter, say
from perdure.server import main


def _tell(event: object) -> None:
    if isinstance(event, Serving):
        say("ready")


def _hold(method: str) -> None:
    say(f"held {method}")
    threading.Event().wait()


def _signal(method: str) -> None:
    signal.raise_signal(signal.SIGTERM)


TROUBLES = {"hold": _hold, "signal": _signal}


def _trouble(method: str, trouble: str) -> None:
    whole = getattr(FileStorage, method)

    def troubled(self: Any, *args: Any, **settings: Any) -> Any:
        TROUBLES[trouble](method)
        return whole(self, *args, **settings)

    setattr(FileStorage, method, troubled)


def _command(line: str) -> None:
    word, _, number = line.partition(" ")
    if word == "signal":
        main_thread = threading.main_thread().ident or 0
        while sys._current_frames()[main_thread].f_code.co_name != "select":
            threading.Event().wait(0.001)
        # A signal of this thread does not wake the other, just as then.
        signal.pthread_kill(threading.get_ident(), int(number))


if __name__ == "__main__":
    end_with_starter(_command)
    ZODB.event.notify = _tell
    given = sys.argv[1:]
    if given[:1] == ["--before"]:
        _trouble(*given[1:3])
        del given[:3]
    main(given)
