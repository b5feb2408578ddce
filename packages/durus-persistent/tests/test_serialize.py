"""Writing objects to records and reading them back; classes that are missing, moved or refused."""

import io
import pickle
import sys
import types
from enum import Enum
from functools import partial
from typing import Any

import pytest

from durus.connection import Connection
from durus.error import (
    ClassNotAllowedError,
    ForeignReferenceError,
    MissingClassError,
    ObjectError,
    UnstorableError,
)
from durus.interfaces import ROOT_OID, Oid
from durus.missing import MissingObject
from durus.persistent import ConnectionBase, Persistent, PersistentObject, is_ghost
from durus.persistent_list import PersistentList
from durus.record import pack_record, split_oids, unpack_record
from durus.serialize import ObjectReader, ObjectWriter
from durus.storage import MemoryStorage


class Item(Persistent):
    def __init__(self, value: Any = None) -> None:
        self.value = value

    class Nested(Persistent):
        pass


class Color(Enum):
    RED = 1


class FakeConnection(ConnectionBase):
    def new_oid(self) -> Oid:
        return ROOT_OID

    def note_access(self, obj: PersistentObject) -> None:
        pass

    note_change = load_state = note_access


def test_the_object_writer_of_durus_4() -> None:
    connection = FakeConnection()
    writer = ObjectWriter(connection)
    x: Any = Persistent()
    x._p_oid, x._p_connection = ROOT_OID, connection
    assert writer._persistent_id(x) == (ROOT_OID, Persistent)
    x._p_connection = FakeConnection()
    with pytest.raises(ValueError, match="connection") as caught:
        writer._persistent_id(x)
    assert isinstance(caught.value, ForeignReferenceError)
    x.a = Persistent()
    assert writer.get_state(x)
    assert list(writer.gen_new_objects(x)) == [x, x.a]
    with pytest.raises(RuntimeError):
        writer.gen_new_objects(x)
    writer.close()


def test_the_object_reader_of_durus_4() -> None:
    reader = ObjectReader(Connection(MemoryStorage()))
    data = (
        b"\x80\x02cdurus.persistent_dict\nPersistentDict\nq\x01."
        b"\x80\x02}q\x02U\x04dataq\x03}q\x04s.\x00\x00\x00\x00"
    )
    assert reader.get_ghost(data)._p_is_ghost()


def test_records_pack_and_unpack() -> None:
    refs = [b"1" * 8, b"2" * 8]
    found = unpack_record(pack_record(b"0" * 8, b"sample", b"".join(refs)))
    assert found == (b"0" * 8, b"sample", b"".join(refs))
    assert split_oids(found[2]) == refs
    assert split_oids("") == []
    with pytest.raises(ValueError, match="7 bytes"):
        split_oids(b"1234567")


def store(obj: Any) -> tuple[MemoryStorage, Connection[Any]]:
    storage = MemoryStorage()
    connection = Connection(storage)
    connection.root["it"] = obj
    connection.commit()
    return storage, connection


def test_a_reference_is_stored_once_and_sorted() -> None:
    one, two = Item(), Item()
    storage, _ = store(Item([two, one, two]))
    record = storage.snapshot().load(Oid(bytes(7) + b"\1")).record
    assert split_oids(record.refs) == [bytes(7) + b"\2", bytes(7) + b"\3"]


def test_an_object_that_refers_to_itself_has_no_reference() -> None:
    item = Item()
    item.value = item
    storage, _ = store(item)
    assert storage.snapshot().load(Oid(bytes(7) + b"\1")).record.refs == b""
    assert Connection(storage).root["it"].value._p_oid == bytes(7) + b"\1"


def test_a_nested_class_is_stored() -> None:
    storage, _ = store(Item.Nested())
    assert type(Connection(storage).root["it"]) is Item.Nested


def test_values_of_many_types_are_stored() -> None:
    values = [None, 1.5, b"x", "ä", {1, 2}, (1, [2]), Color.RED, {"a": frozenset([3])}]
    storage, _ = store(Item(values))
    assert Connection(storage).root["it"].value == values


@pytest.mark.parametrize(
    "value", [partial(int, "3"), sys.exit, sys.getrecursionlimit, type, getattr]
)
def test_what_could_not_be_loaded_again_is_not_stored(value: object) -> None:
    connection = Connection(MemoryStorage())
    connection.root["it"] = Item([value])
    with pytest.raises(UnstorableError, match="could not be loaded again"):
        connection.commit()
    connection.root["it"].value = 1
    connection.commit()


def test_what_allow_names_is_stored_and_loaded() -> None:
    storage = MemoryStorage()
    with Connection(storage, allow=["functools.partial"]) as connection:
        connection.root["it"] = Item(partial(int, "3"))
        connection.commit()
    with pytest.raises(ClassNotAllowedError, match=r'allow=\["functools.partial"\]'):
        Connection(storage).root["it"].value  # noqa: B018 - reading is the point
    assert Connection(storage, allow=["functools.partial"]).root["it"].value() == 3


def test_an_unpicklable_value_is_named_with_the_way_to_it() -> None:
    connection = Connection(MemoryStorage())
    connection.root["it"] = {"a": [1, sys.stdout]}
    with pytest.raises(
        UnstorableError,
        match=r"<PersistentDict 0>, attribute 'data' \(dict\), item 'it' \(dict\), "
        r"item 'a' \(list\), item 1 \(",
    ):
        connection.commit()


# Classes that are gone.


@pytest.fixture
def storage_with_gone(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """root["it"] is an Item with an object whose class is gone, and one that is still there."""
    module = types.ModuleType("gone_module")
    cls = type("Gone", (Persistent,), {"__module__": "gone_module"})
    module.Gone = cls  # type: ignore[attr-defined]  # that is how a module is made by hand
    monkeypatch.setitem(sys.modules, "gone_module", module)
    gone: Any = cls()
    gone.name = "kept"
    storage, _ = store(Item([gone, PersistentList([1])]))
    monkeypatch.delitem(sys.modules, "gone_module")
    return storage


def test_a_missing_class_makes_a_ghost_and_the_rest_stays_usable(
    storage_with_gone: MemoryStorage,
) -> None:
    connection = Connection(storage_with_gone)
    gone, there = connection.root["it"].value
    assert there == [1]
    assert is_ghost(gone)
    assert issubclass(type(gone), MissingObject)
    assert repr(gone) == "<MissingClass gone_module.Gone 2>"
    with pytest.raises(MissingClassError, match=r"gone_module\.Gone"):
        gone.name  # noqa: B018 - reading is the point
    with pytest.raises(MissingClassError):
        gone.name = 1


def test_a_reference_to_a_missing_class_is_stored_as_any_other(
    storage_with_gone: MemoryStorage,
) -> None:
    """Durus 4.3, which may have the class, can read it."""
    root = Oid(bytes(7) + b"\1")
    connection = Connection(storage_with_gone)
    connection.root["it"].value = [*connection.root["it"].value, "more"]
    connection.commit()
    state = storage_with_gone.snapshot().load(root).record.state_pickle
    found: list[object] = []

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            return f"class {module} {name}"

        def persistent_load(self, pid: object) -> object:
            found.append(pid)
            return pid

    Reader(io.BytesIO(state)).load()
    assert (bytes(7) + b"\2", "class gone_module Gone") in found


def test_beside_a_reference_to_a_missing_class_values_are_still_tried(
    storage_with_gone: MemoryStorage,
) -> None:
    connection = Connection(storage_with_gone)
    connection.root["it"].value = [*connection.root["it"].value, io.StringIO]
    with pytest.raises(UnstorableError, match="StringIO"):
        connection.commit()


def test_an_object_that_refers_to_a_missing_one_can_be_stored(
    storage_with_gone: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(storage_with_gone)
    record = storage_with_gone.snapshot().load(Oid(bytes(7) + b"\2"))
    connection.root["it"].value = [*connection.root["it"].value, "more"]
    connection.commit()
    connection.pack()
    assert storage_with_gone.snapshot().load(Oid(bytes(7) + b"\2")) == record

    module = types.ModuleType("gone_module")
    cls = type("Gone", (Persistent,), {"__module__": "gone_module"})
    monkeypatch.setitem(sys.modules, "gone_module", module)
    module.Gone = cls  # type: ignore[attr-defined]  # that is how a module is made by hand
    gone, _, more = Connection(storage_with_gone).root["it"].value
    assert (type(gone), gone.name, more) == (cls, "kept", "more")


def test_get_of_an_object_of_a_missing_class(storage_with_gone: MemoryStorage) -> None:
    gone = Connection(storage_with_gone).get(2)
    assert gone is not None
    assert is_ghost(gone)


def test_aliases_rename_while_reading(storage_with_gone: MemoryStorage) -> None:
    connection = Connection(storage_with_gone, aliases={"gone_module.Gone": f"{__name__}.Item"})
    gone, _ = connection.root["it"].value
    assert (type(gone), gone.name) == (Item, "kept")


def test_renaming_a_class_as_the_faq_of_durus_4_says(storage_with_gone: MemoryStorage) -> None:
    from durus.connection import gen_every_instance, touch_every_reference

    old = types.ModuleType("gone_module")
    old.Gone = Item  # type: ignore[attr-defined]  # the new class where the old one was
    sys.modules["gone_module"] = old
    try:
        connection = Connection(storage_with_gone)
        for obj in gen_every_instance(connection, old.Gone):
            obj._p_note_change()
        touch_every_reference(connection, "Gone")
        connection.commit()
    finally:
        del sys.modules["gone_module"]
    gone, _ = Connection(storage_with_gone).root["it"].value
    assert (type(gone), gone.name) == (Item, "kept")


def test_a_reference_that_is_none_is_refused() -> None:
    reader = ObjectReader(Connection(MemoryStorage()))
    for pid in (None, 7, (b"short", Item), (ROOT_OID, int), (ROOT_OID, 5), ("x" * 8, Item)):
        with pytest.raises(ObjectError, match="no reference"):
            reader._persistent_load(pid)
