"""Putting a job from words, and waiting for what comes of it."""

from __future__ import annotations

import contextlib
import datetime
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import click
from transaction.interfaces import TransientError
from ZEO.Exceptions import ClientDisconnected

from perdure.cli.database import ATTEMPTS, connected, find_queue, opened
from perdure.cli.durations import show_duration
from perdure.cli.errors import CommandError, UnreadError, keeping_output_clean, one_line
from perdure.cli.naming import find_storable, nearest, queue_shown
from perdure.cli.options import Source
from perdure.cli.output import print_json, print_line
from perdure.model import (
    Job,
    JobRef,
    NeverRetry,
    Queue,
    RetryCommonForever,
    RetryCommonFourTimes,
    Status,
    environment,
    find_job,
)
from perdure.model.policy import _registered as registered
from perdure.model.policy import registered_retry_policy
from perdure.model.saferepr import survive

__all__ = ["Outcome", "Put", "Request", "arguments", "put_job"]

_KEYWORD = re.compile(r"([^\W\d]\w*)=(.*)", re.DOTALL)
_POLICIES = {
    "never": NeverRetry,
    "four-times": RetryCommonFourTimes,
    "forever": RetryCommonForever,
}
# Another process runs it, and not every storage tells when that one commits.
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Request:
    """A job as it was typed; `words` may be keywords, `literal` are not."""

    call: str
    words: tuple[str, ...] = ()
    literal: tuple[str, ...] = ()
    queue: str = ""
    delay: timedelta | None = None
    begin_after: datetime.datetime | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """What was put: the job, what it calls, its queue, and when it may begin."""

    ref: JobRef
    name: str
    call: str
    queue: str
    begin_after: datetime.datetime | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job that was waited for; `result` is text, of a failure its last line."""

    ref: JobRef
    name: str
    call: str
    queue: str
    begin_after: datetime.datetime | None
    status: Status
    failed: bool
    result: str


def arguments(
    words: tuple[str, ...], literal: tuple[str, ...] = ()
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments and keyword arguments that `words` are.

    Raises `CommandError` for a keyword that is there twice.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        keyword = _KEYWORD.fullmatch(word)
        if keyword is None:
            args.append(_value(word))
        elif keyword[1] in kwargs:
            raise CommandError(f"the argument {keyword[1]} is given twice")
        else:
            kwargs[keyword[1]] = _value(keyword[2])
    return [*args, *map(_value, literal)], kwargs


def _value(word: str) -> Any:
    try:
        return json.loads(word, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return word


def _no_json(name: str) -> NoReturn:
    # Python's reader takes NaN and Infinity, which are words.
    raise ValueError(name)


def put_job(source: Source, request: Request, *, wait: bool, as_json: bool) -> int:
    """Put the job and print its id, with `wait` its result too; return the exit status.

    Raises `CommandError` and what `Queue.put` raises; nothing was put then, unless the text
    says that it may have been.
    """
    make = _maker(request)
    with opened(source) as database:
        put = _put(database, request, make)
        # Before the wait, so that it can be looked for meanwhile.
        if not (wait and as_json):
            with _known_by_number(put):
                print_json(put) if as_json else print_line(str(put.ref))
        if not wait:
            return 0
        outcome = _wait(database, put)
    if as_json:
        with _known_by_number(put):
            print_json(outcome)
    elif outcome.failed:
        text = f"job {put.ref} failed: {outcome.result} (perdure traceback {put.ref})"
        click.echo(f"perdure: {one_line(CommandError(text))}", err=True)
    else:
        print_line(outcome.result)
    return 1 if outcome.failed else 0


@contextlib.contextmanager
def _known_by_number(put: Put) -> Iterator[None]:
    """Tell which job was put, where its number cannot be written: nobody else knows."""
    try:
        yield
    except UnreadError as error:
        raise UnreadError(
            f"job {put.ref} was put, but its number could not be written ({error})"
        ) from error


def _maker(request: Request) -> Callable[[], Job]:
    """Look at all that can be wrong without a database; return what makes the job."""
    function = find_storable(request.call)
    args, kwargs = arguments(request.words, request.literal)
    factory = _policy(request.policy)

    def make() -> Job:
        job = Job(function, *args, **kwargs)
        for name, value in request.settings.items():
            setattr(job, name, value)
        if factory is not None:
            job.retry_policy_factory = factory
        return job

    _check_policy(request.policy, make())
    _check_call(request.call, function, args, kwargs)
    return make


def _policy(text: str | None) -> Any:
    if text is None or text in _POLICIES:
        return None if text is None else _POLICIES[text]
    if ":" in text:
        return find_storable(text)
    if registered_retry_policy(text) is None:
        known = [*_POLICIES, *filter(None, registered)]
        others = f"; there are {', '.join(known)}, and MODULE:FACTORY"
        raise CommandError(
            f"no retry policy is registered under {text!r} in this process"
            f"{nearest(text, known) or others}"
        )
    return text


def _check_policy(text: str | None, job: Job) -> None:
    """Refuse now what would fail at the first trouble of the job."""
    if text is None:
        return
    try:
        with keeping_output_clean():
            policy = job.get_retry_policy()
    # A factory is the application's code, which may raise anything.
    except Exception as error:
        raise CommandError(
            f"{text} makes no retry policy: called with a job, it raises {type(error).__name__}: "
            f"{error}"
        ) from error
    if not callable(getattr(policy, "on_receive", None)):
        raise CommandError(
            f"{text} makes no retry policy, but a {type(policy).__qualname__}: give a factory "
            "that returns a perdure.model.RetryPolicy"
        )


def _check_quotas(names: Iterable[str], queue: Queue) -> None:
    for name in names:
        if name not in queue.quotas:
            raise CommandError(
                f"queue {queue_shown(queue.name)} has no quota {name!r}"
                f"{nearest(name, queue.quotas)} (a quota is made in Python, with "
                f"queue.quotas.create({name!r}, size=1); no command does it)"
            )


def _check_call(call: str, function: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Refuse now what would fail as soon as it is run."""
    try:
        signature = inspect.signature(function)
    # Some built-ins have none; others raise what they like.
    except Exception:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CommandError(f"{call}{signature} cannot be called like this: {error}") from error


def _put(database: Any, request: Request, make: Callable[[], Job]) -> Put:
    for _ in range(ATTEMPTS):
        with connected(database) as connection:
            queue = find_queue(connection, request.queue)
            _check_quotas(request.settings.get("quota_names", ()), queue)
            job = queue.put(make(), begin_after=_begin_after(request, database))
            put = Put(job.ref, job.callable_name, job.call_text(), queue.name, job.begin_after)
            try:
                connection.transaction_manager.commit()
                return put
            except ClientDisconnected as error:
                raise CommandError(
                    f"the database was lost at the commit, and job {put.ref} may have been put "
                    f"all the same: `perdure show {put.ref}` tells when it is back, before you "
                    "put it again"
                ) from error
            except TransientError:
                continue
    raise CommandError(f"nothing was put, since others were faster {ATTEMPTS} times: try again")


def _begin_after(request: Request, database: Any) -> datetime.datetime | None:
    if request.delay is None:
        return request.begin_after
    try:
        return environment(database).clock.now() + request.delay
    except OverflowError:
        raise CommandError(
            f"{show_duration(request.delay)} from now is no time that can be kept"
        ) from None


def _wait(database: Any, put: Put) -> Outcome:
    """Look until the result is stored; also while the database is away."""
    known = environment(database)
    told = ""
    with known.results.listen(put.ref, known.clock) as listener:
        while True:
            trouble = ""
            try:
                with connected(database) as connection:
                    job = find_job(connection, put.ref)
                    if job.status in (Status.CALLBACKS, Status.COMPLETED):
                        return _outcome(put, job)
                    if not _is_served(job):
                        trouble = f"no process runs jobs of queue {queue_shown(put.queue)} now"
            except ClientDisconnected:
                trouble = "the database is away"
            if trouble != told:
                _tell(trouble or f"a process runs jobs of queue {queue_shown(put.queue)} now")
                told = trouble
            listener.wait(_LOOK_SECONDS)


def _outcome(put: Put, job: Job) -> Outcome:
    text = survive(
        lambda: str(job.result) if job.failed else repr(job.result),
        lambda error: f"<{type(job.result).__qualname__} that has no repr>",
    )
    return Outcome(
        put.ref, put.name, put.call, put.queue, put.begin_after, job.status, job.failed, text
    )


def _is_served(job: Job) -> bool:
    queue = job.queue
    assert queue is not None
    # Its lock tells at once that a process has ended, its last ping only after a minute.
    return any(each.active and not each.ended() for each in queue.dispatchers.records())


def _tell(text: str) -> None:
    click.echo(f"perdure: {text}; waiting (Ctrl-C ends the wait, and not the job)", err=True)
