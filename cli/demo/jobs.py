"""What the demo stores, and the jobs that it puts.

Each file has an object of its own, and a job that fills it. The callbacks count down
what is left, and the last of them puts the job that merges. A counter is a guard that
lives in the object being written, so that two callbacks can never both, or neither, be
the last: one of them conflicts and is run again. To make that rare there is a counter
for each of a few groups, and files that are neighbours in the queue are in different
groups.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import Any

from BTrees.IOBTree import IOBTree
from persistent import Persistent

from perdure.cli.demo.announcing import announce
from perdure.cli.demo.counting import count_words
from perdure.cli.demo.files import Listing, Stamp, stamp
from perdure.model import Failure, Job, environment, get_queue

__all__ = ["MOST_FREQUENT", "Countdown", "FileIndex", "Index", "Summary", "merge", "put_jobs"]

MOST_FREQUENT = 20
_GROUPS = 16


class FileIndex(Persistent):
    """The words of one file: `counts`, None until its job has succeeded.

    `effects` counts how often a job's effect was committed here: 1, if the promise holds.
    """

    counts: dict[str, int] | None = None
    effects = 0
    job: Job

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        self.path = os.path.join(folder, name)
        self.stamp: Stamp | None = stamp(self.path)

    def fill(self) -> int:
        """Count the words of the file, and return how many there are; a job."""
        self.counts = count_words(self.path)
        self.effects += 1
        return sum(self.counts.values())


class Countdown(Persistent):
    """How many files of one group are left."""

    def __init__(self, index: Index, left: int) -> None:
        self.index = index
        self.left = left

    def arrived(self, result: object) -> None:
        """Count one file, whatever became of its job; a callback."""
        self.left -= 1
        if self.left == 0:
            self.index.group_arrived()
        announce(self)


class Summary(Persistent):
    """What the job that merges makes of all the files.

    `names` are the files that were counted, `failed` pairs of a name and a reason,
    `words` how many there are, `different` how many are different, `most_frequent` pairs
    of a word and a number; `seconds` passed since the jobs were put.
    """

    seconds = 0.0

    def __init__(
        self,
        names: tuple[str, ...],
        failed: tuple[tuple[str, str], ...],
        words: int,
        different: int,
        most_frequent: tuple[tuple[str, int], ...],
    ) -> None:
        self.names = names
        self.failed = failed
        self.words = words
        self.different = different
        self.most_frequent = most_frequent


class Index(Persistent):
    """All the files, in the order in which their jobs were put."""

    summary: Summary | None = None
    merge_job: Job | None = None
    merges = 0

    def __init__(self, folder: str, begun: Any) -> None:
        self.folder = folder
        self.begun = begun
        self.files: Any = IOBTree()
        self.groups: tuple[Countdown, ...] = ()
        self.groups_left = 0

    def arrived(self) -> int:
        """Return how many files are done."""
        return len(self.files) - sum(group.left for group in self.groups)

    def group_arrived(self) -> None:
        """Count one group; after the last, put the job that merges."""
        self.groups_left -= 1
        if self.groups_left == 0:
            self.merge_job = get_queue(self).put(Job(self.merge))

    def merge(self) -> int:
        """Make the summary, and return how many words there are; a job."""
        self.merges += 1
        self.summary = merge(self)
        now = environment(self._p_jar.db()).clock.now()
        self.summary.seconds = (now - self.begun).total_seconds()
        return self.summary.words


def merge(index: Index) -> Summary:
    """Return the summary of what the files have; changes nothing."""
    total: Counter[str] = Counter()
    names = []
    failed = []
    for file in index.files.values():
        if file.counts is None:
            result = file.job.result
            reason = result.message if isinstance(result, Failure) else "its words are lost"
            failed.append((file.name, reason))
        else:
            names.append(file.name)
            total.update(file.counts)
        # All the files together may be larger than a connection's cache should be.
        file._p_deactivate()
    # Ties by the alphabet: the order must not hang on which file came first.
    ranked = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    return Summary(
        tuple(names), tuple(failed), total.total(), len(total), tuple(ranked[:MOST_FREQUENT])
    )


def put_jobs(connection: Any, listing: Listing) -> Index:
    """Put one job for each file, in the transaction of `connection`; return the index."""
    queue = get_queue(connection)
    index = Index(listing.folder, environment(connection.db()).clock.now())
    connection.add(index)
    groups = min(_GROUPS, len(listing.names))
    sizes = Counter(number % groups for number in range(len(listing.names)))
    index.groups = tuple(Countdown(index, sizes[number]) for number in range(groups))
    index.groups_left = groups
    for number, name in enumerate(listing.names):
        file = index.files[number] = FileIndex(listing.folder, name)
        job = Job(file.fill)
        # Some of the files are no texts; that is nothing to make a noise about.
        job.failure_log_level = logging.DEBUG
        job.add_callback(index.groups[number % groups].arrived)
        file.job = queue.put(job)
    return index
