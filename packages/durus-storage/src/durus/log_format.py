"""The bytes of a log file: encoding and decoding its entries, without any input or output.

`log_header` has those of the file's header, `log_record` those of the records.

`docs/format.md` says why everything is as it is, and is enough to read a file without this module.
All numbers are big-endian; `crc` is zlib.crc32; rows are 8 bytes.

    file header                              transaction
    +------------------------------+         +------------------------------+
    | 89 'DUR' 0D 0A 1A 0A         |         | F5 'TXN'      | crc          |
    | version 1     | header length|         | length                       |
    | database id                  |         | tid                          |
    |                              |         | time, ns since 1970 (signed) |
    | file id                      |         | transaction id               |
    |                              |         | next oid (after it)          |
    | features: else refuse        |         | record count  | user length  |
    | features: else read only     |         | note length   | ext. length  |
    | features: may be ignored     |         | flags         | rest crc     |
    | horizon tid                  |         | user, note, extension        |
    | next oid                     |         | directory                    |
    | created, ns since 1970       |         | record slots                 |
    | extension                    |         | length                       |
    | 'END' F7      | crc          |         | 'END' F7      |              |
    +------------------------------+         +------------------------------+
    directory entry                          record slot
    +------------------------------+         +---------------+
    | oid                          |         | distance back |
    | slot of previous revision, 0 |         | record                       |
    | record length |              |         +------------------------------+
    +---------------+
    record                                   mark
    +------------------------------+         +------------------------------+
    | crc           | oid          |         | F6 'MRK'      | crc          |
    | oid           |codec|kind| cl|         | length 44                    |
    | ref. count    | state length |         | tid                          |
    | class pickle, refs, state    |         | flags (1: not synced)        |
    +------------------------------+         | length 44                    |
    cl: class pickle length, 2 bytes.        | 'END' F7      |              |
    If codec is not 0: refs, block           +------------------------------+
    void                                     reservation
    +------------------------------+         +------------------------------+
    | F9 'VOD'      | crc          |         | FA 'OID'      | crc          |
    | length 36                    |         | length 36                    |
    | start of what it seals       |         | next oid                     |
    | length from that start       |         | length 36                    |
    | 'END' F7      |              |         | 'END' F7      |              |
    +------------------------------+         +------------------------------+

Invariants: no entry is valid at another offset or in another file; a record is valid anywhere;
every bit is covered by a checksum or is compared with what it must be.
"""

import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Final, NamedTuple, NotRequired, TypedDict, Unpack

from durus.error import StorageError
from durus.interfaces import Oid, Tid
from durus.log_header import END_TAG, is_extension
from durus.log_record import SLOT_HEAD_SIZE

__all__ = [
    "DIRECTORY_ENTRY_SIZE",
    "END_TAG",
    "FIXED_SIZE",
    "FLAGS_READ_ONLY",
    "FLAGS_REFUSE",
    "MARK_SIZE",
    "MARK_TAG",
    "NOT_SYNCED",
    "RESERVATION_SIZE",
    "TRAILER_SIZE",
    "TRANSACTION_SIZE_MAX",
    "UNKNOWN_MARK_FLAGS",
    "VOID_SIZE",
    "VOID_TAG",
    "Entry",
    "LoggedTransaction",
    "Mark",
    "Reservation",
    "TransactionFields",
    "TransactionHead",
    "Void",
    "decode_entry_head",
    "decode_trailer",
    "decode_transaction",
    "encode_mark",
    "encode_reservation",
    "encode_slots",
    "encode_trailer",
    "encode_transaction",
    "encode_transaction_start",
    "encode_void",
    "find_displaced_mark",
]

# A torn write leaves zeros or nothing where it did not arrive.  Every tag begins, and END_TAG
# ends, with a byte of many set bits, so that a torn entry never looks like one with a flipped bit.
TRANSACTION_TAG: Final = b"\xf5TXN"
MARK_TAG: Final = b"\xf6MRK"
VOID_TAG: Final = b"\xf9VOD"
RESERVATION_TAG: Final = b"\xfaOID"

NOT_SYNCED: Final = 1
"""The flag of a mark whose transaction was not made durable before it."""

# Flags say for single entries what the feature words of the header say for the file.
UNKNOWN_MARK_FLAGS: Final = 0xFFFF_FFFF & ~NOT_SYNCED
"""Who meets one of these flags in a mark must not go on; higher ones may be ignored."""
FLAGS_REFUSE: Final = 0xFF
"""Who meets one of these flags in a transaction must not go on."""
FLAGS_READ_ONLY: Final = 0xFF00
"""Who meets one of these flags in a transaction may read only; higher ones may be ignored."""

_DISPLACEMENT_MAX: Final = 1024
"""If no more bytes than this were inserted or lost, the marks after them are recognised."""

_TRANSACTION = struct.Struct(">4sIQQqQQIIIIII")
_MARK = struct.Struct(">4sIQQQQ4s")
_SEAL = struct.Struct(">4sIQQQ4s")  # a void or a reservation
_TRAILER = struct.Struct(">Q4s")
_DIRECTORY_ENTRY = struct.Struct(">QQI")

DIRECTORY_ENTRY_SIZE: Final = _DIRECTORY_ENTRY.size
FIXED_SIZE: Final = _TRANSACTION.size
"""So many bytes from the start of an entry say what it is."""
MARK_SIZE: Final = _MARK.size
VOID_SIZE: Final = _SEAL.size
RESERVATION_SIZE: Final = _SEAL.size
TRAILER_SIZE: Final = _TRAILER.size

TRANSACTION_SIZE_MAX: Final = 0xFFFF_FFFF


def _crc(file_id: bytes, offset: int, content: bytes) -> int:
    """The checksum of an entry: it holds in this file and at this offset only."""
    return zlib.crc32(content, zlib.crc32(offset.to_bytes(8), zlib.crc32(file_id)))


@dataclass(frozen=True, slots=True)
class Mark:
    """Makes the transactions before it visible, up to this tid."""

    offset: int
    tid: Tid
    flags: int = 0

    @property
    def end(self) -> int:
        return self.offset + MARK_SIZE

    @property
    def synced(self) -> bool:
        return not self.flags & NOT_SYNCED


@dataclass(frozen=True, slots=True)
class Void:
    """Seals what lies between `start` and itself: unfinished or refused, and never to be read."""

    offset: int
    start: int

    @property
    def end(self) -> int:
        return self.offset + VOID_SIZE


@dataclass(frozen=True, slots=True)
class Reservation:
    """Oids below `next_oid` have been handed out."""

    offset: int
    next_oid: int

    @property
    def end(self) -> int:
        return self.offset + RESERVATION_SIZE


class TransactionHead(NamedTuple):
    """The fixed part of a transaction: enough to know its tid and its extent."""

    offset: int
    size: int
    tid: Tid
    time_ns: int
    id: int
    next_oid: int
    record_count: int
    user_size: int
    note_size: int
    extension_size: int
    flags: int
    rest_crc: int

    @property
    def end(self) -> int:
        return self.offset + self.size

    @property
    def rest_size(self) -> int:
        """The size of user, note, extension and directory."""
        texts = self.user_size + self.note_size + self.extension_size
        return texts + self.record_count * _DIRECTORY_ENTRY.size

    @property
    def slots_offset(self) -> int:
        """Where the first record slot is."""
        return self.offset + FIXED_SIZE + self.rest_size


class DirectoryEntry(NamedTuple):
    """One record of a transaction, as its directory has it."""

    oid: int
    slot: int
    """Where its record slot is."""
    previous: int
    """Where the slot of its previous revision is, or 0."""
    size: int
    """The bytes of the record, without the head of its slot."""


class LoggedTransaction(NamedTuple):
    """A transaction without its records."""

    head: TransactionHead
    user: str
    note: str
    extension: bytes
    directory: bytes

    @property
    def offset(self) -> int:
        return self.head.offset

    @property
    def end(self) -> int:
        return self.head.end

    @property
    def tid(self) -> Tid:
        return self.head.tid

    @property
    def oids(self) -> list[Oid]:
        """What it wrote, ascending."""
        size = _DIRECTORY_ENTRY.size
        return [Oid(self.directory[i : i + 8]) for i in range(0, len(self.directory), size)]

    def raw_entries(self) -> Iterator[tuple[int, int, int]]:
        """As `entries`, without the slots: numbers of oids, previous slots, sizes of records."""
        return _DIRECTORY_ENTRY.iter_unpack(self.directory)

    def entries(self) -> Iterator[DirectoryEntry]:
        slot = self.head.slots_offset
        for oid, previous, size in self.raw_entries():
            yield DirectoryEntry(oid, slot, previous, size)
            slot += SLOT_HEAD_SIZE + size

    def find_previous(self, oid: Oid) -> int | None:
        """Where the slot of the revision before this transaction's is (0: there is none).

        None when this transaction has no record of `oid`.
        """
        starts = range(0, len(self.directory), _DIRECTORY_ENTRY.size)
        index = bisect_left(starts, oid, key=lambda start: Oid(self.directory[start : start + 8]))
        if index == len(starts):
            return None
        number, previous, _ = _DIRECTORY_ENTRY.unpack_from(self.directory, starts[index])
        return previous if number == int.from_bytes(oid) else None


Entry = LoggedTransaction | Mark | Void | Reservation


def encode_mark(file_id: bytes, mark: Mark) -> bytes:
    content = _MARK.pack(MARK_TAG, 0, MARK_SIZE, mark.tid, mark.flags, MARK_SIZE, END_TAG)
    return _with_crc(file_id, mark.offset, content)


def find_displaced_mark(file_id: bytes, offset: int, content: bytes) -> Mark | None:
    """The mark that begins at `offset`, as it was where it was written, if that is near by.

    None if there is none, or it is in its place.
    """
    if len(content) < MARK_SIZE:
        return None
    tag, crc, size, tid, flags, size_again, end_tag = _MARK.unpack_from(content)
    if (tag, size, size_again, end_tag) != (MARK_TAG, MARK_SIZE, MARK_SIZE, END_TAG):
        return None
    checked = content[8 : MARK_SIZE - TRAILER_SIZE]
    for place in range(max(0, offset - _DISPLACEMENT_MAX), offset + _DISPLACEMENT_MAX + 1):
        if place != offset and _crc(file_id, place, checked) == crc:
            return Mark(place, Tid(tid), flags)
    return None


def encode_void(file_id: bytes, void: Void) -> bytes:
    back = void.end - void.start
    content = _SEAL.pack(VOID_TAG, 0, VOID_SIZE, void.start, back, END_TAG)
    return _with_crc(file_id, void.offset, content)


def encode_reservation(file_id: bytes, reservation: Reservation) -> bytes:
    size = RESERVATION_SIZE
    content = _SEAL.pack(RESERVATION_TAG, 0, size, reservation.next_oid, size, END_TAG)
    return _with_crc(file_id, reservation.offset, content)


def _with_crc(file_id: bytes, offset: int, content: bytes) -> bytes:
    crc = _crc(file_id, offset, content[8:-TRAILER_SIZE])
    return content[:4] + crc.to_bytes(4) + content[8:]


def decode_entry_head(
    file_id: bytes, offset: int, content: bytes
) -> TransactionHead | Mark | Void | Reservation | None:
    """What begins at `offset`, where the file has `content` (`FIXED_SIZE` bytes if it can).

    None when there is no valid entry.  Of a transaction the fixed part alone has been checked.
    """
    tag = content[:4]
    entry: Mark | Void | Reservation
    if tag == TRANSACTION_TAG:
        return _decode_transaction_head(file_id, offset, content)
    if tag == MARK_TAG and len(content) >= MARK_SIZE:
        _, _, _, tid, flags, _, _ = _MARK.unpack_from(content)
        entry = Mark(offset, Tid(tid), flags)
        return entry if content.startswith(encode_mark(file_id, entry)) else None
    if tag == VOID_TAG and len(content) >= VOID_SIZE:
        entry = Void(offset, _SEAL.unpack_from(content)[3])
        if not entry.start <= offset:
            return None
        return entry if content.startswith(encode_void(file_id, entry)) else None
    if tag == RESERVATION_TAG and len(content) >= RESERVATION_SIZE:
        entry = Reservation(offset, _SEAL.unpack_from(content)[3])
        return entry if content.startswith(encode_reservation(file_id, entry)) else None
    return None


def _decode_transaction_head(file_id: bytes, offset: int, content: bytes) -> TransactionHead | None:
    if len(content) < FIXED_SIZE:
        return None
    _, crc, *numbers = _TRANSACTION.unpack_from(content)
    if crc != _crc(file_id, offset, content[8:FIXED_SIZE]):
        return None
    size, tid, *others = numbers
    return TransactionHead(offset, size, Tid(tid), *others)


def decode_transaction(head: TransactionHead, rest: bytes) -> LoggedTransaction | None:
    """The transaction with this head; `rest` are the `rest_size` bytes after it.  None: damaged."""
    if len(rest) != head.rest_size or zlib.crc32(rest) != head.rest_crc:
        return None
    note = head.user_size
    extension = note + head.note_size
    directory = extension + head.extension_size
    transaction = LoggedTransaction(
        head,
        rest[:note].decode(errors="replace"),
        rest[note:extension].decode(errors="replace"),
        rest[extension:directory],
        rest[directory:],
    )
    return transaction if is_extension(transaction.extension) else None


class TransactionFields(TypedDict):
    """What a transaction says of itself, its records aside."""

    tid: Tid
    time_ns: int
    id: int
    next_oid: int
    user: NotRequired[str]
    note: NotRequired[str]
    extension: NotRequired[bytes]
    flags: NotRequired[int]


def encode_transaction_start(
    file_id: bytes,
    offset: int,
    entries: Sequence[tuple[int, int, int]],
    **fields: Unpack[TransactionFields],
) -> tuple[LoggedTransaction, bytes]:
    """A transaction to be written at `offset`, as it will be read, and its bytes up to its slots.

    entries: numbers of oids, ascending, slots of their previous revisions (or 0), and the sizes of
        their records.  Their slots follow, and `encode_trailer`.
    Raises StorageError when it is too large.
    """
    user, note, extension = (
        fields.get("user", ""),
        fields.get("note", ""),
        fields.get("extension", b""),
    )
    texts = [user.encode(), note.encode(), extension]
    directory = b"".join(starmap(_DIRECTORY_ENTRY.pack, entries))
    rest = b"".join([*texts, directory])
    size = FIXED_SIZE + len(rest) + TRAILER_SIZE
    size += sum(SLOT_HEAD_SIZE + entry[2] for entry in entries)
    if size > TRANSACTION_SIZE_MAX:
        raise StorageError(
            f"the transaction takes {size} bytes, and {TRANSACTION_SIZE_MAX} is the most: commit "
            "more often"
        )
    head = TransactionHead(
        offset,
        size,
        fields["tid"],
        fields["time_ns"],
        fields["id"],
        fields["next_oid"],
        len(entries),
        len(texts[0]),
        len(texts[1]),
        len(texts[2]),
        fields.get("flags", 0),
        zlib.crc32(rest),
    )
    fixed = _TRANSACTION.pack(TRANSACTION_TAG, 0, *head[1:])
    crc = _crc(file_id, offset, fixed[8:])
    content = b"".join([fixed[:4], crc.to_bytes(4), fixed[8:], rest])
    return LoggedTransaction(head, user, note, extension, directory), content


def encode_slots(distance: int, records: Iterable[bytes]) -> Iterator[bytes]:
    """The slots of encoded records, in two parts each; the first is so far from the start."""
    for record in records:
        yield distance.to_bytes(SLOT_HEAD_SIZE)
        yield record
        distance += SLOT_HEAD_SIZE + len(record)


def encode_transaction(
    file_id: bytes,
    offset: int,
    records: Sequence[tuple[Oid, int, bytes]],
    **fields: Unpack[TransactionFields],
) -> tuple[LoggedTransaction, bytes]:
    """A transaction to be written at `offset`, as it will be read, and as bytes.

    records: oid, slot of the previous revision (or 0), encoded record; ascending oids.
    Raises StorageError when it is too large.
    """
    entries = [(int.from_bytes(oid), previous, len(record)) for oid, previous, record in records]
    transaction, start = encode_transaction_start(file_id, offset, entries, **fields)
    slots = encode_slots(len(start), (record for _, _, record in records))
    return transaction, b"".join([start, *slots, encode_trailer(transaction.head.size)])


def encode_trailer(size: int) -> bytes:
    """The end of a transaction of so many bytes."""
    return _TRAILER.pack(size, END_TAG)


def decode_trailer(content: bytes) -> int | None:
    """How long the entry is that ends with these `TRAILER_SIZE` bytes; None if it is no end."""
    if len(content) != TRAILER_SIZE:
        return None
    size, tag = _TRAILER.unpack(content)
    return size if tag == END_TAG else None
