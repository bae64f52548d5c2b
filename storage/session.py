"""What one client of a server of ours is served, whichever server that is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ZEO.StorageServer import SlowMethodThread, ZEOStorage

__all__ = ["Session"]


class Session(ZEOStorage):
    """ZEO's, but for the end of the process, which waits for nothing that takes long.

    The threads of the base class keep the process alive while they pack, or look for
    transactions, in a file that is closed by then.
    """

    def pack(self, time: float, wait: bool = True) -> Any:
        if wait:
            return _in_thread(self._pack_impl, time)
        threading.Thread(target=self._pack_impl, args=(time,), name="pack", daemon=True).start()
        return None

    def undoInfo(self, *args: Any) -> Any:
        return _in_thread(self.storage.undoInfo, *args)

    def undoLog(self, *args: Any) -> Any:
        return _in_thread(self.storage.undoLog, *args)


def _in_thread(method: Callable[..., Any], *args: Any) -> Any:
    """Call it in a thread that ends with the process; what the client is answered."""
    thread = SlowMethodThread(method, args)
    thread.daemon = True
    thread.start()
    return thread.delay
