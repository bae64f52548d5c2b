"""Counting everything again without Perdure, and comparing it with what was stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from perdure.cli.demo.counting import count_words
from perdure.cli.demo.files import stamp
from perdure.cli.demo.jobs import FileIndex, Index, Summary, merge
from perdure.model import Failure, Status

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came out: how many files `agreed`, which `changed` meanwhile, what is wrong."""

    agreed: int
    changed: tuple[str, ...]
    differences: tuple[str, ...]


def compare(index: Index) -> Comparison:
    """Count each file of `index` again, and return how that compares; changes nothing.

    A file that was changed since its job was put is left out.
    """
    agreed = 0
    changed: list[str] = []
    differences: list[str] = []
    for file in index.files.values():
        found = list(_job_differences(file))
        counted, same = _count_again(file)
        if not same:
            changed.append(file.name)
        else:
            found += _differences(file, counted)
            agreed += not found
        differences += (f"{file.name}: {each}" for each in found)
        file._p_deactivate()
    differences += _summary_differences(index)
    return Comparison(agreed, tuple(changed), tuple(differences))


def _count_again(file: FileIndex) -> tuple[dict[str, int] | str, bool]:
    """Return the counts, or the text of the error; and whether the file is still the same."""
    counted: dict[str, int] | str
    try:
        counted = count_words(file.path)
    # Whatever it is, the job met it too.
    except Exception as error:
        counted = str(Failure(error))
    return counted, stamp(file.path) == file.stamp


def _job_differences(file: FileIndex) -> Iterator[str]:
    """What is wrong with the job and its effect, whatever is in the file."""
    job = file.job
    if job.status is not Status.COMPLETED:
        yield f"its job is {job.status.name}"
        return
    expected = 0 if job.failed else 1
    if file.effects != expected:
        yield f"the effect of its job was stored {file.effects} times instead of {expected}"
    if (file.counts is None) != (expected == 0):
        yield "its job and what it has disagree about whether it was counted"


def _differences(file: FileIndex, counted: dict[str, int] | str) -> Iterator[str]:
    if isinstance(counted, str):
        stored = str(file.job.result) if file.job.failed else f"{file.job.result} words"
        if stored != counted:
            yield f"its job ended with '{stored}', counting it ended with '{counted}'"
    elif file.counts is None:
        yield f"its job ended with '{file.job.result}', counting it found {sum(counted.values())}"
    elif file.counts != counted:
        words = [w for w in {*counted, *file.counts} if counted.get(w) != file.counts.get(w)]
        yield f"{len(words)} words differ, {min(words)!r} for one"


def _summary_differences(index: Index) -> Iterator[str]:
    """What is wrong with the summary, compared with what the files have."""
    left = [index.groups_left, *(group.left for group in index.groups)]
    if any(left):
        yield f"the callbacks counted wrong: {left} are left"
    if index.merges != 1 or index.summary is None:
        yield f"the summary was made {index.merges} times"
        return
    for name, stored, expected in _fields(index.summary, merge(index)):
        if stored != expected:
            yield f"the summary's {name} are {_cut(stored)}, the files' {_cut(expected)}"


def _fields(summary: Summary, expected: Summary) -> Iterator[tuple[str, object, object]]:
    for name in ("names", "failed", "words", "different", "most_frequent"):
        yield name, getattr(summary, name), getattr(expected, name)


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
