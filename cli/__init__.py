"""The command line of Perdure."""

from __future__ import annotations

if __name__ != "perdure.cli":
    raise ImportError(
        f"import it as perdure.cli, not {__name__}: under two names each class would be two"
    )

from perdure.cli.app import main

__all__ = ["main"]
