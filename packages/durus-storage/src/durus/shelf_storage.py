"""`ShelfStorage`: the storage of SHELF-1 files, which Durus 4.x made from 3.8 on.

In 4.3 this class is `durus.file_storage.FileStorage`; `durus.file_storage` of today opens such
files with it.  `docs/classic-files.md` says what the format promises, and what not.
"""

import heapq
from collections.abc import Iterator
from itertools import islice
from os import PathLike
from typing import Final

from durus import interfaces
from durus.classic import as_storage
from durus.classic_file_storage import ClassicFileStorage
from durus.error import DurusKeyError
from durus.file import File
from durus.interfaces import ROOT_OID, Oid
from durus.record import split_oids, unpack_record
from durus.shelf import Shelf
from durus.shelf_format import SHELF, is_record_item
from durus.utils import IntSet, str_to_int8

__all__ = ["ShelfStorage", "open_shelf"]

_STORED_AT_ONCE: Final = 1000


class ShelfStorage(ClassicFileStorage):
    """A classic storage in a SHELF-1 file, or in a temporary file."""

    _FORMAT = SHELF

    def __init__(
        self,
        filename: str | PathLike[str] | File | None = None,
        readonly: bool = False,
        repair: bool = False,
        *,
        create: bool = True,
    ) -> None:
        """Open a file, and make it if it is not there: see `ClassicFileStorage`.

        filename: a path, or None for a temporary file.
        """
        super().__init__(filename, readonly, repair, create=create)
        self.allocated_unused_oids: set[bytes] = set()
        """The oids that `new_oid` has given, and that are not stored yet."""

    def _read_file(self, file: File, repair: bool) -> None:
        self.shelf = Shelf(file, readonly=self.readonly, repair=repair, check=is_record_item)

    def _get_file(self) -> File:
        return self.shelf.get_file()

    def _has(self, oid: bytes) -> bool:
        return oid in self.shelf

    def load(self, oid: bytes) -> bytes:
        """The newest record of this oid; DurusKeyError when there is none."""
        self._check_open()
        record = self.shelf.get_value(oid)
        if record is None:
            raise DurusKeyError(oid)
        return record

    def new_oid(self) -> Oid:
        """An oid that is not in use; packs have removed some, and those come first."""
        self._check_open()
        while True:
            oid = self.shelf.next_name()
            # Somebody may still hold objects that a pack has removed, until told by sync().
            if oid not in self.allocated_unused_oids and oid not in self.invalid:
                self.allocated_unused_oids.add(oid)
                return oid

    def store(self, oid: bytes, record: bytes) -> None:
        """Add a record to the commit.

        ValueError when it is no record of this oid, or `new_oid` has not given the oid: the
        commit is then forgotten.
        """
        try:
            if oid not in self.allocated_unused_oids and oid != ROOT_OID and not self._has(oid):
                raise ValueError(f"oid {oid!r} is a surprise: it was not taken from new_oid()")
            super().store(oid, record)
        except ValueError:
            self.pending_records = {}
            raise

    def _append(self, records: dict[bytes, bytes]) -> None:
        self.shelf.store(records.items())
        self.allocated_unused_oids -= records.keys()

    def gen_oid_record(
        self, start_oid: bytes | None = None, batch_size: int = 100, seen: IntSet | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """The oids and records that can be reached from `start_oid`, or all that there are.

        seen: the numbers of oids that are left out; what is yielded is added.
        """
        self._check_open()
        if start_oid is None:
            yield from self.shelf.items()
            return
        seen = IntSet() if seen is None else seen
        todo = [start_oid]
        while todo:
            oid = heapq.heappop(todo)
            if str_to_int8(oid) in seen:
                continue
            record = self.load(oid)
            # Not before: it takes a bit for each number up to the largest, which may not exist.
            seen.add(str_to_int8(oid))
            for ref in split_oids(unpack_record(record)[2]):
                if str_to_int8(ref) not in seen:
                    heapq.heappush(todo, ref)
            yield oid, record

    def _generate_pack(self, file: File) -> Iterator[object]:
        assert self.pack_extra is not None
        seen = IntSet()
        yield from Shelf.generate_shelf(file, self.gen_oid_record(ROOT_OID, seen=seen))
        file.fsync()  # most of the work, while others are not kept waiting
        shelf = Shelf(file, check=is_record_item)
        removed: set[bytes] = set()
        for oid in self.shelf:
            if oid not in shelf:
                removed.add(oid)
            yield oid
        extra = [oid for oid in self.pack_extra if self._has(oid)]
        for oid in extra:
            seen.discard(str_to_int8(oid))
        later = (item for oid in extra for item in self.gen_oid_record(oid, seen=seen))
        while batch := list(islice(later, _STORED_AT_ONCE)):
            shelf.store(batch)
        removed = {oid for oid in removed if oid not in shelf}
        self._swap(file)
        replaced, self.shelf = self.shelf, shelf
        self.invalid |= removed
        replaced.close()


def open_shelf(
    path: str, *, readonly: bool = False, create: bool = True, repair: bool = False
) -> interfaces.Storage:
    """Open a SHELF-1 file for connections: a `durus.file_format.FileOpener`."""
    return as_storage(ShelfStorage(path, readonly, repair, create=create))
