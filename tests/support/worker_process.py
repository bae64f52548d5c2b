"""A process of its own with a system; what it does is named by its first argument."""

from __future__ import annotations

import os
import signal
import sys
import threading
from datetime import timedelta

from perdure.actors import start
from support import addresses, jobs

HOUR = timedelta(hours=1)


def run(uri: str) -> None:
    """Run jobs until killed."""
    system = start(uri, {"": 4}, poll_interval=HOUR)
    jobs.say(f"uuid {system.uuid}")
    threading.Event().wait()


def forget(uri: str) -> None:
    """Run a job, leave another hanging, and end without stopping the system."""
    system = start(uri, {"": 2}, poll_interval=HOUR)
    jobs.say(str(system.result(system.put(jobs.add, 2, 3), timeout=HOUR)))
    system.put(jobs.note_and_hang, "hangs")


def interrupted(uri: str) -> None:
    """Stop at a signal, at once at a second one, and then have the old handlers again."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    system = jobs.systems["mine"] = start(uri, {"": 1}, poll_interval=HOUR, handle_signals=True)
    system.put(jobs.wait_for_stop_and_hang)
    system.join()
    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    jobs.say("restored" if after == before else f"{after} instead of {before}")


def polite(uri: str) -> None:
    """Stop at a signal while nothing runs; without a join, a later signal ends the process."""
    system = start(uri, {"": 1}, poll_interval=HOUR, handle_signals=True)
    jobs.say("started")
    while not system._stopped.wait(0.1):  # not for ever, or a signal may be seen too late
        pass
    jobs.say("stopped")
    while True:
        threading.Event().wait(0.1)


def answer(uri: str) -> None:
    """Say the address, begin a job, and answer questions until killed."""
    system = start(uri, {"": 1}, poll_interval=HOUR)
    system.put(jobs.note_and_hang, "begun")
    jobs.say(addresses.write(addresses.address_of(system)))
    threading.Event().wait()


def fork(uri: str) -> None:
    """Answer questions, with a child that has all that a forked one gets; it ends with stdin."""
    system = start(uri, {"": 1}, poll_interval=HOUR)
    if not os.fork():
        system._control.stop()
        jobs.say("forked")
        os.read(0, 1)
        os._exit(0)
    jobs.say(addresses.write(addresses.address_of(system)))
    threading.Event().wait()


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
