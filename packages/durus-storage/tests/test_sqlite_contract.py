"""The storage contract, for SQLite files; the file is sound after every test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from durus.sqlite_storage import SqliteStorage
from durus.sqlite_verify import verify_sqlite
from durus.testing.storage_contract import StorageContract


class TestSqliteStorage(StorageContract):
    is_durable = True
    can_be_readonly = True

    def open(self, path: Path, *, readonly: bool = False) -> SqliteStorage:
        return SqliteStorage(path, readonly=readonly)

    @pytest.fixture
    def storage(self, path: Path) -> Iterator[SqliteStorage]:
        storage = self.open(path)
        yield storage
        storage.close()
        assert list(verify_sqlite(str(path))) == []
        assert os.listdir(path.parent) == [path.name]
