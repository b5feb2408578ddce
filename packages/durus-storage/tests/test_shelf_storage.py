"""`ShelfStorage`: oids and their reuse, surprises, and walking in the manner of 4.3."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.error import CorruptionError, DurusKeyError
from durus.interfaces import ROOT_OID, Oid
from durus.persistent import Persistent
from durus.record import record_to_classic
from durus.shelf import Shelf
from durus.shelf_storage import ShelfStorage
from durus.testing.storage_contract import make_record
from durus.utils import IntSet


def name(number: int) -> Oid:
    return Oid(number.to_bytes(8, "big"))


def classic(number: int, value: object = 0, refs: Iterable[int] = ()) -> bytes:
    return record_to_classic(name(number), make_record(value, map(name, refs)))


def fill(storage: ShelfStorage, count: int) -> None:
    """A root that refers to objects 1 to count - 1."""
    assert [storage.new_oid() for _ in range(count)] == [name(n) for n in range(count)]
    storage.begin()
    storage.store(name(0), classic(0, 0, range(1, count)))
    for number in range(1, count):
        storage.store(name(number), classic(number))
    storage.end()


def change(storage: ShelfStorage, number: int, refs: Iterable[int]) -> None:
    storage.begin()
    storage.store(name(number), classic(number, 0, refs))
    storage.end()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.shelf"


@pytest.fixture
def storage(path: Path) -> Iterator[ShelfStorage]:
    with ShelfStorage(path) as storage:
        yield storage


def test_it_is_a_shelf_with_the_attributes_of_4_3(path: Path, storage: ShelfStorage) -> None:
    assert isinstance(storage.shelf, Shelf)
    assert storage.shelf.get_file().get_name() == str(path)
    assert ShelfStorage.has_format(storage.shelf.get_file())
    oid = storage.new_oid()
    assert storage.allocated_unused_oids == {oid}
    storage.store(oid, classic(0))
    assert storage.pending_records == {oid: classic(0)}
    storage.end()
    assert storage.allocated_unused_oids == set()
    assert storage.pending_records == {}
    assert storage.pack_extra is None
    assert storage.invalid == set()


def test_an_oid_that_was_not_handed_out_is_a_surprise(storage: ShelfStorage) -> None:
    fill(storage, 2)
    storage.begin()
    storage.store(name(1), classic(1, "forgotten"))
    with pytest.raises(ValueError, match="is a surprise"):
        storage.store(name(5), classic(5))
    storage.end()
    assert storage.load(name(1)) == classic(1)
    with pytest.raises(DurusKeyError):
        storage.load(name(5))


def test_the_root_is_no_surprise(storage: ShelfStorage) -> None:
    storage.begin()
    storage.store(ROOT_OID, classic(0))
    storage.end()
    assert storage.new_oid() == name(1)


def test_oids_come_one_after_the_other_also_when_opened_again(path: Path) -> None:
    with ShelfStorage(path) as storage:
        fill(storage, 5)
    with ShelfStorage(path) as storage:
        assert [storage.new_oid() for _ in range(3)] == [name(5), name(6), name(7)]


def test_after_a_pack_holes_are_handed_out_first_the_last_one_first(path: Path) -> None:
    with ShelfStorage(path) as storage:
        fill(storage, 11)
        change(storage, 0, [2, 4, 5, 6, 7, 10])  # 1, 3, 8 and 9 are not reached any more
        storage.pack()
        assert storage.new_oid() == name(11)  # nobody was told yet that the others are gone
        assert sorted(storage.sync()) == [name(n) for n in (1, 3, 8, 9)]
    with ShelfStorage(path) as storage:
        found = [storage.new_oid() for _ in range(6)]
    assert found == [name(n) for n in (9, 8, 3, 1, 11, 12)]


def test_what_was_handed_out_before_a_pack_is_not_handed_out_after_it(
    storage: ShelfStorage,
) -> None:
    fill(storage, 3)
    given = {storage.new_oid() for _ in range(3)}
    change(storage, 0, [1])
    storage.pack()
    storage.sync()
    assert given.isdisjoint(storage.new_oid() for _ in range(5))
    change(storage, 0, [3])
    storage.begin()
    storage.store(name(3), classic(3))
    storage.end()


def test_walking_leaves_out_what_was_seen(storage: ShelfStorage) -> None:
    fill(storage, 6)
    change(storage, 0, [1, 2, 4])
    change(storage, 2, [5, 0])
    seen = IntSet()
    seen.add(4)
    assert [oid for oid, _ in storage.gen_oid_record(name(0), seen=seen)] == [
        name(n) for n in (0, 1, 2, 5)
    ]
    assert [n for n in range(10) if n in seen] == [0, 1, 2, 4, 5]
    assert [oid for oid, _ in storage.gen_oid_record(start_oid=name(0), seen=seen)] == []
    assert sorted(oid for oid, _ in storage.gen_oid_record()) == [name(n) for n in range(6)]


def test_a_packed_file_is_read_by_its_offset_map(path: Path) -> None:
    with ShelfStorage(path) as storage:
        fill(storage, 50)
        storage.pack()
        assert storage.shelf.memory_index == {}
        change(storage, 7, [8])
        assert list(storage.shelf.memory_index) == [name(7)]
    with ShelfStorage(path) as storage:
        assert list(storage.shelf.memory_index) == [name(7)]
        assert storage.load(name(8)) == classic(8)
        assert storage.load(name(7)) == classic(7, 0, [8])


def test_connections_use_it_as_any_other_storage(path: Path) -> None:
    """4.3's own test of packing: what was removed becomes a ghost, and its oid is used again."""
    with closing(ShelfStorage(path)) as storage, Connection(storage) as connection:
        root = connection.root
        for number in range(10):
            root[f"a{number}"] = Persistent()
            connection.commit()
        removed = [root.pop(f"a{number}")._p_oid for number in (0, 2, 7, 8)]
        connection.commit()
        connection.pack()
        connection.abort()
        ghosts = [connection.get(oid) for oid in removed]
        assert all(ghost is not None and ghost._p_is_ghost() for ghost in ghosts)
        assert len(list(storage.gen_oid_record())) == 7
        connection.commit()
    with ShelfStorage(path) as storage:
        assert [storage.new_oid() for _ in removed] == removed[::-1]
        assert storage.new_oid() == name(11)


def test_a_reference_to_a_huge_oid_takes_no_memory(tmp_path: Path) -> None:
    """As a flipped bit makes one."""
    with closing(ShelfStorage(tmp_path / "file")) as storage:
        root, huge = Oid(storage.new_oid()), Oid((2**47).to_bytes(8))
        storage.begin()
        storage.store(root, record_to_classic(root, make_record(0, [huge])))
        storage.end()
        with pytest.raises(CorruptionError, match=str(2**47)):
            storage.pack()
