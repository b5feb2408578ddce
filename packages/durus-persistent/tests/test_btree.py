"""BTree: the checks of Durus 4.3, keys that cannot be ordered, which nodes are used."""

import enum
import random
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from durus.btree import BNode, BNode4, BNode8, BNode16, BTree
from durus.connection import Connection
from durus.error import DurusKeyError, EmptyTreeError, KeyOrderError, UndoError
from durus.interfaces import Oid
from durus.persistent import ConnectionBase, PersistentObject
from durus.storage import MemoryStorage

Tree = BTree[Any, Any]


def make_tree(keys: Any, node_constructor: Any = BNode) -> Tree:
    tree: Tree = BTree(node_constructor)
    for key in keys:
        tree.add(key)
    return tree


def items_of(node: Any) -> Any:
    """The keys of a node and of those below, nested: [keys, of each child]."""
    keys = [key for key, _ in node.items]
    return keys if node.nodes is None else [keys, *map(items_of, node.nodes)]


def check_invariants(tree: Tree) -> None:
    """Sizes, order, and equal depth of all leaves."""
    t = tree.root.minimum_degree

    def check(node: BNode[Any, Any], is_root: bool) -> int:
        count = len(node.items)
        assert count <= 2 * t - 1
        assert is_root or count >= t - 1
        if node.nodes is None:
            return 0
        assert count >= 1
        assert len(node.nodes) == count + 1
        assert all(type(child) is type(node) for child in node.nodes)
        levels = {check(child, False) for child in node.nodes}
        assert len(levels) == 1
        return 1 + levels.pop()

    assert check(tree.root, True) == tree.get_depth() - 1
    keys = list(tree)
    assert all(a < b for a, b in pairwise(keys))
    assert len(keys) == len(tree)


class Recorder(ConnectionBase):
    """A connection that records which objects are accessed and changed, and can refuse."""

    def __init__(self) -> None:
        self.accessed: list[PersistentObject] = []
        self.changed: list[PersistentObject] = []
        self.refused: PersistentObject | None = None

    def note_access(self, obj: PersistentObject) -> None:
        obj._p_serial = self.transaction_serial
        self.accessed.append(obj)

    def note_change(self, obj: PersistentObject) -> None:
        if obj is self.refused:
            raise PermissionError
        self.changed.append(obj)

    def load_state(self, obj: PersistentObject) -> None:
        raise DurusKeyError(obj._p_oid or b"")


def nodes_of(node: BNode[Any, Any]) -> Iterator[BNode[Any, Any]]:
    yield node
    for child in node.nodes or ():
        yield from nodes_of(child)


def save(tree: Tree) -> Recorder:
    """Pretend that the tree was committed and a new transaction begun."""
    connection = Recorder()
    objects = [tree, *nodes_of(tree.root)]
    for number, obj in enumerate(objects):
        obj._p_connection = connection
        obj._p_oid = Oid(number.to_bytes(8, "big"))
        obj._p_set_status_saved()
    return connection


# The checks of Durus 4.3.


def test_there_are_no_other_attributes() -> None:
    tree: Tree = BTree()
    with pytest.raises(AttributeError):
        tree.bogus = 1  # type: ignore[attr-defined]  # this is the test
    with pytest.raises(AttributeError):
        tree.root.bogus = 1  # type: ignore[attr-defined]  # this is the test


def test_a_missing_key_is_named() -> None:
    tree = make_tree([])
    with pytest.raises(KeyError) as info:
        del tree[1]
    assert str(info.value) == "1"
    with pytest.raises(KeyError, match="-1"):
        make_tree(range(100))[-1]


@pytest.mark.parametrize(
    ("keys", "before", "deleted", "after"),
    [
        ("a", ["a"], "a", []),
        (
            "jklmoab",
            [["k"], ["a", "b", "j"], ["l", "m", "o"]],
            "k",
            [["j"], ["a", "b"], ["l", "m", "o"]],
        ),
        ("abcdef", [["b", "d"], ["a"], ["c"], ["e", "f"]], "d", [["b", "e"], ["a"], ["c"], ["f"]]),
        (
            "abcdefghi",
            [["d"], [["b"], ["a"], ["c"]], [["f"], ["e"], ["g", "h", "i"]]],
            "d",
            [["b", "f"], ["a"], ["c", "e"], ["g", "h", "i"]],
        ),
    ],
    ids=["case 1", "case 2a", "case 2b", "case 2c"],
)
def test_deletion(keys: str, before: Any, deleted: str, after: Any) -> None:
    tree = make_tree(keys)
    assert items_of(tree.root) == before
    del tree[deleted]
    assert items_of(tree.root) == after
    check_invariants(tree)


@pytest.mark.parametrize("keys", [[39, 55], [39, 7], [39], [7]], ids=["3a1", "3a2", "3b1", "3b2"])
def test_deletion_below_a_small_node(keys: list[int]) -> None:
    tree = make_tree(range(100))
    top = tree.root
    assert top.items == [(31, True), (63, True)]
    assert top.nodes is not None
    assert [node.items for node in top.nodes] == [[(15, True)], [(47, True)], [(79, True)]]
    assert [[below.items for below in node.nodes or ()] for node in top.nodes] == [
        [[(7, True)], [(23, True)]],
        [[(39, True)], [(55, True)]],
        [[(71, True)], [(87, True)]],
    ]
    for key in keys:
        del tree[key]
        check_invariants(tree)
    assert list(tree) == [key for key in range(100) if key not in keys]


def test_it_is_true_if_it_has_items() -> None:
    tree = make_tree([])
    assert not tree
    tree["1"] = 1
    assert tree


def test_setdefault_sets_only_what_is_missing() -> None:
    tree: BTree[str, list[int]] = BTree()
    assert tree.setdefault("1", []) == []
    tree.setdefault("1", [5]).append(1)
    assert tree["1"] == [1]


def test_the_extremes() -> None:
    tree = make_tree(range(100), BNode16)
    assert tree.get_min_item() == (0, True)
    assert tree.get_max_item() == (99, True)


def test_an_empty_tree_has_no_extremes() -> None:
    tree: Tree = BTree()
    for get in (tree.get_min_item, tree.get_max_item):
        with pytest.raises(EmptyTreeError, match=r"<BTree @\w+> is empty"):
            get()
        with pytest.raises(AssertionError):
            get()


def test_iteration() -> None:
    tree = make_tree(range(100))
    assert list(tree) == list(tree.iterkeys()) == tree.keys() == list(range(100))
    assert list(tree.itervalues()) == tree.values()
    assert list(tree.iteritems()) == tree.items() == list(zip(tree, tree.values(), strict=True))
    assert list(reversed(tree)) == list(range(99, -1, -1))
    assert list(tree.items_backward()) == tree.items()[::-1]


def test_iteration_of_an_empty_tree() -> None:
    tree = make_tree([])
    assert list(tree) == list(reversed(tree)) == list(tree.items_from(1)) == []


@pytest.mark.parametrize("cutoff", [-1, 1, 50.1, 63, 100, 102])
def test_items_from_a_key_on(cutoff: float) -> None:
    tree = make_tree(range(100))
    items = tree.items()
    up = [item for item in items if item[0] >= cutoff]
    assert list(tree.items_from(cutoff)) == up
    assert list(tree.items_from(cutoff, closed=False)) == [i for i in up if i[0] != cutoff]
    down = [item for item in reversed(items) if item[0] <= cutoff]
    assert list(tree.items_backward_from(cutoff, closed=True)) == down
    assert list(tree.items_backward_from(cutoff)) == [i for i in down if i[0] != cutoff]


@pytest.mark.parametrize("ends", [(-1, 10), (3, 9), (30, 200), (-10, 200), (5, 5), (63, 63)])
@pytest.mark.parametrize("closed_start", [False, True])
@pytest.mark.parametrize("closed_end", [False, True])
def test_items_in_a_range(ends: tuple[int, int], closed_start: bool, closed_end: bool) -> None:
    tree = make_tree(range(100))
    for start, end in (ends, ends[::-1]):
        expected = [
            item
            for item in tree.items()
            if min(ends) <= item[0] <= max(ends)
            and (closed_start or item[0] != start)
            and (closed_end or item[0] != end)
        ]
        if end < start:
            expected.reverse()
        assert list(tree.items_range(start, end, closed_start, closed_end)) == expected


def test_a_range_is_closed_at_the_start_only() -> None:
    tree = make_tree(range(100))
    assert [key for key, _ in tree.items_range(3, 6)] == [3, 4, 5]
    assert [key for key, _ in tree.items_range(6, 3)] == [6, 5, 4]


def test_inserting_again_replaces() -> None:
    tree = make_tree([])
    tree[1] = 2
    tree[1] = 3
    assert tree.items() == [(1, 3)]


def test_get_and_contains() -> None:
    tree = make_tree(range(10))
    assert tree.get(2) is True
    assert tree.get(-1) is None
    assert tree.get(-1, 5) == 5
    assert 2 in tree
    assert tree.has_key(2)
    assert -1 not in tree
    assert not tree.has_key(-1)


def test_pop_and_popitem() -> None:
    tree = make_tree(range(10))
    assert tree.pop(3) is True
    assert tree.pop(3, None) is None
    with pytest.raises(KeyError, match="3"):
        tree.pop(3)
    assert tree.popitem() == (0, True)
    assert tree.keys() == [1, 2, 4, 5, 6, 7, 8, 9]
    with pytest.raises(KeyError):
        make_tree([]).popitem()


def test_clear() -> None:
    tree = make_tree(range(10), BNode4)
    tree.clear()
    assert tree.keys() == []
    assert type(tree.root) is BNode4


def test_update_takes_what_dict_takes_and_anything_with_items() -> None:
    class Keyed:
        def keys(self) -> list[str]:
            return ["k"]

        def __getitem__(self, key: str) -> int:
            return 3

    class Items:
        def items(self) -> list[tuple[str, int]]:
            return [("i", 2)]

    tree: BTree[str, int] = BTree()
    tree.update()
    assert tree.items() == []
    tree.update(a=1)
    tree.update({"b": 2}, a=2)
    tree.update([("c", 3)], d=4)
    tree.update(Keyed())
    tree.update(Items())  # type: ignore[call-overload]  # Durus allows it; the types do not
    assert tree.items() == [("a", 2), ("b", 2), ("c", 3), ("d", 4), ("i", 2), ("k", 3)]
    tree.update(tree)
    assert len(tree) == 6
    with pytest.raises(TypeError):
        tree.update(1, 2)  # type: ignore[call-overload]  # this is the test


def test_splitting_may_bring_up_the_key_that_is_inserted() -> None:
    # fmt: off
    keys = [
        3, 56, 11, 57, 1, 32, 106, 98, 103, 108, 101, 104, 7, 94, 105, 85, 99, 89, 28, 65,
        107, 95, 97, 93, 96, 102, 86, 100, 0, 14, 35, 15, 12, 6, 84, 90, 2, 81, 4, 5, 69, 9,
        30, 78, 13, 10, 8, 82, 47, 62, 27, 88, 87, 83, 31, 79, 45, 91, 29, 92, 34, 33, 44, 25,
        50, 26, 16, 17, 19, 43, 21, 64, 24, 37, 22, 59, 63, 18, 20, 38, 52, 55, 53, 42, 23, 39,
        60, 40, 36, 41, 46, 61, 77, 75, 68, 74, 73, 71, 72, 70, 80, 54, 67, 66, 51, 49, 76, 58,
        49,
    ]
    # fmt: on
    tree: BTree[int, int] = BTree()
    for i, key in enumerate(keys):
        tree[key] = i
        assert tree[key] == i
    assert (tree.get_depth(), tree.get_node_count()) == (2, 7)
    before = tree.items()
    assert tree.set_bnode_minimum_degree(4)
    assert (tree.get_depth(), tree.get_node_count()) == (3, 34)
    assert tree.items() == before
    assert not tree.set_bnode_minimum_degree(4)
    assert not tree.set_bnode_minimum_degree(5)


@pytest.mark.parametrize("node_constructor", [BNode4, BNode16])
def test_many_random_changes(node_constructor: Any) -> None:
    chance = random.Random(43)
    tree: BTree[int, int] = BTree(node_constructor)
    model: dict[int, int] = {}
    for step in range(20_000):
        number = chance.randrange(1_000)
        assert (number in tree) == (number in model)
        if number not in model:
            tree[number] = model[number] = step
        elif chance.randrange(2):
            del tree[number], model[number]
    assert tree.items() == sorted(model.items())
    check_invariants(tree)


# What came since.


def test_the_nodes_must_be_of_a_node_class() -> None:
    with pytest.raises(TypeError, match="BNode"):
        BTree(dict)  # type: ignore[arg-type]  # this is the test


def test_it_is_equal_to_any_mapping_with_equal_items() -> None:
    assert make_tree("ab") == make_tree("ba", BNode16)
    assert make_tree("ab") == {"a": True, "b": True}
    assert make_tree("ab") != {"a": True}


def test_the_identity_is_all_that_repr_shows() -> None:
    tree = make_tree(range(10))
    save(tree)
    assert repr(tree) == "<BTree 0>"
    assert repr(tree.root) == "<BNode 1>"


class Color(enum.Enum):
    RED = 1


UNORDERABLE = [
    None,
    1j,
    Color.RED,
    pytest.param(object(), id="object()"),
    float("nan"),
    Decimal("NaN"),
    Decimal("sNaN"),
    (1, None),
]

USES: list[Callable[[Tree, Any], object]] = [
    lambda tree, key: tree.add(key),
    lambda tree, key: tree.__setitem__(key, 1),
    lambda tree, key: tree.setdefault(key, 1),
    lambda tree, key: tree.update([(key, 1)]),
    lambda tree, key: tree.pop(key, 1),
    lambda tree, key: tree.__delitem__(key),
    lambda tree, key: tree[key],
    lambda tree, key: tree.get(key),
    lambda tree, key: key in tree,
    lambda tree, key: tree.has_key(key),
    lambda tree, key: tree.note_change_of_bnode_containing_key(key),
    lambda tree, key: list(tree.items_from(key)),
    lambda tree, key: list(tree.items_backward_from(key)),
    lambda tree, key: list(tree.items_range(key, 5)),
    lambda tree, key: list(tree.items_range(5, key)),
]


@pytest.mark.parametrize("key", UNORDERABLE, ids=repr)
@pytest.mark.parametrize("count", [0, 3, 60])
def test_a_key_that_cannot_be_ordered_is_refused_everywhere(key: Any, count: int) -> None:
    tree = make_tree(range(count))  # with 3 keys the root is full, and would be split
    before = items_of(tree.root)
    connection = save(tree)
    for use in USES:
        if key == (1, None) and count == 0 and use not in USES[-2:]:
            continue  # as the only key it could be ordered
        with pytest.raises(KeyOrderError, match=r"<BTree 0>: the key .* of type \w+"):
            use(tree, key)
    assert items_of(tree.root) == before
    assert not connection.changed


@pytest.mark.parametrize("use", USES)
def test_keys_of_different_types_do_not_mix(use: Callable[[Tree, Any], object]) -> None:
    tree = make_tree(range(60))
    with pytest.raises(KeyOrderError, match=r"<BTree @\w+>: .* cannot be ordered") as info:
        use(tree, "x")
    assert isinstance(info.value, TypeError)
    assert isinstance(info.value.__cause__, TypeError)
    assert "'str'" in str(info.value)
    check_invariants(tree)


def test_keys_that_are_neither_less_nor_equal_nor_greater_are_refused() -> None:
    sets = make_tree([frozenset({1})])
    with pytest.raises(KeyOrderError, match="neither"):
        sets.add(frozenset({2}))


def test_nan_in_a_tuple_is_refused() -> None:
    nan = float("nan")
    tuples = make_tree([(1.0, "a"), (2.0, "b")])
    for key in ((nan, "c"), (1.0, (nan,))):
        for use in (tuples.add, tuples.get, tuples.items_from, tuples.items_backward_from):
            with pytest.raises(KeyOrderError):
                use(key)
        with pytest.raises(KeyOrderError):
            make_tree([]).add(key)
    assert len(tuples) == 2


def test_an_unordered_end_of_a_range_is_refused() -> None:
    tree: BTree[Any, int] = BTree()
    tree.update({(i, i): i for i in range(3)})
    with pytest.raises(KeyOrderError):
        list(tree.items_range((0, 0), (1, None)))


def test_keys_need_nothing_but_less_and_equal() -> None:
    class Key:
        def __init__(self, number: int) -> None:
            self.number = number

        def __lt__(self, other: "Key") -> bool:
            return self.number < other.number

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Key) and self.number == other.number

        def __ne__(self, other: object) -> bool:
            raise NotImplementedError

        def __hash__(self) -> int:
            raise NotImplementedError

        def __le__(self, other: "Key") -> bool:
            raise NotImplementedError

        __gt__ = __ge__ = __le__

    tree: BTree[Key, int] = BTree(BNode)
    for number in range(60):
        tree[Key(number)] = number
    assert tree[Key(5)] == 5
    assert [v for _, v in tree.items_range(Key(3), Key(6), False, True)] == [4, 5, 6]
    assert [v for _, v in tree.items_range(Key(6), Key(3), False, True)] == [5, 4, 3]
    for number in range(0, 60, 2):
        del tree[Key(number)]
    assert tree.values() == list(range(1, 60, 2))


def test_a_count_that_later_releases_stored_is_ignored() -> None:
    node: BNode[str, int] = BNode8()
    node.__setstate__({"items": [("a", 1)], "nodes": None, "_count": 1})
    assert node.__getstate__() == {"items": [("a", 1)], "nodes": None}
    node.__setstate__(None)
    assert node.__getstate__() == {}


def test_the_markers_of_qp() -> None:
    assert BTree.root_is is BNode
    assert BNode.items_is == BNode4.items_is == [tuple]
    assert BNode.nodes_is == (None, [BNode])
    assert BNode4.nodes_is == (None, [BNode4])


def test_a_missing_record_is_not_taken_for_a_missing_key() -> None:
    tree = make_tree(range(60))
    save(tree)
    assert tree.root.nodes is not None
    for node in tree.root.nodes:
        node._p_set_status_ghost()
        node._p_connection = Unloadable()
    operations: list[Callable[[], object]] = [
        lambda: tree.get(0, 1),
        lambda: tree.pop(0, 1),
        lambda: tree.setdefault(0, 1),
        lambda: 0 in tree,
    ]
    for operation in operations:
        with pytest.raises(DurusKeyError):
            operation()


class Unloadable(Recorder):
    def note_access(self, obj: PersistentObject) -> None:
        self.load_state(obj)


# Which nodes an operation reads and changes: this decides what conflicts.


def test_reading_changes_nothing() -> None:
    tree = make_tree(range(100))
    connection = save(tree)
    assert tree[5]
    assert tree.get(-1) is None
    assert len(tree) == len(tree.items()) == len(list(reversed(tree))) == 100
    assert list(tree.items_range(3, 50))
    tree.get_min_item()
    assert connection.changed == []


def test_a_lookup_reads_one_node_of_each_level() -> None:
    tree = make_tree(range(100))
    connection = save(tree)
    assert 0 in tree
    assert len(connection.accessed) == 1 + tree.get_depth()


def test_replacing_a_value_changes_its_node_alone() -> None:
    tree = make_tree(range(100))
    connection = save(tree)
    tree[63] = "new"
    assert connection.changed == [tree.root]
    assert connection.accessed == [tree, tree.root]


def test_note_change_of_bnode_containing_key_changes_that_node_alone() -> None:
    tree = make_tree(range(100))
    connection = save(tree)
    tree.note_change_of_bnode_containing_key(31)
    assert connection.changed == [tree.root]


def test_an_insertion_without_a_split_changes_the_leaf_alone() -> None:
    tree = make_tree([1, 2, 3, 4])
    connection = save(tree)
    assert tree.root.nodes is not None
    tree.add(0)
    assert connection.changed == [tree.root.nodes[0]]


def test_an_insertion_that_splits_the_root_changes_the_tree_and_two_nodes() -> None:
    tree = make_tree([1, 2, 3])
    connection = save(tree)
    old_root = tree.root
    tree.add(4)
    assert connection.changed == [tree, old_root]


def test_a_deletion_from_a_large_leaf_changes_the_leaf_alone() -> None:
    tree = make_tree([1, 2, 3, 4])
    connection = save(tree)
    assert tree.root.nodes is not None
    del tree[4]
    assert connection.changed == [tree.root.nodes[1]]


def test_a_merge_of_the_last_two_nodes_changes_the_root_and_those_that_go() -> None:
    tree = make_tree([1, 2, 3, 4])
    del tree[4]
    connection = save(tree)
    root = tree.root
    nodes = root.nodes
    assert nodes is not None
    del tree[2]
    assert tree.root is root
    assert items_of(root) == [1, 3]
    assert connection.changed == [root, *nodes]


def test_no_undo_of_what_was_done_in_a_node_that_has_gone_is_without_effect() -> None:
    connection = Connection(MemoryStorage())
    connection.root["tree"] = tree = make_tree([1, 2, 3, 4])
    connection.commit()
    del tree[4]
    deleted = connection.commit()
    assert deleted is not None
    del tree[1]  # and the node in which 4 was goes
    connection.commit()
    with pytest.raises(UndoError, match="changed later"):
        connection.undo(deleted)
    assert list(tree) == [2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_the_nodes_that_change_are_noted_and_no_others(seed: int) -> None:
    chance = random.Random(seed)
    tree = make_tree(chance.sample(range(100), 60))
    for key in chance.choices(range(100), k=100):
        connection = save(tree)
        before = [(obj, parts_of(obj)) for obj in (tree, *nodes_of(tree.root))]
        if key in tree:
            del tree[key]
        else:
            tree.add(key)
        kept = {id(node) for node in nodes_of(tree.root)}
        gone = {obj._p_oid for obj, _ in before if obj is not tree and id(obj) not in kept}
        changed = gone | {obj._p_oid for obj, parts in before if parts_of(obj) != parts}
        assert {obj._p_oid for obj in connection.changed} == changed
    check_invariants(tree)


def parts_of(obj: Any) -> Any:
    """What is stored in a tree or node, the nodes by identity."""
    if isinstance(obj, BTree):
        return id(obj.root)
    return obj.items[:], obj.nodes and [id(node) for node in obj.nodes]


def test_deleting_a_missing_key_changes_nothing() -> None:
    tree = make_tree(range(0, 200, 2))
    connection = save(tree)
    for key in range(-1, 200, 2):
        with pytest.raises(KeyError):
            del tree[key]
    assert connection.changed == []


@pytest.mark.parametrize(
    ("count", "key"),
    [(100, 0), (100, 31), (100, 39), (100, 50), (100, 99), *((n, n) for n in range(3, 25))],
)
def test_a_refused_change_leaves_the_tree_intact(count: int, key: int) -> None:
    """Whatever node refuses, all items are there afterwards."""
    for position in range(len(list(nodes_of(make_tree(range(count)).root)))):
        tree = make_tree(range(count))
        connection = save(tree)
        connection.refused = list(nodes_of(tree.root))[position]
        try:
            if key in tree:
                del tree[key]
            else:
                tree.add(key)
        except PermissionError:
            assert list(tree) == list(range(count))
        assert connection.refused not in connection.changed
        check_invariants(tree)
