"""The command line of Perdure.

Nothing is imported here before `main` is called: Ctrl-C may come at any moment, and is told in
one line from then on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

if __name__ != "perdure.cli":
    raise ImportError(
        f"import it as perdure.cli, not {__name__}: under two names each class would be two"
    )

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status.

    `args` are the words after the program's name, None for those of this process. What goes
    wrong is one line on standard error and status 2, with a traceback before it where the words
    begin with ``--traceback``; an interrupt is 130; 1 where the output could not be written.
    Raises `SystemExit` where whoever reads a help has gone. To be called from the main thread,
    which alone is interrupted; touches no transaction of the caller.
    """
    try:
        from perdure.cli.app import perdure
        from perdure.cli.errors import run

        return run(perdure, args)
    except KeyboardInterrupt:
        sys.stderr.write("perdure: interrupted\n")
        return 130
