"""`PersistentList`: a list that is stored as one object.

It is loaded and stored as a whole, so it suits up to some hundred items.  A change is noted
before it is made, and an operation that raises has changed nothing.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from typing import Any, ClassVar, Self, SupportsIndex, TypeVar, overload

from durus.persistent import PersistentObject, repr_container

__all__ = ["PersistentList"]

T = TypeVar("T")


class PersistentList(PersistentObject, MutableSequence[T]):
    """A list.  Persistent objects among the items are stored on their own.

    It compares with a plain list as with its like.  A slice of it is a plain list.
    """

    __slots__ = ("data",)

    data: list[T]

    data_is: ClassVar[type] = list  # for the specifications of QP applications

    @overload
    def __init__(self, /) -> None: ...
    @overload
    def __init__(self, items: Iterable[T], /) -> None: ...
    def __init__(self, items: Any = (), /) -> None:
        self.data = list(items)

    def __repr__(self) -> str:
        return repr_container(self, "data")

    def __eq__(self, other: object) -> bool:
        return self is other or bool(self.data == _plain(other))

    def __lt__(self, other: "PersistentList[T] | list[T]") -> bool:
        return self is not other and self.data < _plain(other)

    def __le__(self, other: "PersistentList[T] | list[T]") -> bool:
        return self is other or self.data <= _plain(other)

    def __gt__(self, other: "PersistentList[T] | list[T]") -> bool:
        return self is not other and self.data > _plain(other)

    def __ge__(self, other: "PersistentList[T] | list[T]") -> bool:
        return self is other or self.data >= _plain(other)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[T]:
        return iter(self.data)

    def __contains__(self, item: object) -> bool:
        return item in self.data

    @overload
    def __getitem__(self, i: SupportsIndex, /) -> T: ...
    @overload
    def __getitem__(self, i: slice, /) -> list[T]: ...
    def __getitem__(self, i: SupportsIndex | slice, /) -> T | list[T]:
        return self.data[i]

    @overload
    def __setitem__(self, i: SupportsIndex, item: T, /) -> None: ...
    @overload
    def __setitem__(self, i: slice, item: Iterable[T], /) -> None: ...
    def __setitem__(self, i: Any, item: Any, /) -> None:
        _ = self.data[i]  # a bad index raises before anything is noted
        self._p_note_change()
        self.data[i] = item

    def __delitem__(self, i: SupportsIndex | slice, /) -> None:
        _ = self.data[i]
        self._p_note_change()
        del self.data[i]

    def __add__(self, other: Iterable[T]) -> Self:
        return type(self)([*self.data, *other])

    def __radd__(self, other: Iterable[T]) -> Self:
        return type(self)([*other, *self.data])

    def __iadd__(self, other: Iterable[T]) -> Self:
        self.extend(other)
        return self

    def __mul__(self, n: SupportsIndex) -> Self:
        return type(self)(self.data * n)

    __rmul__ = __mul__

    def __imul__(self, n: SupportsIndex) -> Self:
        self._p_note_change()
        self.data *= n
        return self

    def append(self, item: T) -> None:
        self._p_note_change()
        self.data.append(item)

    def extend(self, other: Iterable[T]) -> None:
        items = list(other)  # what raises here raises before anything is noted
        self._p_note_change()
        self.data.extend(items)

    def insert(self, i: SupportsIndex, item: T) -> None:
        self._p_note_change()
        self.data.insert(i, item)

    def pop(self, i: SupportsIndex = -1) -> T:
        _ = self.data[i]
        self._p_note_change()
        return self.data.pop(i)

    def remove(self, item: T) -> None:
        i = self.data.index(item)
        self._p_note_change()
        del self.data[i]

    def clear(self) -> None:
        self._p_note_change()
        self.data.clear()

    def count(self, item: Any) -> int:
        return self.data.count(item)

    def index(self, item: Any, start: int = 0, stop: int = sys.maxsize) -> int:
        return self.data.index(item, start, stop)

    def reverse(self) -> None:
        self._p_note_change()
        self.data.reverse()

    def sort(self, *, key: Callable[[T], Any] | None = None, reverse: bool = False) -> None:
        """Sort in place, stably, as list.sort does; if a comparison fails, nothing moves."""
        items: list[Any] = self.data
        items = sorted(items, key=key, reverse=reverse)
        self._p_note_change()
        self.data[:] = items


def _plain(other: Any) -> Any:
    """The list of a PersistentList, and anything else as it is."""
    return other.data if isinstance(other, PersistentList) else other
