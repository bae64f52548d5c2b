"""What the jobs of the tests do; importable by name, in other processes too."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import threading
from typing import Any

import transaction
from persistent import Persistent

from perdure.actors import StatusAsked
from perdure.model import Job, NeverRetry, Retry, RetryPolicy, StopRequested, local
from support.once import MadeOnce

#: Far beyond what is needed; a test that gets here has failed.
LIMIT_SECONDS = 20.0


class Gate:
    """Where a job waits for the test, and the test for the job."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=LIMIT_SECONDS), "no job came to the gate"

    def open(self) -> None:
        self.opened.set()

    def enter(self) -> None:
        self.entered.release()
        if not self.opened.wait(LIMIT_SECONDS):
            raise AssertionError("nobody opened the gate")


gates: MadeOnce[str, Gate] = MadeOnce(Gate)
calls: list[Any] = []
systems: dict[str, Any] = {}


class Counter(Persistent):
    """Something of the application's that jobs change."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, number: int = 1, result: int = 0) -> int:
        self.value += number
        return self.value

    def add_behind_gate(self, name: str) -> int:
        gates[name].enter()
        return self.add()

    def add_then_gate(self, name: str) -> int:
        self.add()
        gates[name].enter()
        return self.value


def add(one: int, other: int) -> int:
    return one + other


def note(*values: Any) -> None:
    calls.append(values)


def note_and_gate(name: str) -> str:
    calls.append(name)
    gates[name].enter()
    return name


def pass_gate(name: str, *ignored: Any) -> str:
    gates[name].enter()
    return name


def fail(text: str = "no") -> None:
    raise ValueError(text)


def return_persistent() -> Any:
    return Counter()


class Bare(BaseException):
    """Neither an Exception, nor one that Python knows."""


RAISED = {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "Bare": Bare}


def raise_once(kind: str) -> str:
    """Raise what is no Exception at the first call, return at the second."""
    calls.append(threading.current_thread().name)
    if len(calls) == 1:
        raise RAISED[kind](kind)
    return "done"


def raise_always(kind: str) -> None:
    calls.append(kind)
    raise RAISED[kind](kind)


class RetryAfterAnHour(RetryPolicy):
    """Asks for a long wait after an error; notes what it is asked."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)

    def on_receive(self, message: Any) -> Any:
        calls.append(type(message).__name__)
        return Retry(datetime.timedelta(hours=1))


def policy_never(job: Job) -> RetryPolicy:
    return NeverRetry(job)


# Of what a running job can reach.


def report_local() -> tuple[str, str | None, str | None, str | None]:
    dispatcher = local.get_dispatcher()
    queue = local.get_queue()
    return (
        str(local.get_job().ref),
        None if queue is None else queue.name,
        None if dispatcher is None else str(dispatcher.uuid),
        local.get_agent_name(),
    )


def put_further(number: int) -> int:
    """Put a job that puts a job, `number` times, in the job's own transaction."""
    calls.append(number)
    if number:
        queue = local.get_queue()
        assert queue is not None
        queue.put(Job(put_further, number - 1))
    else:
        gates["last"].open()
        gates["last"].enter()
    return number


def put_through_system(name: str) -> int:
    """Put through the system, in a transaction of its own, and wait for the result."""
    system = systems[name]
    queue = local.get_queue()
    assert queue is not None
    queue.put(Job(note, "own transaction"))
    return 1 + int(system.result(system.put(add, 1, 2)))


def add_callback_to_itself(text: str) -> str:
    local.get_job().add_callback(Job(note, text))
    return text


def commit_by_itself(name: str, counter: Counter) -> None:
    gates[name].enter()
    counter.add()
    transaction.commit()


def stop_system(name: str) -> None:
    systems[name].stop()


def report_progress(name: str) -> Any:
    """Say how far it is, and return the flag that was set meanwhile."""
    local.set_live_annotation("progress", 50)
    gates[name].enter()
    return local.get_live_annotation("flag")


# Of agents.


def takes_even(job: Job) -> bool:
    return not job.args or job.args[0] % 2 == 0


def blocks_at_gate(job: Job) -> bool:
    gates["filter"].enter()
    return True


def raises(job: Job) -> bool:
    raise ValueError("a filter of no use")


def exits(job: Job) -> bool:
    sys.exit("from a filter")


def chooses_first(agent: Any) -> Job | None:
    calls.append("chooser")
    found: Job | None = agent.queue.claim()
    return found


# Of processes that are killed.


HANG = "PERDURE_TEST_HANG"


def say(text: str) -> None:
    """Write a line to the output of this process, from whatever thread."""
    os.write(1, f"{text}\n".encode())


def count_and_hang(counter: Counter, text: str) -> int:
    """Change something; where the process is one that is to be killed, say so and hang."""
    value = counter.add()
    note_and_hang(text)
    return value


def note_and_hang(text: str) -> str:
    calls.append(text)
    if os.environ.get(HANG):
        say(text)
        threading.Event().wait()
    return text


def wait_for_stop_and_hang() -> None:
    """Say when the system begins to stop, and then do not let it."""
    say("started")
    with contextlib.suppress(StopRequested):
        systems["mine"]._context.stop.wait(datetime.timedelta(seconds=LIMIT_SECONDS))
    say("stopping")
    threading.Event().wait()


def close_connection_once() -> str:
    """Close the connection that runs it, at the first call."""
    calls.append(id(local.get_job()._p_jar))
    if len(calls) == 1:
        local.get_job()._p_jar.close()
    return "done"


def stop_once() -> str:
    """Raise what ends waits at a stop, although nobody stops, at the first call."""
    calls.append("stop")
    if len(calls) == 1:
        raise StopRequested("made up")
    return "done"


def exit_once(result: int) -> int:
    calls.append(result)
    if len(calls) == 1:
        raise SystemExit(result)
    return result


def tell_agent(number: int) -> tuple[int, str | None]:
    return number, local.get_agent_name()


def pass_opened() -> None:
    """Do nothing."""


def return_long(length: int) -> str:
    return "x" * length


def tell_state_at_stop(name: str) -> str:
    """Wait until the system stops, and say what it says of itself then."""
    wait_for_stop(systems[name])
    return str(systems[name].ask(StatusAsked()).state.value)


def call_at_stop(name: str) -> Any:
    """Wait until the system stops, and return what the first of `calls` returns then."""
    wait_for_stop(systems[name])
    return calls[0]()


def wait_for_stop(system: Any) -> None:
    gates["state"].entered.release()
    with contextlib.suppress(StopRequested):
        system._context.stop.wait(datetime.timedelta(seconds=LIMIT_SECONDS))
