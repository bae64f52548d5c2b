"""``perdure alias``: new names for code that has moved."""

from __future__ import annotations

import click

from perdure.cli.options import Source, database_options, json_option

__all__ = ["COMMANDS"]


@click.command(short_help="Let jobs of code that has moved go on.")
@click.argument("old", required=False)
@click.argument("new", required=False)
@click.option("--remove", metavar="OLD", help="Forget the new name of OLD.")
@database_options
@json_option
def alias(
    source: Source, old: str | None, new: str | None, remove: str | None, as_json: bool
) -> int:
    """Let the stored name OLD stand for NEW; without names, list what is so.

    A name is MODULE:FUNCTION, or a MODULE, which means all that is in it. NEW must be found
    here. Jobs that wait for OLD go on.

    \b
    Example:
      perdure alias shop:send_mail shop.mail:send
    """
    from perdure.cli.aliases import add_alias, list_aliases, take_alias

    if remove is not None:
        if old is not None:
            raise click.UsageError("--remove goes without OLD and NEW")
        return take_alias(source, remove, as_json=as_json)
    if old is None:
        return list_aliases(source, as_json=as_json)
    if new is None:
        raise click.UsageError("say the NEW name, too")
    return add_alias(source, old, new, as_json=as_json)


COMMANDS = {"alias": alias}
