"""The containers against what they are modelled on: dict, list, set, and a sorted dict."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from durus.btree import BNode, BNode4, BTree
from durus.interfaces import Oid
from durus.persistent import SAVED, ConnectionBase, PersistentObject
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet

numbers = st.integers(-3, 12)
many_numbers = st.lists(numbers, max_size=8)
positions = st.integers(-6, 6)
slices = st.slices(6)

Change: TypeAlias = Callable[[Any], Any]


def outcome(change: Change, container: Any) -> Any:
    """What it returned, or the class of what it raised."""
    try:
        return change(container)
    except Exception as error:
        return type(error)


def plain(value: Any) -> Any:
    """A persistent container as what it is modelled on."""
    if isinstance(value, PersistentDict | PersistentList):
        return value.data
    return value.s if isinstance(value, PersistentSet) else value


def change(make: Callable[..., Change], *arguments: st.SearchStrategy[Any]) -> Any:
    return st.builds(make, *arguments)


set_item = change(lambda k, v: lambda d: d.__setitem__(k, v), numbers, numbers)
delete_item = change(lambda k: lambda d: d.__delitem__(k), numbers)
pop_item = change(lambda k: lambda d: d.pop(k), numbers)
pop_default = change(lambda k: lambda d: d.pop(k, "none"), numbers)
set_default = change(lambda k, v: lambda d: d.setdefault(k, v), numbers, numbers)
get = change(lambda k: lambda d: (d.get(k), d.get(k, 0), k in d, len(d), bool(d)), numbers)
get_item = change(lambda k: lambda d: d[k], numbers)
update = change(lambda pairs: lambda d: d.update(pairs), st.lists(st.tuples(numbers, numbers)))
update_dict = change(lambda d2: lambda d: d.update(d2), st.dictionaries(numbers, numbers))
clear = st.just(lambda container: container.clear())

mapping_changes = [
    set_item,
    delete_item,
    pop_item,
    pop_default,
    set_default,
    get,
    get_item,
    update,
    update_dict,
    clear,
]

dict_changes = st.lists(st.one_of(*mapping_changes, st.just(lambda d: d.popitem())))

list_changes = st.lists(
    st.one_of(
        change(lambda i, v: lambda p: p.__setitem__(i, v), positions, numbers),
        change(lambda i, v: lambda p: p.__setitem__(i, v), slices, many_numbers),
        change(lambda i: lambda p: p.__delitem__(i), positions | slices),
        change(lambda i: lambda p: p[i], positions | slices),
        change(lambda i: lambda p: p.pop(i), positions),
        change(lambda i, v: lambda p: p.insert(i, v), positions, numbers),
        change(lambda v: lambda p: p.append(v), numbers),
        change(lambda v: lambda p: p.remove(v), numbers),
        change(lambda v: lambda p: (p.index(v), p.count(v), v in p, len(p)), numbers),
        change(lambda v: lambda p: p.extend(v), many_numbers),
        change(lambda v: lambda p: plain(p + v) == plain(v + p), many_numbers),
        change(lambda n: lambda p: plain(p * n) if n < 3 else None, positions),
        change(lambda v: lambda p: (p < v, p <= v, p == v, p >= v, p > v), many_numbers),
        change(lambda reverse: lambda p: p.sort(reverse=reverse), st.booleans()),
        change(lambda n: lambda p: p.sort(key=lambda v: v % n), st.integers(1, 3)),
        st.just(lambda p: p.reverse()),
        st.just(lambda p: list(reversed(p))),
        clear,
    )
)

sets = st.sets(numbers)

set_changes = st.lists(
    st.one_of(
        change(lambda v: lambda s: s.add(v), numbers),
        change(lambda v: lambda s: s.discard(v), numbers),
        change(lambda v: lambda s: s.remove(v), numbers),
        change(lambda v: lambda s: (v in s, len(s), bool(s)), numbers),
        change(lambda v: lambda s: plain(s & v), sets),
        change(lambda v: lambda s: plain(s | v), sets),
        change(lambda v: lambda s: plain(s - v), sets),
        change(lambda v: lambda s: plain(s ^ v), sets),
        change(lambda v: lambda s: plain(v - s), sets),
        change(lambda v: lambda s: plain(s.__iand__(v)), sets),
        change(lambda v: lambda s: plain(s.__ior__(v)), sets),
        change(lambda v: lambda s: plain(s.__isub__(v)), sets),
        change(lambda v: lambda s: plain(s.__ixor__(v)), sets),
        change(lambda v, w: lambda s: s.update(v, w), many_numbers, many_numbers),
        change(lambda v: lambda s: s.difference_update(v), many_numbers),
        change(lambda v: lambda s: s.intersection_update(v), many_numbers),
        change(lambda v: lambda s: s.symmetric_difference_update(v), many_numbers),
        change(lambda v: lambda s: (s.issubset(v), s.issuperset(v), s.isdisjoint(v)), sets),
        clear,
    )
)


class Recorder(ConnectionBase):
    """A connection that grants, or refuses, every change."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses

    def note_access(self, obj: PersistentObject) -> None:
        obj._p_serial = self.transaction_serial

    def note_change(self, obj: PersistentObject) -> None:
        if self.refuses:
            raise PermissionError

    def load_state(self, obj: PersistentObject) -> None:
        raise NotImplementedError


def save(obj: PersistentObject, connection: Recorder) -> None:
    """Pretend that it was committed."""
    obj._p_connection = connection
    obj._p_oid = Oid(bytes(8))
    obj._p_set_status_saved()


def check_changes(container: Any, model: Any, changes: list[Change]) -> None:
    """Each change does to the container what it does to the model, and is noted."""
    for make_change in changes:
        before = model.copy()
        save(container, Recorder())
        expected = outcome(make_change, model)
        assert plain(outcome(make_change, container)) == plain(expected)
        assert plain(container) == model
        if isinstance(model, dict):  # in the same order
            assert container.items() == list(model.items())
        if model != before:
            assert container._p_is_unsaved()
        elif expected in (KeyError, IndexError):
            assert container._p_is_saved()


def check_refusals(container: Any, changes: list[Change]) -> None:
    """Changes that the connection refuses leave the container as it was."""
    save(container, Recorder(refuses=True))
    before = plain(container).copy()
    for make_change in changes:
        outcome(make_change, container)
        assert plain(container) == before
        assert container._p_status == SAVED


@settings(deadline=None)
@given(dict_changes)
def test_a_persistent_dict_is_a_dict(changes: list[Change]) -> None:
    check_changes(PersistentDict(), {}, changes)


@settings(deadline=None)
@given(st.lists(numbers), list_changes)
def test_a_persistent_list_is_a_list(items: list[int], changes: list[Change]) -> None:
    check_changes(PersistentList(items), items, changes)


@settings(deadline=None)
@given(st.sets(numbers), set_changes)
def test_a_persistent_set_is_a_set(items: set[int], changes: list[Change]) -> None:
    check_changes(PersistentSet(items), items, changes)


@settings(deadline=None)
@given(st.dictionaries(numbers, numbers), dict_changes)
def test_a_refused_change_leaves_a_dict_as_it_was(
    items: dict[int, int], changes: list[Change]
) -> None:
    check_refusals(PersistentDict(items), changes)


@settings(deadline=None)
@given(st.lists(numbers), list_changes)
def test_a_refused_change_leaves_a_list_as_it_was(items: list[int], changes: list[Change]) -> None:
    check_refusals(PersistentList(items), changes)


@settings(deadline=None)
@given(st.sets(numbers), set_changes)
def test_a_refused_change_leaves_a_set_as_it_was(items: set[int], changes: list[Change]) -> None:
    check_refusals(PersistentSet(items), changes)


@pytest.mark.parametrize(
    ("container", "operation"),
    [
        (PersistentDict(), lambda d: d.popitem()),
        (PersistentDict(a=1), lambda d: d.pop("b")),
        (PersistentDict(a=1), lambda d: d.update(1)),
        (PersistentList(), lambda p: p.pop()),
        (PersistentList("a"), lambda p: p.remove("b")),
        (PersistentList("a"), lambda p: p.extend(1)),
        (PersistentList(["a", 1]), lambda p: p.sort()),
        (PersistentSet(), lambda s: s.pop()),
        (PersistentSet("a"), lambda s: s.remove("b")),
        (PersistentSet("a"), lambda s: s.add([])),
        (PersistentSet("a"), lambda s: s.update(1)),
        (PersistentSet("a"), lambda s: s.__ior__(["b"])),
    ],
)
def test_what_fails_is_not_noted(container: Any, operation: Change) -> None:
    save(container, Recorder())
    with pytest.raises((LookupError, TypeError, ValueError)):
        operation(container)
    assert container._p_is_saved()


@pytest.mark.parametrize("operation", [lambda s: s.add("a"), lambda s: s.discard("b")])
def test_a_set_that_stays_the_same_is_not_noted(operation: Change) -> None:
    letters = PersistentSet("a")
    save(letters, Recorder())
    operation(letters)
    assert letters._p_is_saved()


keys = st.integers(0, 60)


class TreeMachine(RuleBasedStateMachine):
    """A BTree and a dict, under the same changes."""

    node_constructor: Any = BNode

    @initialize(count=st.integers(0, 60))
    def fill(self, count: int) -> None:
        self.tree: BTree[int, int] = BTree(self.node_constructor)
        self.tree.update((key, key) for key in range(count))
        self.model = {key: key for key in range(count)}

    @rule(key=keys, value=keys)
    def insert(self, key: int, value: int) -> None:
        self.tree[key] = value
        self.model[key] = value

    @rule(first=keys, count=st.integers(0, 20), step=st.sampled_from([-1, 1]))
    def insert_several(self, first: int, count: int, step: int) -> None:
        several = dict.fromkeys(range(first, first + step * count, step), first)
        self.tree.update(several)
        self.model.update(several)

    @rule(key=keys)
    def delete(self, key: int) -> None:
        expected = outcome(lambda d: d.__delitem__(key), self.model)
        assert outcome(lambda d: d.__delitem__(key), self.tree) == expected

    @rule(start=keys, step=st.integers(1, 5))
    def delete_several(self, start: int, step: int) -> None:
        for key in range(start, 60, step):
            assert self.tree.pop(key, None) == self.model.pop(key, None)

    @rule(make_change=st.one_of(*mapping_changes))
    def change(self, make_change: Change) -> None:
        assert outcome(make_change, self.tree) == outcome(make_change, self.model)

    @rule(start=keys, end=keys, closed_start=st.booleans(), closed_end=st.booleans())
    def items_range(self, start: int, end: int, closed_start: bool, closed_end: bool) -> None:
        expected = [
            (key, value)
            for key, value in sorted(self.model.items(), reverse=end < start)
            if min(start, end) <= key <= max(start, end)
            and (closed_start or key != start)
            and (closed_end or key != end)
        ]
        assert list(self.tree.items_range(start, end, closed_start, closed_end)) == expected

    @rule(key=keys, closed=st.booleans())
    def items_from(self, key: int, closed: bool) -> None:
        items = sorted(self.model.items())
        assert list(self.tree.items_from(key, closed)) == [
            item for item in items if item[0] > key or (closed and item[0] == key)
        ]
        assert list(self.tree.items_backward_from(key, closed)) == [
            item for item in reversed(items) if item[0] < key or (closed and item[0] == key)
        ]

    @invariant()
    def has_the_items_of_the_model(self) -> None:
        items = sorted(self.model.items())
        assert self.tree.items() == items
        assert list(self.tree.items_backward()) == items[::-1]
        assert len(self.tree) == len(items)
        assert bool(self.tree) == bool(items)
        if items:
            assert self.tree.get_min_item() == items[0]
            assert self.tree.get_max_item() == items[-1]

    @invariant()
    def is_a_b_tree(self) -> None:
        self.check_node(self.tree.root, True)

    def check_node(self, node: BNode[int, int], is_root: bool) -> int:
        """Sizes and order; returns the depth, which is that of all leaves."""
        t = node.minimum_degree
        assert is_root or len(node.items) >= t - 1
        assert len(node.items) <= 2 * t - 1
        assert all(a[0] < b[0] for a, b in pairwise(node.items))
        if node.nodes is None:
            return 0
        assert node.items
        assert len(node.nodes) == len(node.items) + 1
        assert {type(child) for child in node.nodes} == {type(node)}
        (depth,) = {self.check_node(child, False) for child in node.nodes}
        return depth + 1


class LargerTreeMachine(TreeMachine):
    node_constructor = BNode4

    @rule(degree=st.sampled_from([4, 8, 16]))
    def set_degree(self, degree: int) -> None:
        old_degree = self.tree.root.minimum_degree
        assert self.tree.set_bnode_minimum_degree(degree) == (degree != old_degree)
        assert self.tree.root.minimum_degree == degree


@pytest.mark.parametrize("machine", [TreeMachine, LargerTreeMachine])
def test_a_btree_is_a_sorted_dict(machine: type[TreeMachine]) -> None:
    case = machine.TestCase
    case.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
    case("runTest").runTest()


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(40)), st.permutations(range(40)))
def test_any_order_of_insertions_and_deletions(up: list[int], down: list[int]) -> None:
    machine = TreeMachine()
    machine.fill(0)
    for key in up:
        machine.insert(key, key)
        machine.is_a_b_tree()
    for key in down:
        machine.delete(key)
        machine.is_a_b_tree()
        machine.has_the_items_of_the_model()


@settings(deadline=None)
@given(st.sets(st.text() | st.text(alphabet="ab"), max_size=50), st.text(), st.text())
def test_ranges_of_strings(words: set[str], start: str, end: str) -> None:
    tree: BTree[str, int] = BTree(BNode)
    for word in words:
        tree[word] = len(word)
    expected = sorted(word for word in words if start <= word < end)
    if not end < start:
        assert [word for word, _ in tree.items_range(start, end)] == expected
