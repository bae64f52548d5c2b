"""What goes wrong is told in one line."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence

import click

__all__ = [
    "ERROR",
    "INTERRUPTED",
    "UNREAD",
    "CommandError",
    "UnreadError",
    "keeping_output_clean",
    "one_line",
    "run",
    "shown",
    "writing",
]

ERROR = 2
"""The exit status of a command that could not do its work."""

UNREAD = 1
"""The exit status where nobody reads the output, or it cannot be written."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""

_LAST_STREAM = 2


# One of click's, so that to import it costs no database.
class CommandError(click.ClickException):
    """A command cannot do what it was told; its text says why, and what to do."""


class UnreadError(Exception):
    """What a command printed could not be written; its text says why, and what was done.

    It is no `OSError`, which would be one of the database.
    """

    def __init__(self, text: str, *, silent: bool = False) -> None:
        super().__init__(text)
        self.silent = silent
        """Whether whoever read it has gone, which is no news to them."""


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Write to standard output meanwhile; raises `UnreadError` where that cannot be done."""
    if sys.stdout is None:
        raise UnreadError("the output could not be written: standard output is closed")
    try:
        yield
        # What is still to be written is written here, where it may fail.
        sys.stdout.flush()
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise UnreadError(
            f"the output could not be written: {reason}",
            silent=isinstance(error, BrokenPipeError),
        ) from error


def keeping_output_clean() -> contextlib.AbstractContextManager[object]:
    """Let what code of the application prints go to standard error.

    Standard output is the command's own, to be read by machines.
    """
    return contextlib.redirect_stdout(sys.stderr)


def shown(text: str) -> str:
    """Return `text` as it can be shown on any terminal: in one line, without control codes.

    A name of a file may hold anything, also bytes that are no text.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def one_line(error: BaseException) -> str:
    """Return what `error` says, in one line that can be printed anywhere."""
    if isinstance(error, click.ClickException):
        text = error.format_message()
    else:
        text = str(error) or type(error).__name__
    return shown(" ".join(text.split()))


def run(command: click.Command, args: Sequence[str] | None) -> int:
    """Run a click command and return its exit status; see `perdure.cli.main`."""
    words = list(sys.argv[1:] if args is None else args)
    _hold_descriptors_of_streams()
    _never_choke_on_a_character()
    try:
        result = command.main(args=words, prog_name="perdure", standalone_mode=False)
        if sys.stdout is not None:
            with writing():
                pass
    except (click.Abort, KeyboardInterrupt) as error:
        return _fail(one_line(error) if error.args else "interrupted", INTERRUPTED)
    except UnreadError as error:
        _write_to_nobody()
        return UNREAD if error.silent else _fail(one_line(error), UNREAD)
    except BrokenPipeError:
        _write_to_nobody()
        return UNREAD
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else _typed(command, words)
        return _fail(f"{one_line(error).rstrip('.')} (see {path} --help)", ERROR)
    # Nobody who uses a command wants its traceback, unless asked for.
    except Exception as error:
        if words[:1] == ["--traceback"]:
            _show_traceback(error)
        return _fail(_explained(error), ERROR)
    return result if isinstance(result, int) else 0


def _typed(command: click.Command, words: Sequence[str]) -> str:
    """Return the command that was typed, where an error of click's does not tell."""
    if isinstance(command, click.Group):
        known = command.list_commands(click.Context(command))
        for word in words:
            if word in known:
                return f"perdure {word}"
    return "perdure"


def _show_traceback(error: Exception) -> None:
    # Late, since it is wanted seldom.
    import traceback

    for line in "".join(traceback.format_exception(error)).splitlines():
        click.echo(shown(line), err=True)


def _explained(error: Exception) -> str:
    # Late, so that a command that does its work without a database does not wait for one.
    from ZEO.Exceptions import ClientDisconnected
    from ZODB.POSException import POSError

    from perdure.model.errors import PerdureError

    if isinstance(error, (PerdureError, click.ClickException, OSError)):
        return one_line(error)
    if isinstance(error, ClientDisconnected):
        return f"the database went away ({one_line(error)}): try again when it is back"
    if isinstance(error, POSError):
        return f"the database refuses: {type(error).__name__}: {one_line(error)}"
    kind = type(error).__name__
    return f"unexpected {kind}: {one_line(error)} (perdure --traceback … shows where)"


def _hold_descriptors_of_streams() -> None:
    """Let no file that is opened get the number of a standard stream that is closed."""
    while (held := os.open(os.devnull, os.O_RDWR)) <= _LAST_STREAM:
        pass
    os.close(held)


def _never_choke_on_a_character() -> None:
    """Let what the terminal's encoding lacks be shown as an escape instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(io.UnsupportedOperation):
                stream.reconfigure(errors="backslashreplace")


def _write_to_nobody() -> None:
    """Keep the interpreter from writing what is left, and complaining, at its end."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _fail(text: str, status: int) -> int:
    click.echo(f"perdure: {text}", err=True)
    return status
