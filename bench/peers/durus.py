"""What Durus 5 and Durus 4.3 have in common: the classic calls, which both have.

Runs in the environment of either.  The type checker sees Durus 5.
"""

import logging
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from bench.peer import NotMeasuredError
from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.persistent import Persistent

__all__ = ["Batch", "DurusDatabase", "DurusPeer", "DurusSession", "Entry", "Item"]

logging.getLogger("durus").setLevel(logging.CRITICAL)  # 4.3 prints a line for every transaction


class Item(Persistent):
    """See `bench.peer`."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text


class Batch(Persistent):
    """See `bench.peer`."""

    def __init__(self, items: list[Any], previous: object) -> None:
        self.items = items
        self.previous = previous


class Entry(Persistent):
    """See `bench.peer`."""

    def __init__(self, number: int, text: str, data: str, previous: object) -> None:
        self.number = number
        self.name = f"entry {number}"
        self.text = text
        self.data = data
        self.previous = previous


class DurusSession:
    """A connection."""

    def __init__(self, storage: FileStorage) -> None:
        connection = Connection(storage)
        self.root: MutableMapping[str, Any] = connection.get_root()
        self.commit = connection.commit
        self.get = connection.get

    def close(self) -> None:
        pass  # 4.3 knows nothing of the kind, and the storage is closed by the database


class DurusDatabase:
    """A file storage."""

    def __init__(self, storage: FileStorage) -> None:
        self.storage = storage

    def connect(self) -> DurusSession:
        return DurusSession(self.storage)

    def pack(self) -> None:
        self.storage.pack()

    def close(self) -> None:
        self.storage.close()


class DurusPeer:
    """Both versions, as far as they are the same."""

    lacks: dict[str, str] = {}
    distributions: tuple[str, ...] = ()
    c_module = ""

    def open(self, path: Path) -> DurusDatabase:
        return DurusDatabase(FileStorage(str(path)))

    def make_item(self, number: int, text: str) -> Item:
        return Item(number, text)

    def make_batch(self, items: list[Any], previous: object) -> Batch:
        return Batch(items, previous)

    def make_entry(self, number: int, text: str, data: str, previous: object) -> Entry:
        return Entry(number, text, data, previous)

    def back_up(self, path: Path, folder: Path) -> object:
        raise NotMeasuredError("its backups are programs of their own")
