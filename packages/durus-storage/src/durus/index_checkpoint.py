"""When and how the index file beside a log is opened, brought up to date, and made anew.

Storages call it.  Invariants: nothing here is needed for anything but speed, so nothing that goes
wrong here may fail a commit; one process at a time updates an index file, or makes it; a new one
appears whole, and whoever makes it may be killed at any moment.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Final

from durus.appearing import create_alone
from durus.error import StorageError
from durus.file_system import System
from durus.growing_log import GrowingLog
from durus.index_file import IndexDamagedError, IndexFile
from durus.interfaces import Oid
from durus.log import Log, Unindexed

__all__ = ["CHECKPOINT_SIZE", "index_path", "open_index", "renew_index", "write_checkpoint"]

CHECKPOINT_SIZE: Final = 4096
"""When so many records and transactions have come after what an index file covers, it is updated.
Who opens the file reads twice as many at most, unless something kept it from being updated."""


def index_path(path: str) -> str:
    """The index file of the log file at `path`."""
    return f"{os.path.realpath(path)}.index"


def open_index(system: System, path: str, *, writable: bool) -> IndexFile | None:
    """The index file of a log, if there is one that can be used."""
    with contextlib.suppress(OSError, StorageError):
        if system.path_status(index_path(path)).is_regular:
            return IndexFile.open(system, index_path(path), writable=writable)
    return None


def renew_index(log: Log) -> None:
    """Let memory forget what the index file covers by now: others may have updated it."""
    index = open_index(log.file.system, log.path, writable=False)
    if index is not None and log.accepts(index):
        log.use_index(index)


def write_checkpoint(log: GrowingLog) -> None:
    """Let the index file cover all that is visible.

    Does nothing if another process is doing that.  Raises OSError and StorageError.
    """
    state = log.unindexed_state()
    if state is None:
        return
    log.make_durable()  # a power cut must not leave an index of what is not there
    index = open_index(log.file.system, log.path, writable=True)
    if index is None or not log.accepts(index):
        index = _make(log, state)
    elif index.header.covers.end < state.until.end:
        index = _update(log, index, state)
    if index is not None:
        log.use_index(index)


def _update(log: Log, index: IndexFile, state: Unindexed) -> IndexFile | None:
    """The index, or one in its place if it is damaged; None if another process is at it."""
    if not index.lock():
        return None
    try:
        index.renew()
        covered = index.header.covers.end
        if covered < state.until.end:
            is_enough = 0 < state.since <= covered
            _cover(index, state.entries if is_enough else _all_entries(log, state), state)
        return index
    except IndexDamagedError:
        return _make(log, state)
    finally:
        index.unlock()


def _cover(
    index: IndexFile, entries: Iterable[tuple[int, int]], state: Unindexed, *, sync: bool = True
) -> None:
    index.update(
        entries,
        state.until,
        next_oid=state.next_oid,
        features_read_only=state.features_read_only,
        sync=sync,
    )


def _all_entries(log: Log, state: Unindexed) -> Iterator[tuple[int, int]]:
    for number, newest in log.items():
        slot = newest
        while slot >= state.until.end:  # another thread has just seen a newer revision
            oid = Oid(number.to_bytes(8))
            slot = log.find_previous_slot(log.read_slot(slot, oid)[1], slot, oid)
        if slot:
            yield number, slot


def _make(log: Log, state: Unindexed) -> IndexFile | None:
    """A new one, in the place of what is there; None if another process is making it."""
    system, path = log.file.system, index_path(log.path)
    new = f"{path}.new"
    index = create_alone(
        system,
        new,
        lambda: IndexFile.create(system, new, log.file.status(), log.header.file_id),
    )
    if index is None:
        return None
    try:
        _cover(index, _all_entries(log, state), state, sync=False)
        index.sync()
        system.rename(index.path, path)
    except BaseException:
        with contextlib.suppress(OSError):
            if index.is_at(index.path):
                system.unlink(index.path)
        raise
    finally:
        index.unlock()
    index.path = path
    return index
