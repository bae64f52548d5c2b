"""What every test gets; the parts are in `support`."""

from __future__ import annotations

import signal

import pytest

pytest_plugins = [
    "pytester",
    "support.application",
    "support.coroutines",
    "support.desk",
    "support.batches",
    "support.groups",
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
    """Hear of SIGINT, and have the plugin that the package brings.

    What is started in the background of a script ignores SIGINT, and so do its children. The
    plugin is loaded here where the package is tested without being installed.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not config.pluginmanager.hasplugin("perdure"):
        from perdure.testing import plugin

        config.pluginmanager.register(plugin, "perdure")
