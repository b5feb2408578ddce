"""Verify: read a whole SQLite file, and report everything in it that is not as it must be.

SQLite checks its own structures first; the rest is what only Durus knows: records, references,
tids.  It reads what is committed when it begins.
"""

import contextlib
import os
from collections.abc import Iterator

from durus.error import CorruptionError, format_oid
from durus.file_format import Finding
from durus.interfaces import OID_LIMIT, Oid, Tid
from durus.record import split_oids
from durus.sqlite_file import SqliteFile, oid_of, open_sqlite_file
from durus.sqlite_handle import Row

__all__ = ["verify_sqlite"]


def verify_sqlite(path: str) -> Iterator[Finding]:
    """Yield what is wrong with an SQLite file, ours or one of Durus 4.x; nothing if it is sound.

    It is only read.  Raises StorageError when it cannot be opened, or holds no database.
    """
    try:
        with contextlib.closing(open_sqlite_file(os.path.abspath(path), readonly=True)) as file:
            file.begin()
            yield from _check(file)
    except CorruptionError as error:  # so severe that nothing more can be read
        yield Finding(None, None, None, error.reason)


def _check(file: SqliteFile) -> Iterator[Finding]:
    for (problem,) in file.rows("PRAGMA main.integrity_check"):
        if problem != "ok":
            yield Finding(None, None, None, f"SQLite says: {problem}")
    if file.is_classic:
        for (number,) in file.rows("SELECT id FROM objects WHERE data IS NULL OR refs IS NULL"):
            yield Finding(None, None, oid_of(number), "there is no record")
    else:
        yield from _check_tables(file)
    for row in file.rows("SELECT class, state, refs, oid, tid FROM revisions ORDER BY oid, tid"):
        oid = oid_of(row[3])
        for problem in _check_record(file, oid, row):
            yield Finding(None, None if file.is_classic else Tid(row[4]), oid, problem)


def _check_tables(file: SqliteFile) -> Iterator[Finding]:
    meta = file.read_meta()
    if file.value("SELECT count(*) FROM meta") != 1:
        yield Finding(None, None, None, "the table meta has more than one row")
    for (tid,) in file.rows("SELECT tid FROM transactions WHERE tid <= 0"):
        yield Finding(None, Tid(tid), None, "the tid is not larger than 0")
    orphans = "tid NOT IN (SELECT tid FROM transactions)"
    for oid, tid in file.rows(f"SELECT oid, tid FROM revisions WHERE {orphans}"):
        yield Finding(None, Tid(tid), oid_of(oid), "no transaction has this tid")
    lost = "class IS NULL AND tid > ?"
    for oid, tid in file.rows(f"SELECT oid, tid FROM revisions WHERE {lost}", meta.horizon):
        yield Finding(None, Tid(tid), oid_of(oid), "there is no record, and no pack since")
    beyond = "oid < 0 OR oid >= min(?, ?)"
    for oid, tid in file.rows(
        f"SELECT oid, tid FROM revisions WHERE {beyond}", meta.next_oid, OID_LIMIT
    ):
        yield Finding(None, Tid(tid), oid_of(oid), "the next oid is too small")


def _check_record(file: SqliteFile, oid: Oid, row: Row) -> Iterator[str]:
    parts = row[:3]
    if parts == (None, None, None):
        return  # packed away
    if not all(isinstance(part, bytes) for part in parts) or len(parts[2]) % 8:
        yield "the record is no record"
        return
    refs = split_oids(parts[2])
    if refs != sorted(set(refs)):
        yield "the references do not ascend"
    if file.value(
        "SELECT max(tid) = ? FROM revisions WHERE oid = ? AND class IS NOT NULL", row[4], row[3]
    ):
        for ref in refs:
            if not file.exists(ref):
                yield f"it refers to oid {format_oid(ref)}, which does not exist"
