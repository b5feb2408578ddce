"""The packed copy of a log, which is made while others read and commit.

`online_pack` puts it in the log's place.  Invariants: transactions keep their tids, ids, times,
users, notes and order; records are checked, and copied byte for byte, unless they are to be
compressed or unpacked; memory holds nothing for each transaction, and for each object what
`pack_mark` says; the last transactions are always kept, if need be without records, so that
tids go on from where they were and `find` still knows who has committed; nothing that is written
refers to what the pack has left out.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from durus.interfaces import NO_TID, ROOT_OID, Oid, Progress, Tid
from durus.log import Log
from durus.log_codec import DICTIONARY_SIZE_MAX, Compression
from durus.log_file import LogFile
from durus.log_format import LoggedTransaction, encode_slots
from durus.log_header import FileHeader, with_dictionary
from durus.log_record import SLOT_HEAD_SIZE, is_record
from durus.log_writer import LogWriter
from durus.pack_codec import PackCodec
from durus.pack_mark import Kept, RefsReader, find_kept, find_slot_before

__all__ = ["LogPack", "PackAgainError"]

_TRANSACTIONS_KEPT: Final = 1000
"""So many of the last transactions are kept, whether any of their records are or not."""
_TRANSACTION_SIZE: Final = 256
"""What a transaction may take beside its records, about, with its mark."""
_PART_SIZE: Final = 1 << 16
"""So much is read at once."""
_HELD_MAX: Final = 1 << 23
"""So much of a transaction may be in memory."""
_REPORT_SIZE: Final = 1 << 20
_ROOT: Final = int.from_bytes(ROOT_OID)


class PackAgainError(Exception):
    """The copy is not to be used, and another one may be made."""

    def __init__(self, reason: str, roots: Iterable[int] = ()) -> None:
        """roots: the oids, as numbers, that must be kept then."""
        super().__init__(reason)
        self.roots = frozenset(roots)


class LogPack:
    """One attempt at a packed copy.  What is damaged in the log raises CorruptionError."""

    def __init__(
        self,
        log: Log,
        keep: Tid,
        report: Callable[[Progress], None],
        compression: Compression | None = None,
    ) -> None:
        """Look at the transactions.

        log: the pack's own: it alone decides when what others have committed is seen.
        keep: the tid before which history goes.
        report: is told how far it is.
        compression: how all records are to be stored; None: as they are.
        """
        self._log = log
        self._report = report
        self._codec = None if compression is None else PackCodec(log, compression)
        self._refs = RefsReader(log)
        self.horizon = NO_TID
        """The newest transaction that is not newer than `keep`."""
        self._limit = log.header.size
        """Its end."""
        self._kept_since = NO_TID
        self._reported = 0
        before = 0
        keep = max(keep, log.header.horizon)
        for count, head in enumerate(log.walk_back()):
            if head.tid > keep:
                continue
            if not self.horizon:
                self.horizon, self._limit = head.tid, head.end
            if count < _TRANSACTIONS_KEPT or not before:
                self._kept_since = head.tid
            before += 1
        self._before = before
        """The number of transactions up to the horizon."""

    def mark(self, roots: set[int]) -> None:
        """Find what is to be kept: also what these oids, as numbers, lead to."""

        def report(count: int) -> None:
            self._report(Progress("looking for objects", count, 0))

        def all_roots() -> Iterator[int]:
            yield _ROOT
            yield from roots
            for transaction in self._after(self.horizon):
                for number, refs in self._scan(transaction):
                    yield number
                    yield from refs

        self._kept: Kept = find_kept(self._log, self._limit, all_roots, report)

    def _after(self, tid: Tid) -> Iterator[LoggedTransaction]:
        return self._log.walk(Tid(tid + 1), Tid(self._log.tid + 1))

    def _scan(self, transaction: LoggedTransaction) -> Iterator[tuple[int, tuple[int, ...]]]:
        slot = transaction.head.slots_offset
        for number, _, size in transaction.raw_entries():
            yield number, self._refs.read(slot, number)[1]
            slot += SLOT_HEAD_SIZE + size

    def hush(self) -> None:
        """Report no more: others will be waiting."""
        self._report = lambda progress: None

    @property
    def size(self) -> int:
        """The bytes that the copy will take, about."""
        log = self._log
        transactions = min(self._before, self._kept.count + _TRANSACTIONS_KEPT)
        later = log.end - self._limit
        size = log.header.size + self._kept.size + transactions * _TRANSACTION_SIZE + later
        return size if self._codec is None else int(self._codec.growth * size) + DICTIONARY_SIZE_MAX

    def write(self, file: LogFile, file_id: bytes) -> LogWriter:
        """Write the copy to an empty file: what is visible in the log.

        Raises PackAgainError.
        """
        header = self._log.header
        extension = header.extension
        if self._codec is not None:
            extension = with_dictionary(extension, self._codec.dictionary)
        self.writer = LogWriter(
            file,
            FileHeader(
                database_id=header.database_id,
                file_id=file_id,
                created_ns=time.time_ns(),
                horizon=max(self.horizon, header.horizon),
                next_oid=self._log.next_oid,
                extension=extension,
            ),
            self._kept.slots,
        )
        for transaction in self._log.walk(NO_TID, Tid(self.horizon + 1)):
            self._copy_kept(transaction)
        self._copied = self.horizon
        self.write_later()
        return self.writer

    def _copy_kept(self, transaction: LoggedTransaction) -> None:
        find = self._kept.slots.find_number
        entries: list[tuple[int, int, int]] = []
        slots: list[int] = []
        slot = transaction.head.slots_offset
        for number, _, size in transaction.raw_entries():
            if find(number) == slot:
                entries.append((number, 0, size))
                slots.append(slot)
            slot += SLOT_HEAD_SIZE + size
        if entries or transaction.tid >= self._kept_since:
            self._copy(transaction, entries, slots)

    def _copy(
        self, transaction: LoggedTransaction, entries: list[tuple[int, int, int]], slots: list[int]
    ) -> None:
        head = transaction.head

        def copy(distance: int) -> Iterator[bytes]:
            if distance == head.slots_offset - head.offset:  # so all are kept
                return self._copy_slots(transaction)
            return encode_slots(distance, map(self._copy_record, slots, entries))

        if self._codec is None:
            self._append(transaction, entries, copy)
            return
        # Their sizes come before them.  So a transaction that need not fit into memory is gone
        # through twice, and the same comes out.
        store = partial(self._store_records, self._codec, head.tid, slots, entries)
        is_small = sum(size for _, _, size in entries) <= _HELD_MAX
        held = list(store()) if is_small else None
        sizes = map(len, store() if held is None else held)
        self._append(
            transaction,
            [(*entry[:2], size) for entry, size in zip(entries, sizes, strict=True)],
            lambda distance: encode_slots(distance, store() if held is None else held),
        )

    def _append(
        self,
        transaction: LoggedTransaction,
        entries: list[tuple[int, int, int]],
        encode: Callable[[int], Iterator[bytes]],
    ) -> None:
        head = transaction.head
        self.writer.append_slots(
            entries,
            encode,
            tid=head.tid,
            time_ns=head.time_ns,
            id=head.id,
            next_oid=head.next_oid,
            user=transaction.user,
            note=transaction.note,
            extension=transaction.extension,
            flags=head.flags,
        )
        end = self.writer.end
        if end - self._reported >= _REPORT_SIZE:
            self._reported = end
            self._report(Progress("copying", end, max(end, self.size)))

    def _store_records(
        self, codec: PackCodec, tid: Tid, slots: list[int], entries: list[tuple[int, int, int]]
    ) -> Iterator[bytes]:
        for slot, entry in zip(slots, entries, strict=True):
            yield codec.store(slot, tid, self._copy_record(slot, entry))

    def _copy_record(self, slot: int, entry: tuple[int, int, int]) -> bytes:
        number, _, size = entry
        content = self._log.file.read(slot, SLOT_HEAD_SIZE + size)
        self._check(content, 0, slot, number, size)
        return content[SLOT_HEAD_SIZE:]

    def _copy_slots(self, transaction: LoggedTransaction) -> Iterator[bytes]:
        """All slots of a transaction as they stand in the log, in parts."""
        read = self._log.file.read
        slot = part_start = transaction.head.slots_offset
        content = b""
        for number, _, size in transaction.raw_entries():
            end = slot + SLOT_HEAD_SIZE + size
            if end - part_start > len(content):
                yield content[: slot - part_start]
                part_start = slot
                content = read(slot, max(_PART_SIZE, end - slot))
            start = slot - part_start
            distance = slot - transaction.offset
            if content[start : start + SLOT_HEAD_SIZE] != distance.to_bytes(SLOT_HEAD_SIZE):
                raise self._log.corrupt(slot, "the slot does not lead to its transaction")
            self._check(content, start, slot, number, size)
            slot = end
        yield content[: slot - part_start]

    def _check(self, content: bytes, start: int, slot: int, number: int, size: int) -> None:
        if not is_record(content, start + SLOT_HEAD_SIZE, number, size):
            oid = Oid(number.to_bytes(8))
            self._log.copy_record(slot, oid)  # raises, unless it is the directory that is wrong
            raise self._log.corrupt(slot, "the directory is not that of the record", oid)

    def write_later(self) -> int:
        """Write what has become visible in the log since: how many bytes.  PackAgainError."""
        end = self.writer.end
        find = self._kept.slots.find_number
        for transaction in self._after(self._copied):
            entries = [(n, find(n), size) for n, _, size in transaction.raw_entries()]
            sizes = (SLOT_HEAD_SIZE + size for _, _, size in entries)
            slots = list(itertools.accumulate(sizes, initial=transaction.head.slots_offset))
            self._check_refs(transaction)
            self._copy(transaction, entries, slots[:-1])
            self._copied = transaction.tid
        self.writer.reserve(self._log.next_oid)
        return self.writer.end - end

    def _check_refs(self, transaction: LoggedTransaction) -> None:
        """Raises PackAgainError."""
        find = self._kept.slots.find_number
        refs = {ref for _, refs in self._scan(transaction) for ref in refs if not find(ref)}
        lost = {ref for ref in refs if find_slot_before(self._log, ref, self._limit)}
        # An object that the transaction itself writes was there, but could not be reached.
        lost.update(
            number
            for number, previous, _ in transaction.raw_entries()
            if previous and not find(number)
        )
        if lost:  # somebody still had them
            raise PackAgainError("objects that nothing led to were referred to again", lost)
