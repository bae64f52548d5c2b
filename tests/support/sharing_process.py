"""A process of its own that shares a file: does what the lines of its input say, and answers.

``open PATH [WAIT_SECONDS]`` answers ``owner`` or ``client``; ``add NUMBER`` adds one so often to
both counters, each time in a transaction, and answers ``added DONE DOUBTFUL``; ``read`` answers
the counters; ``owner`` answers ``yes`` or ``no``; ``store``, ``vote`` and ``finish`` go through a
commit that changes nothing; ``commit`` commits something, if need be after conflicts; ``fork``
makes a child that lives until it is killed, and answers its number and what a load raised in it;
``close`` closes. What raises is answered by the error's type and text.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from typing import Any

import transaction
from persistent.mapping import PersistentMapping
from transaction.interfaces import TransientError
from ZEO.Exceptions import ClientDisconnected
from ZODB.Connection import TransactionMetaData
from ZODB.utils import z64

from perdure.storage import open_database


class Commands:
    database: Any = None
    meta: Any = None

    def open(self, path: str, wait: str = "30") -> str:
        self.database = open_database(path, wait=timedelta(seconds=float(wait)))
        self.manager = transaction.TransactionManager()
        self.connection = self.database.open(transaction_manager=self.manager)
        return "owner" if self.database.storage.is_owner() else "client"

    def owner(self) -> str:
        return "yes" if self.database.storage.is_owner() else "no"

    def prepare(self) -> str:
        self.manager.begin()
        self.connection.root().update(left=PersistentMapping(n=0), right=PersistentMapping(n=0))
        self.manager.commit()
        return "prepared"

    def add(self, number: str) -> str:
        done = doubt = 0
        while done < int(number):
            committing = False
            try:
                self.manager.begin()
                root = self.connection.root()
                if root["left"]["n"] != root["right"]["n"]:
                    return f"differ {root['left']['n']} {root['right']['n']}"
                root["left"]["n"] += 1
                root["right"]["n"] += 1
                committing = True
                self.manager.commit()
                done += 1
            except ClientDisconnected:
                doubt += committing
                self.manager.abort()
            except TransientError:
                self.manager.abort()
            if done == 1:
                say("adding")
        return f"added {done} {doubt}"

    def read(self) -> str:
        self.manager.begin()
        root = self.connection.root()
        return f"{root['left']['n']} {root['right']['n']}"

    def store(self) -> str:
        storage = self.database.storage
        self.meta = TransactionMetaData()
        data, serial = storage.load(z64)
        storage.tpc_begin(self.meta)
        storage.store(z64, serial, data, "", self.meta)
        return "stored"

    def vote(self) -> str:
        self.database.storage.tpc_vote(self.meta)
        return "voted"

    def finish(self) -> str:
        try:
            self.database.storage.tpc_finish(self.meta)
        finally:
            self.database.storage.tpc_abort(self.meta)
        return "finished"

    def commit(self) -> str:
        for attempt in self.manager.attempts(20):
            with attempt:
                self.connection.root()["by"] = os.getpid()
        return "committed"

    def fork(self) -> str:
        reading, writing = os.pipe()
        child = os.fork()
        if child:
            os.close(writing)
            return f"forked {child} {os.read(reading, 1000).decode()}"
        try:
            self.database.storage.load(z64)
            answer = "it can load"
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        self.database.storage.close()
        os.write(writing, answer.encode())
        for descriptor in (0, 1, writing):
            os.close(descriptor)
        while True:
            signal.pause()

    def close(self) -> str:
        self.connection.close()
        self.database.close()
        return "closed"


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    commands = Commands()
    while line := sys.stdin.readline():
        name, *arguments = line.rstrip("\n").split("\t")
        try:
            say(getattr(commands, name)(*arguments))
        except Exception as error:
            commands.database and commands.manager.abort()
            say(f"{type(error).__name__}: {error}")
