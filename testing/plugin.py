"""Pytest plugin: fixtures for everyday tests.

It is loaded in every run of pytest, whatever is tested, and so imports nothing before it is used.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from perdure.testing.execution import SteppedClock
    from perdure.testing.system import SteppedSystem

__all__ = ["perdure_clock", "perdure_settings", "perdure_system"]


@pytest.fixture
def perdure_settings() -> dict[str, Any]:
    """What `perdure_system` is made with; override it to set anything of `SteppedSystem`."""
    return {}


@pytest.fixture
def perdure_system(perdure_settings: dict[str, Any]) -> Iterator[SteppedSystem]:
    """A system in memory that does something only while the test lets it: a `SteppedSystem`."""
    from perdure.testing.system import SteppedSystem

    with SteppedSystem(**perdure_settings) as system:
        yield system


@pytest.fixture
def perdure_clock(perdure_system: SteppedSystem) -> SteppedClock:
    """The clock of `perdure_system`: `now()`, and `jump(timedelta)` to set it wrong."""
    return perdure_system.clock


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show the jobs of `perdure_system` in the report of a test that has failed."""
    report = yield
    system = getattr(item, "funcargs", {}).get("perdure_system")
    if system is not None and report.when == "call" and report.failed:
        try:
            text = system.jobs_text()
        # The test has failed already, and that is what its report is about.
        except Exception as error:
            text = f"they cannot be read: {type(error).__name__}: {error}"
        report.sections.append(("jobs of perdure_system", text))
    return report
