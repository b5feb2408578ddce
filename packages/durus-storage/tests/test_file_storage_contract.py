"""The storage contract, for the log file; the file is sound after every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from durus.file_storage import FileStorage
from durus.log_verify import verify_file
from durus.testing.storage_contract import StorageContract


class TestFileStorage(StorageContract):
    is_durable = True
    can_be_readonly = True

    def open(self, path: Path, *, readonly: bool = False) -> FileStorage:
        return FileStorage(path, readonly=readonly)

    @pytest.fixture
    def storage(self, path: Path) -> Iterator[FileStorage]:
        storage = self.open(path)
        yield storage
        storage.close()
        assert list(verify_file(str(path))) == []
