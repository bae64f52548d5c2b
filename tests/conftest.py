"""What every test gets; the parts are in `support`."""

from __future__ import annotations

pytest_plugins = [
    "support.application",
    "support.coroutines",
    "support.desk",
    "support.installed",
    "support.leftovers",
    "support.losable",
    "support.quickness",
    "support.shop",
    "support.spec_lines",
    "support.systems",
    "support.world",
]
