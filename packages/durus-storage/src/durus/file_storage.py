"""`FileStorage`: a database in one file, the append-only log.

For a file of another format it gives the storage of that format, as in Durus 4.x.

A log's serves any number of connections and threads of one process, which holds the file's lock
while it has the file open for writing; other processes may read.  Invariants: one lock guards the
log's growth, and no user code runs under it; a snapshot reads the log that it was opened on,
whatever becomes of the file.
"""

import contextlib
import itertools
import os
import secrets
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from os import PathLike
from typing import Self, cast

from durus.error import (
    DurusKeyError,
    HistoryUnavailableError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    UnsupportedFormatError,
)
from durus.file_format import choose_format, recognise, recognise_start
from durus.interfaces import (
    NO_TID,
    ROOT_OID,
    CommitResult,
    CommittedTransaction,
    Oid,
    Revision,
    Snapshot,
    Tid,
    Transaction,
    check_created,
)
from durus.log import Log
from durus.log_file import LogFile, OperatingSystem, System
from durus.log_format import encode_record, encode_transaction
from durus.log_open import explain_failure, make_missing_file, open_log_file
from durus.log_pack import read_transactions, write_packed
from durus.log_transfer import adopt_abandoned_tail
from durus.log_validation import find_changes, validate
from durus.oid_batches import OidBatches
from durus.record import record_to_classic, split_oids
from durus.storage import ClassicCalls
from durus.utils import RandomAccessFile

__all__ = ["FileStorage", "TempFileStorage", "open_log"]


class _FileSnapshot:
    """What is visible in one log up to one tid."""

    def __init__(self, storage: "FileStorage", log: Log, tid: Tid) -> None:
        self._storage = storage
        self._log: Log | None = log
        self._tid = tid

    @property
    def tid(self) -> Tid:
        return self._tid

    def load(self, oid: Oid) -> Revision:
        revision = self._open_log().load(oid, self._tid)
        if revision is None:
            raise DurusKeyError(oid)
        return revision

    def load_many(self, oids: Iterable[Oid]) -> Iterator[tuple[Oid, Revision]]:
        for oid in oids:
            with contextlib.suppress(DurusKeyError):
                yield oid, self.load(oid)

    def load_all(self) -> Iterator[tuple[Oid, Revision]]:
        """Every object, whether it can be reached from the root or not."""
        return self.load_many(self._open_log().index.oids())

    def _open_log(self) -> Log:
        self._storage._check_open()
        if self._log is None:
            raise StorageClosedError("the snapshot is closed")
        return self._log

    def close(self) -> None:
        self._log = None


class FileStorage(ClassicCalls):
    """A database in a log file: `HistoryStorage` and `PackableStorage`, and the classic calls.

    `FileStorage(path)` of a file that has another format is the storage of that format:
    `ShelfStorage`, `FileStorage2` or `SqliteStorage`.
    """

    def __new__(
        cls,
        filename: str | PathLike[str] | None = None,
        readonly: bool = False,
        repair: bool = False,
        *,
        create: bool = True,
        format: str = "log",
        system: System | None = None,
    ) -> Self:
        found = "log"
        if cls is FileStorage and filename is not None:
            found = choose_format(filename, format if create and not readonly else "log")
        elif format != "log":
            what = "a temporary file" if filename is None else f"a file of {cls.__name__}"
            raise ValueError(f"{what} is a log, and cannot have the format {format!r}")
        if found == "log":
            return super().__new__(cls)
        from durus.formats import STORAGE_CLASSES  # in which this class is, too

        if found not in STORAGE_CLASSES:
            known = ", ".join(STORAGE_CLASSES)
            raise ValueError(f"no file of the format {format!r} can be made, only {known}")
        storage = STORAGE_CLASSES[found](filename, readonly, repair, create=create)
        return cast(Self, storage)  # a FileStorage to Durus 4.x, though no subclass of this one

    def __init__(
        self,
        filename: str | PathLike[str] | None = None,
        readonly: bool = False,
        repair: bool = False,
        *,
        create: bool = True,
        format: str = "log",
        system: System | None = None,
    ) -> None:
        """Open a file, and make it if it is not there.

        filename: None for a temporary file, which is removed when the storage is closed.
        readonly: take no lock, and see what another process commits.
        repair: accepted for programs written for Durus 4.x; a log never needs it.
        create: whether a file that is not there is made (never when readonly).
        format: of the file, if it is made: log, shelf, dfs20 or sqlite.
        system: another operating system, for tests.

        Raises StorageLockedError while another process has the file open for writing,
        StorageOpenError (for what the operating system refuses also an OSError) and
        CorruptionError.  A file that is there is left as it is.
        """
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._system = OperatingSystem() if system is None else system
        self._readonly = readonly
        if filename is None:
            folder = tempfile.gettempdir()
            filename = os.path.join(folder, f"durus-{secrets.token_hex(8)}.durus")
            self._remove = weakref.finalize(
                self, _remove_temporary, self._system, filename, self._pid
            )
        self._path = os.path.abspath(filename)
        if create and not readonly:
            make_missing_file(self._system, self._path)
        self._log: Log | None = self._open()
        self._last_tid = NO_TID
        """What `tid` says after close()."""
        self._directory_synced = False
        self._oids = OidBatches()

    def _open(self) -> Log:
        try:
            file = open_log_file(self._system, self._path, readonly=self._readonly)
            try:
                log = Log(file)
                if not self._readonly:
                    log.adopt_tail()
                unknown = log.features_read_only
                if unknown and not self._readonly:
                    raise UnsupportedFormatError(
                        self._path,
                        f"only a newer release of durus-storage can write to it (features "
                        f"{unknown:#x}); readonly=True opens it",
                    )
            except BaseException:
                if not self._readonly:
                    file.unlock()  # now: the traceback of the error keeps the file open for long
                raise
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise explain_failure(self._path, error) from error
        return log

    @classmethod
    def has_format(cls, file: str | PathLike[str] | RandomAccessFile) -> bool:
        """Whether a file begins as those do that `FileStorage` opens.

        file: its path, or the file itself, open for reading bytes.
        """
        if isinstance(file, str | PathLike):
            return recognise(file) is not None
        file.seek(0)
        return recognise_start(file.read(16)) is not None

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._path!r})"

    def get_filename(self) -> str:
        """The absolute path of the file."""
        return self._path

    @property
    def readonly(self) -> bool:
        return self._readonly

    @property
    def tid(self) -> Tid:
        log = self._log
        return self._last_tid if log is None else log.tid

    def close(self) -> None:
        """Give the lock up; open snapshots end, too.  A temporary file is removed."""
        with self._lock:
            log, self._log = self._log, None
            self._last_tid = self.tid if log is None else log.tid
            # A forked child has the same lock: unlocking there would take it from the parent.
            if log is not None and not self._readonly and os.getpid() == self._pid:
                log.file.unlock()
        if hasattr(self, "_remove"):
            self._remove()

    def _check_open(self) -> Log:
        log = self._log
        if log is None:
            raise StorageClosedError(f"{self} is closed")
        if os.getpid() != self._pid:
            raise StorageError(
                f"{self} was opened by process {self._pid} before it forked this one; open the "
                "file in the process that uses it"
            )
        return log

    def _check_writable(self) -> Log:
        log = self._check_open()
        if self._readonly:
            raise ReadOnlyError(f"{self} is open read-only")
        return log

    # Reading

    def _catch_up(self) -> Log:
        """The log, with what others have committed.  The lock is held."""
        log = self._check_open()
        try:
            if self._readonly and not self._is_in_place(log):
                log = self._log = self._reopen(log)
            log.catch_up()
            if self._readonly:
                adopt_abandoned_tail(log)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error}") from error
        return log

    def _is_in_place(self, log: Log) -> bool:
        """Whether the path still names the file that is open."""
        return self._system.path_status(self._path).identity == log.file.status().identity

    def _reopen(self, log: Log) -> Log:
        """The file that is now in the place of this log: another process has packed it."""
        packed = self._open()
        if packed.header.database_id != log.header.database_id or packed.tid < log.tid:
            raise StorageError(
                f"{self._path} was replaced by another database while it was open; open it anew"
            )
        return packed

    def snapshot(self, at: Tid | None = None) -> Snapshot:
        with self._lock:
            log = self._catch_up()
            newest = log.tid
        if at is None or at >= newest:
            return _FileSnapshot(self, log, newest)
        if at < log.header.horizon:
            raise HistoryUnavailableError(
                f"{self._path}: there is no snapshot at tid {at}: what was before tid "
                f"{log.header.horizon} has been packed away"
            )
        tids = (head.tid for head in log.walk_back() if head.tid <= at)
        return _FileSnapshot(self, log, next(tids, NO_TID))

    def changes(self, since: Tid, until: Tid) -> frozenset[Oid] | None:
        with self._lock:
            log = self._check_open()
            return find_changes(log, since, until)

    def transactions(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[CommittedTransaction]:
        """The transactions with start <= tid < stop, oldest first.

        After a pack those that it kept: all that wrote the newest revision of an object, and the
        last 1,000; with the oids whose records are still there, of which there may be none.
        """
        with self._lock:
            log = self._catch_up()
        return (
            CommittedTransaction(t.tid, t.head.id, t.head.time_ns, t.user, t.note, t.oids)
            for t in read_transactions(log, start, stop)
        )

    def revisions(self, oid: Oid) -> Iterator[Revision]:
        with self._lock:
            log = self._catch_up()
        found = log.revisions(oid, log.tid)
        newest = next(found, None)
        if newest is None:
            raise DurusKeyError(oid)
        return itertools.chain([newest], found)

    def find(self, transaction_id: int) -> Tid | None:
        """The tid of the transaction with this id, or None when it is not in the log.

        A pack forgets transactions, but none of the last 1,000.

        After a CommitOutcomeUnknownError this settles the matter, for good: StorageError when
        the file still does not let that be done.
        """
        with self._lock:
            log = self._catch_up()
            if not self._readonly:
                with self._writing("the end of the log could not be settled"):
                    log.settle_tail()
        return next((head.tid for head in log.walk_back() if head.id == transaction_id), None)

    def gen_oid_record(
        self, start_oid: bytes | None = None, batch_size: int = 100
    ) -> Iterator[tuple[bytes, bytes]]:
        """The oids and records that can be reached from `start_oid`, or all that there are."""
        if start_oid is not None:
            yield from super().gen_oid_record(start_oid, batch_size)
            return
        snapshot = self.snapshot()
        assert isinstance(snapshot, _FileSnapshot)
        try:
            for oid, revision in snapshot.load_all():
                yield oid, record_to_classic(oid, revision.record)
        finally:
            snapshot.close()

    # Writing

    @contextlib.contextmanager
    def _writing(self, failure: str) -> Iterator[None]:
        """Nothing that was asked for happens when the operating system fails in here."""
        try:
            yield
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{self._path}: {failure}: {error}") from error

    def _prepare_to_append(self) -> Log:
        """The log, ready to be appended to.  The lock is held; OSError."""
        log = self._check_writable()
        if not self._is_in_place(log):
            raise StorageError(
                f"{self._path} was replaced while it was open; nothing was written.  Open it anew"
            )
        log.settle_tail()
        if not self._directory_synced:
            # Else a power cut could take the file's name away, and all commits with it.
            self._system.sync_directory(os.path.dirname(os.path.realpath(self._path)))
            self._directory_synced = True
        return log

    def commit(self, transaction: Transaction) -> CommitResult:
        if not transaction.writes:
            raise ValueError("a transaction that writes nothing cannot be committed")
        check_created(transaction.created)
        writes = sorted(transaction.writes.items())
        encoded = [(oid, encode_record(oid, record)) for oid, record in writes]
        refs = {ref for _, record in writes for ref in split_oids(record.refs)}
        with self._lock:
            with self._writing("the transaction was not committed"):
                log = self._prepare_to_append()
            validate(log, transaction, refs)
            changed = find_changes(log, transaction.snapshot_tid, log.tid)
            tid = Tid(max(time.time_ns(), log.tid + 1))
            content = encode_transaction(
                log.header.file_id,
                log.end,
                tid=tid,
                time_ns=transaction.time_ns,
                id=transaction.id,
                next_oid=max(log.next_oid, int.from_bytes(writes[-1][0]) + 1),
                user=transaction.user,
                note=transaction.note,
                records=[(oid, log.index.find(oid), record) for oid, record in encoded],
            )
            log.append_transaction(content, tid, transaction.id)
            return CommitResult(tid, changed)

    def reserve_oids(self, count: int) -> Sequence[Oid]:
        if count < 1:
            raise ValueError(f"{count} oids cannot be reserved")
        with self._lock:
            log = self._check_writable()
            return self._oids.take(count, self._reserve, log.index.__contains__)

    def _reserve(self, count: int) -> range:
        with self._writing("no oids could be reserved"):
            log = self._prepare_to_append()
            first = log.next_oid
            log.append_reservation(first + count)
            return range(first, first + count)

    def pack(self) -> None:
        """Forget history, and the objects that cannot be reached from the root.

        Open snapshots go on seeing what they saw.  Without a root nothing happens.  Everybody
        else waits meanwhile.  After an error, as far as anybody sees, nothing has changed.
        """
        with self._lock, self._writing("the file could not be packed"):
            log = self._prepare_to_append()
            if ROOT_OID in log.index:
                self._pack(log)

    def get_packer(self) -> Iterator[str]:
        """An iterator that packs, for programs of 4.x: all at once, after its first step."""
        yield f"started {datetime.now()}"
        self.pack()
        yield f"finished {datetime.now()}"

    def _pack(self, log: Log) -> None:
        system = self._system
        path = os.path.realpath(self._path)
        aside = f"{path}.pack"
        with contextlib.suppress(FileNotFoundError):
            system.unlink(aside)  # a pack that did not come to its end
        file = LogFile(system, self._path, system.create(aside, log.file.status().mode))
        try:
            file.lock()  # nobody else knows it; it will be the one that others must not lock
            write_packed(log, file, secrets.token_bytes(16))
            packed = Log(file, log.recent)
            system.rename(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                system.unlink(aside)
            raise
        self._log = packed
        self._directory_synced = False
        self._prepare_to_append()


def TempFileStorage() -> FileStorage:  # noqa: N802 (the name that 4.x gave it)
    """A storage in a temporary file, which is removed when the storage is closed."""
    return FileStorage()


def open_log(
    path: str, *, readonly: bool = False, create: bool = True, repair: bool = False
) -> FileStorage:
    """Open a log file: the `FileOpener` of the format."""
    return FileStorage(path, readonly=readonly, create=create)


def _remove_temporary(system: System, path: str, pid: int) -> None:
    if os.getpid() == pid:  # and not a forked child
        with contextlib.suppress(OSError):
            system.unlink(path)
