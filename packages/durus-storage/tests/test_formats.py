"""The table of formats, and what opens a file by what is in it."""

import errno
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.error import (
    CorruptionError,
    NotADatabaseError,
    StorageError,
    StorageLockedError,
    StorageOpenError,
)
from durus.file import File
from durus.file_format import StoredDatabase, StoredTransaction, choose_format, recognise
from durus.file_storage import FileStorage, TempFileStorage
from durus.file_storage2 import FileStorage2
from durus.formats import FORMATS, STORAGE_CLASSES, find_format, open_file
from durus.interfaces import ROOT_OID, HistoryStorage, Storage
from durus.log_header import MAGIC
from durus.shelf_storage import ShelfStorage
from durus.sqlite_storage import SqliteStorage
from durus.storage import open_storage
from durus.testing.storage_contract import make_record, value_of

CLASSES: dict[str, type] = {
    "log": FileStorage,
    "shelf": ShelfStorage,
    "dfs20": FileStorage2,
    "sqlite": SqliteStorage,
}
names = pytest.mark.parametrize("name", list(CLASSES))


def make_file(path: Path, name: str) -> Path:
    with closing(FileStorage(path, format=name)) as storage:
        connection = Connection(storage)
        connection.root["format"] = name
        connection.commit()
    return path


def make_sqlite_of_durus4(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE objects (id integer primary key, data blob, refs blob)")
        class_pickle, state, _ = make_record("old")
        file.execute("INSERT INTO objects VALUES (0, ?, ?)", (class_pickle + state, b""))
        file.commit()
    return path


# Opening by content


@names
def test_new_files_have_the_format_that_was_asked_for(tmp_path: Path, name: str) -> None:
    path = make_file(tmp_path / "file", name)
    assert recognise(path) == name
    openers: list[Callable[[], FileStorage]] = [
        lambda: FileStorage(path),
        lambda: FileStorage(path, True),
        lambda: FileStorage(filename=path, readonly=False, repair=False),
        lambda: FileStorage(path, format="log"),  # what is there decides
        lambda: FileStorage(path, format="dfs20"),
    ]
    for open_it in openers:
        with open_it() as storage:
            assert type(storage) is CLASSES[name]
            assert Connection(storage).root["format"] == name


@names
def test_a_path_is_opened_whatever_is_in_it(tmp_path: Path, name: str) -> None:
    path = make_file(tmp_path / "file", name)
    with Connection(path) as connection:
        assert connection.root["format"] == name
        connection.root["more"] = 1
        connection.commit()
    with closing(open_storage(path, readonly=True)) as readonly:
        assert readonly.readonly
        assert Connection(readonly).root["more"] == 1
    assert recognise(path) == name
    openers: list[Callable[[], Storage]] = [
        lambda: open_storage(path),
        lambda: open_file(str(path), readonly=False, create=False),
        lambda: FORMATS[name].open(str(path)),
    ]
    for open_it in openers:
        with closing(open_it()) as storage:
            assert isinstance(storage, Storage)
            assert isinstance(storage, HistoryStorage) == FORMATS[name].keeps_history


def test_a_new_file_is_a_log(tmp_path: Path) -> None:
    openers: list[Callable[[Path], Storage]] = [
        FileStorage,
        open_storage,
        lambda path: open_file(str(path), readonly=False, create=True),
    ]
    for number, open_it in enumerate(openers):
        path = tmp_path / str(number)
        open_it(path).close()
        assert recognise(path) == "log"


@names
def test_an_empty_file_becomes_what_was_asked_for(tmp_path: Path, name: str) -> None:
    """As one from `tempfile` did in 4.x; for SQLite it was no database there, either."""
    path = tmp_path / "file"
    path.touch()
    if name != "sqlite":
        make_file(path, name)
        assert recognise(path) == name
    else:
        with pytest.raises(NotADatabaseError, match="empty"):
            FileStorage(path, format=name)


@pytest.mark.parametrize("name", ["shelf", "dfs20", "sqlite"])
def test_a_format_is_for_files_that_are_made(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    with pytest.raises(StorageOpenError, match="no such file"):
        FileStorage(path, format=name, readonly=True)
    with pytest.raises(StorageOpenError, match="no such file"):
        FileStorage(path, format=name, create=False)
    assert not path.exists()


def test_a_format_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    for name in ("sqlite4", "zodb"):
        with pytest.raises(ValueError, match=f"{name}.*only log, shelf, dfs20, sqlite"):
            FileStorage(tmp_path / "file", format=name)
    with pytest.raises(ValueError, match="temporary file is a log"):
        FileStorage(format="shelf")
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_file_is_a_log() -> None:
    with closing(TempFileStorage()) as storage:
        assert type(storage) is FileStorage
        assert recognise(storage.get_filename()) == "log"


class OwnStorage(FileStorage):
    pass


def test_a_subclass_is_for_logs_and_names_the_class_for_others(tmp_path: Path) -> None:
    make_file(tmp_path / "log", "log")
    OwnStorage(tmp_path / "log").close()
    for name, cls in CLASSES.items():
        path = make_file(tmp_path / name, name)
        if name != "log":
            with pytest.raises(StorageOpenError, match=f"no log.*{cls.__module__}.{cls.__name__}"):
                OwnStorage(path)
    with pytest.raises(ValueError, match="a file of OwnStorage is a log"):
        OwnStorage(tmp_path / "new", format="shelf")


@names
def test_the_lock_is_that_of_the_format(tmp_path: Path, name: str) -> None:
    path = make_file(tmp_path / "file", name)
    with FileStorage(path):
        if name in ("log", "sqlite"):
            FileStorage(path).close()  # several processes may write
        else:
            with pytest.raises(StorageLockedError):
                FileStorage(path)


@names
def test_has_format_looks_at_the_first_bytes(tmp_path: Path, name: str) -> None:
    path = make_file(tmp_path / "file", name)
    assert FileStorage.has_format(path)
    assert FileStorage.has_format(str(path))
    with path.open("rb") as file:
        assert FileStorage.has_format(file)
    with closing(File(str(path), readonly=True)) as own_file:
        assert FileStorage.has_format(own_file)
    (tmp_path / "text").write_text("text")
    assert not FileStorage.has_format(tmp_path / "text")


# Finding the format


@names
def test_the_format_is_found(tmp_path: Path, name: str) -> None:
    path = make_file(tmp_path / "file", name)
    assert find_format(path) is find_format(str(path)) is FORMATS[name]
    assert choose_format(path, "sqlite") == name


def test_an_sqlite_file_of_durus_4_is_told_from_ours(tmp_path: Path) -> None:
    path = make_sqlite_of_durus4(tmp_path / "file")
    assert find_format(path) is FORMATS["sqlite4"]
    with closing(FORMATS["sqlite4"].open(str(path), readonly=True)) as storage:
        with closing(storage.snapshot()) as snapshot:
            assert value_of(snapshot.load(ROOT_OID).record) == "old"
        assert storage.readonly
    with FileStorage(path) as found:
        assert str(found).startswith("SqliteStorage(")


def make_directory(path: Path) -> None:
    path.mkdir()


def make_other_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE songs (name text)")


PROBLEMS: list[tuple[str, Callable[[Path], object], type[Exception], str, int | None]] = [
    ("missing", lambda path: None, StorageOpenError, "there is no such file", errno.ENOENT),
    ("directory", make_directory, StorageOpenError, "this is a directory", errno.EISDIR),
    ("pipe", os.mkfifo, StorageOpenError, "no regular file", errno.EISDIR),
    ("empty", lambda path: path.touch(), NotADatabaseError, "the file is empty", None),
    ("text", lambda path: path.write_text("hello"), NotADatabaseError, "no Durus database", None),
    ("cut", lambda path: path.write_bytes(MAGIC[:5]), CorruptionError, "cut off", None),
    ("other sqlite", make_other_sqlite, NotADatabaseError, "another program", None),
]


@pytest.mark.parametrize(
    ("make", "error", "message", "code"), [p[1:] for p in PROBLEMS], ids=[p[0] for p in PROBLEMS]
)
def test_what_is_no_database_is_named(
    tmp_path: Path,
    make: Callable[[Path], object],
    error: type[Exception],
    message: str,
    code: int | None,
) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(error, match=message) as caught:
        find_format(path)
    assert str(path) in str(caught.value)
    if isinstance(caught.value, StorageOpenError):
        assert caught.value.errno == code
    for open_it in (FileStorage, open_storage):
        with pytest.raises((error, StorageError)) as caught_again:
            open_it(path, readonly=True)
        assert str(path) in str(caught_again.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", "shelf")
    path.chmod(0)
    with pytest.raises(StorageOpenError, match="Permission denied") as caught:
        find_format(path)
    assert caught.value.errno == errno.EACCES


# The table


def test_all_formats_are_listed() -> None:
    assert list(FORMATS) == ["log", "shelf", "dfs20", "sqlite", "sqlite4"]
    assert all(format.name == name for name, format in FORMATS.items())
    assert {name for name, format in FORMATS.items() if format.write} == set(STORAGE_CLASSES)
    assert len({format.description for format in FORMATS.values()}) == len(FORMATS)


@names
def test_every_format_reads_and_verifies_what_it_writes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    write = FORMATS[name].write
    assert write is not None
    records = [(ROOT_OID, make_record("stored"))]
    write(str(path), StoredDatabase(transactions=[StoredTransaction(records=records)]))
    assert find_format(path).name == name
    assert list(FORMATS[name].verify(str(path))) == []
    with FORMATS[name].read(str(path)) as stored:
        found = [record for t in stored.transactions for record in t.records]
    assert found == records
    with pytest.raises(OSError, match=str(path)):  # it is never overwritten
        write(str(path), StoredDatabase(transactions=()))
    assert list(FORMATS[name].verify(str(path))) == []


def test_logs_need_no_sqlite3(tmp_path: Path) -> None:
    """Not every Python has it."""
    program = """
        import sys
        sys.modules["sqlite3"] = sys.modules["_sqlite3"] = None
        from durus.connection import Connection
        from durus.formats import FORMATS
        with Connection(sys.argv[1]) as connection:
            connection.root["a"] = 1
            connection.commit()
        try:
            FORMATS["sqlite"].open(sys.argv[1] + "2")
        except ImportError:
            print("no sqlite3")
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "file")]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout == "no sqlite3\n"
