"""Code that was moved: giving stored names a new meaning."""

from __future__ import annotations

from typing import Any

import ZODB.broken

from perdure.model.aliases import Aliases, translate
from perdure.model.environment import environment
from perdure.model.errors import CallableNotFoundError, UnknownSettingError
from perdure.model.names import NOT_OF_THE_CODE, resolve
from perdure.model.queues import find_queues

__all__ = ["aliases", "class_factory", "remove_alias", "set_alias"]

_OWN_MODULES = "perdure.model."

_own: dict[tuple[str, str], Any] = {}
"""The classes of Perdure's that were found: each record of a job names two of them."""


def set_alias(connection: Any, old: str, new: str) -> None:
    """Let the stored name `old` stand for `new` from now on, in all processes.

    :param connection: of the database, or any object stored in it; works in its transaction.
    :param old: ``module:qualname``, that of a class for all that it has, too; or a module alone,
        for everything in it and below it.
    :param new: a name of the same kind.

    Jobs that were parked under `old` are tried again. It holds for what jobs call, for retry
    policies, filters and choosers. For classes of objects in the database it holds where that
    was opened with `class_factory`, in processes that are started afterwards.

    Raises `UnknownSettingError` for what is no name, for a module and a callable mixed, and
    where names would stand for each other in a circle.
    """
    for name in (old, new):
        _check_name(name)
    if (":" in old) != (":" in new):
        raise UnknownSettingError(
            f"{old!r} and {new!r} are not of one kind: give module:qualname twice, or a module "
            "twice"
        )
    queues = find_queues(connection)
    table = {**aliases(connection), old: new}
    if translate(table, old) == old:
        raise UnknownSettingError(
            f"{old!r} cannot stand for {new!r}, which stands for {old!r} itself by the table: "
            "remove that alias first"
        )
    if queues.aliases is None:
        queues.aliases = Aliases()
    queues.aliases.add(old, new)
    for queue in queues.values():
        queue._wake_after_commit()


def remove_alias(connection: Any, old: str) -> None:
    """Let `old` stand for itself again; raises `UnknownSettingError` where there is no alias.

    Works in the connection's transaction.
    """
    table = find_queues(connection).aliases
    if table is None or old not in table.names:
        known = sorted(aliases(connection))
        raise UnknownSettingError(f"there is no alias {old!r}, only {known}")
    table.remove(old)


def aliases(connection: Any) -> dict[str, str]:
    """Return the aliases of a database, the new names by the old ones.

    `connection` is one of the database, or any object that is stored in it. Raises
    `NotInstalledError` where it has no queues.
    """
    table: Aliases | None = find_queues(connection).aliases
    return {} if table is None else dict(table.names)


def class_factory(connection: Any, module: str, name: str) -> Any:
    """Find the class of a stored object, by the aliases of its database.

    For ``ZODB.DB(storage, class_factory=class_factory)``; `perdure.actors.start` opens the
    databases that it is given as a URI with it. The aliases are those that the process knew
    when it began to work with the database. Called by ZODB in the thread of `connection`.
    """
    table = environment(connection.db()).aliases
    if not table and (module, name) in _own:
        return _own[module, name]
    if table:
        stored = f"{module}:{name}"
        current = translate(table, stored)
        if current != stored:
            try:
                return resolve(current)
            except CallableNotFoundError:
                # Broken under its old name, by which the table can be mended.
                pass
    try:
        found = ZODB.broken.find_global(module, name)
        # One that is not there is found as a broken class, and may be there later.
        if module.startswith(_OWN_MODULES) and not _is_broken(found):
            _own[module, name] = found
        return found
    except NOT_OF_THE_CODE:
        raise
    # A module may raise anything when it is imported; that must not make the records
    # unreadable that refer to an object of such a class.
    except BaseException:
        return _broken_class(module, name)


def _is_broken(found: object) -> bool:
    """Tell whether this stands for a class that is not there."""
    return isinstance(found, type) and issubclass(found, ZODB.broken.Broken)


def _broken_class(module: str, name: str) -> Any:
    """Return what `find_global` returns where a module does not exist."""
    known = ZODB.broken.broken_cache
    if (module, name) not in known:
        known[module, name] = type(name, (ZODB.broken.Broken,), {"__module__": module})
    return known[module, name]


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a name is a text such as 'shop.orders:send', not {name!r}")
    module, separator, qualname = name.partition(":")
    dotted = [module, qualname] if separator else [module]
    if not all(part.isidentifier() for each in dotted for part in each.split(".")):
        raise UnknownSettingError(
            f"{name!r} is no name: give module:qualname, such as 'shop.orders:send', or a module"
        )
