"""Copying a range of a log into a file of its own, byte by byte, and checking everything in it.

Backup and restore use it.  Invariant: what `end` says is copied is durable; and what `log` has
settled of it was read back, and each checksum in it compared.
"""

import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Final

from durus.error import CorruptionError, StorageError
from durus.index_file import Anchor
from durus.joined_log import JoinedLogFile
from durus.log_check import CheckedLog
from durus.log_file import LogFile

__all__ = ["LogCopy"]

_PIECE_SIZE: Final = 1 << 20
"""So much is read and written at once."""
_PIECES_MAX: Final = 4
"""So many may wait for their checksum."""
_STRETCH_SIZE: Final = 1 << 25
"""So much is written and then synced: who commits meanwhile need not wait long for the disk."""


class LogCopy:
    """A copy in an empty file.  OSError; CorruptionError when the source is damaged.

    Another thread takes care of checksum and syncs: both leave Python's lock to this one.
    """

    def __init__(
        self,
        source: LogFile,
        file: LogFile,
        since: Anchor,
        *,
        blame: Callable[[int], tuple[str, int]],
        report: Callable[[int], None],
        boundaries: Iterable[int] = (),
    ) -> None:
        """since: what is copied comes after it; a log's whole copy begins with `Anchor()`.

        blame: the file that is damaged when the log is so at an offset, and the offset there.
        report: is told now and then how many bytes more have been copied.
        boundaries: the ends of what has a checksum of its own, ascending.
        """
        self.end = self._start = since.end
        self._source = source
        self._file = file
        self._since = since
        self._blame = blame
        self._report = report
        self._log: CheckedLog | None = None
        self._sha256 = hashlib.sha256()
        self._boundaries = deque(boundaries)
        self.checksums: list[str] = []
        """The SHA-256 of what was copied up to each boundary, from the one before."""

    @property
    def log(self) -> CheckedLog:
        """The copied log, as far as it is checked."""
        if self._log is None:
            file = self._file
            if self._start:
                files = (self._source, file)
                file = JoinedLogFile([0, self._start], files.__getitem__)
            self._log = CheckedLog(file, self._since, blame=self._blame)
        return self._log

    @property
    def sha256(self) -> str:
        """That of what was copied since the last boundary."""
        return self._sha256.hexdigest()

    def extend(self, stop: int) -> None:
        """Copy up to an offset of the log, and check it, as far as entries end there."""
        try:
            with ThreadPoolExecutor(1) as helper:
                while self.end < stop:
                    end = min(self.end + _STRETCH_SIZE, stop)
                    self._write(end, helper)
                    synced = helper.submit(self._file.sync)
                    self._check()  # what was synced before
                    synced.result()
                    self.end = end
        except OSError as error:
            error.filename = error.filename or self._file.path
            raise
        self._check()

    def append(self, content: bytes) -> None:
        """Write what the source does not have."""
        self._file.append(content)
        self._file.sync()
        self.end += len(content)

    def finish(self) -> None:
        """Check all that is copied."""
        with self._explaining():
            self.log.finish(self.end)

    def _write(self, end: int, helper: Executor) -> None:
        place = self.end
        hashing: deque[Future[None]] = deque()
        while place < end:
            boundary = self._boundaries[0] if self._boundaries else end
            size = min(_PIECE_SIZE, end - place, boundary - place)
            content = self._source.read(place, size)
            if len(content) < size:
                path, offset = self._blame(place + len(content))
                raise CorruptionError(path, offset, "the file has become shorter meanwhile")
            hashing.append(helper.submit(self._hash, content))
            if len(hashing) > _PIECES_MAX:
                hashing.popleft().result()
            self._file.append(content)
            self._report(size)
            place += size
            if self._boundaries and place == boundary:
                self._boundaries.popleft()
                helper.submit(self._note_checksum)

    def _hash(self, content: bytes) -> None:
        self._sha256.update(content)

    def _note_checksum(self) -> None:
        self.checksums.append(self.sha256)
        self._sha256 = hashlib.sha256()

    def _check(self) -> None:
        if self.end > self._start:
            with self._explaining():
                self.log.check(self.end)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Damage in the copy is damage in the source, unless that is not the same."""
        try:
            yield
        except CorruptionError as error:
            for place in range(self._start, self.end, _PIECE_SIZE):
                size = min(_PIECE_SIZE, self.end - place)
                if self._file.read(place - self._start, size) != self._source.read(place, size):
                    raise StorageError(
                        f"{self._file.path}: what was written there is not what is read now "
                        f"({error.reason}): its disk, or the memory of this machine, is faulty"
                    ) from error
            raise
