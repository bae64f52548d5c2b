"""A ZEO server that no suspended client can block: one database for many processes."""

from __future__ import annotations

if __name__ != "perdure.server":
    raise ImportError(
        f"import it as perdure.server, not {__name__}: under two names each class would be two"
    )

from perdure.server.zeo import COMMIT_LIMIT, Server, main

__all__ = ["COMMIT_LIMIT", "Server", "main"]
