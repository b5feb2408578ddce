"""The bytes of a DFS20 file: its index, its transactions, and what may be wrong with them.

    DFS20\\0 | offset of the index | transactions | index | transactions

`docs/classic-files.md` draws them; `FileStorage2` and the tools that read whole files ask here.  A
transaction is records up to a length of 0.  There are no checksums, so this is strict: what looks a
little wrong is not whole.
"""

import io
import pickle
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from durus.classic_file import DamagedEndError, ReadAhead, is_record_start, name_of
from durus.classic_format import ClassicFormat, ParsedTransaction
from durus.error import CorruptionError
from durus.file import File
from durus.pickle_opcodes import check_opcodes
from durus.unpickling import CONSTRUCTORS
from durus.utils import int8_to_str, write_int8_str

__all__ = [
    "BASE_START",
    "DFS20",
    "EMPTY_DFS20",
    "MAGIC",
    "Dfs20Index",
    "encode_block",
    "read_index",
    "walk_records",
    "write_base",
    "write_index",
]

MAGIC: Final = b"DFS20\0"
BASE_START: Final = len(MAGIC) + 8
"""Where the transactions before the index begin."""
RECORD_HEAD_SIZE: Final = 16
"""Length 4, and the oid and the length of the pickles that a record begins with."""
_COUNT_MAX: Final = 1000
"""So many entries are handed to the unpickler at once, as pickle itself does it."""


# Transactions


def walk_records(reader: ReadAhead, position: int) -> Iterator[tuple[bytes | None, int, int]]:
    """Oid, offset and end of each record from `position` on, up to the first that is not whole.

    For the length 0 that ends a transaction the oid is None; the next one follows it.
    """
    while len(head := reader.read(position, RECORD_HEAD_SIZE)) >= 4:
        size = int.from_bytes(head[:4])
        stop = position + 4 + size
        if size and (stop > reader.size or not is_record_start(head[4:], size)):
            return
        yield head[4:12] if size else None, position, stop
        position = stop


def _parse_transaction(reader: ReadAhead, start: int) -> ParsedTransaction:
    """Read one transaction: records, and a length of 0."""
    offsets: dict[bytes, int] = {}
    position = start
    for oid, offset, position in walk_records(reader, start):
        if oid is None:
            return ParsedTransaction(offsets, position, True)
        offsets[oid] = offset
    return ParsedTransaction(offsets, position, False)


def _locate_record(reader: ReadAhead, offset: int) -> tuple[int, int]:
    """Where the record begins whose length is at `offset`, and its size."""
    return offset + 4, int.from_bytes(reader.read(offset, 4))


# The end of a transaction, the length and the oid of a record, the length of the pickles, and the
# first byte of a pickle.
_TRANSACTION_START: Final = re.compile(rb"(?=\0{4}.{4}\0\0.{6}.{4}\x80)", re.DOTALL)
_SEARCHED_AT_ONCE: Final = 1 << 20


def _find_damage(reader: ReadAhead, position: int, after_empty: bool) -> tuple[int, int | None]:
    """`position`, and the offset of the first whole transaction after it that has a record.

    All that follows is searched, also what looks like records: one
    whose length is damaged may seem to go on into a later transaction.
    """
    overlap = 4 + RECORD_HEAD_SIZE
    # The zeros before `position` may be the first bytes of the length that the transaction begins
    # with, and not the length 0 that they were taken for.
    for start in range(max(BASE_START, position - 7), reader.size, _SEARCHED_AT_ONCE):
        piece = reader.read(start, _SEARCHED_AT_ONCE + overlap)
        for match in _TRANSACTION_START.finditer(piece):
            found = _parse_transaction(reader, start + match.start() + 4)
            if found.is_whole and found.offsets:
                return position, start + match.start() + 4
    return position, None


def encode_block(record: bytes) -> bytes:
    """A record after its length."""
    if len(record) >= 1 << 32:
        raise ValueError(f"a DFS20 file has no room for a record of {len(record)} bytes")
    return len(record).to_bytes(4) + record


# The index


class Dfs20Index(NamedTuple):
    """Where the records are that were there when the index was written."""

    offsets: dict[bytes, int]
    """By oid."""
    start: int
    end: int
    """Where the transactions after it begin."""


class _IndexUnpickler(pickle.Unpickler):
    """Makes dictionaries, texts, bytes and numbers, and finds nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("_codecs", "encode"):  # bytes, as protocol 2 writes them
            return CONSTRUCTORS[module, name]
        raise pickle.UnpicklingError(f"an index does not name {module}.{name}")


def read_index(reader: ReadAhead) -> Dfs20Index:
    """Find the index and load it, without ever making anything but a dictionary.

    Raises CorruptionError, which is a DamagedEndError when the file ends before.
    """
    path, size = name_of(reader.file), reader.size
    start = int.from_bytes(reader.read(len(MAGIC), 8))
    if size < BASE_START or start + 8 > size:
        raise DamagedEndError(path, 0, "the file ends before its index; restore a backup")
    if start < BASE_START:
        reason = "the index is not there: the file was never finished; restore a backup"
        raise CorruptionError(path, len(MAGIC), reason)
    end = start + 8 + int.from_bytes(reader.read(start, 8))
    if end > size:
        raise DamagedEndError(path, start, "the file ends within its index; restore a backup")
    try:
        # An entry takes far less in the index than its record in the file, whatever the protocol.
        pickled = _decompress(reader.read(start + 8, end - start - 8), 1000 + 8 * size)
        check_opcodes(pickled)
        # Python 2 has written str, which is text here; encoding="latin1" leaves no byte out.
        offsets = _IndexUnpickler(io.BytesIO(pickled), encoding="latin1").load()
        return Dfs20Index(_check_offsets(offsets, start), start, end)
    except Exception as error:  # of which unpickling has many kinds
        reason = f"the index is damaged: {type(error).__name__}: {error}; restore a backup"
        raise CorruptionError(path, start, reason) from error


def _decompress(compressed: bytes, size_max: int) -> bytes:
    decompressor = zlib.decompressobj()
    pickled = decompressor.decompress(compressed, size_max)
    if not decompressor.eof:
        raise ValueError(f"it is cut off, or has more than {size_max} bytes")
    return pickled


def _check_offsets(offsets: object, index_start: int) -> dict[bytes, int]:
    if type(offsets) is not dict:
        raise ValueError(f"it is a {type(offsets).__name__}, and no dictionary")
    checked: dict[bytes, int] = {}
    for oid, offset in offsets.items():
        key = oid.encode("latin1") if type(oid) is str else oid
        if type(key) is not bytes or len(key) != 8:
            raise ValueError(f"{oid!r} is no oid")
        if type(offset) is not int or not BASE_START <= offset < index_start:
            raise ValueError(f"{offset!r} is no offset")
        checked[key] = offset
    return checked


def write_base(
    file: File, records: Iterable[tuple[bytes, bytes]], index: dict[bytes, int] | None = None
) -> Iterator[object]:
    """Write the header and one transaction to an empty file, in steps; `write_index` finishes it.

    index: takes up where the record of each oid is; of those with the same oid the last one counts.
    """
    file.write(MAGIC + bytes(8))
    position = BASE_START
    for oid, record in records:
        block = encode_block(record)
        file.write(block)
        if index is not None:
            index[oid] = position
        position += len(block)
        yield oid
    file.write(bytes(4))


def write_index(file: File, offsets: Iterable[tuple[bytes, int]]) -> None:
    """Write the index at the end of a file that is not in use yet, and say in the header where.

    It is never in memory as a whole.  Of entries with the same oid the last one counts.
    """
    file.seek_end()
    start = file.tell()
    file.write(bytes(8))
    compressor = zlib.compressobj()
    for piece in _pickle_offsets(offsets):
        if compressed := compressor.compress(piece):
            file.seek_end()  # the offsets may be read from this file meanwhile
            file.write(compressed)
    file.seek_end()
    file.write(compressor.flush())
    size = file.tell() - start - 8
    file.seek(start)
    file.write(int8_to_str(size))
    file.seek(len(MAGIC))
    file.write(int8_to_str(start))
    file.seek_end()


def _pickle_offsets(offsets: Iterable[tuple[bytes, int]]) -> Iterator[bytes]:
    """A pickle of {oid: offset} in pieces."""
    yield pickle.PROTO + b"\x03" + pickle.EMPTY_DICT
    remaining = iter(offsets)
    while batch := list(islice(remaining, _COUNT_MAX)):
        entries = b"".join(
            b"%b\x08%b%b\x08%b"
            % (pickle.SHORT_BINBYTES, oid, pickle.LONG1, offset.to_bytes(8, "little"))
            for oid, offset in batch
        )
        yield pickle.MARK + entries + pickle.SETITEMS
    yield pickle.STOP


def _encode_empty() -> bytes:
    index = io.BytesIO()
    write_int8_str(index, zlib.compress(b"".join(_pickle_offsets([]))))
    return MAGIC + int8_to_str(BASE_START) + index.getvalue()


EMPTY_DFS20: Final = _encode_empty()
"""A file without objects: nothing before the index, and an index of nothing."""

DFS20: Final = ClassicFormat(
    name="DFS20",
    magic=MAGIC,
    empty=EMPTY_DFS20,
    parse=_parse_transaction,
    find_damage=_find_damage,
    locate_record=_locate_record,
)
