"""The process that does the demo's work: ``python -m perdure.cli.demo.worker FILE``.

The conversation: at its start, and after each job that is done, it writes one line to its
standard output, the number of jobs done so far, and it ends when the summary is made. A
line that gets lost means nothing, since the next one counts it too. It never reads more
than the end of its standard input, which is the end of the demo; then it ends at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import sys
import threading
from collections.abc import Sequence
from typing import Any

from perdure.actors import start
from perdure.cli.demo.announcing import listen
from perdure.cli.demo.database import open_database, read_index

__all__ = ["ORPHANED", "main"]

ORPHANED = 3
"""The exit status of a worker whose demo has ended."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the demo's jobs until there are none left; return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", help="the database's file")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--stay", action="store_true", help="do not end before being killed")
    given = parser.parse_args(args)
    # Tells where it comes from what the demo's folder keeps as worker.log.
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    with open_database(given.file) as database:
        _work(database, given.workers, given.stay)
    return 0


def _end_with_parent() -> None:
    """Wait for the end of standard input, and end the process, whatever it is doing."""
    # Without Python's buffer, whose lock would be held when the interpreter ends.
    while os.read(0, 1024):
        pass
    # No more than a crash, which the database is made for.
    os._exit(ORPHANED)


def _work(database: Any, workers: int, stay: bool) -> None:
    arrivals: queue.SimpleQueue[None] = queue.SimpleQueue()
    listen(database, lambda: arrivals.put(None))
    # Before any job can run here, so that each arrival is either in `done` or announced.
    with read_index(database) as index:
        done, total = index.arrived(), len(index.files)
    print(done, flush=True)
    with start(database, queues={"": workers}) as system:
        while done < total:
            arrivals.get()
            done += 1
            print(done, flush=True)
        with read_index(database) as index:
            # The last callback put it, in the transaction that was announced last.
            assert index.merge_job is not None
            merged = index.merge_job.ref
        system.wait(merged)
        if stay:
            threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
