"""Asking the processes that work for a database, from another process on the same host."""

from __future__ import annotations

import contextlib
import datetime
import socket
import uuid as uuids
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from perdure.actors import wire
from perdure.actors.control import ANSWER_SECONDS, socket_path
from perdure.model import localsocket
from perdure.model.clock import SystemClock
from perdure.model.dispatchers import DispatcherRecord
from perdure.model.errors import ProcessNotReachableError, UnknownSettingError
from perdure.model.incarnation import Incarnation, has_same_boot, proved_dead
from perdure.model.queues import find_queues

__all__ = ["ProcessAddress", "active_processes", "ask_process"]

# The process itself gives up an answer before.
_LONGEST_WAIT = timedelta(seconds=2 * ANSWER_SECONDS)
_SHORTEST_SECONDS = 1e-3
_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ProcessAddress:
    """A process that works for a database, as its records tell.

    `queues` are the names of those that it works for. `incarnation` says which start of the
    process that is and where its identity file is; None where it has no such file, and so
    cannot be asked.
    """

    uuid: uuids.UUID
    queues: tuple[str, ...]
    incarnation: Incarnation | None

    def __str__(self) -> str:
        if self.incarnation is None:
            return f"process {self.uuid}"
        return f"process {self.uuid} on host {self.incarnation.host}"

    @property
    def is_here(self) -> bool:
        """Whether it was started on this host, since the host was booted."""
        return self.incarnation is not None and has_same_boot(self.incarnation)


def active_processes(connection: Any) -> tuple[ProcessAddress, ...]:
    """Return the processes that work for the queues of a database, by their UUIDs.

    They are those that say so in its records, on whatever host: one that was killed is among
    them until another one notices. Reads in the connection's transaction, in its thread.
    Raises `NotInstalledError` where the database has no queues.
    """
    records: dict[uuids.UUID, list[DispatcherRecord]] = {}
    for queue in find_queues(connection).values():
        for record in queue.dispatchers.records():
            if record.active:
                records.setdefault(record.uuid, []).append(record)
    return tuple(_address(records[uuid]) for uuid in sorted(records))


def _address(records: list[DispatcherRecord]) -> ProcessAddress:
    """Return where a process is, by its latest start: an earlier one may not be buried yet."""
    latest = max(records, key=_activated)
    names = [record.queue.name for record in records if record.token == latest.token]
    return ProcessAddress(latest.uuid, tuple(names), latest.incarnation)


def _activated(record: DispatcherRecord) -> datetime.datetime:
    assert record.activated is not None
    return record.activated


def ask_process(
    process: ProcessAddress, message: object, *, timeout: timedelta = timedelta(seconds=5)
) -> Any:
    """Send a message or a question to another process, and return the answer.

    The process has to be on this host and to run as the same user; it may be this one.

    :param process: one of `active_processes`.
    :param message: `StatusAsked`, `ActiveJobsAsked`, `JobAsked`, `PollsAsked`,
        `StatisticsAsked`, `PollNow`, `Resize`, `RetryJob`, `CancelJob`, `PauseQueue` or
        `ResumeQueue`.
    :param timeout: how long to wait, above zero; after a minute the process gives up.

    The answer is what `ActorSystem.ask` returns there, and what that raises is raised here, but
    for an error of a kind that cannot be had here: it becomes a `PerdureError` with its text.
    Raises `ProcessNotReachableError` where the process cannot be asked from here,
    `UnknownMessageError` for any other message, and `TimeoutError`: what was asked may be
    done all the same then. From any thread; touches no transaction.
    """
    if not isinstance(process, ProcessAddress):
        raise TypeError(f"process must be one of active_processes(connection), not {process!r}")
    if not isinstance(timeout, timedelta) or timeout <= timedelta(0):
        raise UnknownSettingError(f"timeout must be a timedelta above zero, not {timeout!r}")
    incarnation = _incarnation_here(process)
    frame = wire.question(incarnation.token, message)
    path = socket_path(incarnation)
    try:
        body = _exchange(path, frame, timeout)
    except TimeoutError as error:
        raise TimeoutError(
            f"no answer to {type(message).__qualname__} within {timeout}: {process} is slow, "
            f"suspended, or stuck{error}"
        ) from error
    except (OSError, EOFError, wire.WireError) as error:
        raise _unreachable(process, _reason(incarnation, path, error)) from error
    try:
        return wire.read_answer(body)
    except wire.WireError as error:
        raise _unreachable(process, _reason(incarnation, path, error)) from error


def _exchange(path: str, frame: bytes, timeout: timedelta) -> bytes:
    """Send a frame and return the body of the reply; the text of a `TimeoutError` says whose."""
    now = SystemClock().monotonic
    seconds = min(timeout, _LONGEST_WAIT).total_seconds()
    deadline = now() + seconds
    with contextlib.closing(localsocket.connect(path, seconds)) as connected:

        def read(length: int) -> bytes:
            data = bytearray()
            while len(data) < length:
                connected.settimeout(max(deadline - now(), _SHORTEST_SECONDS))
                more = connected.recv(min(length - len(data), _PIECE_BYTES))
                if not more:
                    raise EOFError("it left before it had answered")
                data += more
            return bytes(data)

        try:
            connected.settimeout(seconds)
            connected.sendall(frame)
            return read(wire.read_header(read(wire.HEADER_BYTES)))
        except TimeoutError as error:
            known = localsocket.peer(connected)
            raise TimeoutError(f" (process id {known[0]})" if known else "") from error


def _incarnation_here(process: ProcessAddress) -> Incarnation:
    incarnation = process.incarnation
    if incarnation is None:
        raise _unreachable(
            process,
            "it has no identity file, beside which its control socket would be: start it "
            "where one can be written, or set PERDURE_UUID for it",
        )
    here = socket.gethostname()
    if incarnation.host != here:
        raise _unreachable(process, f"this host is {here}: ask on {incarnation.host}")
    if not process.is_here:
        raise _unreachable(process, "it has ended, for the host was booted since it was started")
    return incarnation


def _unreachable(process: ProcessAddress, reason: str) -> ProcessNotReachableError:
    return ProcessNotReachableError(f"{process} cannot be asked: {reason}")


def _reason(incarnation: Incarnation, path: str, error: Exception) -> str:
    """Return why there was no connection, or no answer, and what to do about it."""
    match error:
        case wire.OtherStartError():
            return "it has ended, and was started again: read its record again"
        case wire.OtherVersionError():
            return f"{error}: ask with the one that runs it"
        case wire.MalformedError():
            return f"what answers at {path} is no Perdure: {error}"
        case PermissionError():
            return f"{path} is not for this user ({error.strerror}): ask as the one it runs as"
        case _ if proved_dead(incarnation):
            return "it has ended; when it is started again, it goes on"
        case FileNotFoundError():
            return f"it has no control socket at {path}: its log says why, or it has just ended"
        case ConnectionRefusedError():
            return f"nobody listens at {path} any more: it has ended"
        case EOFError() | ConnectionError():
            return "it stopped while it was asked"
        case _:
            return f"{path}: {getattr(error, 'strerror', None) or error}"
