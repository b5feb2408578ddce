"""Mistakes with storages that a type checker must find: on the marked lines, and no others."""

from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.interfaces import NO_TID, Oid, Storage
from durus.persistent import Persistent


class Notes(Persistent):
    def __init__(self) -> None:
        self.text = ""


storage = FileStorage("notes.durus")
as_storage: Storage = storage
connection = Connection(storage, root_class=Notes)

FileStorage(3)  # error
FileStorage("notes.durus", readonly="yes")  # error
FileStorage("notes.durus", read_only=True)  # error
connection.root.txt = "misspelt"  # error
connection.root.text = 3  # error
storage.snapshot().load(3)  # error
storage.changes(NO_TID, "now")  # error
storage.clsoe()  # error
storage.commit({})  # error
oid: Oid = b"12345678"  # error
