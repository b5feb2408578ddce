"""MemoryStorage beyond the contract, and the classic calls on it."""

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from durus.error import (
    ConflictError,
    DurusKeyError,
    HistoryUnavailableError,
    StorageClosedError,
    WriteConflictError,
)
from durus.interfaces import (
    CHANGES_MAX,
    ROOT_OID,
    CommitResult,
    Oid,
    Progress,
    Record,
    Tid,
    Transaction,
)
from durus.record import pack_record, record_from_classic, record_to_classic
from durus.storage import MemoryStorage
from durus.testing.storage_contract import commit, create, make_record, value_of
from durus.times import time_of
from durus.undo import undo


def oid(number: int) -> Oid:
    return Oid(number.to_bytes(8, "big"))


def classic(oid: Oid, value: object, refs: Iterable[Oid] = ()) -> bytes:
    return record_to_classic(oid, make_record(value, refs))


def classic_value(storage: MemoryStorage, oid: Oid) -> object:
    return value_of(record_from_classic(storage.load(oid))[1])


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


# Commits that do not come to their end.


class InterruptedWrites(dict[Oid, Record]):
    """Ctrl-C when the first of them is stored."""

    def items(self) -> Any:
        yield next(iter(super().items()))
        raise KeyboardInterrupt


def test_nothing_is_left_of_a_commit_that_an_interrupt_ended(storage: MemoryStorage) -> None:
    (a,) = create(storage, 1)
    before = storage.tid
    changed, created = InterruptedWrites({a: make_record(1)}), storage.reserve_oids(1)[0]
    new = InterruptedWrites({created: make_record(2)})
    for writes, oids in ((changed, ()), (new, (created,))):
        with pytest.raises(KeyboardInterrupt):
            commit(storage, writes, created=oids)
        assert storage.tid == before
        assert [value_of(revision.record) for revision in storage.revisions(a)] == [0]
    with pytest.raises(DurusKeyError):
        list(storage.revisions(created))
    commit(storage, {ROOT_OID: make_record(3, [a])})
    assert classic_value(storage, a) == 0
    commit(storage, {created: make_record(4)}, created=[created])
    assert classic_value(storage, created) == 4
    assert len(list(storage.transactions())) == 4


def test_a_forked_child_goes_on_though_another_thread_was_committing(
    storage: MemoryStorage,
) -> None:
    (a,) = create(storage, 1)
    with pytest.raises(KeyboardInterrupt):
        commit(storage, InterruptedWrites({a: make_record(1)}))
    with storage._lock:
        child = os.fork()
        if not child:
            try:
                commit(storage, {ROOT_OID: make_record(2, [a])})
                assert classic_value(storage, a) == 0
                os._exit(0)
            finally:
                os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


# Pack and what it forgets.


def test_the_first_oid_is_that_of_the_root(storage: MemoryStorage) -> None:
    assert storage.reserve_oids(2) == [ROOT_OID, oid(1)]


def test_a_closed_snapshot_says_so(storage: MemoryStorage) -> None:
    create(storage, 0)
    snapshot = storage.snapshot()
    snapshot.close()
    with pytest.raises(StorageClosedError, match="snapshot"):
        snapshot.load(ROOT_OID)


def test_without_a_root_pack_keeps_everything(storage: MemoryStorage) -> None:
    storage.reserve_oids(1)
    (a,) = storage.reserve_oids(1)
    commit(storage, {a: make_record(1)}, created=[a])
    storage.pack()
    assert classic_value(storage, a) == 1


def test_changes_and_ids_are_still_known_after_a_pack(storage: MemoryStorage) -> None:
    (a,) = create(storage, 1)
    since = storage.tid
    tid = commit(storage, {a: make_record(1)}).tid
    (transaction,) = storage.transactions(tid)
    storage.pack()
    assert storage.changes(since, tid) == frozenset([a])
    assert storage.find(transaction.id) == tid


def test_every_transaction_that_is_listed_can_be_viewed(storage: MemoryStorage) -> None:
    create(storage, 1)
    storage.pack()
    packed = storage.tid
    later = commit(storage, {ROOT_OID: make_record(1)}).tid
    assert [transaction.tid for transaction in storage.transactions()] == [packed, later]
    for tid in (packed, later):
        assert storage.snapshot(tid).tid == tid


def test_very_many_changes_before_a_pack_are_unknown_after_it(storage: MemoryStorage) -> None:
    (a,) = create(storage, 1)
    since = storage.tid
    oids = storage.reserve_oids(CHANGES_MAX)
    commit(storage, dict.fromkeys(oids, make_record(0)), created=oids)
    many = storage.tid
    commit(storage, {a: make_record(1)})
    assert commit(storage, {a: make_record(2)}, since=storage.tid).changed == frozenset()
    storage.pack()
    packed = storage.tid
    assert storage.changes(since, packed) is None
    assert storage.changes(many, packed) == frozenset([a])
    with pytest.raises(WriteConflictError):
        commit(storage, {ROOT_OID: make_record(1)}, since=since)


def test_a_moment_after_a_pack_and_before_the_next_commit_is_the_pack(
    storage: MemoryStorage,
) -> None:
    (a,) = create(storage, 1)
    oids = storage.reserve_oids(CHANGES_MAX + 1)
    commit(storage, dict.fromkeys(oids, make_record(0)), created=oids)
    packed = storage.tid
    storage.pack()  # forgets all transactions
    later = commit(storage, {a: make_record(1)}).tid
    snapshot = storage.snapshot(Tid(later - 1))
    assert snapshot.tid == packed
    assert value_of(snapshot.load(a).record) == 0
    with pytest.raises(HistoryUnavailableError, match=str(packed)):
        storage.snapshot(Tid(packed - 1))


def test_a_pack_may_keep_the_history_since_a_tid(storage: MemoryStorage) -> None:
    a, b, c = create(storage, 3)
    tids = [commit(storage, {ROOT_OID: make_record(1, [a, b])}).tid]
    tids += [commit(storage, {oid: make_record(i)}).tid for i, oid in enumerate([a, b, a], 1)]
    tids.append(commit(storage, {ROOT_OID: make_record(2, [b])}).tid)
    storage.pack(keep=Tid(tids[2] - 1))
    assert [t.tid for t in storage.transactions()] == tids[1:]
    with pytest.raises(HistoryUnavailableError):
        storage.snapshot(tids[0])
    past = storage.snapshot(tids[1])
    assert [value_of(past.load(oid).record) for oid in (ROOT_OID, a, b)] == [1, 1, 0]
    assert [value_of(revision.record) for revision in storage.revisions(a)] == [3, 1]
    with pytest.raises(DurusKeyError):
        past.load(c)
    storage.pack(keep=tids[0])  # there is no more to keep
    assert [t.tid for t in storage.transactions()] == tids[1:]


def test_a_pack_keeps_what_was_written_since_then_wherever_it_is(storage: MemoryStorage) -> None:
    a, b = create(storage, 2)
    horizon = commit(storage, {ROOT_OID: make_record(1)}).tid
    changed = commit(storage, {a: make_record(1, [b])}).tid  # by somebody who still has it
    storage.pack(keep=horizon)
    assert value_of(storage.snapshot(horizon).load(a).record) == 0
    undo(storage, changed)
    assert value_of(storage.snapshot().load(a).record) == 0
    assert value_of(storage.snapshot().load(b).record) == 0


def test_a_pack_may_keep_the_history_of_some_time(storage: MemoryStorage) -> None:
    (a,) = create(storage, 1)
    commit(storage, {a: make_record(1)})
    storage.pack(keep=timedelta(days=1))
    assert len(list(storage.revisions(a))) == 2
    found: list[Progress] = []
    storage.pack(keep=time_of(storage.tid), progress=found.append)
    assert len(list(storage.revisions(a))) == 1
    assert found == [Progress("packing", 2, 2)]


# The classic calls.


def test_the_sequence_of_durus_4(storage: MemoryStorage) -> None:
    assert [storage.new_oid() for _ in range(3)] == [oid(0), oid(1), oid(2)]
    with pytest.raises(KeyError):
        storage.load(oid(0))
    record = pack_record(oid(0), b"ok", b"")
    storage.begin()
    storage.store(oid(0), record)
    storage.end()
    assert storage.sync() == []
    storage.begin()
    storage.store(oid(1), pack_record(oid(1), b"no", b""))
    storage.end()
    assert list(storage.gen_oid_record()) == [(oid(0), record)]
    assert storage.load(oid(0)) == record
    assert len(list(storage.bulk_load([oid(0), oid(1)]))) == 2
    with pytest.raises(DurusKeyError):
        list(storage.bulk_load([oid(0), oid(1), oid(2)]))


def store(storage: MemoryStorage, *records: bytes) -> None:
    storage.begin()
    for record in records:
        storage.store(Oid(record[:8]), record)


def test_sync_says_once_what_others_changed(storage: MemoryStorage) -> None:
    a, b = create(storage, 2)
    assert storage.sync() == []
    commit(storage, {b: make_record(1)})
    commit(storage, {a: make_record(1)})
    assert storage.sync() == [a, b]
    assert storage.sync() == []


def test_what_the_caller_stored_is_no_news_to_it(storage: MemoryStorage) -> None:
    (a,) = create(storage, 1)
    storage.sync()
    store(storage, classic(a, 1))
    storage.end()
    assert classic_value(storage, a) == 1
    assert storage.sync() == []


def test_end_tells_what_others_changed(storage: MemoryStorage) -> None:
    a, b = create(storage, 2)
    storage.sync()
    commit(storage, {b: make_record(1)})
    told: list[bytes] = []
    store(storage, classic(a, 1))
    storage.end(told.extend)
    assert told == [b]
    assert classic_value(storage, a) == 1
    assert storage.sync() == []


def test_after_a_conflict_nothing_is_stored_or_pending(storage: MemoryStorage) -> None:
    a, b = create(storage, 2)
    storage.sync()
    commit(storage, {b: make_record(1)})

    def refuse(oids: Sequence[bytes]) -> None:
        raise ConflictError(oids)

    store(storage, classic(a, 1))
    tid = storage.tid
    with pytest.raises(ConflictError):
        storage.end(refuse)
    storage.end(refuse)
    assert storage.tid == tid
    assert storage.sync() == [b]


def test_what_nobody_was_told_in_end_sync_says(storage: MemoryStorage) -> None:
    a, b = create(storage, 2)
    storage.sync()
    commit(storage, {b: make_record(1)})
    store(storage, classic(a, 1))
    storage.end()
    assert storage.sync() == [b]
    assert storage.sync() == []


def test_a_record_that_others_changed_is_not_overwritten(storage: MemoryStorage) -> None:
    (a,) = create(storage, 1)
    storage.sync()
    commit(storage, {a: make_record("theirs")})
    for handle_invalidations in (None, lambda oids: None):
        store(storage, classic(a, "mine"))
        with pytest.raises(WriteConflictError) as caught:
            storage.end(handle_invalidations)
        assert caught.value.oids == [a]
    assert classic_value(storage, a) == "theirs"
    storage.sync()
    store(storage, classic(a, "mine"))
    storage.end()
    assert classic_value(storage, a) == "mine"


def test_a_change_that_comes_while_end_is_under_way_is_a_conflict(storage: MemoryStorage) -> None:
    a, b, c = create(storage, 3)
    storage.sync()
    commit(storage, {b: make_record(1)})
    store(storage, classic(a, 1))
    with pytest.raises(WriteConflictError) as caught:
        storage.end(lambda oids: commit(storage, {c: make_record(1)}))
    assert caught.value.oids == [c]
    assert classic_value(storage, a) == 0
    assert storage.sync() == [b, c]


def test_an_end_without_stores_commits_nothing(storage: MemoryStorage) -> None:
    create(storage, 1)
    tid = storage.tid
    storage.begin()
    storage.end()
    assert storage.tid == tid


def test_begin_forgets_what_was_stored(storage: MemoryStorage) -> None:
    (a,) = create(storage, 1)
    store(storage, classic(a, 1))
    storage.begin()
    storage.end()
    assert classic_value(storage, a) == 0


def test_a_record_under_a_wrong_oid_is_refused(storage: MemoryStorage) -> None:
    storage.begin()
    with pytest.raises(ValueError, match="says that its oid is"):
        storage.store(oid(1), classic(oid(2), 1))


def test_if_too_much_changed_sync_names_all_that_can_be_reached(storage: MemoryStorage) -> None:
    (a,) = create(storage, 1)
    storage.sync()
    oids = storage.reserve_oids(CHANGES_MAX + 1)
    commit(storage, dict.fromkeys(oids, make_record(0)), created=oids)
    assert storage.sync() == [ROOT_OID, a]


def test_the_classic_pack_is_the_pack(storage: MemoryStorage) -> None:
    a, b = create(storage, 2)
    store(storage, classic(ROOT_OID, 1, [a]))
    storage.end()
    storage.pack()
    with pytest.raises(KeyError):
        storage.load(b)
    assert storage.get_packer() is None


class FullStorage(MemoryStorage):
    """A storage on a disk that fills up."""

    full: Callable[[], None] | None = None

    def commit(self, transaction: Transaction) -> CommitResult:
        if self.full is not None:
            self.full()
        return super().commit(transaction)


def test_after_any_failure_of_end_nothing_is_pending() -> None:
    storage = FullStorage()
    (a,) = create(storage, 1)
    store(storage, classic(a, 1))

    def fail() -> None:
        raise OSError(28, "No space left on device")

    storage.full = fail
    with pytest.raises(OSError, match="No space"):
        storage.end()
    storage.full = None
    storage.end()
    assert classic_value(storage, a) == 0
