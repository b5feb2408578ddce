"""Databases of every kind that a classic program may use, for the tests of what it relies on.

A `Database` is open; each `connect()` is what one more program would do to work on it, or one more
thread.  (`tests.storages` is about a single storage, and how it is opened again.)
"""

import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.file_storage2 import FileStorage2
from durus.interfaces import Storage
from durus.shelf_storage import ShelfStorage
from durus.socket_address import SocketAddress
from durus.sqlite_storage import SqliteStorage
from durus.storage import MemoryStorage
from durus.storage import Storage as ClassicStorage
from durus.storage_server import StorageServer, wait_for_server
from tests.storages import DictStorage

__all__ = ["DATABASES", "Database", "open_databases"]


class Database(ABC):
    """One database in a folder of its own, and all connections to it."""

    loads_newest = True
    """Loading an object in mid-transaction notices that others have changed it, as in 4.3; else
    it finds what was newest when the transaction began."""

    def __init__(self, folder: Path) -> None:
        self.connections: list[Connection[Any]] = []
        self.start(folder)

    @abstractmethod
    def start(self, folder: Path) -> None:
        """Make the database."""

    @abstractmethod
    def storage(self) -> Storage | ClassicStorage:
        """The storage for one more connection."""

    @abstractmethod
    def stop(self) -> None:
        """Close what `start` and `storage` have opened."""

    def connect(self) -> Connection[Any]:
        connection: Connection[Any] = Connection(self.storage())
        self.connections.append(connection)
        return connection

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        self.stop()


class Shared(Database):
    """All connections, and threads, share one storage."""

    shared: Storage | ClassicStorage

    def storage(self) -> Storage | ClassicStorage:
        return self.shared

    def stop(self) -> None:
        self.shared.close()


class Each(Database):
    """Each connection has a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self.opened: list[Storage | ClassicStorage] = []
        super().__init__(folder)

    @abstractmethod
    def open(self) -> Storage | ClassicStorage:
        """Open one more storage of the same database."""

    def storage(self) -> Storage | ClassicStorage:
        self.opened.append(self.open())
        return self.opened[-1]

    def stop(self) -> None:
        for storage in self.opened:
            storage.close()


# In this process


class Memory(Shared):
    def start(self, folder: Path) -> None:
        self.shared = MemoryStorage()


class UsersOwn(Shared):
    def start(self, folder: Path) -> None:
        self.shared = DictStorage()


class Log(Shared):
    def start(self, folder: Path) -> None:
        self.shared = FileStorage(folder / "log.durus")


class Shelf(Shared):
    def start(self, folder: Path) -> None:
        self.shared = ShelfStorage(folder / "shelf.durus")


class Dfs20(Shared):
    def start(self, folder: Path) -> None:
        self.shared = FileStorage2(folder / "dfs20.durus")


class Sqlite(Shared):
    def start(self, folder: Path) -> None:
        self.shared = SqliteStorage(folder / "shared.sqlite")


class SqliteEach(Each):
    """Each connection opens the file anew, as several processes do."""

    loads_newest = False

    def start(self, folder: Path) -> None:
        self.path = folder / "each.sqlite"

    def open(self) -> Storage:
        return SqliteStorage(self.path)


# Through a server


class Server:
    """A server in a thread, that listens on a free port."""

    def __init__(self, storage: Storage | ClassicStorage) -> None:
        self.server = StorageServer(storage, port=0)
        self.address = self.server.listen()
        self.thread = threading.Thread(target=self.server.serve)
        self.thread.start()

    def stop(self) -> None:
        self.server.stop()
        self.thread.join()


class Clients(Each):
    """Each connection has a client."""

    address: SocketAddress | str

    def open(self) -> ClassicStorage:
        return ClientStorage(address=self.address)


class ServedClients(Clients):
    @abstractmethod
    def make_storage(self, folder: Path) -> Storage | ClassicStorage:
        """What is served."""

    def start(self, folder: Path) -> None:
        self.server = Server(self.make_storage(folder))
        self.address = self.server.address

    def stop(self) -> None:
        super().stop()
        self.server.stop()


class ClientsOfMemory(ServedClients):
    def make_storage(self, folder: Path) -> Storage:
        return MemoryStorage()


class ClientsOfLog(ServedClients):
    def make_storage(self, folder: Path) -> Storage:
        return FileStorage(folder / "log.durus")


class ClientsOfShelf(ServedClients):
    def make_storage(self, folder: Path) -> ClassicStorage:
        return ShelfStorage(folder / "shelf.durus")


class OneClientOfMemory(Shared):
    """All connections share one client."""

    def start(self, folder: Path) -> None:
        self.server = Server(self.make_storage(folder))
        self.shared = ClientStorage(address=self.server.address)

    def make_storage(self, folder: Path) -> Storage:
        return MemoryStorage()

    def stop(self) -> None:
        super().stop()
        self.server.stop()


class OneClientOfLog(OneClientOfMemory):
    def make_storage(self, folder: Path) -> Storage:
        return FileStorage(folder / "log.durus")


class ClientsOfDurus43(Clients):
    """Each connection has a client of one server of Durus 4.3."""

    python: Path
    """One that has Durus 4.3."""

    def start(self, folder: Path) -> None:
        self.address = str(folder / "socket")
        options = [f"--file={folder / 'served.durus'}", f"--address={self.address}"]
        self.process = subprocess.Popen(
            [self.python, "-m", "durus", "-s", *options], stderr=subprocess.DEVNULL
        )
        wait_for_server(address=self.address, sleeptime=0.02)

    def stop(self) -> None:
        super().stop()
        self.process.terminate()
        self.process.wait()


DATABASES: dict[str, type[Database]] = {
    "memory": Memory,
    "user's own": UsersOwn,
    "log": Log,
    "shelf": Shelf,
    "dfs20": Dfs20,
    "sqlite": Sqlite,
    "sqlite, each": SqliteEach,
    "clients of memory": ClientsOfMemory,
    "clients of log": ClientsOfLog,
    "clients of shelf": ClientsOfShelf,
    "one client of memory": OneClientOfMemory,
    "one client of log": OneClientOfLog,
    "clients of 4.3": ClientsOfDurus43,
}


@contextmanager
def open_databases(
    request: pytest.FixtureRequest, folder: Path
) -> Iterator[Callable[[], Database]]:
    """A function that makes databases of the kind `request.param`; they are closed at the end."""
    kind: type[Database] = request.param
    if issubclass(kind, ClientsOfDurus43):
        kind.python = request.getfixturevalue("durus43_python")
    made: list[Database] = []

    def make() -> Database:
        place = folder / f"database{len(made)}"
        place.mkdir()
        made.append(kind(place))
        return made[-1]

    try:
        yield make
    finally:
        for database in made:
            database.close()
