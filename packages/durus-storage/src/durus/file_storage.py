"""`FileStorage`: a database in one file, the append-only log.

For a file of another format it gives the storage of that format, as in Durus 4.x.

A log's serves any number of connections and threads, and any number of processes may have a storage
of the same file.  Invariants: no user code runs under a lock; a snapshot reads the log that it was
opened on, whatever becomes of the file.
"""

import contextlib
import itertools
import os
import secrets
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from os import PathLike
from typing import Any, Literal, Self, cast

from durus.backup import BackupResult, backup
from durus.error import (
    DurusKeyError,
    HistoryUnavailableError,
    StorageClosedError,
    StorageError,
)
from durus.file_format import choose_format, recognise, recognise_start
from durus.file_system import OperatingSystem, System
from durus.group_commit import GroupCommit, PendingCommit
from durus.interfaces import (
    NO_TID,
    OID_LIMIT,
    CommitResult,
    CommittedTransaction,
    Oid,
    Progress,
    Revision,
    Snapshot,
    Tid,
    Transaction,
)
from durus.log import Log
from durus.log_batch import Batch, PreparedTransaction, find_changes
from durus.log_codec import LIBRARY_MISSING, Compression, RecordCodec, has_library
from durus.log_open import make_missing_file
from durus.oid_batches import OidBatches
from durus.online_pack import pack_online
from durus.record import record_to_classic
from durus.shared_log import CommitStatistics, SharedLog
from durus.storage import ClassicCalls
from durus.times import When, tid_at
from durus.utils import RandomAccessFile

__all__ = ["FileStorage", "TempFileStorage", "open_log"]

_CLOSE_CHECKPOINT_SIZE = 1000
"""As `CHECKPOINT_SIZE`, when a storage is closed."""


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
        return self.load_many(self._open_log().oids())

    def _open_log(self) -> Log:
        self._storage._shared.check_open()
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
        **options: Any,
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

        if options:
            raise ValueError(f"{filename}: only a log has the options {', '.join(options)}")
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
        durability: Literal["full", "none"] = "full",
        lock_timeout_s: float = 10.0,
        compression: Compression | None = None,
        mmap: bool = True,
        system: System | None = None,
    ) -> None:
        """Open a file, and make it if it is not there.

        filename: None for a temporary file, which is removed when the storage is closed.
        readonly: write nothing.
        repair: accepted for programs written for Durus 4.x; a log never needs it.
        create: whether a file that is not there is made (never when readonly).
        format: of the file, if it is made: log, shelf, dfs20 or sqlite.  What follows is for logs.
        durability: "full": what was committed survives a power cut; "none": the last transactions
            may be lost to one, as if they had never been; commits do not wait for the disk.
        lock_timeout_s: the seconds that a commit waits for those of other processes.
        compression: "zstd": what is committed here is compressed where that makes it smaller, and a
            pack compresses everything; "none": nothing is, and a pack unpacks everything; None: as
            the file says that it was made, or packed, last.  A new file says "none" unless "zstd"
            is given.  Either is read.
        mmap: whether to read through a map of the file: faster, but an error of the disk, or a file
            that somebody truncates, is then the end of the process (SIGBUS).
        system: another operating system, for tests.

        Raises StorageOpenError (for what the operating system refuses also an OSError) and
        CorruptionError; on a network file system StorageLockedError while another process has it
        open.  A file that is there is left as it is.
        """
        if durability not in ("full", "none"):
            raise ValueError(f"durability is 'full' or 'none', not {durability!r}")
        if not lock_timeout_s >= 0:
            raise ValueError(f"lock_timeout_s is a number of seconds, not {lock_timeout_s!r}")
        if compression not in ("zstd", "none", None):
            raise ValueError(f"compression is 'zstd' or 'none', not {compression!r}")
        if compression == "zstd" and not has_library():
            raise StorageError(LIBRARY_MISSING)
        self._durable = durability == "full"
        self._compression = compression
        self._system = OperatingSystem() if system is None else system
        if filename is None:
            folder = tempfile.gettempdir()
            path = os.path.join(folder, f"durus-{secrets.token_hex(8)}.durus")
            self._remove = weakref.finalize(
                self, _remove_temporary, self._system, path, os.getpid()
            )
        else:
            path = os.path.abspath(filename)
        if create and not readonly:
            dictionary = b"" if compression == "zstd" else None
            make_missing_file(self._system, path, dictionary=dictionary)
        self._shared = SharedLog(
            self._system,
            path,
            readonly=readonly,
            use_map=mmap,
            use_index=filename is not None,
            lock_timeout_s=lock_timeout_s,
        )
        self._commits = GroupCommit(self._commit_group)
        self._oids = OidBatches()
        self._oids_lock = threading.Lock()
        _storages.add(self)
        log = self._shared.catch_up()
        if not readonly:
            self._shared.check_features(log)

    def _begin_in_child(self) -> None:
        self._shared.begin_in_child()
        self._commits = GroupCommit(self._commit_group)
        self._oids = OidBatches()  # those at hand are the parent's
        self._oids_lock = threading.Lock()

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
        return f"{type(self).__name__}({self._shared.path!r})"

    def get_filename(self) -> str:
        """The absolute path of the file."""
        return self._shared.path

    @property
    def readonly(self) -> bool:
        return self._shared.readonly

    @property
    def tid(self) -> Tid:
        return self._shared.tid

    @property
    def statistics(self) -> CommitStatistics:
        """What this process did since it opened the file."""
        return replace(self._shared.statistics)

    def close(self) -> None:
        """Close the file; open snapshots end, too.  A temporary file is removed."""
        self._shared.checkpoint(at_least=_CLOSE_CHECKPOINT_SIZE)
        self._shared.close()
        if hasattr(self, "_remove"):
            self._remove()

    # Reading

    def snapshot(self, at: Tid | None = None) -> Snapshot:
        log = self._shared.catch_up()
        newest = log.tid
        if at is None or at >= newest:
            return _FileSnapshot(self, log, newest)
        if at < log.header.horizon:
            raise HistoryUnavailableError(
                f"{log.path}: there is no snapshot at tid {at}: what was before tid "
                f"{log.header.horizon} has been packed away"
            )
        tids = (head.tid for head in log.walk_back(at))
        return _FileSnapshot(self, log, next(tids, NO_TID))

    def changes(self, since: Tid, until: Tid) -> frozenset[Oid] | None:
        return find_changes(self._shared.current(), since, until)

    def transactions(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[CommittedTransaction]:
        """The transactions with start <= tid < stop, oldest first.

        After a pack those that it kept: all that wrote the newest revision of an object, and the
        last 1,000; with the oids whose records are still there, of which there may be none.
        """
        log = self._shared.catch_up()
        first = NO_TID if start is None else start
        end = Tid(log.tid + 1) if stop is None else min(stop, Tid(log.tid + 1))
        return (
            CommittedTransaction(t.tid, t.head.id, t.head.time_ns, t.user, t.note, t.oids)
            for t in log.walk(first, end)
        )

    def revisions(self, oid: Oid) -> Iterator[Revision]:
        log = self._shared.catch_up()
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
        if self.readonly:
            log: Log = self._shared.catch_up()
        else:
            failure = "the end of the log could not be settled"
            with self._shared.locked(failure) as settled:
                log = settled
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

    def commit(self, transaction: Transaction) -> CommitResult:
        self._shared.check_writable()
        prepared = PreparedTransaction(transaction, self._choose_codec())
        return self._commits.commit(prepared)

    def _choose_codec(self) -> RecordCodec | None:
        if self._compression == "none":
            return None
        codec = self._shared.current().codec
        return codec if self._compression == "zstd" or codec.is_wanted else None

    def _commit_group(self, group: list[PendingCommit]) -> None:
        self._shared.checkpoint()
        with self._shared.locked("the transaction was not committed") as log:
            batch = Batch(log)
            for pending in group:
                try:
                    pending.result = batch.add(pending.prepared)
                    pending.batch = batch
                except Exception as error:  # its own; the others are none the worse for it
                    pending.error = error
            if not batch.transactions:
                return
            sync_s = log.append(batch, durable=self._durable)
        log.show(batch)
        self._shared.statistics.note_group(len(batch.transactions), sync_s)

    def reserve_oids(self, count: int) -> Sequence[Oid]:
        if count < 1:
            raise ValueError(f"{count} oids cannot be reserved")
        self._shared.check_writable()
        with self._oids_lock:
            return self._oids.take(count, self._reserve, self._exists)

    def _reserve(self, count: int) -> range:
        failure = "no oids could be reserved"
        with self._shared.locked(failure) as log:
            first = log.next_oid
            if first + count > OID_LIMIT:
                raise StorageError(f"{log.path}: there are no {count} more oids")
            log.append_reservation(first + count)
            return range(first, first + count)

    def _exists(self, oid: Oid) -> bool:
        return self._shared.current().find_slot(oid) != 0

    def pack(
        self,
        *,
        keep: When | None = None,
        progress: Callable[[Progress], None] | None = None,
        keep_old: bool = False,
    ) -> None:
        """Forget history, and the objects that nothing leads to which is kept.

        keep: the history since this tid, time, or so long ago stays; by default none.
        progress: is called now and then; what it raises ends the pack.
        keep_old: whether the old file stays beside the new one, with `.old` after its name (in the
            place of an earlier one).

        Others read and commit meanwhile, and wait at the end for a moment.  Open snapshots go on
        seeing what they saw.  Without a root nothing happens.  Raises StorageError, also when
        somebody else is packing the file or there is no room for the new one; after an error, as
        far as anybody sees, nothing has changed, unless it says that the file was packed.
        """
        self._shared.check_writable()
        pack_online(
            self._shared,
            keep=None if keep is None else tid_at(keep),
            keep_old=keep_old,
            compression=self._compression,
            report=progress or (lambda progress: None),
        )

    def backup(
        self,
        folder: str | os.PathLike[str],
        *,
        full: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> BackupResult:
        """Bring the backups in a folder up to date, as `durus.backup.backup`."""
        self._shared.check_open()
        return backup(self._shared.path, folder, full=full, progress=progress)

    def get_packer(self) -> Iterator[str]:
        """An iterator that packs, for programs of 4.x: all at once, after its first step."""
        yield f"started {datetime.now()}"
        self.pack()
        yield f"finished {datetime.now()}"


_storages: "weakref.WeakSet[FileStorage]" = weakref.WeakSet()


def _begin_in_child() -> None:
    for storage in list(_storages):
        storage._begin_in_child()


os.register_at_fork(after_in_child=_begin_in_child)


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
        for name in (path, f"{path}.old"):
            with contextlib.suppress(OSError):
                system.unlink(name)
