"""`BTree`: a sorted mapping of any size, of which only the parts that are used are loaded.

A tree is made of nodes, each stored as one object:

    BTree.root ──► BNode   items  [(key, value), ...]      sorted by key
                           nodes  None in a leaf, else one node more than there are items:
                                  nodes[i] has the keys between items[i - 1] and items[i]

The invariants are those of chapter 19 ("B-Trees") of Cormen, Leiserson and Rivest, Introduction
to Algorithms, and so are the algorithms: all leaves are at the same depth; a node has at most
2 t - 1 items, and except for the root at least t - 1, where t is its class's `minimum_degree`.
On the way down full nodes are split, and nodes that are about to lose an item are filled, so
nothing ever has to be done on the way up.

Two transactions conflict if one changed a node that the other one read.  So a node is noted as
changed only if it really changes, and there is no stored count: `len` walks all nodes.

Keys are compared by `<` and `==` alone.  Every operation finds its key before it changes a node:
a key that cannot be ordered raises KeyOrderError, a missing one KeyError, and the tree is intact.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, dropwhile
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar, overload

from durus.error import EmptyTreeError, KeyOrderError
from durus.persistent import PersistentObject, repr_items
from durus.persistent_dict import MISSING, PersistentMapping

__all__ = [
    "BNode",
    "BNode4",
    "BNode8",
    "BNode16",
    "BNode32",
    "BNode64",
    "BNode128",
    "BNode256",
    "BNode512",
    "BTree",
    "Ordered",
]


class Ordered(Protocol):
    """What can be a key: strings, numbers, bytes, dates, and tuples of them."""

    def __lt__(self, other: Any, /) -> bool: ...


K = TypeVar("K", bound=Ordered)
V = TypeVar("V")
T = TypeVar("T")

_key_of = itemgetter(0)


def _equals_itself(key: Any) -> bool:
    """Whether there is no NaN in the key; a tuple alone compares its items by identity first."""
    return all(map(_equals_itself, key)) if isinstance(key, tuple | list) else bool(key == key)


class BNode(PersistentObject, Generic[K, V]):
    """A node, and with it the tree below.

    A key that cannot be compared raises TypeError here; BTree makes a KeyOrderError of it.
    """

    __slots__ = ("items", "nodes")

    items: list[tuple[K, V]]
    nodes: list[Self] | None

    minimum_degree: ClassVar[int] = 2

    items_is: ClassVar[object] = [tuple]  # for the specifications of QP applications
    nodes_is: ClassVar[object]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.nodes_is = (None, [cls])

    def __init__(self) -> None:
        self.items = []
        self.nodes = None

    def __setstate__(self, state: Mapping[str, Any] | None) -> None:
        if state and "_count" in state:  # written by Durus after 4.3
            state = {name: value for name, value in state.items() if name != "_count"}
        super().__setstate__(state)

    def is_leaf(self) -> bool:
        return self.nodes is None

    def is_full(self) -> bool:
        return len(self.items) == 2 * self.minimum_degree - 1

    # Reading.

    def get_position(self, key: K) -> int:
        """The index of the first item that is not less than `key`."""
        return bisect_left(self.items, key, key=_key_of)

    def search(self, key: K) -> tuple[K, V] | None:
        """The item with this key, or None."""
        node = self
        while True:
            items = node.items
            position = bisect_left(items, key, key=_key_of)
            if position < len(items) and not key < items[position][0]:
                if items[position][0] == key:
                    return items[position]
                raise TypeError(f"it is neither <, == nor > {repr_items(items[position][0])}")
            if node.nodes is None:
                return None
            node = node.nodes[position]

    def get_min_item(self) -> tuple[K, V]:
        node = self
        while node.nodes is not None:
            node = node.nodes[0]
        return node.items[0]

    def get_max_item(self) -> tuple[K, V]:
        node = self
        while node.nodes is not None:
            node = node.nodes[-1]
        return node.items[-1]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        if self.nodes is None:
            return iter(self.items)
        return chain(self.nodes[0], self._iter_after(0))

    def __reversed__(self) -> Iterator[tuple[K, V]]:
        if self.nodes is None:
            return reversed(self.items)
        return chain(reversed(self.nodes[-1]), self._iter_before(len(self.items)))

    def iter_from(self, key: K) -> Iterator[tuple[K, V]]:
        """The items with this key and greater ones, ascending."""
        position = self.get_position(key)
        if self.nodes is None:
            return iter(self.items[position:])
        return chain(self.nodes[position].iter_from(key), self._iter_after(position))

    def iter_backward_from(self, key: K) -> Iterator[tuple[K, V]]:
        """The items with smaller keys, descending."""
        position = self.get_position(key)
        if self.nodes is None:
            return reversed(self.items[:position])
        return chain(self.nodes[position].iter_backward_from(key), self._iter_before(position))

    def _iter_after(self, position: int) -> Iterator[tuple[K, V]]:
        """What comes after nodes[position]."""
        assert self.nodes is not None
        for i in range(position, len(self.items)):
            yield self.items[i]
            yield from self.nodes[i + 1]

    def _iter_before(self, position: int) -> Iterator[tuple[K, V]]:
        """What comes before nodes[position], backwards."""
        assert self.nodes is not None
        for i in range(position - 1, -1, -1):
            yield self.items[i]
            yield from reversed(self.nodes[i])

    def get_count(self) -> int:
        """How many items there are; reads all nodes."""
        return len(self.items) + sum(node.get_count() for node in self.nodes or ())

    def get_node_count(self) -> int:
        """How many nodes there are; reads them all."""
        return 1 + sum(node.get_node_count() for node in self.nodes or ())

    def get_level(self) -> int:
        """How many levels of nodes are below this one: 0 for a leaf."""
        return 0 if self.nodes is None else 1 + self.nodes[0].get_level()

    # Changing.

    def insert_item(self, item: tuple[K, V]) -> None:
        """Insert (key, value), or replace the item with this key; the node must not be full."""
        items = self.items
        position = bisect_left(items, item[0], key=_key_of)
        if position < len(items) and items[position][0] == item[0]:
            self._p_note_change()
            items[position] = item
        elif self.nodes is None:
            self._p_note_change()
            items.insert(position, item)
        elif (child := self.nodes[position]).is_full():
            self.split_child(position, child)
            self.insert_item(item)  # its place is now in either half, or in between
        else:
            child.insert_item(item)

    def split_child(self, position: int, child: Self) -> None:
        """Split nodes[position], which must be full: its middle item comes up into this node."""
        assert self.nodes is not None
        assert self.nodes[position] is child
        assert child.is_full()
        self._p_note_change()
        child._p_note_change()
        middle = child.minimum_degree - 1
        bigger = type(child)()
        bigger.items = child.items[middle + 1 :]
        if child.nodes is not None:
            bigger.nodes = child.nodes[middle + 1 :]
            child.nodes = child.nodes[: middle + 1]
        self.items.insert(position, child.items[middle])
        self.nodes.insert(position + 1, bigger)
        child.items = child.items[:middle]

    def delete(self, key: K) -> None:
        """Delete the item with this key, or raise KeyError.

        This node must be the root, or have an item to spare.
        """
        position = self.get_position(key)
        found = position < len(self.items) and self.items[position][0] == key
        if self.nodes is None:
            if not found:
                raise KeyError(key)
            self._p_note_change()
            del self.items[position]
            return
        child = self.nodes[position]
        if not found:
            self._fill_child(position).delete(key)
        elif child._can_spare():
            self._p_note_change()
            item = child.get_max_item()
            child.delete(item[0])
            self.items[position] = item
        elif (upper := self.nodes[position + 1])._can_spare():
            self._p_note_change()
            item = upper.get_min_item()
            upper.delete(item[0])
            self.items[position] = item
        else:
            self._merge_children(position).delete(key)

    def _can_spare(self) -> bool:
        """Whether this node may lose an item."""
        return len(self.items) >= self.minimum_degree

    def _fill_child(self, position: int) -> Self:
        """Give nodes[position] an item to spare; returns the node that has its keys then.

        The item comes from a sibling by way of the one that stands between them.
        """
        assert self.nodes is not None
        child = self.nodes[position]
        if child._can_spare():
            pass
        elif position > 0 and (lower := self.nodes[position - 1])._can_spare():
            self._note_changes(lower, child)
            child.items.insert(0, self.items[position - 1])
            self.items[position - 1] = lower.items.pop()
            if child.nodes is not None and lower.nodes is not None:
                child.nodes.insert(0, lower.nodes.pop())
        elif position < len(self.items) and (upper := self.nodes[position + 1])._can_spare():
            self._note_changes(child, upper)
            child.items.append(self.items[position])
            self.items[position] = upper.items.pop(0)
            if child.nodes is not None and upper.nodes is not None:
                child.nodes.append(upper.nodes.pop(0))
        else:
            return self._merge_children(max(position - 1, 0))
        return child

    def _note_changes(self, lower: Self, upper: Self) -> None:
        """Note that this node and two siblings below it change, before any of them does."""
        assert lower.is_leaf() == upper.is_leaf()
        for node in (self, lower, upper):
            node._p_note_change()

    def _merge_children(self, position: int) -> Self:
        """Merge nodes[position], items[position] and nodes[position + 1] into one node.

        Returns that node.  It is this one, the root, if nothing but them is here.
        """
        assert self.nodes is not None
        lower, upper = self.nodes[position : position + 2]
        items = [*lower.items, self.items[position], *upper.items]
        nodes = None if lower.nodes is None else [*lower.nodes, *(upper.nodes or ())]
        # A node that goes counts as changed: else an undo of what was done in it would be accepted,
        # and have no effect on the tree.
        self._note_changes(lower, upper)
        if len(self.items) == 1:
            self.items, self.nodes = items, nodes
            return self
        del self.items[position]
        del self.nodes[position + 1]
        lower.items, lower.nodes = items, nodes
        return lower


BNode.nodes_is = (None, [BNode])


class BNode4(BNode[K, V]):
    __slots__ = ()
    minimum_degree = 4


class BNode8(BNode[K, V]):
    __slots__ = ()
    minimum_degree = 8


class BNode16(BNode[K, V]):
    __slots__ = ()
    minimum_degree = 16


class BNode32(BNode[K, V]):
    __slots__ = ()
    minimum_degree = 32


class BNode64(BNode[K, V]):
    __slots__ = ()
    minimum_degree = 64


class BNode128(BNode[K, V]):
    __slots__ = ()
    minimum_degree = 128


class BNode256(BNode[K, V]):
    __slots__ = ()
    minimum_degree = 256


class BNode512(BNode[K, V]):
    __slots__ = ()
    minimum_degree = 512


class BTree(PersistentMapping[K, V]):
    """A mapping sorted by its keys: numbers, strings, dates, tuples of them, and the like.

    Every operation raises KeyOrderError for a key that cannot be ordered: None, an Enum member,
    NaN, or one that cannot be compared with the keys that are there.
    """

    __slots__ = ("root",)

    root: BNode[K, V]

    root_is: ClassVar[type] = BNode  # for the specifications of QP applications

    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(self, node_constructor: type[BNode[K, V]]) -> None: ...
    def __init__(self, node_constructor: type[BNode[K, V]] = BNode16) -> None:
        """`node_constructor`, BNode or one of its subclasses, decides how large the nodes are."""
        if not issubclass(node_constructor, BNode):
            raise TypeError(f"the nodes of a BTree are of BNode classes, not {node_constructor!r}")
        self.root = node_constructor()

    def _ordered(self, call: Callable[[K], T], key: K) -> T:
        """call(key), in which `key` is compared; raises KeyOrderError if it cannot be."""
        try:
            if _equals_itself(key) and not key < key:
                return call(key)
            raise TypeError("it is not equal to itself")
        except (TypeError, ArithmeticError) as error:  # Decimal("sNaN") raises the latter
            raise KeyOrderError(
                f"<{self._p_identity()}>: the key {repr_items(key)} of type "
                f"{type(key).__name__} cannot be ordered: {error}"
            ) from error

    def _search(self, key: K) -> tuple[K, V] | None:
        return self._ordered(self.root.search, key)

    # Reading.

    def __bool__(self) -> bool:
        return bool(self.root.items)

    def __len__(self) -> int:
        """The number of items; reads all nodes."""
        return self.root.get_count()

    def __contains__(self, key: Any) -> bool:
        return self._search(key) is not None

    def __getitem__(self, key: K) -> V:
        item = self._search(key)
        if item is None:
            raise KeyError(key)
        return item[1]

    def iteritems(self) -> Iterator[tuple[K, V]]:
        return iter(self.root)

    def __reversed__(self) -> Iterator[K]:
        return (key for key, _ in reversed(self.root))

    def get_min_item(self) -> tuple[K, V]:
        """The item with the smallest key; EmptyTreeError if there is none."""
        if not self:
            raise EmptyTreeError(f"<{self._p_identity()}> is empty: it has no smallest key")
        return self.root.get_min_item()

    def get_max_item(self) -> tuple[K, V]:
        """The item with the greatest key; EmptyTreeError if there is none."""
        if not self:
            raise EmptyTreeError(f"<{self._p_identity()}> is empty: it has no greatest key")
        return self.root.get_max_item()

    def items_backward(self) -> Iterator[tuple[K, V]]:
        """All items, descending."""
        return reversed(self.root)

    def items_from(self, key: K, closed: bool = True) -> Iterator[tuple[K, V]]:
        """The items with keys >= `key` (or, not closed, > `key`), ascending."""
        items = self._ordered(self.root.iter_from, key)
        return items if closed else dropwhile(lambda item: item[0] == key, items)

    def items_backward_from(self, key: K, closed: bool = False) -> Iterator[tuple[K, V]]:
        """The items with keys < `key` (or, closed, <= `key`), descending."""
        item = self._search(key) if closed else None
        smaller = self._ordered(self.root.iter_backward_from, key)
        return smaller if item is None else chain([item], smaller)

    def items_range(
        self, start: K, end: K, closed_start: bool = True, closed_end: bool = False
    ) -> Iterator[tuple[K, V]]:
        """The items from `start` to `end`: ascending, or descending if `end` < `start`.

        The ends themselves are among them if they are closed.
        """
        self._ordered(self.root.get_position, end)
        if self._ordered(lambda key: key < start, end):
            for item in self.items_backward_from(start, closed_start):
                if not end < item[0]:
                    if closed_end and item[0] == end:
                        yield item
                    return
                yield item
        else:
            for item in self.items_from(start, closed_start):
                if not item[0] < end:
                    if closed_end and item[0] == end:
                        yield item
                    return
                yield item

    def get_depth(self) -> int:
        """How many levels of nodes there are."""
        return self.root.get_level() + 1

    def get_node_count(self) -> int:
        """How many nodes there are; reads them all."""
        return self.root.get_node_count()

    # Changing.

    def add(self, key: K, value: V = True) -> None:  # type: ignore[assignment]  # V is bool then
        """Insert the item, or replace the one with this key."""
        self._search(key)  # raises if the key cannot be ordered, before anything is split
        root = self.root
        if root.is_full():
            self._p_note_change()
            top = type(root)()
            top.nodes = [root]
            top.split_child(0, root)
            self.root = top
        self.root.insert_item((key, value))

    def __setitem__(self, key: K, value: V) -> None:
        self.add(key, value)

    def __delitem__(self, key: K) -> None:
        if self._search(key) is None:
            raise KeyError(key)
        self.root.delete(key)

    def clear(self) -> None:
        self.root = type(self.root)()

    # The types of these are those of MutableMapping, whose own methods do not serve: they catch
    # KeyError, and so take the DurusKeyError of a damaged database for a key that is missing.
    if not TYPE_CHECKING:

        def get(self, key, default=None):
            item = self._search(key)
            return default if item is None else item[1]

        def setdefault(self, key, default=None):
            item = self._search(key)
            if item is None:
                self.add(key, default)
                return default
            return item[1]

        def pop(self, key, default=MISSING):
            item = self._search(key)
            if item is not None:
                del self[key]
                return item[1]
            if default is MISSING:
                raise KeyError(key)
            return default

        def update(self, other=(), /, **items):
            """Insert all items, as dict.update does; those before a bad key stay."""
            if hasattr(other, "items"):
                pairs = other.items()
            elif hasattr(other, "keys"):
                pairs = dict(other).items()
            else:
                pairs = other
            for key, value in chain(pairs, items.items()):
                self[key] = value

    def note_change_of_bnode_containing_key(self, key: K) -> None:
        """Say that a plain list, dict or the like, which is the value of `key`, changes."""
        self[key] = self[key]

    def set_bnode_minimum_degree(self, degree: int) -> bool:
        """Replace all nodes by those of the BNode class of this minimum degree.

        Returns whether that was done: False if they have it already, or no class does.
        """
        if self.root.minimum_degree != degree:
            for bnode_class in BNode.__subclasses__():
                if bnode_class.minimum_degree == degree:
                    tree: BTree[Any, Any] = BTree(bnode_class)
                    tree.update(self)
                    self.root = tree.root
                    return True
        return False
