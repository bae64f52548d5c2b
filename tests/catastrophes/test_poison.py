"""A job that takes its process down every time, and those that merely ran beside it."""

from __future__ import annotations

import pytest

from catastrophes import scenes
from catastrophes.conftest import HOUR, Scene

pytestmark = [pytest.mark.process, pytest.mark.slow]

MOST_DEATHS = 20


@pytest.mark.spec("C10", "R2")
def test_poison_is_given_up_and_what_ran_beside_it_is_not(scene: Scene) -> None:
    place = scene.stage.place(
        "first", poll_interval=HOUR, ping_interval=HOUR, ping_death_interval=2 * HOUR
    )
    poison = scene.put(scenes.poison, "poison", tells=True)
    beside = scene.put(scenes.note_at_gate, "beside", tells=True)
    other = scene.put(scenes.note_at_gate, "other", tells=True)
    done: set[str] = set()
    deaths = 0
    while len(done) < 3 and deaths < MOST_DEATHS:
        child = place.start()
        while len(done) < 3 and (line := child.line(("at ", "done "))):
            word, name = line.split()
            if word == "done":
                done.add(name)
            elif deaths >= 2:
                # They are long: they do not end while poison is beside them.
                child.tell(f"open {name}")
        deaths += len(done) < 3
    end = scene.finish()
    assert end.outcome(poison) == "perdure.model.errors.AbortedError"
    assert end.outcome(beside) == end.outcome(other) == "success"
    assert end.times == {"beside": 1, "other": 1}
    assert end.visits["poison", "first"] == deaths == 10
    # By processes: where both are let go at once, one meets with a conflict and is run again.
    assert end.processes["beside"] <= 3 and end.processes["other"] <= 3
    assert end.violations == []
