"""A soak of one file that several processes share, with the owner killed now and then.

    python -m tests.soak_sharing --minutes 10 --processes 4 --kills 20 --seed 1

Each process has two threads that commit and one that reads. A commit adds one to both parts of a
pair of objects and notes its own number; what was begun, acknowledged, refused or left in doubt
stands in a record of the thread's own, a file that is only appended to. Meanwhile the driver
kills the owner of the file `--kills` times (SIGKILL), and in between it stops owners and clients
gracefully (SIGTERM), kills clients, and suspends processes for a while (SIGSTOP, SIGCONT). What
has ended is started again.

Before some of the kills everybody is quiet. Then a thread of each process hoards: its connection
gives ids to 200 new objects, which none in the file is greater than; it waits for the next owner,
adds 600 more, and commits all of them together.

Wrong is: a pair whose parts differ, a value that goes back, a commit of one's own that is not
seen; a process that does not get on within two minutes; at the end, an acknowledged commit that
is not in the file, a refused one that is, one that counts twice, a blob or a new object that is
not what was stored, the id of a new object that another one has. It prints numbers; the exit
status is 1, and the seed is named, if anything was wrong.

`--fault NAME` commits a deliberate fault in every process, which the soak has to find; the names
are in `FAULTS`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persistent.mapping import PersistentMapping

from perdure.storage.place import Place

PAIRS = 6
THREADS = 2
#: After so long without a commit a process hangs, unless `--patience` says otherwise.
PATIENCE_SECONDS = 120.0
#: So many ids a hoarder is given before it has waited for another owner, and after that.
NEW_IDS = 200
MORE_IDS = 600
#: While there is this file beside the database, nobody commits.
QUIET = "quiet"


# In each process


def deaf_owner() -> None:
    """The owner's own database does not hear of its clients' commits."""
    from perdure.storage.file import ServedFace

    def deaf(self: Any, file: Any, invalidate: Any, announce: Any) -> None:
        whole(self, file, lambda tid, oids: None, announce)

    whole = ServedFace.__init__
    ServedFace.__init__ = deaf  # type: ignore[method-assign]


def deaf_clients() -> None:
    """The clients do not hear of the owner's commits."""
    from perdure.storage.file import LocalFace, SharedFile

    def finish(self: Any, transaction: Any, f: Any = None) -> Any:
        return SharedFile.tpc_finish(self.file, transaction, f)

    LocalFace.tpc_finish = finish  # type: ignore[method-assign]


def blind_takeover() -> None:
    """Who takes the file over does not tell its connections what changed."""
    from perdure.storage import sides

    sides.changes_since = lambda storage, tid, last=None: iter(())


def early_answer() -> None:
    """The server answers a finish although nothing was written."""
    from perdure.storage.server import _Session

    def finish(self: Any, id: int) -> Any:
        from ZEO.asyncio.server import Result

        chance.append(None)
        if len(chance) % 20:
            return whole(self, id)
        tid = self.storage.file._tid
        self.storage.tpc_abort(self.transaction)
        return Result(tid, self._clear_transaction)

    chance: list[None] = []
    whole = _Session.tpc_finish
    _Session.tpc_finish = finish  # type: ignore[method-assign]


def forgetful_owner() -> None:
    """Who takes the file over gives away the ids that the one before has given away."""
    from perdure.storage.oids import GivenOids

    def begin_behind(self: Any, last: bytes, *, new: bool) -> bytes:
        self.noted = last
        return last

    GivenOids.begin_behind = begin_behind  # type: ignore[method-assign]


FAULTS = {
    each.__name__: each
    for each in (deaf_owner, deaf_clients, blind_takeover, early_answer, forgetful_owner)
}


class Wrong(Exception):
    """What must not be."""


def say(line: str) -> None:
    """Tell the driver, in one piece: `print` writes the end of a line for itself."""
    os.write(1, f"{line}\n".encode())


class Writer:
    """One thread that commits, until told to stop."""

    def __init__(self, database: Any, folder: Path, name: str, stop: threading.Event) -> None:
        self.database = database
        self.quiet = folder / QUIET
        self.name = name
        self.stop = stop
        self.random = random.Random(name)
        self.record = os.open(
            folder / f"{name}.record", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644
        )

    def note(self, *words: object) -> None:
        os.write(self.record, (" ".join(map(str, words)) + "\n").encode())

    def run(self) -> None:
        import transaction
        from transaction.interfaces import TransientError
        from ZEO.Exceptions import ClientDisconnected

        manager = transaction.TransactionManager()
        connection = self.database.open(transaction_manager=manager)
        number = 0
        last = -1  # the last one that was acknowledged
        try:
            while not self.stop.is_set():
                if self.quiet.exists():
                    self.stop.wait(0.02)
                    continue
                number += 1
                committing = False
                try:
                    manager.begin()
                    root = connection.root()
                    done = root["done"].get(self.name)
                    if done is None:
                        done = root["done"][self.name] = root["done"].__class__()
                    if last >= 0 and last not in done:
                        raise Wrong(f"{self.name}: does not see its own commit {last}")
                    pair = self.random.randrange(PAIRS)
                    left, right = root["pairs"][pair]
                    look(left, right, self.random)
                    left["value"] += 1
                    right["value"] += 1
                    done[number] = pair
                    if number % 16 == 0:
                        from ZODB.blob import Blob

                        root["blobs"][f"{self.name} {number}"] = Blob(str(number).encode())
                    self.note("begun", number)
                    committing = True
                    manager.commit()
                except ClientDisconnected:
                    manager.abort()
                    if committing:
                        self.note("doubt", number)
                except TransientError:
                    manager.abort()
                    if committing:
                        self.note("refused", number)
                else:
                    self.note("done", number)
                    last = number
                    say("done")
        finally:
            manager.abort()
            connection.close()
            os.close(self.record)


class Hoarder:
    """One thread that has new objects long before it commits them."""

    def __init__(self, database: Any, folder: Path, name: str, stop: threading.Event) -> None:
        self.database = database
        self.quiet = folder / QUIET
        self.name = name
        self.stop = stop

    def run(self) -> None:
        import transaction
        from transaction.interfaces import TransientError
        from ZODB.POSException import ConflictError

        manager = transaction.TransactionManager()
        connection = self.database.open(transaction_manager=manager)
        number = 0
        try:
            while not self.stop.is_set():
                try:
                    manager.begin()
                    connection.root()["hoards"][self.name] = PersistentMapping()
                    manager.commit()
                    break
                except TransientError:
                    manager.abort()
            while self.wait_until_quiet(True):
                number += 1
                given: set[bytes] = set()
                try:
                    manager.begin()
                    own = connection.root()["hoards"][self.name]
                    things = self.add(connection, number, range(NEW_IDS))
                    say("hoarding")
                    if not self.wait_until_quiet(False):
                        return
                    things += self.add(connection, number, range(NEW_IDS, NEW_IDS + MORE_IDS))
                    given = {thing._p_oid for thing in things}
                    own[number] = things
                    manager.commit()
                    manager.begin()
                    for thing in things:
                        thing._p_deactivate()
                    look_at_hoard(self.name, number, own[number])
                except TransientError as error:
                    if isinstance(error, ConflictError) and error.oid in given:
                        text = f"{self.name}: somebody else has the id of a new object: {error}"
                        raise Wrong(text) from error
                    manager.abort()
                    continue
                say("hoarded")
        finally:
            manager.abort()
            connection.close()

    def add(self, connection: Any, number: int, places: range) -> list[Any]:
        things = [
            PersistentMapping(name=self.name, number=number, place=place) for place in places
        ]
        for each in things:
            connection.add(each)
        return things

    def wait_until_quiet(self, quiet: bool) -> bool:
        """Wait until everybody is, or is no longer; False if it is to stop first."""
        while self.quiet.exists() is not quiet:
            if self.stop.wait(0.02):
                return False
        return not self.stop.is_set()


def look_at_hoard(name: str, number: int, things: list[Any]) -> None:
    """See that each of the new objects is what was stored."""
    oids = {thing._p_oid for thing in things}
    if len(things) != NEW_IDS + MORE_IDS or len(oids) != len(things):
        raise Wrong(f"{name}: {len(things)} new objects of commit {number}, {len(oids)} ids")
    for place, thing in enumerate(things):
        said = {"name": name, "number": number, "place": place}
        if not isinstance(thing, PersistentMapping) or dict(thing) != said:
            raise Wrong(f"{name}: the new object {place} of commit {number} is {thing!r}")


def look(left: Any, right: Any, choice: random.Random) -> int:
    """Read a pair; one part, or both, perhaps loaded anew."""
    for part in (left, right):
        if choice.random() < 0.3:
            part._p_deactivate()
    if left["value"] != right["value"]:
        raise Wrong(f"a pair differs: {left['value']} and {right['value']}")
    return int(left["value"])


def read(database: Any, name: str, stop: threading.Event) -> None:
    """Look at all pairs, again and again."""
    import transaction
    from transaction.interfaces import TransientError

    manager = transaction.TransactionManager()
    connection = database.open(transaction_manager=manager)
    choice = random.Random(name)
    seen = [0] * PAIRS
    try:
        while not stop.is_set():
            try:
                manager.begin()
                for pair, (left, right) in enumerate(connection.root()["pairs"]):
                    value = look(left, right, choice)
                    if value < seen[pair]:
                        raise Wrong(f"the pair {pair} went back from {seen[pair]} to {value}")
                    seen[pair] = value
            except TransientError:
                pass
            manager.abort()
    finally:
        manager.abort()
        connection.close()


def work(path: str, name: str, fault: str | None) -> int:
    """What one process does."""
    import faulthandler
    import logging

    folder = Path(path).parent
    stacks = open(folder / f"{name}.stacks", "w")
    faulthandler.register(signal.SIGUSR1, stacks)

    from perdure.storage import open_database

    logging.basicConfig(
        filename=folder / f"{name}.log",
        level=logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    if fault:
        FAULTS[fault]()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    database = open_database(path)
    wrong: list[str] = []

    def guarded(call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except BaseException as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
            logging.exception("wrong")
            stop.set()

    threads = [
        threading.Thread(
            target=guarded, args=(Writer(database, folder, f"{name}-{number}", stop).run,)
        )
        for number in range(THREADS)
    ]
    threads.append(threading.Thread(target=guarded, args=(read, database, name, stop)))
    hoarder = Hoarder(database, folder, name, stop)
    threads.append(threading.Thread(target=guarded, args=(hoarder.run,)))
    for thread in threads:
        thread.start()
    while not stop.wait(0.2):  # not for ever, or the signal may be seen too late
        pass
    for thread in threads:
        thread.join()
    database.close()
    left = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    if left:
        wrong.append(f"{name}: left behind {left}")
    for line in wrong:
        say(f"wrong {line}")
    return 3 if wrong else 0


# The driver


class Process:
    """One process, as the driver sees it."""

    def __init__(self, path: str, name: str, fault: str | None) -> None:
        self.name = name
        command = [sys.executable, __file__, "--work", path, name, *([fault] if fault else [])]
        self.popen = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        self.commits = 0
        self.hoardings = self.hoards = 0
        self.wrong: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._changed:
                if line.startswith("wrong"):
                    self.wrong.append(line.strip())
                elif line.startswith("hoard"):
                    self.hoardings += line.startswith("hoarding")
                    self.hoards += line.startswith("hoarded")
                else:
                    self.commits += 1
                self._changed.notify_all()

    def gets_on(self, patience: float) -> bool:
        """Wait for the next commit; False if there is none."""
        before = self.commits
        return self._wait(lambda: self.commits > before, patience)

    def hoards_more(self, before: int, patience: float) -> bool:
        """Wait until it has begun to hoard more often than that; False if it does not."""
        return self._wait(lambda: self.hoardings > before, patience)

    def _wait(self, predicate: Callable[[], bool], patience: float) -> bool:
        with self._changed:
            limit = time.monotonic() + patience
            while not predicate() and self.popen.poll() is None:
                if time.monotonic() > limit:
                    return False
                self._changed.wait(0.5)
        return True

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def end(self, patience: float) -> int | None:
        """Wait until it has ended; its status, None if it does not end."""
        try:
            status = self.popen.wait(patience)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            status = None
        self._reader.join()
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        return status


@dataclass
class Soak:
    """A run of the driver."""

    folder: Path
    processes: int
    kills: int
    seconds: float
    seed: int
    fault: str | None = None
    patience: float = PATIENCE_SECONDS
    wrong: list[str] = field(default_factory=list)
    numbers: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.path = str(self.folder / "soak.fs")
        self.random = random.Random(self.seed)
        self.started = 0
        self.running: list[Process] = []

    def run(self) -> None:
        self.prepare()
        for _ in range(self.processes):
            self.start()
        begun = time.monotonic()
        for number in range(self.kills):
            while not self.wrong and (
                time.monotonic() < begun + self.seconds * number / self.kills
            ):
                self.disturb(begun + self.seconds * number / self.kills)
            if self.wrong:
                break
            self.kill_owner()
        while not self.wrong and time.monotonic() < begun + self.seconds:
            self.disturb(begun + self.seconds)
        for process in self.running:
            process.signal(signal.SIGTERM)
        for process in list(self.running):
            self.ended(process, signal.SIGTERM)
        self.check()

    def prepare(self) -> None:
        from BTrees.OOBTree import OOBTree

        from perdure.storage import open_database

        database = open_database(self.path)
        with database.transaction() as connection:
            root = connection.root()
            root["done"], root["blobs"], root["hoards"] = OOBTree(), OOBTree(), OOBTree()
            root["pairs"] = [
                tuple(PersistentMapping(value=0) for _ in range(2)) for _ in range(PAIRS)
            ]
        database.close()

    def start(self) -> None:
        self.started += 1
        process = Process(self.path, f"p{self.started}", self.fault)
        self.running.append(process)
        self.must_get_on(process)

    def must_get_on(self, *processes: Process) -> None:
        for process in processes:
            if not process.gets_on(self.patience):
                self.hangs(f"{process.name} has not committed for {self.patience:g} s")
            elif process.popen.poll() is not None:
                self.ended(process, None)

    def hangs(self, text: str) -> None:
        """Note that, and have each process write where its threads are, twice."""
        self.wrong.append(text)
        for _ in range(2):
            for each in self.running:
                each.signal(signal.SIGUSR1)
            threading.Event().wait(1)

    def ended(self, process: Process, number: signal.Signals | None) -> None:
        """Account for a process that was told to end, or (None) ended by itself."""
        status = process.end(self.patience)
        self.running.remove(process)
        self.numbers["commits acknowledged"] += process.commits
        self.numbers["hoards begun"] += process.hoardings
        self.numbers["hoards acknowledged"] += process.hoards
        self.wrong += process.wrong
        expected = {signal.SIGTERM: 0, signal.SIGKILL: -signal.SIGKILL, None: 0}[number]
        if status is None:
            self.wrong.append(f"{process.name} did not end")
        elif status != expected and not process.wrong:
            self.wrong.append(f"{process.name} ended with the status {status}")

    def owner(self) -> Process | None:
        holder = Place(self.path).holder()
        return next((each for each in self.running if each.popen.pid == holder), None)

    def replace(self, process: Process, number: signal.Signals) -> None:
        process.signal(number)
        self.ended(process, number)
        self.must_get_on(*self.running)
        self.start()

    def kill_owner(self) -> None:
        owner = self.owner()
        if owner is None:
            self.wrong.append("nobody owns the file")
            return
        self.numbers["owners killed"] += 1
        others = [each for each in self.running if each is not owner]
        choice = self.random.random()
        if choice < 0.33:
            self.kill_hoarded(owner)
            return
        if choice < 0.67 or len(others) < 2:
            self.replace(owner, signal.SIGKILL)
            return
        # Another way: one process misses what the next owner commits, and takes over from it.
        late = self.random.choice(others)
        late.signal(signal.SIGSTOP)
        try:
            owner.signal(signal.SIGKILL)
            self.ended(owner, signal.SIGKILL)
            self.must_get_on(*[each for each in self.running if each is not late])
            following = self.owner()
            others = [each for each in self.running if each not in (late, following)]
            for each in others:
                each.signal(signal.SIGSTOP)
        finally:
            late.signal(signal.SIGCONT)
        if following is not None:
            self.numbers["next owners killed"] += 1
            following.signal(signal.SIGKILL)
            self.ended(following, signal.SIGKILL)
        self.must_get_on(late)
        for each in others:
            each.signal(signal.SIGCONT)
        self.must_get_on(*self.running)
        while len(self.running) < self.processes and not self.wrong:
            self.start()

    def kill_hoarded(self, owner: Process) -> None:
        """Kill the owner when it has given away ids that nobody has used yet."""
        before = {each.name: each.hoardings for each in self.running}
        quiet = self.folder / QUIET
        quiet.touch()
        try:
            for each in self.running:
                if not each.hoards_more(before[each.name], self.patience):
                    self.hangs(f"{each.name} has no new ids after {self.patience:g} s")
            owner.signal(signal.SIGKILL)
            self.ended(owner, signal.SIGKILL)
        finally:
            quiet.unlink()
        self.must_get_on(*self.running)
        self.start()

    def disturb(self, until: float) -> None:
        """Do one thing to one process, and wait a while."""
        owner = self.owner()
        others = [each for each in self.running if each is not owner]
        what = self.random.choice(["rest", "end owner", "end", "kill", "suspend", "suspend owner"])
        if what == "end owner" and owner is not None:
            self.numbers["owners ended"] += 1
            self.replace(owner, signal.SIGTERM)
        elif what in ("end", "kill") and others:
            self.numbers["clients ended" if what == "end" else "clients killed"] += 1
            number = signal.SIGTERM if what == "end" else signal.SIGKILL
            self.replace(self.random.choice(others), number)
        elif what == "suspend" and others:
            self.numbers["clients suspended"] += 1
            client = self.random.choice(others)
            client.signal(signal.SIGSTOP)
            try:
                self.must_get_on(*[each for each in self.running if each is not client])
                self.rest(self.random.uniform(0, 2), until)
            finally:
                client.signal(signal.SIGCONT)
            self.must_get_on(*self.running)
        elif what == "suspend owner" and owner is not None:
            self.numbers["owners suspended"] += 1
            owner.signal(signal.SIGSTOP)
            self.rest(self.random.uniform(0, 1), until)
            owner.signal(signal.SIGCONT)
            self.must_get_on(*self.running)
        self.rest(self.random.uniform(0, 3), until)
        self.must_get_on(*self.running)

    def rest(self, seconds: float, until: float) -> None:
        end = min(time.monotonic() + seconds, until)
        while time.monotonic() < end and all(each.popen.poll() is None for each in self.running):
            threading.Event().wait(0.05)

    def check(self) -> None:
        """Compare the file with the records."""
        from ZODB.DB import DB
        from ZODB.FileStorage import FileStorage

        database = DB(FileStorage(self.path, blob_dir=f"{self.path}.blobs"))
        connection = database.open()
        root = connection.root()
        counted: Counter[int] = Counter()
        for name in root["done"]:
            counted.update(root["done"][name].values())
        for pair, (left, right) in enumerate(root["pairs"]):
            if not left["value"] == right["value"] == counted[pair]:
                self.wrong.append(
                    f"the pair {pair} is {left['value']} and {right['value']} after "
                    f"{counted[pair]} commits"
                )
        for name, hoards in root["hoards"].items():
            for number, things in hoards.items():
                self.numbers["hoards in the file"] += 1
                try:
                    look_at_hoard(name, number, things)
                # What is not there cannot be loaded.
                except (Wrong, KeyError) as error:
                    self.wrong.append(f"{type(error).__name__}: {error}")
        for path in sorted(self.folder.glob("*.record")):
            said: dict[str, set[int]] = {
                key: set() for key in ("begun", "done", "refused", "doubt")
            }
            for line in path.read_text().splitlines():
                word, number = line.split()
                said[word].add(int(number))
            stored = set(root["done"].get(path.stem, ()))
            self.numbers["commits begun"] += len(said["begun"])
            self.numbers["commits in the records"] += len(said["done"])
            self.numbers["commits refused"] += len(said["refused"])
            self.numbers["commits in doubt"] += len(said["doubt"])
            self.numbers["commits in doubt that took place"] += len(said["doubt"] & stored)
            if lost := said["done"] - stored:
                self.wrong.append(f"{path.stem}: acknowledged and lost: {sorted(lost)[:10]}")
            if extra := stored & said["refused"]:
                self.wrong.append(f"{path.stem}: refused and stored: {sorted(extra)[:10]}")
            if extra := stored - said["begun"]:
                self.wrong.append(f"{path.stem}: never begun: {sorted(extra)[:10]}")
        for key, blob in root["blobs"].items():
            self.numbers["blobs"] += 1
            with blob.open() as file:
                if file.read().decode() != key.partition(" ")[2]:
                    self.wrong.append(f"the blob {key} is not what was stored")
        self.numbers["commits in the file"] += sum(counted.values())
        connection.close()
        database.close()


def main(arguments: list[str] | None = None) -> int:
    """Run it as the command line says."""
    if arguments is None:
        arguments = sys.argv[1:]
    if arguments[:1] == ["--work"]:
        path, name, *fault = arguments[1:]
        return work(path, name, fault[0] if fault else None)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--patience", type=float, default=PATIENCE_SECONDS)
    parser.add_argument("--fault", choices=sorted(FAULTS))
    given = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="perdure-soak-"))
    soak = Soak(
        folder,
        given.processes,
        given.kills,
        given.minutes * 60,
        given.seed,
        given.fault,
        given.patience,
    )
    try:
        soak.run()
    finally:
        for process in soak.running:
            process.popen.kill()
            process.popen.wait()
    print(f"seed {given.seed}, {given.processes} processes, {soak.started} started")
    for what, number in sorted(soak.numbers.items()):
        print(f"{number:8} {what}")
    for line in soak.wrong:
        print(f"wrong: {line}")
    if soak.wrong:
        print(f"failed with --seed {given.seed}; the logs and records are in {folder}")
        return 1
    shutil.rmtree(folder)
    print("nothing was wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
