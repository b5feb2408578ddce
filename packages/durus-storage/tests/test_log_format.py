"""Encoding and decoding: what is encoded comes back, and no flipped bit goes unseen."""

import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durus.error import StorageError, UnstorableError
from durus.interfaces import NO_TID, Oid, Record, Tid
from durus.log_codec import CODEC_MAX
from durus.log_format import (
    FIXED_SIZE,
    TRANSACTION_SIZE_MAX,
    LoggedTransaction,
    Mark,
    Reservation,
    TransactionHead,
    Void,
    decode_entry_head,
    decode_trailer,
    decode_transaction,
    encode_mark,
    encode_reservation,
    encode_transaction,
    encode_void,
)
from durus.log_header import (
    FILE_HEADER_SIZE,
    FileHeader,
    decode_file_header,
    encode_file_header,
    read_pieces,
    with_dictionary,
)
from durus.log_record import decode_record, encode_record, is_record, peek_record

FILE_ID = bytes(range(16))

numbers = st.integers(0, 2**64 - 1)
oids = numbers.map(lambda number: Oid(number.to_bytes(8)))
refs = st.lists(oids, unique=True).map(lambda found: b"".join(sorted(found)))
records = st.builds(Record, st.binary(min_size=1, max_size=300), st.binary(max_size=300), refs)
extensions = st.lists(
    st.builds(
        lambda tag, content: tag + len(content).to_bytes(4) + content,
        st.sampled_from([b"undo", b"Undo"]),
        st.binary(max_size=20),
    ),
    max_size=3,
).map(b"".join)
offsets = st.integers(FILE_HEADER_SIZE, 2**63)


def decode_whole(offset: int, content: bytes) -> LoggedTransaction | None:
    head = decode_entry_head(FILE_ID, offset, content[:FIXED_SIZE])
    if not isinstance(head, TransactionHead) or decode_trailer(content[-12:]) != head.size:
        return None
    return decode_transaction(head, content[FIXED_SIZE : FIXED_SIZE + head.rest_size])


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@given(oids, records)
def test_a_record_comes_back(oid: Oid, record: Record) -> None:
    stored = decode_record(encode_record(oid, record))
    assert stored is not None
    assert (stored.oid, stored.codec, stored.kind, stored.record) == (oid, 0, 0, record)


@given(
    offsets,
    st.tuples(*[numbers] * 3),
    st.integers(-(2**63), 2**63 - 1),
    st.tuples(st.text(max_size=20), st.text(max_size=20), extensions),
    st.dictionaries(oids, st.tuples(numbers, records), max_size=5),
)
def test_a_transaction_comes_back(
    offset: int,
    identity: tuple[int, int, int],
    time_ns: int,
    texts: tuple[str, str, bytes],
    writes: dict[Oid, tuple[int, Record]],
) -> None:
    tid, transaction_id, next_oid = identity
    encoded = [(oid, slot, encode_record(oid, r)) for oid, (slot, r) in sorted(writes.items())]
    _, content = encode_transaction(
        FILE_ID,
        offset,
        tid=Tid(tid),
        time_ns=time_ns,
        id=transaction_id,
        next_oid=next_oid,
        user=texts[0],
        note=texts[1],
        extension=texts[2],
        records=encoded,
    )
    found = decode_whole(offset, content)
    assert found is not None
    head = found.head
    assert (head.tid, head.id, head.next_oid, head.time_ns) == (*identity, time_ns)
    assert (found.user, found.note, found.extension) == texts
    assert found.end == offset + len(content)
    assert found.oids == [oid for oid, _, _ in encoded]
    for entry, (oid, slot, record) in zip(found.entries(), encoded, strict=True):
        start = entry.slot - offset
        assert (entry.oid, entry.previous) == (int.from_bytes(oid), slot)
        assert content[start : start + 4] == start.to_bytes(4)
        assert content[start + 4 : start + 4 + entry.size] == record
        assert found.find_previous(oid) == slot
    assert decode_entry_head(FILE_ID, offset + 1, content) is None
    assert decode_entry_head(bytes(16), offset, content) is None


@given(offsets, numbers, st.sampled_from([0, 1]))
def test_small_entries_come_back_at_their_place_only(offset: int, number: int, flag: int) -> None:
    mark = Mark(offset, Tid(number), flag)
    void = Void(offset, number % offset)
    reservation = Reservation(offset, number)
    for entry, content in (
        (mark, encode_mark(FILE_ID, mark)),
        (void, encode_void(FILE_ID, void)),
        (reservation, encode_reservation(FILE_ID, reservation)),
    ):
        assert decode_entry_head(FILE_ID, offset, content + b"more") == entry
        assert entry.end == offset + len(content)
        assert decode_entry_head(FILE_ID, offset + 1, content) is None
        assert decode_entry_head(bytes(16), offset, content) is None
        assert decode_entry_head(FILE_ID, offset, content[:-1]) is None


@given(
    st.binary(min_size=16, max_size=16),
    st.tuples(*[numbers] * 6),
    extensions,
    st.none() | st.just(b"") | st.binary(min_size=8, max_size=100),
)
def test_a_file_header_comes_back(
    identity: bytes, fields: tuple[int, ...], extension: bytes, dictionary: bytes | None
) -> None:
    header = FileHeader(
        database_id=identity,
        file_id=identity[::-1],
        created_ns=fields[0],
        horizon=Tid(fields[1]),
        next_oid=fields[2],
        features_refuse=fields[3],
        features_read_only=fields[4],
        features_ignore=fields[5],
        extension=with_dictionary(extension, dictionary),
    )
    content = encode_file_header(header)
    assert len(content) == FILE_HEADER_SIZE + len(header.extension) == header.size
    assert decode_file_header(content + b"more") == header
    assert decode_file_header(content[:-1]) is None
    assert header.dictionary == dictionary
    assert with_dictionary(header.extension, None) == extension


@pytest.mark.parametrize(
    "extension",
    [b"?", b"some\0\0\0\5more", b"s me\0\0\0\0", b"zstd\0\0\0\7too few"],
    ids=["cut off", "shorter than it says", "no letters", "no dictionary"],
)
def test_a_wrong_extension_of_a_header_is_damage_unless_a_later_version_has_it(
    extension: bytes,
) -> None:
    header = FileHeader(database_id=bytes(16), file_id=bytes(16), created_ns=1, extension=extension)
    assert decode_file_header(encode_file_header(header)) is None
    later = replace(header, version=2)
    assert decode_file_header(encode_file_header(later)) == later


def test_every_flipped_bit_is_found() -> None:
    record = encode_record(Oid(bytes(8)), Record(b"class", b"state", bytes(8)))
    _, transaction = encode_transaction(
        FILE_ID,
        500,
        tid=Tid(7),
        time_ns=8,
        id=9,
        next_oid=10,
        user="user",
        note="note",
        extension=b"more\0\0\0\3ext",
        records=[(Oid(bytes(8)), 0, record)],
    )
    directory_end = len(transaction) - 12 - 4 - len(record)
    mark = encode_mark(FILE_ID, Mark(500, Tid(7)))
    void = encode_void(FILE_ID, Void(500, 400))
    reservation = encode_reservation(FILE_ID, Reservation(500, 7))
    header = encode_file_header(
        FileHeader(
            database_id=FILE_ID,
            file_id=FILE_ID,
            created_ns=1,
            horizon=NO_TID,
            extension=with_dictionary(b"", b"dictionary"),
        )
    )
    for bit in range(8 * len(record)):
        assert decode_record(flip(record, bit)) is None
    for bit in range(8 * len(transaction)):
        if not directory_end <= bit // 8 < len(transaction) - 12:
            assert decode_whole(500, flip(transaction, bit)) is None
    for small in (mark, void, reservation):
        for bit in range(8 * len(small)):
            assert decode_entry_head(FILE_ID, 500, flip(small, bit)) is None
    for bit in range(64, 8 * len(header)):
        assert decode_file_header(flip(header, bit)) is None


def test_an_extension_is_tags_with_lengths() -> None:
    def decode(extension: bytes) -> LoggedTransaction | None:
        _, content = encode_transaction(
            FILE_ID,
            500,
            tid=Tid(1),
            time_ns=0,
            id=0,
            next_oid=0,
            extension=extension,
            records=[],
        )
        return decode_whole(500, content)

    found = decode(b"some\0\0\0\4moreabcd\0\0\0\0")
    assert found is not None
    assert list(read_pieces(found.extension)) == [(b"some", b"more"), (b"abcd", b"")]
    for wrong in (b"ext", b"some\0\0\0", b"some\0\0\0\5more", b"s me\0\0\0\0"):
        assert decode(wrong) is None


def with_head(codec: int, kind: int, class_size: int, refs: int, rest: bytes) -> bytes:
    """A record that says this of itself."""
    stored = len(rest) - 8 * refs - (0 if codec else class_size)
    content = struct.pack(">QBBHII", 1, codec, kind, class_size, refs, stored) + rest
    return zlib.crc32(content).to_bytes(4) + content


def test_what_a_record_refers_to_is_read_whatever_its_codec() -> None:
    one = Oid((1).to_bytes(8))
    ref = (7).to_bytes(8)
    content = with_head(0, 2, 5, 1, b"class" + ref + b"state")
    assert decode_record(content) == (one, 0, 2, 5, Record(b"class", b"state", ref))
    for codec in (1, 2, 3, 255):
        content = with_head(codec, 0, 5000, 1, ref + b"block")
        assert decode_record(content) == (one, codec, 0, 5000, Record(b"", b"block", ref))
        assert decode_record(content + b"?") is None
        assert decode_record(content[:-1]) is None
        assert is_record(content, 0, 1, len(content))
        is_known = codec <= CODEC_MAX
        assert peek_record(content, 0) == ((1, len(content), (7,)) if is_known else None)


def test_a_removed_object_and_only_that_is_a_head_alone() -> None:
    found = decode_record(with_head(0, 1, 0, 0, b""))
    assert found is not None
    assert found.kind == 1
    assert decode_record(with_head(0, 1, 0, 0, b"state")) is None
    assert decode_record(with_head(0, 0, 0, 0, b"")) is None
    with pytest.raises(ValueError, match="record of oid 0 is empty"):
        encode_record(Oid(bytes(8)), Record(b"", b"", b""))


def test_a_class_pickle_that_is_too_long_is_refused() -> None:
    encode_record(Oid(bytes(8)), Record(bytes(65_535), b"", b""))
    with pytest.raises(UnstorableError, match="oid 0 is too large"):
        encode_record(Oid(bytes(8)), Record(bytes(65_536), b"", b""))


def test_a_transaction_of_4_gib_is_refused() -> None:
    class Large(bytes):
        def __len__(self) -> int:
            return TRANSACTION_SIZE_MAX

    with pytest.raises(StorageError, match="commit more often"):
        encode_transaction(
            FILE_ID,
            500,
            tid=Tid(1),
            time_ns=0,
            id=0,
            next_oid=0,
            records=[(Oid(bytes(8)), 0, Large())],
        )
