"""What a pack keeps of a log: the objects that can be reached from what is not forgotten.

The *horizon* is the newest transaction whose past is forgotten.  Kept are all later transactions as
they are, and of each object that they, or the root at the horizon, lead to the revision that was
the newest at the horizon.  Invariants: what is missing in the log stays missing, and everything
else that a kept record refers to is kept; memory holds 8 bytes for each object that is kept.

Checksums are left to who copies the records: all that are looked at here are copied.
"""

from collections.abc import Callable, Iterable
from typing import Final

from durus.error import CorruptionError
from durus.index_file import IndexDamagedError
from durus.interfaces import Oid
from durus.log import Log
from durus.log_format import DIRECTORY_ENTRY_SIZE
from durus.log_index import LogIndex
from durus.log_record import SLOT_HEAD_SIZE, peek_record
from durus.oid_bitmap import OidBitmap

__all__ = ["Kept", "RefsReader", "find_kept", "find_slot_before"]

_WINDOW_SIZE: Final = 1 << 14
_GUESSED_SIZE: Final = 256
"""Most records are smaller."""
_STACK_MAX: Final = 10_000
_REPORT_INTERVAL: Final = 10_000


class RefsReader:
    """Reads what records of a log refer to: those of many records, near each other mostly."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._start = 0
        self._window = b""

    def read(self, slot: int, number: int) -> tuple[int, tuple[int, ...]]:
        """The size of the record in a slot, and the numbers of the oids that it refers to.

        number: that of its oid.
        Raises CorruptionError, and UnsupportedFormatError for what newer releases store.
        """
        offset = slot + SLOT_HEAD_SIZE
        start = offset - self._start
        if not 0 <= start <= len(self._window) - _GUESSED_SIZE:
            start = offset % _WINDOW_SIZE
            self._start = offset - start
            self._window = self._log.file.read(self._start, _WINDOW_SIZE + _GUESSED_SIZE)
        found = peek_record(self._window, start)
        if found is None or found[0] != number:
            oid = Oid(number.to_bytes(8))
            found = peek_record(self._log.copy_record(slot, oid), 0)  # it may be long, or damaged
            assert found is not None
        return found[1:]


class Kept:
    """The objects that a pack keeps, and where their records are."""

    def __init__(self) -> None:
        self.slots = LogIndex()
        """Of the revisions at the horizon; in the packed file as soon as they are there."""
        self.count = 0
        self.size = 0
        """The bytes that their records take, without their transactions."""


def find_kept(
    log: Log, limit: int, roots: Callable[[], Iterable[int]], report: Callable[[int], None]
) -> Kept:
    """What a pack keeps of what was there at the horizon.

    limit: the end of the transaction that is the horizon.
    roots: gives the numbers of oids.
    report: is told now and then how many objects have been found.
    """
    try:
        return _find_kept(log, limit, roots, report)
    except CorruptionError:
        if log.index.base is None:
            raise
        log.rebuild_index()  # perhaps it is not the log that is damaged, but the index
        return _find_kept(log, limit, roots, report)


def _find_kept(
    log: Log, limit: int, roots: Callable[[], Iterable[int]], report: Callable[[int], None]
) -> Kept:
    kept = Kept()
    find, put = kept.slots.find_number, kept.slots.put
    read = RefsReader(log).read
    todo = OidBitmap()
    for number in roots():
        todo.add_number(number)
    count = size = 0
    # Along the references as long as that is easy: what belongs together was mostly written
    # together.  The rest waits in the bitmap, and comes in order.
    stack: list[int] = []
    for numbers in todo.take_all_numbers():
        stack.extend(reversed(numbers))
        while stack:
            number = stack.pop()
            if find(number):
                continue
            slot = find_slot_before(log, number, limit)
            if not slot:
                continue
            put(number, slot)
            record_size, refs = read(slot, number)
            size += record_size
            count += 1
            if not count % _REPORT_INTERVAL:
                report(count)
            if len(stack) < _STACK_MAX:
                stack += refs
            else:
                for ref in refs:
                    todo.add_number(ref)
    report(count)
    kept.count = count
    kept.size = size + count * (SLOT_HEAD_SIZE + DIRECTORY_ENTRY_SIZE)
    return kept


def find_slot_before(log: Log, number: int, limit: int) -> int:
    """The slot of the newest revision before `limit`, or 0."""
    try:
        slot, _ = log.index.find(number)
    except IndexDamagedError:
        slot = log.find_slot(Oid(number.to_bytes(8)))
    while slot >= limit:
        oid = Oid(number.to_bytes(8))
        slot = log.find_previous_slot(log.read_slot(slot, oid)[1], slot, oid)
    return slot
