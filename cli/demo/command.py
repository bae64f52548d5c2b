"""The command ``perdure demo``, as it is typed."""

from __future__ import annotations

import click

__all__ = ["COMMANDS", "demo"]


@click.command(short_help="Count the words of many files, through a crash.")
@click.argument("folder", required=False)
@click.option(
    "--no-crash",
    is_flag=True,
    help="Do not kill the worker process half-way.",
)
@click.option(
    "--database",
    metavar="FOLDER",
    help="Where to leave the database; a new temporary folder unless given.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="How many jobs run at once.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=1500,
    show_default=True,
    help="How many files to take at most.",
)
def demo(
    folder: str | None, no_crash: bool, database: str | None, workers: int, limit: int
) -> int:
    """Count the words of the text files below FOLDER, a job for each file.

    FOLDER is the standard library of this Python unless given. Hidden folders,
    __pycache__ and links to folders are left out. Half-way the process that runs the
    jobs is killed, and another goes on. At the end the files are counted again without
    Perdure: exit status 0 says that both agree, file by file; 1 that they do not; 2 that
    it could not be done.

    \b
    Example:
      perdure demo --limit 200
    """
    # Late, so that `perdure --version` does not wait for a database and its friends.
    from rich.console import Console

    from perdure.cli.demo.run import Settings, run_demo
    from perdure.model import SystemClock

    settings = Settings(folder, database, limit, workers, crash=not no_crash)
    return run_demo(settings, Console(), SystemClock())


COMMANDS = {"demo": demo}
