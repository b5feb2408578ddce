"""Pack: copy what can be reached from the root into a new file.

`FileStorage.pack` calls it, and puts the new file in the old one's place.  Invariants: transactions
keep their tids, ids, times, users, notes and order; records are copied byte for byte; the last
transactions are always kept, if need be without records, so that tids go on from where they were
and `find` still knows who has committed.
"""

import time
from array import array
from collections.abc import Iterator
from itertools import islice
from typing import Final

from durus.interfaces import Oid, Tid
from durus.log import Log
from durus.log_file import LogFile
from durus.log_format import FileHeader, LoggedTransaction
from durus.log_writer import LogWriter
from durus.oid_bitmap import OidBitmap, find_reachable

__all__ = ["read_transactions", "write_packed"]

_TRANSACTIONS_KEPT: Final = 1000
"""So many of the last transactions are kept, whether any of their records are or not."""


def read_transactions(
    log: Log, start: Tid | None = None, stop: Tid | None = None
) -> Iterator[LoggedTransaction]:
    """The visible transactions with start <= tid < stop, oldest first."""
    offsets = array("Q")
    for head in log.walk_back():
        if start is not None and head.tid < start:
            break
        if stop is None or head.tid < stop:
            offsets.append(head.offset)
    for offset in reversed(offsets):
        yield log.read_visible(offset)


def _find_reachable(log: Log) -> OidBitmap:
    def load_refs(oids: list[Oid]) -> Iterator[tuple[Oid, bytes]]:
        for oid in oids:
            revision = log.load(oid, log.tid)
            if revision is not None:
                yield oid, revision.record.refs

    reachable, _ = find_reachable(load_refs)  # a reference to nothing stays one
    return reachable


def write_packed(log: Log, file: LogFile, file_id: bytes) -> None:
    """Write the packed copy of a log, its tail settled, to an empty file; durable on return.

    Raises CorruptionError when something that must be copied is damaged, and OSError.
    """
    reachable = _find_reachable(log)
    header = FileHeader(
        database_id=log.header.database_id,
        file_id=file_id,
        created_ns=time.time_ns(),
        horizon=log.tid,
        next_oid=log.next_oid,
    )
    writer = LogWriter(file, header)
    kept_since = min(head.tid for head in islice(log.walk_back(), _TRANSACTIONS_KEPT))
    for transaction in read_transactions(log):
        records = []
        for entry in transaction.entries():
            oid = Oid(entry.oid.to_bytes(8))
            if oid in reachable and log.find_slot(oid) == entry.slot:
                records.append((oid, log.copy_record(entry.slot, oid)))
        if records or transaction.tid >= kept_since:
            writer.append(
                tid=transaction.tid,
                time_ns=transaction.head.time_ns,
                id=transaction.head.id,
                next_oid=transaction.head.next_oid,
                user=transaction.user,
                note=transaction.note,
                extension=transaction.extension,
                flags=transaction.head.flags,
                records=records,
            )
    writer.finish()
