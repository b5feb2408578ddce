"""Durus 4.3 made durable: after each commit its file is synced, by the file's own method."""

from pathlib import Path
from typing import Any, cast

from bench.peers.durus import DurusDatabase, DurusSession
from bench.peers.durus43 import Durus43
from durus.file_storage import FileStorage

__all__ = ["PEER"]


class _SyncedSession(DurusSession):
    def __init__(self, storage: FileStorage) -> None:
        super().__init__(storage)
        commit = self.commit
        sync = cast(Any, storage).shelf.get_file().fsync  # the storage is one of 4.3

        def commit_and_sync() -> None:
            commit()
            sync()

        self.commit = commit_and_sync


class _SyncedDatabase(DurusDatabase):
    def connect(self) -> DurusSession:
        return _SyncedSession(self.storage)


class _Durus43Synced(Durus43):
    def open(self, path: Path) -> DurusDatabase:
        return _SyncedDatabase(FileStorage(str(path)))


PEER = _Durus43Synced()
