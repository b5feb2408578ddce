"""The file seam: every call of the operating system that the log makes.

`System` is what the log asks for; `OperatingSystem` is the real one, and tests put others in its
place, which fail, lose power, or run several processes at once.  `LogFile` is one open file above
it.  Its invariant: bytes are only ever appended.
"""

import errno
import fcntl
import os
import stat
import sys
import time
from typing import Final, NamedTuple, Protocol

from durus.error import StorageError

__all__ = ["FileStatus", "LogFile", "OperatingSystem", "System"]

_READ_SIZE_MAX: Final = 1 << 30
"""One call of the operating system reads at most 2 GiB."""


class FileStatus(NamedTuple):
    """What there is to know of a file."""

    identity: tuple[int, int]
    """Device and inode: two files are the same if these are."""
    size: int
    mode: int

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class System(Protocol):
    """The operating system.  All of it raises OSError; files are descriptors."""

    def open(self, path: str, *, writable: bool) -> int: ...

    def create(self, path: str, mode: int | None = None) -> int:
        """Make a new file, open for writing; its permissions are as usual, or those of `mode`."""
        ...

    def close(self, fd: int) -> None: ...

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes; none at the end of the file."""
        ...

    def append(self, fd: int, content: bytes | memoryview) -> int:
        """Write at the end of the file; how many bytes of `content` were written."""
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

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        """Lock the file for this descriptor; False when another one has it locked."""
        ...

    def unlock(self, fd: int) -> None: ...

    def lock_holder(self, fd: int) -> int | None:
        """The process that has the file locked, if that can be told."""
        ...

    def monotonic(self) -> float:
        """A clock that never goes back, in seconds."""
        ...

    def pause(self, seconds: float) -> None: ...


class OperatingSystem:
    """The real one: POSIX."""

    def open(self, path: str, *, writable: bool) -> int:
        flags = os.O_RDWR | os.O_APPEND if writable else os.O_RDONLY
        return os.open(path, flags | os.O_CLOEXEC)

    def create(self, path: str, mode: int | None = None) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(path, flags, 0o666 if mode is None else 0o600)
        if mode is not None:
            os.fchmod(fd, stat.S_IMODE(mode))
        return fd

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def append(self, fd: int, content: bytes | memoryview) -> int:
        return os.write(fd, content)

    def sync(self, fd: int) -> None:
        if sys.platform == "darwin":  # there fsync does not reach the medium
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(fd)

    def status(self, fd: int) -> FileStatus:
        found = os.fstat(fd)
        return FileStatus((found.st_dev, found.st_ino), found.st_size, found.st_mode)

    def path_status(self, path: str) -> FileStatus:
        found = os.stat(path)
        return FileStatus((found.st_dev, found.st_ino), found.st_size, found.st_mode)

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

    def lock_holder(self, fd: int) -> int | None:
        found = os.fstat(fd)
        device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        try:
            with open("/proc/locks", encoding="ascii") as locks:
                for line in locks:
                    # 1: FLOCK  ADVISORY  WRITE 4242 08:01:131112 0 EOF
                    fields = line.split()
                    if fields[1] == "FLOCK" and fields[5] == device:
                        return int(fields[4])
        except (OSError, ValueError, IndexError):
            pass  # not Linux, or a container that hides it
        return None

    def monotonic(self) -> float:
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


class LogFile:
    """One open file.  It is closed when nobody refers to it any more, a snapshot least of all."""

    def __init__(self, system: System, path: str, fd: int) -> None:
        self.system = system
        self.path = path
        self._fd = fd

    def __del__(self) -> None:
        self.system.close(self._fd)

    def status(self) -> FileStatus:
        return self.system.status(self._fd)

    def read(self, offset: int, size: int) -> bytes:
        """The bytes at `offset`: `size` of them, or fewer if the file ends before; StorageError."""
        try:
            return self._read(offset, size)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read at offset {offset}: {error}") from error

    def _read(self, offset: int, size: int) -> bytes:
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
        return self.system.lock(self._fd, shared=shared)

    def unlock(self) -> None:
        self.system.unlock(self._fd)

    def lock_holder(self) -> int | None:
        return self.system.lock_holder(self._fd)
