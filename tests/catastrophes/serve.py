"""The process of the ZEO server: `perdure.server`, which says when it listens."""

from __future__ import annotations

import sys

import ZODB.event
from ZEO.StorageServer import Serving

from catastrophes.children import end_with_starter, say
from perdure.server import main


def _tell(event: object) -> None:
    if isinstance(event, Serving):
        say("ready")


if __name__ == "__main__":
    end_with_starter()
    ZODB.event.notify = _tell
    main(sys.argv[1:])
