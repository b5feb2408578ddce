"""The storage contract: tests of all that `durus.interfaces` promises, for any storage.

A storage is checked by a subclass in a test module, which says how to open it and what it can do:

    class TestMyStorage(StorageContract):
        is_durable = True

        def open(self, path: Path, *, readonly: bool = False) -> Storage:
            return MyStorage(path, readonly=readonly)

The tests make their records by hand; no connection takes part.
"""

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from durus.error import (
    ConflictError,
    DanglingReferenceError,
    DurusError,
    DurusKeyError,
    HistoryUnavailableError,
    ReadConflictError,
    ReadOnlyError,
    StorageClosedError,
    UndoError,
    WriteConflictError,
)
from durus.interfaces import (
    CHANGES_MAX,
    NO_TID,
    OID_LIMIT,
    ROOT_OID,
    AccessedOids,
    CommitResult,
    HistoryStorage,
    Oid,
    PackableStorage,
    Record,
    Snapshot,
    Storage,
    Tid,
    Transaction,
)
from durus.oid_set import OidSet
from durus.undo import undo

__all__ = [
    "StorageContract",
    "commit",
    "create",
    "make_record",
    "make_transaction",
    "value",
    "value_of",
]

THREADS: Final = 8
_CLASS_PICKLE: Final = b"\x80\x02cdurus.persistent\nPersistent\n."


def make_record(value: object, refs: Iterable[Oid] = ()) -> Record:
    """The record of an object with this value that refers to these objects."""
    return Record(_CLASS_PICKLE, pickle.dumps({"value": value}, 2), b"".join(sorted(set(refs))))


def value_of(record: Record) -> object:
    """The value in a record that `make_record` made."""
    return pickle.loads(record.state_pickle)["value"]


def make_transaction(
    snapshot_tid: Tid,
    writes: Mapping[Oid, Record],
    *,
    created: Iterable[Oid] = (),
    accessed: AccessedOids | None = None,
    note: str = "",
) -> Transaction:
    """A transaction; unless told otherwise it accessed what it writes."""
    return Transaction(
        id=int.from_bytes(os.urandom(8)),
        snapshot_tid=snapshot_tid,
        accessed=OidSet(writes) if accessed is None else accessed,
        created=frozenset(created),
        writes=writes,
        time_ns=time.time_ns(),
        user="ann",
        note=note,
    )


def commit(
    storage: Storage,
    writes: Mapping[Oid, Record],
    *,
    since: Tid | None = None,
    created: Iterable[Oid] = (),
    accessed: AccessedOids | None = None,
) -> CommitResult:
    """Commit these records, on top of the snapshot with tid `since` or of the newest one."""
    since = _newest_tid(storage) if since is None else since
    return storage.commit(make_transaction(since, writes, created=created, accessed=accessed))


def create(storage: Storage, count: int) -> list[Oid]:
    """Create the root and `count` objects that it refers to, all with the value 0."""
    commit(storage, {ROOT_OID: make_record(0)}, created=[ROOT_OID])
    oids = list(storage.reserve_oids(count)) if count else []
    writes = {oid: make_record(0) for oid in oids}
    commit(storage, {ROOT_OID: make_record(0, oids), **writes}, created=oids)
    return oids


def _newest_tid(storage: Storage) -> Tid:
    with closing(storage.snapshot()) as snapshot:
        return snapshot.tid


def _value_at(snapshot: Snapshot, oid: Oid) -> object:
    return value_of(snapshot.load(oid).record)


def value(storage: Storage, oid: Oid) -> object:
    """The value of an object as it is now."""
    with closing(storage.snapshot()) as snapshot:
        return _value_at(snapshot, oid)


def _exists(storage: Storage, oid: Oid) -> bool:
    with closing(storage.snapshot()) as snapshot:
        return bool(list(snapshot.load_many([oid])))


def _in_threads(call: Callable[[int], object]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(call, range(THREADS)))


class StorageContract:
    """Subclass this, implement `open`, and say what the storage can do."""

    has_history = True
    """It is a HistoryStorage."""
    can_pack = True
    """It is a PackableStorage, and pack does something."""
    is_durable = False
    """What was committed is still there when the same path is opened again after close()."""
    can_be_readonly = False
    """`open` takes `readonly=True`."""
    keeps_bytes = True
    """Pickles come back byte for byte (not: as equivalent pickles)."""

    def open(self, path: Path, *, readonly: bool = False) -> Storage:
        """Open the storage at `path`, which does not exist before the first time."""
        raise NotImplementedError

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "contract.durus"

    @pytest.fixture
    def storage(self, path: Path) -> Iterator[Storage]:
        storage = self.open(path)
        yield storage
        storage.close()

    @pytest.fixture
    def history(self, storage: Storage) -> HistoryStorage:
        if not self.has_history:
            pytest.skip("a storage without history")
        assert isinstance(storage, HistoryStorage)
        return storage

    @pytest.fixture
    def packable(self, storage: Storage) -> PackableStorage:
        if not self.can_pack:
            pytest.skip("a storage that cannot be packed")
        assert isinstance(storage, PackableStorage)
        return storage

    def test_it_says_truly_what_it_is(self, storage: Storage) -> None:
        assert isinstance(storage, Storage)
        assert isinstance(storage, HistoryStorage) == self.has_history
        assert not storage.readonly

    # Snapshots.

    def test_a_new_storage_is_empty(self, storage: Storage) -> None:
        with closing(storage.snapshot()) as snapshot:
            with pytest.raises(DurusKeyError):
                snapshot.load(ROOT_OID)
            assert list(snapshot.load_many([ROOT_OID])) == []

    def test_what_was_committed_is_read_by_the_next_snapshot(self, storage: Storage) -> None:
        a, b = create(storage, 2)
        commit(storage, {a: make_record("new", [b])})
        with closing(storage.snapshot()) as snapshot:
            assert _value_at(snapshot, a) == "new"
            assert _value_at(snapshot, b) == 0
            assert snapshot.load(a).record.refs == b
            assert snapshot.load(a).record.class_pickle == _CLASS_PICKLE

    def test_a_snapshot_never_changes(self, storage: Storage) -> None:
        a, b = create(storage, 2)
        with closing(storage.snapshot()) as snapshot:
            tid = snapshot.tid
            assert _value_at(snapshot, a) == 0
            for value in (1, 2):
                commit(storage, {a: make_record(value)})
            assert snapshot.tid == tid
            assert _value_at(snapshot, b) == 0
            if self.has_history:
                assert _value_at(snapshot, a) == 0
                assert [value_of(r.record) for _, r in snapshot.load_many([a])] == [0]
            else:
                with pytest.raises(ReadConflictError) as caught:
                    snapshot.load(a)
                assert caught.value.oids == [a]
                with pytest.raises(ReadConflictError):
                    list(snapshot.load_many([b, a]))

    def test_a_snapshot_does_not_see_what_is_created_later(self, storage: Storage) -> None:
        create(storage, 0)
        with closing(storage.snapshot()) as snapshot:
            (oid,) = storage.reserve_oids(1)
            commit(storage, {oid: make_record(1)}, created=[oid])
            with pytest.raises((DurusKeyError, ReadConflictError)):
                snapshot.load(oid)

    def test_a_snapshot_has_the_tid_of_the_newest_transaction(self, storage: Storage) -> None:
        tid = commit(storage, {ROOT_OID: make_record(0)}, created=[ROOT_OID]).tid
        assert storage.tid == tid
        assert _newest_tid(storage) == tid

    def test_a_revision_names_the_transaction_that_wrote_it(self, storage: Storage) -> None:
        a, b = create(storage, 2)
        first = commit(storage, {a: make_record(1)}).tid
        commit(storage, {b: make_record(1)})
        with closing(storage.snapshot()) as snapshot:
            assert snapshot.load(a).tid in ({first} if self.has_history else {first, NO_TID})

    def test_load_many_loads_all_that_exist(self, storage: Storage) -> None:
        oids = create(storage, 250)
        (missing,) = storage.reserve_oids(1)
        with closing(storage.snapshot()) as snapshot:
            loaded = list(snapshot.load_many([missing, *oids]))
        assert sorted(oid for oid, _ in loaded) == sorted(oids)
        assert all(value_of(revision.record) == 0 for _, revision in loaded)

    def test_a_missing_object_is_named(self, storage: Storage) -> None:
        (missing,) = storage.reserve_oids(1)
        with closing(storage.snapshot()) as snapshot, pytest.raises(DurusKeyError) as caught:
            snapshot.load(missing)
        assert caught.value.oids == [missing]

    def test_a_snapshot_may_be_closed_twice(self, storage: Storage) -> None:
        snapshot = storage.snapshot()
        snapshot.close()
        snapshot.close()

    def test_large_and_small_records_come_back(self, storage: Storage) -> None:
        values = [None, b"", "x" * 100_000, os.urandom(3 << 20)]
        oids = create(storage, len(values))
        commit(storage, {oid: make_record(v) for oid, v in zip(oids, values, strict=True)})
        assert [value(storage, oid) for oid in oids] == values

    def test_records_come_back_byte_for_byte(self, storage: Storage) -> None:
        if not self.keeps_bytes:
            pytest.skip("a storage that changes pickles")
        a, b = create(storage, 2)
        records = {
            ROOT_OID: Record(b"", b"", a + b),
            a: Record(b"no pickle at all", b"\x78\x9c\x00", b""),
            b: Record(pickle.dumps(dict, 4), pickle.dumps([1, 2], 5), a),
        }
        commit(storage, records)
        with closing(storage.snapshot()) as snapshot:
            assert {oid: r.record for oid, r in snapshot.load_many(records)} == records

    # Commit.

    def test_tids_grow(self, storage: Storage) -> None:
        (a,) = create(storage, 1)
        tids = [commit(storage, {a: make_record(i)}).tid for i in range(20)]
        assert tids == sorted(set(tids))
        assert tids[0] > NO_TID

    def test_an_accessed_object_that_was_changed_is_a_conflict(self, storage: Storage) -> None:
        a, b, c = create(storage, 3)
        since = _newest_tid(storage)
        commit(storage, {a: make_record(1)})
        commit(storage, {b: make_record(1)})
        with pytest.raises(WriteConflictError) as caught:
            commit(storage, {c: make_record(2)}, since=since, accessed=OidSet([a, c]))
        assert caught.value.oids == [a]
        assert value(storage, c) == 0

    def test_a_written_object_that_was_changed_is_a_conflict(self, storage: Storage) -> None:
        (a,) = create(storage, 1)
        since = _newest_tid(storage)
        commit(storage, {a: make_record(1)})
        with pytest.raises(WriteConflictError) as caught:
            commit(storage, {a: make_record(2)}, since=since)
        assert caught.value.oids == [a]
        assert value(storage, a) == 1

    def test_a_change_of_what_was_not_accessed_is_no_conflict(self, storage: Storage) -> None:
        a, b = create(storage, 2)
        since = _newest_tid(storage)
        commit(storage, {a: make_record(1)})
        commit(storage, {b: make_record(2)}, since=since)
        assert (value(storage, a), value(storage, b)) == (1, 2)

    def test_a_change_before_the_snapshot_is_no_conflict(self, storage: Storage) -> None:
        (a,) = create(storage, 1)
        tid = commit(storage, {a: make_record(1)}).tid
        commit(storage, {a: make_record(2)}, since=tid)
        assert value(storage, a) == 2

    def test_whoever_accessed_everything_conflicts_with_any_change(self, storage: Storage) -> None:
        a, b = create(storage, 2)
        since = _newest_tid(storage)
        commit(storage, {a: make_record(1)})
        everything = OidSet()
        everything.add_everything()
        with pytest.raises(WriteConflictError):
            commit(storage, {b: make_record(2)}, since=since, accessed=everything)

    def test_a_commit_answers_what_others_changed(self, storage: Storage) -> None:
        a, b, c = create(storage, 3)
        since = _newest_tid(storage)
        for oid in (a, b, a):
            commit(storage, {oid: make_record(1)})
        assert commit(storage, {c: make_record(2)}, since=since).changed == frozenset({a, b})
        assert commit(storage, {c: make_record(3)}).changed == frozenset()

    def test_creating_an_object_that_exists_is_refused(self, storage: Storage) -> None:
        (a,) = create(storage, 1)
        with pytest.raises(WriteConflictError) as caught:
            commit(storage, {a: make_record(1)}, created=[a], accessed=OidSet())
        assert caught.value.oids == [a]
        with pytest.raises(WriteConflictError):
            commit(storage, {ROOT_OID: make_record(1)}, created=[ROOT_OID], accessed=OidSet())
        assert value(storage, a) == 0

    def test_creating_an_oid_beyond_the_limit_is_refused(self, storage: Storage) -> None:
        (before,) = storage.reserve_oids(1)
        for number in (OID_LIMIT, 2**64 - 1):
            oid = Oid(number.to_bytes(8))
            with pytest.raises(ValueError, match="no oid"):
                commit(storage, {oid: make_record(1)}, created=[oid])
        (oid,) = storage.reserve_oids(1)
        assert int.from_bytes(oid) < int.from_bytes(before) + 100

    def test_changing_an_object_that_does_not_exist_is_refused(self, storage: Storage) -> None:
        (a,) = create(storage, 1)
        (missing,) = storage.reserve_oids(1)
        with pytest.raises(WriteConflictError) as caught:
            commit(storage, {a: make_record(1), missing: make_record(1)})
        assert caught.value.oids == [missing]
        assert value(storage, a) == 0

    def test_a_dangling_reference_is_refused(self, storage: Storage) -> None:
        (a,) = create(storage, 1)
        missing, new = storage.reserve_oids(2)
        for writes, created in (
            ({a: make_record(1, [ROOT_OID, missing])}, []),
            ({new: make_record(1, [a, missing])}, [new]),
        ):
            with pytest.raises(DanglingReferenceError) as caught:
                commit(storage, writes, created=created)
            assert caught.value.oids == [missing]

    def test_references_to_what_exists_or_is_created_are_accepted(self, storage: Storage) -> None:
        (a,) = create(storage, 1)
        b, c = storage.reserve_oids(2)
        writes = {b: make_record(1, [a, b, c, ROOT_OID]), c: make_record(1, [b])}
        commit(storage, writes, created=[b, c])
        with closing(storage.snapshot()) as snapshot:
            assert snapshot.load(b).record.refs == b"".join(sorted([a, b, c, ROOT_OID]))

    def test_a_refused_commit_leaves_nothing(self, storage: Storage) -> None:
        a, b = create(storage, 2)
        since = _newest_tid(storage)
        commit(storage, {a: make_record(1)})
        new, missing = storage.reserve_oids(2)
        tid = _newest_tid(storage)
        conflict = {b: make_record(2), new: make_record(2), a: make_record(2)}
        dangling = {b: make_record(2), new: make_record(2, [missing])}
        with pytest.raises(WriteConflictError):
            commit(storage, conflict, since=since, created=[new])
        with pytest.raises(DanglingReferenceError):
            commit(storage, dangling, created=[new])
        with pytest.raises(WriteConflictError):
            commit(storage, {b: make_record(2), new: make_record(2)}, created=[b, new])
        assert not _exists(storage, new)
        assert (value(storage, a), value(storage, b)) == (1, 0)
        assert storage.changes(tid, _newest_tid(storage)) == frozenset()
        commit(storage, {b: make_record(3), new: make_record(3)}, created=[new])
        assert (value(storage, b), value(storage, new)) == (3, 3)

    # Changes.

    def test_changes_lie_after_since_and_up_to_until(self, storage: Storage) -> None:
        a, b, c = create(storage, 3)
        start = _newest_tid(storage)
        first = commit(storage, {a: make_record(1)}).tid
        second = commit(storage, {b: make_record(1), c: make_record(1)}).tid
        third = commit(storage, {a: make_record(2)}).tid
        assert storage.changes(start, first) == frozenset({a})
        assert storage.changes(start, second) == frozenset({a, b, c})
        assert storage.changes(first, second) == frozenset({b, c})
        assert storage.changes(second, third) == frozenset({a})
        assert storage.changes(third, third) == frozenset()
        assert storage.changes(third, first) == frozenset()

    def test_too_many_changes_are_not_listed(self, storage: Storage) -> None:
        (a,) = create(storage, 1)
        oids = storage.reserve_oids(CHANGES_MAX + 1)
        since = _newest_tid(storage)
        record = make_record(0)
        many = commit(storage, dict.fromkeys(oids, record), created=oids).tid
        assert storage.changes(since, many) is None
        few = commit(storage, {a: make_record(1)}).tid
        assert storage.changes(many, few) == frozenset({a})

    # Oids.

    def test_reserved_oids_are_in_no_use_and_never_handed_out_again(self, storage: Storage) -> None:
        used = {ROOT_OID, *create(storage, 5)}
        for count in (1, 1, 10, 1):
            oids = storage.reserve_oids(count)
            assert len(oids) == count
            assert all(type(oid) is bytes and len(oid) == 8 for oid in oids)
            assert len(used.union(oids)) == len(used) + count
            used.update(oids)

    def test_threads_never_get_the_same_oid(self, storage: Storage) -> None:
        found: list[Oid] = []

        def reserve(_: int) -> None:
            for _ in range(20):
                found.extend(storage.reserve_oids(3))

        _in_threads(reserve)
        assert len(set(found)) == len(found) == THREADS * 20 * 3

    # Threads.

    def test_threads_that_write_different_objects_lose_nothing(self, storage: Storage) -> None:
        oids = create(storage, THREADS)

        def write(thread: int) -> None:
            since = _newest_tid(storage)
            for value in range(1, 11):
                writes = {oids[thread]: make_record(value)}
                since = commit(storage, writes, since=since).tid

        _in_threads(write)
        assert [value(storage, oid) for oid in oids] == [10] * THREADS

    def test_threads_that_write_one_object_lose_no_update(self, storage: Storage) -> None:
        (a,) = create(storage, 1)

        def increment(_: int) -> None:
            done = 0
            while done < 10:
                with closing(storage.snapshot()) as snapshot:
                    try:
                        value = _value_at(snapshot, a)
                        assert isinstance(value, int)
                        commit(storage, {a: make_record(value + 1)}, since=snapshot.tid)
                        done += 1
                    except ConflictError:
                        pass  # again

        _in_threads(increment)
        assert value(storage, a) == THREADS * 10

    def test_readers_see_whole_transactions_only(self, storage: Storage) -> None:
        a, b = create(storage, 2)
        finished = threading.Event()

        def write_or_read(thread: int) -> None:
            if thread:
                while not finished.is_set():
                    with closing(storage.snapshot()) as snapshot:
                        try:
                            assert _value_at(snapshot, a) == _value_at(snapshot, b)
                        except ReadConflictError:
                            assert not self.has_history
                return
            try:
                for value in range(50):
                    commit(storage, {a: make_record(value), b: make_record(value)})
            finally:
                finished.set()

        _in_threads(write_or_read)

    # History.

    def test_the_past_can_be_read(self, history: HistoryStorage) -> None:
        (a,) = create(history, 1)
        tids = [commit(history, {a: make_record(i)}).tid for i in range(3)]
        for i, tid in enumerate(tids):
            with closing(history.snapshot(tid)) as snapshot:
                assert snapshot.tid == tid
                assert _value_at(snapshot, a) == i
        with closing(history.snapshot(Tid(tids[1] - 1))) as snapshot:
            assert snapshot.tid == tids[0]
        with closing(history.snapshot(Tid(tids[2] + 10**12))) as snapshot:
            assert snapshot.tid == tids[2]

    def test_before_the_first_transaction_there_was_nothing(self, history: HistoryStorage) -> None:
        create(history, 0)
        with closing(history.snapshot(NO_TID)) as snapshot:
            assert list(snapshot.load_many([ROOT_OID])) == []

    def test_transactions_are_listed_oldest_first(self, history: HistoryStorage) -> None:
        a, b = create(history, 2)
        made = [
            make_transaction(history.tid, {oid: make_record(1)}, note=f"of {oid!r}")
            for oid in (a, b)
        ]
        tids = [history.commit(transaction).tid for transaction in made]
        found = list(history.transactions(start=tids[0]))
        assert [t.tid for t in found] == tids
        for committed, transaction in zip(found, made, strict=True):
            assert committed.id == transaction.id
            assert committed.time_ns == transaction.time_ns
            assert (committed.user, committed.note) == ("ann", transaction.note)
            assert list(committed.oids) == list(transaction.writes)

    def test_transactions_lie_from_start_and_before_stop(self, history: HistoryStorage) -> None:
        (a,) = create(history, 1)
        tids = [commit(history, {a: make_record(i)}).tid for i in range(4)]
        assert [t.tid for t in history.transactions(tids[1], tids[3])] == tids[1:3]
        assert [t.tid for t in history.transactions(stop=tids[1])][-1] == tids[0]
        everything = [t.tid for t in history.transactions()]
        assert everything == sorted(everything)
        assert everything[-4:] == tids
        assert [t.tid for t in history.transactions(Tid(tids[3] + 1))] == []

    def test_revisions_come_newest_first(self, history: HistoryStorage) -> None:
        a, b = create(history, 2)
        tids = [commit(history, {a: make_record(i)}).tid for i in (1, 2)]
        revisions = list(history.revisions(a))
        assert [value_of(revision.record) for revision in revisions] == [2, 1, 0]
        assert [revision.tid for revision in revisions][:2] == tids[::-1]
        assert len(list(history.revisions(b))) == 1

    def test_an_object_that_never_was_has_no_revisions(self, history: HistoryStorage) -> None:
        (missing,) = history.reserve_oids(1)
        with pytest.raises(DurusKeyError):
            list(history.revisions(missing))

    def test_a_transaction_is_found_by_its_id(self, history: HistoryStorage) -> None:
        (a,) = create(history, 1)
        transaction = make_transaction(history.tid, {a: make_record(1)})
        assert history.find(transaction.id) is None
        tid = history.commit(transaction).tid
        assert history.find(transaction.id) == tid

    # Undo, which needs nothing of a storage but the above.

    def test_an_undone_transaction_is_as_if_it_had_not_been(self, history: HistoryStorage) -> None:
        a, b, c = create(history, 3)
        commit(history, {a: make_record(1)})
        tid = commit(history, {a: make_record(2, [b]), b: make_record(2)}).tid
        commit(history, {c: make_record(3)})
        undone = undo(history, tid, user="bob", note="a mistake")
        assert [value(history, oid) for oid in (a, b, c)] == [1, 0, 3]
        with closing(history.snapshot()) as snapshot:
            assert snapshot.load(a).record.refs == b""
            assert snapshot.load(a).tid == undone
        (found,) = history.transactions(undone)
        assert (found.user, found.note, list(found.oids)) == ("bob", "a mistake", [a, b])

    def test_an_undo_can_be_undone(self, history: HistoryStorage) -> None:
        (a,) = create(history, 1)
        commit(history, {a: make_record(1)})
        tid = commit(history, {a: make_record(2)}).tid
        values = []
        for _ in range(4):
            tid = undo(history, tid)
            values.append(value(history, a))
        assert values == [1, 2, 1, 2]

    def test_what_was_changed_later_is_not_undone(self, history: HistoryStorage) -> None:
        a, b, c = create(history, 3)
        tid = commit(history, {a: make_record(1), b: make_record(1), c: make_record(1)}).tid
        commit(history, {a: make_record(2)})
        later = commit(history, {b: make_record(2)}).tid
        with pytest.raises(UndoError) as caught:
            undo(history, tid)
        assert (caught.value.tid, caught.value.oids) == (tid, [a, b])
        assert str(later) in caught.value.reason
        assert [value(history, oid) for oid in (a, b, c)] == [2, 2, 1]
        assert _newest_tid(history) == later

    def test_what_an_undone_transaction_created_stays(self, history: HistoryStorage) -> None:
        (a,) = create(history, 1)
        (new,) = history.reserve_oids(1)
        writes = {a: make_record(1, [new]), new: make_record(1)}
        tid = commit(history, writes, created=[new]).tid
        undone = undo(history, tid)
        assert (value(history, a), value(history, new)) == (0, 1)
        undo(history, undone)
        with closing(history.snapshot()) as snapshot:
            assert snapshot.load(a).record.refs == new
        commit(history, {new: make_record(2)})
        with pytest.raises(UndoError):
            undo(history, tid)

    def test_what_only_created_cannot_be_undone(self, history: HistoryStorage) -> None:
        root = commit(history, {ROOT_OID: make_record(0)}, created=[ROOT_OID]).tid
        (new,) = history.reserve_oids(1)
        other = commit(history, {new: make_record(0)}, created=[new]).tid
        for tid, reason in ((root, "created the root"), (other, "changed nothing")):
            with pytest.raises(UndoError, match=reason):
                undo(history, tid)
        assert _newest_tid(history) == other

    def test_what_is_no_transaction_cannot_be_undone(self, history: HistoryStorage) -> None:
        create(history, 1)
        for tid in (Tid(_newest_tid(history) + 1), NO_TID):
            with pytest.raises(UndoError, match="no such transaction"):
                undo(history, tid)

    def test_of_threads_that_undo_the_same_one_does(self, history: HistoryStorage) -> None:
        (a,) = create(history, 1)
        tid = commit(history, {a: make_record(1)}).tid
        done: list[Tid] = []
        refused: list[Sequence[bytes]] = []

        def undo_it(_: int) -> None:
            try:
                done.append(undo(history, tid))
            except UndoError as error:
                refused.append(error.oids)

        _in_threads(undo_it)
        assert done == [_newest_tid(history)]
        assert refused == [[a]] * (THREADS - 1)
        assert value(history, a) == 0

    def test_what_was_packed_away_is_not_undone(
        self, history: HistoryStorage, packable: PackableStorage
    ) -> None:
        (a,) = create(history, 1)
        tids = [commit(history, {a: make_record(i)}).tid for i in (1, 2)]
        packable.pack()
        with pytest.raises(UndoError):
            undo(history, tids[0])
        with pytest.raises(UndoError, match="packed away"):
            undo(history, tids[1])
        undo(history, commit(history, {a: make_record(3)}).tid)
        assert value(history, a) == 2

    # Pack.

    def test_pack_keeps_what_can_be_reached_and_no_more(self, packable: PackableStorage) -> None:
        a, b, c = create(packable, 3)
        commit(packable, {ROOT_OID: make_record(1, [a]), a: make_record(1, [b])})
        packable.pack()
        assert [value(packable, oid) for oid in (ROOT_OID, a, b)] == [1, 1, 0]
        assert not _exists(packable, c)

    def test_packing_an_empty_storage_does_nothing(self, packable: PackableStorage) -> None:
        packable.pack()
        create(packable, 1)

    def test_after_a_pack_everything_goes_on(self, packable: PackableStorage) -> None:
        a, b = create(packable, 2)
        before = _newest_tid(packable)
        packable.pack()
        packable.pack()
        since = _newest_tid(packable)
        assert since >= before
        tid = commit(packable, {a: make_record(1, [b])}, since=since).tid
        assert tid > since
        assert packable.changes(since, tid) == frozenset({a})
        (new,) = packable.reserve_oids(1)
        commit(packable, {new: make_record(1)}, created=[new])
        assert value(packable, new) == 1

    def test_a_transaction_across_a_pack_is_still_checked(self, packable: PackableStorage) -> None:
        a, b = create(packable, 2)
        since = _newest_tid(packable)
        commit(packable, {a: make_record(1)})
        packable.pack()
        with pytest.raises(WriteConflictError):
            commit(packable, {b: make_record(2)}, since=since, accessed=OidSet([a]))

    def test_a_reference_to_what_was_packed_away_is_refused(
        self, packable: PackableStorage
    ) -> None:
        a, b = create(packable, 2)
        commit(packable, {ROOT_OID: make_record(1, [a])})
        packable.pack()
        with pytest.raises(DanglingReferenceError) as caught:
            commit(packable, {ROOT_OID: make_record(1, [a, b])})
        assert caught.value.oids == [b]

    def test_oids_are_not_reused_after_a_pack(self, packable: PackableStorage) -> None:
        used = {ROOT_OID, *create(packable, 3), *packable.reserve_oids(2)}
        commit(packable, {ROOT_OID: make_record(1)})
        packable.pack()
        assert used.isdisjoint(packable.reserve_oids(10))

    def test_an_open_snapshot_survives_a_pack(
        self, history: HistoryStorage, packable: PackableStorage
    ) -> None:
        a, b = create(history, 2)
        with closing(history.snapshot()) as snapshot:
            commit(history, {ROOT_OID: make_record(1, [a]), a: make_record(1)})
            packable.pack()
            commit(history, {a: make_record(2)})
            assert [_value_at(snapshot, oid) for oid in (ROOT_OID, a, b)] == [0, 0, 0]

    def test_pack_forgets_the_past(
        self, history: HistoryStorage, packable: PackableStorage
    ) -> None:
        (a,) = create(history, 1)
        tids = [commit(history, {a: make_record(i)}).tid for i in range(3)]
        packable.pack()
        with pytest.raises(HistoryUnavailableError):
            history.snapshot(tids[1])
        with closing(history.snapshot(tids[2])) as snapshot:
            assert _value_at(snapshot, a) == 2
        assert [revision.tid for revision in history.revisions(a)] == [tids[2]]
        last = commit(history, {a: make_record(3)}).tid
        with closing(history.snapshot(Tid(last - 1))) as snapshot:
            assert snapshot.tid == tids[2]
            assert _value_at(snapshot, a) == 2

    # The end.

    def test_a_closed_storage_says_so(self, storage: Storage) -> None:
        (a,) = create(storage, 1)
        tid = storage.tid
        storage.close()
        storage.close()
        calls: list[Callable[[], object]] = [
            storage.snapshot,
            lambda: storage.changes(tid, tid),
            lambda: storage.reserve_oids(1),
            lambda: storage.commit(make_transaction(tid, {a: make_record(1)})),
        ]
        if isinstance(storage, HistoryStorage):
            calls += [
                lambda: list(storage.transactions()),
                lambda: list(storage.revisions(a)),
                lambda: storage.find(1),
            ]
        if isinstance(storage, PackableStorage):
            calls.append(storage.pack)
        for call in calls:
            with pytest.raises(StorageClosedError):
                call()

    def test_a_readonly_storage_is_read_and_not_written(self, path: Path) -> None:
        if not self.can_be_readonly:
            pytest.skip("a storage that cannot be opened read-only")
        with closing(self.open(path)) as storage:
            (a,) = create(storage, 1)
        with closing(self.open(path, readonly=True)) as storage:
            assert storage.readonly
            assert value(storage, a) == 0
            with pytest.raises(ReadOnlyError):
                commit(storage, {a: make_record(1)})
            assert value(storage, a) == 0

    def test_what_was_committed_is_there_when_opened_again(self, path: Path) -> None:
        self._require_durable()
        with closing(self.open(path)) as storage:
            a, b = create(storage, 2)
            tid = commit(storage, {a: make_record("kept", [b])}).tid
            with pytest.raises(DurusError):
                commit(storage, {b: make_record("refused")}, created=[b])
        with closing(self.open(path)) as storage:
            assert (value(storage, a), value(storage, b)) == ("kept", 0)
            assert commit(storage, {a: make_record("new")}).tid > tid
            if isinstance(storage, HistoryStorage):
                assert [value_of(r.record) for r in storage.revisions(a)] == ["new", "kept", 0]
                with closing(storage.snapshot(tid)) as snapshot:
                    assert _value_at(snapshot, a) == "kept"

    def test_oids_are_not_handed_out_again_when_opened_again(self, path: Path) -> None:
        self._require_durable()
        with closing(self.open(path)) as storage:
            used = {ROOT_OID, *create(storage, 3), *storage.reserve_oids(5)}
        with closing(self.open(path)) as storage:
            assert used.isdisjoint(storage.reserve_oids(10))

    def _require_durable(self) -> None:
        if not self.is_durable:
            pytest.skip("a storage that is not durable")
