"""Bad input to the model: each call says which value is wrong and what to do, and changes nothing.

One table for each part. A name in it is that of `support.public`: ``Queue.put`` is a call,
``Job.begin_by`` sets an attribute. The last test fails where something public has no row.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest
import transaction

from perdure.model import (
    Agent,
    BadStatusError,
    Composite,
    Failure,
    FailureLimits,
    Job,
    JobNotFoundError,
    JobRef,
    NotInstalledError,
    NotStorableError,
    Queue,
    QueueNotFoundError,
    Quota,
    Reschedule,
    Retry,
    RetryPolicy,
    Status,
    UnknownSettingError,
    aliases,
    check,
    database_status,
    environment,
    find_job,
    get_queue,
    install,
    job_details,
    job_statistics,
    last_job,
    list_jobs,
    local,
    never_fail,
    next_job,
    pack,
    parallel,
    register_retry_policy,
    remove_alias,
    serial,
    set_alias,
    subscribe,
    transactional,
    try_five_times,
    unresolved,
    wait_for_system_recovery,
)
from support.desk import Desk, deed
from support.jobs import add, fail
from support.public import inputs_of

SECOND = timedelta(seconds=1)
NAIVE = datetime(2026, 1, 2)
PAST_THE_CALENDAR = datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))
BEFORE_THE_CALENDAR = datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))
BIG = "x" * 1_000_001
OPEN = sys.stderr

NO_ZONE = ("datetime.datetime(2026, 1, 2, 0, 0) has none", "use datetime.now(datetime.UTC)")
NO_MOMENT = ("which is no moment in UTC", "of the years 2 to 9998")
TOO_BIG = ("more than the 1,000,000 allowed", "store the data in a blob")
NOT_PLAIN = ("cannot be stored: <_io.", "give plain data, or a persistent object")
NO_JOB = ("5 is no job", "give the Job")
NO_REF = ("5 names no job", "give a Job, a JobRef or its text")
NO_FUNCTION = ("5 cannot be called", "give a function")
NO_NAME = ("5 has no name that it could be found by", "give a module-level function")
NO_DATABASE = ("5 is no open database", "give the ZODB.DB")
NO_CONNECTION = ("5 is no connection", "give what database.open() returns")
NOT_IN_A_DATABASE = ("5 is neither a connection nor an object that is stored",)
NO_STRIPES = ("stripes is a whole number of 1 or more",)
NO_LIMIT = ("limit must be a whole number of 1 or more",)


class Scene:
    """A desk with a done, a failed and a waiting job, a quota, and a job that is new."""

    def __init__(self) -> None:
        self.desk = desk = Desk()
        self.database = desk.database
        self.connection = desk.connection
        self.queue = desk.queue
        self.queues = desk.root["perdure"]
        self.agent = desk.agent
        self.record = self.agent.record
        self.dispatchers = self.queue.dispatchers
        self.done = desk.put(Job(add, 1, 2))
        self.failed = desk.put(Job(fail))
        desk.work()
        self.quotas = self.queue.quotas
        self.quota = self.quotas.create("desk", 1)
        self.job = desk.put(Job(add, 1, 2))
        self.new = Job(add, 3, 4)
        transaction.begin()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.desk.close()


class Bad(NamedTuple):
    """A call with a bad value, and what comes of it."""

    name: str
    call: Callable[[Scene], Any]
    error: type[Exception]
    texts: tuple[str, ...]


ROWS: list[Bad] = []


def bad(name: str, call: Callable[[Scene], Any], error: type[Exception], *texts: str) -> None:
    ROWS.append(Bad(name, call, error, texts))


def set_to(owner: str, attribute: str, value: Any) -> Callable[[Scene], None]:
    return lambda s: setattr(getattr(s, owner), attribute, value)


# Jobs

bad("Job", lambda s: Job(5), NotStorableError, *NO_FUNCTION)
bad("Job", lambda s: Job(lambda: 1), NotStorableError, "<lambda>", "to the top of its module")
bad("Job", lambda s: Job(add, BIG), NotStorableError, *TOO_BIG)
bad("Job", lambda s: Job(add, one=BIG), NotStorableError, *TOO_BIG)
bad("Job", lambda s: Job(add, 1, OPEN), NotStorableError, "argument 1", *NOT_PLAIN)
bad("Job", lambda s: Job(add, one=OPEN), NotStorableError, "argument 'one'", *NOT_PLAIN)
bad("Job.bind", lambda s: Job.bind(5), NotStorableError, *NO_FUNCTION)
bad("Job.bind", lambda s: Job.bind(add, BIG), NotStorableError, *TOO_BIG)
bad("Job.__call__", lambda s: s.job(), BadStatusError, "is PENDING; calling it needs NEW")
bad("Job.args", set_to("job", "args", 5), TypeError, "args is a list of arguments, not 5")
bad("Job.args", set_to("job", "args", [BIG]), NotStorableError, *TOO_BIG)
bad("Job.args", set_to("done", "args", [1]), BadStatusError, "is COMPLETED; changing its arg")
bad("Job.args", lambda s: s.job.args.append(BIG), NotStorableError, *TOO_BIG)
bad("Job.args", lambda s: s.job.args.append(OPEN), NotStorableError, "argument 2", *NOT_PLAIN)
bad("Job.kwargs", set_to("job", "kwargs", 5), TypeError, "kwargs is a mapping of names", "not 5")
bad("Job.kwargs", set_to("job", "kwargs", {1: 2}), TypeError, "of an argument is a text, not 1")
bad("Job.kwargs", set_to("job", "kwargs", {"x": BIG}), NotStorableError, *TOO_BIG)
bad("Job.kwargs", lambda s: s.job.kwargs.update({1: 2}), TypeError, "is a text, not 1")
bad("Job.kwargs", lambda s: s.job.kwargs.update(x=OPEN), NotStorableError, *NOT_PLAIN)
bad("Job.begin_after", set_to("new", "begin_after", NAIVE), UnknownSettingError, *NO_ZONE)
bad("Job.begin_after", set_to("new", "begin_after", 5), TypeError, "with a time zone, not 5")
bad("Job.begin_after", set_to("new", "begin_after", date(2026, 1, 2)), TypeError, "not datetime.d")
bad(
    "Job.begin_after", set_to("new", "begin_after", PAST_THE_CALENDAR),
    UnknownSettingError, *NO_MOMENT,
)  # fmt: skip
bad(
    "Job.begin_after", set_to("new", "begin_after", BEFORE_THE_CALENDAR),
    UnknownSettingError, *NO_MOMENT,
)  # fmt: skip
bad("Job.begin_after", set_to("job", "begin_after", None), BadStatusError, "is PENDING", "NEW")
bad("Job.begin_by", set_to("job", "begin_by", -SECOND), UnknownSettingError, "not be negative")
bad("Job.begin_by", set_to("job", "begin_by", 5), TypeError, "must be a timedelta, not 5")
bad("Job.begin_by", set_to("done", "begin_by", SECOND), BadStatusError, "needs NEW or PENDING")
bad("Job.quota_names", set_to("job", "quota_names", "desk"), TypeError, "not the text 'desk'")
bad("Job.quota_names", set_to("job", "quota_names", 5), TypeError, "a tuple of names, not 5")
bad("Job.quota_names", set_to("job", "quota_names", (5,)), TypeError, "is a text, not 5")
bad(
    "Job.quota_names", set_to("job", "quota_names", ("mail",)),
    UnknownSettingError, "has no quotas ['mail']: create them first",
)  # fmt: skip
bad(
    "Job.failure_log_level", set_to("job", "failure_log_level", "loud"),
    TypeError, "must be a level of logging, not 'loud'",
)  # fmt: skip
bad(
    "Job.retry_policy_factory", set_to("job", "retry_policy_factory", 5),
    TypeError, "must be a factory or a registered name, not 5",
)  # fmt: skip
bad(
    "Job.retry_policy_factory", set_to("job", "retry_policy_factory", "mine"),
    UnknownSettingError, "registered under 'mine'", "call perdure.model.register_retry_policy",
)  # fmt: skip
bad(
    "Job.retry_policy_factory", set_to("job", "retry_policy_factory", lambda job: None),
    NotStorableError, "<lambda>", "to the top of its module",
)  # fmt: skip
bad(
    "Job.transactional", set_to("new", "transactional", 1), TypeError, "True, False or None, not 1"
)
bad("Job.keep_completed", set_to("job", "keep_completed", 5), TypeError, "a timedelta, not 5")
bad("Job.keep_failed", set_to("job", "keep_failed", -SECOND), UnknownSettingError, "negative")
bad("Job.add_callback", lambda s: s.job.add_callback(5), NotStorableError, *NO_FUNCTION)
bad("Job.add_callback", lambda s: s.job.add_callback(s.job), BadStatusError, "give a NEW job")
bad("Job.add_callback", lambda s: s.job.add_callback(s.done), BadStatusError, "only a NEW job")
bad(
    "Job.add_callback",
    lambda s: s.job.add_callback(add, begin_by=5),
    TypeError,
    "timedelta, not 5",
)
bad(
    "Job.add_callback", lambda s: s.job.add_callback(add, begin_by=-SECOND),
    UnknownSettingError, "begin_by must not be negative",
)  # fmt: skip
bad(
    "Job.add_callback", lambda s: s.job.add_callback(add, failure_log_level="loud"),
    TypeError, "not 'loud'",
)  # fmt: skip
bad(
    "Job.add_callback", lambda s: s.job.add_callback(add, retry_policy_factory="mine"),
    UnknownSettingError, "'mine'",
)  # fmt: skip
bad("Job.add_callbacks", lambda s: s.job.add_callbacks(5), NotStorableError, *NO_FUNCTION)
bad("Job.add_callbacks", lambda s: s.job.add_callbacks(add, 5), NotStorableError, *NO_FUNCTION)
bad("Job.add_callbacks", lambda s: s.job.add_callbacks(s.new, s.new), BadStatusError, "use add_c")
bad("Job.add_callbacks", lambda s: s.job.add_callbacks(s.done), BadStatusError, "only a NEW job")
bad("Job.fail", lambda s: s.job.fail("late"), TypeError, "from an exception, not from 'late'")
bad("Job.fail", lambda s: s.done.fail(), BadStatusError, "is COMPLETED; failing it needs")
bad("Job.handle_interrupt", lambda s: s.job.handle_interrupt(), BadStatusError, "needs ACTIVE")
bad("Job.resume_callbacks", lambda s: s.job.resume_callbacks(), BadStatusError, "needs CALLBACKS")
bad("Job.retry", lambda s: s.done.retry(), BadStatusError, "has succeeded", "put another job")
bad("Job.cancel", lambda s: s.done.cancel(), BadStatusError, "only a job that has not begun")
bad(
    "Annotations.__setitem__", lambda s: s.job.annotations.update({5: 1}),
    NotStorableError, "the name of an annotation is a text, not 5",
)  # fmt: skip
bad(
    "Annotations.__setitem__", lambda s: s.job.annotations.update(note=OPEN),
    NotStorableError, "annotation 'note'", *NOT_PLAIN,
)  # fmt: skip
bad("Annotations.__getitem__", lambda s: s.job.annotations["none"], KeyError, "'none'")
bad("Annotations.__delitem__", lambda s: s.job.annotations.pop("none"), KeyError, "'none'")
bad("JobRef.of", lambda s: JobRef.of(5), JobNotFoundError, *NO_JOB)
bad("JobRef.of", lambda s: JobRef.of(s.new), JobNotFoundError, "was not stored yet: put it first")
bad("JobRef.parse", lambda s: JobRef.parse("last"), JobNotFoundError, "'last'", "hexadecimal num")
bad("JobRef.parse", lambda s: JobRef.parse(5), JobNotFoundError, "5 names no job")

# Jobs made of others

bad("serial", lambda s: serial(5), NotStorableError, *NO_FUNCTION)
bad("serial", lambda s: serial(s.job), BadStatusError, "is PENDING; only a NEW job")
bad("serial", lambda s: serial(s.new, s.new), BadStatusError, "can have each job once only")
bad("serial", lambda s: serial(add, postprocess=5), NotStorableError, *NO_FUNCTION)
bad("serial", lambda s: serial(add, postprocess=s.done), BadStatusError, "only a NEW job")
bad("parallel", lambda s: parallel(5), NotStorableError, *NO_FUNCTION)
bad("parallel", lambda s: parallel(s.done), BadStatusError, "is COMPLETED; only a NEW job")
bad("parallel", lambda s: setattr(parallel(add), "kwargs", {"x": 1}), TypeError, "no keyword arg")
bad(
    "Composite", lambda s: Composite(5, None, all_at_once=True),
    TypeError, "args is a list of arguments, not 5",
)  # fmt: skip

# Finding jobs

bad("find_job", lambda s: find_job(s.connection, 5), JobNotFoundError, *NO_REF)
bad("find_job", lambda s: find_job(s.connection, "last"), JobNotFoundError, "'last' names no job")
bad("find_job", lambda s: find_job(s.connection, s.new), JobNotFoundError, "put it first")
bad("find_job", lambda s: find_job(s.connection, JobRef(-1)), JobNotFoundError, "no job -1 in")
bad(
    "find_job",
    lambda s: find_job(s.connection, JobRef(2**70)),
    JobNotFoundError,
    "there is no job",
)
bad("find_job", lambda s: find_job(s.connection, JobRef("x")), JobNotFoundError, "names no job")
bad("find_job", lambda s: find_job(s.connection, JobRef(5, "shop")), JobNotFoundError, "'shop'")
bad("find_job", lambda s: find_job(5, s.job.ref), TypeError, *NO_CONNECTION)
bad("find_job", lambda s: find_job(s.database, s.job.ref), TypeError, "is no connection")
bad("job_details", lambda s: job_details(s.connection, 5), JobNotFoundError, *NO_REF)
bad("job_details", lambda s: job_details(5, s.job.ref), TypeError, *NO_CONNECTION)
bad("list_jobs", lambda s: list_jobs(5), NotInstalledError, *NOT_IN_A_DATABASE)
bad(
    "list_jobs", lambda s: list_jobs(s.connection, status="waiting"),
    UnknownSettingError, "'waiting' is no status: give perdure.model.Status.PENDING",
)  # fmt: skip
bad(
    "list_jobs", lambda s: list_jobs(s.connection, status=5), UnknownSettingError, "5 is no status"
)
bad("list_jobs", lambda s: list_jobs(s.connection, queue="mail"), QueueNotFoundError, "'mail'")
bad("list_jobs", lambda s: list_jobs(s.connection, queue=5), QueueNotFoundError, "not by 5")
bad("list_jobs", lambda s: list_jobs(s.connection, agent=5), TypeError, "is a text, not 5")
bad("list_jobs", lambda s: list_jobs(s.connection, callable=5), NotStorableError, *NO_NAME)
bad("list_jobs", lambda s: list_jobs(s.connection, since=NAIVE), UnknownSettingError, *NO_ZONE)
bad("list_jobs", lambda s: list_jobs(s.connection, until=5), TypeError, "with a time zone, not 5")
bad("list_jobs", lambda s: list_jobs(s.connection, failed="yes"), UnknownSettingError, "not 'yes'")
bad("list_jobs", lambda s: list_jobs(s.connection, limit=0), UnknownSettingError, *NO_LIMIT)
bad("list_jobs", lambda s: list_jobs(s.connection, walk_limit=-1), UnknownSettingError, *NO_LIMIT)
bad("job_statistics", lambda s: job_statistics(5), NotInstalledError, *NOT_IN_A_DATABASE)
bad(
    "job_statistics", lambda s: job_statistics(s.connection, since=NAIVE),
    UnknownSettingError, *NO_ZONE,
)  # fmt: skip
bad(
    "job_statistics", lambda s: job_statistics(s.connection, walk_limit=0),
    UnknownSettingError, *NO_LIMIT,
)  # fmt: skip
bad("next_job", lambda s: next_job(5), NotInstalledError, *NOT_IN_A_DATABASE)
bad("next_job", lambda s: next_job(s.connection, "mail"), QueueNotFoundError, "'mail'")
bad("next_job", lambda s: next_job(s.connection, walk_limit=0), UnknownSettingError, *NO_LIMIT)
bad("last_job", lambda s: last_job(5), NotInstalledError, *NOT_IN_A_DATABASE)
bad("last_job", lambda s: last_job(s.connection, 5), QueueNotFoundError, "not by 5")

# Queues

bad("Queue", lambda s: Queue(5), TypeError, "the name of a queue is a text, not 5")
bad("Queue", lambda s: Queue("mail", stripes=0), UnknownSettingError, *NO_STRIPES, "not 0")
bad("Queue", lambda s: Queue("mail", stripes="4"), UnknownSettingError, *NO_STRIPES, "'4'")
bad("Queue.put", lambda s: s.queue.put(5), NotStorableError, *NO_FUNCTION)
bad("Queue.put", lambda s: s.queue.put(s.job), BadStatusError, "only a NEW job can be put: make")
bad("Queue.put", lambda s: Queue("mail").put(s.new), BadStatusError, "commit it first")
bad("Queue.put", lambda s: s.queue.put(s.new, begin_after=NAIVE), UnknownSettingError, *NO_ZONE)
bad("Queue.put", lambda s: s.queue.put(s.new, begin_after=5), TypeError, "time zone, not 5")
bad(
    "Queue.put", lambda s: s.queue.put(s.new, begin_after=PAST_THE_CALENDAR),
    UnknownSettingError, *NO_MOMENT,
)  # fmt: skip
bad("Queue.put", lambda s: s.queue.put(s.new, begin_by=-SECOND), UnknownSettingError, "negative")
bad("Queue.put", lambda s: s.queue.put(s.new, begin_by=5), TypeError, "a timedelta, not 5")
bad("Queue.put", lambda s: s.queue.put(s.new, failure_log_level="x"), TypeError, "not 'x'")
bad(
    "Queue.put", lambda s: s.queue.put(s.new, begin_by=SECOND, retry_policy_factory="mine"),
    UnknownSettingError, "'mine'",
)  # fmt: skip
bad("Queue.put", lambda s: s.queue.put(s.new, transactional=1), TypeError, "not 1")
bad("Queue.put_back", lambda s: s.queue.put_back(5), JobNotFoundError, *NO_JOB)
bad("Queue.put_back", lambda s: s.queue.put_back(s.new), BadStatusError, "put it instead")
bad("Queue.put_back", lambda s: s.queue.put_back(s.done), BadStatusError, "only a NEW job")
bad("Queue.claim", lambda s: s.queue.claim(filter=5), NotStorableError, *NO_NAME)
bad("Queue.claim", lambda s: s.queue.claim(prefer=5), TypeError, "such as [0, 1], not 5")
bad("Queue.pull", lambda s: s.queue.pull("x"), TypeError, "a whole number, not 'x'")
bad("Queue.pull", lambda s: s.queue.pull(7), IndexError, "has 1 jobs, so none at 7")
bad("Queue.__getitem__", lambda s: s.queue[1.5], TypeError, "a whole number, not 1.5")
bad("Queue.__getitem__", lambda s: s.queue[0:1], TypeError, "a whole number, not slice")
bad("Queue.__getitem__", lambda s: s.queue[-2], IndexError, "has 1 jobs, so none at -2")
bad("Queue.remove", lambda s: s.queue.remove(5), JobNotFoundError, *NO_JOB)
bad("Queue.remove", lambda s: s.queue.remove(s.new), LookupError, "does not wait in <Queue ''>")
bad("Queue.remove", lambda s: s.queue.remove(s.done), LookupError, "is COMPLETED")
bad("Queue.resize", lambda s: s.queue.resize(-1), UnknownSettingError, "must be 0 or more, not -1")
bad("Queue.resize", lambda s: s.queue.resize(10_001), UnknownSettingError, "10000 at most")
bad("Queue.resize", lambda s: s.queue.resize("3"), TypeError, "is a whole number, not '3'")
bad("Queue.resize", lambda s: s.queue.resize(True), TypeError, "is a whole number, not True")
bad("Queue.resize", lambda s: s.queue.resize(1, agent="x"), UnknownSettingError, "only ['main']")
bad("Queue.waiting", lambda s: list(s.queue.waiting("x")), TypeError, "a whole number, not 'x'")
bad("Queue.keep_completed", set_to("queue", "keep_completed", 5), TypeError, "a timedelta, not 5")
bad("Queue.keep_failed", set_to("queue", "keep_failed", -SECOND), UnknownSettingError, "negative")
bad("Queue.put_many", lambda s: s.queue.put_many(5), TypeError, "not 5: give a list")
bad("Queue.put_many", lambda s: s.queue.put_many([s.new, 5]), NotStorableError, *NO_FUNCTION)
bad("Queue.transactional", set_to("queue", "transactional", 1), TypeError, "or None, not 1")
bad("Queues.add", lambda s: s.queues.add(5), TypeError, "the name of a queue is a text, not 5")
bad("Queues.add", lambda s: s.queues.add(""), UnknownSettingError, "there is a queue '' already")
bad("Queues.remove", lambda s: s.queues.remove("mail"), QueueNotFoundError, "there are ['']")
bad("Queues.remove", lambda s: s.queues.remove(""), UnknownSettingError, "deal with them first")
bad("Queues.__getitem__", lambda s: s.queues[5], QueueNotFoundError, "a text, not by 5")
bad("Queues.__getitem__", lambda s: s.queues[[]], QueueNotFoundError, "a text, not by []")
bad("install", lambda s: install(5), TypeError, *NO_DATABASE)
bad("install", lambda s: install(s.database, "mail"), TypeError, "not the text 'mail'")
bad("install", lambda s: install(s.database, 5), TypeError, "such as ['', 'mail'], not 5")
bad("install", lambda s: install(s.database, ["mail", 5]), TypeError, "is a text, not 5")
bad("get_queue", lambda s: get_queue(5), NotInstalledError, *NOT_IN_A_DATABASE)
bad("get_queue", lambda s: get_queue(s.database), NotInstalledError, "neither a connection nor")
bad("get_queue", lambda s: get_queue(s.connection, "mail"), QueueNotFoundError, "'mail'")
bad("get_queue", lambda s: get_queue(s.connection, 5), QueueNotFoundError, "not by 5")

# Quotas

bad("Quota", lambda s: Quota(5), TypeError, "the name of a quota is a text, not 5")
bad("Quota", lambda s: Quota("mail", -1), UnknownSettingError, "must be 0 or more, not -1")
bad("Quota.size", set_to("quota", "size", -1), UnknownSettingError, "must be 0 or more, not -1")
bad("Quota.size", set_to("quota", "size", "3"), TypeError, "is a whole number, not '3'")
bad("Quota.__contains__", lambda s: 5 in s.quota, JobNotFoundError, *NO_JOB)
bad("Quota.keeps", lambda s: s.quota.keeps(5), JobNotFoundError, *NO_JOB)
bad("Quota.take", lambda s: s.quota.take(5), JobNotFoundError, *NO_JOB)
bad("Quota.take", lambda s: s.quota.take(s.new), BadStatusError, "put it first")
bad("Quota.release", lambda s: s.quota.release(5), JobNotFoundError, *NO_JOB)
bad("Quotas.create", lambda s: s.quotas.create(5), TypeError, "of a quota is a text, not 5")
bad("Quotas.create", lambda s: s.quotas.create("desk"), UnknownSettingError, "set its size")
bad("Quotas.create", lambda s: s.quotas.create("mail", -1), UnknownSettingError, "not -1")
bad("Quotas.create", lambda s: s.quotas.create("mail", True), TypeError, "not True")
bad("Quotas.remove", lambda s: s.quotas.remove("mail"), KeyError, "there are ['desk']")
bad("Quotas.__getitem__", lambda s: s.quotas[[]], KeyError, "no quota []", "there are ['desk']")

# Processes and agents

bad("Agent", lambda s: Agent(5, s.record), TypeError, "the name of an agent is a text, not 5")
bad("Agent", lambda s: Agent("x", s.record, size=-1), UnknownSettingError, "not -1")
bad("Agent", lambda s: Agent("x", s.record, filter=5), NotStorableError, *NO_NAME)
bad("Agent.size", set_to("agent", "size", -1), UnknownSettingError, "must be 0 or more, not -1")
bad("Agent.size", set_to("agent", "size", None), TypeError, "is a whole number, not None")
bad("Agent.filter", set_to("agent", "filter", 5), NotStorableError, *NO_NAME)
bad("Agent.filter", set_to("agent", "filter", lambda job: True), NotStorableError, "<lambda>")
bad("Agent.chooser", set_to("agent", "chooser", "x"), NotStorableError, "'x' has no name")
bad("Agent.keep_completed", set_to("agent", "keep_completed", 5), TypeError, "timedelta, not 5")
bad("Agent.keep_failed", set_to("agent", "keep_failed", -SECOND), UnknownSettingError, "negative")
bad("Agent.forget", lambda s: s.agent.forget(NAIVE), UnknownSettingError, *NO_ZONE)
bad("Agent.keeps", lambda s: s.agent.keeps(5), JobNotFoundError, *NO_JOB)
bad("Agent.__contains__", lambda s: 5 in s.agent, JobNotFoundError, *NO_JOB)
bad("Agent.transactional", set_to("agent", "transactional", "no"), TypeError, "not 'no'")
bad("Agent.interrupt", lambda s: s.agent.interrupt(5), JobNotFoundError, *NO_JOB)
bad("Agent.settle_done", lambda s: s.agent.settle_done(5), JobNotFoundError, *NO_JOB)
bad("Agent.job_completed", lambda s: s.agent.job_completed(5), JobNotFoundError, *NO_JOB)
bad("Agent.job_completed", lambda s: s.agent.job_completed(s.job), BadStatusError, "COMPLETED")
bad("Agent.completed", lambda s: [*s.agent.completed.between(5)], TypeError, "zone, not 5")
bad(
    "Agent.completed", lambda s: [*s.agent.completed.between(None, NAIVE)],
    UnknownSettingError, *NO_ZONE,
)  # fmt: skip
bad("DispatcherRecord.add_agent", lambda s: s.record.add_agent(5), TypeError, "a text, not 5")
bad(
    "DispatcherRecord.add_agent", lambda s: s.record.add_agent("main"),
    UnknownSettingError, "has an agent 'main' already: change that one",
)  # fmt: skip
bad(
    "DispatcherRecord.add_agent", lambda s: s.record.add_agent("x", size=10_001),
    UnknownSettingError, "10000 at most",
)  # fmt: skip
bad(
    "DispatcherRecord.add_agent", lambda s: s.record.add_agent("x", filter=int, chooser=int),
    UnknownSettingError, "cannot have a chooser too",
)  # fmt: skip
bad(
    "DispatcherRecord.add_agent", lambda s: s.record.add_agent("x", chooser=5),
    NotStorableError, *NO_NAME,
)  # fmt: skip
bad(
    "DispatcherRecord.remove_agent", lambda s: s.record.remove_agent("x"),
    KeyError, "no agent 'x', only ['main']",
)  # fmt: skip
bad("DispatcherRecord.__getitem__", lambda s: s.record[[]], KeyError, "agent [], only ['main']")
bad("DispatcherRecord.activate", lambda s: s.record.activate("x"), BadStatusError, "deactivate it")
bad("Dispatchers.register", lambda s: s.dispatchers.register("me"), TypeError, "not by 'me'")
bad(
    "Dispatchers.register", lambda s: s.dispatchers.register(s.record.uuid),
    UnknownSettingError, "is registered with <Queue ''> already",
)  # fmt: skip
bad(
    "Dispatchers.unregister", lambda s: s.dispatchers.unregister(uuid.UUID(int=9)),
    KeyError, "no dispatcher 00000000-0000-0000-0000-000000000009",
)  # fmt: skip
bad(
    "Dispatchers.unregister", lambda s: s.dispatchers.unregister(s.record.uuid),
    BadStatusError, "is active: deactivate it first",
)  # fmt: skip
bad("Dispatchers.__getitem__", lambda s: s.dispatchers[5], KeyError, "no dispatcher 5")
bad(
    "Dispatchers.next_active_sibling", lambda s: s.dispatchers.next_active_sibling(5),
    TypeError, "not by 5",
)  # fmt: skip
bad(
    "Dispatchers.forget_old", lambda s: s.dispatchers.forget_old(NAIVE),
    UnknownSettingError, *NO_ZONE,
)  # fmt: skip

# Databases

bad("check", lambda s: check(5), TypeError, *NO_DATABASE)
bad("check", lambda s: check(s.connection), TypeError, "is no open database")
bad("pack", lambda s: pack(5), TypeError, *NO_DATABASE)
bad("pack", lambda s: pack(s.database, 5), TypeError, "keep must be a timedelta, not 5")
bad("pack", lambda s: pack(s.database, -SECOND), UnknownSettingError, "must not be negative")
bad("pack", lambda s: pack(s.database, timedelta.max), UnknownSettingError, "36500 days at most")
bad("database_status", lambda s: database_status(5), NotInstalledError, *NOT_IN_A_DATABASE)
bad("unresolved", lambda s: unresolved(5), NotInstalledError, *NOT_IN_A_DATABASE)
bad("environment", lambda s: environment(5), TypeError, *NO_DATABASE)
bad(
    "Environment.argument_limit_bytes",
    lambda s: setattr(environment(s.database), "argument_limit_bytes", -1),
    UnknownSettingError, "a whole number of 0 or more, not -1",
)  # fmt: skip
bad(
    "Environment.clock", lambda s: setattr(environment(s.database), "clock", 5),
    UnknownSettingError, "has to be a perdure.model.Clock",
)  # fmt: skip
bad("subscribe", lambda s: subscribe(5, print), TypeError, *NO_DATABASE)
bad("subscribe", lambda s: subscribe(s.database, 5), TypeError, "handler has to be", "5 cannot be")
bad("subscribe", lambda s: subscribe(s.database, print, int), TypeError, "give Event or a class")
bad("set_alias", lambda s: set_alias(5, "a:b", "a:c"), NotInstalledError, *NOT_IN_A_DATABASE)
bad("set_alias", lambda s: set_alias(s.connection, 5, "a:c"), TypeError, "a text such as", "not 5")
bad("set_alias", lambda s: set_alias(s.connection, "a b", "a"), UnknownSettingError, "is no name")
bad("set_alias", lambda s: set_alias(s.connection, "a:b", "a"), UnknownSettingError, "give module")
bad("set_alias", lambda s: set_alias(s.connection, "a", "a"), UnknownSettingError, "cannot stand")
bad("remove_alias", lambda s: remove_alias(5, "a"), NotInstalledError, *NOT_IN_A_DATABASE)
bad("remove_alias", lambda s: remove_alias(s.connection, []), UnknownSettingError, "no alias []")
bad("aliases", lambda s: aliases(5), NotInstalledError, *NOT_IN_A_DATABASE)

bad("transactional", lambda s: transactional(5), NotStorableError, "5 cannot be marked", "put(…")

# Policies, failures, waits

bad("Retry", lambda s: Retry(5), UnknownSettingError, "after=5", "a timedelta of zero or more")
bad("Retry", lambda s: Retry(-SECOND), UnknownSettingError, "give a timedelta of zero or more")
bad("Reschedule", lambda s: Reschedule(5), UnknownSettingError, "give a datetime or a timedelta")
bad(
    "register_retry_policy", lambda s: register_retry_policy(5, RetryPolicy),
    UnknownSettingError, "5 is no name for a retry policy: give a text",
)  # fmt: skip
bad(
    "register_retry_policy", lambda s: register_retry_policy("mine", 5),
    TypeError, "the retry policy 'mine' has to be a function", "5 cannot be called",
)  # fmt: skip
bad("Failure", lambda s: Failure(5), TypeError, "made from an exception, not from 5")
bad("Failure", lambda s: Failure(OSError(), 5), TypeError, "limits are FailureLimits, not 5")
bad("Failure.from_exception", lambda s: Failure.from_exception(5), TypeError, "not from 5")
bad("Failure.check", lambda s: s.failed.result.check(5), TypeError, "5 is neither an exception")
bad("Failure.trap", lambda s: s.failed.result.trap(5), TypeError, "5 is neither an exception")
bad("Failure.traceback", lambda s: s.failed.result.traceback("loud"), ValueError, "one of brief")
bad(
    "FailureLimits", lambda s: FailureLimits(repr_characters=0),
    UnknownSettingError, "is 0, but has to be a whole number of 1 or more",
)  # fmt: skip
bad(
    "FailureLimits", lambda s: FailureLimits(exceptions="x"), UnknownSettingError, "'x'", "whole n"
)
bad(
    "FailureLimits", lambda s: FailureLimits(secret_names="password"),
    UnknownSettingError, "secret_names is 'password', but has to be a tuple of texts",
)  # fmt: skip
bad("StopSignal.wait", lambda s: s.desk.stop.wait(5), TypeError, "timedelta says, not 5")
for keep_at_it in (never_fail, wait_for_system_recovery, try_five_times):
    name = keep_at_it.__name__
    bad(
        name, lambda s, call=keep_at_it: call(5, "it", transaction.manager),
        TypeError, "call has to be a function", "5 cannot be called",
    )  # fmt: skip
    bad(name, lambda s, call=keep_at_it: call(print, "it", 5), TypeError, "transaction manager")

# From within a job

for name in ("get_job", "get_queue", "get_dispatcher", "get_agent_name"):
    bad(
        f"local.{name}", lambda s, name=name: getattr(local, name)(),
        BadStatusError, "this works in a job's code only",
    )  # fmt: skip
bad(
    "local.set_live_annotation", lambda s: local.set_live_annotation("x", 1),
    BadStatusError, "this works in a job's code only",
)  # fmt: skip
bad(
    "local.set_live_annotation", lambda s: local.set_live_annotation("x", 1, job=5),
    JobNotFoundError, *NO_JOB,
)  # fmt: skip
bad(
    "local.set_live_annotation", lambda s: local.set_live_annotation("x", 1, job=s.new),
    JobNotFoundError, "put it first",
)  # fmt: skip
bad(
    "local.set_live_annotation", lambda s: local.set_live_annotation(5, 1, job=s.job),
    NotStorableError, "is a text, not 5",
)  # fmt: skip
bad(
    "local.set_live_annotation", lambda s: local.set_live_annotation("x", OPEN, job=s.job),
    NotStorableError, *NOT_PLAIN,
)  # fmt: skip
bad(
    "local.get_live_annotation", lambda s: local.get_live_annotation("x", job=5),
    JobNotFoundError, *NO_JOB,
)  # fmt: skip
bad(
    "local.get_live_annotation",
    lambda s: local.get_live_annotation("x", timeout=5, job=s.job),
    UnknownSettingError, "timeout must be a timedelta, not 5",
)  # fmt: skip


@pytest.mark.spec("J31")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_input_is_refused_by_its_value_and_changes_nothing(scene: Scene, row: Bad) -> None:
    before = scene.database.lastTransaction()

    with pytest.raises(row.error) as caught:
        row.call(scene)

    for text in row.texts:
        assert text in str(caught.value)
    # Whoever catches the error, and commits, has changed nothing.
    transaction.commit()
    assert scene.database.lastTransaction() == before
    assert check(scene.database) == []
    assert scene.desk.work() == 1
    transaction.begin()
    assert scene.job.result == 3


REFUSED_WITH_A_JOB = {
    "put": lambda s, job: s.queue.put(job, begin_by=SECOND, retry_policy_factory="mine"),
    "add_callback": lambda s, job: s.job.add_callback(
        job, begin_by=SECOND, retry_policy_factory="mine"
    ),
    "add_callbacks": lambda s, job: s.job.add_callbacks(
        job, failure_log_level=10, retry_policy_factory="mine"
    ),
    "serial": lambda s, job: serial(job, s.done),
}


@pytest.mark.spec("J31")
@pytest.mark.parametrize("call", REFUSED_WITH_A_JOB)
def test_a_job_that_was_given_to_a_refused_call_is_as_it_was(scene: Scene, call: str) -> None:
    before = dict(scene.new.__getstate__())

    with pytest.raises((UnknownSettingError, BadStatusError)):
        REFUSED_WITH_A_JOB[call](scene, scene.new)

    assert scene.new.__getstate__() == before
    scene.desk.put(scene.new)
    assert scene.desk.work() == 2
    transaction.begin()
    assert scene.new.result == 7


@pytest.mark.spec("J31")
@pytest.mark.parametrize("attribute", ["begin_by", "quota_names", "args", "keep_failed", "status"])
def test_a_setting_that_is_refused_makes_no_commit_of_a_running_job_conflict(
    scene: Scene, attribute: str
) -> None:
    attempts: list[int] = []

    def meanwhile() -> None:
        attempts.append(1)
        with scene.desk.elsewhere() as connection:
            job = connection.get(running._p_oid)
            with pytest.raises((AttributeError, BadStatusError, TypeError)):
                setattr(job, attribute, 5)

    running = scene.desk.put(Job(deed(meanwhile)))
    scene.desk.work()

    transaction.begin()
    assert running.status is Status.COMPLETED and not running.failed
    assert len(attempts) == 1


SPOIL = {
    "an agent": lambda s: s.record.add_agent(5),
    "a process": lambda s: s.dispatchers.register("me"),
}


@pytest.mark.spec("D7")
@pytest.mark.parametrize("what", SPOIL)
def test_what_would_spoil_a_queue_for_all_is_refused(scene: Scene, what: str) -> None:
    with pytest.raises(TypeError):
        SPOIL[what](scene)
    transaction.commit()

    # They are sorted by their names wherever they are looked at.
    assert [each.name for each in scene.record.agents()] == ["main"]
    assert len(scene.dispatchers.records()) == 1
    assert scene.desk.work() == 1


RECORDS = "a frozen report or event, made by Perdure to be read"
BY_THE_RUNTIME = "called by Perdure itself, with what it has made"
MADE_BY_ANOTHER = "made by another call, which has a row"
ASKS = "asks whether, and answers that it is not, whatever it is given"
NO_ROW = {
    **dict.fromkeys(
        (
            "AgentStatus", "Arrow", "CallableStatistics", "DatabaseStatus", "DayCount",
            "DispatcherEvent", "DispatcherStatus", "Event", "Frame", "JobDetails", "JobEvent",
            "JobList", "JobStatistics", "JobSummary", "PackReport", "QueueEvent", "QueueStatus",
            "QuotaStatus", "StatusCounts", "UnresolvedName",
        ),
        RECORDS,
    ),
    **dict.fromkeys(
        (
            "Agent.begin_at_once", "Agent.interrupt_all", "Agent.claim_jobs", "Agent.give_back",
            "Agent.kept", "Agent.settle",
            "Agent.settle_completed", "Clock.wait", "CommitErrored",
            "DispatcherRecord.deactivate", "DispatcherRecord.ended",
            "DispatcherRecord.proved_dead", "Environment.stamps", "Environment.subscribe",
            "Environment.tell_of_commit_elsewhere", "Environment.unsubscribe",
            "Environment.wait_for_change", "Environment.wake", "Interrupted", "Job.check_storable",
            "Job.tear_down", "JobErrored", "NeverRetry", "Queue.keep_day_counts",
            "RetryCommonForever", "RetryCommonFourTimes", "RetryPolicy", "RetryPolicy.count",
            "RetryPolicy.note", "RetryPolicy.on_receive", "StopSignal", "class_factory",
        ),
        BY_THE_RUNTIME,
    ),
    **dict.fromkeys(
        (
            "Annotations", "CallbackProxy", "DispatcherRecord", "Dispatchers", "Environment",
            "Quotas",
        ),
        MADE_BY_ANOTHER,
    ),
    **dict.fromkeys(
        (
            "DispatcherRecord.__contains__", "DispatcherRecord.get", "Dispatchers.__contains__",
            "Dispatchers.get", "Queue.__contains__", "Queues.__contains__", "Queues.get",
            "Quotas.__contains__", "Quotas.get",
        ),
        ASKS,
    ),
    "JobRef": "takes any number, and is looked at when it is used: see find_job",
}  # fmt: skip


def test_everything_public_that_is_given_something_has_a_row():
    public = inputs_of("model")
    with_rows = {row.name for row in ROWS}

    assert public - with_rows == set(NO_ROW)
    assert not set(NO_ROW) & with_rows


@pytest.mark.parametrize("value", [5, None, [], "nothing", object()])
def test_what_only_asks_answers_whatever_it_is_given(scene: Scene, value: Any) -> None:
    for known in (scene.queues, scene.quotas, scene.dispatchers, scene.record):
        assert value not in known and known.get(value) is None
    assert value not in scene.queue


# Settings that are taken, however far they go


@pytest.mark.parametrize("days", [timedelta.max, timedelta(days=3_000_000)])
def test_a_duration_that_means_never_is_kept_and_told(scene: Scene, days: timedelta) -> None:
    scene.queue.keep_completed = days
    scene.job.begin_by = days
    transaction.commit()

    assert scene.job.deadline == datetime.max.replace(tzinfo=UTC)
    assert job_details(scene.connection, scene.job).deadline == scene.job.deadline
    scene.desk.work()
    scene.agent.forget(scene.desk.clock.now() + timedelta(days=30_000))
    assert scene.job in scene.agent.completed and check(scene.database) == []


class Answers(RetryPolicy):
    """Answers what the test wants."""

    answer: Any = None

    def on_receive(self, message: Any) -> Any:
        return Answers.answer


@pytest.mark.spec("R5")
@pytest.mark.parametrize(
    "when",
    [timedelta.max, datetime.max, PAST_THE_CALENDAR, datetime.max.replace(tzinfo=UTC)],
    ids=str,
)
def test_a_policy_may_put_off_a_job_for_good(scene: Scene, when: Any) -> None:
    Answers.answer = Reschedule(when)
    job = Job(fail)
    job.retry_policy_factory = Answers
    scene.desk.put(job)

    assert scene.desk.work() == 2

    transaction.begin()
    assert job in scene.queue and job.begin_after == datetime.max.replace(tzinfo=UTC)


@pytest.mark.spec("R5")
@pytest.mark.parametrize("when", [timedelta.min, datetime.min, BEFORE_THE_CALENDAR], ids=str)
def test_a_policy_may_name_a_moment_before_the_calendar(scene: Scene, when: Any) -> None:
    Answers.answer = Reschedule(when)
    job = Job(fail)
    job.retry_policy_factory = Answers
    scene.desk.put(job)
    scene.desk.run(scene.desk.claim())

    scene.desk.run(scene.desk.claim())

    transaction.begin()
    assert scene.queue[0] is job and check(scene.database) == []
