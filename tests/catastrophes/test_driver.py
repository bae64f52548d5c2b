"""The driver itself: it finds nothing where nothing is wrong, and every deliberate fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from catastrophes.driver import drive
from catastrophes.faults import FAULTS

TROUBLES = {"kill", "suspend", "terminate", "kill server", "suspend server", "cut", "disk full"}

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.mark.spec("C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "C10", "D6", "Q6", "J6")
def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    outcome = drive(20, 7, folder=tmp_path / "run", workers=3, longest_jump_seconds=12, tell=False)
    assert outcome.findings == ()
    assert outcome.counts["jobs acknowledged"] > 0
    # There was something to survive.
    assert len(TROUBLES & outcome.counts.keys()) >= 3


# By chance, and for minutes: `tox -e catastrophes` runs it.
@pytest.mark.drive
@pytest.mark.parametrize("fault", FAULTS)
def test_a_deliberate_fault_is_found(tmp_path: Path, fault: str) -> None:
    outcome = drive(
        25, 1, folder=tmp_path / "run", workers=3, fault=fault, patience_seconds=12, tell=False
    )
    assert outcome.findings
