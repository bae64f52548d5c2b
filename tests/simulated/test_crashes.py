"""Every scenario with a crash in every place, and with an error of the storage in every place.

The crashes are before and after each call of the storage. Usually few scenarios have errors, one
of them at each call. With ``PERDURE_TEST_SIMULATED=long`` the recovery of the small scenarios
crashes as well, and all scenarios have each of the errors at each call.
"""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError, ReadConflictError

from perdure.testing import Fault, break_everywhere, crash_everywhere
from simulated.scenarios import SCENARIOS, Scenario

TRANSIENT = tuple(
    Fault.fail(error, after=after)
    for error in (
        ConflictError("made up"),
        ReadConflictError("made up"),
        ClientDisconnected("cut"),
    )
    for after in (False, True)
)
DISK = tuple(
    Fault.fail(OSError(number, os.strerror(number))) for number in (errno.ENOSPC, errno.EIO)
)


each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)


def settings_of(scenario: Scenario) -> dict[str, Any]:
    return {
        **scenario.settings,
        "setup": scenario.setup,
        "others": scenario.others,
        "rest_limit": scenario.rest_limit,
    }


@pytest.mark.slow
@pytest.mark.spec("J6")
@pytest.mark.spec("J8")
@pytest.mark.spec("J9")
@pytest.mark.spec("J10")
@pytest.mark.spec("J20")
@pytest.mark.spec("J22")
@pytest.mark.spec("J23")
@pytest.mark.spec("J26")
@pytest.mark.spec("J30")
@pytest.mark.spec("R1")
@pytest.mark.spec("R2")
@pytest.mark.spec("R3")
@pytest.mark.spec("R4")
@pytest.mark.spec("R6")
@pytest.mark.spec("R7")
@pytest.mark.spec("R8")
@pytest.mark.spec("Q4")
@pytest.mark.spec("Q6")
@pytest.mark.spec("D4")
@pytest.mark.spec("D6")
@pytest.mark.spec("D10")
@pytest.mark.spec("C2")
@pytest.mark.spec("C3")
@pytest.mark.spec("C4")
@pytest.mark.spec("C5")
@pytest.mark.spec("C6")
@pytest.mark.spec("C7")
@pytest.mark.spec("X12")
@each_scenario
def test_a_crash_in_any_place_does_no_harm(scenario: Scenario, long_run: bool) -> None:
    report = crash_everywhere(
        scenario.play,
        scenario.check,
        restarts=scenario.restarts,
        recoveries=2 if long_run and scenario.small else 1,
        **settings_of(scenario),
    )
    print(report)
    assert report.points >= 2 * report.calls > 0


FEW = "a_job", "callbacks", "stopped_with_time"


@pytest.mark.slow
@each_scenario
def test_an_error_that_passes_fails_no_job(scenario: Scenario, long_run: bool) -> None:
    if not long_run and scenario.name not in FEW:
        pytest.skip("in the long run only")
    settings = settings_of(scenario)
    settings.pop("poll_interval", None)
    check = scenario.check_books if scenario.counts_errors else scenario.check
    report = break_everywhere(scenario.play, check, TRANSIENT, in_turn=not long_run, **settings)
    print(report)
    assert report.runs == report.points + 1 > 1


@pytest.mark.slow
@pytest.mark.spec("C9")
@each_scenario
def test_an_error_of_the_disk_costs_no_more_than_the_job(
    scenario: Scenario, long_run: bool
) -> None:
    if not long_run and scenario.name not in FEW:
        pytest.skip("in the long run only")
    settings = settings_of(scenario)
    settings.pop("poll_interval", None)
    report = break_everywhere(
        scenario.play, scenario.check_books, DISK, in_turn=not long_run, **settings
    )
    print(report)
    assert report.runs == report.points + 1 > 1
