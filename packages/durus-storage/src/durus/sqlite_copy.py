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

from durus.error import StorageError, StorageOpenError
from durus.file_format import StoredDatabase, StoredTransaction
from durus.interfaces import NO_TID, OID_LIMIT, Oid, Record, Tid
from durus.log_file import OperatingSystem
from durus.log_open import explain_failure
from durus.sqlite_file import (
    INDEXES,
    SCHEMA,
    TIMEOUT_S,
    SqliteFile,
    oid_of,
    open_sqlite_file,
    unsigned,
)

__all__ = ["make_missing_sqlite_file", "read_sqlite", "write_sqlite"]


@contextlib.contextmanager
def read_sqlite(path: str) -> Iterator[StoredDatabase]:
    """All transactions that a file holds, as it is now; of a 4.x file one, without tid.

    Raises StorageError if it cannot be opened or read.
    """
    with contextlib.closing(open_sqlite_file(os.path.abspath(path), readonly=True)) as file:
        file.begin()
        meta = file.read_meta()
        if file.is_classic:
            yield StoredDatabase(transactions=[StoredTransaction(records=_read_records(file))])
        else:
            yield StoredDatabase(
                transactions=_read_transactions(file),
                horizon=meta.horizon,
                next_oid=meta.next_oid,
            )


def _read_transactions(file: SqliteFile) -> Iterator[StoredTransaction]:
    rows = file.rows("SELECT tid, id, time_ns, user, note FROM transactions ORDER BY tid")
    for tid, transaction_id, time_ns, user, note in rows:
        yield StoredTransaction(
            records=_read_records(file, Tid(tid)),
            tid=Tid(tid),
            id=unsigned(transaction_id),
            time_ns=time_ns,
            user=user,
            note=note,
        )


def _read_records(file: SqliteFile, tid: Tid | None = None) -> Iterator[tuple[Oid, Record]]:
    columns = "SELECT class, state, refs, oid FROM revisions"
    if tid is None:
        rows = file.rows(f"{columns} ORDER BY oid")
    else:
        rows = file.rows(f"{columns} WHERE tid = ? AND class IS NOT NULL ORDER BY oid", tid)
    for row in rows:
        oid = oid_of(row[3])
        yield oid, file.record_of(oid, row)


def write_sqlite(path: str, database: StoredDatabase) -> None:
    """Make a new file (the path must not exist) that holds all of this, durable on return.

    Transactions without a tid get tids, and ids, of ours; if the first has none, no snapshot is
    older than it.

    Raises StorageOpenError when the file cannot be made, StorageError when it cannot hold the
    database, and whatever the database raises while it is read; then there is no file.
    """
    path = os.path.abspath(path)
    _make(OperatingSystem(), path, database, path)


def _make(system: OperatingSystem, path: str, database: StoredDatabase, target: str) -> None:
    """What `write_sqlite` does; errors name the target."""
    with _making(target):
        system.close(system.create(path))
    try:
        _write(path, database)
        with _making(target):
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


@contextlib.contextmanager
def _making(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, FileNotFoundError):
            reason = f"the directory {os.path.dirname(path)} does not exist"
        raise StorageOpenError(path, f"cannot be made: {reason}", error.errno) from error


def _write(path: str, database: StoredDatabase) -> None:
    with contextlib.closing(SqliteFile(path, timeout_s=TIMEOUT_S)) as file:
        # Nobody else knows the file, so there is nothing to protect until it is complete.
        file.run_script("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + SCHEMA)
        file.run("PRAGMA locking_mode = EXCLUSIVE")
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
    with contextlib.closing(SqliteFile(path, timeout_s=TIMEOUT_S)) as file:
        file.recognise(readonly=False)  # this gives it a write-ahead log


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
    try:
        os.stat(path)
        return
    except FileNotFoundError:
        pass
    except OSError as error:
        raise explain_failure(path, error) from error
    for suffix in ("-wal", "-journal"):
        if os.path.exists(path + suffix):
            raise StorageOpenError(
                path,
                f"{path}{suffix} belongs to a database that was here, and would spoil a new one: "
                "put the database back, or remove that file",
            )
    folder = os.path.dirname(path)
    aside = os.path.join(folder, f".durus-{secrets.token_hex(8)}.new")
    system = OperatingSystem()
    _make(system, aside, StoredDatabase(transactions=()), path)
    with _making(path):
        try:
            with contextlib.suppress(FileExistsError):  # another process was first: its is used
                system.link(aside, path)
        finally:
            system.unlink(aside)
        system.sync_directory(folder)
