"""``perdure completion``: what lets a shell complete commands and options."""

from __future__ import annotations

import click

__all__ = ["COMMANDS"]


@click.command(short_help="Print what lets a shell complete commands and options.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print a script that lets SHELL complete the commands of perdure and their options.

    \b
    Example:
      perdure completion bash >> ~/.bash_completion
      perdure completion fish > ~/.config/fish/completions/perdure.fish
    """
    from click.shell_completion import get_completion_class

    from perdure.cli.app import perdure

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(perdure, {}, "perdure", "_PERDURE_COMPLETE").source())
    return 0


COMMANDS = {"completion": completion}
