"""The log at a path, which other processes append to, pack, replace and remove meanwhile.

`FileStorage` has one.  Invariants: whoever reads takes no lock; before anything is appended the
file is locked, found to be the one that the path names, and its tail is settled; a file that is
there is never taken for another database's.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from durus.error import (
    DatabaseReplacedError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    UnsupportedFormatError,
)
from durus.file_system import FileStatus, System
from durus.growing_log import GrowingLog
from durus.index_checkpoint import (
    CHECKPOINT_SIZE,
    open_index,
    renew_index,
    write_checkpoint,
)
from durus.interfaces import NO_TID, Tid
from durus.log import Log
from durus.log_index import RecentChanges
from durus.log_lock import obtain_lock
from durus.log_open import explain_failure, open_log_file, saying

__all__ = ["CommitStatistics", "SharedLog"]


@dataclass(slots=True)
class CommitStatistics:
    """What this process did since it opened the file."""

    transactions: int = 0
    """Committed ones."""
    groups: int = 0
    """So many syncs they took."""
    sync_s: float = 0.0
    """The seconds that these took together."""
    sync_max_s: float = 0.0
    lock_waits: int = 0
    """How often another process had the file locked."""
    lock_wait_s: float = 0.0
    lock_wait_max_s: float = 0.0

    def note_group(self, transactions: int, sync_s: float) -> None:
        self.transactions += transactions
        self.groups += 1
        self.sync_s += sync_s
        self.sync_max_s = max(self.sync_max_s, sync_s)

    def note_lock_wait(self, waited_s: float) -> None:
        if waited_s:
            self.lock_waits += 1
            self.lock_wait_s += waited_s
            self.lock_wait_max_s = max(self.lock_wait_max_s, waited_s)


class SharedLog:
    """What one process has of a log file.  All may be called by any thread."""

    def __init__(
        self,
        system: System,
        path: str,
        *,
        readonly: bool,
        use_map: bool,
        use_index: bool,
        lock_timeout_s: float,
    ) -> None:
        """Open the file; StorageOpenError, StorageLockedError, CorruptionError."""
        self.path = path
        self.readonly = readonly
        self.statistics = CommitStatistics()
        self.system = system
        self.uses_map = use_map
        self.uses_index = use_index
        self._lock_timeout_s = lock_timeout_s
        self._closed = False
        self._last_tid = NO_TID
        """What `tid` is while no file is open."""
        self._lock = threading.Lock()
        """Guards which log is the current one."""
        self._appending = threading.Lock()
        """Whose it is may lock the file, of the threads of this process."""
        self._directory_synced: Log | None = None
        """The log whose name will survive a power cut for certain."""
        self._next_checkpoint = CHECKPOINT_SIZE
        self._log: GrowingLog | None = self._open()

    def _open(self, recent: RecentChanges | None = None) -> GrowingLog:
        try:
            file = open_log_file(
                self.system, self.path, readonly=self.readonly, use_map=self.uses_map
            )
            network = file.network_file_system()
            if network is not None:
                # There nobody sees for certain what others write: one process at a time.
                obtain_lock(file, self._lock_timeout_s, shared=self.readonly)
            try:
                index = None
                if self.uses_index:
                    index = open_index(self.system, self.path, writable=False)
                log = GrowingLog(file, recent, index=index)
            except BaseException:
                if network is not None:
                    file.unlock()  # now: the traceback of the error keeps the file open for long
                raise
            log.keeps_lock = network is not None
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise explain_failure(self.path, error) from error
        return log

    def open_another(self) -> GrowingLog:
        """The log that the path names now, for a reader that is to see when it likes what others
        commit; StorageError, OSError."""
        file = open_log_file(self.system, self.path, readonly=True)
        return GrowingLog(file, index=open_index(self.system, self.path, writable=False))

    def check_features(self, log: Log) -> None:
        """Raises UnsupportedFormatError if this release must not write to the log."""
        unknown = log.features_read_only
        if unknown:
            raise UnsupportedFormatError(
                self.path,
                f"only a newer release of durus-storage can write to it (features {unknown:#x}); "
                "readonly=True opens it",
            )

    @property
    def tid(self) -> Tid:
        """The newest transaction that is known here."""
        log = self._log
        return self._last_tid if log is None else log.tid

    def check_open(self) -> None:
        if self._closed:
            raise StorageClosedError(f"{self.path} is closed")

    def check_writable(self) -> None:
        self.check_open()
        if self.readonly:
            raise ReadOnlyError(f"{self.path} is open read-only")

    def close(self) -> None:
        with self._appending, self._lock:
            self._closed = True
            log, self._log = self._log, None
            if log is not None:
                self._last_tid = log.tid
                if log.keeps_lock:
                    log.file.unlock()

    def begin_in_child(self) -> None:
        """In a process that has just been forked: open the file anew when it is needed."""
        self._last_tid = self.tid
        self._lock = threading.Lock()  # a thread that is not here may have had it
        self._appending = threading.Lock()
        self._log = None

    # What others have done

    def _current(self) -> GrowingLog:
        """The log.  The lock is held."""
        self.check_open()
        if self._log is None:
            self._log = self._open()
        return self._log

    def current(self) -> GrowingLog:
        """The log as far as it is known in this process."""
        with self._lock:
            return self._current()

    def catch_up(self) -> GrowingLog:
        """The log with all that others have committed; DatabaseReplacedError, StorageError.

        That is what is marked; and what is whole but unmarked, if nobody is committing: then a
        crash has left it so.
        """
        with self._lock, saying(f"{self.path}: cannot be read"):
            log, status = self._look()
            tail = log.catch_up(status.size)
            if tail.pending and tail.size != log.adopted_size:
                self._adopt(log)
        if log.unindexed > 2 * self._next_checkpoint and self.uses_index:
            renew_index(log)
            # Soon again if that was of use, and else ever later.
            self._next_checkpoint = CHECKPOINT_SIZE + log.unindexed // 2
        return log

    def _look(self) -> tuple[GrowingLog, FileStatus]:
        """The log that the path names now.  The lock is held."""
        log = self._current()
        status = self._path_status()
        if status.identity != log.identity:
            log = self._log = self._follow(log)
            status = log.file.status()
        return log, status

    def _path_status(self) -> FileStatus:
        try:
            return self.system.path_status(self.path)
        except FileNotFoundError as error:
            raise DatabaseReplacedError(
                f"{self.path} was removed, or renamed, while it was open; give it back its name, "
                "or open what is to be used instead"
            ) from error

    def _follow(self, log: GrowingLog) -> GrowingLog:
        """The log that is now in the place of this one: another process has packed it."""
        log.catch_up()  # what changed in it up to its end
        packed = self._open(log.recent.copy())  # it may not be what became of this log
        if packed.header.database_id != log.header.database_id or not packed.continues(log):
            if packed.keeps_lock:
                packed.file.unlock()
            raise DatabaseReplacedError(
                f"{self.path} was replaced by another database, or by an older copy, while it was "
                "open; nothing was written to it.  Close it, and open it anew"
            )
        return packed

    def _adopt(self, log: GrowingLog) -> None:
        """Make visible what is whole but unmarked, unless somebody is committing it."""
        if not self._appending.acquire(blocking=False):
            return
        try:
            if log.keeps_lock or log.file.lock(shared=True):
                log.adopt_tail()
        finally:
            self._unlock(log)
            self._appending.release()

    # Appending

    @contextlib.contextmanager
    def locked(self, failure: str) -> Iterator[GrowingLog]:
        """The log, locked, all of it visible, ready to be appended to; other threads wait.

        failure: what it means when that cannot be done.
        Raises StorageLockedError, DatabaseReplacedError, StorageError.
        """
        self.check_writable()
        with self._appending:
            log = self.current()
            try:
                with saying(f"{self.path}: {failure}"):
                    while not self._lock_and_settle(log):
                        log = self._unlock_and_follow(log)
                    yield log
            finally:
                self._unlock(log)

    def _lock_and_settle(self, log: GrowingLog) -> bool:
        """Lock a log, and make it ready; False if it is not the current one any more."""
        if not log.keeps_lock:
            # What others commit meanwhile need not be read once it is our turn.
            waited_s = obtain_lock(log.file, self._lock_timeout_s, meanwhile=log.catch_up)
            self.statistics.note_lock_wait(waited_s)
        status = self._path_status()
        if status.identity != log.identity:
            return False
        log.settle_tail(status.size)
        self.check_features(log)
        self._sync_directory(log)
        return True

    def _unlock_and_follow(self, log: GrowingLog) -> GrowingLog:
        self._unlock(log)
        with self._lock:
            return self._look()[0]

    def _unlock(self, log: GrowingLog) -> None:
        if not log.keeps_lock:
            log.file.unlock()

    def _sync_directory(self, log: Log) -> None:
        if self._directory_synced is not log:
            # Else a power cut could take the file's name away, and all commits with it.
            with contextlib.suppress(PermissionError):  # of who may not list it, no name depends
                self.system.sync_directory(os.path.dirname(os.path.realpath(self.path)))
            self._directory_synced = log

    def replace(self, packed: GrowingLog) -> None:
        """Go on with a file that has just been put into the place of the locked one."""
        with self._lock:
            self._log = packed
        self._sync_directory(packed)
        self._next_checkpoint = CHECKPOINT_SIZE

    def checkpoint(self, *, at_least: int | None = None) -> None:
        """Update the index file, if enough has come since; it never fails."""
        log = self._log
        if log is None or self.readonly or not self.uses_index:
            return
        if log.unindexed < (self._next_checkpoint if at_least is None else at_least):
            return
        with self._appending:
            with contextlib.suppress(OSError, StorageError):
                if self._path_status().identity == log.identity:  # else the index is another one's
                    write_checkpoint(log)
            self._next_checkpoint = log.unindexed + CHECKPOINT_SIZE
