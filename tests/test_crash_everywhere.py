"""Scenarios that are broken at each call of the storage, and searched for in every order."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from ZEO.Exceptions import ClientDisconnected

from perdure.model import Job, get_queue
from perdure.testing import (
    BrokenError,
    Fault,
    OrderError,
    Process,
    Seeded,
    SimulationError,
    World,
    break_everywhere,
    crash_everywhere,
    explore,
)
from support.simulated import add, letters, send


@pytest.fixture(autouse=True)
def no_letters() -> None:
    letters.clear()


def put_one(process: Process) -> None:
    process.put(add, "n")


def count(process: Process, name: str = "n") -> int:
    with process.transaction() as connection:
        return int(connection.root().get(name, 0))


def nothing(process: Process) -> None:
    pass


def each_put_counts_once_or_not(process: Process) -> None:
    acknowledged = len(process.world.acknowledged)
    assert acknowledged <= count(process) <= 1


def each_put_counts_once(process: Process) -> None:
    assert count(process) == len(process.world.acknowledged) or count(process) == 1


@pytest.mark.slow
@pytest.mark.spec("J10")
def test_an_effect_is_there_once_wherever_the_process_crashes() -> None:
    report = crash_everywhere(put_one, each_put_counts_once)
    assert report.points == 2 * report.calls
    assert report.runs < report.points
    assert report.calls > 50


@pytest.mark.slow
def test_what_a_scenario_starts_again_is_broken_as_well() -> None:
    def scenario(process: Process) -> None:
        process.put(add, "n")
        process.stop()
        process.start()
        starts.append(process.starts)

    starts: list[int] = []
    crash_everywhere(scenario, each_put_counts_once, at="1:0")
    assert not starts
    report = crash_everywhere(scenario, each_put_counts_once)
    assert report.calls > 2 * crash_everywhere(nothing, each_put_counts_once_or_not).calls
    assert 0 < len(starts) < report.runs


@pytest.mark.slow
@pytest.mark.spec("C5")
def test_a_sibling_goes_on_where_the_process_is_not_started_again() -> None:
    def siblings(world: World) -> None:
        world.process("sibling")

    heirs: list[str] = []

    def check(process: Process) -> None:
        each_put_counts_once_or_not(process)
        heirs.append(process.name)

    report = crash_everywhere(put_one, check, others=siblings, restarts=False)
    assert heirs == ["process"] + ["sibling"] * (report.runs - 1)


def test_without_others_somebody_has_to_start_the_process_again() -> None:
    with pytest.raises(SimulationError, match="others has to start a process that stays"):
        crash_everywhere(put_one, restarts=False)


@pytest.mark.slow
def test_faults_can_be_dealt_out_in_turn() -> None:
    faults = [Fault.fail(ClientDisconnected("gone")), Fault.fail(ClientDisconnected(), after=True)]
    report = break_everywhere(put_one, each_put_counts_once, faults, in_turn=True)
    assert report.runs == report.points + 1
    assert report.calls / 2 < report.points < report.calls


@pytest.mark.slow
def test_a_process_goes_on_whatever_call_loses_its_connection() -> None:
    faults = [Fault.fail(ClientDisconnected("gone")), Fault.fail(ClientDisconnected(), after=True)]
    report = break_everywhere(put_one, each_put_counts_once, faults)
    # What the scenario calls itself is not struck.
    assert report.runs == report.points + 1
    assert report.calls < report.points < 2 * report.calls


def clear_letters(process: Process) -> None:
    letters.clear()


def send_one(process: Process) -> None:
    process.put(send, "anna")


def one_letter_as_recorded(process: Process) -> None:
    assert len(letters) == count(process, "anna"), f"{len(letters)} letters were sent"


def test_a_mistake_that_only_a_crash_shows_is_found_and_can_be_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(BrokenError, match="2 letters were sent") as caught:
        crash_everywhere(send_one, one_letter_as_recorded, setup=clear_letters)
    assert caplog.records == []
    text = str(caught.value)
    assert re.search(r"broken by a crash before call \d+, \w+.*, in process/worker 1", text)
    # The last thing that is told is what struck, and not what came of it.
    told = r": load 0x\w+\nto repeat it: crash_everywhere\(send_one, one_.*, setup=cl"
    assert re.search(told, text)
    at = re.search(r"at='(.*)'", text)
    assert at is not None
    with pytest.raises(BrokenError, match="2 letters were sent"):
        crash_everywhere(send_one, one_letter_as_recorded, setup=clear_letters, at=at[1])
    assert "ends its transaction by itself" in caplog.text


def test_a_scenario_that_fails_without_a_fault_says_so_itself() -> None:
    def scenario(process: Process) -> None:
        raise ZeroDivisionError("of the scenario")

    with pytest.raises(ZeroDivisionError):
        crash_everywhere(scenario)


def test_what_is_prepared_is_not_broken() -> None:
    def setup(process: Process) -> None:
        with process.transaction() as connection:
            connection.root()["n"] = 40

    def check(process: Process) -> None:
        assert count(process) >= 40

    def scenario(process: Process) -> None:
        assert count(process) == 40

    assert crash_everywhere(scenario, check, setup=setup).calls > 0


@pytest.mark.parametrize("at", ["x", "1", "1:7"])
def test_a_place_that_is_none_is_refused(at: str) -> None:
    with pytest.raises(SimulationError, match="as the text of a failure gives it"):
        crash_everywhere(put_one, at=at)


@pytest.mark.parametrize("at", ["9999:0", "0:1"])
def test_a_place_that_is_not_reached_is_no_success(at: str) -> None:
    with pytest.raises(SimulationError, match="did not strike"):
        crash_everywhere(put_one, at=at)


# The line that repeats a failure.


def nothing_struck(process: Process) -> None:
    told = [str(event) for event in process.world.scheduler.trace]
    assert not [text for text in told if "CRASHES" in text or "fails in" in text], "it struck"


def a_sibling(world: World) -> None:
    world.process("sibling")


def by_lot() -> Seeded:
    return Seeded(5)


def error_line(break_it: Callable[[], object]) -> str:
    with pytest.raises(BrokenError, match="it struck") as caught:
        break_it()
    return str(caught.value).rpartition("to repeat it: ")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "begins"),
    [
        (
            lambda: crash_everywhere(check=nothing_struck, scenario=put_one, kinds=["finish"]),
            "crash_everywhere(put_one, nothing_struck, at=",
        ),
        (
            lambda: crash_everywhere(put_one, nothing_struck, others=a_sibling, restarts=False),
            "crash_everywhere(put_one, nothing_struck, others=a_sibling, restarts=False, at=",
        ),
        (
            lambda: crash_everywhere(put_one, nothing_struck, queues={"": 1, "mail": 2}),
            "crash_everywhere(put_one, nothing_struck, queues={'': 1, 'mail': 2}, at=",
        ),
        (
            lambda: break_everywhere(put_one, nothing_struck, chooser=by_lot),
            "break_everywhere(put_one, nothing_struck, chooser=by_lot, at=",
        ),
        (
            lambda: break_everywhere(
                put_one,
                nothing_struck,
                [Fault.slow(timedelta(seconds=1)), Fault.fail(OSError(5, "broken"), after=True)],
            ),
            "break_everywhere(put_one, nothing_struck, faults=[Fault.slow(datetime.timedelta("
            "seconds=1)), Fault.fail(OSError(5, 'broken'), after=True)], at=",
        ),
    ],
    ids=["kinds", "others", "settings", "a chooser", "faults"],
)
def test_the_line_of_a_failure_repeats_it(break_it: Callable[[], object], begins: str) -> None:
    line = error_line(break_it)
    assert line.startswith(begins)
    known = {**globals(), "datetime": datetime}
    assert error_line(lambda: eval(line, known)) == line


@pytest.mark.slow
def test_the_line_of_a_failure_names_no_check_where_none_was_given() -> None:
    def acknowledge_too_early(process: Process) -> None:
        with process.transaction() as connection:
            job = get_queue(connection).put(Job(add, "n"))
            process.world.acknowledged.append(job.ref)

    with pytest.raises(BrokenError, match="is not there") as caught:
        crash_everywhere(acknowledge_too_early, kinds=["finish"])
    line = str(caught.value).rpartition("to repeat it: ")[2]
    assert re.fullmatch(r"crash_everywhere\(acknowledge_too_early, at='\d+:\d'\)", line)


# What would look like a success, and have tried nothing.


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda: crash_everywhere(put_one, kinds=["finsh"]), "kinds .* begin, .* not 'finsh'"),
        (lambda: crash_everywhere(put_one, kinds="finish"), "kinds .* list or tuple"),
        (lambda: break_everywhere(put_one, faults=[]), "faults .* one or more, not"),
        (lambda: break_everywhere(put_one, faults=["fail"]), "faults .* one or more, not"),
        (lambda: explore(lambda world: None, points=["begn"]), "points .* receive, .* 'begn'"),
    ],
    ids=["a kind", "one kind", "no faults", "no fault", "a point"],
)
def test_what_would_try_nothing_is_refused(bad: Callable[[], object], said: str) -> None:
    with pytest.raises(SimulationError, match=said):
        bad()


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Fault.fail("broken"),
        lambda: Fault.slow(3),
        lambda: Fault.stand_still(3),
    ],
)
def test_a_fault_of_what_is_none_is_refused(bad: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"(error|delay) must be a.*, not "):
        bad()


@pytest.mark.parametrize("name", ["advance", "come_to_rest", "restart_server"])
def test_what_is_no_duration_is_refused_by_its_name(name: str) -> None:
    with World() as world, pytest.raises(TypeError, match="(duration|limit|down) must be a time"):
        getattr(world, name)(3)


def test_a_scenario_that_is_another_one_each_time_is_found_out() -> None:
    runs = itertools.count()

    def scenario(process: Process) -> None:
        for _ in range(1 + next(runs) % 3):
            process.put(add, "n")

    with pytest.raises(SimulationError, match="has to be the same each time"):
        crash_everywhere(scenario)


def test_what_a_process_says_of_its_settings_is_told() -> None:
    with pytest.raises(TypeError, match="wombat"):
        crash_everywhere(put_one, wombat=1)


def test_what_a_scenario_says_after_it_has_stopped_the_process_is_told() -> None:
    def scenario(process: Process) -> None:
        process.stop()
        raise ZeroDivisionError("of the scenario")

    with pytest.raises(ZeroDivisionError):
        crash_everywhere(scenario)


def test_a_scenario_that_leaves_the_process_stopped_is_told_so() -> None:
    with pytest.raises(SimulationError, match="has to start it again"):
        crash_everywhere(lambda process: process.stop())


def lose_an_update(world: World) -> None:
    """Two jobs that remember what they read for longer than their transaction lasts."""
    process = world.process()
    first, _ = (process.put(add, name) for name in ("a", "b"))
    world.come_to_rest()
    ended = [str(event) for event in world.scheduler.trace if "receives JobRan" in str(event)]
    assert f"oid={first.oid}," in ended[0], "b ended first"


@pytest.mark.slow
def test_every_order_is_run_until_one_fails_which_can_be_repeated() -> None:
    with pytest.raises(OrderError, match="b ended first") as caught:
        explore(lose_an_update, preemptions=0)
    at = re.search(r"at=\[(.*)\]", str(caught.value))
    assert at is not None
    order = [int(index) for index in at[1].split(", ")]
    with pytest.raises(OrderError, match="b ended first"):
        explore(lose_an_update, at=order)


@pytest.mark.slow
def test_the_line_repeats_an_order_that_others_take_at_few_points() -> None:
    with pytest.raises(OrderError, match="b ended first") as caught:
        explore(lose_an_update, preemptions=0, points=["sync", "begin"])
    line = str(caught.value).rpartition("to repeat it: ")[2]
    assert "points=['sync', 'begin'], at=[" in line
    with pytest.raises(OrderError, match="b ended first"):
        eval(line)


@pytest.mark.slow
def test_a_search_tells_whether_it_was_complete() -> None:
    def scenario(world: World) -> None:
        world.process(queues={"": 0})
        world.run_until_idle()

    none = explore(scenario, delays=0)
    assert (none.runs, none.complete) == (1, True)
    least = explore(scenario, preemptions=0, delays=1)
    few = explore(scenario, preemptions=0)
    assert 1 < least.runs < few.runs
    more = explore(scenario, preemptions=1)
    assert few.complete
    assert more.complete
    assert more.runs > few.runs > 1
    assert not explore(scenario, most_runs=2).complete


def test_bounds_below_zero_are_refused() -> None:
    for bound in ("preemptions", "delays"):
        with pytest.raises(SimulationError, match=f"{bound} must be 0 or more, not -1"):
            explore(lose_an_update, **{bound: -1})
