"""A log file that is taken away, replaced or truncated while it is open."""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.error import (
    CorruptionError,
    DatabaseReplacedError,
    StorageOpenError,
    WriteConflictError,
)
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.interfaces import Oid
from durus.persistent import Persistent
from durus.testing.storage_contract import commit, create, make_record, value


@pytest.mark.parametrize("size", [200, 104, 50, 0])
def test_a_file_that_was_truncated_while_it_was_open_is_damaged(
    path: Path, oid: Oid, size: int
) -> None:
    with closing(FileStorage(path, mmap=False)) as storage:
        snapshot = storage.snapshot()
        os.truncate(path, size)
        with pytest.raises(CorruptionError, match=f"{path}: damaged at offset"):
            snapshot.load(oid)
        for call in (
            storage.snapshot,
            lambda: commit(storage, {oid: make_record(1)}, since=snapshot.tid),
            lambda: storage.reserve_oids(1),
            storage.pack,
        ):
            with pytest.raises(CorruptionError, match="has become shorter while it was open"):
                call()
        assert path.stat().st_size == size


# A file that is taken away


def make_other(path: Path) -> None:
    """Another database, which has an object of the same oid."""
    with closing(FileStorage(path)) as storage:
        create(storage, 1)


@pytest.fixture
def elsewhere(path: Path) -> Path:
    return path.with_name("elsewhere.durus")


def remove(path: Path, elsewhere: Path) -> None:
    os.unlink(path)


def rename(path: Path, elsewhere: Path) -> None:
    os.rename(path, elsewhere)


def replace_by_another(path: Path, elsewhere: Path) -> None:
    make_other(elsewhere)
    os.replace(elsewhere, path)


Taking = Callable[[Path, Path], None]
TAKINGS: list[Taking] = [remove, rename, replace_by_another]


@pytest.mark.parametrize("take", TAKINGS)
@pytest.mark.parametrize("readonly", [False, True])
def test_a_file_that_was_taken_away_is_told_at_the_next_boundary(
    path: Path, oid: Oid, elsewhere: Path, take: Taking, readonly: bool
) -> None:
    with (
        closing(FileStorage(path, readonly=readonly)) as storage,
        Connection(storage) as connection,
    ):
        take(path, elsewhere)
        assert connection.get(oid) is not None  # what was begun goes on
        for call in (storage.snapshot, connection.abort, connection.commit):
            with pytest.raises(DatabaseReplacedError, match=str(path)):
                call()


@pytest.mark.parametrize("take", TAKINGS)
def test_nothing_is_committed_when_the_file_was_taken_away(
    path: Path, oid: Oid, elsewhere: Path, take: Taking
) -> None:
    with closing(FileStorage(path)) as storage:
        since = storage.snapshot().tid
        held = os.open(path, os.O_RDONLY)
        take(path, elsewhere)
        before = [os.fstat(held).st_size, path.exists() and path.read_bytes()]
        for call in (
            lambda: commit(storage, {oid: make_record("lost")}, since=since),
            lambda: storage.reserve_oids(1),
            lambda: storage.find(1),
            storage.pack,
        ):
            with pytest.raises(DatabaseReplacedError, match=str(path)):
                call()
        assert [os.fstat(held).st_size, path.exists() and path.read_bytes()] == before
        os.close(held)


class InterruptedLock(OperatingSystem):
    """Something happens just before the file is locked."""

    before_lock: Callable[[], object] | None = None

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        call, self.before_lock = self.before_lock, None
        if call is not None:
            call()
        return super().lock(fd, shared=shared)


@pytest.mark.parametrize("take", TAKINGS)
def test_nothing_is_committed_when_the_file_is_taken_away_just_before_it_is_locked(
    path: Path, oid: Oid, elsewhere: Path, take: Taking
) -> None:
    system = InterruptedLock()
    with closing(FileStorage(path, system=system)) as storage:
        held = os.open(path, os.O_RDONLY)
        size = os.fstat(held).st_size
        system.before_lock = lambda: take(path, elsewhere)
        with pytest.raises(DatabaseReplacedError, match=str(path)):
            commit(storage, {oid: make_record("lost")})
        assert os.fstat(held).st_size == size
        os.close(held)


def test_an_older_copy_of_the_same_database_is_not_taken_for_it(
    path: Path, oid: Oid, elsewhere: Path
) -> None:
    shutil.copy(path, elsewhere)
    with closing(FileStorage(path)) as storage:
        commit(storage, {oid: make_record("newer")})
        since = storage.tid
        os.replace(elsewhere, path)
        content = path.read_bytes()
        with pytest.raises(DatabaseReplacedError, match="older copy"):
            storage.snapshot()
        with pytest.raises(DatabaseReplacedError, match="older copy"):
            commit(storage, {oid: make_record("lost")}, since=since)
        assert path.read_bytes() == content
        # Also when that has gone on by itself.
        with closing(FileStorage(path)) as other:
            commit(other, {oid: make_record("another way")})
            other.pack()
        with pytest.raises(DatabaseReplacedError, match="older copy"):
            storage.snapshot()
        with pytest.raises(DatabaseReplacedError, match="older copy"):
            commit(storage, {oid: make_record("lost")}, since=since)


def test_what_is_no_database_in_the_place_of_one_is_refused_and_left_as_it_is(
    path: Path, oid: Oid, elsewhere: Path
) -> None:
    with closing(FileStorage(path)) as storage:
        since = storage.tid
        elsewhere.write_text("this is no database")
        os.replace(elsewhere, path)
        for call in (
            storage.snapshot,
            lambda: commit(storage, {oid: make_record("lost")}, since=since),
        ):
            with pytest.raises(StorageOpenError, match="no Durus database"):
                call()
        assert path.read_text() == "this is no database"


def test_a_file_that_comes_back_is_gone_on_with(
    path: Path, storage: FileStorage, oid: Oid, elsewhere: Path
) -> None:
    with Connection(storage) as connection:
        obj = connection.get(oid, Persistent)
        os.rename(path, elsewhere)
        obj.value = "kept"  # type: ignore[attr-defined] # such are those of `make_record`
        with pytest.raises(DatabaseReplacedError):
            connection.commit()
        os.rename(elsewhere, path)
        connection.commit()
    with closing(FileStorage(path)) as other:
        assert value(other, oid) == "kept"


def test_a_symbolic_link_that_leads_elsewhere_now_is_a_replaced_file(
    path: Path, oid: Oid, elsewhere: Path
) -> None:
    link = path.with_name("link.durus")
    link.symlink_to(path)
    make_other(elsewhere)
    with closing(FileStorage(link)) as storage:
        commit(storage, {oid: make_record(1)})
        link.unlink()
        link.symlink_to(elsewhere)
        with pytest.raises(DatabaseReplacedError):
            storage.snapshot()


def test_a_database_that_took_the_place_of_this_one_for_a_while_hides_no_conflict(
    path: Path,
    storage: FileStorage,
    oid: Oid,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its tids are larger: it was made by a clock that was ahead."""
    now = time.time_ns()
    with monkeypatch.context() as clock:
        clock.setattr(time, "time_ns", lambda: now + 3600 * 10**9)
        make_other(elsewhere)
    with closing(storage.snapshot()) as snapshot:
        os.rename(path, path.with_name("away.durus"))
        os.rename(elsewhere, path)
        with pytest.raises(DatabaseReplacedError):
            storage.snapshot()
        os.rename(path, elsewhere)
        os.rename(path.with_name("away.durus"), path)
        with closing(FileStorage(path)) as other:
            commit(other, {oid: make_record("first")})
        with pytest.raises(WriteConflictError):
            commit(storage, {oid: make_record("second")}, since=snapshot.tid)
        assert storage.changes(snapshot.tid, storage.tid) == frozenset({oid})
