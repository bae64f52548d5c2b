"""What ``perdure run`` writes: a line for each event that matters.

An event is a record of `perdure.events`, a job that succeeded, or a record of any other logger
of the process. What else `perdure.trace` says is written at the level ``debug`` alone.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import sys
from collections.abc import Iterator

from perdure.cli.errors import shown
from perdure.model.logs import SUCCEEDED, trace

__all__ = ["FIELDS", "writing_logs"]

FIELDS = ("job", "queue", "agent", "dispatcher")

# What is below us says much that is of no use to whoever runs jobs.
_TALKATIVE = ("ZEO", "ZODB", "txn", "asyncio", "pykka", "concurrent")


@contextlib.contextmanager
def writing_logs(form: str, level: str) -> Iterator[None]:
    """Write to standard error what is logged from `level` on, as ``text`` or ``json``.

    At the end logging is as it was before.
    """
    root = logging.getLogger()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    threshold: int = getattr(logging, level.upper())
    if threshold > logging.DEBUG:
        handler.addFilter(_matters)
    before = root.level
    root.addHandler(handler)
    root.setLevel(threshold)
    try:
        yield
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
        handler.close()


def _matters(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING:
        return True
    if record.name == trace.name:
        return record.msg == SUCCEEDED
    return record.name.partition(".")[0] not in _TALKATIVE


def _moment(record: logging.LogRecord) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC)


def _lines(record: logging.LogRecord) -> list[str]:
    return [line for line in record.getMessage().splitlines() if line.strip()]


def _in_one_line(lines: list[str]) -> str:
    """Return a long text in short: what it is about, and its last line, what has happened."""
    return " ".join([*lines[:1], *lines[1:][-1:]]).strip()


class _Text(logging.Formatter):
    """One line for people."""

    def format(self, record: logging.LogRecord) -> str:
        lines = _lines(record)
        text = _in_one_line(lines)
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            text += f": {type(error).__name__}: {error}"
        if len(lines) > 1 and (job := getattr(record, "job", "")):
            text += f" (perdure traceback {job})"
        at = f"{_moment(record).astimezone():%Y-%m-%d %H:%M:%S}"
        return f"{at} {record.levelname:<8} {shown(' '.join(text.split()))}"


class _Json(logging.Formatter):
    """One JSON object in a line for machines."""

    def format(self, record: logging.LogRecord) -> str:
        lines = _lines(record)
        document = {
            "time": _moment(record).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": " ".join(_in_one_line(lines).split()),
            **_known(record),
        }
        # What a job failed with is in the text, what the runtime failed with beside it.
        more = lines[1:]
        if record.exc_info:
            more.append(self.formatException(record.exc_info))
        if more:
            document["traceback"] = "\n".join(more)
        return json.dumps(document)


def _known(record: logging.LogRecord) -> dict[str, str | None]:
    """Return the fields of a record; None for what is not known."""
    found = {name: str(getattr(record, name, "")) or None for name in FIELDS}
    if found["queue"] is None and (found["job"] or found["agent"]):
        # These are in a queue, and the name of the default one is empty.
        found["queue"] = ""
    return found
