"""Verify: read a whole SQLite file, and report everything in it that is not as it must be.

SQLite checks its own structures first; the rest is what only Durus knows: types, records,
references, tids.  It reads what is committed when it begins.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from durus.error import CorruptionError, format_oid
from durus.file_format import Finding
from durus.interfaces import OID_LIMIT, Oid, Tid
from durus.record import split_oids
from durus.sqlite_file import SqliteFile, open_sqlite_file
from durus.sqlite_handle import Row

__all__ = ["verify_sqlite"]

_WRONG: Final = {
    "no transaction has this tid": "tid NOT IN (SELECT tid FROM transactions)",
    "there is no record, and no pack since": "class IS NULL AND tid > (SELECT horizon FROM meta)",
    "the next oid is too small": (
        f"oid < 0 OR oid >= min((SELECT next_oid FROM meta), {OID_LIMIT})"
    ),
}
"""What can be wrong with a revision, and when it is."""


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
            yield Finding(None, None, file.oid_of(number), "there is no record")
    else:
        yield from _check_meta(file)
        yield from _check_transactions(file)
    for row in file.rows(
        f"SELECT class, state, refs, oid, tid, {', '.join(_WRONG.values())} FROM revisions"
        " ORDER BY oid, tid"
    ):
        number, tid = row[3:5]
        if type(number) is not int or type(tid) is not int:
            problem = f"a revision has the oid {number!r} and the tid {tid!r}"
            yield Finding(None, None, None, problem)
            continue
        found = None if file.is_classic else Tid(tid)
        oid = file.oid_of(number)
        for problem, is_wrong in zip(_WRONG, row[5:], strict=True):
            if is_wrong and not file.is_classic:
                yield Finding(None, found, oid, problem)
        for problem in _check_record(file, oid, row):
            yield Finding(None, found, oid, problem)


def _check_meta(file: SqliteFile) -> Iterator[Finding]:
    try:
        file.read_meta()
    except CorruptionError as error:
        yield Finding(None, None, None, error.reason)
    if file.value("SELECT count(*) FROM meta") > 1:
        yield Finding(None, None, None, "the table meta has more than one row")


def _check_transactions(file: SqliteFile) -> Iterator[Finding]:
    for (tid,) in file.rows("SELECT tid FROM transactions"):
        if tid <= 0:
            yield Finding(None, Tid(tid), None, "the tid is not larger than 0")
        try:
            list(file.transactions(tid, Tid(tid + 1)))
        except CorruptionError as error:
            yield Finding(None, Tid(tid), None, error.reason)


def _check_record(file: SqliteFile, oid: Oid, row: Row) -> Iterator[str]:
    if row[:3] == (None, None, None):
        return  # packed away
    try:
        refs = split_oids(file.record_of(oid, row).refs)
    except CorruptionError as error:
        yield error.reason
        return
    if refs != sorted(set(refs)):
        yield "the references do not ascend"
    if file.value(
        "SELECT max(tid) = ? FROM revisions WHERE oid = ? AND class IS NOT NULL", row[4], row[3]
    ):
        for ref in refs:
            if not file.exists(ref):
                yield f"it refers to oid {format_oid(ref)}, which does not exist"
