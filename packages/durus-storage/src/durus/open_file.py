"""One open file, above the file seam (`durus.file_system`): a log, or its index.

Invariant: it is not used in a process that was forked since: there the file is closed already, and
its descriptor may be that of another one.
"""

import os
import weakref
from typing import Final, Protocol

from durus.error import StorageError
from durus.file_system import FileStatus, LockHolder, System

__all__ = ["OpenFile", "forget_in_children"]

_READ_SIZE_MAX: Final = 1 << 30
"""One call of the operating system reads at most 2 GiB."""
_READ_BLINDLY_MAX: Final = 1 << 20
"""For more than this, memory is taken only if the file has so much."""
_CLOSED: Final = -1


class _Inherited(Protocol):
    def forget_in_child(self) -> None: ...


_open_files: weakref.WeakSet[_Inherited] = weakref.WeakSet()


def forget_in_children(file: _Inherited) -> None:
    """Let `file.forget_in_child()` be called, before other code, in each process that is forked."""
    _open_files.add(file)


class OpenFile:
    """It is closed when nobody refers to it any more, a snapshot least of all."""

    def __init__(self, system: System, path: str, fd: int) -> None:
        self.system = system
        self.path = path
        self._fd = fd
        self._pid = os.getpid()
        forget_in_children(self)

    def __del__(self) -> None:
        if self._fd != _CLOSED:
            self.system.close(self._fd)

    def forget_in_child(self) -> None:
        """Take note, in a process that has just been forked, that the file is not open here."""
        self._fd = _CLOSED

    def check_process(self) -> None:
        """Raises StorageError in a child that was forked after the file was opened."""
        if self._fd == _CLOSED:
            raise StorageError(
                f"{self.path} was opened by process {self._pid} before it forked this one: what "
                "was begun before the fork cannot go on here; abort() begins anew"
            )

    def status(self) -> FileStatus:
        self.check_process()
        return self.system.status(self._fd)

    def is_at(self, path: str) -> bool:
        """Whether a path names this file; OSError."""
        try:
            there = self.system.path_status(path)
        except FileNotFoundError:
            return False
        return there.identity == self.status().identity

    def read(self, offset: int, size: int) -> bytes:
        """The bytes at `offset`: `size` of them, or fewer if the file ends before; StorageError."""
        try:
            return self._read(offset, size)
        except (OSError, OverflowError) as error:  # the offset may be anything
            self.check_process()
            raise StorageError(f"{self.path} cannot be read at offset {offset}: {error}") from error

    def _read(self, offset: int, size: int) -> bytes:
        if size > _READ_BLINDLY_MAX:  # a damaged file may say that something has any length
            size = min(size, max(0, self.system.status(self._fd).size - offset))
        content = self.system.read(self._fd, min(size, _READ_SIZE_MAX), offset)
        if len(content) == size or not content:
            return content
        parts = [content]
        got = len(content)
        while got < size:
            part = self.system.read(self._fd, min(size - got, _READ_SIZE_MAX), offset + got)
            if not part:
                break
            parts.append(part)
            got += len(part)
        return b"".join(parts)

    def append(self, content: bytes) -> None:
        """Append all of `content`; after an OSError a part of it may be there."""
        written = self.system.append(self._fd, content)
        while written < len(content):
            written += self.system.append(self._fd, memoryview(content)[written:])

    def sync(self) -> None:
        self.system.sync(self._fd)

    def lock(self, *, shared: bool = False) -> bool:
        """Lock the file, now or not at all: whether that was done."""
        return self.system.lock(self._fd, shared=shared)

    def unlock(self) -> None:
        if self._fd != _CLOSED:
            self.system.unlock(self._fd)

    def lock_holder(self) -> LockHolder | None:
        return self.system.lock_holder(self._fd)


def _forget_in_child() -> None:
    for file in list(_open_files):
        file.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)
