"""The storage contract, for the storages of this distribution."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from durus import interfaces
from durus.classic import ClassicAdapter
from durus.storage import MemoryStorage, Storage
from durus.testing.storage_contract import StorageContract


class DictStorage(Storage):
    """As a program written for Durus 4.x would do it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[bytes, bytes] = {}
        self.pending: dict[bytes, bytes] = {}
        self.last_oid = -1
        if path.exists():
            self.last_oid, records = json.loads(path.read_text())
            self.records = {bytes.fromhex(o): bytes.fromhex(r) for o, r in records.items()}

    def load(self, oid: bytes) -> bytes:
        return self.records[oid]

    def begin(self) -> None:
        self.pending = {}

    def store(self, oid: bytes, record: bytes) -> None:
        self.pending[oid] = record

    def end(self, handle_invalidations: Callable[[Sequence[bytes]], object] | None = None) -> None:
        self.records.update(self.pending)
        self.begin()

    def sync(self) -> list[bytes]:
        return []

    def new_oid(self) -> bytes:
        self.last_oid += 1
        return self.last_oid.to_bytes(8, "big")

    def close(self) -> None:
        records = {oid.hex(): record.hex() for oid, record in self.records.items()}
        self.path.write_text(json.dumps([self.last_oid, records]))


class TestMemoryStorage(StorageContract):
    def open(self, path: Path, *, readonly: bool = False) -> interfaces.Storage:
        return MemoryStorage()


class TestClassicAdapter(StorageContract):
    has_history = False
    can_pack = False
    is_durable = True
    keeps_bytes = False

    def open(self, path: Path, *, readonly: bool = False) -> interfaces.Storage:
        return ClassicAdapter(DictStorage(path))
