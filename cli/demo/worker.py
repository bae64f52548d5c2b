"""The process that does the demo's work: ``python -m perdure.cli.demo.worker FILE``.

The conversation: after each job that is done it writes one line to its standard output,
the number of jobs done so far, and ends when the summary is made. It never reads more
than the end of its standard input, which is the end of the demo; then it ends at once.
A line that gets lost means nothing, since the next one counts it too.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from perdure.actors import start
from perdure.cli.demo.database import index_of, open_database

__all__ = ["ORPHANED", "main"]

ORPHANED = 3
"""The exit status of a worker whose demo has ended."""

_LONG = timedelta(days=1)


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
    with start(database, queues={"": workers}) as system:
        with system.transaction() as connection:
            refs = [file.job.ref for file in index_of(connection).files.values()]
        for done, ref in enumerate(refs, 1):
            system.wait(ref, timeout=_LONG)
            print(done, flush=True)
        with system.transaction() as connection:
            merge_job = index_of(connection).merge_job
            # The last callback put it, in the transaction that made its job completed.
            assert merge_job is not None
            merged = merge_job.ref
        system.result(merged, timeout=_LONG)
        if stay:
            threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
