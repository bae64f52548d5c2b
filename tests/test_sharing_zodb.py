"""The ZODB's own tests of a storage, on both sides of a shared file."""

from __future__ import annotations

import pytest
from ZODB.tests import (
    BasicStorage,
    ConflictResolution,
    HistoryStorage,
    IteratorStorage,
    MTStorage,
    PackableStorage,
    RevisionStorage,
    StorageTestBase,
    Synchronization,
    TransactionalUndoStorage,
)

from perdure.storage import SharedStorage

pytestmark = [pytest.mark.slow]


class TestOnTheOwnersSide(
    StorageTestBase.StorageTestBase,
    BasicStorage.BasicStorage,
    ConflictResolution.ConflictResolvingStorage,
    ConflictResolution.ConflictResolvingTransUndoStorage,
    HistoryStorage.HistoryStorage,
    IteratorStorage.IteratorStorage,
    IteratorStorage.ExtendedIteratorStorage,
    MTStorage.MTStorage,
    PackableStorage.PackableStorage,
    PackableStorage.PackableUndoStorage,
    RevisionStorage.RevisionStorage,
    Synchronization.SynchronizedStorage,
    TransactionalUndoStorage.TransactionalUndoStorage,
):
    use_extension_bytes = True

    def setUp(self) -> None:
        super().setUp()
        self.open()

    def open(self) -> None:
        self._owner = self._storage = SharedStorage("shared.fs")
        self._owner.share()
        self.addCleanup(self._owner.close)

    def _new_storage_client(self) -> SharedStorage:
        client = SharedStorage("shared.fs")
        assert not client.is_owner()
        return client


class TestOnAClientsSide(TestOnTheOwnersSide):
    use_extension_bytes = False  # ZEO unpickles and pickles them on the way

    def open(self) -> None:
        super().open()
        self._storage = self._new_storage_client()
