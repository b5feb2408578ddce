"""Reading a log once, to its end: everything in it is checked, and nothing of it is remembered.

Backup and restore check in this way what they copy, while it grows.  Invariant: of all that is
settled (`end`), each checksum has been compared, and each byte but what voids seal is under one, or
is what it must be.

What is visible is decided by `Log`.  But nearly all of a log is whole transactions and their mark;
these come from `read_runs`, by a short way.  Whatever else is there is left to `Log`, with all that
is after it so far.
"""

import zlib
from array import array
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final, Never

from durus.error import CorruptionError
from durus.growing_log import GrowingLog
from durus.index_file import Anchor
from durus.interfaces import NO_TID, Oid, Tid
from durus.log_file import LogFile
from durus.log_format import (
    FIXED_SIZE,
    TRAILER_SIZE,
    LoggedTransaction,
    TransactionHead,
    decode_entry_head,
)
from durus.log_record import SLOT_HEAD_SIZE, decode_distance, decode_record
from durus.log_runs import WINDOW_SIZE, are_slots, read_runs, sizes_in

__all__ = ["CheckedLog"]

_STRIDE: Final = 1 << 25
"""So much is left to `Log` at once, at most."""
_BATCH: Final = 1024
"""So many records are checked at once."""
_CRC_SIZE: Final = 4


class _PastError(Exception):
    """A transaction is newer than those that were asked for."""


class CheckedLog(GrowingLog):
    """A log that one thread reads; what is damaged in it raises CorruptionError."""

    def __init__(
        self,
        file: LogFile,
        since: Anchor | None = None,
        *,
        blame: Callable[[int], tuple[str, int]] | None = None,
    ) -> None:
        """since: up to there it was checked before; CorruptionError when that is not there.

        blame: the file that is damaged when it is at an offset of the log, and the offset there.
        """
        self._blame = blame
        self._newest_wanted: Tid | None = None
        self.count = 0
        """So many transactions have become visible here."""
        self.first: TransactionHead | None = None
        self.last: TransactionHead | None = None
        """The newest one of them."""
        super().__init__(file, scan=False)
        if since is not None and since.tid != NO_TID:
            visible_end = self._find_anchor(since)
            if not visible_end:
                raise self.corrupt(since.offset, "another transaction was here", tid=since.tid)
            self._settled = self._settled._replace(
                end=since.end,
                visible_end=visible_end,
                tid=since.tid,
                offset=since.offset,
                transaction_id=since.transaction_id,
            )

    @property
    def anchor(self) -> Anchor:
        """How far everything is settled, and the last transaction, if there is one."""
        settled = self._settled
        return Anchor(settled.end, settled.offset, settled.tid, settled.transaction_id)

    @property
    def is_marked(self) -> bool:
        """Whether the last transaction has a mark, and was not adopted."""
        return self._settled.is_marked

    def corrupt(
        self, offset: int, reason: str, oid: Oid | None = None, tid: Tid | None = None
    ) -> CorruptionError:
        path, place = (self.path, offset) if self._blame is None else self._blame(offset)
        return CorruptionError(path, place, reason, oid, tid)

    def check(self, size: int) -> None:
        """Check the first `size` bytes, as far as it can be done before the others are there."""
        if size > self.end and self._take_runs(size):
            self.catch_up(max(self._tail.size, self._find_boundary(size)))

    def finish(self, size: int) -> None:
        """Check the first `size` bytes; what is not finished there is only seen to be so."""
        while self.end + _STRIDE < size:
            before = self.end
            self.check(before + _STRIDE)
            if self.end == before:
                break
        if size > self.end:
            self._take_runs(size)
            self.catch_up(size)

    def find_last(self, tid: Tid, size: int) -> bool:
        """As `finish`, but end with the newest transaction that is not newer than `tid`.

        Whether that is certain: that very one was found, or a newer one.  Else the log has ended.
        """
        self._newest_wanted = tid
        try:
            self.finish(size)
        except _PastError:
            return True
        except CorruptionError:
            if self.tid < tid:  # else what is damaged is newer
                raise
        return self.tid == tid

    # The short way

    def _take_runs(self, size: int) -> bool:
        """Take what is plain; whether something else comes then, and all of it is there."""
        file_id, end = self.header.file_id, self.end
        runs = read_runs(self.file, file_id, end, size, self.tid, self._newest_wanted)
        if runs.first and runs.last:
            self._note(runs.first, runs.last, runs.transactions)
            last = runs.last
            self._settled = type(self._settled)(
                runs.end, last.end, last.tid, last.offset, last.id, True
            )
        start = self.file.read(runs.place, min(FIXED_SIZE, size - runs.place))
        if len(start) < FIXED_SIZE:
            return False
        entry = decode_entry_head(file_id, runs.place, start)
        return not isinstance(entry, TransactionHead) or entry.end <= size

    def _find_boundary(self, size: int) -> int:
        """The end of the last entry that ends before `size`; that itself where none seems to be.

        A long transaction that is cut off would be searched for what seals it.
        """
        place = self.end
        while place < size:
            start = self.file.read(place, min(FIXED_SIZE, size - place))
            entry = decode_entry_head(self.header.file_id, place, start)
            if entry is None:
                return size
            if entry.end > size:
                break
            place = entry.end
        return place

    def _note(self, first: TransactionHead, last: TransactionHead, count: int) -> None:
        self.first = self.first or first
        self.last = last
        self.count += count

    # What is visible

    def _publish(self, transaction: LoggedTransaction, *, is_marked: bool = True) -> None:
        head = transaction.head
        if self._newest_wanted is not None and head.tid > self._newest_wanted:
            raise _PastError
        if not self._has_records(transaction):
            self._explain_damage(transaction)
        self._note(head, head, 1)
        self._settled = type(self._settled)(
            head.end, head.end, head.tid, head.offset, head.id, is_marked
        )

    def _has_records(self, transaction: LoggedTransaction) -> bool:
        head = transaction.head
        slot = head.slots_offset
        for sizes in _batches(sizes_in(transaction.directory)):
            size = sum(sizes) + SLOT_HEAD_SIZE * len(sizes)
            if slot + size > head.end - TRAILER_SIZE:
                return False
            if size <= WINDOW_SIZE:
                content = self.file.read(slot, size)
                if len(content) != size or not are_slots(sizes, content, 0, slot - head.offset):
                    return False
            elif not self._is_large_record(slot, size, slot - head.offset):
                return False
            slot += size
        return slot == head.end - TRAILER_SIZE

    def _is_large_record(self, slot: int, size: int, distance: int) -> bool:
        """The same for a single record, which need not fit into memory."""
        place = slot + SLOT_HEAD_SIZE + _CRC_SIZE
        head = self.file.read(slot, SLOT_HEAD_SIZE + _CRC_SIZE)
        crc = 0
        for start in range(place, slot + size, WINDOW_SIZE):
            content = self.file.read(start, min(WINDOW_SIZE, slot + size - start))
            crc = zlib.crc32(content, crc)
        return head == distance.to_bytes(SLOT_HEAD_SIZE) + crc.to_bytes(_CRC_SIZE)

    def _explain_damage(self, transaction: LoggedTransaction) -> Never:
        tid = transaction.tid
        for entry in transaction.entries():
            oid = Oid(entry.oid.to_bytes(8))
            size = min(entry.size, transaction.end - entry.slot)
            content = self.file.read(entry.slot, SLOT_HEAD_SIZE + max(0, size))
            stored = decode_record(content[SLOT_HEAD_SIZE:])
            if stored is None:
                raise self.corrupt(entry.slot, "the checksum of the record is wrong", oid, tid)
            if decode_distance(content) != entry.slot - transaction.offset:
                reason = "the slot does not lead to its transaction"
                raise self.corrupt(entry.slot, reason, oid, tid)
        raise self.corrupt(transaction.offset, "the records do not fill the transaction", tid=tid)


def _batches(sizes: "array[int]") -> Iterator["array[int]"]:
    """Neighbours that are not too many, nor too large together unless it is a single one."""
    start = 0
    while start < len(sizes):
        ends = accumulate(SLOT_HEAD_SIZE + size for size in sizes[start : start + _BATCH])
        fitting = sum(1 for end in ends if end <= WINDOW_SIZE)
        yield sizes[start : start + max(1, fitting)]
        start += max(1, fitting)
