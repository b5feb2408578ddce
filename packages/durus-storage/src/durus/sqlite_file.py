"""`SqliteFile`: an open database in an SQLite file, ours or one of Durus 4.x.

    meta           one row: database_id (16 random bytes), next_oid, and what packs have done:
                   horizon    no snapshot is older,
                   forgotten  what was changed up to this tid is not known any more,
                   packs      how many there were
    transactions   tid, id (64 bits), time_ns, user, note
    revisions      oid, tid, class, state, refs: the parts of a record, or NULL where a pack has
                   taken it away, and left only that the transaction changed this object

Oids and ids are unsigned numbers of 64 bits, and stand in SQLite's signed ones.  An object exists
when one of its revisions has a record.  Rows are never changed, but by a pack.

A file of Durus 4.x has the table `objects (id, data, refs)`.  Seen through temporary views it is a
database that was packed at tid 1, so the same queries read both.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from durus.error import (
    CorruptionError,
    NotADatabaseError,
    StorageError,
    StorageLockedError,
    StorageOpenError,
    UnsupportedFormatError,
)
from durus.file_format import StoredTransaction
from durus.interfaces import CHANGES_MAX, NO_TID, Oid, Record, Revision, Tid, Transaction
from durus.log_open import explain_failure
from durus.record import split_oids, split_record
from durus.sqlite_handle import Row, SqliteHandle

__all__ = [
    "CLASSIC_TID",
    "INDEXES",
    "LOG_SIZE_MAX",
    "SCHEMA",
    "TID_MAX",
    "TIMEOUT_S",
    "Meta",
    "SqliteFile",
    "number_of",
    "open_sqlite_file",
    "signed",
]

TIMEOUT_S: Final = 10.0
"""How long to wait for other processes, unless told otherwise."""
LOG_SIZE_MAX: Final = 16 << 20
"""SQLite's write-ahead log is cut down to so many bytes, when it begins anew."""
TID_MAX: Final = Tid(2**63 - 1)
"""The largest that SQLite can hold."""

_APPLICATION_ID: Final = 0x44555253  # "DURS"
_VERSION: Final = 1

SCHEMA: Final = f"""
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
CREATE TABLE meta (
    database_id BLOB NOT NULL,
    next_oid INTEGER NOT NULL,
    horizon INTEGER NOT NULL,
    forgotten INTEGER NOT NULL,
    packs INTEGER NOT NULL
);
CREATE TABLE transactions (
    tid INTEGER PRIMARY KEY,
    id INTEGER NOT NULL,
    time_ns INTEGER NOT NULL,
    user TEXT NOT NULL,
    note TEXT NOT NULL
);
CREATE TABLE revisions (
    oid INTEGER NOT NULL,
    tid INTEGER NOT NULL,
    class BLOB,
    state BLOB,
    refs BLOB
);
"""

INDEXES: Final = """
CREATE UNIQUE INDEX revisions_of_an_object ON revisions (oid, tid);
CREATE INDEX revisions_of_a_transaction ON revisions (tid, oid);
"""

CLASSIC_TID: Final = Tid(1)
"""That of everything in a file of Durus 4.x."""

_CLASSIC_VIEWS: Final = f"""
CREATE TEMP VIEW meta AS SELECT
    0 AS next_oid, {CLASSIC_TID} AS horizon, {CLASSIC_TID} AS forgotten, 0 AS packs;
CREATE TEMP VIEW transactions AS SELECT
    {CLASSIC_TID} AS tid, 0 AS id, 0 AS time_ns, '' AS user, '' AS note WHERE 0;
CREATE TEMP VIEW revisions AS SELECT
    id AS oid,
    {CLASSIC_TID} AS tid,
    class_of(CAST(data AS BLOB)) AS class,
    state_of(CAST(data AS BLOB)) AS state,
    refs_of(CAST(refs AS BLOB)) AS refs
    FROM objects WHERE data IS NOT NULL AND refs IS NOT NULL;
"""


class Meta(NamedTuple):
    """The row of the table `meta`, without the database's id, and the newest tid."""

    next_oid: int
    horizon: Tid
    forgotten: Tid
    packs: int
    tid: Tid


def number_of(oid: Oid) -> int:
    """The oid as SQLite has it."""
    return int.from_bytes(oid, signed=True)


def signed(id: int) -> int:
    """A transaction's id as SQLite has it."""
    return id - (id >> 63 << 64)


class SqliteFile(SqliteHandle):
    """A database file, and the questions that both kinds of it answer.

    What is read from a damaged file raises CorruptionError, as far as SQLite sees the damage.
    """

    is_classic = False
    """It is a file of Durus 4.x: read-only."""
    is_readonly = False
    unchanging: list[int] | None = None
    """What was known of a file that SQLite takes for one that does not change."""
    packs_seen: int | None = None
    """For a snapshot: how many packs there had been when its transaction began."""
    is_sound = False
    """SQLite has been asked, and has found nothing wrong."""

    def recognise(self, *, readonly: bool) -> None:
        """Find out what is in the file, and prepare to use it.  StorageError."""
        application_id = self.value("PRAGMA application_id")
        version = self.value("PRAGMA user_version")
        if application_id == 0 and self._has_objects():
            self.is_classic = True
            self.define("class_of", lambda pickles: split_record(pickles).class_pickle)
            self.define("state_of", lambda pickles: split_record(pickles).state_pickle)
            self.define("refs_of", _refs_of_classic)
            self.run_script(_CLASSIC_VIEWS)
        elif application_id != _APPLICATION_ID:
            raise NotADatabaseError(self.path, "this is the SQLite database of another program")
        elif version != _VERSION:
            reason = f"the file needs another release of durus-storage (version {version})"
            raise UnsupportedFormatError(self.path, reason)
        elif not readonly and self.value("PRAGMA journal_mode = WAL") != "wal":
            reason = "the file system has no shared memory, which SQLite needs to write"
            raise StorageOpenError(self.path, f"{reason}; readonly=True may work")
        self.value(f"PRAGMA journal_size_limit = {LOG_SIZE_MAX}")
        self.is_readonly = readonly or self.is_classic
        if self.is_readonly:
            self.run("PRAGMA query_only = ON")
        self.first("SELECT 1 FROM meta, transactions, revisions LIMIT 0")  # they are there

    def _has_objects(self) -> bool:
        columns = {row[0] for row in self.rows("SELECT name FROM pragma_table_info('objects')")}
        return columns >= {"id", "data", "refs"}

    def read_meta(self) -> Meta:
        row = self.first(
            "SELECT next_oid, horizon, forgotten, packs,"
            " max(horizon, coalesce((SELECT max(tid) FROM transactions), 0)) FROM meta"
        )
        if row is None or not all(type(value) is int for value in row):
            raise CorruptionError(self.path, None, f"no numbers, but {row} in the table meta")
        return Meta(*row)

    def check_sound(self) -> None:
        """CorruptionError if SQLite finds damage when it looks for it.

        When it merely reads it may pass over damage, and so over objects, in silence.  Whoever
        needs all of them calls this, which costs a fraction of reading them.
        """
        problem = self.value("PRAGMA main.integrity_check(1)")
        if problem != "ok":
            raise CorruptionError(
                self.path,
                None,
                f"SQLite says: {problem}.  'durus verify' tells more; put a backup in its place, "
                "or save what can be saved with the command .recover of SQLite's shell",
            )
        self.is_sound = True

    def begin(self, kind: str = "DEFERRED") -> None:
        if self.unchanging is not None and self.unchanging != _describe(self.path):
            raise StorageError(f"{self.path} has changed, in a read-only directory: open it anew")
        super().begin(kind)

    def end(self) -> None:
        with self.lock:
            self.packs_seen = None
            super().end()

    def renew(self, packs: int) -> None:
        """Let a snapshot's transaction go on to what is newest, if nothing was packed since.

        The caller sees to it that nobody packs now, and holds the lock of another handle.
        """
        if self.lock.acquire(blocking=False):  # else it is not idle, and could be waiting for us
            try:
                if self.packs_seen == packs and not self._cursors:
                    self.begin()
                    self.read_meta()
                    self.packs_seen = packs
            finally:
                self.lock.release()

    def add_transaction(
        self,
        tid: Tid,
        committed: Transaction | StoredTransaction,
        records: Iterable[tuple[Oid, Record]],
    ) -> None:
        """Insert a transaction and its records."""
        self.run(
            "INSERT INTO transactions VALUES (?, ?, ?, ?, ?)",
            tid,
            signed(committed.id),
            committed.time_ns,
            committed.user,
            committed.note,
        )
        self.run_many(
            "INSERT INTO revisions VALUES (?, ?, ?, ?, ?)",
            ((number_of(oid), tid, *record) for oid, record in records),
        )

    def load(self, oid: Oid, tid: Tid) -> Revision | None:
        """The newest revision of an object that is not newer than `tid`; CorruptionError."""
        row = self.first(
            "SELECT class, state, refs, tid FROM revisions"
            " WHERE oid = ? AND tid <= ? AND class IS NOT NULL ORDER BY tid DESC LIMIT 1",
            number_of(oid),
            tid,
        )
        return None if row is None else Revision(Tid(row[3]), self.record_of(oid, row))

    def record_of(self, oid: Oid, row: Row) -> Record:
        """The record in the first three of a row's values: class, state, refs."""
        record = Record(*row[:3])
        if not all(type(part) is bytes for part in record) or len(record.refs) % 8:
            raise CorruptionError(self.path, None, "the record is no record", oid)
        return record

    def oid_of(self, number: int) -> Oid:
        """The inverse of `number_of`."""
        if type(number) is not int:
            raise CorruptionError(self.path, None, f"{number!r} stands where an oid should be")
        return Oid(number.to_bytes(8, signed=True))

    def exists(self, oid: Oid) -> bool:
        query = "SELECT 1 FROM revisions WHERE oid = ? AND class IS NOT NULL LIMIT 1"
        return self.first(query, number_of(oid)) is not None

    def oids(self) -> Iterator[Oid]:
        """All objects that there are."""
        for (number,) in self.rows("SELECT DISTINCT oid FROM revisions WHERE class IS NOT NULL"):
            yield self.oid_of(number)

    def oids_written(self, since: Tid, until: Tid, count_max: int = -1) -> Iterator[Oid]:
        """What transactions with since < tid <= until have written; each once."""
        query = "SELECT DISTINCT oid FROM revisions WHERE tid > ? AND tid <= ? LIMIT ?"
        for (number,) in self.rows(query, since, until, count_max):
            yield self.oid_of(number)

    def find_changes(self, meta: Meta, since: Tid, until: Tid) -> frozenset[Oid] | None:
        """What `Storage.changes` answers."""
        if since < meta.forgotten:
            return None
        oids = frozenset(self.oids_written(since, until, CHANGES_MAX + 1))
        return None if len(oids) > CHANGES_MAX else oids

    def transactions(self, start: Tid = NO_TID, stop: Tid = TID_MAX) -> Iterator[dict[str, Any]]:
        """Those with start <= tid < stop, oldest first: tid, id, time_ns, user, note, by name."""
        names = "tid, id, time_ns, user, note"
        query = f"SELECT {names} FROM transactions WHERE tid >= ? AND tid < ? ORDER BY tid"
        for row in self.rows(query, start, stop):
            if [type(value) for value in row] != [int, int, int, str, str]:
                raise CorruptionError(self.path, None, f"transaction {row[0]} is no transaction")
            yield dict(zip(names.split(", "), row, strict=True)) | {"id": row[1] % 2**64}


def _refs_of_classic(packed: bytes) -> bytes:
    try:
        return b"".join(sorted(set(split_oids(packed))))
    except ValueError:
        return packed  # whoever reads it will say so


def open_sqlite_file(path: str, *, readonly: bool, timeout_s: float = TIMEOUT_S) -> SqliteFile:
    """Open a file that is there; it is left as it is.

    readonly: its bytes stay as they are, also what is in SQLite's log stays there.  (But SQLite
    rolls back what a killed 4.x has left half done.)

    Raises StorageOpenError and those derived from it, StorageLockedError, CorruptionError.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        why = "readonly=True" if readonly else "create=False"
        reason = f"there is no such file, and {why} makes none"
        raise StorageOpenError(path, reason, error.errno) from error
    except OSError as error:
        raise explain_failure(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise StorageOpenError(path, f"this is {kind}, and no database")
    if not status.st_size:
        reason = "the file is empty, and no Durus database; remove it to have one made there"
        raise NotADatabaseError(path, reason)
    if not _may(path, os.R_OK):
        raise StorageOpenError(path, "there is no permission to open it", errno.EACCES)
    folder_is_readonly = not _may(os.path.dirname(os.path.realpath(path)), os.W_OK)
    try:
        *_, log_size, journal_size = _describe(path)
        # A handle that may write would bring the log into the file when it is closed; one that may
        # not would leave behind what SQLite makes beside the file, if that was not there.
        mode = "ro" if readonly and log_size else "rw"
        try:
            return _open(path, mode, readonly, timeout_s)
        except StorageError as error:
            needs_folder = readonly and folder_is_readonly and type(error) is StorageError
            if not needs_folder or log_size or journal_size:
                raise
        return _open(path, "ro&immutable=1", readonly, timeout_s)
    except (StorageOpenError, StorageLockedError, CorruptionError):
        raise
    except StorageError as error:
        reason = f"cannot be opened: SQLite says: {error.__cause__}"
        if folder_is_readonly:
            reason += (
                "; it needs to make files beside this one, and there is no permission to write to "
                "the directory: readonly=True may work, or copy it elsewhere, with all files "
                "whose names begin with its own"
            )
        raise StorageOpenError(path, reason) from error
    except OSError as error:  # it has just been removed
        raise explain_failure(path, error) from error


def _open(path: str, mode: str, readonly: bool, timeout_s: float) -> SqliteFile:
    found = _describe(path) if "immutable" in mode else None
    file = SqliteFile(path, mode=mode, timeout_s=timeout_s)
    try:
        file.unchanging = found
        file.recognise(readonly=readonly)
        if not file.is_readonly and not _may(path, os.W_OK):
            reason = "there is no permission to open it to write; readonly=True may work"
            raise StorageOpenError(path, reason, errno.EACCES)
    except BaseException:
        file.close()
        raise
    return file


def _may(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _describe(path: str) -> list[int]:
    """What changes when the database does; last the sizes of SQLite's log and journal, or 0."""
    status = os.stat(path)
    beside = [os.path.realpath(path) + suffix for suffix in ("-wal", "-journal")]
    sizes = [os.stat(name).st_size if os.path.exists(name) else 0 for name in beside]
    return [status.st_ino, status.st_size, status.st_mtime_ns, *sizes]
