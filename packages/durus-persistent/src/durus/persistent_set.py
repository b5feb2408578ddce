"""`PersistentSet`: a set that is stored as one object.

It is loaded and stored as a whole, so it suits up to some hundred items.  A change is noted
before it is made, and an operation that raises has changed nothing.
"""

from collections.abc import Iterable, Iterator, MutableSet
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast, overload

from durus.persistent import PersistentObject, repr_container

__all__ = ["PersistentSet"]

T = TypeVar("T")
U = TypeVar("U")


class PersistentSet(PersistentObject, MutableSet[T]):
    """A set.  Its operators take other sets of any kind, its methods any iterable.

    It is equal to another PersistentSet with equal items, and to nothing else; < <= > >= compare
    it with other PersistentSets, and raise TypeError for anything else.
    """

    __slots__ = ("s",)

    s: set[T]

    s_is: ClassVar[type] = set  # for the specifications of QP applications

    @overload
    def __init__(self, /) -> None: ...
    @overload
    def __init__(self, items: Iterable[T], /) -> None: ...
    def __init__(self, items: Any = (), /) -> None:
        self.s = set(items)

    def __repr__(self) -> str:
        return repr_container(self, "s")

    def __len__(self) -> int:
        return len(self.s)

    def __iter__(self) -> Iterator[T]:
        return iter(self.s)

    def __contains__(self, item: object) -> bool:
        return item in self.s

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PersistentSet) and self.s == other.s

    def __lt__(self, other: AbstractSet[Any]) -> bool:
        return self.s < _compared(other)

    def __le__(self, other: AbstractSet[Any]) -> bool:
        return self.s <= _compared(other)

    def __gt__(self, other: AbstractSet[Any]) -> bool:
        return self.s > _compared(other)

    def __ge__(self, other: AbstractSet[Any]) -> bool:
        return self.s >= _compared(other)

    def __and__(self, other: AbstractSet[Any]) -> Self:
        return type(self)(self.s & _set_of(other))

    def __or__(self, other: AbstractSet[U]) -> "PersistentSet[T | U]":
        return self._like(self.s | _set_of(other))

    def __sub__(self, other: AbstractSet[Any]) -> Self:
        return type(self)(self.s - _set_of(other))

    def __xor__(self, other: AbstractSet[U]) -> "PersistentSet[T | U]":
        return self._like(self.s ^ _set_of(other))

    def _like(self, items: Iterable[U]) -> "PersistentSet[U]":
        """A set of the same class with other items."""
        return cast(PersistentSet[U], type(self)(cast(Iterable[T], items)))

    if not TYPE_CHECKING:  # the types are those of MutableSet
        __rand__ = __and__
        __ror__ = __or__
        __rxor__ = __xor__

        def __rsub__(self, other):
            return type(self)(_set_of(other) - self.s)

        def __iand__(self, other):
            self.intersection_update(_set_of(other))
            return self

        def __ior__(self, other):
            self.update(_set_of(other))
            return self

        def __isub__(self, other):
            self.difference_update(_set_of(other))
            return self

        def __ixor__(self, other):
            self.symmetric_difference_update(_set_of(other))
            return self

    def add(self, item: T) -> None:
        if item not in self.s:
            self._p_note_change()
            self.s.add(item)

    def discard(self, item: T) -> None:
        if item in self.s:
            self._p_note_change()
            self.s.discard(item)

    def remove(self, item: T) -> None:
        if item in self.s:
            self._p_note_change()
        self.s.remove(item)

    def pop(self) -> T:
        """Remove and return any item; KeyError when there is none."""
        if self.s:
            self._p_note_change()
        return self.s.pop()

    def clear(self) -> None:
        self._p_note_change()
        self.s.clear()

    def copy(self) -> Self:
        return type(self)(self.s)

    def issubset(self, other: Iterable[Any]) -> bool:
        return self.s.issubset(other)

    def issuperset(self, other: Iterable[Any]) -> bool:
        return self.s.issuperset(other)

    def difference(self, *others: Iterable[Any]) -> Self:
        return type(self)(self.s.difference(*others))

    def intersection(self, *others: Iterable[Any]) -> Self:
        return type(self)(self.s.intersection(*others))

    def symmetric_difference(self, other: Iterable[U]) -> "PersistentSet[T | U]":
        return self ^ set(other)

    def union(self, *others: Iterable[U]) -> "PersistentSet[T | U]":
        return self | set[U]().union(*others)

    # What the arguments raise is raised before anything is noted, and they may be this set.

    def update(self, *others: Iterable[T]) -> None:
        items = set[T]().union(*others)
        self._p_note_change()
        self.s.update(items)

    def difference_update(self, *others: Iterable[Any]) -> None:
        items = set[Any]().union(*others)
        self._p_note_change()
        self.s.difference_update(items)

    def intersection_update(self, *others: Iterable[Any]) -> None:
        items = self.s.intersection(*others)
        self._p_note_change()
        self.s.intersection_update(items)

    def symmetric_difference_update(self, other: Iterable[T]) -> None:
        items = set(other)
        self._p_note_change()
        self.s.symmetric_difference_update(items)


def _set_of(operand: AbstractSet[U]) -> set[U]:
    """The operand as a plain set; TypeError when it is no set."""
    if isinstance(operand, PersistentSet):
        return operand.s
    if not isinstance(operand, AbstractSet):
        raise TypeError(f"a set is needed, not {type(operand).__name__}: the methods take those")
    return set(operand)


def _compared(other: object) -> set[Any]:
    """What < <= > >= compare with; TypeError when it is no PersistentSet."""
    if not isinstance(other, PersistentSet):
        raise TypeError(
            f"a PersistentSet can only be compared with another, not with {type(other).__name__}"
        )
    return other.s
