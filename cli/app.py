"""The command ``perdure`` and what it is made of; each command is a module of its own."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

import click

from perdure.cli.demo.command import demo
from perdure.cli.errors import run

__all__ = ["main", "perdure"]


def _version() -> str:
    try:
        return importlib.metadata.version("perdure")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


# Without a command it says so in one line, like everything else that goes wrong.
@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=False)
@click.version_option(_version(), prog_name="perdure", message="%(prog)s %(version)s")
@click.option("--traceback", is_flag=True, help="On an error, show where it comes from.")
def perdure(traceback: bool) -> None:
    """Durable jobs in your application's own ZODB."""


perdure.add_command(demo)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status.

    `args` are the words after the program's name, None for those of this process. What
    goes wrong is one line on standard error and status 2; an interrupt is 130. Raises
    `SystemExit` where whoever reads the output has gone, and what went wrong itself
    where the words begin with ``--traceback``. To be called from the main thread, which
    alone is interrupted; touches no transaction of the caller.
    """
    return run(perdure, args)
