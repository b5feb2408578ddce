"""Whether a transaction may be committed to a log: what others have changed, and what is missing.

`FileStorage` asks, with its lock held.  Invariant: what is not known any more, because a pack has
taken it away, counts as a conflict.
"""

from collections.abc import Iterator

from durus.error import DanglingReferenceError, WriteConflictError
from durus.interfaces import CHANGES_MAX, Oid, Tid, Transaction
from durus.log import Log

__all__ = ["find_changes", "validate"]


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
    for head in log.walk_back():
        if head.tid <= since:
            return
        if head.tid <= until:
            yield log.read_transaction(head).oids


def validate(log: Log, transaction: Transaction, refs: set[Oid]) -> None:
    """Raises WriteConflictError and DanglingReferenceError."""
    since = transaction.snapshot_tid
    recent = log.recent.find(since, log.tid)
    if recent is None and since < log.header.horizon:
        raise WriteConflictError()  # what has changed since has been packed away
    conflicts: set[Oid] = set()
    for oids in [recent] if recent is not None else _read_changes(log, since, log.tid):
        conflicts.update(transaction.accessed.overlap(oids))
    # What is written must be there, unless it is created: a pack may have removed it.
    conflicts.update(
        oid for oid in transaction.writes if (oid in log.index) == (oid in transaction.created)
    )
    if conflicts:
        raise WriteConflictError(sorted(conflicts))
    dangling = [oid for oid in refs if oid not in log.index and oid not in transaction.created]
    if dangling:
        raise DanglingReferenceError(sorted(dangling))
