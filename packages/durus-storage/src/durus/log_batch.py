"""Transactions that are committed to a log together: validated, and encoded one after the other.

`GroupCommit` makes one while the file is locked.  Invariants: each transaction finds those before
it as if they were committed; what is not known any more, because a pack has taken it away, counts
as a conflict.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from durus.error import DanglingReferenceError, WriteConflictError
from durus.interfaces import CHANGES_MAX, CommitResult, Oid, Tid, Transaction, check_created
from durus.log import Log
from durus.log_codec import RecordCodec
from durus.log_format import LoggedTransaction, encode_transaction
from durus.log_record import encode_record
from durus.record import split_oids

__all__ = ["Batch", "PreparedTransaction", "find_changes"]


def find_changes(log: Log, since: Tid, until: Tid) -> frozenset[Oid] | None:
    """What `Storage.changes` answers."""
    changed = log.recent.find(since, until)
    if changed is not None or since < log.header.horizon:
        return changed
    oids: set[Oid] = set()
    for written in _read_changes(log, since, until):
        oids.update(written)
        if len(oids) > CHANGES_MAX:
            return None
    return frozenset(oids)


def _read_changes(log: Log, since: Tid, until: Tid) -> Iterator[list[Oid]]:
    for head in log.walk_back(until):
        if head.tid <= since:
            return
        yield log.read_transaction(head).oids


class PreparedTransaction:
    """A transaction with all done for it that needs no lock."""

    def __init__(self, transaction: Transaction, codec: RecordCodec | None = None) -> None:
        """ValueError, and UnstorableError for a record that is too large.

        codec: that of the log, if the records are to be compressed.
        """
        if not transaction.writes:
            raise ValueError("a transaction that writes nothing cannot be committed")
        check_created(transaction.created)
        self.transaction = transaction
        writes = sorted(transaction.writes.items())
        self._codec = codec
        self._records = [(oid, encode_record(oid, record, codec)) for oid, record in writes]
        self.refs = {ref for _, record in writes for ref in split_oids(record.refs)}

    def records_for(self, log: Log) -> list[tuple[Oid, bytes]]:
        """What is to be stored in a log: oids, ascending, and encoded records.

        A pack may have put it in the place of the one that they were compressed for, and then what
        needs the dictionary of that one would be lost.
        """
        if self._codec is not None and self._codec.dictionary != log.codec.dictionary:
            self._codec = log.codec if log.codec.is_wanted else None
            writes = self.transaction.writes
            self._records = [
                (oid, encode_record(oid, writes[oid], self._codec)) for oid, _ in self._records
            ]
        return self._records


@dataclass(slots=True)
class Batch:
    """Transactions to be appended at the end of a log, whose tail is settled."""

    log: Log
    transactions: list[LoggedTransaction] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    is_appended: bool = False
    """Whether they are in the log, and marked."""
    _slots: dict[Oid, int] = field(default_factory=dict)
    """Those of what they write, but for the last one."""

    @property
    def content(self) -> bytes:
        """What is to be appended."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)

    def add(self, prepared: PreparedTransaction) -> CommitResult:
        """Add a transaction to the end: what its committer will be told.

        Raises WriteConflictError, DanglingReferenceError, and StorageError when it is too large;
        then the batch is as it was.
        """
        log, transaction = self.log, prepared.transaction
        last = self.transactions[-1] if self.transactions else None
        for entry in last.entries() if last else ():
            self._slots[Oid(entry.oid.to_bytes(8))] = entry.slot
        records = prepared.records_for(log)
        slots = {oid: self._find_slot(oid) for oid, _ in records}
        changed = self._validate(prepared, slots)
        tid = Tid(max(time.time_ns(), (last.tid if last else log.tid) + 1))
        next_oid = last.head.next_oid if last else log.next_oid
        logged, content = encode_transaction(
            log.header.file_id,
            last.end if last else log.end,
            tid=tid,
            time_ns=transaction.time_ns,
            id=transaction.id,
            next_oid=max(next_oid, int.from_bytes(records[-1][0]) + 1),
            user=transaction.user,
            note=transaction.note,
            records=[(oid, slots[oid], record) for oid, record in records],
        )
        self.transactions.append(logged)
        self.parts.append(content)
        return CommitResult(tid, changed)

    def _find_slot(self, oid: Oid) -> int:
        return self._slots.get(oid) or self.log.find_slot(oid)

    def _validate(
        self, prepared: PreparedTransaction, slots: dict[Oid, int]
    ) -> frozenset[Oid] | None:
        """What others have changed since the transaction's snapshot, if that can be told.

        slots: the newest ones of what it writes, or 0.
        """
        log, transaction = self.log, prepared.transaction
        since = transaction.snapshot_tid
        changed = log.recent.find(since, log.tid)
        if changed is None and since < log.header.horizon:
            raise WriteConflictError()  # what has changed since has been packed away
        conflicts = set(transaction.accessed.overlap(self._slots))
        for oids in [changed] if changed is not None else _read_changes(log, since, log.tid):
            conflicts.update(transaction.accessed.overlap(oids))
        # What is written must be there, unless it is created: a pack may have removed it.
        created = transaction.created
        conflicts.update(oid for oid, slot in slots.items() if (slot != 0) == (oid in created))
        if conflicts:
            raise WriteConflictError(sorted(conflicts))
        dangling = [oid for oid in prepared.refs - created if not self._find_slot(oid)]
        if dangling:
            raise DanglingReferenceError(sorted(dangling))
        if changed is None:
            changed = find_changes(log, since, log.tid)
        return None if changed is None else changed.union(self._slots)
