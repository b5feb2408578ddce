"""`PersistentDict`: a dictionary that is stored as one object.

It is loaded and stored as a whole, so it suits up to some hundred items; a `BTree` is for more.
What both have in common is here.

All containers keep to this: *a change is noted before it is made*, so that what refuses to note
it leaves the container as it was; and an operation that raises has changed nothing.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, MutableMapping
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar, cast, overload

from durus.persistent import PersistentObject, repr_container

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem

__all__ = ["PersistentDict"]

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

MISSING: Final[Any] = object()


class PersistentMapping(PersistentObject, MutableMapping[K, V]):
    """What `PersistentDict` and `BTree` have in common.

    The lists that some methods return are those of Durus 4.3: programs index and sort them, and
    change the mapping while they go through them.
    """

    __slots__ = ()

    @abstractmethod
    def iteritems(self) -> Iterator[tuple[K, V]]:
        """The items, one by one."""

    def iterkeys(self) -> Iterator[K]:
        return (key for key, _ in self.iteritems())

    def itervalues(self) -> Iterator[V]:
        return (value for _, value in self.iteritems())

    def __iter__(self) -> Iterator[K]:
        return self.iterkeys()

    def keys(self) -> list[K]:  # type: ignore[override]  # a list, no view: see above
        return list(self.iterkeys())

    def values(self) -> list[V]:  # type: ignore[override]  # a list, no view: see above
        return list(self.itervalues())

    def items(self) -> list[tuple[K, V]]:  # type: ignore[override]  # a list: see above
        return list(self.iteritems())

    def has_key(self, key: object) -> bool:
        return key in self


class PersistentDict(PersistentMapping[K, V]):
    """A dictionary.  Persistent objects among the values are stored on their own.

    It is equal to another PersistentDict with equal items, and to nothing else.
    """

    __slots__ = ("data",)

    data: dict[K, V]

    data_is: ClassVar[type] = dict  # for the specifications of QP applications

    @overload
    def __init__(self, /) -> None: ...
    @overload
    def __init__(self: "PersistentDict[str, T]", /, **items: T) -> None: ...
    @overload
    def __init__(
        self, other: "SupportsKeysAndGetItem[K, V] | Iterable[tuple[K, V]]", /
    ) -> None: ...
    @overload
    def __init__(
        self: "PersistentDict[str, T]",
        other: "SupportsKeysAndGetItem[str, T] | Iterable[tuple[str, T]]",
        /,
        **items: T,
    ) -> None: ...
    def __init__(self: Any, other: Any = (), /, **items: Any) -> None:
        self.data = dict(other, **items)

    def __repr__(self) -> str:
        return repr_container(self, "data")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PersistentDict) and bool(self.data == other.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: K) -> V:
        return self.data[key]

    def __contains__(self, key: object) -> bool:
        return key in self.data

    def __setitem__(self, key: K, value: V) -> None:
        self._p_note_change()
        self.data[key] = value

    def __delitem__(self, key: K) -> None:
        if key not in self.data:
            raise KeyError(key)
        self._p_note_change()
        del self.data[key]

    def popitem(self) -> tuple[K, V]:
        """Remove and return the item that was added last; KeyError when there is none."""
        if self.data:
            self._p_note_change()
        return self.data.popitem()

    def clear(self) -> None:
        self._p_note_change()
        self.data.clear()

    # The types of these are those of MutableMapping, whose own methods do not serve: they catch
    # KeyError, and so take the DurusKeyError of a damaged database for a key that is missing.
    if not TYPE_CHECKING:

        def get(self, key, failobj=None):
            return self.data.get(key, failobj)

        def setdefault(self, key, failobj=None):
            if key not in self.data:
                self._p_note_change()
            return self.data.setdefault(key, failobj)

        def pop(self, key, default=MISSING):
            if key in self.data:
                self._p_note_change()
                return self.data.pop(key)
            if default is MISSING:
                raise KeyError(key)
            return default

        def update(self, other=(), /, **items):
            """Take over all items, as dict.update does; if that fails, none of them."""
            new = dict(other, **items)
            self._p_note_change()
            self.data.update(new)

    def copy(self) -> Self:
        """A new object of the same class, with the same attributes and a copy of the items."""
        result = copy(self)
        result.data = self.data.copy()
        return result

    def iteritems(self) -> Iterator[tuple[K, V]]:
        return iter(self.data.items())

    def iterkeys(self) -> Iterator[K]:
        return iter(self.data)

    @classmethod
    def fromkeys(cls, iterable: Iterable[T], value: Any = None) -> "PersistentDict[T, Any]":
        result = cast("PersistentDict[T, Any]", cls())
        for key in iterable:
            result[key] = value
        return result
