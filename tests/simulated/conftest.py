"""How much is tried, and no logs: thousands of broken runs have much to say."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator

import pytest

VARIABLE = "PERDURE_TEST_SIMULATED"


@pytest.fixture(autouse=True)
def _no_logs() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True, scope="module")
def _collecting_less() -> Iterator[None]:
    """Let the collector leave alone what the tests themselves consist of, which is much."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def long_run() -> bool:
    """Whether everything is to be tried, which takes a night."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "long"):
        raise pytest.UsageError(f"{VARIABLE} must be empty or 'long', not {value!r}")
    return value == "long"
