"""The addresses of processes, as tests hand them from one process to another."""

from __future__ import annotations

import dataclasses
import json
import uuid

from perdure.actors import ActorSystem, ProcessAddress
from perdure.model.incarnation import Incarnation

__all__ = ["address_of", "read", "write"]


def address_of(system: ActorSystem) -> ProcessAddress:
    """The address of a system of this process, whatever the database says of it."""
    return ProcessAddress(system.uuid, (), system._identity.incarnation)


def write(address: ProcessAddress) -> str:
    """An address as a line."""
    assert address.incarnation is not None
    return json.dumps([str(address.uuid), dataclasses.asdict(address.incarnation)])


def read(line: str) -> ProcessAddress:
    """What `write` wrote."""
    identifier, incarnation = json.loads(line)
    return ProcessAddress(uuid.UUID(identifier), (), Incarnation(**incarnation))
