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
from typing import Final

from durus.error import StorageError, StorageOpenError, format_oid
from durus.file_format import StoredDatabase, StoredTransaction
from durus.interfaces import OID_LIMIT, Oid, Record, Tid
from durus.log import Log
from durus.log_file import LogFile, OperatingSystem, System
from durus.log_format import FileHeader, LoggedTransaction, encode_record
from durus.log_open import explain_failure, open_log_file
from durus.log_pack import read_transactions
from durus.log_writer import LogWriter

__all__ = ["adopt_abandoned_tail", "read_log", "write_log"]

_PART_RECORDS_MAX: Final = 1000
_PART_SIZE_MAX: Final = 4 << 20
_PARTS_MAX: Final = 1 << 32
"""The base of a database may be written in so many parts: their tids lie in the 4 seconds before
now.  A database with as many as that would have more objects than there are oids."""


def adopt_abandoned_tail(log: Log) -> None:
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
        log = Log(open_log_file(system, path, readonly=True))
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
            for transaction in read_transactions(log)
        ),
        horizon=log.header.horizon,
        next_oid=log.next_oid,
    )


def _read_records(log: Log, transaction: LoggedTransaction) -> Iterator[tuple[Oid, Record]]:
    for entry in transaction.entries():
        oid = Oid(entry.oid.to_bytes(8))
        yield oid, log.read_revision(entry.slot, oid).record


def write_log(path: str, database: StoredDatabase, system: System | None = None) -> None:
    """Make a new log file that holds all of a database; durable on return.

    Transactions without a tid get tids, and ids, of ours.  If the first has none, it is the base
    of the database, perhaps all of it: it is written in parts, so it need not fit into memory.
    Every other transaction must.

    Raises StorageOpenError when the file cannot be made, StorageError when it cannot hold the
    database, and whatever the database raises while it is read; then there is no file.
    """
    system = OperatingSystem() if system is None else system
    path = os.path.abspath(path)
    try:
        file = LogFile(system, path, system.create(path))
    except OSError as error:
        reason = f"cannot be made: {error.strerror or error}"
        raise StorageOpenError(path, reason, error.errno) from error
    try:
        _write_all(file, database)
    except BaseException:
        with contextlib.suppress(OSError):
            system.unlink(path)
        raise


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path} cannot be written: {error}") from error


def _write_all(file: LogFile, database: StoredDatabase) -> None:
    transactions = iter(database.transactions)
    first = next(transactions, None)
    base = None if first is None or first.tid else first
    if first is not None and base is None:
        transactions = itertools.chain([first], transactions)
    parts = _split(() if base is None else base.records)
    part = next(parts, None)
    base_tid = Tid(time.time_ns())
    header = FileHeader(
        database_id=secrets.token_bytes(16),
        file_id=secrets.token_bytes(16),
        created_ns=base_tid,
        # No snapshot is older than the last part: nobody ever sees half of the base.
        horizon=database.horizon if part is None else base_tid,
        next_oid=database.next_oid,
    )
    with _writing(file.path):
        writer = LogWriter(file, header)
    next_oid = 0

    def append(transaction: StoredTransaction, tid: Tid, records: list[tuple[Oid, bytes]]) -> None:
        nonlocal next_oid
        if records:
            next_oid = max(next_oid, int.from_bytes(records[-1][0]) + 1)
        with _writing(file.path):
            writer.append(
                tid=tid,
                time_ns=transaction.time_ns,
                id=transaction.id if transaction.tid else secrets.randbits(64),
                next_oid=next_oid,
                user=transaction.user,
                note=transaction.note,
                records=records,
            )

    tids = itertools.count(base_tid - _PARTS_MAX)
    while base is not None and part is not None:
        later = next(parts, None)
        append(base, base_tid if later is None else Tid(next(tids)), part)
        part = later
    for transaction in transactions:
        records = dict(_encode(transaction.records))
        tid = transaction.tid or max(base_tid, Tid(writer.tid + 1))
        append(transaction, tid, sorted(records.items()))
    with _writing(file.path):
        writer.finish()
        file.system.sync_directory(os.path.dirname(file.path))


def _split(records: Iterable[tuple[Oid, Record]]) -> Iterator[list[tuple[Oid, bytes]]]:
    """The records, encoded, in parts of ascending oids."""
    part: dict[Oid, bytes] = {}
    size = 0
    for oid, encoded in _encode(records):
        if len(part) == _PART_RECORDS_MAX or size >= _PART_SIZE_MAX:
            yield sorted(part.items())
            part, size = {}, 0
        part[oid] = encoded
        size += len(encoded)
    if part:
        yield sorted(part.items())


def _encode(records: Iterable[tuple[Oid, Record]]) -> Iterator[tuple[Oid, bytes]]:
    for oid, record in records:
        if int.from_bytes(oid) >= OID_LIMIT:
            raise StorageError(
                f"a log cannot hold oid {format_oid(oid)}, as oids are less than 2**48; convert "
                "the database with renumber=True"
            )
        try:
            encoded = encode_record(oid, record)
        except ValueError as error:
            raise StorageError(
                f"no record can be written for oid {format_oid(oid)}: {error}"
            ) from error
        yield oid, encoded
