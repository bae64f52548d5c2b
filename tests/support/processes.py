"""Real processes beside the test's own."""

from __future__ import annotations

import os
import subprocess
import sys

from support import jobs
from support.systems import LIMIT, within
from support.tree import TESTS

__all__ = ["Child"]


class Child:
    """A process that runs one of the functions of `support.worker_process`.

    With `stdin`, it has a pipe for its input, which `close` ends.
    """

    def __init__(self, what: str, uri: str, *, hang: bool = True, stdin: bool = False) -> None:
        path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        if hang:
            environment[jobs.HANG] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.worker_process", what, uri],
            env=environment,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line that it says; '' when it has ended."""
        assert self.process.stdout is not None
        return str(within(self.process.stdout.readline)).strip()

    def end(self) -> int:
        return self.process.wait(LIMIT.total_seconds())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
