"""`PersistentQueue`: a queue to which any number of transactions append at the same time."""

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from durus.mergeable import Mergeable, blind
from durus.persistent import repr_container

__all__ = ["PersistentQueue"]

T = TypeVar("T")


class PersistentQueue(Mergeable, Generic[T]):
    """First in, first out.  `append` and `extend` never conflict with each other.

    All else reads the queue, and conflicts with whoever appends or takes something out meanwhile.
    What several transactions append stands in the order of their commits.  The items are stored
    together, in one record: it is for hundreds of them, or for references to what is large.
    """

    __slots__ = ("_items",)

    _items: list[T]

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items = list(items)

    @blind
    def append(self, item: T) -> None:
        """Add an item at the end."""
        self._p_note_change()
        self._items.append(item)

    def extend(self, items: Iterable[T]) -> None:
        """Add items at the end."""
        self._extend(list(items))  # what the iterable reads of the queue is an access

    extend._durus_is_blind = True  # type: ignore[attr-defined]  # to find it is no access

    @blind
    def _extend(self, items: list[T]) -> None:
        self._p_note_change()
        self._items += items

    def popleft(self) -> T:
        """Take the first item out; IndexError when there is none."""
        if not self._items:
            raise IndexError(f"<{self._p_identity()}> is empty")
        self._p_note_change()
        return self._items.pop(0)

    def clear(self) -> None:
        """Take all items out."""
        self._items = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __getitem__(self, index: int) -> T:
        return self._items[index]

    def __repr__(self) -> str:
        return repr_container(self, "_items")

    def _p_resolve_conflict(
        self, old: dict[str, Any], committed: dict[str, Any], mine: dict[str, Any]
    ) -> dict[str, Any]:
        return {"_items": committed["_items"] + mine["_items"][len(old["_items"]) :]}
