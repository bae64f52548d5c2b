"""A module of an application, that can vanish, break, move, and come back."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ZODB.broken

__all__ = ["SOURCE", "Module"]

SOURCE = """
from persistent import Persistent
from perdure.model import Job

def work(*args):
    return "worked"

def other(*args):
    return "worked too"

class Plain:
    pass

class Thing(Persistent):
    def method(self):
        return "of a thing"

class OwnJob(Job):
    def set_up(self):
        return None
"""


class Module:
    """A module of the application, that can vanish, break, and come back."""

    name = "application_of_a_test"

    def __init__(self, folder: Path, name: str = name) -> None:
        self.name = name
        self._path = folder / f"{self.name}.py"
        self.write(SOURCE)

    def write(self, source: str) -> None:
        self._path.write_text(textwrap.dedent(source))
        self.forget()

    def vanish(self) -> None:
        self._path.unlink()
        self.forget()

    def come_back(self) -> None:
        self.write(SOURCE)

    def forget(self) -> None:
        sys.modules.pop(self.name, None)
        sys.path_importer_cache.clear()
        importlib.invalidate_caches()
        for cached in (self._path.parent / "__pycache__").glob("*.pyc"):
            cached.unlink()

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.name), name)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    folder = tmp_path / "application"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Module(folder)
    yield made
    made.forget()
    ZODB.broken.broken_cache.clear()
