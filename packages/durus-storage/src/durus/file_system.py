"""The file seam: every call of the operating system that the log and its index make.

`System` is what they ask for; `OperatingSystem` is the real one, and tests put others in its
place, which fail, lose power, or run several processes at once.

Invariant: a forked child has none of the files that its parent has open.  They are closed before
any of its code runs: a lock (`flock`) lasts as long as anybody has the descriptor, so a child would
keep it when its parent is killed.  They are not unlocked: that would take the lock from the parent.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sized
from typing import Final, Literal, NamedTuple, Protocol

import durus.error  # noqa: F401 (it guards against Durus 4.x)

__all__ = ["FileMap", "FileStatus", "LockHolder", "OperatingSystem", "System", "opening"]

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
    ]
)
"""Where a lock, or what others have written, may not be seen at once from another machine."""


_STATES: Final = {
    "running": "",
    "stopped": " (which is stopped: continue it with kill -CONT, or end it)",
    "ended": " (which has ended: one that it forked still has the file open; end that)",
}


class FileStatus(NamedTuple):
    """What there is to know of a file."""

    identity: tuple[int, int]
    """Device and inode: two files are the same if these are."""
    size: int
    mode: int
    uid: int
    gid: int

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class LockHolder(NamedTuple):
    """Who has a file locked."""

    pid: int
    state: Literal["running", "stopped", "ended"]
    """stopped: suspended, as by SIGSTOP or a debugger, and will not go on by itself;
    ended: a process that it forked still has the file open."""

    def __str__(self) -> str:
        if self.pid == os.getpid():
            return "this process"
        return f"process {self.pid}" + _STATES[self.state]


class FileMap(Sized, Protocol):
    """The first bytes of a file, as memory that the operating system fills when it is read."""

    def __getitem__(self, place: slice, /) -> bytes: ...

    def close(self) -> None: ...


class System(Protocol):
    """The operating system.  All of it raises OSError; files are descriptors."""

    def open(self, path: str, *, writable: bool, append: bool = True) -> int:
        """append: whether all that is written goes to the end; else use `write`."""
        ...

    def create(self, path: str, like: FileStatus | None = None, *, append: bool = True) -> int:
        """Make a new file, and open it to write.

        like: a file whose permissions it gets, and, as far as that is allowed, whose owner and
            group; None: these are as usual.
        append: as for `open`.
        """
        ...

    def close(self, fd: int) -> None: ...

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes; none at the end of the file."""
        ...

    def append(self, fd: int, content: bytes | memoryview) -> int:
        """Write at the end of the file; how many bytes of `content` were written."""
        ...

    def write(self, fd: int, content: bytes, offset: int) -> int:
        """Write over what is there (in an index, never in a log); how many bytes were written."""
        ...

    def map(self, fd: int, size: int) -> FileMap:
        """Map the first `size` bytes, which the file has, for reading."""
        ...

    def sync(self, fd: int) -> None:
        """Return when everything written to the file will survive a power cut."""
        ...

    def status(self, fd: int) -> FileStatus: ...

    def path_status(self, path: str) -> FileStatus: ...

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; FileExistsError when that is taken."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing another."""
        ...

    def unlink(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None: ...

    def make_directory(self, path: str) -> None:
        """Make a directory; FileExistsError when something is there."""
        ...

    def list_directory(self, path: str) -> list[str]:
        """The names of what is in it."""
        ...

    def free_space(self, path: str) -> int:
        """How many bytes can still be written to files in this folder."""
        ...

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        """Lock the file for this descriptor; False when another one has it locked."""
        ...

    def unlock(self, fd: int) -> None: ...

    def lock_holder(self, fd: int) -> LockHolder | None:
        """The process that has the file locked, if that can be told."""
        ...

    def network_file_system(self, fd: int) -> str | None:
        """The name of the network file system that the file is on, such as "nfs4"; None: none."""
        ...

    def monotonic(self) -> float:
        """A clock that never goes back, in seconds."""
        ...

    def pause(self, seconds: float) -> None: ...


class OperatingSystem:
    """The real one: POSIX."""

    def open(self, path: str, *, writable: bool, append: bool = True) -> int:
        flags = os.O_RDONLY
        if writable:
            flags = os.O_RDWR | (os.O_APPEND if append else 0)
        with opening():
            fd = os.open(path, flags | os.O_CLOEXEC)
            _descriptors.add(fd)
        return fd

    def create(self, path: str, like: FileStatus | None = None, *, append: bool = True) -> int:
        flags = os.O_RDWR | (os.O_APPEND if append else 0) | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with opening():
            fd = os.open(path, flags, 0o666 if like is None else 0o600)
            _descriptors.add(fd)
        if like is not None:
            _give_to(fd, like.uid, like.gid)
            os.fchmod(fd, stat.S_IMODE(like.mode))
        return fd

    def close(self, fd: int) -> None:
        _descriptors.discard(fd)  # first: then it may be that of another file
        os.close(fd)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def append(self, fd: int, content: bytes | memoryview) -> int:
        return os.write(fd, content)

    def write(self, fd: int, content: bytes, offset: int) -> int:
        return os.pwrite(fd, content, offset)

    def map(self, fd: int, size: int) -> FileMap:
        with opening():  # it has a descriptor of its own
            found = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
            _maps.add(found)
        return found

    def sync(self, fd: int) -> None:
        if sys.platform == "darwin":  # there fsync does not reach the medium
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(fd)

    def status(self, fd: int) -> FileStatus:
        return _status_of(os.fstat(fd))

    def path_status(self, path: str) -> FileStatus:
        return _status_of(os.stat(path))

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def make_directory(self, path: str) -> None:
        os.mkdir(path)

    def list_directory(self, path: str) -> list[str]:
        return os.listdir(path)

    def free_space(self, path: str) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        # Not lockf: that lock is lost when any descriptor of the file in this process is closed.
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        return True

    def unlock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)

    def lock_holder(self, fd: int) -> LockHolder | None:
        found = os.fstat(fd)
        device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        try:
            with open("/proc/locks", encoding="ascii") as locks:
                for line in locks:
                    # 1: FLOCK  ADVISORY  WRITE 4242 08:01:131112 0 EOF
                    fields = line.split()
                    if fields[1] == "FLOCK" and fields[5] == device:
                        pid = int(fields[4])  # 0: one of another container
                        return LockHolder(pid, _state_of(pid)) if pid > 0 else None
        except (OSError, ValueError, IndexError):
            pass  # not Linux, or a container that hides it
        return None

    def network_file_system(self, fd: int) -> str | None:
        device = os.fstat(fd).st_dev
        name = f"{os.major(device)}:{os.minor(device)}"
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
                for line in mounts:
                    # 36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue
                    fields = line.split()
                    if fields[2] == name:
                        found = fields[fields.index("-") + 1]
                        return found if found in _NETWORK_FILE_SYSTEMS else None
        except (OSError, ValueError, IndexError):
            pass  # not Linux
        return None

    def monotonic(self) -> float:
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


# Forks

_opening = threading.RLock()
_descriptors: set[int] = set()
"""Those that are open."""
_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


@contextlib.contextmanager
def opening() -> Iterator[None]:
    """In here no other thread forks: for who opens a file, until it is noted where it is found.

    Nothing may be waited for in here that a thread could hold while it forks.
    """
    with _opening:
        yield


def _close_in_child() -> None:
    global _opening
    _opening = threading.RLock()
    for found in _maps:
        with contextlib.suppress(OSError, BufferError):
            found.close()
    for fd in _descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
    _descriptors.clear()


os.register_at_fork(
    before=lambda: _opening.acquire(),
    after_in_parent=lambda: _opening.release(),
    after_in_child=_close_in_child,
)


def _status_of(found: os.stat_result) -> FileStatus:
    identity = (found.st_dev, found.st_ino)
    return FileStatus(identity, found.st_size, found.st_mode, found.st_uid, found.st_gid)


def _give_to(fd: int, uid: int, gid: int) -> None:
    """Let a file belong to this user and group, or at least to the group, if that is allowed."""
    for owner in (uid, -1):
        with contextlib.suppress(OSError):
            os.fchown(fd, owner, gid)
            return


def _state_of(pid: int) -> Literal["running", "stopped", "ended"]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as status:
            # 4242 (any (name) at all) T 1 ...
            state = status.read().rpartition(b")")[2].split()[0]
    except FileNotFoundError:
        return "ended"
    except (OSError, IndexError):
        return "running"
    if state in (b"Z", b"X"):
        return "ended"
    return "stopped" if state in (b"T", b"t") else "running"
