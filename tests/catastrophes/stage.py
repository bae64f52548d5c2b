"""A ZEO server, worker processes, and the relays between them, in a folder of their own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import ZODB
from ZEO.ClientStorage import ClientStorage

from catastrophes.children import LIMIT_SECONDS, Child
from catastrophes.relays import Relays

__all__ = ["FOLDER", "Place", "Stage"]

FOLDER = "PERDURE_CATASTROPHES_FOLDER"
"""Names the folder in which jobs write their lines, in the environment of the workers."""

SECOND = timedelta(seconds=1)

INTERVALS = {
    "poll_interval": 0.5 * SECOND,
    "ping_interval": SECOND,
    "ping_death_interval": 4 * SECOND,
}


class Place:
    """Where a worker lives: its name, identity file, relay; and the process that is there now."""

    def __init__(self, stage: Stage, name: str, settings: Mapping[str, Any]) -> None:
        self._stage = stage
        self.name = name
        self.relay = str(stage.sockets / name)
        self._settings = settings
        self.identity = stage.folder / f"{name}.uuid"
        self.log = stage.folder / f"{name}.log"
        stage.relays.add(self.relay)
        self.child: Child | None = None

    @property
    def running(self) -> bool:
        return self.child is not None and not self.child.ended

    def start(self, on_end: Callable[[Child], None] = lambda child: None) -> Child:
        """Start a process here; it says ``ready`` when its system runs."""
        if self.child is not None:
            self.child.close()
        uri = f"zeo://{self.relay}?wait_timeout=30"
        settings = {"uri": uri, "place": self.name, **self._settings}
        environ = {"PERDURE_UUID": str(self.identity), FOLDER: str(self._stage.folder)}
        self.child = Child(
            "catastrophes.worker", [json.dumps(settings)], self.log, environ, on_end
        )
        return self.child


class Stage:
    """Makes and ends all of it; ended by `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "data.fs"
        # The path of a socket must be short.
        self.sockets = Path(tempfile.mkdtemp(prefix="perdure-"))
        self._socket = str(self.sockets / "server")
        self.relays = Relays(self._socket)
        self.places: list[Place] = []
        self.server: Child | None = None
        self._databases: list[ZODB.DB] = []

    def start_server(
        self, *options: str, before: tuple[str, str] | None = None, ready: bool = True
    ) -> Child:
        """Start the server, and return when it listens, or at once where it is not to be `ready`.

        `before`: a method of its storage, and the trouble that there is to be.
        """
        if self.server is not None:
            self.server.close()
        first = [] if before is None else ["--before", *before]
        self.server = Child(
            "catastrophes.serve",
            [*first, "-a", self._socket, "-f", str(self.file), *options],
            self.folder / "server.log",
        )
        if ready:
            assert self.server.line("ready") == "ready", "the server does not start: see its log"
        return self.server

    def place(self, name: str | None = None, *, size: int = 3, **settings: Any) -> Place:
        """Make a place for a worker; durations are timedeltas."""
        given = {**INTERVALS, **settings}
        plain = {
            key: value.total_seconds() if isinstance(value, timedelta) else value
            for key, value in given.items()
        }
        made = Place(self, name or f"worker-{len(self.places) + 1}", {"size": size, **plain})
        self.places.append(made)
        return made

    def database(self, relay: str | None = None) -> ZODB.DB:
        """Open the database in this process, through a relay of that name, if given."""
        address = self._socket
        if relay is not None:
            address = str(self.sockets / relay)
            self.relays.add(address)
        made = ZODB.DB(ClientStorage(address, wait_timeout=LIMIT_SECONDS))
        self._databases.append(made)
        return made

    def disk_is_full(self, room_bytes: int = 0) -> None:
        """Let the server's file grow by so much, and no more."""
        assert self.server is not None
        self.server.limit_file_size(os.path.getsize(self.file) + room_bytes)

    def disk_has_room(self) -> None:
        """Let the server's file grow again."""
        assert self.server is not None
        self.server.limit_file_size(None)

    def end(self) -> None:
        """Kill the server, and let every database of this process be closed.

        What is on the disk has to be right then, too.
        """
        for database in self._databases:
            database.close()
        self._databases = []
        if self.server is not None:
            self.server.kill()

    def close(self) -> None:
        """End every process, and let go of everything but the folder."""
        for place in self.places:
            if place.child is not None:
                place.child.close()
        # A commit that waits for the server ends with it.
        if self.server is not None:
            self.server.close()
        for database in self._databases:
            database.close()
        self.relays.close()
        shutil.rmtree(self.sockets, ignore_errors=True)
