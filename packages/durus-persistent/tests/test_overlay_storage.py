"""OverlayStorage: the contract, and what it owes to its base."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from durus import interfaces
from durus.connection import Connection
from durus.error import (
    ClassNotAllowedError,
    ConflictError,
    DurusKeyError,
    HistoryUnavailableError,
    ReadConflictError,
    StorageClosedError,
    StorageOpenError,
    UndoError,
    WriteConflictError,
)
from durus.history import HistoryConnection, follow
from durus.interfaces import (
    CHANGES_MAX,
    OID_LIMIT,
    ROOT_OID,
    HistoryStorage,
    Oid,
    PackableHistoryStorage,
    Revision,
    Snapshot,
    Tid,
)
from durus.oid_set import OidSet
from durus.storage import MemoryStorage, OverlayStorage, Storage, get_census
from durus.testing.storage_contract import (
    StorageContract,
    commit,
    create,
    make_record,
    value,
    value_of,
)
from durus.undo import undo


class TestOfAnEmptyBase(StorageContract):
    def open(self, path: Path, *, readonly: bool = False) -> interfaces.Storage:
        return OverlayStorage(MemoryStorage())


class TestOfAFilledBase(StorageContract):
    """There is no root in it yet, because the contract makes one."""

    def open(self, path: Path, *, readonly: bool = False) -> interfaces.Storage:
        base = MemoryStorage()
        base.reserve_oids(1)
        for oid in base.reserve_oids(10):
            commit(base, {oid: make_record("of the base")}, created=[oid])
        return OverlayStorage(base)


class TestOfAnOverlay(StorageContract):
    def open(self, path: Path, *, readonly: bool = False) -> interfaces.Storage:
        lower = OverlayStorage(MemoryStorage())
        for oid in lower.reserve_oids(10):
            commit(lower, {oid: make_record("of the lower overlay")}, created=[oid])
        return OverlayStorage(lower)


class DictStorage(Storage):
    """A storage as a program for Durus 4.x may have written it."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.pending: dict[bytes, bytes] = {}
        self.last = -1
        self.is_closed = False

    def load(self, oid: bytes) -> bytes:
        return self.records[oid]

    def begin(self) -> None:
        self.pending = {}

    def store(self, oid: bytes, record: bytes) -> None:
        self.pending[oid] = record

    def end(self, handle_invalidations: Callable[[Sequence[bytes]], object] | None = None) -> None:
        self.records.update(self.pending)
        self.pending = {}

    def sync(self) -> list[bytes]:
        return []

    def new_oid(self) -> bytes:
        self.last += 1
        return self.last.to_bytes(8)

    def close(self) -> None:
        self.is_closed = True


class TestOfAClassicStorage(StorageContract):
    def open(self, path: Path, *, readonly: bool = False) -> interfaces.Storage:
        return OverlayStorage(DictStorage())

    def test_before_the_first_transaction_there_was_nothing(self, history: HistoryStorage) -> None:
        create(history, 0)
        with pytest.raises(HistoryUnavailableError):
            history.snapshot(interfaces.NO_TID)


def contents(storage: HistoryStorage) -> object:
    """All that can be seen of a storage."""
    transactions = list(storage.transactions())
    oids = {oid for transaction in transactions for oid in transaction.oids}
    return transactions, {oid: list(storage.revisions(oid)) for oid in oids}


class FilledStorage(MemoryStorage):
    """A root and two objects, each with three revisions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = create(self, 2)
        self.tids = [
            commit(self, {self.a: make_record(number), self.b: make_record(number)}).tid
            for number in (1, 2)
        ]


@pytest.fixture
def base() -> FilledStorage:
    return FilledStorage()


@pytest.fixture
def overlay(base: FilledStorage) -> Iterator[OverlayStorage]:
    with OverlayStorage(base) as overlay:
        yield overlay


# Independence.


def test_what_the_base_has_is_there(base: FilledStorage, overlay: OverlayStorage) -> None:
    assert overlay.tid == base.tid
    with closing(overlay.snapshot()) as snapshot:
        assert snapshot.load(base.a) == base.snapshot().load(base.a)
        assert dict(snapshot.load_many([base.a, ROOT_OID])).keys() == {base.a, ROOT_OID}


def test_the_base_is_never_written_to(base: FilledStorage, overlay: OverlayStorage) -> None:
    before = contents(base)
    (next_oid,) = base.reserve_oids(1)
    (new,) = overlay.reserve_oids(1)
    writes = {base.a: make_record("changed", [new]), new: make_record("new")}
    commit(overlay, writes, created=[new])
    undo(overlay, overlay.tid)
    overlay.pack()
    overlay.close()
    assert contents(base) == before
    assert int.from_bytes(base.reserve_oids(1)[0]) == int.from_bytes(next_oid) + 1


def test_what_is_committed_to_the_base_later_is_not_seen(
    base: FilledStorage, overlay: OverlayStorage
) -> None:
    (new,) = base.reserve_oids(1)
    later = commit(base, {base.a: make_record("later"), new: make_record("new")}, created=[new]).tid
    with closing(overlay.snapshot()) as snapshot:
        assert value_of(snapshot.load(base.a).record) == 2
        assert [oid for oid, _ in snapshot.load_many([base.a, new])] == [base.a]
        with pytest.raises(DurusKeyError):
            snapshot.load(new)
    assert [value_of(r.record) for r in overlay.revisions(base.a)] == [2, 1, 0]
    assert [t.tid for t in overlay.transactions()][-1] == base.tids[-1]
    (transaction,) = base.transactions(later)
    assert overlay.find(transaction.id) is None
    assert overlay.snapshot(later).tid == base.tids[-1]
    assert commit(overlay, {base.a: make_record("mine")}).changed == frozenset()
    assert value(base, base.a) == "later"
    with pytest.raises(DurusKeyError):
        overlay.revisions(new)


def test_overlays_of_one_base_do_not_see_each_other(base: FilledStorage) -> None:
    overlays = [OverlayStorage(base) for _ in range(3)]
    for number, overlay in enumerate(overlays):
        (new,) = overlay.reserve_oids(1)
        commit(
            overlay,
            {base.a: make_record(f"of {number}", [new]), new: make_record(number)},
            created=[new],
        )
    for number, overlay in enumerate(overlays):
        with closing(overlay.snapshot()) as snapshot:
            revision = snapshot.load(base.a)
            assert value_of(revision.record) == f"of {number}"
            assert value_of(snapshot.load(Oid(revision.record.refs)).record) == number
    assert value(base, base.a) == 2


def test_overlays_in_many_threads_are_independent(base: FilledStorage) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(8)

    def use(number: int) -> None:
        try:
            barrier.wait()
            with OverlayStorage(base) as overlay:
                for step in range(50):
                    (new,) = overlay.reserve_oids(1)
                    writes = {base.a: make_record([number, step], [new]), new: make_record(number)}
                    commit(overlay, writes, created=[new])
                    assert value(overlay, base.a) == [number, step]
                    assert value(overlay, base.b) == 2
                assert len(list(overlay.revisions(base.a))) == 53
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert base.tid == base.tids[-1]


class OneAtATimeSnapshot:
    """A snapshot that must not be used by two threads at once."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.tid = snapshot.tid
        self.snapshot = snapshot
        self.users = 0

    def load(self, oid: Oid) -> Revision:
        self.enter()
        revision = self.snapshot.load(oid)
        self.users -= 1
        return revision

    def load_many(self, oids: Iterable[Oid]) -> Iterator[tuple[Oid, Revision]]:
        self.enter()
        yield from self.snapshot.load_many(oids)
        self.users -= 1

    def enter(self) -> None:
        self.users += 1
        threading.Event().wait(0.0001)  # lets other threads run
        assert self.users == 1

    def close(self) -> None:
        self.snapshot.close()


def test_the_snapshot_of_the_base_serves_one_thread_at_a_time(base: FilledStorage) -> None:
    class Base(FilledStorage):
        def snapshot(self, at: Tid | None = None) -> Snapshot:
            return OneAtATimeSnapshot(super().snapshot(at))

    base = Base()
    overlay = OverlayStorage(base)
    failures: list[BaseException] = []

    def read(_: int) -> None:
        try:
            for _ in range(20):
                assert value(overlay, base.a) == 2
                with closing(overlay.snapshot()) as snapshot:
                    assert len(list(snapshot.load_many([base.a, base.b]))) == 2
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# Commits on top of the base.


def test_objects_of_the_base_are_changed_and_not_created(
    base: FilledStorage, overlay: OverlayStorage
) -> None:
    with pytest.raises(WriteConflictError) as caught:
        commit(overlay, {base.a: make_record(3)}, created=[base.a])
    assert caught.value.oids == [base.a]
    tid = commit(overlay, {base.a: make_record(3, [base.b])}).tid
    assert tid > base.tid
    assert [value(overlay, oid) for oid in (base.a, base.b)] == [3, 2]


def test_a_transaction_that_began_in_the_past_of_the_base_is_checked(
    base: FilledStorage, overlay: OverlayStorage
) -> None:
    with pytest.raises(WriteConflictError) as caught:
        commit(overlay, {ROOT_OID: make_record(1)}, since=base.tids[0], accessed=OidSet([base.a]))
    assert caught.value.oids == [base.a]
    commit(overlay, {ROOT_OID: make_record(1)})
    result = commit(overlay, {ROOT_OID: make_record(2)}, since=base.tids[0], accessed=OidSet())
    assert result.changed == frozenset([ROOT_OID, base.a, base.b])


def test_changes_are_those_of_the_base_and_then_the_own(
    base: FilledStorage, overlay: OverlayStorage
) -> None:
    (new,) = base.reserve_oids(1)
    commit(base, {new: make_record("later")}, created=[new])
    tid = commit(overlay, {ROOT_OID: make_record(1)}).tid
    assert overlay.changes(base.tids[0], base.tids[1]) == frozenset([base.a, base.b])
    assert overlay.changes(base.tids[0], tid) == frozenset([base.a, base.b, ROOT_OID])
    assert overlay.changes(base.tids[1], tid) == frozenset([ROOT_OID])


def test_what_the_base_does_not_know_any_more_counts_as_everything(base: FilledStorage) -> None:
    oids = base.reserve_oids(CHANGES_MAX + 1)
    commit(base, dict.fromkeys(oids, make_record(0)), created=oids)
    overlay = OverlayStorage(base)
    tid = commit(overlay, {ROOT_OID: make_record(1)}).tid
    assert overlay.changes(base.tids[0], tid) is None
    with pytest.raises(WriteConflictError):
        commit(overlay, {base.a: make_record(1)}, since=base.tids[0])


def test_oids_lie_far_above_those_of_the_base(base: FilledStorage) -> None:
    lower = OverlayStorage(base)
    used = {ROOT_OID, base.a, base.b}
    for _ in range(2):
        upper = OverlayStorage(lower)
        for storage in (upper, lower):
            oids = storage.reserve_oids(3)
            assert used.isdisjoint(oids)
            assert all(2**47 <= int.from_bytes(oid) < OID_LIMIT for oid in oids)
        commit(lower, dict.fromkeys(oids, make_record("of the lower one")), created=oids)
        used.update(oids)


# The past.


def test_the_past_is_that_of_the_base_and_then_the_own(
    base: FilledStorage, overlay: OverlayStorage
) -> None:
    tids = [t.tid for t in base.transactions()]
    mine = [commit(overlay, {base.a: make_record(number)}).tid for number in (3, 4)]
    commit(base, {base.a: make_record("later")})
    assert [t.tid for t in overlay.transactions()] == tids + mine
    assert [t.tid for t in overlay.transactions(tids[1], mine[1])] == [*tids[1:], mine[0]]
    assert [t.tid for t in overlay.transactions(stop=tids[1])] == tids[:1]
    assert [value_of(r.record) for r in overlay.revisions(base.a)] == [4, 3, 2, 1, 0]
    for tid, seen in zip([*base.tids, *mine], (1, 2, 3, 4), strict=True):
        with closing(overlay.snapshot(tid)) as snapshot:
            assert snapshot.tid == tid
            assert value_of(snapshot.load(base.a).record) == seen
    assert overlay.snapshot(Tid(mine[0] - 1)).tid == tids[-1]
    assert overlay.snapshot(Tid(tids[-1] - 1)).tid == tids[-2]
    for transaction in overlay.transactions():
        assert overlay.find(transaction.id) == transaction.tid


def test_a_transaction_of_the_base_can_be_undone_above_it(
    base: FilledStorage, overlay: OverlayStorage
) -> None:
    undo(overlay, base.tids[-1])
    assert (value(overlay, base.a), value(base, base.a)) == (1, 2)
    commit(overlay, {base.a: make_record(3)})
    with pytest.raises(UndoError):
        undo(overlay, base.tids[-1])


def count_on(storage: MemoryStorage) -> None:
    connection = Connection(storage)
    for _ in range(2):
        connection.root["count"] = connection.root.get("count", 0) + 1
        connection.commit()


def test_a_connection_moves_through_both_pasts() -> None:
    base = MemoryStorage()
    count_on(base)
    overlay = OverlayStorage(base)
    count_on(overlay)
    history = HistoryConnection(overlay)
    counts = [history.root.get("count")]
    while history.previous():
        counts.append(history.root.get("count"))
    assert counts == [4, 3, 2, 1, None]
    assert Connection(base).root["count"] == 2
    assert [t.tid for t in follow(overlay, 0)] == [t.tid for t in overlay.transactions()]


# Pack.


def test_a_pack_drops_what_only_the_overlay_had(
    base: FilledStorage, overlay: OverlayStorage
) -> None:
    assert isinstance(overlay, PackableHistoryStorage)
    kept, dropped = overlay.reserve_oids(2)
    writes = {
        base.a: make_record(3, [kept, dropped]),
        kept: make_record(1),
        dropped: make_record(1),
    }
    first = commit(overlay, writes, created=[kept, dropped]).tid
    last = commit(overlay, {base.a: make_record(4, [kept])}).tid
    with closing(overlay.snapshot()) as before:
        overlay.pack()
        assert value_of(before.load(dropped).record) == 1
    with closing(overlay.snapshot()) as snapshot:
        assert [oid for oid, _ in snapshot.load_many([kept, dropped])] == [kept]
        assert [value_of(snapshot.load(oid).record) for oid in (base.a, base.b)] == [4, 2]
    assert [r.tid for r in overlay.revisions(base.a)] == [last]
    assert [r.tid for r in overlay.revisions(base.b)] == [base.tids[-1]]
    for tid in (first, base.tids[0]):
        with pytest.raises(HistoryUnavailableError):
            overlay.snapshot(tid)
    assert [t.tid for t in overlay.transactions()] == [last]
    wrote = {base.a, base.b, kept}  # what there still is of it
    for since, oids in ((first, [base.a]), (base.tids[0], sorted(wrote))):
        (joined,) = follow(overlay, since)
        assert (joined.tid, joined.oids) == (last, oids)


def test_a_pack_keeps_what_an_object_led_to_that_the_base_has(
    base: FilledStorage, overlay: OverlayStorage
) -> None:
    commit(overlay, {ROOT_OID: make_record(1)})  # nothing leads to base.a now, but who would look?
    (new,) = overlay.reserve_oids(1)
    commit(overlay, {base.a: make_record(3, [new]), new: make_record(1)}, created=[new])
    overlay.pack()
    assert (value(overlay, base.a), value(overlay, new)) == (3, 1)


def test_a_pack_that_keeps_some_of_the_tail_keeps_what_was_below_it(
    base: FilledStorage, overlay: OverlayStorage
) -> None:
    horizon = commit(overlay, {base.b: make_record(3)}).tid
    commit(overlay, {base.a: make_record(3)})
    overlay.pack(keep=horizon)
    assert [value_of(r.record) for r in overlay.revisions(base.a)] == [3, 2]
    assert [value_of(r.record) for r in overlay.revisions(base.b)] == [3]
    with closing(overlay.snapshot(horizon)) as snapshot:
        assert [value_of(snapshot.load(oid).record) for oid in (base.a, base.b)] == [2, 3]


def test_a_pack_that_keeps_all_of_the_tail_keeps_the_past_of_the_base(
    base: FilledStorage, overlay: OverlayStorage
) -> None:
    commit(overlay, {base.a: make_record(3)})
    before = contents(overlay)
    overlay.pack(keep=base.tids[0])
    assert contents(overlay) == before
    assert overlay.snapshot(base.tids[0]).tid == base.tids[0]


def test_the_base_may_be_packed_meanwhile(base: FilledStorage, overlay: OverlayStorage) -> None:
    mine = commit(overlay, {base.b: make_record(3, [base.a])}).tid
    commit(base, {ROOT_OID: make_record(1), base.b: make_record("later")})
    base.pack()
    for oid, seen in ((ROOT_OID, 0), (base.a, 2), (base.b, 3)):
        assert value(overlay, oid) == seen
    assert [value_of(r.record) for r in overlay.revisions(base.a)] == [2]
    assert [value_of(r.record) for r in overlay.revisions(base.b)] == [3, 2]
    with closing(overlay.snapshot(base.tids[-1])) as snapshot:
        assert value_of(snapshot.load(base.b).record) == 2
    with pytest.raises(HistoryUnavailableError):
        overlay.snapshot(base.tids[0])
    commit(overlay, {base.a: make_record(4, [base.b])}, since=mine)
    assert [value(overlay, oid) for oid in (base.a, base.b)] == [4, 3]


# Open and closed.


def test_closing_leaves_the_base_open(base: FilledStorage, overlay: OverlayStorage) -> None:
    now, past = overlay.snapshot(), overlay.snapshot(base.tids[0])
    overlay.close()
    overlay.close()
    assert value(base, base.a) == 2
    for snapshot in (now, past):
        with pytest.raises(StorageClosedError, match="OverlayStorage"):
            snapshot.load(base.a)
        with pytest.raises(StorageClosedError, match="OverlayStorage"):
            list(snapshot.load_many([base.a]))
    with pytest.raises(StorageClosedError):
        overlay.snapshot(base.tids[0])


def test_closing_lets_the_snapshot_of_the_base_go() -> None:
    closed: list[Tid] = []

    class CountedSnapshot(OneAtATimeSnapshot):
        def close(self) -> None:
            closed.append(self.tid)

    class Base(FilledStorage):
        def snapshot(self, at: Tid | None = None) -> Snapshot:
            return CountedSnapshot(super().snapshot(at))

    base = Base()
    closed.clear()
    overlay = OverlayStorage(base)
    overlay.snapshot().close()
    assert closed == []
    overlay.snapshot(base.tids[0]).close()
    assert closed == [base.tids[0]]
    overlay.close()
    assert closed == [base.tids[0], base.tids[-1]]


def test_when_the_base_is_closed_what_it_had_is_gone(
    base: FilledStorage, overlay: OverlayStorage
) -> None:
    commit(overlay, {base.a: make_record(3)})
    base.close()
    assert value(overlay, base.a) == 3
    with (
        closing(overlay.snapshot()) as snapshot,
        pytest.raises(StorageClosedError, match="<MemoryStorage"),
    ):
        snapshot.load(base.b)
    with pytest.raises(StorageClosedError):
        commit(overlay, {base.b: make_record(3)})
    overlay.close()


def test_what_cannot_be_opened_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StorageOpenError):
        OverlayStorage("memory:")
    with pytest.raises(TypeError, match="is no storage"):
        OverlayStorage(None)  # type: ignore[arg-type]  # as a program without types may


# Connections.


def test_a_connection_works_on_an_overlay() -> None:
    base = MemoryStorage()
    connection = Connection(base)
    connection.root["names"] = ["ann"]
    connection.commit()
    overlay = OverlayStorage(base)
    first, second = Connection(overlay), Connection(overlay)
    first.root["names"] = ["ann", "bob"]
    first.commit()
    second.root["names"] = ["eve"]
    with pytest.raises(ConflictError):
        second.commit()
    second.abort()
    assert second.root["names"] == ["ann", "bob"]
    connection.abort()
    assert connection.root["names"] == ["ann"]
    assert get_census(overlay) == {b"PersistentDict": 1}


# A base without history.


def test_what_was_changed_in_a_base_without_history_is_a_conflict() -> None:
    classic = DictStorage()
    connection = Connection(classic)
    connection.root["count"] = 1
    connection.commit()
    overlay, changed = OverlayStorage(classic), OverlayStorage(classic)
    commit(changed, {ROOT_OID: make_record("mine")})
    connection.root["count"] = 2
    connection.commit()
    with pytest.raises(ReadConflictError):
        Connection(overlay)
    assert value(changed, ROOT_OID) == "mine"
    assert Connection(OverlayStorage(classic)).root["count"] == 2


def test_the_past_of_a_base_without_history_begins_with_the_overlay() -> None:
    classic = DictStorage()
    connection = Connection(classic)
    connection.root["count"] = 1
    connection.commit()
    overlay = OverlayStorage(classic)
    begun = overlay.tid
    tid = commit(overlay, {ROOT_OID: make_record(2)}).tid
    assert overlay.snapshot(begun).tid == begun
    with pytest.raises(HistoryUnavailableError):
        overlay.snapshot(Tid(begun - 1))
    assert [t.tid for t in overlay.transactions()] == [tid]
    assert len(list(overlay.revisions(ROOT_OID))) == 2
    overlay.close()
    assert not classic.is_closed


class RemoteStorage(DictStorage):
    """Says that its records come from a server."""

    is_remote = True


def test_an_overlay_of_a_server_imports_as_little_as_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_to_overlays.py").write_text(
        "from durus.persistent import Persistent\nclass Thing(Persistent): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    thing = b"cforeign_to_overlays\nThing\n."
    for base in (RemoteStorage(), OverlayStorage(RemoteStorage())):
        with Connection(OverlayStorage(base)) as careful, pytest.raises(ClassNotAllowedError):
            careful.reader.policy.load_class(thing, ROOT_OID)
    with Connection(OverlayStorage(DictStorage())) as trusting:
        assert trusting.reader.policy.load_class(thing, ROOT_OID).__name__ == "Thing"
