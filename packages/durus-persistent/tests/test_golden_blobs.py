"""Blobs that the first release with blobs has stored are read for ever, and stored in that form.

`golden/make_blobs.py` wrote `golden/blobs.json`.
"""

import io
import json
import pickle
import runpy
from pathlib import Path
from typing import Any

import pytest

from durus.blob import Blob
from durus.connection import Connection
from durus.interfaces import Oid, Record
from durus.memory_storage import MemoryStorage
from durus.testing.storage_contract import commit

GOLDEN = Path(__file__).with_name("golden")
CONTENT: dict[str, Any] = json.loads((GOLDEN / "blobs.json").read_text())
make_blobs = runpy.run_path(str(GOLDEN / "make_blobs.py"))
BLOBS: dict[str, Blob] = make_blobs["build"]()


def name(number: str) -> Oid:
    return Oid(int(number).to_bytes(8))


class Reader(pickle.Unpickler):
    """References become oid and class."""

    def persistent_load(self, reference: Any) -> Any:
        return reference


def spell_out(record: list[str]) -> list[object]:
    """What is in the pickles, for Python may come to write them in another way."""
    class_pickle, state_pickle, refs = map(bytes.fromhex, record)
    return [Reader(io.BytesIO(content)).load() for content in (class_pickle, state_pickle)] + [refs]


@pytest.fixture
def connection() -> Connection:
    """To a storage that has the golden records."""
    storage = MemoryStorage()
    records = {
        name(number): Record(*map(bytes.fromhex, record))
        for number, record in CONTENT["records"].items()
    }
    commit(storage, records, created=records)
    return Connection(storage)


def test_what_the_first_release_stored_is_read_and_can_be_changed(connection: Connection) -> None:
    assert list(connection.root) == list(BLOBS) == list(CONTENT["names"])
    for key, built in BLOBS.items():
        blob = connection.root[key]
        assert (type(blob), blob._p_oid) == (Blob, name(CONTENT["names"][key]))
        assert blob.read_bytes() == built.read_bytes()
        assert blob._content[:2] == built._content[:2]
        with blob.open("r+") as file:
            file.seek(2)
            file.write(b"new")
    connection.commit()
    for key, built in BLOBS.items():
        content = built.read_bytes().ljust(2, b"\0")
        blob = Connection(connection.storage).root[key]
        assert blob.read_bytes() == content[:2] + b"new" + content[5:]


def test_what_is_stored_today_is_what_the_first_release_stored() -> None:
    stored = json.loads(json.dumps(make_blobs["store"]()))
    assert stored["names"] == CONTENT["names"]
    assert stored["records"].keys() == CONTENT["records"].keys()
    for number, record in CONTENT["records"].items():
        assert spell_out(stored["records"][number]) == spell_out(record)
