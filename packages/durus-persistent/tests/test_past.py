"""Connections to the past: what they see, and that they change nothing."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from itertools import count
from typing import Any

import pytest

from durus.btree import BTree
from durus.classic import ClassicAdapter
from durus.connection import Connection
from durus.error import (
    DurusKeyError,
    HistoryUnavailableError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    WrongClassError,
)
from durus.interfaces import NO_TID, Tid
from durus.persistent import ComputedAttribute, Persistent, note_change
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet
from durus.storage import MemoryStorage, Storage
from durus.times import time_of


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
        connection.root["account"] = Account(0)
        connection.commit()
        yield connection


def deposit(connection: Connection, balance: int) -> Tid:
    connection.root["account"].balance = balance
    tid = connection.commit()
    assert tid is not None
    return tid


# What it sees.


def test_it_sees_what_there_was(storage: MemoryStorage, connection: Connection) -> None:
    tids = [deposit(connection, balance) for balance in (1, 2, 3)]
    for balance, tid in enumerate(tids, 1):
        with Connection(storage, at=tid) as past:
            assert past.root["account"].balance == balance
            assert past.tid == tid
    with Connection(storage, at=Tid(tids[1] - 1)) as past:
        assert past.root["account"].balance == 1
        assert past.tid == tids[0]


def test_it_goes_by_the_clock(
    storage: MemoryStorage, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.time_ns() // 10**9 * 10**9 + 10**12
    minutes = count(start, 60 * 10**9)
    monkeypatch.setattr(time, "time_ns", lambda: next(minutes))
    for balance in range(5):
        deposit(connection, balance)
    first = time_of(next(storage.transactions(Tid(start))).tid)
    last = time_of(storage.tid)
    second = timedelta(seconds=1)
    moments: list[tuple[datetime | timedelta, int]] = [
        (first, 0),
        (last, 4),
        (last - second, 3),
        (last + second, 4),
        (last.astimezone(timezone(timedelta(hours=5))), 4),
        (last + timedelta(days=1), 4),
        (timedelta(0), 4),
        (time_of(next(minutes)) - last + timedelta(minutes=3), 3),
    ]
    for moment, balance in moments:
        with Connection(storage, at=moment) as past:
            assert past.root["account"].balance == balance


def test_a_time_without_zone_is_refused(storage: MemoryStorage, connection: Connection) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        Connection(storage, at=datetime.now())


def test_neither_abort_nor_commit_nor_others_move_it(
    storage: MemoryStorage, connection: Connection
) -> None:
    tid = deposit(connection, 1)
    with Connection(storage, at=datetime.now(UTC)) as past:
        account = past.root["account"]
        deposit(connection, 2)
        past.abort()
        assert account.balance == 1
        assert past.commit() is None
        past.get_cache().set_size(1)
        past.abort()
        deposit(connection, 3)
        assert (account.balance, past.tid) == (1, tid)


def test_it_never_conflicts_with_a_pack(storage: MemoryStorage, connection: Connection) -> None:
    tid = deposit(connection, 1)
    past = Connection(storage, at=tid)
    del connection.root["account"]
    connection.commit()
    connection.pack()
    past.abort()
    assert past.root["account"].balance == 1
    assert [type(obj) for obj in past.get_crawler()][1:] == [Account]


def test_it_knows_its_transaction(storage: MemoryStorage, connection: Connection) -> None:
    connection.user, connection.note = "ann", "pay day"
    tid = deposit(connection, 1)
    deposit(connection, 2)
    with Connection(storage, at=tid) as past:
        found = past.transaction
        assert found is not None
        assert (found.tid, found.user, found.note) == (tid, "ann", "pay day")


def test_a_connection_to_the_newest_has_a_tid_and_a_transaction(
    storage: MemoryStorage, connection: Connection
) -> None:
    tid = deposit(connection, 1)
    assert connection.tid == tid
    assert connection.transaction is not None
    assert connection.transaction.tid == tid
    with Connection(storage) as other:
        later = deposit(other, 2)
        assert connection.tid == tid
        connection.abort()
        assert connection.tid == later


def test_an_object_that_came_later_is_not_there(
    storage: MemoryStorage, connection: Connection
) -> None:
    tid = connection.tid
    connection.root["other"] = Account(1)
    connection.commit()
    oid = connection.root["other"]._p_oid
    with Connection(storage, at=tid) as past:
        assert past.get(oid) is None
        with pytest.raises(DurusKeyError):
            past.get(oid, Account)


# What cannot be seen.


def test_a_past_that_was_packed_away_is_refused(
    storage: MemoryStorage, connection: Connection
) -> None:
    tid = deposit(connection, 1)
    deposit(connection, 2)
    connection.pack()
    for at in (tid, time_of(tid - 10**9), timedelta(days=1)):
        with pytest.raises(HistoryUnavailableError, match="packed away"):
            Connection(storage, at=at)


def test_a_past_before_the_root_is_refused(storage: MemoryStorage) -> None:
    with pytest.raises(HistoryUnavailableError, match="it is empty"):
        Connection(storage, at=datetime.now(UTC))
    tid = Connection(storage).tid
    for at in (NO_TID, tid - 1, datetime(1999, 1, 1, tzinfo=UTC)):
        with pytest.raises(HistoryUnavailableError, match=f"first transaction has tid {tid}"):
            Connection(storage, at=at)


class ForgetfulStorage(Storage):
    """A classic storage: it has only what is newest."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}

    def sync(self) -> list[bytes]:
        return []


def test_a_storage_without_history_says_so() -> None:
    classic = ForgetfulStorage()
    for storage in (classic, ClassicAdapter(classic)):
        with pytest.raises(HistoryUnavailableError, match=r"ForgetfulStorage.*keeps no history"):
            Connection(storage, at=datetime.now(UTC))


def test_nothing_is_opened_for_a_past_that_is_not_there() -> None:
    with pytest.raises(StorageError, match="in memory is always a new one"):
        Connection("memory:", at=1)


def test_the_class_of_the_root_is_checked(storage: MemoryStorage, connection: Connection) -> None:
    with pytest.raises(WrongClassError):
        Connection(storage, root_class=Account, at=connection.tid)


# That it changes nothing.


def _assign(account: Account) -> None:
    account.balance = 5


def _delete(account: Account) -> None:
    del account.balance


def _set_changed(account: Account) -> None:
    account._p_changed = True


@pytest.mark.parametrize("change", [_assign, _delete, _set_changed, note_change])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_change_is_refused_at_once(
    storage: MemoryStorage,
    connection: Connection,
    change: Callable[[Account], object],
    is_loaded: bool,
) -> None:
    tid = deposit(connection, 1)
    past = Connection(storage, at=tid)
    account = past.root["account"]
    if is_loaded:
        assert account.balance == 1
    with pytest.raises(ReadOnlyError, match=rf"<Account 1> cannot.* tid {tid}.* without at="):
        change(account)
    assert account.balance == 1
    assert not account._p_changed
    assert past.commit() is None
    assert storage.tid == tid


def test_a_change_of_a_container_is_refused_at_once(storage: MemoryStorage) -> None:
    with Connection(storage) as connection:
        connection.root["list"] = PersistentList([1])
        connection.root["set"] = PersistentSet([1])
        connection.root["tree"] = BTree()
        connection.root["tree"][1] = 1
        connection.commit()
        tid = connection.tid
    past = Connection(storage, at=tid)
    root: Any = past.root
    changes: list[Callable[[], object]] = [
        lambda: root.update(a=1),
        lambda: root.pop("list"),
        lambda: root["list"].append(2),
        lambda: root["list"].sort(),
        lambda: root["set"].add(2),
        lambda: root["tree"].update({2: 2}),
        lambda: root["tree"].clear(),
    ]
    for change in changes:
        with pytest.raises(ReadOnlyError):
            change()
    assert sorted(root) == ["list", "set", "tree"]
    assert (list(root["list"]), list(root["set"]), dict(root["tree"])) == ([1], [1], {1: 1})


def test_what_is_computed_may_be_kept(storage: MemoryStorage, connection: Connection) -> None:
    connection.root["sum"] = ComputedAttribute()
    connection.commit()
    past = Connection(storage, at=connection.tid)
    assert past.root["sum"].get(lambda: 7) == 7


def test_an_object_that_is_not_stored_may_be_changed() -> None:
    with MemoryStorage() as storage:
        past = Connection(storage, at=Connection(storage).tid)
        account = Account(1)
        account.balance = 2
        with pytest.raises(ReadOnlyError):
            past.root["account"] = account


def test_it_neither_packs_nor_undoes(storage: MemoryStorage, connection: Connection) -> None:
    tid = deposit(connection, 1)
    past = Connection(storage, at=tid)
    for change in (past.pack, lambda: past.undo(tid)):
        with pytest.raises(ReadOnlyError):
            change()
    assert storage.tid == tid
    assert len(list(storage.transactions())) == 3


# Its end.


def test_after_close_it_says_so(storage: MemoryStorage, connection: Connection) -> None:
    past = Connection(storage, at=connection.tid)
    account = past.root["account"]
    past.close()
    for use in (past.abort, lambda: account.balance):
        with pytest.raises(StorageClosedError):
            use()
    with closing(storage.snapshot()):
        pass  # the storage was not opened by it


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_in_a_forked_child_it_goes_on_after_abort(
    storage: MemoryStorage, connection: Connection
) -> None:
    tid = deposit(connection, 1)
    past = Connection(storage, at=tid)
    deposit(connection, 2)
    child = os.fork()
    if not child:
        status = 1
        try:
            try:
                past.root["account"]
            except StorageError:
                past.abort()
                status = 0 if past.root["account"].balance == 1 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Packing


def test_a_connection_packs_up_to_some_time(storage: MemoryStorage, connection: Connection) -> None:
    tids = [deposit(connection, balance) for balance in (1, 2, 3)]
    connection.pack(keep=tids[1])
    with Connection(storage, at=tids[1]) as past:
        assert past.root["account"].balance == 2
    with pytest.raises(HistoryUnavailableError):
        Connection(storage, at=tids[0])
    connection.pack()
    with pytest.raises(HistoryUnavailableError):
        Connection(storage, at=tids[1])
    assert connection.root["account"].balance == 3


def test_a_storage_without_history_has_none_to_keep() -> None:
    class Classic(Storage):
        """As programs of 4.x have them; it remembers nothing."""

        def __init__(self) -> None:
            self.inner = MemoryStorage()

        def __getattribute__(self, name: str) -> Any:
            inner = object.__getattribute__(self, "__dict__").get("inner")
            return object.__getattribute__(self if inner is None else inner, name)

    connection = Connection(ClassicAdapter(Classic()))
    with pytest.raises(HistoryUnavailableError, match="keeps no history, so there is none to keep"):
        connection.pack(keep=timedelta(days=1))
