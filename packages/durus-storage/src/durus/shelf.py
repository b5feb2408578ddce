"""`Shelf`: a SHELF-1 file, a mapping of names (oids, 8 bytes) to values (records).

    prefix | base: one transaction | offset map | transaction | transaction | ...

`docs/classic-files.md` draws it byte by byte.  The offset map leads to the values in the base, and
is read where it is, so opening takes time and memory for the transactions after it alone.
`ShelfStorage` builds on this module.  The invariant: *once the map is made, the file only grows*.
"""

from collections.abc import Iterable, Iterator
from itertools import count
from os import PathLike
from typing import Final, cast

from durus.classic_file import ReadAhead, append_durably, name_of
from durus.error import CorruptionError, format_oid
from durus.file import File
from durus.interfaces import Oid
from durus.shelf_format import (
    BASE_START,
    EMPTY_SHELF,
    ITEM_HEAD_SIZE,
    PREFIX,
    ItemCheck,
    encode_item,
    is_item,
    locate_base,
    locate_transactions,
    shelf_format_for,
    walk_items,
)
from durus.utils import IntArray, RandomAccessFile, as_bytes, int8_to_str, read, str_to_int8

__all__ = ["OffsetMap", "Shelf", "read_transaction_offsets"]

_READ_AT_ONCE: Final = 4096
"""Most records are smaller, and then take one read."""


class OffsetMap:
    """Offsets by number (an oid), kept in the file; `docs/classic-files.md` has its form.

    Numbers without an offset are holes, and are strung together, so that they can be handed out.
    """

    def __init__(self, file: RandomAccessFile, max_oid: int = -2, max_offset: int = 0) -> None:
        """The map at the file's position; it is made first, for these maxima, if the file ends."""
        self.file = file
        self.start = file.tell()
        file.seek(0, 2)
        if file.tell() == self.start:
            for _ in self.generate(file, max_oid, max_offset):
                pass
        file.seek(self.start)
        self.int_array = IntArray(file)

    @staticmethod
    def generate(file: RandomAccessFile, max_oid: int = -2, max_offset: int = 0) -> Iterator[int]:
        """Make an empty one at the end of the file, in steps."""
        start = file.tell()
        if max_offset >= start:
            raise AssertionError(f"the map, at {start}, stands before offset {max_offset}")
        yield from IntArray.generate(file, max_oid + 2, start + max_oid + 2)
        file.seek(start)

    def get_start(self) -> int:
        """Where it begins; all offsets in it are less than that."""
        return self.start

    def get_array_size(self) -> int:
        """How many numbers it has room for."""
        return len(self.int_array)

    def get(self, j: int, default: int | None = None) -> int | None:
        """The offset of number j, or `default`."""
        offset: int | None = self.int_array.get(j)
        return default if offset is None or offset >= self.start else offset

    def __getitem__(self, j: int) -> int:
        offset = self.get(j)
        if offset is None:
            raise IndexError(j)
        return offset

    def __setitem__(self, j: int, value: int) -> None:
        """Set an offset that is not set yet, before the holes are strung together."""
        if self.get(j) is not None:
            raise AssertionError(f"number {j} has an offset already")
        self.int_array[j] = value

    def __iter__(self) -> Iterator[int]:
        return (j for j, _ in self.iteritems())

    def iteritems(self) -> Iterator[tuple[int, int]]:
        """The numbers that have an offset, and it."""
        return ((j, value) for j, value in enumerate(self.int_array) if value < self.start)

    items = iteritems

    def gen_stitch(self) -> Iterator[int]:
        """String the holes together, in steps.

        Each holds the number of the one before it, plus `start` to tell it from an offset; the
        first holds that of the last, which is the last number that there is.
        """
        previous = len(self.int_array) - 1
        for j, value in enumerate(self.int_array):
            if value >= self.start:
                self.int_array[j] = previous + self.start
                previous = j
            yield j

    def gen_holes(self) -> Iterator[int]:
        """The holes, the last one but one first, and the last one last."""
        last = j = len(self.int_array) - 1
        while last >= 0:
            previous = self.int_array[j] - self.start
            if not (0 <= previous < j or previous == last):
                raise CorruptionError(
                    name_of(self.file), self.start, f"number {j} leads to hole {previous}"
                )
            yield previous
            if previous == last:
                return
            j = previous


class Shelf:
    """A SHELF-1 file as a mapping of names to values, and to where they are."""

    prefix = PREFIX

    def __init__(
        self,
        file: File | RandomAccessFile | str | PathLike[str] | None = None,
        items: Iterable[tuple[str | bytes, str | bytes]] | None = None,
        repair: bool = False,
        readonly: bool = False,
        *,
        check: ItemCheck = is_item,
    ) -> None:
        """Open a shelf, or make one in a file that is empty.

        file: a path, or None for a temporary file.
        items: names and values for a new one.
        repair: cut off a last transaction that is not whole.
        check: what all items must be like, besides whole.

        Raises NotADatabaseError, CorruptionError (DamagedEndError, if `repair` would help) and
        OSError.
        """
        opened = None
        if file is None or isinstance(file, str | PathLike):
            file = opened = File(file, readonly=readonly)
        self.file = cast(File, file)  # or, to be read only, something like it
        self._check = check
        form = shelf_format_for(check)
        self.memory_index: dict[bytes, int] = {}
        """Where the items are that came after the map."""
        self.unused_name_generator: Iterator[Oid] | None = None
        try:
            if not readonly:
                self.file.obtain_lock()
                self._make_if_empty(items)
            form.check_is_in(self.file)
            reader = ReadAhead(self.file)
            base_end = locate_base(reader)
            self.file.seek(base_end)
            self.offset_map = OffsetMap(self.file)
            self.end = locate_transactions(reader, base_end)
            """Where the next transaction will be."""
            repair = repair and not readonly
            for transaction in form.read_transactions(reader, self.end, repair=repair):
                self.memory_index.update(transaction.offsets)
                self.end = transaction.position
        except BaseException:
            if opened is not None:
                opened.close()
            raise

    def _make_if_empty(self, items: Iterable[tuple[str | bytes, str | bytes]] | None) -> None:
        self.file.seek(0, 2)
        if not self.file.tell():
            for _ in self.generate_shelf(self.file, items or []):
                pass
            self.file.fsync()
        elif items is not None:
            raise AssertionError(f"{name_of(self.file)} is not empty, and takes no items")

    @classmethod
    def has_format(cls, file: RandomAccessFile) -> bool:
        """Whether the file begins as a shelf does."""
        file.seek(0)
        return file.read(len(cls.prefix)) == cls.prefix

    @classmethod
    def generate_shelf(
        cls, file: RandomAccessFile, items: Iterable[tuple[str | bytes, str | bytes]]
    ) -> Iterator[int]:
        """Write a new shelf into an empty file, in steps; each name may come once.

        The items are read once, and are not kept in memory.
        """
        file.seek(0, 2)
        if file.tell():
            raise ValueError(f"{name_of(file)} is not empty: it has no room for a new shelf")
        if not items:
            file.write(EMPTY_SHELF)
            return
        file.write(cls.prefix + bytes(8))
        position, max_number, max_offset = BASE_START, 0, 0
        for step, (name, value) in enumerate(items):
            item = encode_item(as_bytes(name), as_bytes(value))
            file.write(item)
            max_number = max(max_number, str_to_int8(as_bytes(name)))
            max_offset = position
            position += len(item)
            yield step
        end = position
        file.seek(len(cls.prefix))
        file.write(int8_to_str(end - BASE_START))
        file.seek(end)
        yield from OffsetMap.generate(file, max_number, max_offset)
        file.seek(end)
        offset_map = OffsetMap(file)
        for name, offset, _ in walk_items(ReadAhead(file), BASE_START, end):
            offset_map[str_to_int8(name)] = offset
            yield offset
        yield from offset_map.gen_stitch()

    def next_name(self) -> Oid:
        """A name that is not in use and was not returned before: a hole first, then new ones."""
        if self.unused_name_generator is None:
            self.unused_name_generator = self._generate_unused_names()
        for name in self.unused_name_generator:
            return name
        start = self.offset_map.get_start()
        reason = (
            "the holes of the offset map could not be read to the end, and no new name is given"
        )
        raise CorruptionError(name_of(self.file), start, reason)

    def _generate_unused_names(self) -> Iterator[Oid]:
        for numbers in (self.offset_map.gen_holes(), count(self.offset_map.get_array_size())):
            for number in numbers:
                if (name := Oid(int8_to_str(number))) not in self.memory_index:
                    yield name

    def store(
        self, name_value_sequence: Iterable[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, int | None, int]]:
        """Append a transaction that gives these names these values; durable on return.

        Returns name, old offset (None if the name is new) and new offset of each.  Raises
        StorageError when nothing was stored, and CommitOutcomeUnknownError.
        """
        parts = [b""]
        index: dict[bytes, int] = {}
        positions: list[tuple[bytes, int | None, int]] = []
        position = self.end + 8
        for name, value in name_value_sequence:
            parts.append(encode_item(name, value))
            positions.append((name, self.get_position(name), position))
            index[name] = position
            position += len(parts[-1])
        parts[0] = int8_to_str(position - self.end - 8)
        append_durably(self.file, self.end, b"".join(parts))
        # Between the sync and the end of the update there is no place for a KeyboardInterrupt.
        self.end = position
        self.memory_index.update(index)
        return positions

    def get_position(self, name: bytes) -> int | None:
        """Where the item of this name is; None when there is none."""
        if len(name) != 8:
            raise ValueError(f"a name has 8 bytes, but {name!r} has {len(name)}")
        position = self.memory_index.get(name)
        return self.offset_map.get(str_to_int8(name)) if position is None else position

    def get_item_at_position(self, position: int) -> tuple[bytes, bytes]:
        """Name and value; CorruptionError when there is no whole item at this offset."""
        self.file.seek(position)
        start = self.file.read(_READ_AT_ONCE)
        size = int.from_bytes(start[:8])
        if position + 8 + size > self.end or not self._check(start[8:ITEM_HEAD_SIZE], size):
            raise CorruptionError(name_of(self.file), position, "there is no whole record here")
        value = start[16 : 8 + size]
        return start[8:16], value + read(self.file, size - 8 - len(value))

    def get_value(self, name: bytes) -> bytes | None:
        """The value of this name; None when there is none."""
        position = self.get_position(name)
        if position is None:
            return None
        found, value = self.get_item_at_position(position)
        if found != name:
            reason = f"this is the record of oid {format_oid(found)}"
            raise CorruptionError(name_of(self.file), position, reason, name)
        return value

    def iterindex(self) -> Iterator[tuple[bytes, int]]:
        """All names, and where their items are."""
        for number, position in self.offset_map.iteritems():
            name = int8_to_str(number)
            if name not in self.memory_index:
                yield name, position
        yield from list(self.memory_index.items())

    def __iter__(self) -> Iterator[bytes]:
        return (name for name, _ in self.iterindex())

    def iteritems(self) -> Iterator[tuple[bytes, bytes]]:
        """All names and values."""
        return (self.get_item_at_position(position) for _, position in self.iterindex())

    items = iteritems

    def __contains__(self, name: bytes) -> bool:
        return self.get_position(name) is not None

    def get_offset_map(self) -> OffsetMap:
        return self.offset_map

    def get_file(self) -> File:
        return self.file

    def close(self) -> None:
        self.file.close()


def read_transaction_offsets(
    file: RandomAccessFile, repair: bool = False
) -> dict[bytes, int] | None:
    """{name: offset} of the transaction at the file's position, which goes to its end.

    None when the file ends here.  If it ends with something that is no whole transaction: with
    `repair` that is cut off, else DamagedEndError; CorruptionError if a whole one follows.
    """
    start = file.tell()
    reader = ReadAhead(file)
    for found in shelf_format_for(is_item).read_transactions(reader, start, repair=repair):
        file.seek(found.position)
        return found.offsets
    return None
