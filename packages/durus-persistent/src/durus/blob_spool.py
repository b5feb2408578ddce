"""What was written to blobs and is not committed yet, kept out of memory.  `durus.blob` uses it.

A process has one spool.  The first contents in it stay in memory, the others stand in one
temporary file, however many blobs there are.  The file has no name, so it ends with the process,
however that ends.  Invariants:

    * A content stays what it is until nobody holds its `Spooled` any more; then its place is free.
    * A forked child shares no file with its parent.
"""

import os
import tempfile
import threading
from collections import deque
from io import FileIO
from typing import Final

from durus.error import StorageError

__all__ = ["PLACE_SIZE", "Spool", "Spooled", "spool"]

PLACE_SIZE: Final = 1 << 18
"""The bytes of a place in the file: a content has no more."""

MEMORY_BYTES_MAX: Final = 4 << 20


class Spooled:
    """A content that was put into a spool."""

    __slots__ = ("_size", "_spool", "_where")

    def __init__(self, spool: "Spool", where: bytes | int, size: int) -> None:
        self._spool = spool
        self._where = where
        self._size = size

    def read(self) -> bytes:
        """The content; StorageError in a child that was forked since it was written."""
        if isinstance(self._where, bytes):
            return self._where
        return self._spool.read(self._where, self._size)

    def __del__(self) -> None:
        self._spool.free(self._where)


class Spool:
    """Contents in memory, up to `memory_bytes_max`, and in a temporary file.

    It may be used by several threads.
    """

    def __init__(self, memory_bytes_max: int = MEMORY_BYTES_MAX) -> None:
        self._lock = threading.Lock()
        self._memory_bytes_left = memory_bytes_max
        self._file: FileIO | None = None
        self._place_count = 0
        self._free_places: list[int] = []
        self._freed: deque[bytes | int] = deque()
        """What nobody holds any more, and was not counted yet."""

    def put(self, content: bytes) -> Spooled:
        """Keep a content of up to `PLACE_SIZE` bytes; OSError when the disk is full."""
        assert len(content) <= PLACE_SIZE
        with self._lock:
            self._count_freed()
            if len(content) <= self._memory_bytes_left:
                self._memory_bytes_left -= len(content)
                return Spooled(self, content, len(content))
            if not self._free_places:
                self._free_places.append(self._place_count)
                self._place_count += 1
            self._write(self._free_places[-1], content)
            return Spooled(self, self._free_places.pop(), len(content))

    def _write(self, place: int, content: bytes) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - stays open
            self._file.seek(place * PLACE_SIZE)
            remaining = memoryview(content)
            while remaining:
                remaining = remaining[self._file.write(remaining) :]
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: what is written to blobs stands in a temporary file in "
                f"{tempfile.gettempdir()} until it is committed.  Make room there, or set TMPDIR "
                "to another folder",
            ) from error

    def read(self, place: int, size: int) -> bytes:
        """The content at a place of the file."""
        with self._lock:
            if self._file is None:
                raise StorageError(
                    "this content of a blob was written before this process was forked, and is "
                    "the parent's: write it again here"
                )
            self._file.seek(place * PLACE_SIZE)
            content = self._file.read(size)
        if len(content) != size:
            raise StorageError(
                f"the temporary file in {tempfile.gettempdir()} with what was written to blobs was "
                "cut off: abort(), and write it again"
            )
        return content

    def free(self, where: bytes | int) -> None:
        """A content is not needed any more."""
        # The collector calls this in the middle of anything, also while this thread has the lock.
        self._freed.append(where)
        if self._lock.acquire(blocking=False):
            try:
                self._count_freed()
            finally:
                self._lock.release()

    def _count_freed(self) -> None:
        while self._freed:
            where = self._freed.popleft()
            if isinstance(where, bytes):
                self._memory_bytes_left += len(where)
            else:
                self._free_places.append(where)
        if len(self._free_places) == self._place_count:
            self._drop_file()

    def _drop_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._free_places.clear()
        self._place_count = 0

    def leave(self) -> None:
        """In a forked child: give up the file, which is the parent's."""
        self._lock = threading.Lock()  # a thread that is not here may have it
        self._drop_file()


_spool = Spool()


def spool(content: bytes) -> Spooled:
    """Keep a content of up to `PLACE_SIZE` bytes in the spool of this process."""
    return _spool.put(content)


def _begin_in_child() -> None:
    global _spool
    _spool.leave()
    _spool = Spool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
