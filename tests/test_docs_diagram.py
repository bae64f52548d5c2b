"""The states of a job on the page are those of the table that the code works from."""

from __future__ import annotations

import re

from perdure.model import ARROWS, diagram
from support.tree import DOCS

PAGE = (DOCS / "explanation.md").read_text(encoding="utf-8")


def test_the_diagram_on_the_page_is_the_one_that_is_made_from_the_table():
    blocks = re.findall(r"^```mermaid\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)

    assert blocks == [diagram()]


def test_the_arrows_on_the_page_are_those_of_the_table():
    rows = re.findall(r"^\| (.+?) \| ([A-Z, ]+) \| ([A-Z]+) \| (.+?) \|$", PAGE, re.MULTILINE)

    assert rows == [
        (
            arrow.name,
            ", ".join(status.name for status in arrow.sources),
            arrow.target.name,
            arrow.why,
        )
        for arrow in ARROWS.values()
    ]
