"""Copying a range of a log into a file of its own, byte by byte, and checking everything in it.

Backup and restore use it.  Invariant: what `end` says is copied is durable, was read back, and is
what was read; and as far as entries end there, `log` has checked each checksum in it.
"""

import hashlib
import zlib
from collections.abc import Callable
from typing import Final

from durus.error import CorruptionError, StorageError
from durus.index_file import Anchor
from durus.joined_log import JoinedLogFile
from durus.log_check import CheckedLog
from durus.log_file import LogFile

__all__ = ["LogCopy"]

_PIECE_SIZE: Final = 1 << 20
"""So much is in memory at once."""
_STRETCH_SIZE: Final = 1 << 25
"""So much is written and then synced: who commits meanwhile need not wait long for the disk."""


class LogCopy:
    """A copy in an empty file.  OSError; CorruptionError when the source is damaged."""

    def __init__(
        self,
        source: LogFile,
        file: LogFile,
        since: Anchor,
        *,
        blame: Callable[[int], tuple[str, int]],
        report: Callable[[int], None],
    ) -> None:
        """since: what is copied comes after it; a log's whole copy begins with `Anchor()`.

        blame: the file that is damaged when the log is so at an offset, and the offset there.
        report: is told now and then how many bytes more have been copied.
        """
        self.end = self._start = since.end
        self._source = source
        self._file = file
        self._since = since
        self._blame = blame
        self._report = report
        self._log: CheckedLog | None = None
        self._sha256 = hashlib.sha256()

    @property
    def log(self) -> CheckedLog:
        """The copied log, as far as it is checked; something is copied already."""
        if self._log is None:
            file = self._file
            if self._start:
                file = JoinedLogFile([self._source, file], [0, self._start])
            self._log = CheckedLog(file, self._since, blame=self._blame)
        return self._log

    def take_sha256(self) -> str:
        """The checksum of what was copied since this was last asked."""
        found, self._sha256 = self._sha256.hexdigest(), hashlib.sha256()
        return found

    def extend(self, stop: int) -> None:
        """Copy up to an offset of the log."""
        while self.end < stop:
            self._copy_stretch(min(self.end + _STRETCH_SIZE, stop))
            self.log.check(self.end)

    def append(self, content: bytes) -> None:
        """Write what the source does not have."""
        self._file.append(content)
        self._file.sync()
        self.end += len(content)

    def _copy_stretch(self, stop: int) -> None:
        checksum = 0
        for place in range(self.end, stop, _PIECE_SIZE):
            size = min(_PIECE_SIZE, stop - place)
            content = self._source.read(place, size)
            if len(content) < size:
                path, offset = self._blame(place + len(content))
                raise CorruptionError(path, offset, "the file has become shorter meanwhile")
            self._file.append(content)
            checksum = zlib.crc32(content, checksum)
            self._report(size)
        self._file.sync()
        self._read_back(stop, checksum)
        self.end = stop

    def _read_back(self, stop: int, checksum: int) -> None:
        found = 0
        for place in range(self.end, stop, _PIECE_SIZE):
            content = self._file.read(place - self._start, min(_PIECE_SIZE, stop - place))
            found = zlib.crc32(content, found)
            self._sha256.update(content)
        if found != checksum:
            raise StorageError(
                f"{self._file.path}: what was written there is not what is read now; its disk, or "
                "the memory of the machine, is faulty"
            )
