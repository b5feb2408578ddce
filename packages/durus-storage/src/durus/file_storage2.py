"""`FileStorage2`: the storage of DFS20 files, the format of Durus before 3.8, which 4.x keeps.

`docs/classic-files.md` says what the format promises, and what not.  The offsets of all records are
in memory.
"""

import heapq
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Final

from durus import interfaces
from durus.classic import as_storage
from durus.classic_file import ReadAhead, append_durably, is_record_start
from durus.classic_file_storage import ClassicFileStorage
from durus.dfs20_format import DFS20, MAGIC, encode_block, read_index, write_base, write_index
from durus.error import CorruptionError, DurusKeyError, StorageError, format_oid
from durus.file import File
from durus.interfaces import ROOT_OID, Oid
from durus.record import split_oids, unpack_record
from durus.utils import int4_to_str, int8_to_str, read, str_to_int8

__all__ = ["FileStorage2", "open_dfs20"]

_NOT_THERE: Final = 2**64
_READ_AT_ONCE: Final = 4096
"""Most records are smaller, and then take one read."""


class FileStorage2(ClassicFileStorage):
    """A classic storage in a DFS20 file, or in a temporary file."""

    MAGIC = MAGIC
    _FORMAT = DFS20

    fp: File
    index: dict[bytes, int]
    """Where the newest record of each oid is."""
    _end: int
    """Where the next transaction will be."""

    def __init__(
        self,
        file: str | PathLike[str] | File | None = None,
        readonly: bool = False,
        repair: bool = False,
        *,
        create: bool = True,
    ) -> None:
        """Open a file, and make it if it is not there: see `ClassicFileStorage`.

        file: a path, or None for a temporary file.
        """
        super().__init__(file, readonly, repair, create=create)
        self.oid = max(map(str_to_int8, self.index), default=-1)
        """The number of the last oid that was given."""

    def _read_file(self, file: File, repair: bool) -> None:
        self.fp = file
        reader = ReadAhead(file)
        self.index, _, self._end = read_index(reader)
        for transaction in DFS20.read_transactions(reader, self._end, repair=repair):
            self.index.update(transaction.offsets)
            self._end = transaction.position

    def _get_file(self) -> File:
        return self.fp

    def _has(self, oid: bytes) -> bool:
        return oid in self.index

    def load(self, oid: bytes) -> bytes:
        """The newest record of this oid; DurusKeyError when there is none."""
        self._check_open()
        offset = self.index.get(oid)
        if offset is None:
            raise DurusKeyError(oid)
        self.fp.seek(offset)
        start = self.fp.read(_READ_AT_ONCE)
        size = int.from_bytes(start[:4])
        if offset + 4 + size > self._end or not is_record_start(start[4:16], size):
            reason = "there is no whole record here"
            raise CorruptionError(self.fp.get_name(), offset, reason, oid)
        if start[4:12] != oid:
            reason = f"this is the record of oid {format_oid(start[4:12])}"
            raise CorruptionError(self.fp.get_name(), offset, reason, oid)
        record = start[4 : 4 + size]
        return record + read(self.fp, size - len(record))

    def new_oid(self) -> Oid:
        """An oid that is not in use."""
        self._check_open()
        self.oid += 1
        return Oid(int8_to_str(self.oid))

    def _append(self, records: dict[bytes, bytes]) -> None:
        index: dict[bytes, int] = {}
        parts: list[bytes] = []
        position = self._end
        for oid, record in records.items():
            index[oid] = position
            parts.append(encode_block(record))
            position += len(parts[-1])
        parts.append(int4_to_str(0))
        # Before they are there, as an oid that is in use must not be given again.
        self.oid = max(self.oid, *map(str_to_int8, index))
        append_durably(self.fp, self._end, b"".join(parts))
        # Between the sync and the end of the update there is no place for a KeyboardInterrupt.
        self._end = position + 4
        self.index.update(index)

    def gen_oid_record(
        self, start_oid: bytes | None = None, batch_size: int = 100
    ) -> Iterator[tuple[bytes, bytes]]:
        """The oids and records that can be reached from `start_oid`, or all that there are."""
        if start_oid is not None:
            return super().gen_oid_record(start_oid, batch_size)
        return ((oid, self.load(oid)) for oid in list(self.index))

    def _gen_reachable(self, written: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
        """What can be reached and is not `written`, or was committed since the pack began.

        By their places in this file, so that the new one is much the same: that is good for
        copying differences.
        """
        todo = [(0, bytes(ROOT_OID))]
        while self.pack_extra or todo:
            if self.pack_extra:
                oid = self.pack_extra.pop()
                if oid not in self.index:
                    continue  # the commit failed
            else:
                oid = heapq.heappop(todo)[1]
                if oid in written:
                    continue
            record = self.load(oid)
            for ref in split_oids(unpack_record(record)[2]):
                if ref not in written:
                    heapq.heappush(todo, (self.index.get(ref, _NOT_THERE), bytes(ref)))
            yield oid, record

    def _generate_pack(self, file: File) -> Iterator[object]:
        index: dict[bytes, int] = {}
        return self._replace_records(file, self._gen_reachable(index), index)

    def _replace_records(
        self, file: File, records: Iterable[tuple[bytes, bytes]], index: dict[bytes, int]
    ) -> Iterator[object]:
        """Write these records to an empty file, and use that from now on."""
        yield from write_base(file, records, index)
        write_index(file, index.items())
        end = len(file)
        removed = self.index.keys() - index.keys()
        if self.fp.is_temporary():
            self._filename = file.get_name()
        else:
            self._swap(file)
        replaced, self.fp = self.fp, file
        self.index, self._end = index, end
        self.invalid |= removed
        replaced.close()

    def create_from_records(self, oid_records: Iterable[tuple[bytes, bytes]]) -> None:
        """Replace everything by these oids and records."""
        self._check_writable()
        if self.pending_records or self.pack_extra is not None:
            raise StorageError(f"{self}: a commit or a pack is under way")
        index: dict[bytes, int] = {}

        def write(file: File) -> Iterator[object]:
            return self._replace_records(file, oid_records, index)

        for _ in write(File()) if self.fp.is_temporary() else self._replace_file(write):
            pass
        self.oid = max(self.oid, *map(str_to_int8, index))


def open_dfs20(
    path: str, *, readonly: bool = False, create: bool = True, repair: bool = False
) -> interfaces.Storage:
    """Open a DFS20 file for connections: a `durus.file_format.FileOpener`."""
    return as_storage(FileStorage2(path, readonly, repair, create=create))
