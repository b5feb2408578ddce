"""The state of a log file, its lock, index and disk, for those who look after it: `durus stats`."""

import contextlib
import os
import secrets
from typing import Final, Literal, NamedTuple

from durus.error import StorageError, StorageLockedError
from durus.file_system import LockHolder, OperatingSystem, System
from durus.growing_log import GrowingLog
from durus.index_checkpoint import index_path
from durus.index_file import IndexFile
from durus.log_lock import obtain_lock
from durus.log_open import open_log_file

__all__ = ["LogState", "look_at_log"]

_LOCK_WAIT_MAX_S: Final = 1.0
_SYNC_COUNT: Final = 5
_SYNC_SIZE: Final = 4096


class LogState(NamedTuple):
    """What `look_at_log` found."""

    lock_wait_s: float | None
    """How long it took to get the lock; None if that was given up after a second."""
    lock_holder: LockHolder | None
    """Who had it then, if that can be told."""
    sync_s: float | None
    """The median time of writing and syncing 4 KiB in the file's folder; None: not writable."""
    index_state: Literal["none", "in use", "damaged", "of another log"]
    index_bytes: int
    unindexed: int
    """Records and transactions that the index does not cover."""
    unfinished_bytes: int
    """What follows the last mark, and is no whole transaction."""


def look_at_log(path: str, system: System | None = None) -> LogState:
    """Look at a log file, which may be in use; it is only read, and locked shared for a moment.

    Raises StorageOpenError, CorruptionError, StorageError, OSError.
    """
    system = OperatingSystem() if system is None else system
    file = open_log_file(system, path, readonly=True)
    wait_s, holder = None, None
    try:
        wait_s = obtain_lock(file, _LOCK_WAIT_MAX_S, shared=True)
        file.unlock()
    except StorageLockedError:
        holder = file.lock_holder()
    state, index = _find_index(system, path)
    log = GrowingLog(file, index=index)
    if index is not None and log.index.base is None:
        state = "of another log"
    tail = log.catch_up()
    return LogState(
        lock_wait_s=wait_s,
        lock_holder=holder,
        sync_s=_measure_sync(system, os.path.dirname(os.path.realpath(path))),
        index_state=state,
        index_bytes=0 if index is None else index.status().size,
        unindexed=log.unindexed,
        unfinished_bytes=tail.size - tail.offset,
    )


def _find_index(
    system: System, path: str
) -> tuple[Literal["none", "in use", "damaged", "of another log"], IndexFile | None]:
    try:
        return "in use", IndexFile.open(system, index_path(path), writable=False)
    except FileNotFoundError:
        return "none", None
    except (OSError, StorageError):
        return "damaged", None


def _measure_sync(system: System, folder: str) -> float | None:
    aside = os.path.join(folder, f".durus-{secrets.token_hex(8)}.new")
    times = []
    try:
        fd = system.create(aside)
        try:
            for _ in range(_SYNC_COUNT):
                start = system.monotonic()
                system.append(fd, bytes(_SYNC_SIZE))
                system.sync(fd)
                times.append(system.monotonic() - start)
        finally:
            system.close(fd)
            with contextlib.suppress(OSError):
                system.unlink(aside)
    except OSError:
        return None
    return sorted(times)[len(times) // 2]
