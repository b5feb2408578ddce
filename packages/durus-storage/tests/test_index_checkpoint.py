"""The index file beside a log: whatever befalls it, the answers are the same."""

import errno
import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from durus import file_storage, shared_log
from durus.error import DurusKeyError
from durus.file_storage import FileStorage
from durus.file_system import FileStatus, OperatingSystem
from durus.index_checkpoint import index_path, write_checkpoint
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

    def create(self, path: str, like: FileStatus | None = None, *, append: bool = True) -> int:
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


# Several that make one at the same time, and kills


class Meanwhile(OperatingSystem):
    """Something happens before the n-th call of a name, or of any name."""

    def __init__(self, name: str, number: int, happens: Callable[[], object]) -> None:
        self._name = name
        self._number = number
        self._happens = happens

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and self._name in (name, "any call"):
            self._number -= 1
            if not self._number:
                self._happens()
        return super().__getattribute__(name)


@pytest.fixture
def unindexed(database: Database) -> Database:
    """A database whose index is gone, alone in its folder."""
    for path in database.path.parent.iterdir():
        if path != database.path:
            path.unlink()
    return database


def make(database: Database, system: OperatingSystem | None = None) -> set[str]:
    """Make an index, unless that cannot be done; the ends of the names of all files afterwards."""
    with closing(FileStorage(database.path, system=system)) as storage:
        write_checkpoint(storage._shared.current())
        return files(database)


def files(database: Database) -> set[str]:
    return {path.name.removeprefix(database.path.name) for path in database.path.parent.iterdir()}


def be_killed(database: Database, number: int) -> None:
    """Make an index, and be killed before the n-th call of the operating system."""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    make(database, Meanwhile("any call", number, kill))


def test_what_a_killed_process_has_left_of_an_index_is_taken_over(
    unindexed: Database, in_child: Callable[[Callable[[], object]], int]
) -> None:
    found = set()
    number = 1
    while in_child(partial(be_killed, unindexed, number)) == signal.SIGKILL:
        found |= files(unindexed)
        assert make(unindexed) == {"", ".index"}
        assert list(verify_file(str(unindexed.path))) == []
        unindexed.index.unlink()
        number += 1
    assert found == {"", ".index", ".index.new"}
    unindexed.check_all()


@pytest.mark.parametrize(
    ("name", "number"), [("write", 1), ("write", 4), ("sync", 2), ("rename", 1)]
)
def test_an_index_that_cannot_be_made_to_its_end_leaves_nothing(
    unindexed: Database, name: str, number: int
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with closing(FileStorage(unindexed.path, system=Meanwhile(name, number, fail))) as storage:
        with pytest.raises(OSError, match="No space"):
            write_checkpoint(storage._shared.current())
        assert files(unindexed) == {""}


class OtherMaker:
    """Another process that makes an index."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.path = Path(f"{database.index}.new")
        self.file = -1

    def make(self) -> None:
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self.file, b"theirs")

    def take_over(self) -> None:
        """Find a file that nobody has locked, and take it for that of a killed process."""
        with self.path.open("rb") as left:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path.unlink()
        self.make()

    def finish(self) -> None:
        os.rename(self.path, self.database.index)

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)


@pytest.fixture
def other(unindexed: Database) -> Iterator[OtherMaker]:
    with closing(OtherMaker(unindexed)) as other:
        yield other
    unindexed.check_all()
    assert files(unindexed) == {"", ".index"}


@pytest.mark.parametrize("moment", ["before", "before-it-is-made", "before-it-is-locked"])
@pytest.mark.parametrize("is_left", [False, True])
def test_who_makes_an_index_is_left_alone(
    unindexed: Database, other: OtherMaker, moment: str, is_left: bool
) -> None:
    if is_left:
        other.path.touch()
    take = other.take_over if is_left else other.make
    match moment:
        case "before":
            take()
            system = OperatingSystem()
        case "before-it-is-made":
            system = Meanwhile("create", 1, other.make)
        case "before-it-is-locked":
            system = Meanwhile("lock", 1, other.take_over)
    assert make(unindexed, system) == {"", ".index.new"}
    assert other.path.stat().st_ino == os.fstat(other.file).st_ino
    assert other.path.read_bytes() == b"theirs"


def test_one_that_another_process_finishes_is_not_taken_for_what_was_left(
    unindexed: Database, other: OtherMaker
) -> None:
    other.make()
    system = Meanwhile("lock", 1, other.finish)
    with closing(FileStorage(unindexed.path, system=system)) as storage:
        write_checkpoint(storage._shared.current())
        assert unindexed.index.read_bytes() == b"theirs"


def test_an_interrupt_after_an_index_was_made_harms_nobody_elses(
    unindexed: Database, other: OtherMaker
) -> None:
    class Interrupted(OperatingSystem):
        def rename(self, source: str, target: str) -> None:
            super().rename(source, target)
            other.make()
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        make(unindexed, Interrupted())
    assert other.path.read_bytes() == b"theirs"
    other.path.unlink()


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
