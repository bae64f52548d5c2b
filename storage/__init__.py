"""Perdure's storage: opening a database by its URI, and sharing one file among processes."""

if __name__ != "perdure.storage":
    raise ImportError(
        f"this is perdure.storage, imported as {__name__}: install the project and import it as "
        "perdure.storage"
    )

from perdure.storage.opening import database_file, is_in_memory, open_database
from perdure.storage.shared import SharedStorage

__all__ = ["SharedStorage", "database_file", "is_in_memory", "open_database"]
