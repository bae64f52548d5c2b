"""Delays of many jobs, as two numbers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Event

__all__ = ["EVERY_SECONDS", "between", "percentiles", "put_now_and_then"]

EVERY_SECONDS = 0.05


def put_now_and_then(put: Callable[[int], object], number: int) -> list[float]:
    """Put a job every 50 ms; when each put returned. The first one is not to be counted."""
    returned = []
    for index in range(number + 1):
        Event().wait(EVERY_SECONDS)
        put(index)
        returned.append(time.monotonic())
    return returned


def between(returned: Sequence[float], begun: Mapping[int, float]) -> dict[str, float]:
    """The percentiles of the times between the return of a put and the begin of its job."""
    # The first one finds nothing imported, nor any worker.
    return percentiles([max(0.0, begun[n] - returned[n]) for n in range(1, len(returned))])


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The median, and what all but one in a hundred keep to, in milliseconds."""
    hundredths = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": hundredths[49] * 1000, "p99": hundredths[98] * 1000}
