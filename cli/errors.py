"""What goes wrong is told in one line."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence

import click

from perdure.model import PerdureError

__all__ = ["ERROR", "INTERRUPTED", "CommandError", "one_line", "run", "shown"]

ERROR = 2
"""The exit status of a command that could not do its work."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


class CommandError(PerdureError):
    """A command cannot do what it was told; its text says why, and what to do."""


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
    _never_choke_on_a_character()
    try:
        result = command.main(args=words, prog_name="perdure", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt) as error:
        return _fail(one_line(error) if error.args else "interrupted", INTERRUPTED)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "perdure"
        return _fail(f"{one_line(error).rstrip('.')} (see {path} --help)", ERROR)
    # Nobody who uses a command wants its traceback, unless asked for.
    except Exception as error:
        if words[:1] == ["--traceback"]:
            raise
        if isinstance(error, (PerdureError, click.ClickException, OSError)):
            return _fail(one_line(error), ERROR)
        kind = type(error).__name__
        return _fail(
            f"unexpected {kind}: {one_line(error)} (perdure --traceback … shows where)", ERROR
        )
    return result if isinstance(result, int) else 0


def _never_choke_on_a_character() -> None:
    """Let what the terminal's encoding lacks be shown as an escape instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(io.UnsupportedOperation):
                stream.reconfigure(errors="backslashreplace")


def _fail(text: str, status: int) -> int:
    click.echo(f"perdure: {text}", err=True)
    return status
