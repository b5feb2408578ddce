"""ZODB 6 with its FileStorage, which syncs each transaction."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from persistent import Persistent
from transaction import TransactionManager
from ZODB import DB
from ZODB.Connection import resetCaches
from ZODB.FileStorage import FileStorage

from bench.peer import NotMeasuredError

__all__ = ["PEER", "Batch", "Entry", "Item"]

_CACHE_SIZE = 100_000
"""As of a connection of Durus; by default ZODB keeps 400 objects."""


class Item(Persistent):  # type: ignore[misc]  # ZODB has no types
    """See `bench.peer`."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text


class Batch(Persistent):  # type: ignore[misc]  # ZODB has no types
    """See `bench.peer`."""

    def __init__(self, items: list[Any], previous: object) -> None:
        self.items = items
        self.previous = previous


class Entry(Persistent):  # type: ignore[misc]  # ZODB has no types
    """See `bench.peer`."""

    def __init__(self, number: int, text: str, data: str, previous: object) -> None:
        self.number = number
        self.name = f"entry {number}"
        self.text = text
        self.data = data
        self.previous = previous


class _Session:
    def __init__(self, database: Any) -> None:
        manager = TransactionManager()
        resetCaches()  # else a connection from the pool keeps what it has loaded
        self._connection = database.open(transaction_manager=manager)
        self.root: MutableMapping[str, Any] = self._connection.root()
        self.commit = manager.commit
        self.get = self._connection.get

    def close(self) -> None:
        self._connection.close()


class _Database:
    def __init__(self, path: Path) -> None:
        self._database = DB(FileStorage(str(path)), cache_size=_CACHE_SIZE)

    def connect(self) -> _Session:
        return _Session(self._database)

    def pack(self) -> None:
        self._database.pack()

    def close(self) -> None:
        self._database.close()


class _Zodb:
    lacks = {"processes": "a ZODB FileStorage serves one process; more need a server (ZEO)"}
    distributions = ("ZODB", "BTrees", "persistent")
    c_module = "persistent.cPersistence"

    def open(self, path: Path) -> _Database:
        return _Database(path)

    def make_item(self, number: int, text: str) -> Item:
        return Item(number, text)

    def make_batch(self, items: list[Any], previous: object) -> Batch:
        return Batch(items, previous)

    def make_entry(self, number: int, text: str, data: str, previous: object) -> Entry:
        return Entry(number, text, data, previous)

    def back_up(self, path: Path, folder: Path) -> object:
        raise NotMeasuredError("its backups are programs of their own")


PEER = _Zodb()
