"""What SHELF-1 and DFS20 have in common: a packed part, and transactions after it.

`shelf_format` and `dfs20_format` each have a `ClassicFormat`, which says how they differ; storages,
conversion and verify read files by it.  There are no checksums.  Invariants: *a transaction that
has others after it is never cut off*, whatever is wrong with it; what another process is just
writing is no damage.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from durus.classic_file import DamagedEndError, ReadAhead, cut_off, name_of, open_classic_file
from durus.error import CorruptionError, NotADatabaseError
from durus.file import File
from durus.logger import log
from durus.utils import RandomAccessFile

__all__ = ["ClassicFormat", "Damage", "ParsedTransaction"]


class ParsedTransaction(NamedTuple):
    """What was found where a transaction should be."""

    offsets: dict[bytes, int]
    """Of the records that are whole, by oid; the last one of each oid."""
    position: int
    """The end of the transaction; if it is not whole, the start of what is no record."""
    is_whole: bool


class Damage(NamedTuple):
    """Where there is no whole transaction."""

    start: int
    later: int | None
    """The offset of a whole transaction after it, if there is one."""
    is_growing: bool
    """Whether another process may be just writing it."""
    found: ParsedTransaction


@dataclass(frozen=True, slots=True)
class ClassicFormat:
    """One of the two formats."""

    name: str
    magic: bytes
    """What a file begins with."""
    empty: bytes
    """A file without objects."""
    parse: Callable[[ReadAhead, int], ParsedTransaction]
    """Reads the transaction at an offset."""
    find_damage: Callable[[ReadAhead, int, bool], tuple[int, int | None]]
    """Where the transaction begins that is not whole at an offset, and where a later whole one
    does; True if the one before is empty."""
    locate_record: Callable[[ReadAhead, int], tuple[int, int]]
    """Where the record begins that `ParsedTransaction` has this offset of, and its size."""

    def is_in(self, file: RandomAccessFile) -> bool:
        """Whether the file begins so."""
        file.seek(0)
        return file.read(len(self.magic)) == self.magic

    def check_is_in(self, file: RandomAccessFile) -> None:
        """NotADatabaseError if the file begins otherwise."""
        if not self.is_in(file):
            file.seek(0)
            reason = f"this is no {self.name} file" if file.read(1) else "the file is empty"
            raise NotADatabaseError(name_of(file), reason)

    @contextlib.contextmanager
    def open_to_read(self, path: str) -> Iterator[ReadAhead]:
        """A file of this format, without its lock; StorageOpenError."""
        with contextlib.closing(open_classic_file(path, b"", readonly=True)) as file:
            self.check_is_in(file)
            yield ReadAhead(file)

    def walk(self, reader: ReadAhead, position: int) -> Iterator[ParsedTransaction | Damage]:
        """Every whole transaction from `position` on, and what is between them."""
        empty = None
        while position < reader.size:
            parsed, is_growing = self._parse(reader, position)
            if parsed.is_whole:
                if empty is not None:
                    yield empty
                empty = None if parsed.offsets else parsed
                if parsed.offsets:
                    yield parsed
                position = parsed.position
            elif position < reader.size:  # else its writer has just cut it off
                start, later = self.find_damage(reader, position, empty is not None)
                empty = None
                yield Damage(start, later, is_growing, parsed)
                position = reader.size if later is None else later
        if empty is not None:
            yield empty

    def _parse(self, reader: ReadAhead, position: int) -> tuple[ParsedTransaction, bool]:
        """What is at `position`, and whether it may be growing."""
        parsed = self.parse(reader, position)
        file = reader.file
        if parsed.is_whole or not isinstance(file, File) or file.has_lock:
            return parsed, False
        with file.keeping_writers_away() as is_quiet:
            if is_quiet:  # but it may have been finished since it was read
                reader.look_again()
                parsed = self.parse(reader, position)
        return parsed, not is_quiet

    def read_transactions(
        self, reader: ReadAhead, position: int, *, repair: bool = False
    ) -> Iterator[ParsedTransaction]:
        """Every whole transaction from `position` on.

        repair: cut off a last one that is not whole, in a file that is open for writing.

        One that another process may be just writing is left out.  Raises DamagedEndError for
        another last one that is not whole, and CorruptionError if a whole one follows.
        """
        for found in self.walk(reader, position):
            if isinstance(found, Damage):
                _settle(reader.file, found, repair)
                return
            yield found


def _settle(file: RandomAccessFile, damage: Damage, repair: bool) -> None:
    name, start = name_of(file), damage.start
    if damage.later is not None:
        raise CorruptionError(
            name,
            start,
            f"this is no whole transaction, but at offset {damage.later} is one.  Nothing was cut "
            "off, since that would lose it; restore a backup, or see what verify reports",
        )
    if damage.is_growing:
        return
    file.seek(0, 2)
    size = file.tell() - start
    if not repair or not isinstance(file, File):
        raise DamagedEndError(
            name,
            start,
            f"the last {size} bytes are no whole transaction, as when a process was killed while "
            "it was writing; opening the file for writing with repair=True cuts them off",
        )
    cut_off(file, start)
    log(
        logging.WARNING,
        "%s: repaired: the last %d bytes, from offset %d on, were no whole transaction and have "
        "been cut off",
        name,
        size,
        start,
    )
