"""Whole SQLite files: made new, read, and written, one transaction after the other.

Invariants: a new file appears complete or not at all; what is read is of one moment; memory does
not grow with the database.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from durus.appearing import appearing_at, making
from durus.error import StorageError, StorageOpenError
from durus.file_format import StoredDatabase, StoredTransaction
from durus.file_system import OperatingSystem
from durus.interfaces import NO_TID, OID_LIMIT, Oid, Record, Tid
from durus.sqlite_file import (
    CLASSIC_TID,
    INDEXES,
    SCHEMA,
    TIMEOUT_S,
    SqliteFile,
    open_sqlite_file,
)

__all__ = ["make_missing_sqlite_file", "read_sqlite", "write_sqlite"]


@contextlib.contextmanager
def read_sqlite(path: str) -> Iterator[StoredDatabase]:
    """All transactions that a file holds, as it is now; of a 4.x file one, without tid.

    Raises StorageError if it cannot be opened or read; CorruptionError if SQLite finds damage.
    """
    with contextlib.closing(open_sqlite_file(os.path.abspath(path), readonly=True)) as file:
        file.begin()
        meta = file.read_meta()
        yield StoredDatabase(
            transactions=_read_transactions(file),
            horizon=NO_TID if file.is_classic else meta.horizon,
            next_oid=meta.next_oid,
        )


def _read_transactions(file: SqliteFile) -> Iterator[StoredTransaction]:
    file.check_sound()
    if file.is_classic:
        yield StoredTransaction(records=_read_records(file, CLASSIC_TID))
    for fields in file.transactions():
        yield StoredTransaction(records=_read_records(file, fields["tid"]), **fields)


def _read_records(file: SqliteFile, tid: Tid) -> Iterator[tuple[Oid, Record]]:
    query = "SELECT class, state, refs, oid FROM revisions WHERE tid = ?"
    for row in file.rows(f"{query} AND class IS NOT NULL ORDER BY oid", tid):
        oid = file.oid_of(row[3])
        yield oid, file.record_of(oid, row)


def write_sqlite(path: str, database: StoredDatabase, *, target: str | None = None) -> None:
    """Make a new file (the path must not exist) that holds all of this, durable on return.

    target: the path that errors name, if it is another.

    Transactions without a tid get tids, and ids, of ours; if the first has none, no snapshot is
    older than it.

    Raises StorageOpenError when the file cannot be made, StorageError when it cannot hold the
    database, and whatever the database raises while it is read; then there is no file.
    """
    path = os.path.abspath(path)
    system = OperatingSystem()
    with making(target or path):
        system.close(system.create(path))
    try:
        _write(path, database)
        with making(target or path):
            fd = system.open(path, writable=True)
            try:
                system.sync(fd)
            finally:
                system.close(fd)
            system.sync_directory(os.path.dirname(path))
    except BaseException:
        with contextlib.suppress(OSError):
            system.unlink(path)
        raise


def _write(path: str, database: StoredDatabase) -> None:
    with contextlib.closing(SqliteFile(path, timeout_s=TIMEOUT_S)) as file:
        # Nobody else knows the file, so there is nothing to protect until it is complete.
        file.run_script("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + SCHEMA)
        file.begin("EXCLUSIVE")
        next_oid, base_tid = _write_transactions(file, database.transactions)
        horizon = max(database.horizon, base_tid)
        file.run(
            "INSERT INTO meta VALUES (?, ?, ?, ?, 0)",
            secrets.token_bytes(16),
            max(next_oid, database.next_oid),
            horizon,
            horizon,  # what was changed before may have been packed away
        )
        file.run("COMMIT")
        file.run_script(INDEXES)  # at last, all at once: this sorts, and need not search
    open_sqlite_file(path, readonly=False).close()  # this gives it a write-ahead log


def _write_transactions(
    file: SqliteFile, transactions: Iterable[StoredTransaction]
) -> tuple[int, Tid]:
    """Returns the number after the largest oid, and the tid of the base, if there is one."""
    now = Tid(time.time_ns())
    base_tid = last_tid = NO_TID
    next_oid = 0

    def check(records: Iterable[tuple[Oid, Record]]) -> Iterator[tuple[Oid, Record]]:
        nonlocal next_oid
        for oid, record in records:
            number = int.from_bytes(oid)
            if number >= OID_LIMIT:
                raise StorageError(
                    f"an SQLite file cannot hold oid {number}, as oids are less than 2**48; "
                    "convert the database with renumber=True"
                )
            if len(record.refs) % 8:
                raise StorageError(f"the references of oid {number} are no oids: {record.refs!r}")
            next_oid = max(next_oid, number + 1)
            yield oid, record

    for transaction in transactions:
        if not transaction.tid:
            tid = Tid(max(now, last_tid + 1))
            base_tid = base_tid or (NO_TID if last_tid else tid)
            transaction = replace(transaction, tid=tid, id=secrets.randbits(64))
        if transaction.tid <= last_tid:
            raise StorageError(
                f"a transaction with tid {transaction.tid} cannot come after one with {last_tid}"
            )
        last_tid = transaction.tid
        file.add_transaction(last_tid, transaction, check(transaction.records))
    return next_oid, base_tid


def make_missing_sqlite_file(path: str) -> None:
    """Make a new file if there is none: prepared aside, it appears complete, or not at all."""
    if os.path.exists(path):
        return
    for suffix in ("-wal", "-journal"):
        if os.path.exists(path + suffix):
            raise StorageOpenError(
                path,
                f"{path}{suffix} belongs to a database that was here, and would spoil a new one: "
                "put the database back, or remove that file",
            )
    # Another process may be first: then its is used.
    with (
        making(path),
        contextlib.suppress(FileExistsError),
        appearing_at(OperatingSystem(), path) as aside,
    ):
        write_sqlite(aside, StoredDatabase(transactions=()), target=path)
