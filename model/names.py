"""Callables by name: from an object to ``module:qualname`` and back."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

from persistent import Persistent

from perdure.model.errors import CallableNotFoundError, NotStorableError, StopRequested

__all__ = ["NOT_OF_THE_CODE", "name_of", "resolve"]

NOT_OF_THE_CODE = (KeyboardInterrupt, StopRequested)
"""What code that is imported or loaded may raise that is no fault of its own."""


def name_of(thing: object) -> str:
    """Return the name under which `thing` is stored, ``module:qualname``.

    `thing` is a module-level function, a built-in, a class, or a class's static or
    class method. Raises `NotStorableError` for what that name does not lead back to.
    """
    module = getattr(thing, "__module__", None)
    qualname = getattr(thing, "__qualname__", None)
    # Most are this, and need none of what follows.
    if type(thing) is FunctionType and isinstance(module, str) and module != "__main__":
        namespace = getattr(sys.modules.get(module), "__dict__", {})
        if namespace.get(qualname) is thing and module != _real_name(sys.modules.get("__main__")):
            return f"{module}:{qualname}"
    if inspect.isbuiltin(thing):
        owner = thing.__self__
        if isinstance(owner, type):
            module, qualname = owner.__module__, f"{owner.__qualname__}.{thing.__name__}"
        elif inspect.ismodule(owner):
            module = module or owner.__name__
        elif owner is not None:
            raise NotStorableError(
                f"{thing!r} belongs to an object that is not stored by name: "
                "give a module-level function that does the same"
            )
    elif inspect.ismethoddescriptor(thing) and hasattr(thing, "__objclass__"):
        module = thing.__objclass__.__module__
    elif inspect.ismethod(thing) and isinstance(thing.__self__, type):
        owner = thing.__self__
        module, qualname = owner.__module__, f"{owner.__qualname__}.{thing.__name__}"
    if not isinstance(module, str) or not isinstance(qualname, str):
        raise NotStorableError(
            f"{thing!r} has no name that it could be found by: give a module-level "
            "function, a class, or a method of a persistent object"
        )
    if "<" in qualname:
        raise NotStorableError(
            f"{module}:{qualname} is a lambda or lies inside a function, so no other "
            "process could find it: move it to the top of its module"
        )
    name = f"{_stored_module(module, qualname)}:{qualname}"
    try:
        found = resolve(name)
    except CallableNotFoundError as error:
        raise NotStorableError(
            f"{thing!r} cannot be found again by its name: {error}; give what the name stands for"
        ) from error
    if found != thing:
        raise NotStorableError(
            f"{name} is now {found!r} instead of {thing!r}, so another process would "
            "call something else: give it a name of its own"
        )
    return name


def resolve(name: str) -> Any:
    """Return what ``module:qualname`` stands for in this process; imports the module.

    Raises `CallableNotFoundError` where it stands for nothing, or where importing it
    raises anything but `KeyboardInterrupt` and `StopRequested`.
    """
    module_name, _, qualname = name.rpartition(":")
    try:
        found: Any = _module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (CallableNotFoundError, *NOT_OF_THE_CODE):
        raise
    # Importing runs the application's code, which may raise anything, and call sys.exit.
    except BaseException as error:
        raise CallableNotFoundError(name, f"{type(error).__name__}: {error}") from error
    return found


def split_callable(
    target: Any,
) -> tuple[str | tuple[Persistent, str], tuple[Any, ...], dict[str, Any]]:
    """Take `target` apart into what is stored of it, and arguments bound to it.

    The first is a name, or a persistent object and the name of its method. Raises
    `NotStorableError` with the remedy.
    """
    if isinstance(target, functools.partial):
        stored, args, keywords = split_callable(target.func)
        return stored, (*args, *target.args), {**keywords, **target.keywords}
    if not callable(target):
        raise NotStorableError(f"{target!r} cannot be called: give a function")
    method = target if inspect.ismethod(target) else None
    if method is not None and isinstance(method.__self__, Persistent):
        check_class(type(method.__self__))
        if getattr(method.__self__, method.__name__, None) != method:
            raise NotStorableError(
                f"{target!r} is not what its object has under the name {method.__name__!r}, so "
                "another process would call something else: give it a name of its own"
            )
        return (method.__self__, method.__name__), (), {}
    if isinstance(target, Persistent):
        check_class(type(target))
        return (target, "__call__"), (), {}
    if method is not None and not isinstance(method.__self__, type):
        raise NotStorableError(
            f"{target!r} is a method of a {type(method.__self__).__qualname__}, which is "
            "not persistent: derive that class from persistent.Persistent, or give a function"
        )
    return name_of(target), (), {}


def check_class(kind: type) -> None:
    """Raise `NotStorableError` for a class of persistent objects that cannot be found again."""
    if "<" in kind.__qualname__:
        raise NotStorableError(
            f"the class {kind.__module__}:{kind.__qualname__} lies inside a function, so no "
            "other process could find it: move it to the top of its module"
        )


def callable_of(stored: str | tuple[Persistent, str]) -> Callable[..., Any]:
    """Return the callable that `split_callable` stored.

    Raises `CallableNotFoundError` where the name, the object's class or its method is
    not to be had in this process.
    """
    if isinstance(stored, str):
        return cast(Callable[..., Any], resolve(stored))
    target, method = stored
    try:
        return cast(Callable[..., Any], getattr(target, method))
    except AttributeError as error:
        kind = type(target)
        raise CallableNotFoundError(
            f"{kind.__module__}:{kind.__qualname__}.{method}", str(error)
        ) from error


def _module(name: str) -> Any:
    main = sys.modules.get("__main__")
    if _real_name(main) == name:
        return main
    if not name.endswith(".py") and os.sep not in name:
        return importlib.import_module(name)
    path = getattr(main, "__file__", None)
    if path is not None and os.path.abspath(path) == name:
        return main
    raise CallableNotFoundError(
        name, "a function of a script resolves only in a process that runs that script"
    )


def _stored_module(module: str, qualname: str) -> str:
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    real_name = _real_name(main)
    if real_name is not None:
        return real_name
    path = getattr(main, "__file__", None)
    if path is None or path.startswith("<"):
        raise NotStorableError(
            f"{qualname} was defined at an interactive prompt, where no other process "
            "can find it: put it into a module"
        )
    script: str = os.path.abspath(path)
    _warn_of_script(script)
    return script


def _real_name(main: Any) -> str | None:
    """Return the name that the main module is imported by, if it was run with ``-m``."""
    spec = getattr(main, "__spec__", None)
    # A folder or an archive that is run has a spec, and no name.
    return None if spec is None or spec.name == "__main__" else str(spec.name)


@functools.cache
def _warn_of_script(path: str) -> None:
    """Warn, once for each script in a process."""
    warnings.warn(
        f"jobs of functions defined in the script {path} are found only by processes that "
        "run that script: put the functions into a module, or run the script with "
        "'python -m'",
        stacklevel=2,
    )
