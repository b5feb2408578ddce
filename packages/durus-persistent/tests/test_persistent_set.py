"""PersistentSet: the checks of Durus 4.3 with either kind of operand, and what came since."""

import operator
from collections.abc import Callable
from typing import Any

import pytest

from durus.error import DurusError
from durus.interfaces import Oid
from durus.persistent import ConnectionBase, PersistentObject
from durus.persistent_set import PersistentSet

Kind = Callable[..., Any]

either = pytest.mark.parametrize("other", [set, PersistentSet, frozenset])


class Damaged(ConnectionBase):
    """A connection none of whose objects can be loaded."""

    def note_access(self, obj: PersistentObject) -> None:
        raise DurusError("damaged")

    note_change = load_state = note_access


def test_there_are_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        PersistentSet().bogus = 1  # type: ignore[attr-defined]  # this is the test


@either
@pytest.mark.parametrize("name", ["and_", "or_", "sub", "xor"])
@pytest.mark.parametrize("pair", [("", ""), ("", "k"), ("jk", "k"), ("ab", "bc"), ("asdf", "df")])
def test_operators(other: Kind, name: str, pair: tuple[str, str]) -> None:
    operate = getattr(operator, name)
    left, right = pair
    expected = operate(set(left), set(right))
    for result in (
        operate(PersistentSet(left), other(right)),
        operate(other(left), PersistentSet(right)),
        getattr(PersistentSet(right), f"__r{name.strip('_')}__")(other(left)),
    ):
        assert type(result) is PersistentSet
        assert result.s == expected
    in_place = PersistentSet(left)
    assert getattr(operator, f"i{name.strip('_')}")(in_place, other(right)) is in_place
    assert in_place.s == expected


@pytest.mark.parametrize("name", ["iand", "ior", "isub", "ixor"])
def test_operators_in_place_with_the_set_itself(name: str) -> None:
    s = PersistentSet("ab")
    getattr(operator, name)(s, s)
    assert s.s == (set() if name in ("isub", "ixor") else set("ab"))


def test_operators_take_other_sets_and_the_result_is_a_plain_set_inside() -> None:
    s = PersistentSet("ab")
    s |= {"c": 1}.keys()
    assert s == PersistentSet("abc")
    assert type(s.s) is set


@pytest.mark.parametrize("name", ["and_", "or_", "sub", "xor", "iand", "ior", "isub", "ixor"])
def test_operators_refuse_what_is_no_set(name: str) -> None:
    s = PersistentSet("ab")
    with pytest.raises(TypeError):
        getattr(operator, name)(s, ["a"])
    assert s == PersistentSet("ab")


def test_it_is_equal_to_its_like_alone() -> None:
    assert PersistentSet("ab") == PersistentSet("ba")
    assert PersistentSet("ab") != PersistentSet("a")
    assert PersistentSet("ab") != set("ab")
    assert not PersistentSet("ab").__eq__(set("ab"))
    with pytest.raises(TypeError):
        hash(PersistentSet())


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge"])
@pytest.mark.parametrize("pair", [("", ""), ("", "k"), ("k", ""), ("k", "jk"), ("ab", "cd")])
def test_comparisons(name: str, pair: tuple[str, str]) -> None:
    compare = getattr(operator, name)
    left, right = pair
    assert compare(PersistentSet(left), PersistentSet(right)) == compare(set(left), set(right))
    with pytest.raises(TypeError, match="only be compared"):
        getattr(PersistentSet(left), f"__{name}__")(set(right))


def test_iteration_and_length() -> None:
    for items in ("", "a", "abc"):
        s = PersistentSet(items)
        assert PersistentSet(list(s)) == s
        assert len(s) == len(items)
        assert bool(s) == bool(items)


@either
def test_named_operations(other: Kind) -> None:
    s = PersistentSet("abc")
    assert s.union(other("cd")) == PersistentSet("abcd")
    assert s.union("cd", ["e"]) == PersistentSet("abcde")
    assert s.intersection(other("cd")) == PersistentSet("c")
    assert s.difference(other("cd")) == PersistentSet("ab")
    assert s.symmetric_difference(other("cd")) == PersistentSet("abd")
    assert s.issubset(other("abcd"))
    assert not s.issubset(other("ab"))
    assert s.issuperset(other("ab"))
    assert s.isdisjoint(other("d"))
    assert not s.isdisjoint(other("cd"))


@either
def test_named_operations_in_place(other: Kind) -> None:
    s = PersistentSet("ab")
    s.update(other("bc"))
    assert s == PersistentSet("abc")
    s.intersection_update(other("bcd"))
    assert s == PersistentSet("bc")
    s.symmetric_difference_update(other("cd"))
    assert s == PersistentSet("bd")
    s.difference_update(other("d"))
    assert s == PersistentSet("b")
    s.update(s, s)
    s.difference_update(s)
    assert not s


def test_an_update_that_fails_changes_nothing() -> None:
    s: PersistentSet[Any] = PersistentSet("a")
    with pytest.raises(TypeError):
        s.update(["b", []])
    assert s == PersistentSet("a")


def test_add_discard_remove_pop_and_clear() -> None:
    s: PersistentSet[Any] = PersistentSet()
    s.add(1)
    s.add(1)
    s.add(2)
    assert s == PersistentSet([1, 2])
    assert 1 in s
    s.discard(1)
    s.discard(1)
    assert s == PersistentSet([2])
    with pytest.raises(KeyError):
        s.remove(1)
    s.remove(2)
    with pytest.raises(KeyError):
        s.pop()
    s.update("asdf")
    assert s.pop() not in s
    assert len(s) == 3
    s.clear()
    assert s == PersistentSet()


def test_a_copy_is_another_set_of_the_same_class() -> None:
    class Tags(PersistentSet[str]):
        __slots__ = ()

    s = Tags("ab")
    copied = s.copy()
    assert copied is not s
    assert copied == s
    assert type(copied) is type(s | s) is Tags
    s.add("c")
    assert "c" not in copied


def test_repr_shows_ten_items_at_most_as_a_list() -> None:
    s = PersistentSet([7])
    s._p_oid = Oid(bytes(7) + b"\5")
    assert repr(s) == "<PersistentSet 5 [7]>"
    assert repr(PersistentSet(range(30))).endswith(", ...]>")


def test_repr_never_fails() -> None:
    ghost = PersistentSet("a")
    ghost._p_set_status_ghost()
    ghost._p_connection = Damaged()
    assert repr(ghost).startswith("<PersistentSet @")


def test_the_state_is_that_of_4_3() -> None:
    assert PersistentSet[int]([1]).__getstate__() == {"s": {1}}
    assert PersistentSet.s_is is set
