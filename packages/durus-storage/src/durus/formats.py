"""The table of the formats of database files, and opening a file whatever its format is.

`open_file` is what `Connection(path)` and every other plain path come to; `durus.convert` and the
commands go by `find_format`.  Invariant: what is in a file decides, never its name.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from durus.classic_storage import Storage as ClassicStorage
from durus.classic_transfer import read_dfs20, read_shelf, write_dfs20, write_shelf
from durus.classic_verify import verify_dfs20, verify_shelf
from durus.error import StorageOpenError
from durus.file_format import FileFormat, choose_format, recognise
from durus.file_storage import FileStorage, open_log
from durus.file_storage2 import FileStorage2, open_dfs20
from durus.file_system import OperatingSystem
from durus.interfaces import Storage
from durus.log_open import explain_failure, open_log_file, read_file_header
from durus.log_transfer import read_log, write_log
from durus.log_verify import verify_file
from durus.shelf_storage import ShelfStorage, open_shelf
from durus.sqlite_copy import read_sqlite, write_sqlite
from durus.sqlite_file import open_sqlite_file
from durus.sqlite_storage import SqliteStorage, open_sqlite
from durus.sqlite_verify import verify_sqlite

__all__ = ["FORMATS", "STORAGE_CLASSES", "find_format", "open_file"]


def _is_sqlite_of_durus4(path: str) -> bool:
    with contextlib.closing(open_sqlite_file(os.path.abspath(path), readonly=True)) as file:
        return file.is_classic


_FORMATS: Final = (
    FileFormat(
        name="log",
        description="a log file of Durus 5",
        keeps_history=True,
        open=open_log,
        verify=verify_file,
        read=read_log,
        write=write_log,
    ),
    FileFormat(
        name="shelf",
        description="a SHELF-1 file of Durus 4.x",
        keeps_history=False,
        open=open_shelf,
        verify=verify_shelf,
        read=read_shelf,
        write=write_shelf,
    ),
    FileFormat(
        name="dfs20",
        description="a DFS20 file of Durus 4.x",
        keeps_history=False,
        open=open_dfs20,
        verify=verify_dfs20,
        read=read_dfs20,
        write=write_dfs20,
    ),
    FileFormat(
        name="sqlite",
        description="an SQLite file of Durus 5",
        keeps_history=True,
        open=open_sqlite,
        verify=verify_sqlite,
        read=read_sqlite,
        write=write_sqlite,
    ),
    FileFormat(
        name="sqlite4",
        description="an SQLite file of Durus 4.x",
        keeps_history=False,
        open=open_sqlite,
        verify=verify_sqlite,
        read=read_sqlite,
        write=None,
    ),
)

FORMATS: Final[Mapping[str, FileFormat]] = MappingProxyType(
    {format.name: format for format in _FORMATS}
)
"""By name."""

STORAGE_CLASSES: Final[Mapping[str, Callable[..., ClassicStorage]]] = MappingProxyType(
    {
        "log": FileStorage,
        "shelf": ShelfStorage,
        "dfs20": FileStorage2,
        "sqlite": SqliteStorage,
    }
)
"""What `FileStorage(path)` makes, by the name that `recognise` gives the format."""


def find_format(path: str | os.PathLike[str]) -> FileFormat:
    """The format of a database file that is there.

    Raises StorageOpenError, and those derived from it, when it is missing, cannot be read, or is
    no database; CorruptionError when its first bytes are damaged.
    """
    path = os.fspath(path)
    try:
        name = recognise(path)
        if name is None and not os.path.exists(path):
            raise StorageOpenError(path, "there is no such file", errno.ENOENT)
        if name is None:
            read_file_header(open_log_file(OperatingSystem(), path, readonly=True))  # says why
            name = "log"  # after all, somebody has just put it there
    except StorageOpenError:
        raise
    except OSError as error:
        raise explain_failure(path, error) from error
    if name == "sqlite" and _is_sqlite_of_durus4(path):
        name = "sqlite4"
    return FORMATS[name]


def open_file(uri: str, *, readonly: bool, create: bool) -> Storage:
    """Open the file that a path names: the opener of the scheme `file`.  A new file is a log."""
    return FORMATS[choose_format(uri)].open(uri, readonly=readonly, create=create)
