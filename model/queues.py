"""The queues of a database: making them, and finding one."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

import transaction
from persistent import Persistent

from perdure.model.aliases import Aliases
from perdure.model.environment import environment
from perdure.model.errors import NotInstalledError, QueueNotFoundError, UnknownSettingError
from perdure.model.given import checked_database, checked_name
from perdure.model.happenings import announce_queue
from perdure.model.queue import Queue

__all__ = ["ROOT_KEY", "Queues", "find_queues", "get_queue", "install"]

ROOT_KEY = "perdure"
"""Where the queues lie in the root of the database."""


class Queues(Persistent):
    """The queues of one database, by name; the one named ``""`` is the default."""

    aliases: Aliases | None = None
    packed: datetime.datetime | None = None
    """When `perdure.model.pack` packed the database last; aware, in UTC."""

    def __init__(self) -> None:
        self._queues: dict[str, Queue] = {}

    def add(self, name: str) -> Queue:
        """Make a queue; raises `UnknownSettingError` where the name is taken.

        Processes that work for all queues join it at their next poll.
        """
        if checked_name("a queue", name) in self._queues:
            raise UnknownSettingError(f"there is a queue {name!r} already")
        queue = self._queues[name] = Queue(name)
        self._p_changed = True
        if self._p_jar is not None:
            # Known to its database at once, and so to its clock.
            self._p_jar.add(queue)
        announce_queue(queue)
        return queue

    def remove(self, name: str) -> None:
        """Remove a queue; raises `ValueError` while jobs wait in it or are held by agents."""
        queue = self[name]
        held = sum(
            len(agent) for record in queue.dispatchers.records() for agent in record.agents()
        )
        if len(queue) or held:
            raise UnknownSettingError(
                f"{queue!r} has {len(queue)} waiting jobs, and agents hold {held}: deal with "
                "them first"
            )
        # A put that is under way fails at its commit.
        queue.inboxes.close()
        del self._queues[name]
        self._p_changed = True

    def __getitem__(self, name: str) -> Queue:
        if not isinstance(name, str):
            raise QueueNotFoundError(f"a queue is known by its name, a text, not by {name!r}")
        if name not in self._queues:
            near = difflib.get_close_matches(name, self._queues, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {sorted(self._queues)}"
            raise QueueNotFoundError(f"there is no queue {name!r}; {hint}")
        found = self._queues[name]
        if not isinstance(found, Queue):
            raise QueueNotFoundError(
                f"the queue {name!r} is a {type(found).__qualname__}, which this version of "
                "Perdure does not know: use the version that has stored it"
            )
        return found

    def get(self, name: str) -> Queue | None:
        """Return the queue of that name, or None."""
        known = isinstance(name, str) and isinstance(self._queues.get(name), Queue)
        return self._queues[name] if known else None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._queues

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(set(self._queues) - set(self.unknown())))

    def __len__(self) -> int:
        return len(self._queues) - len(self.unknown())

    def __bool__(self) -> bool:
        return True

    def unknown(self) -> list[str]:
        """Return the names of queues of classes that this version does not know.

        They are left alone; their names are taken.
        """
        return sorted(k for k, v in self._queues.items() if not isinstance(v, Queue))

    def values(self) -> list[Queue]:
        """Return the queues in the order of their names."""
        return [self._queues[name] for name in self]


def install(db_or_connection: Any, queues: Iterable[str] = ("",)) -> None:
    """Make sure that a database has queues of these names; changes nothing else.

    Given a `ZODB.DB`, it commits a transaction of its own, and tries again where another
    process does the same. Given a connection, it works in that one's transaction.
    """
    if isinstance(queues, str):
        raise TypeError(f"queues must be names, not the text {queues!r}")
    if not isinstance(queues, Iterable):
        raise TypeError(f"queues must be names, such as ['', 'mail'], not {queues!r}")
    names = tuple(checked_name("a queue", name) for name in queues)
    if hasattr(db_or_connection, "root") and hasattr(db_or_connection, "transaction_manager"):
        _install(db_or_connection, names)
        return
    manager = transaction.TransactionManager()
    connection = checked_database(db_or_connection).open(transaction_manager=manager)
    try:
        for attempt in manager.attempts(10):
            with attempt:
                _install(connection, names)
    finally:
        manager.abort()
        connection.close()


def _install(connection: Any, names: tuple[str, ...]) -> None:
    root = _root(connection)
    if ROOT_KEY not in root:
        root[ROOT_KEY] = Queues()
        connection.add(root[ROOT_KEY])
    found = find_queues(connection)
    for name in names:
        if name not in found:
            found.add(name)


def find_queues(connection_or_persistent: Any) -> Queues:
    """Return the queues of a connection's database.

    Raises `NotInstalledError` where it has none, or where something else lies there.
    """
    connection = getattr(connection_or_persistent, "_p_jar", None) or connection_or_persistent
    if not hasattr(connection, "root"):
        raise NotInstalledError(
            f"{connection_or_persistent!r} is neither a connection nor an object that is stored "
            "in a database"
        )
    found = _root(connection).get(ROOT_KEY)
    if found is None:
        raise NotInstalledError(
            "this database has no queues yet: call perdure.model.install(database) first"
        )
    if not isinstance(found, Queues):
        raise NotInstalledError(
            f"the root of this database has {found!r} under {ROOT_KEY!r}, where the queues go: "
            "use another database, or the program that has stored this"
        )
    if not isinstance(getattr(found, "_queues", None), dict):
        raise NotInstalledError(
            f"the queues under {ROOT_KEY!r} in the root of this database are in a form that this "
            "version of Perdure does not know: use the version that has stored them"
        )
    if found.aliases is not None:
        # For whoever has no transaction: `class_factory` is called while one loads.
        environment(connection.db()).aliases = found.aliases.names
    return found


def _root(connection: Any) -> Any:
    root = connection.root()
    if not hasattr(root, "get") or not hasattr(root, "__setitem__"):
        raise NotInstalledError(
            f"the root of this database is {root!r}, and no mapping, which could have queues: use "
            "another database"
        )
    return root


def get_queue(connection_or_persistent: Any, name: str = "") -> Queue:
    """Return a queue, given a connection or any object that is stored through one.

    Raises `NotInstalledError`, or `QueueNotFoundError` with the nearest name.
    """
    return find_queues(connection_or_persistent)[name]
