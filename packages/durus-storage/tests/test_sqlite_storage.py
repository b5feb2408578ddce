"""`SqliteStorage`: opening, URIs, faults, forks, old snapshots, packing, files of Durus 4.x."""

import contextlib
import errno
import gc
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.crawl import crawl_snapshot
from durus.error import (
    CommitOutcomeUnknownError,
    CorruptionError,
    DurusKeyError,
    HistoryUnavailableError,
    NotADatabaseError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    StorageLockedError,
    StorageOpenError,
    UndoError,
    UnsupportedFormatError,
    WriteConflictError,
)
from durus.file_format import recognise
from durus.history import follow, undo
from durus.interfaces import (
    CHANGES_MAX,
    NO_TID,
    OID_LIMIT,
    ROOT_OID,
    HistoryStorage,
    Oid,
    PackableStorage,
    Tid,
)
from durus.oid_set import OidSet
from durus.record import record_to_classic
from durus.sqlite_copy import read_sqlite
from durus.sqlite_snapshot import SqliteSnapshot
from durus.sqlite_storage import SqliteStorage, open_sqlite, open_sqlite_uri
from durus.sqlite_verify import verify_sqlite
from durus.testing.storage_contract import (
    commit,
    create,
    make_record,
    make_transaction,
    value,
    value_of,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.sqlite"


@pytest.fixture
def storage(path: Path) -> Iterator[SqliteStorage]:
    with closing(SqliteStorage(path)) as storage:
        yield storage
    assert list(verify_sqlite(str(path))) == []
    assert os.listdir(path.parent) == [path.name]


def exists(storage: SqliteStorage, oid: Oid) -> bool:
    with closing(storage.snapshot()) as snapshot:
        return bool(list(snapshot.load_many([oid])))


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def run_python(source: str, *arguments: object) -> str:
    command = [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def log_size(path: Path) -> int:
    return path.with_name(f"{path.name}-wal").stat().st_size


# Opening


def test_it_is_what_it_says(storage: SqliteStorage, path: Path) -> None:
    assert isinstance(storage, HistoryStorage)
    assert isinstance(storage, PackableStorage)
    assert storage.get_filename() == str(path)
    assert str(storage) == f"SqliteStorage({str(path)!r})"


def test_the_file_says_what_it_is(path: Path) -> None:
    SqliteStorage(path).close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (0x44555253,)
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_arguments_of_durus_4_are_taken(path: Path) -> None:
    SqliteStorage(str(path), False, True).close()
    with closing(SqliteStorage(str(path), True)) as storage:
        assert storage.readonly


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        pytest.param(b"", NotADatabaseError, "empty", id="empty"),
        pytest.param(b"hello, this is a text", NotADatabaseError, "no SQLite", id="text"),
        pytest.param(b"SHELF-1\n" + bytes(600), NotADatabaseError, "no SQLite", id="shelf"),
        pytest.param(b"SQLite format 3\0", NotADatabaseError, "no SQLite", id="cut"),
    ],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_what_is_no_sqlite_file_is_named_and_left_as_it_is(
    path: Path, content: bytes, error: type[Exception], message: str, readonly: bool
) -> None:
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(error, match=message) as caught:
        SqliteStorage(path, readonly=readonly)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == 1
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE objects (id INTEGER PRIMARY KEY, name TEXT)"],
        ["CREATE TABLE objects (id, data, refs)", "PRAGMA application_id = 7"],
        ["CREATE TABLE t (x)", "PRAGMA journal_mode = WAL"],
    ],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_the_database_of_another_program_is_left_as_it_is(
    path: Path, statements: list[str], readonly: bool
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    content = path.read_bytes()
    with pytest.raises(NotADatabaseError, match="another program"):
        SqliteStorage(path, readonly=readonly)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_a_newer_file_is_refused_and_left_as_it_is(path: Path) -> None:
    SqliteStorage(path).close()
    execute(path, "PRAGMA user_version = 2")
    content = path.read_bytes()
    for readonly in (False, True):
        with pytest.raises(UnsupportedFormatError, match="version 2"):
            SqliteStorage(path, readonly=readonly)
    assert path.read_bytes() == content


def test_a_file_without_its_tables_is_refused(path: Path) -> None:
    SqliteStorage(path).close()
    execute(path, "DELETE FROM meta")
    with pytest.raises(CorruptionError, match="meta"):
        SqliteStorage(path)
    execute(path, "DROP TABLE meta")
    with pytest.raises(StorageOpenError, match="no such table"):
        SqliteStorage(path)


@pytest.mark.parametrize("readonly", [False, True])
def test_what_is_no_file_is_refused(tmp_path: Path, readonly: bool) -> None:
    with pytest.raises(StorageOpenError, match="a directory"):
        SqliteStorage(tmp_path, readonly=readonly)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageOpenError, match="no regular file"):
        SqliteStorage(tmp_path / "pipe", readonly=readonly)


def test_a_missing_file_is_not_made_unless_that_is_wanted(path: Path) -> None:
    with pytest.raises(StorageOpenError, match="create=False"):
        SqliteStorage(path, create=False)
    with pytest.raises(StorageOpenError, match="readonly=True") as caught:
        open_sqlite(str(path), readonly=True)
    assert caught.value.errno == errno.ENOENT
    assert os.listdir(path.parent) == []


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageOpenError, match=rf"directory {tmp_path}/missing does not exist"):
        SqliteStorage(tmp_path / "missing" / "file")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageOpenError, match="Not a directory"):
        SqliteStorage(tmp_path / "file" / "below")


@contextlib.contextmanager
def as_somebody_else(folder: Path) -> Iterator[None]:
    """Without root's permissions, which are to read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    for parent in folder.parents:
        if parent.stat().st_uid == 0 and parent.stat().st_mode & 0o11 != 0o11:
            parent.chmod(parent.stat().st_mode | 0o11)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_permissions_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file"
    SqliteStorage(path).close()
    path.chmod(0o444)
    folder.chmod(0o777)
    with as_somebody_else(folder):
        with pytest.raises(StorageOpenError, match=r"no permission.*readonly=True may work"):
            SqliteStorage(path)
        SqliteStorage(path, readonly=True).close()
    path.chmod(0)
    with as_somebody_else(folder), pytest.raises(StorageOpenError, match="no permission"):
        SqliteStorage(path, readonly=True)
    path = folder / "another"
    SqliteStorage(path).close()
    folder.chmod(0o555)
    with as_somebody_else(folder):
        with pytest.raises(StorageOpenError, match=r"write to the directory: readonly=True may"):
            SqliteStorage(path)
        with pytest.raises(StorageOpenError, match="cannot be made: Permission denied"):
            SqliteStorage(folder / "new")
    folder.chmod(0o777)


def kill_in_the_middle(path: Path) -> None:
    """A process commits 'last', and has not brought it into the file when it is killed."""
    script = """
        import os, signal, sys
        from durus.interfaces import ROOT_OID
        from durus.sqlite_storage import SqliteStorage
        from durus.testing.storage_contract import commit, create, make_record
        storage = SqliteStorage(sys.argv[1])
        commit(storage, {ROOT_OID: make_record("last")})
        os.kill(os.getpid(), signal.SIGKILL)
        """
    with pytest.raises(subprocess.CalledProcessError):
        run_python(script, path)
    assert log_size(path) > 0


def test_who_only_reads_leaves_sqlites_log_where_a_killed_writer_left_it(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        create(storage, 0)
    kill_in_the_middle(path)
    files = [path, path.with_name(f"{path.name}-wal")]
    content = [file.read_bytes() for file in files]
    assert list(verify_sqlite(str(path))) == []
    with closing(SqliteStorage(path, readonly=True)) as storage:
        assert value(storage, ROOT_OID) == "last"
    with read_sqlite(str(path)) as stored:
        assert len(list(stored.transactions)) == 3
    assert [file.read_bytes() for file in files] == content
    with closing(SqliteStorage(path)) as storage:
        assert value(storage, ROOT_OID) == "last"
    assert os.listdir(path.parent) == [path.name]


def test_a_file_in_a_folder_that_is_read_only_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file"
    with closing(SqliteStorage(path)) as storage:
        (a,) = create(storage, 1)
    folder.chmod(0o555)
    with as_somebody_else(folder):
        with closing(SqliteStorage(path, readonly=True)) as storage:
            assert value(storage, a) == 0
            assert len(list(storage.transactions())) == 2
        assert list(verify_sqlite(str(path))) == []
    assert os.listdir(folder) == ["file"]
    folder.chmod(0o777)


def test_a_file_that_changes_in_a_folder_that_was_read_only_is_not_read_on(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file"
    with closing(SqliteStorage(path)) as storage:
        (a,) = create(storage, 1)
    folder.chmod(0o555)
    with as_somebody_else(folder):
        reading = SqliteStorage(path, readonly=True)
        assert value(reading, a) == 0
    folder.chmod(0o777)
    with closing(reading), closing(SqliteStorage(path)) as storage:
        commit(storage, {a: make_record(1)})
        with pytest.raises(StorageError, match=r"has changed.*open it anew"):
            reading.snapshot()


def test_commits_that_a_read_only_folder_hides_are_not_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file"
    with closing(SqliteStorage(path)) as storage:
        create(storage, 0)
    kill_in_the_middle(path)
    path.with_name("file-shm").unlink()
    folder.chmod(0o555)
    with (
        as_somebody_else(folder),
        pytest.raises(StorageOpenError, match="copy it elsewhere, with all files"),
    ):
        SqliteStorage(path, readonly=True)
    folder.chmod(0o777)


@pytest.mark.parametrize("tid", [2**63 - 1, 2**63, 2**70])
def test_tids_that_sqlite_cannot_hold_are_just_large(path: Path, tid: int) -> None:
    with closing(SqliteStorage(path)) as storage:
        (a,) = create(storage, 1)
        newest = commit(storage, {a: make_record(1)}).tid
        assert list(storage.transactions(Tid(tid))) == []
        assert [t.tid for t in storage.transactions(newest, Tid(tid))] == [newest]
        assert storage.changes(NO_TID, Tid(tid)) == frozenset({ROOT_OID, a})
        assert storage.changes(Tid(tid), Tid(tid + 1)) == frozenset()
        with closing(storage.snapshot(Tid(tid))) as snapshot:
            assert snapshot.tid == newest
        with pytest.raises(UndoError, match="no such transaction"):
            undo(storage, Tid(tid))
        assert list(follow(storage, tid)) == []


def test_what_is_left_of_another_database_is_not_mixed_into_a_new_one(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        create(storage, 3)
        left = path.with_name(f"{path.name}-wal").read_bytes()
    path.unlink()
    path.with_name(f"{path.name}-wal").write_bytes(left)
    with pytest.raises(StorageOpenError, match=r"-wal belongs to a database that was here"):
        SqliteStorage(path)
    assert os.listdir(path.parent) == [f"{path.name}-wal"]


def test_a_backup_that_sqlite_made_can_be_opened_and_written(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    with closing(SqliteStorage(path)) as storage:
        create(storage, 1)
        execute(path, f"VACUUM INTO '{copy}'")
    with closing(SqliteStorage(copy)) as storage:
        commit(storage, {ROOT_OID: make_record("new")})
        assert value(storage, ROOT_OID) == "new"


def test_names_that_are_special_in_a_uri_are_names(tmp_path: Path) -> None:
    folder = tmp_path / "50% off?#&mode=memory"
    folder.mkdir()
    SqliteStorage(folder / "ä b").close()
    raw = os.fsencode(folder) + b"/\xff"  # no UTF-8
    SqliteStorage(os.fsdecode(raw)).close()
    assert sorted(os.listdir(os.fsencode(folder))) == sorted(["ä b".encode(), b"\xff"])


def test_uris_have_three_slashes_for_relative_and_four_for_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for uri, name in (
        ("sqlite:///relative.db", "relative.db"),
        (f"sqlite:///{tmp_path}/absolute.db", "absolute.db"),
        ("sqlite:///100%25%3F", "100%?"),
    ):
        with closing(open_sqlite_uri(uri, readonly=False, create=True)) as storage:
            assert storage.get_filename() == str(tmp_path / name)
    for uri in (
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://host/p",
        "sqlite:p",
        "sqlite:///p?x",
    ):
        with pytest.raises(StorageOpenError, match="sqlite:///relative/path"):
            open_sqlite_uri(uri, readonly=False, create=True)
    with pytest.raises(StorageOpenError, match="no such file"):
        open_sqlite_uri("sqlite:///missing", readonly=False, create=False)
    assert "missing" not in os.listdir(tmp_path)


def test_a_connection_works_on_it(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage, Connection(storage) as connection:
        connection.root["greeting"] = "hello"
        connection.commit()
    with closing(SqliteStorage(path)) as storage, Connection(storage) as connection:
        assert connection.root["greeting"] == "hello"


def test_a_readonly_storage_writes_nothing(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        (a,) = create(storage, 1)
    content = path.read_bytes()
    with closing(SqliteStorage(path, readonly=True)) as storage:
        for call in (
            storage.pack,
            lambda: storage.reserve_oids(1),
            lambda: commit(storage, {a: make_record(1)}),
        ):
            with pytest.raises(ReadOnlyError):
                call()
        assert storage.find(1) is None
    assert path.read_bytes() == content


def test_a_closed_storage_ends_its_snapshots_and_iterators(path: Path) -> None:
    storage = SqliteStorage(path)
    create(storage, 1)
    snapshot = storage.snapshot()
    transactions = storage.transactions()
    next(transactions)
    storage.close()
    with pytest.raises(StorageClosedError):
        snapshot.load(ROOT_OID)
    with pytest.raises(StorageClosedError):
        next(transactions)
    snapshot.close()


def test_a_closed_snapshot_says_so(storage: SqliteStorage) -> None:
    create(storage, 0)
    snapshot = storage.snapshot()
    snapshot.close()
    with pytest.raises(StorageClosedError, match="snapshot"):
        snapshot.load(ROOT_OID)


# Other handles, processes, forks


def test_two_storages_of_one_file_see_each_others_commits(
    path: Path, storage: SqliteStorage
) -> None:
    (a,) = create(storage, 1)
    with closing(SqliteStorage(path)) as other:
        since = other.tid
        tid = commit(storage, {a: make_record(1)}).tid
        assert other.tid == since  # nobody has asked
        assert value(other, a) == 1
        assert other.tid == tid
        assert other.changes(since, tid) == frozenset({a})
        with pytest.raises(WriteConflictError):
            commit(other, {a: make_record(2)}, since=since)
        assert set(storage.reserve_oids(100)).isdisjoint(other.reserve_oids(100))


def test_who_waits_too_long_for_the_lock_is_told_what_to_do(path: Path) -> None:
    with closing(SqliteStorage(path, timeout_s=0.01)) as storage:
        (a,) = create(storage, 1)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageLockedError, match=rf"{path}.*try again") as caught:
                commit(storage, {a: make_record(1)})
            assert isinstance(caught.value, OSError)
            with pytest.raises(StorageLockedError):
                storage.pack()
            assert value(storage, a) == 0
        commit(storage, {a: make_record(2)})
        assert value(storage, a) == 2


OTHER = """
    import sys
    from durus.interfaces import ROOT_OID
    from durus.sqlite_storage import SqliteStorage
    from durus.testing.storage_contract import commit, make_record
    storage = SqliteStorage(sys.argv[1])
    commit(storage, {ROOT_OID: make_record(sys.argv[2])})
    storage.close()
    """


def test_looking_into_the_file_does_not_cost_sqlite_its_locks(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        create(storage, 0)
        assert recognise(path) == "sqlite"
        # If the locks are lost, this one thinks that it is alone, and removes SQLite's log, into
        # which the next commit is then written.
        run_python(OTHER, path, "other")
        commit(storage, {ROOT_OID: make_record("ours")})
        run_python(OTHER, path, "another")
        values = [value_of(revision.record) for revision in storage.revisions(ROOT_OID)]
    assert values == ["another", "ours", "other", 0, 0]
    assert recognise(path) == "sqlite"


FORK = """
    import os, sys
    from durus.error import StorageError
    from durus.interfaces import ROOT_OID
    from durus.sqlite_storage import SqliteStorage
    from durus.testing.storage_contract import commit, create, make_record, value_of

    path = sys.argv[1]
    storage = SqliteStorage(path)
    create(storage, 0)
    snapshot = storage.snapshot()
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            snapshot.load(ROOT_OID)
        except StorageError as error:
            os.write(1, str(error).encode())
        commit(storage, {ROOT_OID: make_record("child")})
        os.write(to_parent, b".")
        os.read(from_parent, 1)
        # Nobody else has the file open now.  If the child thinks that it has locks which only the
        # parent had, SQLite's log has been removed.
        commit(storage, {ROOT_OID: make_record("child again")})
        storage.close()
        os._exit(0)
    os.read(from_child, 1)
    commit(storage, {ROOT_OID: make_record("parent")})
    assert value_of(snapshot.load(ROOT_OID).record) == 0
    storage.close()
    os.write(to_child, b".")
    os.waitpid(child, 0)
    """


def test_a_forked_child_opens_the_file_anew_but_for_snapshots(path: Path) -> None:
    printed = run_python(FORK, path)
    assert "before it forked this one: what was begun before" in printed
    with closing(SqliteStorage(path)) as storage:
        values = [value_of(revision.record) for revision in storage.revisions(ROOT_OID)]
    assert values == ["child again", "parent", "child", 0, 0]
    assert list(verify_sqlite(str(path))) == []


FORK_WITH_THREADS = """
    import os, sys, threading
    from durus.sqlite_storage import SqliteStorage
    from durus.testing.storage_contract import create

    storage = SqliteStorage(sys.argv[1])
    create(storage, 0)
    mine = storage.reserve_oids(3)
    with storage._tid_lock:  # as of a thread that is not in the child
        child = os.fork()
    if child == 0:
        found = []
        barrier = threading.Barrier(4)

        def work():
            barrier.wait()
            found.extend(storage.reserve_oids(4))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(found)) == 16, found
        os.write(1, b"".join(found))
        os._exit(0)
    os.waitpid(child, 0)
    os.write(1, b"".join([*mine, *storage.reserve_oids(100)]))
    """


def test_threads_of_a_forked_child_open_the_file_once_and_give_out_no_oid_twice(path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FORK_WITH_THREADS), str(path)]
    printed = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    oids = [printed[i : i + 8] for i in range(0, len(printed), 8)]
    assert len(set(oids)) == len(oids) == 16 + 103


def test_a_fork_waits_until_a_commit_has_ended(path: Path) -> None:
    script = """
        import os, sys, threading, warnings
        from durus.interfaces import ROOT_OID
        from durus.sqlite_storage import SqliteStorage
        from durus.testing.storage_contract import commit, create, make_record

        warnings.simplefilter("ignore", DeprecationWarning)  # that threads and forks do not mix
        storage = SqliteStorage(sys.argv[1])
        create(storage, 0)
        record = make_record("x" * 5_000_000)  # it does not fit into SQLite's cache
        stop = threading.Event()

        def write():
            while not stop.is_set():
                commit(storage, {ROOT_OID: record})

        thread = threading.Thread(target=write)
        thread.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                mine = SqliteStorage(sys.argv[1])
                mine.snapshot().close()
                mine.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        thread.join()
        storage.close()
        """
    run_python(script, path)
    assert list(verify_sqlite(str(path))) == []


def test_a_fork_takes_the_lock_of_other_files_last() -> None:
    """Else it might wait for a call of SQLite's that waits for it."""
    script = """
        import os, sys
        names = []
        os.register_at_fork = lambda **calls: names.append(sys._getframe(1).f_globals["__name__"])
        import durus.sqlite_locks
        print(*names)
        """
    names = run_python(script).split()
    assert names.index("durus.file_system") < names.index("durus.sqlite_locks")


def test_a_file_that_was_replaced_takes_no_commit(path: Path) -> None:
    moved = path.with_name("moved")
    with closing(SqliteStorage(path)) as storage:
        (a,) = create(storage, 1)
        path.rename(moved)
        with pytest.raises(StorageError, match="cannot be found any more"):
            commit(storage, {a: make_record("lost")})
        SqliteStorage(path.with_name("other")).close()
        path.with_name("other").rename(path)
        with pytest.raises(StorageError, match="replaced"):
            commit(storage, {a: make_record("lost")})
        with closing(storage.snapshot()), pytest.raises(StorageError, match="replaced"):
            storage.snapshot()  # this one needs to open the file
        path.unlink()
        moved.rename(path)
        commit(storage, {a: make_record("kept")})
        assert value(storage, a) == "kept"


# Snapshots


def test_a_snapshot_that_nobody_closed_is_given_back(storage: SqliteStorage) -> None:
    create(storage, 0)
    for _ in range(20):
        storage.snapshot()
        next(storage.transactions())
        next(storage.revisions(ROOT_OID))
    gc.collect()
    assert len(storage._readers._open) < 5


def test_the_handles_of_many_snapshots_are_not_all_kept(storage: SqliteStorage, path: Path) -> None:
    create(storage, 0)
    name = f"/{path.name}-wal"
    count = len(open_files(name))
    dropped = [storage.snapshot() for _ in range(30)]
    assert len(open_files(name)) > count
    dropped.clear()
    gc.collect()
    assert len(open_files(name)) < 10
    for snapshot in [storage.snapshot() for _ in range(30)]:
        snapshot.close()
    assert len(open_files(name)) < 10


def test_what_was_being_read_ends_with_its_snapshot(storage: SqliteStorage) -> None:
    (a, *_) = create(storage, 50)
    with closing(storage.snapshot()) as snapshot:
        assert isinstance(snapshot, SqliteSnapshot)
        objects = snapshot.load_all()
        next(objects)
        transactions = snapshot.transactions(Tid(0), Tid(2**62))
        next(transactions)
    tid = commit(storage, {a: make_record("new")}).tid
    with closing(storage.snapshot()) as later:
        assert later.tid == tid
        assert value_of(later.load(a).record) == "new"
        for found in (objects, transactions):
            with pytest.raises(StorageClosedError):
                next(found)


def test_sqlites_log_may_grow_rather_than_end_what_is_being_read(
    storage: SqliteStorage, path: Path
) -> None:
    (a, *others) = create(storage, 50)
    record = make_record(os.urandom(4 << 20))
    with closing(storage.snapshot()) as old:
        assert isinstance(old, SqliteSnapshot)
        objects = old.load_all()
        first = next(objects)
        for _ in range(6):
            commit(storage, {a: record})
        assert log_size(path) > 16 << 20
        assert [value_of(r.record) for _, r in [first, *objects]] == [0] * (len(others) + 2)


def test_a_storage_that_nobody_closed_closes_its_files(path: Path) -> None:
    create(SqliteStorage(path), 0)
    gc.collect()
    assert os.listdir(path.parent) == [path.name]


def test_an_old_snapshot_does_not_make_sqlites_log_grow(storage: SqliteStorage, path: Path) -> None:
    (a,) = create(storage, 1)
    record = make_record(os.urandom(4 << 20))
    with closing(storage.snapshot()) as old:
        for _ in range(16):
            commit(storage, {a: record})
        assert log_size(path) < 40 << 20
        assert value_of(old.load(a).record) == 0


def test_an_old_snapshot_sees_what_was_packed_away_though_it_is_in_the_way(
    storage: SqliteStorage, path: Path
) -> None:
    a, b = create(storage, 2)
    record = make_record(os.urandom(4 << 20))
    with closing(storage.snapshot()) as old:
        commit(storage, {ROOT_OID: make_record(1, [a])})
        storage.pack()
        for _ in range(6):
            commit(storage, {a: record})
        assert [value_of(old.load(oid).record) for oid in (ROOT_OID, a, b)] == [0, 0, 0]


def test_no_history_is_kept_by_a_pack(storage: SqliteStorage) -> None:
    create(storage, 1)
    with pytest.raises(HistoryUnavailableError, match="keep= is for logs"):
        storage.pack(keep=storage.tid)


def test_a_pack_makes_the_file_smaller(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        (a,) = create(storage, 1)
        for value in (os.urandom(1 << 20), "small"):
            commit(storage, {a: make_record(value)})
        storage.pack()
    assert path.stat().st_size < 100_000


def test_between_horizon_and_now_every_moment_can_be_seen(storage: SqliteStorage) -> None:
    (a,) = create(storage, 1)
    storage.pack()
    horizon = storage.tid
    tids = [commit(storage, {a: make_record(i)}).tid for i in (1, 2)]
    for at, seen in ((horizon, 0), (tids[0] - 1, 0), (tids[0], 1), (tids[1], 2), (2**70, 2)):
        with closing(storage.snapshot(Tid(at))) as snapshot:
            assert value_of(snapshot.load(a).record) == seen
    with pytest.raises(HistoryUnavailableError, match="packed away"):
        storage.snapshot(Tid(horizon - 1))


# Commits


def test_the_first_oid_is_0_and_oids_go_on(storage: SqliteStorage) -> None:
    assert [int.from_bytes(storage.new_oid()) for _ in range(3)] == [0, 1, 2]
    oids = storage.reserve_oids(2000)
    assert [int.from_bytes(oid) for oid in oids] == list(range(3, 2003))


def test_an_oid_that_was_taken_without_asking_is_not_handed_out(storage: SqliteStorage) -> None:
    create(storage, 1)
    (first,) = storage.reserve_oids(1)
    taken = Oid((int.from_bytes(first) + 1).to_bytes(8))
    far = Oid((OID_LIMIT // 2).to_bytes(8))
    commit(storage, {taken: make_record(1), far: make_record(1)}, created=[taken, far])
    assert {taken, far}.isdisjoint(storage.reserve_oids(2000))


def test_an_oid_that_cannot_be_is_no_object(storage: SqliteStorage) -> None:
    create(storage, 0)
    for oid in (b"\xff" * 8, b"\x80" + bytes(7)):
        with closing(storage.snapshot()) as snapshot, pytest.raises(DurusKeyError):
            snapshot.load(Oid(oid))
        with pytest.raises(StorageError, match="do not exist"):
            commit(storage, {ROOT_OID: make_record(1, [Oid(oid)])})


def test_ids_of_64_bits_are_kept(storage: SqliteStorage) -> None:
    create(storage, 0)
    for transaction_id in (0, 1, 2**63 - 1, 2**63, 2**64 - 1):
        transaction = make_transaction(storage.tid, {ROOT_OID: make_record(1)})
        object.__setattr__(transaction, "id", transaction_id)
        tid = storage.commit(transaction).tid
        assert storage.find(transaction_id) == tid
        assert [t.id for t in storage.transactions(tid)] == [transaction_id]


def test_texts_are_kept(storage: SqliteStorage) -> None:
    create(storage, 0)
    note = "ünïcode \0 and\nlines"
    storage.commit(make_transaction(storage.tid, {ROOT_OID: make_record(1)}, note=note))
    assert [t.note for t in storage.transactions()][-1] == note


def test_the_classic_calls_work(storage: SqliteStorage) -> None:
    (a,) = create(storage, 1)
    unreachable = storage.new_oid()
    storage.begin()
    storage.store(unreachable, record_to_classic(unreachable, make_record("new")))
    storage.end()
    assert storage.load(unreachable) == record_to_classic(unreachable, make_record("new"))
    assert [oid for oid, _ in storage.gen_oid_record()] == [ROOT_OID, a, unreachable]
    assert [oid for oid, _ in storage.gen_oid_record(start_oid=ROOT_OID)] == [ROOT_OID, a]
    assert storage.sync() == []


def test_an_interrupted_commit_leaves_no_lock_behind(storage: SqliteStorage, path: Path) -> None:
    class Interrupting(OidSet):
        def overlap(self, oids: object) -> list[Oid]:
            raise KeyboardInterrupt

    (a,) = create(storage, 1)
    with pytest.raises(KeyboardInterrupt):
        commit(storage, {a: make_record(1)}, accessed=Interrupting([a]))
    with closing(SqliteStorage(path, timeout_s=0.01)) as other:
        commit(other, {a: make_record(2)})
    commit(storage, {a: make_record(3)})


def open_files(end: str) -> list[str]:
    """The files that this process has open, those whose names end so."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one for the list itself
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [name for name in found if name.endswith(end)]


@contextlib.contextmanager
def failing_disk(path: Path, room: int = 0) -> Iterator[None]:
    """No file of this process may grow beyond the size of SQLite's log, and `room` bytes more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log_size(path) + room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_commit_that_fails_half_way_is_settled_by_find(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        (a,) = create(storage, 1)
        transaction = make_transaction(storage.tid, {a: make_record("x" * 10_000)})
        with failing_disk(path):
            with pytest.raises(CommitOutcomeUnknownError) as caught:
                storage.commit(transaction)
            with pytest.raises(StorageError):
                storage.find(transaction.id)
        assert caught.value.transaction_id == transaction.id
        assert storage.find(transaction.id) is None
        assert value(storage, a) == 0
        commit(storage, {a: make_record("goes on")})
        assert value(storage, a) == "goes on"
    assert list(verify_sqlite(str(path))) == []


def test_a_commit_that_fails_is_none_when_that_can_be_found_out_at_once(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        (a,) = create(storage, 1)
        transaction = make_transaction(storage.tid, {a: make_record("x" * 100_000)})
        with (
            failing_disk(path, room=20_000),
            pytest.raises(StorageError, match=r"was not committed: .*disk I/O error") as caught,
        ):
            storage.commit(transaction)
        assert not isinstance(caught.value, CommitOutcomeUnknownError)
        assert storage.find(transaction.id) is None
        assert value(storage, a) == 0
    assert list(verify_sqlite(str(path))) == []


FULL = """
    import os, sys
    from durus.error import StorageError
    from durus.sqlite_storage import SqliteStorage
    from durus.testing.storage_contract import commit, create, make_record, make_transaction

    folder = sys.argv[1]
    storage = SqliteStorage(f"{folder}/file")
    (a,) = create(storage, 1)
    with open(f"{folder}/rest", "wb", buffering=0) as rest:
        try:
            while True:
                rest.write(bytes(4096))
        except OSError:
            pass  # now the disk is full
    transaction = make_transaction(storage.tid, {a: make_record("x" * 10_000)})
    try:
        storage.commit(transaction)
    except StorageError as error:
        print(type(error).__name__, error)
    print(storage.find(transaction.id))
    os.unlink(f"{folder}/rest")
    print(storage.commit(transaction).tid == storage.tid)
    storage.close()
    """


@pytest.mark.skipif(sys.platform != "linux", reason="a small file system is made as Linux does")
def test_a_commit_to_a_full_disk_is_known_to_be_none(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=256k tmpfs {tmp_path}"
    in_namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*in_namespace, mount]).returncode:
        pytest.skip("nobody may mount a file system here")
    program = [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path)]
    command = [*in_namespace, f'{mount} && "$@"', "sh", *program]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    error, found, committed = printed.splitlines()
    assert error.startswith("StorageError the transaction was not committed: ")
    assert "disk is full" in error
    assert [found, committed] == ["None", "True"]


def test_what_find_has_said_stays_true_after_a_crash(path: Path, tmp_path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        (a,) = create(storage, 1)
        size = log_size(path)
        transaction = make_transaction(storage.tid, {a: make_record(1)})
        with failing_disk(path), pytest.raises(CommitOutcomeUnknownError):
            storage.commit(transaction)
        assert storage.find(transaction.id) is None
        # Something was written over what may be left in SQLite's log of the failed COMMIT.
        assert log_size(path) > size


def test_a_commit_that_fails_before_its_end_is_no_commit(storage: SqliteStorage) -> None:
    (a,) = create(storage, 1)
    transaction = make_transaction(storage.tid, {a: make_record(1)})
    object.__setattr__(transaction, "time_ns", 2**80)
    with pytest.raises(OverflowError):
        storage.commit(transaction)
    assert value(storage, a) == 0
    commit(storage, {a: make_record(2)})


def test_damage_is_reported_as_corruption(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        oids = create(storage, 200)
        for oid in oids:
            commit(storage, {oid: make_record("x" * 500)})
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xaa" * (path.stat().st_size - 3 * 4096))
    with (
        pytest.raises(CorruptionError, match="damaged: SQLite says"),
        closing(SqliteStorage(path)) as storage,
    ):
        list(storage.gen_oid_record())
    assert list(verify_sqlite(str(path))) != []


@pytest.fixture
def damaged_path(path: Path) -> Path:
    """Object 5 is in the file, but in SQLite's index of objects it has another oid."""
    with closing(SqliteStorage(path)) as storage:
        create(storage, 5)
        tid = storage.tid
    # In the index: the size of its header, the types of oid, tid and row, the oid, the tid.
    entry = bytes([4, 1, 6, 1, 5]) + tid.to_bytes(8)
    content = path.read_bytes()
    assert content.count(entry) == 1
    path.write_bytes(content.replace(entry, bytes([4, 1, 6, 1, 7]) + tid.to_bytes(8)))
    return path


def count_as_stats_does(path: Path) -> int:
    with (
        closing(SqliteStorage(path, readonly=True)) as storage,
        closing(storage.snapshot()) as snapshot,
    ):
        return len(list(crawl_snapshot(snapshot)))


def count_as_a_conversion_does(path: Path) -> int:
    with read_sqlite(str(path)) as stored:
        return sum(len(list(transaction.records)) for transaction in stored.transactions)


def count_all(path: Path) -> int:
    with closing(SqliteStorage(path)) as storage:
        return len(list(storage.gen_oid_record()))


def read_everything(path: Path) -> None:
    with closing(SqliteStorage(path, readonly=True)) as storage:
        list(storage.transactions())
        list(storage.gen_oid_record())


def pack(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        storage.pack()


@pytest.mark.parametrize("use", [count_as_stats_does, count_as_a_conversion_does, count_all, pack])
def test_an_object_that_sqlite_does_not_find_is_not_passed_over(
    damaged_path: Path, use: Callable[[Path], object]
) -> None:
    content = damaged_path.read_bytes()
    with pytest.raises(CorruptionError, match=r"SQLite says: .*durus verify.*backup") as caught:
        use(damaged_path)
    assert caught.value.path == str(damaged_path)
    assert damaged_path.read_bytes() == content
    assert list(verify_sqlite(str(damaged_path))) != []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE meta SET horizon = 'x'",
        "UPDATE meta SET next_oid = 1.5",
        "UPDATE transactions SET id = 'x'",
        "UPDATE transactions SET note = x'00'",
        "UPDATE transactions SET note = CAST(x'ff' AS TEXT)",
        "UPDATE revisions SET oid = 'x' WHERE oid = 1",
        "UPDATE revisions SET refs = '' WHERE oid = 1",
    ],
)
def test_what_is_of_another_type_is_damage_of_this_file(path: Path, statement: str) -> None:
    with closing(SqliteStorage(path)) as storage:
        create(storage, 1)
    execute(path, statement)
    with pytest.raises(CorruptionError) as caught:
        read_everything(path)
    assert caught.value.path == str(path)


def test_a_record_that_is_none_is_reported_as_corruption(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        create(storage, 1)
    execute(path, "UPDATE revisions SET refs = x'00' WHERE oid = 1")
    with closing(SqliteStorage(path)) as storage:
        with pytest.raises(CorruptionError) as caught:
            value(storage, Oid(bytes([0] * 7 + [1])))
        assert caught.value.oid == bytes([0] * 7 + [1])


# Pack


def test_the_last_transactions_are_remembered_across_a_pack(storage: SqliteStorage) -> None:
    (a,) = create(storage, 1)
    transactions = [make_transaction(storage.tid, {ROOT_OID: make_record(0, [a])})]
    tids = [storage.commit(transactions[0]).tid]
    for number in range(3):
        transactions.append(make_transaction(storage.tid, {a: make_record(number)}))
        tids.append(storage.commit(transactions[-1]).tid)
    storage.pack()
    assert [storage.find(t.id) for t in transactions] == tids
    assert [list(t.oids) for t in storage.transactions(tids[0])] == [[ROOT_OID], [], [], [a]]
    assert storage.changes(tids[0], tids[-1]) == frozenset({a})
    storage.pack()
    assert storage.changes(tids[0], tids[-1]) == frozenset({a})


def test_more_changes_than_can_be_told_are_forgotten_by_a_pack(storage: SqliteStorage) -> None:
    (a,) = create(storage, 1)
    before = storage.tid
    oids = storage.reserve_oids(CHANGES_MAX)
    record = make_record(0)
    many = commit(storage, dict.fromkeys(oids, record), created=oids).tid
    last = commit(storage, {a: make_record(1)}).tid
    storage.pack()
    assert storage.changes(before, last) is None
    assert storage.changes(many, last) == frozenset({a})
    with pytest.raises(WriteConflictError) as caught:
        commit(storage, {a: make_record(2)}, since=before, accessed=OidSet())
    assert caught.value.oids is None
    commit(storage, {a: make_record(2)}, since=last)


def test_threads_go_on_reading_and_writing_while_another_packs(storage: SqliteStorage) -> None:
    oids = create(storage, 50)
    finished = threading.Event()
    errors: list[BaseException] = []

    def work(oid: Oid) -> None:
        try:
            number = 0
            while not finished.is_set():
                with closing(storage.snapshot()) as snapshot:
                    for other in oids:
                        snapshot.load(other)
                    number += 1
                    commit(storage, {oid: make_record(number)}, since=snapshot.tid)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[oid]) for oid in oids[:3]]
    for thread in threads:
        thread.start()
    for _ in range(10):
        storage.pack()
    finished.set()
    for thread in threads:
        thread.join()
    assert errors == []


# Files of Durus 4.x; those that it made itself are in tests/test_sqlite_processes.py


@pytest.fixture
def classic_path(path: Path) -> Path:
    """A file as Durus 4.3 makes it: a root that refers to an object twice, and that object."""
    root, a = ROOT_OID, Oid(bytes([0] * 7 + [1]))
    rows = [
        (0, record_to_classic(root, make_record("root", [a]))[12:-8], a + a),
        (1, record_to_classic(a, make_record("a"), compress=True)[12:], b""),
    ]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE objects (id integer primary key, data blob, refs blob)")
        connection.executemany("INSERT INTO objects VALUES (?, ?, ?)", rows)
    return path


def test_a_file_of_durus_4_is_read_and_never_written(classic_path: Path) -> None:
    content = classic_path.read_bytes()
    a = Oid(bytes([0] * 7 + [1]))
    with closing(SqliteStorage(classic_path)) as storage:
        assert storage.readonly
        assert value(storage, ROOT_OID) == "root"
        with closing(storage.snapshot()) as snapshot:
            assert snapshot.load(ROOT_OID).record.refs == a
            assert snapshot.load(a).record == make_record("a")
            with pytest.raises(DurusKeyError):
                snapshot.load(Oid(bytes([0] * 7 + [2])))
        for call in (
            lambda: commit(storage, {a: make_record(1)}),
            lambda: storage.reserve_oids(1),
            storage.pack,
        ):
            with pytest.raises(ReadOnlyError, match=r"hands out used oids.*durus convert SOURCE"):
                call()
    assert classic_path.read_bytes() == content
    assert os.listdir(classic_path.parent) == [classic_path.name]


def test_a_file_of_durus_4_has_no_history(classic_path: Path) -> None:
    with closing(SqliteStorage(classic_path, readonly=True)) as storage:
        assert list(storage.transactions()) == []
        assert storage.find(1) is None
        assert [value_of(r.record) for r in storage.revisions(ROOT_OID)] == ["root"]
        assert storage.changes(storage.tid, storage.tid) == frozenset()
        with pytest.raises(HistoryUnavailableError):
            storage.snapshot(Tid(0))


def test_a_file_of_durus_4_does_not_change_while_it_is_open_here(classic_path: Path) -> None:
    with closing(SqliteStorage(classic_path)) as storage:
        with (
            closing(sqlite3.connect(classic_path, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
            other,
        ):
            other.execute("DELETE FROM objects WHERE id = 1")
        assert [oid for oid, _ in storage.gen_oid_record()] == [bytes(8), bytes([0] * 7 + [1])]


def test_threads_share_a_file_of_durus_4(classic_path: Path) -> None:
    with closing(SqliteStorage(classic_path)) as storage:
        found: list[object] = []

        def read() -> None:
            for _ in range(50):
                found.append(value(storage, ROOT_OID))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == ["root"] * 200


def test_text_columns_of_durus_4_are_read_as_bytes(classic_path: Path) -> None:
    execute(
        classic_path,
        "UPDATE objects SET data = CAST(data AS TEXT), refs = CAST(refs AS TEXT) WHERE id = 0",
    )
    with closing(SqliteStorage(classic_path)) as storage:
        assert value(storage, ROOT_OID) == "root"


def test_a_file_of_durus_4_without_write_permission_is_read(classic_path: Path) -> None:
    classic_path.chmod(0o444)
    with as_somebody_else(classic_path), closing(SqliteStorage(classic_path)) as storage:
        assert value(storage, ROOT_OID) == "root"
