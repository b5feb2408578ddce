"""`File`: one open file of a classic format, and the lock on it.

The file storages of Durus 4.x are built on it, and so are programs that made their own.  What is
written is with the operating system when `write` returns, nothing is held back in a buffer.  The
invariants: *whoever writes has the lock*, a flock on the file itself, which 4.3 takes, too; and a
forked child has neither, as what its parent knows of the file is soon not true any more.
"""

import contextlib
import os
import tempfile
import weakref
from collections.abc import Iterator
from os import PathLike
from typing import Any, BinaryIO, Final, NoReturn, cast

from durus.error import ReadOnlyError, StorageError, StorageLockedError, StorageOpenError
from durus.file_system import FileStatus, OperatingSystem, opening
from durus.open_file import forget_in_children

__all__ = ["File"]

_SYSTEM: Final = OperatingSystem()

_READERS_WAIT_MAX_S: Final = 2.0
"""A reader that is not sure of the end of the file keeps writers away for a moment."""
_READERS_PAUSE_S: Final = 0.001


class File:
    """A file that is open for reading, and, unless it is read-only, for writing."""

    def __init__(
        self, name: str | PathLike[str] | None = None, readonly: bool = False, **kwargs: Any
    ) -> None:
        """Open a file, and make it if it is not there.

        name: None for a temporary file, which is removed when it is closed.
        readonly: it must be there.
        kwargs: for `tempfile.NamedTemporaryFile`, of a temporary file.

        Raises OSError.
        """
        self.file: BinaryIO
        self.has_lock = False
        self._temporary = name is None
        self._remove: weakref.finalize[..., File] | None = None
        self._pid = os.getpid()
        forget_in_children(self)
        if name is None:
            if readonly:
                raise AssertionError("a temporary file is new: it cannot be read-only")
            options = {"buffering": 0, "delete": True, **kwargs}
            # Not by itself: it would remove the file at the end of a forked child, too.
            with opening():
                temporary = tempfile.NamedTemporaryFile(**{**options, "delete": False})  # noqa: SIM115 (kept)
                self._name = self._path = temporary.name
                self.file = cast(BinaryIO, temporary)
            if options["delete"]:
                self._remove = weakref.finalize(self, _remove_temporary, self._path, os.getpid())
            return
        self._name = os.fspath(name)
        self._path = os.path.abspath(self._name)
        """Names the same file when the process has changed its folder."""
        if not readonly:
            with opening():
                self.file = open(name, "r+b", buffering=0, opener=_open_or_make)  # noqa: SIM115 (kept)
            return
        try:
            with opening():
                self.file = open(name, "rb")  # noqa: SIM115 (kept)
        except FileNotFoundError as error:
            raise StorageOpenError(name, "there is no such file", error.errno) from error

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    def get_name(self) -> str:
        """Its path, as it was given."""
        return str(self._name)

    def is_temporary(self) -> bool:
        return self._temporary

    def is_readonly(self) -> bool:
        return self.file.mode == "rb"

    def is_in_place(self) -> bool:
        """Whether its path still names it: nobody has put another file there, or removed it."""
        try:
            there = _SYSTEM.path_status(self._path)
        except FileNotFoundError:
            return False
        return there.identity == self.status().identity

    def seek(self, n: int, whence: int = 0) -> None:
        """Go to an offset; from the end if `whence` is 2."""
        self.file.seek(n, whence)

    def seek_end(self) -> None:
        self.file.seek(0, 2)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, n: int | None = None) -> bytes:
        """Up to n bytes, or all that remain."""
        return self.file.read(-1 if n is None else n)

    def stat(self) -> os.stat_result:
        """OSError when its path names nothing any more."""
        return os.stat(self._path)

    def status(self) -> FileStatus:
        """What there is to know of the open file, whatever its path names."""
        return _SYSTEM.status(self.file.fileno())

    def __len__(self) -> int:
        return self.status().size

    def obtain_lock(self) -> None:
        """Lock the file, if this File has not done that already.

        Raises StorageLockedError when another one has, and ReadOnlyError.
        """
        if self.has_lock:
            return
        if self.is_readonly():
            raise ReadOnlyError(f"{self._name} is open read-only")
        deadline = _SYSTEM.monotonic() + _READERS_WAIT_MAX_S
        while not _SYSTEM.lock(self.file.fileno()):
            if self.is_locked_elsewhere() or _SYSTEM.monotonic() >= deadline:
                holder = _SYSTEM.lock_holder(self.file.fileno())
                who = "another process" if holder is None else str(holder)
                raise StorageLockedError(
                    f"{self._name}: {who} has the file open for writing; close it there first, or "
                    "open it here with readonly=True"
                )
            _SYSTEM.pause(_READERS_PAUSE_S)
        self.has_lock = True

    def release_lock(self) -> None:
        if self.has_lock:
            _SYSTEM.unlock(self.file.fileno())
        self.has_lock = False

    def is_locked_elsewhere(self) -> bool:
        """Whether somebody else has the lock at this moment."""
        with self.keeping_writers_away() as is_free:
            return not is_free

    @contextlib.contextmanager
    def keeping_writers_away(self) -> Iterator[bool]:
        """Let nobody else get the lock meanwhile, for a moment; False if somebody has it."""
        is_free = self.has_lock or _SYSTEM.lock(self.file.fileno(), shared=True)
        try:
            yield is_free
        finally:
            if is_free and not self.has_lock:
                _SYSTEM.unlock(self.file.fileno())

    def write(self, s: bytes) -> None:
        """Write all of it, with one call of the operating system if that takes all."""
        self.obtain_lock()
        written = self.file.write(s)
        while written < len(s):
            written += self.file.write(memoryview(s)[written:])

    def truncate(self) -> None:
        """Cut off what follows the present position."""
        self.obtain_lock()
        self.file.truncate()

    def flush(self) -> None:
        """Nothing is held back, so there is nothing to do."""
        self.file.flush()

    def fsync(self) -> None:
        """Return when everything that was written will survive a power cut."""
        _SYSTEM.sync(self.file.fileno())

    def rename(self, name: str) -> None:
        """Give it another path, and replace what is there; it stays open and is locked."""
        if name == self._name:
            return
        if self._temporary:
            raise AssertionError(f"{self._name} is temporary: it cannot be renamed")
        self.obtain_lock()
        os.rename(self._path, name)
        self._name, self._path = name, os.path.abspath(name)
        self.seek(0)

    def close(self) -> None:
        """Give up the lock, too.  Closing twice is no error."""
        if not self.file.closed:
            self.release_lock()
        self.file.close()
        if self._remove is not None:
            self._remove()

    def forget_in_child(self) -> None:
        """Close the file in a process that has just been forked, and leave its parent the lock."""
        file = getattr(self, "file", None)
        if file is None or isinstance(file, _LeftToParent):
            return
        self.file = cast(BinaryIO, _LeftToParent(self._name, self._pid))
        self.has_lock = False
        raw = getattr(file, "raw", file)  # without a buffer: what is in that is the parent's
        with contextlib.suppress(OSError):
            raw.close()


class _LeftToParent:
    """What a File has in a forked child: whoever uses it is told to open the file anew."""

    closed = True

    def __init__(self, name: str, pid: int) -> None:
        self._name = name
        self._pid = pid

    def close(self) -> None:
        pass

    def __getattr__(self, attribute: str) -> NoReturn:
        raise StorageError(
            f"{self._name} was opened by process {self._pid} before it forked this one; open the "
            "file in the process that uses it"
        )


def _remove_temporary(path: str, pid: int) -> None:
    if os.getpid() == pid:  # and not a forked child
        with contextlib.suppress(OSError):
            os.unlink(path)


def _open_or_make(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_CREAT, 0o666)
