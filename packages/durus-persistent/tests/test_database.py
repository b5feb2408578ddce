"""`Database`: opening and closing, history, care, statistics."""

import os
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import pytest

from durus.btree import BTree
from durus.connection import Connection
from durus.database import Database
from durus.database_statistics import ConflictedObject
from durus.error import (
    ClassNotAllowedError,
    ConflictError,
    ForeignReferenceError,
    HistoryUnavailableError,
    NestedTransactionError,
    ReadConflictError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    StorageOpenError,
    TransactionEndedError,
    UndoError,
    UnnotedChangeError,
    WriteConflictError,
    WrongClassError,
)
from durus.interfaces import Oid, Progress, Tid
from durus.persistent import Persistent, oid_of
from durus.persistent_dict import PersistentDict
from durus.schema import upgrade
from durus.storage import MemoryStorage, Storage

T = TypeVar("T")


class Account(Persistent):
    def __init__(self, balance: int = 0) -> None:
        self.balance = balance
        self.tags: list[str] = []


class Bank(Persistent):
    def __init__(self) -> None:
        self.accounts: BTree[str, Account] = BTree()


class OtherRoot(Persistent):
    pass


class Renamed(Account):
    pass


class DictStorage(Storage):
    """A classic storage, without history."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.pending: dict[bytes, bytes] = {}
        self.oids = 0
        self.packs = 0

    def load(self, oid: bytes) -> bytes:
        return self.records[oid]

    def begin(self) -> None:
        self.pending = {}

    def store(self, oid: bytes, record: bytes) -> None:
        self.pending[oid] = record

    def end(self, handle_invalidations: Callable[[Sequence[bytes]], object] | None = None) -> None:
        self.records.update(self.pending)
        self.begin()

    def sync(self) -> Sequence[bytes]:
        return []

    def new_oid(self) -> bytes:
        self.oids += 1
        return (self.oids - 1).to_bytes(8)

    def pack(self) -> None:
        self.packs += 1


class ReadOnlyStorage(MemoryStorage):
    is_readonly = False

    @property
    def readonly(self) -> bool:
        return self.is_readonly


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def db(storage: MemoryStorage) -> Iterator[Database[Bank]]:
    with Database(storage, root_class=Bank) as db:
        db.run(lambda bank: bank.accounts.update(ann=Account(1), bob=Account(1)))
        yield db


def elsewhere(db: Database[Bank], call: Callable[[Bank], T], note: str = "", user: str = "") -> T:
    """Call something in a transaction of another context, as another thread would."""
    return Context().run(lambda: db.run(call, note=note, user=user))


def deposit(bank: Bank, name: str = "ann") -> None:
    bank.accounts[name].balance += 10


def deposit_to_both(bank: Bank) -> None:
    deposit(bank)
    deposit(bank, "bob")


def oid_in(db: Database[Bank], name: str) -> Oid:
    with db.snapshot() as bank:
        oid = oid_of(bank.accounts[name])
    assert oid is not None
    return oid


# Opening


def test_a_database_without_a_root_class_has_a_persistent_dict() -> None:
    with Database(MemoryStorage()) as db:
        with db.transaction() as root:
            root["greeting"] = "hello"
        with db.snapshot() as root:
            assert type(root) is PersistentDict
            assert root["greeting"] == "hello"


def test_a_database_is_opened_by_a_uri() -> None:
    with Database("memory:") as db:
        assert db.run(lambda root: root.update(a=1)) is None
        assert db.run(dict) == {"a": 1}
        assert repr(db) == "Database('memory:')"
        assert isinstance(db.storage, MemoryStorage)


def test_what_cannot_be_opened_is_an_error_of_the_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageOpenError, match="always a new one"):
        Database("memory:", readonly=True)
    with pytest.raises(StorageOpenError, match="always a new one"):
        Database("memory:", create=False)


def test_an_alias_of_a_class_stands_for_the_class(storage: MemoryStorage) -> None:
    with Database(storage, root_class=BTree[str, int]) as db, db.transaction() as root:
        root["a"] = 1
    with Database(storage, root_class=BTree[str, int]) as db:
        assert db.run(lambda root: list(root.items())) == [("a", 1)]


def test_a_root_of_another_class_is_refused_with_both_named(db: Database[Bank]) -> None:
    with pytest.raises(WrongClassError, match=r"test_database\.Bank, not a .*\.OtherRoot"):
        Database(db.storage, root_class=OtherRoot)
    with Database(db.storage) as same:  # no class was asked for
        assert same.run(lambda root: type(root).__name__) == "Bank"


def test_a_root_class_must_be_persistent() -> None:
    wrong: Any = dict
    with pytest.raises(TypeError, match="root_class must be a subclass of PersistentObject"):
        Database(MemoryStorage(), root_class=wrong)


def test_a_storage_that_was_opened_is_closed_when_the_root_is_refused(
    monkeypatch: pytest.MonkeyPatch, db: Database[Bank]
) -> None:
    monkeypatch.setattr("durus.database.open_storage", lambda *args, **options: db.storage)
    with pytest.raises(WrongClassError):
        Database("anywhere", root_class=OtherRoot)
    with pytest.raises(StorageClosedError):
        db.storage.snapshot()


def test_an_empty_database_that_is_read_only_has_no_root_and_gets_none() -> None:
    storage = MemoryStorage()
    with pytest.raises(ReadOnlyError, match="is empty, and open read-only"):
        Database(storage, readonly=True)
    assert storage.tid == 0
    assert storage.reserve_oids(1) == [bytes(8)]


def test_a_database_that_is_read_only_reads_and_changes_nothing(db: Database[Bank]) -> None:
    tid = db.storage.tid
    with Database(db.storage, root_class=Bank, readonly=True) as readonly:
        with readonly.transaction() as bank:
            with pytest.raises(ReadOnlyError, match=r"<Account \d+> cannot be changed: Database"):
                bank.accounts["ann"].balance = 5
            with pytest.raises(ReadOnlyError, match="open read-only"):
                bank.accounts["eve"] = Account()
            assert bank.accounts["ann"].balance == 1
        with pytest.raises(ReadOnlyError, match="open read-only"):
            readonly.undo(tid)
        with pytest.raises(ReadOnlyError, match="open read-only"):
            readonly.pack()
        assert readonly.run(lambda bank: list(bank.accounts)) == ["ann", "bob"]
    assert db.storage.tid == tid
    assert list(db.transactions())


def test_a_storage_that_is_read_only_makes_the_database_so() -> None:
    storage = ReadOnlyStorage()
    with Database(storage, root_class=Bank) as db:
        db.run(lambda bank: bank.accounts.update(ann=Account(1)))
    storage.is_readonly = True
    with (
        Database(storage, root_class=Bank) as db,
        db.transaction() as bank,
        pytest.raises(ReadOnlyError, match="cannot be changed: Database"),
    ):
        bank.accounts["ann"].balance = 2


def test_what_an_upgrade_changes_is_not_stored_in_a_read_only_database(
    db: Database[Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durus.schema_versions._declared", WeakKeyDictionary())

    @upgrade(Account, to=2)
    def add_tag(account: Account) -> None:
        account.tags = ["new"]
        bank = account._p_connection.root  # type: ignore[union-attr]  # that of a Connection
        bank.accounts["bob"].tags = ["changed"]

    tid = db.storage.tid
    with Database(db.storage, root_class=Bank, readonly=True) as readonly:
        for _ in range(2):
            with readonly.transaction() as bank:
                assert bank.accounts["ann"].tags == ["new"]
    assert db.storage.tid == tid


def test_strict_is_what_the_class_says_unless_it_is_given(
    monkeypatch: pytest.MonkeyPatch, storage: MemoryStorage
) -> None:
    def change_in_place(root: PersistentDict[str, Any]) -> None:
        root["a"].append(1)

    with Database(storage) as db:
        db.run(lambda root: root.update(a=[]))
        db.run(change_in_place)
    monkeypatch.setattr(Database, "strict_by_default", True)
    with Database(storage) as db:
        with pytest.raises(UnnotedChangeError):
            db.run(change_in_place)
        snapshot = db.snapshot()
        change_in_place(snapshot.root)
        with pytest.raises(UnnotedChangeError):
            snapshot.close()
        snapshot.close()
        assert db.run(dict) == {"a": []}
    with Database(storage, strict=False) as db:
        db.run(change_in_place)


def test_the_caches_are_as_large_as_they_were_asked_to_be() -> None:
    with Database("memory:", cache_size=7, cache_bytes=8) as db, db.transaction() as root:
        connection: Any = root._p_connection
        assert connection.get_cache_size() == 7
        assert connection.cache.size_bytes_max == 8
    for size, size_bytes in ((0, 8), (7, 0), (7, -5)):
        with pytest.raises(ValueError, match="must be > 0, not"):
            Database("memory:", cache_size=size, cache_bytes=size_bytes)


def test_records_name_what_is_allowed_and_aliases_say_how_it_is_called_now(
    db: Database[Bank],
) -> None:
    with Database(db.storage, root_class=Bank, allow=["argparse.Namespace"]) as allowing:
        with allowing.transaction() as bank:
            bank.accounts["ann"].tags = Namespace(a=1)  # type: ignore[assignment]  # for once
        assert allowing.run(lambda bank: bank.accounts["ann"].balance) == 1
    with (
        Database(db.storage, aliases={f"{__name__}.Account": f"{__name__}.Renamed"}) as other,
        other.snapshot() as root,
    ):
        accounts: Any = root.accounts  # type: ignore[attr-defined]  # it is a Bank
        assert type(accounts["bob"]) is Renamed
        assert accounts["bob"].balance == 1
        with pytest.raises(ClassNotAllowedError, match=r"argparse\.Namespace"):
            accounts["ann"].balance  # noqa: B018


# Closing


def test_a_storage_that_was_given_stays_open(storage: MemoryStorage) -> None:
    with Database(storage) as db:
        pass
    assert db.stats().connections == 0
    with pytest.raises(StorageClosedError, match=r"Database\('<MemoryStorage .*'\) is closed"):
        db.run(len)
    storage.snapshot().close()


def test_a_storage_that_was_opened_is_closed() -> None:
    with Database("memory:") as db:
        pass
    with pytest.raises(StorageClosedError):
        db.storage.snapshot()
    db.close()


def test_what_is_open_when_a_database_is_closed_can_no_longer_be_used(
    storage: MemoryStorage,
) -> None:
    db = Database(storage, root_class=Bank)
    db.run(lambda bank: bank.accounts.update(ann=Account(1), bob=Account(1)))
    tx, snapshot, late = db.transaction(), db.snapshot(), db.transaction()
    bank = tx.root
    bank.accounts["ann"].balance = 2
    seen = snapshot.root
    tid = storage.tid
    db.close()
    for call in (
        tx.commit,
        lambda: tx.root,
        lambda: tx.get(0),
        tx.savepoint,
        lambda: tx.on_commit(print),
        lambda: bank.accounts["bob"].balance,
        lambda: setattr(bank, "accounts", None),
        lambda: seen.accounts,
        lambda: snapshot.tid,
        lambda: late.root,
        db.transactions,
        lambda: db.undo(tid),
        db.pack,
        lambda: db.backup("nowhere"),
    ):
        with pytest.raises(StorageClosedError):
            call()
    tx.abort()
    snapshot.close()
    assert storage.tid == tid
    assert db.stats().connections == 0


def test_a_transaction_that_is_open_at_the_end_is_aborted_by_its_block(
    storage: MemoryStorage,
) -> None:
    db = Database(storage, root_class=Bank)
    tid = storage.tid

    def add_and_close() -> None:
        with db.transaction() as bank:
            bank.accounts["ann"] = Account()
            db.close()

    with pytest.raises(StorageClosedError):
        add_and_close()
    assert storage.tid == tid


# History


def test_transactions_are_listed_with_what_they_were_given(db: Database[Bank]) -> None:
    elsewhere(db, deposit, note="pay", user="ann")
    elsewhere(db, lambda bank: deposit(bank, "bob"), note="more")
    *_, pay, more = db.transactions()
    assert (pay.note, pay.user, more.note, more.user) == ("pay", "ann", "more", "")
    assert [t.note for t in db.transactions(pay.tid)] == ["pay", "more"]
    assert [t.note for t in db.transactions(pay.tid, more.tid)] == ["pay"]
    past = datetime(2000, 1, 1, tzinfo=UTC)
    assert len(list(db.transactions(past))) == 4
    assert list(db.transactions(stop=past)) == []


def test_history_gives_the_states_of_an_object_newest_first(db: Database[Bank]) -> None:
    elsewhere(db, deposit, note="pay", user="ann")
    with db.snapshot() as bank:
        newest, first = db.history(bank.accounts["ann"])
        assert (newest.note, newest.user, newest.load().balance) == ("pay", "ann", 11)
        assert first.load().balance == 1
        assert newest.tid > first.tid
        assert newest.time.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - newest.time) < timedelta(days=1)
        assert newest.load()._p_connection is None
    elsewhere(db, lambda bank: deposit(bank, "bob"))
    db.pack()
    with db.snapshot() as bank:
        (only,) = db.history(bank.accounts["ann"])
        assert (only.note, only.user, only.load().balance) == ("", "", 11)
        assert only.time >= newest.time


def test_the_time_of_a_state_is_that_of_the_clock(
    db: Database[Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("durus.changes.time.time_ns", lambda: 5 * 10**9)  # it was set back
        elsewhere(db, deposit)
    with db.snapshot() as bank:
        newest, first = db.history(bank.accounts["ann"])
    assert newest.time == datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)
    assert newest.tid > first.tid


def test_an_object_that_was_never_stored_has_no_history(db: Database[Bank]) -> None:
    with pytest.raises(ForeignReferenceError, match="never stored"):
        db.history(Account())


def test_the_history_of_an_object_of_others_or_of_what_has_ended_is_refused(
    db: Database[Bank],
) -> None:
    with Connection(db.storage) as connection, pytest.raises(ForeignReferenceError, match="not of"):
        db.history(connection.root)
    with db.snapshot() as bank:
        ann = bank.accounts["ann"]
    with pytest.raises(TransactionEndedError):
        db.history(ann)


def test_changes_are_those_after_a_transaction(db: Database[Bank]) -> None:
    oid = oid_in(db, "ann")
    since = db.storage.tid
    assert list(db.changes(since)) == []
    elsewhere(db, deposit, note="pay")
    (change,) = db.changes(since)
    assert (change.note, list(change.oids)) == ("pay", [oid])
    waiting = db.changes(change.tid, timeout_s=None)
    thread = threading.Thread(target=db.run, args=(deposit,), kwargs={"note": "later"})
    thread.start()
    assert next(waiting).note == "later"
    thread.join()


def test_undo_writes_again_what_stood_there_before(db: Database[Bank]) -> None:
    elsewhere(db, deposit)
    tid = db.storage.tid
    undone = db.undo(tid, note="oops", user="ann")
    assert undone == db.storage.tid > tid
    *_, last = db.transactions()
    assert (last.note, last.user) == ("oops", "ann")
    assert db.run(lambda bank: bank.accounts["ann"].balance) == 1
    with pytest.raises(UndoError, match="changed later"):
        db.undo(tid)
    wrong: Any = "1"
    with pytest.raises(TypeError, match=r"a tid is a number, .*, and not '1'"):
        db.undo(wrong)


def test_a_storage_without_history_says_so() -> None:
    with Database(DictStorage(), root_class=Bank) as db:
        for call in (
            db.transactions,
            lambda: db.changes(Tid(0)),
            lambda: db.undo(Tid(1)),
            lambda: db.pack(keep=timedelta(days=1)),
            lambda: db.snapshot(at=timedelta(0)).root,
            lambda: db.run(lambda bank: list(db.history(bank))),
        ):
            with pytest.raises(HistoryUnavailableError, match="keeps no history"):
                call()


# Care


def test_pack_keeps_what_it_is_told_to_keep(db: Database[Bank]) -> None:
    elsewhere(db, deposit, note="old")
    kept = db.storage.tid
    elsewhere(db, deposit, note="new")
    elsewhere(db, deposit, note="newest")
    told: list[tuple[int, int]] = []
    db.pack(keep=kept, progress=lambda done, total: told.append((done, total)))
    assert told
    assert all(type(number) is int for pair in told for number in pair)
    assert [t.note for t in db.transactions()] == ["old", "new", "newest"]
    with db.snapshot(at=kept) as bank:
        assert bank.accounts["ann"].balance == 11
    db.pack()
    assert [t.note for t in db.transactions()] == ["newest"]


def test_what_a_pack_has_removed_does_not_look_as_if_it_were_still_there(
    db: Database[Bank],
) -> None:
    oid = oid_in(db, "bob")
    was_open, was_idle = db.transaction(), db.snapshot()
    assert was_open.get(oid, Account).balance == 1
    assert was_idle.get(oid, Account).balance == 1
    was_idle.close()
    elsewhere(db, lambda bank: bank.accounts.__delitem__("bob"))
    db.pack()
    assert was_open.get(oid, Account).balance == 1
    was_open.abort()
    first, second = db.snapshot(), db.snapshot()
    assert first.get(oid) is second.get(oid) is None
    first.close()
    second.close()


def test_a_classic_storage_is_packed() -> None:
    storage = DictStorage()
    with Database(storage) as db:
        db.pack()
    assert storage.packs == 1


def test_what_is_no_log_file_cannot_be_backed_up(db: Database[Bank], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"Database\(.*that is for log files.*durus convert"):
        db.backup(tmp_path)
    with Database(DictStorage()) as classic, pytest.raises(StorageError, match="durus convert"):
        classic.backup(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_backup_is_left_to_the_storage(tmp_path: Path) -> None:
    class BackupStorage(MemoryStorage):
        def backup(
            self,
            folder: str | os.PathLike[str],
            *,
            progress: Callable[[Progress], None] | None = None,
        ) -> None:
            assert progress is not None
            progress(Progress(str(folder), 1, 2))

    told: list[tuple[int, int]] = []
    with Database(BackupStorage()) as db:
        db.backup(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2)]


# Statistics


def test_transactions_are_counted_by_how_they_end(db: Database[Bank]) -> None:
    before = db.stats()
    elsewhere(db, deposit)
    elsewhere(db, deposit)
    elsewhere(db, lambda bank: bank.accounts["ann"].balance)
    tx = db.transaction()
    assert tx.root.accounts
    tx.abort()
    tx.abort()
    db.transaction().abort()  # it has not begun
    db.transaction().commit()
    with db.snapshot():
        pass
    after = db.stats()
    assert after.commits - before.commits == 2
    assert after.reads - before.reads == 2
    assert after.aborts - before.aborts == 1
    assert after.conflicts == 0
    assert after.conflicts_by_class == {}
    assert after.hottest == ()


def test_conflicts_are_counted_by_class_and_object(db: Database[Bank]) -> None:
    oids = {name: oid_in(db, name) for name in ("ann", "bob")}
    for name in ("ann", "bob", "ann"):
        tx = db.transaction()
        tx.root.accounts[name].balance = 0
        elsewhere(db, lambda bank, name=name: deposit(bank, name))  # type: ignore[misc]  # default
        with pytest.raises(WriteConflictError):
            tx.commit()
        tx.abort()
    tx = db.transaction()
    tx.root.accounts["eve"] = Account()
    elsewhere(db, lambda bank: bank.accounts.update(joe=Account()))
    with pytest.raises(WriteConflictError):
        tx.commit()
    tx.abort()
    stats = db.stats()
    assert stats.conflicts == 4
    assert stats.aborts == 4
    assert list(stats.conflicts_by_class.items()) == [
        (f"{__name__}.Account", 3),
        ("durus.btree.BNode16", 1),
    ]
    assert stats.hottest[:2] == (
        ConflictedObject(oids["ann"], f"{__name__}.Account", 2),
        ConflictedObject(oids["bob"], f"{__name__}.Account", 1),
    )
    assert str(stats.hottest[0]) == f"{__name__}.Account {int.from_bytes(oids['ann'])}: 2"


def test_a_conflict_about_which_nothing_is_known_is_counted(db: Database[Bank]) -> None:
    db._statistics.note_conflict(ConflictError())
    assert db.stats().conflicts == 1
    assert db.stats().conflicts_by_class == {"?": 1}
    assert db.stats().hottest == ()


def test_the_objects_that_are_counted_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durus.database_statistics._OBJECTS_MAX", 10)
    with Database(MemoryStorage(), root_class=BTree[int, Account]) as db:
        db.run(lambda root: root.update((number, Account()) for number in range(20)))
        for number in (5, *range(20)):
            tx = db.transaction()
            tx.root[number].balance += 1
            Context().run(db.run, lambda root, n=number: setattr(root[n], "balance", 7))
            with pytest.raises(WriteConflictError):
                tx.commit()
            tx.abort()
        assert db.stats().conflicts == 21
        assert len(db._statistics._by_object) <= 10
        assert db.stats().hottest[0].conflicts == 2
        assert len(db.stats().hottest) <= 10


def test_idle_connections_are_counted_with_what_they_hold(db: Database[Bank]) -> None:
    with Database(db.storage, root_class=Bank) as cold:
        assert cold.stats().cached_bytes < 200
        with cold.snapshot() as bank:
            assert bank.accounts["ann"].balance
            assert cold.stats().connections == 0
        stats = cold.stats()
        assert stats.connections == 1
        assert stats.cached_objects == 5  # the bank, its tree, the node, two accounts
        assert stats.loads == 4  # all but one account
        assert stats.cached_bytes > 200


def test_a_child_that_is_forked_counts_though_another_thread_was_counting(
    db: Database[Bank],
) -> None:
    lock = db._statistics._lock
    with lock:
        child = os.fork()
        if not child:
            try:
                db._statistics.note_abort()
                os._exit(0)
            finally:
                os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert db.stats().aborts == 0


# A storage without history


def test_a_classic_storage_follows_the_classic_rule() -> None:
    with Database(DictStorage(), root_class=Bank) as db:
        db.run(lambda bank: bank.accounts.update(ann=Account(1), bob=Account(1)))
        cold = Database(db.storage, root_class=Bank)
        with cold.snapshot() as bank:
            ann, bob = bank.accounts["ann"], bank.accounts["bob"]
            elsewhere(db, lambda bank: deposit(bank, "bob"))
            assert bob.balance == 11  # nothing that was read has changed, so it moved on
            assert ann.balance == 1
        cold = Database(db.storage, root_class=Bank)
        with cold.snapshot() as bank:
            ann, bob = bank.accounts["ann"], bank.accounts["bob"]
            assert ann.balance == 1
            elsewhere(db, deposit_to_both)
            with pytest.raises(ReadConflictError, match=rf"{__name__}\.Account \d+$"):
                bob.balance  # noqa: B018
            assert ann.balance == 1
        tx = db.transaction()
        deposit(tx.root)
        elsewhere(db, deposit)
        with pytest.raises(WriteConflictError) as caught:
            tx.commit()
        tx.abort()
        (conflict,) = caught.value.conflicts
        assert (conflict.class_name, conflict.transaction) == (f"{__name__}.Account", None)
        assert db.run(lambda bank: [a.balance for a in bank.accounts.values()]) == [21, 21]
        assert db.stats().conflicts_by_class == {f"{__name__}.Account": 1}


def test_nested_transactions_of_two_databases_are_no_error(db: Database[Bank]) -> None:
    with Database("memory:") as other:
        with db.transaction() as bank, other.transaction() as root:
            deposit(bank)
            root["a"] = 1
            with pytest.raises(NestedTransactionError):
                db.run(deposit)
        assert other.run(len) == 1
