"""Whole SHELF-1 and DFS20 files as streams of transactions, and the other way: for conversion.

`durus.formats` has all of them in its table.  Invariants: records are read, and written, one by
one; what is not sound is refused, and not left out; a file that is written is whole, or is removed
again.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from typing import Final

from durus import dfs20_format, serialize, shelf_format
from durus.appearing import appearing_at, making
from durus.classic_file import ReadAhead, make_empty_file, name_of
from durus.classic_format import ClassicFormat
from durus.dfs20_format import DFS20
from durus.error import CorruptionError, StorageError
from durus.file import File
from durus.file_format import StoredDatabase, StoredTransaction
from durus.file_system import OperatingSystem
from durus.interfaces import Oid, Record
from durus.record import record_from_classic, record_to_classic
from durus.shelf import OffsetMap, Shelf
from durus.shelf_format import SHELF

__all__ = ["read_dfs20", "read_shelf", "write_dfs20", "write_shelf"]

_NUMBERS_EACH_MAX: Final = 64
_NUMBERS_MIN: Final = 1 << 20


@contextlib.contextmanager
def read_shelf(path: str) -> Iterator[StoredDatabase]:
    """All transactions of a SHELF-1 file since its last pack; it is only read.

    Raises StorageOpenError; and CorruptionError, also while the transactions are read.
    """
    with SHELF.open_to_read(path) as reader:
        yield StoredDatabase(transactions=_read_shelf(reader))


def _read_shelf(reader: ReadAhead) -> Iterator[StoredTransaction]:
    base_end = shelf_format.locate_base(reader)
    yield StoredTransaction(records=_read_shelf_base(reader, base_end))
    yield from _read_others(SHELF, reader, shelf_format.locate_transactions(reader, base_end))


def _read_shelf_base(reader: ReadAhead, base_end: int) -> Iterator[tuple[Oid, Record]]:
    reader.file.seek(base_end)
    offset_map = OffsetMap(reader.file)
    start, check = shelf_format.BASE_START, shelf_format.is_record_item
    for name, offset, end in shelf_format.walk_items(reader, start, base_end, check):
        if offset_map.get(int.from_bytes(name)) != offset:
            reason = "the offset map does not lead to this record"
            raise CorruptionError(name_of(reader.file), offset, reason, name)
        yield record_from_classic(reader.read(offset + 16, end - offset - 16))
        start = end
    if start != base_end:
        raise CorruptionError(name_of(reader.file), start, "there is no whole record here")


@contextlib.contextmanager
def read_dfs20(path: str) -> Iterator[StoredDatabase]:
    """All transactions of a DFS20 file since its last pack; it is only read.

    Raises StorageOpenError; and CorruptionError, also while the transactions are read.
    """
    with DFS20.open_to_read(path) as reader:
        yield StoredDatabase(transactions=_read_dfs20(reader))


def _read_dfs20(reader: ReadAhead) -> Iterator[StoredTransaction]:
    index = dfs20_format.read_index(reader)
    yield StoredTransaction(records=_read_dfs20_base(reader, index))
    yield from _read_others(DFS20, reader, index.end)


def _read_dfs20_base(
    reader: ReadAhead, index: dfs20_format.Dfs20Index
) -> Iterator[tuple[Oid, Record]]:
    missing = len(index.offsets)
    position = dfs20_format.BASE_START
    for oid, offset, end in dfs20_format.walk_records(reader, position):
        if offset >= index.start:
            break
        # What was changed while it was packed is there more than once.
        if oid is not None and index.offsets.get(oid) == offset:
            missing -= 1
            yield record_from_classic(reader.read(offset + 4, end - offset - 4))
        position = end
    if position != index.start:
        raise CorruptionError(name_of(reader.file), position, "there is no whole record here")
    if missing:
        reason = f"the index leads to {missing} records that are not there"
        raise CorruptionError(name_of(reader.file), index.start, reason)


def _read_others(
    form: ClassicFormat, reader: ReadAhead, position: int
) -> Iterator[StoredTransaction]:
    """The transactions after the base."""
    for transaction in form.read_transactions(reader, position):
        places = (form.locate_record(reader, at) for at in sorted(transaction.offsets.values()))
        yield StoredTransaction(
            records=(record_from_classic(reader.read(*place)) for place in places)
        )


# Writing


def write_shelf(path: str, database: StoredDatabase) -> None:
    """Make a new, packed SHELF-1 file of a database that has each oid once; durable on return.

    Raises StorageOpenError when the file cannot be made, StorageError when it cannot hold the
    database, and whatever the database raises while it is read; then there is no file, unless it is
    the sync of its directory that has failed.
    """
    with _new_file(path) as file:
        for _ in Shelf.generate_shelf(file, _check_density(_encode(database))):
            pass


def _check_density(records: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """The records; at their end StorageError if the offset map, an array, would be mostly holes."""
    count = number = 0
    for count, (oid, record) in enumerate(records, 1):  # noqa: B007 (used after the loop)
        number = max(number, int.from_bytes(oid))
        yield oid, record
    if number > max(_NUMBERS_MIN, _NUMBERS_EACH_MAX * count):
        raise StorageError(
            f"a SHELF-1 file has room for all oids up to {number} or none, but there are only "
            f"{count} objects; convert the database with renumber=True"
        )


def write_dfs20(path: str, database: StoredDatabase) -> None:
    """Make a new, packed DFS20 file of a database that has each oid once; durable on return.

    Raises as `write_shelf`.
    """
    with _new_file(path) as file:
        for _ in dfs20_format.write_base(file, _encode(database)):
            pass
        walk = dfs20_format.walk_records(ReadAhead(file), dfs20_format.BASE_START)
        dfs20_format.write_index(file, ((oid, offset) for oid, offset, _ in walk if oid))


def _encode(database: StoredDatabase) -> Iterator[tuple[bytes, bytes]]:
    compress = serialize.WRITE_COMPRESSED_STATE_PICKLES  # asked each time: users may set it
    for transaction in database.transactions:
        for oid, record in transaction.records:
            yield oid, record_to_classic(oid, record, compress=compress)


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[File]:
    """An empty file, which is durable and has its name at the end: see `appearing_at`."""
    path = os.path.abspath(path)
    with making(path):
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        with (
            appearing_at(OperatingSystem(), path) as aside,
            contextlib.closing(make_empty_file(aside)) as file,
        ):
            yield file
            file.fsync()
