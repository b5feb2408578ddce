"""The bytes of a record in a log file, and of the slot that it stands in; `log_format` draws them.

Invariants: a record is valid anywhere, so it is copied byte for byte; every bit is covered by its
checksum.
"""

import struct
import zlib
from typing import Final, NamedTuple

from durus.error import UnstorableError
from durus.interfaces import Oid, Record

__all__ = [
    "RECORD_HEAD_SIZE",
    "SLOT_HEAD_SIZE",
    "LoggedRecord",
    "decode_distance",
    "decode_record",
    "encode_record",
    "is_record",
    "measure_record",
    "peek_record",
]

_KIND_REMOVED: Final = 1
_CODEC_OF_ALL: Final = 128
"""From this codec on all that follows the record's head is one block."""

_DISTANCE = struct.Struct(">I")
_RECORD = struct.Struct(">IQBBHII")

_REFS: Final = [struct.Struct(f">{count}Q") for count in range(16)]

SLOT_HEAD_SIZE: Final = _DISTANCE.size
RECORD_HEAD_SIZE: Final = _RECORD.size

_CLASS_PICKLE_SIZE_MAX: Final = 0xFFFF
_STATE_SIZE_MAX: Final = 0xFFFF_FFFF


class LoggedRecord(NamedTuple):
    """A record with what the file says of it."""

    oid: Oid
    codec: int
    kind: int
    record: Record


def encode_record(oid: Oid, record: Record) -> bytes:
    """The record as it is stored, good at any place; UnstorableError when it is too large."""
    number = int.from_bytes(oid)
    class_pickle, state, refs = record
    if len(class_pickle) > _CLASS_PICKLE_SIZE_MAX or len(state) > _STATE_SIZE_MAX:
        raise UnstorableError(
            f"the object with oid {number} is too large: its class pickle has {len(class_pickle)} "
            f"bytes ({_CLASS_PICKLE_SIZE_MAX} at most), its state {len(state)} bytes "
            f"({_STATE_SIZE_MAX} at most)"
        )
    if len(oid) != 8 or len(refs) % 8:
        raise ValueError(f"an oid has 8 bytes: oid {oid!r}, {len(refs)} bytes of references")
    head = _RECORD.pack(0, number, 0, 0, len(class_pickle), len(refs) // 8, len(state))
    content = b"".join([head[4:], class_pickle, refs, state])
    if not (class_pickle or refs or state):
        raise ValueError(f"the record of oid {number} is empty, as only that of a removed one is")
    return zlib.crc32(content).to_bytes(4) + content


def measure_record(head: bytes) -> int | None:
    """The size of the record that begins with `head`; None when it is cut off."""
    if len(head) < RECORD_HEAD_SIZE:
        return None
    _, _, codec, _, class_size, ref_count, state_size = _RECORD.unpack_from(head)
    size: int = RECORD_HEAD_SIZE + state_size
    if codec < _CODEC_OF_ALL:
        size += class_size + 8 * ref_count
    return size


def decode_record(content: bytes) -> LoggedRecord | None:
    """The record that `content` is, to the byte; None when it is damaged.

    What is stored is not decoded: of a codec that is not 0 the state, or (from 128 on) everything
    as one block in the place of the state, is what it is.
    """
    if len(content) != measure_record(content):
        return None
    crc, _, codec, kind, class_size, ref_count, _ = _RECORD.unpack_from(content)
    if crc != zlib.crc32(memoryview(content)[4:]):
        return None
    if (kind == _KIND_REMOVED) != (len(content) == RECORD_HEAD_SIZE):
        return None  # the size in a directory tells a removal
    if codec >= _CODEC_OF_ALL:
        class_size = ref_count = 0
    refs = RECORD_HEAD_SIZE + class_size
    state = refs + 8 * ref_count
    record = Record(content[RECORD_HEAD_SIZE:refs], content[state:], content[refs:state])
    return LoggedRecord(Oid(content[4:12]), codec, kind, record)


def peek_record(content: bytes, start: int) -> tuple[int, int, tuple[int, ...]] | None:
    """The number of the oid of the record at `start`, its size, and what it refers to, as numbers.

    For many records, and so without making objects of them, nor looking at the checksum.  None
    when it is cut off, or not stored plainly.
    """
    if len(content) - start < RECORD_HEAD_SIZE:
        return None
    _, number, codec, kind, class_size, ref_count, state_size = _RECORD.unpack_from(content, start)
    refs = start + RECORD_HEAD_SIZE + class_size
    end = refs + 8 * ref_count
    if codec or kind or end > len(content):
        return None
    size = end + state_size - start
    if ref_count < len(_REFS):
        return number, size, _REFS[ref_count].unpack_from(content, refs)
    return number, size, struct.unpack_from(f">{ref_count}Q", content, refs)


def is_record(content: bytes, start: int, number: int, size: int) -> bool:
    """Whether a record of so many bytes is at `start`, undamaged, and that of the oid `number`."""
    end = start + size
    if size < RECORD_HEAD_SIZE or end > len(content):
        return False
    crc, found, codec, _, class_size, ref_count, rest = _RECORD.unpack_from(content, start)
    if codec < _CODEC_OF_ALL:
        rest += class_size + 8 * ref_count
    if found != number or size != RECORD_HEAD_SIZE + rest:
        return False
    return bool(crc == zlib.crc32(content[start + 4 : end]))


def decode_distance(content: bytes) -> int:
    """How far the slot that begins with `content` is from the start of its transaction."""
    distance: int = _DISTANCE.unpack_from(content)[0]
    return distance
