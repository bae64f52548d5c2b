"""``python -m tests.catastrophes`` in the folder of the project."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # What is stored names modules as the workers import them, from the folder of the tests.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from catastrophes.driver import main

    sys.exit(main())
