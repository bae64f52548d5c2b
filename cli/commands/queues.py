"""``perdure pause``, ``resume`` and ``resize``: how much of a queue is run."""

from __future__ import annotations

import click

from perdure.cli.completing import complete_queue
from perdure.cli.options import Source, database_options, json_option, queue_size

__all__ = ["COMMANDS"]


@click.command(short_help="Let no more jobs of a queue begin.")
@click.argument("queue", shell_complete=complete_queue)
@database_options
@json_option
def pause(source: Source, queue: str, as_json: bool) -> int:
    """Let no more jobs of QUEUE begin, in any process; what runs goes on.

    The default queue is called 'default'. It is stored, and holds until `perdure resume`.

    \b
    Example:
      perdure pause mail
    """
    from perdure.cli.changing import change_queue

    return change_queue(
        source,
        queue,
        lambda found: found.pause(),
        "is paused",
        lambda found: {"paused": found.paused},
        as_json=as_json,
    )


@click.command(short_help="Let jobs of a paused queue begin again.")
@click.argument("queue", shell_complete=complete_queue)
@database_options
@json_option
def resume(source: Source, queue: str, as_json: bool) -> int:
    """Let jobs of QUEUE begin again.

    \b
    Example:
      perdure resume mail
    """
    from perdure.cli.changing import change_queue

    return change_queue(
        source,
        queue,
        lambda found: found.resume(),
        "runs again",
        lambda found: {"paused": found.paused},
        as_json=as_json,
    )


@click.command(short_help="Change how many jobs of a queue run at once.")
@click.argument("queue_and_size", metavar="QUEUE:SIZE", type=queue_size)
@click.option("--agent", default="main", show_default=True, help="The agents' name.")
@database_options
@json_option
def resize(source: Source, queue_and_size: tuple[str, int], agent: str, as_json: bool) -> int:
    """Let each process run SIZE jobs of QUEUE at once; what runs is not stopped.

    \b
    Example:
      perdure resize mail:8
    """
    from perdure.cli.changing import change_queue, resize_agents

    queue, size = queue_and_size
    return change_queue(
        source,
        queue,
        lambda found: resize_agents(found, size, agent),
        f"runs {size} jobs at once in each process",
        lambda found: {"agent": agent, "size": size},
        as_json=as_json,
    )


COMMANDS = {"pause": pause, "resume": resume, "resize": resize}
