"""What it costs to have a file shared, while nobody else uses it.

    python -m benchmarks.sharing --seconds 2 --rounds 7

It commits to a plain `ZODB.DB` on a FileStorage, and to the same kind of file opened by
`perdure.storage.open_database`, whose server has no client. The two take turns, round by round,
with 1 thread and with 4, so that what else the disk has to do meets both. Printed are the medians
of commits (each changes one small object of the thread's own), loads from the storage and new
object ids, a second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transaction
import ZODB
from persistent.mapping import PersistentMapping
from ZODB.FileStorage import FileStorage

from perdure.storage import open_database

THREADS = (1, 4)


def commits(database: Any, seconds: float, number: int) -> int:
    manager = transaction.TransactionManager()
    connection = database.open(transaction_manager=manager)
    own = connection.root()[number]
    until = time.perf_counter() + seconds
    done = 0
    while time.perf_counter() < until:
        own["n"] = done
        manager.commit()
        done += 1
    connection.close()
    return done


def loads(database: Any, seconds: float, number: int) -> int:
    load, oid = database.storage.load, b"\0" * 8
    until = time.perf_counter() + seconds
    done = 0
    while time.perf_counter() < until:
        for _ in range(100):
            load(oid)
        done += 100
    return done


def oids(database: Any, seconds: float, number: int) -> int:
    new_oid = database.storage.new_oid
    until = time.perf_counter() + seconds
    done = 0
    while time.perf_counter() < until:
        for _ in range(100):
            new_oid()
        done += 100
    return done


def rate(
    work: Callable[[Any, float, int], int], database: Any, seconds: float, threads: int
) -> float:
    """How often all threads together do it in a second."""
    done = [0] * threads

    def run(number: int) -> None:
        done[number] = work(database, seconds, number)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    begun = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="on the disk that is to be measured")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        databases = {
            "plain": ZODB.DB(FileStorage(str(Path(folder, "plain.fs")))),
            "shared": open_database(Path(folder, "shared.fs")),
        }
        for database in databases.values():
            with database.transaction() as connection:
                for number in range(max(THREADS)):
                    connection.root()[number] = PersistentMapping()
        found: dict[tuple[str, int, str], list[float]] = {}
        for turn in range(given.rounds):
            for work in (commits, loads, oids):
                for threads in THREADS:
                    # Neither is always the first.
                    for kind in sorted(databases, reverse=turn % 2 == 1):
                        measured = rate(work, databases[kind], given.seconds, threads)
                        found.setdefault((work.__name__, threads, kind), []).append(measured)
        for database in databases.values():
            database.close()
    print(
        f"{'a second':10} {'threads':>7} {'plain':>10} {'shared':>10}  shared/plain (least, most)"
    )
    for work in (commits, loads, oids):
        for threads in THREADS:
            plain = found[work.__name__, threads, "plain"]
            shared = found[work.__name__, threads, "shared"]
            each = [two / one for one, two in zip(plain, shared, strict=True)]
            print(
                f"{work.__name__:10} {threads:7} {statistics.median(plain):10.0f} "
                f"{statistics.median(shared):10.0f}  {statistics.median(each):.2f} "
                f"({min(each):.2f}, {max(each):.2f})"
            )


if __name__ == "__main__":
    main()
