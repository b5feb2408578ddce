"""Savepoints: what a rollback takes back, what it leaves, and what a commit makes of them."""

import contextvars
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from durus.blob import CHUNK_SIZE, Blob
from durus.btree import BNode, BTree
from durus.changes import Savepoint
from durus.connection import Connection
from durus.database import Database, Transaction
from durus.error import (
    DurusKeyError,
    ForeignReferenceError,
    TransactionEndedError,
    UnstorableError,
    WriteConflictError,
)
from durus.interfaces import CommitResult
from durus.interfaces import Transaction as StoredTransaction
from durus.persistent import ComputedAttribute, Persistent, PersistentObject, oid_of
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet
from durus.storage import MemoryStorage

T = TypeVar("T")
Root = PersistentDict[str, Any]

LARGE = bytes(range(256)) * 1024 * 9 + b"the end"
"""More than is stored at once: most of its parts are uploaded ahead."""


class Node(Persistent):
    def __init__(self, value: Any = None) -> None:
        self.value = value


class FullStorage(MemoryStorage):
    """A storage on a disk that fills up."""

    full = False

    def commit(self, transaction: StoredTransaction) -> CommitResult:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().commit(transaction)


@pytest.fixture
def storage() -> FullStorage:
    return FullStorage()


@pytest.fixture
def db(storage: FullStorage) -> Iterator[Database]:
    with Database(storage, cache_size=1) as db:
        yield db


@pytest.fixture
def tx(db: Database) -> Iterator[Transaction]:
    with db.transaction() as root:
        root["a"] = Node(1)
        root["b"] = Node(1)
    transaction = db.transaction()
    yield transaction
    transaction.abort()


def elsewhere(call: Callable[[], T]) -> T:
    """Do something in another transaction while one is open here."""
    return contextvars.Context().run(call)


def others_set(db: Database, name: str, value: object) -> None:
    def change(root: Root) -> None:
        root[name].value = value

    elsewhere(lambda: db.run(change))


def evict(*objects: PersistentObject) -> None:
    """Make ghosts of objects, as a full cache does."""
    for obj in objects:
        assert not obj._p_is_unsaved()
        obj._p_set_status_ghost()


def read(db: Database, name: str) -> Any:
    return db.run(lambda root: root[name].value)


def is_new(obj: PersistentObject) -> bool:
    return obj._p_oid is None and obj._p_connection is None and obj._p_is_unsaved()


# What a rollback takes back.


def test_a_rollback_takes_back_changes_and_keeps_those_before_the_savepoint(
    db: Database, tx: Transaction
) -> None:
    tx.root["a"].value = 2
    savepoint = tx.savepoint()
    tx.root["a"].value = 3
    tx.root["b"].value = 3
    savepoint.rollback()
    assert (tx.root["a"].value, tx.root["b"].value) == (2, 1)
    tx.commit()
    assert (read(db, "a"), read(db, "b")) == (2, 1)


def test_a_rollback_can_be_done_often(tx: Transaction) -> None:
    savepoint = tx.savepoint()
    for value in range(3):
        tx.root["a"].value = value
        tx.root[str(value)] = Node(value)
        savepoint.rollback()
        assert tx.root["a"].value == 1
        assert sorted(tx.root) == ["a", "b"]


def test_savepoints_are_nested(tx: Transaction) -> None:
    savepoints = []
    for value in range(10, 15):
        tx.root["a"].value = value
        savepoints.append(tx.savepoint())
    tx.root["a"].value = 99
    for value in range(14, 9, -1):
        savepoints.pop().rollback()
        assert tx.root["a"].value == value


def test_a_rollback_over_several_savepoints_at_once(db: Database, tx: Transaction) -> None:
    first = tx.savepoint()
    for value in range(5):
        tx.root["a"].value = value
        tx.root[f"n{value}"] = Node(value)
        tx.savepoint()
    first.rollback()
    assert tx.root["a"].value == 1
    assert sorted(tx.root) == ["a", "b"]
    assert tx.commit() is None  # there is nothing to store


def test_an_object_that_only_an_earlier_savepoint_has_is_as_it_was_there(tx: Transaction) -> None:
    tx.root["new"] = new = Node("first")
    savepoint = tx.savepoint()
    new.value = "second"
    tx.savepoint()
    new.value = "third"
    savepoint.rollback()
    assert tx.root["new"] is new
    assert new.value == "first"


def test_what_was_deleted_is_there_again(tx: Transaction) -> None:
    savepoint = tx.savepoint()
    del tx.root["a"], tx.root["b"].value
    savepoint.rollback()
    assert tx.root["a"].value == tx.root["b"].value == 1


def test_containers_are_as_they_were(db: Database, tx: Transaction) -> None:
    root = tx.root
    root["dict"] = PersistentDict(x=1)
    root["list"] = PersistentList([1, 2])
    root["set"] = PersistentSet([1, 2])
    savepoint = tx.savepoint()
    root["dict"].update(y=2)
    root["list"] += [3]
    root["set"] |= {3}
    tx.savepoint()
    root["dict"].clear()
    root["list"].reverse()
    root["set"].clear()
    savepoint.rollback()
    assert dict(root["dict"]) == {"x": 1}
    assert list(root["list"]) == [1, 2]
    assert set(root["set"]) == {1, 2}
    tx.commit()
    assert db.run(lambda root: (len(root["dict"]), list(root["list"]))) == (1, [1, 2])


def test_a_computed_value_goes_with_what_it_was_computed_from(tx: Transaction) -> None:
    root = tx.root
    root["double"] = ComputedAttribute()

    def double() -> int:
        found: int = root["double"].get(lambda: 2 * root["a"].value)
        return found

    def set_a(value: int) -> None:
        root["a"].value = value
        root["double"].invalidate()

    assert double() == 2
    savepoint = tx.savepoint()
    set_a(10)
    assert double() == 20
    tx.savepoint()
    set_a(100)
    assert double() == 200
    savepoint.rollback()
    assert double() == 2


# New objects.


def test_objects_that_are_new_get_their_oids_at_the_savepoint(tx: Transaction) -> None:
    tx.root["new"] = new = Node()
    assert oid_of(new) is None
    tx.savepoint()
    assert oid_of(new) is not None
    assert new._p_connection is tx.root._p_connection
    assert new._p_is_saved()


def test_what_was_new_after_a_savepoint_is_new_again_and_as_it_is(tx: Transaction) -> None:
    savepoint = tx.savepoint()
    tx.root["new"] = new = Node(Node("inner"))
    inner = new.value
    tx.savepoint()
    inner.value = "changed later"
    savepoint.rollback()
    assert is_new(new)
    assert is_new(inner)
    assert new.value is inner
    assert inner.value == "changed later"


def test_what_was_new_can_be_stored_again(db: Database, tx: Transaction) -> None:
    savepoint = tx.savepoint()
    tx.root["new"] = new = Node(Node("inner"))
    tx.savepoint()
    savepoint.rollback()
    tx.root["other name"] = new
    tx.commit()
    assert db.run(lambda root: root["other name"].value.value) == "inner"


def test_what_was_new_can_be_stored_in_another_database(tx: Transaction) -> None:
    savepoint = tx.savepoint()
    tx.root["new"] = new = Node("mine")
    tx.savepoint()
    savepoint.rollback()
    with Database(MemoryStorage()) as other:
        with other.transaction() as root:
            root["new"] = new
        assert read(other, "new") == "mine"


def test_what_was_new_and_evicted_has_its_state_after_the_rollback(
    db: Database, tx: Transaction
) -> None:
    savepoint = tx.savepoint()
    tx.root["new"] = new = Node([1, 2, 3])
    tx.savepoint()
    evict(new)
    savepoint.rollback()
    assert is_new(new)
    assert new.value == [1, 2, 3]
    tx.root["new"] = new
    tx.commit()
    assert read(db, "new") == [1, 2, 3]


def test_the_oids_of_what_was_rolled_back_are_used_again(tx: Transaction) -> None:
    savepoint = tx.savepoint()
    tx.root["new"] = [Node(), Node()]
    tx.savepoint()
    first = [oid_of(node) for node in tx.root["new"]]
    savepoint.rollback()
    tx.root["new"] = [Node(), Node()]
    tx.savepoint()
    assert [oid_of(node) for node in tx.root["new"]] == first


def test_an_oid_that_is_used_again_is_the_new_object(db: Database, tx: Transaction) -> None:
    savepoint = tx.savepoint()
    tx.root["old"] = old = Node("old")
    tx.savepoint()
    oid = oid_of(old)
    assert oid is not None
    savepoint.rollback()
    assert tx.get(oid) is None
    tx.root["new"] = new = Node("new")
    tx.savepoint()
    assert oid_of(new) == oid
    assert tx.get(oid) is new
    tx.commit()
    assert old.value == "old"
    assert read(db, "new") == "new"


def test_get_and_the_crawler_see_what_a_savepoint_holds(tx: Transaction) -> None:
    tx.root["new"] = Node("new")
    tx.root["a"].value = "changed"
    tx.savepoint()
    oid = oid_of(tx.root["new"])
    assert oid is not None
    connection = tx.root._p_connection
    assert isinstance(connection, Connection)
    evict(tx.root, *tx.root.values())  # so that all is read from the records
    connection.cache.recent_objects.map.clear()
    found = tx.get(oid, Node)
    assert found.value == "new"
    values = {obj.value for obj in connection.get_crawler() if isinstance(obj, Node)}
    assert values == {"new", "changed", 1}
    with pytest.raises(DurusKeyError):
        tx.get(2**40, Node)


# What stays.


def test_what_was_read_after_the_savepoint_still_counts(db: Database, tx: Transaction) -> None:
    savepoint = tx.savepoint()
    assert tx.root["a"].value == 1
    savepoint.rollback()
    others_set(db, "a", 2)
    tx.root["b"].value = 2
    with pytest.raises(WriteConflictError) as caught:
        tx.commit()
    assert caught.value.oids == [oid_of(tx.root["a"])]


def test_what_was_changed_and_rolled_back_still_counts(db: Database, tx: Transaction) -> None:
    savepoint = tx.savepoint()
    tx.root["a"].value = 5
    tx.savepoint()
    savepoint.rollback()
    others_set(db, "a", 2)
    tx.root["b"].value = 2
    with pytest.raises(WriteConflictError):
        tx.commit()


def test_a_savepoint_stores_nothing(db: Database, storage: MemoryStorage, tx: Transaction) -> None:
    before = storage.tid
    tx.root["new"] = Node()
    tx.root["a"].value = 2
    tx.savepoint()
    assert storage.tid == before
    assert elsewhere(lambda: read(db, "a")) == 1


def test_history_is_of_what_is_committed(db: Database, tx: Transaction) -> None:
    for value in (2, 3):
        tx.root["a"].value = value
        tx.savepoint()
    assert [revision.load().value for revision in db.history(tx.root["a"])] == [1]
    tid = tx.commit()
    assert tid is not None
    with db.snapshot() as root:
        assert [revision.load().value for revision in db.history(root["a"])] == [3, 1]
    db.undo(tid)
    assert read(db, "a") == 1


# Savepoints that fail.


def test_a_savepoint_that_fails_changes_nothing(db: Database, tx: Transaction) -> None:
    tx.root["a"].value = 2
    earlier = tx.savepoint()
    tx.root["a"].value = 3
    tx.root["new"] = new = Node(Node())
    tx.root["bad"] = bad = Node(lambda: None)
    with pytest.raises(UnstorableError, match="'value'"):
        tx.savepoint()
    assert is_new(new)
    assert is_new(new.value)
    assert is_new(bad)
    assert tx.root["a"].value == 3
    del tx.root["bad"]
    later = tx.savepoint()
    tx.root["a"].value = 4
    later.rollback()
    assert tx.root["a"].value == 3
    assert tx.root["new"] is new
    earlier.rollback()
    assert tx.root["a"].value == 2
    assert "new" not in tx.root
    tx.commit()
    assert read(db, "a") == 2


def test_a_savepoint_that_fails_uses_up_no_oids(tx: Transaction) -> None:
    tx.root["new"] = new = Node(lambda: None)
    for _ in range(3):
        with pytest.raises(UnstorableError):
            tx.savepoint()
    new.value = None
    tx.savepoint()
    last = oid_of(tx.root["b"])
    assert int.from_bytes(oid_of(new) or b"") == int.from_bytes(last or b"") + 1


def test_a_savepoint_refuses_an_object_of_another_database(tx: Transaction) -> None:
    with Database(MemoryStorage()) as other:
        with other.transaction() as root:
            root["x"] = Node()
        with other.snapshot() as root:
            tx.root["x"] = root["x"]
            with pytest.raises(ForeignReferenceError):
                tx.savepoint()
    del tx.root["x"]
    tx.savepoint()


# Commits after savepoints.


def test_a_commit_stores_what_all_savepoints_hold(db: Database, tx: Transaction) -> None:
    for name in "xyz":
        tx.root[name] = Node(name)
        tx.savepoint()
    tx.root["a"].value = 2
    tx.savepoint()
    assert tx.commit() is not None  # though nothing was changed since
    assert [read(db, name) for name in "xyza"] == ["x", "y", "z", 2]


def test_a_commit_stores_what_was_evicted_since_the_savepoint(
    db: Database, tx: Transaction
) -> None:
    tx.root["new"] = Node("new")
    tx.root["a"].value = 2
    tx.savepoint()
    evict(tx.root["new"], tx.root["a"], tx.root)
    assert (tx.root["new"].value, tx.root["a"].value) == ("new", 2)
    tx.root["a"].value += 1
    tx.savepoint()
    evict(tx.root["new"], tx.root["a"], tx.root)
    tid = tx.commit()
    with db.snapshot() as root:
        assert (root["new"].value, root["a"].value) == ("new", 3)
        assert {obj._p_tid for obj in (root["new"], root["a"], root)} == {tid}


def test_objects_of_a_savepoint_know_the_transaction_that_stored_them() -> None:
    connection = Connection(MemoryStorage())
    connection.root["new"] = new = Node()
    connection.savepoint()
    tid = connection.commit()
    assert new._p_tid == tid
    new.value = 2
    assert connection.commit() is not None


def test_a_commit_that_conflicts_leaves_all_as_it_was(db: Database, tx: Transaction) -> None:
    savepoint = tx.savepoint()
    tx.root["new"] = new = Node("new")
    tx.root["a"].value = 2
    later = tx.savepoint()
    tx.root["a"].value = 3
    tx.root["newest"] = newest = Node("newest")
    others_set(db, "a", 99)
    with pytest.raises(WriteConflictError):
        tx.commit()
    assert (tx.root["a"].value, tx.root["new"], tx.root["newest"]) == (3, new, newest)
    assert is_new(newest)
    later.rollback()
    assert tx.root["a"].value == 2
    savepoint.rollback()
    assert tx.root["a"].value == 1
    assert is_new(new)
    tx.abort()
    assert read(db, "a") == 99
    assert db.run(lambda root: sorted(root)) == ["a", "b"]


def test_a_commit_that_fails_can_be_repeated(
    db: Database, storage: FullStorage, tx: Transaction
) -> None:
    tx.root["new"] = Node("new")
    tx.savepoint()
    tx.root["newest"] = Node("newest")
    tx.root["a"].value = 2
    storage.full = True
    with pytest.raises(OSError, match="No space"):
        tx.commit()
    storage.full = False
    tx.commit()
    assert [read(db, name) for name in ("new", "newest", "a")] == ["new", "newest", 2]


def test_an_abort_after_savepoints_takes_all_back(db: Database, tx: Transaction) -> None:
    tx.root["new"] = new = Node("new")
    tx.root["a"].value = 2
    tx.savepoint()
    tx.root["a"].value = 3
    tx.savepoint()
    tx.abort()
    assert is_new(new)
    assert new.value == "new"
    assert read(db, "a") == 1
    assert db.run(lambda root: "new" in root) is False


def test_a_connection_begins_anew_after_its_savepoints() -> None:
    connection = Connection(MemoryStorage())
    connection.root["a"] = node = Node(1)
    connection.savepoint()
    connection.abort()
    assert "a" not in connection.root
    assert is_new(node)
    connection.root["a"] = node
    connection.commit()
    assert Connection(connection.storage).root["a"].value == 1


# Savepoints that are gone.


def end_by_commit(tx: Transaction, first: Savepoint) -> None:
    tx.commit()


def end_by_abort(tx: Transaction, first: Savepoint) -> None:
    tx.abort()


def roll_back_to_the_first(tx: Transaction, first: Savepoint) -> None:
    first.rollback()


@pytest.mark.parametrize("end", [end_by_commit, end_by_abort, roll_back_to_the_first])
def test_a_savepoint_that_is_gone_says_so(
    tx: Transaction, end: Callable[[Transaction, Savepoint], None]
) -> None:
    first = tx.savepoint()
    tx.root["a"].value = 2
    second = tx.savepoint()
    end(tx, first)
    with pytest.raises(TransactionEndedError):
        second.rollback()


@pytest.mark.parametrize("end", [Connection.commit, Connection.abort])
def test_a_savepoint_of_a_connection_ends_with_the_transaction(
    end: Callable[[Connection], object],
) -> None:
    connection = Connection(MemoryStorage())
    connection.root["a"] = Node(1)
    savepoint = connection.savepoint()
    end(connection)
    with pytest.raises(TransactionEndedError, match="transaction has ended"):
        savepoint.rollback()


# As a context manager, and with calls.


def test_a_block_that_raises_is_rolled_back_and_the_transaction_goes_on(
    db: Database, tx: Transaction
) -> None:
    def fail() -> None:
        with tx.savepoint():
            tx.root["a"].value = 2
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    with tx.savepoint():
        tx.root["b"].value = 2
    tx.commit()
    assert (read(db, "a"), read(db, "b")) == (1, 2)


def test_the_error_of_a_block_goes_on_though_its_savepoint_is_gone(tx: Transaction) -> None:
    first = tx.savepoint()

    def fail(end: Callable[[], object]) -> None:
        with tx.savepoint():
            end()
            raise ValueError("no")

    for end in (first.rollback, tx.abort):
        with pytest.raises(ValueError, match="no"):
            fail(end)


def test_calls_that_were_registered_after_the_savepoint_are_forgotten(tx: Transaction) -> None:
    calls: list[int] = []
    tx.root["a"].value = 2
    tx.on_commit(lambda: calls.append(1))
    savepoint = tx.savepoint()
    tx.on_commit(lambda: calls.append(2))
    tx.savepoint()
    tx.on_commit(lambda: calls.append(3))
    savepoint.rollback()
    tx.on_commit(lambda: calls.append(4))
    tx.commit()
    assert calls == [1, 4]


# Blobs.


@pytest.mark.parametrize("content", [b"small", LARGE])
def test_the_content_of_a_blob_is_what_it_was(
    db: Database, tx: Transaction, content: bytes
) -> None:
    tx.root["blob"] = blob = Blob(b"at first")
    savepoint = tx.savepoint()
    blob.write_bytes(content)
    assert blob.read_bytes() == content
    later = tx.savepoint()
    blob.write_bytes(b"later")
    later.rollback()
    assert blob.read_bytes() == content
    savepoint.rollback()
    assert blob.read_bytes() == b"at first"
    blob.write_bytes(content[::-1])
    tx.savepoint()
    tx.commit()
    assert db.run(lambda root: root["blob"].read_bytes()) == content[::-1]


@pytest.mark.parametrize("content", [b"small", LARGE])
def test_a_blob_that_was_evicted_after_the_savepoint_has_its_content(
    db: Database, tx: Transaction, content: bytes
) -> None:
    tx.root["blob"] = blob = Blob(content)
    tx.savepoint()
    evict(blob)
    assert blob.read_bytes() == content
    tx.commit()
    assert db.run(lambda root: root["blob"].read_bytes()) == content


@pytest.mark.parametrize("content", [b"small", LARGE])
def test_a_new_blob_keeps_its_content_through_a_rollback(
    db: Database, tx: Transaction, content: bytes
) -> None:
    savepoint = tx.savepoint()
    tx.root["blob"] = blob = Blob(content)
    tx.savepoint()
    evict(blob)
    savepoint.rollback()
    assert is_new(blob)
    assert blob.read_bytes() == content
    tx.root["others"] = [Node(n) for n in range(20)]  # they may get the oids that it had
    tx.root["blob"] = blob
    tx.commit()
    assert db.run(lambda root: root["blob"].read_bytes()) == content


def test_parts_of_a_blob_that_are_stored_ahead_are_stored_once(
    storage: MemoryStorage, tx: Transaction
) -> None:
    def count() -> int:
        return sum(len(transaction.oids) for transaction in storage.transactions())

    before = count()
    tx.root["blob"] = Blob(LARGE)
    tx.savepoint()
    assert count() - before == len(LARGE) // CHUNK_SIZE - 1  # the rest is for the commit
    tx.savepoint()
    tx.commit()
    parts = -(-len(LARGE) // CHUNK_SIZE)
    assert count() - before == parts + 2  # and the blob, and the root


def test_the_oid_of_a_part_that_is_stored_ahead_is_not_used_again(
    db: Database, storage: MemoryStorage, tx: Transaction
) -> None:
    savepoint = tx.savepoint()
    tx.root["blob"] = Blob(LARGE)
    tx.savepoint()
    newest = next(iter(storage.transactions(storage.tid)))
    savepoint.rollback()
    tx.root["nodes"] = nodes = [Node(n) for n in range(20)]
    tx.savepoint()
    assert not {oid_of(node) for node in nodes} & set(newest.oids)
    tx.commit()
    assert db.run(lambda root: [node.value for node in root["nodes"]]) == list(range(20))


# All of it at random, against a model.


class Model(RuleBasedStateMachine):
    """Containers, and plain ones beside them; savepoints hold copies of the plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.db = Database(MemoryStorage(), cache_size=1)
        with self.db.transaction() as root:
            root["tree"] = BTree(BNode)
            root["dict"] = PersistentDict()
            root["list"] = PersistentList()
            root["set"] = PersistentSet()
        self.stored: dict[str, Any] = {"tree": {}, "dict": {}, "list": [], "set": set()}
        self.begin()

    def begin(self) -> None:
        self.tx = self.db.transaction()
        self.plain = self.copy(self.stored)
        self.savepoints: list[tuple[Savepoint, dict[str, Any]]] = []

    @staticmethod
    def copy(plain: dict[str, Any]) -> dict[str, Any]:
        return {name: value.copy() for name, value in plain.items()}

    @rule(keys=st.lists(st.integers(0, 60), max_size=20))
    def insert(self, keys: list[int]) -> None:
        for key in keys:
            self.tx.root["tree"][key] = Node(key)
            self.plain["tree"][key] = key

    @rule(keys=st.lists(st.integers(0, 60), max_size=20))
    def delete(self, keys: list[int]) -> None:
        for key in keys:
            found = self.tx.root["tree"].pop(key, None)
            assert (None if found is None else found.value) == self.plain["tree"].pop(key, None)

    @rule(key=st.integers(0, 60), value=st.integers())
    def change_value(self, key: int, value: int) -> None:
        if key in self.plain["tree"]:
            self.tx.root["tree"][key].value = value
            self.plain["tree"][key] = value

    @rule(key=st.integers(0, 9), value=st.integers())
    def change_others(self, key: int, value: int) -> None:
        self.tx.root["dict"][key] = self.plain["dict"][key] = value
        for containers in (self.tx.root, self.plain):
            containers["list"].append(value)
            containers["set"] ^= {key}

    @rule()
    def savepoint(self) -> None:
        self.savepoints.append((self.tx.savepoint(), self.copy(self.plain)))

    @precondition(lambda self: self.savepoints)
    @rule(choice=st.data())
    def roll_back(self, choice: st.DataObject) -> None:
        index = choice.draw(st.integers(0, len(self.savepoints) - 1))
        del self.savepoints[index + 1 :]
        savepoint, plain = self.savepoints[index]
        savepoint.rollback()
        self.plain = self.copy(plain)

    @rule()
    def evict(self) -> None:
        connection = self.tx.root._p_connection
        assert isinstance(connection, Connection)
        connection.cache.trim(is_idle=True)
        assert self.tx.root._p_is_ghost() or self.tx.root._p_is_unsaved()

    @rule()
    def commit(self) -> None:
        self.tx.commit()
        self.stored = self.plain
        self.check_stored()
        self.begin()

    @rule()
    def abort(self) -> None:
        self.tx.abort()
        self.check_stored()
        self.begin()

    def check_stored(self) -> None:
        with self.db.snapshot() as root:
            self.check(root, self.stored)

    @invariant()
    def is_as_the_model(self) -> None:
        self.check(self.tx.root, self.plain)

    def check(self, root: Root, plain: dict[str, Any]) -> None:
        assert {key: node.value for key, node in root["tree"].items()} == plain["tree"]
        assert list(root["tree"]) == sorted(plain["tree"])
        assert dict(root["dict"]) == plain["dict"]
        assert list(root["list"]) == plain["list"]
        assert set(root["set"]) == plain["set"]

    def teardown(self) -> None:
        self.tx.abort()
        self.check_stored()
        self.db.close()


Model.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestModel = Model.TestCase


def test_a_rollback_of_more_than_the_cache_holds_leaves_all_as_it_is(
    storage: FullStorage,
) -> None:
    with Database(storage, cache_size=10) as db:
        nodes: list[PersistentDict[str, int]] = []
        with pytest.raises(ValueError, match="bad"), db.transaction() as root:  # noqa: PT012
            connection: Any = root._p_connection
            for part in range(3):
                for number in range(400):
                    nodes.append(PersistentDict(n=number))
                    root[f"{part} {number}"] = nodes[-1]
                connection.savepoint()
            raise ValueError("bad")
        assert {node._p_oid for node in nodes} == {None}
        assert [node["n"] for node in nodes] == list(range(400)) * 3
        assert db.run(len) == 0
