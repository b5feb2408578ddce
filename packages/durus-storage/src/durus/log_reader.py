"""What stands in a log file, entry by entry and record by record, visible or not.

`Log` is a reader that also knows what is visible.  Invariant: whatever is returned has been
compared with its checksum, and with what leads to it.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Final

from durus.error import CorruptionError, UnsupportedFormatError
from durus.interfaces import Oid, Record, Revision, Tid
from durus.log_codec import CODEC_MAX, LIBRARY_MISSING, RecordCodec, has_library
from durus.log_file import LogFile
from durus.log_format import (
    FIXED_SIZE,
    FLAGS_REFUSE,
    MARK_SIZE,
    MARK_TAG,
    TRAILER_SIZE,
    UNKNOWN_MARK_FLAGS,
    VOID_SIZE,
    VOID_TAG,
    Entry,
    LoggedTransaction,
    Mark,
    TransactionHead,
    Void,
    decode_entry_head,
    decode_trailer,
    decode_transaction,
    find_displaced_mark,
)
from durus.log_header import read_pieces
from durus.log_open import read_file_header
from durus.log_record import (
    RECORD_HEAD_SIZE,
    SLOT_HEAD_SIZE,
    LoggedRecord,
    decode_distance,
    decode_record,
    measure_record,
)

__all__ = ["LogReader"]

_ENTRY_READ_SIZE: Final = 4096
"""So much is read at the start of an entry, to have all of a small one at once."""
_RECORD_READ_SIZE: Final = 512
_SEARCH_SIZE_MAX: Final = 1 << 20
_DISPLACED_MAX: Final = 64
"""So many places are looked at for a displaced mark, each of which takes a while."""


class LogReader:
    """One log file.  All may be called by several threads at once; what is wrong raises
    CorruptionError, what only newer releases know UnsupportedFormatError."""

    def __init__(self, file: LogFile) -> None:
        """Raises StorageOpenError, CorruptionError, StorageError."""
        self.file = file
        self.header = read_file_header(file)
        self.codec = RecordCodec(self.header.dictionary)
        self._last_read: LoggedTransaction | None = None

    @property
    def path(self) -> str:
        return self.file.path

    def corrupt(
        self, offset: int, reason: str, oid: Oid | None = None, tid: Tid | None = None
    ) -> CorruptionError:
        return CorruptionError(self.path, offset, reason, oid, tid)

    # Entries

    def read_entry(self, offset: int, limit: int) -> Entry | None:
        """The entry that begins at `offset` and ends not after `limit`; None if there is none."""
        content = self.file.read(offset, min(limit - offset, _ENTRY_READ_SIZE))
        entry = decode_entry_head(self.header.file_id, offset, content)
        if isinstance(entry, Mark) and entry.flags & UNKNOWN_MARK_FLAGS:
            raise self._needs_newer_release("mark", offset, f"flags {entry.flags:#x}")
        if not isinstance(entry, TransactionHead):
            return entry
        if entry.end > limit or entry.slots_offset + TRAILER_SIZE > entry.end:
            return None
        trailer = content[entry.size - TRAILER_SIZE : entry.size]
        if entry.size > len(content):
            trailer = self.file.read(entry.end - TRAILER_SIZE, TRAILER_SIZE)
        if decode_trailer(trailer) != entry.size:
            return None
        return self._read_rest(entry, content)

    def _read_rest(self, head: TransactionHead, content: bytes = b"") -> LoggedTransaction | None:
        """The rest of a transaction; `content` is what has been read of it already."""
        rest = content[FIXED_SIZE : FIXED_SIZE + head.rest_size]
        if len(rest) < head.rest_size:
            rest = self.file.read(head.offset + FIXED_SIZE, head.rest_size)
        transaction = decode_transaction(head, rest)
        if transaction is None:
            return None
        if head.flags & FLAGS_REFUSE:
            raise self._needs_newer_release("transaction", head.offset, f"flags {head.flags:#x}")
        for tag, _ in read_pieces(transaction.extension):
            if tag[:1].isupper():  # none is known today
                raise self._needs_newer_release("transaction", head.offset, f"extension {tag!r}")
        return transaction

    def _needs_newer_release(self, what: str, offset: int, why: str) -> UnsupportedFormatError:
        return UnsupportedFormatError(
            self.path,
            f"the {what} at offset {offset} needs a newer release of durus-storage ({why})",
        )

    def read_transaction(self, head: TransactionHead) -> LoggedTransaction:
        """All of a transaction that is known to be there, but its records."""
        last = self._last_read  # readers of old revisions come back to the same one
        if last is not None and last.offset == head.offset:
            return last
        transaction = self._read_rest(head)
        if transaction is None:
            raise self.corrupt(
                head.offset, "the directory of the transaction is damaged", tid=head.tid
            )
        self._last_read = transaction
        return transaction

    def read_visible(self, offset: int) -> LoggedTransaction:
        """The transaction that is known to be at `offset`, but its records."""
        content = self.file.read(offset, FIXED_SIZE)
        head = decode_entry_head(self.header.file_id, offset, content)
        if not isinstance(head, TransactionHead):
            raise self.corrupt(offset, "the head of the transaction is damaged")
        return self.read_transaction(head)

    def search(self, offset: int, limit: int) -> Iterator[Mark | Void]:
        """The valid marks and voids from `offset` on, whatever is between them."""
        for place in self._find_tags((MARK_TAG, VOID_TAG), offset, limit):
            entry = self.read_entry(place, limit)
            if isinstance(entry, Mark | Void):
                yield entry

    def search_displaced(self, offset: int, limit: int) -> Iterator[Mark]:
        """The marks from `offset` on that were written somewhat before or after where they are."""
        places = self._find_tags((MARK_TAG,), offset, limit)
        for place in itertools.islice(places, _DISPLACED_MAX):
            content = self.file.read(place, MARK_SIZE)
            mark = find_displaced_mark(self.header.file_id, place, content)
            if mark is not None:
                yield mark

    def _find_tags(self, tags: Sequence[bytes], offset: int, limit: int) -> Iterator[int]:
        pattern = b"|".join(map(re.escape, tags))
        size = _ENTRY_READ_SIZE
        while offset < limit:
            content = self.file.read(offset, min(size, limit - offset))
            for found in re.finditer(pattern, content):
                yield offset + found.start()
            if len(content) < size:
                return
            offset += len(content) - len(MARK_TAG) + 1
            size = min(2 * size, _SEARCH_SIZE_MAX)

    def walk_back_from(self, end: int) -> Iterator[TransactionHead]:
        """The transactions before `end`, where an entry ends, newest first; CorruptionError."""
        while end > self.header.size:
            tail = self.file.read(end - VOID_SIZE, VOID_SIZE)
            size = decode_trailer(tail[-TRAILER_SIZE:])
            if size is None or not TRAILER_SIZE < size <= end - self.header.size:
                raise self.corrupt(end - TRAILER_SIZE, "the end of an entry is damaged")
            offset, before = end - size, end
            end = offset
            # What a void seals may begin with a valid entry: one that was torn, and that may even
            # end where the void does.
            if tail.startswith(VOID_TAG) and self._is_sealed(offset, size):
                continue
            content = self.file.read(offset, FIXED_SIZE)
            entry = decode_entry_head(self.header.file_id, offset, content)
            if entry is None or entry.end != before:
                raise self.corrupt(offset, "the entry is damaged")
            if isinstance(entry, TransactionHead):
                yield entry

    def _is_sealed(self, offset: int, size: int) -> bool:
        place = offset + size - VOID_SIZE
        return self.read_entry(place, place + VOID_SIZE) == Void(place, offset)

    # Records

    def read_revision(self, slot: int, oid: Oid) -> Revision:
        """The revision of `oid` in a record slot; CorruptionError, UnsupportedFormatError."""
        start, head = self.read_slot(slot, oid)
        return Revision(head.tid, self.read_record(slot, start, oid, head.tid))

    def copy_record(self, slot: int, oid: Oid) -> bytes:
        """The bytes of a record as they stand in the file, checked."""
        start, head = self.read_slot(slot, oid)
        content = self._read_record_bytes(slot, start)
        self._check_record(slot, content, oid, head.tid)
        return content

    def read_slot(self, slot: int, oid: Oid) -> tuple[bytes, TransactionHead]:
        """The first bytes of a record slot, and the transaction that it belongs to."""
        start = self.file.read(slot, _RECORD_READ_SIZE)
        if len(start) >= SLOT_HEAD_SIZE + RECORD_HEAD_SIZE:
            offset = slot - decode_distance(start)
            if offset >= self.header.size:
                content = self.file.read(offset, FIXED_SIZE)
                head = decode_entry_head(self.header.file_id, offset, content)
                if isinstance(head, TransactionHead) and head.slots_offset <= slot < head.end:
                    return start, head
        raise self.corrupt(slot, "the record slot belongs to no transaction", oid)

    def read_record(self, slot: int, start: bytes, oid: Oid, tid: Tid) -> Record:
        stored = self._check_record(slot, self._read_record_bytes(slot, start), oid, tid)
        return self.unpack_record(slot, stored, tid) if stored.codec else stored.record

    def _read_record_bytes(self, slot: int, start: bytes) -> bytes:
        size = measure_record(start[SLOT_HEAD_SIZE:])
        assert size is not None
        content = start[SLOT_HEAD_SIZE : SLOT_HEAD_SIZE + size]
        if len(content) < size <= self.file.status().size - slot:
            content = self.file.read(slot + SLOT_HEAD_SIZE, size)
        return content

    def _check_record(self, slot: int, content: bytes, oid: Oid, tid: Tid) -> LoggedRecord:
        stored = decode_record(content)
        if stored is None:
            raise self.corrupt(slot, "the checksum of the record is wrong", oid, tid)
        if stored.oid != oid:
            raise self.corrupt(slot, "the record of another object is there", oid, tid)
        if stored.codec > CODEC_MAX or stored.kind:
            why = f"codec {stored.codec}, kind {stored.kind}"
            raise self._needs_newer_release("record", slot, why)
        return stored

    def unpack_record(self, slot: int, stored: LoggedRecord, tid: Tid) -> Record:
        """The record that is compressed; CorruptionError, UnsupportedFormatError."""
        if not has_library():
            reason = f"the record at offset {slot} is compressed: {LIBRARY_MISSING}"
            raise UnsupportedFormatError(self.path, reason)
        unpacked = self.codec.unpack(stored.codec, stored.record.state_pickle, stored.class_size)
        if unpacked is None:
            reason = "the record is compressed, and cannot be unpacked"
            raise self.corrupt(slot, reason, stored.oid, tid)
        return Record(*unpacked, stored.record.refs)

    def is_whole(self, transaction: LoggedTransaction) -> bool:
        """Whether the records of a transaction are what its directory says."""
        slot = transaction.head.slots_offset
        for entry in transaction.entries():
            content = self.file.read(slot, SLOT_HEAD_SIZE + entry.size)
            if len(content) != SLOT_HEAD_SIZE + entry.size:
                return False
            stored = decode_record(content[SLOT_HEAD_SIZE:])
            if stored is None or int.from_bytes(stored.oid) != entry.oid:
                return False
            if decode_distance(content) != slot - transaction.offset:
                return False
            slot += len(content)
        return slot == transaction.end - TRAILER_SIZE

    def find_torn(
        self, transactions: Sequence[LoggedTransaction], mark: Mark, limit: int
    ) -> LoggedTransaction | None:
        """The first of the transactions before an unsynced mark that a power cut has torn.

        It is not whole, and was never synced: a synced mark for it, or a later one, and before a
        void that seals it, would prove that it was whole once, and is damaged.
        """
        for transaction in transactions:
            if transaction.tid <= mark.tid and not self.is_whole(transaction):
                return None if self._was_synced(transaction, mark.end, limit) else transaction
        return None

    def _was_synced(self, transaction: LoggedTransaction, offset: int, limit: int) -> bool:
        for entry in self.search(offset, limit):
            if isinstance(entry, Void):
                if entry.start <= transaction.offset:
                    return False
            elif entry.synced and entry.tid >= transaction.tid:
                return True
        return False

    def names(self, slot: int, oid: Oid) -> bool:
        """Whether the record in this slot, which may be anything, is one of `oid`."""
        start = self.file.read(slot, SLOT_HEAD_SIZE + RECORD_HEAD_SIZE)
        return start[SLOT_HEAD_SIZE + 4 : SLOT_HEAD_SIZE + 12] == oid
