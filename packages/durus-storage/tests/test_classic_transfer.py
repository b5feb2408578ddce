"""Whole SHELF-1 and DFS20 files, read and written as streams."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import NamedTuple

import pytest

from durus import serialize
from durus.classic_file import DamagedEndError
from durus.classic_transfer import read_dfs20, read_shelf, write_dfs20, write_shelf
from durus.classic_verify import verify_dfs20, verify_shelf
from durus.error import CorruptionError, NotADatabaseError, StorageError, StorageOpenError
from durus.file import File
from durus.file_format import Finding, StoredDatabase, StoredTransaction
from durus.file_storage2 import FileStorage2
from durus.interfaces import NO_TID, Oid, Record
from durus.record import record_to_classic
from durus.shelf_storage import ShelfStorage
from durus.testing.storage_contract import make_record


class Format(NamedTuple):
    cls: type[ShelfStorage] | type[FileStorage2]
    read: Callable[[str], AbstractContextManager[StoredDatabase]]
    write: Callable[[str, StoredDatabase], None]
    verify: Callable[[str], Iterator[Finding]]


FORMATS = [
    Format(ShelfStorage, read_shelf, write_shelf, verify_shelf),
    Format(FileStorage2, read_dfs20, write_dfs20, verify_dfs20),
]


def name(number: int) -> Oid:
    return Oid(number.to_bytes(8, "big"))


def commit(storage: ShelfStorage | FileStorage2, records: dict[int, Record]) -> None:
    storage.begin()
    for number, record in records.items():
        if name(number) not in dict(storage.gen_oid_record()):
            storage.new_oid()
        storage.store(name(number), record_to_classic(name(number), record))
    storage.end()


def database(records: Iterable[tuple[Oid, Record]]) -> StoredDatabase:
    return StoredDatabase(transactions=[StoredTransaction(records=records)])


def read_all(form: Format, path: Path) -> list[dict[Oid, Record]]:
    with form.read(str(path)) as found:
        assert (found.horizon, found.next_oid) == (NO_TID, 0)
        transactions = []
        for transaction in found.transactions:
            assert (transaction.tid, transaction.id, transaction.time_ns) == (NO_TID, 0, 0)
            records = list(transaction.records)
            assert len(dict(records)) == len(records)
            transactions.append(dict(records))
    return transactions


@pytest.fixture(params=FORMATS, ids=["shelf", "dfs20"])
def form(request: pytest.FixtureRequest) -> Format:
    found: Format = request.param
    return found


RECORDS = {number: make_record(number, [name(0)]) for number in range(4)}


def test_all_transactions_since_the_last_pack_are_read_the_base_first(
    form: Format, path: Path
) -> None:
    with form.cls(path) as storage:
        commit(storage, {0: make_record(0, [name(1), name(2)]), 1: RECORDS[1], 2: RECORDS[2]})
        commit(storage, {3: RECORDS[3]})  # which nothing refers to
        storage.pack()
        storage.sync()
        commit(storage, {1: make_record("new")})
        commit(storage, {1: make_record("newer"), 2: make_record("new")})
    base = {name(0): make_record(0, [name(1), name(2)]), name(1): RECORDS[1], name(2): RECORDS[2]}
    assert read_all(form, path) == [
        base,
        {name(1): make_record("new")},
        {name(1): make_record("newer"), name(2): make_record("new")},
    ]


def test_what_was_changed_during_a_pack_is_read_once(form: Format, path: Path) -> None:
    with form.cls(path) as storage:
        commit(storage, {0: make_record(0, [name(1)]), 1: make_record(1)})
        packer = storage.get_packer()
        for _ in range(3):
            next(packer)
        commit(storage, {0: make_record("new", [name(1)]), 1: make_record("new")})
        for _ in packer:
            pass
    newest: dict[Oid, Record] = {}
    for transaction in read_all(form, path):
        newest.update(transaction)
    assert newest == {name(0): make_record("new", [name(1)]), name(1): make_record("new")}


def test_a_new_file_has_an_empty_base(form: Format, path: Path) -> None:
    form.cls(path).close()
    assert read_all(form, path) == [{}]


def test_reading_takes_no_lock_and_may_go_on_beside_a_writer(form: Format, path: Path) -> None:
    with form.cls(path) as storage:
        commit(storage, {0: RECORDS[0]})
        assert read_all(form, path) == [{}, {name(0): RECORDS[0]}]
        with path.open("ab") as file:  # it is just writing the next one
            file.write(b"\0\0\0")
        assert read_all(form, path) == [{}, {name(0): RECORDS[0]}]
    with pytest.raises(DamagedEndError):
        read_all(form, path)


def test_a_missing_or_another_file_is_named(form: Format, path: Path) -> None:
    with pytest.raises(StorageOpenError, match=r"test\.durus: there is no such file"):
        read_all(form, path)
    path.write_bytes(b"another")
    with pytest.raises(NotADatabaseError, match=r"test\.durus: this is no"):
        read_all(form, path)


def test_damage_of_the_base_is_not_left_out(form: Format, path: Path) -> None:
    form.write(str(path), database([(name(n), r) for n, r in RECORDS.items()]))
    content = path.read_bytes()
    start = content.index(record_to_classic(name(2), RECORDS[2], compress=True)[:20])
    damaged = bytearray(content)
    damaged[start + 7] = 3  # this seems to be another object
    path.write_bytes(damaged)
    with pytest.raises(CorruptionError):
        read_all(form, path)
    damaged = bytearray(content)
    damaged[start + 8] = 0xFF
    path.write_bytes(damaged)
    with pytest.raises(CorruptionError, match="no whole record here"):
        read_all(form, path)


def test_damage_after_the_base_is_not_left_out(form: Format, path: Path) -> None:
    with form.cls(path) as storage:
        commit(storage, {0: RECORDS[0]})
        start = path.stat().st_size
        commit(storage, {0: RECORDS[0]})
        commit(storage, {0: RECORDS[0]})
    content = path.read_bytes()
    path.write_bytes(content[:start] + b"\xff" + content[start + 1 :])
    with pytest.raises(CorruptionError, match=f"offset {start}: this is no whole transaction"):
        read_all(form, path)


# Writing.


def test_a_file_that_is_written_is_packed_and_sound(form: Format, path: Path) -> None:
    records = [(name(number), record) for number, record in RECORDS.items()]
    form.write(str(path), database(iter(records)))
    assert read_all(form, path) == [dict(records)]
    assert list(form.verify(str(path))) == []
    with form.cls(path) as storage:
        assert storage.new_oid() == name(4)
        commit(storage, {1: make_record("new")})
        assert len(dict(storage.gen_oid_record())) == 4


def test_records_may_come_in_any_order_and_with_holes(form: Format, path: Path) -> None:
    records = [(name(number), make_record(number)) for number in (70, 0, 300, 5)]
    form.write(str(path), database(records))
    assert read_all(form, path) == [dict(records)]
    assert list(form.verify(str(path))) == []


def test_a_database_of_nothing_is_written(form: Format, path: Path) -> None:
    for transactions in ([], [StoredTransaction(records=[])]):
        form.write(str(path), StoredDatabase(transactions=transactions))
        assert read_all(form, path) == [{}]
        assert list(form.verify(str(path))) == []
        path.unlink()


def test_records_are_read_one_by_one(form: Format, path: Path) -> None:
    large = os.urandom(1 << 17)

    def generate() -> Iterator[tuple[Oid, Record]]:
        for number in range(20):
            if number > 2:
                (made,) = path.parent.iterdir()
                assert made.stat().st_size > (number - 2) << 17
            yield name(number), make_record(large)

    form.write(str(path), database(generate()))
    with form.read(str(path)) as found:
        for transaction in found.transactions:
            assert sum(1 for _ in transaction.records) == 20


@pytest.mark.parametrize("compress", [True, False])
def test_states_are_compressed_as_4_3_does_it(
    form: Format, path: Path, compress: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serialize, "WRITE_COMPRESSED_STATE_PICKLES", compress)
    form.write(str(path), database([(name(0), make_record("x" * 1000))]))
    assert (b"x" * 1000 in path.read_bytes()) != compress
    assert read_all(form, path) == [{name(0): make_record("x" * 1000)}]


def test_an_existing_file_is_never_overwritten(form: Format, path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(StorageOpenError, match="nothing is overwritten"):
        form.write(str(path), database([]))
    assert path.read_bytes() == b"precious"


def test_when_the_database_cannot_be_read_there_is_no_file(form: Format, path: Path) -> None:
    def generate() -> Iterator[tuple[Oid, Record]]:
        yield name(0), RECORDS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        form.write(str(path), database(generate()))
    assert list(path.parent.iterdir()) == []


def test_a_file_appears_when_it_is_complete(form: Format, path: Path) -> None:
    def generate() -> Iterator[tuple[Oid, Record]]:
        assert not path.exists()
        yield name(0), RECORDS[0]
        path.write_bytes(b"precious")

    with pytest.raises(StorageOpenError, match="nothing is overwritten"):
        form.write(str(path), database(generate()))
    assert [found.read_bytes() for found in path.parent.iterdir()] == [b"precious"]


def test_a_shelf_has_no_room_for_oids_far_apart(path: Path) -> None:
    far = [(name(0), make_record(0)), (name(2**40), make_record(1))]
    with pytest.raises(StorageError, match="only 2 objects; convert the database with renumber"):
        write_shelf(str(path), database(far))
    assert not path.exists()
    write_dfs20(str(path), database(far))
    with closing(File(path)) as file:
        assert len(file) < 1000
    assert read_all(FORMATS[1], path) == [dict(far)]
