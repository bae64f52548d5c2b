"""All workloads, by their names."""

from __future__ import annotations

from benchmarks.workload import Workload
from benchmarks.workloads import (
    bounding,
    draining,
    growing,
    killing,
    putting,
    resources,
    sharing_zeo,
    starting,
)

__all__ = ["REGISTRY"]

_ORDER = "W1 W1B W2 W2d W4 W4h W3 W3z W2z W5 W6 W7 W8 W9 W10 W11".split()

_KNOWN = {
    workload.name: workload
    for module in (putting, draining, starting, sharing_zeo, killing, growing, resources, bounding)
    for workload in module.WORKLOADS
}

REGISTRY: dict[str, Workload] = {name: _KNOWN.pop(name) for name in _ORDER}

assert not _KNOWN, f"not in the order: {sorted(_KNOWN)}"
