"""Upgrades of states when they are loaded, and classes that get another name."""

import contextvars
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import pytest

from durus import schema, schema_versions
from durus.connection import Connection
from durus.counter import Counter
from durus.database import Database
from durus.error import (
    ClassNotAllowedError,
    MissingClassError,
    ObjectError,
    ReadConflictError,
    ReadOnlyError,
    UnstorableError,
    WriteConflictError,
)
from durus.history import HistoryConnection
from durus.interfaces import CommitResult, Oid, Tid, Transaction
from durus.persistent import Persistent, PersistentObject, oid_of
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.schema import VERSION_KEY, rename, upgrade
from durus.storage import MemoryStorage

T = TypeVar("T")
Root = PersistentDict[str, Any]


class Account(Persistent):
    bank: "Bank"
    currency: str
    history: list[int]

    def __init__(self, balance: int = 0) -> None:
        self.balance = balance


class Savings(Account):
    pass


class Slotted(PersistentObject):
    __slots__ = ("a", "b")

    a: int
    b: int


class Odd(PersistentObject):
    """Its state is no dict."""

    def __getstate__(self) -> Any:
        return [1, 2]

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(None)


class Bank(Persistent):
    def __init__(self) -> None:
        self.total = 0
        self.other = 0
        self.accounts: PersistentList[Account] = PersistentList()


class FullStorage(MemoryStorage):
    """A storage on a disk that fills up after so many commits."""

    commits_left = 1 << 62
    before: Callable[[], object] | None = None

    def commit(self, transaction: Transaction) -> CommitResult:
        if not self.commits_left:
            raise OSError(28, "No space left on device")
        self.commits_left -= 1
        before, self.before = self.before, None
        if before:
            before()
        return super().commit(transaction)


@pytest.fixture(autouse=True)
def _no_upgrades(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins as a program in which nothing is declared."""
    monkeypatch.setattr(schema_versions, "_declared", WeakKeyDictionary())


@pytest.fixture
def storage() -> FullStorage:
    return FullStorage()


@pytest.fixture
def old(storage: FullStorage) -> Oid:
    """An account that was stored before there were upgrades."""
    with Database(storage, root_class=Bank) as db, db.transaction() as bank:
        bank.accounts.append(Account(5))
        bank.accounts[0].bank = bank
    with Connection(storage, root_class=Bank) as connection:
        return oid_of(connection.root.accounts[0]) or Oid(b"")


def stored_state(storage: MemoryStorage, oid: Oid) -> Any:
    """What is in the newest record, but for the bank that each account refers to."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return pid

    state = Unpickler(io.BytesIO(storage.snapshot().load(oid).record.state_pickle)).load()
    state.pop("bank", None)
    return state


def elsewhere(call: Callable[[], T]) -> T:
    """Do something in another transaction while one is open here."""
    return contextvars.Context().run(call)


def declare_currency() -> None:
    @upgrade(Account, to=2)
    def add_currency(account: Account) -> None:
        account.currency = "EUR"


def declare_history() -> None:
    @upgrade(Account, to=3)
    def add_history(account: Account) -> None:
        account.history = [account.balance]


def declare_sum() -> None:
    """An upgrade that changes another object, too."""

    @upgrade(Account, to=2)
    def add_to_total(account: Account) -> None:
        account.bank.total += account.balance
        account.currency = "EUR"


# Upgrades.


def test_an_old_state_is_upgraded_step_by_step(storage: MemoryStorage, old: Oid) -> None:
    declare_history()
    declare_currency()
    account = Connection(storage).get(old, Account)
    assert (account.balance, account.currency, account.history) == (5, "EUR", [5])


def test_only_the_missing_steps_are_done(storage: MemoryStorage, old: Oid) -> None:
    declare_currency()
    connection = Connection(storage)
    connection.get(old, Account).currency = "CHF"
    connection.commit()
    declare_history()
    account = Connection(storage).get(old, Account)
    assert (account.currency, account.history) == ("CHF", [5])


def test_the_version_stands_in_the_state_from_2_on_and_is_no_attribute(
    storage: MemoryStorage, old: Oid
) -> None:
    assert stored_state(storage, old) == {"balance": 5}
    declare_currency()
    connection = Connection(storage)
    connection.get(old, Account).balance = 6
    connection.commit()
    assert stored_state(storage, old) == {"balance": 6, "currency": "EUR", VERSION_KEY: 2}
    account = Connection(storage).get(old, Account)
    assert vars(account).keys() == account.__getstate__().keys() == {"balance", "bank", "currency"}


def test_a_class_without_upgrades_has_no_mark(storage: MemoryStorage, old: Oid) -> None:
    declare_currency()
    assert VERSION_KEY not in stored_state(storage, Oid(bytes(8)))
    connection = Connection(storage, root_class=Bank)
    connection.root.total = 1
    connection.commit()
    assert VERSION_KEY not in stored_state(storage, Oid(bytes(8)))


def test_new_objects_get_the_newest_version_and_no_upgrade(storage: MemoryStorage) -> None:
    declare_currency()
    declare_history()
    connection = Connection(storage)
    connection.root["new"] = Account(1)
    connection.commit()
    assert stored_state(storage, oid_of(connection.root["new"]) or Oid(b"")) == {
        "balance": 1,
        VERSION_KEY: 3,
    }
    assert not hasattr(Connection(storage).root["new"], "currency")


def test_what_is_only_read_is_not_stored(storage: MemoryStorage, old: Oid) -> None:
    declare_currency()
    with Database(storage, root_class=Bank) as db:
        with db.transaction() as bank:
            bank.total = 1  # something else is
            assert bank.accounts[0].currency == "EUR"
        assert db.run(lambda bank: bank.accounts[0].currency) == "EUR"
        assert stored_state(storage, old) == {"balance": 5}
        with db.transaction() as bank:
            bank.accounts[0].balance += 1
        assert stored_state(storage, old) == {"balance": 6, "currency": "EUR", VERSION_KEY: 2}


def test_slots_are_upgraded(storage: MemoryStorage) -> None:
    connection = Connection(storage)
    connection.root["x"] = slotted = Slotted()
    slotted.a = 1
    connection.commit()

    @upgrade(Slotted, to=2)
    def add_b(slotted: Slotted) -> None:
        slotted.b = slotted.a + 1
        del slotted.a

    connection = Connection(storage)
    slotted = connection.root["x"]
    assert slotted.b == 2
    assert not hasattr(slotted, "a")
    connection.root["y"] = slotted
    slotted._p_note_change()
    connection.commit()
    assert stored_state(storage, oid_of(slotted) or Oid(b"")) == {"b": 2, VERSION_KEY: 2}
    assert Connection(storage).root["x"].b == 2


def test_an_upgrade_may_make_new_objects(storage: MemoryStorage, old: Oid) -> None:
    @upgrade(Account, to=2)
    def count_in_a_counter(account: Account) -> None:
        account.balance = Counter(account.balance)  # type: ignore[assignment]  # that is the point

    connection = Connection(storage, root_class=Bank)
    account: Any = connection.root.accounts[0]
    account.balance.increment()
    connection.commit()
    assert connection.root.accounts[0].balance.value == 6  # type: ignore[attr-defined]  # as above


class Labelled(Account):
    labels: list[PersistentList[str]]


def make_labels(account: Labelled) -> None:
    account.labels = [PersistentList(["old"])]


@pytest.fixture
def labelled(storage: FullStorage) -> None:
    """A root with an account that gets a new object when it is upgraded."""
    with Database(storage) as db, db.transaction() as root:
        root["ann"] = Labelled(5)
        root["other"] = 0
    upgrade(Labelled, to=2)(make_labels)


def labels_of(storage: MemoryStorage) -> list[str]:
    with Database(storage) as fresh:
        return fresh.run(lambda root: list(root["ann"].labels[0]))


@pytest.mark.usefixtures("labelled")
def test_what_is_put_into_an_object_that_an_upgrade_has_made_is_stored(
    storage: MemoryStorage,
) -> None:
    with Database(storage) as db:
        with db.transaction() as root:
            root["ann"].labels[0].append("vip")
        with db.transaction() as root:
            root["ann"].labels[0].append("more")
    assert labels_of(storage) == ["old", "vip", "more"]


@pytest.mark.usefixtures("labelled")
def test_what_is_put_into_it_goes_with_an_abort_and_a_rollback(storage: MemoryStorage) -> None:
    with Database(storage) as db:
        tx = db.transaction()
        tx.root["ann"].labels[0].append("aborted")
        tx.abort()
        with (tx := db.transaction()) as root:
            savepoint = tx.savepoint()
            root["ann"].labels[0].append("rolled back")
            savepoint.rollback()
            assert list(root["ann"].labels[0]) == ["old"]
            savepoint = tx.savepoint()
            root["ann"].labels[0].append("rolled back, too")
            savepoint.rollback()
            root["ann"].labels[0].append("stored")
    assert labels_of(storage) == ["old", "stored"]


@pytest.mark.usefixtures("labelled")
def test_it_cannot_be_changed_where_nothing_is_stored(storage: MemoryStorage) -> None:
    with Database(storage) as db, Database(storage, readonly=True) as readonly:
        for begin in (db.snapshot, lambda: db.snapshot(storage.tid), readonly.transaction):
            with begin() as root:
                with pytest.raises(ReadOnlyError, match="an upgrade has made it"):
                    root["ann"].labels[0].append("lost")
                assert list(root["ann"].labels[0]) == ["old"]
        with db.transaction() as root:
            root["other"] = 1
            inner = db.transaction()
            with pytest.raises(ReadOnlyError):
                inner.root["ann"].labels[0].append("lost")
            assert inner.commit() is None
        with db.transaction() as root:
            root["ann"].labels[0].append("stored")
    assert labels_of(storage) == ["old", "stored"]


def test_get_and_the_crawler_upgrade(storage: MemoryStorage, old: Oid) -> None:
    declare_currency()
    connection = Connection(storage)
    found = [obj for obj in connection.get_crawler() if isinstance(obj, Account)]
    assert [account.currency for account in found] == ["EUR"]


# Subclasses.


def test_a_subclass_has_the_upgrades_of_its_base(storage: MemoryStorage) -> None:
    connection = Connection(storage)
    connection.root["x"] = Savings(1)
    connection.commit()
    declare_currency()
    assert Connection(storage).root["x"].currency == "EUR"


def test_upgrades_of_a_subclass_are_all_that_it_has(storage: MemoryStorage) -> None:
    connection = Connection(storage)
    connection.root["x"] = Savings(1)
    connection.root["y"] = Account(1)
    connection.commit()
    declare_currency()

    @upgrade(Savings, to=2)
    def add_history(savings: Savings) -> None:
        savings.history = []

    root = Connection(storage).root
    assert root["x"].history == []
    assert not hasattr(root["x"], "currency")
    assert root["y"].currency == "EUR"
    assert not hasattr(root["y"], "history")


# Declarations that are wrong, or missing.


def test_an_upgrade_is_declared_once_and_leads_to_2_or_more() -> None:
    declare_currency()
    with pytest.raises(ValueError, match=r"Account to 2 is declared already"):
        declare_currency()
    with pytest.raises(ValueError, match="they begin with 2"):
        upgrade(Account, to=1)(lambda account: None)


def test_an_upgrade_leads_to_a_number_and_is_for_a_persistent_class() -> None:
    wrong: list[tuple[Any, Any]] = [(Account, "2"), (Account, 2.5), (Account, True), (int, 2)]
    for cls, to in wrong:
        with pytest.raises(TypeError, match=r"a number, and not to|is none"):
            upgrade(cls, to=to)(lambda obj: None)


def test_a_missing_step_is_named(storage: MemoryStorage, old: Oid) -> None:
    declare_history()
    account = Connection(storage, root_class=Bank).root.accounts[0]
    with pytest.raises(ObjectError, match=r"<Account \d+>: no upgrade of .*Account to version 2"):
        _ = account.balance
    assert account._p_is_ghost()


def test_a_state_of_a_newer_version_is_refused(
    storage: MemoryStorage, old: Oid, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_currency()
    connection = Connection(storage)
    connection.get(old, Account).balance = 6
    connection.commit()
    monkeypatch.setattr(schema_versions, "_declared", WeakKeyDictionary())
    account = Connection(storage, root_class=Bank).root.accounts[0]
    with pytest.raises(ObjectError, match=r"<Account \d+>: .* version 2 .* knows up to 1"):
        _ = account.balance
    assert account._p_is_ghost()


def test_a_state_that_is_no_dict_has_no_room_for_a_version(storage: MemoryStorage) -> None:
    upgrade(Odd, to=2)(lambda odd: None)
    connection = Connection(storage)
    connection.root["x"] = Odd()
    with pytest.raises(UnstorableError, match=r"Odd.*must be a dict.*list"):
        connection.commit()


# Upgrades that change other objects.


def test_what_an_upgrade_changes_elsewhere_is_stored_with_it(
    storage: MemoryStorage, old: Oid
) -> None:
    declare_sum()
    with Database(storage, root_class=Bank) as db:
        with db.transaction() as bank:
            assert bank.accounts[0].currency == "EUR"
        assert stored_state(storage, old)[VERSION_KEY] == 2
        assert stored_state(storage, Oid(bytes(8)))["total"] == 5
        assert db.run(lambda bank: (bank.accounts[0].currency, bank.total)) == ("EUR", 5)


def test_it_is_stored_with_it_also_if_the_other_one_was_changed_before(
    storage: MemoryStorage, old: Oid
) -> None:
    declare_sum()
    for _ in range(2):
        with Database(storage, root_class=Bank) as db, db.transaction() as bank:
            bank.other += 1
            assert bank.accounts[0].balance == 5
    assert stored_state(storage, old)[VERSION_KEY] == 2
    assert stored_state(storage, Oid(bytes(8)))["total"] == 5


def test_an_abort_takes_both_back(storage: MemoryStorage, old: Oid) -> None:
    declare_sum()
    with Database(storage, root_class=Bank) as db:
        tx = db.transaction()
        assert tx.root.accounts[0].currency == "EUR"
        tx.abort()
        assert stored_state(storage, old) == {"balance": 5}
        tx = db.transaction()
        assert tx.root.total == 0  # until the account is loaded again
        assert tx.root.accounts[0].currency == "EUR"
        assert tx.root.total == 5
        tx.commit()
        assert db.run(lambda bank: bank.total) == 5


def test_a_rollback_takes_both_back(storage: MemoryStorage, old: Oid) -> None:
    declare_sum()
    with Database(storage, root_class=Bank) as db:
        with db.transaction() as bank:
            savepoint = bank._p_connection.savepoint()  # type: ignore[union-attr]  # it has one
            assert bank.accounts[0].currency == "EUR"
            savepoint.rollback()
            assert bank.accounts[0].currency == "EUR"
        assert db.run(lambda bank: bank.total) == 5


def test_both_conflict_if_somebody_else_was_first(storage: MemoryStorage, old: Oid) -> None:
    declare_sum()
    first, second = Connection(storage, root_class=Bank), Connection(storage, root_class=Bank)
    assert first.root.accounts[0].currency == second.root.accounts[0].currency == "EUR"
    first.commit()
    with pytest.raises(WriteConflictError):
        second.commit()
    second.abort()
    assert second.root.accounts[0].balance == 5
    second.commit()
    assert second.root.total == 5


def test_a_snapshot_shows_the_upgrade_and_stores_nothing(storage: MemoryStorage, old: Oid) -> None:
    declare_sum()
    before = storage.tid
    with Database(storage, root_class=Bank) as db:
        for at in (None, Tid(before)):
            with db.snapshot(at) as bank:
                assert (bank.accounts[0].currency, bank.total) == ("EUR", 5)
                with pytest.raises(ReadOnlyError):
                    bank.accounts[0].balance = 1
        with db.snapshot() as bank:
            assert bank.total == 0
    assert storage.tid == before


@pytest.mark.parametrize("end", [Connection.commit, Connection.abort])
def test_the_past_shows_the_upgrade_and_stores_nothing(
    storage: MemoryStorage, old: Oid, end: Callable[[Connection[Any]], object]
) -> None:
    declare_sum()
    before = storage.tid
    past = Connection(storage, root_class=Bank, at=before)
    assert (past.root.accounts[0].currency, past.root.total) == ("EUR", 5)
    assert end(past) is None
    assert storage.tid == before
    assert past.root.total == 0
    assert (past.root.accounts[0].currency, past.root.total) == ("EUR", 5)


def test_a_readonly_storage_shows_the_upgrade_and_stores_nothing(
    storage: MemoryStorage, old: Oid, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_sum()
    before = storage.tid
    monkeypatch.setattr(MemoryStorage, "readonly", True)
    connection = Connection(storage, root_class=Bank)
    assert (connection.root.accounts[0].currency, connection.root.total) == ("EUR", 5)
    assert connection.commit() is None
    assert connection.root.total == 0
    with Database(storage, root_class=Bank) as db:
        assert db.run(lambda bank: (bank.accounts[0].currency, bank.total)) == ("EUR", 5)
        assert db.run(lambda bank: bank.total) == 0
    assert storage.tid == before


def test_a_readonly_database_shows_the_upgrade_and_stores_nothing(
    storage: MemoryStorage, old: Oid
) -> None:
    declare_sum()
    before = storage.tid
    with Database(storage, root_class=Bank, readonly=True) as db:
        assert db.run(lambda bank: (bank.accounts[0].currency, bank.total)) == ("EUR", 5)
        assert db.run(lambda bank: bank.total) == 0
    assert storage.tid == before


def test_a_history_connection_upgrades_wherever_it_is(storage: MemoryStorage, old: Oid) -> None:
    with Connection(storage) as connection:
        connection.get(old, Account).balance = 7
        connection.commit()
    declare_sum()
    before = storage.tid
    history = HistoryConnection(storage, root_class=Bank)
    assert (history.root.accounts[0].currency, history.root.total) == ("EUR", 7)
    assert history.previous()
    assert history.root.total == 0
    assert (history.root.accounts[0].currency, history.root.total) == ("EUR", 5)
    assert history.next()
    assert (history.root.accounts[0].balance, history.root.total) == (7, 7)
    assert storage.tid == before


def count_in_bank(account: Account) -> None:
    account.balance *= 100
    account.bank.total += 1


def test_a_nested_transaction_that_only_reads_shows_the_upgrade_and_stores_nothing(
    storage: MemoryStorage, old: Oid
) -> None:
    upgrade(Account, to=2)(count_in_bank)
    with Database(storage, root_class=Bank) as db:
        before = storage.tid
        with db.transaction() as bank:
            bank.other = 1
            for _ in range(2):
                with db.transaction() as inner:
                    assert (inner.accounts[0].balance, inner.total) == (500, 1)
            assert storage.tid == before
        with db.transaction() as bank:
            assert (bank.accounts[0].balance, bank.total, bank.other) == (500, 1, 1)


def test_a_strict_snapshot_takes_no_upgrade_for_an_unnoted_change(
    storage: MemoryStorage, old: Oid
) -> None:
    upgrade(Account, to=2)(count_in_bank)
    with Database(storage, root_class=Bank, strict=True) as db, db.snapshot() as bank:
        assert bank.total == 0
        assert (bank.accounts[0].balance, bank.total) == (500, 1)


def test_an_upgrade_of_the_root_overwrites_nothing_that_others_commit_later(
    storage: MemoryStorage, old: Oid
) -> None:
    @upgrade(Bank, to=2)
    def change_account(bank: Bank) -> None:
        bank.accounts[0].balance += 1

    with Database(storage, root_class=Bank) as one, Database(storage, root_class=Bank) as other:
        for _ in range(3):
            one.run(lambda bank: setattr(bank, "total", bank.total + 1))
            one.run(lambda bank: setattr(bank.accounts[0], "balance", 100))
        assert other.run(lambda bank: (bank.total, bank.accounts[0].balance)) == (3, 100)
        assert one.run(lambda bank: (bank.total, bank.accounts[0].balance)) == (3, 100)


def test_what_uses_an_object_that_another_upgrade_has_changed_is_taken_back_with_it(
    storage: MemoryStorage, old: Oid
) -> None:
    upgrade(Account, to=2)(count_in_bank)

    @upgrade(Savings, to=2)
    def take_total(savings: Account) -> None:
        savings.balance = savings.bank.total

    with Database(storage, root_class=Bank) as db:
        with Database(storage, root_class=Bank) as older, older.transaction() as bank:
            schema_versions._declared.clear()
            bank.accounts.append(Savings(5))
            bank.accounts[1].bank = bank
        upgrade(Account, to=2)(count_in_bank)
        upgrade(Savings, to=2)(take_total)
        with db.snapshot() as bank:
            assert [account.balance for account in bank.accounts] == [500, 1]
        with db.snapshot() as bank:
            assert bank.accounts[1].balance == 0


def test_older_states_are_upgraded_as_copies_and_change_nothing_else(
    storage: MemoryStorage, old: Oid
) -> None:
    declare_sum()
    with Database(storage, root_class=Bank) as db:
        with db.transaction() as bank:
            assert bank.accounts[0].currency == "EUR"
        with db.transaction() as bank:
            copies = [revision.load() for revision in db.history(bank.accounts[0])]
            assert [copy.currency for copy in copies] == ["EUR", "EUR"]
            assert bank.total == 5
            bank.accounts.append(copies[-1])  # stored as what it is, a state of version 2
        assert db.run(lambda bank: (bank.accounts[1].currency, bank.total)) == ("EUR", 5)


def test_an_object_that_is_needed_to_upgrade_another_is_upgraded_itself(
    storage: MemoryStorage,
) -> None:
    connection = Connection(storage)
    inner = Savings(2)
    outer = Account(1)
    outer.inner = inner  # type: ignore[attr-defined]  # an attribute of long ago
    inner.outer = outer  # type: ignore[attr-defined]  # as above
    connection.root["x"] = outer
    connection.commit()

    @upgrade(Account, to=2)
    def from_inner(account: Any) -> None:
        account.currency = account.inner.currency

    @upgrade(Savings, to=2)
    def from_outer(savings: Any) -> None:
        savings.currency = f"EUR of {savings.outer.balance}"

    assert Connection(storage).root["x"].currency == "EUR of 1"


def test_what_others_change_while_an_object_is_upgraded_is_a_conflict(
    storage: MemoryStorage,
) -> None:
    """A classic connection moves on to what is newest, but not past what it has in hand."""
    other = Connection(storage)
    other.root["x"], other.root["y"] = Account(1), Account(1)
    other.commit()
    x, y = (oid_of(other.root[name]) or Oid(b"") for name in "xy")
    other.root["x"].balance = other.root["y"].balance = 2
    changes = [other.commit]

    @upgrade(Account, to=2)
    def use_the_other(account: Account) -> None:
        if account._p_oid == x:
            changes.pop()()
            connection: Any = account._p_connection
            account.currency = str(connection.get(y, Account).balance)

    connection = Connection(storage)
    with pytest.raises(ReadConflictError):
        _ = connection.get(x, Account).balance
    connection.abort()
    assert connection.get(x, Account).balance == 2


# Upgrades that fail.


def test_an_upgrade_that_fails_leaves_a_ghost_and_is_tried_again(
    storage: MemoryStorage, old: Oid
) -> None:
    fails = True

    @upgrade(Account, to=2)
    def may_fail(account: Any) -> None:
        account._p_connection.root.total += 1
        account.currency = "EUR"
        if fails:
            raise ValueError("not yet")

    connection = Connection(storage, root_class=Bank)
    account = connection.root.accounts[0]
    for _ in range(2):
        with pytest.raises(ValueError, match="not yet"):
            _ = account.balance
        assert account._p_is_ghost()
        assert connection.root.total == 0
        assert connection.commit() is None
    fails = False
    assert account.currency == "EUR"
    connection.commit()
    assert Connection(storage, root_class=Bank).root.total == 1


def test_an_attribute_error_of_an_upgrade_is_no_missing_attribute(
    storage: MemoryStorage, old: Oid
) -> None:
    @upgrade(Account, to=2)
    def fails(account: Any) -> None:
        account.currency = account.misspelt

    account = Connection(storage, root_class=Bank).root.accounts[0]
    with pytest.raises(ObjectError, match=r"<Account \d+> cannot be upgraded.*misspelt"):
        hasattr(account, "currency")


def test_what_was_used_before_and_in_an_upgrade_conflicts_as_ever(
    storage: MemoryStorage, old: Oid
) -> None:
    declare_sum()
    with Database(storage, root_class=Bank) as db:
        tx = db.transaction()
        bank = tx.root
        assert bank.total == 0
        assert bank.accounts[0].balance == 5
        elsewhere(lambda: db.run(lambda bank: setattr(bank, "other", 1)))
        bank.accounts[0].balance = 6
        with pytest.raises(WriteConflictError):
            tx.commit()
        tx.abort()
        assert db.run(lambda bank: (bank.accounts[0].balance, bank.other)) == (5, 1)


# Mergeable objects.


def test_states_of_different_versions_are_not_merged(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database(storage) as db:
        with db.transaction() as root:
            root["counter"] = Counter(1)
        tx = db.transaction()
        tx.root["counter"].increment()
        elsewhere(lambda: db.run(lambda root: root["counter"].increment()))
        upgrade(Counter, to=2)(lambda counter: None)
        with pytest.raises(WriteConflictError):
            tx.commit()
        tx.abort()
        with db.transaction() as root:
            root["counter"].increment()
        tx = db.transaction()
        tx.root["counter"].increment()
        elsewhere(lambda: db.run(lambda root: root["counter"].increment()))
        tx.commit()
        assert db.run(lambda root: root["counter"].value) == 5


# Renaming.


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """The modules `old_names`, whose classes are gone soon, and `new_names`."""
    made = []
    for name in ("old_names", "new_names"):
        module = ModuleType(name)
        exec(
            "from durus.persistent import Persistent\n"
            "class Old(Persistent): pass\n"
            "class New(Persistent): pass\n"
            "class Plain: pass\n"
            "class Outer:\n"
            "    class Inner(Persistent): pass\n"
            "    class Renamed(Persistent): pass\n",
            vars(module),
        )
        monkeypatch.setitem(sys.modules, name, module)
        made.append(module)
    old, new = made
    return old, new


@pytest.fixture
def db(
    storage: FullStorage, modules: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    """A database with two old objects, two that refer to one, and others; then old names go."""
    module = modules[0]
    with Database(storage) as db, db.transaction() as root:
        root["old"] = module.Old()
        root["old"].value = 1
        root["pair"] = PersistentList([root["old"], module.Old()])
        root["pair"][1].value = 2
        root["others"] = PersistentDict(x=1)
        root["inner"] = PersistentDict(inner=module.Outer.Inner())
    for name in ("Old", "Outer"):
        monkeypatch.delattr(module, name)
    with Database(storage) as db:
        yield db


NAMES = {"old_names.Old": "new_names.New"}


def values(storage: MemoryStorage) -> list[Any]:
    with Database(storage) as fresh:
        return fresh.run(lambda root: [root["old"].value, root["pair"][1].value])


def names_in(storage: MemoryStorage) -> bytes:
    """All pickles of the newest states, one after the other."""
    with Connection(storage) as connection:
        return b"".join(
            record.class_pickle + record.state_pickle for _, (_, record) in connection._view.crawl()
        )


def test_a_class_gets_another_name_wherever_it_is_named(
    db: Database, storage: MemoryStorage
) -> None:
    with pytest.raises(MissingClassError):
        values(storage)
    assert rename(db, NAMES) == {"old_names.Old": 4}  # the two, the list, and the root
    assert values(storage) == [1, 2]
    assert b"Old" not in names_in(storage)
    newest = list(db.transactions())[-1]
    assert newest.note == "rename old_names.Old to new_names.New"
    assert rename(db, NAMES) == {"old_names.Old": 0}


def test_a_dry_run_only_counts(db: Database, storage: MemoryStorage) -> None:
    before = storage.tid
    assert rename(db, NAMES, dry_run=True) == {"old_names.Old": 4}
    assert storage.tid == before


def test_what_names_nothing_old_is_not_stored(db: Database, storage: MemoryStorage) -> None:
    before = storage.tid
    rename(db, NAMES)
    (transaction,) = db.transactions(Tid(before + 1))
    assert len(transaction.oids) == 4


def test_nested_classes_are_renamed(db: Database, storage: MemoryStorage) -> None:
    names = {"old_names.Outer.Inner": "new_names:Outer.Renamed", **NAMES}
    assert rename(db, names) == {"old_names.Outer.Inner": 2, "old_names.Old": 4}
    with Database(storage) as fresh:
        found = fresh.run(lambda root: type(root["inner"]["inner"]).__qualname__)
    assert found == "Outer.Renamed"


def test_modules_are_renamed(db: Database, storage: MemoryStorage) -> None:
    assert rename(db, {"old_names": "new_names"}) == {"old_names": 6}
    assert values(storage) == [1, 2]
    assert b"old_names" not in names_in(storage)


def test_the_classes_of_plain_values_are_renamed(
    storage: MemoryStorage, modules: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database(storage, allow=["new_names"]) as db:
        with db.transaction() as root:
            root["x"] = Account()
            root["x"].plain = modules[0].Plain()
        monkeypatch.delattr(modules[0], "Plain")
        assert rename(db, {"old_names.Plain": "new_names.Plain"}) == {"old_names.Plain": 1}
        found = db.run(lambda root: type(root["x"].plain).__module__)
    assert found == "new_names"


@pytest.mark.parametrize("new", ["new_names.Missing", "no_such_module.New"])
def test_a_new_class_that_is_missing_changes_nothing(
    db: Database, storage: MemoryStorage, new: str
) -> None:
    before = storage.tid
    names = {"old_names.Outer.Inner": "new_names:Outer.Inner", "old_names.Old": new}
    for dry_run in (True, False):
        with pytest.raises(MissingClassError, match=r"old_names\.Old cannot be renamed to"):
            rename(db, names, dry_run=dry_run)
    assert storage.tid == before


def test_names_that_cannot_be_are_refused_though_nothing_has_the_old_one(db: Database) -> None:
    with pytest.raises(MissingClassError, match=r"nowhere\.Old cannot be renamed to new_names\.X"):
        rename(db, {"nowhere.Old": "new_names.X"})
    with pytest.raises(ValueError, match=r"nowhere\.Old is renamed to itself"):
        rename(db, {"nowhere.Old": "nowhere.Old"})
    wrong: list[Any] = [{"nowhere.Old": ModuleType}, {"nowhere.Old": ""}, {1: "new_names.New"}]
    for names in wrong:
        with pytest.raises(TypeError, match="takes names"):
            rename(db, names)


def test_a_new_class_without_the_upgrades_of_the_old_one_is_refused(
    storage: MemoryStorage,
    modules: tuple[ModuleType, ModuleType],
    db: Database,
) -> None:
    old: Any = modules[0]
    old.Old = type("Old", (Persistent,), {"__module__": "old_names"})
    upgrade(old.Old, to=2)(lambda obj: None)
    with Database(storage) as again, again.transaction() as root:
        root["old"]._p_note_change()
    del old.Old
    before = storage.tid
    for dry_run in (True, False):
        with pytest.raises(ObjectError, match=r"version 2 of new_names\.New"):
            rename(db, NAMES, dry_run=dry_run)
    assert storage.tid == before


def test_a_new_class_that_is_not_persistent_changes_nothing(
    db: Database, storage: MemoryStorage
) -> None:
    before = storage.tid
    with pytest.raises(ClassNotAllowedError):
        rename(db, {"old_names.Old": "new_names.Plain"})
    assert storage.tid == before


def test_an_object_of_another_missing_class_cannot_be_stored_again_and_is_named(
    storage: MemoryStorage, modules: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = modules
    with Database(storage) as db:
        with db.transaction() as root:
            root["new"] = old.New()
            root["new"].old = old.Old()
        monkeypatch.delattr(old, "New")
        before = storage.tid
        for dry_run in (True, False):
            with pytest.raises(MissingClassError, match=r"object 1: class old_names\.New"):
                rename(db, NAMES, dry_run=dry_run)
        assert storage.tid == before
        # With a name for that one, too, it goes; and one that refers to nothing old may stay.
        rename(db, {**NAMES, "old_names.New": "new_names.New"})


def test_history_stays_as_it_is(db: Database, storage: MemoryStorage) -> None:
    before = storage.tid
    rename(db, NAMES)
    with Connection(storage, at=before) as past, pytest.raises(MissingClassError):
        _ = past.root["old"].value
    with Connection(storage, at=before, aliases=NAMES) as past:
        assert past.root["old"].value == 1


def test_others_may_commit_meanwhile(db: Database, storage: FullStorage) -> None:
    def work() -> None:
        with Database(storage, aliases=NAMES) as other:
            elsewhere(lambda: other.run(lambda root: setattr(root["old"], "value", 100)))

    storage.before = work
    rename(db, NAMES)
    assert values(storage) == [100, 2]


def test_what_was_removed_meanwhile_is_left_out(db: Database, storage: FullStorage) -> None:
    def work() -> None:
        with Database(storage, aliases=NAMES) as other:
            elsewhere(lambda: other.run(lambda root: [root["pair"].pop(), None][1]))
            other.pack()

    storage.before = work
    rename(db, NAMES)
    with Database(storage) as fresh:
        assert fresh.run(lambda root: [node.value for node in root["pair"]]) == [1]


def test_a_rename_that_was_interrupted_goes_on_when_it_is_called_again(
    db: Database, storage: FullStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_BATCH_SIZE", 1)
    storage.commits_left = 2
    with pytest.raises(OSError, match="No space"):
        rename(db, NAMES)
    storage.commits_left = 100
    assert rename(db, NAMES) == {"old_names.Old": 2}
    assert values(storage) == [1, 2]
    assert b"Old" not in names_in(storage)


def test_a_readonly_database_is_not_renamed(db: Database, storage: MemoryStorage) -> None:
    before = storage.tid
    with Database(storage, readonly=True) as readonly:
        assert rename(readonly, NAMES, dry_run=True) == {"old_names.Old": 4}
        with pytest.raises(ReadOnlyError):
            rename(readonly, NAMES)
    assert storage.tid == before


def test_names_in_records_of_a_server_import_nothing(
    db: Database, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryStorage, "is_remote", True)
    imported: list[str] = []
    monkeypatch.setattr("durus.policy._import", lambda name: imported.append(name))
    with pytest.raises((ClassNotAllowedError, MissingClassError)):
        rename(db, {"old_names.Old": "somewhere.New"})
    assert "somewhere" not in imported


def test_a_snapshot_upgrades_once_although_its_cache_is_small() -> None:
    storage = MemoryStorage()
    with Database(storage) as db, db.transaction() as root:
        root.update((str(number), Tagged()) for number in range(1500))
    upgrade(Tagged, to=2)(lambda tagged: tagged.tags.append("EUR"))
    with Database(storage, cache_size=100) as db, db.snapshot() as root:
        for _ in range(3):
            assert {tuple(tagged.tags) for tagged in root.values()} == {("EUR",)}


class Tagged(Persistent):
    def __init__(self) -> None:
        self.tags: PersistentList[str] = PersistentList()
