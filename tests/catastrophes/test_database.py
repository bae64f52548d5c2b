"""The database that goes away, comes back, and has no room, whatever the workers are doing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from catastrophes import scenes
from catastrophes.conftest import HOUR, SECOND, Scene
from catastrophes.stage import Place
from catastrophes.workload import forever
from perdure.model import Job, NeverRetry, get_queue

pytestmark = [pytest.mark.process, pytest.mark.slow]

QUICK_POLLS = {
    "poll_interval": 0.5 * SECOND,
    "ping_interval": HOUR,
    "ping_death_interval": 2 * HOUR,
}


def _job_with_callback(ledger: Any) -> Job:
    job = Job(scenes.note, ledger, "job")
    job.add_callback(Job(scenes.note_result_at_gate, ledger, "moment"))
    job.add_callback(Job(scenes.tell_done, "moment"))
    return job


def _plain(function: Any) -> Callable[[Any], Job]:
    def make(ledger: Any) -> Job:
        job = Job(function, ledger, "moment")
        job.add_callback(Job(scenes.tell_done, "moment"))
        return job

    return make


MOMENTS: dict[str, Callable[[Any], Job]] = {
    "claim": _plain(scenes.note),
    "job": _plain(scenes.note_at_gate),
    "commit": _plain(scenes.note_and_wait_in_the_commit),
    "callback": _job_with_callback,
}


@pytest.mark.spec("C2", "D9", "R2", "R11")
@pytest.mark.parametrize("how", ["killed", "cut"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_database_goes_away_and_comes_back(scene: Scene, moment: str, how: str) -> None:
    place = scene.worker("first", **QUICK_POLLS)
    gate = "moment"
    if moment == "claim":
        gate = "the claim"
        scene.change(_set_filter)
    ref = scene.put_made(MOMENTS[moment])
    assert place.child is not None
    assert place.child.line(f"at {gate}")
    _go_away(scene, place, how)
    place.child.tell(f"open {gate}")
    _come_back(scene, how)
    # Nothing has to be started again: the same process does it, and what comes after.
    assert place.child.line("done moment")
    expected = {"moment": 1, "job": 1} if moment == "callback" else {"moment": 1}
    other = scene.put(scenes.note, "afterwards")
    assert place.child.line("noted afterwards")
    end = scene.finish()
    assert end.outcome(ref) == end.outcome(other) == "success"
    assert end.times == {**expected, "afterwards": 1}
    if moment == "callback":
        assert end.visits["job", "first"] == 1
    assert end.violations == []


@pytest.mark.spec("C2", "D9")
def test_a_worker_polls_again_when_the_database_is_back(scene: Scene) -> None:
    place = scene.worker("first", **{**QUICK_POLLS, "ping_interval": 0.5 * SECOND})
    assert scene.stage.server is not None and place.child is not None
    scene.stage.server.kill()
    # An idle worker writes nothing else.
    assert place.child.line("log heartbeat: the database is away")
    scene.stage.start_server()
    scene.connect()
    ref = scene.put(scenes.note, "key")
    assert place.child.line("noted key")
    end = scene.finish()
    assert (end.outcome(ref), end.times) == ("success", {"key": 1})
    assert end.violations == []


@pytest.mark.spec("C9", "R2", "R3", "R9")
def test_a_full_disk_is_an_error_for_the_policy_and_its_failure_is_stored_when_there_is_room(
    scene: Scene,
) -> None:
    place = scene.worker("first", **QUICK_POLLS)
    assert place.child is not None
    told = {"kind": scenes.Told, "tells": True}
    fails = scene.put(scenes.note_at_gate, "fails", **told)
    once = scene.put(scenes.only_once, "once", retry_policy_factory=NeverRetry, **told)
    insists = scene.put(scenes.note_at_gate, "insists", retry_policy_factory=forever, **told)
    for name in ("fails", "once", "insists"):
        assert place.child.line(f"at {name}")
    scene.stage.disk_is_full()
    for name in ("fails", "once", "insists"):
        place.child.tell(f"open {name}")
    for name in ("fails", "once", "insists"):
        assert place.child.line(f"over {name} ACTIVE")
    scene.stage.disk_has_room()
    for name in ("fails", "once", "insists"):
        assert place.child.line(f"done {name}")
    end = scene.finish()
    assert end.outcome(fails) == end.outcome(once) == "ZEO.Exceptions.ServerException"
    assert end.outcome(insists) == "success"
    assert end.times == {"insists": 1}
    assert end.visits["once", "first"] == 1
    # The file was opened as it is, and is sound.
    assert end.violations == []


def _set_filter(connection: Any) -> None:
    for record in get_queue(connection).dispatchers.records():
        record["main"].filter = scenes.asks_at_gate


def _go_away(scene: Scene, place: Place, how: str) -> None:
    if how == "killed":
        assert scene.stage.server is not None
        scene.stage.server.kill()
    else:
        scene.stage.relays.cut(place.relay)


def _come_back(scene: Scene, how: str) -> None:
    if how == "killed":
        scene.stage.start_server()
    scene.connect()
