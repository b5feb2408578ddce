"""Pack while others read and commit: what is kept, what others notice, what goes wrong."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from durus import index_checkpoint, online_pack
from durus.error import (
    CorruptionError,
    DanglingReferenceError,
    DatabaseReplacedError,
    DurusKeyError,
    HistoryUnavailableError,
    StorageClosedError,
    StorageError,
    StorageLockedError,
)
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.interfaces import NO_TID, ROOT_OID, Oid, Progress, Record, Tid
from durus.log_file import LogFile
from durus.log_pack import LogPack
from durus.log_verify import verify_file
from durus.record import split_oids
from durus.testing.storage_contract import commit, create, make_record, value, value_of


@pytest.fixture
def storage(path: Path) -> Iterator[FileStorage]:
    with closing(FileStorage(path)) as storage:
        yield storage
    assert list(verify_file(str(path))) == []
    assert {name for name in os.listdir(path.parent) if name.endswith((".pack", ".new"))} == set()


def once(call: Callable[[], object]) -> Callable[[Progress], None]:
    """Calls back at the first sign of progress only."""
    calls = [call]

    def report(progress: Progress) -> None:
        if calls:
            calls.pop()()

    return report


def values_at(storage: FileStorage, tid: Tid) -> dict[Oid, object]:
    """The values of all objects that the root led to."""
    found: dict[Oid, object] = {}
    todo = [ROOT_OID]
    with closing(storage.snapshot(tid)) as snapshot:
        while todo:
            oid = todo.pop()
            if oid not in found:
                record = snapshot.load(oid).record
                found[oid] = value_of(record)
                todo += split_oids(record.refs)
    return found


# What is kept


def test_history_stays_from_the_horizon_on(storage: FileStorage) -> None:
    a, b = create(storage, 2)
    tids = [commit(storage, {(a, b)[n % 2]: make_record(n)}).tid for n in range(10)]
    seen = {tid: values_at(storage, tid) for tid in tids}
    storage.pack(keep=tids[4])
    for tid in tids[4:]:
        assert values_at(storage, tid) == seen[tid]
    with pytest.raises(HistoryUnavailableError):
        storage.snapshot(tids[3])
    assert [value_of(r.record) for r in storage.revisions(a)] == [8, 6, 4]
    assert [value_of(r.record) for r in storage.revisions(b)] == [9, 7, 5, 3]


@pytest.mark.parametrize(
    "kept",
    [lambda: timedelta(hours=1), lambda: datetime.now(UTC) - timedelta(hours=1), lambda: NO_TID],
)
def test_what_is_younger_than_the_horizon_stays_as_it_is(
    storage: FileStorage, kept: Callable[[], timedelta | datetime | Tid]
) -> None:
    a, b = create(storage, 2)
    commit(storage, {ROOT_OID: make_record("lonely", [a])})
    before = list(storage.transactions())
    storage.pack(keep=kept())
    assert list(storage.transactions()) == before
    assert value(storage, b) == 0
    assert storage.snapshot(before[0].tid).tid == before[0].tid


def test_a_time_without_a_zone_is_refused(storage: FileStorage) -> None:
    create(storage, 1)
    with pytest.raises(ValueError, match="time zone"):
        storage.pack(keep=datetime(2026, 1, 1))


def test_what_the_kept_history_leads_to_stays(storage: FileStorage) -> None:
    a, b, c = create(storage, 3)
    commit(storage, {a: make_record(1, [c])})
    horizon = commit(storage, {ROOT_OID: make_record(0, [a, b])}).tid
    commit(storage, {ROOT_OID: make_record("b is lost", [a])})
    commit(storage, {a: make_record("c is lost")})
    seen = values_at(storage, horizon)
    assert c in seen
    storage.pack(keep=horizon)
    assert values_at(storage, horizon) == seen
    storage.pack()
    assert set(values_at(storage, storage.tid)) == {ROOT_OID, a}
    for lost in (b, c):
        with pytest.raises(DurusKeyError):
            value(storage, lost)


def test_a_horizon_before_that_of_the_last_pack_changes_nothing(storage: FileStorage) -> None:
    (a,) = create(storage, 1)
    tids = [commit(storage, {a: make_record(n)}).tid for n in range(4)]
    storage.pack(keep=tids[2])
    before = list(storage.transactions())
    storage.pack(keep=tids[0])
    assert list(storage.transactions()) == before
    with pytest.raises(HistoryUnavailableError):
        storage.snapshot(tids[1])
    assert len(list(storage.revisions(a))) == 2


def test_packs_with_random_horizons_keep_what_they_must(path: Path, storage: FileStorage) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    oids = create(storage, 3)
    horizon = storage.tid
    seen: dict[Tid, dict[Oid, object]] = {}

    def change() -> None:
        """Some transactions: objects change, are created, lose their referents, and get others."""
        for number in range(rng.randrange(6)):
            known = list(values_at(storage, storage.tid))
            writes: dict[Oid, Record] = {}
            created = list(storage.reserve_oids(rng.randrange(3) + 1))
            for oid in {ROOT_OID, *rng.sample(known, min(len(known), 2)), *created}:
                refs = rng.sample([*known, *created], rng.randrange(min(4, len(known))))
                writes[oid] = make_record(f"{number} of {oid!r}", {*refs, *created})
            tid = commit(storage, writes, created=created).tid
            oids.extend(created)
            seen[tid] = values_at(storage, tid)

    for _ in range(12):
        change()
        keep = rng.choice([*seen, storage.tid]) if seen else storage.tid
        storage.pack(keep=keep, progress=once(change))
        horizon = max(horizon, keep)
        for tid, values in seen.items():
            if tid >= horizon:
                assert values_at(storage, tid) == values
        assert list(verify_file(str(path))) == []
        assert storage.reserve_oids(1)[0] > max(oids)
        if rng.random() < 0.3:
            storage.close()
            storage = FileStorage(path)
    storage.close()


# Others, meanwhile


def test_what_others_commit_meanwhile_is_there(path: Path, storage: FileStorage) -> None:
    a, b = create(storage, 2)
    with closing(FileStorage(path)) as other:
        before = other.snapshot()
        result: list[tuple[Oid, Tid]] = []
        reserved: list[Oid] = []

        def commit_meanwhile() -> None:
            (new,) = other.reserve_oids(1)
            writes = {a: make_record("meanwhile", [new]), new: make_record("new")}
            result.append((new, commit(other, writes, created=[new]).tid))
            reserved.extend(other.reserve_oids(100))

        storage.pack(progress=once(commit_meanwhile))
        ((new, tid),) = result
        for each in (storage, other):
            assert value(each, a) == "meanwhile"
            assert value(each, new) == "new"
            assert each.tid == tid
        assert value_of(before.load(a).record) == 0
        commit(other, {b: make_record("after")})
        assert value(storage, b) == "after"
        assert not {new, *reserved}.intersection(storage.reserve_oids(300))


def test_what_comes_while_the_index_is_made_is_not_left_for_the_lock(
    path: Path, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = create(storage, 2)
    copied: list[Tid] = []
    make_index = online_pack._Attempt._make_index

    def make_index_and_commit(*arguments: Any) -> Any:
        index = make_index(*arguments)
        for number in range(100):
            commit(other, {a: make_record(number)})
        return index

    monkeypatch.setattr(online_pack, "CHECKPOINT_SIZE", 1)
    monkeypatch.setattr(online_pack._Attempt, "_make_index", make_index_and_commit)
    monkeypatch.setattr(LogPack, "hush", lambda pack: copied.append(pack.writer.tid))
    with closing(FileStorage(path)) as other:
        storage.pack()
        assert copied == [other.tid]
        assert (value(storage, a), value(storage, b)) == (99, 0)
        assert commit(storage, {a: make_record("after"), b: make_record("after")})
        assert value(other, a) == "after"


def test_the_packed_file_is_unlocked_before_it_is_another_threads_turn(
    path: Path, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(storage, 2)
    turns: list[bool] = []
    unlock = LogFile.unlock

    def watch(file: LogFile) -> None:
        if file.is_at(str(path)):
            turns.append(storage._shared._appending.locked())
        unlock(file)

    monkeypatch.setattr(LogFile, "unlock", watch)
    storage.pack()
    assert turns
    assert all(turns)


def test_transactions_before_the_horizon_go_however_many_come_after_it(
    path: Path, storage: FileStorage
) -> None:
    a, _ = create(storage, 2)
    tids = [commit(storage, {a: make_record(n)}).tid for n in range(1100)]
    storage.pack(keep=tids[50])
    kept = [transaction.tid for transaction in storage.transactions()]
    assert kept[1:] == tids[50:]  # the first one has the objects that nobody has changed since


def test_a_pack_that_keeps_history_has_an_index_too(
    path: Path, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = create(storage, 2)
    for number in range(20):
        commit(storage, {a: make_record(number)})
    monkeypatch.setattr(online_pack, "CHECKPOINT_SIZE", 20)
    storage.pack(keep=NO_TID)
    assert os.path.exists(index_checkpoint.index_path(str(path)))


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_stale_index_of_a_killed_pack_is_removed(
    path: Path, storage: FileStorage, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(storage, 2)
    monkeypatch.setattr(online_pack, "CHECKPOINT_SIZE", size)
    stale = Path(f"{path}.pack.index")
    stale.write_bytes(b"left")
    storage.pack()
    assert not stale.exists()


def test_an_object_that_comes_back_meanwhile_is_kept(path: Path, storage: FileStorage) -> None:
    a, b, c = create(storage, 3)
    commit(storage, {b: make_record("back", [c])})
    commit(storage, {ROOT_OID: make_record(0, [a])})  # b, and with it c, cannot be reached
    with closing(FileStorage(path)) as other:
        storage.pack(progress=once(lambda: commit(other, {a: make_record(1, [b])})))
        assert (value(other, b), value(storage, c)) == ("back", 0)


def test_objects_that_come_back_again_and_again_are_given_up_on(
    path: Path, storage: FileStorage
) -> None:
    a, *lost = create(storage, 30)
    commit(storage, {ROOT_OID: make_record(0, [a])})
    tid = storage.tid
    with closing(FileStorage(path)) as other:

        def bring_back(progress: Progress) -> None:
            if progress.what == "looking for objects":
                commit(other, {a: make_record(1, [lost.pop()])})

        before = path.stat().st_ino
        with pytest.raises(StorageError, match="referred to again, 10 times"):
            storage.pack(keep=tid, progress=bring_back)
        assert path.stat().st_ino == before
        assert len(lost) == 19


def test_a_reference_to_what_a_pack_has_removed_is_refused(storage: FileStorage) -> None:
    a, b = create(storage, 2)
    commit(storage, {ROOT_OID: make_record(0, [a])})
    storage.pack()
    with pytest.raises(DanglingReferenceError):
        commit(storage, {a: make_record(1, [b])})


def test_two_at_once_do_not_pack_the_same_file(path: Path, storage: FileStorage) -> None:
    create(storage, 1)
    refused: list[FileStorage] = []

    def pack_too() -> None:
        for other in (other_storage, storage):
            with pytest.raises(StorageLockedError, match="is being packed already"):
                other.pack()
            refused.append(other)

    with closing(FileStorage(path)) as other_storage:
        storage.pack(progress=once(pack_too))
        assert len(refused) == 2
        other_storage.pack()


def test_a_database_that_is_replaced_meanwhile_stays_as_it_is(path: Path, tmp_path: Path) -> None:
    with closing(FileStorage(path)) as storage:
        create(storage, 1)
        with closing(FileStorage(tmp_path / "other")) as other:
            create(other, 2)
        with pytest.raises(DatabaseReplacedError):
            storage.pack(progress=once(lambda: os.replace(tmp_path / "other", path)))
    with closing(FileStorage(path)) as storage:
        assert value(storage, Oid((2).to_bytes(8))) == 0
    assert os.listdir(tmp_path) == [path.name]


def test_a_file_that_another_one_has_packed_meanwhile_is_packed_anew(
    path: Path, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = create(storage, 1)
    with closing(FileStorage(path)) as other:
        # Between the moments when the log is opened, and when the copy is begun.
        made_aside = online_pack._Attempt._made_aside
        others = [other]

        def pack_before(attempt: online_pack._Attempt) -> object:
            if others:
                others.pop().pack()
            return made_aside(attempt)

        monkeypatch.setattr(online_pack._Attempt, "_made_aside", pack_before)
        commit(other, {a: make_record(1)})
        storage.pack()
        assert others == []
        assert value(other, a) == value(storage, a) == 1


def test_threads_commit_and_read_while_one_packs(path: Path, storage: FileStorage) -> None:
    oids = create(storage, 4)
    stop = threading.Event()
    counts = dict.fromkeys(oids, 0)
    failures: list[BaseException] = []

    def count_on(oid: Oid) -> None:
        try:
            while not stop.is_set():
                commit(storage, {oid: make_record(counts[oid] + 1)})
                counts[oid] += 1
                assert value(storage, oid) == counts[oid]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=count_on, args=(oid,)) for oid in oids]
    for thread in threads:
        thread.start()
    for _ in range(10):
        storage.pack()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {oid: value(storage, oid) for oid in oids} == counts


# What else


def test_the_old_file_is_kept_if_asked(path: Path, storage: FileStorage, tmp_path: Path) -> None:
    (a,) = create(storage, 1)
    first = commit(storage, {a: make_record(1)}).tid
    old = path.with_name(f"{path.name}.old")
    for _ in range(2):
        second = commit(storage, {a: make_record(2)}).tid
        storage.pack(keep_old=True)
        with closing(FileStorage(old, readonly=True)) as kept:
            assert kept.tid == second
            assert len(list(kept.revisions(a))) > 1
    with pytest.raises(HistoryUnavailableError):
        storage.snapshot(first)
    old.unlink()


def test_a_pack_needs_room(path: Path) -> None:
    class Full(OperatingSystem):
        def free_space(self, path: str) -> int:
            return 1 << 20

    with closing(FileStorage(path, system=Full())) as storage:
        create(storage, 1)
        before = path.read_bytes()
        with pytest.raises(StorageError, match="1 MiB are free there; nothing was changed"):
            storage.pack()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("what", ["looking for objects", "copying"])
def test_what_the_callback_raises_ends_the_pack(
    path: Path, storage: FileStorage, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durus.log_pack._REPORT_SIZE", 0)
    (a,) = create(storage, 1)
    before = path.read_bytes()

    def stop(progress: Progress) -> None:
        if progress.what == what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.pack(progress=stop)
    assert path.read_bytes() == before
    commit(storage, {a: make_record(1)})
    storage.pack()


def test_progress_is_told(path: Path, storage: FileStorage) -> None:
    root = {ROOT_OID: make_record(0)}
    commit(storage, root, created=[ROOT_OID])
    for _ in range(5):
        oids = storage.reserve_oids(100)
        writes = {oid: make_record("x" * 10_000) for oid in oids}
        known = list(values_at(storage, storage.tid))[1:]
        commit(storage, {ROOT_OID: make_record(0, [*known, *oids]), **writes}, created=oids)
    told: list[Progress] = []
    storage.pack(progress=told.append)
    assert told[0].what == "looking for objects"
    assert told[0].done == 501
    copying = [progress for progress in told if progress.what == "copying"]
    assert [p.done for p in copying] == sorted(p.done for p in copying)
    assert copying[-1].done <= copying[-1].total
    size = path.stat().st_size
    assert size * 0.9 < copying[-1].total < size * 1.1


def test_a_packed_file_of_many_objects_has_an_index(
    path: Path, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_pack, "CHECKPOINT_SIZE", 3)
    oids = create(storage, 5)
    with closing(FileStorage(path)) as other:
        storage.pack(progress=once(lambda: commit(other, {oids[0]: make_record(1)})))
        commit(other, {oids[1]: make_record(1)})
    for readonly in (True, False):
        with closing(FileStorage(path, readonly=readonly)) as reader:
            assert reader._shared.current().index.base is not None
            assert [value(reader, oid) for oid in oids] == [1, 1, 0, 0, 0]
    assert os.path.exists(index_checkpoint.index_path(str(path)))


def test_what_is_damaged_is_named_and_nothing_changes(path: Path, storage: FileStorage) -> None:
    (a,) = create(storage, 1)
    commit(storage, {a: make_record("to be damaged")})
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[content.index(b"to be damaged")] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CorruptionError, match="checksum") as caught:
        storage.pack()
    assert caught.value.oid == a
    assert path.read_bytes() == damaged
    assert os.listdir(path.parent) == [path.name]
    path.write_bytes(content)
    storage.pack()


def test_a_damaged_index_does_not_keep_a_pack_from_being_complete(path: Path, oid: Oid) -> None:
    index = path.with_name(f"{path.name}.index")
    content = bytearray(index.read_bytes())
    content[4096 + 8] ^= 1  # where a slot stands
    index.write_bytes(content)
    with closing(FileStorage(path)) as storage:
        storage.pack()
        assert value(storage, oid) == 0


def test_a_storage_that_is_closed_meanwhile_is_not_packed(path: Path) -> None:
    with closing(FileStorage(path)) as storage:
        create(storage, 1)
        before = path.read_bytes()
        with pytest.raises(StorageClosedError):
            storage.pack(progress=once(storage.close))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
