"""Backups of a database file, while it is in use: full ones, and parts with what has come since.

`docs/backup.md` is for users.  Invariants: a backup that is listed has been checked, byte by byte,
and is durable; and a full one with the parts that continue it is the beginning of the log that was
backed up, byte by byte.
"""

import errno
import os
import time
from collections.abc import Callable
from os import PathLike
from typing import Final, Literal, NamedTuple

from durus.backup_folder import BackupFile, BackupFolder
from durus.error import CorruptionError, StorageError, StorageOpenError
from durus.file_format import recognise
from durus.file_system import OperatingSystem, System
from durus.index_file import Anchor
from durus.interfaces import NO_TID, Progress, Tid
from durus.log_check import CheckedLog
from durus.log_copy import LogCopy
from durus.log_format import MARK_SIZE, Mark
from durus.log_lock import obtain_lock
from durus.log_open import explain_failure, open_log_file, saying
from durus.log_reader import LogReader
from durus.restore import RestoreResult, restore, verify_backup

__all__ = ["BackupResult", "RestoreResult", "backup", "restore", "verify_backup"]

_LOCK_TIMEOUT_S: Final = 10.0
_SEARCH_SIZE: Final = 1 << 16
_SPARE_SIZE: Final = 1 << 20
"""Of the free space, what is left for others."""

_OLD_REMEDY: Final = (
    "copy it while no program writes to it, or make a log of it with `durus convert`"
)
_OTHER_FORMATS: Final = {
    "sqlite": (
        "this is an SQLite database: make a backup by SQLite's own means (sqlite3 FILE '.backup "
        "COPY'), or make a log of it with `durus convert`"
    ),
    "shelf": f"this is a file of Durus 4.x (SHELF-1): {_OLD_REMEDY}",
    "dfs20": f"this is a file of Durus 4.x (DFS20): {_OLD_REMEDY}",
}


class BackupResult(NamedTuple):
    """What `backup` did."""

    kind: Literal["full", "incremental", "nothing"]
    """nothing: there was nothing new, so nothing was written."""
    reason: str
    """Why it is a full one, or nothing."""
    path: str | None
    """Of the new file."""
    size: int
    """Its bytes."""
    transactions: int
    """How many are in it."""
    tid: Tid
    """The newest transaction that the backups have now."""

    def __str__(self) -> str:
        if self.path is None:
            return self.reason
        because = f" ({self.reason})" if self.reason else ""
        return (
            f"{os.path.basename(self.path)}: {self.kind} backup{because}, "
            f"{self.transactions} transactions, {self.size} bytes"
        )


def backup(
    source: str | PathLike[str],
    folder: str | PathLike[str],
    *,
    full: bool = False,
    progress: Callable[[Progress], None] | None = None,
    system: System | None = None,
) -> BackupResult:
    """Back up a log file, which others may be using, into a folder.

    The folder is made if it is not there.  If it has backups of this file already, only what has
    come since is written, unless the file has been packed or replaced by something else.

    source: the path of the log file; it is only read.
    full: make a full backup in any case.
    progress: is called in between; what it raises ends the backup.
    system: another operating system, for tests.

    After an error the folder has the backups that it had.  Raises CorruptionError when the source,
    the manifest or the size of an earlier file is damaged; StorageLockedError while another backup
    is made in the folder; StorageOpenError when source or folder cannot be used; StorageError for
    what the operating system refuses.
    """
    system = OperatingSystem() if system is None else system
    place = BackupFolder(system, os.fspath(folder))
    log = _open_source(system, os.path.abspath(source))
    try:
        with saying(f"{place.path}: no backup was made"), place.locked():
            return _Backup(log, place, progress or _ignore).run(full=full)
    finally:
        log.file.unlock()


def _ignore(progress: Progress) -> None:
    pass


def _open_source(system: System, path: str) -> LogReader:
    """The log at a path, opened to read; it is locked, shared, on a network file system alone."""
    try:
        found = recognise(path)
        if found in _OTHER_FORMATS:
            raise StorageOpenError(path, _OTHER_FORMATS[found])
        file = open_log_file(system, path, readonly=True)
        if file.network_file_system() is not None:
            # There nobody sees for certain what others are just writing.
            obtain_lock(file, _LOCK_TIMEOUT_S, shared=True)
        return LogReader(file)
    except StorageError as error:
        if isinstance(error, StorageOpenError) and error.errno == errno.ENOENT:
            raise StorageOpenError(path, "there is no such file", errno.ENOENT) from error
        raise
    except OSError as error:
        raise explain_failure(path, error) from error


class _Backup:
    """One backup; the folder is locked."""

    def __init__(
        self, source: LogReader, folder: BackupFolder, report: Callable[[Progress], None]
    ) -> None:
        self._source = source
        self._folder = folder
        self._report = report
        self._size = source.file.status().size
        """What comes later is left to the next backup."""

    def run(self, *, full: bool) -> BackupResult:
        reason = self._find_reason(full=full)
        since = Anchor() if reason else _anchor_of(self._folder.files[-1])
        limit = self._find_limit(since)
        if not reason and limit == since.end and not self._look_at_tail(since).count:
            reason = "there is nothing new since the last backup"
            return BackupResult("nothing", reason, None, 0, 0, since.tid)
        copy = self._copy(since, limit)
        while copy.log.end < limit:
            # What an unsynced mark speaks of was torn by a power cut.
            limit = copy.log.end
            copy = self._copy(since, limit)
        return self._add(copy, since, reason)

    def _find_reason(self, *, full: bool) -> str:
        """Why a backup must be a full one; "" if it can continue the last one."""
        if not self._folder.files:
            return "the first one in this folder"
        if full:
            return "as was asked for"
        last = self._folder.files[-1]
        header = self._source.header
        if last.database_id != header.database_id.hex():
            return "the last one is of another database"
        if last.file_id != header.file_id.hex():
            return "the file was packed since the last one"
        self._folder.check_chain(self._folder.chains[-1])
        if not last.is_marked:
            return "the last one ends with what a crash had left without its mark"
        try:
            CheckedLog(self._source.file, _anchor_of(last))
        except CorruptionError:
            return (
                f"transaction {last.last_tid}, the last one that was backed up, is not in the file "
                "as it was: it was replaced by an older copy, or a power cut has taken its end"
            )
        return ""

    def _find_limit(self, since: Anchor) -> int:
        """The end of the last mark, if it is one for a new transaction."""
        start = max(since.end, self._source.header.size)
        stop, width = self._size, _SEARCH_SIZE
        while stop > start:
            place = max(start, stop - width)
            until = min(self._size, stop + MARK_SIZE)
            found = [e for e in self._source.search(place, until) if isinstance(e, Mark)]
            if found:
                return found[-1].end if found[-1].tid > since.tid else start
            stop, width = place, 2 * width
        return start

    def _copy(self, since: Anchor, limit: int) -> LogCopy:
        """A copy of what is between, in a file that has no name yet."""
        total = limit - since.end
        self._check_space(total)
        done = 0

        def report(size: int) -> None:
            nonlocal done
            done += size
            self._report(Progress("copying", done, max(done, total)))

        copy = LogCopy(
            self._source.file,
            self._folder.create(self._source.file.status()),
            since,
            blame=lambda offset: (self._source.path, offset),
            report=report,
        )
        copy.extend(limit)
        copy.finish()
        return copy

    def _check_space(self, size: int) -> None:
        free = self._folder.system.free_space(self._folder.path)
        if free < size + _SPARE_SIZE:
            raise StorageError(
                f"{self._folder.path}: the backup takes {size:,} bytes, {_SPARE_SIZE:,} are left "
                f"to others, and {free:,} are free there; no backup was made"
            )

    def _look_at_tail(self, since: Anchor) -> CheckedLog:
        """What comes after: only damage, or what a crash has left whole, but without its mark.

        Nobody is committing it; who opens the file sees it, and so does who opens a copy.
        """
        file = self._source.file
        tail = CheckedLog(file, since)
        tail.finish(self._size)
        if tail.catch_up(self._size).pending and file.lock(shared=True):
            try:
                if file.status().size == self._size:
                    tail.adopt_tail()
            finally:
                if file.network_file_system() is None:
                    file.unlock()
        return tail

    def _add(self, copy: LogCopy, since: Anchor, reason: str) -> BackupResult:
        first, last, count = copy.log.first, copy.log.last, copy.log.count
        tail = self._look_at_tail(copy.log.anchor)
        if tail.count:
            copy.extend(tail.end)
            copy.finish()
            first, last, count = first or tail.first, tail.last, count + tail.count
        first_tid, last_tid = (first.tid, last.tid) if first and last else (NO_TID, NO_TID)
        name = f"full-{last_tid}.durus" if reason else f"inc-{first_tid}-{last_tid}.part"
        header = self._source.header
        file = BackupFile(
            name=self._folder.new_name(name),
            size=copy.end - since.end,
            sha256=copy.sha256,
            start=since.end,
            end=copy.end,
            database_id=header.database_id.hex(),
            file_id=header.file_id.hex(),
            horizon=header.horizon,
            transactions=count,
            first_tid=first_tid,
            first_time_ns=first.time_ns if first else 0,
            last_tid=last_tid,
            last_time_ns=last.time_ns if last else 0,
            last_transaction_id=last.id if last else 0,
            last_offset=last.offset if last else 0,
            is_marked=copy.log.tid == last_tid,
            made_ns=time.time_ns(),
        )
        self._folder.add(file)
        return BackupResult(
            "full" if reason else "incremental",
            reason,
            self._folder.path_of(file.name),
            file.size,
            count,
            last_tid,
        )


def _anchor_of(file: BackupFile) -> Anchor:
    return Anchor(file.end, file.last_offset, file.last_tid, file.last_transaction_id)
