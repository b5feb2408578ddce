"""A log that lies in several files, one after the other: what a backup is.

Invariant: it is read as if it were one file; what is wrong in it is said of the file that it is in.
"""

from bisect import bisect_right
from collections.abc import Sequence

from durus.file_system import FileStatus
from durus.log_file import LogFile

__all__ = ["JoinedLogFile"]

_NO_FILE = -1


class JoinedLogFile(LogFile):
    """Several files, each of which has a range of the log; the last one may be growing."""

    def __init__(self, files: Sequence[LogFile], starts: Sequence[int]) -> None:
        """starts: where in the log the range of each file begins, ascending from 0.

        A file that does not begin there itself, as that of which others are the end, is the first.
        """
        super().__init__(files[0].system, files[0].path, _NO_FILE)
        self._files = files
        self._starts = starts

    def status(self) -> FileStatus:
        """That of the first file, with the size of all."""
        last = self._starts[-1] + self._files[-1].status().size
        return self._files[0].status()._replace(size=last)

    def locate(self, offset: int) -> tuple[str, int]:
        """The path of the file that has what is at an offset of the log, and where it is there."""
        index = bisect_right(self._starts, offset) - 1
        return self._files[index].path, offset - self._starts[index]

    def read(self, offset: int, size: int) -> bytes:
        index = bisect_right(self._starts, offset) - 1
        content = b""
        while len(content) < size:
            start, *others = self._starts[index : index + 2]
            place = offset + len(content)
            wanted = size - len(content)
            if others:
                wanted = min(wanted, others[0] - place)
            part = self._files[index].read(place - start, wanted)
            content = content + part if content else part
            if not others or len(part) < wanted:
                break
            index += 1
        return content
