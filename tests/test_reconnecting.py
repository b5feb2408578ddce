"""A server that goes away and comes back: what its clients have begun, and what they know."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.database import Database
from durus.error import (
    ReadConflictError,
    ServerLostError,
    UnstorableError,
    WriteConflictError,
)
from durus.file_storage import FileStorage
from durus.persistent import Persistent, oid_of
from durus.storage_server import SocketAddress, StorageServer


class Server:
    """One that comes back at the same address."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.address: SocketAddress | None = None

    def start(self, path: Path) -> SocketAddress:
        storage = FileStorage(path)
        new = StorageServer(storage, port=0, address=self.address)
        self.address = self._stack.enter_context(new.running())
        return self.address

    def stop(self) -> None:
        self._stack.pop_all().close()


@pytest.fixture
def server() -> Iterator[Server]:
    with ExitStack() as stack:
        yield Server(stack)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "served.durus"


class Item(Persistent):
    def __init__(self, value: int) -> None:
        self.value = value


def test_a_database_goes_on_when_its_server_is_back(server: Server, path: Path) -> None:
    with Database(f"durus://{server.start(path)}") as db:
        with db.transaction() as root:
            root["a"], root["b"] = Item(1), Item(2)
        server.stop()
        for _ in range(2):
            with pytest.raises(ServerLostError, match="no server is running there"):
                db.run(lambda root: root["a"].value)
        with Database(path) as behind, behind.transaction() as root:
            root["a"].value = 10
        server.start(path)
        assert db.run(lambda root: (root["a"].value, root["b"].value)) == (10, 2)
        with db.transaction() as root:
            root["b"].value += 1
        server.stop()
        server.start(path)  # nobody has noticed that it was away
        assert db.run(lambda root: root["b"].value) == 3
    server.stop()
    with Database(path) as behind:
        assert behind.run(lambda root: root["b"].value) == 3


def test_what_was_begun_before_does_not_go_on_after(server: Server, path: Path) -> None:
    with Database(f"durus://{server.start(path)}") as db:
        with db.transaction() as root:
            root["a"], root["b"] = Item(1), Item(2)
        writing, reading = db.transaction(), db.transaction()
        writing.root["a"].value += 1
        assert reading.root["a"].value == 1
        server.stop()
        with Database(path) as behind, behind.transaction() as root:
            root["a"].value = 10
        server.start(path)
        with pytest.raises(ServerLostError):
            writing.commit()
        others = threading.Thread(target=lambda: db.run(lambda root: root["b"].value))
        others.start()  # which connects again
        others.join()
        with pytest.raises(ReadConflictError):
            reading.root["b"].value  # noqa: B018
        with pytest.raises(WriteConflictError):
            writing.commit()
        for tx in (reading, writing):
            tx.abort()
        assert db.run(lambda root: root["a"].value) == 10


def test_oids_of_a_server_that_was_lost_are_not_used(server: Server, tmp_path: Path) -> None:
    """The other one serves a copy from before, so it hands out the same ones again."""
    address = server.start(tmp_path / "first.durus")
    with closing(Connection(f"durus://{address}")) as connection:
        connection.root["bad"] = [Item(1), lambda: None]
        with pytest.raises(UnstorableError):
            connection.commit()  # and the oid of the item would be used for the next new object
        connection.abort()
        server.stop()
        server.start(tmp_path / "second.durus")
        with closing(Connection(f"durus://{address}")) as other:
            other.root["items"] = [Item(2) for _ in range(10)]
            other.commit()
            taken = [oid_of(item) for item in other.root["items"]]
            connection.abort()
            connection.root["item"] = item = Item(1)
            connection.commit()
            assert oid_of(item) not in taken
            other.abort()
            assert [item.value for item in other.root["items"]] == [2] * 10


def test_an_interrupt_in_the_middle_of_an_exchange_ends_with_the_transaction(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database(f"durus://{server.start(path)}") as db:
        with db.transaction() as root:
            root["a"] = Item(1)

        def interrupt(*arguments: object) -> bytes:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("durus.wire.read", interrupt)
            with pytest.raises(KeyboardInterrupt):
                db.run(lambda root: root["a"].value)
        assert db.run(lambda root: root["a"].value) == 1
