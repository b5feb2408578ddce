"""The classic record: one object as bytes, the form of Durus 4.x files and protocol.

    oid 8 | length of the pickles 4 | class pickle, state pickle | oids of the references 8 each

In 4.x one pickler with one memo writes both pickles, so the state may refer to what the class
pickle memoized; and the state may be zlib-compressed.  In a `Record` the state stands alone.  It
is made to by putting the class pickle in front of it, with POP in the place of STOP:

    class pickle without STOP | 0 | state pickle

which leaves the memo filled and the stack empty.  Going back, that front is taken off again.  A
class pickle that memoizes nothing needs none; one that does would shift the memo of a state that
was made without it, so then it is made to memoize nothing.
"""

import pickletools
import re
import struct
import zlib
from contextlib import suppress
from functools import lru_cache
from typing import Final

from durus.interfaces import Oid, Record

__all__ = [
    "StateTooLargeError",
    "extract_class_name",
    "join_record",
    "pack_record",
    "record_from_classic",
    "record_to_classic",
    "split_oids",
    "split_record",
    "unpack_record",
]

# PROTO 2, GLOBAL module name, perhaps BINPUT into the memo, STOP: what 4.3 writes for a class.
_CLASS_PICKLE = re.compile(rb"\x80\x02c[^\n]+\n[^\n]+\n(q.)?\.", re.DOTALL)
_CLASS_PICKLE_WITHOUT_MEMO = re.compile(rb"\x80\x02c[^\n]+\n[^\n]+\n\.")
_ZLIB_START = 0x78
_POP = b"0"
_PROTO = b"\x80"

_SAMPLED_SIZE_MIN: Final = 1 << 15
_SAMPLES: Final = 4
_SAMPLE_SIZE: Final = 1 << 10


class StateTooLargeError(ValueError):
    """A compressed state has more bytes than somebody wants to have of it."""


def pack_record(oid: bytes, data: bytes, refs: bytes) -> bytes:
    """A classic record of an oid (8 bytes), two pickles in one, and packed oids."""
    return b"".join((oid, struct.pack(">L", len(data)), data, refs))


def unpack_record(record: bytes) -> tuple[Oid, bytes, bytes]:
    """The inverse of `pack_record`."""
    (length,) = struct.unpack_from(">L", record, 8)
    end = 12 + length
    return Oid(record[:8]), record[12:end], record[end:]


def split_oids(packed: bytes | str) -> list[Oid]:
    """The oids in a sequence of 8 bytes each."""
    if not packed:
        return []
    assert isinstance(packed, bytes)
    if len(packed) % 8:
        raise ValueError(f"{len(packed)} bytes are no sequence of oids of 8 bytes each")
    return [Oid(packed[i : i + 8]) for i in range(0, len(packed), 8)]


def extract_class_name(record: bytes) -> bytes:
    """The name of the class in a classic record, without its module; b'?' if there is none."""
    try:
        return unpack_record(record)[1].split(b"\n", 2)[1]
    except (IndexError, struct.error):
        return b"?"


def split_record(data: bytes, *, state_bytes_max: int | None = None) -> Record:
    """The two pickles of a classic record, made independent; no references.

    What is no pickle comes back whole as the state, with an empty class pickle.
    StateTooLargeError when the state is compressed and has more than `state_bytes_max` bytes.
    """
    match = _CLASS_PICKLE.match(data)
    end = match.end() if match else _find_stop(data)
    class_pickle, state = data[:end], data[end:]
    # Without a group there is nothing in the memo that the state could refer to.
    front = b"" if match and not match[1] else class_pickle[:-1] + _POP
    if state[:1] and state[0] == _ZLIB_START:
        with suppress(zlib.error):  # else it was no compressed pickle, whatever it is
            state = _decompress(state, state_bytes_max)
    if class_pickle and not state.startswith(front):
        state = front + state
    return Record(class_pickle, state, b"")


def join_record(record: Record, *, compress: bool = False) -> bytes:
    """The two pickles of a record as in a classic one: the inverse of `split_record`.

    compress: a large state that looks compressed already, a chunk of a film, stays as it is.
    """
    class_pickle, state, _ = record
    front = class_pickle[:-1] + _POP
    if class_pickle and state.startswith(front):
        state = state[len(front) :]
    elif class_pickle and not _CLASS_PICKLE_WITHOUT_MEMO.match(class_pickle):
        class_pickle = _forget_memo(class_pickle)
    return class_pickle + (zlib.compress(state) if compress and _may_gain(state) else state)


def record_from_classic(
    classic: bytes, *, state_bytes_max: int | None = None
) -> tuple[Oid, Record]:
    """The oid and the record that a classic record holds.

    ValueError when it is malformed, StateTooLargeError as `split_record`.
    """
    oid, data, refs = unpack_record(classic)
    record = split_record(data, state_bytes_max=state_bytes_max)
    return oid, record._replace(refs=b"".join(sorted(set(split_oids(refs)))))


def record_to_classic(oid: Oid, record: Record, *, compress: bool = False) -> bytes:
    """The classic record of an object, its state zlib-compressed if asked for."""
    return pack_record(oid, join_record(record, compress=compress), record.refs)


def _may_gain(state: bytes) -> bool:
    """Whether compressing it may be worth the time."""
    if len(state) < _SAMPLED_SIZE_MIN or not state.startswith(_PROTO):
        return True
    starts = range(0, len(state), len(state) // _SAMPLES)
    samples = b"".join(state[start : start + _SAMPLE_SIZE] for start in starts)
    return len(zlib.compress(samples)) < len(samples) * 7 // 8


def _decompress(compressed: bytes, bytes_max: int | None) -> bytes:
    if bytes_max is None:
        return zlib.decompress(compressed)
    # A few bytes can stand for very many, which must not be made before they are counted.
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(compressed, bytes_max + 1)
    if len(content) > bytes_max:
        raise StateTooLargeError(f"its compressed state has more than {bytes_max:,} bytes")
    if not unpacker.eof:
        raise zlib.error("it is cut off")
    return content


@lru_cache(1000)
def _forget_memo(class_pickle: bytes) -> bytes:
    """A pickle that loads as the same, without what puts things into the memo for nobody."""
    with suppress(ValueError):  # else it is no pickle, and stays what it is
        return pickletools.optimize(class_pickle)
    return class_pickle


def _find_stop(data: bytes) -> int:
    """The length of the first pickle in `data`, 0 when there is none."""
    try:
        for opcode, _, position in pickletools.genops(data):
            if opcode.name == "STOP":
                assert position is not None
                return position + 1
    except ValueError:
        pass
    return 0
