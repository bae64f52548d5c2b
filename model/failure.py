"""What is left of an exception once it is stored: texts, and no live object."""

from __future__ import annotations

import importlib
import linecache
import re
import textwrap
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from operator import attrgetter
from types import FrameType
from typing import Any, Literal, NoReturn, final

from perdure.model.errors import FailureError, UnknownSettingError
from perdure.model.saferepr import MASK, SECRET_NAMES, looks_secret, safe_repr, survive

__all__ = ["Detail", "Failure", "FailureLimits", "Frame"]

Detail = Literal["brief", "default", "verbose"]

_DETAILS = ("brief", "default", "verbose")
_FORMAT = 1
_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureLimits:
    """How much of an exception a `Failure` keeps.

    :param repr_characters: the longest text for one local, 1 or more.
    :param locals_per_frame: how many locals of a frame, 0 or more.
    :param first_frames: of a longer traceback, so many outermost frames, 0 or more.
    :param last_frames: and so many innermost ones, 0 or more.
    :param exceptions: how many exceptions (itself, causes, contexts, parts of groups) are
        kept in all, 1 or more.
    :param message_characters: the longest message, 1 or more; longer texts among an
        exception's arguments are not kept at all.
    :param secret_names: parts of names whose values are masked, see
        `perdure.model.saferepr.SECRET_NAMES`.
    :raises UnknownSettingError: if a number is too small.
    """

    repr_characters: int = 200
    locals_per_frame: int = 50
    first_frames: int = 20
    last_frames: int = 80
    exceptions: int = 20
    message_characters: int = 10_000
    secret_names: tuple[str, ...] = SECRET_NAMES

    def __post_init__(self) -> None:
        for name, least in (
            ("repr_characters", 1),
            ("locals_per_frame", 0),
            ("first_frames", 0),
            ("last_frames", 0),
            ("exceptions", 1),
            ("message_characters", 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UnknownSettingError(
                    f"{name} is {value!r}, but has to be a whole number of {least} or more"
                )
        names = self.secret_names
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise UnknownSettingError(f"secret_names is {names!r}, but has to be a tuple of texts")


_DEFAULT_LIMITS = FailureLimits()


@final
@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a traceback.

    :param file: name of the source file.
    :param line: number of the line, from 1; 0 if unknown.
    :param function: name of the function.
    :param source: that line of the file without the space around it; empty if unknown.
    :param locals: names and the texts of their values; empty for the frame of a module,
        whose locals are its globals.
    :param locals_left_out: how many more locals there were.
    """

    file: str
    line: int
    function: str
    source: str
    locals: tuple[tuple[str, str], ...] = ()
    locals_left_out: int = 0

    def _lines(self, detail: Detail) -> Iterator[str]:
        if detail == "brief":
            yield f"{self.file}:{self.line}:{self.function}"
            return
        yield f'  File "{self.file}", line {self.line}, in {self.function}'
        if self.source:
            yield f"    {self.source}"
        if detail == "verbose":
            for name, text in self.locals:
                yield f"      {name} = {text}"
            if self.locals_left_out:
                yield f"      ({self.locals_left_out} more)"


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=>)")


@final
@dataclass(frozen=True, init=False, repr=False)
class Failure:
    """An exception as it is stored: its type, message, frames and causes, as texts.

    Immutable; equal if all its texts are; small when pickled. It is no exception itself and
    cannot be raised: see `raise_exception`.

    :param exception: the exception; it need not have been raised.
    :param limits: how much of it to keep.
    :raises KeyboardInterrupt: if that comes while the texts are made; a `repr` that raises
        anything of its own is survived.

    Everything here may be used from any thread; nothing touches the transaction. Making one
    calls the reprs of the locals; those of stored objects are not called, because they
    might load something after the end of the transaction they belong to.

    Attributes: `mro` (see `check`; ``module:qualname`` each), `message`, `notes`, `args` (the
    exception's arguments if all are plain, else None), `frames` (outermost first, `Frame`
    each), `frames_before_gap` and `frames_left_out` (of a very long traceback, how many
    frames stand before the gap and how many it left out), `cause` and `context` (a `Failure`
    or None), `suppress_context` (raised ``from`` something, or from None), `parts` (of an
    exception group) and `chain_cut` (causes or parts beyond the limit were left out).
    """

    # What is stored lists these in this order: with any change comes a new _FORMAT, and
    # __setstate__ goes on to read the old one.
    mro: tuple[str, ...]
    message: str
    notes: tuple[str, ...]
    # No part of equality: the message tells them, and a NaN is not equal to itself.
    args: tuple[Any, ...] | None = field(compare=False)
    frames: tuple[Frame, ...]
    frames_before_gap: int
    frames_left_out: int
    cause: Failure | None
    context: Failure | None
    suppress_context: bool
    parts: tuple[Failure, ...]
    chain_cut: bool

    def __init__(self, exception: BaseException, limits: FailureLimits = _DEFAULT_LIMITS) -> None:
        if not isinstance(exception, BaseException):
            raise TypeError(f"a Failure is made from an exception, not from {exception!r}")
        if not isinstance(limits, FailureLimits):
            raise TypeError(f"limits are FailureLimits, not {limits!r}")
        _Maker(limits).fill(self, exception)

    @classmethod
    def from_exception(
        cls, exception: BaseException, limits: FailureLimits = _DEFAULT_LIMITS
    ) -> Failure:
        """Return ``Failure(exception, limits)``; see there."""
        return cls(exception, limits)

    @property
    def type_name(self) -> str:
        """The exception's type, qualified: ``builtins.ValueError``, ``shop.orders.Sold``."""
        return _dotted(self.mro[0])

    def __str__(self) -> str:
        """Return ``module.Type: message``; as in a traceback, without ``builtins.``."""
        name = _shown(self.mro[0])
        return f"{name}: {self.message}" if self.message else name

    def __repr__(self) -> str:
        return f"<Failure {safe_repr(_Bare(str(self)))}>"

    def traceback(self, detail: Detail = "default") -> str:
        """Return the traceback as a text, without a newline at its end.

        :param detail: ``"default"`` is much like Python's own; ``"brief"`` has a short line
            for each frame; ``"verbose"`` adds the locals.
        :raises ValueError: for another `detail`.
        """
        if detail not in _DETAILS:
            raise ValueError(f"detail is {detail!r}, but has to be one of {', '.join(_DETAILS)}")
        return "\n".join(self._lines(detail))

    def check(self, *types: type[BaseException] | str) -> type[BaseException] | str | None:
        """Return the first of `types` that the exception was an instance of, or None.

        Base classes match, as in an ``except`` clause. Nothing is imported.

        :param types: exception types, or their names: ``"module.Type"``, ``"module:Type"``, a
            bare ``"Type"`` for a built-in one.
        :raises TypeError: for anything else.
        """
        names = {_dotted(name) for name in self.mro}
        for wanted in types:
            if _wanted_name(wanted) in names:
                return wanted
        return None

    def trap(self, *types: type[BaseException] | str) -> type[BaseException] | str:
        """Return what `check` returns, or raise the exception again if nothing matches.

        :param types: as for `check`.
        :raises TypeError: as `check`.
        :raises Exception: as `raise_exception`.
        """
        found = self.check(*types)
        if found is None:
            self.raise_exception()
        return found

    def raise_exception(self) -> NoReturn:
        """Raise the exception again, with the stored traceback as a note on it.

        :raises Exception: an exception of the stored type with the stored arguments.
        :raises FailureError: if its type cannot be imported (which is tried), or its arguments
            were not stored or do not fit, or it is no `Exception`: a stored
            `SystemExit` shall not end the process of whoever looks at it.
        """
        error = self._created_again() or FailureError(self)
        error.add_note(f"The traceback that was stored:\n{self.traceback()}")
        raise error

    def _created_again(self) -> Exception | None:
        if self.args is None:
            return None
        module_name, _, qualname = self.mro[0].partition(":")
        try:
            kind = attrgetter(qualname)(importlib.import_module(module_name))
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                return None
            return kind(*self.args)
        # Somebody's module and somebody's constructor: they may do anything, and whoever
        # asked wants this failure and not theirs.
        except (Exception, SystemExit):
            return None

    def _lines(self, detail: Detail) -> Iterator[str]:
        for earlier, link in ((self.cause, _CAUSE), (self.context, _CONTEXT)):
            if earlier is not None:
                yield from earlier._lines(detail)
                yield from ("", link, "")
        if self.frames and detail != "brief":
            yield "Traceback (most recent call last):"
        for index, frame in enumerate(self.frames):
            if index == self.frames_before_gap:
                yield from self._gap()
            yield from frame._lines(detail)
        if self.frames_before_gap >= len(self.frames):
            yield from self._gap()
        name = _shown(self.mro[0])
        yield f"{name}: {self.message}" if self.message else name
        yield from self.notes
        for number, part in enumerate(self.parts, 1):
            yield f"  +---------------- {number} ----------------"
            yield from (textwrap.indent(line, "  | ") for line in part._lines(detail))
        if self.parts:
            yield "  +------------------------------------"
        if self.chain_cut:
            yield "(further exceptions left out)"

    def _gap(self) -> Iterator[str]:
        if self.frames_left_out:
            yield f"  ({self.frames_left_out} frames left out)"

    def __getstate__(self) -> tuple[Any, ...]:
        frames = tuple(
            (f.file, f.line, f.function, f.source, f.locals, f.locals_left_out)
            for f in self.frames
        )
        values = (getattr(self, each.name) for each in fields(self) if each.name != "frames")
        return (_FORMAT, frames, *values)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        form, frames, *values = state
        if form != _FORMAT:
            raise ValueError(
                f"a stored failure has format {form!r}, and this Perdure knows {_FORMAT}: it was "
                "stored by a newer one, use that"
            )
        names = (each.name for each in fields(self) if each.name != "frames")
        _fill(
            self, frames=tuple(Frame(*f) for f in frames), **dict(zip(names, values, strict=True))
        )


def _fill(failure: Failure, **values: Any) -> None:
    if hasattr(failure, "mro"):
        raise AttributeError("a Failure cannot be changed")
    for name, value in values.items():
        object.__setattr__(failure, name, value)


class _Bare:
    """A text whose repr is itself, so that it can be cut like one."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class _Maker:
    """Makes one failure with all that it is chained to."""

    def __init__(self, limits: FailureLimits) -> None:
        self._limits = limits
        # By id: exceptions may be equal to each other, or not hashable. All are alive
        # meanwhile, since the first one holds the others.
        self._seen: set[int] = set()
        self._checked_files: set[str] = set()

    def fill(self, failure: Failure, error: BaseException) -> None:
        self._seen.add(id(error))
        frames, left_out = self._frames(error)
        # As for a traceback: a cause hides the context, and so does `from None`.
        hidden = error.__suppress_context__ or error.__cause__ is not None
        cause, cause_cut = self._chained(error.__cause__)
        context, context_cut = self._chained(None if hidden else error.__context__)
        parts: list[Failure] = []
        parts_cut = False
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                part, cut = self._chained(each)
                parts_cut = parts_cut or cut
                if part is not None:
                    parts.append(part)
        _fill(
            failure,
            mro=tuple(_reference(kind) for kind in type(error).__mro__ if kind is not object),
            message=_cut(
                survive(lambda: str(error), lambda e: f"<its str raised {type(e).__name__}>"),
                self._limits.message_characters,
            ),
            notes=_notes(error),
            args=_plain_args(error, self._limits.message_characters),
            frames=frames,
            frames_before_gap=self._limits.first_frames if left_out else len(frames),
            frames_left_out=left_out,
            cause=cause,
            context=context,
            suppress_context=bool(error.__suppress_context__),
            parts=tuple(parts),
            chain_cut=cause_cut or context_cut or parts_cut,
        )

    def _chained(self, error: BaseException | None) -> tuple[Failure | None, bool]:
        """Return the failure of a linked exception, and whether the limit left it out."""
        if error is None or id(error) in self._seen:
            return None, False
        if len(self._seen) >= self._limits.exceptions:
            return None, True
        failure = object.__new__(Failure)
        self.fill(failure, error)
        return failure, False

    def _frames(self, error: BaseException) -> tuple[tuple[Frame, ...], int]:
        entries = list(traceback.walk_tb(error.__traceback__))
        first, last = self._limits.first_frames, self._limits.last_frames
        left_out = max(0, len(entries) - first - last)
        if left_out:
            entries[first : first + left_out] = []
        return tuple(self._frame(frame, line) for frame, line in entries), left_out

    # walk_tb's line is None where the compiler left none; typeshed says int.
    def _frame(self, frame: FrameType, line: int | None) -> Frame:
        names = () if frame.f_locals is frame.f_globals else tuple(frame.f_locals.items())
        # A comprehension calls its argument `.0`.
        values = [(name, value) for name, value in names if not name.startswith(".")]
        most = self._limits.locals_per_frame
        code = frame.f_code
        return Frame(
            code.co_filename,
            line or 0,
            code.co_name,
            self._source(frame, line or 0),
            tuple((name, self._local(name, value)) for name, value in values[:most]),
            max(0, len(values) - most),
        )

    def _local(self, name: str, value: object) -> str:
        limits = self._limits
        if looks_secret(name, limits.secret_names):
            return MASK
        # Where an object lay in memory says nothing to whoever reads this.
        return _ADDRESS.sub("", safe_repr(value, limits.repr_characters, limits.secret_names))

    def _source(self, frame: FrameType, line: int) -> str:
        file = frame.f_code.co_filename

        def read() -> str:
            if file not in self._checked_files:
                self._checked_files.add(file)
                linecache.lazycache(file, frame.f_globals)
                linecache.checkcache(file)
            return linecache.getline(file, line).strip()

        # A loader's get_source is somebody's code too.
        return survive(read, lambda _: "")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(0, limit - 1)] + "…"


def _plain_args(error: BaseException, limit: int) -> tuple[Any, ...] | None:
    """Return the exception's arguments if they are plain values, none of them long."""
    args = error.args
    if isinstance(error, OSError) and type(error).__reduce__ is OSError.__reduce__:
        # Its args lack the name of the file.
        args = error.__reduce__()[1]  # type: ignore[assignment]
    return args if type(args) is tuple and _is_plain(args, 4, limit) else None


def _is_plain(value: object, levels: int, limit: int) -> bool:
    # By exact type: a subclass would have to be imported to be loaded again.
    if type(value) is tuple:
        return levels > 0 and all(_is_plain(item, levels - 1, limit) for item in value)
    if type(value) in (str, bytes):
        return len(value) <= limit  # type: ignore[arg-type]
    return value is None or type(value) in (int, float, bool)


def _notes(error: BaseException) -> tuple[str, ...]:
    notes = getattr(error, "__notes__", ())
    if type(notes) not in (list, tuple):
        return ()
    return tuple(note for note in notes if type(note) is str)


def _reference(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _dotted(reference: str) -> str:
    return reference.replace(":", ".")


def _shown(reference: str) -> str:
    module, _, qualname = reference.partition(":")
    return qualname if module in ("builtins", "__main__") else f"{module}.{qualname}"


def _wanted_name(wanted: object) -> str:
    if isinstance(wanted, str):
        name = _dotted(wanted)
        return name if "." in name else f"builtins.{name}"
    if isinstance(wanted, type) and issubclass(wanted, BaseException):
        return _dotted(_reference(wanted))
    raise TypeError(f"{wanted!r} is neither an exception type nor the name of one")
