"""The cache of a connection: what it holds, what it evicts, and that nobody notices."""

import contextvars
import gc
import random
import tracemalloc
from collections.abc import Callable, Iterator
from functools import total_ordering
from typing import Any, TypeVar

import pytest

from durus.blob import CHUNK_SIZE, Blob
from durus.btree import BNode, BNode16, BTree
from durus.cache import _IN_USE, _LARGE_IN_USE, Cache
from durus.connection import Connection
from durus.database import Database, Transaction
from durus.error import UnstorableError, WriteConflictError
from durus.persistent import Persistent, PersistentObject, oid_of
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_queue import PersistentQueue
from durus.persistent_set import PersistentSet
from durus.storage import MemoryStorage

T = TypeVar("T")
KIB = 1 << 10


class Node(Persistent):
    def __init__(self, value: Any = None) -> None:
        self.value = value


@total_ordering
class Key(Persistent):
    """A key of a BTree that has to be loaded to be compared."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.number == other.number

    def __lt__(self, other: "Key") -> bool:
        return self.number < other.number

    def __hash__(self) -> int:
        return hash(self.number)


class Curious(Persistent):
    """Its state is made with the help of other objects, which have to be loaded."""

    def __init__(self, others: PersistentList[Node]) -> None:
        self.others = others
        self.value = 0

    def __getstate__(self) -> dict[str, Any]:
        for node in self.others:
            _ = node.value
        return super().__getstate__()


def make(count: int, size_bytes: int = 1) -> MemoryStorage:
    """A storage with so many objects of about such a size in a list."""
    storage = MemoryStorage()
    with Database(storage) as db, db.transaction() as root:
        root["nodes"] = PersistentList(Node(bytes(size_bytes)) for _ in range(count))
    return storage


def elsewhere(call: Callable[[], T]) -> T:
    """Do something in another transaction while one is open here."""
    return contextvars.Context().run(call)


def connection_of(transaction: Transaction) -> Connection[Any]:
    connection = transaction.root._p_connection
    assert isinstance(connection, Connection)
    return connection


def loaded_in(connection: Connection[Any]) -> list[PersistentObject]:
    return [obj for obj in connection.cache if not obj._p_is_ghost()]


@pytest.fixture
def open_transaction() -> Iterator[Callable[..., Transaction]]:
    """Begin a transaction of a database with these options."""
    open_ones: list[Transaction] = []

    def begin(storage: MemoryStorage, **options: Any) -> Transaction:
        transaction = Database(storage, **options).transaction()
        open_ones.append(transaction)
        return transaction

    yield begin
    for transaction in open_ones:
        transaction.abort()


# In the middle of a transaction.


def test_so_many_objects_are_loaded_and_not_many_more(
    open_transaction: Callable[..., Transaction],
) -> None:
    tx = open_transaction(make(5000), cache_size=1000)
    most = 0
    for node in tx.root["nodes"]:
        assert node.value == bytes(1)
        most = max(most, len(connection_of(tx).cache.recent_objects))
    assert 1000 <= most <= 1001
    assert len(loaded_in(connection_of(tx))) <= 1001


def test_so_many_bytes_are_loaded_and_not_many_more(
    open_transaction: Callable[..., Transaction],
) -> None:
    tx = open_transaction(make(3000, KIB), cache_bytes=1000 * KIB)
    for node in tx.root["nodes"]:
        assert len(node.value) == KIB
    assert 700 <= len(loaded_in(connection_of(tx))) <= 1000


@pytest.mark.parametrize("by_oid", [False, True])
def test_large_objects_take_twice_the_bytes_at_most(
    open_transaction: Callable[..., Transaction], by_oid: bool
) -> None:
    storage = make(200, 100 * KIB)
    tx = open_transaction(storage, cache_bytes=3000 * KIB)
    nodes = tx.root["nodes"]
    for oid in [node._p_oid for node in nodes]:
        node = tx.get(oid, Node) if by_oid else next(n for n in nodes if n._p_oid == oid)
        assert len(node.value) == 100 * KIB
        loaded = [obj for obj in loaded_in(connection_of(tx)) if isinstance(obj, Node)]
        assert len(loaded) <= 61


def test_what_was_got_by_its_oid_counts_as_well(
    open_transaction: Callable[..., Transaction],
) -> None:
    storage = make(2000, 10 * KIB)
    with Connection(storage) as connection:
        oids = [node._p_oid for node in connection.root["nodes"]]
    tx = open_transaction(storage, cache_bytes=1000 * KIB)
    for oid in oids:
        assert len(tx.get(oid, Node).value) == 10 * KIB
    assert connection_of(tx).cache.recent_objects.size_bytes <= 2000 * KIB
    assert len(loaded_in(connection_of(tx))) <= 200


def test_what_was_evicted_was_read_all_the_same(
    open_transaction: Callable[..., Transaction],
) -> None:
    storage = make(2000)
    tx = open_transaction(storage, cache_size=100)
    nodes = tx.root["nodes"]
    assert all(len(node.value) == 1 for node in nodes)
    assert nodes[3]._p_is_ghost()
    with Database(storage) as other:
        elsewhere(lambda: other.run(lambda root: setattr(root["nodes"][3], "value", b"x")))
    tx.root["mine"] = 1
    with pytest.raises(WriteConflictError) as caught:
        tx.commit()
    assert caught.value.oids == [oid_of(nodes[3])]


def test_what_was_evicted_is_loaded_as_the_snapshot_has_it(
    open_transaction: Callable[..., Transaction],
) -> None:
    storage = make(2000)
    tx = open_transaction(storage, cache_size=100)
    nodes = tx.root["nodes"]
    assert all(len(node.value) == 1 for node in nodes)
    with Database(storage) as other:
        elsewhere(lambda: other.run(lambda root: setattr(root["nodes"][3], "value", b"x")))
    assert nodes[3].value == bytes(1)


def test_what_was_changed_is_never_evicted(open_transaction: Callable[..., Transaction]) -> None:
    storage = make(2000, 100)
    tx = open_transaction(storage, cache_size=1, cache_bytes=1)
    for number, node in enumerate(tx.root["nodes"]):
        node.value = number
    assert sum(node._p_is_unsaved() for node in tx.root["nodes"]) == 2000
    tx.commit()
    with Connection(storage) as connection:
        assert [node.value for node in connection.root["nodes"]] == list(range(2000))


def test_what_was_changed_is_looked_at_once_by_evictions(
    open_transaction: Callable[..., Transaction], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To change very many objects takes a time in proportion to their number."""
    tx = open_transaction(make(3000), cache_size=1)
    looked_at = 0
    is_saved = PersistentObject._p_is_saved

    def count(obj: PersistentObject) -> bool:
        nonlocal looked_at
        looked_at += 1
        return is_saved(obj)

    nodes = list(tx.root["nodes"])
    monkeypatch.setattr(PersistentObject, "_p_is_saved", count)
    for node in nodes:
        node.value = 1
    assert looked_at <= 3000


def test_the_last_objects_that_were_loaded_are_not_evicted(
    open_transaction: Callable[..., Transaction],
) -> None:
    tx = open_transaction(make(3000), cache_size=1)
    seen: list[Node] = []
    for node in tx.root["nodes"]:
        _ = node.value
        seen.append(node)
        if len(seen) % 7 == 0:
            assert not any(obj._p_is_ghost() for obj in seen[-_IN_USE:])
    assert seen[0]._p_is_ghost()


def test_the_last_large_objects_are_not_evicted_though_they_are_too_large(
    open_transaction: Callable[..., Transaction],
) -> None:
    tx = open_transaction(make(200, KIB), cache_bytes=1)
    seen: list[Node] = []
    for node in tx.root["nodes"]:
        _ = node.value
        seen.append(node)
        assert not any(obj._p_is_ghost() for obj in seen[-_LARGE_IN_USE:])
    assert sum(not node._p_is_ghost() for node in seen) <= _LARGE_IN_USE + 2


def test_a_list_of_very_many_ghosts_does_not_fill_the_cache(
    open_transaction: Callable[..., Transaction],
) -> None:
    tx = open_transaction(make(3000), cache_size=1500)
    for node in tx.root["nodes"][:1400]:
        _ = node.value
    assert not any(node._p_is_ghost() for node in tx.root["nodes"][:1400])


def test_reading_blobs_evicts_nothing(open_transaction: Callable[..., Transaction]) -> None:
    storage = make(600, KIB)
    with Database(storage) as db, db.transaction() as root:
        root["blob"] = Blob(bytes(8 * CHUNK_SIZE))
    tx = open_transaction(storage, cache_bytes=4 * CHUNK_SIZE)
    nodes = tx.root["nodes"]
    assert all(len(node.value) == KIB for node in nodes)
    assert len(tx.root["blob"].read_bytes()) == 8 * CHUNK_SIZE
    assert not any(node._p_is_ghost() for node in nodes)
    assert connection_of(tx).cache.recent_objects.size_bytes < CHUNK_SIZE * 4


def test_ghosts_do_not_count(open_transaction: Callable[..., Transaction]) -> None:
    tx = open_transaction(make(600, 10 * KIB), cache_bytes=8000 * KIB)
    nodes = tx.root["nodes"]
    for _ in range(3):
        for node in nodes:
            _ = node.value
            node._p_set_status_ghost()  # as if others had changed it
    cache = connection_of(tx).cache
    cache.set_size(1)
    cache.trim()
    assert len(cache.recent_objects) == _IN_USE


def test_an_eviction_while_records_are_made_loses_no_change(
    open_transaction: Callable[..., Transaction],
) -> None:
    storage = make(2000)
    with Database(storage) as db, db.transaction() as root:
        root["first"] = Node(0)
        root["curious"] = Curious(root["nodes"])
    tx = open_transaction(storage, cache_size=1)
    first = tx.root["first"]
    first.value = 5
    tx.root["curious"].value = 5
    tx.root["bad"] = lambda: None
    with pytest.raises(UnstorableError):
        tx.commit()
    assert first.value == 5
    del tx.root["bad"]
    tx.savepoint()
    assert first.value == 5
    first.value = 6
    tx.root["curious"].value = 6
    tx.commit()
    assert tx.database.run(lambda root: root["first"].value) == 6
    with Connection(storage) as connection:
        assert connection.root["first"].value == connection.root["curious"].value == 6


def test_a_savepoint_lets_what_it_has_saved_be_evicted(
    open_transaction: Callable[..., Transaction],
) -> None:
    storage = make(0)
    tx = open_transaction(storage, cache_bytes=1000 * KIB)
    nodes = tx.root["nodes"]
    for number in range(2000):
        nodes.append(Node(bytes(KIB) + str(number).encode()))
        if number % 100 == 99:
            tx.savepoint()
    assert len(loaded_in(connection_of(tx))) < 1200
    assert [node.value[KIB:] for node in nodes] == [str(n).encode() for n in range(2000)]
    tx.commit()
    with Connection(storage) as connection:
        assert len({node.value for node in connection.root["nodes"]}) == 2000


# Between transactions.


def test_after_a_commit_of_many_new_objects_the_cache_is_within_its_bounds() -> None:
    for options in ({"cache_bytes": 500 * KIB}, {"cache_size": 100}):
        with Database(MemoryStorage(), **options) as db:  # type: ignore[call-overload]
            tx = db.transaction()
            tx.root["nodes"] = PersistentList(Node(bytes(KIB)) for _ in range(2000))
            connection = connection_of(tx)
            tx.commit()
            assert len(loaded_in(connection)) <= (500 if "cache_bytes" in options else 100)
            assert db.stats().cached_bytes <= 500 * KIB
            assert db.run(lambda root: sum(len(node.value) for node in root["nodes"])) == 2000 * KIB


def test_what_fits_stays_loaded_for_the_next_transaction() -> None:
    with Database(make(100)) as db:
        for _ in range(3):
            with db.transaction() as root:
                assert sum(len(node.value) for node in root["nodes"]) == 100
        assert db.stats().loads <= 105


def test_large_objects_do_not_stay_when_nobody_uses_them() -> None:
    with Database(make(20, 100 * KIB), cache_bytes=500 * KIB) as db:
        assert db.run(lambda root: sum(len(node.value) for node in root["nodes"])) == 2000 * KIB
        assert db.stats().cached_bytes <= 500 * KIB


def test_the_memory_of_a_long_scan_is_bounded() -> None:
    with Database(make(3000, 10 * KIB), cache_bytes=1000 * KIB) as db:
        gc.collect()
        tracemalloc.start()
        try:
            total = db.run(lambda root: sum(len(node.value) for node in root["nodes"]))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert total == 30_000 * KIB
    assert peak_bytes < 8000 * KIB


def test_a_classic_connection_evicts_only_between_transactions() -> None:
    with Connection(make(1000), cache_size=10) as connection:
        nodes = connection.root["nodes"]
        assert sum(len(node.value) for node in nodes) == 1000
        assert not any(node._p_is_ghost() for node in nodes)
        for _ in range(5):
            connection.abort()
        assert len(loaded_in(connection)) <= 20


def test_a_cache_has_room_for_something() -> None:
    with pytest.raises(ValueError, match="> 0"):
        Cache(0)


# Nobody notices.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("degree", [BNode, BNode16])
def test_a_btree_in_a_tiny_cache_is_as_a_dict(degree: type[BNode[Any, Any]], seed: int) -> None:
    chance = random.Random(seed)
    with Database(MemoryStorage(), cache_size=1, cache_bytes=1) as db:
        with db.transaction() as root:
            root["tree"] = BTree(degree)
        model: dict[int, bytes] = {}
        for _ in range(4):
            with db.transaction() as root:
                tree = root["tree"]
                for _ in range(400):
                    key = chance.randrange(1500)
                    if chance.random() < 0.7:
                        tree[key] = model[key] = bytes([key % 256]) * 40
                    else:
                        assert tree.pop(key, None) == model.pop(key, None)
                assert dict(tree) == model
            with db.snapshot() as root:
                tree = root["tree"]
                assert list(tree.items()) == sorted(model.items())
                start = chance.randrange(1500)
                expected = [key for key in sorted(model) if key >= start]
                assert [key for key, _ in tree.items_from(start)] == expected


@pytest.mark.parametrize("others", [250, 300, 510, 1000])
def test_a_btree_whose_keys_are_loaded_in_a_tiny_cache_loses_nothing(others: int) -> None:
    """A node may be evicted while its keys are compared."""
    storage = make(others)
    with Database(storage) as db, db.transaction() as root:
        root["tree"] = BTree(BNode16)
        for number in range(0, 1000, 2):
            root["tree"][Key(number)] = number
    with Database(storage, cache_size=1) as db:
        with db.transaction() as root:
            tree = root["tree"]
            leaf = tree.root.nodes[0]
            while leaf.nodes is not None:
                leaf = leaf.nodes[0]
            assert leaf.items
            for node in root["nodes"]:
                _ = node.value
            tree[Key(3)] = "new"
            tree[Key(2)] = "changed"
        with db.snapshot() as root:
            found = {key.number: value for key, value in root["tree"].items()}
    expected: dict[int, Any] = {number: number for number in range(0, 1000, 2)}
    assert found == expected | {3: "new", 2: "changed"}


def test_containers_in_a_tiny_cache_lose_nothing() -> None:
    storage = make(600)
    with Database(storage) as db, db.transaction() as root:
        root["keys"] = PersistentList(Key(n) for n in range(600))
        root["dict"] = PersistentDict((key, key.number) for key in root["keys"])
        root["list"] = PersistentList(root["keys"])
        root["set"] = PersistentSet(root["keys"])
        root["queue"] = PersistentQueue(root["keys"])
    with Database(storage, cache_size=1, cache_bytes=1) as db:
        with db.transaction() as root:
            for number in range(0, 600, 50):
                for node in root["nodes"][: number // 2]:
                    _ = node.value
                key = Key(number)
                assert root["dict"].pop(key) == number
                root["list"].remove(key)
                root["set"].discard(key)
                assert root["queue"].popleft().number == number // 50
                root["list"].sort(reverse=number % 100 == 0)
        remaining = [n for n in range(600) if n % 50]
        with db.snapshot() as root:
            assert sorted(key.number for key in root["dict"]) == remaining
            assert sorted(key.number for key in root["list"]) == remaining
            assert sorted(key.number for key in root["set"]) == remaining
            assert [key.number for key in root["queue"]] == list(range(12, 600))
