"""One open log file: bytes are only ever appended, and what is there for good may be mapped."""

from typing import Final

from durus.file_system import FileMap, System
from durus.open_file import OpenFile

__all__ = ["LogFile"]

_MAP_GROWTH_MIN: Final = 1 << 20
"""A file is mapped anew when so many bytes, and an eighth of the map, have come after it."""


class LogFile(OpenFile):
    """A log file, read through a map as far as that reaches."""

    def __init__(self, system: System, path: str, fd: int, *, use_map: bool = False) -> None:
        self._use_map = use_map
        self._map: FileMap | None = None
        self._mapped = 0
        super().__init__(system, path, fd)

    def forget_in_child(self) -> None:
        self._map, self._use_map = None, False
        super().forget_in_child()

    def read(self, offset: int, size: int) -> bytes:
        file_map = self._map
        if file_map is not None and offset + size <= len(file_map):
            return file_map[offset : offset + size]
        return super().read(offset, size)

    def extend_map(self, size: int) -> None:
        """The first `size` bytes are there for good, and may be mapped.

        A map is made anew now and then, ever less often.  If that fails, reading goes on without.
        """
        if self._use_map and size - self._mapped >= max(_MAP_GROWTH_MIN, self._mapped >> 3):
            try:
                self._map = self.system.map(self._fd, size)  # others may still be reading the old
                self._mapped = size
            except (OSError, ValueError, OverflowError):
                self._use_map = False

    def network_file_system(self) -> str | None:
        """The name of the network file system that it is on; None: on a local one."""
        return self.system.network_file_system(self._fd)
