"""SHELF-1 and DFS20 files as files: opened, made, read ahead, appended to.

`classic_format` says what is in them.  Invariants: *a commit is one write, which counts when it is
synced*, and when that fails the file is cut back to where it was; a new file appears complete.
"""

import contextlib
import errno
import os
import stat
from typing import Final

from durus.appearing import appearing_at, making
from durus.error import (
    CommitOutcomeUnknownError,
    CorruptionError,
    StorageError,
    StorageOpenError,
)
from durus.file import File
from durus.file_system import FileStatus, OperatingSystem
from durus.log_open import explain_failure
from durus.utils import RandomAccessFile, ShortRead

__all__ = [
    "DamagedEndError",
    "ReadAhead",
    "append_durably",
    "cut_off",
    "fill_if_empty",
    "is_record_start",
    "make_empty_file",
    "name_of",
    "open_classic_file",
    "sync_directory_of",
]

_READ_AHEAD: Final = 1 << 16
_SYSTEM: Final = OperatingSystem()


class DamagedEndError(CorruptionError, ShortRead):
    """The file ends too early (4.3 raised ShortRead).

    Where it ends within a transaction, opening it with `repair=True` cuts that off; where it ends
    within what a pack has written, only a backup helps.
    """


def name_of(file: object) -> str:
    """The path of a File; of something else that is read like one, what it is."""
    return file.get_name() if isinstance(file, File) else repr(file)


class ReadAhead:
    """Reads a file from front to back in large pieces, whatever small ones are asked for."""

    def __init__(self, file: RandomAccessFile) -> None:
        self.file = file
        self.look_again()

    def look_again(self) -> None:
        """Forget what was read, and how long the file was."""
        self.file.seek(0, 2)
        self.size = self.file.tell()
        """Of the file, when it was looked at."""
        self._start = 0
        self._piece = b""

    def read(self, position: int, size: int) -> bytes:
        """The bytes at `position`: `size` of them, or fewer if the file ends before."""
        start = position - self._start
        if start < 0 or start + size > len(self._piece):
            size = max(0, min(size, self.size - position))
            self.file.seek(position)
            self._start, start = position, 0
            self._piece = self._read(max(size, min(_READ_AHEAD, self.size - position)))
        return self._piece[start : start + size]

    def _read(self, size: int) -> bytes:
        parts = []
        while size > 0 and (part := self.file.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def is_record_start(head: bytes, size: int) -> bool:
    """Whether a record of `size` bytes may begin so: `head` has its first 12 bytes.

    oid 8 | length of the pickles 4 | pickles | references 8 each
    """
    pickles = int.from_bytes(head[8:12])
    return len(head) >= 12 and pickles + 12 <= size and (size - pickles - 12) % 8 == 0


# Opening


def open_classic_file(
    path: str | os.PathLike[str], new: bytes, *, readonly: bool = False, create: bool = True
) -> File:
    """Open a file, and lock it unless `readonly`.

    new: what a file without objects consists of; one that is missing or empty is made so, but not
      if it is opened `readonly`, and a missing one only if `create`.

    Raises StorageOpenError, StorageLockedError.
    """
    path = os.path.abspath(path)
    while True:
        try:
            _check_regular(path)
            file = File(path, readonly)
        except FileNotFoundError as error:
            if readonly or not create:
                why = "readonly=True" if readonly else "create=False"
                reason = f"there is no such file, and {why} makes none"
                raise StorageOpenError(path, reason, errno.ENOENT) from error
            _make_missing_file(os.path.realpath(path), new)  # a link may lead to nothing
            continue
        except PermissionError as error:
            remedy = "" if readonly else " to write; readonly=True may work"
            reason = f"there is no permission to open it{remedy}"
            raise StorageOpenError(path, reason, error.errno) from error
        except StorageOpenError:
            raise
        except OSError as error:
            raise explain_failure(path, error) from error
        try:
            if readonly or _is_ready(file, new):
                return file
            file.close()
        except BaseException:
            file.close()
            raise


def _check_regular(path: str) -> None:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise StorageOpenError(path, f"this is {kind}, and no database", errno.EISDIR)


def _is_ready(file: File, new: bytes) -> bool:
    """Lock the file; False if it is no longer the one that its path names."""
    file.obtain_lock()
    # Between opening and locking a pack may have put another file in its place.
    if not file.is_in_place():
        return False
    fill_if_empty(file, new)
    return True


def fill_if_empty(file: File, new: bytes) -> None:
    """Lock the file, and let it be a new one if it is empty."""
    file.obtain_lock()
    if not len(file):
        file.write(new)
        file.fsync()


def _make_missing_file(path: str, new: bytes) -> None:
    with (
        making(path),
        contextlib.suppress(FileExistsError),  # another process was first: its is used
        appearing_at(_SYSTEM, path) as aside,
        contextlib.closing(make_empty_file(aside)) as file,
    ):
        file.write(new)
        file.fsync()


def make_empty_file(path: str, like: FileStatus | None = None) -> File:
    """Make a file that is not there yet, and lock it; OSError.

    like: as for `System.create`.
    """
    _SYSTEM.close(_SYSTEM.create(path, like))
    file = File(path)
    try:
        file.obtain_lock()
    except BaseException:
        file.close()
        raise
    return file


def sync_directory_of(path: str) -> None:
    """Return when the name of the file will survive a power cut."""
    _SYSTEM.sync_directory(os.path.dirname(os.path.realpath(path)))


# The end of the file


def append_durably(file: File, end: int, content: bytes) -> None:
    """Write at `end`, where the file ends, and sync; what is there after it is cut off first.

    Raises StorageError when that fails: then the file ends at `end` again.  If not even that can
    be brought about, CommitOutcomeUnknownError.
    """
    file.obtain_lock()
    size = len(file)
    if size < end:
        raise CorruptionError(file.get_name(), size, f"the file was cut off; it had {end} bytes")
    try:
        if size > end:
            cut_off(file, end)  # what a commit left that failed, and could not be cut back
        file.seek(end)
        file.write(content)
        file.fsync()
    except BaseException as error:
        try:
            cut_off(file, end)
        except OSError as second:
            raise CommitOutcomeUnknownError(
                None, f"{file.get_name()}: {error}; and it could not be cut back: {second}"
            ) from error
        if not isinstance(error, OSError):
            raise
        raise StorageError(
            f"{file.get_name()}: the transaction was not committed: {error}; the file was cut "
            f"back to where it was, offset {end}"
        ) from error


def cut_off(file: File, end: int) -> None:
    """Let the file end here, durably."""
    file.seek(end)
    file.truncate()
    file.fsync()
