"""One open log file: what is visible in it, where everything is, and how it grows.

Storages and snapshots hold a `Log`; it stands for one file, for ever (pack makes another one).
Reading and growing it obey the rules of `docs/format.md`:

    [header] ([transaction] [mark] | [reservation] | garbage [void])*  [unfinished tail]

A transaction is

    pending    when it has been read, and no mark for it or a later one has;
    visible    when one has: damage in it is then reported as CorruptionError;
    adopted    when it is visible without a mark: it was whole, and nobody was committing;
    refused    when its sync failed: it must never become visible, so it will be
    sealed     that is, followed by a void that says never to read it, as whatever is not whole.

The log is settled up to where nothing is pending and every entry is known.  Reading never writes:
only `settle_tail`, which the holder of the lock calls before it appends, marks what is pending or
adopted, and seals the rest of an unfinished tail.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from durus.error import (
    CommitOutcomeUnknownError,
    CorruptionError,
    StorageError,
    UnsupportedFormatError,
)
from durus.interfaces import NO_TID, Oid, Revision, Tid
from durus.log_file import LogFile
from durus.log_format import (
    FIXED_SIZE,
    FLAGS_READ_ONLY,
    FLAGS_REFUSE,
    MARK_TAG,
    NOT_SYNCED,
    RECORD_HEAD_SIZE,
    SLOT_HEAD_SIZE,
    TRAILER_SIZE,
    UNKNOWN_MARK_FLAGS,
    VOID_SIZE,
    VOID_TAG,
    Entry,
    LoggedRecord,
    LoggedTransaction,
    Mark,
    Reservation,
    TransactionHead,
    Void,
    decode_distance,
    decode_entry_head,
    decode_record,
    decode_trailer,
    decode_transaction,
    encode_mark,
    encode_reservation,
    encode_void,
    measure_record,
)
from durus.log_index import LogIndex, RecentChanges
from durus.log_open import read_file_header

__all__ = ["Log", "Tail"]

_ENTRY_READ_SIZE: Final = 4096
"""So much is read at the start of an entry, to have all of a small one at once."""
_RECORD_READ_SIZE: Final = 512
_SEARCH_SIZE_MAX: Final = 1 << 20
_FLIPPED_BITS_MAX: Final = 3
"""A mark or void with so few wrong bits was damaged; a torn one has more (see `log_format`)."""


class Tail(NamedTuple):
    """What follows the settled part of a log; empty when nothing is pending, and offset is size."""

    pending: list[LoggedTransaction]
    """Transactions that are not marked; their records have not been looked at."""
    offset: int
    """Where the first byte is that makes no sense; the size of the file if there is none."""
    size: int
    """The size of the file."""


class _Settled(NamedTuple):
    """How far a log is settled: replaced as a whole, so that an interrupt cannot halve it."""

    end: int
    visible_end: int
    tid: Tid


class Log:
    """One log file, its visible part and its index.

    `catch_up`, `settle_tail` and all that append are called by one thread at a time, and those
    that append by the holder of the file's lock; all else may be called at any time.
    """

    def __init__(
        self, file: LogFile, recent: RecentChanges | None = None, *, scan: bool = True
    ) -> None:
        """Read a log file.  StorageOpenError, CorruptionError, StorageError, OSError.

        recent: is told of every transaction that becomes visible.
        scan: whether to catch up at once.
        """
        self.file = file
        self.header = read_file_header(file)
        self.index = LogIndex()
        self.recent = RecentChanges(self.header.horizon) if recent is None else recent
        self.next_oid = self.header.next_oid
        self.features_read_only = self.header.features_read_only
        """Not 0 when only a newer release can write: by the header, or by a transaction's flags."""
        self._settled = _Settled(self.header.size, self.header.size, NO_TID)
        self._refused: int | None = None
        """What begins here must be sealed: its sync failed, so it must never become visible."""
        self._adopted = False
        """The newest visible transaction has no mark yet."""
        self._tail = Tail([], self.end, self.end)
        self._last_read: LoggedTransaction | None = None
        if scan:
            self.catch_up()

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def tid(self) -> Tid:
        """The newest visible transaction."""
        return self._settled.tid

    @property
    def end(self) -> int:
        """Up to here everything is settled: nothing pending, every entry known."""
        return self._settled.end

    @property
    def _visible_end(self) -> int:
        """The end of the last visible transaction.  What follows may be sealed by a void."""
        return self._settled.visible_end

    def corrupt(self, offset: int, reason: str, oid: Oid | None = None) -> CorruptionError:
        return CorruptionError(self.path, offset, reason, oid)

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
        for tag, _ in transaction.extensions():
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
            raise self.corrupt(head.offset, "the directory of the transaction is damaged")
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
        size = _ENTRY_READ_SIZE
        while offset < limit:
            content = self.file.read(offset, min(size, limit - offset))
            for found in re.finditer(re.escape(MARK_TAG) + b"|" + re.escape(VOID_TAG), content):
                place = offset + found.start()
                entry = self.read_entry(place, limit)
                if isinstance(entry, Mark | Void):
                    yield entry
            if len(content) < size:
                return
            offset += len(content) - len(MARK_TAG) + 1
            size = min(2 * size, _SEARCH_SIZE_MAX)

    def walk_back(self) -> Iterator[TransactionHead]:
        """The visible transactions, newest first; CorruptionError."""
        offset = self.end
        while offset > self.header.size:
            size = decode_trailer(self.file.read(offset - TRAILER_SIZE, TRAILER_SIZE))
            if size is None or not TRAILER_SIZE < size <= offset - self.header.size:
                raise self.corrupt(offset - TRAILER_SIZE, "the end of an entry is damaged")
            offset -= size
            content = self.file.read(offset, FIXED_SIZE)
            entry = decode_entry_head(self.header.file_id, offset, content)
            # What a void seals may begin with a valid entry; but that one ends somewhere else.
            if entry is None or entry.end != offset + size:
                if not self._is_sealed(offset, size):
                    raise self.corrupt(offset, "the entry is damaged")
            elif isinstance(entry, TransactionHead):
                yield entry

    def _is_sealed(self, offset: int, size: int) -> bool:
        place = offset + size - VOID_SIZE
        return self.read_entry(place, place + VOID_SIZE) == Void(place, offset)

    # What is visible

    def catch_up(self) -> Tail:
        """Make visible what was marked since the last call; CorruptionError when it is damaged."""
        size = self.file.status().size
        if size == self._tail.size:
            return self._tail
        if size < self.end:
            raise self.corrupt(size, "the file has become shorter while it was open")
        position = self.end
        pending: list[LoggedTransaction] = []
        while position < size:
            entry = self.read_entry(position, size) or self._find_seal(position, size, pending)
            match entry:
                case None:
                    break
                case LoggedTransaction():
                    if entry.tid <= (pending[-1].tid if pending else self.tid):
                        raise self.corrupt(position, f"tid {entry.tid} is not in order")
                    pending.append(entry)
                case Mark():
                    # One for an older transaction says nothing new: that one may have been adopted.
                    if entry.tid > self.tid and entry.tid not in [t.tid for t in pending]:
                        raise self.corrupt(position, f"a mark for tid {entry.tid} is out of place")
                    self._publish_until(entry.tid, pending)
                case Void():
                    if entry.start < self._visible_end:
                        raise self.corrupt(position, "a void that would seal a transaction")
                    pending = [t for t in pending if t.offset < entry.start]
                case Reservation():
                    self.next_oid = max(self.next_oid, entry.next_oid)
            position = entry.end
            if not pending:
                self._settled = self._settled._replace(end=position)
        if pending and position < size:
            self._check_last_entry(pending, position, size)
        self._tail = Tail(pending, position, size)
        return self._tail

    def _publish_until(self, tid: Tid, pending: list[LoggedTransaction]) -> None:
        """Take the transactions up to `tid` from the pending ones, and make them visible."""
        while pending and pending[0].tid <= tid:
            self._publish(pending.pop(0))

    def _publish(self, transaction: LoggedTransaction) -> None:
        self.index.add(transaction)
        self.recent.add(transaction)
        self.next_oid = max(self.next_oid, transaction.head.next_oid)
        self.features_read_only |= transaction.head.flags & FLAGS_READ_ONLY
        end = transaction.end
        self._settled = _Settled(end, end, transaction.tid)  # last: snapshots are taken at it

    def _find_seal(self, offset: int, size: int, pending: list[LoggedTransaction]) -> Void | None:
        """The void that seals what begins at `offset`, where no valid entry is.

        None when there is none, and this is unfinished.  A mark proves that everything up to its
        transaction was whole once: that is damage here, unless it is one of those before.
        """
        last = pending[-1].tid if pending else self.tid
        for entry in self.search(offset + 1, size):
            if isinstance(entry, Void):
                if self._visible_end <= entry.start <= offset:
                    return entry
            elif entry.tid <= last:
                self._publish_until(entry.tid, pending)
            elif entry.synced:
                raise self.corrupt(
                    offset, "the entry is damaged, and was whole once: there is a mark after it"
                )
        return None

    def _check_last_entry(self, pending: list[LoggedTransaction], position: int, size: int) -> None:
        """Is this the mark, or the void, of `pending`, with a flipped bit?

        Without this check a flipped bit in the last mark would make a transaction unseen, and one
        in the last void would make a refused transaction appear.
        """
        file_id = self.header.file_id
        expected = [
            (position, encode_mark(file_id, Mark(position, tid, flags)))
            for tid in (self.tid, *(transaction.tid for transaction in pending))
            for flags in (0, NOT_SYNCED)
        ]
        for start in {self._visible_end, *(transaction.offset for transaction in pending)}:
            for place in {position, max(position, size - VOID_SIZE)}:
                expected.append((place, encode_void(file_id, Void(place, start))))
        for place, right in expected:
            found = self.file.read(place, min(len(right), size - place))
            difference = int.from_bytes(found) ^ int.from_bytes(right)
            if len(found) == len(right) and difference.bit_count() <= _FLIPPED_BITS_MAX:
                raise self.corrupt(place, "the last mark or void is damaged")

    # Records

    def load(self, oid: Oid, at: Tid) -> Revision | None:
        """The newest revision of `oid` that is not newer than `at`, if there is one.

        Raises CorruptionError, and UnsupportedFormatError for what newer releases store.
        """
        slot = self.index.find(oid)
        while slot:
            start, head = self._read_slot(slot, oid)
            if head.tid <= at:
                return Revision(head.tid, self._read_record(slot, start, oid).record)
            slot = self._find_previous(head, slot, oid)
        return None

    def read_revision(self, slot: int, oid: Oid) -> Revision:
        """The revision of `oid` in a record slot; CorruptionError, UnsupportedFormatError."""
        start, head = self._read_slot(slot, oid)
        return Revision(head.tid, self._read_record(slot, start, oid).record)

    def revisions(self, oid: Oid, at: Tid) -> Iterator[Revision]:
        """All revisions of `oid` that are not newer than `at`, newest first."""
        slot = self.index.find(oid)
        while slot:
            start, head = self._read_slot(slot, oid)
            if head.tid <= at:
                yield Revision(head.tid, self._read_record(slot, start, oid).record)
            slot = self._find_previous(head, slot, oid)

    def copy_record(self, slot: int, oid: Oid) -> bytes:
        """The bytes of a record as they stand in the file, checked."""
        start, _ = self._read_slot(slot, oid)
        content = self._read_record_bytes(slot, start)
        self._decode_record(slot, content, oid)
        return content

    def _read_slot(self, slot: int, oid: Oid) -> tuple[bytes, TransactionHead]:
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

    def _read_record(self, slot: int, start: bytes, oid: Oid) -> LoggedRecord:
        return self._decode_record(slot, self._read_record_bytes(slot, start), oid)

    def _read_record_bytes(self, slot: int, start: bytes) -> bytes:
        size = measure_record(start[SLOT_HEAD_SIZE:])
        assert size is not None
        content = start[SLOT_HEAD_SIZE : SLOT_HEAD_SIZE + size]
        if len(content) < size <= self.file.status().size - slot:
            content = self.file.read(slot + SLOT_HEAD_SIZE, size)
        return content

    def _decode_record(self, slot: int, content: bytes, oid: Oid) -> LoggedRecord:
        stored = decode_record(content)
        if stored is None:
            raise self.corrupt(slot, "the checksum of the record is wrong", oid)
        if stored.oid != oid:
            raise self.corrupt(slot, "the record of another object is there", oid)
        if stored.codec or stored.kind:
            why = f"codec {stored.codec}, kind {stored.kind}"
            raise self._needs_newer_release("record", slot, why)
        return stored

    def _find_previous(self, head: TransactionHead, slot: int, oid: Oid) -> int:
        previous = self.read_transaction(head).find_previous(oid)
        if previous is None or previous >= slot:
            raise self.corrupt(head.offset, "the directory has no previous revision", oid)
        return previous

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

    # Growing

    def settle_tail(self) -> None:
        """Finish what others, or a failure, left after the last mark; OSError, CorruptionError.

        Whole transactions are made durable and marked: their commits may have been acknowledged.
        A partial one, or what was refused, is sealed.
        """
        tail = self.catch_up()
        if self._refused is not None and self._refused < self._visible_end:
            self._refused = None  # what was to be refused had been marked after all
        whole, garbage = self._split_tail(tail)
        if self._refused is not None:
            whole, garbage = [], self._refused
        if garbage < tail.size:
            self._append_void(garbage, tail.size)
        if whole:
            self.file.sync()
            self._append_mark(whole[-1].tid)
        elif self._adopted:
            self._append_mark(self.tid)
        self._adopted = False
        self.catch_up()

    def _split_tail(self, tail: Tail) -> tuple[list[LoggedTransaction], int]:
        """The whole transactions at the end, and where what is not whole begins."""
        for index, transaction in enumerate(tail.pending):
            if not self.is_whole(transaction):
                return tail.pending[:index], transaction.offset
        return tail.pending, tail.offset

    def adopt_tail(self) -> None:
        """Make whole transactions after the last mark visible in this process; OSError.

        A crash came between their sync and their mark, so their commits may have been
        acknowledged.  They are made durable first, and not marked: that is writing, and done by
        `settle_tail`.  The caller knows that nobody is committing.
        """
        tail = self.catch_up()
        whole, _ = self._split_tail(tail)
        if whole:
            self.file.sync()
            self._publish_until(whole[-1].tid, [t for t in whole if t.tid > self.tid])
            self._tail = tail._replace(pending=tail.pending[len(whole) :])
            self._adopted = True

    def _append_mark(self, tid: Tid) -> None:
        mark = Mark(self.file.status().size, tid)
        self.file.append(encode_mark(self.header.file_id, mark))

    def _append_void(self, start: int, size: int) -> None:
        file_id = self.header.file_id
        void = Void(size, start)
        content = encode_void(file_id, void)
        if start == self._visible_end:  # the last mark and reservation may be sealed, too
            if self.tid != NO_TID:
                content += encode_mark(file_id, Mark(void.end, self.tid))
            again = Reservation(size + len(content), self.next_oid)
            content += encode_reservation(file_id, again)
        self.file.append(content)
        self._refused = None

    def append_reservation(self, next_oid: int) -> None:
        """Say that oids below `next_oid` have been handed out; OSError.  The tail is settled."""
        entry = Reservation(self.end, next_oid)
        self.file.append(encode_reservation(self.header.file_id, entry))
        self.catch_up()

    def append_transaction(self, content: bytes, tid: Tid, transaction_id: int) -> None:
        """Append an encoded transaction, make it durable, then visible.  The tail is settled.

        Raises StorageError when it is certain that it was not committed, and
        CommitOutcomeUnknownError when not.
        """
        assert self.end == self._tail.size
        start = self.end
        mark = encode_mark(self.header.file_id, Mark(start + len(content), tid))
        try:
            self.file.append(content)
            self.file.sync()  # before the mark: nobody must read what a power cut could take away
            self.file.append(mark)
            self.catch_up()
        except BaseException as error:
            if not self._withdraw(start + len(content)):
                raise CommitOutcomeUnknownError(transaction_id, str(error)) from error
            if isinstance(error, OSError):
                raise StorageError(
                    f"{self.path}: the transaction could not be written, and was not committed: "
                    f"{error}"
                ) from error
            raise

    def _withdraw(self, end: int) -> bool:
        """After a failure: make sure that the transaction that was to end there is not committed.

        False when that is not certain.
        """
        # A failed sync may have lost everything since the last visible transaction, so all of it is
        # sealed, and its bytes are not synced once more as if nothing had happened.
        self._refused = refused = self._visible_end
        with contextlib.suppress(OSError, StorageError):
            size = self.file.status().size
            if size < end:
                self._refused = None
                return True  # it was never whole, and whoever appends next will seal it
            self.catch_up()
            if self._visible_end != refused:
                return False  # its mark was written after all
            self._append_void(refused, size)
            self.file.sync()
            self.catch_up()
            return True
        return False
