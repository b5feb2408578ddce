"""`OverlayStorage`: a snapshot of another storage, the base, plus commits that stay in memory.

Programs import it from `durus.storage`: for fixtures of tests, what-if, dry runs.  Its tail is a
`MemoryStorage`, with the tids and oids above those of the base; an object that the tail does not
have is looked for in the snapshot.  Invariant: *the base is only read, and what others commit to it
is not seen*.
"""

import os
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from os import PathLike
from typing import Final

from durus.classic import as_storage
from durus.classic_storage import Storage as ClassicStorage
from durus.error import DurusKeyError
from durus.interfaces import (
    ROOT_OID,
    CommittedTransaction,
    HistoryStorage,
    Oid,
    Revision,
    Snapshot,
    Storage,
    Tid,
)
from durus.memory_storage import MemorySnapshot, MemoryStorage
from durus.opening import open_storage

__all__ = ["OverlayStorage"]

_FIRST_OID: Final = 2**47
"""Storages hand out oids one after the other from 0, so that none of a base comes up to here; an
overlay's own would clash with later ones of the base, but nothing of it ever goes there."""

_LOADED_AT_ONCE: Final = 100


class _BaseSnapshot:
    """The snapshot of the base: for all threads, which those of storages need not be."""

    def __init__(self, base: Storage) -> None:
        self._base = base
        self._use(base.snapshot())
        self.tid = self._snapshot.tid

    def _use(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def _renew_in_child(self) -> None:
        """In a process that was forked meanwhile, look at the same again."""
        if os.getpid() != self._pid and isinstance(self._base, HistoryStorage):
            self._use(self._base.snapshot(self.tid))

    def load(self, oid: Oid) -> Revision:
        self._renew_in_child()
        with self._lock:
            return self._snapshot.load(oid)

    def load_many(self, oids: Iterable[Oid]) -> Iterator[tuple[Oid, Revision]]:
        self._renew_in_child()
        remaining = iter(oids)
        while batch := list(islice(remaining, _LOADED_AT_ONCE)):
            with self._lock:
                found = list(self._snapshot.load_many(batch))
            yield from found

    def close(self) -> None:
        with self._lock:
            self._snapshot.close()


class _OverlaySnapshot(MemorySnapshot):
    """What the tail has up to a tid, and below it what a snapshot of the base has."""

    def __init__(self, storage: "OverlayStorage", tid: Tid, base: Snapshot) -> None:
        super().__init__(storage, tid)
        self._base = base

    def load(self, oid: Oid) -> Revision:
        return self.find(oid) or self._base.load(oid)

    def load_many(self, oids: Iterable[Oid]) -> Iterator[tuple[Oid, Revision]]:
        others: list[Oid] = []
        for oid in oids:
            revision = self.find(oid)
            if revision is None:
                others.append(oid)
            else:
                yield oid, revision
        yield from self._base.load_many(others)


class _PastSnapshot(_OverlaySnapshot):
    """A snapshot of the base that is older than the overlay; the tail has nothing in it."""

    def close(self) -> None:
        super().close()
        self._base.close()


class OverlayStorage(MemoryStorage):
    """A snapshot of a base, and what is committed on top of it, in memory.

    What it shows of the base is what was there when it was made, for ever; nothing is copied.  Any
    number of overlays, in any threads, may have the same base.

    The past is that of the base, if the base keeps history, and then the overlay's own.  A pack
    drops only what the overlay itself has in memory; the past then begins there.

    A server, or a storage of Durus 4.x, keeps no history.  An object that somebody changes there is
    lost to the overlay, unless it was changed here before: ReadConflictError, also when something
    is committed that refers to it.  Then make another overlay.
    """

    def __init__(self, base: str | PathLike[str] | Storage | ClassicStorage) -> None:
        """Make an overlay of what is newest.

        base: a storage, which is left open when the overlay is closed; or a path or URI, which is
          opened read-only, never made, and closed with the overlay.
        """
        super().__init__()
        self._is_opened = isinstance(base, str | PathLike)
        if isinstance(base, str | PathLike):
            base = open_storage(base, readonly=True, create=False)
        self._base = as_storage(base)
        try:
            self._base_snapshot = _BaseSnapshot(self._base)
        except BaseException:
            self._close_base()
            raise
        self._tid = self._horizon = self._base_snapshot.tid
        self._next_oid = _FIRST_OID

    def __repr__(self) -> str:
        return f"<OverlayStorage @{id(self):x} of {self._base}>"

    @property
    def is_remote(self) -> bool:  # type: ignore[override]  # the base decides, not the class
        """Whether the records of the base come from a server."""
        return bool(getattr(getattr(self._base, "classic", self._base), "is_remote", False))

    def close(self) -> None:
        """Give up what is in memory, and the snapshot of the base."""
        super().close()
        self._base_snapshot.close()
        self._close_base()

    def _close_base(self) -> None:
        if self._is_opened:
            self._base.close()

    # Reading

    @property
    def _past(self) -> HistoryStorage | None:
        """The base, if its history is that of the overlay, too."""
        is_packed = self._horizon > self._base_snapshot.tid
        return self._base if isinstance(self._base, HistoryStorage) and not is_packed else None

    def snapshot(self, at: Tid | None = None) -> Snapshot:
        past = self._past
        if at is None or at >= self._base_snapshot.tid or past is None:
            return super().snapshot(at)
        self._check_open()
        older = past.snapshot(at)
        return _PastSnapshot(self, older.tid, older)

    def _snapshot_of(self, tid: Tid) -> Snapshot:
        return _OverlaySnapshot(self, tid, self._base_snapshot)

    def transactions(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[CommittedTransaction]:
        past = self._past
        tail = super().transactions(start, stop)
        if past is None:
            return tail
        end = Tid(self._base_snapshot.tid + 1)
        return chain(past.transactions(start, end if stop is None else min(stop, end)), tail)

    def find(self, transaction_id: int) -> Tid | None:
        found = super().find(transaction_id)
        if found is None:  # find() of the base might write: it settles what is not known yet
            found = next((t.tid for t in self.transactions() if t.id == transaction_id), None)
        return found

    def revisions(self, oid: Oid) -> Iterator[Revision]:
        past = self._past
        tail: list[Revision] = []
        with suppress(DurusKeyError):
            tail.extend(super().revisions(oid))
        if tail and tail[-1].tid <= self._horizon:  # the newest that a pack has kept
            return iter(tail)
        try:
            newest = self._base_snapshot.load(oid)
        except DurusKeyError:
            if not tail:
                raise
            return iter(tail)
        return chain(tail, [newest], _list_older(past, oid, newest.tid))

    # Writing

    def _find_in_base(self, oids: Collection[Oid]) -> set[Oid]:
        return {oid for oid, _ in self._base_snapshot.load_many(oids)}

    def _find_existing(self, oids: Collection[Oid]) -> set[Oid]:
        found = super()._find_existing(oids)
        return found | self._find_in_base([oid for oid in oids if oid not in found])

    def _written(self, since: Tid, until: Tid) -> set[Oid] | None:
        written = super()._written(since, until)
        base_tid = self._base_snapshot.tid
        if since >= base_tid or written is None:
            return written
        in_base = self._base.changes(since, min(until, base_tid))
        return None if in_base is None else written | in_base

    def reserve_oids(self, count: int) -> Sequence[Oid]:
        oids = super().reserve_oids(count)
        while used := self._find_in_base(oids):  # the base is, or was made from, an overlay
            oids = [oid for oid in oids if oid not in used]
            oids += super().reserve_oids(len(used))
        return oids

    def _find_roots(self) -> set[Oid]:
        """The root, and what the base has, too: all of that would have to be searched."""
        return {ROOT_OID, *self._find_in_base(self._revisions)}


def _list_older(past: HistoryStorage | None, oid: Oid, tid: Tid) -> Iterator[Revision]:
    """The revisions in the past that are older than `tid`, as far as a pack has not removed it."""
    if past is not None:
        with suppress(DurusKeyError):
            yield from (revision for revision in past.revisions(oid) if revision.tid < tid)
