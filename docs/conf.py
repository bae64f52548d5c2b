"""How Sphinx builds the documentation."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import version as _version
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.highlighting import lexers
from sphinx.pycode import ModuleAnalyzer

project = "Perdure"
author = "Perdure developers"
project_copyright = "2026, Perdure developers"
release = version = _version("perdure")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Docstrings name parameters and other objects in single backticks.
default_role = "code"

myst_heading_anchors = 3

# Sphinx shows the diagram as its text; other viewers of the page draw it.
lexers["mermaid"] = TextLexer()

html_theme = "alabaster"


def document_constant(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Take the text of a constant from below its assignment, in whichever module that is."""
    if what != "data":
        return
    package, _, constant = name.rpartition(".")
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        texts = ModuleAnalyzer.for_module(f"{package}.{module.name}").find_attr_docs()
        if ("", constant) in texts:
            lines[:] = texts["", constant]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", document_constant)
