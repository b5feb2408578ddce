"""PersistentList: the checks of Durus 4.3, and what came since."""

import pytest

from durus.error import DurusError
from durus.interfaces import Oid
from durus.persistent import ConnectionBase, PersistentObject
from durus.persistent_list import PersistentList


class Damaged(ConnectionBase):
    """A connection none of whose objects can be loaded."""

    def note_access(self, obj: PersistentObject) -> None:
        raise DurusError("damaged")

    note_change = load_state = note_access


def interval(n: int) -> list[int]:
    return list(range(n))


def numbers(n: int) -> PersistentList[int]:
    return PersistentList(range(n))


def test_there_are_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        PersistentList().bogus = 1  # type: ignore[attr-defined]  # this is the test


def test_it_is_true_if_it_has_items() -> None:
    p: PersistentList[int] = PersistentList()
    assert not p
    p.append(1)
    assert p


def test_iteration_both_ways() -> None:
    p: PersistentList[int] = PersistentList()
    assert list(p) == []
    p.extend([2, 3, 4])
    assert list(p) == [2, 3, 4]
    assert list(reversed(p)) == [4, 3, 2]


def test_setting_and_contains() -> None:
    p = PersistentList([5, 6, 7])
    p[1] = 2
    p[1] = 3
    assert p[1] == 3
    assert p[-1] == 7
    assert 3 in p
    assert -1 not in p


def test_it_compares_with_its_like_and_with_lists() -> None:
    p = numbers(10)
    for same in (p, numbers(10), interval(10)):
        assert p == same
        assert p <= same
        assert p >= same
        assert not p < same
        assert not p > same
    p.append(3)
    assert p != numbers(10)
    assert p > interval(10)
    assert p >= numbers(10)
    assert numbers(10) < p
    assert interval(10) < p
    assert p != tuple(p)
    with pytest.raises(TypeError):
        p < 5  # type: ignore[operator]  # noqa: B015 - this is the test


def test_slices() -> None:
    p = numbers(10)
    p[:] = [2, 3]
    assert len(p) == 2
    assert p[-1:] == [3]
    assert type(p[-1:]) is list
    p[1:] = numbers(2)
    assert p == [2, 0, 1]
    p[:] = (3, 4)
    assert p == [3, 4]
    p[::-1] = p
    assert p == [4, 3]
    del p[:1]
    assert p == [3]


def test_arithmetic() -> None:
    doubled = interval(3) + interval(3)
    p, other = numbers(3), numbers(3)
    assert p + other == doubled
    assert interval(3) + other == doubled
    assert tuple(interval(3)) + other == doubled
    assert p + interval(3) == doubled
    assert p + tuple(interval(3)) == doubled
    assert p * 2 == doubled
    assert 2 * p == doubled
    assert type(p * 2) is type(p + p) is type([] + p) is PersistentList  # noqa: RUF005
    same = p
    p += other
    assert p == doubled
    other += interval(3)
    assert other == doubled
    assert same is p
    p *= 2
    assert p == doubled + doubled
    assert same is p
    p += p
    assert len(p) == 24


def test_list_methods() -> None:
    p: PersistentList[int] = PersistentList()
    p.insert(0, 2)
    assert p == [2]
    assert p.count(0) == 0
    assert p.count(2) == 1
    assert p.index(2) == 0
    p.remove(2)
    p.extend(numbers(3))
    assert p == interval(3)
    assert p.pop() == 2
    assert p.pop(0) == 0
    assert p == [1]
    with pytest.raises(ValueError, match="not in list"):
        p.index(1, 1)
    p.clear()
    assert p == []


def test_sorting_and_reversing() -> None:
    p = numbers(10)
    p.reverse()
    assert p == list(reversed(interval(10)))
    assert sorted(p) == interval(10)
    p.sort()
    assert p == interval(10)
    p.sort(key=lambda n: n % 2, reverse=True)
    assert p == [1, 3, 5, 7, 9, 0, 2, 4, 6, 8]


def test_a_sort_that_fails_moves_nothing() -> None:
    p: PersistentList[object] = PersistentList([3, 2, 1, "x"])
    with pytest.raises(TypeError):
        p.sort()
    assert p == [3, 2, 1, "x"]


def test_an_extension_that_fails_adds_nothing() -> None:
    p = numbers(3)
    with pytest.raises(ZeroDivisionError):
        p += (1 // n for n in (1, 0))
    assert p == interval(3)


def test_repr_shows_ten_items_at_most_and_persistent_ones_by_identity() -> None:
    p = PersistentList([1, "a"])
    p._p_oid = Oid(bytes(7) + b"\5")
    assert repr(p) == "<PersistentList 5 [1, 'a']>"
    many = PersistentList(numbers(1) for _ in range(11))
    text = repr(many)
    assert text.count("<PersistentList @") == 11
    assert text.endswith(", ...]>")
    assert "[0]" not in text


def test_repr_never_fails() -> None:
    ghost = numbers(1)
    ghost._p_set_status_ghost()
    ghost._p_connection = Damaged()
    assert repr(ghost).startswith("<PersistentList @")
    assert repr(PersistentList.__new__(PersistentList)).startswith("<PersistentList @")


def test_the_state_is_that_of_4_3() -> None:
    assert PersistentList[int]([1]).__getstate__() == {"data": [1]}
    assert PersistentList.data_is is list
