"""Measuring the runtime beside its storage, and beside its peers.

    python -m benchmarks all --json results.json
    python -m benchmarks W2 W4 --peer huey,dbos
    python -m benchmarks plot --json results.json

Names are those of the workloads, `all` for all of them; `list` tells what they are. `plot` draws
what held jobs cost, and `page` writes docs/performance.md anew, from results that are there.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import profiling, report
from benchmarks.measuring import machine, measure
from benchmarks.peers import outside
from benchmarks.processes import ROOT
from benchmarks.registry import REGISTRY
from benchmarks.workload import Progress, WrongError

RESULTS = ROOT / "docs" / "performance.json"
SOME = ("all", "list", "plot", "page")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status; see `--help`."""
    parser = _parser()
    given = parser.parse_args(words)
    try:
        _check(given)
        if given.names == ["list"]:
            _list()
        elif given.names == ["plot"]:
            from benchmarks.plot import draw

            draw(report.load(given.json or RESULTS), given.svg)
        elif given.names == ["page"]:
            from benchmarks.page import write

            write(report.load(given.json or RESULTS))
        else:
            return _measure(given)
    except (_GivenError, outside.PeerError, report.ReportError) as error:
        parser.error(str(error))
    return 0


class _GivenError(Exception):
    """The command line asks for what cannot be done."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(REGISTRY)}, or all; list, plot or page alone",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it works")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="how many jobs W6 holds and W10 drains"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the results to this file, where they take the place of older ones of the "
        "same workloads; plot and page read them there (default: docs/performance.json)",
    )
    parser.add_argument(
        "--peer",
        default="",
        metavar="NAMES",
        help=f"the same by these, with commas between: {', '.join(outside.PEERS)}",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="on the disk that is to be measured (default: of temporary files)",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        nargs="?",
        const=Path("profiles"),
        metavar="FOLDER",
        help="write profiles of the threads to this folder (without one: profiles), which is made "
        "where it is missing",
    )
    parser.add_argument(
        "--svg",
        type=Path,
        metavar="FILE",
        help="where plot draws (default: docs/_static/held.svg)",
    )
    return parser


def _check(given: argparse.Namespace) -> None:
    unknown = [name for name in given.names if name not in (*REGISTRY, *SOME)]
    if unknown:
        raise _GivenError(
            f"no workload is named {unknown[0]!r}: there are {', '.join(REGISTRY)}, and all"
        )
    alone = [name for name in given.names if name in SOME]
    if alone and len(given.names) > 1:
        raise _GivenError(f"{alone[0]} stands alone: leave out the other names")
    if given.jobs is not None and given.jobs < 1:
        raise _GivenError(f"--jobs is a whole number of 1 or more, not {given.jobs}")
    given.peers = [name for name in given.peer.split(",") if name]
    for name in given.peers:
        outside.check(name)
    if given.folder is not None and not given.folder.is_dir():
        raise _GivenError(f"--folder: there is no folder {given.folder}; make it first")
    if given.profile is not None:
        try:
            given.profile.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _GivenError(
                f"--profile: {given.profile} cannot be made a folder: {error.strerror}; name "
                "another one"
            ) from error


def _list() -> None:
    for name, workload in REGISTRY.items():
        title = workload.title.format(
            **{each: f"{usual:,}" for each, (usual, _) in workload.sizes.items()}
        )
        print(f"{name:4} {title}")


def _measure(given: argparse.Namespace) -> int:
    document: dict[str, Any] | None = None
    if given.json is not None:
        document = report.check_writable(given.json)
    document = (document or report.empty({})) | machine()
    progress = Progress()
    wrong = 0
    for name in REGISTRY if given.names == ["all"] else given.names:
        try:
            result = _measured(name, given, progress)
        except WrongError as error:
            progress.end()
            print(f"{name}: {error}", file=sys.stderr)
            wrong += 1
            continue
        progress.end()
        document["workloads"][name] = result
        # After each: whoever stops it has what was measured.
        if given.json is not None:
            document["workloads"] = {
                each: document["workloads"][each]
                for each in REGISTRY
                if each in document["workloads"]
            }
            report.save(given.json, document)
        report.print_workload(name, result, document)
    return 1 if wrong else 0


def _measured(name: str, given: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    around = None
    if given.profile is not None:
        # For the processes that a workload starts.
        os.environ[profiling.FOLDER] = str(given.profile.resolve())
        around = functools.partial(profiling.profiled, given.profile, name)
    result = measure(
        REGISTRY[name],
        quick=given.quick,
        jobs=given.jobs,
        peers=given.peers,
        folder=given.folder,
        progress=progress,
        around=around,
    )
    return {**result, "profiled": True} if around else result


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
