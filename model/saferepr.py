"""Text that stands for an object, made so that making it can do no harm.

It never loads an object from the database, is never long, survives objects whose own `repr`
raises, and masks what looks like a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from types import MethodType
from typing import Any

from persistent import Persistent

from perdure.model.errors import StopRequested

__all__ = ["SECRET_NAMES", "looks_secret", "safe_repr", "survive"]

SECRET_NAMES: tuple[str, ...] = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "api_key",
    "authorization",
    "cookie",
    "credential",
    "private_key",
    "access_key",
)
"""Parts of names whose values are masked; case, ``_`` and ``-`` make no difference."""

MASK = "***"
_CUT = "…"
_DEEPEST = 8

# The text of their own that these have is the plain one of their kind, so it can be made
# item by item, and stopped where there is no more room. Subclasses count if they inherit it.
_SEQUENCES: dict[Any, tuple[str, str, Callable[[Any], Iterator[Any]]]] = {
    list.__repr__: ("[", "]", list.__iter__),
    tuple.__repr__: ("(", ")", tuple.__iter__),
    set.__repr__: ("{", "}", set.__iter__),
    frozenset.__repr__: ("frozenset({", "})", frozenset.__iter__),
}


def looks_secret(name: str, secret_names: Iterable[str] = SECRET_NAMES) -> bool:
    """Return whether the value of something called `name` has to be masked.

    :param secret_names: parts of names, as in `SECRET_NAMES`.

    From any thread; does not touch the transaction.
    """
    plain = _plain(name)
    return any(_plain(part) in plain for part in secret_names)


def safe_repr(
    value: object, characters: int = 200, secret_names: tuple[str, ...] = SECRET_NAMES
) -> str:
    """Return a text like ``repr(value)`` that is safe to make and to keep.

    A persistent object that has been stored is shown by its class, oid and database alone,
    whatever its own `repr`: that might load it, or others.

    :param characters: the text is cut to so many, the last of them then being ``…``; 1 or more.
    :param secret_names: values in mappings, and after ``name=`` and ``name:`` in a text, are
        masked where the name contains one of these.
    :raises KeyboardInterrupt: as is, like `StopRequested`; else nothing.

    From any thread that may use the object; does not touch the transaction.
    """
    text = _Writer(secret_names).text(value, characters + 1, 0)
    masked = _masked(text, secret_names)
    if max(len(text), len(masked)) <= characters:
        return masked
    return masked[: characters - 1] + _CUT


def survive(make: Callable[[], str], instead: Callable[[BaseException], str]) -> str:
    """Return what `make` returns, or if it raises (or returns no text), what `instead` does.

    `SystemExit` and other strange things are survived too: they come from somebody's
    `__repr__` or `__str__`, which has no say in whether a thread ends. Not so what comes
    from outside and meets it by chance.

    :raises KeyboardInterrupt: as is, like `StopRequested`.

    From any thread; does what `make` does to the transaction.
    """
    try:
        text = make()
        # A subclass of str may have a behaviour, and a class that has to be imported.
        return text if type(text) is str else str.__str__(text)
    except (KeyboardInterrupt, StopRequested):
        raise
    except BaseException as error:
        return instead(error)


class _Writer:
    """Makes the text of one value; `room` is how many characters of it can be of use."""

    def __init__(self, secret_names: tuple[str, ...]) -> None:
        self._secret_names = secret_names

    def text(self, value: object, room: int, depth: int) -> str:
        return survive(
            lambda: self._text(value, room, depth),
            lambda error: f"<{_type_name(value)}: repr raised {type(error).__name__}>",
        )

    def _text(self, value: Any, room: int, depth: int) -> str:
        # type(value), never value.__class__: a proxy may answer that by loading.
        kind = type(value)
        if kind is str or kind is bytes or kind is bytearray:
            return repr(value[: max(room, 0)])
        if issubclass(kind, Persistent) and value._p_jar is not None:
            return _stored_text(value)
        if kind is MethodType:
            owner = self.text(value.__self__, room, depth + 1)
            return f"<bound method {value.__func__.__qualname__} of {owner}>"
        own: Any = kind.__repr__
        if own is dict.__repr__:
            return self._joined("{", "}", self._items(value, depth), room, depth)
        if own in _SEQUENCES:
            opening, closing, iterate = _SEQUENCES[own]
            if own is tuple.__repr__ and len(value) == 1:
                closing = ",)"
            if not value and own in (set.__repr__, frozenset.__repr__):
                return f"{kind.__name__}()"
            parts = (partial(self.text, part, depth=depth + 1) for part in iterate(value))
            return self._joined(opening, closing, parts, room, depth)
        # Some more than fits, because masking can make it shorter.
        return repr(value)[: 4 * max(room, 0)]

    def _items(self, mapping: Any, depth: int) -> Iterator[Callable[[int], str]]:
        for key, value in dict.items(mapping):
            yield partial(self._item, key, value, depth=depth)

    def _item(self, key: object, value: object, room: int, depth: int) -> str:
        key_text = self.text(key, room, depth + 1)
        if type(key) in (str, bytes) and looks_secret(key_text, self._secret_names):
            return f"{key_text}: {MASK}"
        return f"{key_text}: {self.text(value, room - len(key_text), depth + 1)}"

    def _joined(
        self,
        opening: str,
        closing: str,
        parts: Iterable[Callable[[int], str]],
        room: int,
        depth: int,
    ) -> str:
        if depth >= _DEEPEST:
            return opening + _CUT + closing
        text = opening
        for number, part in enumerate(parts):
            if len(text) >= room:
                return text + _CUT
            text += (", " if number else "") + part(room - len(text))
        return text + closing


def _stored_text(value: Any) -> str:
    oid = int.from_bytes(value._p_oid, "big")
    database = value._p_jar.db().database_name
    return f"<{_type_name(value)} oid {oid:#x} in {database!r}>"


def _type_name(value: object) -> str:
    kind = type(value)
    name = str(kind.__qualname__)
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _masked(text: str, secret_names: tuple[str, ...]) -> str:
    # The quick look first: the pattern is slow, and hardly ever needed.
    if not looks_secret(text, secret_names):
        return text
    return _pattern(secret_names).sub(rf"\1{MASK}", text)


@lru_cache(maxsize=16)
def _pattern(secret_names: tuple[str, ...]) -> re.Pattern[str]:
    """Find ``name=value`` and ``'name': value``; the value's end may have been cut off."""
    names = "|".join("[_-]?".join(map(re.escape, _plain(name))) for name in secret_names)
    return re.compile(
        rf"""((?:{names})[\w-]*\\?['"]?\s*[=:]\s*)
             (?: [bru]*'(?:\\.|[^'\\])*'?
               | [bru]*"(?:\\.|[^"\\])*"?
               | (?:(?:basic|bearer)\s+)?[^\s,;&)\]}}>'"]+ )""",
        re.IGNORECASE | re.VERBOSE,
    )
