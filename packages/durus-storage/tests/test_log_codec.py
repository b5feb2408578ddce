"""Compressing records: all come back, it is worth it, and no block is trusted."""

import random
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durus.interfaces import Oid, Record
from durus.log_codec import RecordCodec
from durus.log_record import (
    RECORD_HEAD_SIZE,
    LoggedRecord,
    decode_record,
    encode_record,
    is_record,
    measure_record,
    peek_record,
)
from durus.zstd_frames import Frames, train_dictionary

OID = Oid((7).to_bytes(8))
CLASS = b"\x80\x02capp.models\nCustomer\n."


def make_content(number: int) -> bytes:
    chance = random.Random(number)
    return b"}(X\x04\0\0\0nameX\x06\0\0\0%06dX\x07\0\0\0addressX\x08\0\0\0%sq" % (
        chance.randrange(10**6),
        chance.randbytes(4).hex().encode(),
    )


TRAINED = train_dictionary([CLASS + make_content(number) for number in range(3000)], 2000)
RAW = CLASS + make_content(1)
DICTIONARIES = {"none": b"", "raw": RAW, "trained": TRAINED}
CODECS = {name: RecordCodec(dictionary) for name, dictionary in DICTIONARIES.items()}

states = st.one_of(
    st.binary(max_size=100),
    st.integers(0, 10**9).map(make_content),
    st.builds(
        lambda part, count, rest: part * count + rest,
        st.binary(min_size=1, max_size=30),
        st.integers(1, 5000),
        st.binary(max_size=2000),
    ),
)
classes = st.one_of(st.just(CLASS), st.binary(max_size=300))
refs = st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=30)


def encode_refs(numbers: list[int]) -> bytes:
    return b"".join(number.to_bytes(8) for number in sorted(numbers))


def unpack(codec: RecordCodec, stored: LoggedRecord) -> Record | None:
    unpacked = codec.unpack(stored.codec, stored.record.state_pickle, stored.class_size)
    return None if unpacked is None else Record(*unpacked, stored.record.refs)


@given(st.sampled_from([*CODECS]), classes, states, refs)
def test_every_record_comes_back(name: str, cls: bytes, state: bytes, numbers: list[int]) -> None:
    record = Record(cls, state or b".", encode_refs(numbers))
    codec = CODECS[name]
    content = encode_record(OID, record, codec)
    stored = decode_record(content)
    assert stored is not None
    assert stored.oid == OID
    assert (unpack(codec, stored) if stored.codec else stored.record) == record
    assert measure_record(content) == len(content)
    assert is_record(content, 0, 7, len(content))
    assert peek_record(content, 0) == (7, len(content), tuple(sorted(numbers)))
    plain = RECORD_HEAD_SIZE + sum(map(len, record))
    saved = plain - len(content)
    assert saved == 0 or saved >= max(16, (len(cls) + len(record.state_pickle)) // 8)
    assert bool(saved) == bool(stored.codec)


@pytest.mark.parametrize("name", ["raw", "trained"])
def test_a_dictionary_makes_small_records_small(name: str) -> None:
    record = Record(CLASS, make_content(5000), b"")
    plain = encode_record(OID, record)
    assert encode_record(OID, record, CODECS["none"]) == plain
    assert len(encode_record(OID, record, CODECS[name])) < 0.75 * len(plain)


def test_a_large_record_needs_no_dictionary() -> None:
    text = b"The state of an object has words that repeat. " * 20
    record = Record(CLASS, text, b"")
    assert len(encode_record(OID, record, CODECS["none"])) < 0.3 * len(text)
    noise = Record(CLASS, random.Random(1).randbytes(2000), b"")
    assert encode_record(OID, noise, CODECS["none"]) == encode_record(OID, noise)


def test_a_record_that_needs_a_dictionary_is_damaged_without_it() -> None:
    record = Record(CLASS, make_content(5000), b"")
    stored = decode_record(encode_record(OID, record, CODECS["trained"]))
    assert stored is not None
    assert unpack(CODECS["trained"], stored) == record
    for codec in (RecordCodec(None), RecordCodec(b""), RecordCodec(bytes(range(99)))):
        assert unpack(codec, stored) is None
    alone = decode_record(encode_record(OID, Record(CLASS, bytes(1000), b""), CODECS["none"]))
    assert alone is not None
    assert unpack(RecordCodec(b""), alone._replace(codec=2)) is None  # not even if none is used


def test_with_a_dictionary_that_is_none_nothing_is_compressed() -> None:
    record = Record(CLASS, make_content(1) * 100, b"")
    for wrong in (TRAINED[:4] + bytes(500), TRAINED[:8] + bytes(500), TRAINED[:50], b"short"):
        broken = RecordCodec(wrong)
        assert encode_record(OID, record, broken) == encode_record(OID, record)
        stored = decode_record(encode_record(OID, record, CODECS["trained"]))
        assert stored is not None
        assert unpack(broken, stored) is None
        alone = decode_record(encode_record(OID, record, CODECS["none"]))
        assert alone is not None
        assert unpack(broken, alone) == record  # that one does not need it


# Hostile blocks: zstd frames without their first four bytes.

RAW_BLOCK, RLE_BLOCK, RESERVED_BLOCK = 0, 1, 3


def frame(size: int | None, blocks: list[tuple[int, int, bytes]], window: int = 0x50) -> bytes:
    """A frame that says it has so many bytes; its blocks are types, sizes and contents."""
    in_one_segment = b"\xe0"  # with the size in 8 bytes
    start = bytes([0, window])
    if size is not None:
        start = in_one_segment + size.to_bytes(8, "little")
    parts = [start]
    for number, (kind, length, content) in enumerate(blocks, 1):
        head = length << 3 | kind << 1 | (number == len(blocks))
        parts += [head.to_bytes(3, "little"), content]
    return b"".join(parts)


def test_a_frame_made_by_hand_is_unpacked() -> None:
    made = frame(11, [(RAW_BLOCK, 5, b"class"), (RLE_BLOCK, 6, b"s")])
    assert CODECS["none"].unpack(1, made, 5) == (b"class", b"ssssss")


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\x20",
        frame(None, [(RAW_BLOCK, 9, b"content..")]),
        frame(9, [(RAW_BLOCK, 9, b"conten")]),
        frame(9, [(RAW_BLOCK, 9, b"content..")]) + b"?",
        frame(9, [(RAW_BLOCK, 8, b"content.")]),
        frame(9, [(RAW_BLOCK, 10, b"content...")]),
        frame(9, [(RESERVED_BLOCK, 9, b"content..")]),
        frame(4, [(RAW_BLOCK, 4, b"clas")]),
        frame((1 << 32) + 5, [(RAW_BLOCK, 9, b"content..")]),
        frame((1 << 64) - 1, [(RAW_BLOCK, 9, b"content..")]),
        frame((1 << 32) - 1, [(RAW_BLOCK, 9, b"content..")]),
        frame(100, [(RLE_BLOCK, 128 << 10, b"s")] * 1000),
    ],
    ids=[
        "empty",
        "a byte",
        "says no size",
        "cut off",
        "more after it",
        "shorter than it says",
        "longer than it says",
        "unknown block",
        "shorter than the class",
        "longer than any state",
        "longer than any memory",
        "says that it is long",
        "a bomb",
    ],
)
def test_a_wrong_block_is_damage_and_takes_no_memory(block: bytes) -> None:
    tracemalloc.start()
    try:
        assert CODECS["none"].unpack(1, block, 5) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.sampled_from([*CODECS]), states.filter(lambda state: len(state) > 600), st.data())
def test_damage_in_a_block_gives_no_other_error(
    name: str, state: bytes, data: st.DataObject
) -> None:
    codec = CODECS[name]
    packed = codec.compress(CLASS, state)
    if packed is None:
        return
    number, block = packed
    bit = data.draw(st.integers(0, 8 * len(block) - 1))
    changed = bytearray(block)
    changed[bit // 8] ^= 1 << bit % 8
    found = codec.unpack(number, bytes(changed), len(CLASS))  # a checksum is outside of it
    assert found is None or isinstance(found, tuple)
    cut = block[: data.draw(st.integers(0, len(block) - 1))]
    assert codec.unpack(number, cut, len(CLASS)) is None


def test_every_flipped_bit_of_a_compressed_record_is_found() -> None:
    record = Record(CLASS, make_content(5000), bytes(8))
    content = encode_record(OID, record, CODECS["trained"])
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        assert decode_record(bytes(changed)) is None


def test_what_is_compressed_is_the_same_each_time() -> None:
    """A pack that goes twice through a large transaction relies on it."""
    contents = [make_content(n) * (1 + n % 50) for n in range(300)]
    for dictionary in DICTIONARIES.values():
        first, again = Frames(dictionary), Frames(dictionary)
        blocks = [first.compress(content) for content in contents]
        again.compress(bytes(100_000))
        assert [again.compress(content) for content in contents] == blocks
        assert [first.compress(content) for content in contents] == blocks


def test_too_few_samples_give_no_dictionary() -> None:
    assert train_dictionary([], 1000) == b""
    assert train_dictionary([b"a"] * 3, 1000) == b""
    assert train_dictionary([CLASS] * 2000, 0) == b""


def test_the_head_of_a_compressed_record_says_how_long_its_class_pickle_is() -> None:
    content = encode_record(OID, Record(CLASS, make_content(1) * 20, bytes(8)), CODECS["none"])
    crc, number, codec, kind, class_size, count, size = struct.unpack_from(">IQBBHII", content)
    assert (number, codec, kind, class_size, count) == (7, 1, 0, len(CLASS), 1)
    assert len(content) == RECORD_HEAD_SIZE + 8 + size
    assert crc == zlib.crc32(content[4:])
