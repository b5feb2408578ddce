"""The bytes of a record in a log file, and of the slot that it stands in; `log_format` draws them.

`log_codec` compresses and unpacks them.  Invariants: a record is valid anywhere, but for the
dictionary that it may need, so it is copied byte for byte; every bit is covered by its checksum;
what it refers to is never compressed.
"""

import struct
import zlib
from typing import Final, NamedTuple

from durus.error import UnstorableError
from durus.interfaces import Oid, Record
from durus.log_codec import CODEC_MAX, RecordCodec

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
    class_size: int
    """The length of the class pickle, whether it is compressed or not."""
    record: Record
    """If it is compressed, its class pickle is empty here, and its state is the block."""


def encode_record(oid: Oid, record: Record, codec: RecordCodec | None = None) -> bytes:
    """The record as it is stored, good at any place; UnstorableError when it is too large.

    codec: compresses it, if that is worth it; None: it stays as it is.
    """
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
    if not (class_pickle or refs or state):
        raise ValueError(f"the record of oid {number} is empty, as only that of a removed one is")
    class_size = len(class_pickle)
    codec_number = 0
    compressed = None if codec is None else codec.compress(class_pickle, state)
    if compressed is not None:
        class_pickle = b""
        codec_number, state = compressed
    head = _RECORD.pack(0, number, codec_number, 0, class_size, len(refs) // 8, len(state))
    content = b"".join([head[4:], class_pickle, refs, state])
    return zlib.crc32(content).to_bytes(4) + content


def measure_record(head: bytes) -> int | None:
    """The size of the record that begins with `head`; None when it is cut off."""
    if len(head) < RECORD_HEAD_SIZE:
        return None
    _, _, codec, _, class_size, ref_count, state_size = _RECORD.unpack_from(head)
    size: int = RECORD_HEAD_SIZE + 8 * ref_count + state_size
    return size if codec else size + class_size


def decode_record(content: bytes) -> LoggedRecord | None:
    """The record that `content` is, to the byte; None when it is damaged.

    What is compressed is not unpacked.
    """
    if len(content) != measure_record(content):
        return None
    crc, _, codec, kind, class_size, ref_count, _ = _RECORD.unpack_from(content)
    if crc != zlib.crc32(memoryview(content)[4:]):
        return None
    if (kind == _KIND_REMOVED) != (len(content) == RECORD_HEAD_SIZE):
        return None  # the size in a directory tells a removal
    refs = RECORD_HEAD_SIZE if codec else RECORD_HEAD_SIZE + class_size
    state = refs + 8 * ref_count
    record = Record(content[RECORD_HEAD_SIZE:refs], content[state:], content[refs:state])
    return LoggedRecord(Oid(content[4:12]), codec, kind, class_size, record)


def peek_record(content: bytes, start: int) -> tuple[int, int, tuple[int, ...]] | None:
    """The number of the oid of the record at `start`, its size, and what it refers to, as numbers.

    For many records, and so without making objects of them, nor looking at the checksum.  None
    when it is cut off, or of a codec or kind that this release does not know.
    """
    if len(content) - start < RECORD_HEAD_SIZE:
        return None
    _, number, codec, kind, class_size, ref_count, state_size = _RECORD.unpack_from(content, start)
    refs = start + RECORD_HEAD_SIZE
    if not codec:
        refs += class_size
    end = refs + 8 * ref_count
    if codec > CODEC_MAX or kind or end > len(content):
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
    crc, found, codec, kind, class_size, ref_count, rest = _RECORD.unpack_from(content, start)
    if not codec:
        rest += class_size
    if found != number or size != RECORD_HEAD_SIZE + 8 * ref_count + rest:
        return False
    if (kind == _KIND_REMOVED) != (size == RECORD_HEAD_SIZE):
        return False
    return bool(crc == zlib.crc32(content[start + 4 : end]))


def decode_distance(content: bytes) -> int:
    """How far the slot that begins with `content` is from the start of its transaction."""
    distance: int = _DISTANCE.unpack_from(content)[0]
    return distance
