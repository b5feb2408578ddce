"""A disk in memory that several simulated processes use, and that can lose power.

`SimulatedDisk` holds files and names; a `SimulatedSystem` is one process's view of it, to be put
at the file seam (`FileStorage(path, system=...)`).  Invariants: what was synced survives a power
cut as it was; of all else any sectors may survive and any not; a name survives if its directory
was synced after it was given, and else perhaps.  A process that was killed does nothing any more.
"""

import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random

from durus.file_system import FileMap, FileStatus, LockHolder

__all__ = ["ProcessKilled", "SimulatedDisk", "SimulatedSystem"]

SECTOR = 512


class ProcessKilled(BaseException):
    """Raised in a process at its first step after it was killed."""


@dataclass(eq=False)
class Inode:
    number: int
    content: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    """What a power cut leaves for certain."""
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    """What was written since, in order: offsets and bytes."""
    lock: "dict[Descriptor, bool]" = field(default_factory=dict)
    """Who has it locked, and whether shared."""
    failures: int = 0
    """How often it could not be synced."""

    def write(self, offset: int, content: bytes) -> None:
        overwrite(self.content, offset, content)
        self.writes.append((offset, content))

    def sync(self) -> None:
        for sector in self.changed_sectors():
            self._arrive(sector)
        self.writes.clear()

    def _arrive(self, sector: int) -> None:
        """A sector arrives on the disk, with all that was ever written to it."""
        start = sector * SECTOR
        overwrite(self.synced, start, bytes(self.content[start : start + SECTOR]))

    def changed_sectors(self) -> dict[int, list[tuple[int, bytes]]]:
        """What was written to each sector since the last sync, in order."""
        changed: dict[int, list[tuple[int, bytes]]] = {}
        for offset, content in self.writes:
            for start, part in sectors(offset, content):
                changed.setdefault(start // SECTOR, []).append((start, part))
        return changed

    def fail_to_sync(self, random: Random) -> None:
        """Of the sectors that have changed since the last sync some arrive, or arrived earlier.

        What did not never will: it is taken for written, as Linux does, until its sector changes
        again.  Its place in the file may be there without it: then it is full of zeros.
        """
        arriving = random.choice((0.0, 0.5, 0.8, 0.9, 1.0))
        for sector, writes in self.changed_sectors().items():
            if random.random() < arriving:
                self._arrive(sector)
            else:
                for start, part in writes[: random.randrange(len(writes))]:
                    overwrite(self.synced, start, part)
        if random.random() < 0.25:
            self.synced += bytes(max(0, len(self.content) - len(self.synced)))
        self.writes.clear()
        self.failures += 1

    def lose_power(self, random: Random) -> None:
        """What arrived of the writes since the last sync is there, and nobody has it locked."""
        self.fail_to_sync(random)
        self.content = self.synced.copy()
        self.lock.clear()

    def copy(self) -> "Inode":
        """As a process finds it that comes later: nobody has it locked."""
        return Inode(self.number, self.content.copy(), self.synced.copy(), self.writes.copy())


def overwrite(content: bytearray, offset: int, new: bytes) -> None:
    if offset > len(content):
        content += bytes(offset - len(content))
    content[offset : offset + len(new)] = new


def sectors(offset: int, content: bytes) -> Iterator[tuple[int, bytes]]:
    """What a write changes in each sector of the disk."""
    start = 0
    while start < len(content):
        end = start + SECTOR - (offset + start) % SECTOR
        yield offset + start, content[start:end]
        start = end


@dataclass(eq=False)
class Descriptor:
    inode: Inode
    append: bool
    writable: bool
    failures: int
    """Of its inode, as far as a sync has said so."""


class SimulatedDisk:
    """Files of one directory tree, and a clock."""

    def __init__(self) -> None:
        self.names: dict[str, Inode] = {}
        self.synced_names: dict[str, Inode] = {}
        self.changes: list[tuple[str, Inode | None]] = []
        """The names given, or taken, since the directory was synced."""
        self.clock = 0.0
        self.inodes = 0

    def new_inode(self) -> Inode:
        self.inodes += 1
        return Inode(self.inodes)

    def rename_entry(self, path: str, inode: Inode | None) -> None:
        if inode is None:
            del self.names[path]
        else:
            self.names[path] = inode
        self.changes.append((path, inode))

    def sync_names(self) -> None:
        self.synced_names = dict(self.names)
        self.changes.clear()

    def lose_power(self, random: Random) -> None:
        """All processes are gone; the disk holds what it may hold after a power cut."""
        names = dict(self.synced_names)
        for path, inode in self.changes[: random.randint(0, len(self.changes))]:
            if inode is None:
                names.pop(path, None)
            else:
                names[path] = inode
        for inode in dict.fromkeys(names.values()):
            inode.lose_power(random)
        self.names = names
        self.sync_names()

    def copy(self) -> "SimulatedDisk":
        """The same files on another disk, on which no process runs."""
        copies: dict[Inode, Inode] = {}

        def copied(names: Mapping[str, Inode]) -> dict[str, Inode]:
            for inode in names.values():
                if inode not in copies:
                    copies[inode] = inode.copy()
            return {path: copies[inode] for path, inode in names.items()}

        other = SimulatedDisk()
        other.names = copied(self.names)
        other.synced_names = copied(self.synced_names)
        for path, changed in self.changes:
            other.changes.append((path, changed and (copies.get(changed) or changed.copy())))
        other.clock = self.clock
        other.inodes = self.inodes
        return other


class SimulatedSystem:
    """One process: `System` on a `SimulatedDisk`.

    step: called before each call with its name; what it raises, the call raises.
    portion: how many of so many bytes one call writes: at least one.
    """

    def __init__(
        self,
        disk: SimulatedDisk,
        pid: int = 1,
        step: Callable[[str], None] = lambda name: None,
        *,
        portion: Callable[[int], int] = lambda size: size,
    ) -> None:
        self.disk = disk
        self.pid = pid
        self.killed = False
        self.failing_sync: Random | None = None
        """Set, the next sync fails: it decides what arrives all the same."""
        self._take_step = step
        self._portion = portion
        self._descriptors: dict[int, Descriptor] = {}
        self._next_descriptor = 3

    def kill(self) -> None:
        """What `kill -9` does: the descriptors are closed, and their locks are given up."""
        self.killed = True
        for fd in list(self._descriptors):
            self._close(fd)

    def _step(self, name: str) -> None:
        if not self.killed:
            self._take_step(name)
        if self.killed:
            raise ProcessKilled

    def _new_descriptor(self, inode: Inode, *, append: bool, writable: bool) -> int:
        self._next_descriptor += 1
        self._descriptors[self._next_descriptor] = Descriptor(
            inode, append, writable, inode.failures
        )
        return self._next_descriptor

    def _close(self, fd: int) -> None:
        descriptor = self._descriptors.pop(fd)
        descriptor.inode.lock.pop(descriptor, None)

    def _inode(self, path: str) -> Inode:
        inode = self.disk.names.get(path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return inode

    def open(self, path: str, *, writable: bool, append: bool = True) -> int:
        self._step("open")
        return self._new_descriptor(self._inode(path), append=append, writable=writable)

    def create(self, path: str, like: FileStatus | None = None, *, append: bool = True) -> int:
        self._step("create")
        if path in self.disk.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        inode = self.disk.new_inode()
        self.disk.rename_entry(path, inode)
        return self._new_descriptor(inode, append=append, writable=True)

    def close(self, fd: int) -> None:
        if not self.killed:  # no step: it comes whenever the last reference goes
            self._close(fd)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        self._step("read")
        return bytes(self._descriptors[fd].inode.content[offset : offset + size])

    def append(self, fd: int, content: bytes | memoryview) -> int:
        self._step("append")
        descriptor = self._descriptors[fd]
        assert descriptor.writable
        assert descriptor.append
        size = self._portion(len(content))
        descriptor.inode.write(len(descriptor.inode.content), bytes(content[:size]))
        return size

    def write(self, fd: int, content: bytes, offset: int) -> int:
        self._step("write")
        descriptor = self._descriptors[fd]
        assert descriptor.writable
        assert not descriptor.append
        size = self._portion(len(content))
        descriptor.inode.write(offset, content[:size])
        return size

    def map(self, fd: int, size: int) -> FileMap:
        raise OSError(errno.ENODEV, "a simulated file cannot be mapped")

    def sync(self, fd: int) -> None:
        self._step("sync")
        descriptor = self._descriptors[fd]
        if self.failing_sync is None:
            descriptor.inode.sync()
        else:
            random, self.failing_sync = self.failing_sync, None
            descriptor.inode.fail_to_sync(random)
        if descriptor.failures < descriptor.inode.failures:  # another process's, perhaps
            descriptor.failures = descriptor.inode.failures
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def status(self, fd: int) -> FileStatus:
        self._step("status")
        return self._status(self._descriptors[fd].inode)

    def path_status(self, path: str) -> FileStatus:
        self._step("path_status")
        return self._status(self._inode(path))

    def _status(self, inode: Inode) -> FileStatus:
        mode = stat.S_IFREG | 0o644
        return FileStatus((1, inode.number), len(inode.content), mode, uid=1000, gid=1000)

    def link(self, source: str, target: str) -> None:
        self._step("link")
        inode = self._inode(source)
        if target in self.disk.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        self.disk.rename_entry(target, inode)

    def rename(self, source: str, target: str) -> None:
        self._step("rename")
        inode = self._inode(source)
        self.disk.rename_entry(target, inode)
        self.disk.rename_entry(source, None)

    def unlink(self, path: str) -> None:
        self._step("unlink")
        self._inode(path)
        self.disk.rename_entry(path, None)

    def sync_directory(self, path: str) -> None:
        self._step("sync_directory")
        assert posixpath.isabs(path)
        self.disk.sync_names()

    def make_directory(self, path: str) -> None:
        self._step("make_directory")
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)  # all are there

    def list_directory(self, path: str) -> list[str]:
        self._step("list_directory")
        return [
            posixpath.basename(name) for name in self.disk.names if posixpath.dirname(name) == path
        ]

    def free_space(self, path: str) -> int:
        self._step("free_space")
        return 1 << 40

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        self._step("lock")
        descriptor = self._descriptors[fd]
        lock = descriptor.inode.lock
        for other, is_shared in lock.items():
            if other is not descriptor and not (shared and is_shared):
                return False
        lock[descriptor] = shared
        return True

    def unlock(self, fd: int) -> None:
        self._step("unlock")
        descriptor = self._descriptors[fd]
        descriptor.inode.lock.pop(descriptor, None)

    def lock_holder(self, fd: int) -> LockHolder | None:
        return None

    def network_file_system(self, fd: int) -> str | None:
        return None

    def monotonic(self) -> float:
        self.disk.clock += 1e-6
        return self.disk.clock

    def pause(self, seconds: float) -> None:
        self._step("pause")
        self.disk.clock += seconds
