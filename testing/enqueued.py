"""Which jobs wait, which of them are meant, and how the others differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from persistent import Persistent

from perdure.model import names
from perdure.model.aliases import current_name
from perdure.model.describing import summary
from perdure.model.internal import InternalJob
from perdure.model.listing import list_jobs
from perdure.model.moments import checked_duration, moment
from perdure.model.queues import find_queues
from perdure.model.reports import JobSummary
from perdure.model.resolving import is_loadable
from perdure.model.status import Status

__all__ = ["Wanted"]

MOST_SHOWN = 20
"""How many jobs a failure shows."""

_WEIGHTS = {"callable": 16, "args": 4, "kwargs": 4, "queue": 2, "due": 1}
"""How far away a difference puts a job from those that are wanted."""

_LATER = tuple(status for status in Status if status not in (Status.NEW, Status.PENDING))


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that waits, and in what it differs from what is wanted."""

    row: JobSummary
    due: datetime
    differences: tuple[str, ...]

    @property
    def distance(self) -> int:
        return sum(_WEIGHTS[each] for each in self.differences)

    def text(self, now: datetime) -> str:
        """Return a line for it."""
        row = self.row
        parked = f", parked: {row.parked}" if row.parked else ""
        other = f" ({', '.join(self.differences)} differ)" if self.differences else ""
        return f"{row.call} in queue {row.queue!r}, {_due(self.due, now)}{parked}{other}"


class Wanted:
    """What a test asks for.

    Raises `NotStorableError` for a callable that cannot be one of a job, `TypeError` for
    arguments, a queue or a duration that are none, `ValueError` for a negative duration.
    """

    def __init__(
        self,
        callable: Any,
        args: Any,
        kwargs: Any,
        queue: str | None,
        within: timedelta | None,
    ) -> None:
        if args is not None and not isinstance(args, list | tuple):
            raise TypeError(f"args must be a list or a tuple of all of them, not {args!r}")
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise TypeError(f"kwargs must be a dictionary of all of them, not {kwargs!r}")
        if queue is not None and not isinstance(queue, str):
            raise TypeError(f"queue must be the name of a queue, not {queue!r}")
        if within is not None:
            checked_duration("within", within)
        bound: tuple[Any, ...] = ()
        keywords: dict[str, Any] = {}
        if isinstance(callable, str):
            if ":" not in callable:
                raise TypeError(
                    f"a callable is given as such, or by its name 'module:name', not {callable!r}"
                )
        elif callable is not None:
            callable, bound, keywords = names.split_callable(callable)
        self._callable = callable
        self._args = [*bound, *(args or ())] if args is not None or bound else None
        self._kwargs = {**keywords, **(kwargs or {})} if kwargs is not None or keywords else None
        self._queue = queue
        self._within = within

    def __str__(self) -> str:
        text = "job"
        if self._callable is not None:
            text += f" {self._name()}"
        if self._args is not None or self._kwargs is not None:
            parts = ["..."] if self._args is None else [repr(value) for value in self._args]
            parts += [f"{name}={value!r}" for name, value in (self._kwargs or {}).items()]
            text += f"({', '.join(parts)})"
        if self._queue is not None:
            text += f" in queue {self._queue!r}"
        if self._within is not None:
            text += f", due within {self._within},"
        return text

    def _name(self) -> str:
        if isinstance(self._callable, str):
            return self._callable
        target, method = self._callable
        return f"{type(target).__module__}:{type(target).__qualname__}.{method}"

    # Looking.

    def find(self, connection: Any, now: datetime) -> list[Waiting]:
        """Return all jobs that wait, the wanted ones first, each kind by when it is due.

        Raises `QueueNotFoundError` for a queue that is not there.
        """
        queues = find_queues(connection)
        if self._queue is not None:
            # A name with a mistake in it would be refuted always.
            queues[self._queue]
        found = [
            Waiting(row, due, tuple(self._differences(job, row, due, now)))
            for queue in queues.values()
            for job, row, due in _waiting(queue)
        ]
        found.sort(key=lambda each: (each.distance, each.due))
        return found

    def _differences(
        self, job: Any, row: JobSummary, due: datetime, now: datetime
    ) -> Iterator[str]:
        whole = is_loadable(job)
        if self._callable is not None and not self._calls(job, row):
            yield "callable"
        if self._args is not None and not (whole and _same_all(self._args, list(job.args))):
            yield "args"
        if self._kwargs is not None and not (whole and _same_items(self._kwargs, job.kwargs)):
            yield "kwargs"
        if self._queue not in (None, row.queue):
            yield "queue"
        if self._within is not None and due > now + self._within:
            yield "due"

    def _calls(self, job: Any, row: JobSummary) -> bool:
        if isinstance(self._callable, str):
            return self._callable in (row.name, current_name(job, row.name))
        if not is_loadable(job) or isinstance(job._callable, str):
            return False
        target, method = self._callable
        return method == job._callable[1] and _same(target, job._callable[0])

    # Telling.

    def not_found(self, found: list[Waiting], connection: Any, now: datetime) -> str:
        """Return what to say where none is as wanted."""
        lines = [f"no {self} is enqueued"]
        if found:
            lines.append("enqueued are, nearest first:")
            lines += _lines(found, now)
        else:
            lines.append("nothing is enqueued")
        if self._callable is not None:
            done = list_jobs(connection, status=_LATER, callable=self._name(), limit=3).jobs
            if done:
                lines.append("waiting no more:")
                lines += [f"  {row.call} is {row.status.name}" for row in done]
        return "\n".join(lines)

    def found_all_the_same(self, found: list[Waiting], now: datetime) -> str:
        """Return what to say where there are some, and must be none."""
        wanted = [each for each in found if not each.differences]
        lines = [f"a {self} is enqueued, and must not be:", *_lines(wanted, now)]
        if others := found[len(wanted) :]:
            lines += ["besides, nearest first:", *_lines(others, now)]
        return "\n".join(lines)


def _waiting(queue: Any) -> Iterator[tuple[Any, JobSummary, datetime]]:
    reasons = queue.parked()
    for each in queue.waiting():
        if is_loadable(each.job) and isinstance(each.job, InternalJob):
            continue
        parked = reasons[each.unresolved][0] if each.unresolved else ""
        row = summary(each.job, queue=queue.name, parked=parked)
        yield each.job, row, moment(each.position[0])


def _lines(found: list[Waiting], now: datetime) -> list[str]:
    lines = [f"  {each.text(now)}" for each in found[:MOST_SHOWN]]
    if len(found) > MOST_SHOWN:
        lines.append(f"  and {len(found) - MOST_SHOWN} more")
    return lines


def _due(at: datetime, now: datetime) -> str:
    return "due now" if at <= now else f"due in {at - now}"


def _same_all(wanted: list[Any], found: list[Any]) -> bool:
    return len(wanted) == len(found) and all(map(_same, wanted, found))


def _same_items(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return wanted.keys() == found.keys() and all(
        _same(value, found[name]) for name, value in wanted.items()
    )


def _same(wanted: Any, found: Any) -> bool:
    """Tell whether they are equal, or one persistent object, seen through two connections."""
    if isinstance(wanted, Persistent) and isinstance(found, Persistent):
        if wanted._p_oid is not None and type(wanted) is type(found):
            return bool(wanted._p_oid == found._p_oid)
    return bool(wanted == found)
