"""Pytest plugin: notes which tests take over 0.25 s and are not marked slow.

It is a note at the end of the run, never a failure: a busy machine is no defect.
"""

from __future__ import annotations

import pytest

LIMIT_SECONDS = 0.25


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a quarter of a second")
    config.addinivalue_line("markers", "process: runs real processes beside the test's own")
    config.addinivalue_line("markers", "drive: makes trouble by chance, for minutes")
    config.pluginmanager.register(Quickness(), "perdure-quickness")


class Quickness:
    """Collects the reports in the process that prints them (the controller, under xdist)."""

    def __init__(self) -> None:
        self.slow: list[tuple[float, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (
            report.when == "call"
            and report.duration > LIMIT_SECONDS
            and "slow" not in report.keywords
        ):
            self.slow.append((report.duration, report.nodeid))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.slow:
            return
        terminalreporter.section(f"over {LIMIT_SECONDS} s and not marked slow (a note)")
        for duration, nodeid in sorted(self.slow, reverse=True):
            terminalreporter.line(f"{duration:7.2f} s  {nodeid}")
