"""Many jobs that all write one object."""

from __future__ import annotations

from typing import Any

import pytest

from catastrophes import scenes
from catastrophes.conftest import HOUR, SECOND, Scene
from perdure.model import Job, get_queue

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: The driver makes as many as time allows; here are as many as a minute allows anywhere.
JOBS = 1000


@pytest.mark.spec("R12")
def test_a_hot_counter_costs_time_and_no_job(scene: Scene) -> None:
    def put(connection: Any) -> None:
        ledger = connection.root()["ledger"]
        for number in range(JOBS):
            get_queue(connection).put(Job(scenes.count_up_to, ledger, str(number), JOBS))

    scene.change(put)
    place = scene.worker(
        "first", size=4, poll_interval=SECOND, ping_interval=HOUR, ping_death_interval=2 * HOUR
    )
    assert place.child is not None
    assert place.child.line("all were counted")
    end = scene.finish()
    assert end.times == {str(number): 1 for number in range(JOBS)}
    assert {outcome for _, outcome in end.jobs.values()} == {"success"}
    assert (len(end.jobs), end.waiting, end.violations) == (JOBS, 0, [])
