"""Workers that end, are killed, or are suspended, in the middle of what they do."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from catastrophes import scenes
from catastrophes.conftest import HOUR, SECOND, Scene
from catastrophes.workload import forever
from perdure.model import Job, NeverRetry, get_queue
from support.systems import within

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: Nobody is thought dead for lack of a ping, and nobody looks but at the files.
NEVER = {"poll_interval": HOUR, "ping_interval": HOUR, "ping_death_interval": 2 * HOUR}

#: No end can be proved, as on another host: the ping alone tells.
ELSEWHERE = {
    "other_host": True,
    "poll_interval": 0.5 * SECOND,
    "ping_interval": 0.5 * SECOND,
    "ping_death_interval": 2.5 * SECOND,
}


@pytest.mark.spec("C1", "Q7")
def test_of_two_that_claim_a_job_at_once_one_gets_it_and_the_other_goes_on(scene: Scene) -> None:
    settings = {**NEVER, "poll_interval": 0.5 * SECOND}
    slow = scene.worker("slow", **settings)
    slow.child.terminate()
    assert slow.child.wait() == 0

    def set_filter(connection: Any) -> None:
        (record,) = get_queue(connection).dispatchers.records()
        record["main"].filter = scenes.asks_at_gate

    scene.change(set_filter)
    contested = scene.put(scenes.note, "contested")
    slow.start()
    assert slow.child.line("at the claim")
    quick = scene.worker("quick", **settings)
    assert quick.child.line("noted contested")
    slow.child.tell("open the claim")
    other = _goes_on(scene, slow, quick)
    end = scene.finish()
    assert end.outcome(contested) == end.outcome(other) == "success"
    assert end.times == {"contested": 1, "afterwards": 1}
    assert end.visits == {("contested", "quick"): 1, ("afterwards", "slow"): 1}
    assert end.violations == []


@pytest.mark.spec("C3", "D10")
def test_a_job_that_a_stop_has_cut_short_runs_again(scene: Scene) -> None:
    again = scene.put(scenes.note_at_gate, "again")
    never = scene.put(scenes.only_once, "never", retry_policy_factory=NeverRetry)
    place = scene.worker("first", **NEVER)
    assert {place.child.line("at"), place.child.line("at")} == {"at again", "at never"}
    place.child.terminate()
    # The second one is not to wait for the jobs; another signal, so that both arrive.
    place.child.signal(signal.SIGINT)
    assert place.child.wait() == 0
    scene.begin(place)
    assert place.child.line("at again")
    place.child.tell("open again")
    end = scene.finish()
    assert (end.outcome(again), end.times) == ("success", {"again": 1})
    assert end.outcome(never) == "perdure.model.errors.AbortedError"
    assert end.visits == {("again", "first"): 2, ("never", "first"): 1}
    assert end.violations == []


@pytest.mark.spec("C4", "D5")
def test_after_a_kill_the_same_instance_goes_on(scene: Scene) -> None:
    again = scene.put(scenes.note_at_gate, "again")
    never = scene.put(scenes.only_once, "never", retry_policy_factory=NeverRetry)
    place = scene.worker("first", **NEVER)
    assert {place.child.line("at"), place.child.line("at")} == {"at again", "at never"}
    place.child.kill()
    scene.begin(place)
    assert place.child.line("at again")
    place.child.tell("open again")
    end = scene.finish()
    assert (end.outcome(again), end.times) == ("success", {"again": 1})
    assert end.outcome(never) == "perdure.model.errors.AbortedError"
    assert end.visits == {("again", "first"): 2, ("never", "first"): 1}
    assert end.violations == []


@pytest.mark.spec("C5", "D4", "D6")
@pytest.mark.parametrize("settings", [NEVER, ELSEWHERE], ids=["same host", "other host"])
def test_after_a_kill_a_sibling_takes_over(scene: Scene, settings: dict[str, Any]) -> None:
    again = scene.put(scenes.note_at_gate, "again")
    never = scene.put(scenes.only_once, "never", retry_policy_factory=NeverRetry)
    place = scene.worker("first", **settings)
    assert {place.child.line("at"), place.child.line("at")} == {"at again", "at never"}
    sibling = scene.worker("sibling", **settings)
    place.child.kill()
    # Where its end can be proved nobody waits for a ping, nor for a poll.
    assert sibling.child.line("at again")
    sibling.child.tell("open again")
    end = scene.finish()
    assert (end.outcome(again), end.times) == ("success", {"again": 1})
    assert end.outcome(never) == "perdure.model.errors.AbortedError"
    assert end.visits["again", "sibling"] == 1 and end.visits["never", "sibling"] == 0
    assert end.violations == []


@pytest.mark.spec("C6", "J26")
@pytest.mark.parametrize("who", ["the same", "a sibling"])
def test_after_a_kill_amid_callbacks_those_that_are_done_do_not_run_again(
    scene: Scene, who: str
) -> None:
    def make(ledger: Any) -> Job:
        job = Job(scenes.note, ledger, "job")
        job.add_callback(Job(scenes.note_result, ledger, "one"))
        job.add_callback(Job(scenes.note_result_at_gate, ledger, "two"))
        job.add_callback(Job(scenes.note_result, ledger, "three"))
        return job

    ref = scene.put_made(make)
    place = scene.worker("first", **NEVER)
    assert place.child.line("at two")
    if who == "a sibling":
        place.child.kill()
        place = scene.worker("sibling", **NEVER)
    else:
        place.child.kill()
        scene.begin(place)
    assert place.child.line("at two")
    place.child.tell("open two")
    assert place.child.line("noted three")
    end = scene.finish()
    assert end.outcome(ref) == "success"
    assert end.times == {"job": 1, "one": 1, "two": 1, "three": 1}
    assert end.visits == {
        ("job", "first"): 1,
        ("one", "first"): 1,
        ("two", "first"): 1,
        ("two", place.name): 2 if who == "the same" else 1,
        ("three", place.name): 1,
    }
    assert end.violations == []


SUSPENDED = {
    "poll_interval": 0.5 * SECOND,
    "ping_interval": 0.5 * SECOND,
    "ping_death_interval": 3 * SECOND,
}


@pytest.mark.spec("C7", "D6", "J19")
@pytest.mark.parametrize("function", [scenes.note_at_gate, scenes.commit_twice])
def test_a_worker_that_was_suspended_commits_nothing_for_what_it_lost(
    scene: Scene, function: Any
) -> None:
    place = scene.worker("first", **SUSPENDED)
    ref = scene.put(function, "key")
    assert place.child.line("at key")
    sibling = scene.worker("sibling", **SUSPENDED)
    place.child.suspend()
    assert sibling.child.line("at key")
    place.child.tell("open key")
    place.child.resume()
    # It goes on, and finds that the job is not its own any more; then it works again.
    sibling.child.tell("open key")
    other = _goes_on(scene, place, sibling)
    end = scene.finish()
    assert end.outcome(ref) == end.outcome(other) == "success"
    expected = {"key": 1} if function is scenes.note_at_gate else {"key/first": 2, "key/second": 1}
    assert end.times == {**expected, "afterwards": 1}
    assert end.visits["key", "first"] == end.visits["key", "sibling"] == 1
    assert end.violations == []
    assert "was taken from this worker" in place.log.read_text()


@pytest.mark.spec("C7", "D6")
def test_a_worker_that_is_suspended_in_its_commit_keeps_nobody_waiting(scene: Scene) -> None:
    place = scene.worker("first", **SUSPENDED)
    sibling = scene.worker("sibling", size=0, **SUSPENDED)
    ref = scene.put(scenes.note_and_be_suspended, "key", retry_policy_factory=forever)
    place.child.wait_until_suspended()
    # The store is free again, or this would not be committed.
    within(lambda: scene.change(lambda connection: get_queue(connection).resize(3)))
    assert sibling.child.line("noted key")
    place.child.tell("open key")
    place.child.resume()
    other = _goes_on(scene, place, sibling)
    end = scene.finish()
    assert end.outcome(ref) == end.outcome(other) == "success"
    assert end.times == {"key": 1, "afterwards": 1}
    assert end.violations == []


def _goes_on(scene: Scene, place: Any, sibling: Any) -> Any:
    """Let the sibling stop, and return a job that the other one has done then."""
    sibling.child.terminate()
    assert sibling.child.wait() == 0
    ref = scene.put(scenes.note, "afterwards")
    assert place.child.line("noted afterwards")
    return ref


@pytest.mark.spec("C8")
@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_clock_that_jumps_lets_jobs_be_run_again_and_no_effect_happen_twice(
    scene: Scene, seconds: int
) -> None:
    # The one whose clock is ahead takes the other for dead; one that is behind is taken for dead.
    held, taking = ("first", "second") if seconds > 0 else ("second", "first")
    settings = {**ELSEWHERE, "size": 1}
    first = scene.worker(held, **settings)
    ref = scene.put(scenes.note_at_gate, "key")
    assert first.child.line("at key")
    second = scene.worker(taking, **settings)
    jumping = second if seconds > 0 else first
    jumping.child.tell(f"jump {seconds}")
    assert second.child.line("at key")
    jumping.child.tell("jump 0")
    for place in (first, second):
        place.child.tell("open key")
    other = _goes_on(scene, second, first)
    end = scene.finish()
    assert end.outcome(ref) == end.outcome(other) == "success"
    assert end.times == {"key": 1, "afterwards": 1}
    assert end.violations == []


@pytest.mark.spec("C8", "J10")
def test_a_clock_that_is_ahead_lets_a_job_begin_as_much_too_early(scene: Scene) -> None:
    place = scene.worker("first", **ELSEWHERE)
    ref = scene.put(scenes.note, "key", begin_after=datetime.now(UTC) + timedelta(minutes=30))
    place.child.tell("jump 3600")
    assert place.child.line("noted key")
    end = scene.finish()
    assert (end.outcome(ref), end.times) == ("success", {"key": 1})
    assert end.violations == []
