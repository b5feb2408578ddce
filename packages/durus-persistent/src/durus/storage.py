"""Storages as programs name them, and what is in a storage: who refers to what, how many of each.

The names of Durus 4.x's module of this name are here: the classic base class, `MemoryStorage`, and
the functions that count objects, which take storages of either kind; `OverlayStorage` is new.
"""

import contextlib
from collections.abc import Iterator

from durus import interfaces
from durus.classic_storage import ClassicCalls, Storage
from durus.crawl import crawl_snapshot
from durus.memory_storage import MemoryStorage
from durus.opening import open_storage
from durus.overlay_storage import OverlayStorage
from durus.record import extract_class_name, record_to_classic, split_oids, unpack_record

__all__ = [
    "ClassicCalls",
    "MemoryStorage",
    "OverlayStorage",
    "Storage",
    "gen_oid_class",
    "gen_referring_oid_record",
    "get_census",
    "get_reference_index",
    "open_storage",
]


def _gen_oid_record(storage: Storage | interfaces.Storage) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(storage, Storage):
        yield from storage.gen_oid_record()
        return
    with contextlib.closing(storage.snapshot()) as snapshot:
        for oid, revision in crawl_snapshot(snapshot):
            yield oid, record_to_classic(oid, revision.record)


def gen_referring_oid_record(
    storage: Storage | interfaces.Storage, referred_oid: bytes
) -> Iterator[tuple[bytes, bytes]]:
    """The oids and classic records of the objects that refer to `referred_oid`."""
    for oid, record in _gen_oid_record(storage):
        if referred_oid in split_oids(unpack_record(record)[2]):
            yield oid, record


def gen_oid_class(
    storage: Storage | interfaces.Storage, *classes: bytes | str
) -> Iterator[tuple[bytes, bytes]]:
    """The oids and class names (without module) of all objects, or of those of some classes."""
    wanted = {name.encode() if isinstance(name, str) else name for name in classes}
    for oid, record in _gen_oid_record(storage):
        class_name = extract_class_name(record)
        if not wanted or class_name in wanted:
            yield oid, class_name


def get_census(storage: Storage | interfaces.Storage) -> dict[bytes, int]:
    """How many objects there are of each class: {b"PersistentDict": 1, ...}."""
    census: dict[bytes, int] = {}
    for _, class_name in gen_oid_class(storage):
        census[class_name] = census.get(class_name, 0) + 1
    return census


def get_reference_index(storage: Storage | interfaces.Storage) -> dict[bytes, list[bytes]]:
    """For each oid that is referred to, the oids of the objects that do.  It may be large."""
    index: dict[bytes, list[bytes]] = {}
    for oid, record in _gen_oid_record(storage):
        for ref in split_oids(unpack_record(record)[2]):
            index.setdefault(ref, []).append(oid)
    return index
