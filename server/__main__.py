"""``python -m perdure.server`` is ``runzeo`` with the server of this room."""

from __future__ import annotations

from perdure.server.zeo import main

if __name__ == "__main__":
    main()
