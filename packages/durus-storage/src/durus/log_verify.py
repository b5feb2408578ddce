"""Verify: read a whole log file, and report everything in it that is not as it must be.

Nothing is taken on trust, and nothing ends the walk: after damage it goes on at the next mark.  It
shares the decoding with `log`, but not its scanner, and makes an index of its own, with which it
compares the index file, too.  An unfinished tail is no finding, and what others append meanwhile is
not looked at.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from durus.error import CorruptionError, StorageError, format_oid
from durus.file_format import Finding
from durus.file_system import OperatingSystem, System
from durus.index_verify import IndexCheck
from durus.interfaces import NO_TID, Oid, Tid
from durus.log import Log
from durus.log_codec import CODEC_MAX
from durus.log_file import LogFile
from durus.log_format import (
    FIXED_SIZE,
    TRAILER_SIZE,
    LoggedTransaction,
    Mark,
    TransactionHead,
    Void,
    decode_entry_head,
)
from durus.log_index import LogIndex
from durus.log_record import (
    SLOT_HEAD_SIZE,
    decode_distance,
    decode_record,
)
from durus.record import split_oids

__all__ = ["verify_file"]


def verify_file(path: str, system: System | None = None) -> Iterator[Finding]:
    """Yield what is wrong with a log file, and the index file beside it; nothing if all is sound.

    Both are only read.  Raises StorageError when this is no log file, or the header of the log is
    damaged, or the library is missing for what is compressed in it; OSError.
    """
    system = OperatingSystem() if system is None else system
    file = LogFile(system, path, system.open(path, writable=False))
    log = Log(file, scan=False)
    index = IndexCheck(log)
    walk = _Walk(log, file.status().size)
    yield from walk.run()
    if walk.is_complete:
        yield from index.run(walk.newest, walk.size)


@dataclass(slots=True)
class _Walk:
    log: Log
    size: int
    """So much of the file is read."""
    is_complete: bool = False
    """Whether nothing kept it from seeing all that is visible."""
    tid: Tid = NO_TID
    pending: list[LoggedTransaction] = field(default_factory=list)
    visible: "array[int]" = field(default_factory=lambda: array("Q"))
    """The offsets of the visible transactions."""
    newest: LogIndex = field(default_factory=LogIndex)

    def run(self) -> Iterator[Finding]:
        position = self.log.header.size
        damaged = False
        while position < self.size:
            entry = self.log.read_entry(position, self.size)
            if isinstance(entry, Mark) and not entry.synced:
                torn = self.log.find_torn(self.pending, entry, self.size)
                if torn is not None:
                    position = torn.offset
                    self.pending = [t for t in self.pending if t.offset < position]
                    entry = None
            if entry is None:
                entry = self._find_end_of_gap(position)
                if entry is None:
                    break  # an unfinished tail
                if isinstance(entry, Mark):
                    if entry.tid <= self._last_tid:
                        yield from self._make_visible(entry.tid, complete=not damaged)
                        self.tid = max(self.tid, entry.tid)
                        continue  # here is still what it was
                    damaged = True
                    yield Finding(position, self._read_tid(position), None, "the entry is damaged")
            match entry:
                case LoggedTransaction():
                    self.pending.append(entry)
                case Void():
                    self.pending = [t for t in self.pending if t.offset < entry.start]
                case Mark():
                    yield from self._make_visible(entry.tid, complete=not damaged)
                    if entry.tid != self.tid and not damaged:
                        yield Finding(position, entry.tid, None, "a mark for another transaction")
                    self.tid = max(self.tid, entry.tid)
            position = entry.end
        if not damaged:  # else much would seem to be missing
            yield from self._check_refs()
            yield from self._check_scan()

    def _read_tid(self, position: int) -> Tid | None:
        """The tid of a damaged transaction, if that part of it is as it was."""
        content = self.log.file.read(position, FIXED_SIZE)
        head = decode_entry_head(self.log.header.file_id, position, content)
        return head.tid if isinstance(head, TransactionHead) else None

    @property
    def _last_tid(self) -> Tid:
        return self.pending[-1].tid if self.pending else self.tid

    def _find_end_of_gap(self, position: int) -> Void | Mark | None:
        """The void that seals what is there, or the mark that proves it to be damaged.

        Or a mark that makes pending transactions before it visible, and says nothing of it.
        """
        for entry in self.log.search(position + 1, self.size):
            if isinstance(entry, Void):
                if entry.start <= position:
                    return entry
            elif self.tid < entry.tid and (entry.synced or entry.tid <= self._last_tid):
                return entry
        return None

    def _make_visible(self, tid: Tid, *, complete: bool) -> Iterator[Finding]:
        while self.pending and self.pending[0].tid <= tid:
            yield from self._check_transaction(self.pending.pop(0), complete=complete)

    def _check_transaction(
        self, transaction: LoggedTransaction, *, complete: bool
    ) -> Iterator[Finding]:
        tid = transaction.tid
        if tid <= self.tid:
            yield Finding(transaction.offset, tid, None, "the tid is not larger than the last one")
        self.tid = tid
        self.visible.append(transaction.offset)
        last_oid = -1
        slot = transaction.head.slots_offset
        for entry in transaction.entries():
            oid = Oid(entry.oid.to_bytes(8))
            for problem in self._check_record(transaction, slot, entry.oid, entry.size):
                yield Finding(slot, tid, oid, problem)
            if entry.oid <= last_oid:
                yield Finding(slot, tid, oid, "the oids in the directory do not ascend")
            if complete and entry.previous != self.newest.find(oid):
                yield Finding(slot, tid, oid, "the directory names a wrong previous revision")
            last_oid = entry.oid
            self.newest.put(entry.oid, slot)
            slot += SLOT_HEAD_SIZE + entry.size
        if slot + TRAILER_SIZE != transaction.end:
            yield Finding(slot, tid, None, "the records do not fill the transaction")
        if transaction.head.next_oid <= last_oid:
            yield Finding(transaction.offset, tid, None, "the next oid is too small")

    def _check_record(
        self, transaction: LoggedTransaction, slot: int, oid: int, size: int
    ) -> Iterator[str]:
        most = max(0, transaction.end - slot)  # the size may be anything
        content = self.log.file.read(slot, min(SLOT_HEAD_SIZE + size, most))
        stored = decode_record(content[SLOT_HEAD_SIZE:])
        if stored is None:
            yield "the record is damaged"
            return
        if int.from_bytes(stored.oid) != oid:
            yield f"this is the record of oid {format_oid(stored.oid)}"
        if decode_distance(content) != slot - transaction.offset:
            yield "the slot does not lead to its transaction"
        refs = split_oids(stored.record.refs)
        if refs != sorted(set(refs)):
            yield "the references do not ascend"
        if 0 < stored.codec <= CODEC_MAX and not stored.kind:
            try:
                self.log.unpack_record(slot, stored, transaction.tid)
            except CorruptionError as error:
                yield error.reason

    def _check_refs(self) -> Iterator[Finding]:
        """Does every newest revision refer to objects that are there?"""
        for oid in self.newest.oids():
            slot = self.newest.find(oid)
            try:
                tid = self.log.read_slot(slot, oid)[1].tid
                stored = decode_record(self.log.copy_record(slot, oid))
            except StorageError:
                continue  # reported before, or written by a newer release
            assert stored is not None
            for ref in split_oids(stored.record.refs):
                if ref not in self.newest:
                    problem = f"it refers to oid {format_oid(ref)}, which does not exist"
                    yield Finding(slot, tid, oid, problem)

    def _check_scan(self) -> Iterator[Finding]:
        """Does what `Log` sees, forwards and backwards, agree with this walk?"""
        try:
            self.log.catch_up(self.size)
            offsets = array("Q", (head.offset for head in self.log.walk_back()))
        except StorageError as error:
            yield Finding(getattr(error, "offset", 0), None, None, str(error))
            return
        offsets.reverse()
        self.is_complete = offsets == self.visible
        if not self.is_complete:
            yield Finding(self.log.end, None, None, "walking backwards finds other transactions")
