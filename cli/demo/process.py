"""The worker's process, as the demo sees it: started, heard, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType

from perdure.cli.errors import CommandError

__all__ = ["LOG_NAME", "WorkerProcess"]

LOG_NAME = "worker.log"

_GRACE_SECONDS = 10


class WorkerProcess:
    """A process of this interpreter that runs the jobs in the database at `file`.

    To be used in a ``with``, at whose end the process has ended, whatever happened. With
    `stay`, it does not end before it is killed. What it logs is added to `LOG_NAME` in
    the folder of `file`.
    """

    def __init__(self, file: str, workers: int, *, stay: bool = False) -> None:
        self._log = os.path.join(os.path.dirname(file), LOG_NAME)
        # -P: a module in the folder where the demo is started must not stand in for one
        # of ours.
        command = [sys.executable, "-P", "-m", "perdure.cli.demo.worker", file]
        command += ["--workers", str(workers)]
        if stay:
            command.append("--stay")
        with open(self._log, "ab") as log:
            # In a session of its own: Ctrl-C is for the demo, which then ends it.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="ascii",
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        # It ends when this does.
        self._process.stdin.close()
        try:
            self._process.wait(_GRACE_SECONDS)
        except BaseException as interruption:
            self._process.kill()
            self._process.wait()
            if not isinstance(interruption, subprocess.TimeoutExpired):
                raise
        finally:
            self._process.stdout.close()

    def progress(self) -> Iterator[int]:
        """Give the number of jobs done, whenever it has grown, until the process ends.

        Raises `CommandError` where it ends without having done its work.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # A line that the end of the process cut off has no end.
            if line.endswith("\n"):
                yield int(line)
        status = self._process.wait()
        if status != 0:
            raise CommandError(
                f"the worker process ended with status {status} before the work was done"
                f"{self._last_words()}; its log is {self._log}"
            )

    def kill(self) -> None:
        """End the process by SIGKILL, and wait for that."""
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _last_words(self) -> str:
        try:
            with open(self._log, encoding="utf-8", errors="replace") as log:
                lines = log.read().splitlines()
        except OSError:
            return ""
        return f" ({lines[-1].strip()})" if lines else ""
