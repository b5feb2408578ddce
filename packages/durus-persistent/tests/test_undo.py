"""Undo, with connections and over a storage that packs at a bad moment."""

from collections.abc import Callable, Iterator

import pytest

from durus.classic import ClassicAdapter
from durus.classic_storage import Storage as ClassicStorage
from durus.connection import Connection
from durus.error import (
    DurusError,
    HistoryUnavailableError,
    StorageClosedError,
    StorageError,
    UndoError,
)
from durus.history import undo
from durus.interfaces import ROOT_OID, CommitResult, Tid, Transaction
from durus.oid_set import BLOCKS_MAX
from durus.persistent import Persistent
from durus.storage import MemoryStorage
from durus.testing.storage_contract import commit, create, make_record, value


class Account(Persistent):
    def __init__(self, balance: int) -> None:
        self.balance = balance


@pytest.fixture
def storage() -> Iterator[MemoryStorage]:
    with MemoryStorage() as storage:
        yield storage


@pytest.fixture
def connection(storage: MemoryStorage) -> Iterator[Connection]:
    with Connection(storage) as connection:
        for name in ("ann", "bob"):
            connection.root[name] = Account(0)
        connection.commit()
        yield connection


def deposit(connection: Connection, name: str, balance: int, note: str = "") -> Tid:
    connection.root[name].balance = balance
    connection.note = note
    tid = connection.commit()
    assert tid is not None
    return tid


def test_a_connection_undoes_and_sees_the_result(connection: Connection) -> None:
    deposit(connection, "ann", 1)
    tid = deposit(connection, "ann", 2)
    deposit(connection, "bob", 7)
    connection.root["bob"].balance = 8  # given up
    undone = connection.undo(tid)
    assert connection.tid == undone > tid
    assert [connection.root[name].balance for name in ("ann", "bob")] == [1, 7]
    connection.undo(undone)
    assert connection.root["ann"].balance == 2


def test_the_note_says_what_was_undone(connection: Connection) -> None:
    connection.user = "ann"
    noted, plain = deposit(connection, "ann", 2, "pay day"), deposit(connection, "bob", 2)
    notes = []
    for tid in (noted, plain):
        connection.undo(tid)
        assert connection.transaction is not None
        notes.append((connection.transaction.user, connection.transaction.note))
    assert notes == [("ann", "undo of pay day"), ("ann", f"undo of {plain}")]
    connection.note = "a mistake"
    connection.undo(connection.tid)
    assert connection.transaction is not None
    assert connection.transaction.note == "a mistake"
    assert connection.note == ""


def test_the_error_says_which_later_transaction_it_was(
    storage: MemoryStorage, connection: Connection
) -> None:
    tid = deposit(connection, "ann", 1)
    deposit(connection, "ann", 2)
    later = deposit(connection, "ann", 3)
    with pytest.raises(UndoError, match=rf"{tid} cannot .* transaction {later}.* oids=\[1\]") as e:
        undo(storage, tid)
    assert isinstance(e.value, StorageError)
    assert isinstance(e.value, DurusError)
    assert (e.value.tid, e.value.oids) == (tid, [connection.root["ann"]._p_oid])
    assert str(later) in e.value.reason
    connection.abort()
    assert connection.root["ann"].balance == 3


def test_when_it_is_refused_uncommitted_changes_stay(connection: Connection) -> None:
    tid = deposit(connection, "ann", 1)
    deposit(connection, "ann", 2)
    connection.root["bob"].balance = 7
    connection.note = "not yet"
    with pytest.raises(UndoError):
        connection.undo(tid)
    assert (connection.root["bob"].balance, connection.note) == (7, "not yet")
    connection.commit()
    with Connection(connection.storage) as other:
        assert other.root["bob"].balance == 7


def test_after_close_nothing_is_undone(storage: MemoryStorage, connection: Connection) -> None:
    tid = deposit(connection, "ann", 1)
    connection.close()
    with pytest.raises(StorageClosedError):
        connection.undo(tid)
    assert storage.tid == tid


def test_what_was_created_stays_as_long_as_somebody_refers_to_it(
    storage: MemoryStorage, connection: Connection
) -> None:
    connection.root["eve"] = Account(5)
    tid = connection.commit()
    assert tid is not None
    eve = connection.root["eve"]
    connection.root["bob"].friend = eve
    connection.commit()
    connection.undo(tid)
    assert "eve" not in connection.root
    connection.pack()
    assert connection.root["bob"].friend.balance == 5


def test_a_storage_without_history_says_so() -> None:
    class ForgetfulStorage(ClassicStorage):
        def __init__(self) -> None:
            pass

        def __str__(self) -> str:
            return "forgetful"

    storage = ForgetfulStorage()
    for each in (storage, ClassicAdapter(storage)):
        with pytest.raises(HistoryUnavailableError, match=r"^forgetful cannot undo.*a log or an S"):
            undo(each, Tid(1))


class RacingStorage(MemoryStorage):
    """Somebody else is faster: `race` happens just before the next commit."""

    race: Callable[[], object] | None = None
    attempts = 0
    """How often it was tried to commit what the race is against."""

    def commit(self, transaction: Transaction) -> CommitResult:
        race, self.race = self.race, None
        if race:
            race()
            self.attempts = 0
        self.attempts += 1
        return super().commit(transaction)


def test_somebody_who_is_faster_is_noticed() -> None:
    with RacingStorage() as storage:
        a, b = create(storage, 2)
        tid = commit(storage, {a: make_record(1)}).tid
        storage.race = lambda: commit(storage, {a: make_record(2)})
        with pytest.raises(UndoError, match=r"changed later.*oids=\[1\]"):
            undo(storage, tid)
        assert value(storage, a) == 2
        tid = commit(storage, {a: make_record(3)}).tid
        storage.race = lambda: commit(storage, {b: make_record(2)})
        undo(storage, tid)
        assert (value(storage, a), value(storage, b)) == (2, 2)


def test_a_pack_that_is_faster_is_noticed() -> None:
    with RacingStorage() as storage:
        a, b, c = create(storage, 3)
        drop_b = commit(storage, {ROOT_OID: make_record("no b", [a, c])}).tid
        storage.race = storage.pack
        with pytest.raises(UndoError, match=r"refers to objects that a pack.*oids=\[2\]") as caught:
            undo(storage, drop_b)
        assert caught.value.oids == [b]
        assert value(storage, ROOT_OID) == "no b"


def test_an_object_that_a_pack_has_just_removed_is_named() -> None:
    with RacingStorage() as storage:
        a, b = create(storage, 2)
        commit(storage, {ROOT_OID: make_record("no b", [a])})
        change_both = commit(storage, {a: make_record(1), b: make_record(1)}).tid
        storage.race = storage.pack
        with pytest.raises(UndoError, match=r"removed some of its objects, oids=\[2\]"):
            undo(storage, change_both)
        assert value(storage, a) == 1


def test_a_large_transaction_conflicts_only_with_what_it_wrote() -> None:
    with RacingStorage() as storage:
        a, *many = create(storage, 2 * BLOCKS_MAX)
        tid = commit(storage, dict.fromkeys(many, make_record(1))).tid
        last = commit(storage, {a: make_record(1)}).tid
        storage.race = lambda: commit(storage, {a: make_record(2)})
        undo(storage, tid)
        assert {value(storage, oid) for oid in many} == {0}
        assert storage.attempts == 1
        assert len(list(storage.transactions(last))) == 3
