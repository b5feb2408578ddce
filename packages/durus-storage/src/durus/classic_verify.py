"""Verify: read a whole SHELF-1 or DFS20 file, and report everything that is not as it must be.

There are no checksums, but compressed states have one of their own.  Nothing is imported, no state
is loaded, and nothing ends the walk but damage of what everything else hangs on: after damage it
goes on at the next whole transaction.
"""

import pickle
import pickletools
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from durus import dfs20_format, shelf_format
from durus.class_pickle import name_in_class_pickle
from durus.classic_file import ReadAhead
from durus.classic_format import ClassicFormat, Damage
from durus.dfs20_format import DFS20
from durus.error import CorruptionError, ObjectError, format_oid
from durus.file_format import Finding
from durus.interfaces import Oid
from durus.record import split_oids, split_record, unpack_record
from durus.shelf import OffsetMap
from durus.shelf_format import SHELF

__all__ = ["verify_dfs20", "verify_shelf"]

_DECOMPRESSED_AT_ONCE: Final = 1 << 20


def verify_shelf(path: str) -> Iterator[Finding]:
    """Yield what is wrong with a SHELF-1 file; nothing if it is sound.  It is only read.

    Raises StorageOpenError.
    """
    with SHELF.open_to_read(path) as reader:
        yield from _ShelfWalk(SHELF, reader).run()


def verify_dfs20(path: str) -> Iterator[Finding]:
    """Yield what is wrong with a DFS20 file; nothing if it is sound.  It is only read.

    Raises StorageOpenError.
    """
    with DFS20.open_to_read(path) as reader:
        yield from _Dfs20Walk(DFS20, reader).run()


@dataclass(slots=True)
class _Walk(ABC):
    """Through the transactions, whatever their format."""

    form: ClassicFormat
    reader: ReadAhead
    newest: dict[bytes, int] = field(default_factory=dict)
    """Where the newest record of each oid is."""
    is_damaged: bool = False

    @abstractmethod
    def run(self) -> Iterator[Finding]: ...

    def load(self, offset: int) -> tuple[bytes, bytes]:
        """The pickles and the references of the record at `offset`."""
        return unpack_record(self.reader.read(*self.form.locate_record(self.reader, offset)))[1:]

    def damage(self, offset: int, oid: bytes | None, problem: str) -> Finding:
        self.is_damaged = True
        return Finding(offset, None, None if oid is None else Oid(oid), problem)

    def check_transactions(self, position: int) -> Iterator[Finding]:
        for found in self.form.walk(self.reader, position):
            if not isinstance(found, Damage):
                yield from self.check_records(found.offsets)
            elif found.later is not None:
                _, bad, _ = whole = found.found
                problem = f"no whole transaction is here; at offset {bad} is no whole record"
                yield self.damage(found.start, None, problem)
                before = {oid: at for oid, at in whole.offsets.items() if at < found.later}
                yield from self.check_records(before)
            elif not found.is_growing:
                size = self.reader.size - found.start
                problem = (
                    f"the last {size} bytes are no whole transaction; repair=True cuts them off"
                )
                yield Finding(found.start, None, None, problem)

    def check_records(self, offsets: dict[bytes, int]) -> Iterator[Finding]:
        """Check records that were found to be whole, and are newer than those before."""
        self.newest.update(offsets)
        for oid, offset in offsets.items():
            problem = _find_problem(self.load(offset)[0])
            if problem is not None:
                yield Finding(offset, None, Oid(oid), problem)

    def check_refs(self) -> Iterator[Finding]:
        """Does every newest record refer to objects that are there?"""
        if self.is_damaged:  # else much would seem to be missing
            return
        for oid, offset in sorted(self.newest.items(), key=itemgetter(1)):
            for ref in split_oids(self.load(offset)[1]):
                if ref not in self.newest:
                    problem = f"it refers to oid {format_oid(ref)}, which does not exist"
                    yield Finding(offset, None, Oid(oid), problem)


class _ShelfWalk(_Walk):
    def run(self) -> Iterator[Finding]:
        try:
            base_end = shelf_format.locate_base(self.reader)
        except CorruptionError as error:
            yield self.damage(error.offset or 0, None, error.reason)
            return
        yield from self._check_base(base_end)
        position = shelf_format.locate_transactions(self.reader, base_end)
        yield from self.check_transactions(position)
        yield from self.check_refs()

    def _check_base(self, base_end: int) -> Iterator[Finding]:
        """Do the offset map and the base agree?"""
        self.reader.file.seek(base_end)
        offset_map = OffsetMap(self.reader.file)
        offsets = {number.to_bytes(8): offset for number, offset in offset_map.iteritems()}
        try:
            holes = sum(1 for _ in offset_map.gen_holes())
            if holes + len(offsets) != offset_map.get_array_size():
                yield self.damage(base_end, None, "not all holes of the offset map are linked")
        except CorruptionError as error:
            yield self.damage(base_end, None, error.reason)
        end = shelf_format.BASE_START
        check = shelf_format.is_record_item
        for oid, offset in sorted(offsets.items(), key=itemgetter(1)):
            if offset != end:
                yield self.damage(end, None, f"no record ends just before offset {offset}")
            items = shelf_format.walk_items(self.reader, offset, base_end, check)
            found, _, end = next(items, (b"", 0, offset))
            if found == oid:
                yield from self.check_records({oid: offset})
            else:
                whose = f"the record of oid {format_oid(found)}" if found else "no whole record"
                yield self.damage(offset, oid, f"the offset map leads here, where is {whose}")
        if end != base_end:
            yield self.damage(end, None, "the offset map leads to no record from here on")


class _Dfs20Walk(_Walk):
    def run(self) -> Iterator[Finding]:
        try:
            index = dfs20_format.read_index(self.reader)
        except CorruptionError as error:
            yield self.damage(error.offset or 0, None, error.reason)
            return
        yield from self._check_base(index)
        yield from self.check_transactions(index.end)
        yield from self.check_refs()

    def _check_base(self, index: dfs20_format.Dfs20Index) -> Iterator[Finding]:
        """Do the index and the transactions before it agree?"""
        missing = dict(index.offsets)
        starts = sorted(missing.values())
        position = dfs20_format.BASE_START
        while position < index.start:
            for oid, offset, end in dfs20_format.walk_records(self.reader, position):
                if end > index.start:
                    break
                position = end
                if oid is not None and missing.get(oid) == offset:
                    del missing[oid]
                    yield from self.check_records({oid: offset})
            if position < index.start:
                yield self.damage(position, None, "there is no whole record here")
                later = bisect_right(starts, position)
                position = starts[later] if later < len(starts) else index.start
        for oid, offset in missing.items():
            yield self.damage(offset, oid, "the index leads here, but the record is not here")


def _find_problem(data: bytes) -> str | None:
    """What is wrong with the two pickles of a classic record."""
    class_pickle = split_record(data).class_pickle
    try:
        name_in_class_pickle(class_pickle)
    except ObjectError as error:
        return f"the class cannot be read: {error}"
    state = data[len(class_pickle) :]
    try:
        if state[:1] == b"x":
            _check_compressed(state)
        else:
            _check_pickle(state)
    except Exception as error:  # of which pickletools has many kinds
        return f"the state is damaged: {error}"
    return None


def _check_compressed(state: bytes) -> None:
    """Does it have the right checksum, and nothing after it?"""
    decompressor = zlib.decompressobj()
    rest = state
    last = b""
    while not decompressor.eof:
        piece = decompressor.decompress(rest, _DECOMPRESSED_AT_ONCE)
        rest = decompressor.unconsumed_tail
        if not piece and not decompressor.eof:
            raise ValueError("it is cut off")
        last = piece[-1:] or last
    if decompressor.unused_data or last != pickle.STOP:
        raise ValueError("it is no pickle")


def _check_pickle(state: bytes) -> None:
    """Is it a sequence of opcodes that ends with the first STOP?"""
    *_, (_, _, position) = pickletools.genops(state)
    if position is None or position + 1 != len(state):
        raise ValueError("bytes follow the pickle")
