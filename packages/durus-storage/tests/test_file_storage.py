"""`FileStorage`: opening, the lock, other processes, temporary files, packing, classic calls."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from durus.error import (
    CorruptionError,
    DurusKeyError,
    HistoryUnavailableError,
    NotADatabaseError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    StorageLockedError,
    StorageOpenError,
    UnstorableError,
    UnsupportedFormatError,
    WriteConflictError,
)
from durus.file_storage import FileStorage, TempFileStorage
from durus.file_system import FileStatus, OperatingSystem
from durus.formats import open_file
from durus.interfaces import (
    CHANGES_MAX,
    ROOT_OID,
    HistoryStorage,
    Oid,
    PackableStorage,
    Record,
    Tid,
)
from durus.log_format import (
    Mark,
    encode_mark,
    encode_transaction,
)
from durus.log_header import (
    MAGIC,
    FileHeader,
    decode_file_header,
    encode_file_header,
)
from durus.log_verify import verify_file
from durus.oid_set import OidSet
from durus.record import record_to_classic
from durus.storage import open_storage
from durus.testing.storage_contract import (
    commit,
    create,
    make_record,
    make_transaction,
    value,
    value_of,
)


@pytest.fixture
def storage(path: Path) -> Iterator[FileStorage]:
    with closing(FileStorage(path)) as storage:
        yield storage
    assert list(verify_file(str(path))) == []


def header_of(path: Path) -> FileHeader:
    header = decode_file_header(path.read_bytes())
    assert header is not None
    return header


def run_python(source: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


class Unsynced(OperatingSystem):
    def sync(self, fd: int) -> None:
        pass


# Opening


def header(**fields: int) -> bytes:
    return encode_file_header(
        FileHeader(database_id=bytes(16), file_id=bytes(16), created_ns=1, **fields)  # type: ignore[arg-type] # all fields given here are int
    )


BAD_FILES = [
    pytest.param(b"hello, this is a text", NotADatabaseError, "no Durus database", id="text"),
    pytest.param(b"b", NotADatabaseError, "no Durus database", id="short-text"),
    pytest.param(MAGIC[:5], CorruptionError, "cut off", id="cut-magic"),
    pytest.param(header()[:50], CorruptionError, "cut off", id="cut-header"),
    pytest.param(header()[:-1] + b"?", CorruptionError, "damaged", id="damaged-header"),
    pytest.param(header(version=2), UnsupportedFormatError, "newer release", id="version"),
    pytest.param(
        header(features_refuse=4), UnsupportedFormatError, "newer release.*0x4", id="feature"
    ),
]


@pytest.mark.parametrize(("content", "error", "message"), BAD_FILES)
@pytest.mark.parametrize("readonly", [False, True])
def test_what_is_no_log_file_is_named_and_left_as_it_is(
    path: Path, content: bytes, error: type[Exception], message: str, readonly: bool
) -> None:
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(error, match=message) as caught:
        FileStorage(path, readonly=readonly)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == 1
    assert os.listdir(path.parent) == [path.name]


def test_an_empty_file_becomes_a_database_if_it_may_be_made(path: Path) -> None:
    """Programs of 4.x make empty files, with `tempfile`, to have a name."""
    path.touch()
    for readonly, create_it in ((True, True), (False, False)):
        with pytest.raises(NotADatabaseError, match="the file is empty"):
            FileStorage(path, readonly, create=create_it)
        assert path.read_bytes() == b""
    link = path.with_name("link")
    link.symlink_to(path)
    with closing(FileStorage(link)) as storage:
        create(storage, 1)
    assert link.is_symlink()
    assert list(verify_file(str(path))) == []
    assert sorted(os.listdir(path.parent)) == sorted([path.name, link.name])


def test_of_two_that_fill_an_empty_file_at_once_one_does(path: Path) -> None:
    class SomebodyIsFaster(OperatingSystem):
        waited = False

        def lock(self, fd: int, *, shared: bool = False) -> bool:
            if not self.waited:
                self.waited = True
                with closing(FileStorage(path)) as faster:
                    create(faster, 0)
            return super().lock(fd, shared=shared)

    path.touch()
    with closing(FileStorage(path, system=SomebodyIsFaster())) as storage:
        assert value_of(storage.snapshot().load(ROOT_OID).record) == 0


def test_unknown_features_may_forbid_writing_or_nothing(path: Path) -> None:
    path.write_bytes(header(features_read_only=1))
    with pytest.raises(UnsupportedFormatError, match="readonly=True opens it"):
        FileStorage(path)
    FileStorage(path, readonly=True).close()
    path.write_bytes(header(features_ignore=1))
    FileStorage(path).close()


@pytest.mark.parametrize("readonly", [False, True])
def test_a_directory_is_refused(tmp_path: Path, readonly: bool) -> None:
    with pytest.raises(StorageOpenError, match="a directory") as caught:
        FileStorage(tmp_path, readonly=readonly)
    assert isinstance(caught.value, OSError)


def test_a_missing_file_is_not_made_unless_that_is_wanted(path: Path) -> None:
    with pytest.raises(StorageOpenError, match="create=False"):
        FileStorage(path, create=False)
    with pytest.raises(StorageOpenError, match="readonly=True") as caught:
        FileStorage(path, readonly=True)
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.ENOENT
    assert not path.exists()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageOpenError, match=rf"directory {tmp_path}/missing does not exist"):
        FileStorage(tmp_path / "missing" / "file")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageOpenError, match="Not a directory"):
        FileStorage(tmp_path / "file" / "below")


def test_a_directory_that_cannot_be_written_is_named(path: Path) -> None:
    class ReadOnlyDirectory(OperatingSystem):  # root may write everywhere, so the test says it
        def create(self, path: str, like: FileStatus | None = None, *, append: bool = True) -> int:
            raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(StorageOpenError, match="cannot be made: Permission denied"):
        FileStorage(path, system=ReadOnlyDirectory())
    assert os.listdir(path.parent) == []


def test_a_file_without_permission_says_what_may_help(path: Path) -> None:
    class NoPermission(OperatingSystem):
        def open(self, path: str, *, writable: bool, append: bool = True) -> int:
            if writable:
                raise PermissionError(errno.EACCES, "Permission denied")
            return super().open(path, writable=writable, append=append)

    FileStorage(path).close()
    with pytest.raises(StorageOpenError, match="readonly=True may work"):
        FileStorage(path, system=NoPermission())
    FileStorage(path, readonly=True, system=NoPermission()).close()


def test_an_error_of_opening_gives_the_lock_back(path: Path) -> None:
    FileStorage(path).close()
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(CorruptionError) as caught:
        FileStorage(path)
    path.write_bytes(content)
    FileStorage(path).close()
    assert caught.value.__traceback__ is not None


def test_it_opens_by_uri(path: Path) -> None:
    with closing(open_storage(path)) as storage:
        assert isinstance(storage, FileStorage)
        assert isinstance(storage, HistoryStorage)
        assert isinstance(storage, PackableStorage)
    open_file(str(path), readonly=True, create=False).close()


def test_the_arguments_of_durus_4_are_taken(path: Path) -> None:
    storage = FileStorage(str(path), False, True)
    assert storage.get_filename() == str(path)
    assert str(storage) == f"FileStorage({str(path)!r})"
    storage.close()
    storage.close()
    for call in (storage.pack, lambda: storage.load(ROOT_OID), storage.snapshot):
        with pytest.raises(StorageClosedError):
            call()


# Lock, processes


def test_who_waits_too_long_is_told_who_has_the_lock(path: Path) -> None:
    class Hasty(OperatingSystem):
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def pause(self, seconds: float) -> None:
            self.now += seconds

    system = Hasty()
    with closing(FileStorage(path, system=system, lock_timeout_s=5)) as storage:
        (a,) = create(storage, 1)
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(StorageLockedError, match=f"{path}: .*for 5 s") as caught:
                commit(storage, {a: make_record("late")})
        assert isinstance(caught.value, OSError)
        if sys.platform == "linux":
            assert "this process" in str(caught.value)
        assert 5 <= system.now < 5.1
        commit(storage, {a: make_record("in time")})
        assert value(storage, a) == "in time"


def test_who_waits_in_time_gets_the_lock(path: Path) -> None:
    class OtherFinishes(OperatingSystem):
        def pause(self, seconds: float) -> None:
            fcntl.flock(other, fcntl.LOCK_UN)

    with closing(FileStorage(path, system=OtherFinishes())) as storage, path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        create(storage, 1)
        assert storage.statistics.lock_waits == 1


def test_two_storages_of_one_file_see_each_other(path: Path) -> None:
    with closing(FileStorage(path)) as one, closing(FileStorage(path)) as two:
        (a,) = create(one, 1)
        assert value(two, a) == 0
        commit(two, {a: make_record("two")})
        with pytest.raises(WriteConflictError):
            commit(one, {a: make_record("one")}, since=one.tid)
        assert value(one, a) == "two"


def test_a_snapshot_ends_with_its_storage(path: Path) -> None:
    storage = FileStorage(path)
    create(storage, 1)
    snapshot = storage.snapshot()
    storage.close()
    with pytest.raises(StorageClosedError):
        snapshot.load(ROOT_OID)


COMMITTER = """
    import sys
    from durus.file_storage import FileStorage
    from durus.interfaces import ROOT_OID
    from durus.testing.storage_contract import commit, make_record
    storage = FileStorage(sys.argv[1])
    for value in sys.argv[2:]:
        if value == "pack":
            storage.pack()
        else:
            commit(storage, {ROOT_OID: make_record(value)})
    """


def test_a_reader_sees_what_another_process_commits(path: Path) -> None:
    with closing(FileStorage(path)) as storage:
        create(storage, 0)
    with closing(FileStorage(path, readonly=True)) as reader:
        before = reader.snapshot()
        since = before.tid
        run_python(COMMITTER, path, "a", "b")
        assert value(reader, ROOT_OID) == "b"
        assert value_of(before.load(ROOT_OID).record) == 0
        assert reader.changes(since, reader.tid) == frozenset({ROOT_OID})
        run_python(COMMITTER, path, "c", "pack", "d")
        assert value(reader, ROOT_OID) == "d"
        assert value_of(before.load(ROOT_OID).record) == 0
        assert reader.changes(since, reader.tid) == frozenset({ROOT_OID})
        before.close()


def test_two_processes_that_make_the_same_file_get_one_database(path: Path) -> None:
    class Slow(OperatingSystem):
        """The other process is always first."""

        def link(self, source: str, target: str) -> None:
            FileStorage(path).close()
            self.database_id = header_of(path).database_id
            super().link(source, target)

    system = Slow()
    FileStorage(path, system=system).close()
    assert header_of(path).database_id == system.database_id
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_was_replaced_takes_no_commit(path: Path) -> None:
    with closing(FileStorage(path)) as storage:
        (a,) = create(storage, 1)
        path.rename(path.with_name("moved"))
        with pytest.raises(StorageError):
            commit(storage, {a: make_record("lost")})
        FileStorage(path).close()
        with pytest.raises(StorageError, match="replaced"):
            commit(storage, {a: make_record("lost")})
        path.with_name("moved").rename(path)
        commit(storage, {a: make_record("kept")})
        assert value(storage, a) == "kept"


def test_a_readonly_storage_writes_nothing(path: Path) -> None:
    with closing(FileStorage(path)) as storage:
        (a,) = create(storage, 1)
    os.utime(path, ns=(1, 1))
    with closing(FileStorage(path, readonly=True)) as storage:
        for call in (
            storage.pack,
            lambda: storage.reserve_oids(1),
            lambda: commit(storage, {a: make_record(1)}),
        ):
            with pytest.raises(ReadOnlyError):
                call()
        assert storage.find(1) is None
        assert value(storage, a) == 0
    assert path.stat().st_mtime_ns == 1


# Temporary files


def test_a_temporary_file_is_removed_on_close() -> None:
    for storage in (FileStorage(), TempFileStorage()):
        name = storage.get_filename()
        assert os.path.isabs(name)
        create(storage, 1)
        storage.pack()
        with closing(FileStorage(name, readonly=True)) as reader:
            assert value(reader, ROOT_OID) == 0
        storage.close()
        assert not os.path.exists(name)


def test_a_temporary_file_is_removed_at_the_end_of_the_process() -> None:
    script = """
        from durus.file_storage import FileStorage
        storage = FileStorage()
        print(storage.get_filename())
        """
    assert not os.path.exists(run_python(script).stdout.strip())


# Commits


def test_the_first_oid_is_0_and_oids_go_on(storage: FileStorage) -> None:
    assert [int.from_bytes(storage.new_oid()) for _ in range(3)] == [0, 1, 2]
    oids = storage.reserve_oids(2000)
    assert [int.from_bytes(oid) for oid in oids] == list(range(3, 2003))


def test_an_oid_that_was_not_reserved_is_not_handed_out_later(storage: FileStorage) -> None:
    storage.reserve_oids(1)
    used = [Oid(number.to_bytes(8)) for number in (5, 1000)]
    writes = {oid: make_record(0) for oid in used}
    commit(storage, writes, created=used)
    assert not {*used} & {*storage.reserve_oids(2000)}


def test_a_user_or_note_that_is_no_text_is_refused_before_anything_is_written(
    path: Path, storage: FileStorage
) -> None:
    create(storage, 0)
    content = path.read_bytes()
    transaction = make_transaction(storage.tid, {ROOT_OID: make_record(1)})
    for wrong in ("\ud800", b"bytes"):
        with pytest.raises(ValueError, match=r"cannot be stored as a user|are texts"):
            storage.commit(replace(transaction, user=wrong))  # type: ignore[arg-type] # on purpose
        with pytest.raises(ValueError, match=r"cannot be stored as a user|are texts"):
            storage.commit(replace(transaction, note=wrong))  # type: ignore[arg-type] # on purpose
    assert path.read_bytes() == content


def test_writing_what_a_pack_removed_is_a_conflict(storage: FileStorage) -> None:
    a, b = create(storage, 2)
    commit(storage, {ROOT_OID: make_record(0, [a])})
    since = storage.tid
    storage.pack()
    with pytest.raises(WriteConflictError) as caught:
        commit(storage, {b: make_record(1)}, since=since)
    assert caught.value.oids == [b]


def test_tids_go_on_when_the_clock_goes_back(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = create(storage, 1)
    last = storage.tid
    monkeypatch.setattr("time.time_ns", lambda: 1)
    assert commit(storage, {a: make_record(1)}).tid == last + 1
    assert commit(storage, {a: make_record(1)}).tid == last + 2


def test_a_large_transaction_comes_back(path: Path, storage: FileStorage) -> None:
    oids = create(storage, 5000)
    with closing(storage.snapshot()) as before:
        commit(storage, {oid: make_record("x" * 1000) for oid in oids})
        assert value_of(before.load(oids[-1]).record) == 0
    storage.close()
    with closing(FileStorage(path)) as storage, closing(storage.snapshot()) as snapshot:
        assert sum(value_of(r.record) == "x" * 1000 for _, r in snapshot.load_many(oids)) == 5000


def test_a_record_that_is_too_large_is_refused_and_nothing_else_is_lost(
    storage: FileStorage,
) -> None:
    (a,) = create(storage, 1)
    tid = storage.tid
    with pytest.raises(UnstorableError, match="oid 1 is too large"):
        commit(storage, {a: Record(bytes(1 << 16), b"", b"")})
    with pytest.raises(ValueError, match="writes nothing"):
        commit(storage, {})
    assert storage.tid == tid


def test_a_conflict_is_found_however_long_ago_the_snapshot_was(
    path: Path, storage: FileStorage
) -> None:
    a, b = create(storage, 2)
    since = storage.tid
    commit(storage, {a: make_record(1)})
    many = storage.reserve_oids(CHANGES_MAX)
    commit(storage, dict.fromkeys(many, Record(b"c", b"s", b"")), created=many)
    with pytest.raises(WriteConflictError) as caught:
        commit(storage, {b: make_record(1)}, since=since, accessed=OidSet([a, b]))
    assert caught.value.oids == [a]
    result = commit(storage, {b: make_record(1)}, since=since, accessed=OidSet([b]))
    assert result.changed is None


@pytest.fixture
def unmarked(path: Path) -> tuple[Oid, Tid, int]:
    """A file whose last commit was acknowledged, but a power cut took its mark: oid, tid, id."""
    with closing(FileStorage(path)) as storage:
        (a,) = create(storage, 1)
        transaction = make_transaction(storage.tid, {a: make_record("acknowledged")})
        tid = storage.commit(transaction).tid
    path.write_bytes(path.read_bytes()[:-44])
    return a, tid, transaction.id


def test_an_acknowledged_commit_without_its_mark_is_seen_and_marked_by_the_next_commit(
    path: Path, unmarked: tuple[Oid, Tid, int]
) -> None:
    a, tid, transaction_id = unmarked
    content = path.read_bytes()
    for readonly in (True, False):
        with closing(FileStorage(path, readonly=readonly)) as storage:
            assert value(storage, a) == "acknowledged"
            assert storage.tid == tid
        assert path.read_bytes() == content
    with closing(FileStorage(path)) as storage:
        with pytest.raises(WriteConflictError):
            commit(storage, {a: make_record("lost update")}, since=Tid(tid - 1))
        commit(storage, {a: make_record("next")})
        assert storage.find(transaction_id) == tid
    assert path.read_bytes()[: len(content)] == content
    assert list(verify_file(str(path))) == []
    with closing(FileStorage(path, readonly=True)) as storage:
        assert [value_of(r.record) for r in storage.revisions(a)] == ["next", "acknowledged", 0]


def test_an_unmarked_commit_is_made_durable_before_it_is_seen(
    path: Path, unmarked: tuple[Oid, Tid, int]
) -> None:
    class Failing(OperatingSystem):
        def sync(self, fd: int) -> None:
            raise OSError(errno.EIO, "sync failed")

    for readonly in (True, False):
        with pytest.raises(StorageError, match=r"sync failed|Input/output error"):
            FileStorage(path, readonly=readonly, system=Failing()).snapshot()


def test_a_reader_does_not_see_an_unmarked_commit_while_somebody_may_be_committing(
    path: Path, unmarked: tuple[Oid, Tid, int]
) -> None:
    a, tid, _ = unmarked
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with closing(FileStorage(path, readonly=True)) as reader:
            assert reader.snapshot().tid < tid
            assert value(reader, a) == 0
            fcntl.flock(other, fcntl.LOCK_UN)
            assert value(reader, a) == "acknowledged"


# Pack


def test_pack_copies_records_and_transactions_as_they_were(
    path: Path, storage: FileStorage
) -> None:
    a, b = create(storage, 2)
    for number in range(200):
        commit(storage, {(a, b)[number % 2]: make_record("x" * 1000)})
    commit(storage, {ROOT_OID: make_record("end", [a])})
    path.chmod(0o640)
    before = {t.tid: t for t in storage.transactions()}
    kept = {oid: storage.snapshot().load(oid) for oid in (ROOT_OID, a)}
    old, size = header_of(path), path.stat().st_size
    storage.pack()
    new = header_of(path)
    assert (new.database_id, new.horizon) == (old.database_id, storage.tid)
    assert new.file_id != old.file_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_size < size / 5
    assert {oid: storage.snapshot().load(oid) for oid in (ROOT_OID, a)} == kept
    for found in storage.transactions():
        was = before[found.tid]
        assert (found.id, found.time_ns, found.user) == (was.id, was.time_ns, was.user)
        assert set(found.oids) <= set(was.oids)
    assert os.listdir(path.parent) == [path.name]
    with pytest.raises(HistoryUnavailableError):
        storage.snapshot(next(iter(before)))


def test_pack_keeps_the_last_1000_transactions_if_need_be_without_records(
    path: Path,
) -> None:
    with closing(FileStorage(path, system=Unsynced())) as storage:
        create(storage, 0)
        transactions = []
        for number in range(1002):
            transaction = make_transaction(storage.tid, {ROOT_OID: make_record(number)})
            transactions.append((transaction.id, storage.commit(transaction).tid))
        storage.pack()
    with closing(FileStorage(path, readonly=True)) as storage:
        assert [storage.find(id) for id, _ in transactions[:3]] == [None, None, transactions[2][1]]
        found = list(storage.transactions())
        assert [t.tid for t in found] == [tid for _, tid in transactions[2:]]
        assert [list(t.oids) for t in found[-2:]] == [[], [ROOT_OID]]
    assert list(verify_file(str(path))) == []


@pytest.mark.parametrize("format", ["log", "sqlite"])
def test_a_program_of_4_x_packs_in_a_loop(path: Path, format: str) -> None:
    with closing(FileStorage(path, format=format)) as storage:
        _, b = create(storage, 2)
        commit(storage, {ROOT_OID: make_record(1)})
        for _ in storage.get_packer():
            pass
        with pytest.raises(DurusKeyError):
            storage.load(b)


def test_pack_keeps_the_newest_transaction_even_if_it_is_empty(
    path: Path, storage: FileStorage
) -> None:
    a, b = create(storage, 2)
    commit(storage, {ROOT_OID: make_record(0, [a])})
    last = commit(storage, {b: make_record("unreachable")}).tid
    storage.pack()
    with pytest.raises(DurusKeyError):
        value(storage, b)
    storage.close()
    with closing(FileStorage(path)) as storage:
        assert storage.tid == last
        assert storage.reserve_oids(1)[0] > b


def test_a_file_is_sound_after_every_pack(path: Path, storage: FileStorage) -> None:
    oids: list[Oid] = []
    for number in range(3):
        oids += storage.reserve_oids(100)  # so that the next oid grows from commit to commit
        root = {ROOT_OID: make_record(number, oids[::100]), oids[-100]: make_record(number)}
        created = [oid for oid in root if number == 0 or oid != ROOT_OID]
        commit(storage, root, created=created)
        storage.pack()
        assert list(verify_file(str(path))) == []
    commit(storage, {oids[0]: make_record("next")})
    storage.pack()
    assert list(verify_file(str(path))) == []


def test_pack_removes_what_a_killed_pack_left(path: Path, storage: FileStorage) -> None:
    create(storage, 1)
    path.with_name(path.name + ".pack").touch()
    storage.pack()
    assert os.listdir(path.parent) == [path.name]


def test_a_link_to_the_file_stays_one(path: Path, storage: FileStorage) -> None:
    (a,) = create(storage, 1)
    storage.close()
    link = path.with_name("link")
    link.symlink_to(path)
    with closing(FileStorage(link)) as storage:
        storage.pack()
        commit(storage, {a: make_record(1)})
    assert link.is_symlink()
    with closing(FileStorage(path)) as storage:
        assert value(storage, a) == 1


def test_old_files_are_closed_when_no_snapshot_needs_them(storage: FileStorage) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    create(storage, 1)
    count = len(list(descriptors.iterdir()))
    snapshot = storage.snapshot()
    storage.pack()
    assert len(list(descriptors.iterdir())) == count + 1
    snapshot.close()
    assert len(list(descriptors.iterdir())) == count


# Classic calls


def test_the_classic_calls_of_durus_4(storage: FileStorage) -> None:
    assert [storage.new_oid() for _ in range(2)] == [ROOT_OID, Oid((1).to_bytes(8))]
    with pytest.raises(KeyError):
        storage.load(ROOT_OID)
    for number in range(2):
        oid = Oid(number.to_bytes(8))
        storage.begin()
        storage.store(oid, record_to_classic(oid, make_record(number)))
        storage.end()
    assert len(list(storage.gen_oid_record(start_oid=ROOT_OID))) == 1
    assert len(list(storage.gen_oid_record())) == 2


def test_a_transaction_of_a_newer_release_is_refused(path: Path) -> None:
    FileStorage(path).close()
    file_id, offset = header_of(path).file_id, path.stat().st_size
    record = bytearray(b"\0\0\0\0" + bytes(8) + b"\xc8\0" + bytes(9) + b"\1s")  # codec 200
    record[:4] = zlib.crc32(record[4:]).to_bytes(4)
    _, content = encode_transaction(
        file_id,
        offset,
        tid=Tid(7),
        time_ns=0,
        id=1,
        next_oid=1,
        records=[(ROOT_OID, 0, bytes(record))],
    )
    mark = encode_mark(file_id, Mark(offset + len(content), Tid(7)))
    path.write_bytes(path.read_bytes() + content + mark)
    with (
        closing(FileStorage(path)) as storage,
        closing(storage.snapshot()) as snapshot,
        pytest.raises(UnsupportedFormatError, match="codec 200"),
    ):
        snapshot.load(ROOT_OID)
