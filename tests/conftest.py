"""What every test gets; the parts are in `support`."""

from __future__ import annotations

import pytest

pytest_plugins = [
    "pytester",
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


def pytest_configure(config: pytest.Config) -> None:
    """Load the plugin that the package brings, where it is tested without being installed."""
    if not config.pluginmanager.hasplugin("perdure"):
        from perdure.testing import plugin

        config.pluginmanager.register(plugin, "perdure")
