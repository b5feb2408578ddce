"""Classic records, and the adapter for storages of Durus 4.x."""

import gc
import io
import os
import pickle
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durus import interfaces, serialize
from durus.classic import ClassicAdapter, as_storage
from durus.connection import Connection
from durus.error import (
    CommitOutcomeUnknownError,
    ConflictError,
    DanglingReferenceError,
    DurusKeyError,
    ReadConflictError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    WriteConflictError,
)
from durus.interfaces import CHANGES_MAX, ROOT_OID, Oid, PackableStorage, Record
from durus.oid_set import OidSet
from durus.record import pack_record, record_from_classic, record_to_classic, unpack_record
from durus.storage import MemoryStorage, Storage
from durus.testing.storage_contract import (
    commit,
    create,
    make_record,
    make_transaction,
    value_of,
)


def oid(number: int) -> Oid:
    return Oid(number.to_bytes(8, "big"))


def classic(oid: Oid, value: object, refs: Iterable[Oid] = ()) -> bytes:
    return record_to_classic(oid, make_record(value, refs))


class SharedStorage(Storage):
    """A client of a database that others change too, in the manner of 4.3's ClientStorage."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.pending: dict[bytes, bytes] = {}
        self.invalid: list[bytes] = []
        self.last_oid = -1
        self.fail_in: str = ""
        self.failure: BaseException = OSError("the line is dead")
        self.closed = 0
        self.readonly = False
        self.loads = 0
        self.packed: list[bytes] = []

    def change_elsewhere(self, oid: Oid, record: bytes | None) -> None:
        self.invalid.append(oid)
        if record is None:
            del self.records[oid]
        else:
            self.records[oid] = record

    def load(self, oid: bytes) -> bytes:
        self.loads += 1
        if self.invalid:  # coarse: any load, until sync()
            raise ReadConflictError([oid])
        return self.records[oid]

    def begin(self) -> None:
        self.pending = {}

    def store(self, oid: bytes, record: bytes) -> None:
        self.pending[oid] = record
        if self.fail_in == "store":
            raise self.failure

    def end(self, handle_invalidations: Callable[[Sequence[bytes]], object] | None = None) -> None:
        if self.invalid:
            assert handle_invalidations is not None
            oids, self.invalid = self.invalid, []
            handle_invalidations(oids)
        if self.fail_in == "end":
            raise self.failure
        self.records.update(self.pending)
        self.begin()
        if self.fail_in == "answer":
            raise self.failure

    def sync(self) -> list[bytes]:
        oids, self.invalid = self.invalid, []
        return oids

    def new_oid(self) -> bytes:
        self.last_oid += 1
        return oid(self.last_oid)

    def pack(self) -> None:
        for packed in self.packed:
            self.change_elsewhere(Oid(packed), None)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def shared() -> SharedStorage:
    return SharedStorage()


@pytest.fixture
def adapter(shared: SharedStorage) -> ClassicAdapter:
    return ClassicAdapter(shared)


def value_at(snapshot: interfaces.Snapshot, oid: Oid) -> object:
    return value_of(snapshot.load(oid).record)


# Records.


@given(st.binary(), st.sets(st.integers(0, 2**64 - 1)))
def test_any_content_survives_a_round_trip(data: bytes, refs: set[int]) -> None:
    record = pack_record(oid(5), data, b"".join(map(oid, sorted(refs))))
    found, new = record_from_classic(record)
    if new.class_pickle == b"" and data[:1] != b"\x78":
        assert new.state_pickle == data
    back = record_to_classic(found, new)
    assert record_from_classic(back) == (found, new)


def test_a_record_that_is_no_pickle_stays_as_it_is() -> None:
    record = pack_record(oid(0), b"ok", b"")
    assert record_from_classic(record) == (oid(0), Record(b"", b"ok", b""))
    assert record_to_classic(*record_from_classic(record)) == record


def test_refs_become_ascending_and_unique() -> None:
    record = pack_record(oid(0), b"", oid(2) + oid(1) + oid(2))
    assert record_from_classic(record)[1].refs == oid(1) + oid(2)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("compress", [False, True])
def test_the_pickles_of_4_become_independent(protocol: int, compress: bool) -> None:
    state = {"class": io.BytesIO, "list": [1, 2]}
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol)
    pickler.dump(io.BytesIO)
    end = file.tell()
    pickler.dump(state)
    class_pickle, shared_state = file.getvalue()[:end], file.getvalue()[end:]
    stored = zlib.compress(shared_state) if compress else shared_state
    record = pack_record(oid(1), class_pickle + stored, b"")
    found, new = record_from_classic(record)
    assert pickle.loads(new.class_pickle) is io.BytesIO
    assert pickle.loads(new.state_pickle) == state
    assert record_to_classic(found, new, compress=compress) == record


# Snapshots.


def test_what_others_changed_gets_a_tid_of_its_own(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    a, b = create(adapter, 2)
    before = adapter.tid
    shared.change_elsewhere(a, classic(a, "theirs"))
    assert adapter.tid == before
    snapshot = adapter.snapshot()
    assert snapshot.tid == adapter.tid > before
    assert adapter.changes(before, snapshot.tid) == frozenset([a])
    assert value_at(snapshot, a) == "theirs"
    assert snapshot.load(a).tid == snapshot.tid
    assert value_at(snapshot, b) == 0


def test_pending_invalidations_are_found_by_loading(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    a, b = create(adapter, 2)
    snapshot = adapter.snapshot()
    shared.change_elsewhere(a, classic(a, 1))
    assert value_at(snapshot, b) == 0  # in spite of the change of another object
    assert adapter.changes(snapshot.tid, adapter.tid) == frozenset([a])
    with pytest.raises(ReadConflictError):
        snapshot.load(a)
    shared.change_elsewhere(b, classic(b, 1))
    with pytest.raises(ReadConflictError) as caught:
        snapshot.load(b)
    assert caught.value.oids == [b]
    assert value_at(adapter.snapshot(), b) == 1


def test_load_many_finds_pending_invalidations_too(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    a, b, c = create(adapter, 3)
    snapshot = adapter.snapshot()
    shared.change_elsewhere(a, classic(a, 1))
    assert {oid for oid, _ in snapshot.load_many([b, oid(77), c])} == {b, c}
    with pytest.raises(ReadConflictError):
        list(snapshot.load_many([b, a]))


def test_an_object_removed_elsewhere_is_missing(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    (a,) = create(adapter, 1)
    shared.change_elsewhere(a, None)
    with pytest.raises(DurusKeyError):
        adapter.snapshot().load(a)


@pytest.mark.parametrize("told_before", [False, True])
def test_an_object_removed_after_the_snapshot_is_a_conflict(
    told_before: bool, shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    (a,) = create(adapter, 1)
    snapshot = adapter.snapshot()
    shared.change_elsewhere(a, None)
    if told_before:
        adapter.snapshot()
    with pytest.raises(ReadConflictError):
        list(snapshot.load_many([a]))
    with pytest.raises(ReadConflictError):
        snapshot.load(a)


def test_a_snapshot_older_than_what_is_remembered_conflicts(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    (a,) = create(adapter, 1)
    snapshot = adapter.snapshot()
    shared.invalid = [oid(n) for n in range(1000, 1001 + CHANGES_MAX)]
    newer = adapter.snapshot()
    with pytest.raises(ReadConflictError):
        snapshot.load(a)
    assert value_at(newer, a) == 0
    with pytest.raises(WriteConflictError):
        commit(adapter, {a: make_record(1)}, since=snapshot.tid)
    commit(adapter, {a: make_record(1)}, since=newer.tid)


def test_the_memory_for_recent_changes_is_bounded(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    for batch in range(3):
        shared.invalid = [oid(batch * 1000 + n) for n in range(CHANGES_MAX // 2 + 1)]
        newest = adapter.snapshot()
    assert len(adapter._changed_at) <= CHANGES_MAX
    assert sum(len(oids) for _, oids in adapter._recent) <= CHANGES_MAX
    assert adapter.changes(newest.tid, newest.tid) == frozenset()


# Commit.


def test_a_change_reported_by_end_conflicts_if_it_was_accessed(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    a, b, c = create(adapter, 3)
    snapshot = adapter.snapshot()
    shared.change_elsewhere(a, classic(a, 1))
    shared.change_elsewhere(b, classic(b, 1))
    with pytest.raises(WriteConflictError) as caught:
        commit(adapter, {c: make_record(2)}, since=snapshot.tid, accessed=OidSet([c, b]))
    assert caught.value.oids == [b]
    assert shared.records[c] != classic(c, 2)
    assert shared.pending == {}
    assert adapter.changes(snapshot.tid, adapter.tid) == frozenset([a, b])


def test_a_change_reported_by_end_is_told_to_the_committer(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    a, b = create(adapter, 2)
    snapshot = adapter.snapshot()
    shared.change_elsewhere(a, classic(a, 1))
    new = adapter.reserve_oids(1)[0]
    # A creation, so that nothing is loaded before end().
    result = commit(adapter, {new: make_record(2)}, since=snapshot.tid, created=[new])
    assert result.changed == frozenset([a])
    assert adapter.changes(snapshot.tid, result.tid) == frozenset([a, new])
    with pytest.raises(ReadConflictError):
        snapshot.load(a)
    assert value_at(snapshot, b) == 0


@pytest.mark.parametrize("oids", [None, [oid(1)]])
def test_a_conflict_found_by_the_storage_is_a_write_conflict(
    oids: list[Oid] | None, shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    (a,) = create(adapter, 1)
    shared.fail_in, shared.failure = "end", ConflictError(oids)
    with pytest.raises(WriteConflictError) as caught:
        commit(adapter, {a: make_record(1)})
    assert caught.value.oids == oids
    shared.fail_in = ""
    commit(adapter, {a: make_record(2)})


def test_what_fails_before_the_end_stores_nothing(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    (a,) = create(adapter, 1)
    (new,) = adapter.reserve_oids(1)
    tid = adapter.tid
    shared.fail_in = "store"
    with pytest.raises(StorageError, match=r"not committed.*the line is dead") as caught:
        commit(adapter, {a: make_record(1), new: make_record(1)}, created=[new])
    assert caught.value.__cause__ is shared.failure
    assert shared.pending == {}
    assert adapter.tid == tid
    shared.fail_in = ""
    commit(adapter, {a: make_record(2), new: make_record(2)}, created=[new])
    assert value_at(adapter.snapshot(), new) == 2


@pytest.mark.parametrize("failure", [StorageClosedError("the end"), KeyboardInterrupt()])
def test_what_is_clear_already_is_raised_as_it_is(
    shared: SharedStorage, adapter: ClassicAdapter, failure: BaseException
) -> None:
    (a,) = create(adapter, 1)
    shared.fail_in, shared.failure = "store", failure
    with pytest.raises(type(failure)) as caught:
        commit(adapter, {a: make_record(1)})
    assert caught.value is failure
    assert shared.pending == {}


def test_a_failure_in_the_end_that_stored_nothing_is_no_commit(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    (a,) = create(adapter, 1)
    (new,) = adapter.reserve_oids(1)
    writes = {a: make_record(1), new: make_record(1)}
    tid = adapter.tid
    shared.fail_in = "end"
    with pytest.raises(StorageError, match=r"not committed.*the line is dead") as caught:
        commit(adapter, writes, created=[new])
    assert not isinstance(caught.value, CommitOutcomeUnknownError)
    assert isinstance(caught.value.__cause__, OSError)
    assert adapter.tid == tid
    shared.fail_in = ""
    commit(adapter, writes, created=[new])
    assert value_at(adapter.snapshot(), new) == 1


def test_after_a_failure_of_unknown_outcome_everybody_looks_again(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    a, b = create(adapter, 2)
    (new,) = adapter.reserve_oids(1)
    snapshot = adapter.snapshot()
    shared.fail_in = "answer"
    writes = {a: make_record(1), new: make_record(1)}
    with pytest.raises(CommitOutcomeUnknownError, match="the line is dead") as caught:
        commit(adapter, writes, created=[new])
    assert isinstance(caught.value.__cause__, OSError)
    shared.fail_in = ""
    with pytest.raises(ReadConflictError):
        snapshot.load(a)
    assert value_at(snapshot, b) == 0
    with pytest.raises(WriteConflictError):
        commit(adapter, writes, since=snapshot.tid, created=[new])
    newest = adapter.snapshot()
    assert value_at(newest, a) == 1
    with pytest.raises(WriteConflictError):  # it exists now
        commit(adapter, {new: make_record(2)}, since=newest.tid, created=[new])


def test_an_interrupt_in_the_end_is_not_disguised(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    (a,) = create(adapter, 1)
    shared.fail_in, shared.failure = "answer", KeyboardInterrupt()
    tid = adapter.tid
    with pytest.raises(KeyboardInterrupt):
        commit(adapter, {a: make_record(1)})
    assert adapter.changes(tid, adapter.tid) == frozenset([a])


def test_an_error_of_the_storage_keeps_its_class(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    (a,) = create(adapter, 1)
    shared.fail_in, shared.failure = "end", StorageClosedError("the server went away")
    with pytest.raises(StorageClosedError, match="the server went away"):
        commit(adapter, {a: make_record(1)})


def test_dangling_references_that_were_there_before_are_tolerated(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    a, b = create(adapter, 2)
    shared.change_elsewhere(b, None)
    adapter.snapshot()
    commit(adapter, {ROOT_OID: make_record(1, [a, b])})
    with pytest.raises(DanglingReferenceError) as caught:
        commit(adapter, {a: make_record(1, [b])})
    assert caught.value.oids == [b]


def test_a_commit_loads_no_more_than_the_old_record_and_what_is_newly_referred_to(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    a, b, c = create(adapter, 3)
    commit(adapter, {a: make_record(1, [b])})
    shared.loads = 0
    commit(adapter, {a: make_record(2, [b])})
    assert shared.loads == 1
    commit(adapter, {a: make_record(3, [b, c])})
    assert shared.loads == 3
    (new,) = adapter.reserve_oids(1)
    commit(adapter, {new: make_record(3)}, created=[new])
    assert shared.loads == 3


@pytest.mark.parametrize("compress", [False, True])
def test_states_are_compressed_if_the_switch_of_durus_4_is_on(
    compress: bool,
    shared: SharedStorage,
    adapter: ClassicAdapter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serialize, "WRITE_COMPRESSED_STATE_PICKLES", compress)
    commit(adapter, {ROOT_OID: make_record("a" * 100)}, created=[ROOT_OID])
    assert (b"a" * 100 in shared.records[ROOT_OID]) == (not compress)
    assert unpack_record(shared.records[ROOT_OID])[0] == ROOT_OID
    assert value_at(adapter.snapshot(), ROOT_OID) == "a" * 100


# Oids.


class StrictStorage(SharedStorage):
    """Takes only records of oids that it has handed out, as 4.3's FileStorage nearly does."""

    def store(self, oid: bytes, record: bytes) -> None:
        if int.from_bytes(oid, "big") > self.last_oid:
            raise ValueError(f"oid {oid!r} is a surprise")
        super().store(oid, record)


def test_an_oid_that_nobody_has_handed_out_is_refused_by_its_storage() -> None:
    adapter = ClassicAdapter(StrictStorage())
    with pytest.raises(StorageError, match=r"not committed.*surprise"):
        commit(adapter, {oid(500): make_record(0)}, created=[oid(500)])


def test_the_oid_of_the_root_is_taken_from_the_storage() -> None:
    adapter = ClassicAdapter(StrictStorage())
    commit(adapter, {ROOT_OID: make_record(0)}, created=[ROOT_OID])
    assert adapter.reserve_oids(2) == [oid(1), oid(2)]


def test_an_oid_that_is_not_of_the_root_is_used_later() -> None:
    shared = SharedStorage()
    shared.last_oid = 4
    adapter = ClassicAdapter(shared)
    commit(adapter, {ROOT_OID: make_record(0)}, created=[ROOT_OID])
    assert adapter.reserve_oids(2) == [oid(5), oid(6)]


# Pack and close.


def test_what_pack_removed_counts_as_changed(
    shared: SharedStorage, adapter: ClassicAdapter
) -> None:
    a, b = create(adapter, 2)
    assert isinstance(adapter, PackableStorage)
    shared.packed = [b]
    tid = adapter.tid
    adapter.pack()
    assert adapter.changes(tid, adapter.tid) == frozenset([b])
    assert value_at(adapter.snapshot(), a) == 0


def test_what_pack_removed_is_not_handed_out_again(
    adapter: ClassicAdapter, shared: SharedStorage
) -> None:
    """SHELF-1 reuses oids, but a connection may still hold a reference to the removed object."""
    _, b = create(adapter, 2)
    commit(adapter, {ROOT_OID: make_record(1)})
    shared.packed = [b]
    adapter.pack()
    shared.last_oid = 0
    assert b not in adapter.reserve_oids(5)


def test_others_are_served_while_a_storage_packs_in_steps(
    adapter: ClassicAdapter, shared: SharedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(adapter, 1)
    served = threading.Event()

    def read() -> None:
        adapter.snapshot()
        served.set()

    reader = threading.Thread(target=read)

    def pack() -> Iterator[str]:
        reader.start()
        for _ in range(1_000_000):
            if served.is_set():
                break
            yield "a step"

    monkeypatch.setattr(shared, "get_packer", pack)
    adapter.pack()
    was_served = served.is_set()
    reader.join()
    assert was_served


def test_a_pack_that_is_interrupted_ends_as_it_went_under_the_lock(
    adapter: ClassicAdapter, shared: SharedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(adapter, 1)
    ended: list[bool] = []

    def pack() -> Iterator[str]:
        try:
            while True:
                yield "a step"
        finally:
            ended.append(adapter._lock.locked())

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shared, "get_packer", pack)
    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        adapter.pack()
    assert ended == [True]
    assert adapter.snapshot().tid == adapter.tid


def test_a_storage_that_says_it_is_readonly_is_never_written(
    adapter: ClassicAdapter, shared: SharedStorage
) -> None:
    (a,) = create(adapter, 1)
    since = adapter.tid
    shared.readonly = True
    assert adapter.readonly
    calls: list[Callable[[], object]] = [
        lambda: commit(adapter, {a: make_record(1)}, since=since),
        lambda: adapter.reserve_oids(1),
        adapter.pack,
    ]
    for call in calls:
        with pytest.raises(ReadOnlyError):
            call()
    assert value_at(adapter.snapshot(), a) == 0


class BusyServer(SharedStorage):
    """Somebody commits between the two steps of every commit."""

    is_remote = True
    somebody: Callable[[], object] | None = None
    reports: Sequence[bytes] = ()
    """What the first step says has changed."""

    def end(self, handle_invalidations: Callable[[Sequence[bytes]], object] | None = None) -> None:
        if self.somebody is None:
            super().end(handle_invalidations)
            return
        self.somebody()
        if self.reports and handle_invalidations is not None:
            handle_invalidations(self.reports)
        raise WriteConflictError()


def test_a_conflict_on_a_server_is_one_even_if_a_reference_dangles_by_now() -> None:
    shared = BusyServer()
    adapter = ClassicAdapter(shared)
    a, b, c = create(adapter, 3)
    shared.somebody = lambda: shared.change_elsewhere(c, record_to_classic(c, make_record(1)))
    with pytest.raises(WriteConflictError):
        commit(adapter, {a: make_record(1, [b])})
    shared.somebody = lambda: shared.change_elsewhere(b, None)
    with pytest.raises(WriteConflictError):
        commit(adapter, {a: make_record(1, [b])}, accessed=OidSet([a, b]))
    shared.somebody = list
    with pytest.raises(DanglingReferenceError) as caught:
        commit(adapter, {a: make_record(1, [b])})
    assert caught.value.oids == [b]


@pytest.mark.parametrize("is_told", [True, False])
def test_a_dangling_reference_is_named_though_the_server_reports_what_the_pack_removed(
    is_told: bool,
) -> None:
    shared = BusyServer()
    adapter = ClassicAdapter(shared)
    a, b = create(adapter, 2)

    def pack() -> None:
        shared.change_elsewhere(b, None)
        if is_told:
            shared.sync()

    shared.somebody = pack
    shared.reports = [b] if is_told else []
    with pytest.raises(DanglingReferenceError) as caught:
        commit(adapter, {a: make_record(1, [b])})
    assert caught.value.oids == [b]


def test_an_outcome_that_the_storage_does_not_know_gets_the_id_of_the_transaction(
    adapter: ClassicAdapter, shared: SharedStorage
) -> None:
    (a,) = create(adapter, 1)
    since = adapter.tid
    shared.fail_in = "answer"
    shared.failure = CommitOutcomeUnknownError(None, "the line is dead")
    transaction = make_transaction(since, {a: make_record(1)})
    with pytest.raises(CommitOutcomeUnknownError, match="the line is dead") as caught:
        adapter.commit(transaction)
    assert caught.value.transaction_id == transaction.id
    assert adapter.changes(since, adapter.tid) == frozenset({a})


def test_the_storage_is_closed_once(shared: SharedStorage, adapter: ClassicAdapter) -> None:
    create(adapter, 1)
    snapshot = adapter.snapshot()
    adapter.close()
    adapter.close()
    assert shared.closed == 1
    with pytest.raises(StorageClosedError):
        snapshot.load(ROOT_OID)


# as_storage.


def test_a_storage_of_the_new_interface_stays_itself(adapter: ClassicAdapter) -> None:
    memory = MemoryStorage()
    assert as_storage(memory) is memory
    assert as_storage(adapter) is adapter


class CountingStorage(MemoryStorage):
    """As a program of 4.x has it: it counts what is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.stored = 0

    def store(self, oid: bytes, record: bytes) -> None:
        self.stored += 1
        super().store(oid, record)


def test_the_classic_calls_that_a_subclass_overrides_are_called() -> None:
    storage = CountingStorage()
    connection = Connection(storage)
    connection.root["a"] = 1
    connection.commit()
    connection.pack()
    assert storage.stored == 2
    assert Connection(storage).root["a"] == 1


def test_a_classic_storage_has_one_adapter_while_it_is_in_use(shared: SharedStorage) -> None:
    found: list[interfaces.Storage] = []
    threads = [threading.Thread(target=lambda: found.append(as_storage(shared))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(adapter) for adapter in found}) == 1
    assert isinstance(found[0], ClassicAdapter)
    assert as_storage(SharedStorage()) is not found[0]


def test_an_adapter_keeps_nothing_alive_when_it_is_not_in_use() -> None:
    shared = SharedStorage()
    adapter = as_storage(shared)
    dead = weakref.ref(shared)
    del shared
    gc.collect()
    assert dead() is not None
    del adapter
    gc.collect()
    assert dead() is None


@pytest.mark.parametrize("other", [None, "path.durus", {}, MemoryStorage, SharedStorage])
def test_what_is_no_storage_is_refused(other: object) -> None:
    with pytest.raises(TypeError, match=r"is no storage: expected .*durus\.storage\.Storage"):
        as_storage(other)


def test_an_interrupt_just_after_the_commit_hides_it_from_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = as_storage(SharedStorage())
    assert isinstance(adapter, ClassicAdapter)
    first, second = Connection(adapter.classic), Connection(adapter.classic)
    assert not second.root
    first.root["a"] = 1
    note = adapter._note_changes
    interrupts = iter([KeyboardInterrupt])

    def interrupt_once(oids: Collection[Oid]) -> None:
        for interrupt in interrupts:
            raise interrupt
        note(oids)

    with monkeypatch.context() as patched:
        patched.setattr(adapter, "_note_changes", interrupt_once)
        with pytest.raises(KeyboardInterrupt):
            first.commit()
    second.abort()
    assert second.root["a"] == 1
    first.abort()
    assert first.root["a"] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_uses_an_adapter_that_another_thread_was_using() -> None:
    adapter = as_storage(SharedStorage())
    assert isinstance(adapter, ClassicAdapter)
    with adapter._lock:
        child = os.fork()
        if not child:
            try:
                adapter.snapshot()
                os._exit(0)
            finally:
                os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
