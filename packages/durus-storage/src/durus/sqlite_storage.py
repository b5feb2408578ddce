"""`SqliteStorage`: a database in an SQLite file, for any number of threads and processes.

Invariants: what a commit reads to validate itself cannot change before it has ended, for it holds
SQLite's write lock (BEGIN IMMEDIATE); nothing is left of a commit, a reservation or a pack that
fails; a file of Durus 4.x is read-only, and does not change while it is open here.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

from durus.error import (
    CommitOutcomeUnknownError,
    DanglingReferenceError,
    DurusKeyError,
    HistoryUnavailableError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    StorageOpenError,
    WriteConflictError,
)
from durus.interfaces import (
    NO_TID,
    ROOT_OID,
    CommitResult,
    CommittedTransaction,
    Oid,
    Progress,
    Revision,
    Snapshot,
    Tid,
    Transaction,
    check_created,
)
from durus.oid_batches import OidBatches
from durus.record import record_to_classic, split_oids
from durus.sqlite_copy import make_missing_sqlite_file
from durus.sqlite_file import (
    LOG_SIZE_MAX,
    TID_MAX,
    TIMEOUT_S,
    Meta,
    SqliteFile,
    open_sqlite_file,
    signed,
)
from durus.sqlite_locks import opening
from durus.sqlite_pack import pack_file
from durus.sqlite_snapshot import SqliteReaders, SqliteSnapshot
from durus.storage import ClassicCalls
from durus.times import When

__all__ = ["SqliteStorage", "open_sqlite", "open_sqlite_uri"]

_CHECKPOINT: Final = "PRAGMA wal_checkpoint(PASSIVE)"
"""Brings into the file what is in SQLite's log, and makes nobody wait."""

T = TypeVar("T")


class SqliteStorage(ClassicCalls):
    """A database in an SQLite file: `HistoryStorage` and `PackableStorage`, and the classic calls.

    A file that Durus 4.x made is opened, too, and is then read-only.  In a child that the process
    forks it opens the file anew when it is used.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        readonly: bool = False,
        repair: bool = False,
        *,
        create: bool = True,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Open a file, and make it if it is not there.

        readonly: never write.
        repair: accepted for programs written for Durus 4.x; SQLite repairs what a crash has left.
        create: whether a file that is not there is made (never when readonly).
        timeout_s: how long calls wait while another process is writing, before they raise
        StorageLockedError.

        Raises StorageOpenError (for what the operating system refuses also an OSError),
        StorageLockedError and CorruptionError.  A file that is there is left as it is.
        """
        self._path = os.path.abspath(filename)
        self._log_path = f"{os.path.realpath(filename)}-wal"
        self._closed = False
        if create and not readonly:
            make_missing_sqlite_file(self._path)
        self._timeout_s = timeout_s
        self._in_doubt = False
        """A COMMIT has failed, and may yet come true after a crash."""
        self._log_size_max = LOG_SIZE_MAX
        self._tid = NO_TID
        self._use(open_sqlite_file(self._path, readonly=readonly, timeout_s=timeout_s))

    def _use(self, file: SqliteFile) -> None:
        """Work with this handle, and what was neither made nor locked before it."""
        try:
            self._readers = SqliteReaders(file, self._timeout_s)
            self._tid = max(self._tid, file.read_meta().tid)
        except BaseException:
            file.close()
            raise
        self._tid_lock = threading.Lock()
        self._oids = OidBatches()
        self._file = file
        """All writing is done here."""

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._path!r})"

    def get_filename(self) -> str:
        """The absolute path of the file."""
        return self._path

    @property
    def readonly(self) -> bool:
        return self._file.is_readonly

    @property
    def tid(self) -> Tid:
        return self._tid

    def close(self) -> None:
        """Close the file; open snapshots end, too."""
        self._closed = True
        self._readers.close()
        self._file.close()  # last: now SQLite's log goes into the file

    def _check_open(self) -> None:
        if self._closed:
            raise StorageClosedError(f"{self} is closed")
        if self._file.is_inherited:
            self._open_anew()

    def _open_anew(self) -> None:
        """In a process that was forked, where what the other one has opened is closed already."""
        with opening:  # a lock of our own might be held for ever, by a thread that is not here
            if self._file.is_inherited:
                self._file.check_in_place()
                self._use(
                    open_sqlite_file(
                        self._path, readonly=self._file.is_readonly, timeout_s=self._timeout_s
                    )
                )

    def _check_writable(self) -> None:
        self._check_open()
        if self._file.is_classic:
            raise ReadOnlyError(
                f"{self._path} was made by Durus 4.x, and is only read: 4.3 would overwrite "
                "objects in it, since it hands out used oids when it opens a file again.  "
                "'durus convert SOURCE TARGET --to log' makes a database of it that can be written"
            )
        if self.readonly:
            raise ReadOnlyError(f"{self} is open read-only")

    # Reading

    def _note_tid(self, tid: Tid) -> None:
        with self._tid_lock:
            self._tid = max(self._tid, tid)

    def snapshot(self, at: Tid | None = None) -> Snapshot:
        return self._snapshot(at)

    def _snapshot(self, at: Tid | None = None) -> SqliteSnapshot:
        self._check_open()
        file = self._readers.take()
        try:
            meta = file.read_meta()
            self._note_tid(meta.tid)
            tid = meta.tid
            if at is not None and at < tid:
                if at < meta.horizon:
                    raise HistoryUnavailableError(
                        f"{self._path}: there is no snapshot at tid {at}: what was before tid "
                        f"{meta.horizon} has been packed away, or was never kept"
                    )
                found = file.value("SELECT max(tid) FROM transactions WHERE tid <= ?", at)
                tid = max(meta.horizon, Tid(found or NO_TID))
            file.packs_seen = meta.packs
        except BaseException:
            self._readers.give_back(file)
            raise
        return SqliteSnapshot(self._readers, file, tid)

    def changes(self, since: Tid, until: Tid) -> frozenset[Oid] | None:
        self._check_open()
        until = min(until, TID_MAX)
        if since >= until:
            return frozenset()
        with contextlib.closing(self._snapshot()) as snapshot:
            return snapshot.file.find_changes(snapshot.file.read_meta(), since, until)

    def transactions(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[CommittedTransaction]:
        """The transactions with start <= tid < stop, oldest first.

        After a pack those that it kept: all that wrote the newest revision of an object, and the
        last 1,000; with the oids whose records are still there, of which there may be none.
        """
        first = NO_TID if start is None else min(start, TID_MAX)
        last = TID_MAX if stop is None else min(stop, TID_MAX)
        snapshot = self._snapshot()
        return _until_end(snapshot, snapshot.transactions(first, last))

    def revisions(self, oid: Oid) -> Iterator[Revision]:
        snapshot = self._snapshot()
        if not snapshot.file.exists(oid):
            snapshot.close()
            raise DurusKeyError(oid)
        return _until_end(snapshot, snapshot.revisions(oid))

    def find(self, transaction_id: int) -> Tid | None:
        """The tid of the transaction with this id, or None when it is not in the file.

        A pack forgets transactions, but none of the last 1,000.

        After a CommitOutcomeUnknownError this settles the matter, for good: StorageError when
        the file still does not let that be done.
        """
        if self._in_doubt:
            with self._writing() as file:
                # What the failed COMMIT has left in SQLite's log is overwritten by any change.
                file.run("UPDATE meta SET next_oid = next_oid + 1")
                file.run("COMMIT")
            self._in_doubt = False
        with contextlib.closing(self._snapshot()) as snapshot:
            number = signed(transaction_id)
            tid = snapshot.file.value("SELECT tid FROM transactions WHERE id = ?", number)
            return None if tid is None else Tid(tid)

    def gen_oid_record(
        self, start_oid: bytes | None = None, batch_size: int = 100
    ) -> Iterator[tuple[bytes, bytes]]:
        """The oids and records that can be reached from `start_oid`, or all that there are."""
        if start_oid is not None:
            yield from super().gen_oid_record(start_oid, batch_size)
            return
        snapshot = self._snapshot()
        for oid, revision in _until_end(snapshot, snapshot.load_all()):
            yield oid, record_to_classic(oid, revision.record)

    # Writing

    @contextlib.contextmanager
    def _writing(self) -> Iterator[SqliteFile]:
        """A transaction of SQLite's, alone in the file; what is not committed is rolled back."""
        self._check_writable()
        file = self._file
        with file.lock:
            file.check_in_place()
            try:
                file.begin("IMMEDIATE")
                yield file
            finally:
                file.end()

    def commit(self, transaction: Transaction) -> CommitResult:
        if not transaction.writes:
            raise ValueError("a transaction that writes nothing cannot be committed")
        check_created(transaction.created)
        writes = sorted(transaction.writes.items())
        refs = {ref for _, record in writes for ref in split_oids(record.refs)}
        committing = False
        try:
            with self._writing() as file:
                meta = file.read_meta()
                _validate(file, meta, transaction, refs - transaction.writes.keys())
                changed = file.find_changes(meta, transaction.snapshot_tid, meta.tid)
                tid = Tid(max(time.time_ns(), meta.tid + 1))
                file.add_transaction(tid, transaction, writes)
                next_oid = int.from_bytes(writes[-1][0]) + 1
                if next_oid > meta.next_oid:
                    file.run("UPDATE meta SET next_oid = ?", next_oid)
                committing = True
                file.run("COMMIT")
        except StorageError as error:
            if not committing:
                raise
            # On a full disk, the page that makes it a commit did not get into SQLite's log.
            self._in_doubt |= getattr(error.__cause__, "sqlite_errorname", "") != "SQLITE_FULL"
            try:
                happened = self.find(transaction.id) is not None
            except StorageError:
                raise CommitOutcomeUnknownError(transaction.id, str(error)) from error
            if not happened:
                raise StorageError(f"the transaction was not committed: {error}") from error
        self._note_tid(tid)
        with contextlib.suppress(StorageError, OSError):
            self._limit_log()
        return CommitResult(tid, changed)

    def _limit_log(self) -> None:
        """See to it that SQLite's write-ahead log does not grow because of old snapshots.

        It begins anew when all of it is in the file, and nobody reads from it any more; a
        connection that is idle would prevent that for as long as it is.  So the snapshots of this
        process go on to what is newest: except for a pack, it holds what they see, too.
        """
        size = os.stat(self._log_path).st_size
        if size <= LOG_SIZE_MAX:
            self._log_size_max = LOG_SIZE_MAX
        if size <= self._log_size_max:
            return
        for _ in range(2):  # first they make way, and then they stop reading from the log
            with self._writing() as file:  # nobody packs
                self._readers.renew(file.read_meta().packs)
            file.first(_CHECKPOINT)
        # If another process holds it up, not with every commit.
        self._log_size_max = max(2 * size, LOG_SIZE_MAX)

    def reserve_oids(self, count: int) -> Sequence[Oid]:
        if count < 1:
            raise ValueError(f"{count} oids cannot be reserved")
        self._check_writable()
        with self._file.lock:
            return self._oids.take(count, self._reserve, self._file.exists)

    def _reserve(self, count: int) -> range:
        with self._writing() as file:
            first = file.read_meta().next_oid
            file.run("UPDATE meta SET next_oid = ?", first + count)
            file.run("COMMIT")
            return range(first, first + count)

    def pack(
        self,
        *,
        keep: When | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Forget history, and the objects that cannot be reached from the root.

        keep: HistoryUnavailableError unless it is None: an SQLite file keeps nothing of it.
        progress: is not called; SQLite works by itself.

        Open snapshots go on seeing what they saw.  Without a root nothing happens.  Other commits
        wait meanwhile, up to their `timeout_s`.  After an error, nothing has changed.
        """
        if keep is not None:
            raise HistoryUnavailableError(
                f"{self}: packing an SQLite file forgets all history; keep= is for logs"
            )
        with self._writing() as file:
            if file.exists(ROOT_OID):
                pack_file(file)
                file.run("COMMIT")
                # If this fails, what has become free is used by commits, and not given back.
                with contextlib.suppress(StorageError):
                    file.run("VACUUM")
                    file.first(_CHECKPOINT)

    def get_packer(self) -> Iterator[str]:
        """An iterator that packs, for programs of 4.x: all at once, after its first step."""
        yield f"started {datetime.now()}"
        self.pack()
        yield f"finished {datetime.now()}"


def _until_end(snapshot: SqliteSnapshot, found: Iterator[T]) -> Iterator[T]:
    """What was found in a snapshot, which is closed when that was all."""
    yield from found
    snapshot.close()


def _validate(file: SqliteFile, meta: Meta, transaction: Transaction, refs: set[Oid]) -> None:
    """Raises WriteConflictError and DanglingReferenceError; refs: those to what is not written."""
    if transaction.snapshot_tid < meta.forgotten:
        raise WriteConflictError()  # what has changed since has been packed away
    changed = file.oids_written(transaction.snapshot_tid, meta.tid)
    conflicts = set(transaction.accessed.overlap(changed))
    # What is written must be there, unless it is created: a pack may have removed it.
    conflicts.update(
        oid for oid in transaction.writes if file.exists(oid) == (oid in transaction.created)
    )
    if conflicts:
        raise WriteConflictError(sorted(conflicts))
    dangling = [ref for ref in refs if not file.exists(ref)]
    if dangling:
        raise DanglingReferenceError(sorted(dangling))


def open_sqlite(
    path: str, *, readonly: bool = False, create: bool = True, repair: bool = False
) -> SqliteStorage:
    """Open an SQLite file: the opener of the format `sqlite`."""
    return SqliteStorage(path, readonly, repair, create=create)


def open_sqlite_uri(uri: str, *, readonly: bool, create: bool) -> SqliteStorage:
    """Open the file that `sqlite:///relative` or `sqlite:////absolute` names.

    What is special in a URI stands in it as a percent sign and two hexadecimal digits.
    """
    parts = urlsplit(uri)
    path = unquote(parts.path.removeprefix("/"))
    if not path or parts.netloc or parts.query or parts.fragment or parts.path[:1] != "/":
        raise StorageOpenError(
            uri,
            "a database in an SQLite file is written sqlite:///relative/path or "
            "sqlite:////absolute/path",
        )
    return SqliteStorage(path, readonly=readonly, create=create)
