"""Asking the processes that run jobs what they know of themselves."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from perdure.actors import ProcessAddress, ask_process
from perdure.model import PerdureError

__all__ = ["Answer", "ask_all"]

_PATIENCE = timedelta(seconds=3)
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What a process answered, or in `error` why there is none."""

    uuid: uuids.UUID
    report: Any
    error: str


def ask_all(processes: Iterable[ProcessAddress], message: object) -> list[Answer]:
    """Ask each of the processes, all at once: one that does not answer delays no other."""
    asked = list(processes)
    with ThreadPoolExecutor(max_workers=max(1, min(len(asked), _AT_ONCE))) as pool:
        return list(pool.map(lambda process: _ask(process, message), asked))


def _ask(process: ProcessAddress, message: object) -> Answer:
    try:
        return Answer(process.uuid, ask_process(process, message, timeout=_PATIENCE), "")
    except (PerdureError, TimeoutError) as error:
        return Answer(process.uuid, None, str(error))
