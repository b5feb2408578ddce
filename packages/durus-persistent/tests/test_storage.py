"""The classic base class, the tools over a whole storage, and opening by URI."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import durus.storage
from durus import interfaces
from durus.classic import ClassicAdapter
from durus.error import StorageOpenError
from durus.interfaces import ROOT_OID, Oid
from durus.memory_storage import open_memory
from durus.record import pack_record
from durus.storage import (
    MemoryStorage,
    Storage,
    gen_oid_class,
    gen_referring_oid_record,
    get_census,
    get_reference_index,
    open_storage,
)


def oid(number: int) -> Oid:
    return Oid(number.to_bytes(8, "big"))


def record_of(number: int, name: bytes, *refs: int) -> bytes:
    data = b"\x80\x02cshop\n" + name + b"\n." + b"\x80\x02N."
    return pack_record(oid(number), data, b"".join(map(oid, refs)))


RECORDS = {
    oid(0): record_of(0, b"Shop", 1, 2),
    oid(1): record_of(1, b"Shelf", 3),
    oid(2): record_of(2, b"Shelf", 3, 0),
    oid(3): record_of(3, b"Book"),
}


class ReadingStorage(Storage):
    def __init__(self) -> None:
        self.loaded: list[bytes] = []

    def load(self, oid: bytes) -> bytes:
        self.loaded.append(oid)
        return RECORDS[Oid(oid)]

    def sync(self) -> Sequence[bytes]:
        return []


def memory_storage() -> MemoryStorage:
    storage = MemoryStorage()
    storage.begin()
    for number, record in RECORDS.items():
        storage.store(number, record)
    storage.end()
    return storage


STORAGES = [ReadingStorage(), memory_storage(), ClassicAdapter(ReadingStorage())]
each_kind = pytest.mark.parametrize("storage", STORAGES, ids=["classic", "memory", "adapter"])


# The base class.


def test_the_base_class_is_abstract_as_in_durus_4() -> None:
    class Fake:
        pass

    fake = Fake()
    fake.__class__ = Storage  # type: ignore[assignment]  # 4.3's own test does this
    assert isinstance(fake, Storage)
    with pytest.raises(RuntimeError):
        fake.__init__()  # type: ignore[misc]  # the point of the test
    for call in (fake.begin, fake.end, fake.sync, fake.new_oid):
        with pytest.raises(NotImplementedError):
            call()
    with pytest.raises(NotImplementedError):
        fake.load(b"")
    with pytest.raises(NotImplementedError):
        fake.store(b"", b"")
    records = fake.gen_oid_record()
    with pytest.raises(NotImplementedError):
        next(records)
    fake.close()
    fake.pack()
    assert fake.get_packer() is None


def test_records_are_generated_from_the_root_breadth_first() -> None:
    assert dict(ReadingStorage().gen_oid_record()) == RECORDS
    storage = ReadingStorage()
    assert [o for o, _ in storage.gen_oid_record(start_oid=oid(1))] == [oid(1), oid(3)]
    storage = ReadingStorage()
    assert [o for o, _ in storage.gen_oid_record(batch_size=1)] == list(RECORDS)
    assert storage.loaded == list(RECORDS)


def test_bulk_load_keeps_the_order() -> None:
    storage = ReadingStorage()
    assert list(storage.bulk_load([oid(2), oid(0)])) == [RECORDS[oid(2)], RECORDS[oid(0)]]
    with pytest.raises(KeyError):
        list(storage.bulk_load([oid(2), oid(9)]))


# The tools.


@each_kind
def test_the_census_counts_the_objects_of_each_class(
    storage: Storage | interfaces.Storage,
) -> None:
    assert get_census(storage) == {b"Shop": 1, b"Shelf": 2, b"Book": 1}


@each_kind
def test_the_reference_index_says_who_refers_to_whom(
    storage: Storage | interfaces.Storage,
) -> None:
    assert get_reference_index(storage) == {
        oid(0): [oid(2)],
        oid(1): [oid(0)],
        oid(2): [oid(0)],
        oid(3): [oid(1), oid(2)],
    }


@each_kind
def test_referring_records_are_found(storage: Storage | interfaces.Storage) -> None:
    found = dict(gen_referring_oid_record(storage, oid(3)))
    assert set(found) == {oid(1), oid(2)}
    assert found[oid(1)].startswith(oid(1))
    assert list(gen_referring_oid_record(storage, oid(9))) == []


@each_kind
def test_oids_are_listed_by_class(storage: Storage | interfaces.Storage) -> None:
    assert list(gen_oid_class(storage, b"Shelf")) == [(oid(1), b"Shelf"), (oid(2), b"Shelf")]
    assert list(gen_oid_class(storage, "Book", b"Shop")) == [(oid(0), b"Shop"), (oid(3), b"Book")]
    assert len(list(gen_oid_class(storage))) == 4


def test_the_tools_give_the_records_that_load_gives() -> None:
    storage = memory_storage()
    assert list(gen_referring_oid_record(storage, oid(1))) == [(ROOT_OID, storage.load(ROOT_OID))]


# Opening.


def test_memory_is_opened_by_its_scheme() -> None:
    assert isinstance(open_storage("memory:"), MemoryStorage)


@pytest.mark.parametrize(("readonly", "create"), [(True, True), (False, False)])
def test_memory_is_always_new(readonly: bool, create: bool) -> None:
    with pytest.raises(StorageOpenError, match="always a new one"):
        open_memory("memory:", readonly=readonly, create=create)


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with the scheme 'noted', whose storages note how they were opened."""
    metadata = tmp_path / "noted-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: noted\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[durus.storages]\nnoted = noted_storage:open\n")
    (tmp_path / "noted_storage.py").write_text(
        "from durus.storage import MemoryStorage\n"
        "def open(uri, *, readonly, create):\n"
        "    storage = MemoryStorage()\n"
        "    storage.opened = uri, readonly, create\n"
        "    return storage\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("registered")
def test_distributions_register_schemes() -> None:
    storage = open_storage("noted:some/where", readonly=True, create=False)
    assert storage.opened == ("noted:some/where", True, False)  # type: ignore[attr-defined]  # as above
    assert open_storage("noted://x").opened == ("noted://x", False, True)  # type: ignore[attr-defined]  # as above


@pytest.mark.usefixtures("registered")
def test_an_unknown_scheme_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(
        StorageOpenError, match=r"no storage for 'htp'.*file, memory, noted, sqlite"
    ):
        open_storage("htp://somewhere/x")


def test_what_is_missing_is_named_with_its_distribution(tmp_path: Path) -> None:
    code = """if True:
        import pathlib
        from durus.storage import open_storage
        for name in [
            "x.durus", r"C:\\x.durus", "C:/x", "odd:name.durus", ":x", pathlib.Path("memory:"),
            "sqlite:///x", "durus://host:2972", "durus+tls://host", "durus+unix:///x", "memory:",
            "file:///a%20b",
        ]:
            try:
                open_storage(name)
            except Exception as error:
                print(type(error).__name__, error)
        """
    # The modules alone: no distribution is installed there, not even this one.
    (tmp_path / "durus").symlink_to(Path(durus.storage.__file__).parent)
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = [
        (line.split(": storages of the kind ")[0], line.split("kind ")[1].split("'")[1])
        for line in result.stdout.splitlines()
    ]
    assert found == [
        ("StorageOpenError x.durus", "file"),
        ("StorageOpenError C:\\x.durus", "file"),
        ("StorageOpenError C:/x", "file"),
        ("StorageOpenError odd:name.durus", "file"),
        ("StorageOpenError :x", "file"),
        ("StorageOpenError memory:", "file"),
        ("StorageOpenError sqlite:///x", "sqlite"),
        ("StorageOpenError durus://host:2972", "durus"),
        ("StorageOpenError durus+tls://host", "durus+tls"),
        ("StorageOpenError durus+unix:///x", "durus+unix"),
        ("StorageOpenError memory:", "memory"),
        ("StorageOpenError /a b", "file"),
    ]
    lines = result.stdout.splitlines()
    assert "python -m pip install --upgrade durus-storage" in lines[0]
    assert "python -m pip install --upgrade durus-net" in lines[7]
