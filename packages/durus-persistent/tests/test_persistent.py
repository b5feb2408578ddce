"""The base classes: states and their transitions, names with _p_, slots, dataclasses."""

import gc
import pickle
import weakref
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import pytest

from durus.connection import Connection
from durus.error import DurusError, ObjectError
from durus.persistent import (
    GHOST,
    SAVED,
    UNSAVED,
    ComputedAttribute,
    ConnectionBase,
    Persistent,
    PersistentBase,
    PersistentObject,
    _delattribute,
    _getattribute,
    _hasattribute,
    _setattribute,
    call_if_persistent,
    is_ghost,
    note_change,
    oid_of,
    tid_of,
)
from durus.persistent_dict import PersistentDict
from durus.storage import MemoryStorage

T = TypeVar("T")


class Slotted(PersistentObject):
    __slots__ = ("__private", "a", "b")

    a: int
    b: int

    def set_private(self, value: int) -> None:
        self.__private = value

    def get_private(self) -> int:
        return self.__private


class SlottedWithDict(PersistentObject):
    __slots__ = ("__dict__", "a", "b")

    a: int
    b: int


class Box(Persistent, Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content


@dataclass(eq=False, repr=False)
class Account(Persistent):
    owner: str
    balance: int = 0
    tags: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False, repr=False)
class SlottedAccount(Persistent):
    owner: str
    balance: int = 0


@dataclass(slots=True, eq=False, repr=False)
class SlottedPoint(PersistentObject):
    x: int
    y: int = 0


@pytest.fixture
def connection() -> Connection:
    return Connection(MemoryStorage())


def stored(connection: Connection, obj: PersistentObject) -> Any:
    connection.root["it"] = obj
    connection.commit()
    return obj


def test_a_new_object_is_unsaved_and_has_neither_oid_nor_connection() -> None:
    obj = Persistent()
    assert (obj._p_status, obj._p_serial, obj._p_connection, obj._p_oid) == (UNSAVED, 0, None, None)
    assert oid_of(obj) is None
    assert tid_of(obj) is None
    assert not is_ghost(obj)


def test_commit_makes_an_object_saved(connection: Connection) -> None:
    obj = Account("ann")
    connection.root["it"] = obj
    assert obj._p_is_unsaved()
    tid = connection.commit()
    assert obj._p_is_saved()
    assert obj._p_status == SAVED
    assert oid_of(obj) is not None
    assert tid_of(obj) == tid


def test_changing_a_saved_object_makes_it_unsaved(connection: Connection) -> None:
    obj = stored(connection, Account("ann"))
    obj.balance = 5
    assert obj._p_is_unsaved()
    assert connection.changed == {obj._p_oid: obj}


def test_deleting_an_attribute_makes_an_object_unsaved(connection: Connection) -> None:
    obj = stored(connection, Account("ann"))
    del obj.balance
    assert obj._p_is_unsaved()


def test_abort_makes_a_changed_object_a_ghost_which_loads_its_stored_state(
    connection: Connection,
) -> None:
    obj = stored(connection, Account("ann"))
    obj.balance = 5
    connection.abort()
    assert obj._p_status == GHOST
    assert is_ghost(obj)
    assert obj.balance == 0
    assert obj._p_is_saved()


def test_changing_a_ghost_loads_it_first(connection: Connection) -> None:
    obj = stored(connection, Account("ann"))
    obj._p_set_status_ghost()
    obj.balance = 5
    assert obj._p_is_unsaved()
    assert obj.owner == "ann"


def test_the_status_methods_of_durus_4_work_one_by_one(connection: Connection) -> None:
    root: Any = connection.get_root()
    root["a"] = 1
    assert root._p_is_unsaved()
    del root["a"]
    connection.abort()
    assert root._p_is_ghost()
    with pytest.raises(AttributeError):
        root.a  # noqa: B018 - reading is the point
    root._p_set_status_saved()
    assert root._p_is_saved()
    root._p_set_status_unsaved()
    assert root._p_is_unsaved()
    root._p_set_status_ghost()
    assert root._p_is_ghost()
    root._p_set_status_unsaved()


def test_names_with_p_do_not_load_a_ghost(connection: Connection) -> None:
    obj = stored(connection, Account("ann"))
    obj._p_set_status_ghost()
    assert obj._p_oid is not None
    assert obj.__class__ is Account
    assert repr(obj) == f"<Account {int.from_bytes(obj._p_oid, 'big')}>"
    assert obj._p_changed is False
    assert obj._p_jar is connection
    assert is_ghost(obj)


def test_p_changed_true_notes_a_change_that_plain_containers_hide(connection: Connection) -> None:
    obj = stored(connection, Account("ann"))
    obj._p_changed = True
    obj.tags.append("x")
    connection.commit()
    obj._p_set_status_ghost()
    assert obj.tags == ["x"]


def test_p_changed_cannot_be_set_to_false(connection: Connection) -> None:
    obj = stored(connection, Account("ann"))
    obj.balance = 3
    with pytest.raises(ValueError, match="abort"):
        obj._p_changed = False
    assert obj._p_changed is True


def test_an_unknown_p_name_cannot_be_set() -> None:
    obj: Any = Persistent()
    with pytest.raises(AttributeError, match="_p_chnaged"):
        obj._p_chnaged = True
    with pytest.raises(AttributeError):
        obj._p_jar = None


def test_a_p_name_cannot_be_deleted(connection: Connection) -> None:
    obj = stored(connection, Account("ann"))
    for name in ("_p_oid", "_p_nope"):
        with pytest.raises(AttributeError, match="belong to Durus"):
            delattr(obj, name)
    with pytest.raises(AttributeError):
        del obj.nope
    assert not connection.changed


def test_note_change_is_for_plain_containers(connection: Connection) -> None:
    obj = stored(connection, Account("ann"))
    note_change(obj)
    obj.tags.append("x")
    connection.commit()
    assert Connection(connection.get_storage()).root["it"].tags == ["x"]


def test_tid_of_loads_a_ghost(connection: Connection) -> None:
    obj = stored(connection, Account("ann"))
    tid = tid_of(obj)
    connection.root["other"] = 1
    connection.commit()
    obj._p_set_status_ghost()
    assert tid_of(obj) == tid


def test_low_level_functions_do_not_load(connection: Connection) -> None:
    root = connection.get_root()
    root._p_set_status_ghost()
    assert not _hasattribute(root, "data")
    with pytest.raises(AttributeError):
        _getattribute(root, "data")
    _setattribute(root, "data", "bogus")
    assert root._p_is_ghost()
    _delattribute(root, "data")
    assert root._p_is_ghost()


def test_call_if_persistent_calls_for_persistent_objects_only() -> None:
    obj = Persistent()
    assert call_if_persistent(id, obj) == id(obj)
    assert call_if_persistent(id, "x") is None


def test_a_connection_base_has_a_transaction_serial() -> None:
    assert ConnectionBase().transaction_serial == 1


@pytest.mark.parametrize("cls", [Persistent, PersistentObject, Slotted, SlottedWithDict])
def test_objects_can_be_pickled_alone(cls: type[PersistentObject]) -> None:
    assert isinstance(pickle.loads(pickle.dumps(cls(), 2)), cls)


def test_objects_are_weakly_referenceable() -> None:
    obj = Slotted()
    reference = weakref.ref(obj)
    del obj
    gc.collect()
    assert reference() is None


def test_state_of_persistent() -> None:
    obj: Any = Persistent()
    assert obj.__getstate__() == {}
    obj.a = 1
    assert obj.__getstate__() == {"a": 1}
    obj.__setstate__({"b": 2})
    assert obj.__getstate__() == {"b": 2}


class WithProperty(Persistent):
    @property
    def name(self) -> str:
        raise NotImplementedError

    @name.setter
    def name(self, name: str) -> None:
        raise NotImplementedError


def test_a_state_calls_no_properties_and_sets_nothing_of_the_machinery() -> None:
    for obj in (WithProperty(), SlottedWithDict()):
        state = {"name": "x", "_p_oid": b"12345678", "_p_status": 7, "__class__": int}
        obj.__setstate__(state)
        assert (obj._p_oid, obj._p_status) == (None, UNSAVED)
        assert type(obj) in (WithProperty, SlottedWithDict)
        assert obj.__getstate__() == state
    with pytest.raises(AttributeError):
        Slotted().__setstate__({"_p_oid": b"12345678"})


def test_a_state_that_is_no_dict_is_refused() -> None:
    with pytest.raises(ObjectError, match="no dict"):
        Slotted().__setstate__(["a"])  # type: ignore[arg-type]  # as a damaged record might


def test_slots_of_a_base_class_are_part_of_the_state() -> None:
    class Derived(Slotted):
        __slots__ = "c"

        c: int

    obj = Derived()
    obj.a, obj.c = 1, 2
    assert obj.__getstate__() == {"a": 1, "c": 2}


def test_state_of_slots() -> None:
    obj: Any = Slotted()
    assert obj.__getstate__() == {}
    obj.a = 1
    assert obj.__getstate__() == {"a": 1}
    with pytest.raises(AttributeError):
        obj.c = 2
    with pytest.raises(AttributeError):
        obj.__setstate__({"c": 1})


def test_a_private_slot_is_part_of_the_state(connection: Connection) -> None:
    obj = Slotted()
    obj.set_private(7)
    stored(connection, obj)
    obj._p_set_status_ghost()
    assert obj.get_private() == 7


def test_state_of_slots_with_dict() -> None:
    obj: Any = SlottedWithDict()
    obj.a = 1
    obj.c = 2
    assert obj.__getstate__() == {"a": 1, "c": 2}
    assert obj.__dict__ == {"c": 2}


def test_format_oid_of_durus_4() -> None:
    obj = PersistentObject()
    assert obj._p_format_oid() == "None"
    _setattribute(obj, "_p_oid", "aaaaaaaa")
    assert obj._p_format_oid() == "7016996765293437281"
    _setattribute(obj, "_p_oid", bytes(7) + b"\1")
    assert obj._p_format_oid() == "1"
    assert repr(obj) == "<PersistentObject 1>"


@pytest.mark.parametrize("obj", [Account("ann", 3), SlottedAccount("ann", 3), SlottedPoint(1, 2)])
def test_a_dataclass_stores_its_fields(obj: Any) -> None:
    connection = Connection(MemoryStorage())
    fields = {name: getattr(obj, name) for name in obj.__dataclass_fields__}
    stored(connection, obj)
    again = Connection(connection.get_storage()).root["it"]
    assert {name: getattr(again, name) for name in fields} == fields
    again.__setattr__(next(iter(fields)), 9)
    again._p_connection.commit()
    connection.abort()
    assert getattr(obj, next(iter(fields))) == 9


def test_a_frozen_dataclass_is_refused_when_it_is_made() -> None:
    with pytest.raises(TypeError):

        @dataclass(frozen=True)
        class Frozen(Persistent):
            a: int


def test_a_frozen_dataclass_with_slots_is_refused_when_it_is_made() -> None:
    with pytest.raises(TypeError):

        @dataclass(frozen=True, slots=True)
        class Frozen(Persistent):
            a: int


def test_the_refusal_of_frozen_does_not_hide_an_overridden_delattr() -> None:
    calls = []

    class Watching(Persistent):
        def __delattr__(self, name: str) -> None:
            calls.append(name)
            super().__delattr__(name)

    class Plain(Persistent):
        pass

    class Both(Plain, Watching):
        pass

    obj: Any = Both()
    obj.a = 1
    del obj.a
    assert calls == ["a"]


def test_orig_class_is_no_part_of_the_state(connection: Connection) -> None:
    box = Box[int](1)
    assert box.__getstate__() == {"content": 1}
    stored(connection, box)
    assert not box._p_is_unsaved()


def test_a_computed_attribute_is_computed_once() -> None:
    total: ComputedAttribute[int] = ComputedAttribute()
    calls: list[int] = []

    def compute() -> int:
        calls.append(1)
        return 5

    assert (total.get(compute), total.get(compute)) == (5, 5)
    assert len(calls) == 1
    total.invalidate()
    assert total.get(compute) == 5
    assert len(calls) == 2


def test_invalidating_a_computed_attribute_makes_other_connections_forget_it() -> None:
    storage = MemoryStorage()
    first, second = Connection(storage), Connection(storage)
    first.root["total"] = ComputedAttribute()
    first.commit()
    second.abort()
    assert second.root["total"].get(lambda: 1) == 1
    second.abort()
    first.root["total"].invalidate()
    first.commit()
    assert second.root["total"].get(lambda: 2) == 1
    second.abort()
    assert second.root["total"].get(lambda: 2) == 2


def test_reading_a_computed_attribute_is_no_change(connection: Connection) -> None:
    total = stored(connection, ComputedAttribute())
    total.get(lambda: 3)
    assert not connection.changed


def test_a_computed_attribute_can_be_invalidated_after_it_was_stored(
    connection: Connection,
) -> None:
    total = stored(connection, ComputedAttribute())
    total._p_set_status_ghost()
    total.invalidate()
    assert connection.commit() is not None


def test_durus_errors_are_one_tree() -> None:
    import durus.error

    for name in durus.error.__all__:
        assert issubclass(getattr(durus.error, name), DurusError)


def test_persistent_base_is_the_base_of_all() -> None:
    assert issubclass(PersistentDict, PersistentBase)
