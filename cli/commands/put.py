"""``perdure put``: a job from a shell."""

from __future__ import annotations

import datetime
import difflib
from datetime import timedelta
from typing import Any

import click

from perdure.cli.completing import complete_policy, complete_queue
from perdure.cli.options import Source, database_options, duration, json_option, moment

__all__ = ["COMMANDS"]

LITERAL = "perdure.cli.put.literal"


class _Put(click.Command):
    """Knows which words came after ``--``, and takes ``-5`` for an argument of the job."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        before, after = args, []
        if "--" in args:
            index = args.index("--")
            before, after = args[:index], args[index + 1 :]
        ctx.meta[LITERAL] = after
        left = super().parse_args(ctx, before)
        for word in ctx.params.get("words") or ():
            if word.startswith("-") and not _is_number(word):
                options = [name for param in self.params for name in param.opts]
                near = difflib.get_close_matches(word.partition("=")[0], options)
                raise click.NoSuchOption(word, possibilities=near, ctx=ctx)
        return left


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return word == "-"
    return True


@click.command(
    cls=_Put,
    short_help="Put a job.",
    context_settings={"ignore_unknown_options": True},
    options_metavar="[OPTIONS]",
)
@click.argument("words", nargs=-1, metavar="MODULE:FUNCTION [ARGUMENT]...")
@database_options
@click.option(
    "--queue",
    metavar="NAME",
    default="",
    shell_complete=complete_queue,
    help="The queue, if not the default one.",
)
@click.option(
    "--in", "in_", metavar="DURATION", type=duration, help="Not before so long from now."
)
@click.option(
    "--at",
    metavar="TIME",
    type=moment,
    help="Not before this time, in ISO format; without a zone it is local time.",
)
@click.option(
    "--by",
    metavar="DURATION",
    type=duration,
    help="Fail it if it has not begun so long after that.",
)
@click.option(
    "--quota",
    "quotas",
    metavar="NAME",
    multiple=True,
    help="A quota of the queue that it needs a place of; may be repeated.",
)
@click.option(
    "--policy",
    metavar="POLICY",
    shell_complete=complete_policy,
    help="Its retry policy: never, four-times, forever, a registered name, or MODULE:FACTORY.",
)
@click.option(
    "--keep-completed", metavar="DURATION", type=duration, help="Keep it so if it succeeds."
)
@click.option("--keep-failed", metavar="DURATION", type=duration, help="Keep it so if it fails.")
@click.option("--wait", is_flag=True, help="Wait for the result; status 1 if the job fails.")
@json_option
@click.pass_context
def put(
    ctx: click.Context,
    source: Source,
    words: tuple[str, ...],
    queue: str,
    in_: timedelta | None,
    at: datetime.datetime | None,
    by: timedelta | None,
    quotas: tuple[str, ...],
    policy: str | None,
    keep_completed: timedelta | None,
    keep_failed: timedelta | None,
    wait: bool,
    as_json: bool,
) -> int:
    """Put a job that calls FUNCTION of MODULE, and print the job's id.

    An ARGUMENT is JSON where it parses as JSON, else text; name=value is a keyword argument.
    What comes after -- is never taken for a keyword, nor for an option: put text that has an =
    there. With --wait the result is printed too.

    \b
    Example:
      perdure put app:greet '"Ada"' times=3 --in 10m
    """
    from perdure.cli.putting import Request, put_job

    literal: list[str] = ctx.meta[LITERAL]
    everything = [*words, *literal]
    if not everything:
        raise click.UsageError("say what to call: MODULE:FUNCTION")
    if in_ is not None and at is not None:
        raise click.UsageError("--in and --at exclude each other: give one of them")
    request = Request(
        call=everything[0],
        words=tuple(words[1:]),
        literal=tuple(everything[max(1, len(words)) :]),
        queue=queue,
        delay=in_,
        begin_after=at,
        settings=_given(
            begin_by=by,
            quota_names=quotas or None,
            keep_completed=keep_completed,
            keep_failed=keep_failed,
        ),
        policy=policy,
    )
    return put_job(source, request, wait=wait, as_json=as_json)


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


COMMANDS = {"put": put}
