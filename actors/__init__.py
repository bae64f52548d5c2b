"""What runs: a small tree of Pykka actors that finds due jobs and runs them."""

from __future__ import annotations

if __name__ != "perdure.actors":
    raise ImportError(
        f"import it as perdure.actors, not {__name__}: under two names each class would be two"
    )

__all__: list[str] = []
