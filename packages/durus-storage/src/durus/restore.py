"""Making a database of a folder of backups again, as it was at a time; and checking the folder.

`durus.backup` has these calls for everybody.  Invariants: what is restored appears whole, and
checked, or not at all; the folder is only read.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from os import PathLike
from typing import Final, NamedTuple

from durus.appearing import appearing_at, create_alone, making
from durus.backup_folder import BackupFile, BackupFolder, Chain, remedy
from durus.error import (
    CorruptionError,
    HistoryUnavailableError,
    StorageError,
    StorageLockedError,
    StorageOpenError,
)
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
_OWNER_WRITES: Final = stat.S_IRUSR | stat.S_IWUSR


class RestoreResult(NamedTuple):
    """What `restore` did."""

    path: str
    size: int
    """Its bytes."""
    tid: Tid
    """Its newest transaction; 0 if there is none."""
    time_ns: int
    """When that was committed: wall clock, nanoseconds since 1970."""
    database_id: str
    """Which database it is, in hexadecimal digits."""
    other_databases: tuple[str, ...]
    """Those that there are backups of in the same folder."""

    def __str__(self) -> str:
        what = "no transaction"
        if self.tid != NO_TID:
            what = f"transactions up to {self.tid}, of {time_of(self.time_ns)}"
        which = f" of database {self.database_id}" if self.other_databases else ""
        return f"{self.path}: {what}{which}, {self.size} bytes"


class _Cut(NamedTuple):
    """Where a log is cut off, so that it ends with a transaction."""

    chain: Chain
    """What is needed of a chain of backups."""
    end: int
    """Of what is copied of them."""
    tid: Tid
    """Of that transaction."""
    transaction_id: int
    time_ns: int


def restore(
    folder: str | PathLike[str],
    target: str | PathLike[str],
    *,
    at: When | None = None,
    database: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    system: System | None = None,
) -> RestoreResult:
    """Make a database file from the backups in a folder.

    target: the path of the new file; nothing may be there.
    at: the newest transaction is the newest one that is not newer than this: a tid, an aware
        datetime, or a timedelta before now; None: the newest one that there is.
    database: the id of the database, if the folder has backups of several, as the manifest has it;
        None: that of the newest backup.
    progress: is called in between; what it raises ends it.
    system: another operating system, for tests.

    After an error there is no new file.  Raises StorageOpenError when something is there, when the
    folder cannot be used or a backup is missing; CorruptionError when one is damaged;
    HistoryUnavailableError when the backups do not reach back so far, or a pack was faster than
    they; StorageLockedError while another process makes the same file; StorageError for what the
    operating system refuses; ValueError for a datetime without a time zone.
    """
    system = OperatingSystem() if system is None else system
    place = BackupFolder(system, os.fspath(folder))
    target = os.path.abspath(target)
    tid = None if at is None else tid_at(at)
    with saying(f"{place.path}: nothing was restored"):
        place.open()
        _check_free(system, target)
        chains = _find_chains(place, database)

        def make(cut: _Cut) -> RestoreResult:
            return _make(place, cut, target, progress or _ignore)

        if tid is not None:
            return _restore_at(place, chains, tid, make)
        return make(_find_cut(place, chains[-1], chains[-1][-1].last_tid))


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


def _find_chains(folder: BackupFolder, database: str | None) -> list[Chain]:
    """Those of one database; StorageOpenError if there are none."""
    chains = folder.chains
    if not chains:
        raise StorageOpenError(folder.path, "there is no backup in this folder yet")
    wanted = database or chains[-1][0].database_id
    found = [chain for chain in chains if chain[0].database_id == wanted]
    if not found:
        reason = f"there is no backup of database {wanted} in this folder"
        raise StorageOpenError(folder.path, reason + _explain_others(folder, wanted))
    return found


def _find_others(folder: BackupFolder, database: str) -> tuple[str, ...]:
    ids = dict.fromkeys(file.database_id for file in folder.files)
    return tuple(id for id in ids if id != database)


def _explain_others(folder: BackupFolder, database: str) -> str:
    others = _find_others(folder, database)
    return f"; there are backups of database {' and '.join(others)}" if others else ""


def _restore_at(
    folder: BackupFolder, chains: list[Chain], at: Tid, make: Callable[[_Cut], RestoreResult]
) -> RestoreResult:
    """Restore what was there at a time.

    The newest full backup before it, and its parts, tell that.  But what was committed after the
    last of these, and before the next full backup, is in that alone, unless it was packed away.

    chains: of one database.
    """
    made = [max(chain[0].made_ns, chain[0].last_tid) for chain in chains]
    later = max((number + 1 for number, ns in enumerate(made) if ns <= at), default=0)
    known = chains[later - 1][-1].last_tid if later else NO_TID
    number = later
    try:
        cut = None
        if known < at and later < len(chains) and chains[later][0].first_tid <= at:
            cut = _find_cut(folder, chains[later], at)
        if cut is None or cut.tid <= known:
            number = later - 1
            cut = _find_cut(folder, chains[number], at) if later else None
        if cut is not None and (number < later or chains[later][0].horizon <= cut.tid):
            return make(cut)
    except (CorruptionError, StorageOpenError):
        with contextlib.suppress(StorageError):  # the next one may go on from there
            others = chains[number + 1 :]
            if others and _has_end(folder, others[0], _choose_files(chains[number], at)[-1]):
                return _restore_at(folder, others, at, make)
        raise
    raise HistoryUnavailableError(
        f"{folder.path}: no backup has what was there at tid {at} ({time_of(at)}): "
        f"{_explain_absence(chains[later][0], known)}"
        f"{_explain_others(folder, chains[0][0].database_id)}"
    )


def _explain_absence(next_full: BackupFile, known: Tid) -> str:
    first = next_full.first_tid or next_full.made_ns
    reason = f"the first transaction in them is {first} ({time_of(first)})"
    if next_full.horizon:
        reason = f"history before tid {next_full.horizon} had been packed away already"
    if known != NO_TID:
        reason += f"; what was there until tid {known} ({time_of(known)}) can be restored"
    return reason


def _choose_files(chain: Chain, at: Tid) -> Chain:
    """Those that have transactions which are not newer, and the full backup."""
    return [file for file in chain if file.is_full or file.first_tid <= at]


def _has_end(folder: BackupFolder, chain: Chain, file: BackupFile) -> bool:
    """Whether a chain has the last transaction of a file of another one; and so what led to it."""
    cut = _find_cut(folder, chain, file.last_tid)
    return (cut.tid, cut.transaction_id) == (file.last_tid, file.last_transaction_id)


def _find_cut(folder: BackupFolder, chain: Chain, at: Tid) -> _Cut:
    """The end of the newest transaction that is not newer; by the manifest there is one."""
    needed = _choose_files(chain, at)
    last = needed[-1]
    if last.last_tid <= at:
        return _Cut(needed, last.end, last.last_tid, last.last_transaction_id, last.last_time_ns)
    file = folder.open_chain(needed)
    head = None
    with contextlib.suppress(CorruptionError):
        heads = LogReader(file).walk_back_from(last.end)
        head = next((head for head in heads if head.tid <= at), None)
    if head is None:  # perhaps what is damaged is behind the transaction
        log = CheckedLog(file, blame=file.locate)
        is_certain = log.find_last(at, last.end)
        head = log.last
        if head is None or not is_certain:
            raise log.corrupt(log.end, f"what was committed here is not there; {remedy(last)}")
    return _Cut(needed, head.end, head.tid, head.id, head.time_ns)


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

    with _made_aside(system, target, source) as file:
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
    database = cut.chain[0].database_id
    others = _find_others(folder, database)
    return RestoreResult(target, copy.end, cut.tid, cut.time_ns, database, others)


@contextlib.contextmanager
def _made_aside(system: System, target: str, source: LogFile) -> Iterator[LogFile]:
    """An empty file, which gets the name `target` at the end.

    What is left of it when this process is killed goes when somebody restores to that name again.
    """
    folder, name = os.path.split(target)
    aside = os.path.join(folder, f".durus-{name}.new")
    status = source.status()
    like = status._replace(mode=status.mode | _OWNER_WRITES)  # the backups may be read-only
    with making(target):
        file = create_alone(
            system, aside, lambda: LogFile(system, aside, system.create(aside, like))
        )
        if file is None:
            reason = "another process is restoring to this name; try again when it has finished"
            raise StorageLockedError(f"{target}: {reason}")
        try:
            with appearing_at(system, target, aside):
                yield file
        finally:
            file.unlock()


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
