"""Making a database of a folder of backups again, as it was at a time; and checking the folder.

`durus.backup` has these calls for everybody.  Invariants: what is restored appears whole, and
checked, or not at all; the folder is only read.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from os import PathLike
from typing import Final, NamedTuple

from durus.appearing import appearing_at, making
from durus.backup_folder import BackupFile, BackupFolder, Chain, remedy
from durus.error import CorruptionError, HistoryUnavailableError, StorageError, StorageOpenError
from durus.file_format import Finding
from durus.file_system import OperatingSystem, System
from durus.index_file import Anchor
from durus.interfaces import NO_TID, Oid, Progress, Tid
from durus.log_check import CheckedLog
from durus.log_copy import LogCopy
from durus.log_file import LogFile
from durus.log_format import Mark, encode_mark
from durus.log_open import saying
from durus.log_reader import LogReader
from durus.times import When, tid_at, time_of

__all__ = ["RestoreResult", "restore", "verify_backup"]

_PIECE_SIZE: Final = 1 << 20


class RestoreResult(NamedTuple):
    """What `restore` did."""

    path: str
    size: int
    """Its bytes."""
    tid: Tid
    """Its newest transaction; 0 if there is none."""
    time_ns: int
    """When that was committed: wall clock, nanoseconds since 1970."""

    def __str__(self) -> str:
        what = "no transaction"
        if self.tid != NO_TID:
            what = f"transactions up to {self.tid}, of {time_of(self.time_ns)}"
        return f"{self.path}: {what}, {self.size} bytes"


class _Cut(NamedTuple):
    """Where a log is cut off, so that it ends with a transaction."""

    chain: Chain
    """What is needed of a chain of backups."""
    end: int
    """Of what is copied of them."""
    tid: Tid
    time_ns: int


def restore(
    folder: str | PathLike[str],
    target: str | PathLike[str],
    *,
    at: When | None = None,
    progress: Callable[[Progress], None] | None = None,
    system: System | None = None,
) -> RestoreResult:
    """Make a database file from the backups in a folder.

    target: the path of the new file; nothing may be there.
    at: the newest transaction is the newest one that is not newer than this: a tid, an aware
        datetime, or a timedelta before now; None: the newest one that there is.
    progress: is called in between; what it raises ends it.
    system: another operating system, for tests.

    After an error there is no new file.  Raises StorageOpenError when something is there, when the
    folder cannot be used or a backup is missing; CorruptionError when one is damaged;
    HistoryUnavailableError when the backups do not reach back so far; StorageError for what the
    operating system refuses; ValueError for a datetime without a time zone.
    """
    system = OperatingSystem() if system is None else system
    place = BackupFolder(system, os.fspath(folder))
    target = os.path.abspath(target)
    tid = None if at is None else tid_at(at)
    with saying(f"{place.path}: nothing was restored"):
        place.open()
        _check_free(system, target)
        cut = _choose(place, tid)
        return _make(place, cut, target, progress or _ignore)


def _ignore(progress: Progress) -> None:
    pass


def _check_free(system: System, target: str) -> None:
    try:
        system.path_status(target)
    except FileNotFoundError:
        return
    reason = (
        "something is there already, and nothing is overwritten: restore to another name; a "
        "database that no program has open may then be replaced by renaming"
    )
    raise StorageOpenError(target, reason, errno.EEXIST)


# Which transaction


def _choose(folder: BackupFolder, at: Tid | None) -> _Cut:
    """Where to cut which chain.

    At a time, the newest full backup before it, and its parts, tell what was there.  But what was
    committed after the last of these, and before the next full backup, is in that alone.
    """
    chains = folder.chains
    if not chains:
        raise StorageOpenError(folder.path, "there is no backup in this folder yet")
    if at is None:
        last = chains[-1][-1]
        return _Cut(chains[-1], last.end, last.last_tid, last.last_time_ns)
    made = [max(chain[0].made_ns, chain[0].last_tid) for chain in chains]
    later = max((number + 1 for number, ns in enumerate(made) if ns <= at), default=0)
    found = _find_cut(folder, chains[later - 1], at) if later else None
    if later < len(chains):
        newer = _find_cut(folder, chains[later], at)
        if newer is not None and newer.tid > (found.tid if found else NO_TID):
            found = newer
    if found is None:
        raise HistoryUnavailableError(
            f"{folder.path}: no backup has what was there at tid {at} ({time_of(at)}): "
            f"{_explain_beginning(chains[0][0])}"
        )
    return found


def _explain_beginning(oldest: BackupFile) -> str:
    first = oldest.first_tid or oldest.made_ns
    begins = f"the first transaction in them is {first} ({time_of(first)})"
    if oldest.horizon:
        begins = f"history before tid {oldest.horizon} had been packed away already"
    return begins


def _find_cut(folder: BackupFolder, chain: Chain, at: Tid) -> _Cut | None:
    """The end of the newest transaction that is not newer, if the chain has one."""
    if chain[0].first_tid > at or chain[0].horizon > at:
        return None
    needed = [file for file in chain if file.is_full or file.first_tid <= at]
    last = needed[-1]
    if last.last_tid <= at:
        return _Cut(needed, last.end, last.last_tid, last.last_time_ns)
    file = folder.open_chain(needed)
    try:
        heads = LogReader(file).walk_back_from(last.end)
        head = next((head for head in heads if head.tid <= at), None)
    except CorruptionError:
        # Perhaps it is behind the transaction.
        log = CheckedLog(file, blame=file.locate)
        log.find_last(at, last.end)
        head = log.last
    return _Cut(needed, head.end, head.tid, head.time_ns) if head else None


# Copying


def _make(
    folder: BackupFolder, cut: _Cut, target: str, report: Callable[[Progress], None]
) -> RestoreResult:
    system = folder.system
    folder.check_chain(cut.chain)
    source = folder.open_chain(cut.chain)
    done = 0

    def note(size: int) -> None:
        nonlocal done
        done += size
        report(Progress("restoring", done, cut.end))

    with making(target), appearing_at(system, target) as aside:
        file = LogFile(system, aside, system.create(aside, source.status()))
        whole = [backup for backup in cut.chain if backup.end <= cut.end]
        copy = LogCopy(
            source,
            file,
            Anchor(),
            blame=source.locate,
            report=note,
            boundaries=[backup.end for backup in whole],
        )
        copy.extend(cut.end)
        for backup, checksum in zip(whole, copy.checksums, strict=True):
            if checksum != backup.sha256:
                path = folder.path_of(backup.name)
                raise CorruptionError(path, None, f"its checksum is wrong; {remedy(backup)}")
        copy.finish()
        if copy.log.tid < cut.tid:  # its own mark comes later, and speaks of others, too
            copy.append(encode_mark(copy.log.header.file_id, Mark(copy.end, cut.tid)))
            copy.finish()
        if copy.log.tid != cut.tid or copy.log.end != copy.end:
            reason = f"the backups do not end with transaction {cut.tid}, as the manifest says"
            raise CorruptionError(source.path, None, reason)
    return RestoreResult(target, copy.end, cut.tid, cut.time_ns)


# Verifying


def verify_backup(
    folder: str | PathLike[str],
    *,
    progress: Callable[[Progress], None] | None = None,
    system: System | None = None,
) -> Iterator[Finding]:
    """Yield what is wrong with the backups in a folder; nothing if all is sound.

    Each file is compared with its checksum; and everything in the logs that they are is checked.
    An offset is that in the file which the finding names.

    Raises StorageOpenError when there are no backups, CorruptionError when the manifest is damaged,
    StorageError for what the operating system refuses.
    """
    system = OperatingSystem() if system is None else system
    place = BackupFolder(system, os.fspath(folder))
    with saying(f"{place.path}: the backups cannot be read"):
        place.open()
        check = _Verification(place, progress or _ignore)
        for chain in place.chains:
            yield from check.run(chain)
        for name in place.unlisted():
            yield Finding(None, None, None, f"{name} is not in the manifest")


class _Verification:
    def __init__(self, folder: BackupFolder, report: Callable[[Progress], None]) -> None:
        self._folder = folder
        self._report = report
        self._total = sum(file.size for file in folder.files)
        self._done = 0

    def run(self, chain: Chain) -> Iterator[Finding]:
        reach = 0
        for number, backup in enumerate(chain):
            try:
                file = self._folder.open_file(backup)
                if reach == number:
                    reach += 1  # else the log has ended before
                if self._hash(file, backup.size) != backup.sha256:
                    problem = f"{backup.name}: its checksum is wrong; {remedy(backup)}"
                    yield Finding(None, None, None, problem)
            except StorageError as error:
                yield Finding(None, None, None, str(error))
        if reach:
            yield from self._check_log(chain[:reach])

    def _hash(self, file: LogFile, size: int) -> str:
        found = hashlib.sha256()
        for place in range(0, size, _PIECE_SIZE):
            content = file.read(place, _PIECE_SIZE)
            found.update(content)
            self._done += len(content)
            self._report(Progress("verifying", self._done, self._total))
        return found.hexdigest()

    def _check_log(self, chain: Chain) -> Iterator[Finding]:
        count = 0
        try:
            file = self._folder.open_chain(chain)
            log = CheckedLog(file, blame=file.locate)
            for backup in chain:
                log.finish(backup.end)
                count += backup.transactions
                if backup.is_marked and not _fits(log, backup, count):
                    yield Finding(
                        None,
                        log.tid,
                        None,
                        f"{backup.name}: it ends with this transaction, and by the manifest it "
                        f"should with transaction {backup.last_tid}",
                    )
        except CorruptionError as error:
            yield Finding(
                error.offset,
                None if error.tid is None else Tid(error.tid),
                None if error.oid is None else Oid(error.oid),
                f"{os.path.basename(error.path)}: {error.reason}",
            )
        except StorageError as error:
            yield Finding(None, None, None, str(error))


def _fits(log: CheckedLog, backup: BackupFile, count: int) -> bool:
    """Whether a log, as far as it is checked, is what the manifest says of it."""
    header, anchor = log.header, log.anchor
    return (
        header.database_id.hex(),
        header.file_id.hex(),
        anchor.tid,
        anchor.transaction_id,
        log.count,
    ) == (
        backup.database_id,
        backup.file_id,
        backup.last_tid,
        backup.last_transaction_id,
        count,
    )
