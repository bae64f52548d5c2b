"""From names that people type to what they stand for, with the nearest one where there is none."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Iterable
from typing import Any

from perdure.cli.errors import CommandError, keeping_output_clean
from perdure.model.errors import NotStorableError
from perdure.model.names import NOT_OF_THE_CODE, split_callable
from perdure.model.saferepr import survive

__all__ = [
    "DEFAULT_QUEUE",
    "find_callable",
    "find_storable",
    "import_module",
    "nearest",
    "process_shown",
    "queue_name",
    "queue_shown",
    "queues_shown",
]

DEFAULT_QUEUE = "default"
_SHOWN = f"({DEFAULT_QUEUE})"
_LISTED = 5
# Another module than the application's must be very near, to be what was meant.
_VERY_NEAR = 0.8


def queue_name(text: str, queues: Iterable[str]) -> str:
    """Return the name of the queue that somebody calls `text`, of those in the database.

    ``default`` is the default queue, whose name is empty, unless a queue is really called
    so; ``:`` and ``(default)`` are the default queue in any case.
    """
    if text in ("", ":", _SHOWN):
        return ""
    return "" if text == DEFAULT_QUEUE and DEFAULT_QUEUE not in queues else text


def queue_shown(name: str | None) -> str:
    """Return a queue's name as people see it; None: ""."""
    return "" if name is None else name or _SHOWN


def queues_shown(names: Iterable[str]) -> str:
    """Return the names of queues in a line, in their order."""
    return ", ".join(queue_shown(name) for name in sorted(names))


def nearest(text: str, names: Iterable[str]) -> str:
    """Return a question whether the nearest of `names` was meant: text to append, or ""."""
    near = difflib.get_close_matches(text, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def process_shown(identity: object) -> str:
    """Return the beginning of a process's UUID, which tells those of one database apart."""
    return str(identity)[:8]


def find_callable(text: str) -> Any:
    """Return what ``MODULE:FUNCTION`` stands for; imports the module.

    Raises `CommandError` with the nearest name.
    """
    module_name, colon, qualname = text.partition(":")
    if not (module_name and colon and qualname):
        hint = ""
        if not colon and "." in text:
            hint = f"; did you mean {':'.join(text.rsplit('.', 1))}?"
        raise CommandError(f"{text!r} names no function: write MODULE:FUNCTION{hint}")
    found: Any = import_module(module_name)
    path = module_name + ":"
    for part in qualname.split("."):
        try:
            # A module may import what is asked of it.
            with keeping_output_clean():
                found = getattr(found, part)
        except AttributeError:
            raise CommandError(
                f"{path.rstrip(':.')} has no {part!r}{_near(found, part, path)}"
            ) from None
        path += f"{part}."
    # What it is instead is not shown: it may hold what nobody else should see.
    if not callable(found):
        raise CommandError(f"{text} cannot be called: give a function")
    return found


def find_storable(text: str) -> Any:
    """Return what ``MODULE:FUNCTION`` stands for, which a job can store.

    Raises `CommandError`, which calls it by the name that was typed: what it is may hold what
    nobody else should see.
    """
    found = find_callable(text)
    try:
        split_callable(found)
    except NotStorableError as error:
        shown = survive(lambda: repr(found), lambda error: "")
        told = str(error).replace(shown, text) if shown else ""
        raise CommandError(told or f"{text} cannot be stored: give a function") from error
    return found


def _near(owner: Any, name: str, path: str) -> str:
    names = [each for each in getattr(owner, "__dict__", ()) if not each.startswith("_")]
    callables = [each for each in names if callable(getattr(owner, each, None))]
    near = difflib.get_close_matches(name, callables, n=1)
    if near:
        return f"; did you mean {path}{near[0]}?"
    own = [each for each in callables if _defined_in(owner, each)]
    return f"; it has {', '.join(own[:_LISTED])}" if own else ""


def _defined_in(owner: Any, name: str) -> bool:
    module = getattr(owner, "__name__", None)
    return getattr(getattr(owner, name, None), "__module__", None) == module


def import_module(name: str) -> Any:
    """Return the module of that name.

    Raises `CommandError` where there is none, with the nearest name, or where importing it
    raises anything but Ctrl-C.
    """
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        stem = name.removesuffix(".py").replace("/", ".").strip(".")
        raise CommandError(
            f"{name!r} is no name of a module: write it as in an import, such as {stem or 'app'}"
        )
    try:
        with keeping_output_clean():
            return importlib.import_module(name)
    except NOT_OF_THE_CODE:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(missing + "."):
            raise CommandError(
                f"module {name!r} cannot be imported: it needs {missing!r}, which is not there"
            ) from error
        raise CommandError(
            f"there is no module {name!r}{_nearest_module(name)} (--app-dir names the folder of "
            "the application's modules)"
        ) from error
    # Importing runs the application's code, which may raise anything, and call sys.exit.
    except BaseException as error:
        raise CommandError(
            f"module {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _nearest_module(name: str) -> str:
    package, dot, last = name.rpartition(".")
    try:
        path = importlib.import_module(package).__path__ if dot else None
    # It is only for a hint.
    except Exception:
        return ""
    everywhere = [module.name for module in pkgutil.iter_modules(path)]
    here = everywhere if dot else [module.name for module in pkgutil.iter_modules(sys.path[:1])]
    near = difflib.get_close_matches(last, here, n=1)
    near = near or difflib.get_close_matches(last, everywhere, n=1, cutoff=_VERY_NEAR)
    return f"; did you mean {package}{dot}{near[0]}?" if near else ""
