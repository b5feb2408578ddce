"""The storage contract, for clients of a server: on real sockets, through the classic adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from durus import interfaces
from durus.classic import as_storage
from durus.classic_storage import Storage as ClassicStorage
from durus.client_storage import ClientStorage
from durus.storage import MemoryStorage
from durus.storage_server import SocketAddress, StorageServer
from durus.testing.storage_contract import StorageContract


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
        return self.last.to_bytes(8)


class ClientContract(StorageContract):
    has_history = False
    can_pack = False  # a server packs when it finds the time
    is_durable = True  # as long as the server runs
    can_be_readonly = True
    keeps_bytes = False
    address: SocketAddress

    def served(self) -> interfaces.Storage | ClassicStorage:
        raise NotImplementedError

    @contextmanager
    def serving(self) -> Iterator[SocketAddress]:
        with StorageServer(self.served(), port=0).running() as address:
            yield address

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with self.serving() as self.address:
            yield

    def open(self, path: Path, *, readonly: bool = False) -> interfaces.Storage:
        return as_storage(ClientStorage(address=self.address, readonly=readonly))


class TestClientOfMemoryStorage(ClientContract):
    def served(self) -> interfaces.Storage:
        return MemoryStorage()


class TestClientOfClassicStorage(ClientContract):
    def served(self) -> ClassicStorage:
        return DictStorage()


class TestClientOfClient(ClientContract):
    """A server that serves what another server serves."""

    @contextmanager
    def serving(self) -> Iterator[SocketAddress]:
        with StorageServer(MemoryStorage(), port=0).running() as first:
            client = ClientStorage(address=first)
            with StorageServer(client, port=0).running() as address:
                yield address
