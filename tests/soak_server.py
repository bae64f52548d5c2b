"""A soak of the end of a ZEO server, whatever its clients are at.

    python -m tests.soak_server --minutes 10 --seed 1

Again and again it starts a server on a new file, and clients that commit and pack in loops; it
kills some, and suspends some, be it between vote and finish; then it sends the server SIGTERM or
SIGINT. Wrong is a server that has not ended after `--patience` seconds, that ends with another
status than 0, or that leaves half a transaction at the end of its file. It prints numbers; the
exit status is 1, and the seed is named, if anything was wrong. Where `py-spy` is installed it
says where a server hangs.

`--program ZEO.runzeo` tries ZEO's own server, of which it finds all of that.
"""

from __future__ import annotations

import argparse
import multiprocessing
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
from pathlib import Path
from typing import Any

import transaction
import ZODB
from persistent.mapping import PersistentMapping
from transaction.interfaces import TransientError
from ZEO.ClientStorage import ClientStorage
from ZODB.FileStorage import FileStorage
from ZODB.POSException import StorageError

CLIENTS = 4
SIZES = (10, 1_000, 100_000)
LIMIT_SECONDS = 60.0
#: From a fork, which is quick: this process has no threads.
fork = multiprocessing.get_context("fork")


# In each client


def commit_on(database: Any, name: str) -> None:
    """Commit until the server is gone."""
    manager = transaction.TransactionManager()
    connection = database.open(transaction_manager=manager)
    while True:
        try:
            text = "x" * random.choice(SIZES)
            connection.root()[name] = PersistentMapping({"text": text})
            manager.commit()
        except TransientError:
            manager.abort()


def suspend_in_commit(storage: Any, count: int) -> None:
    """Have this process suspended in the commit after so many, between vote and finish."""
    whole, left = storage.tpc_finish, iter(range(count))

    def finish(*args: Any, **settings: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGSTOP)
        return whole(*args, **settings)

    storage.tpc_finish = finish


def pack_on(storage: Any) -> None:
    """Pack until the server is gone."""
    while True:
        try:
            storage.pack(time.time(), wait=random.random() < 0.5)
        except StorageError:  # it packs already
            threading.Event().wait(0.01)


def client(address: str, seed: int, kind: str) -> None:
    """What a client does, until it is killed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    random.seed(seed)
    storage = ClientStorage(address, wait_timeout=LIMIT_SECONDS)
    database = ZODB.DB(storage)
    if kind == "suspended":
        suspend_in_commit(storage, random.randrange(30))
    for number in range(0 if kind == "packs" else 2):
        threading.Thread(
            target=commit_on, args=(database, f"{seed} {number}"), daemon=True
        ).start()
    if kind == "packs":
        pack_on(storage)
    if kind == "closes":
        threading.Event().wait(random.random() * 0.4)
        database.close()
        os._exit(0)
    threading.Event().wait()


# The driver


def wait_for_socket(address: str) -> None:
    until = time.monotonic() + LIMIT_SECONDS
    while not os.path.exists(address):
        if time.monotonic() > until:
            raise SystemExit("the server does not start")
        threading.Event().wait(0.01)


def end(server: subprocess.Popen[bytes], patience: float) -> str:
    """Send the signal; what was wrong with the end, or ''."""
    server.send_signal(random.choice((signal.SIGTERM, signal.SIGINT)))
    try:
        status = server.wait(patience)
    except subprocess.TimeoutExpired:
        spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if spy is not None:
            subprocess.run([spy, "dump", "--pid", str(server.pid)], check=False)
        server.kill()
        server.wait()
        return "did not end"
    return f"status {status}" if status else ""


def trial(folder: Path, program: str, seed: int, patience: float) -> list[str]:
    """Start everything, end the server; what was wrong."""
    random.seed(seed)
    address, file = str(folder / "socket"), folder / "data.fs"
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", program, "-a", address, "-f", str(file)], stderr=log
        )
    clients = []
    try:
        wait_for_socket(address)
        for number in range(CLIENTS):
            kind = random.choice(("commits", "commits", "suspended", "closes", "packs"))
            made = fork.Process(target=client, args=(address, seed * CLIENTS + number, kind))
            made.start()
            clients.append(made)
        threading.Event().wait(random.uniform(0.1, 0.5))
        for each in clients:
            trouble = random.choice((None, None, signal.SIGSTOP, signal.SIGKILL))
            if trouble is not None and each.pid is not None and each.is_alive():
                os.kill(each.pid, trouble)
        threading.Event().wait(random.choice((0, 0.02, 0.2)) * random.random())
        wrong = [end(server, patience)]
    finally:
        for each in clients:
            each.kill()
            each.join()
        if server.poll() is None:
            server.kill()
            server.wait()
    ZODB.DB(FileStorage(str(file))).close()
    if list(folder.glob("data.fs.tr*")):
        wrong.append("half a transaction")
    return [each for each in wrong if each]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patience", type=float, default=20.0, help="seconds")
    parser.add_argument("--program", default="perdure.server", help="the module to run")
    given = parser.parse_args()
    until = time.monotonic() + given.minutes * 60
    trials, found = 0, Counter[str]()
    while time.monotonic() < until:
        with tempfile.TemporaryDirectory(prefix="perdure-") as folder:
            found.update(
                trial(Path(folder), given.program, given.seed * 1_000_000 + trials, given.patience)
            )
        trials += 1
    print(f"{trials} servers ended, wrong: {dict(found) or 'nothing'}, seed {given.seed}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
