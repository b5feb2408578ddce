"""Transactions and snapshots of a `Database`: begin, commit, abort, conflicts, nesting, copies."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NoReturn, TypeVar

import pytest

from durus.blob import Blob
from durus.blob_spool import Spooled
from durus.btree import BTree
from durus.cache import Cache
from durus.conflicts import Conflict, find_conflicts
from durus.connection import Connection
from durus.database import Database, Transaction
from durus.error import (
    ConflictError,
    DurusKeyError,
    ForeignReferenceError,
    HistoryUnavailableError,
    NestedTransactionError,
    ReadOnlyError,
    StorageError,
    TransactionEndedError,
    UnstorableError,
    WriteConflictError,
    WrongClassError,
)
from durus.interfaces import CommitResult, Oid, Tid
from durus.interfaces import Snapshot as StorageSnapshot
from durus.interfaces import Transaction as StoredTransaction
from durus.persistent import Persistent, PersistentObject, oid_of
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.storage import MemoryStorage

T = TypeVar("T")


class Account(Persistent):
    def __init__(self, balance: int = 0) -> None:
        self.balance = balance
        self.other: Any = None


class Bank(Persistent):
    def __init__(self) -> None:
        self.ann = Account(1)
        self.bob = Account(1)
        self.more: PersistentDict[str, Any] = PersistentDict()


class FullStorage(MemoryStorage):
    """A storage on a disk that fills up."""

    is_full = False
    is_lost = False

    def commit(self, transaction: StoredTransaction) -> CommitResult:
        if self.is_full:
            raise StorageError("the disk is full")
        return super().commit(transaction)

    def snapshot(self, at: Tid | None = None) -> StorageSnapshot:
        if self.is_lost:
            raise StorageError("the disk is gone")
        return super().snapshot(at)


@pytest.fixture
def storage() -> FullStorage:
    return FullStorage()


@pytest.fixture
def db(storage: FullStorage) -> Iterator[Database[Bank]]:
    with Database(storage, root_class=Bank) as db:
        yield db


def elsewhere(db: Database[Bank], call: Callable[[Bank], T], note: str = "", user: str = "") -> T:
    """Call something in a transaction of another context, as another thread would."""
    return Context().run(lambda: db.run(call, note=note, user=user))


def deposit(bank: Bank) -> None:
    bank.ann.balance += 10


def balance(db: Database[Bank]) -> int:
    return elsewhere(db, lambda bank: bank.ann.balance)


def oid(obj: PersistentObject) -> Oid:
    found = oid_of(obj)
    assert found is not None
    return found


# Transactions


def test_a_transaction_commits_at_the_end_of_its_block(db: Database[Bank]) -> None:
    with db.transaction(note="pay", user="ann") as bank:
        deposit(bank)
        assert balance(db) == 1
    assert balance(db) == 11
    *_, last = db.transactions()
    assert (last.note, last.user) == ("pay", "ann")


def test_a_transaction_is_aborted_when_an_exception_ends_its_block(db: Database[Bank]) -> None:
    tid = db.storage.tid
    new = Account()

    def pay_and_fail() -> None:
        with db.transaction() as bank:
            deposit(bank)
            bank.more["new"] = new
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        pay_and_fail()
    assert db.storage.tid == tid
    assert (oid_of(new), new._p_connection) == (None, None)
    with db.transaction() as bank:
        assert bank.ann.balance == 1
        assert dict(bank.more) == {}


def test_a_transaction_that_was_ended_in_its_block_is_left_alone_at_the_end(
    db: Database[Bank],
) -> None:
    for end, expected in ((Transaction.commit, 11), (Transaction.abort, 11)):
        with (tx := db.transaction()) as bank:
            deposit(bank)
            end(tx)
        assert balance(db) == expected


def test_a_commit_that_fails_aborts_at_the_end_of_a_block(
    db: Database[Bank], storage: FullStorage
) -> None:
    def pay() -> None:
        with tx as bank:
            deposit(bank)
            storage.is_full = True

    tx = db.transaction()
    with pytest.raises(StorageError, match="disk is full"):
        pay()
    storage.is_full = False
    with pytest.raises(TransactionEndedError):
        tx.commit()
    assert balance(db) == 1
    assert db.run(lambda bank: bank.ann.balance) == 1
    assert db.stats().connections == 1


def test_a_commit_that_fails_leaves_a_transaction_open(
    db: Database[Bank], storage: FullStorage
) -> None:
    tx = db.transaction()
    tx.note = "at last"
    deposit(tx.root)
    storage.is_full = True
    with pytest.raises(StorageError, match="disk is full"):
        tx.commit()
    assert [tx.tid] == [None]
    assert tx.root.ann.balance == 11
    storage.is_full = False
    assert tx.commit() == tx.tid == storage.tid
    assert balance(db) == 11
    *_, last = db.transactions()
    assert last.note == "at last"


def test_an_error_in_the_note_leaves_a_transaction_open(db: Database[Bank]) -> None:
    tx = db.transaction()
    deposit(tx.root)
    tx.note = "\udc80"
    with pytest.raises(ValueError, match="cannot be stored as a user or note"):
        tx.commit()
    tx.note = "fine"
    assert tx.commit()


def test_note_and_user_may_be_set_until_the_commit(db: Database[Bank]) -> None:
    tx = db.transaction(note="first", user="nobody")
    assert "'first' by 'nobody'" in repr(tx)
    deposit(tx.root)
    tx.note, tx.user = "pay", "ann"
    tx.commit()
    *_, last = db.transactions()
    assert (last.note, last.user) == ("pay", "ann")
    with db.transaction() as bank:  # in the same connection
        deposit(bank)
    *_, last = db.transactions()
    assert (last.note, last.user) == ("", "")


def test_the_tid_is_that_of_the_commit(db: Database[Bank]) -> None:
    tx = db.transaction()
    deposit(tx.root)
    assert [tx.tid] == [None]
    assert tx.commit() == tx.tid == db.storage.tid
    reading = db.transaction()
    assert reading.root.ann.balance == 11
    assert reading.commit() is reading.tid is None
    assert tx.tid == db.storage.tid


def test_a_commit_of_nothing_never_fails(db: Database[Bank]) -> None:
    tx = db.transaction()
    assert tx.root.ann.balance == 1
    elsewhere(db, deposit)
    assert tx.root.bob.balance == 1
    assert tx.root.ann.balance == 1
    assert tx.commit() is None


def test_a_second_commit_is_an_error_and_a_second_abort_is_none(db: Database[Bank]) -> None:
    tx = db.transaction()
    deposit(tx.root)
    tx.commit()
    with pytest.raises(TransactionEndedError, match=r"<transaction of .*> has ended"):
        tx.commit()
    tx.abort()
    tx.abort()
    assert balance(db) == 11
    aborted = db.transaction()
    deposit(aborted.root)
    aborted.abort()
    aborted.abort()
    with pytest.raises(TransactionEndedError, match="begin another one"):
        aborted.commit()
    assert balance(db) == 11


@pytest.mark.parametrize("end", [Transaction.commit, Transaction.abort])
def test_nothing_of_a_transaction_can_be_used_after_its_end(
    db: Database[Bank], end: Callable[[Transaction[Bank]], object]
) -> None:
    tx = db.transaction()
    bank = tx.root
    ann, bob, more = bank.ann, bank.bob, bank.more
    assert ann.balance == 1
    savepoint = tx.savepoint()
    end(tx)
    of_objects: list[Callable[[], object]] = [
        lambda: ann.balance,
        lambda: setattr(ann, "balance", 2),
        lambda: delattr(ann, "other"),
        lambda: bob.balance,
        lambda: more.get("a"),
        lambda: more.update(a=1),
        lambda: bank.ann,
    ]
    for call in of_objects:
        with pytest.raises(TransactionEndedError, match=r"<\w+ \d+> was used after the end"):
            call()
    of_transaction: list[Callable[[], object]] = [
        lambda: tx.root,
        lambda: tx.get(0),
        lambda: tx.on_commit(print),
        lambda: tx.copy(Account()),
        tx.savepoint,
        tx.__enter__,
        savepoint.rollback,
    ]
    for call in of_transaction:
        with pytest.raises(TransactionEndedError, match="has ended"):
            call()
    assert balance(db) == 1


def test_a_transaction_begins_when_it_is_first_used(db: Database[Bank]) -> None:
    tx, entered = db.transaction(), db.transaction()
    assert db.stats().connections == 1
    elsewhere(db, deposit)
    with entered as bank:
        elsewhere(db, deposit)
        assert bank.ann.balance == 11
    assert tx.root.ann.balance == 21
    assert db.stats().connections == 1
    tx.abort()
    never = db.transaction()
    never.abort()
    with pytest.raises(TransactionEndedError):
        never.root  # noqa: B018


def test_a_transaction_that_cannot_begin_loses_nothing(
    db: Database[Bank], storage: FullStorage
) -> None:
    tx = db.transaction()
    storage.is_lost = True
    with pytest.raises(StorageError, match="disk is gone"):
        tx.root  # noqa: B018
    storage.is_lost = False
    deposit(tx.root)
    tx.commit()
    assert balance(db) == 11


# Conflicts


def test_a_conflict_names_the_objects_and_who_changed_them(db: Database[Bank]) -> None:
    tx = db.transaction()
    deposit(tx.root)
    elsewhere(db, deposit, note="first")
    elsewhere(db, deposit, note="pay", user="bob")
    with pytest.raises(WriteConflictError) as caught:
        tx.commit()
    error, other = caught.value, list(db.transactions())[-1]
    assert error.oids == [oid(tx.root.ann)]
    assert error.conflicts == (Conflict(oid(tx.root.ann), f"{__name__}.Account", other),)
    when = datetime.fromtimestamp(other.time_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
    text = str(error)
    assert f"{__name__}.Account {int.from_bytes(oid(tx.root.ann))} was changed by" in text
    assert f"transaction {other.tid} at {when}" in text
    assert text.endswith("by 'bob' ('pay')")
    tx.abort()
    assert balance(db) == 21


def test_a_conflict_by_somebody_without_user_and_note_shows_none(db: Database[Bank]) -> None:
    tx = db.transaction()
    deposit(tx.root)
    elsewhere(db, deposit)
    with pytest.raises(WriteConflictError, match=r"at \d{4}-.*\+00:00$"):
        tx.commit()
    tx.abort()


def test_what_is_known_of_a_conflict_is_told_though_something_is_not(db: Database[Bank]) -> None:
    removed = Oid((99).to_bytes(8))
    with db.snapshot() as bank:
        ann = oid(bank.ann)
    missing, known = find_conflicts(db.storage, Cache(1), [removed, ann])
    assert missing == Conflict(removed, None, None)
    assert str(missing) == "object 99"
    assert known.class_name == f"{__name__}.Account"
    assert known.transaction is not None
    assert known.transaction.tid == db.storage.tid
    db.storage.close()
    assert find_conflicts(db.storage, Cache(1), [ann]) == (Conflict(ann, None, None),)


def test_of_many_conflicts_some_are_told(db: Database[Bank]) -> None:
    oids = [Oid(number.to_bytes(8)) for number in range(20)]
    assert len(find_conflicts(db.storage, Cache(1), oids)) == 10


def test_write_skew_is_refused(db: Database[Bank]) -> None:
    ann_pays, bob_pays = db.transaction(), db.transaction()
    ann_sees, bob_sees = (Context().run(tx.__enter__) for tx in (ann_pays, bob_pays))
    assert ann_sees.ann.balance + ann_sees.bob.balance == 2
    assert bob_sees.ann.balance + bob_sees.bob.balance == 2
    ann_sees.ann.balance -= 2
    bob_sees.bob.balance -= 2
    ann_pays.commit()
    with pytest.raises(WriteConflictError) as caught:
        bob_pays.commit()
    assert caught.value.oids == [oid(bob_pays.root.ann)]
    bob_pays.abort()
    assert elsewhere(db, lambda bank: (bank.ann.balance, bank.bob.balance)) == (-1, 1)


# Snapshots


def test_a_snapshot_never_changes(db: Database[Bank]) -> None:
    with db.snapshot() as bank:
        assert bank.ann.balance == 1
        for _ in range(100):
            elsewhere(db, deposit)
        elsewhere(db, lambda bank: setattr(bank.bob, "balance", 5))
        assert (bank.ann.balance, bank.bob.balance) == (1, 1)
    with db.snapshot() as bank:
        assert (bank.ann.balance, bank.bob.balance) == (1001, 5)


def test_a_snapshot_is_of_its_first_use_and_knows_its_tid(db: Database[Bank]) -> None:
    snapshot = db.snapshot()
    elsewhere(db, deposit)
    tid = db.storage.tid
    assert snapshot.root.ann.balance == 11
    elsewhere(db, deposit)
    assert snapshot.tid == tid
    snapshot.close()


def test_a_snapshot_survives_a_pack(db: Database[Bank]) -> None:
    cold: Database[Bank] = Database(db.storage, root_class=Bank)
    at = db.storage.tid
    with cold.snapshot() as now, cold.snapshot(at=at) as then:
        elsewhere(db, deposit)
        elsewhere(db, lambda bank: bank.more.update(bob=None))
        elsewhere(db, lambda bank: setattr(bank, "bob", bank.ann))
        db.pack()
        for bank in (now, then):
            assert (bank.ann.balance, bank.bob.balance, dict(bank.more)) == (1, 1, {})
            assert bank.bob is not bank.ann


def test_an_assignment_in_a_snapshot_is_refused_at_once(db: Database[Bank]) -> None:
    with db.snapshot() as bank:
        ann = bank.ann
        with pytest.raises(ReadOnlyError, match=r"<Account \d+> cannot .*<snapshot of Data.* read"):
            ann.balance = 5
        with pytest.raises(ReadOnlyError, match="change the object in a transaction"):
            del ann.balance
        with pytest.raises(ReadOnlyError, match=r"<PersistentDict \d+> cannot be changed"):
            bank.more["a"] = 1
        assert ann.balance == 1
        assert not ann._p_changed
    with db.snapshot(at=timedelta(0)) as bank, pytest.raises(ReadOnlyError, match=r"at 0:00:00"):
        bank.ann.balance = 5
    assert balance(db) == 1


def test_a_snapshot_is_closed_as_often_as_you_like(db: Database[Bank]) -> None:
    for snapshot in (db.snapshot(), db.snapshot(at=db.storage.tid)):
        bank = snapshot.root
        snapshot.close()
        snapshot.close()
        with pytest.raises(TransactionEndedError):
            bank.ann  # noqa: B018
        with pytest.raises(TransactionEndedError):
            snapshot.tid  # noqa: B018
    never = db.snapshot()
    never.close()
    with pytest.raises(TransactionEndedError, match=r"<snapshot of .*> has ended"):
        never.root  # noqa: B018
    assert db.stats().connections == 1


def test_a_snapshot_of_the_past_is_given_by_tid_time_or_age(db: Database[Bank]) -> None:
    tid = db.storage.tid
    elsewhere(db, deposit)
    later = db.storage.tid
    elsewhere(db, deposit)
    for at, expected in (
        (tid, 1),
        (later - 1, 1),
        (later, 11),
        (datetime.now(UTC) + timedelta(days=1), 21),
        (timedelta(0), 21),
    ):
        snapshot = db.snapshot(at=at)
        with snapshot as bank:
            assert bank.ann.balance == expected
    with db.snapshot(at=later) as bank:
        elsewhere(db, deposit)
        assert bank.ann.balance == 11
    for at in (timedelta(days=1), datetime(2000, 1, 1, tzinfo=UTC)):
        with pytest.raises(HistoryUnavailableError, match="had no root at tid"):
            db.snapshot(at=at).root  # noqa: B018
    db.pack()
    with pytest.raises(HistoryUnavailableError, match="packed away"):
        db.snapshot(at=tid).root  # noqa: B018
    with pytest.raises(ValueError, match="no time zone"):
        db.snapshot(at=datetime(2000, 1, 1)).root  # noqa: B018


def test_a_snapshot_of_the_past_serves_nobody_else(db: Database[Bank]) -> None:
    tid = db.storage.tid
    elsewhere(db, deposit)
    with db.snapshot(at=tid) as bank:
        assert bank.ann.balance == 1
    assert db.run(lambda bank: bank.ann.balance) == 11
    db.run(deposit)
    assert balance(db) == 21


# Nesting


def test_a_nested_transaction_that_writes_is_refused(db: Database[Bank]) -> None:
    with db.transaction(note="outer") as bank:
        deposit(bank)
        with pytest.raises(NestedTransactionError, match=r"'outer' of .* open .*savepoint\(\)"):
            db.run(deposit)
        inner = db.transaction()
        with pytest.raises(NestedTransactionError):
            inner.root.more["a"] = 1
        assert inner.commit() is None
    assert balance(db) == 11


def test_a_nested_transaction_may_read_and_so_may_a_snapshot(db: Database[Bank]) -> None:
    with db.transaction() as bank:
        deposit(bank)
        assert db.run(lambda bank: bank.ann.balance) == 1
        with db.snapshot() as seen:
            assert seen.ann.balance == 1
    with db.snapshot() as seen:
        db.run(deposit)
        assert seen.ann.balance == 11
    assert balance(db) == 21


def test_all_transactions_of_a_context_count_for_nesting(db: Database[Bank]) -> None:
    first, second, third = db.transaction(), db.transaction(), db.transaction()
    for tx in (first, second, third):
        assert tx.root.ann.balance == 1
    second.abort()
    with pytest.raises(NestedTransactionError):
        deposit(third.root)
    first.abort()
    deposit(third.root)
    third.commit()
    assert balance(db) == 11


def test_one_transaction_after_the_other_is_not_nested(db: Database[Bank]) -> None:
    tx = db.transaction()
    deposit(tx.root)
    tx.commit()
    db.run(deposit)
    tx = db.transaction()
    elsewhere(db, deposit)
    deposit(tx.root)
    elsewhere(db, deposit)
    with pytest.raises(WriteConflictError):
        tx.commit()
    db.run(deposit)  # that one will never commit
    tx.abort()
    assert balance(db) == 51


def test_a_transaction_of_another_context_is_not_nested(db: Database[Bank]) -> None:
    def pay() -> None:
        db.run(lambda bank: setattr(bank.bob, "balance", bank.bob.balance + 1))

    calls: list[Callable[[], None]] = [
        lambda: Context().run(pay),
        lambda: copy_context().run(pay),
        lambda: run_in_thread(pay),
        lambda: run_in_thread(partial(copy_context().run, pay)),
    ]
    for call in calls:
        with db.transaction() as bank:
            deposit(bank)
            call()
            with pytest.raises(NestedTransactionError):
                pay()
            call()
    assert elsewhere(db, lambda bank: (bank.ann.balance, bank.bob.balance)) == (41, 9)


def run_in_thread(call: Callable[[], None]) -> None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def test_what_is_nested_in_a_copied_context_is_found_there(db: Database[Bank]) -> None:
    def nested() -> None:
        with db.transaction(), pytest.raises(NestedTransactionError):
            db.run(deposit)

    with db.transaction():
        copy_context().run(nested)
    copy_context().run(nested)


# get()


def test_get_gives_the_own_instance_of_an_object_of_another_session(db: Database[Bank]) -> None:
    with db.snapshot() as seen:
        tx = db.transaction()
        ann = tx.get(seen.ann)
        assert ann is not seen.ann
        assert ann is tx.root.ann
        assert tx.get(ann) is ann
        ann.balance = 5
        assert seen.ann.balance == 1
        other = db.snapshot()
        assert other.get(ann).balance == 1
        other.close()
        tx.commit()
        closed = seen.bob
    with db.transaction() as bank:
        tx = db.transaction()
        assert tx.get(closed).balance == 1  # after the end of its session
        tx.abort()
        assert bank.ann.balance == 5


def test_get_takes_an_oid(db: Database[Bank]) -> None:
    with db.snapshot() as seen:
        ann = oid(seen.ann)
    tx = db.transaction()
    assert tx.get(ann) is tx.get(int.from_bytes(ann)) is tx.get(ann, Account) is tx.root.ann
    assert tx.get(99) is tx.get(-1) is tx.get(Oid(b"12345678")) is None
    with pytest.raises(DurusKeyError, match="no object with oid 99"):
        tx.get(99, Account)
    with pytest.raises(WrongClassError, match=r"<Account \d+> is no .*\.Bank"):
        tx.get(ann, Bank)
    tx.abort()


def test_get_refuses_what_is_not_of_the_database(db: Database[Bank]) -> None:
    with Database("memory:", root_class=Bank) as other:
        theirs = other.snapshot()
        tx = db.transaction()
        with pytest.raises(
            ForeignReferenceError,
            match=r"<Account \d+> is an object of <snapshot of Database\('memory:'\)>, and not "
            r"of Database\('<MemoryStorage.*copy\(\)",
        ):
            tx.get(theirs.root.ann)
        with pytest.raises(ForeignReferenceError, match=r"<Account @\w+> was never stored"):
            tx.get(Account())
        with pytest.raises(ForeignReferenceError, match="is an object of <Connection"):
            tx.get(Connection(db.storage, root_class=Bank).root)
        tx.abort()
        theirs.close()


def test_an_instance_of_another_session_is_refused_with_both_named(db: Database[Bank]) -> None:
    with db.snapshot() as seen:
        tx = db.transaction(note="mine")
        tx.root.more["ann"] = seen.ann
        with pytest.raises(
            ForeignReferenceError,
            match=r"<PersistentDict \d+> of <transaction 'mine' .*<Account \d+> of <snapshot of",
        ):
            tx.commit()
        tx.root.more["ann"] = tx.get(seen.ann)
        tx.commit()
    assert elsewhere(db, lambda bank: bank.more["ann"] is bank.ann)


# copy()


def test_copy_takes_an_object_and_all_that_it_leads_to(db: Database[Bank]) -> None:
    with Database("memory:", root_class=Bank) as other:
        with other.transaction() as theirs:
            shared = Account(3)
            theirs.ann.other = theirs
            theirs.bob.other = shared
            theirs.more["shared"] = [shared, {"key": shared}]
            theirs.more["tree"] = tree = BTree[int, Account]()
            tree.update((number, Account(number)) for number in range(100))
            theirs.more["blob"] = Blob(bytes(range(256)) * 1000)
            theirs.more["list"] = PersistentList([1, theirs.bob])
        with other.snapshot() as theirs, (tx := db.transaction()) as bank:
            bank.more["bank"] = tx.copy(theirs)
            chunks = bank.more["bank"].more["blob"]._content[2]
            assert [type(chunk._held) for chunk in chunks] == [Spooled]  # not in memory
            del theirs
        with other.transaction() as theirs:
            theirs.bob.balance = 99
            theirs.more["tree"][5].balance = 99
            theirs.more["blob"].write_bytes(b"")
    with db.snapshot() as bank:
        copy = bank.more["bank"]
        assert type(copy) is Bank
        assert copy.ann.other is copy
        shared = copy.bob.other
        assert shared.balance == 3
        assert copy.more["shared"] == [shared, {"key": shared}]
        assert [account.balance for account in copy.more["tree"].values()] == list(range(100))
        assert copy.more["blob"].read_bytes() == bytes(range(256)) * 1000
        assert copy.more["list"][1] is copy.bob
        assert copy.bob.balance == 1
        assert copy is not bank


def test_a_copy_is_stored_when_something_refers_to_it(db: Database[Bank]) -> None:
    tx = db.transaction()
    copy = tx.copy(tx.root.ann)
    assert copy is not tx.root.ann
    assert (copy.balance, oid_of(copy)) == (1, None)
    assert tx.commit() is None
    assert oid_of(copy) is None


def test_what_cannot_be_copied_is_named(db: Database[Bank]) -> None:
    with (tx := db.transaction()):
        new = Account()
        new.other = lambda: None
        with pytest.raises(UnstorableError, match=r"<Account @\w+> cannot be copied: .*lambda"):
            tx.copy(new)


# on_commit()


def test_calls_are_made_once_after_the_commit(db: Database[Bank]) -> None:
    calls: list[object] = []
    with (tx := db.transaction()) as bank:
        tx.on_commit(lambda: calls.append(tx.tid))
        tx.on_commit(lambda: calls.append(balance(db)))
        tx.on_commit(lambda: db.run(deposit))  # it has ended, so this is not nested
        deposit(bank)
        assert calls == []
    assert calls == [tx.tid, 11]
    assert balance(db) == 21
    tx = db.transaction()
    tx.on_commit(lambda: calls.append("read"))
    assert tx.commit() is None
    assert calls[2:] == ["read"]


def test_calls_are_not_made_without_a_commit(db: Database[Bank], storage: FullStorage) -> None:
    calls: list[str] = []
    tx = db.transaction()
    tx.on_commit(lambda: calls.append("aborted"))
    tx.abort()
    tx = db.transaction()
    deposit(tx.root)
    tx.on_commit(lambda: calls.append("at last"))
    storage.is_full = True
    with pytest.raises(StorageError):
        tx.commit()
    assert calls == []
    storage.is_full = False
    tx.commit()
    assert calls == ["at last"]


def test_a_savepoint_forgets_the_calls_since(db: Database[Bank]) -> None:
    calls: list[str] = []
    with (tx := db.transaction()) as bank:
        deposit(bank)
        tx.on_commit(lambda: calls.append("kept"))
        savepoint = tx.savepoint()
        deposit(bank)
        tx.on_commit(lambda: calls.append("forgotten"))
        savepoint.rollback()
        tx.on_commit(lambda: calls.append("later"))
        with suppress(KeyError), tx.savepoint():
            tx.on_commit(lambda: calls.append("failed"))
            raise KeyError
    assert calls == ["kept", "later"]
    assert balance(db) == 11


class EmptyError(Exception):
    """An exception that is false."""

    def __len__(self) -> int:
        return 0


def test_all_calls_are_made_and_the_first_error_is_raised(
    db: Database[Bank], caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def fail(error: Exception) -> NoReturn:
        calls.append(type(error).__name__)
        raise error

    tx = db.transaction()
    deposit(tx.root)
    for error in (EmptyError("first"), ConflictError(), KeyError("third")):
        tx.on_commit(lambda error=error: fail(error))  # type: ignore[misc]  # its default
    tx.on_commit(lambda: calls.append("last"))
    with caplog.at_level(logging.ERROR), pytest.raises(EmptyError, match="first") as caught:
        tx.commit()
    assert calls == ["EmptyError", "ConflictError", "KeyError", "last"]
    (note,) = caught.value.__notes__
    assert note == f"raised by an on_commit call; transaction {tx.tid} is stored"
    logged = [record.exc_info for record in caplog.records]
    assert [type(info[1]).__name__ for info in logged if info] == ["ConflictError", "KeyError"]
    assert balance(db) == 11


def test_an_error_in_a_call_does_not_abort_at_the_end_of_a_block(db: Database[Bank]) -> None:
    def pay() -> None:
        with tx as bank:
            deposit(bank)
            tx.on_commit(lambda: int("no number"))

    tx = db.transaction()
    with pytest.raises(ValueError, match="no number"):
        pay()
    assert balance(db) == 11
    assert db.stats().aborts == 0
