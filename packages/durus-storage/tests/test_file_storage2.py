"""`FileStorage2`: a file by hand, its index, and what is wrong with the end of a file."""

import logging
import pickle
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durus.classic_file import DamagedEndError, ReadAhead
from durus.connection import Connection
from durus.dfs20_format import (
    EMPTY_DFS20,
    Dfs20Index,
    encode_block,
    read_index,
    write_base,
    write_index,
)
from durus.error import CorruptionError, StorageError
from durus.file import File
from durus.file_storage2 import FileStorage2
from durus.interfaces import Oid
from durus.record import pack_record, record_to_classic
from durus.testing.storage_contract import make_record
from durus.utils import ShortRead


def name(number: int) -> Oid:
    return Oid(number.to_bytes(8, "big"))


def classic(number: int, value: object = 0, refs: Iterable[int] = ()) -> bytes:
    return record_to_classic(name(number), make_record(value, map(name, refs)))


def encode_transaction(*records: bytes) -> bytes:
    return b"".join(struct.pack(">L", len(record)) + record for record in records) + bytes(4)


def make_file(path: Path, *transactions: bytes, pickled: bytes = pickle.dumps({})) -> list[int]:
    """A file of an index and these transactions, and where each begins."""
    index = zlib.compress(pickled)
    content = b"DFS20\0" + struct.pack(">2Q", 14, len(index)) + index
    starts = []
    for transaction in transactions:
        starts.append(len(content))
        content += transaction
    path.write_bytes(content)
    return starts


def make_packed_file(path: Path, records: list[bytes], pickled: bytes | None = None) -> None:
    """A file with these records before its index; by default that leads to the last of each."""
    offsets = {}
    content = b""
    for record in records:
        offsets[record[:8]] = 14 + len(content)
        content += struct.pack(">L", len(record)) + record
    content += bytes(4)
    index = zlib.compress(pickle.dumps(offsets) if pickled is None else pickled)
    header = b"DFS20\0" + struct.pack(">Q", 14 + len(content))
    path.write_bytes(header + content + struct.pack(">Q", len(index)) + index)


def contents(path: Path, *, repair: bool = False) -> dict[bytes, bytes]:
    with FileStorage2(path, readonly=not repair, repair=repair) as storage:
        return dict(storage.gen_oid_record())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.dfs20"


@pytest.fixture
def storage(path: Path) -> Iterator[FileStorage2]:
    with FileStorage2(path) as storage:
        yield storage


# The form.


def test_a_new_file_has_an_index_of_nothing(path: Path, storage: FileStorage2) -> None:
    assert path.read_bytes() == EMPTY_DFS20
    offset, size = struct.unpack(">2Q", EMPTY_DFS20[6:22])
    assert (EMPTY_DFS20[:6], offset) == (FileStorage2.MAGIC, 14)
    assert len(EMPTY_DFS20) == 22 + size
    assert pickle.loads(zlib.decompress(EMPTY_DFS20[22:])) == {}


def test_a_file_made_by_hand_is_read(path: Path) -> None:
    make_packed_file(path, [classic(0, "old"), classic(1), classic(0, "packed", [1])])
    assert contents(path) == {name(0): classic(0, "packed", [1]), name(1): classic(1)}
    with path.open("ab") as file:
        file.write(encode_transaction(classic(1, "new"), classic(2)) + encode_transaction())
    assert contents(path) == {
        name(0): classic(0, "packed", [1]),
        name(1): classic(1, "new"),
        name(2): classic(2),
    }


def test_a_transaction_is_one_write(path: Path) -> None:
    written = []

    class Counting(File):
        def write(self, s: bytes) -> None:
            written.append(s)
            super().write(s)

    FileStorage2(path).close()
    with FileStorage2(Counting(path)) as storage:
        storage.begin()
        for number in range(2):
            storage.store(name(number), classic(number))
        storage.end()
    assert written == [encode_transaction(classic(0), classic(1))]


def test_it_has_the_attributes_of_4_3(path: Path, storage: FileStorage2) -> None:
    assert storage.fp.get_name() == str(path)
    assert FileStorage2.has_format(storage.fp)
    assert storage.oid == -1
    oid = storage.new_oid()
    storage.store(oid, classic(0))
    assert storage.pending_records == {oid: classic(0)}
    storage.end()
    assert storage.index == {oid: len(EMPTY_DFS20)}
    assert storage.oid == 0
    assert storage.pack_extra is None
    assert storage.invalid == set()


def test_an_oid_that_was_stored_is_not_handed_out(storage: FileStorage2) -> None:
    storage.begin()
    storage.store(name(7), classic(7))
    storage.end()
    assert storage.new_oid() == name(8)


class InterruptedIndex(dict[bytes, int]):
    """As if Ctrl-C came in the middle of the update."""

    def update(self, *args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt


def test_an_oid_is_not_handed_out_after_an_interrupt_in_the_middle_of_a_commit(
    storage: FileStorage2,
) -> None:
    storage.index = InterruptedIndex()
    storage.begin()
    storage.store(name(7), classic(7))
    with pytest.raises(KeyboardInterrupt):
        storage.end()
    assert storage.new_oid() == name(8)


# The index.


def quote(oid: bytes) -> bytes:
    return "".join(f"\\x{byte:02x}" for byte in oid).encode()


def pickles_of(offsets: dict[bytes, int]) -> dict[str, bytes]:
    """The same index as several releases wrote it."""
    by_hand = b"(dp1\n"
    for memo, (oid, offset) in enumerate(offsets.items(), 2):
        by_hand += b"S'%b'\np%d\nI%d\ns" % (quote(oid), memo, offset)
    short = b"\x80\x02}q\x01("
    for oid, offset in offsets.items():
        short += b"U\x08" + oid + b"J" + struct.pack("<i", offset)
    return {
        "Python 2": by_hand + b".",
        "Python 2, protocol 2": short + b"u.",
        "Python 3, protocol 2": pickle.dumps(offsets, 2),
        "Python 3, protocol 3": pickle.dumps(offsets, 3),
        "Python 3": pickle.dumps(offsets),
        "text keys": pickle.dumps({oid.decode("latin1"): n for oid, n in offsets.items()}),
    }


@pytest.mark.parametrize("release", pickles_of({}))
def test_an_index_of_any_release_is_read(path: Path, release: str) -> None:
    records = [classic(number) for number in (0, 5, 128, 255, 256, 65535)]
    offsets = {}
    position = 14
    for record in records:
        offsets[record[:8]] = position
        position += 4 + len(record)
    make_packed_file(path, records, pickles_of(offsets)[release])
    assert contents(path) == {record[:8]: record for record in records}


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("boom",))


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (pickle.dumps({name(0): Bomb()}), "an index does not name builtins.print"),
        (pickle.dumps({name(0): Bomb()}, 2), "an index does not name __builtin__.print"),
        (b"cos\nsystem\n(S'echo boom'\ntR.", "an index does not name os.system"),
        (b"c_codecs\nencode\n(Vabc\nVrot13\ntR.", "bytes only"),
        (b"\x82\x01.", ""),
        (pickle.dumps([name(0)]), "no dictionary"),
        (pickle.dumps({name(0): 13}), "13 is no offset"),
        (pickle.dumps({name(0): 10**10}), "10000000000 is no offset"),
        (pickle.dumps({name(0): True}), "True is no offset"),
        (pickle.dumps({name(0): "14"}), "'14' is no offset"),
        (pickle.dumps({b"short": 14}), "b'short' is no oid"),
        (pickle.dumps({7: 14}), "7 is no oid"),
        (pickle.dumps({name(0): 14})[:-1], "truncated"),
        (b"", "EOFError"),
        (b"}r\xff\xff\xff\x0f.", "puts something at index 268435455 of its memo"),
        (b"}" + b"0}" * 10_000_000 + b".", "more than"),
    ],
)
def test_an_index_that_is_anything_else_is_damage(
    path: Path, pickled: bytes, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make_packed_file(path, [classic(0)], pickled)
    with pytest.raises(CorruptionError, match="the index is damaged") as caught:
        FileStorage2(path, repair=True)
    assert reason in str(caught.value)
    assert capfd.readouterr().out == ""


def test_damage_of_the_index_is_never_cut_off(path: Path) -> None:
    make_packed_file(path, [classic(0), classic(1)])
    content = path.read_bytes()
    index_start = int.from_bytes(content[6:14])
    for size in range(len(content)):
        path.write_bytes(content[:size])
        if size in (0, 6):
            continue
        with pytest.raises((CorruptionError, AssertionError)):
            FileStorage2(path, repair=True)
        assert path.read_bytes() == content[:size]
    for place in range(index_start, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(CorruptionError):
            FileStorage2(path, repair=True)
    path.write_bytes(content[:6] + bytes(8) + content[14:])
    with pytest.raises(CorruptionError, match="never finished"):
        FileStorage2(path, repair=True)


@given(st.dictionaries(st.integers(0, 2**64 - 1), st.integers(14, 10**7), max_size=50))
def test_an_index_that_is_written_in_pieces_is_that_dictionary(numbers: dict[int, int]) -> None:
    offsets = {number.to_bytes(8): offset for number, offset in numbers.items()}
    with closing(File()) as file:
        list(write_base(file, [(name(0), bytes(10**7))]))
        write_index(file, offsets.items())
        content = Path(file.get_name()).read_bytes()
        start, end = 14 + 4 + 10**7 + 4, len(content)
        assert int.from_bytes(content[6:14]) == start
        assert pickle.loads(zlib.decompress(content[start + 8 :])) == offsets
        assert read_index(ReadAhead(file)) == Dfs20Index(offsets, start, end)


def test_a_large_index_is_written_in_pieces(path: Path) -> None:
    offsets = {number.to_bytes(8): 14 + number % 1000 for number in range(10_500)}
    with closing(File()) as file:
        list(write_base(file, [(name(0), bytes(10**5))]))
        write_index(file, offsets.items())
        assert read_index(ReadAhead(file)).offsets == offsets


# The end of a file.

FIRST = encode_transaction(classic(0, "kept", [1, 2]), classic(1, "kept"))
LAST = encode_transaction(classic(2, "x" * 50, [0, 1]), classic(0), classic(3))
KEPT = {name(0): classic(0, "kept", [1, 2]), name(1): classic(1, "kept")}


def assert_is_repaired(path: Path, start: int, caplog: pytest.LogCaptureFixture) -> None:
    content = path.read_bytes()
    for readonly, repair in ((False, False), (True, False), (True, True)):
        with pytest.raises(DamagedEndError, match="repair=True") as caught:
            FileStorage2(path, readonly=readonly, repair=repair)
        assert isinstance(caught.value, ShortRead)  # as in 4.3
        assert (caught.value.path, caught.value.offset) == (str(path), start)
        assert path.read_bytes() == content
    caplog.clear()
    with caplog.at_level(logging.WARNING, "durus"):
        assert contents(path, repair=True) == KEPT
    (message,) = caplog.messages
    assert f"the last {len(content) - start} bytes, from offset {start} on" in message
    assert path.read_bytes() == content[:start]


def test_a_last_transaction_that_was_cut_is_repaired(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for size in (*range(1, 40), *range(40, len(LAST), 7), len(LAST) - 1):
        _, start = make_file(path, FIRST, LAST[:size])
        assert_is_repaired(path, start, caplog)


def test_other_bytes_at_the_end_are_cut_off(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for rest in (b"b", b"\xff" * 100, struct.pack(">L", 3) + b"abc", bytes(3)):
        _, start = make_file(path, FIRST, rest)
        assert_is_repaired(path, start, caplog)


def test_empty_transactions_are_legal_and_others_may_follow(path: Path) -> None:
    make_file(path, bytes(12), FIRST, bytes(4), encode_transaction(classic(9)), bytes(8))
    assert contents(path) == {**KEPT, name(9): classic(9)}


def test_a_record_that_is_none_is_not_whole(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    oid = name(2)
    for record in (
        b"short",
        pack_record(oid, b"data", b"refs"),
        pack_record(oid, b"data", b"")[:-1],
        oid + b"\xff\xff\xff\xff" + b"data",
    ):
        _, start = make_file(path, FIRST, encode_transaction(classic(3), record))
        assert_is_repaired(path, start, caplog)


def assert_is_refused(path: Path, starts: range, later: int) -> None:
    """With an offset in `starts`: zeros, and what looks like them, may be an end that was none."""
    content = path.read_bytes()
    for repair in (False, True):
        with pytest.raises(CorruptionError, match=f"at offset {later} is one") as caught:
            FileStorage2(path, repair=repair)
        assert not isinstance(caught.value, ShortRead)
        assert caught.value.offset in starts
        assert path.read_bytes() == content


def test_a_length_that_is_damaged_before_a_whole_transaction_is_never_cut_off(path: Path) -> None:
    starts = make_file(path, FIRST, LAST, FIRST)
    content = path.read_bytes()
    second = starts[1] + 4 + len(classic(2, "x" * 50, [0, 1]))
    for record_start in (starts[1], second):
        for place in range(record_start, record_start + 4):
            for bit in range(8):
                damaged = bytearray(content)
                damaged[place] ^= 1 << bit
                path.write_bytes(damaged)
                assert_is_refused(path, range(starts[1], starts[2]), starts[2])


@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"x"])
def test_a_middle_that_was_overwritten_is_never_cut_off(path: Path, filler: bytes) -> None:
    for extra in range(5):  # lengths with all remainders
        middle = encode_transaction(classic(2, "x" * (50 + extra), [0, 1]), classic(5))
        starts = make_file(path, FIRST, middle, FIRST)
        content = path.read_bytes()
        for size in (4, 13, len(middle) - 4):
            damaged = content[: starts[1]] + filler * size + content[starts[1] + size :]
            path.write_bytes(damaged)
            if damaged[starts[1] : starts[2]] == bytes(len(middle) // 4 * 4):
                assert contents(path) == KEPT  # these are empty transactions
                continue
            assert_is_refused(path, range(starts[1], starts[2] + 4), starts[2])


def test_a_large_file_is_searched_for_later_transactions(path: Path) -> None:
    large = encode_transaction(classic(5, b"x" * (3 << 20)))
    starts = make_file(path, b"\xff" + large[1:], FIRST)
    assert_is_refused(path, range(starts[0], starts[1]), starts[1])


def test_while_a_writer_is_at_it_a_reader_does_without_the_last_transaction(path: Path) -> None:
    make_file(path, FIRST, LAST[:50])
    with closing(File(path)) as writer:
        writer.obtain_lock()
        assert contents(path) == KEPT
    with pytest.raises(DamagedEndError):
        contents(path)


def test_a_record_that_is_not_where_the_index_says_is_damage(path: Path) -> None:
    records = [classic(0), classic(1)]
    second = 14 + 4 + len(records[0])
    make_packed_file(path, records, pickle.dumps({name(0): second, name(1): 20}))
    with FileStorage2(path) as storage:
        with pytest.raises(CorruptionError, match=rf"offset {second} \(oid 0\).*of oid 1"):
            storage.load(name(0))
        with pytest.raises(CorruptionError, match=r"offset 20 \(oid 1\).*no whole record"):
            storage.load(name(1))


# Pack and replace.


def test_a_packed_file_has_its_records_before_the_index(path: Path, storage: FileStorage2) -> None:
    with closing(Connection(storage)) as connection:
        connection.root["a"] = 1
        connection.commit()
        connection.pack()
    content = path.read_bytes()
    record = storage.load(name(0))
    assert content[14:].startswith(encode_transaction(record))
    assert int.from_bytes(content[6:14]) == 14 + len(encode_transaction(record))
    assert storage.index == {name(0): 14}


@pytest.mark.parametrize("is_temporary", [False, True])
def test_all_records_may_be_replaced(path: Path, is_temporary: bool) -> None:
    with FileStorage2(None if is_temporary else path) as storage:
        storage.begin()
        for number in range(3):
            storage.store(name(number), classic(number))
        storage.end()
        records = [(name(n), classic(n, "new")) for n in (0, 2, 5)]
        storage.create_from_records(iter(records))
        assert dict(storage.gen_oid_record()) == dict(records)
        assert storage.sync() == [name(1)]
        assert storage.new_oid() == name(6)
        storage.begin()
        storage.store(name(6), classic(6))
        storage.end()
        with FileStorage2(storage.get_filename(), readonly=True) as reader:
            assert dict(reader.gen_oid_record()) == {**dict(records), name(6): classic(6)}


def test_records_that_cannot_be_read_replace_nothing(path: Path, storage: FileStorage2) -> None:
    def generate() -> Iterator[tuple[bytes, bytes]]:
        yield name(0), classic(0, "new")
        raise RuntimeError("no more")

    storage.begin()
    storage.store(name(0), classic(0))
    with pytest.raises(StorageError, match="under way"):
        storage.create_from_records([])
    storage.end()
    with pytest.raises(RuntimeError, match="no more"):
        storage.create_from_records(generate())
    assert contents(path) == {name(0): classic(0)}


def test_a_record_of_4_gib_has_no_room() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return 1 << 32

    with pytest.raises(ValueError, match="no room for a record of 4294967296 bytes"):
        encode_block(Long())
