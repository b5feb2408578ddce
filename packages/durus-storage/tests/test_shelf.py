"""`durus.shelf`: a file by hand, names and values, and what is wrong with the end of a file."""

import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from io import BytesIO
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durus.classic_file import DamagedEndError
from durus.error import CommitOutcomeUnknownError, CorruptionError, NotADatabaseError, StorageError
from durus.file import File
from durus.interfaces import Oid
from durus.record import pack_record, record_to_classic
from durus.shelf import OffsetMap, Shelf, read_transaction_offsets
from durus.shelf_format import EMPTY_SHELF, is_record_item
from durus.testing.storage_contract import make_record
from durus.utils import ShortRead, int8_to_str

Item = tuple[bytes, bytes]


def name(number: int) -> Oid:
    return Oid(number.to_bytes(8, "big"))


def record_item(number: int, value: object = 0, refs: Iterable[int] = ()) -> Item:
    """An oid, and a record of it."""
    oid = name(number)
    return oid, record_to_classic(oid, make_record(value, map(name, refs)))


def int8(number: int) -> bytes:
    return struct.pack(">Q", number)


def encode_transaction(*items: Item) -> bytes:
    content = b"".join(int8(8 + len(value)) + oid + value for oid, value in items)
    return int8(len(content)) + content


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.shelf"


def open_shelf(path: Path, *, repair: bool = False, readonly: bool = False) -> Shelf:
    return Shelf(str(path), repair=repair, readonly=readonly, check=is_record_item)


def contents(path: Path) -> dict[bytes, bytes]:
    with closing(open_shelf(path, readonly=True)) as shelf:
        return dict(shelf.items())


# The form.


def test_a_new_file_is_that_of_4_3(path: Path) -> None:
    Shelf(str(path)).close()
    assert path.read_bytes() == EMPTY_SHELF
    assert b"SHELF-1\n" + bytes(8) + int8(16) + int8(1) + int8(0) == EMPTY_SHELF


def test_a_file_made_by_hand_is_read(path: Path) -> None:
    root, five, seven = record_item(0, 1), record_item(5, 2), record_item(7, 3)
    base = encode_transaction(root, five)
    start = 8 + len(base)
    second = 8 + 8 + 16 + len(root[1])
    # Numbers 0 to 6: the last is always a hole, and leads to the one before, and so on.
    words = [16, start + 6, start + 1, start + 2, start + 3, second, start + 4]
    offset_map = int8(16 + 2 * 7) + int8(2) + int8(7) + b"".join(w.to_bytes(2) for w in words)
    newer = record_item(0, 9)
    after = encode_transaction(newer, seven) + encode_transaction()
    path.write_bytes(b"SHELF-1\n" + base + offset_map + after)
    with closing(open_shelf(path)) as shelf:
        assert dict(shelf.items()) == dict([newer, five, seven])
        assert shelf.get_position(name(5)) == second
        assert list(shelf.get_offset_map().gen_holes()) == [4, 3, 2, 1, 6]
        assert list(islice(iter(shelf.next_name, None), 6)) == [name(n) for n in (4, 3, 2, 1, 6, 8)]


def test_a_shelf_is_made_of_items_as_it_is_by_hand(path: Path) -> None:
    items = [record_item(0, 1), record_item(5, 2)]
    with closing(Shelf(str(path), items=iter(items))) as shelf:
        assert dict(shelf.items()) == dict(items)
        assert list(shelf.get_offset_map().gen_holes()) == [4, 3, 2, 1, 6]
    start = 8 + len(encode_transaction(*items))
    assert path.read_bytes()[:start] == b"SHELF-1\n" + encode_transaction(*items)
    assert path.read_bytes()[start:][:24] == int8(16 + 7) + int8(1) + int8(7)


def test_values_may_be_anything_and_texts_are_latin_1() -> None:
    shelf = Shelf(File(), items=[(name(0), "record"), (name(1), b"")])
    assert dict(shelf.items()) == {name(0): b"record", name(1): b""}
    shelf.close()


def test_a_name_comes_once_into_a_new_shelf() -> None:
    with pytest.raises(AssertionError, match="number 3 has an offset already"):
        Shelf(items=[(name(3), b"a"), (name(3), b"b")])


def test_a_shelf_with_contents_takes_no_items(path: Path) -> None:
    Shelf(str(path)).close()
    with pytest.raises(AssertionError, match="takes no items"):
        Shelf(str(path), items=[])
    with closing(File(str(path))) as file, pytest.raises(ValueError, match="is not empty"):
        list(Shelf.generate_shelf(file, []))


@pytest.mark.parametrize("content", [b"", b"b", b"nope", b"SHELF-2\n" + bytes(40)])
def test_another_file_is_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(NotADatabaseError, match=r"test\.shelf"):
        Shelf(str(path), readonly=True)
    with pytest.raises(AssertionError):  # as in 4.3
        Shelf(BytesIO(content), readonly=True)
    if content:
        with pytest.raises(NotADatabaseError):
            Shelf(str(path))
        assert path.read_bytes() == content


def test_a_file_that_ends_within_its_packed_part_is_never_cut_off(path: Path) -> None:
    Shelf(str(path), items=[record_item(n) for n in range(3)]).close()
    content = path.read_bytes()
    for size in range(8, len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedEndError, match="restore a backup"):
            open_shelf(path, repair=True)
        assert path.read_bytes() == content[:size]
    with pytest.raises(ShortRead):  # as in 4.3
        Shelf(BytesIO(content[:13]), readonly=True)


def test_a_map_that_does_not_fit_its_length_is_damage(path: Path) -> None:
    for place, byte in ((16, 1), (24, 3), (31, 9), (31, 0)):
        content = bytearray(EMPTY_SHELF)
        content[place] = byte
        path.write_bytes(content)
        with pytest.raises(CorruptionError, match="offset 16"):
            open_shelf(path, repair=True)


# Names and values.


def test_what_is_stored_is_found_by_name_and_position(path: Path) -> None:
    with closing(Shelf(str(path))) as shelf:
        first, second = shelf.next_name(), shelf.next_name()
        assert (first, second) == (name(0), name(1))
        assert shelf.get_value(first) is None
        stored = shelf.store([(first, b"a"), (second, b"bb")])
        assert [(found, old) for found, old, _ in stored] == [(first, None), (second, None)]
        assert [shelf.get_position(n) for n in (first, second)] == [new for _, _, new in stored]
        again = shelf.store([(first, b"new")])
        assert again == [(first, stored[0][2], shelf.get_position(first))]
        assert shelf.get_item_at_position(stored[0][2]) == (first, b"a")
        assert shelf.get_value(first) == b"new"
        assert first in shelf
        assert name(9) not in shelf
        assert sorted(shelf) == [first, second]
        assert sorted(shelf.items()) == [(first, b"new"), (second, b"bb")]
        assert sorted(shelf.iterindex()) == [(n, shelf.get_position(n)) for n in (first, second)]
    with closing(Shelf(str(path))) as shelf:
        assert sorted(shelf.items()) == [(first, b"new"), (second, b"bb")]
        assert shelf.get_file().get_name() == str(path)


def test_a_name_has_8_bytes() -> None:
    with closing(Shelf()) as shelf, pytest.raises(ValueError, match="8 bytes"):
        shelf.get_value(b"okok")


def test_a_transaction_is_one_write(path: Path) -> None:
    written = []

    class Counting(File):
        def write(self, s: bytes) -> None:
            written.append(s)
            super().write(s)

    Shelf(str(path)).close()
    with closing(Shelf(Counting(str(path)))) as shelf:
        shelf.store([record_item(0), record_item(1)])
    assert written == [encode_transaction(record_item(0), record_item(1))]


class FailingFile(File):
    """A file on which one thing fails: "write" half-way, "fsync" or "truncate"."""

    fails = ""

    def write(self, s: bytes) -> None:
        if "write" in self.fails:
            super().write(s[: len(s) // 2])
            raise OSError(28, "No space left on device")
        super().write(s)

    def fsync(self) -> None:
        if "fsync" in self.fails:
            raise OSError(5, "Input/output error")
        super().fsync()

    def truncate(self) -> None:
        if "truncate" in self.fails:
            raise OSError(5, "Input/output error")
        super().truncate()


@pytest.fixture
def failing(path: Path) -> Iterator[Shelf]:
    shelf = Shelf(FailingFile(str(path)), check=is_record_item)
    shelf.store([record_item(0, "old")])
    yield shelf
    shelf.close()


def let_fail(shelf: Shelf, fails: str) -> None:
    file = shelf.get_file()
    assert isinstance(file, FailingFile)
    file.fails = fails


def test_after_a_write_that_fails_file_and_shelf_are_as_before(failing: Shelf, path: Path) -> None:
    before = path.read_bytes()
    let_fail(failing, "write")
    with pytest.raises(
        StorageError, match=r"was not committed.*No space left.*offset \d+$"
    ) as caught:
        failing.store([record_item(0, "new"), record_item(1)])
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == before
    assert dict(failing.items()) == dict([record_item(0, "old")])
    let_fail(failing, "")
    failing.store([record_item(1)])
    assert contents(path) == dict([record_item(0, "old"), record_item(1)])


@pytest.mark.parametrize("fails", ["fsync", "fsync truncate", "write truncate"])
def test_a_failure_that_cannot_be_undone_is_an_unknown_outcome(
    failing: Shelf, path: Path, fails: str
) -> None:
    let_fail(failing, fails)
    with pytest.raises(CommitOutcomeUnknownError, match="could not be cut back"):
        failing.store([record_item(0, "a long text, longer than what is stored after it")])
    assert dict(failing.items()) == dict([record_item(0, "old")])
    let_fail(failing, "")
    failing.store([record_item(1)])
    failing.close()
    assert contents(path) == dict([record_item(0, "old"), record_item(1)])


def test_a_file_that_somebody_cut_off_takes_nothing_more(failing: Shelf, path: Path) -> None:
    os.truncate(path, 50)
    with pytest.raises(CorruptionError, match="the file was cut off"):
        failing.store([record_item(1)])
    assert len(path.read_bytes()) == 50


def test_a_damaged_length_of_a_packed_record_is_found_when_it_is_read(path: Path) -> None:
    Shelf(str(path), items=[record_item(0), record_item(1)]).close()
    content = bytearray(path.read_bytes())
    content[16] ^= 0x40
    path.write_bytes(content)
    with closing(open_shelf(path)) as shelf:
        with pytest.raises(CorruptionError, match="offset 16: there is no whole record"):
            shelf.get_value(name(0))
        assert shelf.get_value(name(1)) == record_item(1)[1]


def test_the_record_of_another_object_is_not_taken_for_this_one(path: Path) -> None:
    Shelf(str(path), items=[record_item(0), record_item(1)]).close()
    content = path.read_bytes()
    swapped = content[:-3] + content[-2:-1] + content[-3:-2] + content[-1:]
    path.write_bytes(swapped)
    with (
        closing(open_shelf(path)) as shelf,
        pytest.raises(CorruptionError, match=r"oid 0.*record of oid 1"),
    ):
        shelf.get_value(name(0))


def test_damaged_holes_do_not_go_round_for_ever(path: Path) -> None:
    Shelf(str(path), items=[record_item(n) for n in (0, 2, 4)]).close()
    content = path.read_bytes()
    map_start = len(content) - 24 - 6 * 2
    path.write_bytes(content[:-2] + (map_start + 5).to_bytes(2))  # it is the only one
    with closing(open_shelf(path)) as shelf:
        assert shelf.next_name() == name(5)
        assert shelf.next_name() == name(6)
    path.write_bytes(content[:-2] + (map_start + 7).to_bytes(2))
    with closing(open_shelf(path)) as shelf:
        with pytest.raises(CorruptionError, match="hole 7"):
            shelf.next_name()
        with pytest.raises(CorruptionError, match=f"{path.name}.*the holes"):
            shelf.next_name()


@given(st.sets(st.integers(0, 300)), st.sets(st.integers(0, 400)))
def test_names_are_unused_and_come_once(packed: set[int], later: set[int]) -> None:
    shelf = Shelf(File(), items=[record_item(n) for n in packed])
    shelf.store(record_item(n) for n in later)
    names = list(islice(iter(shelf.next_name, None), 350))
    assert len(set(names)) == len(names)
    assert {name(n) for n in packed | later}.isdisjoint(names)
    assert set(shelf) == {name(n) for n in packed | later}
    shelf.close()


# The end of a file.


def make_file(path: Path, *transactions: bytes) -> list[int]:
    """A file with these transactions, and where each begins."""
    starts = [len(EMPTY_SHELF)]
    for transaction in transactions:
        starts.append(starts[-1] + len(transaction))
    path.write_bytes(EMPTY_SHELF + b"".join(transactions))
    return starts[:-1]


FIRST = encode_transaction(record_item(0, "kept", [1, 2]), record_item(1, "kept"))
LAST = encode_transaction(record_item(2, "x" * 50, [0, 1]), record_item(0), record_item(3))
KEPT = dict([record_item(0, "kept", [1, 2]), record_item(1, "kept")])


def assert_is_repaired(
    path: Path, start: int, caplog: pytest.LogCaptureFixture, kept: dict[bytes, bytes] = KEPT
) -> None:
    """The file is refused without repair; with it everything from `start` on is cut off."""
    content = path.read_bytes()
    for readonly, repair in ((False, False), (True, False), (True, True)):
        with pytest.raises(DamagedEndError) as caught:
            open_shelf(path, readonly=readonly, repair=repair)
        error = caught.value
        assert isinstance(error, ShortRead)
        assert isinstance(error, CorruptionError)
        assert (error.path, error.offset) == (str(path), start)
        assert f"{path}: damaged at offset {start}" in str(error)
        assert "repair=True" in str(error)
        assert path.read_bytes() == content
    caplog.clear()
    with caplog.at_level(logging.WARNING, "durus"):
        open_shelf(path, repair=True).close()
    (message,) = caplog.messages
    assert str(path) in message
    assert f"the last {len(content) - start} bytes, from offset {start} on" in message
    assert path.read_bytes() == content[:start]
    assert contents(path) == kept


def test_a_last_transaction_that_was_cut_is_repaired(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for size in (*range(1, 60), *range(60, len(LAST), 7)):
        _, start = make_file(path, FIRST, LAST[:size])
        assert_is_repaired(path, start, caplog)


def test_the_placeholder_of_a_killed_4_3_is_repaired(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whose length is 0, as it is written last; after it records, the last perhaps cut."""
    for size in (*range(9, 60), *range(60, len(LAST), 7), len(LAST)):
        _, start = make_file(path, FIRST, bytes(8) + LAST[8:size])
        assert_is_repaired(path, start, caplog)


def test_after_repair_the_shelf_goes_on(path: Path) -> None:
    make_file(path, FIRST, bytes(8) + LAST[8:])
    with closing(open_shelf(path, repair=True)) as shelf:
        shelf.store([record_item(9)])
    assert contents(path) == dict([*KEPT.items(), record_item(9)])


@pytest.mark.parametrize("count", [1, 2, 7])
def test_empty_transactions_are_legal_and_others_may_follow(path: Path, count: int) -> None:
    later = encode_transaction(record_item(7))
    make_file(path, FIRST, bytes(8 * count))
    assert contents(path) == KEPT
    make_file(path, bytes(8 * count), FIRST, bytes(8 * count), later)
    assert contents(path) == dict([*KEPT.items(), record_item(7)])
    with closing(open_shelf(path)) as shelf:
        shelf.store([record_item(8)])
    assert contents(path) == dict([*KEPT.items(), record_item(7), record_item(8)])


def test_zero_bytes_that_are_no_whole_empty_transaction_are_cut_off(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, start = make_file(path, FIRST, bytes(8 * 3 + 5))
    assert_is_repaired(path, start + 8 * 2, caplog)


def test_only_the_last_of_several_empty_transactions_is_a_placeholder(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, start = make_file(path, FIRST, bytes(8 * 3) + LAST[8:])
    assert_is_repaired(path, start + 8 * 2, caplog)


def test_a_last_transaction_with_a_hole_is_repaired(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A power cut may leave the whole length, and zeros where blocks were not written."""
    for hole in range(8, len(LAST) - 40, 5):
        torn = LAST[:hole] + bytes(len(LAST) - hole)
        _, start = make_file(path, FIRST, torn)
        try:
            open_shelf(path).close()
        except DamagedEndError:
            assert_is_repaired(path, start, caplog)
        else:
            assert all(torn[i] == LAST[i] for i in range(hole, hole + 16)) or hole >= 36


def test_other_bytes_at_the_end_are_cut_off(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for rest in (b"b", os.urandom(1000), b"\xff" * 8, int8(3) + b"abc"):
        _, start = make_file(path, FIRST, rest)
        assert_is_repaired(path, start, caplog)


def test_a_transaction_whose_records_do_not_fill_it_is_not_whole(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    oid, record = record_item(2)
    wrong = [
        int8(len(record) + 17) + int8(len(record) + 8) + oid + record + b"x",
        int8(len(record) + 15) + int8(len(record) + 8) + oid + record,
        int8(len(record) + 16) + int8(len(record) + 7) + oid + record,
        encode_transaction((oid, record + b"1234567")),
        encode_transaction((oid, pack_record(oid, b"data", b"")[:-5])),
        encode_transaction((oid, pack_record(oid, b"data", b"refs"))),
        encode_transaction((oid, record_item(3)[1])),
        encode_transaction((oid, b"short")),
    ]
    for transaction in wrong:
        _, start = make_file(path, FIRST, transaction)
        assert_is_repaired(path, start, caplog)


def test_a_reference_that_looks_like_a_length_is_none(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may stand before a record, and say how long that is, as the length of a transaction."""
    second = encode_transaction(record_item(3, "x" * 20))[8:]
    torn = encode_transaction(record_item(2, 0, [0, len(second)]))[8:] + second
    torn += encode_transaction(record_item(4))[8:]
    _, start = make_file(path, FIRST, b"\xff" * 8 + torn)
    assert_is_repaired(path, start, caplog)
    _, start = make_file(path, FIRST, b"\xff" * 20 + torn[12:])
    assert_is_repaired(path, start, caplog)


def assert_is_refused(path: Path, start: int, later: int) -> None:
    content = path.read_bytes()
    for repair in (False, True):
        with pytest.raises(CorruptionError, match=f"but at offset {later} is one") as caught:
            open_shelf(path, repair=repair)
        assert not isinstance(caught.value, ShortRead)
        assert caught.value.offset == start
        assert path.read_bytes() == content


def test_a_damaged_transaction_before_a_whole_one_is_never_cut_off(path: Path) -> None:
    """Any bit of the lengths, or of an oid, of one that has a successor."""
    starts = make_file(path, FIRST, LAST, FIRST)
    content = path.read_bytes()
    for place in range(starts[1], starts[1] + 8 + 24):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            assert_is_refused(path, starts[1], starts[2])


@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"x"])
def test_a_middle_that_was_overwritten_is_never_cut_off(path: Path, filler: bytes) -> None:
    for extra in range(9):  # lengths with all remainders
        middle = encode_transaction(record_item(2, "x" * (50 + extra), [0, 1]), record_item(0))
        starts = make_file(path, FIRST, middle, FIRST, bytes(8))
        content = path.read_bytes()
        for size in (8, 30, len(middle) - 8, len(middle)):
            damaged = content[: starts[1]] + filler * size + content[starts[1] + size :]
            path.write_bytes(damaged)
            if damaged[starts[1] : starts[2]] == bytes(len(middle) // 8 * 8):
                assert contents(path) == KEPT  # these are empty transactions
                continue
            with pytest.raises(CorruptionError, match=f"at offset {starts[2]} is one"):
                open_shelf(path, repair=True)
            assert path.read_bytes() == damaged


def test_a_length_that_became_0_before_a_whole_transaction_is_damage(path: Path) -> None:
    starts = make_file(path, FIRST, bytes(8) + LAST[8:], FIRST)
    assert_is_refused(path, starts[1], starts[2])


def test_damage_before_a_last_transaction_that_was_cut_is_refused_too(path: Path) -> None:
    damaged = b"\xff" + LAST[1:]
    starts = make_file(path, FIRST, damaged, FIRST, LAST[:60])
    assert_is_refused(path, starts[1], starts[2])


def test_a_large_file_is_searched_for_later_transactions(path: Path) -> None:
    large = encode_transaction(record_item(5, os.urandom(3 << 20)))
    starts = make_file(path, b"\x01" + large[1:], FIRST)
    assert_is_refused(path, starts[0], starts[1])


@given(
    numbers=st.lists(st.integers(0, 400), min_size=1, max_size=30, unique=True),
    sizes=st.lists(st.integers(0, 60), min_size=30, max_size=30),
    cut=st.integers(0, 200),
    is_placeholder=st.booleans(),
)
def test_whatever_a_killed_process_was_writing_is_cut_off(
    numbers: list[int], sizes: list[int], cut: int, is_placeholder: bool
) -> None:
    """References look like lengths of all kinds, and must not be taken for later transactions."""
    items = [
        record_item(n, "x" * size, range(n, n + size % 7 * 9, 9))
        for n, size in zip(numbers, sizes, strict=False)
    ]
    transaction = encode_transaction(*items)
    if is_placeholder:
        transaction = bytes(8) + transaction[8:]
    else:
        cut += 1
    file = File()
    file.write(EMPTY_SHELF + FIRST + transaction[: max(9, len(transaction) - cut)])
    with closing(Shelf(file, repair=True, check=is_record_item)) as shelf:
        assert dict(shelf.items()) == KEPT
        assert shelf.end == len(file) == len(EMPTY_SHELF + FIRST)


def test_while_a_writer_is_at_it_a_reader_does_without_the_last_transaction(path: Path) -> None:
    make_file(path, FIRST, LAST[:50])
    with closing(File(str(path))) as writer:
        writer.obtain_lock()
        assert contents(path) == KEPT
    with pytest.raises(DamagedEndError):
        contents(path)


# One transaction at a time, as in 4.3.


def test_transactions_are_read_one_after_the_other(path: Path) -> None:
    starts = make_file(path, FIRST, encode_transaction(), LAST)
    with closing(File(str(path))) as file:
        file.seek(starts[0])
        first = read_transaction_offsets(file)
        assert first == {name(0): starts[0] + 8, name(1): starts[0] + 8 + 16 + len(KEPT[name(0)])}
        assert file.tell() == starts[1]
        assert read_transaction_offsets(file) == {}
        assert sorted(read_transaction_offsets(file) or {}) == [name(0), name(2), name(3)]
        assert read_transaction_offsets(file) is None


def test_a_transaction_that_is_not_whole_is_cut_off_or_refused(path: Path) -> None:
    (start,) = make_file(path, LAST[:-1])
    with closing(File(str(path))) as file:
        file.seek(start)
        with pytest.raises(ShortRead):
            read_transaction_offsets(file)
        file.seek(start)
        assert read_transaction_offsets(file, repair=True) is None
        assert len(file) == start


# The offset map.


def test_an_offset_map_holds_offsets_and_strings_its_holes_together() -> None:
    file = BytesIO(bytes(1000))
    file.seek(0, 2)
    offset_map = OffsetMap(file, max_oid=8, max_offset=999)
    assert offset_map.get_array_size() == 10
    assert offset_map.get_start() == 1000
    for number in (0, 2, 8):
        offset_map[number] = 100 + number
    assert list(offset_map) == [0, 2, 8]
    list(offset_map.gen_stitch())
    file.seek(1000)
    again = OffsetMap(file)
    assert list(again.items()) == [(0, 100), (2, 102), (8, 108)]
    assert list(again.gen_holes()) == [7, 6, 5, 4, 3, 1, 9]
    assert again[2] == 102
    assert again.get(1) is None
    assert again.get(1, 5) == again.get(100, 5) == 5
    with pytest.raises(IndexError):
        again[1]
    with pytest.raises(AssertionError, match="number 2 has an offset already"):
        again[2] = 1


def test_an_offset_map_comes_after_all_that_it_leads_to() -> None:
    with pytest.raises(AssertionError):
        OffsetMap(BytesIO(), max_oid=8, max_offset=999)


def test_numbers_and_names_are_the_same() -> None:
    makers: list[Callable[[int], bytes]] = [name, int8, int8_to_str]
    assert {make(258) for make in makers} == {b"\0\0\0\0\0\0\1\2"}
