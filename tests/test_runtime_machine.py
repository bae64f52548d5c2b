"""Whatever befalls the runtime, in whatever order: no invariant breaks, and the books balance.

For a longer run, by chance: ``PERDURE_TEST_MACHINE_EXAMPLES=2000 pytest`` with this file.
"""

from __future__ import annotations

import logging
import os
import traceback
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from perdure.model import Failure, Job, Status
from perdure.testing import Call, Fault, RuntimeMachine, SimulationError, callables
from perdure.testing.callables import LEDGER
from perdure.testing.plans import CALLBACKS, COMPOSITES, KINDS, Plan
from support.simulated import add, add_and_commit, fail

EXAMPLES = int(os.environ.get("PERDURE_TEST_MACHINE_EXAMPLES", "0"))


def budget(examples: int, steps: int = 40, **more: Any) -> settings:
    """So many runs; the same ones each time."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """What goes wrong here is meant to, and logged more than anybody reads."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


TestRuntimeMachine = pytest.mark.slow(
    pytest.mark.spec("J6", "J22", "Q6", "D4", "D6", "C2", "C4", "C5", "C8")(
        RuntimeMachine.TestCase
    )
)
TestRuntimeMachine.settings = budget(EXAMPLES or 25)


class WithoutPolling(RuntimeMachine):
    """Whoever is told of nothing finds out by chance only."""

    SETTINGS = {"poll_interval": timedelta(days=1)}
    LOSES_PROCESSES = False


class InTheMidst(RuntimeMachine):
    """With little but what strikes a process in the midst of a commit."""

    cancel = retry = add_callback = None
    run_until_idle = jump_clock = suspend = stand_still = cut = break_call = None
    stop = crash = lose = None
    resize = resize_quota = pause = pack = deploy = None


KINDS_OF_STORIES = (RuntimeMachine, InTheMidst, WithoutPolling)

STORIES = 16
"""So many that several deliberate faults are noticed; see ``mutants/simulator.toml``."""


@pytest.mark.slow
@pytest.mark.spec("J6", "J26", "Q6", "D6", "D8")
def test_no_story_of_another_seed_does_harm() -> None:
    """Of the examples of one seed the most are like each other, from the fourth on."""
    told = 0
    for number in range(STORIES):
        base = KINDS_OF_STORIES[number % len(KINDS_OF_STORIES)]

        class Story(base):
            def teardown(self) -> None:
                super().teardown()
                nonlocal told
                told += 1

        few = budget(3, phases=[Phase.generate], report_multiple_bugs=False)
        run_state_machine_as_test(seed(number)(Story), settings=few)
    assert told >= STORIES


class CountingMachine(RuntimeMachine):
    """One of a user's: jobs that count, and what has to be so of them."""

    def set_up(self, connection: Any) -> None:
        connection.root()["n"] = 0

    def count(self) -> int:
        with self.world.look() as connection:
            return int(connection.root()["n"])

    @precondition(lambda self: self.awake)
    @rule(number=st.integers(1, 3))
    def put_count(self, number: int) -> None:
        self.put(lambda connection: Job(add, "n", number), number=number)

    @invariant()
    def nothing_is_counted_that_was_not_put(self) -> None:
        assert self.count() <= sum(self.numbers())

    def numbers(self) -> list[int]:
        return [entry["number"] for entry in self.books.entries.values() if "number" in entry]

    def balance(self) -> list[str]:
        counted = 0
        for ref, entry in self.books.entries.items():
            if not isinstance(self.world.result(ref), Failure):
                counted += entry.get("number", 0)
        wrong = super().balance()
        if counted != self.count():
            wrong.append(f"{counted} was put, and {self.count()} counted")
        return wrong


@pytest.mark.slow
def test_a_machine_can_be_given_jobs_rules_and_invariants() -> None:
    run_state_machine_as_test(CountingMachine, settings=budget(5, 20))


class CrashedMachine(CountingMachine):
    """Its jobs are caught by crashes at their commits."""

    function = staticmethod(add)

    @precondition(lambda self: self.awake)
    @rule(commits=st.integers(1, 5), after=st.booleans())
    def count_in_a_crash(self, commits: int, after: bool) -> None:
        self.put_and_crash(
            lambda connection: Job(self.function, "n", 1), commits=commits, after=after, number=1
        )


class MistakenMachine(CrashedMachine):
    """Its jobs commit what they do by themselves, and then their results."""

    function = staticmethod(add_and_commit)


@pytest.mark.slow
def test_a_mistake_that_shows_between_two_commits_of_a_users_job_is_found() -> None:
    run_state_machine_as_test(CrashedMachine, settings=budget(5, 10))
    # It ends with the first that shows it, which need not be among the first twenty.
    few = budget(200, 10, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(BaseException) as caught:
        run_state_machine_as_test(MistakenMachine, settings=few)
    assert "counted" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("commits", [0, -1, "1", None])
def test_a_crash_at_no_commit_is_refused(commits: Any) -> None:
    def crash(machine: RuntimeMachine) -> None:
        with pytest.raises(SimulationError, match=f"1 or more, not {commits!r}"):
            machine.put_and_crash(lambda connection: Job(add, "n"), commits=commits)
        assert len(machine.books.entries) == 0

    play(crash)


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_a_commit_strikes_while_a_job_is_run(after: bool) -> None:
    def crash(machine: RuntimeMachine) -> None:
        machine.crash_at_a_commit(Plan("succeed"), 0, 4, after, (), 1)
        text = f"CRASHES {'after' if after else 'before'}"
        struck = [each for each in machine.world.scheduler.trace if text in each.text]
        assert [each.text.rpartition(" ")[2] for each in struck] == ["finish"]
        assert "worker" in struck[0].task

    play(crash)


@pytest.mark.parametrize("then", ["goes on", "crashes", "is lost"])
def test_a_process_stands_still_with_what_it_has_read_for_a_claim(then: str) -> None:
    def stand_still(machine: RuntimeMachine) -> None:
        plan = Plan("succeed", begin_after=50)
        machine.stand_still_at_a_commit(plan, 0, 1, 75, True, then, ())
        trace = machine.world.scheduler.trace
        still = [number for number, each in enumerate(trace) if "stands still" in each.text]
        assert [(trace[number].task, trace[number - 1].text) for number in still] == [
            ("anna/dispatcher", "begin")
        ]
        crashed = [each for each in trace if "CRASHES" in each.text]
        assert bool(crashed) is (then != "goes on")
        assert all(each.seconds == trace[still[0]].seconds + 75 for each in crashed)

    machine = play(stand_still)
    assert machine.world.processes[0].starts == (2 if then == "crashes" else 1)
    assert sum(machine.books.ends.values()) == 1


def test_processes_claim_jobs_of_one_quota_in_the_same_moment() -> None:
    def claim(machine: RuntimeMachine) -> None:
        machine.claim_together(Plan("doze", begin_by=1), 2, "narrow", 0, 1, ())
        quotas = [each["plan"].quotas for each in machine.books.entries.values()]
        assert quotas == [("narrow",)] * 6
        due = [each for each in machine.world.scheduler.trace if each.seconds == 2]
        begun = {each.task for each in due if each.text == "begin"}
        assert begun >= {"anna/dispatcher", "bert/dispatcher"}

    play(claim)


def test_one_that_is_lost_for_good_is_left_to_its_siblings() -> None:
    def lose(machine: RuntimeMachine) -> None:
        machine.put_job(Plan("doze"), 0, (), 100)
        machine.start(1)
        machine.lose(0)

    machine = play(lose)
    assert [each.starts for each in machine.world.processes] == [1, 1, 1]
    assert "anna crashes" in [each.text for each in machine.world.scheduler.trace]


def play(*rules: Any) -> RuntimeMachine:
    """Run a machine by hand, to its end."""
    machine = RuntimeMachine()
    try:
        for each in rules:
            each(machine)
            machine.nothing_is_wrong()
    finally:
        machine.teardown()
    return machine


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, *COMPOSITES])
@pytest.mark.parametrize("part", ["succeed", "fail"])
def test_every_kind_of_job_ends_as_it_should(kind: str, part: str) -> None:
    plan = Plan(
        kind,
        (part, "contend"),
        postprocess=True,
        quotas=("narrow", "wide"),
        callbacks=CALLBACKS,
    )
    refs: list[Any] = []

    def look(machine: RuntimeMachine) -> None:
        refs.extend(machine.books.entries)
        machine.world.advance(machine.REST_LIMIT / 10)
        assert machine.world.status(refs[0]) is Status.COMPLETED
        failed = kind in ("fail", "quit") or (kind, part) == ("return", "fail")
        assert isinstance(machine.world.result(refs[0]), Failure) is failed

    play(lambda machine: machine.put_jobs([plan, plan], 0), look)


def test_jobs_whose_code_has_vanished_go_on_when_it_is_back() -> None:
    def look(machine: RuntimeMachine) -> None:
        assert not hasattr(callables, "vanish")
        machine.world.run_until_idle()
        (ref,) = machine.books.entries
        assert machine.world.status(ref) is Status.PENDING

    machine = play(
        lambda machine: machine.put_job(Plan("vanish"), 0),
        lambda machine: machine.deploy(vanished=True),
        look,
    )
    assert hasattr(callables, "vanish")
    assert sum(machine.books.ends.values()) == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda ledger: ledger.effects["job 1"].happen(),
            "Failure.*and 'job 1' was done 1 times",
        ),
        (lambda ledger: setattr(ledger.counter, "value", 3), "0 jobs have counted to 3"),
        (
            lambda ledger: setattr(ledger.effects["job 1"], "count", 2),
            "'job 1' was done 2 times, since a commit of anna",
        ),
    ],
    ids=["done by a failed job", "counted by nobody", "done twice"],
)
def test_books_that_do_not_balance_are_noticed(change: Any, complaint: str) -> None:
    def cheat(machine: RuntimeMachine) -> None:
        with machine.world.processes[0].transaction() as connection:
            change(connection.root()[LEDGER])

    with pytest.raises(AssertionError, match=complaint):
        play(lambda machine: machine.put_job(Plan("fail"), 0), cheat)


def test_a_job_that_has_failed_without_a_reason_is_noticed() -> None:
    def cheat(machine: RuntimeMachine) -> None:
        machine.put(lambda connection: Job(fail, "no"), plan=Plan("succeed"))

    with pytest.raises(AssertionError, match="has failed without a reason: ValueError: no"):
        play(cheat)


def test_a_job_that_is_gone_is_noticed() -> None:
    def cheat(machine: RuntimeMachine) -> None:
        machine.put_job(Plan("succeed", begin_after=50), 0)
        (ref,) = machine.books.entries
        with machine.world.processes[0].transaction() as connection:
            job = connection.get(ref.oid.to_bytes(8, "big"))
            job.queue.remove(job)

    with pytest.raises(AssertionError, match="is NEW: "):
        play(cheat)


def test_a_quota_that_is_exceeded_is_noticed() -> None:
    def cheat(machine: RuntimeMachine) -> None:
        with machine.world.processes[0].transaction() as connection:
            quota = connection.root()["perdure"][""].quotas["narrow"]
            quota._holders = (b"1", b"2")

    with pytest.raises(AssertionError, match="quota 'narrow' of size 1 has 2 holders"):
        play(cheat)


def test_a_put_is_acknowledged_if_it_is_on_the_disk_whatever_became_of_its_process() -> None:
    def break_finish(after: bool) -> Any:
        def put(machine: RuntimeMachine) -> None:
            def on_call(call: Call) -> Fault | None:
                return Fault.crash(after=after) if call.kind == "finish" else None

            process = machine.world.processes[0]
            machine.world.run_until_idle()
            before, process.on_call = process.on_call, on_call
            ref = machine.put(lambda connection: Job(add, "n"))
            process.on_call = before
            assert (ref is None) is not after
            assert len(machine.books.entries) == int(after)

        return put

    play(break_finish(after=False))
    play(break_finish(after=True))


def test_a_put_without_a_process_that_is_awake_is_refused() -> None:
    def put(machine: RuntimeMachine) -> None:
        machine.crash(0)
        with pytest.raises(SimulationError, match="no process is awake"):
            machine.put(lambda connection: Job(add, "n"))

    play(put)


@pytest.mark.slow
def test_the_same_story_is_the_same_run_so_that_it_can_be_made_shorter() -> None:
    def tell() -> tuple[list[str], list[Any]]:
        plans = [Plan("contend", callbacks=CALLBACKS), Plan("doze"), Plan("return", ("fail",))]
        machine = play(
            lambda machine: machine.begin_with(plans, 2),
            lambda machine: machine.stand_still(0, 7, 40, 75),
            lambda machine: machine.crash(1, (1, 0, 2), 30),
            lambda machine: machine.run_until_idle(3),
        )
        return [str(event) for event in machine.world.scheduler.trace], machine.world.disk.commits

    first, second = tell(), tell()
    assert len(first[0]) > 500
    assert first == second
