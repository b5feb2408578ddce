"""The connections of a `Database`: the pool, threads, forks, and interrupts at any moment."""

import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar

import pytest

import durus.session
from durus.database import Database
from durus.database_connection import PooledConnection
from durus.error import (
    StorageError,
    TransactionEndedError,
    TransactionInUseError,
)
from durus.interfaces import CommitResult, Oid, Revision, Tid
from durus.interfaces import Snapshot as StorageSnapshot
from durus.interfaces import Transaction as StoredTransaction
from durus.memory_storage import MemorySnapshot
from durus.persistent import Persistent
from durus.storage import MemoryStorage

T = TypeVar("T")

PATIENCE_S: Final = 60.0
IDLE_MAX: Final = 16


class Account(Persistent):
    def __init__(self, balance: int = 0) -> None:
        self.balance = balance


class Bank(Persistent):
    def __init__(self) -> None:
        self.ann = Account(1)
        self.bob = Account(1)
        self.eve = Account(1)


class Gate:
    """Where a thread waits until it is let through, if it was closed."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def close(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def __call__(self) -> None:
        self.reached.set()
        assert self._open.wait(PATIENCE_S)


class WatchedStorage(MemoryStorage):
    """Knows which snapshots are open and what is loaded; each kind of call has a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshots: weakref.WeakSet[WatchedSnapshot] = weakref.WeakSet()
        self.loaded: list[Oid] = []
        self.load_gate, self.snapshot_gate, self.commit_gate = Gate(), Gate(), Gate()

    def snapshot(self, at: Tid | None = None) -> StorageSnapshot:
        self.snapshot_gate()
        return super().snapshot(at)

    def commit(self, transaction: StoredTransaction) -> CommitResult:
        self.commit_gate()
        return super().commit(transaction)

    def _snapshot_of(self, tid: Tid) -> StorageSnapshot:
        snapshot = WatchedSnapshot(self, tid)
        self.snapshots.add(snapshot)
        return snapshot


class WatchedSnapshot(MemorySnapshot):
    _storage: WatchedStorage

    def load(self, oid: Oid) -> Revision:
        self._storage.loaded.append(oid)
        self._storage.load_gate()
        return super().load(oid)

    def close(self) -> None:
        super().close()
        self._storage.snapshots.discard(self)


@pytest.fixture
def storage() -> WatchedStorage:
    return WatchedStorage()


@pytest.fixture
def db(storage: WatchedStorage) -> Iterator[Database[Bank]]:
    with Database(storage, root_class=Bank) as db:
        yield db


@pytest.fixture
def cold(storage: WatchedStorage, db: Database[Bank]) -> Iterator[Database[Bank]]:
    """Another one, of which nothing but the root is loaded."""
    with Database(storage, root_class=Bank) as cold:
        storage.loaded.clear()
        yield cold


def elsewhere(db: Database[Bank], call: Callable[[Bank], T]) -> T:
    return Context().run(db.run, call)


def deposit(bank: Bank) -> None:
    bank.ann.balance += 10


def balances(bank: Bank) -> list[int]:
    return [bank.ann.balance, bank.bob.balance, bank.eve.balance]


class InThread:
    """A call in another thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._outcome: list[object] = []
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], object]) -> None:
        try:
            self._outcome.append(call())
        except BaseException as error:
            self._outcome.append(error)

    def join(self) -> object:
        """What it has returned; what it has raised, if it did."""
        self._thread.join(PATIENCE_S)
        (outcome,) = self._outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def in_thread(call: Callable[[], T]) -> object:
    return InThread(call).join()


# The pool


def test_what_was_loaded_is_not_loaded_again(cold: Database[Bank], storage: WatchedStorage) -> None:
    with cold.snapshot() as bank:
        assert balances(bank) == [1, 1, 1]
    assert len(storage.loaded) == 3
    for _ in range(3):
        assert cold.run(balances) == [1, 1, 1]
        with cold.snapshot() as bank:
            assert balances(bank) == [1, 1, 1]
    assert len(storage.loaded) == 3


def test_what_others_have_changed_is_loaded_again_and_nothing_else(
    cold: Database[Bank], db: Database[Bank], storage: WatchedStorage
) -> None:
    assert cold.run(balances) == [1, 1, 1]
    db.run(deposit)
    storage.loaded.clear()
    assert cold.run(balances) == [11, 1, 1]
    assert len(storage.loaded) == 1
    cold.run(deposit)  # what it has committed itself it knows
    assert cold.run(balances) == [21, 1, 1]
    assert len(storage.loaded) == 1
    tx = cold.transaction()
    deposit(tx.root)
    tx.abort()
    assert cold.run(balances) == [21, 1, 1]
    assert len(storage.loaded) == 2


def test_idle_connections_hold_no_snapshot(db: Database[Bank], storage: WatchedStorage) -> None:
    assert not storage.snapshots
    with db.snapshot() as bank, db.snapshot(at=db.storage.tid) as past:
        assert balances(bank) == balances(past)
        assert len(storage.snapshots) == 2
    assert not storage.snapshots
    db.run(deposit)
    assert not storage.snapshots
    db.run(balances)
    assert not storage.snapshots
    tx = db.transaction()
    deposit(tx.root)
    assert len(storage.snapshots) == 1
    tx.abort()
    elsewhere(db, deposit)
    assert not storage.snapshots
    tx = db.transaction()
    deposit(tx.root)
    elsewhere(db, deposit)
    with suppress(Exception):
        tx.commit()
    tx.abort()
    assert not storage.snapshots


def test_the_connection_that_was_used_last_is_used_next(
    cold: Database[Bank], storage: WatchedStorage
) -> None:
    first, second = cold.snapshot(), cold.snapshot()
    assert first.root is not second.root
    assert balances(first.root) == [1, 1, 1]
    second.close()
    first.close()
    storage.loaded.clear()
    assert cold.run(balances) == [1, 1, 1]
    assert storage.loaded == []


def test_no_more_connections_are_kept_than_a_few(
    db: Database[Bank], storage: WatchedStorage
) -> None:
    snapshots = [db.snapshot() for _ in range(IDLE_MAX + 4)]
    assert len({id(snapshot.root) for snapshot in snapshots}) == len(snapshots)
    assert len(storage.snapshots) == len(snapshots)
    for snapshot in snapshots:
        snapshot.close()
    assert db.stats().connections == IDLE_MAX
    assert not storage.snapshots
    assert db.run(balances) == [1, 1, 1]


def test_a_connection_that_cannot_begin_serves_nobody(
    db: Database[Bank], storage: WatchedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(db, deposit)

    def fail(since: Tid, until: Tid) -> frozenset[Oid] | None:
        raise StorageError("it is lost")

    tx = db.transaction()
    with Database(storage, root_class=Bank) as other:
        other.run(deposit)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "changes", fail)
        with pytest.raises(StorageError, match="it is lost"):
            tx.root  # noqa: B018
    assert not storage.snapshots
    assert db.stats().connections == 0
    assert tx.root.ann.balance == 21
    tx.abort()


def test_the_cache_is_bounded_when_a_connection_is_idle() -> None:
    with Database("memory:", cache_size=300) as db:
        db.run(lambda root: root.update((str(n), Account(n)) for n in range(1000)))
        for _ in range(5):
            assert db.run(lambda root: sum(a.balance for a in root.values())) == 499500
            assert db.stats().cached_objects <= 1002
            assert sum(not a._p_is_ghost() for a in _accounts(db)) <= 600


def _accounts(db: Database[Any]) -> list[Account]:
    (connection,) = db._idle
    found = (connection.cache.get(oid) for oid in connection.cache.objects)
    return [obj for obj in found if isinstance(obj, Account)]


# Threads


def test_a_transaction_goes_from_thread_to_thread(db: Database[Bank]) -> None:
    tx = db.transaction()
    bank: Any = in_thread(tx.__enter__)
    in_thread(lambda: deposit(bank))
    bank.bob.balance += 1
    in_thread(lambda: tx.__exit__(None, None, None))
    assert db.run(balances) == [11, 2, 1]


def test_threads_have_transactions_of_their_own(db: Database[Bank]) -> None:
    with db.transaction() as bank:
        bank.bob.balance = 5
        in_thread(lambda: db.run(deposit))
        assert bank.ann is not None
    assert db.run(balances) == [11, 5, 1]


def test_a_transaction_that_two_threads_use_at_once_is_refused(
    cold: Database[Bank], storage: WatchedStorage
) -> None:
    tx = cold.transaction(note="shared")
    bank = tx.root
    ann, bob, eve = bank.ann, bank.bob, bank.eve
    assert bob.balance == 1
    savepoint = tx.savepoint()
    storage.load_gate.close()
    loading = InThread(lambda: ann.balance)
    assert storage.load_gate.reached.wait(PATIENCE_S)
    calls: list[Callable[[], object]] = [
        lambda: eve.balance,
        lambda: setattr(bob, "balance", 2),
        lambda: tx.get(0),
        lambda: tx.copy(bob),
        tx.savepoint,
        savepoint.rollback,
        tx.commit,
        tx.abort,
    ]
    for call in calls:
        with pytest.raises(TransactionInUseError, match=r"'shared' .* two threads at the same"):
            call()
    storage.load_gate.open()
    assert loading.join() == 1
    eve.balance += 1
    assert tx.commit()
    assert cold.run(balances) == [1, 1, 2]


def test_a_transaction_that_another_thread_commits_is_refused(
    db: Database[Bank], storage: WatchedStorage
) -> None:
    tx = db.transaction()
    bank = tx.root
    deposit(bank)
    storage.commit_gate.close()
    committing = InThread(tx.commit)
    assert storage.commit_gate.reached.wait(PATIENCE_S)
    for call in (tx.commit, tx.abort, lambda: bank.bob.balance):
        with pytest.raises(TransactionInUseError):
            call()
    storage.commit_gate.open()
    assert committing.join() == storage.tid
    assert db.stats().connections == 1
    assert db.run(balances) == [11, 1, 1]


def test_a_snapshot_that_two_threads_use_at_once_is_refused(
    cold: Database[Bank], storage: WatchedStorage
) -> None:
    snapshot = cold.snapshot()
    bank = snapshot.root
    ann, bob = bank.ann, bank.bob
    storage.load_gate.close()
    loading = InThread(lambda: ann.balance)
    assert storage.load_gate.reached.wait(PATIENCE_S)
    for call in (lambda: bob.balance, snapshot.close):
        with pytest.raises(TransactionInUseError):
            call()
    storage.load_gate.open()
    assert loading.join() == 1
    snapshot.close()
    assert cold.stats().connections == 1
    assert not storage.snapshots


def test_a_transaction_that_two_threads_begin_at_once_begins_once(
    db: Database[Bank], storage: WatchedStorage
) -> None:
    tx = db.transaction()
    storage.snapshot_gate.close()
    first = InThread(lambda: tx.root)
    assert storage.snapshot_gate.reached.wait(PATIENCE_S)
    second = InThread(lambda: tx.root)
    storage.snapshot_gate.open()
    assert first.join() is second.join() is tx.root
    assert len(storage.snapshots) == 1
    deposit(tx.root)
    tx.commit()
    assert db.run(balances) == [11, 1, 1]


def test_a_connection_ends_only_the_session_that_it_serves(db: Database[Bank]) -> None:
    ended = db.transaction()
    connection: Any = ended.root._p_connection
    ended.abort()
    tx = db.transaction()
    with tx as bank:
        assert connection.serves(tx)
        assert not connection.serves(ended)
        bank.ann.balance = 5
        calls: list[Callable[[], object]] = [  # as a thread that was late would
            lambda: connection.commit_and_rest(ended, "", ""),
            lambda: connection.abort_and_rest(ended),
            lambda: connection.used(ended).__enter__(),
        ]
        for call in calls:
            with pytest.raises(TransactionEndedError, match="has ended"):
                call()
        assert bank.bob.balance == 1
    assert db.run(balances) == [5, 1, 1]


# What is left behind


def forget_a_transaction(db: Database[Bank]) -> None:
    tx = db.transaction(note="lost")
    deposit(tx.root)
    del tx
    gc.collect()


def forget_a_snapshot(db: Database[Bank]) -> None:
    assert db.snapshot().root.ann
    gc.collect()


def test_an_open_transaction_that_is_forgotten_is_a_warning_and_no_harm(
    db: Database[Bank], storage: WatchedStorage
) -> None:
    with pytest.warns(ResourceWarning, match=r"'lost' of .* was neither committed nor aborted"):
        forget_a_transaction(db)
    assert not storage.snapshots
    db.run(lambda bank: setattr(bank.bob, "balance", 2))
    assert db.run(balances) == [1, 2, 1]
    with pytest.warns(ResourceWarning, match=r"<snapshot of .* nor closed"):
        forget_a_snapshot(db)
    assert not storage.snapshots


def test_a_root_keeps_its_session_open(db: Database[Bank]) -> None:
    def look_at_the_root_alone() -> None:
        bank = db.snapshot().root
        gc.collect()
        elsewhere(db, deposit)
        assert bank.ann.balance == 1
        del bank
        gc.collect()

    with pytest.warns(ResourceWarning):
        look_at_the_root_alone()


def test_what_has_ended_or_not_begun_is_no_warning(db: Database[Bank]) -> None:
    db.transaction()
    db.snapshot()
    db.run(deposit)
    with db.snapshot():
        pass
    gc.collect()


# Forks


def in_child(call: Callable[[], object]) -> None:
    child = os.fork()
    if not child:
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_a_transaction_does_not_go_on_in_a_child_that_was_forked(cold: Database[Bank]) -> None:
    tx = cold.transaction()
    bank = tx.root
    bank.bob.balance = 5

    def call() -> None:
        with pytest.raises(StorageError, match="before it forked"):
            bank.ann.balance  # noqa: B018
        with pytest.raises(StorageError, match="before it forked"):
            tx.commit()
        cold.run(deposit)  # in the same context, but that one will not commit here
        tx.abort()
        assert cold.run(balances) == [11, 1, 1]

    in_child(call)
    assert bank.ann.balance == 1
    tx.commit()
    assert cold.run(balances) == [1, 5, 1]


# Interrupts

DURUS: Final = str(Path(durus.session.__file__).parent)


@contextmanager
def interrupted_at(count: int) -> Iterator[list[int]]:
    """KeyboardInterrupt when so many lines of the modules of sessions were executed."""
    left = [count]

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        path = Path(frame.f_code.co_filename)
        is_watched = str(path.parent) == DURUS and path.name in WATCHED
        if not is_watched or frame.f_code.co_name == "__del__":
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield left
    finally:
        sys.settrace(None)


WATCHED: Final = (
    "session.py",
    "database.py",
    "database_connection.py",
    "connection.py",
    "view.py",
    "changes.py",
    "serialize.py",
)


def pay(db: Database[Bank]) -> None:
    with db.transaction() as bank:
        deposit(bank)


def pay_explicitly(db: Database[Bank]) -> None:
    tx = db.transaction()
    try:
        deposit(tx.root)
        tx.commit()
    finally:
        tx.abort()


def pay_and_abort(db: Database[Bank]) -> None:
    tx = db.transaction()
    try:
        deposit(tx.root)
    finally:
        tx.abort()


def pay_after_a_savepoint(db: Database[Bank]) -> None:
    with (tx := db.transaction()) as bank:
        savepoint = tx.savepoint()
        bank.bob.balance = 77
        tx.savepoint()
        savepoint.rollback()
        deposit(bank)


def look(db: Database[Bank]) -> None:
    with db.snapshot() as bank:
        assert balances(bank)


def look_back(db: Database[Bank]) -> None:
    with db.snapshot(at=db.storage.tid) as bank:
        assert balances(bank)


@pytest.fixture
def little_to_collect() -> Iterator[None]:
    """What there was before a test is no garbage: so `gc.collect()` is quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("little_to_collect")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "call", [pay, pay_explicitly, pay_and_abort, pay_after_a_savepoint, look, look_back]
)
def test_an_interrupt_at_any_moment_leaves_the_pool_as_it_should_be(
    call: Callable[[Database[Bank]], None],
) -> None:
    storage = WatchedStorage()
    db = Database(storage, root_class=Bank)
    paid, count, went_on = 0, 0, False
    while not went_on:
        count += 1
        tid = storage.tid
        with interrupted_at(count) as left:
            with suppress(KeyboardInterrupt):
                call(db)
            went_on = left[0] > 0
        gc.collect()
        assert not storage.snapshots, count
        assert len({id(connection) for connection in db._idle}) == len(db._idle)
        assert all(connection._session is None for connection in db._idle)
        paid += 10 * (storage.tid != tid)
        db.run(lambda bank: setattr(bank.eve, "balance", bank.eve.balance + 1))
        assert in_thread(lambda: db.run(balances)) == [1 + paid, 1, 1 + count]
        snapshots = [db.snapshot() for _ in range(3)]
        assert len({id(snapshot.root) for snapshot in snapshots}) == 3
        for snapshot in snapshots:
            snapshot.close()
    assert count > 20


def test_an_abort_that_is_interrupted_ends_the_transaction(
    db: Database[Bank], monkeypatch: pytest.MonkeyPatch, storage: WatchedStorage
) -> None:
    tx = db.transaction()
    connection: Any = tx.root._p_connection
    ann = tx.root.ann
    deposit(tx.root)

    def interrupt(count: int = 0) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(connection._changes, "roll_back", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tx.abort()
    with pytest.raises(TransactionEndedError):
        ann.balance  # noqa: B018
    with pytest.raises(TransactionEndedError):
        tx.root  # noqa: B018
    assert connection not in db._idle
    assert not storage.snapshots
    db.run(deposit)
    assert db.run(balances) == [11, 1, 1]


def test_a_block_whose_abort_is_interrupted_hinders_no_later_transaction(
    db: Database[Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    def fail() -> None:
        with db.transaction() as bank:
            deposit(bank)
            raise ValueError

    with monkeypatch.context() as patch:
        patch.setattr(PooledConnection, "abort_and_rest", interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:  # which holds the frames, as a shell does
            fail()
    db.run(deposit)
    assert db.run(balances) == [11, 1, 1]
    assert caught.value
