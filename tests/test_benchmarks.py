"""The workloads measure what they say; their figures are on the page, and nothing else is."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import limits, measuring, page, plot, profiling, report
from benchmarks.__main__ import main
from benchmarks.delays import between
from benchmarks.jobs import Counter, beginnings, log_to, note, note_moment, noted, stop_logging
from benchmarks.peers import outside
from benchmarks.processes import Process, wait_for
from benchmarks.registry import REGISTRY
from benchmarks.stage import Stage, note_jobs
from benchmarks.workload import Bar, Figure, Progress, Run, Workload, WrongError
from benchmarks.workloads.draining import check_counters, put_counts
from benchmarks.workloads.growing import steps
from benchmarks.workloads.resources import Usage
from perdure.model import Job
from perdure.storage import open_database
from support.tree import DOCS, ROOT

#: Far beyond what a quick workload takes.
LIMIT_SECONDS = 600


# Every workload


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("name", REGISTRY)
def test_a_workload_does_its_jobs_and_has_all_its_figures(name, tmp_path):
    done = measured(name, "--json", str(tmp_path / "results.json"))

    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "results.json").read_text())["workloads"].values()
    assert [each["name"] for each in result["figures"]] == [
        each.name for each in REGISTRY[name].figures
    ]
    assert result["quick"] and f"before it began: {result['load']:g}" in done.stdout
    assert all(value > 0 for value in result["limits"].values())
    assert f"{name}: {result['title']}" in done.stdout
    assert result["conditions"] in done.stdout
    for figure in result["figures"]:
        assert figure["value"] > 0 or figure["unit"] != "/s"
        assert any(figure["name"] in line for line in done.stdout.splitlines())


def measured(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words, "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )


@pytest.mark.slow
@pytest.mark.process
def test_a_profile_tells_what_each_kind_of_thread_has_done_in_each_process(tmp_path):
    done = measured("W10", "--profile", str(tmp_path / "profiles"))

    assert done.returncode == 0, done.stderr
    assert "no figure is worth anything" in done.stdout
    assert "MainThread: 1 threads" in (tmp_path / "profiles" / "W10.txt").read_text()
    (process,) = (tmp_path / "profiles").glob("worker-*.txt")
    assert {"dispatcher: 1 threads", "agent: 1 threads"} <= {
        line.partition(",")[0] for line in process.read_text().splitlines()
    }


def test_every_bar_is_against_something_that_is_measured():
    for workload in REGISTRY.values():
        known = {"", *workload.limits, *(each.name for each in workload.figures)}
        if workload.peer:
            known |= {*outside.PEERS}
        for figure in workload.figures:
            assert {bar.against for bar in figure.bars} <= known


def test_what_is_told_of_a_workload_has_its_sizes():
    for workload in REGISTRY.values():
        for quick in (False, True):
            told = workload.told(Run(Path(), quick), workload.conditions)
            assert "{" not in told and "{" not in workload.told(Run(Path()), workload.title)


def test_held_jobs_are_added_in_powers_of_ten():
    assert steps(500) == [500]
    assert steps(1_000) == [1_000]
    assert steps(200_000) == [1_000, 10_000, 100_000, 200_000]


# What would be wrong


@pytest.fixture
def stage() -> Iterator[Stage]:
    database = open_database("memory://")
    yield Stage(database)
    database.close()


@pytest.fixture
def log(tmp_path) -> Iterator[Path]:
    log_to(tmp_path / "log")
    yield tmp_path / "log"
    stop_logging()


def test_a_job_that_was_not_done_is_noticed_by_its_effect(stage):
    put_counts(stage, 3, 3)

    with pytest.raises(WrongError, match=r"3 objects .*\[0, 0, 0\]"):
        check_counters(stage, 3)


def test_an_effect_that_is_there_twice_is_noticed(stage):
    put_counts(stage, 1, 1)
    with stage.transaction() as connection:
        (counter,) = connection.root()["counters"]
        counter.add()
    check_counters(stage, 1)
    with stage.transaction() as connection:
        connection.root()["counters"][0].add()

    with pytest.raises(WrongError, match=r"\[2\]"):
        check_counters(stage, 1)


def fail() -> None:
    raise RuntimeError("this job fails")


@pytest.mark.slow
def test_a_job_that_has_failed_is_noticed(stage):
    with stage.transaction():
        pass
    stage.fill([Job(fail)])

    with pytest.raises(WrongError, match="1 jobs have failed"):
        stage.drain(1)


def test_jobs_that_are_not_done_are_not_waited_for_without_end(stage, log):
    stage.fill(note_jobs(2, transactional=True))

    with pytest.raises(WrongError, match=r"2 jobs are not done, and nothing .*pending=2"):
        stage.wait_until_done(2, limit=0)
    note()
    with pytest.raises(WrongError, match="1 jobs are not done, and nothing"):
        stage.wait_until_done(1, log, limit=0)


def test_jobs_are_seen_in_their_log(log):
    note()
    note()
    assert noted(log) == 2

    log_to(log.with_name("other"))
    note_moment(7)
    ((number, pid, _),) = beginnings(log.with_name("other"))
    assert (number, pid, noted(log)) == (7, os.getpid(), 2)


def test_a_job_that_holds_waits_for_its_end(log, tmp_path):
    counter = Counter()
    holding = threading.Thread(target=counter.hold, args=(3, str(tmp_path / "end")))
    holding.start()
    assert counter.value == 0
    (tmp_path / "end").touch()
    holding.join()

    assert counter.value == 1
    assert [number for number, _, _ in beginnings(log)] == [3]


@pytest.mark.slow
@pytest.mark.process
def test_a_process_that_ends_too_early_is_told_with_what_it_said(tmp_path):
    process = Process(["benchmarks.nothing"], tmp_path, "x")
    try:
        with pytest.raises(WrongError, match=r"ended \(1\): .*No module named"):
            process.said("ready")
        with pytest.raises(WrongError, match=r"ended \(1\)"):
            process.line()
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.process
def test_a_peer_that_fails_is_told_with_what_it_said(tmp_path):
    with pytest.raises(WrongError, match=r"huey, nothing: \w+Error: .*"):
        outside.measured("huey", "nothing", tmp_path, quick=True)


def test_a_system_that_does_not_tell_what_a_process_uses_is_named():
    with pytest.raises(WrongError, match="needs a Linux with /proc"):
        Usage(2**30)


def test_what_is_waited_for_in_vain_is_told():
    with pytest.raises(WrongError, match="no answer: not within 0 s"):
        wait_for(lambda: False, "no answer", limit=0)


# Rounds, ratios, bars


@pytest.fixture
def fixed_limits(monkeypatch) -> list[float]:
    """What the storage makes of small commits, measurement by measurement."""
    values: list[float] = []
    monkeypatch.setattr(
        limits, "measured", lambda names, folder, quick: {name: values.pop(0) for name in names}
    )
    return values


def workload(run: Callable[[Run], Any], *figures: Figure, **settings: Any) -> Workload:
    return Workload("T", "a test", "none", figures, run, limits=("small commits",), **settings)


def test_a_ratio_is_the_median_of_those_of_the_rounds(fixed_limits):
    fixed_limits += [90, 110, 200, 200, 10, 30]
    rates = iter([300, 400, 200])
    figure = Figure("drained", "/s", (Bar(least=3, against="small commits"), Bar(most=250)))

    result = measuring.measure(workload(lambda run: {"drained": next(rates)}, figure))

    (found,) = result["figures"]
    assert (found["value"], found["each"]) == (300, [300, 400, 200])
    assert found["compared"] == [
        {"most": 250, "met": False},
        {"against": "small commits", "there": 100, "ratio": 3, "least": 3, "met": True},
    ]


def test_what_a_peer_does_is_compared_where_it_was_measured(fixed_limits, monkeypatch):
    fixed_limits += [100, 100]
    asked: list[tuple[object, ...]] = []

    def there(name: str, operation: str, folder: Path, quick: bool) -> outside.Measured:
        asked.append((name, operation, quick))
        return outside.Measured({"": 50}, "with care")

    monkeypatch.setattr(outside, "measured", there)
    bars = Bar(least=5, against="huey"), Bar(least=1, against="dbos")
    tried = workload(lambda run: {"drained": 200}, Figure("drained", "/s", bars), peer="drain")

    result = measuring.measure(tried, quick=True, peers=["huey"])

    assert asked == [("huey", "drain", True)]
    assert result["peers"] == {"huey": "with care"}
    assert [each["against"] for each in result["figures"][0]["compared"]] == [
        "small commits",
        "huey",
    ]
    assert result["figures"][0]["compared"][1]["met"] is False


def test_a_peer_that_has_several_figures_is_compared_figure_by_figure(fixed_limits, monkeypatch):
    fixed_limits += [100, 100]
    found = outside.Measured({"p50": 10.0, "p99": 40.0}, "with care")
    monkeypatch.setattr(outside, "measured", lambda *arguments, **settings: found)
    figures = Figure("p50", "ms", (Bar(most=2),)), Figure("p99", "ms", (Bar(most=10),))
    tried = workload(lambda run: {"p50": 1, "p99": 20}, *figures, peer="start")

    result = measuring.measure(tried, quick=True, peers=["huey"])

    assert [each["compared"] for each in result["figures"]] == [
        [{"most": 2, "met": True}, {"against": "huey", "there": 10, "ratio": 0.1}],
        [{"most": 10, "met": False}, {"against": "huey", "there": 40, "ratio": 0.5}],
    ]


def test_delays_are_told_by_their_median_and_the_worst_but_one_in_a_hundred():
    returned = [float(index) for index in range(102)]
    begun = {index: index + index / 1000 for index in range(102)}

    found = between(returned, begun)

    assert found == pytest.approx({"p50": 51, "p99": 100})


def test_a_figure_that_is_against_another_one_has_no_other_ratio(fixed_limits):
    fixed_limits += [100, 100]
    figures = (
        Figure("held", "/s", (Bar(least=0.9, against="none"),)),
        Figure("none", "/s"),
    )

    result = measuring.measure(
        workload(lambda run: {"held": 80, "none": 100}, *figures), quick=True
    )

    assert [each["compared"] for each in result["figures"]] == [
        [{"against": "none", "there": 100, "ratio": 0.8, "least": 0.9, "met": False}],
        [],
    ]
    assert [row[1:] for row in report.rows("T", result)] == [
        ("held", "80 /s", "none", "100 /s", "0.8", "≥ 0.9 ×", "no"),
        ("none", "100 /s", "", "", "", "", ""),
    ]


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(12_345.6, "/s", "12,346 /s"), (3, "", "3"), (45.67, "MB", "45.7 MB"), (0.123, "%", "0.12%")],
)
def test_a_figure_is_shown_with_no_more_digits_than_are_known(value, unit, shown):
    assert report.shown(value, unit) == shown


# The command line


@pytest.fixture
def quick_one(monkeypatch, fixed_limits) -> Workload:
    """A workload that takes no time, as the only one that there is."""
    fixed_limits += [100.0] * 20
    one = workload(lambda run: {"drained": 200}, Figure("drained", "/s"))
    monkeypatch.setitem(REGISTRY, "T", one)
    return one


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["W99"], "no workload is named 'W99': there are W1,"),
        (["all", "W1"], "all stands alone: leave out the other names"),
        (["W6", "--jobs", "0"], "--jobs is a whole number of 1 or more, not 0"),
        (["W1", "--peer", "cron"], "no peer is named 'cron': there are huey, dbos"),
        (["W1", "--folder", "nowhere"], "there is no folder nowhere; make it first"),
        (["W1", "--json", "nowhere/x.json"], "nowhere/x.json cannot be written: No such file"),
        (["W1", "--json", "text.txt"], "text.txt is no JSON"),
        (["W1", "--json", "other.json"], "other.json has no results of these workloads"),
        (["W1", "--profile", "text.txt/here"], "text.txt/here cannot be made a folder"),
        (["plot", "--json", "nowhere.json"], "nowhere.json cannot be read: No such file"),
        (["plot", "--json", "none.json"], "W6 was not measured: run python -m benchmarks W6"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(
    words, says, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("my text")
    Path("other.json").write_text("[1]")
    Path("none.json").write_text('{"workloads": {}}')

    with pytest.raises(SystemExit) as ended:
        main(words)

    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert Path("text.txt").read_text() == "my text"
    assert Path("other.json").read_text() == "[1]"


def test_a_peer_that_is_not_installed_is_told_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setattr(outside.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(SystemExit):
        main(["W1", "--peer", "huey"])

    assert "the peer huey is not installed: pip install huey, or" in capsys.readouterr().err


def test_a_peer_that_needs_a_server_says_how_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(outside.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv(outside.POSTGRES, raising=False)

    with pytest.raises(SystemExit):
        main(["W1", "--peer", "procrastinate"])

    assert "name it by PERDURE_BENCHMARKS_POSTGRES" in capsys.readouterr().err


def test_a_plot_without_matplotlib_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    document = {"workloads": {"W6": {"series": {"quota": [[1_000, 5.0, 5.0, 1.0]]}}}}

    with pytest.raises(report.ReportError, match="pip install matplotlib"):
        plot.draw(document, tmp_path / "x.svg")


def test_results_take_the_place_of_older_ones_and_of_no_others(quick_one, tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"workloads": {"T": {"old": True}, "W1": {"old": True}}}))

    assert main(["T", "--quick", "--json", str(path)]) == 0

    document = json.loads(path.read_text())
    assert document["workloads"]["W1"] == {"old": True}
    assert document["workloads"]["T"]["figures"][0]["value"] == 200
    assert {"python", "system", "versions"} <= document.keys()
    assert "drained" in capsys.readouterr().out


def test_a_workload_that_is_wrong_has_no_figures_and_stops_no_other(
    quick_one, tmp_path, monkeypatch, capsys
):
    def wrong(run: Run) -> Any:
        raise WrongError("of 2 jobs 1 is done")

    monkeypatch.setitem(REGISTRY, "T1", workload(wrong, Figure("x", "/s")))
    path = tmp_path / "results.json"

    assert main(["T1", "T", "--quick", "--json", str(path)]) == 1

    assert [*json.loads(path.read_text())["workloads"]] == ["T"]
    assert "T1: of 2 jobs 1 is done" in capsys.readouterr().err


def test_the_workloads_are_listed(capsys):
    assert main(["list"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*REGISTRY]


def test_progress_is_told_now_and_then_where_nobody_looks(capsys):
    progress = Progress()
    for number in range(3):
        progress(f"{number} of 3")
    progress.end()

    assert capsys.readouterr().err == "0 of 3\n"


# Profiles


def busy() -> int:
    return statistics.mode(sorted(range(1_000)))


def test_a_profile_has_each_kind_of_thread_that_was_started_meanwhile(tmp_path, capsys):
    before = sys.getprofile()
    with profiling.profiled(tmp_path, "T"):
        threads = [threading.Thread(target=busy, name=f"worker {n} of x/y") for n in range(2)]
        for thread in threads:
            thread.start()
            thread.join()

    text = (tmp_path / "T.txt").read_text()
    assert "worker: 2 threads" in text and "MainThread: 1 threads" in text
    assert re.search(r"^ +2 .*\(busy\)$", text, re.MULTILINE)
    assert (tmp_path / "T-worker.prof").exists()
    assert sys.getprofile() is before
    assert "T.txt" in capsys.readouterr().err


def test_a_process_is_profiled_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv(profiling.FOLDER, raising=False)
    with profiling.profiled_if_told("none"):
        busy()
    monkeypatch.setenv(profiling.FOLDER, str(tmp_path))
    with profiling.profiled_if_told("one"):
        busy()

    assert {each.name for each in tmp_path.iterdir()} == {"one.txt", "one-MainThread.prof"}


# The page


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return report.load(DOCS / "performance.json")


def test_the_page_has_the_figures_of_the_results_and_no_others(results):
    text = page.PAGE.read_text(encoding="utf-8")

    assert page.filled(text, results) == text
    shown = results["workloads"]
    assert shown and all(f"\n### {name}\n" in text for name in shown)
    assert all(each["title"].casefold() in text.casefold() for each in shown.values())


def test_the_plot_was_made_from_the_results(results):
    drawn = plot.DRAWN.read_text(encoding="utf-8")

    assert plot.digest(results["workloads"]["W6"]["series"]) in drawn


def test_no_results_of_a_quick_or_profiled_run_are_shown(results):
    shown = results["workloads"].values()

    assert not [each["title"] for each in shown if each["quick"] or each.get("profiled")]


def test_a_page_with_a_part_that_is_not_known_is_refused():
    with pytest.raises(report.ReportError, match="a part 'figures': there are results"):
        page.filled("<!-- figures: begin -->\n<!-- figures: end -->", {})


def test_a_figure_that_was_changed_by_hand_is_noticed(results):
    text = page.PAGE.read_text(encoding="utf-8")
    changed = re.sub(r"\d /s", "7777 /s", text, count=1)

    assert changed != text and page.filled(changed, results) != changed
