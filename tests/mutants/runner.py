"""Deliberate faults, each with the test that must notice it.

A mutant is an entry of one of the files ``tests/mutants/*.toml``, one file per section of the
specification (``j.toml``)::

    [[mutant]]
    name = "a failure forgets the message"
    proves = "J7"
    file = "model/failure.py"
    old = '''self._message = str(exc)'''
    new = '''self._message = ""'''
    tests = ["tests/test_failure.py::test_it_prints_like_the_exception"]

`old` has to occur exactly once in `file`. The installed packages are copied, the copy is
changed, and the named tests run against it in a process of their own; each of them has to
*fail*. A test that cannot be collected, or an import that breaks, is no evidence and an error.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from support.installed import EXPECTED_ROOT
from support.tree import ROOT, TESTS

ROOMS = ("model", "storage", "actors", "cli", "server", "testing")

#: Far beyond what the named tests need; a mutant must make them fail, not hang.
TIMEOUT_SECONDS = 240


class MutantError(Exception):
    """A mutant, or a run of it, is not what it has to be; nothing was shown."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One deliberate fault."""

    name: str
    proves: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def section(self) -> str:
        return self.proves[0]


def read_mutants(folder: Path = TESTS / "mutants") -> list[Mutant]:
    """The mutants of all files in `folder`; `MutantError` if one is not complete."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", []):
            try:
                mutant = Mutant(**{**entry, "tests": tuple(entry["tests"])})
            except (KeyError, TypeError) as error:
                raise MutantError(f"{path.name}: {entry.get('name')}: {error}") from error
            if not mutant.tests:
                raise MutantError(f"{path.name}: {mutant.name}: names no test")
            found.append(mutant)
    return found


def copy_packages(folder: Path) -> None:
    """Copy the installed packages to ``folder/perdure/``, with what was compiled of them."""
    for room in ROOMS:
        source = importlib.import_module(f"perdure.{room}").__path__[0]
        # Who compiles another file at this moment has a temporary one.
        ignored = shutil.ignore_patterns("*.pyc.*")
        shutil.copytree(source, folder / "perdure" / room, ignore=ignored)


def apply(mutant: Mutant, folder: Path) -> None:
    """Change the copy in `folder`; `MutantError` unless `old` occurs exactly once."""
    path = folder / "perdure" / mutant.file
    text = path.read_text(encoding="utf-8")
    if (count := text.count(mutant.old)) != 1:
        raise MutantError(f"{mutant.name}: `old` occurs {count} times in {mutant.file}, not once")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    # pytest has compiled files of its own.
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()
    compile(path.read_text(encoding="utf-8"), str(path), "exec")


def run_tests(tests: Sequence[str], folder: Path, tests_root: Path = ROOT) -> set[str]:
    """Run `tests` against the copy in `folder`; those that failed, as they were named.

    `MutantError` if pytest could not run them, which is another thing than a failure.
    """
    report = folder / "report.xml"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    path = [str(folder), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    # What pytest compiles of the tests, and of Hypothesis, is the same for all of them.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
    environment[EXPECTED_ROOT] = str(folder)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0"]
    done = subprocess.run(
        [*command, f"--basetemp={folder / 'tmp'}", f"--junitxml={report}", *tests],
        cwd=tests_root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    print(done.stdout)  # shown where the test of the mutant fails
    if done.returncode not in (0, 1):
        raise MutantError(f"pytest ended with status {done.returncode}:\n{done.stdout}")
    failed = failed_cases(report)
    if done.returncode == 1 and not failed:
        raise MutantError(f"errors, but no test failed:\n{done.stdout}")
    return {test for test in tests if any(matches(case, test) for case in failed)}


def failed_cases(report: Path) -> list[tuple[str, str]]:
    """Class name and name of each failed case; an error beside a test's call is none."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return [
        (case.get("classname", ""), case.get("name", ""))
        for case in cases
        if case.find("failure") is not None
    ]


def matches(case: tuple[str, str], test: str) -> bool:
    """Whether the case of a report is, or is a parameter of, the node `test`."""
    path, *names = test.split("::")
    classname = ".".join([path.removesuffix(".py").replace("/", "."), *names[:-1]])
    if not names:
        return case[0] == classname or case[0].startswith(classname + ".")
    return case[0] == classname and names[-1] in (case[1], case[1].partition("[")[0])


def unnoticed(mutant: Mutant, folder: Path) -> set[str]:
    """The tests of `mutant` that do not notice it: none, if all is well."""
    copy_packages(folder)
    apply(mutant, folder)
    return set(mutant.tests) - run_tests(mutant.tests, folder)


def named_tests(mutants: Iterable[Mutant]) -> list[str]:
    """Each test that one of `mutants` names, once."""
    return sorted({test for mutant in mutants for test in mutant.tests})


def failing_without_fault(tests: Sequence[str], folder: Path) -> set[str]:
    """Those of `tests` that fail without any fault: none, if all is well."""
    copy_packages(folder)
    return run_tests(tests, folder)
