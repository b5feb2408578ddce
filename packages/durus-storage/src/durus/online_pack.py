"""Pack while others read and commit: make the packed copy beside the log, then swap the two.

`FileStorage.pack` calls it.  Invariants: until the rename the log is what it was, and after it the
packed file is complete, durable, locked, and holds every transaction of the log; who commits waits
for the last, small part alone; whoever packs may be killed at any moment, and one at a time does.
"""

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Final

from durus.appearing import create_alone, link_is_impossible
from durus.error import StorageError, StorageLockedError
from durus.file_system import FileStatus
from durus.growing_log import GrowingLog
from durus.index_checkpoint import CHECKPOINT_SIZE, index_path
from durus.index_file import IndexFile
from durus.interfaces import ROOT_OID, Progress, Tid
from durus.log import Log
from durus.log_codec import Compression
from durus.log_file import LogFile
from durus.log_header import MAGIC
from durus.log_open import saying
from durus.log_pack import LogPack, PackAgainError
from durus.log_writer import LogWriter
from durus.open_file import OpenFile
from durus.shared_log import SharedLog

__all__ = ["pack_online"]

_ATTEMPTS: Final = 10
"""How often objects may come back that were to be left out."""
_ROUNDS: Final = 20
"""So often what has been committed meanwhile is copied without the lock."""
_ROUND_SIZE_MIN: Final = 1 << 14
"""So little can be copied while others wait."""
_LARGE_SIZE: Final = 1 << 26
_CLOSE_LATE_S: Final = 2.0
_SECTOR_SIZE: Final = 512
"""So much of a file arrives on the disk, or does not."""
_SPARE_SIZE: Final = 1 << 20
"""Of the free space, what is left for others."""


def pack_online(
    shared: SharedLog,
    *,
    keep: Tid | None,
    keep_old: bool,
    compression: Compression | None = None,
    report: Callable[[Progress], None],
) -> None:
    """Pack the log at a path.

    keep: the tid before which history goes; None for the newest one.
    keep_old: whether the old file stays beside the new one, as `<path>.old`.
    compression: how all records are to be stored; None: as they are.
    report: is called in between; what it raises ends the pack.
    Raises StorageError, and then nothing has changed.
    """
    with saying(f"{shared.path}: the file could not be packed"):
        roots: set[int] = set()
        reason = ""
        for _ in range(_ATTEMPTS):
            shared.catch_up()  # is it the one that was opened?
            log = shared.open_another()
            if not log.find_slot(ROOT_OID):
                return
            pack = LogPack(log, log.tid if keep is None else keep, report, compression)
            attempt = _Attempt(shared, log, pack)
            try:
                attempt.run(roots, keep_old=keep_old)
            except PackAgainError as error:
                roots |= error.roots
                reason = str(error)
            else:
                _close_late(log)
                return
        raise StorageError(
            f"{shared.path}: the file could not be packed: {reason}, {_ATTEMPTS} times.  Try again "
            "when less is committed"
        )


def _close_late(log: Log) -> None:
    """Be the last to close a large file that has no name any more, if others soon go on.

    This frees its room on the disk, for which the system takes long: else one who commits would.
    """
    if log.end >= _LARGE_SIZE:
        timer = threading.Timer(_CLOSE_LATE_S, id, (log,))
        timer.daemon = True  # the end of the process closes it, too
        with contextlib.suppress(RuntimeError):  # there can be no more threads
            timer.start()


class _Attempt:
    """One attempt at a pack."""

    def __init__(self, shared: SharedLog, log: GrowingLog, pack: LogPack) -> None:
        self._shared = shared
        self._system = shared.system
        self._log = log
        self._pack = pack
        self._path = os.path.realpath(log.path)
        self._aside = f"{self._path}.pack"
        self._index_aside = f"{self._aside}.index"
        self._is_log = False
        """Whether the packed file is the log, so that whose turn it is locks and unlocks it."""

    def run(self, roots: set[int], *, keep_old: bool) -> None:
        """Raises PackAgainError, and StorageError; then nothing has changed, unless it says so."""
        self._check_aside()
        with self._made_aside() as file:
            self._pack.mark(roots)
            self._check_space()
            writer = self._pack.write(file, secrets.token_bytes(16))
            self._copy_most(writer)
            index = self._make_index(file, writer)
            packed = GrowingLog(file, index=index)
            self._copy_most(writer)  # that took long enough for others to commit much
            self._pack.hush()
            with self._shared.locked("the file could not be packed") as current:
                if current.identity != self._log.identity:
                    raise PackAgainError("another process packed it meanwhile")
                self._log.catch_up()
                if self._pack.write_later():
                    writer.finish()
                packed.catch_up()
                packed.recent = current.recent
                packed.keeps_lock = current.keeps_lock
                try:
                    self._swap(packed, index, keep_old=keep_old)
                finally:
                    if self._is_log and not packed.keeps_lock:
                        file.unlock()  # while it is our turn: the next thread locks the same file

    def _check_space(self) -> None:
        needed = self._pack.size + _SPARE_SIZE
        free = self._system.free_space(os.path.dirname(self._path))
        if free < needed:
            raise StorageError(
                f"{self._path}: packing takes about {needed >> 20} MiB beside the file until it is "
                f"done, and {free >> 20} MiB are free there; nothing was changed"
            )

    def _check_aside(self) -> None:
        """StorageError if there is something in the way that no pack of this database has left."""
        with contextlib.suppress(FileNotFoundError):
            is_link = os.path.islink(self._aside)  # which may lead to nothing
            if is_link or not self._is_left(self._system.path_status(self._aside)):
                raise StorageError(
                    f"{self._aside} is in the way: a pack makes a file of that name, and this one "
                    "was not left by one; give it another name, or remove it"
                )

    def _is_left(self, status: FileStatus) -> bool:
        """Whether a pack of this database that was killed, or is under way, has made what is aside.

        It has made an empty file, and then a log of this database, with a file id of its own (a
        copy has that of the log); a power cut may take the beginning of that, or let the log have
        both names.
        """
        if not status.is_regular:
            return False
        if status.identity == self._log.identity:
            return True
        system = self._system
        left = OpenFile(system, self._aside, system.open(self._aside, writable=False))
        start = left.read(0, _SECTOR_SIZE)
        header = self._log.header  # what follows the ids in the one aside may not be there yet
        is_ours = start.startswith(MAGIC) and start[16:32] == header.database_id
        return not start.strip(b"\0") or (is_ours and start[32:48] != header.file_id)

    @contextlib.contextmanager
    def _made_aside(self) -> Iterator[LogFile]:
        """An empty file, locked; it is removed again unless it takes the place of the log."""
        log, aside = self._log, self._aside
        file = create_alone(
            self._system,
            aside,
            lambda: LogFile(
                self._system,
                log.path,
                self._system.create(aside, log.file.status()),
                use_map=self._shared.uses_map,
            ),
        )
        if file is None:
            raise StorageLockedError(
                f"{self._path} is being packed already, by another process or thread; it goes on "
                "undisturbed"
            )
        try:
            self._remove_index_aside()  # what one has left that was killed
            yield file
        except BaseException:
            with contextlib.suppress(OSError):
                if file.is_at(aside):
                    self._remove_index_aside()
                    self._remove(aside)
            raise
        finally:
            if not self._is_log:
                file.unlock()

    def _remove_index_aside(self) -> None:
        with contextlib.suppress(OSError):
            self._remove(self._index_aside)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.unlink(path)

    def _copy_most(self, writer: LogWriter) -> None:
        """Copy what others commit meanwhile, until it is little."""
        for _ in range(_ROUNDS):
            writer.finish()
            self._shared.catch_up()
            self._log.catch_up()
            if self._pack.write_later() < _ROUND_SIZE_MIN:
                break
        writer.finish()

    def _make_index(self, file: LogFile, writer: LogWriter) -> IndexFile | None:
        """The index file of the packed one; None if it is not worth it, or cannot be made."""
        if not self._shared.uses_index or writer.unindexed < CHECKPOINT_SIZE:
            return None
        with contextlib.suppress(OSError, StorageError):
            status = file.status()
            index = IndexFile.create(self._system, self._index_aside, status, writer.file_id)
            index.update(
                writer.index.items(),
                writer.anchor,
                next_oid=writer.next_oid,
                features_read_only=self._log.features_read_only,
                sync=False,
            )
            index.sync()
            return index
        self._remove_index_aside()
        return None

    def _swap(self, packed: GrowingLog, index: IndexFile | None, *, keep_old: bool) -> None:
        system, path = self._system, self._path
        if keep_old:
            self._keep_old()
        # Before the log: who opens that shall find it.  Nobody takes it for one of the old log.
        with contextlib.suppress(OSError):
            if index is None:
                self._remove(index_path(path))
            else:
                system.rename(self._index_aside, index_path(path))
                index.path = index_path(path)
        self._is_log = True
        try:
            system.rename(self._aside, path)
        except OSError:
            self._is_log = False
            raise
        try:
            self._shared.replace(packed)
        except OSError as error:
            raise StorageError(
                f"{path} was packed, but its directory cannot be synced: {error}; until that is "
                "done, a power cut may bring back the file as it was, and commits fail"
            ) from error

    def _keep_old(self) -> None:
        """Give the log the name `<path>.old`, too.  An earlier file there stays until it has it."""
        system, old = self._system, f"{self._path}.old"
        spare = f"{self._path}.{secrets.token_hex(8)}.old"
        try:
            system.link(self._path, spare)
        except OSError as error:
            if not link_is_impossible(error):
                raise
            raise StorageError(
                f"{self._path}: the old file cannot be kept, since a file cannot have two names on "
                "this file system; nothing was changed.  Copy it first, and pack without keep_old"
            ) from error
        try:
            system.rename(spare, old)
        finally:
            self._remove(spare)  # it stays when it is the same file as `old`
