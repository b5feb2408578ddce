"""An application that has durus-storage installed: what one process stores another one finds."""

import subprocess
import sys
from pathlib import Path
from typing import assert_type

from durus.btree import BTree
from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.interfaces import Storage
from durus.persistent import Persistent


class Note(Persistent):
    def __init__(self, text: str, follows: "Note | None" = None) -> None:
        self.text = text
        self.follows = follows


class Notes(Persistent):
    def __init__(self) -> None:
        self.by_number: BTree[int, Note] = BTree()


def write(path: Path) -> None:
    with Connection(path, root_class=Notes) as connection:
        first = Note("first")
        connection.root.by_number[1] = first
        connection.root.by_number[2] = Note("second", follows=first)
        connection.commit()
        connection.root.by_number[1].text = "never stored"
        connection.abort()


def read(path: Path) -> None:
    storage: Storage = FileStorage(path, readonly=True)
    connection = Connection(storage, root_class=Notes)
    notes = connection.root.by_number
    assert_type(notes[1].text, str)
    assert [note.text for note in notes.values()] == ["first", "second"]
    assert notes[2].follows is notes[1]
    storage.close()


def main() -> None:
    path = Path("notes.durus")
    if sys.argv[1:] == ["read"]:
        read(path)
        return
    write(path)
    subprocess.run([sys.executable, __file__, "read"], check=True)
    temporary = Connection(FileStorage())
    temporary.root["greeting"] = "hello"
    temporary.commit()
    print("storage_app works")


if __name__ == "__main__":
    main()
