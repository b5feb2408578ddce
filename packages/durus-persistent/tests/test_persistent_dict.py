"""PersistentDict: the checks of Durus 4.3, and what came since."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from durus.error import DurusKeyError
from durus.interfaces import Oid
from durus.persistent import ConnectionBase, PersistentObject
from durus.persistent_dict import PersistentDict


class Damaged(ConnectionBase):
    """A connection none of whose objects can be loaded."""

    def note_access(self, obj: PersistentObject) -> None:
        raise DurusKeyError(obj._p_oid or b"")

    note_change = load_state = note_access


def damaged() -> PersistentDict[str, int]:
    ghost: PersistentDict[str, int] = PersistentDict()
    ghost._p_set_status_ghost()
    ghost._p_oid = Oid(bytes(7) + b"\7")
    ghost._p_connection = Damaged()
    return ghost


def numbers(count: int) -> PersistentDict[int, bool]:
    return PersistentDict((x, True) for x in range(count))


def test_there_are_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        PersistentDict().bogus = 1  # type: ignore[attr-defined]  # this is the test


def test_it_is_true_if_it_has_items() -> None:
    d: PersistentDict[str, int] = PersistentDict()
    assert not d
    d["1"] = 1
    assert d


@pytest.mark.parametrize(
    ("made", "same"),
    [
        (PersistentDict(), {}),
        (PersistentDict({"a": 1}), {"a": 1}),
        (PersistentDict([("a", 1)], b=2), {"a": 1, "b": 2}),
        (PersistentDict(PersistentDict(a=1), b=2), {"a": 1, "b": 2}),
        (PersistentDict(self=1, other=2), {"self": 1, "other": 2}),
        (PersistentDict.fromkeys({"a": 2}, 4), {"a": 4}),
        (PersistentDict.fromkeys("ab"), {"a": None, "b": None}),
    ],
)
def test_it_is_made_as_a_dict_is(made: PersistentDict[str, Any], same: dict[str, Any]) -> None:
    assert made.data == same
    assert dict(made) == same


def test_setdefault_sets_only_what_is_missing() -> None:
    d: PersistentDict[str, list[int]] = PersistentDict()
    assert d.setdefault("1", []) == []
    d.setdefault("1", [5]).append(1)
    assert d["1"] == [1]


def test_setting_again_replaces() -> None:
    d = PersistentDict({1: 2})
    d[1] = 3
    assert d[1] == 3
    assert list(d) == [1]


def test_get_and_contains() -> None:
    d = numbers(10)
    assert d.get(2) is True
    assert d.get(-1) is None
    assert d.get(-1, 5) == 5
    assert 2 in d
    assert d.has_key(2)
    assert -1 not in d
    assert not d.has_key(-1)


def test_keys_values_and_items_are_lists() -> None:
    d = PersistentDict(a=1, b=2)
    assert d.keys() == ["a", "b"]
    assert d.values() == [1, 2]
    assert d.items() == [("a", 1), ("b", 2)]
    for key in d.keys():  # noqa: SIM118 - that it is a list is the point
        del d[key]
    assert not d


def test_iterators() -> None:
    d = numbers(10)
    assert list(d.iteritems()) == list(zip(d.iterkeys(), d.itervalues(), strict=True))
    assert next(d.iteritems()) == (0, True)


def test_clear() -> None:
    d = numbers(10)
    d.clear()
    assert not d.has_key(2)
    assert d.keys() == []


def test_update_takes_what_dict_takes() -> None:
    class Keyed:
        def keys(self) -> list[str]:
            return ["a"]

        def __getitem__(self, key: str) -> int:
            return 3

    d: PersistentDict[str, int] = PersistentDict()
    d.update()
    assert d.items() == []
    d.update(a=1)
    d.update({"b": 2}, a=2)
    d.update([("c", 3)], d=4)
    d.update(PersistentDict(e=5))
    assert d.data == {"a": 2, "b": 2, "c": 3, "d": 4, "e": 5}
    d.update(Keyed())
    assert d["a"] == 3


def test_update_refuses_two_mappings() -> None:
    with pytest.raises(TypeError):
        PersistentDict().update({}, {})  # type: ignore[call-overload]  # this is the test


def test_an_update_that_fails_changes_nothing() -> None:
    d = PersistentDict(a=1)
    with pytest.raises(TypeError):
        d.update([("a", 2), None])  # type: ignore[list-item]  # this is the test
    assert d.data == {"a": 1}


def test_it_is_equal_to_its_like_alone() -> None:
    assert numbers(10) == numbers(10)
    assert numbers(10) != numbers(9)
    assert numbers(10) != numbers(10).data
    with pytest.raises(TypeError):
        hash(numbers(1))


def test_a_copy_has_items_and_attributes_of_its_own() -> None:
    class Named(PersistentDict[str, int]):
        __slots__ = ("name",)

        name: str

    d = Named(a=1)
    d.name = "n"
    copied = d.copy()
    assert copied == d
    assert type(copied) is Named
    assert copied.name == "n"
    d["a"] = 34
    assert copied["a"] == 1


def test_pop_and_popitem() -> None:
    d = numbers(10)
    assert d.pop(3) is True
    assert 3 not in d
    assert d.pop(3, None) is None
    with pytest.raises(KeyError, match="3"):
        d.pop(3)
    assert d.popitem() == (9, True)
    with pytest.raises(KeyError):
        PersistentDict().popitem()


def test_repr_shows_the_items() -> None:
    d = PersistentDict(a=1)
    d._p_oid = Oid(bytes(7) + b"\5")
    assert repr(d) == "<PersistentDict 5 {'a': 1}>"
    assert repr(PersistentDict()).startswith("<PersistentDict @")


def test_repr_shows_ten_items_at_most_and_persistent_ones_by_identity() -> None:
    text = repr(PersistentDict((n, PersistentDict(a=1)) for n in range(30)))
    assert "9: <PersistentDict @" in text
    assert text.endswith(", ...}>")
    assert "10: " not in text
    assert "'a'" not in text


def test_repr_never_fails() -> None:
    assert repr(damaged()) == "<PersistentDict 7>"
    assert repr(PersistentDict.__new__(PersistentDict)).startswith("<PersistentDict @")


def test_a_missing_record_is_not_taken_for_a_missing_key() -> None:
    d = damaged()
    operations: list[Callable[[], object]] = [
        lambda: d.get("a", 1),
        lambda: d.pop("a", 1),
        lambda: d.setdefault("a", 1),
        lambda: "a" in d,
    ]
    for operation in operations:
        with pytest.raises(DurusKeyError, match="oid 7"):
            operation()


def test_it_can_be_pickled() -> None:
    d = PersistentDict(a=1)
    assert d.__getstate__() == {"data": {"a": 1}}
    assert pickle.loads(pickle.dumps(d)) == d


def test_an_alias_makes_the_same() -> None:
    assert PersistentDict[str, int](a=1).__getstate__() == {"data": {"a": 1}}


def test_subclasses_may_build_their_changes_on_one_another() -> None:
    class Logged(PersistentDict[str, int]):
        __slots__ = ()

        def __delitem__(self, key: str) -> None:
            self.pop(key)

        def __setitem__(self, key: str, value: int) -> None:
            self.setdefault(key, value)

    d = Logged()
    d["a"] = 1
    del d["a"]
    assert not d


def test_the_marker_of_qp() -> None:
    assert PersistentDict.data_is is dict
