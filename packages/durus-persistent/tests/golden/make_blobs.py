"""Writes `blobs.json`: what the first release with blobs stores for them.

Run by hand, once, and never again; what later releases add goes into a file of its own:

    python make_blobs.py

The file holds {"names": {name: oid}, "records": {oid: [class pickle, state pickle, references]}},
with hexadecimal digits.  `test_golden_blobs.py` makes the same blobs, and compares.
"""

import copy
import json
import pathlib

from durus.blob import Blob
from durus.connection import Connection
from durus.crawl import crawl_snapshot
from durus.memory_storage import MemoryStorage


def build() -> dict[str, Blob]:
    """The blobs, by name."""
    blobs = {
        "empty": Blob(),
        "small": Blob(b"in one chunk"),
        "whole chunks": Blob(b"12345678", chunk_size=4),
        "and a rest": Blob(b"123456789", chunk_size=4),
        "changed": Blob(b"123456789", chunk_size=4),
        "with a hole": Blob(b"", chunk_size=4),
    }
    with blobs["with a hole"].open("w") as file:
        file.seek(18)
        file.write(b"end")
    blobs["copy"] = copy.copy(blobs["changed"])
    with blobs["changed"].open("r+") as changed:
        changed.seek(5)
        changed.write(b"x")
    return blobs


def store() -> dict[str, object]:
    """What is stored for them."""
    storage = MemoryStorage()
    connection = Connection(storage)
    connection.root.update(build())
    connection.commit()
    return {
        "names": {name: int.from_bytes(blob._p_oid) for name, blob in connection.root.items()},
        "records": {
            int.from_bytes(oid): [part.hex() for part in revision.record]
            for oid, revision in crawl_snapshot(storage.snapshot())
        },
    }


if __name__ == "__main__":
    target = pathlib.Path(__file__).with_name("blobs.json")
    target.write_text(json.dumps(store(), indent=1) + "\n")
