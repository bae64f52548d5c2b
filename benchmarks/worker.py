"""A process that runs jobs, for the workloads that need a new one, or several.

    python -m benchmarks.worker URI

It prints ``ready`` when all is imported and the database is open, and then obeys lines: ``go``
starts a system and answers ``going``; ``done N`` answers, once that many jobs are done, how many
ended well. It ends with its input.
"""

from __future__ import annotations

import contextlib
import os
import sys

from benchmarks.profiling import profiled_if_told
from benchmarks.stage import WORKERS, Stage
from perdure.actors import start
from perdure.storage import open_database

LONG_SECONDS = 3600.0


def main(uri: str) -> None:
    with contextlib.closing(open_database(uri)) as database, contextlib.ExitStack() as stack:
        stack.enter_context(profiled_if_told(f"worker-{os.getpid()}"))
        stage = Stage(database)
        print("ready", flush=True)
        for line in sys.stdin:
            word, *arguments = line.split()
            if word == "go":
                stack.enter_context(start(database, {"": WORKERS}))
                print("going", flush=True)
            else:
                (number,) = map(int, arguments)
                print(stage.wait_until_done(number, limit=LONG_SECONDS), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
