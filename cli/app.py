"""The command ``perdure`` and what it is made of; each command is a module of its own."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import click

__all__ = ["perdure"]

_COMMANDS = {
    "run": "perdure.cli.commands.run",
    "put": "perdure.cli.commands.put",
    "status": "perdure.cli.commands.status",
    "jobs": "perdure.cli.commands.jobs",
    "show": "perdure.cli.commands.show",
    "traceback": "perdure.cli.commands.show",
    "next": "perdure.cli.commands.nearest",
    "last": "perdure.cli.commands.nearest",
    "polls": "perdure.cli.commands.polls",
    "retry": "perdure.cli.commands.change",
    "cancel": "perdure.cli.commands.change",
    "pause": "perdure.cli.commands.queues",
    "resume": "perdure.cli.commands.queues",
    "resize": "perdure.cli.commands.queues",
    "keep": "perdure.cli.commands.keep",
    "alias": "perdure.cli.commands.alias",
    "pack": "perdure.cli.commands.pack",
    "check": "perdure.cli.commands.check",
    "completion": "perdure.cli.commands.completion",
    "demo": "perdure.cli.demo.command",
}
"""The module of each command, which has it under its name in `COMMANDS`."""

_OPTIONS_OF_COMMANDS = ("--db", "--app-dir", "--json")


class _Commands(click.Group):
    """Imports a command when it is wanted, and lists them in the order of `_COMMANDS`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name not in _OPTIONS_OF_COMMANDS:
                raise
            raise click.UsageError(
                f"{error.option_name} stands behind the command: perdure COMMAND "
                f"{error.option_name} …",
                ctx=ctx,
            ) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        if near and name not in _COMMANDS and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}; did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name])
        found: click.Command = module.COMMANDS[cmd_name]
        return found


def _show_version(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if not value or ctx.resilient_parsing:
        return
    # Late, since no other command waits for it.
    import importlib.metadata

    try:
        version = importlib.metadata.version("perdure")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    click.echo(f"perdure {version}")
    ctx.exit()


# Without a command it says so in one line, like everything else that goes wrong.
@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.option("--traceback", is_flag=True, help="On an error, show where it comes from.")
def perdure(traceback: bool) -> None:
    """Durable jobs in your application's own ZODB.

    Each command has a --help with an example. Every command but the last two works on a
    database: --db, else $PERDURE_DB, else perdure.fs in the working directory.
    """
