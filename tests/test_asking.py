"""Storages that do not tell of other processes' commits are asked, the less the longer in vain."""

from __future__ import annotations

from datetime import timedelta

import pytest
import ZODB
from ZODB.MappingStorage import MappingStorage
from ZODB.tests.MVCCMappingStorage import MVCCMappingStorage

from perdure.actors.dispatcher import LONGEST_ASK, SHORTEST_ASK, DispatcherActor
from perdure.model import Job, environment, get_queue
from perdure.storage.hearing import is_to_be_asked
from support import jobs
from support.manual_clock import ManualClock
from support.systems import LIMIT, Systems, settled, within

SECOND = timedelta(seconds=1)


@pytest.mark.spec("X7")
def test_only_what_tells_nobody_is_asked(systems: Systems) -> None:
    storages = MVCCMappingStorage(), MappingStorage()
    assert [is_to_be_asked(systems.start(systems.database(s)).database) for s in storages] == [
        True, False,
    ]  # fmt: skip


@pytest.mark.spec("X7")
def test_what_another_process_puts_is_found_without_a_poll(
    systems: Systems, manual_clock: ManualClock
) -> None:
    storage = MVCCMappingStorage()
    system = systems.start(systems.database(storage), {"": 1}, clock=manual_clock)
    settled(system)
    other = ZODB.DB(storage.new_instance())
    environment(other).clock = manual_clock
    with other.transaction() as connection:
        ref = get_queue(connection).put(Job(jobs.add, 1, 2)).ref
    other.close()
    # The heartbeat, the poll, and this.
    manual_clock.wait_until_waiting(2)
    manual_clock.advance(LONGEST_ASK)
    assert within(lambda: system.result(ref, timeout=LIMIT)) == 3


@pytest.mark.spec("X7")
def test_the_longer_nothing_is_found_the_less_it_is_asked(
    systems: Systems, manual_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[timedelta] = []
    tell_later = DispatcherActor.tell_later

    def noted(actor: DispatcherActor, message: object, delay: timedelta) -> object:
        if type(message).__name__ == "_Ask":
            pauses.append(delay)
        return tell_later(actor, message, delay)

    monkeypatch.setattr(DispatcherActor, "tell_later", noted)
    system = systems.start(systems.database(MVCCMappingStorage()), {"": 1}, clock=manual_clock)
    settled(system)
    while len(pauses) < 8:
        manual_clock.wait_until_waiting(2)
        manual_clock.advance(LONGEST_ASK)
        settled(system)
    assert pauses[:7] == [*(SHORTEST_ASK * 2**number for number in range(5)), *[LONGEST_ASK] * 2]
