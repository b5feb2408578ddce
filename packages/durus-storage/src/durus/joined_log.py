"""A log that lies in several files, one after the other: what a backup is.

Invariant: it is read as if it were one file, with two files open at a time, however many there are;
what is wrong in it is said of the file that it is in.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence

from durus.file_system import FileStatus
from durus.log_file import LogFile

__all__ = ["JoinedLogFile"]

_NO_FILE = -1


class JoinedLogFile(LogFile):
    """Several files, each of which has a range of the log; the last one may be growing."""

    _fd = _NO_FILE  # also if the first one cannot be opened

    def __init__(self, starts: Sequence[int], open_file: Callable[[int], LogFile]) -> None:
        """starts: where in the log the range of each file begins, ascending from 0.

        open_file: opens one of them, by its number; it may be open already.
        """
        self._starts = starts
        self._open_file = open_file
        self._first = first = open_file(0)
        self._last_used = (0, first)
        super().__init__(first.system, first.path, _NO_FILE)

    def _file(self, index: int) -> LogFile:
        if not index:
            return self._first  # it has the header, and is asked for that
        if self._last_used[0] != index:
            self._last_used = (index, self._open_file(index))
        return self._last_used[1]

    def status(self) -> FileStatus:
        """That of the first file, with the size of all."""
        size = self._starts[-1] + self._file(len(self._starts) - 1).status().size
        return self._first.status()._replace(size=size)

    def locate(self, offset: int) -> tuple[str, int]:
        """The path of the file that has what is at an offset of the log, and where it is there."""
        index = self._find(offset)
        return self._file(index).path, offset - self._starts[index]

    def _find(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1

    def read(self, offset: int, size: int) -> bytes:
        index = self._find(offset)
        content = b""
        while len(content) < size:
            start, *others = self._starts[index : index + 2]
            place = offset + len(content)
            wanted = size - len(content)
            if others:
                wanted = min(wanted, others[0] - place)
            part = self._file(index).read(place - start, wanted)
            content = content + part if content else part
            if not others or len(part) < wanted:
                break
            index += 1
        return content
