"""What goes over a control socket, and in which form.

A question is a frame with the token of the start of the process that it is meant for, and the
message; the reply is a frame with the answer, or the error. Nothing is read from a frame but the
classes that are listed here, so that no question makes a process import anything.

A frame begins with a mark, a fingerprint of the listed classes and their fields, and its length.
Two versions of Perdure whose messages differ thus see that they do, before either reads anything
of the other.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import hashlib
import io
import pickle
import struct
import uuid
from typing import Any

import pytz

from perdure.actors.messages import (
    ActiveJobsAsked,
    AgentPoll,
    CancelJob,
    JobAsked,
    JobReport,
    PauseQueue,
    PollDone,
    PollNow,
    PollsAsked,
    QueuePoll,
    Resize,
    ResumeQueue,
    RetryJob,
    Statistics,
    StatisticsAsked,
    StatusAsked,
    StatusReport,
    SystemState,
)
from perdure.model.errors import PerdureError, UnknownMessageError
from perdure.model.ref import JobRef

__all__ = [
    "HEADER_BYTES",
    "LONGEST_QUESTION",
    "MESSAGES",
    "MalformedError",
    "OtherStartError",
    "OtherVersionError",
    "WireError",
    "answer",
    "check_message",
    "failure",
    "other_start",
    "other_version",
    "question",
    "read_answer",
    "read_header",
    "read_question",
]

MESSAGES: tuple[type[Any], ...] = (
    ActiveJobsAsked,
    CancelJob,
    JobAsked,
    PauseQueue,
    PollNow,
    PollsAsked,
    Resize,
    ResumeQueue,
    RetryJob,
    StatisticsAsked,
    StatusAsked,
)
"""What other processes may send to a system; nothing else gets in."""

_REPORTS: tuple[type[Any], ...] = (
    AgentPoll,
    JobReport,
    PollDone,
    QueuePoll,
    Statistics,
    StatusReport,
    SystemState,
)
_PARTS: tuple[type[Any], ...] = (
    JobRef,
    datetime.datetime,
    datetime.timedelta,
    datetime.timezone,
    type(pytz.utc),
    uuid.UUID,
)

LONGEST_QUESTION = 1024 * 1024

# The layout of the header stays as it is for good: it is what versions understand each other by.
_HEADER = struct.Struct(">4s8sI")
_MARK = b"PRDR"
HEADER_BYTES = _HEADER.size


class WireError(PerdureError):
    """The other side is not the one, or not of the kind, that can be talked with."""


class MalformedError(WireError):
    """These bytes are no frame, or not the expected one."""


class OtherVersionError(WireError):
    """The frame is of a version of Perdure with other messages."""


class OtherStartError(WireError):
    """The question was meant for another start of the process."""


def check_message(message: object) -> None:
    """Raise `UnknownMessageError` for what may not be sent from outside."""
    if type(message) not in MESSAGES:
        raise _refusal(type(message).__qualname__)


# Frames


def question(token: str, message: object) -> bytes:
    """Return the frame that asks `message` of the start with that token.

    Moments go in UTC. Raises `UnknownMessageError` for one that may not be sent.
    """
    check_message(message)
    try:
        return _frame(_dumped((token, _in_utc(message))))
    # Whatever somebody has put into a field.
    except Exception as error:
        raise UnknownMessageError(f"{message!r} cannot be sent: {error}") from error


class _Pickler(pickle.Pickler):
    """Writes members of enumerations by their values, as some versions of Python do not."""

    def reducer_override(self, obj: Any) -> Any:
        return (type(obj), (obj.value,)) if isinstance(obj, enum.Enum) else NotImplemented


def _dumped(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def answer(value: object) -> bytes:
    """Return the frame with an answer, or with an error where it cannot be sent."""
    try:
        return _frame(_dumped(("answer", value)))
    # Whatever somebody has put into a report.
    except Exception as error:
        return failure(PerdureError(f"the answer cannot be sent: {error}"))


def failure(error: BaseException) -> bytes:
    """Return the frame with what the answerer raised."""
    text = f"{type(error).__qualname__}: {error}"
    try:
        data = pickle.dumps(error)
        # Some can be written and not read.
        pickle.loads(data)
    # An exception may be made of anything.
    except Exception:
        data = None
    return _frame(pickle.dumps(("error", data, text)))


def other_start() -> bytes:
    """Return the frame that says: not this start of the process."""
    return _frame(pickle.dumps(("other start",)))


def other_version() -> bytes:
    """Return the frame that says nothing, but has this version's header."""
    return _frame(b"")


def read_header(data: bytes) -> int:
    """Return the length of what follows this header.

    Raises `MalformedError` for what is none, `OtherVersionError`.
    """
    mark, fingerprint, length = _HEADER.unpack(data)
    if mark != _MARK:
        raise MalformedError(f"no frame begins with {mark!r}")
    if fingerprint != _FINGERPRINT:
        raise OtherVersionError("it runs a version of Perdure that has other messages")
    return int(length)


def read_question(body: bytes) -> tuple[str, object]:
    """Return token and message.

    Raises `UnknownMessageError` for a message that may not be sent from outside or holds
    what no message may hold, `MalformedError` for what is no question.
    """
    try:
        token, message = _loaded(body, 2)
    except _UnlistedError as error:
        raise _refusal(str(error)) from None
    if not isinstance(token, str):
        raise MalformedError(f"{token!r} is no token")
    check_message(message)
    _check_fields(message)
    return token, message


def read_answer(body: bytes) -> Any:
    """Return the answer, or raise what the answerer raised.

    Raises `OtherStartError` where another start of the process was meant, and
    `MalformedError` for what is no reply.
    """
    try:
        kind, *rest = _loaded(body)
    except _UnlistedError as error:
        raise MalformedError(f"its answer has a {error} in it") from None
    if kind == "answer" and len(rest) == 1:
        return rest[0]
    if kind == "error" and len(rest) == 2:
        raise _error(*rest)
    if kind == "other start":
        raise OtherStartError("another start of that process answers")
    raise MalformedError(f"{kind!r} is no kind of reply")


# What they are made of


def _frame(body: bytes) -> bytes:
    return _HEADER.pack(_MARK, _FINGERPRINT, len(body)) + body


def _in_utc(message: Any) -> Any:
    changes = {
        name: value.astimezone(datetime.UTC)
        for name, value in _fields(message)
        if isinstance(value, datetime.datetime) and value.utcoffset() is not None
    }
    return dataclasses.replace(message, **changes)


def _fields(message: Any) -> list[tuple[str, Any]]:
    names = [field.name for field in dataclasses.fields(message)]
    return [(name, getattr(message, name)) for name in names]


class _UnlistedError(MalformedError):
    """A class that is not listed; the argument is its name."""


class _Listed(pickle.Unpickler):
    """Reads the listed classes, and refuses all others before they are imported."""

    _kinds = {
        (kind.__module__, kind.__qualname__): kind for kind in (*MESSAGES, *_REPORTS, *_PARTS)
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return self._kinds[module_name, global_name]
        except KeyError:
            raise _UnlistedError(global_name) from None


class _Raised(_Listed):
    """Reads errors, too."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in self._kinds:
            return self._kinds[module_name, global_name]
        found = pickle.Unpickler.find_class(self, module_name, global_name)
        if isinstance(found, type) and issubclass(found, Exception):
            return found
        raise _UnlistedError(global_name)


def _loaded(body: bytes, length: int | None = None) -> tuple[Any, ...]:
    try:
        found = _Listed(io.BytesIO(body)).load()
    except _UnlistedError:
        raise
    # Bytes of whatever kind make an unpickler raise whatever it likes.
    except Exception as error:
        raise MalformedError(f"these bytes cannot be read: {error!r}") from error
    if not isinstance(found, tuple) or not found or length not in (None, len(found)):
        raise MalformedError("these bytes hold no question and no reply")
    return found


def _error(data: bytes | None, text: str) -> Exception:
    try:
        error = None if data is None else _Raised(io.BytesIO(data)).load()
    # Of a class that is not here, say.
    except Exception:
        error = None
    return error if isinstance(error, Exception) else PerdureError(text)


def _check_fields(message: object) -> None:
    """Raise `UnknownMessageError` where a message has not all the fields of its class."""
    kind = type(message)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if missing := [name for name in names if not hasattr(message, name)]:
        raise UnknownMessageError(
            f"a {kind.__qualname__} without {', '.join(missing)} is none that is known here: it "
            f"has {', '.join(names)}"
        )


def _refusal(name: str) -> UnknownMessageError:
    return UnknownMessageError(
        f"another process may not be sent {name}; what it may be sent: "
        + ", ".join(kind.__qualname__ for kind in MESSAGES)
    )


def _shape(kind: type[Any]) -> str:
    if issubclass(kind, enum.Enum):
        names = [member.name for member in kind]
    else:
        names = [field.name for field in dataclasses.fields(kind)]
    return f"{kind.__qualname__}({', '.join(names)})"


_FINGERPRINT = hashlib.sha256(
    "\n".join(_shape(kind) for kind in (*MESSAGES, *_REPORTS, JobRef)).encode()
).digest()[:8]
