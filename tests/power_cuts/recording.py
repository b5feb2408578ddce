"""What programs did to the disk: a file seam that notes every operation, and what it was for.

A `RecordingSystem` stands in for one process's operating system; those of all processes on a
machine write into one `Recording`.  Invariant: what is noted was done, in this order, and nothing
else was done to the disk.
"""

import errno
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from durus.file_system import FileMap, FileStatus, LockHolder, System
from durus.interfaces import Oid
from tests.simulation.disk import ProcessKilled

__all__ = [
    "Acknowledged",
    "Began",
    "DiskOperation",
    "FailedSync",
    "Operation",
    "Packed",
    "Read",
    "Recording",
    "RecordingSystem",
    "Refused",
    "Renamed",
    "Sync",
    "SyncDirectory",
    "Write",
]


# What was done to the disk.  Files are numbers, in the order in which they were made.


class Write(NamedTuple):
    file: int
    offset: int
    content: bytes


class Sync(NamedTuple):
    file: int


class FailedSync(NamedTuple):
    """What was written before it may never reach the disk, whatever is synced later."""

    file: int


class Renamed(NamedTuple):
    """Names were given or taken, all at once."""

    names: Mapping[str, int | None]


class SyncDirectory(NamedTuple):
    path: str


# What it was done for.


class Began(NamedTuple):
    """A transaction is about to be committed: what it writes, and the oids that this refers to."""

    id: int
    writes: Mapping[Oid, tuple[object, frozenset[Oid]]]
    is_durable: bool
    """Whether it must not be lost once it was acknowledged, or seen."""


class Acknowledged(NamedTuple):
    """It was said that the transaction is committed."""

    id: int


class Refused(NamedTuple):
    """It was said that the transaction is not committed."""

    id: int


class Read(NamedTuple):
    """Somebody saw this transaction, and all that come before it."""

    id: int


class Packed(NamedTuple):
    """A pack is about to begin."""


DiskOperation = Write | Sync | FailedSync | Renamed | SyncDirectory
Operation = DiskOperation | Began | Acknowledged | Refused | Read | Packed


@dataclass(eq=False)
class Recording:
    """What all processes of one machine did."""

    operations: list[Operation] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    after_write: Callable[[], None] | None = None
    """Called when something has been written to a file."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def note(self, operation: Operation) -> None:
        self.operations.append(operation)

    def rename(self, names: Mapping[str, int | None]) -> None:
        for path, file in names.items():
            if file is None:
                del self.names[path]
            else:
                self.names[path] = file
        self.note(Renamed(dict(names)))

    def write(self, file: int, offset: int, content: bytes) -> None:
        self.sizes[file] = max(self.sizes[file], offset + len(content))
        self.note(Write(file, offset, content))
        if self.after_write is not None:
            self.after_write()


class RecordingSystem:
    """One process: it forwards to another `System`, real or simulated, and notes what was done.

    omits: the calls that are not made, though nobody is told: "sync", "sync_directory", or
        "sync_index", those syncs alone that are of an index.
    delays_sync: each sync of a file is made after the next time that something is written to it.
    """

    def __init__(
        self,
        recording: Recording,
        inner: System,
        *,
        omits: str = "",
        delays_sync: bool = False,
    ) -> None:
        self.recording = recording
        self.inner = inner
        self.kills_after: int | None = None
        """So many bytes may still be written, then the process is killed."""
        self._failing: dict[str, int] = {}
        self.before_sync: Callable[[], None] | None = None
        self._omits = omits.split()
        self._delays_sync = delays_sync
        self._files: dict[int, int] = {}
        self._indexes: set[int] = set()
        self._delayed: set[int] = set()
        self._killed = False

    def kill(self) -> None:
        """What `kill -9` does: descriptors are closed, and with them locks are given up."""
        self._killed = True
        for fd in list(self._files):
            self._close(fd)

    def fail(self, name: str, call: int = 1) -> None:
        """Let a call of this name fail, once: the next one, or the second..."""
        self._failing[name] = call

    def fail_no_more(self) -> None:
        self._failing.clear()

    def _is_failing(self, name: str) -> bool:
        if self._killed:
            raise ProcessKilled
        if name in self._failing:
            self._failing[name] -= 1
            return self._failing[name] == 0
        return False

    def _check(self, name: str) -> None:
        if self._is_failing(name):
            raise OSError(errno.EIO, f"{name} failed")

    def _close(self, fd: int) -> None:
        del self._files[fd]
        self._indexes.discard(fd)
        self.inner.close(fd)

    def open(self, path: str, *, writable: bool, append: bool = True) -> int:
        self._check("open")
        with self.recording.lock:
            fd = self.inner.open(path, writable=writable, append=append)
            self._files[fd] = self.recording.names[path]
            if not append:
                self._indexes.add(fd)
        return fd

    def create(self, path: str, like: FileStatus | None = None, *, append: bool = True) -> int:
        self._check("create")
        with self.recording.lock:
            fd = self.inner.create(path, like, append=append)
            self._files[fd] = len(self.recording.sizes)
            if not append:
                self._indexes.add(fd)
            self.recording.sizes.append(0)
            self.recording.rename({path: self._files[fd]})
        return fd

    def close(self, fd: int) -> None:
        if not self._killed:
            self._close(fd)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        self._check("read")
        return self.inner.read(fd, size, offset)

    def append(self, fd: int, content: bytes | memoryview) -> int:
        return self._write("append", fd, bytes(content), None)

    def write(self, fd: int, content: bytes, offset: int) -> int:
        return self._write("write", fd, content, offset)

    def _write(self, name: str, fd: int, content: bytes, offset: int | None) -> int:
        recording = self.recording
        with recording.lock:
            is_failing = self._is_failing(name)
            file = self._files[fd]
            if is_failing:
                content = content[: len(content) // 2]
            if self.kills_after is not None:
                content = content[: self.kills_after]
                self.kills_after -= len(content)
            size = 0
            if content:
                place = recording.sizes[file] if offset is None else offset
                if offset is None:
                    size = self.inner.append(fd, content)
                else:
                    size = self.inner.write(fd, content, offset)
                recording.write(file, place, content[:size])
            if self.kills_after == 0:
                self.kill()
                raise ProcessKilled
            if is_failing:
                raise OSError(errno.ENOSPC, f"{name} failed")
            if file in self._delayed:
                self._delayed.remove(file)
                self._sync(fd)
        return size

    def map(self, fd: int, size: int) -> FileMap:
        self._check("map")
        return self.inner.map(fd, size)

    def sync(self, fd: int) -> None:
        if self.before_sync is not None:
            self.before_sync()
        with self.recording.lock:
            try:
                self._check("sync")
            except OSError:
                self.recording.note(FailedSync(self._files[fd]))
                raise
            if "sync" in self._omits or ("sync_index" in self._omits and fd in self._indexes):
                return
            if self._delays_sync:
                self._delayed.add(self._files[fd])
            else:
                self._sync(fd)

    def _sync(self, fd: int) -> None:
        self.inner.sync(fd)
        self.recording.note(Sync(self._files[fd]))

    def status(self, fd: int) -> FileStatus:
        self._check("status")
        return self.inner.status(fd)

    def path_status(self, path: str) -> FileStatus:
        self._check("path_status")
        return self.inner.path_status(path)

    def link(self, source: str, target: str) -> None:
        self._check("link")
        with self.recording.lock:
            self.inner.link(source, target)
            self.recording.rename({target: self.recording.names[source]})

    def rename(self, source: str, target: str) -> None:
        self._check("rename")
        with self.recording.lock:
            self.inner.rename(source, target)
            self.recording.rename({target: self.recording.names[source], source: None})

    def unlink(self, path: str) -> None:
        self._check("unlink")
        with self.recording.lock:
            self.inner.unlink(path)
            self.recording.rename({path: None})

    def sync_directory(self, path: str) -> None:
        self._check("sync_directory")
        if "sync_directory" in self._omits:
            return
        with self.recording.lock:
            self.inner.sync_directory(path)
            self.recording.note(SyncDirectory(path))

    def make_directory(self, path: str) -> None:
        self._check("make_directory")
        self.inner.make_directory(path)

    def list_directory(self, path: str) -> list[str]:
        self._check("list_directory")
        return self.inner.list_directory(path)

    def free_space(self, path: str) -> int:
        self._check("free_space")
        return self.inner.free_space(path)

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        self._check("lock")
        return self.inner.lock(fd, shared=shared)

    def unlock(self, fd: int) -> None:
        self._check("unlock")
        self.inner.unlock(fd)

    def lock_holder(self, fd: int) -> LockHolder | None:
        return self.inner.lock_holder(fd)

    def network_file_system(self, fd: int) -> str | None:
        return self.inner.network_file_system(fd)

    def monotonic(self) -> float:
        return self.inner.monotonic()

    def pause(self, seconds: float) -> None:
        self._check("pause")
        self.inner.pause(seconds)
