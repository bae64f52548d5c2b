"""How Sphinx builds the documentation."""

from __future__ import annotations

from importlib.metadata import version as _version

project = "Perdure"
author = "Perdure developers"
project_copyright = "2026, Perdure developers"
release = version = _version("perdure")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

html_theme = "alabaster"
