"""Pytest plugin: says which perdure is tested, and refuses the wrong one.

``PERDURE_TEST_ROOT`` names the folder from which the packages must come; the runner of the
mutants sets it, so that a run that imports other code than the changed one is an error (exit
status 4) and never taken for a mutant that was caught or survived.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

EXPECTED_ROOT = "PERDURE_TEST_ROOT"


def root_of(package: str) -> Path | None:
    """The folder that `package` (``perdure.model``) would be imported from, without the import."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def pytest_report_header() -> str:
    return f"perdure.model: {root_of('perdure.model') or 'not importable'}"


def pytest_configure() -> None:
    expected = os.environ.get(EXPECTED_ROOT)
    if expected is None:
        return
    rooms = ("model", "storage", "actors", "cli", "server", "testing")
    for package in (f"perdure.{room}" for room in rooms):
        root = root_of(package)
        if root is not None and not root.resolve().is_relative_to(Path(expected).resolve()):
            raise pytest.UsageError(f"{package} comes from {root}, not from {expected}")
