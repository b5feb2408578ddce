"""Moving through the transactions of a database, listing the states of objects, following."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any, assert_type

import pytest

from durus.classic_storage import Storage as ClassicStorage
from durus.connection import Connection
from durus.error import (
    DurusKeyError,
    ForeignReferenceError,
    HistoryUnavailableError,
    ReadOnlyError,
    StorageClosedError,
)
from durus.history import HistoryConnection, follow, revisions
from durus.interfaces import NO_TID, ROOT_OID, CommittedTransaction, Tid
from durus.persistent import Persistent, is_ghost, oid_of
from durus.storage import MemoryStorage
from durus.testing.storage_contract import commit, create, make_record
from durus.times import time_of


class Account(Persistent):
    balance: int

    def __init__(self, balance: int = 0) -> None:
        self.balance = balance


class SavingsAccount(Account):
    pass


@pytest.fixture
def storage() -> Iterator[MemoryStorage]:
    with MemoryStorage() as storage:
        yield storage


@pytest.fixture
def connection(storage: MemoryStorage) -> Iterator[Connection]:
    with Connection(storage) as connection:
        yield connection


def save(connection: Connection, **values: Any) -> Tid:
    """Assign attributes of the root's objects, of new ones if need be, in one transaction."""
    for name, balance in values.items():
        if name in connection.root:
            connection.root[name].balance = balance
        else:
            connection.root[name] = Account(balance)
    tid = connection.commit()
    assert tid is not None
    return tid


# Moving.


def test_it_begins_at_the_newest_and_moves_by_one_transaction(
    storage: MemoryStorage, connection: Connection
) -> None:
    tids = [connection.tid, save(connection, ann=1), save(connection, bob=1)]
    tids += [save(connection, ann=2), save(connection, bob=2)]
    with HistoryConnection(storage) as history:
        assert history.tid == tids[-1]
        seen = [(history.tid, {name: obj.balance for name, obj in history.root.items()})]
        while history.previous():
            seen.append((history.tid, {n: obj.balance for n, obj in history.root.items()}))
        assert seen[::-1] == [
            (tids[0], {}),
            (tids[1], {"ann": 1}),
            (tids[2], {"ann": 1, "bob": 1}),
            (tids[3], {"ann": 2, "bob": 1}),
            (tids[4], {"ann": 2, "bob": 2}),
        ]
        assert history.tid == tids[0]
        for tid, balances in seen[-2::-1]:
            assert history.next()
            assert (history.tid, {n: o.balance for n, o in history.root.items()}) == (tid, balances)
        assert not history.next()
        assert history.tid == tids[-1]


def test_what_others_commit_is_the_next_transaction(
    storage: MemoryStorage, connection: Connection
) -> None:
    tid = save(connection, ann=1)
    history = HistoryConnection(storage)
    later = save(connection, ann=2)
    history.abort()
    assert (history.tid, history.root["ann"].balance) == (tid, 1)
    assert history.next()
    assert (history.tid, history.root["ann"].balance) == (later, 2)


def test_objects_that_did_not_change_stay_loaded(
    storage: MemoryStorage, connection: Connection
) -> None:
    save(connection, ann=1, bob=1)
    save(connection, bob=2)
    history = HistoryConnection(storage)
    ann, bob = history.root["ann"], history.root["bob"]
    assert (ann.balance, bob.balance) == (1, 2)
    assert history.previous()
    assert (is_ghost(ann), is_ghost(bob)) == (False, True)
    assert bob.balance == 1


def test_it_moves_to_where_an_object_differs(
    storage: MemoryStorage, connection: Connection
) -> None:
    tids = [connection.tid]
    for values in ({"ann": 1}, {"bob": 1}, {"ann": 2}, {"bob": 2}, {"ann": 3}, {"bob": 3}):
        tids.append(save(connection, **values))
    history = HistoryConnection(storage)
    ann = history.root["ann"]
    for tid, balance in ((tids[4], 2), (tids[2], 1)):
        assert history.previous_instance(ann)
        assert (history.tid, ann.balance) == (tid, balance)
    assert history.previous_instance(ann)
    assert history.tid == tids[0]
    assert list(history.root) == []
    assert not history.previous_instance(ann)
    assert history.tid == tids[0]
    for tid, balance in ((tids[1], 1), (tids[3], 2), (tids[5], 3)):
        assert history.next_instance(ann)
        assert (history.tid, ann.balance) == (tid, balance)
    assert not history.next_instance(ann)
    assert history.tid == tids[5]


def test_an_object_that_does_not_exist_yet_says_so(
    storage: MemoryStorage, connection: Connection
) -> None:
    save(connection, ann=1)
    history = HistoryConnection(storage)
    ann = history.root["ann"]
    assert history.previous_instance(ann)
    with pytest.raises(DurusKeyError, match="no object with oid 1"):
        ann.balance  # noqa: B018 - reading is the point
    with pytest.raises(KeyError):  # as in Durus 3.7
        ann.balance  # noqa: B018
    assert history.next()
    assert ann.balance == 1


def test_the_root_has_instances_too(storage: MemoryStorage, connection: Connection) -> None:
    first, second = connection.tid, save(connection, ann=1)
    history = HistoryConnection(storage)
    assert history.previous_instance(history.root)
    assert history.tid == first
    assert not history.previous_instance(history.root)
    assert history.next_instance(history.root)
    assert history.tid == second


def test_it_can_begin_in_the_past(storage: MemoryStorage, connection: Connection) -> None:
    first, second = save(connection, ann=1), save(connection, ann=2)
    save(connection, ann=3)
    history = HistoryConnection(storage, at=second)
    assert history.root["ann"].balance == 2
    assert history.previous()
    assert history.tid == first


def test_what_was_seen_elsewhere_may_leave_the_cache(
    storage: MemoryStorage, connection: Connection
) -> None:
    save(connection, **{f"a{number}": number for number in range(50)})
    save(connection, a0=-1)
    history = HistoryConnection(storage, cache_size=10)
    accounts = list(history.root.values())
    assert [account.balance for account in accounts] == [-1, *range(1, 50)]
    assert not any(map(is_ghost, accounts))
    assert history.previous()
    assert sum(map(is_ghost, accounts)) >= 25
    assert [account.balance for account in accounts] == list(range(50))


def test_it_is_read_only(storage: MemoryStorage, connection: Connection) -> None:
    save(connection, ann=1)
    save(connection, ann=2)
    history = HistoryConnection(storage)
    for balance in (2, 1):
        ann = history.root["ann"]
        with pytest.raises(ReadOnlyError, match="<Account 1>"):
            ann.balance = 7
        assert ann.balance == balance
        assert history.commit() is None
        history.previous()


def test_after_close_it_moves_no_more(storage: MemoryStorage, connection: Connection) -> None:
    save(connection, ann=1)
    save(connection, ann=2)
    history = HistoryConnection(storage, at=storage.tid - 1)
    ann = history.root["ann"]
    history.close()
    for move in (history.previous, history.next):
        with pytest.raises(StorageClosedError):
            move()
    for move_to in (history.previous_instance, history.next_instance):
        with pytest.raises(StorageClosedError):
            move_to(ann)


def test_an_object_of_another_connection_is_refused(
    storage: MemoryStorage, connection: Connection
) -> None:
    save(connection, ann=1)
    history = HistoryConnection(storage)
    for obj in (connection.root["ann"], Account(1)):
        for move in (history.previous_instance, history.next_instance):
            with pytest.raises(ForeignReferenceError, match="does not belong to this connection"):
                move(obj)


def test_it_goes_back_as_far_as_the_last_pack(
    storage: MemoryStorage, connection: Connection
) -> None:
    save(connection, ann=1)
    packed = save(connection, ann=2)
    connection.pack()
    save(connection, ann=3)
    history = HistoryConnection(storage)
    ann = history.root["ann"]
    assert history.previous()
    assert (history.tid, ann.balance) == (packed, 2)
    assert not history.previous()
    assert not history.previous_instance(ann)
    assert (history.tid, ann.balance) == (packed, 2)


def test_a_pack_does_not_disturb_it(storage: MemoryStorage, connection: Connection) -> None:
    first = save(connection, ann=1, bob=1)
    save(connection, ann=2)
    del connection.root["bob"]
    packed = connection.commit()
    history = HistoryConnection(storage, at=first)
    connection.pack()
    later = save(connection, ann=3)
    ann, bob = history.root["ann"], history.root["bob"]
    assert (ann.balance, bob.balance) == (1, 1)
    assert not history.previous()
    assert not history.next_instance(bob)
    assert history.next()  # to the first that can still be seen
    assert (history.tid, ann.balance) == (packed, 2)
    assert history.next_instance(ann)
    assert (history.tid, ann.balance) == (later, 3)


def test_an_object_may_have_had_another_class(
    storage: MemoryStorage, connection: Connection
) -> None:
    save(connection, ann=1)
    connection.root["ann"].__class__ = SavingsAccount
    save(connection, ann=2)
    history = HistoryConnection(storage)
    ann = history.root["ann"]
    assert (ann.balance, type(ann)) == (2, SavingsAccount)
    assert history.previous()
    assert (ann.balance, type(ann)) == (1, Account)
    assert history.next()
    assert (ann.balance, type(ann)) == (2, SavingsAccount)


def test_the_root_has_the_class_that_was_asked_for(storage: MemoryStorage) -> None:
    Connection(storage, root_class=Account).close()
    history = HistoryConnection(storage, root_class=Account)
    assert_type(history, HistoryConnection[Account])
    assert_type(history.root, Account)
    for revision in revisions(history.root):
        assert_type(revision.obj, Account)


def test_transactions_before_the_root_are_no_place_for_it(storage: MemoryStorage) -> None:
    with pytest.raises(HistoryUnavailableError, match="it is empty"):
        HistoryConnection(storage)


# The states of an object.


def test_the_states_of_an_object_come_newest_first(
    storage: MemoryStorage, connection: Connection
) -> None:
    connection.user = "ann"
    tids = [save(connection, ann=balance) for balance in (1, 2, 3)]
    found = list(revisions(connection.root["ann"]))
    assert [revision.tid for revision in found] == tids[::-1]
    assert [revision.obj.balance for revision in found] == [3, 2, 1]
    assert all(type(revision.obj) is Account for revision in found)
    assert [r.transaction.user for r in found if r.transaction] == ["ann"] * 3


def test_a_state_is_a_copy_of_its_own(storage: MemoryStorage, connection: Connection) -> None:
    save(connection, ann=1)
    save(connection, ann=2)
    old = list(revisions(connection.root["ann"]))[-1].obj
    old.balance = 7
    assert connection.root["ann"].balance == 2
    connection.root["copy"] = old
    connection.commit()
    assert oid_of(old) not in (None, oid_of(connection.root["ann"]))
    with Connection(storage) as other:
        assert other.root["copy"].balance == 7
        assert other.root["ann"].balance == 2


def test_a_state_refers_to_the_objects_of_the_connection(
    storage: MemoryStorage, connection: Connection
) -> None:
    save(connection, ann=1)
    (_, oldest) = save(connection, bob=1), list(revisions(connection.root))[-1]
    assert list(oldest.obj) == []
    with_ann = list(revisions(connection.root))[1].obj
    assert with_ann["ann"] is connection.root["ann"]


def test_what_was_never_stored_has_no_states(connection: Connection) -> None:
    with pytest.raises(ForeignReferenceError, match="never stored"):
        revisions(Account(1))


def test_a_transaction_that_a_pack_has_dropped_is_unknown() -> None:
    storage = MemoryStorage()
    create(storage, 0)
    many = storage.reserve_oids(100_001)
    commit(storage, dict.fromkeys(many, make_record(0)), created=many)
    storage.pack()
    with Connection(storage, root_class=Persistent) as connection:
        (revision,) = revisions(connection.root)
        assert revision.transaction is None
        assert revision.tid == next(storage.revisions(ROOT_OID)).tid


# Following.


def tids_of(found: Iterator[CommittedTransaction]) -> list[Tid]:
    return [transaction.tid for transaction in found]


def test_it_lists_what_came_after(storage: MemoryStorage, connection: Connection) -> None:
    tids = [save(connection, ann=1), save(connection, bob=1), save(connection, ann=2)]
    assert tids_of(follow(storage, tids[0])) == tids[1:]
    assert tids_of(follow(storage, NO_TID))[1:] == tids
    assert tids_of(follow(storage, tids[-1])) == []
    assert tids_of(follow(storage, time_of(tids[-1]))) == []
    last = next(follow(storage, tids[1]))
    assert list(last.oids) == [oid_of(connection.root["ann"])]


def test_it_waits_for_more(storage: MemoryStorage, connection: Connection) -> None:
    connection.root["a"] = Account(0)
    connection.commit()
    found = follow(storage, connection.tid, timeout_s=None)
    written: list[Tid] = []

    def write() -> None:
        with Connection(storage) as other:
            for balance in range(20):
                other.root["a"].balance = balance
                tid = other.commit()
                assert tid is not None
                written.append(tid)

    writer = threading.Thread(target=write)
    writer.start()
    tids = tids_of(islice(found, 20))
    writer.join()
    assert tids == written


def test_it_waits_as_long_as_it_is_told(storage: MemoryStorage, connection: Connection) -> None:
    tid = save(connection, ann=1)
    start = time.monotonic()
    assert tids_of(follow(storage, tid, timeout_s=0.1)) == []
    assert time.monotonic() - start >= 0.1


def test_what_comes_while_one_is_dealt_with_is_not_missed(
    storage: MemoryStorage, connection: Connection
) -> None:
    start = connection.tid
    tids = [save(connection, ann=1)]
    found = []
    for transaction in follow(storage, start):
        found.append(transaction.tid)
        if len(tids) < 5:
            tids.append(save(connection, ann=1 + len(tids)))
    assert found == tids


def test_what_a_pack_forgets_before_it_was_seen_comes_as_one(
    storage: MemoryStorage, connection: Connection
) -> None:
    start = save(connection, ann=1, bob=1)
    following = follow(storage, start, timeout_s=None)
    save(connection, ann=2, lost=2)
    connection.user, connection.note = "ann", "the last one"
    connection.root["bob"].balance = 3
    connection.commit()
    del connection.root["lost"]
    connection.note = "really"
    packed = connection.commit()
    assert packed is not None
    connection.pack()
    later = save(connection, ann=4)
    joined = next(following)
    assert (joined.tid, joined.user, joined.note) == (packed, "ann", "really")
    with Connection(storage, at=joined.tid) as past:
        found = {name: account.balance for name, account in past.root.items()}
        assert found == {"ann": 2, "bob": 3}
        assert {*joined.oids} == {ROOT_OID, *map(oid_of, past.root.values())}
    assert next(following).tid == later
    assert tids_of(follow(storage, packed)) == [later]


def test_when_a_pack_has_forgotten_too_much_it_says_what_to_do(storage: MemoryStorage) -> None:
    create(storage, 0)
    many = storage.reserve_oids(100_001)
    packed = commit(storage, dict.fromkeys(many, make_record(0)), created=many).tid
    storage.pack()
    for since in (NO_TID, packed - 1):
        with pytest.raises(HistoryUnavailableError, match=r"build anew .* from a snapshot"):
            next(follow(storage, since))
    later = commit(storage, {ROOT_OID: make_record(1)}).tid
    assert tids_of(follow(storage, packed)) == [later]


def test_a_time_that_is_no_number_is_refused(storage: MemoryStorage) -> None:
    with pytest.raises(ValueError, match="timeout_s is a number of seconds, or None, not nan"):
        follow(storage, NO_TID, timeout_s=float("nan"))


def test_it_ends_when_the_storage_is_closed(storage: MemoryStorage, connection: Connection) -> None:
    found = follow(storage, connection.tid, timeout_s=None)
    closing_it = threading.Timer(0.05, storage.close)
    closing_it.start()
    with pytest.raises(StorageClosedError):
        next(found)
    closing_it.join()


def test_without_history_nothing_can_be_followed() -> None:
    class ForgetfulStorage(ClassicStorage):
        def __init__(self) -> None:
            pass

    with pytest.raises(HistoryUnavailableError, match="keeps no history"):
        follow(ForgetfulStorage(), 0)
    with closing(MemoryStorage()) as storage, pytest.raises(ValueError, match="no tid"):
        follow(storage, -1)
