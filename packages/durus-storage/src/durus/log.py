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

import threading
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

from durus.error import CorruptionError
from durus.index_file import Anchor, IndexDamagedError, IndexFile
from durus.interfaces import NO_TID, Oid, Revision, Tid
from durus.log_file import LogFile
from durus.log_format import (
    FIXED_SIZE,
    FLAGS_READ_ONLY,
    MARK_SIZE,
    NOT_SYNCED,
    VOID_SIZE,
    LoggedTransaction,
    Mark,
    Reservation,
    TransactionHead,
    Void,
    decode_entry_head,
    encode_mark,
    encode_void,
)
from durus.log_index import LayeredIndex, LogIndex, RecentChanges
from durus.log_reader import LogReader
from durus.log_waypoints import Waypoints

__all__ = ["Log", "Tail", "Unindexed"]

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
    offset: int
    """Where the newest visible transaction is, and its id; 0 when there is none."""
    transaction_id: int
    is_marked: bool
    """Whether a mark has made it visible, and it need not be adopted again."""


class Unindexed(NamedTuple):
    """What has become visible since the index file was written."""

    since: int
    """Where in the log that is; 0 when there is no index file."""
    until: Anchor
    entries: list[tuple[int, int]]
    """The numbers of oids, ascending, and their slots; empty when there is no index file."""
    next_oid: int
    features_read_only: int


class Log(LogReader):
    """One log file, its visible part and its index.  All may be called by any thread."""

    def __init__(
        self,
        file: LogFile,
        recent: RecentChanges | None = None,
        *,
        index: IndexFile | None = None,
        scan: bool = True,
    ) -> None:
        """Read a log file.  StorageOpenError, CorruptionError, StorageError, OSError.

        recent: is told of every transaction that becomes visible.
        index: is used if it is of this log; then only what comes after it is read.
        scan: whether to catch up at once.
        """
        super().__init__(file)
        self.identity = file.status().identity
        self.index = LayeredIndex()
        self.next_oid = self.header.next_oid
        self.features_read_only = self.header.features_read_only
        """Not 0 when only a newer release can write: by the header, or by a transaction's flags."""
        self._settled = _Settled(self.header.size, self.header.size, NO_TID, 0, 0, True)
        self.unindexed = 0
        """How much has become visible that only memory knows: records and transactions."""
        self._indexed_end = 0
        """What is visible after this place is in memory."""
        self._doubted_index: tuple[int, int] | None = None
        """The identity of an index file that was found to be damaged."""
        self._growing = threading.RLock()
        """Guards what is visible, and the layers of the index."""
        self._tail = Tail([], self.end, self.end)
        self._searched = (0, 0)
        self._waypoints = Waypoints()
        since = self.header.horizon
        if index is not None and self._begin_with(index):
            since = max(since, self.tid)
        known = recent is not None and recent.newest >= since
        self.recent = recent if recent is not None and known else RecentChanges(since)
        if scan:
            self.catch_up()

    def _begin_with(self, index: IndexFile) -> bool:
        """Take what an index covers for visible; False when it is not of this log as it is now."""
        visible_end = self._find_visible_end(index)
        if not visible_end:
            return False
        header = index.header
        covers = header.covers
        self._settled = _Settled(
            covers.end, visible_end, covers.tid, covers.offset, covers.transaction_id, True
        )
        self.next_oid = max(self.next_oid, header.next_oid)
        self.features_read_only |= header.features_read_only
        self.index.replace(LogIndex(), index)
        self._indexed_end = covers.end
        self._tail = Tail([], self.end, self.end)
        return True

    def accepts(self, index: IndexFile) -> bool:
        """Whether an index is of this log, as it is now, and nothing wrong was found in it."""
        return self._find_visible_end(index) != 0

    def _find_visible_end(self, index: IndexFile) -> int:
        """The end of the last transaction that an index covers, or 0 if it is not accepted."""
        header = index.header
        if index.identity == self._doubted_index or header.file_id != self.header.file_id:
            return 0
        if header.covers.tid == NO_TID:
            return 0
        visible_end = self._find_anchor(header.covers)
        if header.until != header.covers and not self._find_anchor(header.until):
            return 0
        return visible_end

    def _find_anchor(self, anchor: Anchor) -> int:
        """The end of the transaction that an index names, or 0 when it is not visible here.

        That it begins there is not enough: of a copy that was cut off, it may have been sealed.
        """
        size = self.file.status().size
        if not self.header.size <= anchor.offset < anchor.end <= size:
            return 0
        start = self.file.read(anchor.offset, FIXED_SIZE)
        head = decode_entry_head(self.header.file_id, anchor.offset, start)
        if not isinstance(head, TransactionHead):
            return 0
        if (head.tid, head.id) != (anchor.tid, anchor.transaction_id):
            return 0
        position = head.end  # its directory may be long, and need not be read
        is_marked = False
        while position < anchor.end:
            entry = self.read_entry(position, anchor.end)
            if entry is None:
                entry = next(self._find_voids(position, anchor.end), None)
            if entry is None or (isinstance(entry, Void) and entry.start < head.end):
                return 0
            is_marked = is_marked or (isinstance(entry, Mark) and entry.tid == head.tid)
            position = entry.end
        return head.end if is_marked and position == anchor.end else 0

    def _find_voids(self, offset: int, limit: int) -> Iterator[Void]:
        """Those that seal what begins at `offset`."""
        for entry in self.search(offset + 1, limit):
            if isinstance(entry, Void) and entry.start <= offset:
                yield entry

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

    def walk_back(self, until: Tid | None = None) -> Iterator[TransactionHead]:
        """The visible transactions up to the tid `until`, newest first; CorruptionError."""
        waypoint = None if until is None else self._waypoints.find(until)
        return self._walk_back(self.end if waypoint is None else waypoint.end, until)

    def _walk_back(self, end: int, until: Tid | None) -> Iterator[TransactionHead]:
        for head in self.walk_back_from(end):
            self._waypoints.note(head)
            if until is None or head.tid <= until:
                yield head

    def walk(self, start: Tid, stop: Tid) -> Iterator[LoggedTransaction]:
        """The visible transactions with start <= tid < stop, oldest first; CorruptionError."""
        while start < stop:
            waypoint = self._waypoints.find(start)
            last = Tid(stop - 1) if waypoint is None else Tid(min(waypoint.tid, stop - 1))
            offsets = array("Q")
            for head in self.walk_back(last):
                if head.tid < start:
                    break
                offsets.append(head.offset)
            for offset in reversed(offsets):
                yield self.read_visible(offset)
            start = Tid(last + 1)

    # What is visible

    def catch_up(self, size: int | None = None) -> Tail:
        """Make visible what was marked since the last call; CorruptionError when it is damaged.

        size: of the file, if it is known.
        """
        with self._growing:
            if size is None or size < self._tail.size:  # or it was asked for before it grew
                size = self.file.status().size
            if size == self._tail.size:
                return self._tail
            if size < self._tail.size:
                raise self.corrupt(size, "the file has become shorter while it was open")
            return self._scan(size)

    def _scan(self, size: int) -> Tail:
        end = self.end  # after what the last call found, unless that one was interrupted
        position = max(end, self._tail.offset)
        pending = [t for t in self._tail.pending if t.offset >= end]
        while position < size:
            entry = self.read_entry(position, size)
            if isinstance(entry, Mark) and not entry.synced:
                torn = self.find_torn(pending, entry, size)
                if torn is not None:
                    position = torn.offset
                    pending = [t for t in pending if t.offset < position]
                    entry = None
            entry = entry or self._find_seal(position, size, pending)
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
                    if entry.tid == self.tid and not self._settled.is_marked:
                        self._settled = self._settled._replace(is_marked=True)
                case Void():
                    if entry.start < self._visible_end:
                        raise self.corrupt(position, "a void that would seal a transaction")
                    pending = [t for t in pending if t.offset < entry.start]
                case Reservation():
                    self.next_oid = max(self.next_oid, entry.next_oid)
            position = entry.end
            if not pending:
                end = position
        if pending and position < size:
            self._check_last_entry(pending, position, size)
        if end > self.end:
            self._settled = self._settled._replace(end=end)
        self._tail = Tail(pending, position, size)
        self.file.extend_map(self.end)
        return self._tail

    def _publish_until(
        self, tid: Tid, pending: list[LoggedTransaction], *, is_marked: bool = True
    ) -> None:
        """Take the transactions up to `tid` from the pending ones, and make them visible."""
        while pending and pending[0].tid <= tid:
            self._publish(pending.pop(0), is_marked=is_marked)

    def _publish(self, transaction: LoggedTransaction, *, is_marked: bool = True) -> None:
        self.index.recent.add(transaction)
        self.recent.add(transaction)
        head = transaction.head
        self.next_oid = max(self.next_oid, head.next_oid)
        self.features_read_only |= head.flags & FLAGS_READ_ONLY
        self.unindexed += 1 + head.record_count
        # Last: snapshots are taken at it.
        self._settled = _Settled(head.end, head.end, head.tid, head.offset, head.id, is_marked)

    def _find_seal(self, offset: int, size: int, pending: list[LoggedTransaction]) -> Void | None:
        """The void that seals what begins at `offset`, where no valid entry is.

        None when there is none, and this is unfinished.  A mark proves that everything up to its
        transaction was whole once: that is damage here, unless it is one of those before.
        """
        last = pending[-1].tid if pending else self.tid
        # What is being written may be long, and is not searched from its beginning each time.
        start = self._searched[1] if self._searched[0] == offset else offset + 1
        for entry in self.search(start, size):
            if isinstance(entry, Void):
                if self._visible_end <= entry.start <= offset:
                    return entry
            elif entry.tid <= last:
                self._publish_until(entry.tid, pending)
            elif entry.synced:
                raise self.corrupt(
                    offset, "the entry is damaged, and was whole once: there is a mark after it"
                )
        for mark in self.search_displaced(start, size):
            if mark.tid > last and mark.synced:
                raise self.corrupt(
                    offset, "bytes were inserted or lost here: there is a mark out of its place"
                )
        self._searched = (offset, max(start, size - MARK_SIZE))
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

    # Objects

    def load(self, oid: Oid, at: Tid) -> Revision | None:
        """The newest revision of `oid` that is not newer than `at`, if there is one.

        Raises CorruptionError, and UnsupportedFormatError for what newer releases store.
        """
        try:
            slot, _ = self.index.find(int.from_bytes(oid))
            return next(self._revisions_from(slot, oid, at), None)
        except (CorruptionError, IndexDamagedError):  # perhaps not the log, but the index
            return next(self.revisions(oid, at), None)

    def revisions(self, oid: Oid, at: Tid) -> Iterator[Revision]:
        """All revisions of `oid` that are not newer than `at`, newest first."""
        return self._revisions_from(self.find_slot(oid), oid, at)

    def _revisions_from(self, slot: int, oid: Oid, at: Tid) -> Iterator[Revision]:
        while slot:
            start, head = self.read_slot(slot, oid)
            if head.tid <= at:
                yield Revision(head.tid, self.read_record(slot, start, oid, head.tid))
            slot = self.find_previous_slot(head, slot, oid)

    def find_slot(self, oid: Oid) -> int:
        """The slot of the newest revision of `oid`, or 0 when there is no such object."""
        number = int.from_bytes(oid)
        try:
            slot, is_certain = self.index.find(number)
            if is_certain or not slot or self.names(slot, oid):
                return slot
        except IndexDamagedError:
            pass
        self.rebuild_index()
        return self.index.find(number)[0]

    def oids(self) -> Iterator[Oid]:
        """The oids of all objects, ascending; some may be newer than what is visible."""
        return (Oid(number.to_bytes(8)) for number, _ in self.items())

    def items(self) -> Iterator[tuple[int, int]]:
        """The numbers of all oids, ascending, and slots of their newest revisions."""
        start = 0
        while True:
            try:
                for number, slot in self.index.items(start):
                    yield number, slot
                    start = number + 1
                return
            except IndexDamagedError:
                self.rebuild_index()

    def find_previous_slot(self, head: TransactionHead, slot: int, oid: Oid) -> int:
        """The slot before this one of `oid`, which belongs to a transaction; 0: there is none."""
        previous = self.read_transaction(head).find_previous(oid)
        if previous is None or previous >= slot:
            raise self.corrupt(head.offset, "the directory has no previous revision", oid, head.tid)
        return previous

    def continues(self, before: "Log") -> bool:
        """Whether this is what became of another log of the same database, as a pack makes it."""
        known = before._settled
        if known.tid == NO_TID:
            return True
        for head in self.walk_back():
            if head.tid <= known.tid:
                return (head.tid, head.id) == (known.tid, known.transaction_id)
        # Several packs have taken so much away that it cannot be told any more.
        return self.header.horizon > known.tid

    # The index

    def rebuild_index(self) -> None:
        """Make the index anew from the log, all of it in memory, and use no file any more."""
        with self._growing:
            if self.index.base is None:
                return
            self._doubted_index = self.index.base.identity
            index = LogIndex()
            count = 0
            for head in self.walk_back():
                for entry in self.read_transaction(head).entries():
                    if not index.find_number(entry.oid):
                        index.put(entry.oid, entry.slot)
                        count += 1
            self.index.replace(index, None)
            self._indexed_end = 0
            self.unindexed += count

    def unindexed_state(self) -> Unindexed | None:
        """What an index file lacks; None while what is visible may still be lost."""
        with self._growing:
            settled = self._settled
            if not settled.is_marked or settled.tid == NO_TID:
                return None
            return Unindexed(
                self._indexed_end,
                Anchor(settled.end, settled.offset, settled.tid, settled.transaction_id),
                list(self.index.recent.items()) if self._indexed_end else [],
                self.next_oid,
                self.features_read_only,
            )

    def use_index(self, base: IndexFile) -> None:
        """Let memory forget what an index file covers, if that is visible here already."""
        covers = base.header.covers.end
        with self._growing:
            if self._indexed_end <= covers <= self.end:  # a new one may cover less than the last
                recent = LogIndex()
                for number, slot in self.index.recent.items():
                    if slot >= covers:
                        recent.put(number, slot)
                self.index.replace(recent, base)
                self._indexed_end = covers
                self.unindexed = sum(1 for _ in recent.items())
