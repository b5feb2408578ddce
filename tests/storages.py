"""The kinds of storage that the model tests run over."""

from abc import ABC, abstractmethod
from pathlib import Path

from durus.classic import as_storage
from durus.classic_verify import verify_shelf
from durus.file_storage import FileStorage
from durus.interfaces import Storage
from durus.log_verify import verify_file
from durus.shelf_storage import ShelfStorage
from durus.sqlite_storage import SqliteStorage, verify_sqlite
from durus.storage import MemoryStorage
from durus.storage import Storage as ClassicStorage


class Kind(ABC):
    """Opens a storage, and opens it again after it was closed, with what was in it."""

    @abstractmethod
    def open(self, path: Path) -> Storage: ...

    def reopen(self, storage: Storage, path: Path) -> Storage:
        storage.close()
        return self.open(path)

    def check(self, path: Path) -> None:  # noqa: B027 (not all have something on the disk)
        """Check what is on the disk."""


class Memory(Kind):
    def open(self, path: Path) -> Storage:
        return MemoryStorage()

    def reopen(self, storage: Storage, path: Path) -> Storage:
        return storage


class File(Kind):
    def open(self, path: Path) -> Storage:
        return FileStorage(path)

    def check(self, path: Path) -> None:
        assert list(verify_file(str(path))) == []


class Sqlite(Kind):
    def open(self, path: Path) -> Storage:
        return SqliteStorage(path)

    def check(self, path: Path) -> None:
        assert list(verify_sqlite(str(path))) == []


class Shelf(Kind):
    def open(self, path: Path) -> Storage:
        return as_storage(ShelfStorage(path))

    def check(self, path: Path) -> None:
        assert list(verify_shelf(str(path))) == []


class DictStorage(ClassicStorage):
    """A storage as a program for Durus 4.x may have written it."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.pending: dict[bytes, bytes] = {}
        self.last = -1

    def load(self, oid: bytes) -> bytes:
        return self.records[oid]

    def begin(self) -> None:
        self.pending = {}

    def store(self, oid: bytes, record: bytes) -> None:
        self.pending[oid] = record

    def end(self, handle_invalidations: object = None) -> None:
        self.records.update(self.pending)
        self.pending = {}

    def sync(self) -> list[bytes]:
        return []

    def new_oid(self) -> bytes:
        self.last += 1
        return self.last.to_bytes(8, "big")


class Classic(Memory):
    def open(self, path: Path) -> Storage:
        return as_storage(DictStorage())


KINDS: list[Kind] = [Memory(), File(), Sqlite(), Shelf(), Classic()]
