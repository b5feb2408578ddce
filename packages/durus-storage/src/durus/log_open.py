"""Opening and making log files, before anything but the header is looked at.

`FileStorage` calls it.  Invariants: a file that is there is left as it is, whatever it is; a new
one appears complete or not at all; every refusal has its own reason.
"""

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from typing import Final

from durus.appearing import appearing_at, making, replacing
from durus.error import (
    CorruptionError,
    NotADatabaseError,
    StorageError,
    StorageOpenError,
    UnsupportedFormatError,
)
from durus.file_format import recognise_start
from durus.file_system import FileStatus, System
from durus.log_file import LogFile
from durus.log_header import (
    FILE_HEADER_SIZE,
    FILE_HEADER_SIZE_MAX,
    MAGIC,
    VERSION,
    FileHeader,
    decode_file_header,
    encode_file_header,
    read_pieces,
    with_dictionary,
)
from durus.log_lock import hold_lock

__all__ = ["explain_failure", "make_missing_file", "open_log_file", "read_file_header", "saying"]

_LOCK_TIMEOUT_S: Final = 10.0

_OTHER_FORMATS: Final = {
    "shelf": "a file of Durus 4.x (SHELF-1): durus.shelf_storage.ShelfStorage",
    "dfs20": "a file of Durus 4.x (DFS20): durus.file_storage2.FileStorage2",
    "sqlite": "an SQLite database: durus.sqlite_storage.SqliteStorage",
}
"""What else there may be, and the class that opens it."""


def read_file_header(file: LogFile) -> FileHeader:
    """The header of a log file.

    Raises NotADatabaseError, StorageOpenError, UnsupportedFormatError or CorruptionError.
    """
    start = file.read(0, 16)
    if not start:
        raise NotADatabaseError(
            file.path, "the file is empty, and no Durus database; opened for writing it becomes one"
        )
    other = _OTHER_FORMATS.get(recognise_start(start) or "")
    if other is not None:
        raise StorageOpenError(
            file.path, f"this is no log, but {other} opens it, and so does FileStorage itself"
        )
    if start[:8] != MAGIC[: len(start)]:
        raise NotADatabaseError(file.path, "this is no Durus database")
    size = int.from_bytes(start[12:16])
    size = min(max(size, FILE_HEADER_SIZE), FILE_HEADER_SIZE_MAX)
    header = decode_file_header(file.read(0, size))
    if header is None:
        raise CorruptionError(file.path, 0, "the file header is damaged or cut off")
    if header.version != VERSION or header.features_refuse:
        raise UnsupportedFormatError(
            file.path,
            f"the file needs a newer release of durus-storage (format version {header.version}, "
            f"features {header.features_refuse:#x})",
        )
    for tag, _ in read_pieces(header.extension):
        if tag[:1].isupper():  # none is known today
            raise UnsupportedFormatError(
                file.path, f"the file needs a newer release of durus-storage (extension {tag!r})"
            )
    return header


def explain_failure(path: str, error: OSError) -> StorageOpenError:
    reason = error.strerror or str(error)
    return StorageOpenError(path, f"cannot be opened: {reason}", error.errno)


@contextlib.contextmanager
def saying(failure: str) -> Iterator[None]:
    """What the operating system refuses in here is a StorageError: `failure`, and the reason."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{failure}: {error}") from error


def open_log_file(system: System, path: str, *, readonly: bool, use_map: bool = False) -> LogFile:
    """Open a file that is there; StorageOpenError, OSError."""
    try:
        status = system.path_status(path)
    except FileNotFoundError as error:
        why = "readonly=True" if readonly else "create=False"
        reason = f"there is no such file, and {why} makes none"
        raise StorageOpenError(path, reason, errno.ENOENT) from error
    if not status.is_regular:
        kind = "a directory" if status.is_directory else "no regular file"
        raise StorageOpenError(path, f"this is {kind}, and no database", errno.EISDIR)
    try:
        return LogFile(system, path, system.open(path, writable=not readonly), use_map=use_map)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        remedy = "" if readonly else " to write; readonly=True may work"
        reason = f"there is no permission to open it{remedy}"
        if error.errno == errno.EROFS:
            reason = "it is on a medium that cannot be written; readonly=True opens it"
        raise StorageOpenError(path, reason, error.errno) from error


def make_missing_file(system: System, path: str, *, dictionary: bytes | None = None) -> None:
    """Make a new file if there is none: prepared aside, it appears complete, or not at all.

    An empty file counts as none: programs of 4.x make such to have a name.
    dictionary: as in `RecordCodec`.
    """
    try:
        try:
            status = system.path_status(path)
        except FileNotFoundError:
            _make_file(system, os.path.realpath(path), dictionary=dictionary)
            return
        if status.is_regular and not status.size:
            _fill_empty_file(system, path, dictionary=dictionary)
    except StorageError:
        raise
    except OSError as error:
        raise explain_failure(path, error) from error


def _fill_empty_file(system: System, path: str, *, dictionary: bytes | None) -> None:
    file = LogFile(system, path, system.open(path, writable=True))
    # Only one process replaces it: the others find the new file when they have the lock.
    with hold_lock(file, _LOCK_TIMEOUT_S):
        status = file.status()
        if not status.size and system.path_status(path).identity == status.identity:
            path = os.path.realpath(path)
            with replacing(system, path) as aside:
                _write_header(system, aside, status, dictionary=dictionary)
            system.sync_directory(os.path.dirname(path))


def _make_file(system: System, path: str, *, dictionary: bytes | None) -> None:
    with (
        making(path),
        contextlib.suppress(FileExistsError),  # of several processes one is first
        appearing_at(system, path) as aside,
    ):
        _write_header(system, aside, dictionary=dictionary)


def _write_header(
    system: System, path: str, like: FileStatus | None = None, *, dictionary: bytes | None
) -> None:
    header = FileHeader(
        database_id=secrets.token_bytes(16),
        file_id=secrets.token_bytes(16),
        created_ns=time.time_ns(),
        extension=with_dictionary(b"", dictionary),
    )
    file = LogFile(system, path, system.create(path, like))
    file.append(encode_file_header(header))
    file.sync()
