"""The index file beside a log: whatever befalls it, the answers are the same."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from durus import file_storage, shared_log
from durus.error import DurusKeyError
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.index_checkpoint import index_path
from durus.index_file import PAGE_SIZE, IndexFile
from durus.interfaces import ROOT_OID, Oid
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, create, make_record, value_of

CHECKPOINT_SIZE = 64
COUNT = 1200
"""Objects: three pages of the index, one above them, and the header."""


@pytest.fixture(autouse=True)
def frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_log, "CHECKPOINT_SIZE", CHECKPOINT_SIZE)
    monkeypatch.setattr(file_storage, "_CLOSE_CHECKPOINT_SIZE", 1)


class Database:
    """A log file whose content the test knows, and its index.

    Of the index there is a copy `old`, from before the last revisions of all objects; and `other`
    is that of another database.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "test.durus"
        self.index = Path(index_path(str(self.path)))
        self.old = folder / "old.index"
        self.other = folder / "other.index"
        self.values: dict[Oid, object] = {}
        with closing(FileStorage(folder / "other.durus")) as storage:
            create(storage, COUNT)
        os.rename(index_path(str(folder / "other.durus")), self.other)
        with closing(FileStorage(self.path)) as storage:
            self.oids = create(storage, COUNT)
        shutil.copy(self.index, self.old)
        with closing(FileStorage(self.path)) as storage:
            self.write(storage, "new", self.oids)

    def write(self, storage: FileStorage, value: object, oids: list[Oid]) -> None:
        commit(storage, {oid: make_record([value, oid]) for oid in oids})
        self.values.update((oid, [value, oid]) for oid in oids)

    def check(self, storage: FileStorage) -> None:
        """That all objects are found, and no others."""
        with closing(storage.snapshot()) as snapshot:
            for oid in self.oids:
                assert value_of(snapshot.load(oid).record) == self.values[oid]
            for number in (COUNT + 500, 1 << 30, 1 << 47):
                with pytest.raises(DurusKeyError):
                    snapshot.load(Oid(number.to_bytes(8)))
        assert {oid for oid, _ in storage.gen_oid_record()} == {ROOT_OID, *self.oids}

    def check_all(self) -> None:
        """The same, of the file as it is opened now, and after one more commit to it."""
        with closing(FileStorage(self.path, readonly=True)) as storage:
            self.check(storage)
        with closing(FileStorage(self.path)) as storage:
            self.check(storage)
            self.write(storage, "newest", self.oids[::7])
            self.check(storage)
        with closing(FileStorage(self.path)) as storage:
            self.check(storage)
        findings = [finding.problem for finding in verify_file(str(self.path))]
        assert all("the index file" in problem for problem in findings)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path)


def overwrite(path: Path, content: bytes) -> None:
    """In place, as `cp` does."""
    with path.open("wb") as file:
        file.write(content)


def put(path: Path, content: bytes) -> None:
    """A new file, as tools for backups do."""
    aside = path.with_name("aside")
    aside.write_bytes(content)
    os.rename(aside, path)


def flip_in_page(database: Database, page: int) -> bytes:
    content = bytearray(database.index.read_bytes())
    content[page * PAGE_SIZE + 77] ^= 4
    return bytes(content)


DAMAGES: dict[str, Callable[[Database], bytes]] = {
    "empty": lambda database: b"",
    "text": lambda database: b"this is no index\n" * 1000,
    "zeros": lambda database: bytes(database.index.stat().st_size),
    "old-copy": lambda database: database.old.read_bytes(),
    "of-another-database": lambda database: database.other.read_bytes(),
    "cut-in-a-page": lambda database: database.index.read_bytes()[: 3 * PAGE_SIZE + 100],
    "cut-in-the-header": lambda database: database.index.read_bytes()[:100],
    "header-of-the-old-copy": lambda database: (
        database.old.read_bytes()[:PAGE_SIZE] + database.index.read_bytes()[PAGE_SIZE:]
    ),
    **{f"bit-flipped-in-page-{page}": partial(flip_in_page, page=page) for page in range(5)},
}


@pytest.fixture(params=DAMAGES)
def damage(request: pytest.FixtureRequest, database: Database) -> bytes:
    content = DAMAGES[request.param](database)
    assert content != database.index.read_bytes()
    return content


def test_there_is_an_index_with_the_pages_that_are_damaged_here(database: Database) -> None:
    assert database.index.stat().st_size == 5 * PAGE_SIZE
    assert list(verify_file(str(database.path))) == []
    with closing(FileStorage(database.path)) as storage:
        assert storage._shared.current().index.base is not None
    database.check_all()


def test_an_index_that_was_damaged_between_openings_changes_no_answer(
    database: Database, damage: bytes
) -> None:
    database.index.write_bytes(damage)
    database.check_all()


@pytest.mark.parametrize("put_back", [put, overwrite])
def test_an_index_that_was_replaced_while_it_was_in_use_changes_no_answer(
    database: Database, damage: bytes, put_back: Callable[[Path, bytes], None]
) -> None:
    with closing(FileStorage(database.path)) as storage, closing(storage.snapshot()) as snapshot:
        snapshot.load(database.oids[0])
        put_back(database.index, damage)
        database.check(storage)
        for number in range(3):
            database.write(storage, f"after {number}", database.oids[number :: 2 + number])
            database.check(storage)
        with closing(FileStorage(database.path)) as other:
            database.check(other)
    database.check_all()


def test_an_index_that_was_deleted_is_made_anew(database: Database) -> None:
    with closing(FileStorage(database.path)) as storage:
        database.index.unlink()
        database.check(storage)
        database.write(storage, "after", database.oids)
        database.write(storage, "after that", database.oids[:1])
        assert list(verify_file(str(database.path))) == []
        database.check(storage)
    database.index.unlink()
    database.check_all()
    assert list(verify_file(str(database.path))) == []


def test_a_damaged_index_makes_it_slow_only_once(database: Database, damage: bytes) -> None:
    database.index.write_bytes(damage)
    with closing(FileStorage(database.path)) as storage:
        database.check(storage)
        commit(storage, {database.oids[0]: make_record(["again", database.oids[0]])})
        database.values[database.oids[0]] = ["again", database.oids[0]]
    assert list(verify_file(str(database.path))) == []
    with closing(FileStorage(database.path)) as storage:
        database.check(storage)
        assert storage._shared.current().index.base is not None


def test_other_storages_go_on_while_one_updates_the_index(database: Database) -> None:
    with (
        closing(FileStorage(database.path)) as one,
        closing(FileStorage(database.path)) as two,
        closing(FileStorage(database.path, readonly=True)) as three,
    ):
        for number in range(12):
            database.write(one, number, database.oids[number::11])
            database.write(two, -number, database.oids[number::13])
            for storage in (three, two, one):
                database.check(storage)
    database.check_all()
    assert list(verify_file(str(database.path))) == []


def test_an_index_that_another_process_has_locked_keeps_nobody_from_committing(
    database: Database,
) -> None:
    with closing(FileStorage(database.path)) as storage, database.index.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        content = database.index.read_bytes()
        for number in range(3):
            database.write(storage, number, database.oids)
        database.check(storage)
        assert database.index.read_bytes() == content
        fcntl.flock(other, fcntl.LOCK_UN)
        database.write(storage, "last", database.oids)
        database.write(storage, "very last", database.oids)
        assert database.index.read_bytes() != content
    database.check_all()


class FullDisk(OperatingSystem):
    """There is no room for an index."""

    def create(self, path: str, mode: int | None = None) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, fd: int, content: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("is_there", [True, False])
def test_an_index_that_cannot_be_written_fails_no_commit(
    database: Database, is_there: bool
) -> None:
    if not is_there:
        database.index.unlink()
    with closing(FileStorage(database.path, system=FullDisk())) as storage:
        for number in range(3):
            database.write(storage, number, database.oids)
            database.check(storage)
    assert database.index.exists() is is_there
    database.check_all()


class CountsReads(OperatingSystem):
    size_read = 0

    def read(self, fd: int, size: int, offset: int) -> bytes:
        content = super().read(fd, size, offset)
        self.size_read += len(content)
        return content


@pytest.fixture
def large(tmp_path: Path) -> Database:
    """Ten times as many revisions."""
    folder = tmp_path / "large"
    folder.mkdir()
    database = Database(folder)
    with closing(FileStorage(database.path)) as storage:
        for number in range(18):
            database.write(storage, number, database.oids)
    return database


def test_opening_and_loading_read_as_little_of_a_large_file_as_of_a_small_one(
    database: Database, large: Database
) -> None:
    sizes = []
    for opened in (database, large):
        system = CountsReads()
        with closing(FileStorage(opened.path, system=system, mmap=False)) as storage:
            opening = system.size_read
            with closing(storage.snapshot()) as snapshot:
                snapshot.load(opened.oids[700])
            sizes.append((opening, system.size_read - opening))
    assert sizes[0] == sizes[1]
    assert max(sizes[0]) < 8 * PAGE_SIZE


def test_a_checkpoint_writes_what_has_changed_and_no_more(database: Database) -> None:
    class CountsWrites(OperatingSystem):
        pages: list[int] = []

        def write(self, fd: int, content: bytes, offset: int) -> int:
            self.pages.append(offset // PAGE_SIZE)
            return super().write(fd, content, offset)

    system = CountsWrites()
    with closing(FileStorage(database.path, system=system)) as storage:
        database.write(storage, "few", database.oids[600:602])
    assert IndexFile.open(system, str(database.index), writable=False).find(600) > 0
    assert len(system.pages) == 3  # the header, before and after; the page of these
    assert system.pages[0] == system.pages[2] == 0
    database.check_all()
