"""The kinds of storage that the model tests run over."""

import threading
from abc import ABC, abstractmethod
from pathlib import Path

from durus.classic import as_storage
from durus.client_storage import ClientStorage
from durus.file_storage import FileStorage
from durus.file_storage2 import FileStorage2
from durus.formats import find_format
from durus.interfaces import NO_TID, Storage
from durus.shelf_storage import ShelfStorage
from durus.sqlite_storage import SqliteStorage
from durus.storage import MemoryStorage, OverlayStorage
from durus.storage import Storage as ClassicStorage
from durus.storage_server import StorageServer


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
        assert list(find_format(path).verify(str(path))) == []


class Shelf(File):
    def open(self, path: Path) -> Storage:
        return as_storage(ShelfStorage(path))


class Dfs20(File):
    def open(self, path: Path) -> Storage:
        return as_storage(FileStorage2(path))


class Sqlite(File):
    def open(self, path: Path) -> Storage:
        return SqliteStorage(path)


class ServedStorage(ClientStorage):
    """A client, and the server of a log file, which is stopped with it."""

    def __init__(self, path: Path) -> None:
        self.server = StorageServer(FileStorage(path), port=0)
        self.thread = threading.Thread(target=self.server.serve)
        address = self.server.listen()
        self.thread.start()
        super().__init__(address=address)

    def close(self) -> None:
        super().close()
        self.server.stop()
        self.thread.join()


class Served(File):
    def open(self, path: Path) -> Storage:
        return as_storage(ServedStorage(path))


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


class Overlay(Memory):
    """Over a file, to which nothing is ever written."""

    def open(self, path: Path) -> Storage:
        FileStorage(path).close()
        return OverlayStorage(path)

    def check(self, path: Path) -> None:
        File().check(path)
        with FileStorage(path, readonly=True) as base:
            assert base.tid == NO_TID


class OverlayOfOverlay(Overlay):
    """What was closed goes on below another one."""

    def reopen(self, storage: Storage, path: Path) -> Storage:
        return OverlayStorage(storage)


KINDS: list[Kind] = [
    Memory(),
    File(),
    Shelf(),
    Dfs20(),
    Sqlite(),
    Served(),
    Classic(),
    OverlayOfOverlay(),
]
