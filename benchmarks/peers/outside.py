"""Measuring a peer, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import ROOT
from benchmarks.workload import WrongError

__all__ = ["PEERS", "Measured", "POSTGRES", "Peer", "PeerError", "check", "measured"]


class Peer(NamedTuple):
    """A program that can be measured, and how."""

    installed_by: str
    jobs: int
    """So many that it takes some seconds."""
    operations: tuple[str, ...] = ("put", "drain", "count", "start")
    """What can be measured of it."""


PEERS = {
    "huey": Peer("pip install huey", 2_000),
    "dbos": Peer("pip install dbos", 500),
    "procrastinate": Peer("pip install procrastinate", 1_000, ("put", "drain", "count")),
}
"""Those that can be measured, by the names of their packages."""

STARTS = 200
QUICK_JOBS = 50
LIMIT_SECONDS = 1_800


POSTGRES = "PERDURE_BENCHMARKS_POSTGRES"
"""The variable that names a database of PostgreSQL to throw away."""


class PeerError(Exception):
    """A peer is not known, or not to be had here."""


class Measured(NamedTuple):
    """What a peer has reached, and how it was set up."""

    values: Mapping[str, float]
    """Its figures by their names; a rate that is the only one has the name ""."""
    conditions: str


def check(name: str) -> None:
    """Raise `PeerError` unless this peer can be measured here."""
    if name not in PEERS:
        raise PeerError(f"no peer is named {name!r}: there are {', '.join(PEERS)}")
    if importlib.util.find_spec(name) is None:
        raise PeerError(
            f"the peer {name} is not installed: {PEERS[name].installed_by}, or run tox -e bench, "
            "which installs huey and dbos"
        )

    if name == "procrastinate" and not os.environ.get(POSTGRES):
        raise PeerError(
            f"the peer procrastinate needs a database of PostgreSQL to throw away, whose schema "
            f"public is dropped: name it by {POSTGRES}, such as postgresql:///scratch"
        )


def measured(name: str, operation: str, folder: Path, *, quick: bool = False) -> Measured:
    """Let a peer do `operation`, with few jobs if `quick`; raises `WrongError` where it fails."""
    jobs = STARTS if operation == "start" else PEERS[name].jobs
    if quick:
        jobs = min(jobs, QUICK_JOBS)
    own = folder / name
    own.mkdir()
    command = [sys.executable, "-m", f"benchmarks.peers.{name}", operation, str(jobs), str(own)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise WrongError(f"{name}, {operation}: {''.join(last) or done.returncode}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))
