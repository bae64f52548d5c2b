"""Whether a job, its arguments and its result survive pickling in another process, a real one."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from typing import Any

from persistent import Persistent
from persistent.wref import WeakRef

from perdure.model.errors import CallableNotFoundError, NotStorableError
from perdure.model.job import Job
from perdure.testing.elsewhere import PROTOCOL
from perdure.testing.errors import SimulationError

__all__ = ["Pickles"]

TIMEOUT_SECONDS = 120.0
"""Real seconds, far beyond what it takes to import an application."""

_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from perdure.testing.elsewhere import main; main()"
)


class Pickles:
    """The pickles of one job, taken while the connection of the job is open."""

    def __init__(self, job: Job) -> None:
        self._call = job.call_text()
        self._name = job.callable_name
        # What a method's object is, the callable itself tells.
        self._kept: list[Any] = []
        self._parts: list[tuple[str, str, bytes]] = []
        stored = job._callable
        if not isinstance(stored, str):
            self._add("method", "its callable", (type(stored[0]), stored[1]))
        elif os.sep not in stored:  # the functions of a script are found by that script alone
            self._add("name", "its callable", stored)
        if type(job) is not Job:
            self._add("value", "its class", type(job))
        for index, value in enumerate(job.args):
            self._add("value", f"argument {index}", value)
        for name, value in job.kwargs.items():
            self._add("value", f"argument {name!r}", value)

    def _add(self, kind: str, what: str, value: Any) -> None:
        buffer = io.BytesIO()
        try:
            _Pickler(buffer, self._kept).dump(value)
        # Writing runs the application's code, which may raise anything.
        except Exception as error:
            raise self._refusal(what, f"{type(error).__name__}: {error}") from error
        self._parts.append((kind, what, buffer.getvalue()))

    def survive(self, *result: Any) -> Any:
        """Let another process read it all and write it again; return the result read from that.

        :param result: what the job has returned, nothing for one that has failed.

        Raises `CallableNotFoundError` where the other process does not find the callable,
        `NotStorableError` where it cannot read an argument or the result.
        """
        for each in result:
            self._add("value", "the result", each)
        answers = _ask([(kind, data) for kind, _, data in self._parts])
        for (kind, what, _), (survived, answer) in zip(self._parts, answers, strict=True):
            if survived:
                continue
            if kind != "value":
                raise CallableNotFoundError(self._name, f"in another process, {answer}")
            raise self._refusal(what, answer)
        return _Unpickler(io.BytesIO(answers[-1][1]), self._kept).load() if result else None

    def _refusal(self, what: str, reason: str) -> NotStorableError:
        return NotStorableError(
            f"{what} of {self._call} does not survive in another process: {reason}; give plain "
            "data, or instances of classes of modules that every process can import"
        )


class _Pickler(pickle.Pickler):
    """Pickles persistent objects as what they are in ZODB: a reference, and a class."""

    def __init__(self, buffer: io.BytesIO, kept: list[Any]) -> None:
        super().__init__(buffer, PROTOCOL)
        self._kept = kept

    def persistent_id(self, obj: Any, /) -> Any:
        if not isinstance(obj, Persistent | WeakRef):
            return None
        self._kept.append(obj)
        return len(self._kept) - 1, type(obj)


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, kept: list[Any]) -> None:
        super().__init__(buffer)
        self._kept = kept

    def persistent_load(self, name: Any, /) -> Any:
        return self._kept[name[0]]


def _ask(parts: list[tuple[str, bytes]]) -> list[tuple[bool, Any]]:
    path = [os.path.abspath(each) for each in sys.path]
    request = json.dumps(path).encode() + b"\n" + pickle.dumps(parts, PROTOCOL)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _BOOTSTRAP],
            input=request,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise SimulationError(
            f"the other process has not read the job within {TIMEOUT_SECONDS} real seconds: "
            "what it imports must not wait"
        ) from error
    if done.returncode:
        raise SimulationError(
            f"the other process ended with status {done.returncode}:\n"
            + done.stderr.decode(errors="replace")[-2000:]
        )
    answers: list[tuple[bool, Any]] = pickle.loads(done.stdout)
    return answers
