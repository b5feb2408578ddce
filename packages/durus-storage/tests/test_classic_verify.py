"""Verify of SHELF-1 and DFS20 files names what is wrong, with offset and oid; and only that."""

import pickle
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from durus.classic_transfer import write_dfs20, write_shelf
from durus.classic_verify import verify_dfs20, verify_shelf
from durus.error import NotADatabaseError, StorageOpenError
from durus.file import File
from durus.file_format import Finding, StoredDatabase, StoredTransaction
from durus.file_storage2 import FileStorage2
from durus.interfaces import Oid
from durus.record import pack_record, record_to_classic
from durus.shelf_storage import ShelfStorage
from durus.testing.storage_contract import make_record

CLASS = b"\x80\x02cdurus.persistent\nPersistent\nq\x01."
STATE = b"\x80\x02}."


class Format(NamedTuple):
    cls: type[ShelfStorage] | type[FileStorage2]
    write: Callable[[str, StoredDatabase], None]
    verify: Callable[[str], Iterator[Finding]]
    head: int
    """How much there is before a record: lengths and names."""


FORMATS = [
    Format(ShelfStorage, write_shelf, verify_shelf, 16),
    Format(FileStorage2, write_dfs20, verify_dfs20, 4),
]


def name(number: int) -> Oid:
    return Oid(number.to_bytes(8, "big"))


def classic(number: int, value: object = 0, refs: Iterable[int] = ()) -> bytes:
    return record_to_classic(name(number), make_record(value, map(name, refs)), compress=True)


@pytest.fixture(params=FORMATS, ids=["shelf", "dfs20"])
def form(request: pytest.FixtureRequest) -> Format:
    found: Format = request.param
    return found


def make_file(form: Format, path: Path, *transactions: list[bytes], packed: int = 0) -> None:
    """A file of these transactions, after `packed` objects in its base."""
    numbers = range(100, 100 + packed)
    records = [(name(n), make_record(n)) for n in numbers]
    form.write(str(path), StoredDatabase(transactions=[StoredTransaction(records=records)]))
    with form.cls(path) as storage:
        if isinstance(storage, ShelfStorage):
            storage.allocated_unused_oids |= {name(n) for n in range(100)}
        for transaction in transactions:
            storage.begin()
            for record in transaction:
                storage.store(record[:8], record)
            storage.end()


def place_of(form: Format, path: Path, record: bytes) -> int:
    """Where what holds the record begins."""
    return path.read_bytes().index(record) - form.head


def problems(form: Format, path: Path) -> list[tuple[int | None, Oid | None, str]]:
    return [(found.offset, found.oid, found.problem) for found in form.verify(str(path))]


def test_a_sound_file_has_no_findings(form: Format, path: Path) -> None:
    make_file(
        form, path, [classic(0, 0, [1]), classic(1, 0, [0, 100])], [classic(1, "new")], packed=5
    )
    assert problems(form, path) == []


def test_a_missing_or_another_file_is_no_finding(form: Format, path: Path) -> None:
    with pytest.raises(StorageOpenError):
        problems(form, path)
    path.write_bytes(b"another")
    with pytest.raises(NotADatabaseError):
        problems(form, path)


def test_it_is_only_read(form: Format, path: Path) -> None:
    make_file(form, path, [classic(0, 0, [9])])
    path.chmod(0o444)
    content = path.read_bytes()
    with closing(File(path, readonly=True)):
        assert len(problems(form, path)) == 1
    assert path.read_bytes() == content


def test_a_dangling_reference_is_named(form: Format, path: Path) -> None:
    record = classic(1, 0, [0, 9])
    make_file(form, path, [classic(0, 0, [1]), classic(2, "old", [8])], [record, classic(2)])
    assert problems(form, path) == [
        (place_of(form, path, record), name(1), "it refers to oid 9, which does not exist")
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (CLASS + STATE, None),
        (CLASS + zlib.compress(STATE), None),
        (b"ok", "the class cannot be read"),
        (pickle.dumps(5, 2) + STATE, "the class cannot be read"),
        (CLASS, "the state is damaged"),
        (CLASS + STATE[:-1], "the state is damaged: pickle exhausted before seeing STOP"),
        (CLASS + STATE + b"x", "the state is damaged: bytes follow the pickle"),
        (CLASS + b"\x80\x02\xff.", "the state is damaged: at position 2, opcode"),
        (CLASS + zlib.compress(STATE)[:-1], "the state is damaged: it is cut off"),
        (CLASS + zlib.compress(STATE) + b"x", "the state is damaged: it is no pickle"),
        (CLASS + zlib.compress(b"text"), "the state is damaged: it is no pickle"),
        (CLASS + b"x" + zlib.compress(STATE)[1:-1] + b"\0", "incorrect data check"),
        (CLASS + b"x\x9c" + b"\xff" * 10, "the state is damaged: Error -3"),
    ],
)
def test_the_pickles_are_looked_at(
    form: Format, path: Path, data: bytes, problem: str | None
) -> None:
    record = pack_record(name(0), data, b"")
    make_file(form, path, [record])
    found = problems(form, path)
    assert len(found) == (problem is not None)
    for offset, oid, text in found:
        assert (offset, oid) == (place_of(form, path, record), name(0))
        assert problem is not None
        assert problem in text


def test_a_state_that_decompresses_to_very_much_is_no_trouble(form: Format, path: Path) -> None:
    state = zlib.compress(b"\x80\x02U\xff" + bytes(30 << 20) + b".")
    make_file(form, path, [pack_record(name(0), CLASS + state, b"")])
    assert problems(form, path) == []


def test_nothing_is_imported_or_called(form: Format, path: Path, tmp_path: Path) -> None:
    (tmp_path / "trap_module.py").write_text("raise SystemExit('imported')")
    sys.path.insert(0, str(tmp_path))
    try:
        records = [
            pack_record(name(0), b"\x80\x02ctrap_module\nTrap\n." + STATE, b""),
            pack_record(name(1), CLASS + b"cos\n_exit\n(I1\ntR.", b""),
            pack_record(name(2), b"cos\n_exit\n(I1\ntR." + STATE, b""),
        ]
        make_file(form, path, records)
        assert [oid for _, oid, _ in problems(form, path)] == [name(2)]
    finally:
        sys.path.remove(str(tmp_path))
    assert "trap_module" not in sys.modules


def test_an_unfinished_transaction_at_the_end_is_found(form: Format, path: Path) -> None:
    make_file(form, path, [classic(0)])
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"\0\0\0")
    ((offset, oid, problem),) = problems(form, path)
    assert (offset, oid) == (size, None)
    assert problem == "the last 3 bytes are no whole transaction; repair=True cuts them off"


def test_while_a_writer_is_at_it_an_unfinished_transaction_is_none(
    form: Format, path: Path
) -> None:
    make_file(form, path, [classic(0)])
    with closing(File(path)) as file:
        file.seek_end()
        file.write(b"\0\0\0")
        assert problems(form, path) == []


def test_after_damage_it_goes_on(form: Format, path: Path) -> None:
    broken = pack_record(name(3), CLASS + STATE + b"x", b"")
    make_file(form, path, [classic(0)], [classic(1, "x" * 50)], [classic(2)], [broken])
    start = place_of(form, path, classic(1, "x" * 50))
    content = bytearray(path.read_bytes())
    content[start] = 0xFF
    path.write_bytes(content)
    transaction = start - 8 if form.cls is ShelfStorage else start
    assert problems(form, path) == [
        (transaction, None, f"no whole transaction is here; at offset {start} is no whole record"),
        (place_of(form, path, broken), name(3), "the state is damaged: bytes follow the pickle"),
    ]


def test_after_damage_in_the_base_it_goes_on(form: Format, path: Path) -> None:
    broken = pack_record(name(3), CLASS + STATE + b"x", b"")
    make_file(form, path, [broken], packed=5)
    start = place_of(form, path, classic(102, 102))
    content = bytearray(path.read_bytes())
    content[start + form.head + 8] = 0xFF  # the length of its pickles
    path.write_bytes(content)
    found = problems(form, path)
    assert found[-1] == (
        place_of(form, path, broken),
        name(3),
        "the state is damaged: bytes follow the pickle",
    )
    assert any((offset, oid) == (start, name(102)) for offset, oid, _ in found)
    assert {oid for _, oid, _ in found} == {None, name(102), name(3)}


def test_an_index_that_does_not_fit_is_found(form: Format, path: Path) -> None:
    make_file(form, path, packed=5)
    content = path.read_bytes()
    first, second = (place_of(form, path, classic(n, n)) for n in (101, 102))
    for n, other in ((101, 102), (102, 101)):  # the objects have each other's places
        record, place = classic(n, n), second if n == 101 else first
        head = form.head - (8 if form.cls is ShelfStorage else 0)
        start = place + head
        swapped = name(n) + record if form.cls is ShelfStorage else record
        assert len(classic(other, other)) == len(record)
        content = content[:start] + swapped + content[start + len(swapped) :]
    path.write_bytes(content)
    found = problems(form, path)
    assert [(offset, oid) for offset, oid, _ in found] == [
        (first, name(101)),
        (second, name(102)),
    ]


def test_every_flipped_bit_of_a_compressed_record_is_found(form: Format, path: Path) -> None:
    record = classic(1, "some text")
    make_file(form, path, [classic(0, 0, [1])], [record], [classic(2)])
    content = path.read_bytes()
    start = place_of(form, path, record)
    state = content.index(b"\x78\x9c", start)
    end = start + form.head + len(record)
    lengths_and_oids = range(start, start + form.head + 12)
    if form.cls is FileStorage2:  # which has the oid once
        lengths_and_oids = range(start, start + 4)
    places = [*lengths_and_oids, *range(state + 2, end)]
    for place in places:
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            assert problems(form, path) != [], (place - start, bit)


def test_a_finding_does_not_name_the_file(form: Format, path: Path) -> None:
    """Whoever shows it has done that."""
    make_file(form, path, packed=5)
    content = path.read_bytes()
    places = range(8, len(content)) if form.cls is ShelfStorage else range(6, len(content))
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
        found = problems(form, path)
        assert not any(path.name in problem or "damaged at" in problem for *_, problem in found)
    path.write_bytes(content[:40])
    (only,) = problems(form, path)
    assert only[2].startswith("the file ends ")


def test_a_head_that_is_damaged_is_found(form: Format, path: Path) -> None:
    make_file(form, path, packed=5)
    content = path.read_bytes()
    places = range(8, 16) if form.cls is ShelfStorage else range(6, 14)
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0x11
        path.write_bytes(damaged)
        assert problems(form, path) != []


def test_holes_that_are_not_linked_are_found(path: Path) -> None:
    form = FORMATS[0]
    make_file(form, path, packed=2)
    content = bytearray(path.read_bytes())
    place = len(content) - 2 * 103 + 2 * 50
    content[place : place + 2] = content[place - 2 : place]
    path.write_bytes(content)
    assert problems(form, path) != []
