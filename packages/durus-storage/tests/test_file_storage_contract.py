"""The storage contract, for the log file; the file is sound after every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.log_open import make_missing_file
from durus.log_verify import verify_file
from durus.testing.storage_contract import StorageContract, make_record


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


class TestCompressedFileStorage(TestFileStorage):
    def open(self, path: Path, *, readonly: bool = False) -> FileStorage:
        """One whose records are compressed, small ones, too."""
        if not readonly:
            record = make_record("")
            dictionary = record.class_pickle + record.state_pickle
            make_missing_file(OperatingSystem(), str(path), dictionary=dictionary)
        return FileStorage(path, readonly=readonly)
