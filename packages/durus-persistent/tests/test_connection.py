"""Connections: transactions, the cache, conflicts, failures that leave everything as it was."""

import gc
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from durus.btree import BTree
from durus.connection import (
    ROOT_OID,
    Connection,
    ObjectDictionary,
    gen_every_instance,
    touch_every_reference,
)
from durus.error import (
    ConflictError,
    DurusKeyError,
    ForeignReferenceError,
    ObjectError,
    ReadConflictError,
    StorageClosedError,
    StorageError,
    UnstorableError,
    WriteConflictError,
)
from durus.interfaces import NO_TID, CommitResult, Snapshot, Tid, Transaction
from durus.persistent import Persistent, PersistentObject, oid_of
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.storage import (
    MemoryStorage,
    gen_referring_oid_record,
    get_census,
    get_reference_index,
)


@dataclass(eq=False, repr=False)
class Node(Persistent):
    value: Any = None
    next: "Node | None" = None


class Special(Node):
    pass


class Bank(Persistent):
    def __init__(self) -> None:
        self.accounts: BTree[str, Node] = BTree()


class FullStorage(MemoryStorage):
    """A storage on a disk that fills up."""

    full = False

    def commit(self, transaction: Transaction) -> CommitResult:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().commit(transaction)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def connection(storage: MemoryStorage) -> Connection:
    return Connection(storage)


def two_connections(storage: MemoryStorage) -> tuple[Connection, Connection]:
    first, second = Connection(storage), Connection(storage)
    first.root["A"] = Node(1)
    first.root["B"] = Node(1)
    first.commit()
    second.abort()
    return first, second


# The root, and getting objects.


def test_a_new_storage_gets_a_root(connection: Connection) -> None:
    root = connection.get_root()
    assert type(root) is PersistentDict
    assert root is connection.root
    assert oid_of(root) == ROOT_OID
    assert root._p_connection is connection
    assert not root._p_is_ghost()


def test_the_root_may_be_of_another_class(storage: MemoryStorage) -> None:
    connection = Connection(storage, root_class=Bank)
    connection.root.accounts["ann"] = Node(1)
    connection.commit()
    assert Connection(storage, root_class=Bank).root.accounts["ann"].value == 1
    assert isinstance(Connection(storage).root, Bank)


def test_the_root_class_may_be_a_generic_alias(storage: MemoryStorage) -> None:
    connection = Connection(storage, root_class=BTree[str, Node])
    connection.root["a"] = Node(3)
    connection.commit()
    assert type(Connection(storage, root_class=BTree[str, Node]).root) is BTree


def test_a_root_of_another_class_than_asked_for_is_an_error(storage: MemoryStorage) -> None:
    Connection(storage)
    with pytest.raises(TypeError, match=r"PersistentDict, not a .*Bank"):
        Connection(storage, root_class=Bank)


def test_get_takes_bytes_and_numbers(connection: Connection) -> None:
    assert connection.get(ROOT_OID) is connection.root
    assert connection.get(0) is connection.root
    assert connection[0] is connection.root
    assert connection.get(1) is None


def test_get_with_a_class_is_typed(connection: Connection) -> None:
    connection.root["it"] = node = Node(4)
    connection.commit()
    oid = oid_of(node)
    assert oid is not None
    assert connection.get(oid, Node).value == 4
    with pytest.raises(TypeError, match="Special"):
        connection.get(oid, Special)
    with pytest.raises(DurusKeyError, match="no object with oid 77"):
        connection.get(77, Node)


def test_one_oid_is_one_object(connection: Connection) -> None:
    connection.root["it"] = node = Node()
    connection.commit()
    assert connection.get(oid_of(node) or b"") is node


# Commit and abort.


def test_commit_without_changes_returns_none(connection: Connection) -> None:
    assert connection.commit() is None


def test_commit_returns_growing_tids(connection: Connection, storage: MemoryStorage) -> None:
    connection.root["a"] = 1
    first = connection.commit()
    connection.root["a"] = 2
    second = connection.commit()
    assert first is not None
    assert second is not None
    assert first < second == storage.tid


def test_everything_reachable_is_stored(connection: Connection, storage: MemoryStorage) -> None:
    connection.root["it"] = Node(1, Node(2, Node(3)))
    connection.commit()
    it = Connection(storage).root["it"]
    assert [it.value, it.next.value, it.next.next.value] == [1, 2, 3]


def test_a_long_chain_of_new_objects_is_stored(
    connection: Connection, storage: MemoryStorage
) -> None:
    node = None
    for i in range(5_000):
        node = Node(i, node)
    connection.root["it"] = node
    connection.commit()
    found = Connection(storage).root["it"]
    for i in reversed(range(5_000)):
        assert found.value == i
        found = found.next
    assert found is None


def test_cycles_are_stored(connection: Connection, storage: MemoryStorage) -> None:
    a = Node("a")
    a.next = Node("b", a)
    connection.root["it"] = a
    connection.commit()
    it = Connection(storage).root["it"]
    assert it.next.next is it


def test_abort_gives_changes_up(connection: Connection) -> None:
    connection.root["it"] = Node(1)
    connection.commit()
    connection.root["it"].value = 2
    connection.root["more"] = 3
    connection.abort()
    assert connection.root["it"].value == 1
    assert "more" not in connection.root


def test_user_and_note_go_into_the_log(connection: Connection, storage: MemoryStorage) -> None:
    connection.user, connection.note = "ann", "sign up"
    connection.root["a"] = 1
    connection.commit()
    connection.root["a"] = 2
    connection.commit()
    last = list(storage.transactions())[-2:]
    assert [(t.user, t.note) for t in last] == [("ann", "sign up"), ("ann", "")]


def test_an_object_changed_while_another_is_pickled_is_stored_too(
    connection: Connection, storage: MemoryStorage
) -> None:
    class_state_calls.clear()
    connection.root["late"] = late = Node(0)
    connection.root["meddler"] = meddler = Meddler(late)
    connection.commit()
    meddler.armed = True
    connection.commit()
    assert Connection(storage).root["late"].value == 1


class_state_calls: list[int] = []


class Meddler(Persistent):
    armed = False

    def __init__(self, victim: Node) -> None:
        self.victim = victim

    def __getstate__(self) -> dict[str, Any]:
        if self.armed:
            self.victim.value = 1
        return super().__getstate__()


# Conflicts, as in Durus 4.3.


def test_changes_are_invisible_to_others_until_their_next_boundary(storage: MemoryStorage) -> None:
    first, second = two_connections(storage)
    assert second.root["A"].value == 1
    first.root["A"].value = 2
    first.commit()
    assert second.root["A"].value == 1
    second.abort()
    assert second.root["A"].value == 2


def test_commit_conflicts_when_an_accessed_object_was_changed(storage: MemoryStorage) -> None:
    first, second = two_connections(storage)
    value = first.root["A"].value
    first.root["B"].value = value + 1
    second.root["A"].value = 5
    second.commit()
    with pytest.raises(WriteConflictError) as caught:
        first.commit()
    assert caught.value.oids == [second.root["A"]._p_oid]
    first.abort()
    assert first.root["A"].value == 5
    assert first.root["B"].value == 1


def test_commit_does_not_conflict_when_the_changed_object_was_not_accessed(
    storage: MemoryStorage,
) -> None:
    first, second = two_connections(storage)
    a = first.root["A"]
    first.root["B"].value = 2
    second.root["A"].value = 5
    second.commit()
    first.commit()
    assert a._p_is_ghost()
    assert a.value == 5


def test_writing_without_reading_is_an_access(storage: MemoryStorage) -> None:
    first, second = two_connections(storage)
    a = first.root["A"]
    first.abort()
    a.value = 7
    second.root["A"].value = 5
    second.commit()
    with pytest.raises(WriteConflictError):
        first.commit()


def test_an_object_that_was_evicted_still_counts_as_accessed(storage: MemoryStorage) -> None:
    first, second = two_connections(storage)
    value = first.root["A"].value
    first.root["A"]._p_set_status_ghost()
    first.cache.recent_objects.discard(first.root["A"])
    second.root["A"].value = 5
    second.commit()
    first.root["B"].value = value
    with pytest.raises(ConflictError):
        first.commit()


def test_a_commit_without_changes_never_conflicts(storage: MemoryStorage) -> None:
    first, second = two_connections(storage)
    assert first.root["A"].value == 1
    second.root["A"].value = 5
    second.commit()
    assert first.commit() is None
    assert first.root["A"].value == 5


def test_loading_what_does_not_fit_with_what_was_read_conflicts(storage: MemoryStorage) -> None:
    first, second = two_connections(storage)
    b = first.root["B"]
    b._p_set_status_ghost()
    assert first.root["A"].value == 1
    second.root["A"].value = second.root["B"].value = 2
    second.commit()
    with pytest.raises(ReadConflictError) as caught:
        b.value  # noqa: B018 - reading is the point
    assert caught.value.oids == [b._p_oid]
    first.abort()
    assert (first.root["A"].value, b.value) == (2, 2)


def test_loading_what_was_changed_alone_moves_the_transaction_on(storage: MemoryStorage) -> None:
    first, second = two_connections(storage)
    a, b = first.root["A"], first.root["B"]
    first.abort()
    b._p_set_status_ghost()
    assert a.value == 1
    second.root["B"].value = 2
    second.commit()
    assert b.value == 2
    a.value = 3
    first.commit()


def test_after_moving_on_nothing_older_is_seen(storage: MemoryStorage) -> None:
    first, second = two_connections(storage)
    a, b = first.root["A"], first.root["B"]
    assert a.value == 1
    first.abort()
    b._p_set_status_ghost()
    second.root["A"].value = second.root["B"].value = 2
    second.commit()
    assert b.value == 2
    assert a.value == 2


def test_a_failed_commit_can_be_tried_again_after_abort(storage: MemoryStorage) -> None:
    first, second = two_connections(storage)
    for connection in (first, second):
        connection.root["A"].value += 1
    first.commit()
    with pytest.raises(WriteConflictError):
        second.commit()
    serial = second.get_transaction_serial()
    second.abort()
    assert second.get_transaction_serial() > serial
    second.root["A"].value += 1
    second.commit()
    first.abort()
    assert first.root["A"].value == 3


class RootElsewhere(MemoryStorage):
    """Somebody else makes the root whenever a connection is about to do it."""

    def commit(self, transaction: Transaction) -> CommitResult:
        if self.tid == NO_TID:
            super().commit(replace(transaction, id=1))
        return super().commit(transaction)


def test_a_root_that_somebody_else_has_just_made_is_used() -> None:
    connection = Connection(RootElsewhere())
    assert oid_of(connection.root) == ROOT_OID
    connection.root["a"] = Node(1)
    connection.commit()
    assert oid_of(connection.root["a"]) != ROOT_OID


def test_two_connections_that_make_the_root_at_once_share_it(storage: MemoryStorage) -> None:
    barrier = threading.Barrier(4)
    roots = []

    def connect() -> None:
        barrier.wait()
        connection = Connection(storage)
        roots.append(connection.root._p_oid)

    threads = [threading.Thread(target=connect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert roots == [ROOT_OID] * 4
    assert len(list(storage.revisions(ROOT_OID))) == 1


def test_new_objects_do_not_conflict(storage: MemoryStorage) -> None:
    first, second = two_connections(storage)
    first.root["A"].next = Node("first")
    second.root["B"].next = Node("second")
    first.commit()
    second.commit()
    first.abort()
    assert first.root["A"].next.value == "first"
    assert first.root["B"].next.value == "second"


def test_scanning_for_instances_is_an_access_of_everything(storage: MemoryStorage) -> None:
    first, second = two_connections(storage)
    for connection in (first, second):
        connection.root["B"].value = sum(1 for _ in gen_every_instance(connection, Node))
    second.root["A"].next = Node()
    second.commit()
    with pytest.raises(WriteConflictError):
        first.commit()


def test_a_crawler_does_not_bring_old_states_into_a_new_transaction(
    storage: MemoryStorage,
) -> None:
    _, second = two_connections(storage)
    third: Connection[Any] = Connection(storage)
    crawler = third.get_crawler()
    next(crawler)
    second.root["A"].value = second.root["B"].value = 7
    second.commit()
    third.abort()
    list(crawler)
    assert (third.root["A"].value, third.root["B"].value) == (7, 7)


class Greedy(Node):
    """Loads its victim while it is itself being loaded."""

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if state:
            before_loading[0]()
            self.seen = state["next"].value  # no change: this is the state


before_loading: list[Any] = [lambda: None]


def test_a_state_is_not_older_than_what_its_setstate_has_loaded(storage: MemoryStorage) -> None:
    first, second = two_connections(storage)
    first.root["A"].next = Greedy(1, first.root["B"])
    first.commit()
    first.abort()
    second.abort()
    greedy = first.root["A"].next
    first.abort()
    greedy._p_set_status_ghost()
    first.root["B"]._p_set_status_ghost()
    first.abort()

    def change_both() -> None:
        before_loading[0] = lambda: None
        second.root["A"].next.value = second.root["B"].value = 2
        second.commit()

    before_loading[0] = change_both
    assert (greedy.value, first.root["B"].value) == (2, 2)
    assert not first.changed


def test_an_object_that_changed_its_class_stays_one_object(storage: MemoryStorage) -> None:
    connection: Connection[Any] = Connection(storage)
    connection.root["x"] = x = Node(1)
    connection.commit()
    x.__class__ = Special
    x._p_note_change()
    connection.commit()
    connection.root._p_set_status_ghost()  # its reference still says Node
    assert connection.root["x"] is x
    assert type(x) is Special
    other: Connection[Any] = Connection(storage)
    again = other.root["x"]
    assert again.value == 1
    assert type(again) is Special


# Failures leave everything as it was.


def check_as_before(connection: Connection, node: Node, new: Node) -> None:
    assert node._p_is_unsaved()
    assert node.value == 2
    assert new._p_is_unsaved()
    assert new._p_oid is None
    assert new._p_connection is None
    assert connection.changed == {node._p_oid: node}
    assert Connection(connection.get_storage()).root["it"].value == 1


@pytest.fixture
def storage_with_it() -> FullStorage:
    storage = FullStorage()
    connection = Connection(storage)
    connection.root["it"] = Node(1)
    connection.commit()
    return storage


def change(connection: Connection) -> tuple[Node, Node]:
    node = connection.root["it"]
    node.value = 2
    node.next = new = Node("new")
    return node, new


def check_stored(connection: Connection) -> None:
    connection.commit()
    it = Connection(connection.get_storage()).root["it"]
    assert (it.value, it.next.value) == (2, "new")


def test_an_unpicklable_value_loses_nothing(storage_with_it: FullStorage) -> None:
    connection = Connection(storage_with_it)
    node, new = change(connection)
    new.next = Node(threading.Lock())
    tid = storage_with_it.tid
    with pytest.raises(UnstorableError, match=r"Node .*attribute 'value' \(lock\)"):
        connection.commit()
    check_as_before(connection, node, new)
    assert storage_with_it.tid == tid
    new.next.value = None
    check_stored(connection)


def test_a_foreign_reference_loses_nothing(storage_with_it: FullStorage) -> None:
    connection, other = Connection(storage_with_it), Connection(MemoryStorage())
    node, new = change(connection)
    new.next = other.root  # type: ignore[assignment]  # any persistent object will do
    with pytest.raises(ForeignReferenceError) as caught:
        connection.commit()
    assert repr(connection) in str(caught.value)
    assert repr(other) in str(caught.value)
    check_as_before(connection, node, new)
    new.next = None
    check_stored(connection)


def test_a_full_disk_loses_nothing(storage_with_it: FullStorage) -> None:
    connection = Connection(storage_with_it)
    node, new = change(connection)
    storage_with_it.full = True
    with pytest.raises(OSError, match="No space"):
        connection.commit()
    check_as_before(connection, node, new)
    storage_with_it.full = False
    check_stored(connection)


def test_a_conflict_loses_nothing(storage_with_it: FullStorage) -> None:
    connection, other = Connection(storage_with_it), Connection(storage_with_it)
    node, new = change(connection)
    assert connection.root["it"] is node
    other.root["more"] = 1
    other.commit()
    with pytest.raises(WriteConflictError):
        connection.commit()
    check_as_before(connection, node, new)
    connection.abort()
    change(connection)
    check_stored(connection)


def test_an_oid_of_a_failed_commit_is_used_by_the_next(connection: Connection) -> None:
    connection.root["it"] = Node(threading.Lock())
    with pytest.raises(UnstorableError):
        connection.commit()
    connection.root["it"] = node = Node(1)
    connection.commit()
    assert oid_of(node) == b"\0\0\0\0\0\0\0\1"


def test_objects_of_failed_commits_are_not_kept(connection: Connection) -> None:
    for _ in range(20):
        connection.root["it"] = Node(Node(threading.Lock()))
        with pytest.raises(UnstorableError):
            connection.commit()
    del connection.root["it"]
    assert len(connection.cache.recent_objects) <= connection.get_cache_count()


class Counting(Persistent):
    def __init__(self, other: Node) -> None:
        self.other = other

    def __getstate__(self) -> dict[str, Any]:
        self.other.value += 1
        return super().__getstate__()


def test_a_change_by_the_getstate_of_another_object_is_stored(
    connection: Connection, storage: MemoryStorage
) -> None:
    connection.root["node"] = node = Node(20)
    connection.root["counting"] = Counting(node)
    connection.commit()
    assert node._p_is_saved()
    assert Connection(storage).root["node"].value == node.value > 20


class Restless(Persistent):
    other: "Restless"
    count = 0

    def __getstate__(self) -> dict[str, Any]:
        self.other.count += 1
        return super().__getstate__()


def test_objects_that_change_each_other_for_ever_are_refused(connection: Connection) -> None:
    one, two = Restless(), Restless()
    one.other, two.other = two, one
    connection.root["one"] = one
    with pytest.raises(UnstorableError, match="again and again"):
        connection.commit()
    assert one._p_is_unsaved()
    assert one._p_oid is None


class Committing(Persistent):
    connection: Any = None

    def __getstate__(self) -> dict[str, Any]:
        type(self).connection.commit()
        return super().__getstate__()


def test_commit_within_commit_is_refused(connection: Connection) -> None:
    Committing.connection = connection
    connection.root["it"] = Committing()
    with pytest.raises(UnstorableError, match="in the middle of another"):
        connection.commit()


class Failing(Persistent):
    def __getstate__(self) -> dict[str, Any]:
        raise ZeroDivisionError("no state")


def test_a_getstate_that_fails_is_named(connection: Connection) -> None:
    connection.root["it"] = Failing()
    with pytest.raises(UnstorableError, match=r"Failing .*no state"):
        connection.commit()


def test_a_value_nested_too_deep_is_named(connection: Connection) -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    connection.root["it"] = value
    with pytest.raises(UnstorableError, match="PersistentDict 0"):
        connection.commit()
    while value:
        value = value.pop()


class UnreachableStorage(MemoryStorage):
    """A storage whose line breaks down right after a commit."""

    broken = False

    def commit(self, transaction: Transaction) -> CommitResult:
        result = super().commit(transaction)
        self.broken = True
        return result

    def snapshot(self, at: Tid | None = None) -> Snapshot:
        if self.broken:
            raise OSError("unreachable")
        return super().snapshot(at)


def test_a_commit_that_happened_does_not_fail() -> None:
    storage = UnreachableStorage()
    connection: Connection[Any] = Connection(storage)
    storage.broken = False
    connection.root["a"] = 1
    assert connection.commit() is not None
    with pytest.raises(OSError, match="unreachable"):
        connection.abort()
    storage.broken = False
    connection.root["a"] += 1
    connection.commit()
    storage.broken = False
    assert Connection(storage).root["a"] == 2


def test_an_interrupt_after_the_commit_does_not_use_an_oid_twice() -> None:
    class Interrupted(MemoryStorage):
        armed = False

        def commit(self, transaction: Transaction) -> CommitResult:
            result = super().commit(transaction)
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt
            return result

    storage = Interrupted()
    connection: Connection[Any] = Connection(storage)
    connection.root["a"] = Node(1)
    storage.armed = True
    with pytest.raises(KeyboardInterrupt):
        connection.commit()
    connection.abort()
    connection.root["b"] = Node(2)
    connection.commit()
    again = Connection(storage).root
    assert (again["a"].value, again["b"].value) == (1, 2)


def test_the_user_and_the_note_must_be_texts(connection: Connection) -> None:
    for note in (None, 3, "\ud800"):
        connection.note = note  # type: ignore[assignment]  # that is the point
        connection.root["a"] = 1
        with pytest.raises(ValueError, match="user"):
            connection.commit()
    connection.note = "ä"
    connection.commit()


def test_a_root_class_that_is_not_persistent_is_refused(storage: MemoryStorage) -> None:
    with pytest.raises(TypeError, match="subclass of PersistentObject"):
        Connection(storage, root_class=dict)  # type: ignore[type-var]  # that is the point
    assert list(storage.transactions()) == []


def test_a_number_that_is_no_oid_has_no_object(connection: Connection) -> None:
    assert connection.get(-1) is None
    assert connection.get(2**64) is None
    assert connection.get(b"short") is None
    for oid, shown in ((-1, "-1"), (b"short", "b'short'")):
        with pytest.raises(DurusKeyError, match=f"no object with oid {shown}: an oid is 8 bytes"):
            connection.get(oid, Persistent)


def test_what_is_no_oid_at_all_is_an_error(connection: Connection) -> None:
    wrong: Any
    for wrong in ("12345678", None, 1.0, [1]):
        with pytest.raises(TypeError, match="an oid is 8 bytes, or a number, and not"):
            connection.get(wrong)


class Hashed(Persistent):
    def __init__(self) -> None:
        self.key = 5
        self.own = {self: 1}

    def __hash__(self) -> int:
        return self.key

    def __eq__(self, other: object) -> bool:
        return self is other


def test_a_state_that_needs_itself_to_be_loaded_is_said_to(storage: MemoryStorage) -> None:
    connection: Connection[Any] = Connection(storage)
    connection.root["it"] = Hashed()
    connection.commit()
    with pytest.raises(ObjectError, match="needed to load itself"):
        Connection(storage).root["it"].key  # noqa: B018 - reading is the point


class Migrating(Persistent):
    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if state and "b" not in self.__dict__:
            self.b = self.a + 1

    a = 1


def test_a_setstate_may_use_the_object(storage: MemoryStorage) -> None:
    connection: Connection[Any] = Connection(storage)
    connection.root["it"] = it = Migrating()
    it.a = 4
    connection.commit()
    other: Connection[Any] = Connection(storage)
    assert other.root["it"].b == 5
    assert not other.changed


def test_a_class_of_a_function_is_refused(connection: Connection) -> None:
    class Local(Persistent):
        pass

    connection.root["it"] = Local()
    with pytest.raises(UnstorableError, match="defined inside a function"):
        connection.commit()


def test_a_class_that_is_not_what_its_name_says_is_refused(connection: Connection) -> None:
    impostor = type("Node", (Persistent,), {"__module__": __name__})
    connection.root["it"] = impostor()
    with pytest.raises(UnstorableError, match="cannot be found"):
        connection.commit()


def test_a_class_of_main_is_warned_about_once(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    import __main__

    cls = type("OfMain", (Persistent,), {"__module__": "__main__"})
    monkeypatch.setattr(__main__, "OfMain", cls, raising=False)
    connection.root["it"] = cls()
    with pytest.warns(UserWarning, match="OfMain of __main__"):
        connection.commit()
    connection.root["it"] = cls()
    connection.commit()


# Cache.


def test_the_cache_shrinks_to_its_size(storage: MemoryStorage) -> None:
    connection: Connection[Any] = Connection(storage, cache_size=10)
    for i in range(100):
        connection.root[i] = Node(i)
    connection.commit()
    connection.abort()
    connection.abort()
    loaded = [obj for obj in connection.get_cache() if not obj._p_is_ghost()]
    assert len(loaded) <= 20
    assert [connection.root[i].value for i in range(100)] == list(range(100))


def test_shrinking_keeps_changes(storage: MemoryStorage) -> None:
    connection = Connection(storage, cache_size=1)
    connection.root["a"] = Node(1)
    connection.commit()
    connection.root["a"].value = 2
    connection.shrink_cache()
    connection.commit()
    assert Connection(storage).root["a"].value == 2


def test_the_shrinking_sequence_of_durus_4(storage: MemoryStorage) -> None:
    connection = Connection(storage, cache_size=3)
    root = connection.get_root()
    for name in "abc":
        root[name] = Node()
    connection.commit()
    root["a"].value = 1
    connection.commit()
    root["b"].value = root["c"].value = 1
    for name in "def":
        root[name] = Node()
    connection.commit()
    root["f"].value = 1
    root["g"] = Node()
    connection.commit()
    connection.pack()
    assert sorted(root) == list("abcdefg")


def test_the_cache_size_must_be_positive(connection: Connection) -> None:
    connection.set_cache_size(5)
    assert connection.get_cache_size() == 5
    with pytest.raises(ValueError, match="> 0"):
        connection.set_cache_size(0)


def test_btree_nodes_in_the_cache_are_counted_as_in_durus_4(connection: Connection) -> None:
    tree: BTree[int, bool]
    tree = connection.root["bt"] = BTree()
    degree = tree.root.minimum_degree
    assert connection.get_cache_count() == 1
    for x in range(2 * degree - 1):
        tree.add(x, True)
    connection.commit()
    assert connection.get_cache_count() == 3
    tree.add(2 * degree - 1, True)
    connection.commit()
    assert connection.get_cache_count() == 5


def test_an_object_dictionary_forgets_dead_objects() -> None:
    dictionary = ObjectDictionary()
    oid = ROOT_OID
    dictionary[oid] = obj = Persistent()
    assert dictionary.get(oid) is obj
    assert list(dictionary) == [oid]
    del obj
    assert len(dictionary) == 0
    assert dictionary.get(oid) is None
    assert list(dictionary) == []


def test_an_object_dictionary_deletes() -> None:
    dictionary = ObjectDictionary()
    dictionary[ROOT_OID] = obj = Persistent()
    del dictionary[ROOT_OID]
    assert ROOT_OID not in dictionary
    assert len(dictionary) == 0
    assert obj is not None


def test_an_object_dictionary_keeps_the_successor_of_an_object_that_died() -> None:
    """As when another thread collects garbage, and tells of it late."""
    dictionary = ObjectDictionary()
    dictionary[ROOT_OID] = dead = Persistent()
    (reference,) = dictionary.mapping.values()
    del dead
    assert dictionary.dead == [reference]
    dictionary.dead.clear()
    dictionary[ROOT_OID] = successor = Persistent()
    dictionary.dead.append(reference)  # here it is told
    assert len(dictionary) == 1
    assert list(dictionary) == [ROOT_OID]
    assert dictionary.get(ROOT_OID) is successor


def test_an_object_is_never_two_though_garbage_is_collected_meanwhile(
    storage: MemoryStorage, connection: Connection
) -> None:
    connection.root["it"] = Node(1, Node(2))
    connection.commit()
    oid = oid_of(connection.root["it"].next)
    assert oid is not None
    other = Connection(storage)
    found: list[object] = []
    node = Node(0)  # older than what it is garbage with, so that its death is told first
    node.value = other.get(oid, Node)
    node.value.value = node
    other.changed.clear()
    other.cache.recent_objects.discard(node.value)
    witness = weakref.ref(node, lambda _: found.append(other.get(oid)))
    del node
    gc.collect()
    assert witness() is None
    assert found == [other.get(oid)]
    assert found[0] is other.get(oid)


# Walking and tools.


def test_the_storage_tools_of_durus_4(connection: Connection) -> None:
    root = connection.get_root()
    root["a"], root["b"] = Persistent(), Persistent()
    connection.commit()
    storage: Any = connection.get_storage()
    one, two = (i.to_bytes(8, "big") for i in (1, 2))
    assert get_reference_index(storage) == {one: [ROOT_OID], two: [ROOT_OID]}
    assert get_census(storage) == {b"PersistentDict": 1, b"Persistent": 2}
    assert list(gen_referring_oid_record(storage, one)) == [(ROOT_OID, storage.load(ROOT_OID))]


def test_the_crawler_yields_loaded_objects(storage: MemoryStorage, connection: Connection) -> None:
    connection.root["it"] = Node(1, Node(2))
    connection.commit()
    crawled = list(Connection(storage).get_crawler())
    assert [type(obj) for obj in crawled] == [PersistentDict, Node, Node]
    assert not any(obj._p_is_ghost() for obj in crawled)


def test_every_instance_of_a_class_and_its_subclasses(connection: Connection) -> None:
    connection.root["it"] = Node(1, Special(2))
    connection.commit()
    assert {type(obj) for obj in gen_every_instance(connection, Node)} == {Node, Special}
    assert [obj.value for obj in gen_every_instance(connection, Special)] == [2]


def test_touching_every_reference(connection: Connection) -> None:
    root = connection.get_root()
    root["a"], root["b"] = Node(), Node(PersistentList())
    connection.commit()
    touch_every_reference(connection, "PersistentList")
    assert root["b"]._p_is_unsaved()
    assert root["b"].value._p_is_unsaved()
    assert not root._p_is_unsaved()
    assert len(list(connection.get_cache())) == 4


def test_touch_every_reference_without_a_connection_says_the_right_call() -> None:
    with pytest.raises(TypeError, match=r"touch_every_reference\(connection, 'OldClass'\)"):
        touch_every_reference("OldClass")  # type: ignore[arg-type]  # as the FAQ of 4.3 has it


def test_pack_removes_what_cannot_be_reached(
    connection: Connection, storage: MemoryStorage
) -> None:
    connection.root["it"] = node = Node(1)
    connection.commit()
    del connection.root["it"]
    connection.commit()
    connection.pack()
    assert get_census(storage) == {b"PersistentDict": 1}
    assert node._p_is_ghost()
    with pytest.raises(ReadConflictError):
        node.value  # noqa: B018 - reading is the point


# Closing.


def test_a_closed_connection_refuses_everything(connection: Connection) -> None:
    root = connection.root
    connection.close()
    for use in (lambda: root["a"], connection.commit, connection.abort, lambda: connection.get(7)):
        with pytest.raises(StorageClosedError):
            use()


def test_a_connection_closes_only_a_storage_that_it_opened(storage: MemoryStorage) -> None:
    with Connection(storage) as connection:
        connection.root["a"] = 1
        connection.commit()
    assert Connection(storage).root["a"] == 1


def test_an_object_of_a_memory_uri(storage: MemoryStorage) -> None:
    with Connection("memory:") as connection:
        connection.root["a"] = PersistentObject()
        assert connection.commit() is not None


def run_forked(work: Callable[[], str]) -> str:
    """What `work` returns in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = work()
        except BaseException as error:
            answer = repr(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with open(reading, "rb") as answers:
        return answers.read().decode()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_transaction_does_not_go_on_in_a_forked_child() -> None:
    connection = Connection(MemoryStorage())
    root = connection.get_root()
    root["one"] = PersistentDict()
    connection.commit()
    root["two"] = PersistentDict()
    ghost = root["one"]
    ghost._p_set_status_ghost()

    def commit() -> str:
        with pytest.raises(StorageError, match=r"before it forked this one.*abort\(\) begins"):
            connection.commit()
        with pytest.raises(StorageError, match="before it forked this one"):
            len(ghost)
        connection.abort()
        return repr(sorted(root))

    assert run_forked(commit) == "['one']"
    connection.commit()
    assert sorted(root) == ["one", "two"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_uses_no_oids_that_its_parent_had_reserved() -> None:
    storage = MemoryStorage()
    connection = Connection(storage)
    root = connection.get_root()
    root["bad"] = [PersistentDict(), lambda: None]
    with pytest.raises(UnstorableError):
        connection.commit()  # its new object's oid is not used up
    del root["bad"]

    def next_oid() -> str:
        connection.abort()
        return connection.new_oid().hex()

    assert run_forked(next_oid) != connection.new_oid().hex()


def test_an_interrupt_while_an_object_is_emptied_leaves_a_ghost(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.root["a"] = 1
    connection.commit()
    set_state = PersistentObject.__setstate__

    def interrupt(obj: PersistentObject, state: Any) -> None:
        set_state(obj, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PersistentObject, "__setstate__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            connection.root._p_set_status_ghost()
    assert connection.root["a"] == 1
