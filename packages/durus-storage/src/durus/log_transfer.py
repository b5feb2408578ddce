"""A whole log file as a stream of transactions, and the other way: what conversion needs.

`durus.formats` has both in its table.  Invariants: what is read is what was visible when the file
was opened; a file that is written is a whole log, or is removed again.
"""

import contextlib
import itertools
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from durus.appearing import making
from durus.error import StorageError, format_oid
from durus.file_format import StoredDatabase, StoredTransaction
from durus.file_system import OperatingSystem, System
from durus.growing_log import GrowingLog
from durus.interfaces import NO_TID, OID_LIMIT, Oid, Record, Tid
from durus.log import Log
from durus.log_codec import RecordCodec
from durus.log_file import LogFile
from durus.log_format import LoggedTransaction
from durus.log_header import FileHeader, with_dictionary
from durus.log_open import explain_failure, open_log_file, saying
from durus.log_record import encode_record
from durus.log_writer import LogWriter

__all__ = ["adopt_abandoned_tail", "read_log", "write_log"]

_PARTS_MAX: Final = 1 << 32
"""The base of a database may be written in so many parts: their tids lie in the 4 seconds before
its own.  A database with as many as that would have more objects than there are oids."""


class _PartSize(NamedTuple):
    """When a part of the base is full."""

    records: int
    size: int
    """Bytes."""


_PART: Final = _PartSize(1000, 4 << 20)
_PART_OF_COMMIT: Final = _PartSize(250_000, 64 << 20)
"""When the base is a transaction that has a tid: mostly that of a program, and kept whole."""


def adopt_abandoned_tail(log: GrowingLog) -> None:
    """Make visible, for a reader, what a crash has left whole but unmarked; OSError.

    Nothing happens while somebody has the file open for writing: it may be about to be marked.
    """
    if log.catch_up().pending and log.file.lock(shared=True):
        try:
            log.adopt_tail()
        finally:
            log.file.unlock()


@contextlib.contextmanager
def read_log(path: str) -> Iterator[StoredDatabase]:
    """All transactions of a log file since its last pack; it is only read.

    Raises StorageOpenError; and CorruptionError, also while the transactions are read.
    """
    system = OperatingSystem()
    path = os.path.abspath(path)
    try:
        log = GrowingLog(open_log_file(system, path, readonly=True))
        adopt_abandoned_tail(log)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise explain_failure(path, error) from error
    yield StoredDatabase(
        transactions=(
            StoredTransaction(
                records=_read_records(log, transaction),
                tid=transaction.tid,
                id=transaction.head.id,
                time_ns=transaction.head.time_ns,
                user=transaction.user,
                note=transaction.note,
            )
            for transaction in log.walk(NO_TID, Tid(log.tid + 1))
        ),
        horizon=log.header.horizon,
        next_oid=log.next_oid,
        dictionary=log.codec.dictionary,
    )


def _read_records(log: Log, transaction: LoggedTransaction) -> Iterator[tuple[Oid, Record]]:
    for entry in transaction.entries():
        oid = Oid(entry.oid.to_bytes(8))
        yield oid, log.read_revision(entry.slot, oid).record


def write_log(path: str, database: StoredDatabase, system: System | None = None) -> None:
    """Make a new log file that holds all of a database; durable on return.

    Transactions without a tid get tids, and ids, of ours.  The first one is the base of the
    database, and may be all of it.  If it has no tid, or is large, it is written in parts, so that
    it need not fit into memory; every other transaction must.

    Raises StorageOpenError when the file cannot be made, StorageError when it cannot hold the
    database, and whatever the database raises while it is read; then there is no file.
    """
    system = OperatingSystem() if system is None else system
    path = os.path.abspath(path)
    with making(path):
        file = LogFile(system, path, system.create(path))
    try:
        _write_all(file, database)
    except BaseException:
        with contextlib.suppress(OSError):
            system.unlink(path)
        raise


def _write_all(file: LogFile, database: StoredDatabase) -> None:
    wanted = RecordCodec(database.dictionary)
    codec = wanted if wanted.is_wanted else None
    transactions = iter(database.transactions)
    base = next(transactions, StoredTransaction(records=()))
    parts = _split(base.records, _PART_OF_COMMIT if base.tid else _PART, codec)
    part, following = next(parts, None), next(parts, None)
    base_tid = base.tid or Tid(time.time_ns())
    horizon = database.horizon
    if following is not None or (part is not None and not base.tid):
        # No snapshot is older, so nobody ever sees half of the base.
        horizon = max(horizon, base_tid)
    header = FileHeader(
        database_id=secrets.token_bytes(16),
        file_id=secrets.token_bytes(16),
        created_ns=time.time_ns(),
        horizon=horizon,
        next_oid=database.next_oid,
        extension=with_dictionary(b"", database.dictionary),
    )
    with saying(f"{file.path} cannot be written"):
        writer = LogWriter(file, header)
    next_oid = 0

    def append(transaction: StoredTransaction, tid: Tid, records: list[tuple[Oid, bytes]]) -> None:
        nonlocal next_oid
        if records:
            next_oid = max(next_oid, int.from_bytes(records[-1][0]) + 1)
        with saying(f"{file.path} cannot be written"):
            writer.append(
                tid=tid,
                time_ns=transaction.time_ns,
                id=transaction.id if tid == transaction.tid else secrets.randbits(64),
                next_oid=next_oid,
                user=transaction.user,
                note=transaction.note,
                records=records,
            )

    tids = itertools.count(max(1, base_tid - _PARTS_MAX))
    while part is not None and following is not None:
        append(base, Tid(next(tids)), part)
        part, following = following, next(parts, None)
    if part is not None or base.tid:
        append(base, base_tid, part or [])
    for transaction in transactions:
        tid = transaction.tid or max(base_tid, Tid(writer.tid + 1))
        append(transaction, tid, sorted(dict(_encode(transaction.records, codec)).items()))
    if writer.tid < horizon:  # else nobody could begin a transaction that is not older
        append(StoredTransaction(records=()), horizon, [])
    with saying(f"{file.path} cannot be written"):
        writer.finish()
        file.system.sync_directory(os.path.dirname(file.path))


def _split(
    records: Iterable[tuple[Oid, Record]], full: _PartSize, codec: RecordCodec | None
) -> Iterator[list[tuple[Oid, bytes]]]:
    """The records, encoded, in parts of ascending oids."""
    part: dict[Oid, bytes] = {}
    size = 0
    for oid, encoded in _encode(records, codec):
        if len(part) == full.records or size >= full.size:
            yield sorted(part.items())
            part, size = {}, 0
        part[oid] = encoded
        size += len(encoded)
    if part:
        yield sorted(part.items())


def _encode(
    records: Iterable[tuple[Oid, Record]], codec: RecordCodec | None
) -> Iterator[tuple[Oid, bytes]]:
    for oid, record in records:
        if int.from_bytes(oid) >= OID_LIMIT:
            raise StorageError(
                f"a log cannot hold oid {format_oid(oid)}, as oids are less than 2**48; convert "
                "the database with renumber=True"
            )
        try:
            encoded = encode_record(oid, record, codec)
        except ValueError as error:
            raise StorageError(
                f"no record can be written for oid {format_oid(oid)}: {error}"
            ) from error
        yield oid, encoded
