"""Strict mode: changes in place that nobody has noted are found, and nothing else is."""

import contextvars
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from durus.blob import Blob
from durus.btree import BNode, BTree
from durus.connection import Connection
from durus.counter import Counter
from durus.database import Database, Transaction
from durus.error import (
    ForeignReferenceError,
    StorageClosedError,
    TransactionEndedError,
    UnnotedChangeError,
)
from durus.persistent import ComputedAttribute, Persistent, note_change
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_queue import PersistentQueue
from durus.persistent_set import PersistentSet
from durus.storage import MemoryStorage
from durus.testing.databases import temporary_database

Root = PersistentDict[str, Any]


class Node(Persistent):
    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.other = 0

    @cached_property
    def computed(self) -> int:
        return len(self.value)


class Careless(Persistent):
    """Its state leaves out what cannot be stored."""

    def __init__(self) -> None:
        self.value = [1]
        self.lock: Any = None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if state["lock"] is not None:
            raise TypeError("locked")
        return state


class Box:
    """A plain class."""

    def __init__(self) -> None:
        self.items = [1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self.items == other.items


@pytest.fixture
def db() -> Iterator[Database]:
    with Database(MemoryStorage(), strict=True, allow=[__name__]) as db:
        with db.transaction() as root:
            root["list"] = Node([1, [2]])
            root["dict"] = Node({"a": 1})
            root["set"] = Node({1, 2})
            root["node"] = Node()
            root["nodes"] = Node([Node(1), Node(2)])
        yield db


@pytest.fixture
def tx(db: Database) -> Iterator[Transaction]:
    transaction = db.transaction()
    yield transaction
    transaction.abort()


def found(tx: Transaction) -> str:
    """What the commit says."""
    with pytest.raises(UnnotedChangeError) as caught:
        tx.commit()
    return str(caught.value)


# What is found.


CHANGES: list[tuple[str, Callable[[Any], object]]] = [
    ("list", lambda value: value.append(3)),
    ("list", lambda value: value[1].append(3)),
    ("list", lambda value: value.reverse()),
    ("dict", lambda value: value.update(a=2)),
    ("dict", lambda value: value.pop("a")),
    ("dict", lambda value: value.update(b=1)),
    ("set", lambda value: value.add(3)),
    ("set", lambda value: value.discard(1)),
    ("nodes", lambda value: value.reverse()),
    ("nodes", lambda value: value.pop()),
    ("nodes", lambda value: value.append(Node(3))),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_a_change_in_place_is_found_and_named(
    tx: Transaction, name: str, change: Callable[[Any], object]
) -> None:
    change(tx.root[name].value)
    oid = int.from_bytes(tx.root[name]._p_oid)
    message = found(tx)
    assert message.startswith(f"<Node {oid}> attribute 'value': ")
    assert "PersistentList" in message


def test_a_plain_object_inside_is_looked_into(db: Database) -> None:
    with db.transaction() as root:
        root["box"] = Node(Box())
    tx = db.transaction()
    tx.root["box"].value.items.append(2)
    assert "attribute 'value'" in found(tx)
    tx.abort()


CONTAINERS: list[tuple[Any, str, Callable[[Any], object]]] = [
    (PersistentDict(x=[1]), "data", lambda container: container["x"].append(2)),
    (PersistentList([[1]]), "data", lambda container: container[0].append(2)),
    (PersistentQueue([[1]]), "_items", lambda container: container[0].append(2)),
    (PersistentSet([1]), "s", lambda container: container.s.add(2)),
]


@pytest.mark.parametrize(("container", "attribute", "change"), CONTAINERS)
def test_a_change_inside_of_a_container_is_found(
    db: Database, container: Any, attribute: str, change: Callable[[Any], object]
) -> None:
    with db.transaction() as root:
        root["x"] = container.__class__(container)
    tx = db.transaction()
    change(tx.root["x"])
    assert f"<{type(container).__name__} " in (message := found(tx))
    assert f"attribute {attribute!r}" in message
    tx.abort()


def test_a_change_inside_of_a_btree_is_found_in_its_node(db: Database) -> None:
    with db.transaction() as root:
        root["tree"] = BTree(BNode)
        root["tree"].update((n, [n]) for n in range(20))
    tx = db.transaction()
    tx.root["tree"][7].append(8)
    assert "<BNode " in (message := found(tx))
    assert "attribute 'items'" in message
    tx.abort()


def test_all_that_was_changed_is_named(tx: Transaction) -> None:
    tx.root["list"].value.append(3)
    tx.root["list"].__dict__["other"] = 5
    tx.root["dict"].value["b"] = 2
    message = found(tx)
    assert message.count("attribute 'value'") == 2
    assert message.count("attribute 'other'") == 1


def test_an_object_in_the_place_of_one_that_has_gone_is_found(tx: Transaction) -> None:
    """Python gives the new one the address of the old one."""
    nodes = tx.root["nodes"].value
    connection = tx.root._p_connection
    assert isinstance(connection, Connection)
    for n in range(2):
        connection.cache.recent_objects.discard(nodes[n])
    while nodes:
        nodes.pop()
    nodes += [Node(3), Node(4)]
    assert "attribute 'value'" in found(tx)


def test_a_change_beside_noted_changes_of_others_is_found(tx: Transaction) -> None:
    tx.root["node"].value = 1
    tx.root["list"].value.append(3)
    assert "attribute 'value'" in found(tx)


def test_a_savepoint_finds_it_too(tx: Transaction) -> None:
    tx.root["list"].value.append(3)
    with pytest.raises(UnnotedChangeError):
        tx.savepoint()


def test_a_change_in_place_after_a_savepoint_is_found(tx: Transaction) -> None:
    tx.root["new"] = Node([])
    tx.root["list"].value = [5]
    tx.savepoint()
    tx.root["list"].value.append(6)
    tx.root["new"].value.append(7)
    assert found(tx).count("attribute 'value'") == 2


def test_a_transaction_that_only_reads_finds_it(tx: Transaction) -> None:
    tx.root["list"].value.sort(key=str)
    tx.root["list"].value.append(3)
    assert "attribute 'value'" in found(tx)


def test_a_snapshot_finds_it(db: Database) -> None:
    snapshot = db.snapshot()
    snapshot.root["list"].value.append(3)
    with pytest.raises(UnnotedChangeError):
        snapshot.close()
    with db.snapshot() as root:
        assert root["list"].value == [1, [2]]


def test_a_classic_connection_may_be_strict() -> None:
    connection = Connection(MemoryStorage(), strict=True)
    connection.root["x"] = Node([])
    connection.commit()
    connection.root["x"].value.append(1)
    for _ in range(2):
        with pytest.raises(UnnotedChangeError):
            connection.commit()
    connection.abort()
    assert connection.root["x"].value == []
    assert connection.commit() is None


def test_without_strict_it_is_lost_in_silence() -> None:
    """Which is why there is a strict mode."""
    connection = Connection(MemoryStorage())
    connection.root["x"] = Node([])
    connection.commit()
    connection.root["x"].value.append(1)
    assert connection.commit() is None
    assert Connection(connection.storage).root["x"].value == []


# What follows.


def test_an_abort_takes_it_back_for_the_next_transaction() -> None:
    connection = Connection(MemoryStorage(), strict=True)
    connection.root["list"] = Node([1])
    connection.commit()
    connection.root["list"].value.append(2)
    connection.abort()
    assert connection.root["list"].value == [1]


def test_what_is_kept_after_its_transaction_is_not_usable_in_the_next_one(db: Database) -> None:
    with db.transaction() as root:
        kept = root["list"]
    tx = db.transaction()
    own = tx.root["list"]
    assert own is tx.get(kept)
    assert own is not kept
    for use in (lambda: kept.value, lambda: setattr(kept, "value", 1)):
        with pytest.raises(TransactionEndedError, match="used after the end"):
            use()
    tx.root["kept"] = kept
    with pytest.raises(ForeignReferenceError):
        tx.commit()
    tx.abort()


def test_the_end_of_a_block_raises_it_and_takes_it_back(db: Database) -> None:
    def lose() -> None:
        with db.transaction() as root:
            root["list"].value.append(3)
            root["node"].value = 1

    with pytest.raises(UnnotedChangeError):
        lose()
    assert db.run(lambda root: (root["list"].value, root["node"].value)) == ([1, [2]], None)


def test_a_rollback_takes_it_back(tx: Transaction) -> None:
    savepoint = tx.savepoint()
    tx.root["list"].value.append(3)
    savepoint.rollback()
    assert tx.root["list"].value == [1, [2]]
    tx.commit()


def test_what_is_noted_late_is_stored(db: Database, tx: Transaction) -> None:
    tx.root["list"].value.append(3)
    found(tx)
    note_change(tx.root["list"])
    tx.commit()
    assert db.run(lambda root: root["list"].value) == [1, [2], 3]


# What is no such change.


def change_after_note(root: Root) -> None:
    note_change(root["list"])
    root["list"].value.append(3)


def note_after_change(root: Root) -> None:
    root["list"].value.append(3)
    note_change(root["list"])


def assign_another_attribute(root: Root) -> None:
    root["list"].value.append(3)
    root["list"].other = 1


def assign_again(root: Root) -> None:
    root["list"].value.append(3)
    root["list"].value = root["list"].value


@pytest.mark.parametrize(
    "change", [change_after_note, note_after_change, assign_another_attribute, assign_again]
)
def test_what_is_noted_is_stored(db: Database, change: Callable[[Root], None]) -> None:
    with db.transaction() as root:
        change(root)
    assert db.run(lambda root: root["list"].value) == [1, [2], 3]


def test_what_is_new_may_be_changed_in_place(db: Database) -> None:
    with db.transaction() as root:
        root["new"] = Node([])
        root["new"].value.append(1)
    assert db.run(lambda root: root["new"].value) == [1]


def test_sets_that_are_loaded_again_are_as_they_were() -> None:
    """A set that was grown and one that was loaded are pickled in another order."""
    grown: set[int | str] = set(range(0, 40_000, 1000))
    grown -= set(range(1000, 40_000, 1000))
    grown |= {f"text {n}" for n in range(50)}
    storage = MemoryStorage()
    with Database(storage, strict=True) as db:
        with db.transaction() as root:
            root["set"] = Node(grown)
            root["persistent"] = PersistentSet(grown)
        for _ in range(3):
            with db.transaction() as root:
                assert root["set"].value == set(root["persistent"])
    with Database(storage, strict=True) as db, db.transaction() as root:
        assert root["set"].value == grown


VALUES: list[Any] = [
    Decimal("1.50"),
    Path("a") / "b",
    frozenset(range(100)),
    range(5),
    [float("nan")],
    (1, [2], {"a": {3}}),
    "text" * 1000,
]


@pytest.mark.parametrize("value", VALUES)
def test_to_use_a_value_is_no_change(value: Any) -> None:
    with Database(MemoryStorage(), strict=True) as db:
        with db.transaction() as root:
            root["x"] = Node(value)
        db._idle.clear()
        for _ in range(2):
            with db.transaction() as root:
                used = root["x"].value
                str(used), repr(used), used == used, getattr(used, "parts", ())
                if not isinstance(used, list | tuple):
                    hash(used)


def test_a_cached_property_is_no_change(db: Database) -> None:
    for _ in range(2):
        with db.transaction() as root:
            assert root["list"].computed == 2


def test_computed_values_are_no_change(db: Database) -> None:
    with db.transaction() as root:
        root["computed"] = ComputedAttribute()
    for _ in range(2):
        with db.transaction() as root:
            assert root["computed"].get(lambda: [1]) == [1]
            root["computed"].get(lambda: [1]).append(1)
            root["computed"].__setstate__(None)


def test_blobs_are_no_change(db: Database, tx: Transaction) -> None:
    with db.transaction() as root:
        root["blob"] = Blob(b"content" * 100_000)
    with db.transaction() as root:
        assert root["blob"].read_bytes()[:7] == b"content"
    with tx.root["blob"].open("r+") as file:
        file.write(b"CONTENT")
    tx.savepoint()
    assert tx.root["blob"].read_bytes()[:7] == b"CONTENT"
    tx.commit()


def test_blind_changes_are_noted(db: Database) -> None:
    with db.transaction() as root:
        root["counter"] = Counter()
        root["queue"] = PersistentQueue()
    tx = db.transaction()
    tx.root["counter"].increment()
    tx.root["queue"].append(1)
    tx.savepoint()
    tx.root["counter"].increment()
    contextvars.Context().run(db.run, lambda root: root["queue"].append(2))
    tx.commit()
    assert db.run(lambda root: (root["counter"].value, list(root["queue"]))) == (2, [2, 1])


def test_savepoints_and_rollbacks_are_no_change(tx: Transaction) -> None:
    savepoint = tx.savepoint()
    for n in range(3):
        note_change(tx.root["list"])
        tx.root["list"].value.append(n)
        tx.savepoint()
        assert tx.root["list"].value[-1] == n
        if n != 1:
            savepoint.rollback()
            assert tx.root["list"].value == [1, [2]]
            savepoint = tx.savepoint()
    tx.commit()


def test_what_others_have_changed_is_no_change() -> None:
    storage = MemoryStorage()
    first, second = Connection(storage, strict=True), Connection(storage, strict=True)
    first.root["x"] = Node([1])
    first.commit()
    second.abort()
    assert second.root["x"].value == [1]
    second.abort()
    first.root["x"].value = [2]
    first.commit()
    assert second.commit() is None
    assert second.root["x"].value == [2]
    assert second.commit() is None


def test_what_is_evicted_between_transactions_is_no_change() -> None:
    with Database(MemoryStorage(), strict=True, cache_size=1) as db:
        with db.transaction() as root:
            root["nodes"] = PersistentList(Node([n]) for n in range(2000))
        for _ in range(2):
            with db.transaction() as root:
                assert sum(node.value[0] for node in root["nodes"]) == 1999 * 1000


def test_nothing_is_evicted_before_it_was_looked_at() -> None:
    with Database(MemoryStorage(), strict=True, cache_size=1) as db:
        with db.transaction() as root:
            root["nodes"] = PersistentList(Node([n]) for n in range(2000))
        tx = db.transaction()
        tx.root["nodes"][0].value.append(1)
        assert sum(node.value[0] for node in tx.root["nodes"]) == 1999 * 1000
        assert "attribute 'value'" in found(tx)
        tx.abort()


def test_a_state_that_cannot_be_had_is_left_alone(db: Database) -> None:
    with db.transaction() as root:
        root["x"] = Careless()
        root["x"].lock = None
    tx = db.transaction()
    careless = tx.root["x"]
    careless.value.append(2)
    assert "attribute 'value'" in found(tx)
    tx.abort()


def test_what_cannot_be_pickled_is_named_alone(tx: Transaction) -> None:
    tx.root["dict"].value["lock"] = threading.Lock()
    message = found(tx)
    assert "attribute 'value'" in message
    assert "'other'" not in message


# For tests of applications.


def test_the_fixtures_work_when_they_are_imported(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from durus.testing.fixtures import durus_database, durus_strict\n"
        '__all__ = ["durus_database", "durus_strict"]\n'
    )
    (tmp_path / "test_app.py").write_text(
        "import pytest\n"
        "from durus.database import Database\n"
        "from durus.error import UnnotedChangeError\n"
        "from durus.storage import MemoryStorage\n"
        "def lose(db):\n"
        "    with db.transaction() as root:\n"
        "        root['x'] = []\n"
        "    with db.transaction() as root:\n"
        "        root['x'].append(1)\n"
        "def test_empty_and_strict(durus_database):\n"
        "    with durus_database.transaction() as root:\n"
        "        assert len(root) == 0\n"
        "    with pytest.raises(UnnotedChangeError):\n"
        "        lose(durus_database)\n"
        "def test_another_one(durus_database):\n"
        "    assert durus_database.run(len) == 0\n"
        "def test_strict(durus_strict):\n"
        "    with pytest.raises(UnnotedChangeError):\n"
        "        lose(Database(MemoryStorage()))\n"
        "    lose(Database(MemoryStorage(), strict=False))\n"
        "def test_not_strict():\n"
        "    lose(Database(MemoryStorage()))\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert "4 passed" in run.stdout, run.stdout + run.stderr


def test_nothing_registers_itself_with_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_app.py").write_text("def test_app(durus_database): pass\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert "fixture 'durus_database' not found" in run.stdout


def test_a_temporary_database_is_empty_strict_and_closed_at_the_end() -> None:
    with temporary_database() as db:
        assert db.strict
        assert db.run(len) == 0
    with pytest.raises(StorageClosedError):
        db.run(len)
    with pytest.raises(StorageClosedError):
        db.storage.snapshot()
    with temporary_database(strict=False) as db:
        assert not db.strict


def test_a_temporary_database_begins_with_what_is_in_another() -> None:
    base = MemoryStorage()
    with Database(base, root_class=Node) as db, db.transaction() as node:
        node.value = [1]
    before = base.tid
    with temporary_database(base, root_class=Node) as db:
        with db.transaction() as node:
            assert node.value == [1]
            node.value = [2]
        assert db.run(lambda node: node.value) == [2]
    assert base.tid == before
    with Database(base, root_class=Node) as db:  # the base is still open
        assert db.run(lambda node: node.value) == [1]


def test_a_temporary_database_that_cannot_be_opened_leaves_nothing_open() -> None:
    base = MemoryStorage()
    Connection(base)
    with pytest.raises(TypeError), temporary_database(base, root_class=Node):
        pass
    Connection(base)


def test_an_exception_in_a_snapshot_goes_on_whatever_was_changed_in_place() -> None:
    with Database(MemoryStorage(), strict=True) as db:
        with db.transaction() as root:
            root["tags"] = ["new"]
        with pytest.raises(KeyError, match="mine"), db.snapshot() as root:  # noqa: PT012
            root["tags"].append("hot")
            raise KeyError("mine")
        assert db.run(lambda root: root["tags"]) == ["new"]
