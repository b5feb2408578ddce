"""The index of a log, in a file beside it: where the newest revision of each object is.

`docs/index-file.md` has its bytes.  It is a tree of pages of 4 KiB: 511 numbers and a checksum.
In the pages of level 0 the numbers are offsets of record slots, above they are numbers of pages;
an oid, as a number to base 511, is the way from the root to its slot.  So pages exist only where
there are objects, and what one update costs depends on what has changed alone.

It is never the truth, and whoever has a doubt throws it away.  Invariants: each slot is that of a
visible revision which is not older than the newest one at the transaction that the index *covers*;
and none is in the log behind the transaction *until* which it may have been updated.  So it may be
updated while others read it: to them, a slot that they did not expect is that of a newer revision,
from which the log leads to the one that they want.
"""

import contextlib
import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Self

from durus.error import StorageError
from durus.file_system import FileStatus, System
from durus.interfaces import NO_TID, Tid
from durus.open_file import OpenFile

__all__ = ["FAN_OUT", "PAGE_SIZE", "Anchor", "IndexDamagedError", "IndexFile", "IndexHeader"]

MAGIC: Final = b"\x89DIX\r\n\x1a\n"
VERSION: Final = 1
PAGE_SIZE: Final = 4096
FAN_OUT: Final = 511

_HEADER = struct.Struct(">8sII16sQQQQ4Q4Q")
_CHECK = struct.Struct(">II")  # checksum, level
_NUMBER = struct.Struct(">Q")
_POWERS: Final = [FAN_OUT**level for level in range(9)]
_CACHED_PAGES_MAX: Final = 4096
_UPDATE_MAX: Final = 1 << 16
"""So many entries are updated at a time."""
_ATTEMPTS: Final = 3
"""A page that another process is just writing may be read half; soon after it is whole."""
_PAUSE_S: Final = 0.001


class IndexDamagedError(StorageError):
    """The index cannot be used; the log can."""


class Anchor(NamedTuple):
    """A place in the log, and what proves that it is that of this log."""

    end: int = 0
    """Up to here everything is settled."""
    offset: int = 0
    """Where the last visible transaction is."""
    tid: Tid = NO_TID
    transaction_id: int = 0


class IndexHeader(NamedTuple):
    """What stands in the first page."""

    file_id: bytes
    covers: Anchor
    until: Anchor
    next_oid: int
    features_read_only: int
    height: int = 0
    """How many levels the tree has."""
    root: int = 0
    """The page at its top; 0: there is none, being no objects."""


def encode_header(header: IndexHeader) -> bytes:
    content = _HEADER.pack(
        MAGIC,
        VERSION,
        PAGE_SIZE,
        header.file_id,
        header.next_oid,
        header.features_read_only,
        header.height,
        header.root,
        *header.covers,
        *header.until,
    )
    content += bytes(PAGE_SIZE - _CHECK.size - len(content))
    return content + _CHECK.pack(zlib.crc32(content), 0)


def decode_header(content: bytes) -> IndexHeader | None:
    """The header; None when it is damaged, or of another version."""
    if len(content) < PAGE_SIZE:
        return None
    if content[-_CHECK.size :] != _CHECK.pack(zlib.crc32(content[: -_CHECK.size]), 0):
        return None
    magic, version, size, file_id, *numbers = _HEADER.unpack_from(content)
    if (magic, version, size) != (MAGIC, VERSION, PAGE_SIZE) or numbers[2] >= len(_POWERS):
        return None
    if (numbers[2] == 0) != (numbers[3] == 0):  # a root, and no levels, or the other way round
        return None
    return IndexHeader(
        file_id,
        covers=Anchor(*numbers[4:8]),
        until=Anchor(*numbers[8:12]),
        next_oid=numbers[0],
        features_read_only=numbers[1],
        height=numbers[2],
        root=numbers[3],
    )


class IndexFile(OpenFile):
    """One index file.  `find` and `items` may be called by any thread, also during an update."""

    def __init__(
        self, system: System, path: str, fd: int, header: IndexHeader | None = None
    ) -> None:
        """Raises IndexDamagedError and StorageError.

        header: of a file that is still empty; else it is read.
        """
        super().__init__(system, path, fd)
        self.identity = self.status().identity
        self.header = self._read_header() if header is None else header
        self._pages: dict[int, bytes] = {}
        """Some of them; those of level 0 also by ~ what their numbers have in common."""

    @classmethod
    def open(cls, system: System, path: str, *, writable: bool) -> Self:
        """Raises IndexDamagedError, StorageError and OSError."""
        return cls(system, path, system.open(path, writable=writable, append=False))

    @classmethod
    def create(cls, system: System, path: str, like: FileStatus | None, file_id: bytes) -> Self:
        """A new one, which covers nothing, and is empty until it is updated; OSError.

        like: as for `System.create`.
        """
        header = IndexHeader(file_id, Anchor(), Anchor(), next_oid=0, features_read_only=0)
        return cls(system, path, system.create(path, like, append=False), header)

    def _read_header(self) -> IndexHeader:
        for attempt in range(_ATTEMPTS):
            header = decode_header(self._read_doubtfully(0, PAGE_SIZE))
            if header is not None:
                return header
            self._wait(attempt)
        raise IndexDamagedError(f"{self.path}: the header of the index is damaged")

    def _read_doubtfully(self, offset: int, size: int) -> bytes:
        """As `read`; what cannot be read is damage."""
        try:
            return self.read(offset, size)
        except StorageError as error:
            raise IndexDamagedError(f"the index cannot be used: {error}") from error

    def _check_age(self) -> None:
        """Raises IndexDamagedError if an older copy was put into this file, while it is in use.

        After a page was read: what is copied first is the header.
        """
        start = self._read_doubtfully(0, _HEADER.size)
        if len(start) == _HEADER.size:
            covered = Anchor(*_HEADER.unpack(start)[8:12])
            if start[16:32] == self.header.file_id and covered >= self.header.covers:
                return
        raise IndexDamagedError(f"{self.path}: an older copy was put into the index")

    def _wait(self, attempt: int) -> None:
        if attempt + 1 < _ATTEMPTS:
            self.system.pause(_PAUSE_S)

    def _read_page(self, page: int, level: int) -> bytes:
        pages = self._pages
        content = pages.get(page)
        if content is not None:
            return content
        for attempt in range(_ATTEMPTS):
            content = self._read_doubtfully(page * PAGE_SIZE, PAGE_SIZE)
            if content[-_CHECK.size :] == self._check(page, level, memoryview(content)):
                break
            self._wait(attempt)
        else:
            raise IndexDamagedError(f"{self.path}: page {page} of the index is damaged")
        self._check_age()
        with contextlib.suppress(RuntimeError, StopIteration):  # another thread does the same
            while len(pages) >= _CACHED_PAGES_MAX:
                pages.pop(next(iter(pages)), None)
        pages[page] = content
        return content

    def _check(self, page: int, level: int, content: memoryview) -> bytes:
        """What a page ends with; its checksum holds at its place in the index of its log only."""
        start = zlib.crc32(page.to_bytes(8), zlib.crc32(self.header.file_id))
        numbers = content[: PAGE_SIZE - _CHECK.size]
        return _CHECK.pack(zlib.crc32(numbers, start), level)

    # Reading

    def find(self, number: int) -> int:
        """The offset of the slot of the oid with this number, or 0 when it covers no such object.

        Raises IndexDamagedError and StorageError.
        """
        pages = self._pages
        content = pages.get(~(number // FAN_OUT))
        if content is None:
            content = self._find_leaf(number)
            if content is None:
                return 0
            pages[~(number // FAN_OUT)] = content
        place = 8 * (number % FAN_OUT)
        found = int.from_bytes(content[place : place + 8])
        return self._checked(found) if found else 0

    def _find_leaf(self, number: int) -> bytes | None:
        """The page of level 0 that a number belongs to, if there is one."""
        header = self.header
        if number >= _POWERS[header.height] or not header.root:
            return None
        found = header.root
        for level in range(header.height - 1, 0, -1):
            content = self._read_page(found, level)
            place = 8 * (number // _POWERS[level] % FAN_OUT)
            found = int.from_bytes(content[place : place + 8])
            if not found:
                return None
        return self._read_page(found, 0)

    def _checked(self, slot: int) -> int:
        """A slot, which must be in the part of the log that the index may know of."""
        if slot >= self.header.until.end:
            self.renew()  # somebody else is just updating it
            if slot >= self.header.until.end:
                raise IndexDamagedError(f"{self.path}: an entry leads to nowhere")
        return slot

    def items(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """The numbers of oids from `start` on, ascending, and the offsets of their slots."""
        header = self.header
        if header.root:
            yield from self._items(header.root, header.height - 1, 0, start)

    def _items(self, page: int, level: int, first: int, start: int) -> Iterator[tuple[int, int]]:
        power = _POWERS[level]
        content = self._read_page(page, level)
        begin = max(0, (start - first) // power)
        for place in range(begin, FAN_OUT):
            found = int.from_bytes(content[8 * place : 8 * place + 8])
            if not found:
                continue
            number = first + place * power
            if level:
                yield from self._items(found, level - 1, number, start)
            else:
                yield number, self._checked(found)

    # Updating

    def renew(self) -> None:
        """Take note of what others have updated; IndexDamagedError, StorageError."""
        header = self._read_header()
        if header != self.header:
            self._pages = {}
            self.header = header

    def update(
        self,
        entries: Iterable[tuple[int, int]],
        covers: Anchor,
        *,
        next_oid: int,
        features_read_only: int,
        sync: bool = True,
    ) -> None:
        """Cover more of the log.  The caller holds the lock of this file.

        entries: numbers of oids, ascending, and slots, of what was written since it covered less.
        sync: whether the file is in use; else it is the caller who syncs it when it is made.
        Raises OSError, IndexDamagedError, StorageError.
        """
        self._pages = {}
        # First: slots that are newer than the header says would be taken for damage.
        until = max(self.header.until, covers)
        self._write_header(self.header._replace(until=until), sync=sync)
        entries = iter(entries)
        while part := list(itertools.islice(entries, _UPDATE_MAX)):
            self._make_room(part[-1][0])
            self.header = self.header._replace(
                root=self._update_page(self.header.root, self.header.height - 1, part)
            )
        if sync:
            self.sync()
        header = self.header._replace(
            covers=covers, next_oid=next_oid, features_read_only=features_read_only
        )
        self._write_header(header, sync=False)
        self._pages = {}  # a new one: a thread may just be putting an old page into that one

    def _make_room(self, number: int) -> None:
        header = self.header
        root, height = header.root, header.height
        while number >= _POWERS[height] or not height:
            if root:
                content = bytearray(PAGE_SIZE - _CHECK.size)
                _NUMBER.pack_into(content, 0, root)
                root = self._new_page()
                self._write_page(root, height, content)
            height += 1
        self.header = header._replace(root=root, height=height)

    def _update_page(self, page: int, level: int, entries: list[tuple[int, int]]) -> int:
        """Write the entries below a page, a new one if it is 0: the number of the page."""
        size = PAGE_SIZE - _CHECK.size
        before = self._read_page(page, level)[:size] if page else bytes(size)
        content = bytearray(before)
        if level:
            power = _POWERS[level]
            for key, group in itertools.groupby(entries, key=lambda entry: entry[0] // power):
                place = 8 * (key % FAN_OUT)
                child = int.from_bytes(content[place : place + 8])
                child = self._update_page(child, level - 1, list(group))
                _NUMBER.pack_into(content, place, child)
        else:
            for number, slot in entries:
                place = 8 * (number % FAN_OUT)
                if slot > int.from_bytes(content[place : place + 8]):
                    _NUMBER.pack_into(content, place, slot)
        if page and content == before:
            return page
        page = page or self._new_page()
        self._write_page(page, level, content)
        return page

    def _new_page(self) -> int:
        # By the size of the file: after an update that was not finished, pages lead further.
        return -(-self.status().size // PAGE_SIZE)

    def _write_page(self, page: int, level: int, content: bytes | bytearray) -> None:
        found = bytes(content)
        found += self._check(page, level, memoryview(found))
        self._write(found, page * PAGE_SIZE)
        self._pages.pop(page, None)

    def _write_header(self, header: IndexHeader, *, sync: bool) -> None:
        self._write(encode_header(header), 0)
        self.header = header
        if sync:
            self.sync()

    def _write(self, content: bytes, offset: int) -> None:
        written = 0
        while written < len(content):
            written += self.system.write(self._fd, content[written:], offset + written)
